"""Sessions over real sockets, with a sink made by hand: what is answered, when, and what is let go."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syslogger import streams
from syslogger.admission import Admission, Networks
from syslogger.counters import Counters
from syslogger.framing.relp import SERVERCLOSE, Relp
from syslogger.listener import Connections, Terms, name
from syslogger.session import Session
from syslogger.streams import Poller
from tests.fakes import FakeManager, FakeSink
from tests.waiting import until

OFFER = b"1 open 14 relp_version=0\n"


class House:
    """The sessions of one process over one sink."""

    def __init__(self, poller: Poller) -> None:
        self.sink = FakeSink()
        self.counters = Counters()
        self.manager = FakeManager()
        self.connections = Connections(100, lambda _peer: self.sink, poller, self.manager, self.counters)
        self.terms = Terms(Relp(1000))

    def connect(self, *, small: bool = False) -> socket.socket:
        """Return a peer's end of a new session; where it is `small`, few answers fit into the kernels' buffers."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            # As a listener has it. With less, the rest of one long segment could keep the window shut.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
            peer = socket.socket()
            if small:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
            peer.connect(server.getsockname())
            accepted, address = server.accept()
        if small:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        peer.settimeout(10)
        self.connections.accept(accepted, address, self.terms)
        return peer

    def check_sums(self) -> None:
        now = self.counters
        assert now.records_received == now.records_delivered + now.records_in_flight + now.records_withdrawn
        assert now.bytes_received == now.bytes_delivered + now.bytes_in_flight + now.bytes_withdrawn

    async def ended(self, **causes: int) -> None:
        await until(lambda: self.counters.connections_open == 0)
        assert self.counters.connections_ended == causes
        self.check_sums()


@pytest.fixture
async def poller() -> AsyncIterator[Poller]:
    with Poller(262_144) as poller:
        yield poller


@pytest.fixture
async def house(poller: Poller) -> AsyncIterator[House]:
    house = House(poller)
    yield house
    house.sink.release()
    await house.connections.cut_off()


def message(number: int, text: bytes) -> bytes:
    return b"%d syslog %d %s\n" % (number, len(text), text)


def ok(*numbers: int) -> bytes:
    return b"".join(b"%d rsp 6 200 OK\n" % number for number in numbers)


async def heard(peer: socket.socket, size: int) -> bytes:
    """Wait until the peer has been told so many bytes (or the end)."""
    got = b""
    while len(got) < size and (data := await asyncio.to_thread(peer.recv, size - len(got))):
        got += data
    return got


async def end(peer: socket.socket) -> bytes:
    """Wait until the peer's connection is at its end; return what it was told until then."""
    got = b""
    try:
        while data := await asyncio.to_thread(peer.recv, 65_536):
            got += data
    except ConnectionResetError:
        pass
    return got


def told_nothing(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1, socket.MSG_PEEK) == b"?"
    except BlockingIOError:
        return True
    finally:
        peer.settimeout(10)


async def test_a_session_from_open_to_close(house: House) -> None:
    with house.connect() as peer:
        peer.sendall(OFFER)
        offered = await heard(peer, 20)
        assert offered.startswith(b"1 rsp ")
        offered += await heard(peer, int(offered.split(b" ")[2]) + len(b"1 rsp 67 \n") - 20)
        assert offered.endswith(b"commands=syslog\n")
        peer.sendall(message(2, b"one") + message(3, b"two") + b"4 close 0\n")
        assert await end(peer) == ok(2, 3, 4) + SERVERCLOSE
    assert house.sink.records == [b"one", b"two"]
    await house.ended(close=1)


async def test_nothing_is_answered_before_it_is_acknowledged(house: House) -> None:
    house.sink.hold()
    with house.connect() as peer:
        peer.sendall(message(1, b"one") + message(2, b"two"))
        await house.sink.was_given(2)
        await asyncio.sleep(0.05)
        assert told_nothing(peer)
        house.sink.release()
        assert await heard(peer, len(ok(1, 2))) == ok(1, 2)
    await house.ended(eof=1)


