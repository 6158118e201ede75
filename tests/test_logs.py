from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import weakref
from datetime import datetime

import pytest

from syslogger import logs


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    for name in logs.NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def out(monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    return io.StringIO()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(out, clock):
    logs.configure("info", 30, out, clock)
    return logging.getLogger("syslogger.some")


def texts(out: io.StringIO) -> list[str]:
    """Return what was written since the last call, a line each, from the level on."""
    lines = out.getvalue().splitlines()
    out.seek(0)
    out.truncate()
    return [line.partition(" ")[2] for line in lines]


def test_a_line_has_the_time_the_level_the_logger_and_the_text(out, log):
    log.warning("Hello %s", "world")
    time, _, text = out.getvalue().partition(" ")
    assert text == "WARNING syslogger.some: Hello world\n"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time)
    assert abs(datetime.fromisoformat(time).timestamp() - datetime.now().astimezone().timestamp()) < 60


def test_a_repeat_is_counted_and_summed_up_when_the_period_ends(out, log, clock):
    for number in range(5):
        log.warning("Failed: %d", number)
        clock.now += 1
    assert texts(out) == ["WARNING syslogger.some: Failed: 0"]
    clock.now = 1029.9
    logs.summarise()
    assert texts(out) == []
    clock.now = 1030
    logs.summarise()
    assert texts(out) == ["WARNING syslogger.some: Failed: 4 (3 more like this in the last 30 s)"]


def test_every_record_is_a_line_or_one_of_the_n_more(out, log, clock):
    for number in range(1000):
        log.info("n %d", number)
        clock.now += 0.7
    logs._handlers()[0].close()
    lines = texts(out)
    assert sum(int(more[1]) for line in lines if (more := re.search(r"\((\d+) more", line))) + len(lines) == 1000
    assert 24 <= len(lines) <= 26


def test_a_single_repeat_has_no_number(out, log, clock):
    log.info("once")
    log.info("once")
    clock.now += 30
    logs.summarise()
    assert texts(out) == ["INFO syslogger.some: once"] * 2


def test_what_goes_on_is_summed_up_again_and_what_ended_begins_anew(out, log, clock):
    log.info("x")
    log.info("x")
    clock.now += 30
    log.info("x")  # the period's end is noticed here, without `summarise`
    assert len(texts(out)) == 2
    clock.now += 30
    logs.summarise()
    assert texts(out) == ["INFO syslogger.some: x"]
    clock.now += 30
    logs.summarise()
    assert texts(out) == []
    log.info("x")
    assert texts(out) == ["INFO syslogger.some: x"]


def test_summarise_takes_the_time_of_the_caller(out, log, clock):
    log.info("x")
    log.info("x")
    logs.summarise(clock.now + 30)
    assert len(texts(out)) == 2


def test_another_logger_level_or_template_is_another_message(out, log):
    log.info("x %d", 1)
    log.warning("x %d", 2)
    log.info("y %d", 3)
    logging.getLogger("kazoo.client").error("x %d", 4)
    assert [line[-1] for line in texts(out)] == ["1", "2", "3", "4"]


def test_always_is_never_summed_up(out, log):
    for _ in range(3):
        log.error("peer", extra={"always": True})
    assert texts(out) == ["ERROR syslogger.some: peer"] * 3


def test_the_kinds_that_are_watched_are_bounded_and_none_is_lost(out, log, clock):
    for _ in range(3):
        log.info("first")
    for number in range(10_000):
        clock.now += 0.001
        log.info(f"made {number}")  # noqa: G004 - as some libraries do
    lines = texts(out)
    assert len(lines) == 10_002
    assert lines[256] == "INFO syslogger.some: first (1 more like this in the last 0 s)"
    (handler,) = logs._handlers()
    assert len(handler._kinds) == 256


