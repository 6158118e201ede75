from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, NoAuthError, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

from syslogger import zookeeper
from syslogger.errors import ConfigError
from syslogger.zookeeper import ZooKeeperBrokers, listeners

# What brokers register


def registration(*endpoints: str, **others: object) -> bytes:
    return json.dumps({"version": 5, "host": None, "port": -1, "endpoints": endpoints, **others}).encode()


VERSION_1 = b'{"jmx_port":-1,"timestamp":"1","host":"kafka1","version":1,"port":9092}'
VERSION_2 = (
    b'{"jmx_port":9999,"timestamp":"2","host":"kafka1","version":2,"port":9092,'
    b'"endpoints":["PLAINTEXT://kafka1:9092","SSL://kafka1:9093"]}'
)
VERSION_3 = (
    b'{"jmx_port":-1,"timestamp":"3","host":null,"version":3,"port":-1,'
    b'"endpoints":["SASL_SSL://kafka1:9094"],"rack":"r1"}'
)
VERSION_4 = (
    b'{"listener_security_protocol_map":{"CLIENT":"SASL_SSL","REPLICATION":"PLAINTEXT","OTHER":"SASL_SSL"},'
    b'"endpoints":["REPLICATION://10.0.0.1:9091","CLIENT://kafka1:9094","OTHER://kafka1:9095"],'
    b'"rack":"r1","jmx_port":-1,"host":null,"timestamp":"4","port":-1,"version":4}'
)
VERSION_5 = (
    b'{"features":{},"listener_security_protocol_map":{"PLAINTEXT":"PLAINTEXT"},"endpoints":["PLAINTEXT://kafka1:9092"],'
    b'"jmx_port":-1,"port":9092,"host":"kafka1","version":5,"timestamp":"5"}'
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(VERSION_1, {"PLAINTEXT": "kafka1:9092"}, id="version 1 has only host and port"),
        pytest.param(VERSION_2, {"PLAINTEXT": "kafka1:9092", "SSL": "kafka1:9093"}, id="version 2 has endpoints"),
        pytest.param(VERSION_3, {"SASL_SSL": "kafka1:9094"}, id="version 3 has host null and port -1"),
        pytest.param(
            VERSION_4,
            {"PLAINTEXT": "10.0.0.1:9091", "SASL_SSL": "kafka1:9094"},
            id="version 4 maps, first listener counts",
        ),
        pytest.param(VERSION_5, {"PLAINTEXT": "kafka1:9092"}, id="version 5"),
        pytest.param(registration("PLAINTEXT://[::1]:9092"), {"PLAINTEXT": "[::1]:9092"}, id="IPv6"),
        pytest.param(
            registration("PLAINTEXT://fe80::1%eth0:9092"), {"PLAINTEXT": "[fe80::1%eth0]:9092"}, id="IPv6 bare"
        ),
        pytest.param(registration("ssl://k:1"), {"SSL": "k:1"}, id="lower case"),
        pytest.param(registration("SSL://k:0", "SSL://k:65536", "SSL://k:65535"), {"SSL": "k:65535"}, id="ports"),
        pytest.param(
            registration("SSL://:9093", "SSL:9093", "SSL://k", "SSL://a b:1"), {}, id="endpoints that are none"
        ),
        pytest.param(registration(host="k", port=9092), {"PLAINTEXT": "k:9092"}, id="no endpoints"),
        pytest.param(registration(host="k", port=True), {}, id="a port that is no number"),
        pytest.param(
            registration("SSL://k:1", host="k", port=9092), {"SSL": "k:1"}, id="endpoints before host and port"
        ),
        pytest.param(registration("SSL://k:1", listener_security_protocol_map={"SSL": 3}), {}, id="a map to no name"),
        pytest.param(
            registration("SSL://k:1", listener_security_protocol_map=[]), {"SSL": "k:1"}, id="a map that is none"
        ),
        pytest.param(b"", {}, id="empty"),
        pytest.param(b'{"host":', {}, id="half"),
        pytest.param(b"\xff\xfe\x00", {}, id="not text"),
        pytest.param(b"[" * 100_000, {}, id="deep"),
        pytest.param(b"[1]", {}, id="not an object"),
        pytest.param(b'{"endpoints":3,"host":{},"port":"x"}', {}, id="wrong types"),
    ],
)
def test_listeners(data: bytes, expected: dict[str, str]) -> None:
    assert listeners(data) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
