"""Peek and consume: what a connection reads from, while the kernel keeps the bytes (recv(2), tcp(7), epoll(7)).

A stream's life is a loop of four calls, made from one task::

    while await stream.readable():
        data = stream.peek()
        stream.consume(used)    # at most len(data)
    stream.close()

Peeked bytes stay in the kernel until they are consumed: a process that dies in between has lost nothing. TLS cannot do
that, and keeps them itself (`tls.py`).
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from termios import FIONREAD
from typing import Protocol, Self

_QUIET_SECONDS = 1.0
"""A peer that was told to end and has been silent for so long, with nothing of its own pending, has ended.

It must outlast a round trip. An idle rsyslog answers a half-close only when it next has something to send."""

_RETRANSMISSION_SECONDS = 0.2
"""The shortest time after which a sender's kernel sends again what was not acknowledged (Linux's TCP_RTO_MIN)."""

_SO_MEMINFO, _MEMINFO = 55, struct.Struct("9I")
"""Linux, asm-generic/socket.h; the nine values are in linux/sock_diag.h."""

_BUSY_BYTES = 65_536
"""A peer that sent so much since the last peek is looked at again at once: it has gone on meanwhile."""

_FEW_STREAMS = 25
"""While fewer peers than that send in a pace, the pace is twice as long: a delivery costs the same with few records."""

_UNFINISHED_PEEK_SECONDS = 0.005
"""How far apart the peeks at one unfinished record are: a peer that drips costs at most 200 a second."""

_UNREAD_SECONDS = 30.0
"""A peer that takes none of what it is sent for so long will not. librelp reads before each message that it sends."""

_EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_HANGUP = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Stream(Protocol):
    """A peer's bytes in order, each shown until it is consumed."""

    sock: socket.socket
    transferable: bool
    """Whether another process that is given the socket can go on where this one is."""

    final: str
    """Why nothing will join the bytes last peeked: ``eof``, ``reset``, ``quiet``, ``urgent``; empty while more may."""
    ended: str
    """Why the stream ended: ``eof``, ``reset``, ``timeout``, ``quiet``, ``error``, ``unread``, ``handshake``; empty
    while it has not.

    A connection may say why it ended the stream."""
    when_gone: Callable[[str], None]
    """Called with ``eof`` or ``reset`` as soon as the peer has ended, though bytes of it may be left; maybe again.

    Set when that has been, it is called at once."""

    async def readable(self) -> bool:
        """Wait until a peek may show more than the last one did; False once all is consumed and the peer has ended."""

    def peek(self) -> bytes:
        """Return every byte that is there and not consumed; empty when there is none after all."""

    def consume(self, size: int, *, more: bool = False) -> None:
        """Take the first `size` of the bytes last peeked off the stream.

        `more` says that the rest is worth another look as it is; else the next one waits for bytes to join it.
        """

    async def write(self, data: bytes) -> bool:
        """Return True when the kernel has all of `data`, or False when the peer takes no more: the stream has ended.

        Cancelled with a part of `data` written it ends the stream, too (``unread``).
        """

    def half_close(self) -> None:
        """Tell the peer to end. What it sends until then is still read; silence counts as its end."""

    def unconsumed(self) -> int:
        """How many bytes are there and not consumed."""

    def close(self) -> None:
        """End the connection. What is not consumed is lost."""

    def release(self) -> socket.socket:
        """Let go of the connection without ending it; return its socket."""


def unread(sock: socket.socket) -> int:
    """Return how many bytes a socket holds that nobody has consumed."""
    return int(struct.unpack("i", ioctl(sock.fileno(), FIONREAD, b"\0\0\0\0"))[0])


def _memory(sock: socket.socket) -> tuple[int, ...]:
    """Return what the kernel accounts for a socket: what is received takes, its receive buffer, and seven more.

    The last is how many segments were dropped, most for want of room in the receive buffer. The window counts bytes,
    the buffer what each segment takes in memory: many small ones overfill it before the window closes. The sender's
    kernel then backs off, and says nothing for up to twice as long when there is room again.
    """
    return _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))