def test_a_repeat_keeps_nothing_alive_but_its_text(out, log, clock, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", logs._handlers())  # without pytest's, which keep records

    class Thing:
        def __repr__(self) -> str:
            return "a thing"

    def fail(thing: Thing) -> None:
        raise OSError(f"no {thing}")

    def report() -> weakref.ref[Thing]:
        thing = Thing()
        try:
            fail(thing)
        except OSError:
            log.exception("Failed with %r", thing)
        return weakref.ref(thing)

    report()
    assert "Traceback" in out.getvalue()
    texts(out)
    kept = report()
    assert kept() is None
    clock.now += 30
    logs.summarise()
    assert out.getvalue().partition(" ")[2] == "ERROR syslogger.some: Failed with a thing\nOSError: no a thing\n"


def test_a_message_is_one_line_and_harmless(out, log):
    log.info("a\nb\r\x1b[31m\x00 \u2028 \x85 tab\tü")
    assert texts(out) == ["INFO syslogger.some: a\\nb\\r\\x1b[31m\\x00 \\u2028 \\x85 tab\tü"]


def test_wrong_arguments_raise_nothing_where_something_is_logged(out, log, capsys):
    (handler,) = logs._handlers()
    for _ in range(2):
        handler.handle(logging.makeLogRecord({"name": log.name, "msg": "%d", "args": ("no number",)}))
    log.info("good")
    assert texts(out) == ["INFO syslogger.some: good"]
    assert capsys.readouterr().err.count("--- Logging error ---") == 2


def test_a_message_that_is_no_text(out, log):
    log.error(OSError("x"))
    assert texts(out) == ["ERROR syslogger.some: x"]


@pytest.mark.parametrize(
    ("level", "kazoo", "aiokafka"),
    [
        ("debug", logging.DEBUG, logging.DEBUG),
        ("info", logging.WARNING, logging.CRITICAL),
        ("error", logging.ERROR, logging.CRITICAL),
    ],
)
def test_levels(out, level, kazoo, aiokafka):
    logs.configure(level, 30, out)
    assert logging.getLogger("syslogger.kafka").getEffectiveLevel() == logging.getLevelNamesMapping()[level.upper()]
    assert logging.getLogger("kazoo.client").getEffectiveLevel() == kazoo
    assert logging.getLogger("aiokafka.conn").getEffectiveLevel() == aiokafka
    logging.getLogger("asyncio").error("heard")
    assert texts(out) == ["ERROR asyncio: heard"]


def test_configured_again_it_writes_once_and_has_lost_nothing(out, log):
    log.info("x")
    log.info("x")
    again = io.StringIO()
    logs.configure("info", 30, again)
    assert len(texts(out)) == 2
    log.info("x")
    assert texts(out) == []
    assert len(texts(again)) == 1


def test_standard_error_is_the_default(capsys, monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    logs.configure("info", 30)
    logging.getLogger("x").info("y")
    assert capsys.readouterr().err.endswith(" INFO x: y\n")


@pytest.fixture
def journal(tmp_path, monkeypatch):
    with (tmp_path / "journal").open("w+") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        yield file


def written(file) -> list[str]:
    file.seek(0)
    return file.read().splitlines()


def test_the_journal_gets_priorities_and_no_time(journal):
    logs.configure("debug", 30, journal)
    log = logging.getLogger("some")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "x")
    assert written(journal) == ["<7>some: x", "<6>some: x", "<4>some: x", "<3>some: x", "<3>some: x"]


def test_the_journal_gets_a_traceback_on_one_line(journal):
    logs.configure("info", 30, journal)
    logging.getLogger("some").error("c\nd", exc_info=OSError("a\nb"))
    (line,) = written(journal)
    assert line.startswith("<3>some: c\\nd\\n")
    assert line.endswith("OSError: a\\nb")


def test_what_is_not_the_journal(journal, tmp_path):
    with (tmp_path / "other").open("w+") as other:
        assert logs.is_journal(journal)
        assert not logs.is_journal(other)
    assert not logs.is_journal(other)  # closed
    assert not logs.is_journal(io.StringIO())


def test_the_end_of_the_program_writes_what_is_left():
    program = """
import logging
from syslogger import logs
logs.configure("info", 30)
for number in range(5):
    logging.getLogger("x").info("n %d", number)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    first, last = done.stderr.splitlines()
    assert first.endswith(" INFO x: n 0")
    assert last.endswith(" INFO x: n 4 (3 more like this in the last 0 s)")


def test_a_record_can_begin_everything_anew(out, log):
    log.warning("away")
    log.warning("away")
    logging.getLogger("syslogger.other").warning("away")
    logging.getLogger("syslogger.other").warning("away")
    log.info("back", extra={"anew": True})
    log.warning("away")
    logging.getLogger("syslogger.other").warning("away")
    written = list(texts(out))
    assert written.count("WARNING syslogger.some: away") == 3
    assert written.count("WARNING syslogger.other: away") == 1
