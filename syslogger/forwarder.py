"""The composition root: read down it is the order in which things start, read up the order in which they stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from typing import Any, NoReturn

from . import last_stop, logs, service
from .admission import Admission, Networks
from .brokers import BootstrapServers, Brokers
from .config import Config, parse_address, unix_path
from .counters import Counters
from .errors import ConfigError
from .framing import Framing
from .framing.detected import Detected
from .framing.newline import Newline
from .framing.octet_counted import OctetCounted
from .framing.relp import Relp
from .kafka import Topic
from .listener import Connections, Listener, Terms, bind, cannot_listen, is_listening, name_of
from .status import status
from .streams import Poller, largest_receive_buffer, unread
from .tap import Tap
from .tls import Tls
from .unix_sockets import bind_unix, close_bound

_log = logging.getLogger(__name__)

_RECEIVE_BUFFER_BYTES = 262_144
"""Of each connection, if no setting says otherwise: full speed; 4 MB gave no more."""

_RECEIVE_BUFFER_SHARE = 0.7
"""Of the largest that the kernel grants. The rest is for when an unfinished record fills it (`streams`)."""

_READ_BYTES = 262_144
"""The most that one read shows of a connection. At 450 kB a flood made the p99 of a thousand quiet peers 1.8 times what
it was alone, at this 1.4 times, and was no faster."""

_FRAMINGS: dict[str, Callable[[int, int], Framing]] = {
    "auto": Detected,
    "newline": Newline,
    "octet_counted": OctetCounted,
}

_TICK_SECONDS = 1.0

_HAND_OVER_SECONDS = 5.0
"""How long a reload waits for what is in flight; with Kafka down it goes on without."""


def run(config: Config) -> int:
    """Run the daemon until a signal ends it; return its exit status: 0 when all was delivered, else 1.

    Raises `ConfigError` before anything starts.
    """
    return service.run(lambda stop: Forwarder(config).run(stop))


class Forwarder:
    """The program, made from its configuration."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.counters = Counters(max_connections=config.max_connections, last_stop=last_stop.read())
        self.addresses: list[str] = []
        """Where it listens, once it does."""
        self._waiting = "starting"
        """What it waits for before it is ready, in words; empty once it serves."""
        self._topic: Topic | None = None
        self._connections: Connections | None = None
        self._held: list[str] = []
        """The ports and paths that are its own: whoever takes its place finds them taken, and is given them."""

    def state(self) -> tuple[bool, str]:
        """Whether it is ready (it listens, and Kafka acknowledges), and if not, why."""
        problem = self._topic.problem if self._topic else ""
        waiting = self._waiting or ("waiting for Kafka" if problem else "")
        reason = ": ".join(part for part in (waiting, problem) if part)
        return not reason, reason or "ready"

    async def status(self) -> dict[str, Any]:
        """Say what it is at, in plain values; see `status`."""
        peers = self._connections.peers if self._connections else []
        return await status(self.counters, self.state(), listening=self.addresses, topic=self._topic, peers=peers)

    async def run(self, stop: service.Stop) -> int | service.Handover:
        """Start, serve until `stop`, drain; return the exit status, or what the next process is to carry on with."""
        config, counters = self._config, self.counters
        async with AsyncExitStack() as started:
            # 1. Addresses, so that one that is taken is found before anything starts.
            manager = started.enter_context(service.Manager())
            bound, peers = self._sockets(manager)
            started.callback(self._close, list(bound), peers)
            self._held += [_place(sock) for sock in bound]
            # 2. What is seen of it.
            self._watch(started)
            # 3. Kafka.
            brokers = await started.enter_async_context(_brokers(config))
            topic = self._topic = await started.enter_async_context(Topic(config.kafka, brokers, counters))
            await started.enter_async_context(Tap(config.tap.path, topic.show))
            manager.tell("READY=1")
            ticks = asyncio.get_running_loop().create_task(self._tick(manager))
            started.callback(ticks.cancel)
            # 4. What is read, once Kafka has answered for the topic: who is here already, then who comes.
            # More than the largest record, or the rest of one would never come to be seen.
            largest_record = max(terms.framing.max_record_bytes for terms in bound.values())
            read_bytes = max(_READ_BYTES, 2 * largest_record)
            poller = started.enter_context(Poller(read_bytes, config.kafka.commit_interval_seconds))
            connections = self._connections = Connections(
                config.max_connections,
                topic.sink,
                poller,
                manager,
                counters,
                most_per_address=config.max_connections_per_address,
            )
            listeners = [Listener(sock, terms, connections, manager, counters) for sock, terms in bound.items()]
            self._waiting = "waiting for Kafka"
            await _first(topic.answered(), stop.asked.wait(), self._reloaded(stop))
            if stop.asked.is_set() and any(map(unread, peers)):
                # What the process before has left is to be delivered, as in any stop.
                self._waiting = "stopping"
                await _first(topic.answered(), stop.at_once.wait(), seconds=config.drain_seconds)
            if not topic.has_answered:
                return self._stopped_waiting(list(bound), peers, stop)
            for peer in peers:
                connections.adopt(peer, _terms_of(peer, bound))
            self._listen(listeners)
            while True:
                await _first(stop.asked.wait(), self._reloaded(stop))
                if stop.asked.is_set():
                    return await self._drain(listeners, connections, stop)
                if handover := await self._hand_over(listeners, connections, topic, stop):
                    return handover

    def _close(self, bound: list[socket.socket], peers: list[socket.socket]) -> None:
        """Close what nothing else has closed, unless the next process has use for it."""
        if self._waiting != "reloading":
            for sock in bound:
                close_bound(sock)
            for sock in peers:
                sock.close()

    def _sockets(self, manager: service.Manager) -> tuple[dict[socket.socket, Terms], list[socket.socket]]:
        """Return the sockets to listen on, bound, each with its terms; and the connections of the process before.

        What a process of ours listened on and what a socket unit opened is used where a listener has that address.
        """
        config = self._config
        tls = [listener_tls(config, number) for number in range(len(config.listeners))]
        for listener, each in zip(config.listeners, tls, strict=True):
            if each:
                self.counters.certificate_expiry_seconds[listener.address] = each.expires
                if each.expires < time.time():
                    text = "The certificate of %s (%s) has expired: peers will refuse it. Renew it and reload."
                    _log.error(text, listener.address, listener.tls.certificate_file)
        ours, units = service.inherited()
        peers = [sock for sock in ours if not is_listening(sock)]
        # The units' first: what the store has of them too is not needed.
        listening = units + [sock for sock in ours if is_listening(sock)]
        bound: dict[socket.socket, Terms] = {}
        # A socket unit alone says where to listen, if nothing else does.
        only_units = units and config.listeners == Config().listeners
        for number in range(0 if only_units else len(config.listeners)):
            sockets, framing, problem = bind_listener(config, number, listening)
            bound |= dict.fromkeys(sockets, Terms(framing, _admission(config, number), tls[number]))
            if problem:
                _log.warning("%s", problem)
        for sock in listening:
            if sock in units:
                framing = _framing(config, 0, config.listeners[0].max_record_bytes)
                bound[sock] = Terms(framing, _admission(config, 0), tls[0])
            else:
                manager.forget(sock)
                close_bound(sock)
        return bound, peers

    async def _reloaded(self, stop: service.Stop) -> None:
        """Return when a reload was asked for and a new start of the program would succeed."""
        while True:
            await stop.reload.wait()
            stop.reload.clear()
            _log.info("Reloading: trying a new start with the configuration and the code as they are now.")
            problem = await service.rehearse(",".join(self._held))
            if not problem:
                return
            _log.error("Not reloaded, and running on as before: %s", problem, extra={"always": True})

    def _stopped_waiting(
        self, bound: list[socket.socket], peers: list[socket.socket], stop: service.Stop
    ) -> int | service.Handover:
        """End before Kafka has answered."""
        if not stop.asked.is_set():
            self._waiting = "reloading"
            return service.Handover([*(sock for sock in bound if is_listening(sock)), *peers])
        held = [(peer, size) for peer, size in ((name_of(sock), unread(sock)) for sock in peers) if size]
        _log.info("Stopped before Kafka had answered; nothing was accepted.")
        return _report(held, "Kafka had not answered")

    async def _hand_over(
        self, listeners: list[Listener], connections: Connections, topic: Topic, stop: service.Stop
    ) -> service.Handover | None:
        """Stop in a way that the next process can go on from: same sockets, nothing half delivered.

        None if TLS connections could not be brought to their end in time, or a stop was asked for: all goes on.
        """
        self._waiting = "reloading"
        # 1. Nobody new; who connects waits in the backlog.
        for listener in listeners:
            listener.pause()
        await connections.announced()
        # 2. Who speaks TLS ends, and is read and delivered to the end: its keys cannot be handed over.
        seconds = self._config.drain_seconds
        if not await _first(connections.untransferable_ended(), stop.asked.wait(), seconds=seconds):
            text = "Not reloaded, and running on as before: TLS connections had not ended within drain_seconds."
            _log.error(text, extra={"always": True})
        if connections.untransferable or stop.asked.is_set():
            self._listen(listeners)
            return None
        # 3. What was read is delivered and consumed.
        if not await topic.finish(_HAND_OVER_SECONDS):
            _log.warning("Reloading while Kafka acknowledges nothing: what is in flight may come twice.")
        # 4. The rest is in the kernel.
        return service.Handover([listener.socket for listener in listeners] + await connections.release())

    def _watch(self, started: AsyncExitStack) -> None:
        config = self._config
        if config.prometheus.address:
            from .prometheus import MetricsServer, View  # noqa: PLC0415 - not everyone wants its memory

            view = View(asyncio.get_running_loop(), self.counters, self.state, self.status)
            address = parse_address(config.prometheus.address, "prometheus.address")
            try:
                server = started.enter_context(MetricsServer(address, view))
            except OSError as error:
                raise cannot_listen("prometheus.address", *address, error) from error
            self._held.append(str(server.address[1]))
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

    def _listen(self, listeners: list[Listener]) -> None:
        for listener in listeners:
            try:
                listener.open()
            except OSError as error:
                text = f"listeners: cannot listen on {listener.address}: {error.strerror}; choose another port"
                raise ConfigError(text) from error
        self.addresses = [listener.address for listener in listeners]
        self._waiting = ""
        _log.info("Listening on %s; forwarding to topic %s.", ", ".join(self.addresses), self._config.kafka.topic)

    async def _drain(self, listeners: list[Listener], connections: Connections, stop: service.Stop) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.drain_seconds
        self._waiting = "stopping"
        _log.info(
            "Stopping: %d connections have %.0f s to end.", self.counters.connections_open, self._config.drain_seconds
        )
        # 1. Nobody new.
        for listener in listeners:
            listener.close()
        # 2. Whoever is here ends, and is read and delivered to the end.
        connections.half_close()
        await _first(connections.ended(), stop.at_once.wait(), seconds=deadline - loop.time())
        # 3. Whoever is left is cut off, and named.
        why = "a second signal came" if stop.at_once.is_set() else "drain_seconds have passed"
        cut_off = await connections.cut_off()
        if self.counters.records_in_flight and not cut_off:
            text = (
                "Stopped with %d records that Kafka had not acknowledged: %s. Over RELP, their senders send them again."
            )
            _log.warning(text, self.counters.records_in_flight, why)
        elif not cut_off:
            _log.info("Stopped; every record received was delivered (%d).", self.counters.records_delivered)
        return _report(cut_off, why)

    async def _tick(self, manager: service.Manager) -> NoReturn:
        """Once a second, what has no better time. The watchdog hears from here: that the loop goes round."""
        watched = ["WATCHDOG=1"] if manager.watchdog_seconds else []
        while True:
            logs.summarise()
            stopping = self._waiting == "stopping"
            more_time = ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(3e6 * _TICK_SECONDS)}"] if stopping else []
            ready, reason = self.state()
            status = f"forwarding to topic {self._config.kafka.topic}" if ready else reason
            manager.tell(*watched, *more_time, f"STATUS={status}, {self.counters.connections_open} connections")
            await asyncio.sleep(_TICK_SECONDS)


