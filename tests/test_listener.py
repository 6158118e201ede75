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
from syslogger.admission import Admission, Networks
from syslogger.counters import Counters
from syslogger.errors import ConfigError
from syslogger.framing.newline import Newline
from syslogger.listener import Connections, Listener, Terms, bind
from syslogger.streams import Poller
from syslogger.tls import Tls
from tests.certificates import SERVER, Authority
from tests.fakes import FakeManager, FakeSink
from tests.waiting import until

BUFFER = 65_536

EVERYBODY = Admission()


class House:
    """Listeners over one sink."""

    def __init__(self, poller: Poller, most: int, most_per_address: int) -> None:
        self.sink = FakeSink()
        self.counters = Counters()
        self.manager = FakeManager()
        self.peers: list[str] = []
        self.connections = Connections(
            most, self.open_sink, poller, self.manager, self.counters, most_per_address=most_per_address
        )
        self.listeners: list[Listener] = []

    def open_sink(self, peer: str) -> FakeSink:
        self.peers.append(peer)
        return self.sink

    def listen(
        self, host: str = "127.0.0.1", admission: Admission = EVERYBODY, tls: Tls | None = None
    ) -> tuple[str, int]:
        (sock,) = bind(host, 0, BUFFER, "listeners[0].address")
        terms = Terms(Newline(1000), admission, tls)
        self.listeners.append(Listener(sock, terms, self.connections, self.manager, self.counters))
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

        def build(most: int = 100, most_per_address: int = 0) -> House:
            houses.append(House(poller, most, most_per_address))
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
        one = Listener(sock, Terms(Newline(1000)), house.connections, house.manager, house.counters)
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
        next_house.connections.adopt(sock, Terms(Newline(1000)))
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


async def ended(peer: socket.socket) -> bool:
    """Wait for the other end's end; return whether it was one, and nothing before it."""
    peer.settimeout(10)
    try:
        return await asyncio.to_thread(peer.recv, 1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
async def test_who_is_not_allowed_is_closed_unread(
    open_house: Callable[..., House], host: str, caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house()
    port = house.listen(host, Admission("listeners[3]", allow=Networks(["127.0.0.4/30", "2001:db8::/32"])))[1]
    refused = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0))
    refused.sendall(b"from nobody\n")
    assert await ended(refused)
    assert f"127.0.0.3:{refused.getsockname()[1]} was refused" in caplog.text
    assert "listeners[3].allow" in caplog.text
    allowed = socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.5", 0))
    allowed.sendall(b"from somebody\n")
    assert await house.sink.has(1) == [b"from somebody"]
    assert house.counters.connections_refused == {"allow": 1}
    assert (house.counters.connections_accepted, house.counters.connections_open) == (1, 1)
    for peer in (refused, allowed):
        peer.close()


async def test_the_cap_of_one_address(open_house: Callable[..., House], caplog: pytest.LogCaptureFixture) -> None:
    house = open_house(most_per_address=2)
    address = house.listen()
    first, second = socket.create_connection(address), socket.create_connection(address)
    with socket.create_connection(address) as too_many:
        assert await ended(too_many)
    assert house.counters.connections_refused == {"per_address": 1}
    assert "127.0.0.1 has as many open as max_connections_per_address allows" in caplog.text
    other = socket.create_connection(address, source_address=("127.0.0.2", 0))
    first.close()
    await until(lambda: house.counters.connections_ended["eof"] == 1)
    third = socket.create_connection(address)
    for peer in (second, other, third):
        peer.sendall(b"served\n")
    await house.sink.has(3)
    for peer in (second, other, third):
        peer.close()
    await until(lambda: house.counters.connections_open == 0)
    assert not house.connections._of_address


def proxied(allow: tuple[str, ...] = ()) -> Admission:
    return Admission(allow=Networks(allow), proxies=Networks(["127.0.0.0/29"]))


V1 = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514\r\n"
V2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\1\xc6\x33\x64\1\x12\x67\x05\xea"
LOCAL = V2[:12] + b"\x20\0\0\0"


