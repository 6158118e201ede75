"""A sink that is a Kafka topic: group commit, and the supervision of aiokafka's producer.

Each partition has a `Lane`, where the deliveries of its connections gather while its last batch is
in flight, then leave as the next one. So there is at most one batch in flight for a partition, which
keeps its order, and what is not acknowledged is delivered again from the same records.

aiokafka's producer cannot be trusted to live for ever: a failed batch leaves an idempotent producer's
sequence numbers wrong for good (aiokafka #1017), it never asks the bootstrap servers again, its tasks
can die and its `stop` can hang (#1101). `Topic` builds a new one whenever that is the way on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NoReturn, Self

import aiokafka
import aiokafka.errors as kafka_errors
from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.admin import DescribeConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from .brokers import Brokers
from .config import Kafka
from .counters import Counters
from .errors import ConfigError

_log = logging.getLogger(__name__)

_BATCH_BYTES = 524_288
"""The largest batch, before compression, of more than one record; brokers allow 1,048,588 (`message.max.bytes`)."""

_ROOM_BYTES = 262_144
"""While more than this waits for the next batch of a partition nothing more is read: it bounds the process's memory."""

_FULL_BATCH_BYTES = 65_536
"""A batch of so much leaves without waiting for the pace."""

_MOVED_SECONDS = 1.0
"""A batch that is out for so long after the brokers' addresses changed is waiting for the wrong brokers."""

_GRACE_SECONDS = 3.0
"""How long a stalled producer may still recover by itself once Kafka answers: it alone can avoid duplicates."""

_STOP_SECONDS = 2.0
"""How long a producer may take to stop; with Kafka down it would take for ever."""

_BACKOFF_SECONDS = (0.2, 5.0)
"""The first pause between attempts and the longest; Kafka is to flow again within 5 s of its return."""

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)


class ProducerLostError(Exception):
    """The producer was given up with this batch in flight; the batch may or may not have been written."""


_FAILURES = (kafka_errors.KafkaError, OSError, TimeoutError, AssertionError, ProducerLostError)
"""What aiokafka raises when a batch or a start fails. AssertionError is its word for an unknown partition."""


@dataclass(slots=True)
class _Delivery:
    """One call of `Lane.deliver`."""

    records: Sequence[bytes]
    size: int
    done: asyncio.Future[None]
    begun: bool = False
    first: int = 0
    """Index of the first record that is not acknowledged."""


