"""One suite for every way to send: whatever the framing and the transport, the same holds.

A new transport is a class with `settings`, `streams` and what its `Sender` does otherwise, and a place in `TRANSPORTS`.
A new protocol is a `Way` that says where it promises otherwise, and a `Sender` that speaks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import pytest

from syslogger import forwarder, streams
from syslogger.config import Config
from syslogger.forwarder import Forwarder
from syslogger.framing import Framing
from syslogger.framing.detected import Detected
from syslogger.framing.newline import Newline
from syslogger.framing.octet_counted import OctetCounted
from syslogger.framing.relp import Relp
from syslogger.service import Stop
from tests.certificates import SERVER, Authority
from tests.fakes import FakeSink
from tests.waiting import until

LARGEST = 2048
"""max_record_bytes"""


class Sender:
    """A peer's end. Its calls wait as long as the other end makes them."""

    answered = 0
    """How many records the other end has said are safe."""

    def __init__(self, framing: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._framing = framing
        self._count = 0
        self._reader = reader
        self._writer = writer

    def framed(self, record: bytes) -> bytes:
        """Return the record as it goes on the wire."""
        self._count += 1
        counted = self._framing == "octet_counted" or (self._framing == "auto" and self._count % 2)
        return b"%d %b" % (len(record), record) if counted else record + b"\n"

    @property
    def kept(self) -> list[bytes]:
        """The records that this end would send again, on another connection: none, if nobody answers it."""
        return []

    async def send(self, *records: bytes) -> None:
        """Send whole records."""
        await self.send_bytes(b"".join(map(self.framed, records)))

    async def send_bytes(self, data: bytes) -> None:
        """Send what may or may not be records."""
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        """Say that nothing more comes, and wait until the other end says so too."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        await self.was_ended()
        await self.close()

    async def was_ended(self) -> None:
        """Wait until the other end has told this one to end."""
        with contextlib.suppress(ConnectionResetError):
            assert await self._reader.read() == b""

    async def close(self) -> None:
        """Let go of the connection."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class _Frame(NamedTuple):
    number: int
    record: bytes
    """Empty if it is no `syslog`."""
    end: int
    """How many bytes its session has sent when it is complete."""


class RelpSender(Sender):
    """A peer that speaks RELP. It has no window, so that only the other end can make it wait.

    Every answer is for the frame whose turn it is, and says 200; `AssertionError` from what waits next, if not.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__("relp", reader, writer)
        self._framed = 0
        """How many bytes all frames are, sent or not."""
        self._sent = 0
        self._unanswered: deque[_Frame] = deque()
        self._told_to_end = False
        self._listening = asyncio.ensure_future(self._listen())

    async def open(self) -> None:
        """Open the session."""
        await self.send_bytes(self._frame(b"open", b"relp_version=0\nrelp_software=peer\ncommands=syslog"))
        await self._was_answered()

    def framed(self, record: bytes) -> bytes:
        return self._frame(b"syslog", record)

    def _frame(self, command: bytes, data: bytes) -> bytes:
        self._count += 1
        frame = b"%d %b %d%b%b\n" % (self._count, command, len(data), b" " if data else b"", data)
        self._framed += len(frame)
        self._unanswered.append(_Frame(self._count, data if command == b"syslog" else b"", self._framed))
        return frame

    @property
    def kept(self) -> list[bytes]:
        return [frame.record for frame in self._unanswered if frame.record]

    async def send_bytes(self, data: bytes) -> None:
        self._sent += len(data)
        # What does not arrive is not answered.
        with contextlib.suppress(ConnectionError):
            await super().send_bytes(data)

    async def _listen(self) -> None:
        """Take the answers until the other end has ended."""
        with contextlib.suppress(ConnectionResetError):
            async for line in self._reader:
                assert not self._told_to_end
                if line == b"0 serverclose 0\n":
                    self._told_to_end = True
                    continue
                number, answer, size, data = line.split(b" ", 3)
                if len(data) <= int(size):
                    data += await self._reader.readexactly(int(size) + 1 - len(data))
                frame = self._unanswered.popleft()
                assert (int(number), answer, data[:7]) == (frame.number, b"rsp", b"200 OK\n")
                assert len(data) == int(size) + 1
                assert frame.end <= self._sent, "it is not complete yet"
                self.answered += bool(frame.record)

    async def _was_answered(self) -> None:
        """Wait until all that was sent is answered, or will not be any more."""
        await until(lambda: self._listening.done() or not self._unanswered or self._unanswered[0].end > self._sent)

    async def end(self) -> None:
        await self._was_answered()
        if self._sent == self._framed and not self._listening.done():
            await self.send_bytes(self._frame(b"close", b""))
            await self.was_ended()
            assert not self._unanswered
        elif self._sent > self._framed:
            # What was sent beside the frames is none; the other end finds that out by itself.
            await self._heard_all()
        await self.close()

    async def _heard_all(self) -> None:
        """Wait until the other end has ended."""
        await until(self._listening.done)
        await self._listening

    async def was_ended(self) -> None:
        await self._heard_all()
        assert self._told_to_end

    async def close(self) -> None:
        await super().close()
        await self._heard_all()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Tcp:
    """A transport."""

    host = "127.0.0.1"

    def settings(self, _directory: Path) -> dict[str, Any]:
        """Return what its listener has beside the framing."""
        return {"address": f"[{self.host}]:0" if ":" in self.host else f"{self.host}:0"}

    async def connect(self, address: str, framing: str) -> Sender:
        """Connect to a listener by its address as the program names it."""
        return Sender(framing, *await self.streams(address))

    async def streams(self, address: str) -> Streams:
        """Connect as `connect` does; return both directions."""
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        # What waits in the process is what `drain` does not wait for.
        writer.transport.set_write_buffer_limits(0)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return reader, writer


class Tcp6(Tcp):
    host = "::1"


class Proxied(Tcp):
    """Behind a proxy that speaks the PROXY protocol."""

    def settings(self, directory: Path) -> dict[str, Any]:
        return super().settings(directory) | {"proxy_protocol_from": ["127.0.0.0/8"], "allow": ["192.0.2.0/24"]}

    async def streams(self, address: str) -> Streams:
        reader, writer = await super().streams(address)
        writer.write(b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514\r\n")
        return reader, writer


class EncryptedSender(Sender):
    """Over TLS, by threads: a transport of asyncio's ends when the other end does, and could not send on."""

    def __init__(self, framing: str, sock: ssl.SSLSocket) -> None:
        self._framing = framing
        self._count = 0
        self._sock = sock

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.to_thread(self._sock.sendall, data)

    async def end(self) -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._sock.unwrap)
        await self.close()

    async def was_ended(self) -> None:
        # Looked at as rsyslog does. If OpenSSL read it, it would send no more.
        with socket.fromfd(self._sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as bare:
            bare.settimeout(30)
            assert await asyncio.to_thread(bare.recv, 1, socket.MSG_PEEK) == b""

    async def close(self) -> None:
        self._sock.close()


class Encrypted(Tcp):
    """TLS."""

    greeting = b""

    def settings(self, directory: Path) -> dict[str, Any]:
        self.authority = Authority(directory)
        return super().settings(directory) | {"tls": self.authority.listener()}

    def _greeted(self, address: str) -> socket.socket:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)), 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(self.greeting)
        return sock

    async def connect(self, address: str, framing: str) -> Sender:
        def shaken() -> ssl.SSLSocket:
            return self.authority.client().wrap_socket(self._greeted(address), server_hostname=SERVER)

        return EncryptedSender(framing, await asyncio.to_thread(shaken))

    async def streams(self, address: str) -> Streams:
        sock = await asyncio.to_thread(self._greeted, address)
        reader, writer = await asyncio.open_connection(sock=sock, ssl=self.authority.client(), server_hostname=SERVER)
        # With 0, asyncio's TLS would never say that it goes on.
        writer.transport.set_write_buffer_limits(1)
        return reader, writer


