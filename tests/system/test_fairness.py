"""One peer's noise, and that of whoever looks at the metrics, is not another peer's delay."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.system.cluster import Proxy
from tests.system.parts import Kafka43, Load, Part, Sender, Syslogger, free_port, until

pytestmark = pytest.mark.alone

QUIET_PEERS = 1000
ROUNDS = 5
QUIET = re.compile(rb"quiet (\d+)")


class Flood(Part):
    """A peer that sends as fast as it is read."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory)
        self.port = port

    def argv(self) -> list[str]:
        line = f"<13>Nov 21 07:47:01 host flood: {'x' * 150}"
        program = (
            "import socket\n"
            f"peer = socket.create_connection(('127.0.0.1', {self.port}))\n"
            f"lines = b'{line}\\n' * 300\n"
            "while True:\n"
            "    peer.sendall(lines)\n"
        )
        return [sys.executable, "-c", program]

    def ready(self) -> bool:
        return True


def _appended_at(kafka: Kafka43, topic: str) -> dict[int, float]:
    """Return when each quiet message was appended, by number, in seconds since 1970; assert that each came once.

    From the broker's files, uncompressed batches of version 2 with the broker's time: a consumer in Python would need
    half a minute for what the flood leaves there.
    """
    found: dict[int, float] = {}
    for file in sorted((kafka.directory / "data" / f"{topic}-0").glob("*.log")):
        content, at = file.read_bytes(), 0
        while at < len(content):
            end = at + 12 + int.from_bytes(content[at + 8 : at + 12])
            milliseconds = int.from_bytes(content[at + 35 : at + 43])
            for match in QUIET.finditer(content, at, end):
                number = int(match[1])
                assert number not in found, f"quiet {number} came twice"
                found[number] = (milliseconds + 0.5) / 1000  # the clock shows whole ones
            at = end
    return found


@pytest.mark.row(25)
def test_a_flood_beside_a_thousand_quiet_peers(kafka43: Kafka43, make_syslogger, tmp_path: Path):
    """Alone and beside the flood in turns, so that what else the machine does falls on both."""
    topic = kafka43.create_topic(message__timestamp__type="LogAppendTime")
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.start()
    sent: dict[int, float] = {}
    rounds: dict[bool, list[range]] = {False: [], True: []}
    with contextlib.ExitStack() as peers:
        quiet = [peers.enter_context(syslogger.connect()) for _ in range(QUIET_PEERS)]

        def send(count: int) -> range:
            first = len(sent)
            for number in range(first, first + count):
                peer = random.choice(quiet)  # noqa: S311
                line = b"quiet %d\n" % number
                sent[number] = time.time()
                peer.sendall(line)
                time.sleep(random.uniform(0, 0.008))  # noqa: S311
            return range(first, first + count)

        send(100)  # warm
        flood = Flood(tmp_path / "flood", syslogger.port)
        flood.start()
        flooded = 0.0
        for _ in range(ROUNDS):
            flood.sigstop()
            until(lambda: syslogger.metric("syslogger_records_in_flight") == 0, "the flood is over")
            rounds[False].append(send(200))
            flood.sigcont()
            time.sleep(0.3)
            before, began = syslogger.metric("syslogger_records_delivered_total"), time.monotonic()
            rounds[True].append(send(200))
            after = syslogger.metric("syslogger_records_delivered_total")
            flooded += (after - before) / (time.monotonic() - began) / ROUNDS
        flood.sigkill()
        until(lambda: syslogger.metric("syslogger_records_in_flight") == 0, "all is delivered")
    appended = _appended_at(kafka43, topic)
    assert appended.keys() == sent.keys(), f"lost: {sent.keys() - appended.keys()}"
    latency = {number: appended[number] - sent[number] for number in sent}
    figures = {}
    for beside, numbers in rounds.items():
        cuts = [statistics.quantiles([latency[number] for number in each], n=100) for each in numbers]
        figures[beside] = [_undisturbed([cut[share - 1] for cut in cuts]) for share in (50, 99)]
        shown = [", ".join(f"{cut[share - 1] * 1000:.1f}" for cut in cuts) for share in (50, 99)]
        print(f"\n{'beside the flood' if beside else 'alone'}: p50 of each round {shown[0]} ms; p99 {shown[1]} ms")
    print(f"the flood: {flooded:,.0f} records a second")
    for share, alone, beside in zip((50, 99), figures[False], figures[True], strict=True):
        print(f"p{share}: {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside the flood")
        assert beside <= 2 * alone, f"p{share}: {alone * 1000:.1f} ms alone, {beside * 1000:.1f} ms beside the flood"


