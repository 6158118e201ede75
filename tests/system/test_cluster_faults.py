"""Three brokers that lose leaders, replicas, packets, topics and permissions, while stock rsyslog sends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclBindingFilter, AclOperation, AclPermissionType, ResourceType
from confluent_kafka.admin import ResourcePatternType as PatternType

from tests.system.cluster import Cluster, deaf, longest_pause, other_leader
from tests.system.parts import (
    NUMBERED,
    Account,
    Kafka43,
    KafkaClient,
    Load,
    Sender,
    Syslogger,
    account,
    free_port,
    until,
)

SHORT = {"request_timeout_seconds": 3}  # so that what hangs on it shows within a test
DATED = {"message__timestamp__type": "LogAppendTime"}  # so that the topic tells when each record came

Sending = Callable[..., contextlib.AbstractContextManager[list[Load]]]


pytestmark = pytest.mark.alone  # it says how soon records flow again


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """Three brokers, all well; each test may do to them what it likes."""
    _cluster.heal()
    return _cluster


@pytest.fixture
def sending(tmp_path: Path) -> Sending:
    """Make rsyslogs, named a, b and c, under load: `sending(port, count, per_second)`, for a `with`."""

    @contextlib.contextmanager
    def start(port: int, count: int = 1, per_second: int = 2000) -> Iterator[list[Load]]:
        with contextlib.ExitStack() as started:
            loads: list[Load] = []
            for name in "abc"[:count]:
                sender = Sender(tmp_path / name, port)
                sender.rsyslog.start()
                loads.append(started.enter_context(Load(sender, per_second, name)))
            yield loads

    return start


def _more(kafka: KafkaClient, topic: str, count: int, seconds: float = 30.0) -> None:
    """Return when so many more records were appended."""
    kafka.wait_count(topic, sum(kafka.end_offsets(topic).values()) + count, seconds)


def _close(kafka: KafkaClient, topic: str, syslogger: Syslogger, loads: list[Load], what: str) -> Account:
    """Print and check the account, and that syslogger ends well."""
    found = kafka.wait_account(topic, {load.name: load.count for load in loads}, 40)
    redelivered = syslogger.metric("syslogger_records_redelivered_total")
    rebuilds = syslogger.metric("syslogger_producer_rebuilds_total")
    print(f"\n{what}: {found}; redelivered {redelivered:.0f}, producers rebuilt {rebuilds:.0f}")
    found.check(twice=True)
    assert found.twice <= redelivered, found
    syslogger.check_sums()
    assert syslogger.stop() == 0
    assert "Traceback" not in syslogger.log()
    return found


@pytest.mark.row(1)
def test_the_leader_is_killed(cluster: Cluster, make_syslogger, sending: Sending):
    topic = cluster.create_topic(**DATED)
    syslogger = make_syslogger(kafka={"zookeeper": cluster.zookeeper.hosts, "topic": topic})
    syslogger.start()
    kills = []
    with sending(syslogger.port) as loads:
        for _ in range(2):
            _more(cluster, topic, 2000)
            leader = cluster.leaders(topic)[0]
            cluster.brokers[leader].sigkill()
            killed = time.time()
            kills.append((killed, other_leader(cluster, topic, leader)))
            _more(cluster, topic, 2000)
            cluster.heal()
    times = cluster.appended_at(topic)[0]
    for killed, elected in kills:
        first = min(each for each in times if each > killed)
        print(f"\nkilled; another leader after {elected - killed:.2f} s; records flow {first - elected:.2f} s later")
        assert first - elected < 1
    _close(cluster, topic, syslogger, loads, "leader killed twice")


@pytest.mark.row(2)
def test_a_rolling_restart(cluster: Cluster, make_syslogger, sending: Sending):
    topic = cluster.create_topic(partitions=3, **DATED)
    syslogger = make_syslogger(kafka={"zookeeper": cluster.zookeeper.hosts, "topic": topic})
    syslogger.start()
    with sending(syslogger.port, 3, per_second=1000) as loads:
        _more(cluster, topic, 3000)
        begin = time.time()
        for broker in cluster.brokers:
            broker.stop()
            _more(cluster, topic, 2000)
            broker.start()
            until(cluster.is_whole, "the broker is back in sync", 40, every=0.2)
        end = time.time()
    _close(cluster, topic, syslogger, loads, "rolling restart")
    pauses = [longest_pause(times, begin, end) for times in cluster.appended_at(topic).values()]
    print(f"longest pause of each partition: {', '.join(f'{each:.2f} s' for each in sorted(pauses))}")


@pytest.mark.row(4)
def test_a_partition_without_a_leader(cluster: Cluster, make_syslogger, sending: Sending):
    """Its only broker is gone for longer than the request timeout; another partition's goes on."""
    topic = cluster.create_topic(assignment=[[0], [1]], min__insync__replicas=1, **DATED)
    syslogger = make_syslogger(kafka={"bootstrap_servers": cluster.addresses, "topic": topic} | SHORT)
    syslogger.start()
    with sending(syslogger.port, 2, per_second=1000) as loads:
        _more(cluster, topic, 4000)
        begin = time.time()
        cluster.brokers[1].sigkill()
        time.sleep(10)
        end = time.time()
        cluster.heal()
        _more(cluster, topic, 4000)
    _close(cluster, topic, syslogger, loads, "a partition without a leader")
    times = cluster.appended_at(topic)
    pauses = [longest_pause(times[number], begin, end) for number in (0, 1)]
    print(f"longest pause: {pauses[0]:.2f} s with a leader, {pauses[1]:.2f} s without")
    assert pauses[1] > 7, "it had no leader"
    assert pauses[0] < 1, "the other partition went on"