class _Producer:
    """An aiokafka producer that was started, and the acknowledgements it owes."""

    def __init__(self, inner: aiokafka.AIOKafkaProducer, bootstrap: tuple[str, ...], topic: str) -> None:
        self.inner = inner
        self.bootstrap = bootstrap
        self.acknowledged = 0
        """Batches acknowledged so far: whether it makes progress."""
        self._topic = topic
        self._owed: dict[asyncio.Future[None], float] = {}

    @property
    def partitions(self) -> list[int]:
        """The topic's partitions as last heard of, in order."""
        return sorted(self.inner.client.cluster.partitions_for_topic(self._topic) or ())

    @property
    def brokers(self) -> frozenset[str]:
        """The addresses of the cluster's brokers as last heard of, ``host:port``."""
        brokers = self.inner.client.cluster.brokers()
        return frozenset(f"[{b.host}]:{b.port}" if ":" in b.host else f"{b.host}:{b.port}" for b in brokers)

    @property
    def dead(self) -> bool:
        """Whether one of aiokafka's own tasks has ended, after which nothing is delivered any more (#907, #1133)."""
        tasks = (self.inner._sender.sender_task, self.inner.client._sync_task)  # noqa: SLF001 - no public way
        return any(task is None or task.done() for task in tasks)

    def waiting_since(self) -> float | None:
        """When the batch that is out longest was submitted (loop time); None if none is out."""
        return next(iter(self._owed.values()), None)

    def create_batch(self, most_bytes: int) -> BatchBuilder:
        """Return an empty batch that takes records up to a size in bytes, before compression; one at least."""
        accumulator = self.inner._message_accumulator  # noqa: SLF001 - create_batch() has one size for all
        return BatchBuilder(most_bytes, accumulator._compression_type)  # noqa: SLF001

    async def append(self, batch: BatchBuilder, partition: int) -> None:
        """Return when the batch is acknowledged. Raises a Kafka error, or `ProducerLostError`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        self._owed[answer] = loop.time()
        submitted = loop.create_task(self._submit(batch, partition, answer))
        try:
            await answer
            self.acknowledged += 1
        finally:
            del self._owed[answer]
            submitted.cancel()

    async def _submit(self, batch: BatchBuilder, partition: int, answer: asyncio.Future[None]) -> None:
        try:
            # Both awaits can last as long as Kafka is away.
            acknowledged = await self.inner.send_batch(batch, self._topic, partition=partition)
            await acknowledged
        except _FAILURES as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(None)

    def owes_nothing(self) -> bool:
        """Whether every batch was answered."""
        return not self._owed

    async def settle(self, seconds: float) -> None:
        """Wait until the batches that are out now are answered, but not longer than `seconds`."""
        if self._owed:
            await asyncio.wait(set(self._owed), timeout=seconds)

    async def discard(self) -> None:
        """Stop it within a bounded time, then fail what it still owes."""
        await _stop(self.inner)
        for answer in self._owed:
            if not answer.done():
                answer.set_exception(ProducerLostError("its producer was given up"))


async def _stop(producer: aiokafka.AIOKafkaProducer) -> None:
    """Stop a producer, whatever state it is in, in a bounded time. Nothing of it is left."""
    with contextlib.suppress(kafka_errors.KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(_STOP_SECONDS):
            await producer.stop()
            return
    # What `stop` leaves behind when it does not come to an end; closed connections fail what waits for them.
    with contextlib.suppress(kafka_errors.KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(_STOP_SECONDS):
            await producer.client.close()
    sender = producer._sender.sender_task  # noqa: SLF001 - no public way
    if sender and not sender.done():
        # It waits for its requests when it is cancelled; a second time cancels those.
        for _ in range(2):
            sender.cancel()
            await asyncio.wait({sender}, timeout=_STOP_SECONDS / 2)


class Lane:
    """One partition's group commit: a `Sink` that the partition's connections share.

    Runs from `Topic.sink` until the topic is closed.
    """

    def __init__(self, topic: Topic, index: int) -> None:
        self.connections = 0
        self._topic = topic
        self._index = index
        self._counters = topic.counters
        self._loop = asyncio.get_running_loop()
        self._gathered: deque[_Delivery] = deque()
        self._waiting_bytes = 0
        """Bytes of gathered deliveries that have not begun."""
        self._for_room: deque[asyncio.Future[None]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._wake_at_bytes = 0
        self._left_at = 0.0
        self._batch_bytes = _BATCH_BYTES

    async def room(self) -> None:
        """See `Sink`. Who waits longest is served first."""
        if self._waiting_bytes < _ROOM_BYTES and not self._for_room:
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._for_room.append(turn)
        try:
            await turn
        finally:
            # One at a time, so that each sees what the one before it has gathered.
            self._loop.call_soon(self._make_room)

    def _make_room(self) -> None:
        while self._waiting_bytes < _ROOM_BYTES and self._for_room:
            turn = self._for_room.popleft()
            if not turn.done():  # done: who waited was cancelled
                turn.set_result(None)
                return

    async def deliver(self, records: Sequence[bytes], size: int) -> None:
        """See `Sink`."""
        delivery = _Delivery(records, size, self._loop.create_future())
        self._gathered.append(delivery)
        self._waiting_bytes += size
        if self._wake and self._waiting_bytes >= self._wake_at_bytes and not self._wake.done():
            self._wake.set_result(None)
        try:
            await delivery.done
        except asyncio.CancelledError:
            if not delivery.begun:
                self._gathered.remove(delivery)
                self._waiting_bytes -= size
                self._make_room()
            raise

    def close(self) -> None:
        """See `Sink`."""
        self.connections -= 1

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
        if self._bytes() < _FULL_BATCH_BYTES and due > self._loop.time():
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
        topic, producer, pauses = self._topic, None, _pauses()
        while True:
            producer = await topic.producer(other_than=producer)
            partitions = producer.partitions
            partition = partitions[self._index % len(partitions)] if partitions else self._index
            batch = producer.create_batch(self._batch_bytes)
            ends = self._fill(batch)
            batch.close()
            count, size = batch.record_count(), batch.size()
            try:
                await producer.append(batch, partition)
            except _FAILURES as error:
                self._counters.batch_failures[type(error).__name__] += 1
                self._counters.records_redelivered += count
                if isinstance(error, _TOO_LARGE) and count > 1:
                    self._batch_bytes = min(size, self._batch_bytes) // 2
                topic.failed(producer, partition, error)
                await asyncio.sleep(next(pauses))
            else:
                self._counters.batches += 1
                self._counters.batch_records.observe(count)
                self._counters.batch_bytes.observe(size)
                topic.heard()
                return ends

    def _fill(self, batch: BatchBuilder) -> tuple[int, int]:
        """Append what fits to `batch`; return how many deliveries fit whole, and how much of the next one."""
        timestamp = int(time.time() * 1000)
        for ended, delivery in enumerate(self._gathered):
            if not delivery.begun:
                delivery.begun = True
                self._waiting_bytes -= delivery.size
            records = delivery.records[delivery.first :] if delivery.first else delivery.records
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


def append_records(batch: BatchBuilder, records: Sequence[bytes], timestamp: int) -> int:
    """Append records until one does not fit the batch's size; return how many did.

    `timestamp` is in milliseconds since 1970. The first record of a batch always fits. What is
    appended is byte for byte what `BatchBuilder.append` makes, at 84 ns a record instead of 216:
    it calls the compiled builder inside, as aiokafka 0.14 has it.
    """
    before = offset = batch._relative_offset  # noqa: SLF001 - see the docstring
    append, no_headers = batch._builder.append, []  # type: ignore[var-annotated]  # noqa: SLF001
    for record in records:
        if append(offset, timestamp, None, record, no_headers) is None:
            break
        offset += 1
    batch._relative_offset = offset  # noqa: SLF001
    return int(offset - before)


def _pauses() -> Iterator[float]:
    pause, longest = _BACKOFF_SECONDS
    while True:
        yield pause
        pause = min(pause * 2, longest)


class Topic:
    """The topic that records go to: its lanes, and the producer that serves them.

    Used as ``async with``. Entering does not wait for Kafka; `answered` does. Leaving gives up what
    is in flight, so the connections end first.
    """

    def __init__(self, settings: Kafka, brokers: Brokers, counters: Counters) -> None:
        self.settings = settings
        self.counters = counters
        self.problem = "Kafka was not asked yet"
        """What is wrong now, in words, with what to do about it; empty when Kafka acknowledges."""
        self._brokers = brokers
        self._ssl_context = _ssl_context(settings)
        self._producer: _Producer | None = None
        self._unfit: _Producer | None = None
        """The producer that failed a batch, until another takes its place."""
        self._changed = asyncio.Event()
        self._addresses = brokers.addresses
        self._addresses_since = 0.0
        self._lanes: dict[int, Lane] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
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
            self.problem = f"a fault in syslogger: {error!r}"
            _log.critical("A task of the delivery died by a fault in syslogger; please report it.", exc_info=error)

    async def answered(self) -> None:
        """Wait until Kafka has answered for the topic."""
        await self.producer(other_than=None)

    def sink(self) -> Lane:
        """Return the lane with the fewest connections, for one more. Kafka must have `answered`."""
        partitions = self._producer.partitions if self._producer else []
        for index in range(len(partitions) or 1):
            if index not in self._lanes:
                self._lanes[index] = Lane(self, index)
                self._own(self._lanes[index].run())
        lane = min(self._lanes.values(), key=lambda lane: lane.connections)
        lane.connections += 1
        return lane

    async def producer(self, *, other_than: _Producer | None) -> _Producer:
        """Return the producer to use, once there is one that is not `other_than`."""
        while not self._producer or self._producer is other_than:
            self._changed.clear()
            await self._changed.wait()
        return self._producer

    def failed(self, producer: _Producer, partition: int, error: BaseException) -> None:
        """Take note that a batch for `partition` failed: its producer is not to be used for it again."""
        if producer is self._producer:
            self._unfit = producer
        if not isinstance(error, ProducerLostError):
            topic = self.settings.topic
            self._complain(error, "A batch for partition %d of topic %s failed: %s", partition, topic, _name(error))

    def heard(self) -> None:
        """Take note that Kafka acknowledged a batch."""
        if self.problem:
            _log.info("Kafka acknowledges again.")
            self.problem = ""

    def _complain(self, error: BaseException | None, what: str, *args: object) -> None:
        advice = _advice(error, self.settings)
        self.problem = what % args + (f"; {advice}" if advice else "")
        # The template stays what tells one complaint from another, so that repeats are summed up.
        template = what + "%s. Nothing is lost: what is not acknowledged is delivered again."
        _log.warning(template, *args, f"; {advice}" if advice else "")

    async def _supervise(self) -> NoReturn:
        """Keep a producer that works in place."""
        pauses = _pauses()
        while True:
            reason = await self._needed()
            if await self._replace(reason):
                pauses = _pauses()
            await asyncio.sleep(next(pauses))

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
            since, now = old.waiting_since(), loop.time()
            patience = self.settings.request_timeout_seconds
            if self._brokers.addresses != self._addresses:
                self._addresses, self._addresses_since = self._brokers.addresses, now
            if now - self._addresses_since < 2 * patience and self._addresses != old.bootstrap:
                patience = _MOVED_SECONDS
            if since and now - since > patience:
                self.problem = f"Kafka at {_list(self._addresses)} has acknowledged nothing for {now - since:.0f} s"
                return "nothing is acknowledged"
            await asyncio.sleep(0.25)
        return "the first"

    def _is_homeless(self, producer: _Producer) -> bool:
        """Whether none of the brokers that a producer knows is where brokers are now; it never asks again."""
        addresses = self._brokers.addresses
        return addresses != producer.bootstrap and producer.brokers.isdisjoint(addresses)

    async def _replace(self, reason: str) -> bool:
        """Try to put a new producer in the old one's place; return whether it is there."""
        old = self._producer
        new = await self._start()
        if not new:
            return False
        try:
            if not (old and reason == "nothing is acknowledged" and await self._recovers(old)):
                self._put(new)
        finally:
            if self._producer is not new:
                await new.discard()
        if old and old is not self._producer:
            self.counters.producer_rebuilds += 1
            _log.warning("A new Kafka producer takes over: %s. Nothing is lost.", reason)
            self._own(self._retire(old, patient=reason == "a batch failed"))
        return True

    def _put(self, new: _Producer) -> None:
        self._producer = new
        self._unfit = None
        self.problem = ""
        self.counters.brokers_known = len(new.brokers)
        self._changed.set()

    async def _recovers(self, producer: _Producer) -> bool:
        """Whether a stalled producer makes progress again within `_GRACE_SECONDS`."""
        before = producer.acknowledged
        for _ in range(int(_GRACE_SECONDS / 0.1)):
            if self._is_homeless(producer):
                return False
            if producer.acknowledged > before or producer.owes_nothing():
                return True
            await asyncio.sleep(0.1)
        return False

    async def _retire(self, old: _Producer, *, patient: bool) -> None:
        """Stop a producer that was replaced; if `patient`, when other partitions' batches have had their time."""
        if patient and (since := old.waiting_since()):
            until = since + self.settings.request_timeout_seconds
            await old.settle(until - asyncio.get_running_loop().time())
        await old.discard()

    async def _start(self) -> _Producer | None:
        """Start a producer and ask for the topic; on failure say why and return None."""
        addresses = self._brokers.addresses
        if not addresses:
            self.problem = self._brokers.problem or f"no broker's address is known yet from {self._brokers.source}"
            _log.warning("Waiting for Kafka: %s.", self.problem)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BACKOFF_SECONDS[1]):
                    addresses = await self._brokers.changed(())
            if not addresses:
                return None
        inner = self._build(addresses)
        try:
            async with asyncio.timeout(self.settings.request_timeout_seconds * 2):
                await inner.start()
                await self._ask(inner)
        except _FAILURES as error:
            await _stop(inner)
            await self._explain(addresses, error)
            return None
        except asyncio.CancelledError:
            await _stop(inner)
            raise
        return _Producer(inner, addresses, self.settings.topic)

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

    def _build(self, addresses: tuple[str, ...]) -> aiokafka.AIOKafkaProducer:
        settings = self.settings
        return aiokafka.AIOKafkaProducer(
            bootstrap_servers=list(addresses),
            client_id=settings.client_id,
            acks="all",
            enable_idempotence=True,
            compression_type=None if settings.compression == "none" else settings.compression,
            max_batch_size=_BATCH_BYTES,
            request_timeout_ms=int(settings.request_timeout_seconds * 1000),
            metadata_max_age_ms=60_000,
            security_protocol=settings.security_protocol,
            ssl_context=self._ssl_context,
            sasl_mechanism=settings.sasl_mechanism,
            sasl_plain_username=settings.sasl_username or None,
            sasl_plain_password=settings.sasl_password or None,
        )

    async def _explain(self, addresses: tuple[str, ...], error: BaseException) -> None:
        """Say why no producer could be started."""
        if isinstance(error, kafka_errors.KafkaConnectionError | OSError | TimeoutError):
            why = await _why_unreachable(addresses, self.settings)
            self._complain(None, "Kafka at %s (from %s) %s", _list(addresses), self._brokers.source, why)
        else:
            self._complain(error, "Kafka at %s refuses: %s", _list(addresses), _name(error))


