"""`syslogger check`: says of everything that the configuration names what it found there, before the daemon needs it.

Nothing is changed by it: no topic is created, no record appended, no peer accepted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import http.client
import logging
import os
import posixpath
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from .config import Config, parse_address
from .errors import ConfigError
from .forwarder import bind_listener, listener_tls
from .kafka import Findings, inspect
from .listener import bind
from .unix_sockets import close_bound

_SECONDS = 15.0
"""How long the whole may take."""

_CONNECT_SECONDS = 3.0
_RESOLVE_SECONDS = 1.0
"""What a name may take beyond the connecting; a resolver by itself would take up to half a minute."""
_ZOOKEEPER_SECONDS = 5.0
_RIEMANN_SECONDS = 8.0
_HTTP_SECONDS = 2.0

_FEW_DAYS = 14
"""A certificate that expires within so many is worth a note; who renews by ACME does so with 30 left."""

_RECORD_OVERHEAD_BYTES = 100
"""Kafka's format for a batch of one record: 61 for the batch, and at most 31 for the record."""

_T = TypeVar("_T")


class Line(NamedTuple):
    """One thing that was found."""

    mark: Literal["ok", "FAIL", "note"]
    """A note is something to know that keeps nothing from working."""
    text: str

    def __str__(self) -> str:
        return f"{self.mark:<4}  {self.text}"


def check(config: Config) -> int:
    """Print what was found on standard output, a line each; return 0 if nothing failed, else 1.

    Takes some 15 s at the most.
    """
    with _quiet(config):
        return asyncio.run(_check(config))


@contextmanager
def _quiet(config: Config) -> Iterator[None]:
    """Let the report speak alone, unless all is to be heard."""
    if config.log.level == "debug":
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


async def _check(config: Config) -> int:
    failed = False
    riemann = asyncio.create_task(_collected(_riemann(config)))
    try:
        async with asyncio.timeout(_SECONDS):
            for part in (_addresses(config), _kafka(config)):
                async for line in part:
                    failed |= _print(line)
            for line in await riemann:
                failed |= _print(line)
    except TimeoutError:
        failed |= _print(Line("FAIL", f"This took longer than {_SECONDS:.0f} s, and the rest was not tried."))
    return int(failed)


def _print(line: Line) -> bool:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return line.mark == "FAIL"


async def _collected(part: AsyncIterator[Line]) -> list[Line]:
    return [line async for line in part]


# What it listens on.


async def _addresses(config: Config) -> AsyncIterator[Line]:
    running = await _running(config)
    for number in range(len(config.listeners)):
        yield await _local(f"listeners[{number}].address", partial(_listener, config, number, running))
        if config.listeners[number].tls.certificate_file:
            yield _certificate(config, number)
    if running:
        name = f"prometheus.address {config.prometheus.address}"
        yield Line("note", f"{name} is taken by a syslogger that runs already; it says: {running}.")
    elif config.prometheus.address:
        yield await _local("prometheus.address", partial(_prometheus, config))


async def _local(name: str, call: Callable[[], Line]) -> Line:
    """Return what `call` finds of an address of this machine; only the resolving of its name can take time."""
    try:
        return await _in_thread(call, _CONNECT_SECONDS)
    except TimeoutError:
        return Line("FAIL", f"{name}: its name does not resolve within {_CONNECT_SECONDS:.0f} s.")


def _listener(config: Config, number: int, running: str) -> Line:
    settings = config.listeners[number]
    name = f"listeners[{number}].address {settings.address}"
    try:
        sockets, framing, problem = bind_listener(config, number)
    except ConfigError as error:
        if not _is_taken(error):
            return Line("FAIL", str(error))
        if running:
            return Line("note", f"{name} is taken, presumably by the syslogger that runs already.")
        if not config.prometheus.address:
            return Line("note", f"{name} is taken, by a syslogger that runs already or by another program.")
        return Line("FAIL", str(error))
    for sock in sockets:
        close_bound(sock)
    if problem:
        return Line("note", f"{name} is free, but {problem}")
    largest = framing.max_record_bytes
    return Line("ok", f"{name} is free; records of up to {largest:,} bytes stay whole.")


def _certificate(config: Config, number: int) -> Line:
    name = f"listeners[{number}].tls.certificate_file {config.listeners[number].tls.certificate_file}"
    try:
        tls = listener_tls(config, number)
    except ConfigError as error:
        return Line("FAIL", str(error))
    expires = tls.expires if tls else 0.0
    day = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d")
    days = int((expires - time.time()) // 86_400)
    if days < 0:
        return Line("FAIL", f"{name} expired on {day}: peers will refuse it.")
    text = f"{name} belongs to its key and expires in {_number(days, 'day')}, on {day}."
    return Line("note" if days < _FEW_DAYS else "ok", text)


def _prometheus(config: Config) -> Line:
    name, address = "prometheus.address", config.prometheus.address
    host, port = parse_address(address, name)
    try:
        # It serves the first address of a name only.
        first = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0] if host else ""
        for sock in bind(str(first), port, 0, name):
            sock.close()
    except ConfigError as error:
        return Line("FAIL", str(error))
    except OSError:
        return Line("FAIL", f"{name}: cannot listen on {address}: the name does not resolve.")
    return Line("ok", f"{name} {address} is free.")