@pytest.mark.row(4)
def test_no_partition_has_a_leader(cluster: Cluster, make_syslogger, sending: Sending):
    topic = cluster.create_topic(assignment=[[2]], min__insync__replicas=1, **DATED)
    syslogger = make_syslogger(kafka={"bootstrap_servers": cluster.addresses, "topic": topic} | SHORT)
    syslogger.start()
    with sending(syslogger.port) as loads:
        _more(cluster, topic, 4000)
        cluster.brokers[2].sigkill()
        until(lambda: syslogger.metric("syslogger_producer_rebuilds_total"), "another producer", 20)
        assert "leader" in syslogger.log(), "it says what is missing"
        cluster.heal()
        whole = time.time()
        _more(cluster, topic, 4000)
    times = cluster.appended_at(topic)[0]
    print(f"\nflowing {min(each for each in times if each > whole) - whole:.2f} s after all is well")
    _close(cluster, topic, syslogger, loads, "no leader")


@pytest.mark.row(5)
def test_fewer_replicas_in_sync_than_asked_for(cluster: Cluster, make_syslogger, sending: Sending):
    topic = cluster.create_topic(**DATED)
    syslogger = make_syslogger(kafka={"zookeeper": cluster.zookeeper.hosts, "topic": topic} | SHORT)
    syslogger.start()
    with sending(syslogger.port) as loads:
        _more(cluster, topic, 4000)
        leader = cluster.leaders(topic)[0]
        for broker in cluster.brokers:
            if broker.number != leader:
                broker.sigkill()
        time.sleep(4)  # until ZooKeeper and the leader have noticed
        delivered = syslogger.metric("syslogger_records_delivered_total")
        until(lambda: "min.insync.replicas" in syslogger.log(), "it says what is wrong", 15)
        assert syslogger.get("/readyz")[0] == 503
        time.sleep(3)
        assert syslogger.metric("syslogger_records_delivered_total") == delivered, "it waits"
        assert len(syslogger.log().splitlines()) < 30, syslogger.log()
        cluster.heal()
        whole = time.time()
        _more(cluster, topic, 4000)
        until(lambda: syslogger.get("/readyz")[0] == 200, "ready again", 5)
    times = cluster.appended_at(topic)[0]
    print(f"\nflowing {min(each for each in times if each > whole) - whole:.2f} s after all is well")
    _close(cluster, topic, syslogger, loads, "one replica of three in sync")


