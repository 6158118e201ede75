"""Who may send, from where, for how long: with stock rsyslog, over unix sockets, and behind a proxy."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.parts import Kafka43, Load, Numbers, Syslogger, free_port, numbered, until
from tests.system.store import Kept

RSYSLOG_BATCH = 128
"""Messages that rsyslog's action queue hands over at a time (queue.dequeueBatchSize)."""

V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02%c\xc6\x33\x64\1\x12\x67\x05\xea"
"""A PROXY header for 192.0.2.x:4711."""


class Talker(Numbers):
    """A peer that sends numbered lines as fast as it may, on one connection, until it is told to end.

    As rsyslog it looks for a FIN before each send, and then connects anew.
    """

    def __init__(self, name: str, connect: Callable[[], socket.socket]) -> None:
        super().__init__(name)
        self.connections = 0
        self._connect = connect

    def _send(self) -> None:
        while not self._stop.is_set():
            with self._connect() as peer:
                self.connections += 1
                while not self._stop.wait(0.002) and not self._told_to_end(peer):
                    peer.sendall("".join(f"{line}\n" for line in numbered(self.name, 10, self.count)).encode())
                    self.count += 10

    @staticmethod
    def _told_to_end(peer: socket.socket) -> bool:
        return bool(select.select([peer], [], [], 0)[0])


@pytest.mark.row(31)
def test_connections_of_age_are_ended_under_load(kafka43: Kafka43, topic: str, make_syslogger, make_sender):
    syslogger = make_syslogger(
        kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
        listeners=[{"address": f"127.0.0.1:{free_port()}", "max_connection_age_seconds": 2.0}],
    )
    syslogger.start()
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=10_000) as load:
        until(
            lambda: syslogger.metric("syslogger_connections_ended_total", cause="age") >= 5, "five reach their age", 40
        )
    found = kafka43.wait_account(topic, {"a": load.count})
    ended = syslogger.metric("syslogger_connections_ended_total", cause="age")
    print(f"\n{found}; {ended:.0f} connections of age")
    assert not found.lost, found
    assert not found.foreign, found
    assert found.twice <= (ended + 1) * RSYSLOG_BATCH, found
    assert syslogger.metric("syslogger_connections_ended_total") == ended, "no other end"
    assert "WARNING" not in syslogger.log()
    syslogger.check_sums()


def unix(path: Path) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            until(lambda: sock.connect_ex(str(path)) == 0, "it listens", every=0.001)
        except AssertionError:
            sock.close()
            raise
        return sock

    return connect


@pytest.mark.row(32)
def test_unix_peers_under_reload_restart_and_kill(kafka43: Kafka43, topic: str, tmp_path: Path):
    path = tmp_path / "syslogger.sock"
    config = {
        "kafka": {"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
        "listeners": [{"address": f"unix:{path}"}],
    }
    syslogger = Kept(tmp_path / "kept", config)
    syslogger.start()
    talkers = [Talker(f"p{number}", unix(path)) for number in range(5)]
    with talkers[0], talkers[1], talkers[2], talkers[3], talkers[4]:

        def flows(more: int = 2000) -> None:
            kafka43.wait_count(topic, sum(kafka43.end_offsets(topic).values()) + more, seconds=30)

        for reloads in range(3):
            flows()
            syslogger.kill()
            flows()
            adopted = syslogger.metric("syslogger_connections_adopted_total")
            assert adopted == 5
            os.kill(syslogger.child, signal.SIGHUP)
            until(lambda before=reloads: syslogger.log().count("Reloading: ") > before, "it reloads")
            flows()
        assert [talker.connections for talker in talkers] == [1] * 5, "each is the connection it was"
        assert syslogger.stop() == 0
        assert not path.exists()
        syslogger = Syslogger(tmp_path / "plain", config)
        syslogger.start()
        flows()
    found = kafka43.wait_account(topic, {talker.name: talker.count for talker in talkers})
    print(f"\n{found}")
    assert not found.lost, found
    assert not found.foreign, found
    assert syslogger.stop() == 0
    assert not path.exists()


@pytest.mark.row(33)
def test_peers_behind_a_proxy_and_those_who_may_not(kafka43: Kafka43, topic: str, tmp_path: Path):
    port = free_port()
    config = {
        "kafka": {"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
        "listeners": [
            {"address": f"127.0.0.1:{port}", "proxy_protocol_from": ["127.0.0.1"], "allow": ["192.0.2.0/28"]}
        ],
        "max_connections_per_address": 2,
    }
    syslogger = Kept(tmp_path / "kept", config)
    syslogger.start()

    def proxied(number: int) -> Callable[[], socket.socket]:
        def connect() -> socket.socket:
            peer = socket.create_connection(("127.0.0.1", port), 20)
            peer.sendall(V2 % number)
            return peer

        return connect

    def refused(**labels: str) -> float:
        return syslogger.metric("syslogger_connections_refused_total", **labels)

    def closes(peer: socket.socket) -> bool:
        with peer:
            try:
                return peer.recv(1) == b""
            except ConnectionResetError:
                return True

    talkers = [Talker(f"p{number}", proxied(number)) for number in range(1, 6)]
    with talkers[0], talkers[1], talkers[2], talkers[3], talkers[4]:
        kafka43.wait_count(topic, 1000)
        # Not allowed; without a header; past the proxy; one too many of an address.
        assert closes(proxied(77)())
        nonsense = socket.create_connection(("127.0.0.1", port), 20)
        nonsense.sendall(b"<13>no header\n")
        assert closes(nonsense)
        assert closes(socket.create_connection(("127.0.0.1", port), 20, source_address=("127.0.0.2", 0)))
        with proxied(1)():
            until(lambda: syslogger.metric("syslogger_connections_open") == 6, "the second of its address is in")
            assert closes(proxied(1)())
        began = time.monotonic()
        for _ in range(500):
            assert closes(socket.create_connection(("127.0.0.1", port), 20, source_address=("127.0.0.2", 0)))
        print(f"\n500 refused in {time.monotonic() - began:.2f} s")
        assert (refused(cause="allow"), refused(cause="proxy_header"), refused(cause="per_address")) == (502, 1, 1)
        assert syslogger.log().count("was refused") <= 6, "one line of each kind, and what they sum up to"
        for _ in range(3):
            syslogger.kill()
            until(lambda: syslogger.metric("syslogger_records_delivered_total") > 1000, "it flows")
            assert syslogger.metric("syslogger_connections_adopted_total") == 5
            assert refused() == 0, "nobody is asked for a header again"
        # Whoever is adopted counts for its own address.
        with proxied(2)():
            until(lambda: syslogger.metric("syslogger_connections_open") == 6, "the second of its address is in")
            assert closes(proxied(2)())
    assert [talker.connections for talker in talkers] == [1] * 5
    found = kafka43.wait_account(topic, {talker.name: talker.count for talker in talkers})
    print(found)
    found.check(twice=True)
    syslogger.check_sums()
    assert syslogger.stop() == 0