ENDPOINTS = st.builds("{}://{}:{}".format, st.text(max_size=5), st.text(max_size=9), st.integers())
FIELDS = ("host", "port", "endpoints", "listener_security_protocol_map")


@settings(max_examples=50, deadline=None)
@given(st.binary() | JSON.map(lambda it: json.dumps(it).encode()))
def test_no_bytes_raise(data: bytes) -> None:
    assert isinstance(listeners(data), dict)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON | st.lists(ENDPOINTS))))
def test_no_registration_raises(broker: dict[str, object]) -> None:
    for protocol, address in listeners(json.dumps(broker).encode()).items():
        assert protocol == protocol.upper()
        assert 0 < int(address.rpartition(":")[2]) < 65536


PROTOCOLS = st.sampled_from(["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
HOSTS = st.sampled_from(["kafka1", "kafka_2.example.org", "10.0.0.1", "::1", "fe80::1"])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(PROTOCOLS, HOSTS, st.integers(1, 65535)), min_size=1))
def test_the_first_listener_of_each_protocol_counts(brokers: list[tuple[str, str, int]]) -> None:
    addresses = [(f"[{host}]" if ":" in host else host) + f":{port}" for _, host, port in brokers]
    data = registration(
        *(f"LISTENER{number}://{address}" for number, address in enumerate(addresses)),
        listener_security_protocol_map={f"LISTENER{number}": broker[0] for number, broker in enumerate(brokers)},
    )
    expected: dict[str, str] = {}
    for (protocol, _, _), address in zip(brokers, addresses, strict=True):
        expected.setdefault(protocol, address)
    assert listeners(data) == expected


# Following them


class Answer:
    def __init__(self, value: object) -> None:
        self.value = value

    def get(self, timeout: float) -> object:
        assert 0 < timeout < 60, "an answer must not be waited for without a limit"
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class FakeZooKeeper:
    """A ZooKeeper and the clients that it has; `ids` is None while `/brokers/ids` does not exist.

    Watches fire once and are forgotten when the connection is lost, as the real ones.
    """

    def __init__(self, **ids: bytes) -> None:
        self.ids: dict[str, bytes] | None = {number.removeprefix("b"): data for number, data in ids.items()}
        self.up = True
        self.fails: Exception | None = None
        self.clients: list[FakeClient] = []
        self.refusals: list[Exception] = []
        self.reads = 0
        self.closable = threading.Event()
        self.closable.set()

    def client(self, **settings: Any) -> FakeClient:
        if self.refusals:
            raise self.refusals.pop()
        self.clients.append(FakeClient(self, settings))
        return self.clients[-1]

    def change(self, path: str, ids: dict[str, bytes] | None) -> None:
        self.ids = ids
        for client in self.clients:
            for watch in client.watches.pop(path, ()):
                watch("event")

    def register(self, broker: str, data: bytes) -> None:
        known = self.ids or {}
        self.change(f"/brokers/ids/{broker}" if broker in known else "/brokers/ids", {**known, broker: data})

    def lose(self, state: str = "SUSPENDED") -> None:
        self.up = False
        for client in self.clients:
            client.become(state)

    def come_back(self) -> None:
        self.up = True
        for client in self.clients:
            if not client.dead:
                client.become("CONNECTED")