def _is_taken(error: ConfigError) -> bool:
    return isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE


async def _running(config: Config) -> str:
    """Ask at prometheus.address how the syslogger that runs is; empty if none answers there."""
    if not config.prometheus.address:
        return ""
    host, port = parse_address(config.prometheus.address, "prometheus.address")

    def ask() -> str:
        connection = http.client.HTTPConnection(host or "localhost", port, timeout=_HTTP_SECONDS)
        try:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            ours = answer.headers.get("Server", "").startswith("syslogger/")
            return answer.read(1000).decode(errors="replace").strip() if ours else ""
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()

    try:
        return await _in_thread(ask, _HTTP_SECONDS)
    except TimeoutError:
        return ""


# Kafka, and where it is.


async def _kafka(config: Config) -> AsyncIterator[Line]:
    addresses = config.kafka.bootstrap_servers
    if config.kafka.zookeeper:
        lines, addresses = await _zookeeper(config)
        for line in lines:
            yield line
        if not addresses:
            yield Line("FAIL", "Kafka was not tried: no broker's address is known.")
            return
    try:
        found = await _inspected(config, addresses)
        for address, findings in found.items():
            yield _answer(address, findings)
        answers = [findings for findings in found.values() if not findings.problem]
        if not answers:
            return
        yield Line("ok", f"Kafka's cluster has {_counted(answers[0].brokers, 'broker')}.")
        others = [broker for broker in answers[0].brokers if broker not in found]
        for address, findings in (await _inspected(config, others)).items():
            yield _other_answer(address, findings)
    except ConfigError as error:
        yield Line("FAIL", str(error))
        return
    for line in _topic(config, answers[0]):
        yield line


async def _zookeeper(config: Config) -> tuple[list[Line], tuple[str, ...]]:
    """Return what to say of ZooKeeper, and the brokers' addresses that it has."""
    from .zookeeper import look  # noqa: PLC0415 - Kafka 4 has none

    hosts = config.kafka.zookeeper
    listed, _, chroot = hosts.partition("/")
    servers = [server if ":" in server else f"{server}:2181" for server in listed.split(",")]
    reasons = await asyncio.gather(*(_unreachable(server) for server in servers))
    lines = [
        Line("FAIL", f"ZooKeeper at {server} does not answer: {reason}.")
        for server, reason in zip(servers, reasons, strict=True)
        if reason
    ]
    if all(reasons):
        return lines, ()
    addresses, problem = await look(hosts, config.kafka.security_protocol, _ZOOKEEPER_SECONDS)
    path = posixpath.join("/", chroot, "brokers/ids")
    if addresses:
        lines.append(Line("ok", f"ZooKeeper at {listed} answers; under {path} it has {_counted(addresses, 'broker')}."))
        if problem:
            lines.append(Line("note", f"ZooKeeper at {listed}: {problem}."))
    elif problem.startswith("ZooKeeper"):
        lines.append(Line("FAIL", f"{problem}."))
    else:
        text = f"ZooKeeper at {listed} answers, but {problem}."
        if problem.startswith("no brokers"):
            text = (
                f"ZooKeeper at {listed} answers, but has {problem}."
                f' Are brokers running, and is "/{chroot}" the path in their zookeeper.connect? '
                "Kafka 4 uses no ZooKeeper: set kafka.bootstrap_servers instead."
            )
        lines.append(Line("FAIL", text))
    return lines, addresses


async def _inspected(config: Config, addresses: Sequence[str]) -> dict[str, Findings]:
    """Ask all these brokers at once."""

    async def ask(address: str) -> Findings:
        reason = await _unreachable(address)
        return Findings(f"does not answer: {reason}") if reason else await inspect(config.kafka, address)

    asked = dict.fromkeys(addresses)
    return dict(zip(asked, await asyncio.gather(*(ask(address) for address in asked)), strict=True))


def _answer(address: str, found: Findings) -> Line:
    if found.problem:
        return Line("FAIL", f"Kafka at {address} {found.problem}.")
    if found.no_idempotence:
        return Line(
            "FAIL", f"Kafka at {address} answers, but does not allow idempotent producing: {found.no_idempotence}."
        )
    return Line("ok", f"Kafka at {address} answers, and allows idempotent producing.")


def _other_answer(address: str, found: Findings) -> Line:
    line = _answer(address, found)
    if line.mark == "ok":
        return Line("ok", f"Kafka at {address}, of the same cluster, answers too.")
    if not found.problem:
        return line
    return Line(
        "FAIL", f"{line.text} The cluster names this address to its clients: see that broker's advertised.listeners."
    )


