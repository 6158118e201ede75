"""The topic that records go to: its lanes, and a producer that works.

aiokafka's producer cannot be trusted to live for ever: a failed batch leaves an idempotent producer's sequence numbers
wrong for good (aiokafka #1017), it never asks the bootstrap servers again, its tasks can die and its `stop` can hang
(#1101). `Topic` builds a new one whenever that is the way on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import Any, NoReturn, Self

import aiokafka
import aiokafka.errors as kafka_errors

from syslogger.brokers import Brokers
from syslogger.config import Kafka
from syslogger.counters import Counters

from .diagnosis import listed, named, why_not, why_stuck
from .lane import BACKOFF_SECONDS, Lane, Outlet, See, pauses
from .producer import FAILURES, Owed, Producer, ProducerLostError, build, client_settings, stop
from .values import Values, ValuesOutlet

_log = logging.getLogger(__name__)

_MOVED_SECONDS = 1.0
"""A batch that is out for so long after the brokers' addresses changed is waiting for the wrong brokers."""

_CLUSTER = -1
"""Where a problem is that is not one partition's."""

_STALLED = "nothing is acknowledged"

_SETTLE_SECONDS = 1.0
"""How long a producer that was replaced may take for the batches of partitions that are well."""

_FIRST_ANSWER_SECONDS = 1.0
"""How long ZooKeeper may take to answer before it is worth a line."""

_GRACE_SECONDS = 3.0
"""How long a stalled producer may still recover by itself once Kafka answers: it alone can avoid duplicates."""