class FakeClient:
    """As much of `kazoo.client.KazooClient` as is used."""

    def __init__(self, server: FakeZooKeeper, settings: dict[str, Any]) -> None:
        self.server = server
        self.settings = settings
        self.connected = False
        self.dead = False
        self.stopped = False
        self.closed = False
        self.watches: dict[str, set[Callable[[object], None]]] = defaultdict(set)
        self.listener: Callable[[object], None]

    def become(self, state: str) -> None:
        self.connected = state == "CONNECTED"
        if not self.connected:
            self.watches.clear()
        self.listener(state)

    def add_listener(self, listener: Callable[[object], None]) -> None:
        self.listener = listener

    def start_async(self) -> None:
        if self.server.up:
            self.become("CONNECTED")

    def stop(self) -> None:
        self.server.closable.wait()
        self.stopped = True

    def close(self) -> None:
        assert self.stopped
        self.closed = True

    def answer(self, path: str, watch: Callable[[object], None], value: object, *, watched: bool = True) -> Answer:
        if not self.connected:
            return Answer(ConnectionLoss())
        if self.server.fails:
            return Answer(self.server.fails)
        if watched:
            self.watches[path].add(watch)
        return Answer(value)

    def get_children_async(self, path: str, watch: Callable[[object], None]) -> Answer:
        assert path == "/brokers/ids"
        self.server.reads += 1
        if self.server.ids is None:
            return self.answer(path, watch, NoNodeError(), watched=False)
        return self.answer(path, watch, list(self.server.ids))

    def exists_async(self, path: str, watch: Callable[[object], None]) -> Answer:
        return self.answer(path, watch, None if self.server.ids is None else "stat")

    def get_async(self, path: str, watch: Callable[[object], None]) -> Answer:
        data = (self.server.ids or {}).get(path.rpartition("/")[2])
        if data is None:
            return self.answer(path, watch, NoNodeError(), watched=False)
        return self.answer(path, watch, (data, "stat"))


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    for thread in threading.enumerate():
        if thread.name == "zookeeper":
            thread.join(2)
            assert not thread.is_alive()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pause but those of the tests' subject is too long to be waited for."""
    monkeypatch.setattr(zookeeper, "_RECONNECT_SECONDS", 0.01)


def brokers_of(
    server: FakeZooKeeper, hosts: str = "zk1:2181,zk2:2181/kafka", protocol: str = "PLAINTEXT"
) -> ZooKeeperBrokers:
    return ZooKeeperBrokers(hosts, protocol, client_factory=server.client)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110  threads bring it about
            await asyncio.sleep(0.001)


