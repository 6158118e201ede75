from __future__ import annotations

import logging
import math
import queue
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syslogger import riemann
from syslogger.counters import Counters
from syslogger.riemann import Riemann, probe
from tests.riemann_wire import Event, FakeRiemann, decoded, encoded

METER = ("count", "mean", "one-minute", "five-minute", "fifteen-minute")
TIMER = (
    *("count", "min", "max", "mean", "std-dev"),
    *("percentile-0.750", "percentile-0.950", "percentile-0.990", "percentile-0.999"),
    *("one-minute", "five-minute", "fifteen-minute"),
)
SERVICES = (
    "syslogger openConnections count",
    *(f"syslogger sentMessages.{measure}" for measure in METER),
    *(f"syslogger sendMessageErrors count.{measure}" for measure in METER),
    *(f"syslogger sendMessage.{measure}" for measure in TIMER),
)


@pytest.fixture
def server() -> Iterator[FakeRiemann]:
    with FakeRiemann() as fake:
        yield fake


def pushing(address: str, counters: Counters | None = None, interval_seconds: float = 0.02) -> Riemann:
    return Riemann(address=address, counters=counters or Counters(), interval_seconds=interval_seconds, host="here")


def pushed(server: FakeRiemann, counters: Counters, interval_seconds: float = 0.02) -> dict[str, Event]:
    with pushing(server.address, counters, interval_seconds):
        events = server.next().events
    return {event.service or "": event for event in events}


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return what was logged above DEBUG, by whatever logger."""
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.levelno > logging.DEBUG]


def holds(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.001)


def test_one_message_has_every_service_of_the_go_program(server: FakeRiemann) -> None:
    before = int(time.time())
    with pushing(server.address, interval_seconds=0.5):
        message = server.next()
    assert sorted(event.service or "" for event in message.events) == sorted(SERVICES)
    assert len(SERVICES) == 23
    for event in message.events:
        assert event.host == "here"
        assert event.ttl == 1.5
        assert event.time is not None
        assert before <= event.time <= int(time.time())
        assert event.metric_f is None
        assert (event.metric_sint64 is None) != (event.metric_d is None)
    whole = {event.service for event in message.events if event.metric_sint64 is not None}
    assert whole == {
        "syslogger openConnections count",
        "syslogger sentMessages.count",
        "syslogger sendMessageErrors count.count",
        "syslogger sendMessage.count",
        "syslogger sendMessage.min",
        "syslogger sendMessage.max",
    }


def test_whole_numbers_are_exact_to_64_bits(server: FakeRiemann) -> None:
    counters = Counters(records_delivered=2**53 + 1, connections_open=16_777_217)
    counters.batch_failures["KafkaTimeoutError"] = 2**63 - 8
    counters.batch_failures["NotLeaderForPartitionError"] = 7
    events = pushed(server, counters)
    assert events["syslogger sentMessages.count"].metric_sint64 == 2**53 + 1
    assert events["syslogger openConnections count"].metric_sint64 == 16_777_217
    assert events["syslogger sendMessageErrors count.count"].metric_sint64 == 2**63 - 1


def test_durations_are_nanoseconds(server: FakeRiemann) -> None:
    counters = Counters()
    for seconds in (0.003, 0.001, 0.002):
        counters.delivery_seconds.observe(seconds)
    events = pushed(server, counters)
    assert events["syslogger sendMessage.count"].metric_sint64 == 3
    assert events["syslogger sendMessage.min"].metric_sint64 == 1_000_000
    assert events["syslogger sendMessage.max"].metric_sint64 == 3_000_000
    assert events["syslogger sendMessage.mean"].metric_d == pytest.approx(2_000_000)
    assert events["syslogger sendMessage.std-dev"].metric_d == pytest.approx(816_496.58)
    assert events["syslogger sendMessage.percentile-0.750"].metric_d == pytest.approx(3_000_000)
    assert events["syslogger sendMessage.percentile-0.999"].metric_d == pytest.approx(3_000_000)


def test_the_host_is_this_machine_unless_configured(server: FakeRiemann) -> None:
    with Riemann(address=server.address, counters=Counters(), interval_seconds=0.02):
        assert {event.host for event in server.next().events} == {socket.gethostname()}


def test_ticks_follow_one_another_on_one_connection(server: FakeRiemann) -> None:
    counters = Counters()
    with pushing(server.address, counters):
        for count in range(3):
            counters.records_delivered = count
            holds(lambda count=count: sent(server.next().events) == count)
        assert len(server.connections) == 1


def sent(events: list[Event]) -> int | None:
    return next(event.metric_sint64 for event in events if event.service == "syslogger sentMessages.count")


def test_rates_are_those_of_go_metrics() -> None:
    # the expected values stand in go-metrics' ewma_test.go: 3 events in the first 5 s, then none for a minute
    meter = riemann._Meter(100.0)
    assert meter.measures(3, 105.0) == {
        "count": 3,
        "mean": 0.6,
        "one-minute": 0.6,
        "five-minute": 0.6,
        "fifteen-minute": 0.6,
    }
    for tick in range(1, 13):
        measures = meter.measures(3, 105.0 + 5 * tick)
    assert measures["one-minute"] == pytest.approx(0.22072766470286553)
    assert measures["five-minute"] == pytest.approx(0.49123845184678905)
    assert measures["fifteen-minute"] == pytest.approx(0.5613041910189706)
    assert measures["mean"] == pytest.approx(3 / 65)


def test_rates_do_not_depend_on_the_interval() -> None:
    often, seldom = riemann._Meter(0.0), riemann._Meter(0.0)
    often.measures(3, 5.0)
    seldom.measures(3, 5.0)
    for second in range(6, 66):
        measures = often.measures(3, float(second))
    assert seldom.measures(3, 65.0) == pytest.approx(measures)


def test_a_meter_looked_at_in_no_time_has_no_rate() -> None:
    measures = riemann._Meter(1.0).measures(5, 1.0)
    assert measures == {"count": 5, "mean": 0.0, "one-minute": 0.0, "five-minute": 0.0, "fifteen-minute": 0.0}


def test_statistics_are_those_of_go_metrics() -> None:
    # the expected values stand in go-metrics' histogram_test.go: the numbers 1 to 10,000
    statistics = riemann._statistics([float(number) for number in range(1, 10_001)])
    assert statistics["min"] == 1
    assert statistics["max"] == 10_000
    assert statistics["mean"] == 5000.5
    assert statistics["std-dev"] == pytest.approx(2886.751331514372)
    assert statistics["percentile-0.750"] == 7500.75
    assert statistics["percentile-0.990"] == pytest.approx(9900.99)


@pytest.mark.parametrize(("values", "expected"), [([], 0.0), ([7.0], 7.0)])
def test_statistics_of_next_to_nothing(values: list[float], expected: float) -> None:
    statistics = riemann._statistics(values)
    assert statistics.pop("std-dev") == 0
    assert set(statistics.values()) == {expected}
    assert all(math.isfinite(value) for value in statistics.values())


def test_a_deque_that_changes_meanwhile_is_read_again(server: FakeRiemann) -> None:
    class Appended(deque[float]):
        changes = 2

        def __iter__(self) -> Iterator[float]:
            if self.changes:
                self.changes -= 1
                raise RuntimeError("deque mutated during iteration")
            return super().__iter__()

    counters = Counters()
    counters.delivery_seconds.recent = recent = Appended([0.5])
    assert pushed(server, counters)["syslogger sendMessage.max"].metric_sint64 == 500_000_000
    assert recent.changes == 0


def test_riemann_comes_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pushing(f"127.0.0.1:{port}"):
        holds(lambda: len(logged(caplog)) == 1)
        with FakeRiemann(port) as server:
            server.next()
            holds(lambda: len(logged(caplog)) == 2)
        holds(lambda: len(logged(caplog)) == 3)
    levels = [level for level, _ in logged(caplog)]
    assert levels == ["WARNING", "INFO", "WARNING"]
    assert "refused" in logged(caplog)[0][1]
    assert f"127.0.0.1:{port}" in logged(caplog)[0][1]


def test_a_refusal_is_logged_with_its_reason(server: FakeRiemann, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.answer = encoded(ok=False, error="no index here")
    with pushing(server.address):
        server.next()
        server.next()
        assert [level for level, _ in logged(caplog)] == ["WARNING"]
        assert "no index here" in logged(caplog)[0][1]
        server.answer = encoded(ok=True)
        holds(lambda: [level for level, _ in logged(caplog)] == ["WARNING", "INFO"])


def test_a_connection_that_died_between_pushes_is_no_failure(
    server: FakeRiemann, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.hangs_up = True
    with pushing(server.address):
        for _ in range(3):
            server.next()
    assert [level for level, _ in logged(caplog)] == ["INFO"]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", struct.pack("!I", 3) + b"\xff\xff\xff", struct.pack("!I", 0)],
    ids=["http", "no protobuf", "nothing"],
)
def test_what_is_not_riemann_is_said_to_be_so(
    server: FakeRiemann, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = answer
    with pushing(server.address):
        server.next()
        server.next()  # and the thread lives on
    assert [level for level, _ in logged(caplog)] == ["WARNING"]
    assert "what answers is not Riemann" in logged(caplog)[0][1]
    with pytest.raises(OSError, match="not Riemann"):
        probe(server.address)


def test_a_riemann_that_swallows_is_given_up_and_tried_again(
    server: FakeRiemann, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(riemann, "_TIMEOUT_SECONDS", 0.1)
    server.answer = None
    with pushing(server.address):
        server.next()
        server.next()
    assert [(level, "timed out" in text) for level, text in logged(caplog)] == [("WARNING", True)]


def test_leaving_is_quick_and_quiet_while_riemann_swallows(
    server: FakeRiemann, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = None
    with pushing(server.address) as pusher:
        server.next()  # the push waits for its answer now, for 5 s
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert not pusher._thread.is_alive()
    assert logged(caplog) == []
    with pytest.raises(queue.Empty):
        server.messages.get_nowait()


def test_leaving_while_connecting_takes_a_second_and_nothing_is_pushed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(riemann, "_TIMEOUT_SECONDS", 20)
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    address = listener.getsockname()
    with listener, socket.create_connection(address):  # one fills the backlog; the next one's SYN is swallowed
        with pushing(f"127.0.0.1:{address[1]}") as pusher:
            holds(lambda: syn_sent_to(address[1]))
            began = time.monotonic()
        assert time.monotonic() - began < 1.5
        listener.accept()[0].close()  # room: the connection comes about after all
        listener.settimeout(5)
        late, _ = listener.accept()
        late.settimeout(5)
        with late:
            assert late.recv(1) == b""
    holds(lambda: not pusher._thread.is_alive())


def syn_sent_to(port: int) -> bool:
    """Say whether the kernel is trying to connect to a local port (state 02 in Linux' table)."""
    return f"0100007F:{port:04X} 02 " in Path("/proc/net/tcp").read_text()


def test_leaving_before_the_first_push_pushes_nothing(server: FakeRiemann) -> None:
    with pushing(server.address, interval_seconds=60):
        began = time.monotonic()
    assert time.monotonic() - began < 0.5
    assert server.messages.empty()


def test_it_backs_off_to_a_minute() -> None:
    pusher = pushing("127.0.0.1:5555", interval_seconds=10)
    assert [pusher._delay_seconds(failures) for failures in (0, 1, 2, 3, 4, 5, 10_000)] == [10, 10, 20, 40, 60, 60, 60]
    assert pushing("127.0.0.1:5555", interval_seconds=100)._delay_seconds(3) == 100


def test_probe_says_that_riemann_answers(server: FakeRiemann) -> None:
    assert probe(server.address) == f"Riemann at {server.address} answers."
    assert server.next().query == "false"
    server.answer = encoded(ok=False, error="no index")
    assert "answers" in probe(server.address)


def test_probe_raises_when_nothing_answers(server: FakeRiemann, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        probe(f"127.0.0.1:{port}")
    monkeypatch.setattr(riemann, "_TIMEOUT_SECONDS", 0.1)
    server.answer = None
    with pytest.raises(TimeoutError):
        probe(server.address)


def test_bernhard_is_imported_late_and_without_a_warning() -> None:
    program = """
import sys, warnings
import syslogger.riemann
assert not {"bernhard", "google.protobuf", "pkg_resources"} & set(sys.modules)
before = warnings.filters[:]
syslogger.riemann.Riemann(address="localhost:5555", counters=syslogger.riemann.Counters())
assert "bernhard" in sys.modules
assert warnings.filters == before
try:
    warnings.warn("mine", DeprecationWarning)
except DeprecationWarning:
    print("still an error")
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "still an error\n", "")


def test_the_decoder_knows_what_it_does_not_know() -> None:
    assert decoded(b"\x10\x01").ok is True
    for wrong in (b"\x58\x01", b"\x32\x05\x0a", b"\x0b"):  # field 11; an event cut off; a group
        with pytest.raises(ValueError, match=r"no field|ends within|no wire type"):
            decoded(wrong)
