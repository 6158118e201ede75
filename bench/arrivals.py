"""Counts what arrived in a topic: every number, every byte. A process of its own.

    python -m bench.arrivals '{"bootstrap": …, "topic": …, "expected": N, …}'

It prints `{"primed": true}` when the line that opens the way is in the topic, `{"arrived": true}` when as many as
expected followed it, and then the account. Of a burst it looks at nothing but the topic's end until all is there, and
then reads it; timed lines it reads as they come, and takes the time of each.
"""

from __future__ import annotations

import array
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaException, Message, TopicPartition

from bench.figures import percentile
from bench.lines import PRIME, number, sent_at, timed

_LOOK_SECONDS = 0.1
_MORE_SECONDS = 0.5
"""How long copies are waited for when all has arrived."""


@dataclass
class Account:
    """What became of numbered lines."""

    expected: int
    arrived: int = 0
    lost: int = 0
    twice: int = 0
    foreign: int = 0
    """Records that are no line that was sent, byte for byte."""
    last: float = 0.0
    """When the last one was appended, by the broker's clock, in seconds since 1970."""


class Counter:
    """Ticks lines off."""

    def __init__(self, expected: int, right: Callable[[int, bytes], bool]) -> None:
        self.account = Account(expected, lost=expected)
        self._right = right
        self._seen = bytearray(expected)

    def count(self, line: bytes) -> int:
        """Count one record; return its number, -1 if it is not one of the lines expected."""
        if line == PRIME:
            return -1
        each, account = number(line), self.account
        if not 0 <= each < account.expected or not self._right(each, line):
            account.foreign += 1
            return -1
        if self._seen[each]:
            account.twice += 1
        else:
            self._seen[each] = 1
            account.arrived += 1
            account.lost -= 1
        return each


class _Topic:
    def __init__(self, spec: dict[str, Any]) -> None:
        self._deadline: float = time.monotonic() + spec["seconds"]
        self._partitions = [TopicPartition(spec["topic"], each, 0) for each in range(spec["partitions"])]
        self.consumer = Consumer(
            {
                "bootstrap.servers": spec["bootstrap"],
                "group.id": "none",  # demanded, though nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "fetch.message.max.bytes": 8 << 20,
                "log_level": 0,
            }
        )

    def in_time(self) -> bool:
        """Whether it is still worth waiting."""
        return time.monotonic() < self._deadline

    def ends(self) -> int:
        """Return how many records were appended; -1 while Kafka does not answer."""
        try:
            return self._ends()
        except KafkaException:
            return -1

    def _ends(self) -> int:
        found: int = sum(self.consumer.get_watermark_offsets(each, timeout=10)[1] for each in self._partitions)
        return found

    def wait(self, count: int) -> bool:
        """Return whether so many records were appended in time."""
        while self.ends() < count:
            if not self.in_time():
                return False
            time.sleep(_LOOK_SECONDS)
        return True

    def read(self) -> None:
        """Begin to read everything."""
        self.consumer.assign(self._partitions)


def _appended(message: Message) -> float:
    kind, when = message.timestamp()
    return float(when) / 1000 if kind == TIMESTAMP_LOG_APPEND_TIME else 0.0


def after(topic: _Topic, spec: dict[str, Any]) -> dict[str, Any]:
    """Wait for a burst, then read it and compare it with the file it was sent from."""
    topic.wait(1)
    _say({"primed": True})
    _say({"arrived": topic.wait(spec["expected"] + 1)})
    time.sleep(_MORE_SECONDS)
    lines = Path(spec["payload"]).read_bytes().split(b"\n")
    counter = Counter(spec["expected"], lambda each, line: line == lines[each])
    left, deadline = topic.ends(), time.monotonic() + 120
    topic.read()
    while left > 0 and time.monotonic() < deadline:
        for message in topic.consumer.consume(num_messages=10_000, timeout=0.5):
            if message.error() is None:
                left -= 1
                counter.count(message.value() or b"")
                counter.account.last = max(counter.account.last, _appended(message))
    return asdict(counter.account)


def live(topic: _Topic, spec: dict[str, Any]) -> dict[str, Any]:
    """Read timed lines as they come."""
    expected, line = spec["expected"], timed(spec["size"])
    counter = Counter(expected, lambda each, value: line(sent_at(value), each)[:-1] == value)
    latencies = array.array("Q")
    topic.read()
    poll, clock, primed, arrived = topic.consumer.poll, time.monotonic_ns, False, False
    until = 0.0
    while topic.in_time() and not (arrived and time.monotonic() > until):
        message = poll(0.1)
        now = clock()
        if message is None or message.error() is not None:
            continue
        value = message.value() or b""
        if value == PRIME:
            if not primed:
                _say({"primed": True})
            primed = True
        elif counter.count(value) >= 0:
            latencies.append(now - sent_at(value))
            if counter.account.arrived == expected and not arrived:
                _say({"arrived": True})
                arrived, until = True, time.monotonic() + _MORE_SECONDS
                counter.account.last = _appended(message)
    if not arrived:
        _say({"arrived": False})
    ordered = sorted(latencies) or [0]
    times = {name: percentile(ordered, share) / 1e6 for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}
    return asdict(counter.account) | times


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Do what the line says."""
    spec = json.loads(sys.argv[1])
    topic = _Topic(spec)
    _say((after if "payload" in spec else live)(topic, spec))
    topic.consumer.close()


if __name__ == "__main__":
    main()
