"""The loop between a stream and a sink, with a stream made by hand."""

from __future__ import annotations

import asyncio
import weakref

import pytest

from syslogger.connection import Connection
from syslogger.counters import Counters
from syslogger.framing import Split
from syslogger.framing.detected import Detected
from syslogger.framing.newline import Newline
from tests.fakes import FakeSink


class FakeStream:
    """Shows the bytes of `chunks` one after the other, and remembers what was consumed."""

    def __init__(self, *chunks: bytes, final: str = "eof") -> None:
        self.final = ""
        self.ended = ""
        self.held = b""
        self.consumed = b""
        self.closed = False
        self.more: list[bool] = []
        self.peeks = 0
        self._chunks = list(chunks)
        self._last = final

    async def readable(self) -> bool:
        if not self._chunks and not self.held:
            self.ended = self._last
        return not self.ended

    def peek(self) -> bytes:
        self.peeks += 1
        if self._chunks:
            self.held += self._chunks.pop(0)
        self.final = "" if self._chunks else self._last
        return self.held

    def consume(self, size: int, *, more: bool = False) -> None:
        assert size <= len(self.held)
        self.more.append(more)
        self.consumed += self.held[:size]
        self.held = self.held[size:]

    def half_close(self) -> None:
        raise AssertionError

    def unconsumed(self) -> int:
        return len(self.held)

    def close(self) -> None:
        self.closed = True


def connect(stream: FakeStream, sink: FakeSink, largest: int = 100) -> tuple[Connection, Counters]:
    counters = Counters()
    return Connection("peer", stream, Newline(largest), sink, counters), counters


async def test_everything_is_delivered_in_order_and_consumed() -> None:
    stream, sink = FakeStream(b"one\ntw", b"o\nthree\n\n", b"\nfour"), FakeSink()
    connection, counters = connect(stream, sink)
    await connection.run()
    assert sink.records == [b"one", b"two", b"three", b"four"]
    assert stream.consumed == b"one\ntwo\nthree\n\n\nfour"
    assert (counters.records_received, counters.records_delivered, counters.records_in_flight) == (4, 4, 0)
    assert (counters.bytes_received, counters.bytes_delivered, counters.bytes_in_flight) == (15, 15, 0)
    assert counters.records_cut == {"eof": 1}


async def test_nothing_is_consumed_before_it_is_acknowledged() -> None:
    stream, sink = FakeStream(b"one\ntwo\n"), FakeSink()
    connection, counters = connect(stream, sink)
    sink.hold()
    running = asyncio.ensure_future(connection.run())
    await sink.was_given(2)
    assert stream.consumed == b""
    assert (counters.records_received, counters.records_delivered, counters.records_in_flight) == (2, 0, 2)
    sink.release()
    await running
    assert stream.consumed == b"one\ntwo\n"


async def test_nothing_is_read_while_the_sink_has_no_room() -> None:
    stream, sink = FakeStream(b"one\n"), FakeSink()
    sink.fill()
    connection, _ = connect(stream, sink)
    running = asyncio.ensure_future(connection.run())
    done, _ = await asyncio.wait({running}, timeout=0.02)
    assert not done
    assert stream.peeks == 0
    sink.fill(full=False)
    await running
    assert sink.records == [b"one"]


async def test_a_cancelled_delivery_consumes_nothing_and_stays_in_flight() -> None:
    stream, sink = FakeStream(b"one\n"), FakeSink()
    connection, counters = connect(stream, sink)
    sink.hold()
    running = asyncio.ensure_future(connection.run())
    await sink.was_given(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stream.consumed == b""
    assert (counters.records_received, counters.records_delivered, counters.records_in_flight) == (1, 0, 1)


async def test_long_records_are_cut_and_counted() -> None:
    stream, sink = FakeStream(b"0123456789\n", final="quiet"), FakeSink()
    connection, counters = connect(stream, sink, largest=4)
    await connection.run()
    assert sink.records == [b"0123", b"4567", b"89"]
    assert counters.records_cut == {"size": 2}


async def test_bytes_that_are_no_record_are_consumed() -> None:
    stream, sink = FakeStream(b"\n\n\n"), FakeSink()
    connection, counters = connect(stream, sink)
    await connection.run()
    assert stream.consumed == b"\n\n\n"
    assert sink.deliveries == []
    assert counters.records_received == 0


async def test_what_is_misframed_is_counted() -> None:
    stream, sink, counters = FakeStream(b"3 <1>0 <2>\n2 <3"), FakeSink(), Counters()
    await Connection("peer", stream, Detected(100), sink, counters).run()
    assert sink.records == [b"<1>", b"0 <2>", b"<3"]
    assert stream.consumed == b"3 <1>0 <2>\n2 <3"
    assert counters.records_misframed == 1


async def test_closing_lets_go_of_both() -> None:
    stream, sink = FakeStream(), FakeSink()
    connection, _ = connect(stream, sink)
    connection.close()
    assert stream.closed
    assert sink.closed == 1


async def test_a_bound_on_the_records_of_a_delivery() -> None:
    stream, sink, counters = FakeStream(b"1\n2\n3\n"), FakeSink(), Counters()
    await Connection("peer", stream, Newline(100, 2), sink, counters).run()
    assert sink.deliveries == [2, 1]
    assert stream.more == [True, False]


class Tracked(list[bytes]):
    """A list that can be seen to die."""


async def test_no_record_is_kept_while_it_waits_for_the_next() -> None:
    made: list[weakref.ref[Tracked]] = []

    class Framing:
        max_record_bytes = 100

        def split(self, data: bytes, *, final: bool = False) -> Split:
            records = Tracked([data])
            made.append(weakref.ref(records))
            return Split(records, len(data), len(data), 0, final, more=False)

    class Watching(FakeStream):
        async def readable(self) -> bool:
            assert all(records() is None for records in made)
            return await super().readable()

    await Connection("peer", Watching(b"one", b"two"), Framing(), FakeSink(), Counters()).run()
    assert len(made) == 2
