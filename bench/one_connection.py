"""CPU-seconds per million messages on one connection, beside rsyslog's `imptcp` → `omkafka`, in one run.

    .venv/bin/python -m bench.one_connection [--rounds 3] [--messages 1000000]

Both write to the same real Kafka (acks=all), turn and turn about, each to a topic of its own. CPU is user and
system time of all threads of the forwarder. A run that lost a message gives no figure.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import time
from pathlib import Path

from tests.system.parts import Kafka43, Part, Rsyslog, Syslogger, free_port, until

_SIZE = 156
"""Bytes of a message with its LF."""

_RSYSLOG = """
module(load="imptcp")
module(load="omkafka")
template(name="raw" type="string" string="%rawmsg%")
input(type="imptcp" address="127.0.0.1" port="{port}" ruleset="forward")
main_queue(queue.size="100000" queue.dequeueBatchSize="4096")
ruleset(name="forward" queue.type="FixedArray" queue.size="200000" queue.dequeueBatchSize="4096") {{
  action(type="omkafka" broker="{brokers}" topic="{topic}" template="raw" resubmitOnFailure="on" keepFailedMessages="on"
         confParam=["acks=all", "linger.ms=5", "queue.buffering.max.messages=500000"] action.resumeRetryCount="-1")
}}
"""


def message(number: int) -> bytes:
    """Return one message, numbered, with its LF."""
    head = b"<13>Nov 21 08:00:00 web1 bench[4711]: %09d " % number
    return head.ljust(_SIZE - 1, b"x") + b"\n"


def send(port: int, payload: bytes) -> None:
    """Send everything on one connection and close it."""
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.sendall(payload)


def measure(part: Part, port: int, kafka: Kafka43, topic: str, payload: bytes) -> tuple[float, float]:
    """Return CPU-seconds and wall seconds for the messages of `payload`, all of them in the topic."""
    count = payload.count(b"\n")
    before, start = part.cpu_seconds(), time.monotonic()
    send(port, payload)
    until(lambda: sum(kafka.end_offsets(topic).values()) >= count, f"{count} in {topic}", 120, every=0.2)
    wall = time.monotonic() - start
    arrived = sum(kafka.end_offsets(topic).values())
    if arrived != count:
        raise AssertionError(f"{part.name}: {arrived} messages for {count}")
    time.sleep(0.5)
    return part.cpu_seconds() - before, wall


def main() -> None:
    """Run the rounds and print a table."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--messages", type=int, default=1_000_000)
    line = arguments.parse_args()
    payload = b"".join(map(message, range(line.messages)))
    cpu: dict[str, list[float]] = {}
    rate: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, Kafka43(Path(scratch, "kafka")) as kafka:
        for number in range(line.rounds + 1):
            for name in ("syslogger", "rsyslog"):
                topic, port, directory = kafka.create_topic(), free_port(), Path(scratch, f"{name}-{number}")
                if name == "syslogger":
                    listeners = [{"address": f"127.0.0.1:{port}"}]
                    settings = {"bootstrap_servers": [kafka.bootstrap], "topic": topic}
                    part: Part = Syslogger(directory, {"listeners": listeners, "kafka": settings})
                else:
                    config = _RSYSLOG.format(port=port, brokers=kafka.bootstrap, topic=topic)
                    part = Rsyslog(directory, config)
                with part:
                    used, wall = measure(part, port, kafka, topic, payload)
                print(f"round {number} {name}: {used:.2f} CPU-s, {wall:.2f} s", flush=True)
                if number:  # the first round warms Kafka up
                    cpu.setdefault(name, []).append(used * 1e6 / line.messages)
                    rate.setdefault(name, []).append(line.messages / wall)
    for name, values in cpu.items():
        median, spread = statistics.median(values), f"{min(values):.2f}-{max(values):.2f}"
        print(f"{name:10} {median:.2f} CPU-s per million ({spread}), {statistics.median(rate[name]):,.0f} messages/s")
    ratio = statistics.median(cpu["syslogger"]) / statistics.median(cpu["rsyslog"])
    print(f"ratio      {ratio:.2f}")


if __name__ == "__main__":
    main()