class Topic:
    """The topic that records go to: its lanes, and the producer that serves them.

    Used as ``async with``. Entering does not wait for Kafka; `answered` does. Leaving gives up what
    is in flight, so the connections end first.
    """

    def __init__(self, settings: Kafka, brokers: Brokers, counters: Counters) -> None:
        self.settings = settings
        self.counters = counters
        self._problems = {_CLUSTER: "Kafka was not asked yet"}
        """What is wrong now, of the cluster or of a partition by its number, in words, with what to do about it."""
        self._brokers = brokers
        self._client = client_settings(settings)
        plain = settings.value == "raw" and settings.key == "none"
        self._values = None if plain else Values(settings)
        self._troubled_since = 0.0
        self._producer: Producer | None = None
        self._unfit: Producer | None = None
        """The producer that failed a batch, until another takes its place."""
        self._changed = asyncio.Event()
        self._addresses = brokers.addresses
        self._addresses_since = 0.0
        self._tried = 0.0
        self._lanes: dict[int, Lane] = {}
        self._see: See | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._troubled_since = asyncio.get_running_loop().time()
        self._own(self._supervise())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        # 1. The lanes and the supervisor; they hold nothing that Kafka was promised.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # 2. The producer they used.
        if self._producer:
            await self._producer.discard()

    def _own(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._trouble(_CLUSTER, f"a fault in syslogger: {error!r}")
            _log.critical("A task of the delivery died by a fault in syslogger; please report it.", exc_info=error)

    @property
    def problem(self) -> str:
        """What is wrong now and since when, with what to do about it; empty when every partition is acknowledged."""
        if not self._problems:
            return ""
        seconds = asyncio.get_running_loop().time() - self._troubled_since
        return f"{next(iter(self._problems.values()))}, {seconds:.0f} s"

    @property
    def has_answered(self) -> bool:
        """Whether Kafka has answered for the topic."""
        return self._producer is not None

    async def answered(self) -> None:
        """Wait until Kafka has answered for the topic."""
        await self.producer(other_than=None)

    def sink(self, peer: str) -> Outlet:
        """Return a way into the lane with the fewest connections. Kafka must have `answered`."""
        lane = min(self._all_lanes(), key=lambda lane: lane.connections)
        return ValuesOutlet(lane, peer, self._values, self._all_lanes) if self._values else Outlet(lane, peer)

    def _all_lanes(self) -> list[Lane]:
        """Return a lane for each partition, in order."""
        count = len(self._producer.partitions) if self._producer else 0
        for index in range(count or 1):
            if index not in self._lanes:
                self._lanes[index] = Lane(self, index)
                self._lanes[index].show(self._see)
                self._own(self._lanes[index].run())
        return list(self._lanes.values())

    def show(self, see: See | None) -> None:
        """Show the records of every delivery, and their peer, to `see` from now on; None ends it."""
        self._see = see
        for lane in self._lanes.values():
            lane.show(see)

    def status(self) -> dict[str, Any]:
        """Return what can be said of the topic, its partitions and the brokers, in plain values; waits for nothing."""
        producer, now = self._producer, asyncio.get_running_loop().time()
        partitions = producer.partitions if producer else []
        unanswered = producer.unanswered() if producer else {}
        led = Counter(producer.leader(partition) for partition in partitions) if producer else Counter[str]()
        lanes = dict(zip(partitions, (self._lanes.get(index) for index in range(len(partitions))), strict=True))
        return {
            "topic": self.settings.topic,
            "partitions": [
                {
                    "partition": partition,
                    "leader": producer.leader(partition) if producer else "",
                    "connections": lane.connections if lane else 0,
                    "delivered": lane.delivered if lane else 0,
                    "waiting_bytes": lane.waiting_bytes if lane else 0,
                    "unanswered_seconds": now - unanswered[partition] if partition in unanswered else 0.0,
                    "problem": self._problems.get(partition, ""),
                }
                for partition, lane in lanes.items()
            ],
            "brokers": [
                {"address": address, "leads": led[address]} for address in sorted(producer.brokers if producer else ())
            ],
        }

    async def finish(self, seconds: float) -> bool:
        """Take nothing more; return whether everything given was acknowledged within so many seconds."""
        for lane in self._lanes.values():
            lane.shut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.counters.records_in_flight:  # noqa: ASYNC110 - once in a process's life
                    await asyncio.sleep(0.005)
        return not self.counters.records_in_flight

    async def producer(self, *, other_than: Producer | None) -> Producer:
        """Return the producer to use, once there is one that is not `other_than`."""
        while not self._producer or self._producer is other_than:
            self._changed.clear()
            await self._changed.wait()
        return self._producer

    def give_up(self, producer: Producer) -> None:
        """Have another producer take the place of one that failed a batch: it is no good for its partition now."""
        if producer is self._producer:
            self._unfit = producer

    def failed(self, producer: Producer, partition: int, error: BaseException) -> None:
        """Take note that a batch for `partition` failed, and give its producer up."""
        self.give_up(producer)
        if not isinstance(error, ProducerLostError):
            what = "A batch for partition %d of topic %s failed: %s"
            self._complain(partition, what, partition, self.settings.topic, named(error, self.settings))

    def not_buried(self, producer: Producer, partition: int, topic: str, error: BaseException) -> None:
        """Take note that the dead-letter topic did not take a record, and give the producer up."""
        self.give_up(producer)
        what = "A record that Kafka refused cannot be written to the dead-letter topic %s: %s"
        self._complain(partition, what, topic, named(error, self.settings, topic))

    def buried(self, partition: int, topic: str, peer: str, size: int) -> None:
        """Take note that a record of so many bytes stands in the dead-letter topic."""
        _log.warning("A record of %d bytes from %s, which Kafka refused, is in the topic %s.", size, peer, topic)
        self.heard(partition)

    def heard(self, partition: int) -> None:
        """Take note that Kafka acknowledged a batch for `partition`."""
        if self._problems and (partition in self._problems or _CLUSTER in self._problems):
            self._problems.pop(partition, None)
            self._problems.pop(_CLUSTER, None)
            # Another outage is another story, told from its beginning.
            _log.info("Kafka acknowledges again for partition %d.", partition, extra={"anew": True})

    def _trouble(self, where: int, problem: str) -> None:
        if not self._problems:
            self._troubled_since = asyncio.get_running_loop().time()
        self._problems[where] = problem

    def _complain(self, where: int, what: str, *args: object) -> None:
        self._trouble(where, what % args)
        # The template tells one complaint from another, so that repeats are summed up.
        _log.warning(what + ". Nothing is lost: what is not acknowledged is delivered again.", *args)

    async def _supervise(self) -> NoReturn:
        """Keep a producer that works in place."""
        waits = pauses()
        while True:
            reason = await self._needed()
            if await self._replace(reason):
                waits = pauses()
            await asyncio.sleep(next(waits))

    async def _needed(self) -> str:
        """Wait until another producer is needed; return why."""
        loop = asyncio.get_running_loop()
        while (old := self._producer) is not None:
            self.counters.brokers_known = len(old.brokers)
            if old is self._unfit:
                return "a batch failed"
            if old.dead:
                return "its tasks died"
            if self._is_homeless(old):
                return "the brokers have other addresses"
            owed, now = old.oldest(), loop.time()
            patience = self.settings.request_timeout_seconds
            if self._brokers.addresses != self._addresses:
                self._addresses, self._addresses_since = self._brokers.addresses, now
            if now - self._addresses_since < 2 * patience and self._addresses != old.bootstrap:
                patience = _MOVED_SECONDS
            if owed and now - max(owed.since, self._tried) > patience:
                self._tried = now
                return _STALLED
            await asyncio.sleep(0.25)
        return "the first"

    def _is_homeless(self, producer: Producer) -> bool:
        """Whether none of the brokers that a producer knows is where brokers are now; it never asks again."""
        addresses = self._brokers.addresses
        return addresses != producer.bootstrap and producer.brokers.isdisjoint(addresses)

    async def _replace(self, reason: str) -> bool:
        """Try to put a new producer in the old one's place; return whether it is there."""
        old = self._producer
        owed = old.oldest() if old and reason == _STALLED else None
        new = await self._start()
        if not new:
            return False
        try:
            if not (owed and await self._recovers(new, owed)):
                self._put(new)
        finally:
            if self._producer is not new:
                await new.discard()
        if old and old is not self._producer:
            self.counters.producer_rebuilds += 1
            _log.warning("A new Kafka producer takes over: %s. Nothing is lost.", reason)
            self._own(self._retire(old))
        return True

    def _put(self, new: Producer) -> None:
        self._producer = new
        self._unfit = None
        self._problems.pop(_CLUSTER, None)
        self.counters.brokers_known = len(new.brokers)
        self._changed.set()

    async def _recovers(self, new: Producer, owed: Owed) -> bool:
        """Whether a stalled batch is answered within `_GRACE_SECONDS` although `new` is there; if not, say why."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS):
                while not owed.answer.done():
                    if self._producer and self._is_homeless(self._producer):
                        return False
                    await asyncio.sleep(0.1)
                return True
        waited = asyncio.get_running_loop().time() - owed.since
        what = "Nothing was acknowledged for partition %d of topic %s for %.0f s: %s"
        why = await why_stuck(self.settings, self._brokers.addresses, owed.partition, new.leader(owed.partition))
        self._complain(owed.partition, what, owed.partition, self.settings.topic, waited, why)
        return False

    async def _retire(self, old: Producer) -> None:
        """Stop a producer that was replaced, when the batches that are well under way have had their time."""
        if not self._is_homeless(old):
            await old.settle(_SETTLE_SECONDS)
        await old.discard()

    async def _start(self) -> Producer | None:
        """Start a producer and ask for the topic; on failure say why and return None."""
        addresses = self._brokers.addresses
        if not addresses:
            addresses = await self._addresses_within(_FIRST_ANSWER_SECONDS)
        if not addresses:
            problem = self._brokers.problem or f"no broker's address is known yet from {self._brokers.source}"
            self._trouble(_CLUSTER, problem)
            _log.warning("Waiting for Kafka: %s.", problem)
            addresses = await self._addresses_within(BACKOFF_SECONDS[1])
            if not addresses:
                return None
        inner = build(self.settings, self._client, addresses)
        try:
            async with asyncio.timeout(self.settings.request_timeout_seconds * 2):
                await inner.start()
                await self._ask(inner)
        except FAILURES as error:
            await stop(inner)
            await self._explain(addresses, error)
            return None
        except asyncio.CancelledError:
            await stop(inner)
            raise
        return Producer(inner, addresses, self.settings.topic)

    async def _addresses_within(self, seconds: float) -> tuple[str, ...]:
        """Wait so long for the brokers' addresses; return them, or nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._brokers.changed(())
        return ()

    async def _ask(self, producer: aiokafka.AIOKafkaProducer) -> None:
        """Ask for the topic, for a second at least: a broker may be just creating it."""
        topic, cluster = self.settings.topic, producer.client.cluster
        producer.client.set_topics([topic])
        for _ in range(10):
            await producer.client.force_metadata_update()
            if cluster.partitions_for_topic(topic):
                return
            if topic in cluster.unauthorized_topics:
                raise kafka_errors.TopicAuthorizationFailedError(topic)
            await asyncio.sleep(0.1)
        raise kafka_errors.UnknownTopicOrPartitionError(topic)

    async def _explain(self, addresses: tuple[str, ...], error: BaseException) -> None:
        """Say why no producer could be started."""
        if isinstance(error, kafka_errors.KafkaConnectionError | OSError | TimeoutError):
            # What aiokafka raises here does not tell a refused connection from a wrong password.
            why = await why_not(self.settings, addresses)
        else:
            why = f"refuses: {named(error, self.settings)}"
        self._complain(_CLUSTER, "Kafka at %s (from %s) %s", listed(addresses), self._brokers.source, why)
