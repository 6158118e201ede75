"""Brokers and ZooKeeper that go, stay away, move and come back, while stock rsyslog sends."""

from __future__ import annotations

import re
import time

import pytest

from tests.system.parts import Kafka39, Kafka43, Load, ZooKeeper, free_port, until

SHORT = {"request_timeout_seconds": 3}  # so that what hangs on it shows within a test


@pytest.fixture
def own_zookeeper(tmp_path):
    with ZooKeeper(tmp_path / "own-zookeeper") as zookeeper:
        yield zookeeper


@pytest.fixture
def own_kafka39(tmp_path, own_zookeeper):
    with Kafka39(tmp_path / "own-kafka", own_zookeeper, chroot="/a/chroot") as kafka:
        yield kafka


@pytest.fixture
def own_kafka43(tmp_path):
    with Kafka43(tmp_path / "own-kafka") as kafka:
        yield kafka


def _appended(kafka, topic: str) -> int:
    return sum(kafka.end_offsets(topic).values())


@pytest.mark.row(3)
@pytest.mark.timeout(240)
def test_kafka_down_for_a_minute(own_kafka43: Kafka43, make_syslogger, make_sender):
    kafka = own_kafka43
    topic = kafka.create_topic()
    syslogger = make_syslogger(
        kafka={"bootstrap_servers": [kafka.bootstrap], "topic": topic}, log={"period_seconds": 10}
    )
    syslogger.start()
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=2000) as load:
        kafka.wait_count(topic, 5000)
        before = _appended(kafka, topic)
        kafka.sigkill()
        down, printed, memory = time.monotonic(), len(syslogger.log().splitlines()), []
        time.sleep(5)  # what a connection delivers at a time is in flight by then
        cpu = syslogger.cpu_seconds()
        while time.monotonic() - down < 60:
            memory.append(syslogger.rss_bytes())
            syslogger.check_sums()
            assert syslogger.get("/healthz")[0] == 200, "alive"
            time.sleep(1)
        assert 0 < syslogger.metric("syslogger_bytes_in_flight") < 512 * 1024, "reading stops"
        assert syslogger.metric("syslogger_connections_accepted_total") == 1
        assert syslogger.get("/readyz")[0] == 503, "not ready"
        assert max(memory) - min(memory) < 8 * 1024 * 1024, f"flat: {min(memory):,} … {max(memory):,}"
        assert syslogger.cpu_seconds() - cpu < 0.05 * 55, "near zero, scrapes and all"
        lines = syslogger.log().splitlines()[printed:]
        assert 1 <= len(lines) <= 15, "\n".join(lines)  # 6 periods, a line or two in each
        assert any(kafka.bootstrap in line for line in lines), "it says where"
        kafka.start()
        back = time.monotonic()
        until(lambda: _appended(kafka, topic) > before, "records flow within 5 s of Kafka's return", 5)
        until(lambda: syslogger.get("/readyz")[0] == 200, "ready again", 5 - (time.monotonic() - back) + 1)
    account = kafka.wait_account(topic, {"a": load.count}, 120)
    account.check(twice=True)
    # The batch in flight when Kafka was killed may have been written.
    assert account.twice <= syslogger.metric("syslogger_records_redelivered_total"), account
    until(lambda: syslogger.metric("syslogger_records_in_flight") == 0, "nothing in flight")
    syslogger.check_sums()
    assert syslogger.stop() == 0


@pytest.mark.row(3)
def test_the_order_holds_over_outages(own_kafka43: Kafka43, make_syslogger, make_sender):
    """Several, and more than one partition that the records could go to."""
    kafka = own_kafka43
    topic = kafka.create_topic(partitions=3)
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka.bootstrap], "topic": topic} | SHORT)
    syslogger.start()
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=2000) as load:
        for _ in range(2):
            before = _appended(kafka, topic)
            kafka.wait_count(topic, before + 2000)
            kafka.sigkill()
            until(lambda: syslogger.get("/readyz")[0] == 503, "it has noticed", 20)
            received = syslogger.metric("syslogger_records_received_total")
            time.sleep(2)
            assert syslogger.metric("syslogger_records_received_total") == received, "reading stops"
            assert syslogger.metric("syslogger_connections_accepted_total") == 1
            kafka.start()
    account = kafka.wait_account(topic, {"a": load.count}, 30)
    account.check(twice=True)
    assert account.twice <= syslogger.metric("syslogger_records_redelivered_total"), account
    assert syslogger.stop() == 0


@pytest.mark.row(6)
def test_a_broker_that_stops_answering(own_kafka43: Kafka43, make_syslogger, make_sender):
    """Stopped for longer than the request timeout and continued: the batch is delivered again."""
    kafka = own_kafka43
    topic = kafka.create_topic()
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka.bootstrap], "topic": topic} | SHORT)
    syslogger.start()
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=2000) as load:
        kafka.wait_count(topic, 2000)
        kafka.sigstop()
        time.sleep(8)
        kafka.sigcont()
        before = _appended(kafka, topic)
        kafka.wait_count(topic, before + 2000, seconds=20)
    account = kafka.wait_account(topic, {"a": load.count}, 30)
    account.check(twice=True)
    assert account.twice <= syslogger.metric("syslogger_records_redelivered_total"), account
    assert syslogger.stop() == 0


