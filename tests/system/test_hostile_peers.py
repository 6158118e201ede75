"""What peers may send, and how they may go: no byte is lost, nothing spins, nobody else suffers."""

from __future__ import annotations

import hashlib
import random
import resource
import socket
import struct
import time
from itertools import pairwise
from pathlib import Path

import pytest

from tests.system.parts import Kafka43, Syslogger, numbered, until

LARGEST = 4096  # max_record_bytes of the shared fixture


def _reset(peer: socket.socket) -> None:
    """Close with an RST."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def _cpu_share(syslogger: Syslogger, seconds: float) -> float:
    """How much of one core it uses over the next `seconds`."""
    began, used = time.monotonic(), syslogger.cpu_seconds()
    time.sleep(seconds)
    return (syslogger.cpu_seconds() - used) / (time.monotonic() - began)


def _records(data: bytes, largest: int = LARGEST) -> list[bytes]:
    """Split `data` into lines and pieces in the simplest way."""
    return [line[first : first + largest] for line in data.split(b"\n") for first in range(0, len(line), largest)]


@pytest.mark.row(17)
def test_half_a_record_then_close(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    syslogger.send(b"whole\nhal")
    assert kafka43.values(topic) == [b"whole", b"hal"]
    assert syslogger.metric("syslogger_records_cut_total", cause="eof") == 1
    syslogger.check_sums()


@pytest.mark.row(18)
def test_a_dripping_peer_and_a_thousand_idle_ones(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    idle = [syslogger.connect() for _ in range(1000)]
    until(lambda: syslogger.metric("syslogger_connections_open") == 1000, "all are accepted")
    for peer in idle[:500]:
        peer.sendall(b"unfinished")
    memory = syslogger.rss_bytes()
    assert _cpu_share(syslogger, 4) < 0.02
    with syslogger.connect() as dripping:
        dripping.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        used, began = syslogger.cpu_seconds(), time.monotonic()
        for _ in range(2000):
            dripping.sendall(b"x")
            time.sleep(0.001)
        share = (syslogger.cpu_seconds() - used) / (time.monotonic() - began)
        began = time.monotonic()
        syslogger.send(b"quick\n")
        assert time.monotonic() - began < 1, "others are unaffected"
        dripping.sendall(b"\n")
        kafka43.wait_count(topic, 2)
    assert share < 0.15, "a peek every 5 ms at the most"
    assert kafka43.values(topic) == [b"quick", b"x" * 2000]
    assert syslogger.rss_bytes() - memory < 8 * 1024 * 1024
    for peer in idle:
        peer.close()
    until(lambda: syslogger.metric("syslogger_connections_open") == 0, "all have ended")
    assert kafka43.values(topic)[2:] == [b"unfinished"] * 500
    syslogger.check_sums()


@pytest.mark.row(19)
def test_a_hundred_megabytes_without_a_newline(kafka43: Kafka43, topic: str, make_syslogger):
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.start()
    syslogger.send(b"first\n")
    memory = most = syslogger.rss_bytes()
    size, largest = 100_000_000, 65_536
    block = random.Random(19).randbytes(1_000_000).replace(b"\n", b"\r")  # noqa: S311 - repeatable
    sent = hashlib.sha256()
    with syslogger.connect() as peer:
        for _ in range(size // len(block)):
            peer.sendall(block)
            sent.update(block)
            most = max(most, syslogger.rss_bytes())
        peer.shutdown(socket.SHUT_WR)
        peer.settimeout(60)
        assert peer.recv(1) == b""
    values = kafka43.values(topic)[1:]
    found = hashlib.sha256()
    for value in values:
        found.update(value)
    assert found.digest() == sent.digest(), "no byte lost, none changed"
    assert {len(value) for value in values[:-1]} == {largest}
    assert len(values[-1]) == size % largest
    assert most - memory < 64 * 1024 * 1024, f"{memory:,} → {most:,}"
    assert syslogger.metric("syslogger_records_cut_total") == len(values)
    syslogger.check_sums()


@pytest.mark.row(20)
def test_bytes_in_are_bytes_out(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    lines = [
        b"<13>nul \x00 within \x00",
        b"\x00",
        b"invalid \xff\xfe\xc3\x28 \xed\xa0\x80",
        b"\xef\xbb\xbfBOM",
        b"carriage return\r",
        b"\r",
        b" leading and trailing \t ",
        bytes(byte for byte in range(256) if byte != 10),
        "snow ☃ and 🦀".encode(),
    ]
    syslogger.send(b"\n\n\n" + b"\n\n".join(lines) + b"\n\n\n")
    assert kafka43.values(topic) == lines, "an empty line is no record; everything else is as it was"
    assert syslogger.metric("syslogger_records_received_total") == len(lines)
    assert syslogger.metric("syslogger_records_cut_total") == 0


@pytest.mark.row(21)
@pytest.mark.parametrize(
    "lie",
    [
        b"4097 <13>one more than the largest",
        b"99999999999999999999 <13>huge",
        b"-5 <13>negative",
        b"0 <13>zero",
        b"0" * 1000 + b" <13>a thousand zeros",
        b"9" * 1000 + b" <13>a thousand nines",
        b"20<13>no space",
    ],
)
def test_a_count_that_lies(lie: bytes, kafka43: Kafka43, topic: str, syslogger: Syslogger):
    with syslogger.connect() as liar, syslogger.connect() as other:
        liar.sendall(b"7 <13>one" + lie + b"\n7 <13>two<13>a line\n")
        kafka43.wait_count(topic, 4)
        other.sendall(b"9 <13>other")
        kafka43.wait_count(topic, 5)
        liar.sendall(b"9 <13>three")
        kafka43.wait_count(topic, 6)
    assert kafka43.values(topic) == [b"<13>one", lie, b"<13>two", b"<13>a line", b"<13>other", b"<13>three"]
    assert syslogger.metric("syslogger_records_misframed_total") == 1
    syslogger.check_sums()
    assert "Traceback" not in syslogger.log()


@pytest.mark.row(21)
def test_a_count_past_the_end(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    syslogger.send(b"7 <13>one4096 <13>all that came\n7 <13>two\n")
    assert kafka43.values(topic) == [b"<13>one", b"<13>all that came\n7 <13>two\n"]
    assert syslogger.metric("syslogger_records_cut_total", cause="eof") == 1
    syslogger.check_sums()


@pytest.mark.row(21)
def test_a_huge_count_and_a_flood_behind_it(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    syslogger.send(b"<13>first\n")
    memory = most = syslogger.rss_bytes()
    # Cut anywhere, the rest may look like a count.
    sent = b"99999999 <13>" + b"".join(b"%d <" % number for number in range(1, 1_000_000))
    with syslogger.connect() as peer:
        for first in range(0, len(sent), 1_000_000):
            peer.sendall(sent[first : first + 1_000_000])
            most = max(most, syslogger.rss_bytes())
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
    pieces = kafka43.values(topic)[1:]
    assert b"".join(pieces) == sent, "no byte lost, none taken for framing"
    assert max(map(len, pieces)) <= LARGEST
    assert most - memory < 64 * 1024 * 1024, f"{memory:,} → {most:,}"
    assert syslogger.metric("syslogger_records_misframed_total") >= 1
    assert syslogger.metric("syslogger_records_cut_total") == len(pieces)
    syslogger.check_sums()


@pytest.mark.row(27)
def test_random_bytes_however_they_are_cut(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    chance = random.Random(27)  # noqa: S311 - repeatable
    parts = []
    for _ in range(400):
        length = chance.choice([0, 1, 5, 100, 1000, LARGEST - 1, LARGEST, LARGEST + 1, 2 * LARGEST, 3 * LARGEST + 7])
        parts.append(chance.randbytes(length))
    data = b"\n".join(parts)
    expected = _records(data)
    for pieces in (1, 20, 2000):
        before = sum(kafka43.end_offsets(topic).values())
        marks = [0, *sorted(chance.randrange(len(data)) for _ in range(pieces - 1)), len(data)]
        with syslogger.connect() as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number, (begin, end) in enumerate(pairwise(marks)):
                peer.sendall(data[begin:end])
                if number % 10 == 0:
                    time.sleep(0.001)  # so that the pieces are seen apart
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""
        assert kafka43.values(topic)[before:] == expected, f"{pieces} pieces"
    syslogger.check_sums()
    assert "Traceback" not in syslogger.log()


@pytest.mark.row(29)
@pytest.mark.parametrize("marks", [1, 5])
def test_urgent_data_within_a_record(marks: int, kafka43: Kafka43, topic: str, syslogger: Syslogger):
    with syslogger.connect() as peer:
        for _ in range(marks):
            peer.sendall(b"<13>before ")
            peer.send(b"!", socket.MSG_OOB)
            time.sleep(0.1)
        peer.sendall(b" after\n")
        expected = b"<13>before !" * marks + b" after"
        until(lambda: b"".join(kafka43.values(topic)) == expected, "every byte is delivered", 10)
        assert 1 <= syslogger.metric("syslogger_records_cut_total", cause="urgent") <= marks
        assert _cpu_share(syslogger, 2) < 0.05, "it does not spin"
        syslogger.send(b"another peer\n")
        peer.sendall(b"and on\n")
        kafka43.wait_count(topic, len(kafka43.values(topic)))
        until(lambda: kafka43.values(topic)[-2:] == [b"another peer", b"and on"], "it goes on", 10)
    syslogger.check_sums()


@pytest.mark.row(29)
def test_urgent_data_between_records(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    with syslogger.connect() as peer:
        for number in range(5):
            peer.sendall(f"record {number}\n".encode())
            peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"last\n")
        expected = [b"record 0", *(b"!record %d" % number for number in range(1, 5)), b"!last"]
        until(lambda: b"".join(kafka43.values(topic)) == b"".join(expected), "every byte is delivered", 10)
        assert _cpu_share(syslogger, 2) < 0.05, "it does not spin"
    syslogger.check_sums()


@pytest.mark.row(29)
def test_urgent_data_and_nothing_after_it(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    with syslogger.connect() as peer:
        peer.sendall(b"whole\nhalf")
        peer.send(b"!", socket.MSG_OOB)
        kafka43.wait_count(topic, 1)
        assert _cpu_share(syslogger, 2) < 0.05, "it does not spin"
    until(lambda: b"".join(kafka43.values(topic)) == b"wholehalf!", "every byte is delivered", 10)
    syslogger.check_sums()


@pytest.mark.row(30)
@pytest.mark.parametrize("rest", [b"", b"an unfinished one"])
def test_reset_with_records_unread(rest: bytes, kafka43: Kafka43, topic: str, syslogger: Syslogger):
    peer = syslogger.connect()
    peer.sendall(b"first\n")
    kafka43.wait_count(topic, 1)
    syslogger.sigstop()
    lines = [line.encode() for line in numbered("a", 500)]
    peer.sendall(b"\n".join(lines) + b"\n" + rest)
    _reset(peer)
    syslogger.sigcont()
    expected = [b"first", *lines, *([rest] if rest else [])]
    until(lambda: syslogger.metric("syslogger_connections_open") == 0, "the connection has ended", 10)
    assert kafka43.values(topic) == expected
    assert syslogger.metric("syslogger_connections_ended_total", cause="reset") == 1
    syslogger.check_sums()


@pytest.mark.row(23)
def test_more_peers_than_the_process_may_open(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    """Nobody is accepted and closed; who comes when it is out of files is served when there are some again."""
    in_use = len(list(Path(f"/proc/{syslogger.pid}/fd").iterdir()))
    resource.prlimit(syslogger.pid, resource.RLIMIT_NOFILE, (in_use + 2, 10_000))
    peers = [syslogger.connect() for _ in range(6)]
    for number, peer in enumerate(peers):
        peer.sendall(f"[a {number}]\n".encode())
    until(lambda: "LimitNOFILE" in syslogger.log(), "it says what to raise", 10)
    assert syslogger.alive
    resource.prlimit(syslogger.pid, resource.RLIMIT_NOFILE, (10_000, 10_000))
    found = kafka43.wait_account(topic, {"a": 6}, 20)
    assert not found.lost, found  # peers have no order among them
    assert found.twice == 0, found
    for peer in peers:
        peer.close()


@pytest.mark.row(24)
def test_a_storm_of_peers_that_say_nothing(kafka43: Kafka43, topic: str, syslogger: Syslogger):
    """Ports are scanned: no flood of log lines, nothing is kept."""
    lines, files = len(syslogger.log().splitlines()), _open_files(syslogger)
    for number in range(1000):
        peer = syslogger.connect()
        if number % 2:
            _reset(peer)
        else:
            peer.close()
    syslogger.send(b"still here\n")
    until(lambda: syslogger.metric("syslogger_connections_open") == 0, "all have ended", 10)
    assert kafka43.values(topic) == [b"still here"]
    assert len(syslogger.log().splitlines()) - lines <= 3
    assert _open_files(syslogger) - files <= 2


def _open_files(syslogger: Syslogger) -> int:
    return len(list(Path(f"/proc/{syslogger.pid}/fd").iterdir()))


@pytest.mark.row(23)
def test_more_peers_than_the_cap(kafka43: Kafka43, topic: str, make_syslogger):
    """Who comes when it is full waits, and is served when somebody goes."""
    syslogger = make_syslogger(max_connections=3, kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.start()
    peers = [syslogger.connect() for _ in range(5)]
    for number, peer in enumerate(peers):
        peer.sendall(f"[a {number}]\n".encode())
    kafka43.wait_count(topic, 3)
    until(lambda: syslogger.metric("syslogger_accept_pauses_total", cause="max_connections") > 0, "it pauses", 10)
    assert syslogger.metric("syslogger_connections_open") == 3
    assert sum(kafka43.end_offsets(topic).values()) == 3
    for peer in peers[:2]:
        peer.close()
    found = kafka43.wait_account(topic, {"a": 5}, 10)
    assert not found.lost, found  # peers have no order among them
    assert found.twice == 0, found
    for peer in peers[2:]:
        peer.close()
