"""A batch straight to its partition's leader, past aiokafka's queue; what does not go well is aiokafka's again.

aiokafka hands a batch through three tasks, two queues and a generic encoder: after some milliseconds of idleness that
costs more than twice what this does. The sequence numbers that make the producer idempotent are aiokafka's own, and so
is everything that follows a lost connection or an error: the batch goes back to the head of its queue, as it was sent.
"""

from __future__ import annotations

import asyncio
import functools
import struct
from io import BytesIO
from typing import Any

import aiokafka
import aiokafka.errors as kafka_errors
from aiokafka import TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.protocol.produce import ProduceResponse_v7

KNOWN = "0.14."
"""The versions of aiokafka whose insides this knows; with others every batch takes the public way."""

_PRODUCE, _VERSION = 0, 7
"""The API key, and the version that Kafka 2.1 and all later ones have (Kafka's protocol guide, "Produce API")."""

_FINE = (kafka_errors.NoError.errno, kafka_errors.DuplicateSequenceNumber.errno)
"""It is written; or it was before, when the answer was lost."""


class _Header:
    """The header of an answer."""

    def __init__(self, correlation_id: int) -> None:
        self.correlation_id = correlation_id


class _Request:
    """What a connection of aiokafka's wants to know of a request, to read the answer."""

    @staticmethod
    def parse_response_header(answer: BytesIO) -> _Header:
        return _Header(int.from_bytes(answer.read(4), "big"))

    class RESPONSE_TYPE:  # noqa: N801 - aiokafka's name
        """The answer is kept as it came."""

        @staticmethod
        def decode(answer: BytesIO) -> bytes:
            return answer.read()


class _Outcome:
    """A client whose next answer is known already: what aiokafka is to go on from."""

    def __init__(self, client: Any, error: BaseException | None, answer: bytes) -> None:
        self.force_metadata_update = client.force_metadata_update
        self._maybe_wait_metadata = client._maybe_wait_metadata  # noqa: SLF001 - aiokafka's sender calls it
        self._error = error
        self._answer = answer

    async def send(self, _node: int, _request: Any) -> Any:
        if self._error:
            raise self._error
        return ProduceResponse_v7.decode(BytesIO(self._answer))


class Express:
    """The way to one topic's leaders through a started producer. It reaches into aiokafka: see `KNOWN`."""

    def __init__(self, inner: aiokafka.AIOKafkaProducer, topic: str, request_timeout_seconds: float) -> None:
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = request_timeout_seconds
        self._places: dict[int, TopicPartition] = {}
        self._topic = topic
        self._recovering: set[asyncio.Task[None]] = set()
        self._closed = False
        name, client_id = topic.encode(), inner.client._client_id.encode()  # noqa: SLF001 - as configured
        self._first_size = 8 + 2 + len(client_id) + 2 + 2 + 4 + 4 + 2 + len(name) + 4 + 4 + 4
        # Before the correlation id, between it and the partition: all that is the same in each request.
        self._head = struct.Struct(">ihhi")
        self._middle = (
            struct.pack(f">h{len(client_id)}s", len(client_id), client_id)
            + struct.pack(">hhi", -1, -1, inner._sender._request_timeout_ms)  # noqa: SLF001 - as configured
            + struct.pack(f">ih{len(name)}si", 1, len(name), name, 1)
        )
        self._tail = struct.Struct(">ii")
        # topics, name, partitions, partition, error code
        self._code_at = 4 + 2 + len(name) + 4 + 4

    def send(self, batch: BatchBuilder, partition: int) -> asyncio.Future[Any] | None:
        """Send a batch and return what is done when it is acknowledged or has failed; None if it must go the other way.

        Nothing else may be on its way to that partition.
        """
        inner = self._inner
        place = self._places.get(partition) or self._places.setdefault(
            partition, TopicPartition(self._topic, partition)
        )
        connection = self._connection(place)
        accumulator, muted = inner._message_accumulator, inner._sender._muted_partitions  # noqa: SLF001
        if not connection or place in muted or place in accumulator._batches or accumulator._closed:  # noqa: SLF001
            return None
        # What its sender does with a batch whose turn has come: sequence number, list of what is out.
        message = MessageBatch(place, batch, accumulator._batch_ttl, 0)  # noqa: SLF001
        accumulator._batches[place].append(message)  # noqa: SLF001
        accumulator._pop_batch(place)  # noqa: SLF001
        muted.add(place)
        self._write(connection, message)
        sent: asyncio.Future[Any] = message.future
        return sent

    def close(self) -> None:
        """Let go of the batches that aiokafka was to take over, and of those that fail from now on."""
        self._closed = True
        for task in self._recovering:
            task.cancel()

    def _connection(self, place: TopicPartition) -> AIOKafkaConnection | None:
        client = self._inner.client
        leader = client.cluster.leader_for_partition(place)
        connection = client._conns.get((leader, ConnectionGroup.DEFAULT))  # noqa: SLF001
        if connection is None or not connection.connected() or connection._writer.is_closing():  # noqa: SLF001
            return None
        least, most = connection._versions.get(_PRODUCE, (0, 0))  # noqa: SLF001
        return connection if least <= _VERSION <= most else None

    def encode(self, correlation_id: int, partition: int, data: bytes) -> bytes:
        """Return a produce request for one batch with its size before it."""
        size = self._first_size + len(data)
        head = self._head.pack(size, _PRODUCE, _VERSION, correlation_id)
        return b"".join((head, self._middle, self._tail.pack(partition, len(data)), data))

    def _write(self, connection: AIOKafkaConnection, message: MessageBatch) -> None:
        number = connection._next_correlation_id()  # noqa: SLF001
        answer: asyncio.Future[bytes] = self._loop.create_future()
        timer = self._loop.call_later(self._timeout_seconds, connection.close, CloseReason.CONNECTION_TIMEOUT)
        answer.add_done_callback(functools.partial(self._answered, message, timer))
        connection._requests.append((number, _Request, answer))  # noqa: SLF001
        connection._writer.write(self.encode(number, message.tp.partition, message.get_data_buffer()))  # noqa: SLF001

    def _answered(self, message: MessageBatch, timer: asyncio.TimerHandle, answer: asyncio.Future[bytes]) -> None:
        timer.cancel()
        error = answer.exception()
        data = b"" if error else answer.result()
        if not error and int.from_bytes(data[self._code_at : self._code_at + 2], "big", signed=True) in _FINE:
            message.done_noack()
            self._free(message.tp)
        elif not self._closed:
            task = self._loop.create_task(self._recover(message, error, data))
            self._recovering.add(task)
            task.add_done_callback(self._recovering.discard)

    async def _recover(self, message: MessageBatch, error: BaseException | None, data: bytes) -> None:
        """Have aiokafka decide on the outcome: the batch fails, or is sent again by its sender."""
        handler = SendProduceReqHandler(self._inner._sender, {message.tp: message})  # noqa: SLF001
        handler._client = _Outcome(self._inner.client, error, data)  # noqa: SLF001
        try:
            await handler.do(-1)
        finally:
            self._free(message.tp)

    def _free(self, place: TopicPartition) -> None:
        """Let aiokafka's sender send to a partition."""
        self._inner._sender._muted_partitions.discard(place)  # noqa: SLF001
        accumulator = self._inner._message_accumulator  # noqa: SLF001
        if place in accumulator._batches and not accumulator._waiter_future.done():  # noqa: SLF001
            accumulator._waiter_future.set_result(None)  # noqa: SLF001
