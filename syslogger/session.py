"""A peer that is answered: peek, split, deliver, answer, consume."""

from __future__ import annotations

import asyncio
import logging

from .connection import Connection
from .counters import Counters
from .framing import Framing, Split
from .framing.relp import SERVERCLOSE, took_leave
from .sink import Sink
from .streams import Stream

_log = logging.getLogger(__name__)


class Session(Connection):
    """The loop of a connection whose peer sends again what was not answered (RELP).

    Nothing is answered that the sink has not acknowledged. So nothing is owed to a peer that has gone: what the sink
    has not begun with is let go, or it would come twice. Only a peer that took leave before it went is delivered to the
    end, for it does not come back.
    """

    def __init__(self, peer: str, stream: Stream, framing: Framing, sink: Sink, counters: Counters) -> None:
        super().__init__(peer, stream, framing, sink, counters)
        self.resends = True
        self._gone = ""
        """Why the peer will not read another answer; empty while it may."""
        self._leaving = False
        self._answering = False
        """Whether records are with the sink that are not answered."""
        self._wait: asyncio.Timeout | None = None
        """What everything is awaited in: it is made to expire when there is nothing left to wait for."""
        stream.when_gone = self._peer_has_gone

    def end(self) -> None:
        """Tell the peer that the session ends, once what is with the sink is answered."""
        self._leaving = True
        if not self._answering:
            self._interrupt()

    def _peer_has_gone(self, why: str) -> None:
        self._gone = why
        self._interrupt()

    def _interrupt(self) -> None:
        if self._wait and not self._wait.expired():
            self._wait.reschedule(asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Return when the session has ended, the stream's `ended` saying why."""
        stream = self.stream
        while not (self._gone or self._leaving or stream.ended):
            try:
                async with asyncio.timeout(None) as self._wait:
                    if await stream.readable():
                        if room := self._sink.room():
                            await room
                        await self._forward()
            except TimeoutError:
                pass  # one of the three is set
            finally:
                self._wait = None
                self._answering = False
        if self._gone:
            await self._deliver_the_rest()
            stream.ended = stream.ended or self._gone
        elif not stream.ended and await stream.write(SERVERCLOSE):
            stream.ended = "serverclose"

    async def _forward(self) -> None:
        stream = self.stream
        data = stream.peek()
        split = self._framing.split(data)
        self._answering = True
        self.resends = split.ends != "close"
        if split.records:
            await self._deliver(split)
        if split.replies and not await stream.write(split.replies):
            return
        stream.consume(split.used, more=split.more)
        ends = split.ends
        # Nothing joins what stands before an urgent mark, and RELP has no use for one; nor, maybe, what a unix socket's
        # peer has no room to go on with.
        if stream.final in {"urgent", "stalled"} and split.used < len(data) and not split.more:
            ends = "malformed"
        if ends:
            stream.ended = ends
        if ends == "too_long":
            _log.error(
                "%s sent a RELP frame longer than twice max_record_bytes. It is not taken, the session is closed, and "
                "whatever its sender has behind it waits: raise max_record_bytes, or lower the sender's limit.",
                self.peer,
            )
        elif ends == "malformed":
            _log.warning("%s sent what is no RELP frame; the session is closed. What it was is not taken.", self.peer)
        self._answering = False

    async def _deliver_the_rest(self) -> None:
        """Deliver what a peer sent that took leave before it went."""
        stream = self.stream
        if not took_leave(stream.peek()):
            return
        self.resends = False
        split = self._framing.split(stream.peek())
        while split.records:
            if room := self._sink.room():
                await room
            await self._deliver(split)
            stream.consume(split.used, more=split.more)
            split = self._framing.split(stream.peek())

    async def _deliver(self, split: Split) -> None:
        counters, count = self._counters, len(split.records)
        try:
            await super()._deliver(split)
        except asyncio.CancelledError:
            if self._gone:
                counters.records_in_flight -= count
                counters.bytes_in_flight -= split.size
                counters.records_withdrawn += count
                counters.bytes_withdrawn += split.size
            raise
