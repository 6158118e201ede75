"""The Kafka sink against a mock cluster that fails on request: what arrives, what comes twice, in what order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiokafka
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from syslogger.brokers import BootstrapServers, Brokers
from syslogger.config import Kafka
from syslogger.counters import Counters
from syslogger.kafka import Topic, lane
from syslogger.kafka.lane import Outlet
from syslogger.kafka.producer import append_records
from tests.mock_kafka import PRODUCE, MockKafka
from tests.waiting import until

TOO_LARGE, NOT_ENOUGH_REPLICAS, OUT_OF_ORDER, UNAUTHORIZED, INVALID_RECORD = 10, 19, 45, 29, 87
CUT_OFF, UNKNOWN = -195, -1


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "BACKOFF_SECONDS", (0.02, 0.1))


@asynccontextmanager
async def opened(brokers: Brokers, **settings: Any) -> AsyncIterator[Topic]:
    settings = {"request_timeout_seconds": 1.0, "commit_interval_seconds": 0.0} | settings
    async with Topic(Kafka(**settings), brokers, Counters()) as topic:
        async with asyncio.timeout(20):
            await topic.answered()
        yield topic


def bootstrap(cluster: MockKafka) -> BootstrapServers:
    return BootstrapServers(cluster.addresses)


async def deliver(sink: Outlet, *records: bytes) -> None:
    async with asyncio.timeout(20):
        if room := sink.room():
            await room
        await sink.deliver(records, sum(map(len, records)))


async def test_records_arrive_unchanged_in_order(cluster: MockKafka) -> None:
    sent = [bytes([n]) + b"\r\x00\xff line" for n in range(200)]
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        for start in range(0, 200, 50):
            await deliver(sink, *sent[start : start + 50])
        assert topic.counters.batches == 4
        assert topic.counters.batch_records.sum == 200
        assert topic.counters.brokers_known == 1
        assert topic.problem == ""
    assert cluster.records("syslog", expected=200) == sent


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed(cluster: MockKafka, compression: str) -> None:
    async with opened(bootstrap(cluster), compression=compression) as topic:
        await deliver(topic.sink("peer"), b"squeezed " * 100)
    assert cluster.records("syslog") == [b"squeezed " * 100]


async def test_deliveries_of_different_connections_share_a_batch(cluster: MockKafka) -> None:
    cluster.delay(50)
    async with opened(bootstrap(cluster)) as topic:
        sinks = [topic.sink("peer") for _ in range(10)]
        waiting = [asyncio.ensure_future(deliver(sinks[0], b"0"))]
        await asyncio.sleep(0.01)
        for number, sink in enumerate(sinks[1:], 1):
            waiting.append(asyncio.ensure_future(deliver(sink, b"%d" % number)))
            await asyncio.sleep(0.001)
        await asyncio.gather(*waiting)
        assert topic.counters.batches == 2  # the first at once, the others when it was acknowledged
    assert cluster.records("syslog", expected=10) == [b"%d" % number for number in range(10)]


async def test_small_batches_are_paced_and_large_ones_are_not(cluster: MockKafka) -> None:
    async with opened(bootstrap(cluster), commit_interval_seconds=0.2) as topic:
        sink, loop = topic.sink("peer"), asyncio.get_running_loop()
        start = loop.time()
        await deliver(sink, b"at once")
        first = loop.time() - start
        await deliver(sink, b"paced")
        second = loop.time() - start
        await deliver(sink, b"x" * 70_000)
        third = loop.time() - start
    assert first < 0.15
    assert second >= 0.19
    assert third - second < 0.15


async def test_connections_spread_over_the_partitions(cluster: MockKafka) -> None:
    cluster.create_topic("wide", 3)
    async with opened(bootstrap(cluster), topic="wide") as topic:
        sinks = [topic.sink("peer") for _ in range(6)]
        for number, sink in enumerate(sinks):
            await deliver(sink, b"%d" % number)
        sinks[1].close()
        assert topic.sink("peer").lane is sinks[1].lane
    assert [len(cluster.records("wide", partition, 2)) for partition in range(3)] == [2, 2, 2]


async def test_more_than_a_batch_is_delivered_in_several(cluster: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "BATCH_BYTES", 1000)
    sent = [b"%03d" % number * 30 for number in range(100)]
    async with opened(bootstrap(cluster)) as topic:
        await deliver(topic.sink("peer"), *sent)
        assert topic.counters.batches > 10
    assert cluster.records("syslog", expected=100) == sent


async def test_room_runs_out_and_is_given_in_turn(cluster: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "ROOM_BYTES", 1000)
    cluster.delay(20)
    most, order = 0, []
    async with opened(bootstrap(cluster)) as topic:

        async def connection(number: int) -> None:
            nonlocal most
            sink = topic.sink("peer")
            for _ in range(3):
                if room := sink.room():
                    await room
                order.append(number)
                most = max(most, sink.lane._waiting_bytes)
                await sink.deliver([b"%02d" % number * 200], 400)

        async with asyncio.timeout(20):
            await asyncio.gather(*(connection(number) for number in range(20)))
    assert most < 1000  # when room is given; a delivery may go over
    assert sorted(order[:20]) == list(range(20))
    assert len(cluster.records("syslog", expected=60)) == 60


async def test_a_cancelled_wait_for_room_passes_its_turn_on(
    cluster: MockKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "ROOM_BYTES", 10)
    async with opened(bootstrap(cluster)) as topic:
        cluster.delay(100)
        sink = topic.sink("peer")
        first = asyncio.ensure_future(deliver(sink, b"x" * 10))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(deliver(sink, b"y" * 10))
        third = asyncio.ensure_future(deliver(sink, b"z" * 10))
        await asyncio.sleep(0)
        second.cancel()
        await first
        await third
    assert cluster.records("syslog", expected=2)[-1] == b"z" * 10


async def test_a_cancelled_delivery_that_has_not_begun_is_let_go(cluster: MockKafka) -> None:
    cluster.delay(100)
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        first = asyncio.ensure_future(deliver(sink, b"begun"))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(deliver(sink, b"not begun"))
        await asyncio.sleep(0)
        second.cancel()
        await first
        alone = asyncio.ensure_future(deliver(sink, b"gone before its turn"))
        await asyncio.sleep(0)
        alone.cancel()
        await until(lambda: sink.lane._waiting_bytes == 0)
        await deliver(sink, b"last")
        assert sink.lane._waiting_bytes == 0
    assert cluster.records("syslog", expected=2) == [b"begun", b"last"]


@pytest.mark.parametrize("code", [NOT_ENOUGH_REPLICAS, CUT_OFF])
async def test_what_aiokafka_retries_needs_no_new_producer(cluster: MockKafka, code: int) -> None:
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        cluster.fail_next(PRODUCE, code)
        await deliver(sink, b"kept")
        assert topic.counters.producer_rebuilds == 0
        assert topic.counters.batch_failures == {}
    assert cluster.records("syslog") == [b"kept"]


@pytest.mark.parametrize("code", [OUT_OF_ORDER, UNAUTHORIZED, UNKNOWN])
async def test_a_failed_batch_is_delivered_again_by_a_new_producer(
    cluster: MockKafka, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        await deliver(sink, b"before")
        cluster.fail_next(PRODUCE, code, code)
        deliveries = [deliver(sink, b"one", b"two"), deliver(sink, b"three")]
        await asyncio.gather(*deliveries)
        assert topic.counters.producer_rebuilds == 2
        assert sum(topic.counters.batch_failures.values()) == 2
        assert topic.counters.records_redelivered >= 3
        assert topic.problem == ""
    assert cluster.records("syslog", expected=4) == [b"before", b"one", b"two", b"three"]
    assert "Nothing is lost" in caplog.text


async def test_a_batch_that_is_too_large_is_halved_until_it_fits(cluster: MockKafka) -> None:
    sent = [b"%d" % number * 100 for number in range(8)]
    async with opened(bootstrap(cluster)) as topic:
        cluster.fail_next(PRODUCE, TOO_LARGE, TOO_LARGE)
        await deliver(topic.sink("peer"), *sent)
        assert topic.counters.batch_failures == {"MessageSizeTooLargeError": 2}
        assert topic.counters.batches == 8
    assert cluster.records("syslog", expected=8) == sent


@pytest.mark.parametrize("code", [TOO_LARGE, INVALID_RECORD])
async def test_a_record_that_is_refused_for_itself_holds_up_nobody(
    cluster: MockKafka, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.create_topic("syslog.dead-letter")
    async with opened(bootstrap(cluster)) as topic:
        cluster.fail_next(PRODUCE, code, code)
        await deliver(topic.sink("192.0.2.1:514"), b"a" * 200, b"b" * 200, b"c" * 200, b"d" * 200)
        assert sum(topic.counters.records_dead_lettered.values()) == 1
        await deliver(topic.sink("peer"), b"next")
        assert topic.problem == ""
    rest = [b"a" * 200, b"b" * 200, b"c" * 200, b"d" * 200, b"next"]
    (dead,) = cluster.messages("syslog.dead-letter")
    rest.remove(dead.value())
    assert cluster.records("syslog", expected=4) == rest
    headers = dict(dead.headers())
    assert headers["syslogger.reason"] in {b"MessageSizeTooLarge", b"InvalidRecord"}
    assert headers["syslogger.topic"] == b"syslog"
    assert headers["syslogger.partition"] == b"0"
    assert headers["syslogger.peer"] == b"192.0.2.1:514"
    assert headers["syslogger.piece"] == b"1/1"
    assert headers["syslogger.time"].startswith(b"20")
    assert "200 bytes from 192.0.2.1:514" in caplog.text


async def test_a_dead_letter_that_is_too_large_goes_in_pieces(cluster: MockKafka) -> None:
    cluster.create_topic("graves")
    async with opened(bootstrap(cluster), dead_letter_topic="graves") as topic:
        cluster.fail_next(PRODUCE, TOO_LARGE, TOO_LARGE)
        await deliver(topic.sink("peer"), b"0123456789")
    dead = cluster.messages("graves", expected=2)
    assert b"".join(one.value() for one in dead) == b"0123456789"
    assert [dict(one.headers())["syslogger.piece"] for one in dead] == [b"1/2", b"2/2"]


async def test_where_the_dead_letter_topic_fails_too_it_waits(cluster: MockKafka) -> None:
    async with opened(bootstrap(cluster)) as topic:
        cluster.create_topic("syslog.dead-letter")
        cluster.fail_next(PRODUCE, TOO_LARGE, UNAUTHORIZED, UNAUTHORIZED)
        waiting = asyncio.ensure_future(deliver(topic.sink("peer"), b"kept"))
        await until(lambda: "dead-letter topic syslog.dead-letter" in topic.problem)
        assert "on the topic syslog.dead-letter" in topic.problem
        await waiting
    assert cluster.records("syslog.dead-letter") == [b"kept"]


async def test_a_partition_without_leader_for_longer_than_the_request_timeout(cluster: MockKafka) -> None:
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        await deliver(sink, b"before")
        cluster.lead("syslog", 0, -1)
        cluster.fail_next(PRODUCE, 6)  # not the leader any more: it asks who is
        waiting = asyncio.ensure_future(deliver(sink, b"kept"))
        await until(lambda: topic.counters.batch_failures)
        assert topic.problem
        cluster.lead("syslog", 0, 1)
        await waiting
        assert topic.counters.producer_rebuilds >= 1
    assert cluster.records("syslog", expected=2) == [b"before", b"kept"]


async def test_brokers_that_come_back_need_no_new_producer(cluster: MockKafka) -> None:
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        await deliver(sink, b"before")
        cluster.set_down()
        waiting = asyncio.ensure_future(deliver(sink, b"kept"))
        await until(lambda: "connection refused" in topic.problem)
        assert not waiting.done()
        assert topic.problem
        cluster.set_up()
        await waiting
        assert topic.problem == ""
        assert topic.counters.producer_rebuilds == 0
    assert cluster.records("syslog", expected=2) == [b"before", b"kept"]


class Moving(BootstrapServers):
    """Brokers that get other addresses."""

    async def changed(self, known: tuple[str, ...]) -> tuple[str, ...]:
        await until(lambda: self.addresses and self.addresses != known)
        return self.addresses


async def test_brokers_with_other_addresses_are_followed(cluster: MockKafka) -> None:
    with MockKafka() as elsewhere:
        elsewhere.create_topic("syslog")
        brokers = Moving(cluster.addresses)
        async with opened(brokers) as topic:
            sink = topic.sink("peer")
            await deliver(sink, b"here")
            cluster.set_down()
            waiting = asyncio.ensure_future(deliver(sink, b"there"))
            await asyncio.sleep(0.1)
            brokers.addresses = elsewhere.addresses
            await waiting
            assert topic.counters.producer_rebuilds == 1
        assert elsewhere.records("syslog") == [b"there"]


@pytest.mark.parametrize("task", ["_sender_task", "_sync_task"])
async def test_a_dead_task_of_aiokafka_is_noticed(cluster: MockKafka, task: str) -> None:
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        await deliver(sink, b"before")
        inner = topic._producer.inner  # type: ignore[union-attr]
        getattr(inner._sender if task == "_sender_task" else inner.client, task).cancel()
        await deliver(sink, b"after")
        await until(lambda: topic.counters.producer_rebuilds)
    assert cluster.records("syslog", expected=2) == [b"before", b"after"]


async def test_it_waits_for_addresses(cluster: MockKafka) -> None:
    brokers = Moving(())
    async with Topic(Kafka(), brokers, Counters()) as topic:
        answered = asyncio.ensure_future(topic.answered())
        await until(lambda: "no broker's address is known" in topic.problem)
        assert not answered.done()
        brokers.addresses = cluster.addresses
        async with asyncio.timeout(10):
            await answered


async def test_it_says_why_kafka_does_not_answer() -> None:
    dead = "127.0.0.1:1"
    async with Topic(Kafka(request_timeout_seconds=1.0), BootstrapServers((dead,)), Counters()) as topic:
        await until(lambda: "connection refused" in topic.problem)
        assert topic.problem.startswith(f"Kafka at {dead} (from kafka.bootstrap_servers) does not answer")


async def test_a_port_that_is_not_kafka() -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(http, "127.0.0.1", 0) as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        async with Topic(Kafka(request_timeout_seconds=1.0), BootstrapServers((address,)), Counters()) as topic:
            await until(lambda: "kafka.security_protocol" in topic.problem)


@pytest.mark.parametrize(("code", "advice"), [(UNAUTHORIZED, "grant this client"), (3, "create the topic syslog")])
async def test_a_topic_that_cannot_be_had(cluster: MockKafka, code: int, advice: str) -> None:
    cluster.fail_topic("syslog", code)
    async with Topic(Kafka(), bootstrap(cluster), Counters()) as topic:
        await until(lambda: advice in topic.problem)
        cluster.fail_topic("syslog", 0)
        async with asyncio.timeout(20):
            await topic.answered()


async def test_leaving_with_kafka_down_takes_bounded_time(cluster: MockKafka) -> None:
    loop = asyncio.get_running_loop()
    async with opened(bootstrap(cluster)) as topic:
        sink = topic.sink("peer")
        cluster.set_down()
        waiting = asyncio.ensure_future(deliver(sink, b"stuck"))
        await asyncio.sleep(0.2)
        waiting.cancel()
        start = loop.time()
    assert loop.time() - start < 8
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=50), st.integers(100, 5000))
def test_the_compiled_builder_makes_the_same_bytes_as_the_public_one(records: list[bytes], most: int) -> None:
    ours, public = BatchBuilder(most, 0), BatchBuilder(most, 0)
    fitted = append_records(ours, records, 1_700_000_000_000)
    for record in records:
        if not public.append(timestamp=1_700_000_000_000, key=None, value=record):
            break
    assert fitted == ours.record_count() == public.record_count()
    assert ours._build() == public._build()


def test_aiokafka_is_one_whose_builder_is_known() -> None:
    assert aiokafka.__version__.startswith("0.14.")