def rehearse(config: Config, held: str) -> None:
    """Do of a start what needs no Kafka: import what `config` asks for, read the files it names, bind its addresses.

    `held` are the ports and paths, comma separated, of the process whose place is to be taken. Raises `ConfigError`.
    """
    taken = held.split(",")
    addresses = [(f"listeners[{number}].address", each.address) for number, each in enumerate(config.listeners)]
    addresses += [("prometheus.address", config.prometheus.address)] if config.prometheus.address else []
    for name, address in addresses:
        if path := unix_path(address, name):
            if path not in taken:
                close_bound(bind_unix(path, 0o600, name))
            continue
        host, port = parse_address(address, name)
        if str(port) not in taken:
            for sock in bind(host, port, _RECEIVE_BUFFER_BYTES, name):
                sock.close()
    for number in range(len(config.listeners)):
        listener_tls(config, number)
    Topic(config.kafka, BootstrapServers(()), Counters())
    _brokers(config)
    if config.prometheus.address:
        from . import prometheus  # noqa: F401, PLC0415 - whether it can be
    if config.riemann.address:
        from . import riemann  # noqa: F401, PLC0415 - as above


def _report(cut_off: list[tuple[str, int]], why: str) -> int:
    """Log what was not delivered, of each peer how many bytes, and keep the sum; return the exit status."""
    undelivered = [(peer, size) for peer, size in cut_off if size]
    last_stop.write(sum(size for _, size in undelivered), len(cut_off))
    for peer, size in undelivered:
        _log.error("%d bytes from %s were not delivered: %s.", size, peer, why, extra={"always": True})
    if undelivered:
        total = sum(size for _, size in undelivered)
        _log.error("Stopped with %d bytes from %d peers not delivered.", total, len(undelivered))
    if not_ended := [peer for peer, size in cut_off if not size]:
        text = "%d peers had not ended (%s was one): %s. What was still on its way from them is lost."
        _log.error(text, len(not_ended), not_ended[0], why)
    return int(bool(cut_off))


