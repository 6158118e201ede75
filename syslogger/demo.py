"""The whole way of a record on one machine: the daemon as it is, a Kafka broker inside the process, its topic shown.

The broker is librdkafka's mock cluster: Kafka's protocol over real TCP, but in memory. It shows the way and proves
nothing about durability.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from math import inf

from . import logs, service
from .config import Config, Kafka, Listener, Prometheus, parse_address
from .errors import ConfigError
from .forwarder import Forwarder
from .watch import printable

try:
    from confluent_kafka import Consumer, Producer, TopicPartition
except ImportError as error:
    raise ConfigError(
        f"The demo needs the package confluent-kafka ({error}): in the sources make demo, or pip install '.[demo]'."
    ) from error

_TOPIC = "syslog"
_METRICS = "127.0.0.1:9514"

_DRAIN_SECONDS = 5.0
"""The daemon takes up to 30, but here someone waits at the keyboard."""

_SHOWN_SECONDS = 2.0
"""How long an acknowledged record may take to the screen; it takes some 50 ms."""

_POLL_SECONDS = 0.02

_SAMPLES = (
    b"<38>%s web1 sshd[812]: Accepted publickey for ada from 192.0.2.7 port 50022 ssh2",
    b"<78>%s db1 CRON[4711]: (root) CMD (/usr/local/bin/backup --all)",
    "<14>%s web1 shop[33]: Grüße, 世界: UTF-8 arrives as it was sent".encode(),
    b"<14>%s web1 shop[33]: and so do bytes that are no text: \x00 \x1b \xff",
)

_WELCOME = """\
syslogger listens on {listen} and appends to a topic of a Kafka broker that is
inside this process, at {broker} and in memory only.

    Send a record from another terminal:  logger -n {host} -P {port} -T hello
    Watch it in a browser:                {watch}
    Watch it in a terminal:               syslogger top
    End:                                  Ctrl-C

{samples} samples and what you send, as they arrive in the topic:
"""


def demo(listen: str, count: int | None) -> int:
    r"""Run the daemon with a broker of its own until a signal comes, or `count` records were printed.

    Each record of the topic, the samples' too, is one line on standard output, with bytes that cannot be
    printed as ``\x1b``; everything else goes to standard error. Return 0 when every record received was
    delivered or `count` were printed, else 1. Raises `ConfigError` if it cannot listen on `listen`.
    """
    parse_address(listen, "--listen")
    logs.configure("warning", 30)
    return service.run(lambda stop: _demo(stop, listen, count))


async def _demo(stop: service.Stop, listen: str, count: int | None) -> int:
    with _topic() as (broker, consumer):
        try:
            return await _show(stop, _config(listen, broker, _METRICS), count, consumer)
        except ConfigError as error:
            # Raised before anything started. A port that the user did not choose is no reason to end.
            if not str(error).startswith("prometheus.address"):
                raise
        return await _show(stop, _config(listen, broker, ""), count, consumer)


def _config(listen: str, broker: str, metrics: str) -> Config:
    return Config(
        listeners=(Listener(address=listen),),
        drain_seconds=_DRAIN_SECONDS,
        kafka=Kafka(bootstrap_servers=(broker,), topic=_TOPIC),
        prometheus=Prometheus(address=metrics),
    )


async def _show(stop: service.Stop, config: Config, count: int | None, consumer: Consumer) -> int:
    """Run the daemon, and print what arrives in the topic; return the exit status."""

    def printed(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            stop.asked.set()

    loop = asyncio.get_running_loop()
    forwarder, printer = Forwarder(config), _Printer(consumer)
    serving = loop.create_task(_serve(forwarder, stop))
    printing = loop.create_task(printer.run(count))
    printing.add_done_callback(printed)
    try:
        # 1. What to do and the samples, once it listens.
        await _until(lambda: bool(forwarder.addresses) or serving.done())
        if forwarder.addresses:
            await _introduce(forwarder.addresses[0], config)
        # 2. Whatever comes, until it is to stop and has delivered what it received.
        status = await _served(serving)
        # 3. What was delivered and is not printed yet.
        counters = forwarder.counters
        await _until(
            lambda: printer.printed >= counters.records_delivered or printing.done() or stop.at_once.is_set(),
            _SHOWN_SECONDS,
        )
        if printing.done():
            printing.result()
    finally:
        printing.cancel()
    _say(f"\n{counters.records_received} records received, {counters.records_delivered} delivered to the topic.")
    return 0 if printer.printed == count else status


async def _serve(forwarder: Forwarder, stop: service.Stop) -> int:
    """Run the daemon until it is to stop. A demo is never reloaded: its broker would be gone."""
    only_stop = service.Stop()
    only_stop.asked, only_stop.at_once = stop.asked, stop.at_once
    status = await forwarder.run(only_stop)
    assert isinstance(status, int)  # noqa: S101 - nobody asked for another end
    return status


async def _introduce(listen: str, config: Config) -> None:
    """Say what there is and what to do, then send the samples as rsyslog would: a line each, on one connection."""
    host, port = _reachable(listen)
    metrics = config.prometheus.address
    _say(
        _WELCOME.format(
            listen=listen,
            broker=config.kafka.bootstrap_servers[0],
            host=host,
            port=port,
            watch=f"http://{metrics}/" if metrics else "(port 9514 is taken)",
            samples=len(_SAMPLES),
        )
    )
    now = time.strftime("%b %e %H:%M:%S").encode()
    # A signal may have closed the listener meanwhile.
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(b"".join(sample % now + b"\n" for sample in _SAMPLES))
        writer.close()
        await writer.wait_closed()


async def _until(condition: Callable[[], bool], seconds: float = inf) -> None:
    """Return when `condition` holds or `seconds` have passed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition() and loop.time() < deadline:  # noqa: ASYNC110 - no event tells of most of them
        await asyncio.sleep(_POLL_SECONDS)


