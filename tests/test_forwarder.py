"""The whole program in one process: its start, what it says while it waits, its drain, its exit status."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syslogger import forwarder, service, streams
from syslogger.config import Config
from syslogger.errors import ConfigError
from syslogger.forwarder import Forwarder, rehearse
from syslogger.service import Stop
from tests.certificates import SERVER, Authority
from tests.mock_kafka import MockKafka
from tests.waiting import until


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.1)


def configured(*addresses: str, **settings: Any) -> Config:
    kafka = {"bootstrap_servers": list(addresses), "request_timeout_seconds": 1.0} | settings.pop("kafka", {})
    base = {"listeners": [{"address": "127.0.0.1:0"}], "prometheus": {"address": ""}, "drain_seconds": 5.0}
    return msgspec.convert(base | settings | {"kafka": kafka}, Config)


class Running:
    """A forwarder at work."""

    def __init__(self, config: Config) -> None:
        self.stop = Stop()
        self.forwarder = Forwarder(config)
        self.task = asyncio.ensure_future(self.forwarder.run(self.stop))

    async def until(self, true: Callable[[], Any]) -> None:
        await until(lambda: self.task.done() or true())
        assert not self.task.done(), "it has ended"

    async def connect(self, number: int = 0) -> socket.socket:
        await self.until(lambda: self.forwarder.addresses)
        host, _, port = self.forwarder.addresses[number].rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)))


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    one = Running(config)
    yield one
    one.stop.ask()
    one.stop.ask()
    async with asyncio.timeout(20):
        await one.task


async def test_from_a_peer_to_the_topic_and_a_clean_end(cluster: MockKafka, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(configured(*cluster.addresses)) as one:
        with await one.connect() as peer:
            peer.sendall(b"<13>one\n<13>two\nhalf")
            await one.until(lambda: one.forwarder.counters.records_delivered == 2)
            assert one.forwarder.state() == (True, "ready")
            one.stop.ask()
            assert await one.task == 0
    assert cluster.records("syslog", expected=3) == [b"<13>one", b"<13>two", b"half"]
    counters = one.forwarder.counters
    assert counters.records_received == counters.records_delivered == 3
    assert counters.connections_ended == {"quiet": 1}
    assert "every record received was delivered (3)" in caplog.text


async def test_one_record_a_delivery(cluster: MockKafka) -> None:
    config = configured(*cluster.addresses, kafka={"max_batch_records": 1, "commit_interval_seconds": 0.0})
    async with running(config) as one:
        with await one.connect() as peer:
            peer.sendall(b"1\n2\n3\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 3)
    assert one.forwarder.counters.batches == 3


async def test_two_listeners(cluster: MockKafka) -> None:
    both = [{"address": "127.0.0.1:0"}, {"address": "[::1]:0", "max_record_bytes": 64}]
    async with running(configured(*cluster.addresses, listeners=both)) as one:
        with await one.connect(0) as first, await one.connect(1) as second:
            first.sendall(b"x" * 70 + b"\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)
            second.sendall(b"y" * 70 + b"\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 3)
    assert one.forwarder.counters.records_cut == {"size": 1}


async def test_each_listener_has_its_framing(cluster: MockKafka) -> None:
    kinds = ["auto", "newline", "octet_counted"]
    listeners = [{"address": "127.0.0.1:0", "framing": kind} for kind in kinds]
    async with running(configured(*cluster.addresses, listeners=listeners)) as one:
        for number, kind in enumerate(kinds):
            with await one.connect(number) as peer:
                peer.sendall(b"4 <%d>\nline of %s\n" % (number, kind.encode()))
                await one.until(lambda so_far=2 * number: one.forwarder.counters.records_delivered == so_far + 2)
    expected = [b"<0>\n", b"line of auto", b"4 <1>", b"line of newline", b"<2>\n", b"line of octet_counted"]
    assert sorted(cluster.records("syslog", expected=6)) == sorted(expected)
    assert one.forwarder.counters.records_misframed == 1


RELP = [{"address": "127.0.0.1:0", "protocol": "relp"}, {"address": "127.0.0.1:0"}]


async def test_relp_is_answered_and_told_of_the_end(cluster: MockKafka) -> None:
    async with running(configured(*cluster.addresses, listeners=RELP)) as one:
        with await one.connect(0) as peer, await one.connect(1) as plain:
            plain.sendall(b"a line\n")
            peer.sendall(b"1 syslog 3 one\n2 syslog 3 t")
            await one.until(lambda: one.forwarder.counters.records_delivered == 2)
            one.stop.ask()
            assert await one.task == 0
            assert b"".join(iter(lambda: peer.recv(100), b"")) == b"1 rsp 6 200 OK\n0 serverclose 0\n"
    assert sorted(cluster.records("syslog", expected=2)) == [b"a line", b"one"]
    assert one.forwarder.counters.connections_ended == {"serverclose": 1, "quiet": 1}


async def test_what_relp_has_not_answered_is_not_lost(cluster: MockKafka, caplog: pytest.LogCaptureFixture) -> None:
    async with running(configured(*cluster.addresses, listeners=RELP, drain_seconds=0.3)) as one:
        with await one.connect() as peer:
            cluster.set_down()
            peer.sendall(b"1 syslog 5 stuck\n")
            await one.until(lambda: one.forwarder.counters.records_in_flight == 1)
            one.stop.ask()
            assert await one.task == 0
    assert "their senders send them again" in caplog.text
    ours = [each for each in caplog.records if each.name == "syslogger.forwarder"]
    assert not [each for each in ours if each.levelno >= logging.ERROR]


async def test_it_listens_only_when_kafka_has_answered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = configured("127.0.0.1:1", listeners=[{"address": f"127.0.0.1:{port}"}])
    async with running(config) as one:
        await one.until(lambda: "refused" in one.forwarder.state()[1])
        ready, reason = one.forwarder.state()
        assert not ready
        assert reason.startswith("waiting for Kafka: Kafka at 127.0.0.1:1 ")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        one.stop.ask()
        assert await one.task == 0
    assert "nothing was accepted" in caplog.text


async def test_what_could_not_be_delivered_is_named(cluster: MockKafka, caplog: pytest.LogCaptureFixture) -> None:
    async with running(configured(*cluster.addresses, drain_seconds=0.3)) as one:
        with await one.connect() as peer:
            cluster.set_down()
            peer.sendall(b"<13>stuck\n")
            await one.until(lambda: one.forwarder.counters.records_in_flight == 1)
            one.stop.ask()
            assert await one.task == 1
            name = "{}:{}".format(*peer.getsockname())
    assert f"10 bytes from {name} were not delivered" in caplog.text
    counters = one.forwarder.counters
    assert counters.records_received == counters.records_delivered + counters.records_in_flight == 1


async def test_a_second_signal_ends_the_drain(cluster: MockKafka, caplog: pytest.LogCaptureFixture) -> None:
    async with running(configured(*cluster.addresses, drain_seconds=60.0)) as one:
        with await one.connect() as peer:
            cluster.set_down()
            peer.sendall(b"<13>stuck\n")
            await one.until(lambda: one.forwarder.counters.records_in_flight == 1)
            one.stop.ask()
            await asyncio.sleep(0.05)
            one.stop.ask()
            assert await one.task == 1
    assert "a second signal" in caplog.text


@pytest.mark.parametrize("setting", ["listeners[0].address", "prometheus.address"])
async def test_an_address_that_is_taken_stops_the_start(setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        override = {"prometheus": {"address": address}} if "prom" in setting else {"listeners": [{"address": address}]}
        words = f"{setting}: cannot listen on {address}: another program already listens there"
        with pytest.raises(ConfigError, match=rf"^{re.escape(words)}"):
            await Forwarder(configured("127.0.0.1:1", **override)).run(Stop())


async def test_a_buffer_that_cannot_hold_the_largest_record(
    cluster: MockKafka, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder, "largest_receive_buffer", lambda: 425_984)  # the usual net.core.rmem_max
    listeners = [{"address": "127.0.0.1:0", "max_record_bytes": 1_000_000}]
    async with running(configured(*cluster.addresses, listeners=listeners)) as one:
        with await one.connect() as peer:
            peer.sendall(b"x" * 80_000)
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)
            one.stop.ask()
            await one.task
    assert "net.core.rmem_max to 3000000" in caplog.text
    assert one.forwarder.counters.bytes_delivered == 80_000


async def test_riemann_and_metrics_are_started_on_request(cluster: MockKafka, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as riemann:
        riemann.settimeout(5)
        config = configured(
            *cluster.addresses,
            prometheus={"address": "127.0.0.1:0"},
            riemann={"address": "{}:{}".format(*riemann.getsockname()), "interval_seconds": 1.0},
        )
        async with running(config) as one:
            await one.until(lambda: one.forwarder.addresses)
            accepted, _ = await asyncio.to_thread(riemann.accept)
            accepted.close()
    assert "/metrics" in caplog.text


async def test_a_reload_hands_its_sockets_over(cluster: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["kafka.topic is wrong", ""]

    async def rehearse(held: str) -> str:
        assert held == str(one.forwarder.addresses[0].rpartition(":")[2])
        return answers.pop(0)

    monkeypatch.setattr(service, "rehearse", rehearse)
    one = Running(configured(*cluster.addresses))
    with await one.connect() as peer:
        peer.sendall(b"before\nunfini")
        await one.until(lambda: one.forwarder.counters.records_delivered == 1)
        one.stop.reload.set()
        await one.until(lambda: len(answers) == 1)
        peer.sendall(b"shed\n")
        await one.until(lambda: one.forwarder.counters.records_delivered == 2)
        one.stop.reload.set()
        handover = await one.task
        assert isinstance(handover, service.Handover)
        listening, connection = handover.sockets
        peer.sendall(b"after\n")
        late = socket.create_connection(listening.getsockname())
        late.sendall(b"late\n")
        # The next process, as it would start.
        monkeypatch.setattr(service, "inherited", lambda: ([listening, connection], []))
        address = "{}:{}".format(*listening.getsockname())
        async with running(configured(*cluster.addresses, listeners=[{"address": address}])) as other:
            await other.until(lambda: other.forwarder.counters.records_delivered == 2)
            assert other.forwarder.counters.connections_adopted == 1
            peer.sendall(b"last\n")
            await other.until(lambda: other.forwarder.counters.records_delivered == 3)
        late.close()
    assert sorted(cluster.records("syslog", expected=5)) == [b"after", b"before", b"last", b"late", b"unfinished"]


async def test_a_unix_listener_over_a_reload_and_a_stop(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def rehearsed(held: str) -> str:
        assert held == str(path)
        rehearse(config, held)
        return ""

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return sock

    monkeypatch.setattr(service, "rehearse", rehearsed)
    path = tmp_path / "syslogger.sock"
    listeners = [{"address": f"unix:{path}", "unix_mode": "0600", "framing": "octet_counted"}]
    config = configured(*cluster.addresses, listeners=listeners)
    one = Running(config)
    await one.until(lambda: one.forwarder.addresses)
    assert one.forwarder.addresses == [f"unix:{path}"]
    with connect() as peer:
        peer.sendall(b"6 before5 unf")
        await one.until(lambda: one.forwarder.counters.records_delivered == 1)
        one.stop.reload.set()
        handover = await one.task
        assert isinstance(handover, service.Handover)
        with connect() as late:
            late.sendall(b"4 late")
            monkeypatch.setattr(service, "inherited", lambda: (list(handover.sockets), []))
            async with running(config) as other:
                peer.sendall(b"in")
                await other.until(lambda: other.forwarder.counters.records_delivered == 2)
                assert other.forwarder.counters.connections_adopted == 1
                assert other.forwarder.counters.records_misframed == 0
                assert other.forwarder.addresses == [f"unix:{path}"]
    assert not path.exists()
    assert sorted(cluster.records("syslog", expected=3)) == [b"before", b"late", b"unfin"]


async def test_who_may_send_is_each_listeners_own(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("_SYSLOGGER_PEERS", "")
    listeners = [
        {"address": "127.0.0.1:0", "allow": ["192.0.2.0/24"]},
        {"address": "127.0.0.1:0", "proxy_protocol_from": ["127.0.0.0/8"], "max_connection_age_seconds": 0.2},
    ]
    config = configured(*cluster.addresses, listeners=listeners, max_connections_per_address=1)
    async with running(config) as one:
        with await one.connect(0) as refused, await one.connect(1) as first, await one.connect(1) as second:
            await one.until(lambda: one.forwarder.counters.connections_refused["allow"] == 1)
            assert "listeners[0].allow" in caplog.text
            first.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 1\r\n<13>through a proxy\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)
            second.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 2 1\r\n<13>too many\n")
            await one.until(lambda: one.forwarder.counters.connections_refused["per_address"] == 1)
            await one.until(lambda: one.forwarder.counters.connections_ended["age"] == 1)
            refused.close()
    assert cluster.records("syslog", expected=1) == [b"<13>through a proxy"]


async def encrypted(one: Running, authority: Authority) -> ssl.SSLSocket:
    return await asyncio.to_thread(authority.client().wrap_socket, await one.connect(), server_hostname=SERVER)


async def test_tls_to_the_topic_and_through_a_reload(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody could go on with a TLS connection: a reload reads it to its end first."""

    async def rehearse(_held: str) -> str:
        return ""

    monkeypatch.setattr(service, "rehearse", rehearse)
    authority = Authority(tmp_path)
    table = authority.listener()
    listeners = [{"address": "127.0.0.1:0", "tls": table}]
    one = Running(configured(*cluster.addresses, listeners=listeners))
    with await encrypted(one, authority) as peer:
        peer.sendall(b"one\ntwo\nhalf")
        await one.until(lambda: one.forwarder.counters.records_delivered == 2)
        assert one.forwarder.counters.certificate_expiry_seconds["127.0.0.1:0"] > time.time()
        one.stop.reload.set()
        handover = await one.task
        assert isinstance(handover, service.Handover)
        (listening,) = handover.sockets
        listening.close()
    assert cluster.records("syslog", expected=3) == [b"one", b"two", b"half"]
    assert one.forwarder.counters.connections_ended == {"quiet": 1}