async def _why_unreachable(addresses: tuple[str, ...], settings: Kafka) -> str:
    """Say what happens at the TCP level: aiokafka keeps the reason to itself."""
    reasons: list[str] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(3):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except TimeoutError:
            reasons.append("does not answer: no reply to a connect within 3 s")
        except OSError as refused:
            number = refused.errno or 0  # a name that does not resolve has a negative one
            reasons.append(f"does not answer: {os.strerror(number).lower() if number > 0 else refused.strerror}")
        else:
            writer.close()
            return (
                f"accepts connections but does not answer as Kafka does with security_protocol = "
                f'"{settings.security_protocol}"; check kafka.security_protocol and that the port is a broker\'s'
            )
    return ", ".join(dict.fromkeys(reasons))


_ADVICE: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    (
        (kafka_errors.UnknownTopicOrPartitionError,),
        "create the topic {topic} (kafka-topics.sh --create --topic {topic} …), or set kafka.topic to one that exists",
    ),
    (
        (kafka_errors.TopicAuthorizationFailedError,),
        "grant {user} the operations Write and Describe on the topic {topic}",
    ),
    (
        (kafka_errors.ClusterAuthorizationFailedError,),
        "grant {user} the operation IdempotentWrite on the cluster",
    ),
    (
        (kafka_errors.SaslAuthenticationFailed, kafka_errors.AuthenticationFailedError),
        "check kafka.sasl_username and kafka.sasl_password",
    ),
    (
        (kafka_errors.UnsupportedSaslMechanismError,),
        "set kafka.sasl_mechanism to one that the brokers have enabled",
    ),
    (
        _TOO_LARGE,
        "raise max.message.bytes of the topic {topic} or lower max_record_bytes; smaller batches are tried",
    ),
    (
        (kafka_errors.NotEnoughReplicasError, kafka_errors.NotEnoughReplicasAfterAppendError),
        "bring brokers back: fewer replicas are in sync than min.insync.replicas asks for",
    ),
    (
        (kafka_errors.LeaderNotAvailableError, kafka_errors.NotLeaderForPartitionError),
        "the partition has no leader: see which brokers are down",
    ),
)