async def test_a_window_is_one_delivery_answered_in_order(house: House) -> None:
    with house.connect() as peer:
        house.sink.hold()
        peer.sendall(message(999_999_000, b"first"))
        await house.sink.was_given(1)
        peer.sendall(b"".join(message(number, b"x" * 100) for number in range(1, 1001)))
        house.sink.release()
        expected = ok(999_999_000, *range(1, 1001))
        assert await heard(peer, len(expected)) == expected
    assert house.sink.deliveries == [1, 1000]


async def test_what_the_sink_has_when_the_peer_goes_is_let_go(house: House) -> None:
    house.sink.hold()
    with house.connect() as peer:
        peer.sendall(message(1, b"one") + message(2, b"two"))
        await house.sink.was_given(2)
        peer.sendall(message(3, b"three"))
    await house.ended(eof=1)
    assert (house.counters.records_withdrawn, house.counters.bytes_withdrawn) == (2, 6)
    assert (house.counters.records_in_flight, house.counters.bytes_in_flight) == (0, 0)
    house.sink.release()
    await asyncio.sleep(0)
    assert house.sink.records == []


async def test_a_reset_is_the_same(house: House) -> None:
    house.sink.hold()
    with house.connect() as peer:
        peer.sendall(message(1, b"one"))
        await house.sink.was_given(1)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await house.ended(reset=1)
    assert house.counters.records_withdrawn == 1


async def test_a_session_that_waits_for_room_is_let_go_with_its_peer(house: House) -> None:
    house.sink.fill()
    with house.connect() as peer:
        peer.sendall(message(1, b"one"))
        await until(lambda: house.counters.connections_open == 1)
        await asyncio.sleep(0.02)
    await house.ended(eof=1)
    assert house.sink.given == []


async def test_who_took_leave_does_not_come_back_and_is_delivered(house: House) -> None:
    house.sink.hold()
    with house.connect() as peer:
        peer.sendall(message(1, b"one"))
        await house.sink.was_given(1)
        peer.sendall(message(2, b"two") + b"3 close 0\n")
    await house.sink.was_given(3)
    assert house.counters.records_withdrawn == 1, "what it had was let go, and given again"
    house.sink.release()
    await house.ended(eof=1)
    assert house.sink.records == [b"one", b"two"]


async def test_a_stop_answers_what_is_delivered_and_takes_no_more(house: House) -> None:
    house.sink.hold()
    with house.connect() as peer:
        peer.sendall(message(1, b"one"))
        await house.sink.was_given(1)
        peer.sendall(message(2, b"two"))
        house.connections.half_close()
        await asyncio.sleep(0.02)
        assert told_nothing(peer)
        house.sink.release()
        assert await end(peer) == ok(1) + SERVERCLOSE
    assert house.sink.given == [b"one"]
    await house.ended(serverclose=1)


async def test_a_stop_ends_idle_sessions_and_those_without_room_at_once(house: House) -> None:
    with house.connect() as idle:
        await until(lambda: house.counters.connections_open == 1)
        house.sink.fill()
        with house.connect() as stuck:
            stuck.sendall(message(1, b"one"))
            await asyncio.sleep(0.02)
            house.connections.half_close()
            with house.connect() as late:
                for peer in (idle, stuck, late):
                    assert await end(peer) == SERVERCLOSE
    await house.ended(serverclose=3)


async def test_at_the_deadline_of_a_stop_nothing_of_it_is_lost(house: House) -> None:
    house.sink.hold()
    with house.connect() as peer, house.connect() as leaving:
        peer.sendall(message(1, b"one"))
        leaving.sendall(message(1, b"two") + b"2 close 0\n")
        await house.sink.was_given(2)
        house.connections.half_close()
        lost = await house.connections.cut_off()
        assert lost == [(name(leaving.getsockname()), len(message(1, b"two") + b"2 close 0\n"))], (
            "whoever took leave does not send again"
        )
        assert await end(peer) == b""