@pytest.mark.row(6)
@pytest.mark.parametrize("which", ["the leader", "every broker"])
def test_a_round_trip_longer_than_the_request_timeout(cluster: Cluster, make_syslogger, sending: Sending, which: str):
    """Each try may have been written, and none is known to be."""
    topic = cluster.create_topic(**DATED)
    syslogger = make_syslogger(
        kafka={"bootstrap_servers": cluster.proxied, "topic": topic, "request_timeout_seconds": 1}
    )
    syslogger.start()
    with sending(syslogger.port) as loads:
        _more(cluster, topic, 4000)
        leader = cluster.leaders(topic)[0]
        for broker in cluster.brokers:
            if which == "every broker" or broker.number == leader:
                broker.proxy.delay_seconds = 1.5
        delivered = syslogger.metric("syslogger_records_delivered_total")
        time.sleep(10)
        assert syslogger.metric("syslogger_records_delivered_total") - delivered < 4000, "nothing is acknowledged"
        cluster.heal()
        well = time.time()
        _more(cluster, topic, 4000)
    times = cluster.appended_at(topic)[0]
    print(f"\nlongest pause afterwards: {longest_pause(times, well, times[-1]):.2f} s")
    _close(cluster, topic, syslogger, loads, f"{which} too slow")


@pytest.mark.row(7)
def test_one_broker_swallows_packets(cluster: Cluster, make_syslogger, sending: Sending):
    """Which is not a broker that is gone: it still leads its partition, and connects to it are never answered."""
    topic = cluster.create_topic(assignment=[[0, 1, 2], [1, 2, 0], [2, 0, 1]], **DATED)
    syslogger = make_syslogger(kafka={"bootstrap_servers": cluster.proxied, "topic": topic} | SHORT)
    syslogger.start()
    with sending(syslogger.port, 3, per_second=500) as loads:
        _more(cluster, topic, 4000)
        with deaf(cluster.brokers[0].proxy) as since:
            time.sleep(15)
            end = time.time()
        _more(cluster, topic, 4000)
    _close(cluster, topic, syslogger, loads, "one broker swallows packets")
    times = cluster.appended_at(topic)
    whole = [longest_pause(times[number], since, end) for number in range(3)]
    later = [longest_pause(times[number], since + SHORT["request_timeout_seconds"] + 1, end) for number in range(3)]
    print(f"longest pause of each partition: {whole}; after one connect timeout: {later}")
    assert whole[0] > 10, "it was deaf"
    assert max(whole[1:]) < SHORT["request_timeout_seconds"] + 1
    assert max(later[1:]) < 1


def _of_a_deleted_topic(cluster: Cluster, topic: str) -> list[tuple[int, bytes]]:
    """Return every numbered record that a deleted topic held: brokers keep its files for a minute."""
    found: list[tuple[int, bytes]] = []
    for number in (0, 1):
        copies = [
            b"".join(file.read_bytes() for file in sorted(folder.glob("*.log")))
            for broker in cluster.brokers
            for folder in (broker.directory / "data").glob(f"{topic}-{number}.*-delete")
        ]
        longest = max(copies, key=len)
        found += [(100 + number, match[0]) for match in NUMBERED.finditer(longest)]
    return found


@pytest.mark.row(10)
def test_the_topic_is_deleted_and_created_again(cluster: Cluster, make_syslogger, sending: Sending):
    """What was acknowledged before is gone with the topic; everything else is in the new one, of fewer partitions."""
    topic = cluster.create_topic(partitions=2)
    syslogger = make_syslogger(kafka={"bootstrap_servers": cluster.addresses, "topic": topic} | SHORT)
    syslogger.start()
    with sending(syslogger.port, 2, per_second=1000) as loads:
        _more(cluster, topic, 4000)
        cluster.delete_topic(topic)
        until(lambda: f"create the topic {topic}" in syslogger.log(), "it says what to do", 15)
        assert syslogger.get("/readyz")[0] == 503
        time.sleep(5)
        assert len(syslogger.log().splitlines()) < 30, syslogger.log()
        before = _of_a_deleted_topic(cluster, topic)
        cluster.create_topic(topic)
        created = time.monotonic()
        _more(cluster, topic, 1)
        print(f"\nflowing {time.monotonic() - created:.2f} s after the topic is there")
        _more(cluster, topic, 4000)
    sent = {load.name: load.count for load in loads}
    until(lambda: syslogger.metric("syslogger_records_delivered_total") == sum(sent.values()), "all is delivered", 30)
    found = account(before + cluster.records(topic), sent)
    print(f"topic deleted and created again: {found}; {len(before)} of them gone with it")
    found.check(twice=True)
    assert found.twice <= syslogger.metric("syslogger_records_redelivered_total"), found
    assert syslogger.stop() == 0
    assert "Traceback" not in syslogger.log()