class ProxiedEncrypted(Encrypted):
    """TLS behind what a proxy says in the clear."""

    greeting = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514\r\n"

    def settings(self, directory: Path) -> dict[str, Any]:
        return super().settings(directory) | {"proxy_protocol_from": ["127.0.0.0/8"], "allow": ["192.0.2.0/24"]}


class Unix:
    """A unix stream socket."""

    def settings(self, directory: Path) -> dict[str, Any]:
        return {"address": f"unix:{directory}/s"}

    async def connect(self, address: str, framing: str) -> Sender:
        return Sender(framing, *await self.streams(address))

    async def streams(self, address: str) -> Streams:
        reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"))
        writer.transport.set_write_buffer_limits(0)
        return reader, writer


FRAMINGS: dict[str, type[Newline | OctetCounted | Detected | Relp]] = {
    "newline": Newline,
    "octet_counted": OctetCounted,
    "auto": Detected,
    "relp": Relp,
}


@dataclass(frozen=True)
class Way:
    """One way to send."""

    framing: str
    transport: Tcp | Unix

    fragments: ClassVar[bool] = True
    """Whether half a record at the end is one."""
    ends: ClassVar[str] = "eof"
    """Why a connection has ended whose peer says that nothing more comes."""
    ends_garbage: ClassVar[str] = "eof"
    """Why one has whose peer sent what is no record."""

    def __str__(self) -> str:
        return f"{self.framing}-{type(self.transport).__name__.lower()}"

    def settings(self, directory: Path) -> dict[str, Any]:
        return {"framing": self.framing, "max_record_bytes": LARGEST} | self.transport.settings(directory)

    def expected(self, data: bytes) -> list[bytes]:
        """Return the records of any bytes: what the framing makes of all of them at once."""
        framing: Framing = FRAMINGS[self.framing](LARGEST)
        return framing.split(data, final=True).records

    async def connect(self, address: str) -> Sender:
        """Connect to a listener by its address as the program names it."""
        return await self.transport.connect(address, self.framing)