def _advice(error: BaseException | None, settings: Kafka) -> str:
    """Return what an operator can do about `error`; empty if there is nothing to say."""
    for kinds, text in _ADVICE:
        if isinstance(error, kinds):
            return text.format(topic=settings.topic, user=settings.sasl_username or "this client")
    return ""


def _name(error: BaseException) -> str:
    name = type(error).__name__.removesuffix("Error").lstrip("_")
    return f"{name} ({error})" if str(error) and str(error) != name else name


def _list(addresses: Sequence[str]) -> str:
    return ", ".join(addresses) or "no known address"


def _ssl_context(settings: Kafka) -> ssl.SSLContext | None:
    if settings.security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file or None)
        if settings.tls_certificate_file:
            context.load_cert_chain(settings.tls_certificate_file, settings.tls_key_file or None)
    except (OSError, ssl.SSLError) as error:
        names = "kafka.tls_ca_file, kafka.tls_certificate_file, kafka.tls_key_file"
        raise ConfigError(f"{names}: these cannot be used for TLS: {error}") from error
    return context


_INSPECT_SECONDS = 4.0
"""How long a broker may take to answer all that `inspect` asks; a request to it has three of them."""

_NOT_YET = (
    kafka_errors.GroupLoadInProgressError,
    kafka_errors.GroupCoordinatorNotAvailableError,
    kafka_errors.NotCoordinatorForGroupError,
)
"""A broker's words for a part of the cluster that is still starting."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the topic, as the broker asked sees it."""

    number: int
    has_leader: bool
    replicas: int
    in_sync: int


