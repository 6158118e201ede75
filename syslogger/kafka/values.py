"""What a record becomes on its way: a value that is JSON, a key, and with a key the partition that the key says.

With `value = "raw"` and no key nothing here is used: see `Topic.sink`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from zoneinfo import ZoneInfo

from aiokafka.partitioner import murmur2

from syslogger.config import Kafka
from syslogger.messages import ENCODERS, Message, Parser, original

from .lane import Lane, Outlet

_CACHE_ENTRIES = 8192

_FIELDS: dict[str, Callable[[Message], str]] = {"hostname": attrgetter("hostname"), "appname": attrgetter("tag")}
"""Empty where a record has none: it then has no key."""


class Values:
    """How the records of one topic become values, with what they have in common remembered."""

    def __init__(self, settings: Kafka) -> None:
        self._parser = Parser(ZoneInfo(settings.zone))
        self._encode = ENCODERS.get(settings.value)
        self._field = _FIELDS.get(settings.key)
        self._of_peer = settings.key == "peer"
        self.keyed = settings.key != "none"
        self._hashes: dict[bytes, int] = {}

    def make(self, records: Sequence[bytes], peer: str) -> tuple[Sequence[bytes], Sequence[bytes]]:
        """Return each record's value, and each one's key; empty where it has none."""
        values, keys = records, [_host(peer) if self._of_peer else b""] * len(records)
        if self._encode or self._field:
            messages = self._parser.parse(records, time.time_ns() // 1_000_000, peer)
            if self._encode:
                values = list(map(self._encode, messages))
            if self._field:
                keys = list(map(original, map(self._field, messages)))
        return values, keys

    def hash(self, key: bytes) -> int:
        """Return what Kafka's own partitioner takes modulo the number of partitions."""
        known = self._hashes.get(key)
        if known is None:
            if len(self._hashes) >= _CACHE_ENTRIES:
                self._hashes.clear()
            known = self._hashes[key] = murmur2(key) & 0x7FFF_FFFF
        return known


class ValuesOutlet(Outlet):
    """The `Sink` of one connection whose records become other values; each goes the way of its key, if it has one.

    `lanes` returns the lanes of all partitions, in order. Records without a key go the connection's own way. The order
    of records with the same key is kept: a delivery is over when each lane has its part.
    """

    def __init__(self, lane: Lane, peer: str, values: Values, lanes: Callable[[], Sequence[Lane]]) -> None:
        super().__init__(lane, peer)
        self._values = values
        self._lanes = lanes

    def room(self) -> Awaitable[None] | None:
        """See `Sink`."""
        if not self._values.keyed:
            return super().room()
        return self._all_have_room() if self._full() else None

    def _full(self) -> Lane | None:
        """Return a lane that has no room."""
        return next((lane for lane in self._lanes() if not lane.has_room), None)

    async def _all_have_room(self) -> None:
        while lane := self._full():
            await lane.room()

    def deliver(self, records: Sequence[bytes], _size: int) -> asyncio.Future[None]:
        """See `Sink`."""
        values, keys = self._values.make(records, self._peer)
        if not self._values.keyed:
            return self.lane.deliver(values, sum(map(len, values)), self._peer)
        lanes, parts = self._lanes(), dict[Lane, tuple[list[bytes], list[bytes]]]()
        for value, key in zip(values, keys, strict=True):
            lane = lanes[self._values.hash(key) % len(lanes)] if key else self.lane
            part = parts.get(lane) or parts.setdefault(lane, ([], []))
            part[0].append(value)
            part[1].append(key)
        waits = [lane.deliver(of, sum(map(len, of)), self._peer, keyed) for lane, (of, keyed) in parts.items()]
        return waits[0] if len(waits) == 1 else _all(waits)


def _all(waits: list[asyncio.Future[None]]) -> asyncio.Future[None]:
    """Return what is done when all are. Cancelled, it cancels them."""
    done = asyncio.get_running_loop().create_future()
    missing = len(waits)

    def one_is_done(_wait: asyncio.Future[None]) -> None:
        nonlocal missing
        missing -= 1
        if not missing and not done.done():
            done.set_result(None)

    def cancel(_done: asyncio.Future[None]) -> None:
        if done.cancelled():
            for wait in waits:
                wait.cancel()

    for wait in waits:
        wait.add_done_callback(one_is_done)
    done.add_done_callback(cancel)
    return done


def _host(peer: str) -> bytes:
    """Return a peer without its port: what it has in common with its next connection."""
    return (peer if peer.startswith("unix:") else peer.rpartition(":")[0].strip("[]")).encode()
