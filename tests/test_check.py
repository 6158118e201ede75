"""`syslogger check` against a mock cluster, a fake Riemann and ports of its own: what it says, and its exit status."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syslogger import check as checking
from syslogger import zookeeper
from syslogger.check import check
from syslogger.config import Config
from syslogger.counters import Counters
from syslogger.framing.newline import Newline
from syslogger.kafka import Findings, Partition
from syslogger.prometheus import MetricsServer, View
from tests.certificates import SERVER, Authority
from tests.mock_kafka import MockKafka
from tests.riemann_wire import FakeRiemann, encoded

INIT_PRODUCER_ID = 22
UNAUTHORIZED, CLUSTER_UNAUTHORIZED, STILL_STARTING = 29, 31, 14


@pytest.fixture
def cluster() -> Iterator[MockKafka]:
    with MockKafka() as cluster:
        cluster.create_topic("syslog", 3)
        yield cluster


def configured(*servers: str, listen: str = "127.0.0.1:0", prometheus: str = "", **settings: Any) -> Config:
    kafka = {"bootstrap_servers": list(servers)} | settings.pop("kafka", {})
    base = {"listeners": [{"address": listen}], "prometheus": {"address": prometheus}}
    return msgspec.convert(base | settings | {"kafka": kafka}, Config)


class Report:
    """What one check printed, and its exit status."""

    def __init__(self, status: int, out: str) -> None:
        self.status = status
        self.lines = out.splitlines()
        assert all(line[:6] in ("ok    ", "note  ", "FAIL  ") for line in self.lines), out
        assert status == int(any(line.startswith("FAIL") for line in self.lines)), out

    def has(self, mark: str, *words: str) -> None:
        """Assert that there is just one line with this mark and all these words."""
        found = [line for line in self.lines if all(word in line for word in words)]
        assert len(found) == 1, f"{words}: {self.lines}"
        assert found[0].split()[0] == mark, found


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[Config], Report]:
    def run(config: Config) -> Report:
        status = check(config)
        printed = capsys.readouterr()
        assert printed.err == ""
        return Report(status, printed.out)

    return run


Run = Callable[[Config], Report]


@contextmanager
def listening(backlog: int = 10) -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server, f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def hanging_up() -> Iterator[str]:
    """Accept and close, whoever comes."""
    with listening() as (server, address):

        def serve() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield address
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_everything_answers(cluster: MockKafka, report: Run) -> None:
    with FakeRiemann() as riemann:
        found = report(configured(*cluster.addresses, riemann={"address": riemann.address}))
    (address,) = cluster.addresses
    assert found.status == 0
    found.has("ok", "listeners[0].address 127.0.0.1:0 is free", "65,536")
    found.has("ok", f"Kafka at {address} answers, and allows idempotent producing.")
    found.has("ok", f"cluster has 1 broker ({address})")
    found.has("ok", "Topic syslog has 3 partitions, replication factor 1.")
    found.has("note", "Replication factor 1: ")
    # The mock cluster has no DescribeConfigs.
    found.has("note", "min.insync.replicas and max.message.bytes of the topic syslog could not be read")
    found.has("ok", f"Riemann at {riemann.address} answers.")


def test_brokers_that_the_cluster_names_are_asked_too(report: Run) -> None:
    with MockKafka(3) as cluster:
        cluster.create_topic("syslog")
        asked, *others = cluster.addresses
        found = report(configured(asked))
        found.has("ok", f"Kafka at {asked} answers, and")
        for other in others:
            found.has("ok", f"Kafka at {other}, of the same cluster, answers too.")


def test_a_broker_that_only_the_cluster_can_reach() -> None:
    line = checking._other_answer("inside:9092", Findings("does not answer: connection refused"))
    assert line.mark == "FAIL"
    assert line.text.startswith("Kafka at inside:9092 does not answer: connection refused. ")
    assert "advertised.listeners" in line.text


def test_some_brokers_are_down(report: Run) -> None:
    with MockKafka(3) as cluster:
        cluster.create_topic("syslog")
        cluster.set_down(2)
        found = report(configured(*cluster.addresses))
    assert found.status == 1
    found.has("FAIL", "does not answer: connection refused")
    found.has("ok", "cluster has 2 brokers")
    found.has("ok", "Topic syslog has")


def test_the_topic_is_missing(cluster: MockKafka, report: Run) -> None:
    found = report(configured(*cluster.addresses, kafka={"topic": "sysloq"}))
    command = f"kafka-topics.sh --bootstrap-server {cluster.addresses[0]} --create --topic sysloq --partitions 3"
    found.has("FAIL", "There is no topic sysloq: did you mean syslog? Or create it: ", command)
    assert report(configured(*cluster.addresses, kafka={"topic": "sysloq"})).lines == found.lines, "it was not created"


def test_the_topic_is_forbidden(cluster: MockKafka, report: Run) -> None:
    cluster.fail_topic("syslog", UNAUTHORIZED)
    found = report(configured(*cluster.addresses))
    found.has("FAIL", "Topic syslog cannot be used: TopicAuthorizationFailed; grant this client")


def test_a_partition_without_a_leader(cluster: MockKafka, report: Run) -> None:
    cluster.lead("syslog", 1, -1)
    found = report(configured(*cluster.addresses))
    found.has("FAIL", "Topic syslog: partition 1 is without a leader")


def test_idempotence_is_forbidden(cluster: MockKafka, report: Run) -> None:
    cluster.fail_next(INIT_PRODUCER_ID, CLUSTER_UNAUTHORIZED)
    found = report(configured(*cluster.addresses))
    found.has("FAIL", "does not allow idempotent producing: ClusterAuthorizationFailed; grant this client")


def test_a_cluster_that_is_still_starting_is_waited_for(cluster: MockKafka, report: Run) -> None:
    cluster.fail_next(INIT_PRODUCER_ID, STILL_STARTING, STILL_STARTING)
    assert report(configured(*cluster.addresses)).status == 0


def judged(settings: dict[str, str], *partitions: Partition, **listener: int) -> list[checking.Line]:
    """Return what is said of a topic with these settings."""
    found = Findings(brokers=("k:1",), partitions=partitions, topic_settings=settings)
    listeners = [{"address": ":1", **listener}]
    return list(checking._topic(configured("k:1", listeners=listeners), found))


SETTINGS = {"min.insync.replicas": "2", "max.message.bytes": "1048588"}


def test_a_sound_topic() -> None:
    (line,) = judged(SETTINGS, Partition(0, has_leader=True, replicas=3, in_sync=3))
    said = "Topic syslog has 1 partition, replication factor 3, min.insync.replicas 2, max.message.bytes 1,048,588."
    assert line == ("ok", said)


@pytest.mark.parametrize(
    ("settings", "replicas", "in_sync", "mark", "words"),
    [
        ({"min.insync.replicas": "1"}, 3, 3, "note", "acks=all then promises one copy only"),
        ({"min.insync.replicas": "1"}, 1, 1, "note", "is lost with its disk"),
        ({"min.insync.replicas": "2"}, 3, 1, "FAIL", "partitions 0, 1 are with fewer replicas in sync"),
        (
            {"max.message.bytes": "1099"},
            3,
            3,
            "note",
            "would go to the topic syslog.dead-letter, in pieces. Raise the one to 1100 or lower the other to 999.",
        ),
    ],
)
def test_a_topic_that_is_not_sound(
    settings: dict[str, str], replicas: int, in_sync: int, mark: str, words: str
) -> None:
    partitions = [Partition(number, has_leader=True, replicas=replicas, in_sync=in_sync) for number in range(2)]
    _, line = judged(SETTINGS | settings, *partitions, max_record_bytes=1000)
    assert line.mark == mark
    assert words in line.text


def test_a_record_that_just_fits_is_no_matter() -> None:
    settings = SETTINGS | {"max.message.bytes": "1100"}
    assert len(judged(settings, Partition(0, has_leader=True, replicas=3, in_sync=3), max_record_bytes=1000)) == 1


def test_a_long_list_is_cut() -> None:
    partitions = [Partition(number, has_leader=False, replicas=3, in_sync=0) for number in range(9)]
    _, line = judged(SETTINGS, *partitions)
    assert "partitions 0, 1, 2, 3, 4 and 4 more are without a leader" in line.text


def test_the_command_is_as_safe_as_the_cluster_allows() -> None:
    command = checking._creation(configured("k:1"), Findings(brokers=("a:1", "b:2", "c:3", "d:4")))
    assert "--replication-factor 3 --config min.insync.replicas=2" in command
    assert "--command-config" not in command
    secured = configured("k:1", kafka={"security_protocol": "SSL"})
    assert "--command-config client.properties" in checking._creation(secured, Findings(brokers=("a:1",)))


# What does not answer


@pytest.fixture
def _no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve here and at once what a resolver might take its time for."""
    genuine = socket.getaddrinfo

    def resolve(host: str, *arguments: Any, **named: Any) -> Any:
        if host == "no.such.name":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return genuine(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("_no_such_name")
def test_nothing_answers(report: Run) -> None:
    found = report(configured("127.0.0.1:1", "no.such.name:9092", riemann={"address": "127.0.0.1:2"}))
    found.has("FAIL", "Kafka at 127.0.0.1:1 does not answer: connection refused.")
    found.has("FAIL", "Kafka at no.such.name:9092 does not answer: the name no.such.name does not resolve")
    found.has("FAIL", "Riemann at 127.0.0.1:2 does not answer: connection refused.")
    assert not any("opic" in line for line in found.lines)


def test_packets_are_swallowed(report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> socket.socket:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", connect)
    found = report(configured("127.0.0.1:1", riemann={"address": "127.0.0.1:2"}))
    found.has("FAIL", "Kafka at 127.0.0.1:1 does not answer: no reply within 3 s.")
    found.has("FAIL", "Riemann at 127.0.0.1:2 does not answer: no reply within 3 s.")


def test_a_resolver_that_takes_its_time_is_not_waited_for(report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(checking, "_RESOLVE_SECONDS", 0.1)
    ended = threading.Event()

    def resolve(*_: object, **__: object) -> list[Any]:
        ended.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    start = time.monotonic()
    found = report(configured("kafka1:9092", listen="self:1514"))
    assert time.monotonic() - start < 5
    ended.set()
    found.has("FAIL", "listeners[0].address: its name does not resolve within")
    found.has("FAIL", "Kafka at kafka1:9092 does not answer: no reply within")


def test_a_port_that_is_not_kafka(report: Run) -> None:
    with hanging_up() as address:
        found = report(configured(address))
    found.has("FAIL", f"Kafka at {address} accepts connections but", "check kafka.security_protocol")


def test_a_broker_that_says_nothing(report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syslogger.kafka.diagnosis._INSPECT_SECONDS", 0.3)
    with listening() as (_, address):
        found = report(configured(address))
    found.has("FAIL", f"Kafka at {address} accepts connections but did not answer in time")


def test_the_whole_is_bounded(report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.2)
    start = time.monotonic()
    with listening() as (_, address):
        found = report(configured(address))
    assert time.monotonic() - start < 2
    found.has("FAIL", "the rest was not tried")


def test_files_for_tls_that_are_none(cluster: MockKafka, report: Run, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    found = report(configured(*cluster.addresses, kafka={"security_protocol": "SSL", "tls_ca_file": str(file)}))
    found.has("FAIL", "kafka.tls_ca_file")


@pytest.mark.parametrize(
    ("answer", "words"), [(None, "says nothing"), (b"\0\0\0\1\xff", "what answers is not Riemann")]
)
def test_a_riemann_that_is_none(
    cluster: MockKafka, report: Run, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str
) -> None:
    monkeypatch.setattr(checking, "_RIEMANN_SECONDS", 0.5)
    with FakeRiemann() as riemann:
        riemann.answer = answer
        found = report(configured(*cluster.addresses, riemann={"address": riemann.address}))
    found.has("FAIL", f"Riemann at {riemann.address} does not answer: ", words)


def test_a_riemann_that_refuses_a_query_is_one(cluster: MockKafka, report: Run) -> None:
    with FakeRiemann() as riemann:
        riemann.answer = encoded(ok=False, error="no index")
        found = report(configured(*cluster.addresses, riemann={"address": riemann.address}))
    found.has("ok", f"Riemann at {riemann.address} answers, and refuses a query: no index")


# ZooKeeper


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`looks(addresses, problem)`: let that be what is found in ZooKeeper."""

    def set_up(addresses: tuple[str, ...], problem: str) -> None:
        async def look(hosts: str, security_protocol: str, seconds: float) -> tuple[tuple[str, ...], str]:
            assert security_protocol == "PLAINTEXT"
            assert "/kafka" in hosts
            assert seconds > 1
            return addresses, problem

        monkeypatch.setattr(zookeeper, "look", look)

    return set_up


def through(zookeeper: str) -> Config:
    return configured(kafka={"zookeeper": zookeeper})


def test_brokers_from_zookeeper(cluster: MockKafka, report: Run, looks: Callable[..., None]) -> None:
    looks(cluster.addresses, "broker 2 has no PLAINTEXT listener (it has SSL)")
    with listening() as (_, zookeeper):
        found = report(through(f"{zookeeper}/kafka"))
    (broker,) = cluster.addresses
    found.has("ok", f"ZooKeeper at {zookeeper} answers; under /kafka/brokers/ids it has 1 broker ({broker}).")
    found.has("note", f"ZooKeeper at {zookeeper}: broker 2 has no PLAINTEXT listener")
    found.has("ok", f"Kafka at {broker} answers")


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("no brokers registered under /kafka/brokers/ids", ("Kafka 4 uses no ZooKeeper", '"/kafka"')),
        ("broker 0 has no PLAINTEXT listener (it has SSL)", ("answers, but broker 0 has no PLAINTEXT listener",)),
        ("ZooKeeper at zk1:1 does not answer (for 5 s)", ("ZooKeeper at zk1:1 does not answer (for 5 s).",)),
    ],
)
def test_a_zookeeper_without_brokers(
    report: Run, looks: Callable[..., None], problem: str, words: tuple[str, ...]
) -> None:
    looks((), problem)
    with listening() as (_, zookeeper):
        found = report(through(f"{zookeeper}/kafka"))
    found.has("FAIL", *words)
    found.has("FAIL", "Kafka was not tried: no broker's address is known.")


@pytest.mark.usefixtures("_no_such_name")
def test_no_zookeeper(report: Run) -> None:
    found = report(through("127.0.0.1:1,no.such.name/kafka"))
    found.has("FAIL", "ZooKeeper at 127.0.0.1:1 does not answer: connection refused.")
    found.has("FAIL", "ZooKeeper at no.such.name:2181 does not answer: the name no.such.name does not resolve")
    found.has("FAIL", "Kafka was not tried")


def test_what_is_no_zookeeper(report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_ZOOKEEPER_SECONDS", 0.3)
    start = time.monotonic()
    with hanging_up() as address:
        found = report(through(address))
        assert time.monotonic() - start < 4
        found.has("FAIL", f"ZooKeeper at {address} does not answer (for 0 s)")
        while any(thread.name == "zookeeper" for thread in threading.enumerate()):
            assert time.monotonic() - start < 20, "the thread left behind ends"
            threading.Event().wait(0.05)


# Its own addresses


def test_a_port_that_another_program_has(cluster: MockKafka, report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_HTTP_SECONDS", 0.2)
    with listening() as (_, taken):
        found = report(configured(*cluster.addresses, listen=taken, prometheus=taken))
    found.has("FAIL", f"listeners[0].address: cannot listen on {taken}: another program already listens there")
    found.has("FAIL", f"prometheus.address: cannot listen on {taken}: another program already listens there")


def test_a_port_that_somebody_has(cluster: MockKafka, report: Run) -> None:
    with listening() as (_, taken):
        found = report(configured(*cluster.addresses, listen=taken))
    found.has("note", f"listeners[0].address {taken} is taken, by a syslogger that runs already or by another program.")


def test_a_unix_socket(cluster: MockKafka, report: Run, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    report(configured(*cluster.addresses, listen=address)).has(
        "ok", f"listeners[0].address {address} is free", "65,536"
    )
    assert not list(tmp_path.iterdir())
    # A syslogger that waits for Kafka has it, and does not listen yet.
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.bind(address.removeprefix("unix:"))
        report(configured(*cluster.addresses, listen=address)).has("note", f"{address} is taken, by a syslogger")
        assert list(tmp_path.iterdir())
    report(configured(*cluster.addresses, listen="unix:/no/s")).has(
        "FAIL", "listeners[0].address", "directory must exist"
    )


@pytest.mark.usefixtures("_no_such_name")
def test_addresses_that_are_not_of_this_machine(cluster: MockKafka, report: Run) -> None:
    found = report(configured(*cluster.addresses, listen="192.0.2.1:1514", prometheus="no.such.name:9514"))
    found.has("FAIL", "listeners[0].address: cannot listen on 192.0.2.1:1514")
    found.has("FAIL", "prometheus.address: cannot listen on no.such.name:9514: the name does not resolve.")


@pytest.mark.parametrize("reason", ["", "waiting for Kafka"])
async def test_the_ports_of_the_syslogger_that_runs(
    cluster: MockKafka, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    view = View(asyncio.get_running_loop(), Counters(), lambda: (not reason, reason))
    with MetricsServer(("127.0.0.1", 0), view) as server, listening() as (_, taken):
        own = "{}:{}".format(*server.address)
        status = await asyncio.to_thread(check, configured(*cluster.addresses, listen=taken, prometheus=own))
    found = Report(status, capsys.readouterr().out)
    assert status == 0
    found.has("note", f"listeners[0].address {taken} is taken, presumably by the syslogger that runs already.")
    found.has(
        "note", f"prometheus.address {own} is taken by a syslogger that runs already; it says: {reason or 'ready'}."
    )


def test_free_ports_stay_free(cluster: MockKafka, report: Run) -> None:
    with listening() as (_, address):
        pass
    assert report(configured(*cluster.addresses, prometheus=address)).status == 0
    report(configured(*cluster.addresses, prometheus=address)).has("ok", f"prometheus.address {address} is free.")


def test_a_receive_buffer_that_is_too_small(cluster: MockKafka, report: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "the kernel grants less. Set sysctl net.core.rmem_max."
    monkeypatch.setattr(checking, "bind_listener", lambda *_: ([socket.socket()], Newline(1000), problem))
    found = report(configured(*cluster.addresses))
    found.has("note", "listeners[0].address", "is free, but the kernel grants less", "net.core.rmem_max")


@pytest.mark.parametrize(
    ("ends", "mark", "words"),
    [
        (timedelta(days=100, hours=1), "ok", "belongs to its key and expires in 100 days, on "),
        (timedelta(days=3, hours=1), "note", "belongs to its key and expires in 3 days, on "),
        (timedelta(hours=-1), "FAIL", "expired on "),
    ],
)
def test_a_certificate(  # noqa: PLR0917
    cluster: MockKafka, report: Run, tmp_path: Path, ends: timedelta, mark: str, words: str
) -> None:
    authority, now = Authority(tmp_path), datetime.now(UTC)
    certificate, key = authority.issue(SERVER, not_before=now - timedelta(days=9), not_after=now + ends)
    listeners = [{"address": "127.0.0.1:0", "tls": {"certificate_file": certificate, "key_file": key}}]
    report(configured(*cluster.addresses, listeners=listeners)).has(
        mark, f"listeners[0].tls.certificate_file {certificate} {words}{now + ends:%Y-%m-%d}"
    )
    listeners[0]["tls"]["key_file"] = authority.issue(SERVER)[1]
    found = report(configured(*cluster.addresses, listeners=listeners))
    found.has("FAIL", "listeners[0].tls.key_file", f"which is not the key of {certificate}.")


# Its output


def test_the_report_speaks_alone(
    cluster: MockKafka, report: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("kazoo")

    def bind(*_: object) -> list[tuple[socket.socket, Newline]]:
        log.error("not heard")
        return [socket.socket()], Newline(65_536), ""

    monkeypatch.setattr(checking, "bind_listener", bind)
    report(configured(*cluster.addresses))
    assert caplog.text == ""
    log.error("heard")
    assert "heard" in caplog.text


def test_all_is_heard_at_level_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with hanging_up() as address:
        assert check(configured(address, log={"level": "debug"})) == 1
    assert "aiokafka" in caplog.text
