"""One partition's group commit.

Deliveries gather while the partition's last batch is in flight, then leave as the next one. So there is at most one
batch in flight for a partition, which keeps its order, and what is not acknowledged is delivered again from the same
records.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NoReturn, Protocol

from aiokafka.producer.message_accumulator import BatchBuilder

from syslogger.config import Kafka
from syslogger.counters import Counters

from .producer import BATCH_BYTES, FAILURES, REFUSED, TOO_LARGE, Producer, append_keyed, append_records

ROOM_BYTES = 262_144
"""While more than this waits for the next batch of a partition nothing more is read: it bounds the process's memory."""

_FULL_BATCH_BYTES = 65_536
"""A batch of so much leaves without waiting for the pace."""

_EARLY_SECONDS = 0.001
"""So much sooner than the pace says a batch may leave: to wait for less is not worth a timer."""

BACKOFF_SECONDS = (0.2, 5.0)
"""The first pause between attempts and the longest; Kafka is to flow again within 5 s of its return."""


See = Callable[[Sequence[bytes], str], None]
"""Is shown the records of a delivery and their peer."""


class _Delivery:
    """One call of `Lane.deliver`."""

    __slots__ = ("begun", "done", "first", "keys", "peer", "records", "size")

    def __init__(
        self, records: Sequence[bytes], size: int, done: asyncio.Future[None], peer: str, keys: Sequence[bytes]
    ) -> None:
        self.records = records
        self.size = size
        self.done = done
        self.peer = peer
        self.keys = keys
        """Empty, or one for each record."""
        self.begun = False
        self.first = 0
        """Index of the first record that is not acknowledged."""


class Producers(Protocol):
    """What a lane asks of its topic."""

    settings: Kafka
    counters: Counters

    async def producer(self, *, other_than: Producer | None) -> Producer:
        """Return the producer to use, once there is one that is not `other_than`."""

    def give_up(self, producer: Producer) -> None:
        """Have another producer take the place of one that failed a batch: it is no good for its partition now."""

    def failed(self, producer: Producer, partition: int, error: BaseException) -> None:
        """Take note that a batch for `partition` failed, and give its producer up."""

    def heard(self, partition: int) -> None:
        """Take note that Kafka acknowledged a batch for `partition`."""

    def not_buried(self, producer: Producer, partition: int, topic: str, error: BaseException) -> None:
        """Take note that the dead-letter topic did not take a record, and give the producer up."""

    def buried(self, partition: int, topic: str, peer: str, size: int) -> None:
        """Take note that a record of so many bytes stands in the dead-letter topic."""


class Outlet:
    """The `Sink` of one connection: its way into a lane."""

    def __init__(self, lane: Lane, peer: str) -> None:
        self.lane = lane
        self._peer = peer
        lane.connections += 1

    def room(self) -> Awaitable[None] | None:
        """See `Sink`."""
        return None if self.lane.has_room else self.lane.room()

    def deliver(self, records: Sequence[bytes], size: int) -> asyncio.Future[None]:
        """See `Sink`."""
        return self.lane.deliver(records, size, self._peer)

    def close(self) -> None:
        """See `Sink`."""
        self.lane.connections -= 1