def _undisturbed(latencies: list[float]) -> float:
    """Return the median of the better half: what else the machine does only ever adds to a latency."""
    return statistics.median(sorted(latencies)[: len(latencies) // 2 + 1])


class Scrapes:
    """Asks for /metrics without a pause, a dozen at a time, until it is left."""

    def __init__(self, syslogger: Syslogger) -> None:
        self.answers: list[int] = []
        """The statuses, 0 where none came."""
        self._syslogger = syslogger
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(12)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self._syslogger.get("/metrics")[0])


@contextlib.contextmanager
def _riemann(kind: str) -> Iterator[str]:
    """Yield the address of a Riemann of this kind."""
    if kind == "down":
        yield f"127.0.0.1:{free_port()}"
        return
    with contextlib.ExitStack() as open_ones, socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        # "silent" is done: the kernel accepts for it, and takes what comes.
        if kind == "deaf":
            proxy = Proxy(server.getsockname()[1])
            open_ones.callback(proxy.close)
            proxy.swallow()
            yield proxy.address
            return
        if kind == "slow":
            threading.Thread(target=_drip, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _drip(server: socket.socket) -> None:
    """Answer each peer with a byte a second."""
    with contextlib.suppress(OSError):  # the test is over
        while True:
            peer, _ = server.accept()
            with peer, contextlib.suppress(OSError):
                for byte in b"\0\0\0\2\x10\1":  # ok
                    peer.sendall(bytes([byte]))
                    time.sleep(1)


@pytest.mark.row(26)
def test_riemann_and_scrapes_do_not_touch_the_data(kafka43: Kafka43, make_syslogger, tmp_path: Path):
    per_second = 5000
    figures: dict[str, float] = {}
    for kind in ("none", "down", "slow", "silent", "deaf, and a flood of scrapes"):
        with contextlib.ExitStack() as started:
            config = {}
            if kind != "none":
                config = {"address": started.enter_context(_riemann(kind.split(",")[0])), "interval_seconds": 1}
            topic = kafka43.create_topic()
            syslogger = make_syslogger(
                name=kind, kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic}, riemann=config
            )
            syslogger.start()
            sender = Sender(tmp_path / f"sender to {kind}", syslogger.port)
            sender.rsyslog.start()
            with Load(sender, per_second) as load:
                kafka43.wait_count(topic, 2000)
                scrapes = started.enter_context(Scrapes(syslogger)) if "scrapes" in kind else None
                before, cpu, began = syslogger.metrics(), syslogger.cpu_seconds(), time.monotonic()
                time.sleep(3)
                after, cpu, seconds = syslogger.metrics(), syslogger.cpu_seconds() - cpu, time.monotonic() - began
                grown = {name: after[name] - before[name] for name in after if name in before}
                if kind not in {"none", "slow"}:
                    until(lambda: "does not take metrics" in syslogger.log(), "Riemann was tried", 10)  # noqa: B023
            account = kafka43.wait_account(topic, {"a": load.count}, 20)
            account.check()
            records = grown["syslogger_records_delivered_total"]
            mean = grown["syslogger_delivery_duration_seconds_sum"] / grown["syslogger_delivery_duration_seconds_count"]
            print(
                f"\nRiemann {kind}: {account}; {records / seconds:,.0f} records/s, "
                f"a delivery takes {mean * 1000:.2f} ms, {cpu / records * 1e6:.1f} µs of processor a record"
                + (f"; {len(scrapes.answers)} scrapes" if scrapes else "")
            )
            figures[kind] = mean
            assert not scrapes or (len(scrapes.answers) > 50 and set(scrapes.answers) == {200}), scrapes.answers
            # A data path that waits for Riemann stands still for seconds; a machine that is busy is a little slower.
            assert records / seconds > 0.5 * per_second, kind
            assert syslogger.stop() == 0
    for kind, mean in figures.items():
        assert mean < 4 * figures["none"], f"{kind}: {mean * 1000:.2f} ms instead of {figures['none'] * 1000:.2f}"
