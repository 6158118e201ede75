"""`syslogger demo`: the daemon as it is, with a Kafka broker inside the process, and what arrives in the topic.

The broker is librdkafka's mock cluster: real TCP and Kafka's protocol, but in memory, so it shows the
way a record takes and proves nothing about durability.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

from . import logs, service
from .config import Config, Kafka, Listener, Log, Prometheus, parse_address
from .errors import ConfigError
from .forwarder import Forwarder

try:
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
except ImportError as missing:
    raise ConfigError(
        f"The demo needs the Python package confluent-kafka ({missing}): pip install 'syslogger[demo]', or make demo."
    ) from missing

_METRICS = ("127.0.0.1", 9514)

_DRAIN_SECONDS = 5.0
"""Shorter than the daemon's: someone waits at the keyboard."""

_LATEST_SECONDS = 2.0
"""How long the last record may take from its acknowledgement to the screen; it takes a twentieth."""

_POLL_SECONDS = 0.02

_SAMPLES = (
    b"<38>%s web1 sshd[812]: Accepted publickey for ada from 192.0.2.7 port 50022 ssh2",
    b"<78>%s db1 CRON[4711]: (root) CMD (/usr/local/bin/backup --all)",
    "<14>%s web1 shop[33]: Grüße, 世界: UTF-8 arrives as it was sent".encode().replace(b"%%", b"%"),
    b"<14>%s web1 shop[33]: and so do bytes that are no text: \x1b[0m \xff \x00",
)


def demo(listen: str, count: int | None) -> int:
    """Run the daemon with a broker of its own until a signal, or until `count` records were printed.

    Records go to standard output, one a line, what is not printable as ``\\x1b``; all else to standard error.
    Return 0 when every record received was delivered, else 1. Raises `ConfigError` if it cannot listen.
    """
    parse_address(listen, "--listen")
    logs.configure("warning", 30)
    return service.run(lambda stop: _demo(stop, listen, count))


async def _demo(stop: service.Stop, listen: str, count: int | None) -> int:
    loop = asyncio.get_running_loop()
    metrics = _metrics_address(listen)
    with _topic("syslog") as (broker, consumer):
        config = Config(
            listeners=(Listener(address=listen),),
            drain_seconds=_DRAIN_SECONDS,
            kafka=Kafka(bootstrap_servers=(broker,), topic="syslog"),
            prometheus=Prometheus(address=metrics),
            log=Log(level="warning"),
        )
        forwarder, printer = Forwarder(config), _Printer(consumer)
        serving = loop.create_task(forwarder.run(stop))
        printing = loop.create_task(printer.run(count))
        printing.add_done_callback(lambda _: stop.asked.set())
        try:
            # 1. What to do, then the samples, once it listens.
            while not forwarder.addresses and not serving.done():
                await asyncio.sleep(_POLL_SECONDS)
            if forwarder.addresses:
                host, port = _reachable(forwarder.addresses[0])
                _say(_welcome(broker, forwarder.addresses[0], host, port, metrics))
                await _send_samples(host, port)
            # 2. Whatever comes, until it is asked to stop and has delivered what it received.
            try:
                status = await serving
            except ConfigError as error:
                why = str(error).removeprefix("listeners[0].address: ")
                raise ConfigError(f"--listen: {why} (--listen 127.0.0.1:0 takes any free one)") from error
            # 3. What of it is not printed yet.
            counters = forwarder.counters
            deadline = loop.time() + _LATEST_SECONDS
            while (
                printer.printed < counters.records_delivered
                and not printing.done()
                and not stop.at_once.is_set()
                and loop.time() < deadline
            ):
                await asyncio.sleep(_POLL_SECONDS)
            if printing.done():
                await printing  # for its error
        finally:
            printing.cancel()
    _say(f"\n{counters.records_received} records received, {counters.records_delivered} of them in Kafka.")
    return status