async def _served(serving: asyncio.Task[int]) -> int:
    """Return the daemon's exit status. Raises its `ConfigError` in the words of the demo's flags."""
    try:
        return await serving
    except ConfigError as error:
        setting, _, why = str(error).partition(": ")
        if not setting.startswith("listeners"):
            raise
        raise ConfigError(f"--listen: {why} (--listen 127.0.0.1:0 takes one that is free)") from error


@contextmanager
def _topic() -> Iterator[tuple[str, Consumer]]:
    """Start a broker with an empty topic; give its address, ``host:port``, and a consumer that reads it all."""
    producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    # Asking for the topic makes it.
    cluster = producer.list_topics(_TOPIC, timeout=10)
    (broker,) = cluster.brokers.values()
    address = f"{broker.host}:{broker.port}"
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": "demo",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            # The mock cluster answers a fetch that found nothing when this time is up, whatever comes meanwhile.
            "fetch.wait.max.ms": 50,
            "log_level": 0,
        }
    )
    try:
        consumer.assign([TopicPartition(_TOPIC, partition, 0) for partition in cluster.topics[_TOPIC].partitions])
        yield address, consumer
    finally:
        consumer.close()
        # The broker lives as long as the producer it came with.
        del producer


class _Printer:
    """Prints the records of a topic."""

    def __init__(self, consumer: Consumer) -> None:
        self.printed = 0
        self._consumer = consumer

    async def run(self, count: int | None) -> None:
        """Print each record as it arrives; return when `count` were printed or nobody reads standard output."""
        most = sys.maxsize if count is None else count
        while self.printed < most:
            # With no time to wait it gives what is here already, and does not block.
            messages = self._consumer.consume(1000, timeout=0)
            records = [message.value() or b"" for message in messages if not message.error()][: most - self.printed]
            if not records:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            try:
                # Standard output may be a pipe that is full.
                await asyncio.to_thread(_print, records)
            except BrokenPipeError:
                return
            self.printed += len(records)


def _print(records: list[bytes]) -> None:
    data = "".join(f"{printable(record)}\n" for record in records).encode(sys.stdout.encoding, "backslashreplace")
    # Not by sys.stdout: what a closed pipe did not take it would try to write again at the exit, and fail.
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _reachable(address: str) -> tuple[str, int]:
    """Return the host and port by which this machine reaches a listener's `address`."""
    host, port = parse_address(address, "--listen")
    ip = ip_address(host)
    if ip.is_unspecified:
        host = "127.0.0.1" if ip.version == 4 else "::1"  # noqa: PLR2004 - IPv4
    return host, port
