"""`syslogger check` against real parts: what it says of them, and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.parts import Kafka39, Kafka43, Syslogger, ZooKeeper, free_port

pytestmark = pytest.mark.system

OWN = ("--listen", "127.0.0.1:0")


class Report:
    """What one `syslogger check` printed, and its exit status."""

    def __init__(self, *flags: str, **environment: str) -> None:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("SYSLOGGER_")}
        plain["SYSLOGGER_PROMETHEUS_ADDRESS"] = ""
        start = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "syslogger", "check", *flags],
            env=plain | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.seconds = time.monotonic() - start
        self.status = ended.returncode
        self.text = ended.stdout
        assert ended.stderr == ""
        assert all(line[:6] in ("ok    ", "note  ", "FAIL  ") for line in self.text.splitlines()), self.text

    def has(self, mark: str, *words: str) -> None:
        """Assert that there is just one line with this mark and all these words."""
        found = [line for line in self.text.splitlines() if all(word in line for word in words)]
        assert len(found) == 1, f"{words}:\n{self.text}"
        assert found[0].split()[0] == mark, found[0]


def test_kafka_39_through_zookeeper(kafka39: Kafka39, zookeeper: ZooKeeper):
    topic = kafka39.create_topic(partitions=3)
    report = Report(*OWN, "--zookeeper", f"{zookeeper.hosts}/kafka", "--topic", topic)
    assert report.status == 0, report.text
    broker = kafka39.bootstrap
    report.has("ok", f"ZooKeeper at {zookeeper.hosts} answers; under /kafka/brokers/ids it has 1 broker ({broker}).")
    report.has("ok", f"Kafka at {broker} answers, and allows idempotent producing.")
    report.has("ok", f"Kafka's cluster has 1 broker ({broker}).")
    said = "3 partitions, replication factor 1, min.insync.replicas 1, max.message.bytes 1,048,588."
    report.has("ok", f"Topic {topic} has {said}")


def test_kafka_43_by_bootstrap_servers(kafka43: Kafka43, topic: str):
    report = Report(*OWN, "--bootstrap-servers", kafka43.bootstrap, "--topic", topic)
    assert report.status == 0, report.text
    report.has("ok", f"Kafka at {kafka43.bootstrap} answers, and allows idempotent producing.")
    said = "1 partition, replication factor 1, min.insync.replicas 1, max.message.bytes 1,048,588."
    report.has("ok", f"Topic {topic} has {said}")
    report.has("note", "Replication factor 1")


def test_the_topics_own_settings_are_read(kafka43: Kafka43):
    topic = kafka43.create_topic(max__message__bytes=2000, min__insync__replicas=2)
    report = Report(*OWN, "--bootstrap-servers", kafka43.bootstrap, "--topic", topic)
    assert report.status == 1, report.text
    report.has("ok", f"Topic {topic}", "min.insync.replicas 2, max.message.bytes 2,000.")
    report.has("FAIL", "partition 0 is with fewer replicas in sync than min.insync.replicas asks for")
    report.has("note", "max.message.bytes 2,000 is too small for max_record_bytes 65,536")


def test_the_topic_is_missing(kafka39: Kafka39, kafka43: Kafka43):
    for kafka in (kafka39, kafka43):
        kafka.create_topic(f"logs-of-{kafka.port}")
        report = Report(*OWN, "--bootstrap-servers", kafka.bootstrap, "--topic", f"logs-of-{kafka.port}s")
        assert report.status == 1, report.text
        report.has("FAIL", f"There is no topic logs-of-{kafka.port}s: did you mean logs-of-{kafka.port}?")


def test_a_zookeeper_path_without_brokers(kafka39: Kafka39, zookeeper: ZooKeeper):
    report = Report(*OWN, "--zookeeper", zookeeper.hosts, "--topic", kafka39.create_topic())
    assert report.status == 1, report.text
    report.has("FAIL", f"ZooKeeper at {zookeeper.hosts} answers, but has no brokers registered under /brokers/ids")
    report.has("FAIL", "Kafka was not tried")


def test_everything_is_dead():
    zookeeper, riemann = (f"127.0.0.1:{free_port()}" for _ in range(2))
    report = Report(*OWN, "--zookeeper", zookeeper, "--riemann", riemann)
    assert report.status == 1, report.text
    assert report.seconds < 5
    report.has("FAIL", f"ZooKeeper at {zookeeper} does not answer: connection refused.")
    report.has("FAIL", "Kafka was not tried: no broker's address is known.")
    report.has("FAIL", f"Riemann at {riemann} does not answer: connection refused.")


def test_a_broker_and_a_zookeeper_that_are_stopped(tmp_path: Path):
    """They take connections, as the kernel does that for them, and then say nothing."""
    with ZooKeeper(tmp_path / "zookeeper") as zookeeper, Kafka39(tmp_path / "kafka", zookeeper) as kafka:
        topic = kafka.create_topic()
        kafka.sigstop()
        report = Report(*OWN, "--bootstrap-servers", kafka.bootstrap, "--topic", topic)
        assert report.status == 1, report.text
        report.has("FAIL", f"Kafka at {kafka.bootstrap} accepts connections but did not answer in time")
        zookeeper.sigstop()
        report = Report(*OWN, "--zookeeper", zookeeper.hosts, "--topic", topic, "--riemann", zookeeper.hosts)
        assert report.status == 1, report.text
        assert report.seconds < 16
        report.has("FAIL", f"ZooKeeper at {zookeeper.hosts} does not answer (for ")
        report.has("FAIL", f"Riemann at {zookeeper.hosts} does not answer")


def test_beside_the_daemon(syslogger: Syslogger):
    path = syslogger.directory / "syslogger.toml"
    before = syslogger.metric("syslogger_connections_accepted_total")
    report = Report("--config", str(path), SYSLOGGER_PROMETHEUS_ADDRESS=syslogger.config["prometheus"]["address"])
    assert report.status == 0, report.text
    report.has(
        "note", f"listeners[0].address 127.0.0.1:{syslogger.port} is taken, presumably by the syslogger that runs"
    )
    report.has("note", "prometheus.address", "is taken by a syslogger that runs already; it says: ready.")
    assert syslogger.metric("syslogger_connections_accepted_total") == before
    syslogger.check_sums()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kafka43, str]]:
    """Start a broker that has logins, creates topics by itself and advertises a wrong port; yield where to log in."""
    port, login, controller, wrong = (free_port() for _ in range(4))
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    users = 'user_admin="a" user_may="m" user_maynot="n"'
    names = ("PLAINTEXT", "SASL_PLAINTEXT", "CONTROLLER")
    kafka = Kafka43(
        tmp_path_factory.mktemp("secured"),
        port=port,
        auto__create__topics__enable="true",
        listeners=",".join(
            f"{name}://127.0.0.1:{at}" for name, at in zip(names, (port, login, controller), strict=True)
        ),
        advertised__listeners=f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{wrong}",
        listener__security__protocol__map="PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        controller__quorum__bootstrap__servers=f"127.0.0.1:{controller}",
        sasl__enabled__mechanisms="PLAIN",
        listener__name__sasl_plaintext__plain__sasl__jaas__config=f"{module} required {users};",
        authorizer__class__name="org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        super__users="User:ANONYMOUS;User:admin",
    )
    with kafka:
        allow(kafka, "User:may", kafka.create_topic("syslog"))
        yield kafka, f"127.0.0.1:{login}"


def allow(kafka: Kafka43, user: str, topic: str) -> None:
    """Let `user` write to the topic, and no more."""
    from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

    admin = kafka.admin()
    for operation in (AclOperation.WRITE, AclOperation.DESCRIBE):
        rule = AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, user, "*", operation, AclPermissionType.ALLOW
        )
        admin.create_acls([rule])[rule].result(20)


def logged_in(login: str, user: str, password: str, *flags: str, **environment: str) -> Report:
    given = {"SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SASL_USERNAME": user, "SASL_PASSWORD": password} | environment
    variables = {f"SYSLOGGER_KAFKA_{key}": value for key, value in given.items()}
    return Report(*OWN, "--bootstrap-servers", login, *flags, **variables)


def test_logins(secured: tuple[Kafka43, str]):
    _, login = secured
    report = logged_in(login, "admin", "wrong")
    assert report.status == 1
    report.has("FAIL", f"Kafka at {login} refuses this client: SaslAuthenticationFailed", "check kafka.sasl_username")
    report = logged_in(login, "admin", "a", SASL_MECHANISM="SCRAM-SHA-256")
    report.has("FAIL", f"Kafka at {login} refuses this client: UnsupportedSaslMechanism", "set kafka.sasl_mechanism")
    report = Report(*OWN, "--bootstrap-servers", login)
    report.has("FAIL", f"Kafka at {login} accepts connections but does not answer as Kafka", "kafka.security_protocol")


def test_rights(secured: tuple[Kafka43, str]):
    _, login = secured
    report = logged_in(login, "maynot", "n")
    report.has("FAIL", "does not allow idempotent producing: ClusterAuthorizationFailed; grant maynot the operation")
    report.has("FAIL", "Topic syslog cannot be used: TopicAuthorizationFailed; grant maynot the operations")
    report = logged_in(login, "may", "m")
    report.has("ok", f"Kafka at {login} answers, and allows idempotent producing.")
    report.has("ok", "Topic syslog has 1 partition, replication factor 1.")
    report.has("note", "could not be read: grant may the operation DescribeConfigs on the topic syslog.")


def test_an_advertised_address_that_clients_cannot_reach(secured: tuple[Kafka43, str]):
    _, login = secured
    report = logged_in(login, "admin", "a")
    assert report.status == 1
    report.has("ok", f"Kafka at {login} answers")
    report.has("FAIL", "does not answer: connection refused.", "advertised.listeners")


def test_no_topic_is_created(secured: tuple[Kafka43, str]):
    kafka, _ = secured
    report = Report(*OWN, "--bootstrap-servers", kafka.bootstrap, "--topic", "never-made")
    report.has("FAIL", "There is no topic never-made. Create it: kafka-topics.sh")
    assert "never-made" not in kafka.admin().list_topics(timeout=10).topics