@pytest.mark.parametrize(
    ("bad", "cause", "said"),
    [
        (b"<13>no RELP at all\n", "malformed", "no RELP frame"),
        (b"2 syslog 3 abcd\n", "malformed", "no RELP frame"),
        (b"2 syslog 1990 ", "too_long", "max_record_bytes"),
    ],
)
async def test_a_fault_ends_the_session_after_the_answers(
    house: House, bad: bytes, cause: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with house.connect() as peer:
        peer.sendall(message(1, b"one") + bad + message(3, b"three"))
        assert await end(peer) == ok(1)
    assert house.sink.records == [b"one"]
    assert said in caplog.text
    await house.ended(**{cause: 1})


async def test_urgent_data_in_a_frame_ends_the_session(house: House) -> None:
    with house.connect() as peer:
        peer.sendall(message(1, b"one") + b"2 syslog 30 ab")
        assert await heard(peer, len(ok(1))) == ok(1)
        peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"more")
        assert await end(peer) == b""
    await house.ended(malformed=1)


async def test_unfinished_frames_wait(house: House) -> None:
    with house.connect() as peer:
        for byte in message(1, b"one"):
            peer.sendall(bytes([byte]))
            await asyncio.sleep(0.001)
        assert await heard(peer, len(ok(1))) == ok(1)


async def test_a_peer_that_reads_late_gets_every_answer(house: House) -> None:
    """More than both kernels' buffers hold."""
    count = 20_000
    sent = b"".join(message(number, b"x") for number in range(1, count + 1))
    expected = ok(*range(1, count + 1))
    with house.connect(small=True) as peer:
        sending = asyncio.ensure_future(asyncio.to_thread(peer.sendall, sent))
        await asyncio.sleep(0.2)
        assert await heard(peer, len(expected)) == expected
        await sending
    await house.ended(eof=1)
    assert house.counters.records_delivered == count


def say_much(peer: socket.socket) -> None:
    """Send what has more answers than the kernels hold; perhaps until the connection breaks."""
    with contextlib.suppress(OSError):
        peer.sendall(b"".join(message(number, b"x") for number in range(100_000)))


async def test_a_peer_that_never_reads_is_dropped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_UNREAD_SECONDS", 0.05)
    with house.connect(small=True) as peer:
        await asyncio.to_thread(say_much, peer)
        await house.ended(unread=1)
        assert house.counters.records_delivered > 0


async def test_a_session_is_handed_over_and_answered_by_the_next(house: House, poller: Poller) -> None:
    following = House(poller)
    house.sink.hold()
    with house.connect() as peer:
        peer.sendall(message(1, b"one") + b"2 syslog 3 t")
        await house.sink.was_given(1)
        (sock,) = await house.connections.release()
        assert house.counters.connections_ended == {"handover": 1}
        following.connections.adopt(sock, following.terms)
        peer.sendall(b"wo\n")
        assert await heard(peer, len(ok(1, 2))) == ok(1, 2)
    assert house.sink.records == []
    assert following.sink.records == [b"one", b"two"]
    await following.ended(eof=1)


async def test_a_session_of_age_is_told_so_and_answered_first(house: House) -> None:
    house.terms = house.terms._replace(admission=Admission(max_age_seconds=0.05))
    with house.connect() as peer:
        peer.sendall(message(1, b"one"))
        assert await end(peer) == ok(1) + SERVERCLOSE
    await house.ended(age=1)


PROXY = b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 20514\r\n"


async def test_a_session_behind_a_proxy_is_named_and_not_kept(house: House, poller: Poller) -> None:
    house.terms = house.terms._replace(admission=Admission(proxies=Networks(["127.0.0.0/8"])))
    following = House(poller)
    following.manager = following.connections._manager = house.manager
    with house.connect() as peer:
        peer.sendall(PROXY + message(1, b"one"))
        assert await heard(peer, len(ok(1))) == ok(1)
        assert not house.manager.kept
        (sock,) = await house.connections.release()
        following.connections.adopt(sock, following.terms)
        assert [guest.peer for guest in following.connections._open.values()] == ["192.0.2.1:4711"]
    await following.ended(eof=1)


async def test_a_peer_that_has_gone_before_its_proxy_header_was_read_is_let_go(house: House) -> None:
    house.terms = house.terms._replace(admission=Admission(proxies=Networks(["127.0.0.0/8"])))
    with house.connect() as unfinished:
        unfinished.sendall(PROXY + b"1 syslog 3 on")
    with house.connect() as leaving:
        leaving.sendall(PROXY + message(1, b"one") + b"2 close 0\n")
    await house.ended(eof=2)
    assert house.sink.records == [b"one"]


