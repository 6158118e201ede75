"""Peek and consume over real sockets: what the kernel really does is what this module is about.

What every stream does is tried over each kind; what TLS alone does, `test_tls.py` tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest

from syslogger import config, streams
from syslogger.counters import Counters
from syslogger.streams import PlainStream, Poller
from syslogger.tls import Tls, TlsStream
from tests.certificates import SERVER, Authority
from tests.waiting import Reader, until

LARGEST = 4096


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    with Poller(LARGEST) as poller:
        yield poller


KINDS = ["plain", "tls"]


class Pair(Reader):
    """A stream and the peer's end of it."""

    peer: socket.socket
    stream: PlainStream | TlsStream

    def __init__(self, poller: Poller, receive_buffer_bytes: int = 0) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            if receive_buffer_bytes:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            self.peer = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.accepted = accepted
        self.stream = PlainStream(accepted, poller)

    @classmethod
    async def of_kind(cls, kind: str, authority: Authority, poller: Poller, receive_buffer_bytes: int = 0) -> Pair:
        """Return a pair that has shaken hands, if its kind does."""
        pair = cls(poller, receive_buffer_bytes)
        if kind == "tls":
            poller.forget(pair.accepted.fileno())
            tls = Tls(msgspec.convert(authority.listener(), config.Tls), "listeners[0].tls")
            pair.stream = TlsStream(pair.accepted, poller, tls, "peer", Counters())
            reading = asyncio.ensure_future(pair.stream.readable())
            connect = partial(authority.client().wrap_socket, server_hostname=SERVER)
            pair.peer = await asyncio.to_thread(connect, pair.peer)
            await reading
            assert pair.stream.peek() == b""
        return pair

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()

    async def arrived(self, size: int) -> None:
        """Wait until so many bytes are in the kernel."""
        await until(lambda: self.stream.unconsumed() >= size)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=KINDS)
async def pair(request: pytest.FixtureRequest, poller: Poller, authority: Authority) -> AsyncIterator[Pair]:
    pair = await Pair.of_kind(request.param, authority, poller)
    yield pair
    pair.stream.close()
    pair.peer.close()


only_plain = pytest.mark.parametrize("pair", ["plain"], indirect=True)


async def test_what_is_not_consumed_is_shown_again(pair: Pair) -> None:
    pair.peer.sendall(b"abc")
    assert await pair.peek() == b"abc"
    pair.stream.consume(1)
    assert pair.stream.unconsumed() == 2
    pair.peer.sendall(b"d")
    assert await pair.peek() == b"bcd"
    pair.stream.consume(3)
    assert pair.stream.unconsumed() == 0


async def test_what_is_worth_another_look_is_not_waited_for(pair: Pair) -> None:
    pair.peer.sendall(b"one two")
    assert await pair.peek() == b"one two"
    pair.stream.consume(4, more=True)
    assert await pair.peek() == b"two"


async def test_it_waits_for_more_than_it_has_seen(pair: Pair) -> None:
    pair.peer.sendall(b"half")
    assert await pair.peek() == b"half"
    pair.stream.consume(0)
    waiting = asyncio.ensure_future(pair.stream.readable())
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done
    pair.peer.sendall(b" a record\n")
    assert await asyncio.wait_for(waiting, 5)
    assert pair.stream.peek() == b"half a record\n"


async def test_few_bytes_wake_it_after_a_long_unfinished_record_is_gone(pair: Pair) -> None:
    pair.peer.sendall(b"x" * 100)
    await pair.peek()
    pair.stream.consume(0)
    waiting = asyncio.ensure_future(pair.stream.readable())
    await asyncio.sleep(0.01)
    pair.peer.sendall(b"y\n")
    assert await waiting
    pair.stream.consume(len(pair.stream.peek()))
    pair.peer.sendall(b"z")
    assert await pair.peek() == b"z"