@pytest.mark.row(8)
def test_brokers_on_other_addresses_are_found_through_zookeeper(own_kafka39: Kafka39, make_syslogger, make_sender):
    kafka = own_kafka39
    topic = kafka.create_topic()
    syslogger = make_syslogger(kafka={"zookeeper": kafka.zookeeper_hosts, "topic": topic})
    syslogger.start()
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=2000) as load:
        kafka.wait_count(topic, 2000)
        for end in (kafka.stop, kafka.sigkill):
            end()
            kafka.start(port=free_port())
            before = _appended(kafka, topic)
            kafka.wait_count(topic, before + 1, seconds=10)
    account = kafka.wait_account(topic, {"a": load.count}, 30)
    account.check(twice=True)
    assert account.twice <= syslogger.metric("syslogger_records_redelivered_total"), account
    syslogger.check_sums()
    assert syslogger.stop() == 0


@pytest.mark.row(9)
def test_zookeeper_down_at_the_start_and_later(
    own_zookeeper: ZooKeeper, own_kafka39: Kafka39, make_syslogger, make_sender
):
    zookeeper, kafka = own_zookeeper, own_kafka39
    topic = kafka.create_topic()
    zookeeper.sigkill()
    syslogger = make_syslogger(kafka={"zookeeper": kafka.zookeeper_hosts, "topic": topic})
    syslogger.start(wait=False)
    until(lambda: syslogger.get("/healthz")[0] == 200, "alive", 10)
    time.sleep(3)
    assert syslogger.get("/readyz")[0] == 503, "not ready"
    with pytest.raises(ConnectionRefusedError):
        syslogger.connect()
    assert re.search(r"ZooKeeper", syslogger.log()), "it says what it waits for"
    # Up: it starts.
    zookeeper.start()
    syslogger.wait_ready(30)
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=2000) as load:
        kafka.wait_count(topic, 2000)
        # Down: nothing happens, beyond every session's end.
        rebuilds = syslogger.metric("syslogger_producer_rebuilds_total")
        zookeeper.sigkill()
        for _ in range(12):
            before = _appended(kafka, topic)
            kafka.wait_count(topic, before + 500, seconds=5)
            time.sleep(1)
        assert syslogger.get("/readyz")[0] == 200
        # Up again: nothing happens.
        zookeeper.start()
        for _ in range(5):
            before = _appended(kafka, topic)
            kafka.wait_count(topic, before + 500, seconds=5)
            time.sleep(1)
    assert syslogger.metric("syslogger_producer_rebuilds_total") == rebuilds
    assert syslogger.metric("syslogger_batch_failures_total") == 0
    kafka.wait_account(topic, {"a": load.count}, 30).check()
    assert syslogger.stop() == 0


@pytest.mark.row(10)
def test_the_topic_is_missing_at_the_start(kafka43: Kafka43, make_syslogger):
    topic = "not-made-yet"
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.start(wait=False)
    until(lambda: topic in syslogger.log(), "it says which topic is missing", 15)
    assert syslogger.get("/healthz")[0] == 200
    assert syslogger.get("/readyz")[0] == 503
    kafka43.create_topic(topic)
    syslogger.wait_ready(20)
    syslogger.send(b"one\n")
    assert kafka43.values(topic) == [b"one"]


@pytest.mark.row(11)
def test_a_record_larger_than_the_topic_allows_goes_to_the_dead_letters(kafka43: Kafka43, make_syslogger):
    """It holds up nobody. While there is no dead-letter topic it waits, and says what to create."""
    topic = kafka43.create_topic(max__message__bytes=2000)
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic} | SHORT)
    syslogger.start()
    small = [b"%d" % number for number in range(1000)]
    with syslogger.connect() as peer:
        name = "{}:{}".format(*peer.getsockname())
        peer.sendall(b"\n".join([*small[:500], b"x" * 10_000, *small[500:], b""]))
        until(lambda: f"create the topic {topic}.dead-letter" in syslogger.log(), "it says what to create", 20)
        syslogger.check_sums()
        assert syslogger.metric("syslogger_records_in_flight") > 0
        kafka43.create_topic(f"{topic}.dead-letter", max__message__bytes=7000)
        kafka43.wait_count(topic, 1000, seconds=60)
    assert kafka43.values(topic) == small
    assert b"".join(kafka43.values(f"{topic}.dead-letter")) == b"x" * 10_000
    assert syslogger.metric("syslogger_records_dead_lettered_total") == 1
    assert (
        f"A record of 10000 bytes from {name}, which Kafka refused, is in the topic {topic}.dead-letter"
        in syslogger.log()
    )
    syslogger.check_sums()


@pytest.mark.row(11)
def test_records_that_the_topic_does_not_take_go_to_the_dead_letters(kafka43: Kafka43, make_syslogger):
    """A compacted topic wants keys."""
    topic = kafka43.create_topic(cleanup__policy="compact")
    kafka43.create_topic(f"{topic}.dead-letter")
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic} | SHORT)
    syslogger.start()
    syslogger.send(b"one\ntwo\nthree\n")
    kafka43.wait_count(f"{topic}.dead-letter", 3, seconds=60)
    assert kafka43.values(f"{topic}.dead-letter") == [b"one", b"two", b"three"]
    assert kafka43.values(topic) == []
    assert syslogger.metric("syslogger_records_dead_lettered_total", error="InvalidRecord") == 3
