"""The brokers' addresses from ZooKeeper, where Kafka before 4.0 registers them, and when they change.

One thread does all that waits for ZooKeeper; it is the only one that calls the client, and the only one
that tells the event loop. kazoo's own threads only wake it: whatever happened, it reads everything again.
That is cheap (a dozen small nodes) and leaves no event to be missed: watches fire once, do not survive a
lost connection, and a watch on the ids alone would not see a broker change its address.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, KazooException, NoNodeError, SessionExpiredError
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.hosts import collect_hosts
from kazoo.protocol.paths import normpath

from syslogger.errors import ConfigError

log = logging.getLogger(__name__)

_IDS = "/brokers/ids"
_SESSION_SECONDS = 10.0
"""The session's timeout, which kazoo also takes for connecting; a silent server is noticed after two thirds of it."""
_RECONNECT_SECONDS = 5.0
"""The longest pause between two tries to connect; kazoo's own default is an hour."""
_REREAD_SECONDS = 30.0
"""Everything is read again this often even if nothing happened: a net below the watches.
Where something is wrong it is looked at every `_RECONNECT_SECONDS`."""
_RENEW_SECONDS = 30.0
"""A client that has read nothing for so long is replaced. An unforeseen error ends kazoo's thread for good, and a
ZooKeeper that was set up anew refuses for ever whoever has seen later transactions than it has."""
_GRACE_SECONDS = 2.0
"""How long ZooKeeper may be gone before that is worth a log line; changing to another server takes less."""
_CLOSE_SECONDS = 2.0
"""How long leaving waits for the client to close. kazoo may need its session timeout and more for it."""

_ENDPOINT = re.compile(r"([^:/]+)://(.*):([0-9]{1,5})")
_HOST = re.compile(r"[0-9a-zA-Z\-%._:]+")
"""The characters that Kafka itself takes for a host (`EndPoint.scala`)."""
_LAST_PORT = 65535


def listeners(registration: bytes) -> dict[str, str]:
    """Return a broker's address, ``host:port`` or ``[v6]:port``, for each security protocol that it speaks.

    `registration` is what is stored at ``/brokers/ids/N``, of version 1 to 5. Of several listeners with one
    protocol the first counts. Empty when nothing in it can be used; never raises.
    """
    try:
        broker = json.loads(registration)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(broker, dict):
        return {}
    # Since version 4; before, a listener's name is its protocol.
    protocols = broker.get("listener_security_protocol_map")
    if not isinstance(protocols, dict):
        protocols = {}
    # Since version 2.
    endpoints = broker.get("endpoints")
    if not isinstance(endpoints, list):
        endpoints = []
    found: dict[str, str] = {}
    for endpoint in endpoints:
        if isinstance(endpoint, str) and (parts := _ENDPOINT.fullmatch(endpoint)):
            name, host, port = parts.groups()
            protocol = protocols.get(name, name)
            address = _address(host.removeprefix("[").removesuffix("]"), int(port))
            if address and isinstance(protocol, str):
                found.setdefault(protocol.upper(), address)
    # Null and -1 in a registration with endpoints, if none of them is plain.
    if not endpoints and (address := _address(broker.get("host"), broker.get("port"))):
        found["PLAINTEXT"] = address
    return found


def _address(host: object, port: object) -> str:
    """Return the two as one address, or nothing if they are none."""
    if not (isinstance(host, str) and _HOST.fullmatch(host)):
        return ""
    if type(port) is not int or not 0 < port <= _LAST_PORT:
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class _Reading:
    """What one look at ZooKeeper found, and what is wrong with it, in words."""

    addresses: tuple[str, ...]
    trouble: str


class _KazooLog(logging.LoggerAdapter[logging.Logger]):
    """kazoo's logger: keeps why there is no connection, and turns all but errors down to DEBUG.

    kazoo has no other way to tell the reason, and says it again at each try.
    """

    reason = ""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        text = str(msg)
        if text.startswith(("Connection dropped: ", "Connection time-out: ", "Cannot resolve ")):
            text = text % args
            for prefix in ("Connection dropped: ", "Connection time-out: ", "socket connection error: "):
                text = text.removeprefix(prefix)
            # An OSError for a timeout has no `strerror`, which is all that kazoo shows of it.
            self.reason = "timed out" if text == "None" else text[:1].lower() + text[1:]
        super().log(level if level >= logging.ERROR else min(level, logging.DEBUG), msg, *args, **kwargs)


