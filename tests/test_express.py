"""The short way to a partition's leader, on librdkafka's mock cluster: real requests over real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiokafka
import pytest
from aiokafka import TopicPartition
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.produce import ProduceRequest_v7

from syslogger.config import Kafka
from syslogger.kafka import producer
from syslogger.kafka.express import KNOWN, Express
from syslogger.kafka.producer import Producer, append_records, build, client_settings, stop
from tests.mock_kafka import PRODUCE, MockKafka
from tests.waiting import until

NOT_LEADER, INVALID_RECORD = 6, 87


@pytest.fixture
async def start(cluster: MockKafka) -> AsyncIterator[Callable[..., Awaitable[Producer]]]:
    """Start a producer; it is connected to the leader when it has delivered ``first``."""

    async def start(request_timeout_seconds: float = 5.0) -> Producer:
        settings = Kafka(
            bootstrap_servers=cluster.addresses, topic="syslog", request_timeout_seconds=request_timeout_seconds
        )
        inner = build(settings, client_settings(settings), cluster.addresses)
        await inner.start()
        started.append(inner)
        new = Producer(inner, cluster.addresses, "syslog")
        await inner.client.add_topic("syslog")
        await append(new, b"first")
        return new

    started: list[aiokafka.AIOKafkaProducer] = []
    yield start
    for inner in started:
        await stop(inner)


def batch_of(of: Producer, *records: bytes) -> BatchBuilder:
    batch = of.create_batch(1000)
    assert append_records(batch, records, 1_700_000_000_000) == len(records)
    return batch


async def append(to: Producer, *records: bytes) -> None:
    async with asyncio.timeout(20):
        await to.append(batch_of(to, *records), 0)


def sequence(of: Producer) -> int:
    """Return the next sequence number, which the broker would check."""
    return int(of.inner._txn_manager.sequence_number(TopicPartition("syslog", 0)))


@pytest.fixture
def nobody_submits(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, the public way is closed."""

    async def refused(*_: object) -> None:
        pytest.fail("a batch went the public way")

    return lambda: monkeypatch.setattr(Producer, "_submit", refused)


async def test_a_batch_goes_straight_to_the_leader(
    cluster: MockKafka, start: Callable[..., Awaitable[Producer]], nobody_submits: Callable[[], None]
) -> None:
    new = await start()
    nobody_submits()
    for number in range(50):
        await append(new, b"%d" % number)
    assert sequence(new) == 51
    assert not new.inner._message_accumulator._pending_batches
    assert cluster.records("syslog", expected=51) == [b"first", *(b"%d" % number for number in range(50))]


async def test_what_aiokafka_retries_it_retries(
    cluster: MockKafka, start: Callable[..., Awaitable[Producer]], nobody_submits: Callable[[], None]
) -> None:
    new = await start()
    nobody_submits()
    cluster.fail_next(PRODUCE, NOT_LEADER, NOT_LEADER)
    await append(new, b"again")
    assert sequence(new) == 2
    await append(new, b"next")
    assert cluster.records("syslog", expected=3) == [b"first", b"again", b"next"]
    assert not new.inner._sender._muted_partitions


async def test_what_aiokafka_gives_up_fails(cluster: MockKafka, start: Callable[..., Awaitable[Producer]]) -> None:
    new = await start()
    cluster.fail_next(PRODUCE, INVALID_RECORD)
    with pytest.raises(producer.InvalidRecordError):
        await append(new, b"refused")
    assert not new.inner._sender._muted_partitions


async def test_an_answer_that_does_not_come_in_time(
    cluster: MockKafka, start: Callable[..., Awaitable[Producer]]
) -> None:
    """The connection is closed, and the same batch sent on another."""
    new = await start(request_timeout_seconds=0.3)
    old = next(iter(new.inner.client._conns.values()))
    cluster.delay(600)
    waiting = asyncio.ensure_future(append(new, b"late"))
    await until(lambda: not old.connected())
    cluster.delay(0)
    await waiting
    assert b"late" in cluster.records("syslog", expected=2)


async def test_a_producer_that_is_given_up_leaves_nothing_behind(
    cluster: MockKafka, start: Callable[..., Awaitable[Producer]]
) -> None:
    new = await start()
    cluster.set_down()
    waiting = asyncio.ensure_future(append(new, b"stuck"))
    await asyncio.sleep(0.05)
    await new.discard()
    with pytest.raises(producer.ProducerLostError):
        await waiting
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


async def test_another_aiokafka_is_left_alone(
    cluster: MockKafka, start: Callable[..., Awaitable[Producer]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aiokafka, "__version__", "0.15.0")
    new = await start()
    assert not aiokafka.__version__.startswith(KNOWN)
    await append(new, b"the public way")
    assert new._express is None
    assert cluster.records("syslog", expected=2) == [b"first", b"the public way"]


async def test_a_request_is_what_aiokafka_would_send(start: Callable[..., Awaitable[Producer]]) -> None:
    new = await start()
    data = bytes(batch_of(new, b"a record")._build())
    theirs = ProduceRequest_v7(None, -1, 5000, [("syslog", [(3, data)])])
    header = theirs.build_request_header(correlation_id=77, client_id=new.inner.client._client_id)
    message = header.encode() + theirs.encode()
    ours = Express(new.inner, "syslog", 5.0).encode(77, 3, data)
    assert ours == len(message).to_bytes(4, "big") + message
