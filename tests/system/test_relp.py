"""RELP with stock rsyslog: nothing is lost, whatever becomes of syslogger, without systemd; duplicates are counted."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.system.parts import Kafka43, Load, Sender, Syslogger, free_port, numbered, until

SHIPPED = "60-syslogger-relp.conf"
WINDOW = 1000


@pytest.fixture
def make_relp(make_syslogger):
    def make(kafka: Kafka43, topic: str, drain_seconds: float = 30, **settings) -> Syslogger:
        return make_syslogger(
            kafka={"bootstrap_servers": [kafka.bootstrap], "topic": topic, **settings},
            listeners=[{"address": f"127.0.0.1:{free_port()}", "protocol": "relp"}],
            drain_seconds=drain_seconds,
        )

    return make


def impatient(tmp_path: Path, port: int) -> Sender:
    """Start rsyslog as shipped, but one that waits no longer than 3 s for an answer."""
    sender = Sender(tmp_path, port, SHIPPED)
    changed = sender.rsyslog.config.replace('timeout="90"', 'timeout="3"')
    assert changed != sender.rsyslog.config
    sender.rsyslog.config = changed
    sender.rsyslog.start()
    return sender


def test_rsyslog_over_relp(kafka43: Kafka43, topic: str, make_relp, make_sender):
    syslogger = make_relp(kafka43, topic)
    syslogger.start()
    sender = make_sender(syslogger.port, SHIPPED)
    sender.write(*numbered("a", 30_000))
    kafka43.wait_account(topic, {"a": 30_000}).check()
    first, *_ = kafka43.values(topic)
    assert first.startswith(b"<134>"), "facility local0, severity info; no framing"
    assert first.endswith(b"numbers: " + next(numbered("a", 1)).encode()), "the text, unchanged"
    assert syslogger.metric("syslogger_records_withdrawn_total") == 0
    syslogger.check_sums()
    assert syslogger.metric("syslogger_connections_open") == 1
    assert sender.rsyslog.stop() == 0
    until(lambda: syslogger.metric("syslogger_connections_open") == 0, "rsyslog took leave")
    assert syslogger.metric("syslogger_connections_ended_total", cause="close") == 1, "and was answered"
    assert syslogger.stop() == 0
    assert not [line for line in syslogger.log().splitlines() if "ERROR" in line or "Traceback" in line]


@pytest.mark.row(15)
def test_six_kills_under_load(kafka43: Kafka43, topic: str, make_relp, tmp_path: Path):
    """Without systemd: nothing keeps the connections, and what syslogger had read is gone with it."""
    # Batches far apart, so that there is always something that Kafka has not acknowledged.
    syslogger = make_relp(kafka43, topic, commit_interval_seconds=0.2)
    syslogger.start()
    sender = impatient(tmp_path, syslogger.port)
    with Load(sender, per_second=5000) as load:
        for _ in range(6):
            before = sum(kafka43.end_offsets(topic).values())
            kafka43.wait_count(topic, before + 3000, seconds=30)
            syslogger.sigkill()
            syslogger.start()
    account = kafka43.wait_account(topic, {"a": load.count})
    print(account)
    account.check(twice=True)
    assert account.twice <= 6 * WINDOW, "each kill: what Kafka had and rsyslog had not heard of"
    syslogger.check_sums()
    assert sender.rsyslog.stop() == 0
    assert syslogger.stop() == 0


@pytest.mark.row(15)
def test_five_orderly_restarts_under_load(kafka43: Kafka43, topic: str, make_relp, tmp_path: Path):
    syslogger = make_relp(kafka43, topic)
    syslogger.start()
    sender = impatient(tmp_path, syslogger.port)
    with Load(sender, per_second=5000) as load:
        for _ in range(5):
            before = sum(kafka43.end_offsets(topic).values())
            kafka43.wait_count(topic, before + 3000, seconds=30)
            assert syslogger.stop(20) == 0, syslogger.log_tail()
            syslogger.start()
    account = kafka43.wait_account(topic, {"a": load.count})
    print(account)
    account.check(twice=True)
    assert account.twice <= 5 * WINDOW, account
    assert syslogger.stop() == 0


@pytest.mark.row(15)
def test_kafka_down_for_longer_than_rsyslog_waits(tmp_path: Path, make_relp):
    with Kafka43(tmp_path / "own-kafka") as kafka:
        topic = kafka.create_topic()
        syslogger = make_relp(kafka, topic)
        syslogger.start()
        sender = impatient(tmp_path, syslogger.port)
        with Load(sender, per_second=1000) as load:
            kafka.wait_count(topic, 3000)
            kafka.sigkill()
            # Each time rsyslog has waited in vain it opens another session, and sends its window again.
            until(lambda: syslogger.metric("syslogger_connections_accepted_total") >= 4, "three sessions dropped", 60)
            kafka.start()
        account = kafka.wait_account(topic, {"a": load.count})
        print(account, "withdrawn", syslogger.metric("syslogger_records_withdrawn_total"))
        account.check(twice=True)
        assert syslogger.metric("syslogger_records_withdrawn_total") >= WINDOW, "the dropped sessions' were let go"
        assert account.twice <= 2 * WINDOW, "not a window for each session: only what Kafka had been given"
        assert syslogger.metric("syslogger_connections_open") == 1
        syslogger.check_sums()
        assert syslogger.stop() == 0


@pytest.mark.row(15)
@pytest.mark.parametrize("who", ["syslogger", "rsyslog"])
def test_a_stop_while_kafka_is_down(who: str, tmp_path: Path, make_relp):
    """What rsyslog has sent without an answer it sends to the next syslogger; stopped itself, it takes leave first."""
    with Kafka43(tmp_path / "own-kafka") as kafka:
        topic = kafka.create_topic()
        syslogger = make_relp(kafka, topic, drain_seconds=2)
        syslogger.start()
        sender = impatient(tmp_path, syslogger.port)
        sender.write(*numbered("a", 100))
        kafka.wait_count(topic, 100)
        kafka.sigkill()
        sender.write(*numbered("a", 400, 100))
        until(lambda: syslogger.metric("syslogger_records_in_flight"), "rsyslog has sent what Kafka has not")
        stopped = syslogger if who == "syslogger" else sender.rsyslog
        assert stopped.stop(30) == 0
        print(syslogger.log_tail(5))
        kafka.start()
        stopped.start()
        sender.write(*numbered("a", 100, 500))
        account = kafka.wait_account(topic, {"a": 600})
        print(who, account)
        account.check(twice=True)
        assert " ERROR " not in syslogger.log(), "nothing was lost"


@pytest.mark.row(15)
def test_a_reload_keeps_the_session(kafka43: Kafka43, topic: str, make_relp, tmp_path: Path):
    syslogger = make_relp(kafka43, topic)
    syslogger.start()
    sender = impatient(tmp_path, syslogger.port)
    with Load(sender, per_second=5000) as load:
        for _ in range(3):
            before = sum(kafka43.end_offsets(topic).values())
            kafka43.wait_count(topic, before + 3000, seconds=30)
            begun = syslogger.log().count("Listening on")
            syslogger.signal(signal.SIGHUP)
            until(lambda begun=begun: syslogger.log().count("Listening on") > begun, "it began anew")
    kafka43.wait_account(topic, {"a": load.count}).check()
    assert syslogger.metric("syslogger_connections_adopted_total") == 1
    assert syslogger.metric("syslogger_connections_accepted_total") == 0, "it is the same session"
    assert syslogger.stop() == 0