async def changed(brokers: ZooKeeperBrokers, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    async with asyncio.timeout(2):
        return await brokers.changed(known)


async def test_every_broker_is_found_sorted() -> None:
    server = FakeZooKeeper(b10=registration("PLAINTEXT://kb:2"), b9=VERSION_1, b11=registration("PLAINTEXT://[::1]:3"))
    async with brokers_of(server) as brokers:
        assert await changed(brokers) == brokers.addresses == ("[::1]:3", "kafka1:9092", "kb:2")
        assert brokers.problem == ""
        assert brokers.source == "ZooKeeper zk1:2181,zk2:2181/kafka"
    assert server.clients[0].closed


async def test_the_wanted_protocol_is_taken() -> None:
    async with brokers_of(FakeZooKeeper(b1=VERSION_4), protocol="SASL_SSL") as brokers:
        assert await changed(brokers) == ("kafka1:9094",)


async def test_changed_returns_at_once_unless_the_list_is_known() -> None:
    async with brokers_of(FakeZooKeeper(b1=VERSION_1)) as brokers:
        now = await changed(brokers)
        assert await changed(brokers, ("other:1",)) == now
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await brokers.changed(now)


async def test_kazoo_takes_the_settings_and_never_stops_trying() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        await changed(brokers)
    client = KazooClient(**server.clients[0].settings)
    assert client.hosts == [("zk1", 2181), ("zk2", 2181)]
    assert client.chroot == "/kafka"
    retry = server.clients[0].settings["connection_retry"]
    assert retry["max_tries"] == -1
    assert retry["max_delay"] == 5


async def test_a_zookeeper_that_is_down_is_waited_for() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    server.up = False
    started = time.monotonic()
    async with brokers_of(server) as brokers:
        assert time.monotonic() - started < 0.5
        assert brokers.addresses == ()
        assert brokers.problem == "ZooKeeper at zk1:2181,zk2:2181 does not answer (for 0 s)"
        await until(lambda: server.clients)
        server.clients[0].settings["logger"].warning(
            "Connection dropped: %s", "socket connection error: Connection refused"
        )
        assert brokers.problem == "ZooKeeper at zk1:2181,zk2:2181 does not answer (for 0 s): connection refused"
        server.come_back()
        assert await changed(brokers) == ("kafka1:9092",)
        assert brokers.problem == ""


async def test_the_problem_says_for_how_long() -> None:
    async with brokers_of(FakeZooKeeper(b1=VERSION_1)) as brokers:
        await changed(brokers)
        brokers._lost_at = asyncio.get_running_loop().time() - 12
        assert brokers.problem == "ZooKeeper at zk1:2181,zk2:2181 does not answer (for 12 s)"


async def test_a_missing_path_is_watched() -> None:
    server = FakeZooKeeper()
    server.ids = None
    async with brokers_of(server) as brokers:
        await until(lambda: brokers.problem == "no brokers registered under /kafka/brokers/ids")
        server.register("1", VERSION_1)
        assert await changed(brokers) == ("kafka1:9092",)
        assert brokers.problem == ""
        server.register("1", registration("PLAINTEXT://other:1"))
        assert await changed(brokers, ("kafka1:9092",)) == ("other:1",)


async def test_a_path_that_comes_between_two_looks_is_read() -> None:
    server = FakeZooKeeper()
    server.ids = None

    class Late(FakeClient):
        def exists_async(self, path: str, watch: Callable[[object], None]) -> Answer:
            self.server.ids = {"1": VERSION_1}
            return super().exists_async(path, watch)

    async with ZooKeeperBrokers("zk1", client_factory=lambda **settings: Late(server, settings)) as brokers:
        assert await changed(brokers) == ("kafka1:9092",)


async def test_a_list_that_becomes_empty_is_kept() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server, "zk1") as brokers:
        known = await changed(brokers)
        server.change("/brokers/ids", {})
        await until(lambda: brokers.problem == "no brokers registered under /brokers/ids")
        assert brokers.addresses == known
        server.change("/brokers/ids", None)
        server.register("1", registration("PLAINTEXT://other:1"))
        assert await changed(brokers, known) == ("other:1",)
        assert brokers.problem == ""


async def test_a_broker_that_only_changes_its_address_is_seen() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        for port in (1, 2, 3):
            server.register("1", registration(f"PLAINTEXT://kafka1:{port}"))
            known = await changed(brokers, known)
            assert known == (f"kafka1:{port}",)


async def test_brokers_that_come_and_go_are_seen() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        server.register("2", registration("PLAINTEXT://other:1"))
        known = await changed(brokers, known)
        assert known == ("kafka1:9092", "other:1")
        server.change("/brokers/ids", {"2": registration("PLAINTEXT://other:1")})
        assert await changed(brokers, known) == ("other:1",)


async def test_a_broker_that_goes_between_two_looks_is_left_out() -> None:
    server = FakeZooKeeper(b1=VERSION_1, b2=VERSION_5)

    class Going(FakeClient):
        def get_async(self, path: str, watch: Callable[[object], None]) -> Answer:
            if path.endswith("/2"):
                return Answer(NoNodeError())
            return super().get_async(path, watch)

    async with ZooKeeperBrokers("zk1", client_factory=lambda **settings: Going(server, settings)) as brokers:
        assert await changed(brokers) == ("kafka1:9092",)
        assert brokers.problem == ""


@pytest.mark.parametrize("state", ["SUSPENDED", "LOST"])
async def test_everything_is_read_again_after_a_lost_connection(state: str) -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        server.lose(state)
        await until(lambda: brokers.problem.startswith("ZooKeeper at zk1:2181,zk2:2181 does not answer"))
        assert brokers.addresses == known
        server.ids = {"1": registration("PLAINTEXT://other:1")}  # the ids are the same
        server.come_back()
        assert await changed(brokers, known) == ("other:1",)
        assert brokers.problem == ""
        server.register("1", VERSION_1)  # and the watches are there again
        assert await changed(brokers, ("other:1",)) == known


