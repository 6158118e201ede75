"""rsyslog → syslogger → Kafka with JSON for a value and the program for a key."""

from __future__ import annotations

import json

from tests.system.parts import Kafka43, numbered

MESSAGES = 20_000


def test_json_by_program(kafka43: Kafka43, make_syslogger, make_sender):
    topic = kafka43.create_topic(partitions=3)
    syslogger = make_syslogger(
        kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic, "value": "json", "key": "appname"}
    )
    syslogger.start()
    sender = make_sender(syslogger.port)
    sender.write(*numbered("a", MESSAGES))
    kafka43.wait_count(topic, MESSAGES)
    records = kafka43.records(topic)
    assert len({partition for partition, _ in records}) == 1, "one key, one partition"
    messages = [json.loads(value) for _, value in records]
    assert [each["content"] for each in messages] == list(numbered("a", MESSAGES)), "each once, in order"
    assert {(each["tag"], each["facility"], each["severity"]) for each in messages} == {("numbers", 16, 6)}
    assert {each["hostname"] for each in messages} != {""}
    assert all("raw" not in each for each in messages)
    syslogger.check_sums()
    assert syslogger.stop() == 0