@pytest.mark.parametrize("header", [V1, V2])
@pytest.mark.parametrize("cut", [0, 1, 7, 13, None], ids=str)
async def test_a_proxy_says_whose_connection_it_passes_on(
    open_house: Callable[..., House], header: bytes, cut: int | None
) -> None:
    house = open_house()
    peer = socket.create_connection(house.listen(admission=proxied(allow=("192.0.2.0/24",))))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for start in range(0, len(header), cut or len(header)):
        peer.sendall(header[start : start + (cut or len(header))])
        await asyncio.sleep(0.002)
        if cut is None and start == 0:
            await until(lambda: house.peers)
    peer.sendall(b"PROXY is a word\n")
    assert await house.sink.has(1) == [b"PROXY is a word"]
    assert house.peers == ["192.0.2.1:4711"]
    assert len(house.manager.kept) == 2
    peer.close()
    await until(lambda: house.counters.connections_open == 0)
    assert house.counters.connections_ended == {"eof": 1}
    assert len(house.manager.kept) == 1


async def test_records_right_behind_the_header_and_the_end(open_house: Callable[..., House]) -> None:
    house = open_house()
    peer = socket.create_connection(house.listen(admission=proxied()))
    peer.sendall(V2 + b"one\ntwo\nhalf")
    peer.close()
    assert await house.sink.has(3) == [b"one", b"two", b"half"]


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"<13>no header\n", "it does not begin with a PROXY header"),
        (b"PROXY TCP4 x\r\n<13>wrong\n", "its PROXY line is none"),
        (V1[:20], "it ended within its PROXY header"),
    ],
)
async def test_a_proxy_that_says_nothing_or_nonsense(
    open_house: Callable[..., House], sent: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house()
    peer = socket.create_connection(house.listen(admission=proxied()))
    peer.sendall(sent)
    peer.shutdown(socket.SHUT_WR)
    assert await ended(peer)
    await until(lambda: house.counters.connections_open == 0)
    assert house.counters.connections_refused == {"proxy_header": 1}
    assert house.counters.connections_ended == {"refused": 1}
    assert house.sink.given == []
    assert why in caplog.text
    assert "listeners[0].proxy_protocol_from" in caplog.text
    peer.close()


@pytest.mark.parametrize("sent", [b"", V1[:20]])
async def test_a_proxy_that_takes_its_time(
    open_house: Callable[..., House], sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_HEADER_SECONDS", 0.05)
    house = open_house()
    peer = socket.create_connection(house.listen(admission=proxied()))
    peer.sendall(sent)
    assert await ended(peer)
    assert house.counters.connections_refused == {"proxy_header": 1}
    assert "no PROXY header within 0.05 s" in caplog.text
    peer.close()


async def test_a_proxy_that_only_looks_whether_somebody_is_there(
    open_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    house = open_house()
    socket.create_connection(house.listen(admission=proxied())).close()
    await until(lambda: house.counters.connections_ended == {"eof": 1})
    assert not house.counters.connections_refused
    assert caplog.text == ""
    assert house.peers == []


async def test_whom_the_rules_are_applied_to_behind_a_proxy(open_house: Callable[..., House]) -> None:
    house = open_house(most_per_address=1)
    address = house.listen(admission=proxied(allow=("192.0.2.1", "127.0.0.3", "127.0.0.9")))
    first = socket.create_connection(address)
    first.sendall(V1 + b"first\n")
    await house.sink.has(1)
    # As many as allowed of that address; one that is not allowed; one that may, past the proxy, who is not asked.
    for sent, cause in ((V2, "per_address"), (V1.replace(b"192.0.2.1", b"192.0.2.2"), "allow"), (LOCAL, "allow")):
        with socket.create_connection(address) as refused:
            refused.sendall(sent + b"refused\n")
            before = house.counters.connections_refused[cause]
            assert await ended(refused)
            assert house.counters.connections_refused[cause] == before + 1
    local = socket.create_connection(address, source_address=("127.0.0.3", 0))
    local.sendall(LOCAL + b"of its own\n")
    await house.sink.has(2)
    past = socket.create_connection(address, source_address=("127.0.0.9", 0))
    past.sendall(V1 + b"past it\n")
    assert await house.sink.has(4) == [b"first", b"of its own", V1[:-1], b"past it"]
    assert house.peers == ["192.0.2.1:4711", *("{}:{}".format(*peer.getsockname()) for peer in (local, past))]
    for peer in (first, local, past):
        peer.close()


async def test_who_is_adopted_is_asked_for_no_header_again(open_house: Callable[..., House]) -> None:
    house, next_house = open_house(), open_house()
    address = house.listen(admission=proxied())
    peer, late = socket.create_connection(address), socket.create_connection(address)
    peer.sendall(V1 + b"before\nunfi")
    await house.sink.has(1)
    await until(lambda: house.counters.connections_open == 2)
    house.listeners[0].pause()
    # Whose proxy has not spoken yet is waited for, and kept by nobody until then.
    assert len(house.manager.kept) == 2
    announced = asyncio.ensure_future(house.connections.announced())
    done, _ = await asyncio.wait({announced}, timeout=0.05)
    assert not done
    late.sendall(V2)
    await announced
    assert len(house.manager.kept) == 3
    next_house.manager.peers = house.manager.peers
    for sock in await house.connections.release():
        next_house.connections.adopt(sock, Terms(Newline(1000), proxied()))
    assert next_house.peers == ["192.0.2.1:4711"] * 2
    assert next_house.connections._of_address == {"192.0.2.1": 2}
    peer.sendall(b"nished\n")
    late.sendall(b"late\n")
    assert sorted(await next_house.sink.has(2)) == [b"late", b"unfinished"]
    for each in (peer, late):
        each.close()


async def test_a_drain_ends_who_waits_for_a_header(open_house: Callable[..., House]) -> None:
    house = open_house()
    address = house.listen(admission=proxied())
    silent, speaking = socket.create_connection(address), socket.create_connection(address)
    speaking.sendall(V1 + b"in time\n")
    await house.sink.has(1)
    assert await house.close() == []
    assert house.counters.connections_ended == {"quiet": 2}
    silent.close()
    speaking.close()


async def test_a_connection_of_age_is_told_to_end_and_loses_nothing(open_house: Callable[..., House]) -> None:
    house = open_house()
    peer = socket.create_connection(house.listen(admission=Admission(max_age_seconds=0.1)))
    peer.sendall(b"young\n")
    await house.sink.has(1)
    assert await ended(peer)
    peer.sendall(b"last words\nunfinished")
    peer.close()
    assert await house.sink.has(3) == [b"young", b"last words", b"unfinished"]
    await until(lambda: house.counters.connections_open == 0)
    assert house.counters.connections_ended == {"age": 1}


async def test_nobody_is_of_age_in_an_outage(open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OUTAGE_SECONDS", 0.05)
    house = open_house()
    address = house.listen(admission=Admission(max_age_seconds=0.1))
    peer, idle = socket.create_connection(address), socket.create_connection(address)
    house.sink.hold()
    peer.sendall(b"waits\n")
    await house.sink.was_given(1)
    told = [asyncio.ensure_future(ended(each)) for each in (peer, idle)]
    done, _ = await asyncio.wait(told, timeout=0.5)
    assert not done
    house.sink.release()
    assert all(await asyncio.gather(*told))
    for each in (peer, idle):
        each.close()
    await until(lambda: house.counters.connections_ended == {"age": 2})
    assert house.sink.records == [b"waits"]


async def test_ages_differ(open_house: Callable[..., House]) -> None:
    house = open_house()
    address = house.listen(admission=Admission(max_age_seconds=1000.0))
    peers = [socket.create_connection(address) for _ in range(20)]
    await until(lambda: house.counters.connections_open == 20)
    now = asyncio.get_running_loop().time()
    ages = sorted(guest.expiry.when() - now for guest in house.connections._open.values() if guest.expiry)
    assert len(set(ages)) == 20
    assert 895 < ages[0] < 990
    assert 1010 < ages[-1] < 1101
    timers = [guest.expiry for guest in house.connections._open.values()]
    for peer in peers:
        peer.close()
    await until(lambda: house.counters.connections_open == 0)
    assert all(timer.cancelled() for timer in timers if timer)


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