@dataclass(slots=True)
class Findings:
    """What a broker says about its cluster and the topic."""

    problem: str = ""
    """Why it does not answer or lets nobody in, in words that go on after its address; then there is nothing else."""
    no_idempotence: str = ""
    """Why this client may not produce, in words; empty if it may."""
    brokers: tuple[str, ...] = ()
    """The addresses of the cluster's brokers, as they tell them to clients (``advertised.listeners``)."""
    no_topic: str = ""
    """Why the topic cannot be used, in words; empty if it is there."""
    missing: bool = False
    """Whether that is because there is no such topic."""
    similar: str = ""
    """A topic with nearly the same name, if the one asked for is missing."""
    partitions: tuple[Partition, ...] = ()
    topic_settings: Mapping[str, str] = field(default_factory=dict)
    """``min.insync.replicas`` and ``max.message.bytes`` as they hold for the topic, if they could be read."""
    no_topic_settings: str = ""
    """Why they could not, in words."""


async def inspect(settings: Kafka, address: str) -> Findings:
    """Ask the broker at `address`, and no other, about its cluster and the topic; a topic is not created by it.

    Returns within some 8 s. Raises `ConfigError` if the files for TLS cannot be used.
    """
    host, _, port = address.rpartition(":")
    context = _ssl_context(settings)
    try:
        async with asyncio.timeout(_INSPECT_SECONDS):
            connection = await create_conn(
                host.strip("[]"),
                int(port),
                client_id=settings.client_id,
                request_timeout_ms=int(_INSPECT_SECONDS * 750),
                ssl_context=context,
                security_protocol=settings.security_protocol,
                sasl_mechanism=settings.sasl_mechanism,
                sasl_plain_username=settings.sasl_username or None,
                sasl_plain_password=settings.sasl_password or None,
            )
            try:
                return await _asked(connection, settings)
            finally:
                await asyncio.wait({connection.close()}, timeout=_STOP_SECONDS / 4)
    except ssl.SSLCertVerificationError as error:
        return Findings(f"has a certificate that is not trusted: {error.verify_message}; check kafka.tls_ca_file")
    except TimeoutError:
        return Findings("accepts connections but did not answer in time; see whether the broker is well")
    except (kafka_errors.KafkaConnectionError, kafka_errors.IllegalSaslStateError, OSError, AssertionError):
        return Findings(await _why_unreachable((address,), settings))
    except kafka_errors.KafkaError as error:
        return Findings(f"refuses this client: {_named(error, settings)}")