async def _first(*waits: Coroutine[None, None, object], seconds: float | None = None) -> bool:
    """Return when one of them has returned, or (False) after so many seconds; the others are cancelled."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _terms_of(peer: socket.socket, bound: dict[socket.socket, Terms]) -> Terms:
    """Return the terms of the listener that a connection came through, or of another if it is no more.

    Not of a RELP one then, if there is another: what is no RELP would be lost.
    """
    by_place = {_place(sock): terms for sock, terms in bound.items()}
    return by_place.get(_place(peer)) or min(bound.values(), key=lambda terms: terms.answered)


def _place(sock: socket.socket) -> str:
    """Return the port or the path of a socket's own address."""
    address = sock.getsockname()
    return str(address if sock.family == socket.AF_UNIX else address[1])


def listener_tls(config: Config, number: int) -> Tls | None:
    """Return the TLS of one listener, its files read; None if it is plain TCP. Raises `ConfigError`."""
    settings = config.listeners[number].tls
    return Tls(settings, f"listeners[{number}].tls") if settings.certificate_file else None


def bind_listener(
    config: Config, number: int, inherited: list[socket.socket] | None = None
) -> tuple[list[socket.socket], Framing, str]:
    """Bind the addresses of one listener; return the sockets, its framing, and what is wrong with their buffers.

    Sockets of `inherited` that have such an address are taken from that list.

    The framing cuts records at what the kernel's receive buffer can hold; where that is less than
    `max_record_bytes` the text says so, else it is empty. Raises `ConfigError`.
    """
    settings, name = config.listeners[number], f"listeners[{number}]"
    if path := unix_path(settings.address, f"{name}.address"):
        sock = bind_unix(path, int(settings.unix_mode, 8), f"{name}.address", inherited)
        return [sock], _framing(config, number, settings.max_record_bytes), ""
    host, port = parse_address(settings.address, f"{name}.address")
    asked = settings.receive_buffer_bytes or max(_RECEIVE_BUFFER_BYTES, 4 * settings.max_record_bytes)
    asked = min(asked, int(_RECEIVE_BUFFER_SHARE * largest_receive_buffer() / 2))
    sockets = bind(host, port, asked, f"{name}.address", inherited)
    granted = min(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) for sock in sockets)
    # The kernel doubles what is asked for and counts its own overhead in it: half is for the bytes, and a margin.
    largest = granted // 4
    problem = ""
    if largest < settings.max_record_bytes:
        problem = (
            f"{name}.max_record_bytes is {settings.max_record_bytes}, but the kernel grants a receive buffer for "
            f"{largest}: longer records will be cut there. "
            f"Set sysctl net.core.rmem_max to {3 * settings.max_record_bytes} or more."
        )
    return sockets, _framing(config, number, min(settings.max_record_bytes, largest)), problem


def _framing(config: Config, number: int, max_record_bytes: int) -> Framing:
    """Return the framing that a listener asks for."""
    listener = config.listeners[number]
    kind = Relp if listener.protocol == "relp" else _FRAMINGS[listener.framing]
    return kind(max_record_bytes, config.kafka.max_batch_records)


def _admission(config: Config, number: int) -> Admission:
    """Return what a listener asks of who comes."""
    settings = config.listeners[number]
    return Admission(
        f"listeners[{number}]",
        Networks(settings.allow),
        Networks(settings.proxy_protocol_from),
        settings.max_connection_age_seconds,
    )


def _brokers(config: Config) -> AbstractAsyncContextManager[Brokers]:
    if config.kafka.zookeeper:
        from .zookeeper import ZooKeeperBrokers  # noqa: PLC0415 - Kafka 4 has none

        return ZooKeeperBrokers(config.kafka.zookeeper, config.kafka.security_protocol)
    return nullcontext(BootstrapServers(config.kafka.bootstrap_servers))
