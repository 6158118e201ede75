"""RELP with stock rsyslog, plain and over TLS: nothing is lost, whatever becomes of syslogger, without systemd.

Duplicates are counted.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import CLIENT, Authority
from tests.system.parts import Kafka43, Load, Sender, Syslogger, free_port, numbered, until

WINDOW = 1000

FILES = "/etc/rsyslog.d/syslogger-"


@dataclass(frozen=True)
class Way:
    """How RELP is spoken."""

    shipped_as: str = "60-syslogger-relp.conf"
    listener: Mapping[str, Any] = field(default_factory=dict)
    """What the listener's table has beside the address and the protocol."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """What is changed in the shipped file."""


def encrypted(directory: Path, library: str = "", version: str = "1.2") -> Way:
    authority = Authority(directory)
    certificate, key = authority.issue(CLIENT)
    table = authority.listener(
        minimum_version=version, verify="required", ca_file=authority.file, permitted_peers=["*.example.net"]
    )
    changes = {f"{FILES}ca.pem": authority.file, f"{FILES}certificate.pem": certificate, f"{FILES}key.pem": key}
    if library:
        changes['module(load="omrelp")'] = f'module(load="omrelp" tls.tlslib="{library}")'
    return Way("60-syslogger-relp-tls.conf", {"tls": table}, changes)


@pytest.fixture(params=["plain", "tls"])
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Way:
    return Way() if request.param == "plain" else encrypted(tmp_path / "authority")


@pytest.fixture
def make_relp(make_syslogger) -> Callable[..., Syslogger]:
    def make(
        kafka: Kafka43, topic: str, way: Way | None = None, drain_seconds: float = 30, **settings: Any
    ) -> Syslogger:
        listener = (way or Way()).listener
        return make_syslogger(
            kafka={"bootstrap_servers": [kafka.bootstrap], "topic": topic, **settings},
            listeners=[{"address": f"127.0.0.1:{free_port()}", "protocol": "relp", **listener}],
            drain_seconds=drain_seconds,
        )

    return make


def impatient(tmp_path: Path, port: int, way: Way | None = None) -> Sender:
    """Start rsyslog as shipped, but one that waits no longer than 3 s for an answer."""
    way = way or Way()
    sender = Sender(tmp_path, port, way.shipped_as, {**way.changes, 'timeout="90"': 'timeout="3"'})
    sender.rsyslog.start()
    return sender


def test_rsyslog_over_relp(kafka43: Kafka43, topic: str, make_relp, make_sender, way: Way):
    syslogger = make_relp(kafka43, topic, way)
    syslogger.start()
    sender = make_sender(syslogger.port, way.shipped_as, way.changes)
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


@pytest.mark.parametrize("library", ["gnutls", "openssl"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_each_library_that_librelp_has_for_tls(  # noqa: PLR0917
    library: str, version: str, kafka43: Kafka43, topic: str, make_relp, make_sender, tmp_path: Path
):
    way = encrypted(tmp_path / "authority", library, version)
    syslogger = make_relp(kafka43, topic, way)
    syslogger.start()
    make_sender(syslogger.port, way.shipped_as, way.changes).write(*numbered("a", 10_000))
    kafka43.wait_account(topic, {"a": 10_000}).check()
    assert syslogger.metric("syslogger_tls_handshakes_total") == 1
    assert syslogger.metric("syslogger_tls_handshake_failures_total") == 0
    assert syslogger.stop() == 0


@pytest.mark.row(15)
def test_six_kills_under_load(kafka43: Kafka43, topic: str, make_relp, tmp_path: Path, way: Way):
    """Without systemd: nothing keeps the connections, and what syslogger had read is gone with it."""
    # Batches far apart, so that there is always something that Kafka has not acknowledged.
    syslogger = make_relp(kafka43, topic, way, commit_interval_seconds=0.2)
    syslogger.start()
    sender = impatient(tmp_path, syslogger.port, way)
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
def test_five_orderly_restarts_under_load(kafka43: Kafka43, topic: str, make_relp, tmp_path: Path, way: Way):
    syslogger = make_relp(kafka43, topic, way)
    syslogger.start()
    sender = impatient(tmp_path, syslogger.port, way)
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
def test_a_reload_keeps_the_session_or_ends_it_first(kafka43: Kafka43, topic: str, make_relp, tmp_path: Path, way: Way):
    syslogger = make_relp(kafka43, topic, way)
    syslogger.start()
    sender = impatient(tmp_path, syslogger.port, way)
    with Load(sender, per_second=5000) as load:
        for _ in range(3):
            before = sum(kafka43.end_offsets(topic).values())
            kafka43.wait_count(topic, before + 3000, seconds=30)
            begun = syslogger.log().count("Listening on")
            syslogger.signal(signal.SIGHUP)
            until(lambda begun=begun: syslogger.log().count("Listening on") > begun, "it began anew")
    account = kafka43.wait_account(topic, {"a": load.count})
    print(account)
    if "tls" in way.listener:
        account.check(twice=True)
        assert account.twice <= 3 * WINDOW
        assert syslogger.metric("syslogger_connections_accepted_total") == 1, "nobody else could decrypt it"
    else:
        account.check()
        assert syslogger.metric("syslogger_connections_adopted_total") == 1
        assert syslogger.metric("syslogger_connections_accepted_total") == 0, "it is the same session"
    assert syslogger.stop() == 0
