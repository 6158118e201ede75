"""`syslogger top` and `syslogger tap`, against a status and a tap that are served as the daemon serves them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from syslogger import cli, watch
from syslogger.config import Config
from syslogger.counters import Counters
from syslogger.errors import ConfigError
from syslogger.prometheus import MetricsServer, View
from syslogger.status import status
from syslogger.tap import See, Tap
from syslogger.watch import printable, render, tap, top
from tests.waiting import until


def config(**tables: dict[str, Any]) -> Config:
    return msgspec.convert(tables, Config)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_SECONDS", 0.05)


async def example(counters: Counters, **more: Any) -> dict[str, Any]:
    found = await status(counters, (True, "ready"), listening=["127.0.0.1:1514"])
    peer = {"peer": "192.0.2.7", "connections": 2, "received_bytes": 3_000_000, "waiting_bytes": 1500}
    partition = {
        "partition": 0,
        "leader": "kafka1:9092",
        "connections": 2,
        "delivered": 700,
        "waiting_bytes": 0,
        "unanswered_seconds": 0.004,
        "problem": "",
    }
    broker = {"address": "kafka1:9092", "leads": 1}
    return found | {"topic": "syslog", "peers": [peer], "partitions": [partition], "brokers": [broker]} | more


async def test_a_screen_says_what_there_is() -> None:
    counters = Counters(records_received=1000, records_delivered=1000, connections_open=2, max_connections=10_000)
    before = await example(counters, now=100.0)
    counters.records_received, counters.records_delivered, counters.bytes_delivered = 4000, 3900, 2_000_000
    counters.records_in_flight = 100
    counters.batch_failures["NotEnoughReplicasError"] += 3
    now = await example(counters, now=102.0)
    now["peers"] = [now["peers"][0] | {"received_bytes": 5_000_000}]
    now["partitions"] = [now["partitions"][0] | {"delivered": 900, "problem": "no leader"}]
    lines = render(now, before, 200, colored=False).splitlines()
    assert lines[0].startswith("syslogger 0.")
    assert lines[0].endswith("on 127.0.0.1:1514")
    assert lines[1] == "ready"
    assert "records   1,500/s in, 1,450/s delivered, 100 in flight" in lines
    assert "bytes     1.0 MB/s in 0 batches/s" in lines
    assert "peers     2 of 10,000 connections, 0/s accepted" in lines
    assert "errors    NotEnoughReplicasError 3" in lines
    assert "192.0.2.7            2    5.0 MB  1.0 MB/s   1.5 kB" in lines
    assert "0        kafka1:9092            2        100      0 B      4.0 ms  no leader" in lines
    assert "kafka1:9092      1" in lines


async def test_a_screen_is_as_wide_as_the_terminal_and_moves_no_cursor() -> None:
    evil = "\x1b[2J\r\n\u202e"
    now = await example(Counters(), ready=False, state=f"waiting {evil}", brokers=[{"address": evil, "leads": 1}])
    now["peers"] = [now["peers"][0] | {"peer": evil + str(number)} for number in range(30)]
    plain = render(now, {}, 40, colored=False)
    assert all(line.isprintable() and len(line) <= 40 for line in plain.splitlines())
    assert "… and 20 more" in plain
    colored = render(now, {}, 40, colored=True)
    for style in ("\x1b[31m", "\x1b[1m", "\x1b[0m"):
        colored = colored.replace(style, "")
    assert colored == plain


async def test_a_screen_has_every_word_of_what_is_wrong() -> None:
    why = "waiting for Kafka: kafka1:9092 refuses; kafka-topics.sh --create --topic nosuch"
    screen = render(await example(Counters(), ready=False, state=why), {}, 40, colored=False)
    assert why in screen.replace("\n", " ")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0"), (0.0015, "1.5 ms"), (2, "2.0 s"), (90, "1.5 min"), (5400, "1.5 h"), (172800, "2.0 d")],
)
def test_durations(seconds: float, said: str) -> None:
    assert watch._span(seconds) == said


async def test_top_prints_so_many_screens(capfd: pytest.CaptureFixture[str]) -> None:
    counters = Counters(max_connections=7)
    view = View(asyncio.get_running_loop(), counters, lambda: (True, ""), lambda: example(counters))
    with MetricsServer(("127.0.0.1", 0), view, pace_seconds=0) as server:
        asked = config(prometheus={"address": "{}:{}".format(*server.address)})
        assert await asyncio.to_thread(top, asked, 2) == 0
    printed = capfd.readouterr()
    assert printed.out.count("peers     0 of 7 connections") == 2
    assert printed.err == ""


async def test_top_of_every_address_asks_this_machine(capfd: pytest.CaptureFixture[str]) -> None:
    view = View(asyncio.get_running_loop(), Counters(), lambda: (True, ""), lambda: example(Counters()))
    with MetricsServer(("127.0.0.1", 0), view, pace_seconds=0) as server:
        asked = config(prometheus={"address": f"0.0.0.0:{server.address[1]}"})
        assert await asyncio.to_thread(top, asked, 1) == 0
    assert "records" in capfd.readouterr().out


def test_top_says_that_nothing_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert top(config(prometheus={"address": f"127.0.0.1:{port}"}), None) == 1
    assert f"The daemon at 127.0.0.1:{port} does not answer: Connection refused; does it run" in capfd.readouterr().err
    with pytest.raises(ConfigError, match=r"prometheus\.address is empty"):
        top(config(prometheus={"address": ""}), None)


async def test_top_ends_when_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(asyncio.get_running_loop(), Counters(), lambda: (True, ""), lambda: example(Counters()))
    reading, writing = os.pipe()
    os.close(reading)
    with MetricsServer(("127.0.0.1", 0), view, pace_seconds=0) as server, os.fdopen(writing, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        asked = config(prometheus={"address": "{}:{}".format(*server.address)})
        assert await asyncio.to_thread(top, asked, None) == 0


async def test_tap_prints_records_as_they_pass(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    placed: list[See | None] = [None]

    def show(see: See | None) -> None:
        placed[0] = see

    asked = config(tap={"path": str(tmp_path / "tap")})
    async with Tap(asked.tap.path, show):
        printing = asyncio.ensure_future(asyncio.to_thread(tap, asked, "192.0.2.", "hello", 2))
        await until(lambda: placed[0])
        see = placed[0]
        assert see
        see([b"hello 1", b"goodbye", b"hello \x1b[2J"], "192.0.2.7:999")
        assert await printing == 0
        await until(lambda: placed[0] is None)
    first, second = capfd.readouterr().out.splitlines()
    assert first[13:] == "192.0.2.7:999 hello 1"
    assert second[13:] == r"192.0.2.7:999 hello \x1b[2J"


async def test_tap_says_what_went_by_and_that_the_daemon_has_gone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = config(tap={"path": str(tmp_path / "tap")})
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(asked.tap.path)
        server.listen()

        def serve() -> None:
            client = server.accept()[0]
            client.recv(100)
            client.sendall(b'{"unseen": 1234}\n{"error": "8 others look already"}\n{"record": "cut o')
            client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert await asyncio.to_thread(tap, asked, "", "", None) == 1
        thread.join()
    assert capfd.readouterr().err.splitlines() == [
        "syslogger: 1,234 records went by unseen",
        "syslogger: 8 others look already",
        "syslogger: the daemon has ended the tap",
    ]


def test_tap_says_what_to_do_when_it_cannot(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert tap(config(tap={"path": str(missing)}), "", "", None) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"syslogger: cannot open {missing}: No such file or directory; does the daemon run")
    assert "Without systemd there is no tap until tap.path is set" in said
    assert "only root" in watch._advice(PermissionError(13, "Permission denied"))


def test_neither_needs_to_know_where_kafka_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[tuple[Any, ...]] = []
    monkeypatch.setattr(watch, "top", lambda config, count: called.append((config.prometheus.address, count)) or 0)
    monkeypatch.setattr(watch, "tap", lambda config, *rest: called.append((config.tap.path, *rest)) or 0)
    monkeypatch.setenv("SYSLOGGER_TAP_PATH", "/run/x")
    file = tmp_path / "syslogger.toml"
    file.write_text('[prometheus]\naddress = ":7"\n')
    assert cli.main(["top", "--count", "3", "--config", str(file)]) == 0
    assert cli.main(["tap", "--peer", "192.0.2.7", "--text=error", "--count", "1"]) == 0
    assert cli.main(["tap"]) == 0
    assert called == [(":7", 3), ("/run/x", "192.0.2.7", "error", 1), ("/run/x", "", "", None)]


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("/etc/syslogger/two.toml", "/run/syslogger-two/tap"),
        ("/etc/syslogger/syslogger.toml", None),
        ("/srv/two.toml", None),
        ("", None),
    ],
)
def test_the_tap_of_an_instance_is_where_its_unit_has_it(file: str, path: str | None) -> None:
    assert cli._of_instance(file).get("tap.path") == path


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        (b"plain, with \\ and 'quotes'", "plain, with \\ and 'quotes'"),
        ("Grüße".encode(), "Grüße"),
        (b"cr\r", r"cr\x0d"),
        (b"\x1b[31m\tred\n", r"\x1b[31m\x09red\x0a"),
        (b"\xff\xfe half \xe2\x82", r"\xff\xfe half \xe2\x82"),
        ("right to left \u202e".encode(), r"right to left \xe2\x80\xae"),
        (b"", ""),
    ],
)
def test_what_cannot_be_printed_is_escaped(record: bytes, shown: str) -> None:
    assert printable(record) == shown
