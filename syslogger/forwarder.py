"""The composition root: read down it is the order in which things start, read up the order in which they stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext

from . import logs, service
from .brokers import BootstrapServers, Brokers
from .config import Config, parse_address
from .counters import Counters
from .errors import ConfigError
from .framing.newline import Newline
from .kafka import Topic
from .listener import Connections, Listener, bind
from .streams import Poller

_log = logging.getLogger(__name__)

_RECEIVE_BUFFER_BYTES = 262_144
"""Of each connection, if no setting says otherwise: full speed; 4 MB gave no more."""

_TICK_SECONDS = 1.0


def run(config: Config) -> int:
    """Run the daemon until a signal ends it; return its exit status: 0 when all was delivered, else 1.

    Raises `ConfigError` before anything starts.
    """
    return service.run(lambda stop: Forwarder(config).run(stop))


class Forwarder:
    """The program, made from its configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.counters = Counters()
        self.addresses: list[str] = []
        """Where it listens, once it does."""
        self._waiting = "starting"
        """What it waits for before it is ready, in words; empty once it serves."""
        self._topic: Topic | None = None

    def state(self) -> tuple[bool, str]:
        """Whether it is ready (it listens, and Kafka acknowledges), and if not, why."""
        problem = self._topic.problem if self._topic else ""
        reason = ": ".join(part for part in (self._waiting, problem) if part)
        return not reason, reason or "ready"

    async def run(self, stop: service.Stop) -> int:
        """Start, serve until `stop`, drain; return the exit status."""
        config, counters = self._config, self.counters
        async with AsyncExitStack() as started:
            # 1. Addresses, so that one that is taken is found before anything starts.
            bound: list[tuple[socket.socket, Newline]] = []
            for number in range(len(config.listeners)):
                sockets, framing, problem = bind_listener(config, number)
                for sock in sockets:
                    started.callback(sock.close)
                    bound.append((sock, framing))
                if problem:
                    _log.warning("%s", problem)
            # 2. What is seen of it.
            self._watch(started)
            # 3. Kafka.
            brokers = await started.enter_async_context(_brokers(config))
            topic = self._topic = await started.enter_async_context(Topic(config.kafka, brokers, counters))
            ticks = asyncio.get_running_loop().create_task(self._tick())
            started.callback(ticks.cancel)
            # 4. What is read, once Kafka has answered for the topic.
            largest_read = max(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock, _ in bound)
            poller = started.enter_context(Poller(largest_read))
            connections = Connections(config.max_connections, topic.sink, poller, counters)
            listeners = [Listener(sock, framing, connections, counters) for sock, framing in bound]
            if not await self._kafka_answered(topic, stop):
                return 0
            self._listen(listeners)
            await stop.asked.wait()
            return await self._drain(listeners, connections, stop)

    def _watch(self, started: AsyncExitStack) -> None:
        config = self._config
        if config.prometheus.address:
            from .prometheus import MetricsServer, View  # noqa: PLC0415 - not everyone wants its memory

            view = View(asyncio.get_running_loop(), self.counters, self.state)
            address = parse_address(config.prometheus.address, "prometheus.address")
            try:
                server = started.enter_context(MetricsServer(address, view))
            except OSError as error:
                why = error.strerror or str(error)
                text = f"prometheus.address: cannot listen on {config.prometheus.address}: {why}; choose another port"
                raise ConfigError(text) from error
            _log.info("Metrics are at http://%s:%d/metrics.", *server.address)
        if config.riemann.address:
            from .riemann import Riemann  # noqa: PLC0415 - as above

            settings = config.riemann
            started.enter_context(
                Riemann(
                    address=settings.address,
                    counters=self.counters,
                    interval_seconds=settings.interval_seconds,
                    host=settings.host,
                )
            )

    async def _kafka_answered(self, topic: Topic, stop: service.Stop) -> bool:
        """Wait until Kafka has answered for the topic; False if it is to stop before that."""
        self._waiting = "waiting for Kafka"
        loop = asyncio.get_running_loop()
        answered, asked = loop.create_task(topic.answered()), loop.create_task(stop.asked.wait())
        await asyncio.wait({answered, asked}, return_when=asyncio.FIRST_COMPLETED)
        for task in (answered, asked):
            task.cancel()
        if not answered.done():
            _log.info("Stopped before Kafka had answered; nothing was accepted.")
        return answered.done()

    def _listen(self, listeners: list[Listener]) -> None:
        for listener in listeners:
            try:
                listener.open()
            except OSError as error:
                text = f"listeners: cannot listen on {listener.address}: {error.strerror}; choose another port"
                raise ConfigError(text) from error
        self.addresses = [listener.address for listener in listeners]
        self._waiting = ""
        service.notify("READY=1", f"STATUS=forwarding to topic {self._config.kafka.topic}")
        _log.info("Listening on %s; forwarding to topic %s.", ", ".join(self.addresses), self._config.kafka.topic)

    async def _drain(self, listeners: list[Listener], connections: Connections, stop: service.Stop) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.drain_seconds
        self._waiting = "stopping"
        service.notify("STOPPING=1", "STATUS=delivering what connections still hold")
        _log.info(
            "Stopping: %d connections have %.0f s to end.", self.counters.connections_open, self._config.drain_seconds
        )
        # 1. Nobody new.
        for listener in listeners:
            listener.close()
        # 2. Whoever is here ends, and is read and delivered to the end.
        connections.half_close()
        ended, hurry = loop.create_task(connections.ended()), loop.create_task(stop.at_once.wait())
        await asyncio.wait({ended, hurry}, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, hurry):
            task.cancel()
        # 3. Whoever is left is cut off, and named.
        why = "a second signal came" if stop.at_once.is_set() else "drain_seconds have passed"
        undelivered = await connections.cut_off()
        for peer, size in undelivered:
            _log.error("%d bytes from %s were not delivered: %s.", size, peer, why, extra={"always": True})
        if undelivered:
            total = sum(size for _, size in undelivered)
            _log.error("Stopped with %d bytes from %d peers not delivered.", total, len(undelivered))
            return 1
        _log.info("Stopped; every record received was delivered (%d).", self.counters.records_delivered)
        return 0

    async def _tick(self) -> None:
        """Once a second, what has no better time."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            logs.summarise()


def bind_listener(config: Config, number: int) -> tuple[list[socket.socket], Newline, str]:
    """Bind the addresses of one listener; return the sockets, its framing, and what is wrong with their buffers.

    The framing cuts records at what the kernel's receive buffer can hold; where that is less than
    `max_record_bytes` the text says so, else it is empty. Raises `ConfigError`.
    """
    settings, name = config.listeners[number], f"listeners[{number}]"
    host, port = parse_address(settings.address, f"{name}.address")
    asked = settings.receive_buffer_bytes or max(_RECEIVE_BUFFER_BYTES, 4 * settings.max_record_bytes)
    sockets = bind(host, port, asked, f"{name}.address")
    granted = min(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in sockets)
    # The kernel doubles what is asked for and counts its own overhead in it: half is for the bytes, and a margin.
    largest = granted // 4
    problem = ""
    if largest < settings.max_record_bytes:
        problem = (
            f"{name}.max_record_bytes is {settings.max_record_bytes}, but the kernel grants a receive buffer for "
            f"{largest}: longer records will be cut there. "
            f"Set sysctl net.core.rmem_max to {2 * settings.max_record_bytes} or more."
        )
    return sockets, Newline(min(settings.max_record_bytes, largest), config.kafka.max_batch_records), problem


def _brokers(config: Config) -> AbstractAsyncContextManager[Brokers]:
    if config.kafka.zookeeper:
        from .zookeeper import ZooKeeperBrokers  # noqa: PLC0415 - Kafka 4 has none

        return ZooKeeperBrokers(config.kafka.zookeeper, config.kafka.security_protocol)
    return nullcontext(BootstrapServers(config.kafka.bootstrap_servers))