class _Guarded(Kafka43):
    """A broker at whose address `guarded` the user `forwarder` may do what it was granted; elsewhere everybody may."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        port = free_port()
        self.guarded = f"127.0.0.1:{port}"
        name = "listener__name__guarded__plain__sasl__jaas__config"
        module = "org.apache.kafka.common.security.plain.PlainLoginModule"
        plain, controller = f"PLAINTEXT://{self.bootstrap}", f"CONTROLLER://127.0.0.1:{self.controller_port}"
        self.extra = {
            "listeners": f"{plain},GUARDED://{self.guarded},{controller}",
            "advertised__listeners": f"{plain},GUARDED://{self.guarded}",
            "listener__security__protocol__map": "PLAINTEXT:PLAINTEXT,GUARDED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter__broker__listener__name": "PLAINTEXT",
            "sasl__enabled__mechanisms": "PLAIN",
            name: f'{module} required user_forwarder="secret";',
            "authorizer__class__name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super__users": "User:ANONYMOUS",
        }

    def grant(self, topic: str, *operations: AclOperation) -> None:
        """Let `forwarder` do these things with the topic."""
        bindings = [self._acl(AclBinding, topic, each) for each in operations]
        admin = self.admin()  # it must outlive its answers
        for done in admin.create_acls(bindings).values():
            done.result(20)

    def revoke(self, topic: str, *operations: AclOperation) -> None:
        """Let it do them no more."""
        filters = [self._acl(AclBindingFilter, topic, each) for each in operations]
        admin = self.admin()
        for done in admin.delete_acls(filters).values():
            assert done.result(20)

    def _acl(self, kind: type, topic: str, operation: AclOperation) -> AclBinding:
        return kind(
            ResourceType.TOPIC, topic, PatternType.LITERAL, "User:forwarder", "*", operation, AclPermissionType.ALLOW
        )


@pytest.mark.row(10)
def test_access_is_revoked(tmp_path: Path, make_syslogger, sending: Sending):
    write, describe = AclOperation.WRITE, AclOperation.DESCRIBE
    with _Guarded(tmp_path / "guarded") as kafka:
        topic = kafka.create_topic()
        kafka.grant(topic, write, describe)
        login = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "forwarder", "sasl_password": "secret"}
        syslogger = make_syslogger(
            kafka={"bootstrap_servers": [kafka.guarded], "topic": topic} | login | SHORT, log={"period_seconds": 2}
        )
        syslogger.start()
        with sending(syslogger.port) as loads:
            for operations in ((write,), (write, describe)):
                _more(kafka, topic, 3000)
                printed = len(syslogger.log())
                kafka.revoke(topic, *operations)
                until(lambda: syslogger.get("/readyz")[0] == 503, "not ready", 15)
                wanted = "grant forwarder the operations Write"
                until(lambda: wanted in syslogger.log()[printed:], "it says what to grant", 15)  # noqa: B023
                kafka.grant(topic, *operations)
                granted = time.monotonic()
                _more(kafka, topic, 1)
                print(f"\nflowing {time.monotonic() - granted:.2f} s after it is granted")
                until(lambda: syslogger.get("/readyz")[0] == 200, "ready again", 10)
            _more(kafka, topic, 3000)
        _close(kafka, topic, syslogger, loads, "access revoked twice")
