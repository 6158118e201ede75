"""Listeners and their connections over real sockets, with a sink made by hand."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syslogger import config, streams, tls
from syslogger import listener as module
from syslogger.counters import Counters
from syslogger.errors import ConfigError
from syslogger.framing.newline import Newline
from syslogger.listener import Connections, Listener, bind
from syslogger.streams import Poller
from syslogger.tls import Tls
from tests.certificates import SERVER, Authority
from tests.fakes import FakeManager, FakeSink
from tests.waiting import until

BUFFER = 65_536


class House:
    """Listeners over one sink."""

    def __init__(self, poller: Poller, most: int) -> None:
        self.sink = FakeSink()
        self.counters = Counters()
        self.manager = FakeManager()
        self.connections = Connections(most, lambda _peer: self.sink, poller, self.manager, self.counters)
        self.listeners: list[Listener] = []

    def listen(self, host: str = "127.0.0.1", tls: Tls | None = None) -> tuple[str, int]:
        (sock,) = bind(host, 0, BUFFER, "listeners[0].address")
        self.listeners.append(Listener(sock, Newline(1000), self.connections, self.manager, self.counters, tls=tls))
        self.listeners[-1].open()
        return sock.getsockname()[:2]

    async def close(self) -> list[tuple[str, int]]:
        for each in self.listeners:
            each.close()
        self.connections.half_close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.connections.ended(), 0.3)
        return await self.connections.cut_off()


@pytest.fixture
async def open_house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., House]]:
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.05)
    houses: list[House] = []
    with Poller(2 * BUFFER) as poller:

        def build(most: int = 100) -> House:
            houses.append(House(poller, most))
            return houses[-1]

        yield build
        for house in houses:
            house.sink.release()
            await house.close()


async def test_peers_are_served_side_by_side(open_house: Callable[..., House]) -> None:
    house = open_house()
    address = house.listen()
    peers = [socket.create_connection(address) for _ in range(20)]
    for number, peer in enumerate(peers):
        peer.sendall(b"<13>from %d\n" % number)
    assert sorted(await house.sink.has(20)) == sorted(b"<13>from %d" % number for number in range(20))
    assert house.counters.connections_open == 20
    for peer in peers:
        peer.close()
    await until(lambda: house.counters.connections_open == 0)
    assert house.counters.connections_accepted == 20
    assert house.counters.connections_ended == {"eof": 20}
    assert house.sink.closed == 20


async def test_what_accepted_sockets_inherit(open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[socket.socket] = []
    real = module.PlainStream
    monkeypatch.setattr(module, "PlainStream", lambda sock, poller: (accepted.append(sock), real(sock, poller))[1])
    house = open_house()
    peer = socket.create_connection(house.listen())
    await until(lambda: bool(accepted))
    assert accepted[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * BUFFER
    assert accepted[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert accepted[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    peer.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "", "localhost"])
async def test_addresses_of_both_families(open_house: Callable[..., House], host: str) -> None:
    house = open_house()
    sockets = bind(host, 0, BUFFER, "listeners[0].address")
    for sock in sockets:
        one = Listener(sock, Newline(1000), house.connections, house.manager, house.counters)
        house.listeners.append(one)
        one.open()
        family, port = sock.family, sock.getsockname()[1]
        reached = ["127.0.0.1", "::1"] if not host else ["::1" if family == socket.AF_INET6 else "127.0.0.1"]
        for target in reached:
            before = house.counters.connections_accepted
            socket.create_connection((target, port)).close()
            await until(lambda before=before: house.counters.connections_accepted == before + 1)
    assert one.address.rpartition(":")[2] == str(port)


async def test_at_the_cap_nobody_is_turned_away(
    open_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house(most=2)
    address = house.listen()
    peers = [socket.create_connection(address) for _ in range(4)]
    for number, peer in enumerate(peers):
        peer.sendall(b"%d\n" % number)
    await house.sink.has(2)
    await until(lambda: house.counters.accept_pauses["max_connections"] == 1)
    assert house.counters.connections_open == 2
    assert "max_connections" in caplog.text
    peers.pop(0).close()
    await house.sink.has(3)
    peers.pop(0).close()
    assert sorted(await house.sink.has(4)) == [b"0", b"1", b"2", b"3"]
    for peer in peers:
        peer.close()


async def test_out_of_files_it_waits_and_goes_on(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_OUT_OF_FILES_SECONDS", 0.01)
    house = open_house()
    address = house.listen()
    real, failures = house.listeners[0]._accept, [errno.EMFILE, errno.ECONNABORTED]

    def failing() -> None:
        if failures:
            raise OSError(number := failures.pop(0), os.strerror(number))
        real()

    monkeypatch.setattr(house.listeners[0], "_accept", failing)
    peer = socket.create_connection(address)
    peer.sendall(b"hello\n")
    assert await house.sink.has(1) == [b"hello"]
    assert house.counters.accept_pauses == {"files": 1}
    assert "LimitNOFILE" in caplog.text
    peer.close()


async def test_a_drain_reads_on_until_each_peer_ends(open_house: Callable[..., House]) -> None:
    house = open_house()
    peer = socket.create_connection(house.listen())
    peer.sendall(b"before\n")
    await house.sink.has(1)
    closing = asyncio.ensure_future(house.close())
    assert await asyncio.to_thread(peer.recv, 1) == b""
    peer.sendall(b"after\nunfinished")
    peer.close()
    assert await closing == []
    assert house.sink.records == [b"before", b"after", b"unfinished"]
    assert house.counters.connections_ended == {"eof": 1}


async def test_a_drain_accepts_who_was_waiting_even_at_the_cap(open_house: Callable[..., House]) -> None:
    house = open_house(most=1)
    address = house.listen()
    peers = [socket.create_connection(address) for _ in range(5)]
    for number, peer in enumerate(peers):
        peer.sendall(b"%d\n" % number)
    await house.sink.has(1)
    assert await house.close() == []
    assert sorted(house.sink.records) == [b"0", b"1", b"2", b"3", b"4"]
    assert house.counters.connections_ended == {"quiet": 5}
    for peer in peers:
        peer.close()


async def test_who_is_cut_off_is_named_with_what_was_not_delivered(open_house: Callable[..., House]) -> None:
    house = open_house()
    address = house.listen()
    peer, silent = socket.create_connection(address), socket.create_connection(address)
    house.sink.hold()
    peer.sendall(b"stuck\nand more")
    await house.sink.was_given(1)
    assert await house.close() == [("{}:{}".format(*peer.getsockname()), 14)]
    assert house.counters.connections_ended == {"quiet": 1, "deadline": 1}
    peer.close()
    silent.close()


def inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


async def test_what_the_manager_keeps(open_house: Callable[..., House]) -> None:
    house = open_house()
    address = house.listen()
    listening = {inode(each.socket) for each in house.listeners}
    first, second = socket.create_connection(address), socket.create_connection(address)
    await until(lambda: house.counters.connections_open == 2)
    assert len(house.manager.kept - listening) == 2
    first.close()
    await until(lambda: house.counters.connections_open == 1)
    assert len(house.manager.kept - listening) == 1
    # What could not be delivered may have another chance, in the next process.
    house.sink.hold()
    second.sendall(b"stuck\n")
    await house.sink.was_given(1)
    assert len(await house.close()) == 1
    assert len(house.manager.kept - listening) == 1
    second.close()


async def test_connections_are_handed_over_as_they_are(open_house: Callable[..., House]) -> None:
    house, next_house = open_house(), open_house()
    address = house.listen()
    peers = [socket.create_connection(address) for _ in range(3)]
    peers[0].sendall(b"0\nunfinished")
    await house.sink.has(1)
    house.sink.hold()
    peers[1].sendall(b"1\n")
    await house.sink.was_given(2)
    await until(lambda: house.counters.connections_open == 3)
    house.listeners[0].pause()
    late = socket.create_connection(address)
    sockets = await house.connections.release()
    assert house.counters.connections_ended == {"handover": 3}
    for sock in sockets:
        next_house.connections.adopt(sock, Newline(1000))
    house.listeners[0].close()
    peers[0].sendall(b" no more\n")
    peers[2].sendall(b"2\n")
    assert sorted(await next_house.sink.has(3)) == [b"1", b"2", b"unfinished no more"]
    assert next_house.counters.connections_adopted == 3
    for peer in (*peers, late):
        peer.close()
    await until(lambda: next_house.counters.connections_open == 0)
    assert next_house.counters.connections_ended == {"eof": 3}


async def test_an_inherited_socket_is_used_where_it_has_the_address() -> None:
    (first,) = bind("127.0.0.1", 0, BUFFER, "x")
    first.listen()
    port = first.getsockname()[1]
    inherited = [first]
    assert bind("127.0.0.1", port, BUFFER, "x", inherited) == [first]
    assert inherited == []
    first.close()
    (every,) = bind("", 0, BUFFER, "x")
    every.listen()
    assert bind("127.0.0.1", every.getsockname()[1], BUFFER, "x", [every]) == [every]
    every.close()


async def test_a_reset_is_counted_as_one(open_house: Callable[..., House]) -> None:
    house = open_house()
    peer = socket.create_connection(house.listen())
    await until(lambda: house.counters.connections_open == 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    await until(lambda: house.counters.connections_open == 0)
    assert house.counters.connections_ended == {"reset": 1}


async def test_a_fault_of_ours_ends_one_connection_with_a_log_line(
    open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house()

    async def broken(records: object, size: int) -> None:
        raise ZeroDivisionError(records, size)

    monkeypatch.setattr(house.sink, "deliver", broken)
    with socket.create_connection(house.listen()) as peer, caplog.at_level(logging.ERROR):
        peer.sendall(b"x\n")
        await until(lambda: house.counters.connections_ended["error"] == 1)
    assert "please report it" in caplog.text


async def test_an_address_that_is_taken(open_house: Callable[..., House]) -> None:
    house = open_house()
    host, port = house.listen()
    with pytest.raises(ConfigError, match=rf"^listeners\[1\]\.address: cannot listen on 127\.0\.0\.1:{port}: another"):
        bind(host, port, BUFFER, "listeners[1].address")


def test_a_name_that_is_no_address() -> None:
    with pytest.raises(ConfigError, match=r"^listeners\[0\]\.address: cannot listen on nowhere\.invalid:1514: "):
        bind("nowhere.invalid", 1514, BUFFER, "listeners[0].address")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def opened(table: dict[str, Any]) -> Tls:
    return Tls(msgspec.convert(table, config.Tls), "listeners[0].tls")


async def test_tls_peers_beside_plain_ones(open_house: Callable[..., House], authority: Authority) -> None:
    house = open_house()
    plain, encrypted = house.listen(), house.listen(tls=opened(authority.listener()))
    one = socket.create_connection(plain)
    bare = socket.create_connection(encrypted)
    other = await asyncio.to_thread(authority.client().wrap_socket, bare, server_hostname=SERVER)
    one.sendall(b"plain\n")
    other.sendall(b"encrypted\n")
    assert sorted(await house.sink.has(2)) == [b"encrypted", b"plain"]
    assert len(house.manager.kept) == 3, "the listeners and the plain one: nobody could go on with the other"
    # Those that cannot be handed over end, the others stay.
    ending = asyncio.ensure_future(house.connections.untransferable_ended())
    other.sendall(b"last words")
    await asyncio.wait_for(ending, 5)
    assert await house.sink.has(3)
    assert house.counters.connections_open == 1
    assert not house.connections.untransferable
    for peer in (one, other):
        peer.close()


async def test_as_many_handshakes_as_may_be(
    open_house: Callable[..., House], authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_MOST_HANDSHAKES", 3)
    house = open_house()
    address = house.listen(tls=opened(authority.listener(handshake_seconds=0.5)))
    silent = [socket.create_connection(address) for _ in range(5)]
    await until(lambda: house.counters.accept_pauses["handshakes"] == 1)
    assert house.counters.connections_open == 3
    peer = await asyncio.to_thread(
        authority.client().wrap_socket, socket.create_connection(address), server_hostname=SERVER
    )
    peer.sendall(b"in turn\n")
    assert await house.sink.has(1) == [b"in turn"]
    await until(lambda: house.counters.connections_ended["handshake"] == 5)
    assert house.counters.tls_handshake_failures == {"timeout": 5}
    for each in (peer, *silent):
        each.close()


async def test_a_pause_holds_whatever_becomes_free(open_house: Callable[..., House]) -> None:
    house = open_house(most=1)
    address = house.listen()
    first, second = socket.create_connection(address), socket.create_connection(address)
    await until(lambda: house.counters.accept_pauses["max_connections"])
    house.listeners[0].pause()
    first.close()
    await until(lambda: house.counters.connections_open == 0)
    await asyncio.sleep(0.02)
    assert house.counters.connections_accepted == 1
    house.listeners[0].open()
    await until(lambda: house.counters.connections_accepted == 2)
    second.close()
