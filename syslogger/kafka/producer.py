"""aiokafka's producer as the lanes use it: batches in, acknowledgements out, and an end in bounded time.

What Kafka can say of a batch, and what becomes of it; none of it drops a record:

=============  =========================================  ======================================================
transient      3, 5, 6, 7, 19, 20, 56, lost connections   aiokafka tries the same batch again, without duplicates
refused        10, 18, 32, 87 (`REFUSED`)                 the lane finds the record; it goes to the dead letters
all else       2, 29, 45, 47, 59, -1, what is not known,  a new producer, and the same records again for as long as
               timeouts, a dead task of aiokafka's        it takes; after a lost answer they may come twice
=============  =========================================  ======================================================

The numbers are Kafka's error codes (its protocol guide, "Error Codes").
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiokafka
import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder

from syslogger.config import Kafka
from syslogger.errors import ConfigError

from .express import KNOWN, Express

BATCH_BYTES = 524_288
"""The largest batch, before compression, of more than one record; brokers allow 1,048,588 (`message.max.bytes`)."""

_METADATA_SECONDS = 60.0
"""How often a producer asks for new partitions and brokers."""

_STOP_SECONDS = 2.0
"""How long a producer may take to stop; with Kafka down it would take for ever."""


class InvalidRecordError(kafka_errors.BrokerResponseError):  # type: ignore[misc] # aiokafka has no types
    """The topic does not take such a record: one without a key in a compacted topic, for instance."""

    errno = 87
    message = "INVALID_RECORD"


# aiokafka 0.14 does not know this one and would say "unknown", which a broker's own trouble is called too.
kafka_errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)


class ProducerLostError(Exception):
    """The producer was given up with this batch in flight; the batch may or may not have been written."""


FAILURES = (kafka_errors.KafkaError, OSError, TimeoutError, AssertionError, ProducerLostError)
"""What aiokafka raises when a batch or a start fails. AssertionError is its word for an unknown partition."""

TOO_LARGE: tuple[type[BaseException], ...] = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
)


REFUSED = (*TOO_LARGE, kafka_errors.InvalidTimestampError, InvalidRecordError)
"""What is wrong with a record and not with Kafka: trying again cannot help it. Everything else is tried again."""


class Owed(NamedTuple):
    """A batch that was submitted."""

    partition: int
    since: float
    """Loop time, in seconds."""
    answer: asyncio.Future[None]
    """Done when it is acknowledged or has failed."""


class Producer:
    """An aiokafka producer that was started, and the acknowledgements it owes."""

    def __init__(self, inner: aiokafka.AIOKafkaProducer, bootstrap: tuple[str, ...], topic: str) -> None:
        self.inner = inner
        self.bootstrap = bootstrap
        self._topic = topic
        self._owed: dict[asyncio.Future[None], Owed] = {}
        timeout_seconds = inner._request_timeout_ms / 1000  # noqa: SLF001 - as configured
        self._express = Express(inner, topic, timeout_seconds) if aiokafka.__version__.startswith(KNOWN) else None

    @property
    def partitions(self) -> list[int]:
        """The topic's partitions as last heard of, in order."""
        return sorted(self.inner.client.cluster.partitions_for_topic(self._topic) or ())

    @property
    def brokers(self) -> frozenset[str]:
        """The addresses of the cluster's brokers as last heard of, ``host:port``."""
        return frozenset(_address(broker.host, broker.port) for broker in self.inner.client.cluster.brokers())

    @property
    def dead(self) -> bool:
        """Whether one of aiokafka's own tasks has ended, after which nothing is delivered any more (#907, #1133)."""
        tasks = (self.inner._sender.sender_task, self.inner.client._sync_task)  # noqa: SLF001 - no public way
        return any(task is None or task.done() for task in tasks)

    def oldest(self) -> Owed | None:
        """Return the batch that is out longest; None if none is out."""
        return next(iter(self._owed.values()), None)

    def unanswered(self) -> dict[int, float]:
        """Return since when, in loop time, the oldest batch is out, for each partition that has one."""
        return {owed.partition: owed.since for owed in reversed(self._owed.values())}

    def leader(self, partition: int) -> str:
        """Return the address of a partition's leader as last heard of; empty if it has none."""
        cluster = self.inner.client.cluster
        broker = cluster.broker_metadata(cluster.leader_for_partition(TopicPartition(self._topic, partition)))
        return _address(broker.host, broker.port) if broker else ""

    def create_batch(self, most_bytes: int) -> BatchBuilder:
        """Return an empty batch that takes records up to a size in bytes, before compression; one at least."""
        accumulator = self.inner._message_accumulator  # noqa: SLF001 - create_batch() has one size for all
        return BatchBuilder(most_bytes, accumulator._compression_type)  # noqa: SLF001

    async def append(self, batch: BatchBuilder, partition: int) -> None:
        """Return when the batch is acknowledged. Raises a Kafka error, or `ProducerLostError`."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[None] = loop.create_future()
        self._owed[answer] = Owed(partition, loop.time(), answer)
        submitted = None
        if sent := self._express and self._express.send(batch, partition):
            sent.add_done_callback(functools.partial(_pass_on, answer))
        else:
            submitted = loop.create_task(self._submit(batch, partition, answer))
        try:
            await answer
        finally:
            del self._owed[answer]
            if submitted:
                submitted.cancel()

    async def _submit(self, batch: BatchBuilder, partition: int, answer: asyncio.Future[None]) -> None:
        try:
            # Both awaits can last as long as Kafka is away.
            acknowledged = await self.inner.send_batch(batch, self._topic, partition=partition)
            await acknowledged
        except FAILURES as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(None)

    async def append_one(
        self, topic: str, value: bytes, headers: Sequence[tuple[str, bytes]], key: bytes = b""
    ) -> None:
        """Return when one record is acknowledged in any partition of a topic. Raises one of `FAILURES`."""
        # Bounded: without the topic it would wait for its metadata only, but without a leader for ever.
        async with asyncio.timeout(2 * self.inner.client._request_timeout_ms / 1000):  # noqa: SLF001 - as configured
            await self.inner.send_and_wait(topic, value, key=key or None, headers=list(headers))

    async def settle(self, seconds: float) -> None:
        """Wait until the batches that are out now are answered, but not longer than `seconds`."""
        if self._owed:
            await asyncio.wait(set(self._owed), timeout=seconds)

    async def discard(self) -> None:
        """Stop it within a bounded time, then fail what it still owes."""
        await stop(self.inner)
        if self._express:
            self._express.close()
        for answer in self._owed:
            if not answer.done():
                answer.set_exception(ProducerLostError("its producer was given up"))


def _pass_on(answer: asyncio.Future[None], sent: asyncio.Future[Any]) -> None:
    """Answer as a batch was answered that has been."""
    error = sent.exception()
    if answer.done():
        return
    if error:
        answer.set_exception(error)
    else:
        answer.set_result(None)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def stop(producer: aiokafka.AIOKafkaProducer) -> None:
    """Stop a producer, whatever state it is in, in a bounded time. Nothing of it is left."""
    accumulator = producer._message_accumulator  # noqa: SLF001 - no public way
    flush = accumulator.flush

    async def flush_in_time() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await flush()

    # `stop` waits for it in a task that nobody could cancel.
    accumulator.flush = flush_in_time
    with contextlib.suppress(kafka_errors.KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(2 * _STOP_SECONDS):
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


def append_keyed(batch: BatchBuilder, records: Sequence[bytes], keys: Sequence[bytes], timestamp: int) -> int:
    """Do as `append_records` with a key for each record; an empty one is none."""
    before = offset = batch._relative_offset  # noqa: SLF001 - as above
    append, no_headers = batch._builder.append, []  # type: ignore[var-annotated]  # noqa: SLF001
    for record, key in zip(records, keys, strict=True):
        if append(offset, timestamp, key or None, record, no_headers) is None:
            break
        offset += 1
    batch._relative_offset = offset  # noqa: SLF001
    return int(offset - before)


def client_settings(settings: Kafka) -> dict[str, Any]:
    """Return how any client of aiokafka's is to speak to brokers. Raises `ConfigError` if TLS files cannot be used."""
    return {
        "client_id": settings.client_id,
        "request_timeout_ms": int(settings.request_timeout_seconds * 1000),
        "security_protocol": settings.security_protocol,
        "ssl_context": _ssl_context(settings),
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username or None,
        "sasl_plain_password": settings.sasl_password or None,
    }


def build(settings: Kafka, client: dict[str, Any], addresses: tuple[str, ...]) -> aiokafka.AIOKafkaProducer:
    """Return a producer that is not started yet, made with `client_settings`."""
    return aiokafka.AIOKafkaProducer(
        bootstrap_servers=list(addresses),
        acks="all",
        enable_idempotence=True,
        compression_type=None if settings.compression == "none" else settings.compression,
        max_batch_size=BATCH_BYTES,
        metadata_max_age_ms=int(_METADATA_SECONDS * 1000),
        **client,
    )


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