async def _asked(connection: AIOKafkaConnection, settings: Kafka) -> Findings:
    # Said in so many words: a broker would create the topic otherwise.
    metadata = await connection.send(MetadataRequest([settings.topic], allow_auto_topic_creation=False))
    found = Findings()
    found.brokers = tuple(sorted(f"[{h}]:{p}" if ":" in h else f"{h}:{p}" for _, h, p, *_ in metadata.brokers))
    code, *_, partitions = metadata.topics[0]
    error = kafka_errors.for_code(code)
    if error is not kafka_errors.NoError:
        found.no_topic = _named(error(), settings)
        found.missing = error is kafka_errors.UnknownTopicOrPartitionError
    if found.missing:
        every = await connection.send(MetadataRequest(None, allow_auto_topic_creation=False))
        found.similar = next(iter(get_close_matches(settings.topic, [name for _, name, *_ in every.topics], 1)), "")
    found.partitions = tuple(
        Partition(number, leader >= 0, len(replicas), len(in_sync))
        for _, number, leader, replicas, in_sync, *_ in sorted(partitions, key=lambda each: each[1])
    )
    if not found.no_topic:
        await _ask_settings(connection, settings, found)
    found.no_idempotence = await _ask_idempotence(connection, settings)
    return found


async def _ask_settings(connection: AIOKafkaConnection, settings: Kafka, found: Findings) -> None:
    of_a_topic = 2
    names = ["min.insync.replicas", "max.message.bytes"]
    try:
        answer = await connection.send(DescribeConfigsRequest([(of_a_topic, settings.topic, names)]))
    except kafka_errors.IncompatibleBrokerVersion:
        found.no_topic_settings = "the broker has no such request"
        return
    ((code, _, _, _, entries),) = answer.resources
    error = kafka_errors.for_code(code)
    if error is kafka_errors.NoError:
        found.topic_settings = {name: value for name, value, *_ in entries}
    elif error is kafka_errors.TopicAuthorizationFailedError:
        user = settings.sasl_username or "this client"
        found.no_topic_settings = f"grant {user} the operation DescribeConfigs on the topic {settings.topic}"
    else:
        found.no_topic_settings = _named(error(), settings)


async def _ask_idempotence(connection: AIOKafkaConnection, settings: Kafka) -> str:
    """Do the first thing that the daemon's producer does, and that only who may produce is allowed to."""
    while True:
        answer = await connection.send(InitProducerIdRequest(None, 60_000))
        error = kafka_errors.for_code(answer.error_code)
        if error is kafka_errors.NoError:
            return ""
        if error not in _NOT_YET:
            return _named(error(), settings)
        await asyncio.sleep(0.2)


def _named(error: kafka_errors.KafkaError, settings: Kafka) -> str:
    name = type(error).__name__.removesuffix("Error")
    said = " ".join(word for word in error.args if isinstance(word, str))
    advice = _advice(error, settings)
    return name + (f" ({said})" if said else "") + (f"; {advice}" if advice else "")