async def test_everything_is_read_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zookeeper, "_REREAD_SECONDS", 0.01)
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        server.ids = {"1": registration("PLAINTEXT://other:1")}  # and nobody says so
        assert await changed(brokers, known) == ("other:1",)


async def test_a_broker_without_the_wanted_listener_is_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeZooKeeper(b3=VERSION_2, b4=VERSION_3)
    async with brokers_of(server, protocol="SASL_SSL") as brokers:
        assert await changed(brokers) == ("kafka1:9094",)
        assert brokers.problem == "broker 3 has no SASL_SSL listener (it has PLAINTEXT, SSL)"
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
            "ZooKeeper zk1:2181,zk2:2181/kafka: broker 3 has no SASL_SSL listener (it has PLAINTEXT, SSL)"
        ]


@pytest.mark.usefixtures("quick")
async def test_a_registration_that_cannot_be_read_is_left_out_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeZooKeeper(b1=VERSION_1, b2=b"{broken")
    async with brokers_of(server) as brokers:
        assert await changed(brokers) == ("kafka1:9092",)
        assert brokers.problem == "broker 2 is registered without any address: b'{broken'"
        reads = server.reads
        await until(lambda: server.reads > reads + 3)
        assert sum("broken" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.usefixtures("quick")
async def test_a_refusal_is_named_and_tried_again() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    server.fails = NoAuthError()
    async with brokers_of(server) as brokers:
        await until(lambda: brokers.problem == "/kafka/brokers/ids cannot be read: NoAuthError")
        server.fails = None
        assert await changed(brokers) == ("kafka1:9092",)


@pytest.mark.usefixtures("quick")
async def test_a_zookeeper_that_falls_silent_is_named_and_tried_again() -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        server.fails = KazooTimeoutError()
        server.register("1", registration("PLAINTEXT://other:1"))
        await until(lambda: "does not answer" in brokers.problem)
        server.fails = None
        assert await changed(brokers, known) == ("other:1",)


@pytest.mark.usefixtures("quick")
async def test_a_client_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zookeeper, "_RENEW_SECONDS", 0.02)
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        server.clients[0].dead = True
        server.lose("LOST")
        server.ids = {"1": registration("PLAINTEXT://other:1")}
        server.up = True
        assert await changed(brokers, known) == ("other:1",)
        assert server.clients[0].closed


@pytest.mark.usefixtures("quick")
async def test_an_unforeseen_error_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeZooKeeper(b1=VERSION_1)
    server.refusals = [OSError(24, "Too many open files")]
    async with brokers_of(server) as brokers:
        assert await changed(brokers) == ("kafka1:9092",)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_what_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(zookeeper, "_GRACE_SECONDS", 0.01)
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server, "zk1:2181") as brokers:
        known = await changed(brokers)
        server.register("2", registration("PLAINTEXT://other:1"))
        await changed(brokers, known)
        server.lose()
        await until(lambda: len(caplog.records) == 3)
        server.lose("LOST")
        server.come_back()
        await until(lambda: len(caplog.records) == 4)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "brokers: none → kafka1:9092"),
        ("INFO", "brokers: kafka1:9092 → kafka1:9092,other:1"),
        ("WARNING", "ZooKeeper at zk1:2181 does not answer (for 0 s); the brokers known stay in use"),
        ("INFO", "ZooKeeper at zk1:2181 answers again"),
    ]
    assert {record.name for record in caplog.records} == {"syslogger.zookeeper"}


async def test_a_zookeeper_that_is_down_at_the_start_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(zookeeper, "_GRACE_SECONDS", 0.01)
    server = FakeZooKeeper()
    server.up = False
    async with brokers_of(server, "zk1:2181"):
        await until(lambda: caplog.records)
    assert caplog.messages == ["ZooKeeper at zk1:2181 does not answer (for 0 s); no brokers are known yet"]