class ZooKeeperBrokers:
    """The `Brokers` that are registered in ZooKeeper; an asynchronous context manager.

    `hosts` is ``host:port,host:port/chroot``; what cannot be that raises `ConfigError`. `security_protocol`
    is Kafka's name of the protocol that the addresses are wanted for. ZooKeeper need not be there at any time:
    entering does not wait for it, and while it is gone the last good list stays.
    """

    def __init__(
        self,
        hosts: str,
        security_protocol: str = "PLAINTEXT",
        *,
        client_factory: Callable[..., Any] = KazooClient,
    ) -> None:
        try:
            chroot = collect_hosts(hosts)[1]
            self._path = normpath((chroot or "") + _IDS)
        except ValueError as error:
            message = f"kafka.zookeeper must be `host:port,host:port/chroot`, which `{hosts}` is not ({error})."
            raise ConfigError(message) from None
        self.addresses: tuple[str, ...] = ()
        self.source = f"ZooKeeper {hosts}"
        self._hosts = hosts
        self._servers = hosts.partition("/")[0]
        self._security_protocol = security_protocol
        self._client_factory = client_factory
        # Of the event loop.
        self._loop: asyncio.AbstractEventLoop
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._lost_at: float | None = None
        self._warning: asyncio.TimerHandle | None = None
        self._warned = False
        self._trouble = ""
        # Of the threads.
        self._kazoo_log = _KazooLog(logging.getLogger("kazoo"))
        self._wake = threading.Event()
        self._leaving = False

    @property
    def problem(self) -> str:
        """Why the list may be missing or old, in words; empty when all is well."""
        if self._lost_at is None:
            return self._trouble
        seconds = self._loop.time() - self._lost_at
        reason = self._kazoo_log.reason
        return f"ZooKeeper at {self._servers} does not answer (for {seconds:.0f} s){reason and ': '}{reason}"

    async def changed(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Wait until there is a list that is not empty and not `known`; return it."""
        while not self.addresses or self.addresses == known:
            await self._news.wait()
        return self.addresses

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._learn(None)
        # A daemon: neither asyncio nor the interpreter then waits for a client that cannot close.
        threading.Thread(target=self._work, name="zookeeper", daemon=True).start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the client, or leave that to its thread after `_CLOSE_SECONDS`."""
        self._leaving = True
        self._wake.set()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            log.debug("the ZooKeeper client did not close within %g s; left behind", _CLOSE_SECONDS)
        finally:
            if self._warning:
                self._warning.cancel()

    # In the event loop.

    def _learn(self, reading: _Reading | None) -> None:
        """Take in what was read, or that nothing can be."""
        if self._leaving:
            return
        if reading is None:
            if self._lost_at is None:
                self._lost_at = self._loop.time()
                self._warning = self._loop.call_later(_GRACE_SECONDS, self._warn)
            return
        self._lost_at = None
        if self._warning:
            self._warning.cancel()
        if self._warned:
            log.info("ZooKeeper at %s answers again", self._servers)
            self._warned = False
        if reading.trouble != self._trouble:
            self._trouble = reading.trouble
            if self._trouble:
                log.warning("%s: %s", self.source, self._trouble)
        # An empty list never replaces a good one: brokers that only lost their own session still serve.
        if reading.addresses and reading.addresses != self.addresses:
            log.info("brokers: %s → %s", ",".join(self.addresses) or "none", ",".join(reading.addresses))
            self.addresses = reading.addresses
            self._news.set()
            self._news = asyncio.Event()

    def _warn(self) -> None:
        self._warned = True
        meanwhile = "the brokers known stay in use" if self.addresses else "no brokers are known yet"
        log.warning("%s; %s", self.problem, meanwhile)

    # In the thread.

    def _tell(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call back in the event loop, if there still is one."""
        with suppress(RuntimeError):  # it is closed: this thread was left behind
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _work(self) -> None:
        """Follow ZooKeeper with one client after another, until leaving."""
        while not self._leaving:
            try:
                self._follow()
            except Exception:  # whatever kazoo raises, without this thread a change is never seen again
                if not self._leaving:
                    log.exception("the ZooKeeper client failed; trying again with a new one")
                    self._wake.wait(_RECONNECT_SECONDS)
        self._tell(self._ended.set)

    def _follow(self) -> None:
        """Read whenever something may have changed; return when leaving, or when a new client is due."""
        client = self._client_factory(
            hosts=self._hosts,
            timeout=_SESSION_SECONDS,
            connection_retry={"max_tries": -1, "max_delay": _RECONNECT_SECONDS},
            logger=self._kazoo_log,
        )
        try:
            client.add_listener(self._happened)
            client.start_async()
            read_at = time.monotonic()
            while True:
                # Cleared before anything is looked at, so that what happens meanwhile is looked at next.
                self._wake.clear()
                if self._leaving:
                    return
                reading = self._read(client) if client.connected else None
                self._tell(self._learn, reading)
                if reading:
                    self._kazoo_log.reason = ""
                    read_at = time.monotonic()
                elif time.monotonic() - read_at > _RENEW_SECONDS:
                    return
                self._wake.wait(_REREAD_SECONDS if reading and not reading.trouble else _RECONNECT_SECONDS)
        finally:
            client.stop()
            client.close()

    def _happened(self, _event: object) -> None:
        """Hear of a watched node or the connection's state, in a thread of kazoo's that must not wait."""
        self._wake.set()

    def _read(self, client: Any) -> _Reading | None:
        """Read every broker's registration and set every watch; None if ZooKeeper did not answer."""
        try:
            registrations = self._registrations(client)
        except (ConnectionLoss, SessionExpiredError, KazooTimeoutError):
            return None
        except KazooException as error:
            return _Reading((), f"{self._path} cannot be read: {type(error).__name__}")
        if not registrations:
            return _Reading((), f"no brokers registered under {self._path}")
        addresses = set()
        trouble = []
        for broker, registration in registrations.items():
            has = listeners(registration)
            if address := has.get(self._security_protocol):
                addresses.add(address)
            elif has:
                trouble.append(f"broker {broker} has no {self._security_protocol} listener (it has {', '.join(has)})")
            else:
                trouble.append(f"broker {broker} is registered without any address: {registration[:200]!r}")
        return _Reading(tuple(sorted(addresses)), "; ".join(trouble))

    def _registrations(self, client: Any) -> dict[str, bytes]:
        """Return what each broker has registered, by its id; raise what the client raises."""
        try:
            ids = client.get_children_async(_IDS, watch=self._happened).get(timeout=_SESSION_SECONDS)
        except NoNodeError:
            # Only this kind of watch may stand on a path that is not there.
            if client.exists_async(_IDS, watch=self._happened).get(timeout=_SESSION_SECONDS):
                self._wake.set()  # it came in between
            return {}
        asked = {broker: client.get_async(f"{_IDS}/{broker}", watch=self._happened) for broker in sorted(ids)}
        registrations = {}
        for broker, answer in asked.items():
            with suppress(NoNodeError):  # gone in between; the watch on its parent has seen it
                registrations[broker] = answer.get(timeout=_SESSION_SECONDS)[0]
        return registrations


async def look(hosts: str, security_protocol: str, seconds: float) -> tuple[tuple[str, ...], str]:
    """Return the brokers' addresses after one look at ZooKeeper, and what is wrong in words, as of `ZooKeeperBrokers`.

    Waits so many `seconds` for ZooKeeper, and some 2 s for the client's end.
    """
    async with ZooKeeperBrokers(hosts, security_protocol) as brokers:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while brokers._lost_at is not None:  # noqa: ASYNC110, SLF001 - not yet read, and nobody else waits for it
                    await asyncio.sleep(0.02)
        return brokers.addresses, brokers.problem