def largest_receive_buffer() -> int:
    """Return the most that the kernel grants a socket, as it counts: twice `net.core.rmem_max`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**30)
        return probe.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


def _nobody_asked(_why: str) -> None:
    """Do nothing."""


class Poller:
    """One edge-triggered epoll for all streams, itself watched by one `add_reader`.

    Adding and removing a reader for each message costs 34 µs a message at 1,000 connections; this 11.

    Whoever comes after a silence is noticed at once, and from then on everybody every `pace_seconds`, until nobody has
    come: what many peers send meanwhile costs one turn of the loop. A paced sink would only gather it itself.
    """

    def __init__(self, largest_read_bytes: int, pace_seconds: float = 0.0) -> None:
        self._epoll = select.epoll()
        self._streams: dict[int, SocketStream] = {}
        self._loop = asyncio.get_running_loop()
        self._pace_seconds = pace_seconds
        self._next: asyncio.TimerHandle | None = None
        self.largest_buffer = largest_receive_buffer()
        # A new buffer for each read would be mapped and faulted in anew: 264 µs for 450 kB, against 29.
        self.scratch = memoryview(bytearray(largest_read_bytes))

    def __enter__(self) -> Self:
        self._loop.add_reader(self._epoll.fileno(), self._begin)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._next:
            self._next.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def watch(self, fd: int, stream: SocketStream) -> None:
        """Tell `stream` of every edge on `fd` from now on, beginning with how it stands."""
        self._streams[fd] = stream
        self._epoll.register(fd, _EVENTS)

    def watch_writing(self, fd: int, *, wanted: bool) -> None:
        """Tell its stream from now on (or no more) when `fd` can be written to, beginning with how it stands."""
        self._epoll.modify(fd, _EVENTS | select.EPOLLOUT if wanted else _EVENTS)

    def forget(self, fd: int) -> None:
        """Stop watching `fd`, which is still open."""
        self._epoll.unregister(fd)
        del self._streams[fd]

    def _begin(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._sweep()

    def _sweep(self) -> None:
        streams = self._streams
        found = self._epoll.poll(0)
        for fd, events in found:
            # An earlier event of this sweep cannot have closed the stream: it only wakes tasks.
            streams[fd].notice(events)
        if found:
            pace = self._pace_seconds if len(found) >= _FEW_STREAMS else 2 * self._pace_seconds
            self._next = self._loop.call_later(pace, self._sweep)
        else:
            self._next = None
            self._loop.add_reader(self._epoll.fileno(), self._begin)


class SocketStream:
    """What streams over a socket have in common: the waiting, for bytes, for room and for the end.

    The socket becomes non-blocking, and the stream's own. What a stream peeks and takes, it says itself.
    """

    transferable: bool

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        sock.setblocking(False)
        # Without it the urgent byte is taken out of the stream.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self.final = ""
        self.ended = ""
        self._when_gone: Callable[[str], None] = _nobody_asked
        self._gone = ""
        """``eof`` or ``reset`` as soon as the peer has ended."""
        self.sock = sock
        self._poller = poller
        self._scratch = poller.scratch
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._more = False
        """Whether a peek may show more than the last one did."""
        self._last = ""
        """Set when the peer has ended, and nothing is on its way any more. Becomes `final`, then `ended`."""
        self._quiet = False
        self._left = 0
        """How many of the bytes last peeked are not consumed."""
        self._not_before = 0.0
        # A process that was killed may have left another.
        self._looked_at = self._loop.time()
        self._dropped = 0
        self._patient_until = 0.0
        """Until then the peer's kernel may wait before it sends again what ours had no room for; 0 if ours had."""
        self._held = 0
        """How many bytes were there when that was set and are not consumed; what comes behind them was sent again."""
        poller.watch(sock.fileno(), self)

    @property
    def when_gone(self) -> Callable[[str], None]:
        """See `Stream`."""
        return self._when_gone

    @when_gone.setter
    def when_gone(self, call: Callable[[str], None]) -> None:
        self._when_gone = call
        if self._gone:
            call(self._gone)

    def notice(self, events: int) -> None:
        """Take note of what epoll saw."""
        self._more = True
        if events != select.EPOLLIN:
            self._heed(events)
        self._wake()

    def _heed(self, events: int) -> None:
        """Take note of what is not just more to read."""
        if events & _HANGUP:
            self._has_gone("reset" if events & select.EPOLLERR else "eof")
        # Not for EPOLLRDHUP: such a peer may still read.
        if events & _WRITABLE and self._writer and not self._writer.done():
            self._writer.set_result(None)

    def _has_gone(self, why: str) -> None:
        self._gone = why
        self._when_gone(why)

    async def readable(self) -> bool:
        """See `Stream`."""
        if self._last and self.final == self._last and not self._left:
            self.ended = self._last
        if self.ended:
            return False
        if self.final and self._left:
            return True
        if self._not_before and (pause := self._not_before - self._loop.time()) > 0:
            await asyncio.sleep(pause)
        if not self._more:
            self._prepare_wait()
            await self._wait()
        self._looked_at = self._loop.time()
        return True

    def _prepare_wait(self) -> None:
        """Do what is to be done before a wait."""

    async def _wait(self) -> None:
        """Wait for an edge; after a half-close, only so long."""
        while not self._more:
            self._waiter = self._loop.create_future()
            quiet_at = max(self._loop.time(), self._patient_until) + _QUIET_SECONDS
            timer = self._loop.call_at(quiet_at, self._fall_quiet) if self._quiet else None
            try:
                await self._waiter
            finally:
                self._waiter = None
                if timer:
                    timer.cancel()
        # What comes is what was sent again first: bytes arrive in order.
        self._patient_until = 0.0

    def _fall_quiet(self) -> None:
        self._last = self._last or "quiet"
        self._more = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def consume(self, size: int, *, more: bool = False) -> None:
        """See `Stream`."""
        self._left -= size
        self._more = self._more or more or size >= _BUSY_BYTES
        if self._patient_until:
            self._held -= size
            if self._held < 0:
                self._patient_until = 0.0
        now = self._loop.time()
        stalled = now - self._looked_at
        if stalled > _RETRANSMISSION_SECONDS and (dropped := _memory(self.sock)[8]) != self._dropped:
            self._dropped = dropped
            # Each wait before the next attempt is twice the last one: at most as long as all before (RFC 6298, 5.5).
            self._patient_until = now + stalled
            self._held = self.unconsumed() - size
        if size:
            self._not_before = 0.0
            self._take(size)
        elif self._left:
            self._look_again_later()

    def _look_again_later(self) -> None:
        self._not_before = self._loop.time() + _UNFINISHED_PEEK_SECONDS

    def _take(self, size: int) -> None:
        """Take the first `size` of the bytes last peeked off the stream."""
        raise NotImplementedError

    def unconsumed(self) -> int:
        """See `Stream`."""
        raise NotImplementedError

    async def write(self, data: bytes) -> bool:
        """See `Stream`."""
        rest = memoryview(data)
        try:
            while rest and not self.ended:
                try:
                    rest = rest[self.sock.send(rest) :]
                except BlockingIOError:
                    await self._writable()
                except OSError:
                    self.ended = "reset"
        finally:
            if 0 < len(rest) < len(data):
                self.ended = self.ended or "unread"
        return not rest

    async def _writable(self) -> None:
        """Wait until the kernel takes more; end the stream if the peer does not make it."""
        fd = self.sock.fileno()
        self._writer = self._loop.create_future()
        self._poller.watch_writing(fd, wanted=True)
        timer = self._loop.call_later(_UNREAD_SECONDS, self._give_up_writing)
        try:
            await self._writer
        finally:
            self._writer = None
            self._poller.watch_writing(fd, wanted=False)
            timer.cancel()

    def _give_up_writing(self) -> None:
        self.ended = self.ended or "unread"
        if self._writer and not self._writer.done():
            self._writer.set_result(None)

    def half_close(self) -> None:
        """See `Stream`."""
        self._quiet = True
        # A peer that has reset the connection is told nothing.
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self._wake()

    def close(self) -> None:
        """See `Stream`."""
        sock = self.release()
        # A duplicate that somebody keeps must not keep the connection.
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()

    def release(self) -> socket.socket:
        """See `Stream`."""
        self._poller.forget(self.sock.fileno())
        return self.sock


