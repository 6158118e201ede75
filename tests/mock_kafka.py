"""librdkafka's mock cluster, inside the test: brokers over real TCP that fail when they are told to.

It checks neither sequences nor sizes and keeps the newest 5 MiB a partition; it proves nothing about durability.
What the Python package does not offer is reached in the same shared library (rdkafka_mock.h).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType
from typing import Self

import confluent_kafka
from confluent_kafka import Consumer, Message, Producer, TopicPartition

PRODUCE = 0
"""An api key of the Kafka protocol."""


def _library() -> ctypes.CDLL:
    beside = Path(confluent_kafka.__file__).parent.with_suffix(".libs")
    (path,) = beside.glob("librdkafka-*.so*")
    library = ctypes.CDLL(path)
    library.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
    library.rd_kafka_handle_mock_cluster.argtypes = [ctypes.c_void_p]
    return library


class MockKafka:
    """A cluster of `brokers`, numbered from 1."""

    def __init__(self, brokers: int = 1) -> None:
        self._producer = Producer({"test.mock.num.brokers": brokers, "log_level": 0})
        known = self._producer.list_topics(timeout=10).brokers.values()
        self.addresses = tuple(sorted(f"{broker.host}:{broker.port}" for broker in known))
        self._library = _library()
        # The C object is the first member behind the Python object's header.
        handle = ctypes.c_void_p.from_address(id(self._producer) + object.__basicsize__)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_handle_mock_cluster(handle))
        assert self._cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        del self._producer

    def _call(self, name: str, *arguments: object) -> None:
        assert getattr(self._library, f"rd_kafka_mock_{name}")(self._cluster, *arguments) == 0, name

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        self._call("topic_create", topic.encode(), partitions, 1)

    def fail_next(self, api_key: int, *codes: int) -> None:
        """Answer the next requests with these error codes; -195 cuts the connection instead."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(self._cluster, api_key, len(codes), array)

    def fail_topic(self, topic: str, code: int) -> None:
        """Answer metadata requests for the topic with an error; 0 ends it."""
        self._library.rd_kafka_mock_topic_set_error(self._cluster, topic.encode(), code)

    def set_down(self, broker: int = 1) -> None:
        self._call("broker_set_down", broker)

    def set_up(self, broker: int = 1) -> None:
        self._call("broker_set_up", broker)

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Make `broker` the leader; -1 for none."""
        self._call("partition_set_leader", topic.encode(), partition, broker)

    def delay(self, milliseconds: int, broker: int = 1) -> None:
        """Answer every request so much later."""
        self._call("broker_set_rtt", broker, milliseconds)

    def records(self, topic: str, partition: int = 0, expected: int = 1) -> list[bytes]:
        """Read the records of a partition from its beginning: at least `expected`, or what comes within 10 s."""
        return [message.value() for message in self.messages(topic, partition, expected)]

    def messages(self, topic: str, partition: int = 0, expected: int = 1) -> list[Message]:
        """Read the messages of a partition from its beginning, as `records` does."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.addresses[0],
                "group.id": "test",
                "auto.offset.reset": "earliest",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
                "log_level": 0,
            }
        )
        consumer.assign([TopicPartition(topic, partition, 0)])
        values: list[Message] = []
        for _ in range(10_000):
            message = consumer.poll(10)
            if message is None:
                break
            if not message.error():
                values.append(message)
            elif len(values) >= expected:
                break
        consumer.close()
        return values