class RelpWay(Way):
    """In sessions of RELP: each record is answered, and what is not answered is still the peer's."""

    fragments = False
    ends = "close"
    ends_garbage = "malformed"

    def settings(self, directory: Path) -> dict[str, Any]:
        return {"protocol": "relp", "max_record_bytes": LARGEST} | self.transport.settings(directory)

    async def connect(self, address: str) -> Sender:
        sender = RelpSender(*await self.transport.streams(address))
        await sender.open()
        return sender


TRANSPORTS = (Tcp(), Tcp6(), Proxied(), Encrypted(), ProxiedEncrypted(), Unix())

WAYS = [(RelpWay if framing == "relp" else Way)(framing, transport) for framing in FRAMINGS for transport in TRANSPORTS]


class FakeTopic:
    """Stands where the Kafka topic does: one sink for everybody."""

    problem = ""
    has_answered = True

    def show(self, see: object) -> None:
        """Nobody looks."""

    def __init__(self) -> None:
        self.sink_of_all = FakeSink()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def answered(self) -> None: ...

    def sink(self, _peer: str) -> FakeSink:
        return self.sink_of_all


class House:
    """The program with one listener, and a sink made by hand."""

    def __init__(self, way: Way, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        topic = FakeTopic()
        monkeypatch.setattr(forwarder, "Topic", lambda *_: topic)
        settings = {
            "listeners": [way.settings(directory)],
            "kafka": {"bootstrap_servers": ["none:1"]},
            "prometheus": {"address": ""},
            "drain_seconds": 10.0,
        }
        self.way = way
        self.sink = topic.sink_of_all
        self._peers: list[Sender] = []
        self._stop = Stop()
        self._program = Forwarder(msgspec.convert(settings, Config))
        self.counters = self._program.counters
        self._task = asyncio.ensure_future(self._program.run(self._stop))

    async def connect(self) -> Sender:
        await until(lambda: self._task.done() or self._program.addresses)
        self._peers.append(await self.way.connect(self._program.addresses[0]))
        return self._peers[-1]

    async def close(self) -> None:
        """Stop, whatever a test has left, and let go of the peers."""
        self.sink.release()
        self.sink.fill(full=False)
        self.stop()
        await self.stopped()
        for peer in self._peers:
            await peer.close()

    def stop(self) -> None:
        self._stop.ask()

    async def stopped(self) -> int:
        """Wait until it has stopped; return its exit status."""
        async with asyncio.timeout(20):
            status = await self._task
        assert isinstance(status, int)
        counters = self.counters
        taken = counters.records_delivered + counters.records_in_flight
        assert counters.records_received == taken + counters.records_withdrawn
        assert counters.connections_open == 0
        return status


@pytest.fixture(params=WAYS, ids=str)
async def house(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[House]:
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.1)
    monkeypatch.setenv("_SYSLOGGER_PEERS", "")
    house = House(request.param, tmp_path, monkeypatch)
    yield house
    await house.close()


def records(name: str, count: int, longest: int = 300) -> list[bytes]:
    """Return records of many lengths."""
    lengths = random.Random(name)  # noqa: S311 - repeatable
    return [b"<13>%s %d %s" % (name.encode(), number, b"." * lengths.randrange(longest)) for number in range(count)]


async def test_the_order_of_a_connection_holds(house: House) -> None:
    sent = records("a", 3000)
    peer = await house.connect()
    for start in range(0, len(sent), 7):
        await peer.send(*sent[start : start + 7])
    assert await house.sink.has(len(sent)) == sent
    await peer.end()
    await until(lambda: house.counters.connections_open == 0)
    assert house.counters.connections_ended == {house.way.ends: 1}
    assert not house.counters.records_cut
    assert not house.counters.records_misframed


async def test_many_peers_are_served_side_by_side(house: House) -> None:
    peers = [await house.connect() for _ in range(20)]
    sent = [records(f"p{number}", 50) for number in range(20)]
    for step in range(0, 50, 10):
        await asyncio.gather(
            *(peer.send(*each[step : step + 10]) for peer, each in zip(peers, sent, strict=True)),
        )
    await house.sink.has(1000)
    for number, each in enumerate(sent):
        assert [record for record in house.sink.records if record.startswith(b"<13>p%d " % number)] == each
    await asyncio.gather(*(peer.end() for peer in peers))


async def test_a_slow_sink_stops_the_sender_and_loses_nothing(house: House) -> None:
    peer = await house.connect()
    sent: list[bytes] = []
    blocks = (records(f"b{number}", 100, LARGEST - 100) for number in range(1000))

    async def send_until(limit: int) -> None:
        for block in blocks:
            sent.extend(block)
            await peer.send(*block)
            if len(sent) >= limit:
                return

    house.sink.hold()
    sending = asyncio.ensure_future(send_until(100_000))
    # It goes on until nothing has moved for a while.
    moved = -1
    while moved != len(sent):
        moved = len(sent)
        await asyncio.wait({sending}, timeout=0.3)
    assert not sending.done(), "the sender waits"
    assert sum(map(len, sent)) < 16_000_000, "the kernels' buffers bound what is under way"
    given = len(house.sink.given)
    assert house.sink.records == []
    assert not peer.answered, "it is not safe yet"
    sending.cancel()
    house.sink.release()
    assert given < len(sent)
    assert await house.sink.has(len(sent)) == sent


async def test_a_stop_loses_nothing_that_a_peer_sends_until_it_ends(house: House) -> None:
    peer = await house.connect()
    await peer.send(b"<13>before")
    await house.sink.has(1)
    house.stop()
    await peer.was_ended()
    await peer.send(b"<13>after", b"<13>last")
    await peer.end()
    assert await house.stopped() == 0
    assert house.sink.records + peer.kept == [b"<13>before", b"<13>after", b"<13>last"]


async def test_a_stop_ends_a_peer_that_is_silent(house: House) -> None:
    peer = await house.connect()
    await peer.send(b"<13>before")
    await house.sink.has(1)
    house.stop()
    assert await house.stopped() == 0
    assert house.sink.records == [b"<13>before"]


async def test_half_a_record_at_the_end(house: House) -> None:
    peer = await house.connect()
    await peer.send(b"<13>whole")
    half = peer.framed(b"<13>another one")[:-6]
    await peer.send_bytes(half)
    await peer.end()
    await until(lambda: house.counters.connections_open == 0)
    fragments = house.way.expected(half) if house.way.fragments else []
    assert house.sink.records == [b"<13>whole", *fragments]
    assert house.counters.records_cut == ({"eof": 1} if fragments else {})


async def test_a_drip(house: House) -> None:
    dripping, quick = await house.connect(), await house.connect()
    sent = records("drip", 3, 60)
    for record in sent:
        for byte in dripping.framed(record):
            await dripping.send_bytes(bytes([byte]))
            await asyncio.sleep(0)
    await quick.send(b"<13>quick")
    assert sorted(await house.sink.has(4)) == sorted([*sent, b"<13>quick"])
    assert not house.counters.records_cut
    await dripping.end()
    await quick.end()


async def test_a_flood_leaves_room_for_others(house: House) -> None:
    flooding, quiet = await house.connect(), await house.connect()
    block = records("flood", 200)
    stop = asyncio.Event()

    async def flood() -> int:
        count = 0
        while not stop.is_set():
            await flooding.send(*block)
            count += len(block)
            await asyncio.sleep(0)
        return count

    flooded = asyncio.ensure_future(flood())
    await house.sink.has(1000)
    for number in range(20):
        record, before = b"<13>quiet %d" % number, len(house.sink.records)
        await quiet.send(record)
        await until(lambda record=record, before=before: record in house.sink.records[before:], 5)
    stop.set()
    await house.sink.has(await flooded + 20)
    assert [record for record in house.sink.records if record.startswith(b"<13>quiet")] == [
        b"<13>quiet %d" % number for number in range(20)
    ]
    await flooding.end()
    await quiet.end()


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_costs_nobody_else_anything(house: House, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - repeatable
    words = [b"\n", b" ", b"<", b"12 <", b"-1 ", b"99999999999 <13>", b"\r\n", b"\0", b"PROXY ", b"\x16\x03\x01"]
    garbage = b"".join(dice.choice([*words, dice.randbytes(dice.randrange(200))]) for _ in range(2000))
    liar, honest = await house.connect(), await house.connect()
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(garbage), 1000):
            await liar.send_bytes(garbage[start : start + 1000])
        await liar.end()
    await until(lambda: house.counters.connections_open == 1)
    assert house.counters.connections_ended == {house.way.ends_garbage: 1}
    assert house.sink.records == house.way.expected(garbage)
    before = len(house.sink.records)
    await honest.send(*records("honest", 100))
    assert (await house.sink.has(before + 100))[before:] == records("honest", 100)
    await honest.end()
