"""How it stops and starts again: nothing is lost over plain TCP with stock rsyslog, or it says what was."""

from __future__ import annotations

import socket
import time

import pytest

from tests.system.parts import Kafka43, Load, Syslogger, numbered, until

RSYSLOG_BATCH = 128
"""Messages that rsyslog's action queue hands over at a time (queue.dequeueBatchSize)."""


@pytest.mark.row(12)
def test_five_restarts_under_load(kafka43: Kafka43, topic: str, make_syslogger, make_sender):
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.start()
    sender = make_sender(syslogger.port)
    with Load(sender, per_second=10_000) as load:
        for _ in range(5):
            before = sum(kafka43.end_offsets(topic).values())
            kafka43.wait_count(topic, before + 5000, seconds=20)
            began = time.monotonic()
            syslogger.sigterm()
            assert syslogger.wait(20) == 0, syslogger.log_tail()
            assert time.monotonic() - began < 10, "rsyslog answers the half-close long before the deadline"
            syslogger.start()
    account = kafka43.wait_account(topic, {"a": load.count})
    account.check(twice=True)
    # omfwd sends a batch in pieces of 16 KiB; where it finds the FIN between two, it sends the whole batch again.
    assert account.twice <= 5 * RSYSLOG_BATCH, account
    assert syslogger.metric("syslogger_records_redelivered_total") == 0
    syslogger.check_sums()
    assert syslogger.stop() == 0


@pytest.mark.row(12)
def test_a_peer_that_does_not_answer_the_half_close(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    """An idle rsyslog answers a FIN only when it next has something to send: silence ends it, not the deadline."""
    with syslogger.connect() as peer:
        peer.sendall(b"one\ntwo\nhalf")
        kafka43.wait_count(topic, 2)
        began = time.monotonic()
        assert syslogger.stop() == 0
        assert time.monotonic() - began < 10
        assert peer.recv(1) == b""
    assert kafka43.values(topic) == [b"one", b"two", b"half"]


@pytest.mark.row(12)
def test_who_waits_in_the_backlog_is_served(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    """A peer that connected and sent while syslogger was busy is not reset by its stop."""
    syslogger.sigstop()
    peers = [syslogger.connect() for _ in range(20)]
    for number, peer in enumerate(peers):
        peer.sendall(f"[a {number}]\n".encode())
    syslogger.sigterm()
    syslogger.sigcont()
    assert syslogger.wait(20) == 0
    kafka43.wait_account(topic, {"a": 20}, 5).check()
    for peer in peers:
        assert peer.recv(1) == b"", "ended, not reset"
        peer.close()


@pytest.fixture
def own_kafka(tmp_path):
    with Kafka43(tmp_path / "own-kafka") as kafka:
        yield kafka


def _stuck(kafka: Kafka43, make_syslogger, drain_seconds: float) -> tuple[Syslogger, socket.socket, int]:
    """Return a syslogger whose Kafka has gone while a peer's records wait, and how many bytes they are."""
    topic = kafka.create_topic()
    syslogger = make_syslogger(
        drain_seconds=drain_seconds, kafka={"bootstrap_servers": [kafka.bootstrap], "topic": topic}
    )
    syslogger.start()
    peer = syslogger.connect()
    peer.sendall(b"first\n")
    kafka.wait_count(topic, 1)
    kafka.sigkill()
    waiting = "".join(f"{line}\n" for line in numbered("a", 1000)).encode()
    peer.sendall(waiting)
    until(lambda: syslogger.metric("syslogger_records_in_flight") > 0, "records are in flight")
    syslogger.check_sums()
    return syslogger, peer, len(waiting)


@pytest.mark.row(13)
def test_stop_while_kafka_is_down(own_kafka: Kafka43, make_syslogger):
    syslogger, peer, size = _stuck(own_kafka, make_syslogger, drain_seconds=3)
    with peer:
        name = "{}:{}".format(*peer.getsockname())
        printed = len(syslogger.log())
        began = time.monotonic()
        syslogger.sigterm()
        assert syslogger.wait(10) == 1
        assert 2.5 < time.monotonic() - began < 6, "it tried until the deadline"
    lines = [line for line in syslogger.log()[printed:].splitlines() if name in line]
    assert lines, f"{name} is not named:\n{syslogger.log_tail()}"
    assert any(str(size) in line or f"{size:,}" in line for line in lines), f"{size} bytes are not named: {lines}"
    assert any("ERROR" in line for line in lines), lines
    assert "Traceback" not in syslogger.log()


@pytest.mark.row(13)
def test_a_second_signal_leaves_at_once(own_kafka: Kafka43, make_syslogger):
    syslogger, peer, _ = _stuck(own_kafka, make_syslogger, drain_seconds=60)
    with peer:
        syslogger.sigterm()
        assert peer.recv(1) == b"", "the first signal's half-close"
        syslogger.sigterm()
        assert syslogger.wait(5) == 1
    assert "Traceback" not in syslogger.log()