async def test_a_certificate_that_has_expired(
    cluster: MockKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = Authority(tmp_path).issue_expired(SERVER)
    listeners = [{"address": "127.0.0.1:0", "tls": {"certificate_file": certificate, "key_file": key}}]
    async with running(configured(*cluster.addresses, listeners=listeners)) as one:
        await one.until(lambda: one.forwarder.addresses)
    assert f"The certificate of 127.0.0.1:0 ({certificate}) has expired" in caplog.text


async def test_a_reload_that_would_lose_what_tls_holds_is_none(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def rehearse(_held: str) -> str:
        return ""

    monkeypatch.setattr(service, "rehearse", rehearse)
    authority = Authority(tmp_path)
    listeners = [{"address": "127.0.0.1:0", "tls": authority.listener()}]
    async with running(configured(*cluster.addresses, listeners=listeners, drain_seconds=0.3)) as one:
        with await encrypted(one, authority) as peer:
            stop_sending = asyncio.Event()

            async def send() -> None:
                while not stop_sending.is_set():
                    peer.sendall(b"on and on\n")
                    await asyncio.sleep(0.01)

            sending = asyncio.ensure_future(send())
            await one.until(lambda: one.forwarder.counters.records_delivered)
            one.stop.reload.set()
            await one.until(lambda: "Not reloaded, and running on as before: TLS" in caplog.text)
            await one.until(lambda: one.forwarder.state()[0])
            stop_sending.set()
            await sending
        # It still listens, and the next reload is as good as any.
        with await encrypted(one, authority) as other:
            other.sendall(b"another\n")
            await one.until(lambda: one.forwarder.counters.tls_handshakes == 2)


@pytest.mark.parametrize("listeners", [[{"address": "127.0.0.1:0"}], RELP])
async def test_connections_whose_listener_is_no_more_are_served_to_their_end(
    listeners: list[dict[str, str]], cluster: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone, socket.create_connection(gone.getsockname()) as peer:
        connection, _ = gone.accept()
        monkeypatch.setattr(service, "inherited", lambda: ([gone, connection], []))
        peer.sendall(b"kept\n")
        async with running(configured(*cluster.addresses, listeners=listeners)) as one:
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)
            assert gone.fileno() == -1


async def test_a_socket_unit_says_where_to_listen_if_nothing_else_does(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = socket.create_server(("127.0.0.1", 0))
    unit.setblocking(False)
    monkeypatch.setattr(service, "inherited", lambda: ([], [unit]))
    config = configured(*cluster.addresses, listeners=[{}])
    async with running(config) as one:
        with await one.connect() as peer:
            assert one.forwarder.addresses == ["{}:{}".format(*unit.getsockname())]
            peer.sendall(b"hello\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)


async def test_the_file_of_a_unix_socket_unit_stays(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as unit, socket.socket(socket.AF_UNIX) as peer:
        unit.bind(str(path))
        unit.listen()
        unit.setblocking(False)
        ours = unit.dup()
        monkeypatch.setattr(service, "inherited", lambda: ([ours], [unit]))
        # Who began to listen is taken for the service manager, whose child this process would be.
        monkeypatch.setattr(os, "getppid", os.getpid)
        async with running(configured(*cluster.addresses, listeners=[{"address": f"unix:{path}"}])) as one:
            await one.until(lambda: one.forwarder.addresses)
            assert one.forwarder.addresses == [f"unix:{path}"]
            assert ours.fileno() == -1, "what the store has of it too is let go"
            peer.connect(str(path))
            peer.sendall(b"hello\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)
        assert path.exists()


async def test_what_a_process_that_never_served_still_held_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as before, socket.create_connection(before.getsockname()) as peer:
        connection, _ = before.accept()
        peer.sendall(b"stuck")
        monkeypatch.setattr(service, "inherited", lambda: ([connection], []))
        one = Running(configured("127.0.0.1:1"))
        await one.until(lambda: one.forwarder.state()[1].startswith("waiting for Kafka"))
        one.stop.ask()
        assert await one.task == 1
        assert "5 bytes from {}:{} were not delivered".format(*peer.getsockname()) in caplog.text


def test_a_rehearsal_beside_the_process_that_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as foreign:
        mine, taken = ("{}:{}".format(*sock.getsockname()) for sock in (own, foreign))
        held = str(own.getsockname()[1])
        rehearse(configured("127.0.0.1:1", listeners=[{"address": mine}], prometheus={"address": "127.0.0.1:0"}), held)
        for settings in ({"listeners": [{"address": taken}]}, {"prometheus": {"address": taken}}):
            with pytest.raises(ConfigError, match="another program already listens there"):
                rehearse(configured("127.0.0.1:1", **settings), held)
    path = tmp_path / "s"
    rehearse(configured("127.0.0.1:1", listeners=[{"address": f"unix:{path}"}]), held)
    assert not path.exists(), "it is gone when the rehearsal is over"
    with pytest.raises(ConfigError, match=r"^listeners\[0\]\.address: cannot listen on unix:/no/s: "):
        rehearse(configured("127.0.0.1:1", listeners=[{"address": "unix:/no/s"}]), held)
    authority = Authority(tmp_path / "authority")
    table = authority.listener() | {"key_file": authority.issue(SERVER)[1]}
    with pytest.raises(ConfigError, match=r"listeners\[0\]\.tls\.key_file"):
        rehearse(configured("127.0.0.1:1", listeners=[{"address": "127.0.0.1:0", "tls": table}]), "")
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"kafka\.tls_ca_file"):
        rehearse(configured("a:1", kafka={"security_protocol": "SSL", "tls_ca_file": str(wrong)}), "")


async def test_the_next_start_tells_what_a_stop_did_not_deliver(
    cluster: MockKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    async with running(configured(*cluster.addresses, drain_seconds=0.3)) as one:
        with await one.connect() as peer:
            cluster.set_down()
            peer.sendall(b"<13>stuck\n")
            await one.until(lambda: one.forwarder.counters.records_in_flight == 1)
            one.stop.ask()
            assert await one.task == 1
    cluster.set_up()
    async with running(configured(*cluster.addresses, max_connections=5)) as one:
        counters = one.forwarder.counters
        assert counters.last_stop[1:] == (10, 1)
        assert counters.max_connections == 5
        await one.until(lambda: one.forwarder.addresses)
        one.stop.ask()
        assert await one.task == 0
    assert Forwarder(configured()).counters.last_stop[1:] == (0, 0)


async def test_its_status_and_its_records_are_seen_while_it_works(cluster: MockKafka, tmp_path: Path) -> None:
    config = configured(*cluster.addresses, tap={"path": str(tmp_path / "tap")})
    async with running(config) as one:
        assert (await one.forwarder.status())["state"].startswith("starting")
        with await one.connect() as peer:
            peer.sendall(b"<13>unseen\n")
            await one.until(lambda: one.forwarder.counters.records_delivered == 1)
            topic = one.forwarder._topic
            assert topic
            (lane,) = topic._lanes.values()
            assert "deliver" not in vars(lane), "nobody looks, and nothing is in the way"
            reader, writer = await asyncio.open_unix_connection(tmp_path / "tap")
            writer.write(b"{}\n")
            await one.until(lambda: "deliver" in vars(lane))
            peer.sendall(b"<13>seen\n")
            async with asyncio.timeout(10):
                seen = json.loads(await reader.readline())
            await one.until(lambda: one.forwarder.counters.records_delivered == 2)
            name = "{}:{}".format(*peer.getsockname())
            assert (seen["peer"], seen["record"]) == (name, "<13>seen")
            writer.close()
            await one.until(lambda: "deliver" not in vars(lane))
            status = await one.forwarder.status()
            (partition,) = status["partitions"]
            assert (partition["delivered"], partition["connections"]) == (2, 1)
            assert [partition["leader"]] == [broker["address"] for broker in status["brokers"] if broker["leads"]]
            assert status["peers"] == [
                {"peer": "127.0.0.1", "connections": 1, "received_bytes": 20, "waiting_bytes": 0}
            ]
            cluster.set_down()
            peer.sendall(b"<13>stuck\n")
            await one.until(lambda: one.forwarder.state()[0] is False)
            (partition,) = (await one.forwarder.status())["partitions"]
            assert partition["unanswered_seconds"] > 0.5


async def test_who_connects_later_is_seen_too(cluster: MockKafka, tmp_path: Path) -> None:
    async with running(configured(*cluster.addresses, tap={"path": str(tmp_path / "tap")})) as one:
        await one.until(lambda: one.forwarder.addresses)
        reader, writer = await asyncio.open_unix_connection(tmp_path / "tap")
        writer.write(b"{}\n")
        await one.until(lambda: one.forwarder._topic and one.forwarder._topic._see)
        with await one.connect() as peer:
            peer.sendall(b"<13>seen\n")
            async with asyncio.timeout(10):
                assert json.loads(await reader.readline())["record"] == "<13>seen"
        writer.close()


async def test_a_stop_before_kafka_has_answered_delivers_what_was_left(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that comes while a reload begins anew finds connections with something in them."""
    with socket.create_server(("127.0.0.1", 0)) as before, socket.create_connection(before.getsockname()) as peer:
        connection, _ = before.accept()
        peer.sendall(b"<13>left\n")
        monkeypatch.setattr(service, "inherited", lambda: ([connection], []))
        stop = Stop()
        stop.ask()
        async with asyncio.timeout(20):
            assert await Forwarder(configured(*cluster.addresses)).run(stop) == 0
        assert peer.recv(1) == b""
    assert cluster.records("syslog", expected=1) == [b"<13>left"]
