"""The main job: rsyslog → syslogger → Kafka, each message once, in order, unchanged."""

from __future__ import annotations

import socket

import pytest

from tests.system.parts import Kafka39, Kafka43, free_port, numbered

MESSAGES = 100_000


def _run(kafka, settings, make_syslogger, make_sender):
    """Send the messages with stock rsyslog as shipped, and check the topic and the daemon's own account of it."""
    topic = kafka.create_topic(partitions=3)
    syslogger = make_syslogger(kafka={**settings, "topic": topic})
    syslogger.start()
    sender = make_sender(syslogger.port)
    sender.write(*numbered("a", MESSAGES))
    kafka.wait_account(topic, {"a": MESSAGES}).check()
    records = kafka.records(topic)
    assert len({partition for partition, _ in records}) == 1, "one connection, one partition"
    assert records[0][1].startswith(b"<134>"), "facility local0, severity info"
    assert records[0][1].endswith(b"numbers: " + next(numbered("a", 1)).encode()), "the text, unchanged"
    syslogger.check_sums()
    assert syslogger.metric("syslogger_records_received_total") == MESSAGES
    assert syslogger.metric("syslogger_records_in_flight") == 0
    assert syslogger.metric("syslogger_records_cut_total") == 0
    assert syslogger.metric("syslogger_connections_open") == 1
    assert syslogger.stop() == 0
    kafka.wait_account(topic, {"a": MESSAGES}).check()
    assert not [line for line in syslogger.log().splitlines() if "ERROR" in line or "Traceback" in line]


def test_rsyslog_to_kafka_39_found_through_zookeeper(kafka39: Kafka39, make_syslogger, make_sender):
    _run(kafka39, {"zookeeper": kafka39.zookeeper_hosts}, make_syslogger, make_sender)


def test_rsyslog_to_kafka_43_by_bootstrap_servers(kafka43: Kafka43, make_syslogger, make_sender):
    _run(kafka43, {"bootstrap_servers": [kafka43.bootstrap]}, make_syslogger, make_sender)


@pytest.mark.parametrize("framing", ["auto", "octet_counted"])
def test_rsyslog_with_octet_counting(framing: str, kafka43: Kafka43, topic: str, make_syslogger, make_sender):
    syslogger = make_syslogger(
        kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
        listeners=[{"address": f"127.0.0.1:{free_port()}", "framing": framing}],
    )
    syslogger.start()
    sender = make_sender(syslogger.port, "60-syslogger-octet-counted.conf")
    sender.write(*numbered("a", 20_000, length=40), *numbered("a", 20_000, 20_000))
    kafka43.wait_account(topic, {"a": 40_000}).check()
    first, *_, last = kafka43.values(topic)
    assert first.startswith(b"<134>"), "the count is no part of the record"
    assert last.endswith(b"numbers: " + next(numbered("a", 1, 39_999)).encode()), "the text, unchanged"
    assert syslogger.metric("syslogger_records_misframed_total") == 0, "every record had its count"
    assert syslogger.metric("syslogger_records_cut_total") == 0
    syslogger.check_sums()


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression(compression: str, kafka43: Kafka43, topic: str, make_syslogger):
    syslogger = make_syslogger(
        kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic, "compression": compression}
    )
    syslogger.start()
    lines = [line.encode() for line in numbered("a", 1000)]
    syslogger.send(b"\n".join(lines) + b"\n")
    assert kafka43.values(topic) == lines


def test_one_message_one_acknowledgement(kafka43: Kafka43, topic: str, make_syslogger):
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic, "max_batch_records": 1})
    syslogger.start()
    lines = [line.encode() for line in numbered("a", 50)]
    syslogger.send(b"\n".join(lines) + b"\n")
    assert kafka43.values(topic) == lines
    assert syslogger.metric("syslogger_batch_records_sum") == syslogger.metric("syslogger_batch_records_count") == 50


def test_many_peers_on_two_listeners(kafka43: Kafka43, make_syslogger):
    """Over IPv4 and IPv6 at once: each peer's order holds, each peer keeps to one partition."""
    topic = kafka43.create_topic(partitions=4)
    peers, each = 40, 500
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        six = probe.getsockname()[1]
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.config["listeners"] = [*syslogger.config["listeners"], {"address": f"[::1]:{six}"}]
    syslogger.start()
    addresses = [("127.0.0.1", syslogger.port), ("::1", six)]
    sockets = [socket.create_connection(addresses[number % 2], 10) for number in range(peers)]
    texts = [list(numbered(f"p{number}", each)) for number in range(peers)]
    for first in range(0, each, 100):
        for peer, lines in zip(sockets, texts, strict=True):
            peer.sendall("".join(f"{line}\n" for line in lines[first : first + 100]).encode())
    sent = {f"p{number}": each for number in range(peers)}
    kafka43.wait_account(topic, sent).check()
    records = kafka43.records(topic)
    assert len({partition for partition, _ in records}) == 4, "the peers are spread over the partitions"
    ways = {(value[: value.index(b" ")], partition) for partition, value in records}
    assert len(ways) == peers, "one peer, one partition"
    syslogger.check_sums()
    assert syslogger.metric("syslogger_connections_open") == peers
    for peer in sockets:
        peer.close()
    assert syslogger.stop() == 0