async def test_a_stop_before_the_proxy_header_gives_a_session_no_life(house: House) -> None:
    house.terms = house.terms._replace(admission=Admission(proxies=Networks(["127.0.0.0/8"])))
    with house.connect() as peer:
        house.connections.half_close()
        peer.sendall(PROXY + message(1, b"one"))
        assert await end(peer) == b""
    await house.ended(reset=1)
    assert house.sink.records == [], "it is sent again"


async def test_half_an_answer_is_not_handed_over(house: House) -> None:
    """The next process would begin it anew, and the peer read the number of another message."""
    with house.connect(small=True) as peer:
        sending = asyncio.ensure_future(asyncio.to_thread(say_much, peer))
        (guest,) = house.connections._open.values()
        await until(lambda: guest.stream._writer)
        assert await house.connections.release() == []
        await sending
    assert house.counters.connections_ended == {"unread": 1}


async def test_nobody_keeps_a_session_beyond_a_kill(house: House) -> None:
    with house.connect() as peer:
        peer.sendall(message(1, b"one"))
        await heard(peer, len(ok(1)))
        assert house.manager.kept == set()
    await house.ended(eof=1)


class FakeStream:
    """A peer that sent `data`, of which each peek shows a little more, and then went (or not)."""

    def __init__(self, data: bytes, step: int, gone: str) -> None:
        self.sock = socket.socket()
        self.final = ""
        self.ended = ""
        self.when_gone = lambda _why: None
        self.told = b""
        self._data, self._step, self._shown, self._gone = data, step, 0, gone

    async def readable(self) -> bool:
        await asyncio.sleep(0)
        if self._shown >= len(self._data):
            self.ended = "eof"
            self.when_gone(self._gone or "eof")
        return not self.ended

    def peek(self) -> bytes:
        self._shown += self._step
        return self._data[: self._shown]

    def consume(self, size: int, *, more: bool = False) -> None:
        self._data = self._data[size:]
        self._shown -= size
        if more:
            self._shown = max(self._shown - self._step, 0)

    async def write(self, data: bytes) -> bool:
        self.told += data
        return True


FRAMES = st.one_of(
    st.builds(message, st.integers(0, 1_000_000_000), st.binary(max_size=60)),
    st.builds(message, st.integers(0, 100), st.binary(max_size=60)),
    st.sampled_from([OFFER, b"3 close 0\n", b"4 rsp 6 200 OK\n", b"0 serverclose 0\n", b"5 syslog 0\n"]),
    st.sampled_from([b"1 syslog 3 abcd", b"1 syslog 99999999 ", b"1 syslog", b"\n", b"500 ", b"1 SYSLOG 1 a\n"]),
    st.binary(max_size=10),
)


@settings(deadline=None)
@given(st.lists(FRAMES, max_size=12).map(b"".join), st.integers(1, 100), st.sampled_from(["", "eof", "reset"]))
def test_whatever_a_peer_says_it_is_told_of_no_message_that_is_not_stored(data: bytes, step: int, gone: str) -> None:
    async def speak() -> tuple[FakeStream, FakeSink, Counters]:
        stream, sink, counters = FakeStream(data, step, gone), FakeSink(), Counters()
        with stream.sock:
            async with asyncio.timeout(10):
                await Session("peer", stream, Relp(64), sink, counters).run()
        return stream, sink, counters

    stream, sink, counters = asyncio.run(speak())
    assert stream.ended in {"eof", "reset", "close", "malformed", "too_long"}
    assert counters.records_received == counters.records_delivered == len(sink.records)
    # One answer for each frame, in order; each message that was answered with 200 is stored.
    frames = re.findall(rb"(\d+) rsp (\d+) (200|500)", stream.told)
    numbers, stored = [], b"".join(sink.records)
    at = 0
    for number in (number for number, size, code in frames if code == b"200" and size == b"6"):
        found = re.compile(rb"(?<![0-9])%s (syslog|close) (\d+)(?: |(?=\n))" % number).search(data, at)
        assert found, "an answer to nothing"
        at = found.end() + int(found[2])
        if found[1] == b"syslog":
            numbers.append(data[found.end() : at])
    assert b"".join(numbers) == stored
