"""TLS from stock rsyslog, with both of its drivers: to Kafka, through restarts and reloads; and who is not let in."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import CLIENT, SERVER, Authority
from tests.system.parts import Kafka43, Load, Sender, Syslogger, free_port, numbered, until
from tests.system.test_restarts import RSYSLOG_BATCH

DRIVERS = ["gtls", "ossl"]
FILES = "/etc/rsyslog.d/syslogger-"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def listen(kafka43: Kafka43, topic: str, make_syslogger, authority: Authority) -> Callable[..., Syslogger]:
    """`listen(verify="required", …)`: a syslogger at work, with such a `[listeners.tls]`."""

    def start(name: str = "syslogger", max_version: str = "", **table: Any) -> Syslogger:
        if table.get("verify", "none") != "none":
            table["ca_file"] = authority.file
        syslogger = make_syslogger(
            name=name,
            kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
            listeners=[{"address": f"127.0.0.1:{free_port()}", "tls": authority.listener(**table)}],
            log={"period_seconds": 5.0},
        )
        syslogger.start()
        return syslogger

    return start


def _changes(driver: str, authority: Authority, client: tuple[str, str] | None = None) -> dict[str, str]:
    """What is other than in the shipped file: the paths, and the driver."""
    changes = {f"{FILES}ca.pem": authority.file, 'StreamDriver="gtls"': f'StreamDriver="{driver}"'}
    if client:
        changes |= {f"{FILES}certificate.pem": client[0], f"{FILES}key.pem": client[1]}
    return changes


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_rsyslog_over_tls(driver: str, version: str, kafka43, topic, listen, authority, make_sender):
    syslogger = listen(minimum_version=version)
    sender = make_sender(syslogger.port, "60-syslogger-tls.conf", _changes(driver, authority))
    sender.write(*numbered("a", 50_000))
    kafka43.wait_account(topic, {"a": 50_000}).check()
    syslogger.check_sums()
    assert syslogger.metric("syslogger_tls_handshakes_total") == 1
    assert syslogger.metric("syslogger_tls_handshake_failures_total") == 0
    assert syslogger.metric("syslogger_tls_certificate_expiry_timestamp_seconds") > time.time()
    assert syslogger.stop() == 0
    assert "ERROR" not in syslogger.log()


@pytest.mark.parametrize("driver", DRIVERS)
def test_rsyslog_over_mutual_tls(driver: str, kafka43, topic, listen, authority, make_sender):
    syslogger = listen(verify="required", permitted_peers=["*.example.net"])
    changes = _changes(driver, authority, authority.issue(CLIENT))
    sender = make_sender(syslogger.port, "60-syslogger-mutual-tls.conf", changes)
    sender.write(*numbered("a", 50_000))
    kafka43.wait_account(topic, {"a": 50_000}).check()
    assert syslogger.metric("syslogger_tls_handshake_failures_total") == 0


@pytest.mark.row(12)
@pytest.mark.parametrize("driver", DRIVERS)
def test_restarts_under_load(driver: str, kafka43, topic, listen, authority, make_sender):
    syslogger = listen(minimum_version="1.3")
    sender = make_sender(syslogger.port, "60-syslogger-tls.conf", _changes(driver, authority))
    with Load(sender, per_second=10_000) as load:
        for _ in range(5):
            before = sum(kafka43.end_offsets(topic).values())
            kafka43.wait_count(topic, before + 5000, seconds=20)
            began = time.monotonic()
            syslogger.sigterm()
            assert syslogger.wait(35) == 0, syslogger.log_tail()
            print("stopped in", time.monotonic() - began)
            syslogger.start()
    account = kafka43.wait_account(topic, {"a": load.count})
    print(account)
    account.check(twice=True)
    assert account.twice <= 5 * RSYSLOG_BATCH, account
    syslogger.check_sums()
    assert syslogger.stop() == 0