def _topic(config: Config, found: Findings) -> Iterator[Line]:
    topic, partitions, settings = config.kafka.topic, found.partitions, found.topic_settings
    if found.missing:
        hint = f": did you mean {found.similar}? Or create it" if found.similar else ". Create it"
        yield Line("FAIL", f"There is no topic {topic}{hint}: {_creation(config, found)}")
        return
    if found.no_topic:
        yield Line("FAIL", f"Topic {topic} cannot be used: {found.no_topic}.")
        return
    replicas = min((partition.replicas for partition in partitions), default=0)
    known = "".join(f", {name} {int(settings[name]):,}" for name in sorted(settings, reverse=True))
    yield Line(
        "ok", f"Topic {topic} has {_number(len(partitions), 'partition')}, replication factor {replicas}{known}."
    )
    if found.no_topic_settings:
        names = "min.insync.replicas and max.message.bytes"
        yield Line("note", f"{names} of the topic {topic} could not be read: {found.no_topic_settings}.")
    if leaderless := [each.number for each in partitions if not each.has_leader]:
        yield Line("FAIL", f"Topic {topic}: {_these(leaderless)} without a leader; see which brokers are down.")
    least = int(settings.get("min.insync.replicas", 0))
    if few := [each.number for each in partitions if each.has_leader and each.in_sync < least]:
        yield Line(
            "FAIL",
            f"Topic {topic}: {_these(few)} with fewer replicas in sync than min.insync.replicas asks for, and takes "
            "no records; see which brokers are down.",
        )
    if replicas == 1:
        yield Line("note", "Replication factor 1: each record is on one broker only, and is lost with its disk.")
    elif least == 1:
        yield Line(
            "note",
            "min.insync.replicas 1: acks=all then promises one copy only, while other replicas are down; "
            "2 is the usual choice.",
        )
    largest = max(listener.max_record_bytes for listener in config.listeners)
    most = int(settings.get("max.message.bytes", largest + _RECORD_OVERHEAD_BYTES))
    if most < largest + _RECORD_OVERHEAD_BYTES:
        yield Line(
            "note",
            f"max.message.bytes {most:,} is too small for max_record_bytes {largest:,}: a record of that size would "
            f"go to the topic {config.kafka.dead_letters}, in pieces. "
            f"Raise the one to {largest + _RECORD_OVERHEAD_BYTES} "
            f"or lower the other to {max(0, most - _RECORD_OVERHEAD_BYTES)}.",
        )


def _creation(config: Config, found: Findings) -> str:
    """Return the command that creates the topic, as safe as the cluster's size allows."""
    kafka, factor = config.kafka, min(3, len(found.brokers))
    login = "" if kafka.security_protocol == "PLAINTEXT" else "--command-config client.properties "
    return (
        f"kafka-topics.sh --bootstrap-server {found.brokers[0]} {login}--create --topic {kafka.topic} --partitions 3 "
        f"--replication-factor {factor} --config min.insync.replicas={max(1, factor - 1)}"
    )


# Riemann.


async def _riemann(config: Config) -> AsyncIterator[Line]:
    address = config.riemann.address
    if not address:
        return
    from .riemann import probe  # noqa: PLC0415 - brings bernhard

    reason = await _unreachable(address)
    if not reason:
        try:
            yield Line("ok", await _in_thread(lambda: probe(address), _RIEMANN_SECONDS))
        except TimeoutError:
            reason = "it accepts connections, and then says nothing"
        except OSError as error:
            reason = str(error)
    if reason:
        yield Line("FAIL", f"Riemann at {address} does not answer: {reason}. Records do not depend on it.")


# The network.


async def _unreachable(address: str) -> str:
    """Return why no connection can be made to `address`, in words; empty if one can."""
    host, port = parse_address(address, "")

    def connect() -> None:
        socket.create_connection((host, port), _CONNECT_SECONDS).close()

    try:
        await _in_thread(connect, _CONNECT_SECONDS + _RESOLVE_SECONDS)
    except TimeoutError:
        return f"no reply within {_CONNECT_SECONDS:.0f} s"
    except socket.gaierror as error:
        return f"the name {host} does not resolve ({error.strerror})"
    except OSError as error:
        return os.strerror(error.errno).lower() if error.errno else str(error)
    return ""


async def _in_thread(call: Callable[[], _T], seconds: float) -> _T:
    """Return what `call` returns or raise what it raises; TimeoutError after so many seconds.

    The thread is a daemon, left behind then: asyncio's own would be waited for when the program ends.
    """
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001 - for whoever waits for the outcome
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    async with asyncio.timeout(seconds):
        return await asyncio.wrap_future(outcome)


# Words.


def _counted(names: Sequence[str], noun: str) -> str:
    return f"{_number(len(names), noun)} ({', '.join(names)})"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _these(numbers: Sequence[int]) -> str:
    """`partition 3 is`, `partitions 0, 1, 2, 3, 4 and 12 more are`."""
    shown = ", ".join(str(number) for number in numbers[:5])
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""  # noqa: PLR2004 - what a line has room for
    return f"partition {shown} is" if len(numbers) == 1 else f"partitions {shown}{more} are"