async def test_more_than_one_read_comes_in_several(pair: Pair) -> None:
    sent = os.urandom(3 * LARGEST + 7)
    pair.peer.sendall(sent)
    pair.peer.close()
    await pair.arrived(len(sent))
    got = b""
    while data := await pair.peek():
        assert len(data) <= LARGEST
        assert pair.stream.final == ("eof" if len(got) + len(data) == len(sent) else "")
        pair.stream.consume(len(data))
        got += data
    assert got == sent
    assert pair.stream.ended == "eof"


async def test_the_end_behind_an_unfinished_record_is_seen(pair: Pair) -> None:
    pair.peer.sendall(b"half")
    assert await pair.peek() == b"half"
    pair.stream.consume(0)
    pair.peer.close()
    assert await pair.peek() == b"half"
    assert pair.stream.final == "eof"
    pair.stream.consume(4)
    assert await pair.peek() == b""
    assert pair.stream.ended == "eof"


async def test_a_final_read_may_be_consumed_in_parts(pair: Pair) -> None:
    pair.peer.sendall(b"abcd")
    pair.peer.close()
    await pair.arrived(4)
    await asyncio.sleep(0.01)
    for left in (b"abcd", b"cd"):
        assert await pair.peek() == left
        assert pair.stream.final == "eof"
        pair.stream.consume(2)
    assert not await pair.stream.readable()


async def test_a_peer_that_comes_and_goes(pair: Pair) -> None:
    pair.peer.close()
    assert await pair.peek() == b""
    assert pair.stream.ended == "eof"


async def test_what_came_before_a_reset_is_shown_first(pair: Pair) -> None:
    pair.peer.sendall(b"kept\nhalf")
    await pair.arrived(9)
    pair.reset()
    assert await pair.peek() == b"kept\nhalf"
    pair.stream.consume(5)
    assert await pair.peek() == b"half"
    assert pair.stream.final == "reset"
    pair.stream.consume(4)
    assert await pair.peek() == b""
    assert pair.stream.ended == "reset"


async def test_a_reset_with_nothing_unread(pair: Pair) -> None:
    pair.reset()
    assert await pair.peek() == b""
    assert pair.stream.ended == "reset"


@only_plain
@pytest.mark.parametrize("before", [b"", b"whole\n", b"whole\nhal"])
async def test_urgent_data_stops_nothing_and_is_kept(pair: Pair, before: bytes) -> None:
    if before:
        pair.peer.sendall(before)
    pair.peer.send(b"!", socket.MSG_OOB)
    pair.peer.sendall(b"f\nafter\n")
    expected = before + b"!f\nafter\n"
    await pair.arrived(len(expected))
    got, finals = b"", []
    while len(got) < len(expected):
        data = await pair.peek()
        finals.append(pair.stream.final)
        pair.stream.consume(len(data))
        got += data
    assert got == expected
    assert finals == (["urgent", ""] if before else [""])
    pair.peer.sendall(b"later\n")
    assert await pair.peek() == b"later\n"


@only_plain
async def test_an_urgent_mark_behind_what_was_seen_ends_it(pair: Pair) -> None:
    pair.peer.sendall(b"half")
    assert await pair.peek() == b"half"
    pair.stream.consume(0)
    pair.peer.send(b"!", socket.MSG_OOB)
    assert await pair.peek() in {b"half", b"half!"}
    pair.peer.sendall(b"rest")
    got = b""
    while len(got) < 9:
        data = await pair.peek()
        got += data
        pair.stream.consume(len(data))
    assert got == b"half!rest"


