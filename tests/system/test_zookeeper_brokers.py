"""The brokers' addresses from a real ZooKeeper (row 9, and the half of row 8 that is ZooKeeper's)."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient

from syslogger.zookeeper import ZooKeeperBrokers
from tests.system.parts import ZooKeeper, free_port, until

pytestmark = [pytest.mark.system, pytest.mark.row(9)]


def registration(port: int) -> bytes:
    return json.dumps(
        {
            "version": 5,
            "host": "127.0.0.1",
            "port": port,
            "endpoints": [f"PLAINTEXT://127.0.0.1:{port}"],
            "listener_security_protocol_map": {"PLAINTEXT": "PLAINTEXT"},
        }
    ).encode()


class Registry:
    """What Kafka does in ZooKeeper, by hand: fake brokers under `/kafka`, which outlive the session."""

    def __init__(self, server: ZooKeeper) -> None:
        self.server = server

    def _do(self, action: Callable[[KazooClient], object]) -> None:
        client = KazooClient(hosts=self.server.hosts)
        client.start(timeout=20)
        try:
            action(client)
        finally:
            client.stop()
            client.close()

    def register(self, broker: int, port: int) -> None:
        path = f"/kafka/brokers/ids/{broker}"

        def put(client: KazooClient) -> None:
            if client.exists(path):
                client.set(path, registration(port))
            else:
                client.create(path, registration(port), makepath=True)

        self._do(put)

    def remove(self, broker: int) -> None:
        self._do(lambda client: client.delete(f"/kafka/brokers/ids/{broker}"))

    def remove_all(self) -> None:
        self._do(lambda client: client.delete("/kafka", recursive=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ZooKeeper]:
    """Give a ZooKeeper that is not yet started."""
    server = ZooKeeper(tmp_path / "zookeeper")
    yield server
    server.sigkill()


@pytest.fixture
def started(server: ZooKeeper) -> ZooKeeper:
    server.start()
    return server


@pytest.fixture
def registry(server: ZooKeeper) -> Registry:
    return Registry(server)


def of(server: ZooKeeper) -> ZooKeeperBrokers:
    return ZooKeeperBrokers(f"{server.hosts}/kafka")


async def off_the_loop(call: Callable[..., object], *arguments: object) -> None:
    await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def changed(brokers: ZooKeeperBrokers, known: tuple[str, ...] = (), seconds: float = 10) -> tuple[str, ...]:
    async with asyncio.timeout(seconds):
        return await brokers.changed(known)


async def problem(brokers: ZooKeeperBrokers, words: str, seconds: float = 15) -> None:
    """Wait until the problem has these words; none stands for no problem."""
    await off_the_loop(until, lambda: words in brokers.problem if words else not brokers.problem, words, seconds)


async def test_brokers_are_found_when_zookeeper_comes(server: ZooKeeper, registry: Registry) -> None:
    entered = time.monotonic()
    async with of(server) as brokers:
        assert time.monotonic() - entered < 0.5
        await problem(brokers, f"ZooKeeper at {server.hosts} does not answer")
        await problem(brokers, "connection refused")
        await off_the_loop(server.start)
        await problem(brokers, "no brokers registered under /kafka/brokers/ids")
        await off_the_loop(registry.register, 1, 9092)
        assert await changed(brokers) == ("127.0.0.1:9092",)
        assert brokers.problem == ""


@pytest.mark.usefixtures("started")
async def test_brokers_that_come_go_and_move_are_seen(server: ZooKeeper, registry: Registry) -> None:
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        known = await changed(brokers)
        assert known == ("127.0.0.1:9001",)
        for port in (9011, 9021):  # a watch fires once: it must be set again
            await off_the_loop(registry.register, 1, port)
            known = await changed(brokers, known)
            assert known == (f"127.0.0.1:{port}",)
        await off_the_loop(registry.register, 2, 9002)
        known = await changed(brokers, known)
        assert known == ("127.0.0.1:9002", "127.0.0.1:9021")
        await off_the_loop(registry.remove, 1)
        assert await changed(brokers, known) == ("127.0.0.1:9002",)


@pytest.mark.usefixtures("started")
async def test_ids_that_are_briefly_empty_or_gone_change_nothing(server: ZooKeeper, registry: Registry) -> None:
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        known = await changed(brokers)
        for empty in (lambda: registry.remove(1), registry.remove_all):
            await off_the_loop(empty)
            await problem(brokers, "no brokers registered under /kafka/brokers/ids")
            assert brokers.addresses == known
            await off_the_loop(registry.register, 1, 9001)
            await problem(brokers, "")
            assert brokers.addresses == known
        await off_the_loop(registry.register, 1, 9002)
        assert await changed(brokers, known) == ("127.0.0.1:9002",)


@pytest.mark.row(8)
@pytest.mark.usefixtures("started")
async def test_addresses_that_change_while_zookeeper_restarts_are_seen(
    server: ZooKeeper, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "syslogger")
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        known = await changed(brokers)
        await off_the_loop(server.sigkill)
        await problem(brokers, "connection refused")
        assert brokers.addresses == known
        await off_the_loop(until, lambda: "does not answer" in caplog.text, "the warning", 10)
        await off_the_loop(server.start)
        await off_the_loop(registry.register, 1, 9002)
        assert await changed(brokers, known) == ("127.0.0.1:9002",)
        assert brokers.problem == ""
        await off_the_loop(registry.register, 1, 9003)  # the watches are there again
        assert await changed(brokers, ("127.0.0.1:9002",)) == ("127.0.0.1:9003",)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO", "INFO", "INFO"]
    assert caplog.messages[2] == f"ZooKeeper at {server.hosts} answers again"


@pytest.mark.usefixtures("started")
async def test_an_expired_session_is_followed_by_another(server: ZooKeeper, registry: Registry) -> None:
    clients: list[KazooClient] = []

    def client(**settings: object) -> KazooClient:
        clients.append(KazooClient(**settings))
        return clients[-1]

    def end_its_session() -> None:
        """End it as the server does: whoever has its number and password may close it."""
        other = KazooClient(hosts=server.hosts, client_id=clients[0].client_id)
        other.start(timeout=20)
        other.stop()
        other.close()

    await off_the_loop(registry.register, 1, 9001)
    async with ZooKeeperBrokers(f"{server.hosts}/kafka", client_factory=client) as brokers:
        known = await changed(brokers)
        session = clients[0].client_id
        await off_the_loop(end_its_session)
        await off_the_loop(registry.register, 1, 9002)
        assert await changed(brokers, known) == ("127.0.0.1:9002",)
        await off_the_loop(registry.register, 1, 9003)
        assert await changed(brokers, ("127.0.0.1:9002",)) == ("127.0.0.1:9003",)
        assert len(clients) == 1
        assert clients[0].client_id != session


@pytest.mark.usefixtures("started")
async def test_a_zookeeper_that_was_set_up_anew_is_followed(
    server: ZooKeeper, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It refuses for ever a client that has seen later transactions than it has: only a new client gets in.
    monkeypatch.setattr("syslogger.zookeeper._RENEW_SECONDS", 1)
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        known = await changed(brokers)
        await off_the_loop(server.sigkill)
        shutil.rmtree(server.directory / "data")
        await off_the_loop(server.start)
        await off_the_loop(registry.register, 1, 9002)
        assert await changed(brokers, known, 20) == ("127.0.0.1:9002",)


@pytest.mark.usefixtures("started")
async def test_a_zookeeper_that_falls_silent_is_noticed(server: ZooKeeper, registry: Registry) -> None:
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        known = await changed(brokers)
        server.sigstop()
        await problem(brokers, "does not answer")
        assert brokers.addresses == known
        server.sigcont()
        await problem(brokers, "")
        await off_the_loop(registry.register, 1, 9002)
        assert await changed(brokers, known) == ("127.0.0.1:9002",)


@pytest.mark.usefixtures("started")
async def test_leaving_is_quick(server: ZooKeeper, registry: Registry) -> None:
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        await changed(brokers)
        left = time.monotonic()
    assert time.monotonic() - left < 1


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
async def test_leaving_is_bounded_without_zookeeper(
    server: ZooKeeper, registry: Registry, number: signal.Signals
) -> None:
    await off_the_loop(registry.register, 1, 9001)
    async with of(server) as brokers:
        await changed(brokers)
        server.signal(number)
        if number == signal.SIGKILL:
            await problem(brokers, "connection refused")
        left = time.monotonic()
    assert time.monotonic() - left < 3
    server.sigcont()
    await off_the_loop(until, no_thread, "the thread left behind ends", 20)


async def test_leaving_is_bounded_where_nobody_answers() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", free_port()))
        deaf.listen(0)  # the kernel completes the connection, and then nobody answers
        host, port = deaf.getsockname()
        async with ZooKeeperBrokers(f"{host}:{port}") as brokers:
            await problem(brokers, "does not answer")
            left = time.monotonic()
        assert time.monotonic() - left < 3
    await off_the_loop(until, no_thread, "the thread left behind ends", 20)


def no_thread() -> bool:
    return all(thread.name != "zookeeper" for thread in threading.enumerate())
