"""One peer: peek, split, deliver, consume."""

from __future__ import annotations

import socket

from .counters import Counters
from .framing import Framing, Split
from .sink import Sink
from .streams import Stream


class Connection:
    """The loop between a stream and a sink.

    Nothing is consumed that the sink has not acknowledged, so at every instant each byte is in the kernel or in the
    sink. At most one delivery is outstanding.
    """

    def __init__(self, peer: str, stream: Stream, framing: Framing, sink: Sink, counters: Counters) -> None:
        self.peer = peer
        self.stream = stream
        self.resends = False
        """Whether the peer sends again, on another connection, what was not consumed."""
        self._framing = framing
        self._sink = sink
        self._counters = counters

    async def run(self) -> None:
        """Return when the peer has ended and everything it sent is in the sink."""
        while await self.stream.readable():
            if room := self._sink.room():
                await room
            await self._forward()

    async def _forward(self) -> None:
        """Take what is there from the stream to the sink; no record outlives the call, however long the next wait."""
        stream = self.stream
        split = self._framing.split(stream.peek(), final=bool(stream.final))
        if split.records:
            await self._deliver(split)
        stream.consume(split.used, more=split.more)

    def end(self) -> None:
        """Tell the peer to end; what it sends until then is still delivered."""
        self.stream.half_close()

    def close(self) -> None:
        """End the peer's connection and let go of the sink."""
        self.stream.close()
        self._sink.close()

    def release(self) -> socket.socket:
        """Let go of both and leave the peer's connection as it is; return its socket."""
        self._sink.close()
        return self.stream.release()

    async def _deliver(self, split: Split) -> None:
        counters, count = self._counters, len(split.records)
        counters.records_received += count
        counters.bytes_received += split.size
        counters.records_in_flight += count
        counters.bytes_in_flight += split.size
        if split.cuts:
            counters.records_cut["size"] += split.cuts
        if split.fragment:
            counters.records_cut[self.stream.final] += 1
        counters.records_misframed += split.misframed
        await self._sink.deliver(split.records, split.size)
        counters.records_in_flight -= count
        counters.bytes_in_flight -= split.size
        counters.records_delivered += count
        counters.bytes_delivered += split.size