def why_ended(error: OSError) -> str:
    """Return the cause, as in `Stream.ended`, for what reading from a socket raised."""
    if isinstance(error, ConnectionResetError):
        return "reset"
    return "timeout" if isinstance(error, TimeoutError) else "error"


class PlainStream(SocketStream):
    """A `Stream` that the kernel holds: what is peeked is taken only when it is consumed."""

    transferable = True

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        self._urgent = False
        self._raised_from = 0
        """The receive buffer as it was before it was raised, as the kernel counts it; 0 while it is not."""
        self._low_water = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        super().__init__(sock, poller)

    def _heed(self, events: int) -> None:
        if events & select.EPOLLPRI:
            self._urgent = True
        super()._heed(events)

    def _has_gone(self, why: str) -> None:
        # All that it sent is in the kernel.
        self._last = why
        super()._has_gone(why)

    def _prepare_wait(self) -> None:
        """Have no edge until there is more than what is left."""
        if self._left:
            self._keep_open()
        if self._low_water != self._left + 1:
            # The kernel looks at once whether the new mark is reached, so no edge is missed (tcp_set_rcvlowat).
            self._low_water = self._left + 1
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, self._low_water)

    def _keep_open(self) -> None:
        """Raise the receive buffer if an unfinished record fills it.

        The few bytes of a record that are left can be the end of a piece of memory that is as large as the buffer: the
        kernel frees it when all of it is consumed. The window would stay closed, and the record unfinished, for ever.
        """
        allocated, granted = _memory(self.sock)[:2]
        if allocated > granted // 2 and not self._raised_from and granted < self._poller.largest_buffer:
            self._raised_from = granted
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(granted, self._poller.largest_buffer // 2))
            # The window is looked at, and told to the peer, when something is read.
            self.sock.recv_into(self._scratch, 1, socket.MSG_PEEK)

    def peek(self) -> bytes:
        """See `Stream`."""
        last = self._last
        try:
            # Asked before the peek, so that only an urgent mark can make the peek show less.
            waiting = self.unconsumed() if self._urgent else 0
            size = self.sock.recv_into(self._scratch, 0, socket.MSG_PEEK)
        except BlockingIOError:
            self._more = False
            if last:
                self.ended = last
            return b""
        except OSError as error:
            self.ended = why_ended(error)
            return b""
        if not size:
            self.ended = "eof"
            return b""
        whole = size < len(self._scratch)
        self._more = not whole
        self.final = ""
        if size < min(waiting, len(self._scratch)):
            self.final = "urgent"
            self._more = True
        elif last == "quiet" and size > self._left:
            self._last = ""
        elif last and whole:
            self.final = last
        self._left = size
        return bytes(self._scratch[:size])

    def _take(self, size: int) -> None:
        if self._raised_from:
            # Before the window opens, or the peer would fill what was raised, with nothing left to raise.
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._raised_from // 2)
            self._raised_from = 0
        # MSG_TRUNC drops the bytes without copying them; recv_into still wants room for them.
        self.sock.recv_into(self._scratch, size, socket.MSG_TRUNC)

    def unconsumed(self) -> int:
        """See `Stream`."""
        return unread(self.sock)

    def release(self) -> socket.socket:
        """See `Stream`."""
        if self._low_water != 1:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return super().release()
