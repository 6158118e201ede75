"""Values and keys: what arrives, in which partition; as other clients would choose it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import confluent_kafka
import pytest

from syslogger.brokers import BootstrapServers
from syslogger.config import Kafka
from syslogger.counters import Counters
from syslogger.kafka import Topic, lane
from syslogger.kafka.lane import Outlet
from syslogger.kafka.values import Values, ValuesOutlet
from tests.mock_kafka import PRODUCE, MockKafka

PEER = "192.0.2.1:50123"


def record(host: str, tag: str = "app", number: int = 0) -> bytes:
    return f"<13>Nov 21 08:00:00 {host} {tag}[7]: {number}".encode()


@asynccontextmanager
async def opened(cluster: MockKafka, **settings: Any) -> AsyncIterator[Topic]:
    settings = {"request_timeout_seconds": 1.0, "commit_interval_seconds": 0.0} | settings
    async with Topic(Kafka(**settings), BootstrapServers(cluster.addresses), Counters()) as topic:
        async with asyncio.timeout(20):
            await topic.answered()
        yield topic


async def deliver(sink: Outlet, records: Sequence[bytes]) -> None:
    async with asyncio.timeout(20):
        if room := sink.room():
            await room
        await sink.deliver(records, sum(map(len, records)))


def partitioned_by_librdkafka(cluster: MockKafka, keys: list[bytes], partitions: int) -> dict[bytes, int]:
    """Return the partition that another client chooses for each key."""
    cluster.create_topic("theirs", partitions)
    producer = confluent_kafka.Producer({"bootstrap.servers": cluster.addresses[0], "partitioner": "murmur2"})
    found: dict[bytes, int] = {}
    for key in keys:
        producer.produce("theirs", b"", key, on_delivery=lambda _, sent: found.update({sent.key(): sent.partition()}))
    assert producer.flush(20) == 0
    return found


async def test_a_plain_topic_has_plain_outlets(cluster: MockKafka) -> None:
    async with opened(cluster) as topic:
        assert type(topic.sink(PEER)) is Outlet
    async with opened(cluster, value="json") as topic:
        assert type(topic.sink(PEER)) is ValuesOutlet


async def test_json(cluster: MockKafka) -> None:
    before = time.time()
    async with opened(cluster, value="json", zone="Europe/Berlin") as topic:
        await deliver(topic.sink(PEER), [record("web1", number=1), b"\xff odd"])
    (first, second) = map(json.loads, cluster.records("syslog", expected=2))
    assert (first["hostname"], first["tag"], first["procid"], first["content"]) == ("web1", "app", "7", "1")
    assert first["timestamp"].endswith("-11-21T08:00:00+01:00")
    assert first["peer"] == PEER
    assert second["raw"] == "\U0010f7ff odd"
    assert first["received_at"][:13] in {time.strftime("%Y-%m-%dT%H", time.gmtime(at)) for at in (before, time.time())}


async def test_the_go_programs_json(cluster: MockKafka) -> None:
    async with opened(cluster, value="json-go") as topic:
        await deliver(topic.sink(PEER), [record("web1")])
    (value,) = map(json.loads, cluster.records("syslog"))
    assert sorted(value) == ["content", "facility", "hostname", "priority", "severity", "tag", "timestamp"]


@pytest.mark.parametrize("partitions", [1, 7])
@pytest.mark.parametrize("value", ["raw", "json"])
async def test_a_key_goes_where_other_clients_send_it(cluster: MockKafka, value: str, partitions: int) -> None:
    cluster.create_topic("ours", partitions)
    hosts = [f"web{number}.example.com" for number in range(60)]
    records = [record(hosts[number % 60], number=number) for number in range(600)]
    async with opened(cluster, topic="ours", key="hostname", value=value) as topic:
        sink = topic.sink(PEER)
        for begin in range(0, 600, 200):
            await deliver(sink, records[begin : begin + 200])
        assert topic.counters.batch_records.sum == 600
    theirs = partitioned_by_librdkafka(cluster, [host.encode() for host in hosts], partitions)
    assert len(set(theirs.values())) == partitions
    found: dict[bytes, list[bytes]] = {}
    for partition in range(partitions):
        for message in cluster.messages("ours", partition, expected=1):
            assert theirs[message.key()] == partition
            content = json.loads(message.value())["content"] if value == "json" else message.value()
            found.setdefault(message.key(), []).append(content if value == "raw" else content.encode())
    for number, host in enumerate(hosts):
        expected = [record(host, number=each) for each in range(number, 600, 60)]
        if value == "json":
            expected = [each.rpartition(b" ")[2] for each in expected]
        assert found[host.encode()] == expected, "in order, none twice, none missing"


async def test_keys(cluster: MockKafka) -> None:
    async def keys(key: str, peer: str) -> list[bytes | None]:
        name = f"{key}.{peer.translate({ord(each): '.' for each in '[]:/'})}"
        cluster.create_topic(name)
        async with opened(cluster, topic=name, key=key) as topic:
            await deliver(topic.sink(peer), [record("web1", "sshd"), b"odd", b"<13>Nov 21 08:00:00 web1 a\xff: x"])
        return [message.key() for message in cluster.messages(name, expected=3)]

    assert await keys("hostname", PEER) == [b"web1", None, b"web1"]
    assert await keys("appname", PEER) == [b"sshd", None, b"a\xff"]
    assert await keys("peer", PEER) == [b"192.0.2.1"] * 3
    assert await keys("peer", "[2001:db8::1]:50123") == [b"2001:db8::1"] * 3
    assert await keys("peer", "unix:/run/log:1") == [b"unix:/run/log:1"] * 3
    assert await keys("none", PEER) == [None] * 3


async def test_what_has_no_key_keeps_to_its_connections_partition(cluster: MockKafka) -> None:
    cluster.create_topic("four", 4)
    async with opened(cluster, topic="four", key="hostname") as topic:
        sinks = [topic.sink(PEER) for _ in range(4)]
        for number in range(3):
            for connection, sink in enumerate(sinks):
                await deliver(sink, [b"odd %d %d" % (connection, number)])
    found = [cluster.records("four", partition, expected=3) for partition in range(4)]
    assert sorted(found) == [[b"odd %d %d" % (connection, number) for number in range(3)] for connection in range(4)]


async def test_a_delivery_is_over_when_all_its_parts_are(cluster: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "BACKOFF_SECONDS", (0.02, 0.1))
    cluster.create_topic("two", 2)
    hosts = [f"web{number}" for number in range(20)]
    async with opened(cluster, topic="two", key="hostname") as topic:
        sink = topic.sink(PEER)
        await deliver(sink, [record(host) for host in hosts])
        cluster.lead("two", 0, -1)
        waiting = sink.deliver([record(host, number=1) for host in hosts], 1)
        async with asyncio.timeout(20):
            while topic.counters.batches < 3:  # noqa: ASYNC110 - the counters tell nobody
                await asyncio.sleep(0.01)
        assert not waiting.done(), "one partition has its part, the other has no leader"
        cluster.lead("two", 0, 1)
        async with asyncio.timeout(20):
            await waiting
    assert all(len(cluster.records("two", partition, expected=2)) % 2 == 0 for partition in range(2))


async def test_a_cancelled_delivery_is_let_go_in_all_its_parts(cluster: MockKafka) -> None:
    cluster.create_topic("two", 2)
    cluster.delay(300)
    async with opened(cluster, topic="two", key="hostname") as topic:
        sink, hosts = topic.sink(PEER), [f"web{number}" for number in range(20)]
        first = sink.deliver([record(host) for host in hosts], 1)
        await asyncio.sleep(0.1)
        second = sink.deliver([record(host, number=1) for host in hosts], 1)
        second.cancel()
        third = sink.deliver([record(host, number=2) for host in hosts], 1)
        async with asyncio.timeout(20):
            await asyncio.gather(first, third)
    contents = {each[-1:] for partition in range(2) for each in cluster.records("two", partition, expected=2)}
    assert contents == {b"0", b"2"}


async def test_no_room_in_one_partition_is_no_room(cluster: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "ROOM_BYTES", 100)
    cluster.create_topic("two", 2)
    cluster.delay(200)
    async with opened(cluster, topic="two", key="peer") as topic:
        sinks = [topic.sink(f"192.0.2.{number}:1") for number in range(8)]
        waits = [sinks[0].deliver([b"x" * 200], 200) for _ in range(2)]
        await asyncio.sleep(0.05)
        waits.append(sinks[0].deliver([b"x" * 200], 200))
        rooms = [sink.room() for sink in sinks]
        assert all(rooms), "whichever partition a peer's own is"
        async with asyncio.timeout(20):
            for room in rooms:
                assert room
                await room
            await asyncio.gather(*waits)
        assert sinks[0].room() is None


async def test_a_dead_letter_keeps_its_key(cluster: MockKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "BACKOFF_SECONDS", (0.02, 0.1))
    cluster.create_topic("syslog.dead-letter")
    async with opened(cluster, key="hostname") as topic:
        cluster.fail_next(PRODUCE, 87)
        await deliver(topic.sink(PEER), [record("web1")])
    (dead,) = cluster.messages("syslog.dead-letter")
    assert (dead.key(), dead.value()) == (b"web1", record("web1"))


def test_what_is_remembered_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syslogger.kafka.values._CACHE_ENTRIES", 10)
    values = Values(Kafka(key="hostname"))
    first = [values.hash(b"%d" % number) for number in range(100)]
    assert [values.hash(b"%d" % number) for number in range(100)] == first
    assert len(values._hashes) <= 10