async def test_a_drip_costs_few_peeks(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_UNFINISHED_PEEK_SECONDS", 0.05)
    stream, peeks = pair.stream, 0
    dripped = asyncio.ensure_future(drip(pair.peer, 200))
    while not dripped.done():
        await stream.readable()
        stream.peek()
        stream.consume(0)
        peeks += 1
    assert 2 <= peeks <= 40


async def drip(peer: socket.socket, count: int) -> None:
    for _ in range(count):
        peer.send(b"x")
        await asyncio.sleep(0.001)


async def test_a_half_closed_peer_that_ends_in_answer(pair: Pair) -> None:
    pair.stream.half_close()
    # As rsyslog looks; who reads the end through OpenSSL can send no more.
    with socket.fromfd(pair.peer.fileno(), socket.AF_INET, socket.SOCK_STREAM) as bare:
        assert await asyncio.to_thread(bare.recv, 1, socket.MSG_PEEK) == b""
    pair.peer.sendall(b"last words\n")
    assert await pair.peek() == b"last words\n"
    pair.stream.consume(11)
    pair.peer.close()
    assert await pair.peek() == b""
    assert pair.stream.ended == "eof"


@pytest.mark.parametrize("unfinished", [b"", b"half"])
async def test_a_half_closed_peer_that_stays_silent(
    pair: Pair, unfinished: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.05)
    if unfinished:
        pair.peer.sendall(unfinished)
        assert await pair.peek() == unfinished
        pair.stream.consume(0)
    # It waits already when it is told.
    waiting = asyncio.ensure_future(pair.peek())
    await asyncio.sleep(0.01)
    pair.stream.half_close()
    assert await waiting == unfinished
    if unfinished:
        assert pair.stream.final == "quiet"
        pair.stream.consume(len(unfinished))
        assert await pair.peek() == b""
    assert pair.stream.ended == "quiet"


@pytest.mark.parametrize("receive_buffer_bytes", [106_496, 147_456])
async def test_the_end_of_what_filled_the_buffer_does_not_keep_the_window_shut(receive_buffer_bytes: int) -> None:
    """What is left of a burst is an unfinished record; its few bytes hold all of the memory that the burst came in."""
    line, count = b"x" * 155 + b"\n", 10_000
    with Poller(1 << 20) as poller:
        poller.largest_buffer = 425_984  # the usual `net.core.rmem_max`
        pair = Pair(poller, receive_buffer_bytes)
        sending = asyncio.ensure_future(asyncio.to_thread(pair.peer.sendall, line * count))
        await asyncio.sleep(0.3)  # Kafka takes its time
        received = 0
        async with asyncio.timeout(10):
            while received < len(line) * count:
                assert await pair.stream.readable()
                used = len(pair.stream.peek()) // len(line) * len(line)
                pair.stream.consume(used)
                received += used
        await sending
        granted = pair.stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert granted == 2 * receive_buffer_bytes
        pair.stream.close()
        pair.peer.close()


async def test_what_comes_as_silence_is_declared_ends_it(pair: Pair) -> None:
    pair.stream.half_close()
    pair.peer.sendall(b"half")
    await pair.arrived(4)
    pair.stream._fall_quiet()
    assert await pair.peek() == b"half"
    assert pair.stream.final == ""


@pytest.mark.parametrize("kind", KINDS)
async def test_silence_is_no_end_while_the_peers_kernel_backs_off(
    kind: str, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small segments overfill the receive buffer before the window closes; the kernel drops what comes then.

    It does so to some connections only, so there are several.
    """
    # TLS takes its bytes bit by bit, so the kernel may drop some more meanwhile: for 0.2 s.
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.05 if kind == "plain" else 0.5)
    with Poller(1 << 20) as poller:
        pairs = [await Pair.of_kind(kind, authority, poller, receive_buffer_bytes=262_144) for _ in range(10)]
        sent = dict.fromkeys(pairs, 0)

        def send_small() -> None:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                for pair in pairs:
                    with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
                        sent[pair] += pair.peer.send(b"s" * 134)

        async def read_to_the_end(pair: Pair) -> int:
            received = 0
            while await pair.stream.readable():
                data = pair.stream.peek()
                received += len(data)
                pair.stream.consume(len(data))
            assert pair.stream.ended == "quiet"
            return received

        # The kernel promises more once it has seen how little room large segments waste.
        large = b"x" * 60_000
        for pair in pairs:
            pair.peer.sendall(large)
            await pair.arrived(len(large))
            pair.stream.consume(len(await pair.peek()))
            pair.peer.setblocking(False)
            pair.peer.send(b"the first\n")
            await pair.peek()
        await asyncio.to_thread(send_small)  # Kafka takes its time
        for pair in pairs:
            pair.stream.consume(len(b"the first\n"))
            pair.stream.half_close()
        assert await asyncio.gather(*map(read_to_the_end, pairs)) == list(sent.values())
        for pair in pairs:
            pair.stream.close()
            pair.peer.close()


async def test_silence_is_the_end_once_the_peers_kernel_has_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed window is probed, and the probes are dropped too; but it opens at once."""
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.05)
    with Poller(1 << 20) as poller:
        pair = Pair(poller, receive_buffer_bytes=65_536)
        pair.peer.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += pair.peer.send(b"x" * 100_000)
        first = await pair.peek()
        await asyncio.sleep(1.5)  # Kafka takes its time
        assert streams._memory(pair.stream.sock)[8]
        pair.stream.consume(len(first))
        pair.stream.half_close()
        received, last_at = len(first), 0.0
        while await pair.stream.readable():
            if data := pair.stream.peek():
                received, last_at = received + len(data), time.monotonic()
                pair.stream.consume(len(data))
        assert pair.stream.ended == "quiet"
        assert received == sent
        assert time.monotonic() - last_at < 1.0
        pair.stream.close()
        pair.peer.close()


async def test_half_closing_a_peer_that_has_reset(pair: Pair) -> None:
    pair.reset()
    await asyncio.sleep(0.01)
    pair.stream.half_close()
    assert await pair.peek() == b""
    assert pair.stream.ended == "reset"


async def test_many_streams_one_poller(poller: Poller) -> None:
    pairs = [Pair(poller) for _ in range(300)]
    with contextlib.ExitStack() as closing:
        for pair in pairs:
            closing.callback(pair.peer.close)
            closing.callback(pair.stream.close)
        readers = [asyncio.ensure_future(pair.peek()) for pair in pairs]
        await asyncio.sleep(0)
        for number, pair in enumerate(pairs):
            pair.peer.sendall(b"%d" % number)
        assert await asyncio.gather(*readers) == [b"%d" % number for number in range(300)]


async def test_what_is_written_arrives_whole_though_the_peer_reads_late(pair: Pair) -> None:
    sent = os.urandom(8_000_000)
    writing = asyncio.ensure_future(pair.stream.write(sent))
    await until(lambda: pair.stream._writer)
    got = bytearray()
    while len(got) < len(sent):
        got += await asyncio.to_thread(pair.peer.recv, 1_000_000)
    assert got == sent
    assert await writing
    pair.peer.sendall(b"abc")
    assert await pair.peek() == b"abc", "it reads as before"


async def test_a_peer_that_takes_nothing_ends_the_stream(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_UNREAD_SECONDS", 0.02)
    assert not await pair.stream.write(bytes(8_000_000))
    assert pair.stream.ended == "unread"
    assert not await pair.stream.readable()


async def test_who_has_reset_the_connection_cannot_be_told(pair: Pair) -> None:
    pair.reset()
    await until(lambda: pair.stream._gone)
    assert not await pair.stream.write(b"abc")
    assert pair.stream.ended == "reset"


async def test_a_reset_ends_a_write_that_waits(pair: Pair) -> None:
    writing = asyncio.ensure_future(pair.stream.write(bytes(8_000_000)))
    await until(lambda: pair.stream._writer)
    pair.reset()
    assert not await asyncio.wait_for(writing, 5)
    assert pair.stream.ended == "reset"


async def test_half_a_write_is_the_end(pair: Pair) -> None:
    writing = asyncio.ensure_future(pair.stream.write(bytes(8_000_000)))
    await until(lambda: pair.stream._writer)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert pair.stream.ended == "unread"


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_the_peers_end_is_told_before_all_is_read(pair: Pair, how: str) -> None:
    told: list[str] = []
    pair.stream.when_gone = told.append
    pair.peer.sendall(b"abc")
    assert await pair.peek() == b"abc"
    assert told == []
    if how == "reset":
        pair.reset()
    else:
        pair.peer.shutdown(socket.SHUT_WR)
    await until(lambda: told)
    assert told[0] == how