async def test_a_short_absence_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = FakeZooKeeper(b1=VERSION_1)
    async with brokers_of(server) as brokers:
        await changed(brokers)
        server.lose()
        await until(lambda: brokers.problem)
        server.come_back()
        await until(lambda: not brokers.problem)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("message", "arguments", "reason"),
    [
        ("Connection dropped: %s", ("socket connection error: Connection refused",), "connection refused"),
        ("Connection dropped: %s", ("socket connection error: None",), "timed out"),
        ("Connection dropped: %s", ("socket connection broken",), "socket connection broken"),
        ("Connection time-out: %s", ("socket time-out during read",), "socket time-out during read"),
        ("Cannot resolve %s: %s", ("zk1", "Name unknown"), "cannot resolve zk1: Name unknown"),
        ("Transition to CONNECTING", (), ""),
    ],
)
def test_kazoos_log_tells_the_reason_and_is_quiet(
    caplog: pytest.LogCaptureFixture, message: str, arguments: tuple[str, ...], reason: str
) -> None:
    caplog.set_level(logging.DEBUG, "kazoo")
    kazoo_log = zookeeper._KazooLog(logging.getLogger("kazoo"))
    kazoo_log.warning(message, *arguments)
    assert kazoo_log.reason == reason
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("DEBUG", message % arguments)]
    kazoo_log.error("broken")
    assert caplog.records[-1].levelname == "ERROR"


@pytest.mark.parametrize("hosts", ["", "zk1:port", "zk1:70000", "zk1,", "/kafka", "zk1/../kafka"])
def test_hosts_that_are_none_are_refused(hosts: str) -> None:
    with pytest.raises(ConfigError, match=r"^kafka\.zookeeper must be `host:port,host:port/chroot`"):
        ZooKeeperBrokers(hosts)


# Leaving


async def test_a_client_that_does_not_close_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zookeeper, "_CLOSE_SECONDS", 0.02)
    server = FakeZooKeeper(b1=VERSION_1)
    server.closable.clear()
    async with brokers_of(server) as brokers:
        known = await changed(brokers)
        left = time.monotonic()
    assert time.monotonic() - left < 0.5
    assert not server.clients[0].closed
    server.register("1", registration("PLAINTEXT://other:1"))
    server.closable.set()
    await until(lambda: server.clients[0].closed)
    assert brokers.addresses == known


async def test_what_is_read_after_leaving_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(zookeeper, "_CLOSE_SECONDS", 0.02)
    server = FakeZooKeeper(b1=VERSION_1)
    answering = threading.Event()

    class Slow(FakeClient):
        def get_children_async(self, path: str, watch: Callable[[object], None]) -> Answer:
            answering.wait()
            return super().get_children_async(path, watch)

    async with ZooKeeperBrokers("zk1", client_factory=lambda **settings: Slow(server, settings)) as brokers:
        pass
    answering.set()
    async with asyncio.timeout(2):
        await brokers._ended.wait()  # told after what was read
    assert brokers.addresses == ()
    assert not caplog.records


def test_the_event_loop_may_close_before_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zookeeper, "_CLOSE_SECONDS", 0.01)
    server = FakeZooKeeper(b1=VERSION_1)
    server.closable.clear()

    async def run() -> None:
        async with brokers_of(server) as brokers:
            await changed(brokers)

    asyncio.run(run())
    server.closable.set()  # `no_thread_stays` waits for its end, and pytest fails on what a thread raises
    for thread in threading.enumerate():
        if thread.name == "zookeeper":
            thread.join(2)
    assert server.clients[0].closed


async def test_leaving_while_down_logs_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    server = FakeZooKeeper()
    server.up = False
    async with brokers_of(server) as brokers:
        await until(lambda: server.clients)
    assert brokers._warning
    assert brokers._warning.cancelled()
    assert server.clients[0].closed
    assert not caplog.records