class Lane:
    """One partition's group commit, which the partition's connections share.

    Runs from `Topic.sink` until the topic is closed.
    """

    def __init__(self, topic: Producers, index: int) -> None:
        self.connections = 0
        self.delivered = 0
        """Records that were acknowledged in batches of its own."""
        self._topic = topic
        self._index = index
        self._counters = topic.counters
        self._loop = asyncio.get_running_loop()
        self._gathered: deque[_Delivery] = deque()
        self._waiting_bytes = 0
        """Bytes of gathered deliveries that have not begun."""
        self._has_room = True
        self._for_room: deque[asyncio.Future[None]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._wake_at_bytes = 0
        self._left_at = 0.0
        self._batch_bytes = BATCH_BYTES
        self._singly = 0
        """How many records are to be sent one by one, because one among them was refused."""

    @property
    def has_room(self) -> bool:
        """Whether nobody need wait for `room`."""
        return self._has_room and self._waiting_bytes < ROOM_BYTES and not self._for_room

    async def room(self) -> None:
        """See `Sink`. Who waits longest is served first."""
        turn: asyncio.Future[None] = self._loop.create_future()
        self._for_room.append(turn)
        try:
            await turn
        finally:
            # One at a time, so that each sees what the one before it has gathered.
            self._loop.call_soon(self._make_room)

    def _make_room(self) -> None:
        while self._has_room and self._waiting_bytes < ROOM_BYTES and self._for_room:
            turn = self._for_room.popleft()
            if not turn.done():  # done: who waited was cancelled
                turn.set_result(None)
                return

    def deliver(
        self, records: Sequence[bytes], size: int, peer: str, keys: Sequence[bytes] = ()
    ) -> asyncio.Future[None]:
        """See `Sink`. `peer` is where the records are from; `keys` are none, or each one's, which may be empty."""
        done = self._loop.create_future()
        self._gathered.append(_Delivery(records, size, done, peer, keys))
        self._waiting_bytes += size
        if self._wake and self._waiting_bytes >= self._wake_at_bytes:
            self._wake_now()
        return done

    def show(self, see: See | None) -> None:
        """Show every delivery to `see` from now on; None ends it.

        What shows takes the place of `deliver`: while nobody looks there is nothing to ask, and no cost.
        """
        self.__dict__.pop("deliver", None)
        if see:
            deliver = self.deliver

            def shown(records: Sequence[bytes], size: int, peer: str) -> asyncio.Future[None]:
                see(records, peer)
                return deliver(records, size, peer)

            self.__dict__["deliver"] = shown

    @property
    def waiting_bytes(self) -> int:
        """Bytes of deliveries that no batch has taken yet."""
        return self._waiting_bytes

    def shut(self) -> None:
        """Have no room any more. What was given is still delivered."""
        self._has_room = False

    async def run(self) -> NoReturn:
        """Send batch after batch, each when the one before it is acknowledged."""
        while True:
            await self._paced()
            started = self._loop.time()
            self._left_at = started
            ends = await self._send()
            self._counters.delivery_seconds.observe(self._loop.time() - started)
            self._acknowledged(*ends)

    async def _paced(self) -> None:
        """Wait until there is a batch to send and its time has come."""
        while not self._gathered:
            await self._gather(at_least=1, until=None)
        due = self._left_at + self._topic.settings.commit_interval_seconds
        if self._bytes() < _FULL_BATCH_BYTES and due - _EARLY_SECONDS > self._loop.time():
            await self._gather(at_least=_FULL_BATCH_BYTES, until=due)

    def _bytes(self) -> int:
        return self._waiting_bytes + sum(one.size for one in self._gathered if one.begun)

    async def _gather(self, at_least: int, until: float | None) -> None:
        self._wake = self._loop.create_future()
        self._wake_at_bytes = at_least
        timer = self._loop.call_at(until, self._wake_now) if until else None
        try:
            await self._wake
        finally:
            self._wake = None
            if timer:
                timer.cancel()

    def _wake_now(self) -> None:
        if self._wake and not self._wake.done():
            self._wake.set_result(None)

    async def _send(self) -> tuple[int, int]:
        """Return when the next batch is acknowledged: how many deliveries it ended, and where it left the next one.

        Retries for ever. A batch is made anew for each attempt, from the same records in the same order.
        """
        topic, producer, waits = self._topic, None, pauses()
        while True:
            producer = await topic.producer(other_than=producer)
            partitions = producer.partitions
            partition = partitions[self._index % len(partitions)] if partitions else self._index
            batch = producer.create_batch(1 if self._singly else self._batch_bytes)
            ends = self._fill(batch)
            batch.close()
            count, size = batch.record_count(), batch.size()
            if not count:
                return ends  # who gave them has gone
            try:
                await producer.append(batch, partition)
            except FAILURES as error:
                self._counters.batch_failures[type(error).__name__] += 1
                topic.failed(producer, partition, error)
                if isinstance(error, REFUSED) and count == 1:
                    self._singly = max(self._singly - 1, 0)
                    await self._bury(producer, partition, error)
                    return ends
                self._counters.records_redelivered += count
                if isinstance(error, TOO_LARGE):
                    self._batch_bytes = min(size, self._batch_bytes) // 2
                elif isinstance(error, REFUSED):
                    self._singly = count
                await asyncio.sleep(next(waits))
            else:
                self._singly = max(self._singly - count, 0)
                self.delivered += count
                self._counters.batches += 1
                self._counters.batch_records.observe(count)
                self._counters.batch_bytes.observe(size)
                topic.heard(partition)
                return ends

    async def _bury(self, producer: Producer, partition: int, error: BaseException) -> None:
        """Return when the next record, which Kafka refused, is acknowledged in the dead-letter topic.

        It goes there whole or, if it is too large there too, in pieces. Headers say why, from where and when.
        """
        settings, delivery = self._topic.settings, self._gathered[0]
        reason = type(error).__name__.removesuffix("Error")
        topic = settings.dead_letters
        headers = [
            ("syslogger.reason", reason.encode()),
            ("syslogger.topic", settings.topic.encode()),
            ("syslogger.partition", b"%d" % partition),
            ("syslogger.peer", delivery.peer.encode()),
            ("syslogger.time", datetime.now(UTC).isoformat(timespec="milliseconds").encode()),
        ]
        pieces, waits = [delivery.records[delivery.first]], pauses()
        key = delivery.keys[delivery.first] if delivery.keys else b""
        buried, refused_by = 0, producer
        while buried < len(pieces):
            current = await self._topic.producer(other_than=refused_by)
            place = ("syslogger.piece", b"%d/%d" % (buried + 1, len(pieces)))
            try:
                await current.append_one(topic, pieces[buried], [*headers, place], key)
            except TOO_LARGE:
                # Those before it are there already; who puts them together finds these instead of the one.
                half = (len(pieces[buried]) + 1) // 2
                pieces[buried : buried + 1] = [pieces[buried][:half], pieces[buried][half:]]
                self._topic.give_up(current)
                refused_by = current
            except FAILURES as failure:
                self._topic.not_buried(current, partition, topic, failure)
                refused_by = current
                await asyncio.sleep(next(waits))
            else:
                buried += 1
        self._counters.records_dead_lettered[reason] += 1
        self._topic.buried(partition, topic, delivery.peer, len(delivery.records[delivery.first]))

    def _fill(self, batch: BatchBuilder) -> tuple[int, int]:
        """Append what fits to `batch`; return how many deliveries fit whole, and how much of the next one."""
        for withdrawn in [one for one in self._gathered if one.done.cancelled() and not one.begun]:
            self._gathered.remove(withdrawn)
            self._waiting_bytes -= withdrawn.size
        timestamp = int(time.time() * 1000)
        for ended, delivery in enumerate(self._gathered):
            if not delivery.begun:
                delivery.begun = True
                self._waiting_bytes -= delivery.size
            records = delivery.records[delivery.first :] if delivery.first else delivery.records
            if delivery.keys:
                appended = append_keyed(batch, records, delivery.keys[delivery.first :], timestamp)
            else:
                appended = append_records(batch, records, timestamp)
            if appended < len(records):
                self._make_room()
                return ended, delivery.first + appended
        self._make_room()
        return len(self._gathered), 0

    def _acknowledged(self, ended: int, rest: int) -> None:
        for _ in range(ended):
            delivery = self._gathered.popleft()
            if not delivery.done.done():
                delivery.done.set_result(None)
        if rest:
            self._gathered[0].first = rest


def pauses() -> Iterator[float]:
    """Yield how long to wait before each attempt after the first, in seconds."""
    pause, longest = BACKOFF_SECONDS
    while True:
        yield pause
        pause = min(pause * 2, longest)
