"""One line an event on standard error, with what repeats summed up once a period.

Imports nothing of ours and no more than the standard library.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

_MAX_KINDS = 256
"""Different messages that are watched for repeats at a time; ours are about 40."""

NOISY = {"aiokafka": logging.CRITICAL, "kazoo": logging.WARNING}
"""Libraries, and the least of their levels that is written (all at level debug).

kazoo tells of every ping at INFO. aiokafka writes five ERRORs a second while a broker is away; what it knows,
`kafka.py` says once a period and with advice."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def configure(
    level: str,
    period_seconds: float,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send every logger's records of at least `level` to `stream`, standard error by default.

    What went to an earlier call's stream goes there no more. A record with ``extra={"always": True}``
    is written as it comes; of the others, those that repeat (same logger, level and template) are
    written once and then summed up every `period_seconds`: call `summarise` about once a second. One with
    ``extra={"anew": True}`` ends the periods of all of its logger's, so that the next of each is written at once.
    What is still to be summed up when the program ends is written then.
    """
    stream = sys.stderr if stream is None else stream
    handler = _SummingHandler(stream, period_seconds, clock)
    handler.setFormatter(_JournalFormatter() if is_journal(stream) else _PlainFormatter())
    root = logging.getLogger()
    for earlier in _handlers():
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(number)
    for name, least in NOISY.items():
        logging.getLogger(name).setLevel(logging.NOTSET if number <= logging.DEBUG else max(number, least))


def summarise(now: float | None = None) -> None:
    """Write the repeats whose period has ended at `now`, in seconds of the clock: `time.monotonic`."""
    for handler in _handlers():
        handler.summarise(now)


def _handlers() -> list[_SummingHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _SummingHandler)]


def is_journal(stream: TextIO) -> bool:
    """Tell whether `stream` is the journal, by systemd.exec(5): JOURNAL_STREAM is its device and inode."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file behind it, or closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class _Repeats:
    """The repeats of one message since its period began."""

    __slots__ = ("count", "newest", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.count = 0
        self.newest: logging.LogRecord | None = None


class _SummingHandler(logging.StreamHandler[TextIO]):
    """Writes the first record of a kind at once, and the newest of its repeats when the period ends.

    Every record is accounted for: it is a line, or one of the "N more" of a line.
    """

    def __init__(self, stream: TextIO, period_seconds: float, clock: Callable[[], float]) -> None:
        super().__init__(stream)
        self._period = period_seconds
        self._clock = clock
        # In the order of `since`: a kind whose period begins again goes to the end.
        self._kinds: dict[tuple[str, int, str], _Repeats] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record or count it; an error in it goes the way of all handlers' errors."""
        if getattr(record, "always", False):
            super().emit(record)
            return
        now = self._clock()
        self.summarise(now)
        if getattr(record, "anew", False):
            for kind in [kind for kind in self._kinds if kind[0] == record.name]:
                self._end(kind, now)
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        kind = (record.name, record.levelno, template)
        repeats = self._kinds.get(kind)
        if repeats is None:
            if len(self._kinds) >= _MAX_KINDS:
                self._end(next(iter(self._kinds)), now)
            self._kinds[kind] = _Repeats(now)
            super().emit(record)
            return
        try:
            repeats.newest = _rendered(record)
            repeats.count += 1
        except Exception:  # noqa: BLE001 - whatever a wrong argument's own code raises
            self.handleError(record)

    def summarise(self, now: float | None = None) -> None:
        """Write the repeats whose period has ended at `now`; those kinds begin another."""
        self.acquire()
        try:
            now = self._clock() if now is None else now
            while self._kinds:
                kind, repeats = next(iter(self._kinds.items()))
                if now < repeats.since + self._period:
                    return
                if self._end(kind, now):
                    self._kinds[kind] = _Repeats(now)
        finally:
            self.release()

    def close(self) -> None:
        """Write all that is still to be summed up; `logging.shutdown` calls this when the program ends."""
        self.acquire()
        try:
            for kind in list(self._kinds):
                self._end(kind, self._clock())
        finally:
            self.release()
        super().close()

    def _end(self, kind: tuple[str, int, str], now: float) -> bool:
        """End the kind's period; return whether there were repeats to write."""
        repeats = self._kinds.pop(kind)
        record = repeats.newest
        if record is None:
            return False
        if repeats.count > 1:
            record.msg += f" ({repeats.count - 1:,} more like this in the last {now - repeats.since:.0f} s)"
        record.created = time.time()
        super().emit(record)
        return True


def _rendered(record: logging.LogRecord) -> logging.LogRecord:
    """Return the record as text alone: kept for a period, a traceback would keep alive what its frames hold."""
    rendered = copy.copy(record)
    rendered.msg = record.getMessage()
    rendered.args = None
    if record.exc_info and record.exc_info[1]:
        rendered.exc_text = "".join(traceback.format_exception_only(record.exc_info[1])).rstrip()
    rendered.exc_info = rendered.stack_info = None
    return rendered


class _PlainFormatter(logging.Formatter):
    """`2024-05-01T12:00:00.123+00:00 WARNING syslogger.kafka: text`, and a traceback on lines of its own."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """Return the local time by ISO 8601, with milliseconds and the offset."""
        return datetime.fromtimestamp(record.created, UTC).astimezone().isoformat(timespec="milliseconds")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the record but for its traceback, on one line."""
        return _on_one_line(f"{self.formatTime(record)} {record.levelname} {record.name}: {record.message}")


class _JournalFormatter(logging.Formatter):
    """`<4>syslogger.kafka: text`, by sd-daemon(3); the journal takes each line for an event and has the time."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record with its traceback, on one line."""
        text = _on_one_line(super().format(record))
        return f"<{_priority(record.levelno)}>{_on_one_line(record.name)}: {text}"


def _priority(level: int) -> int:
    """Return syslog's number for a level of `logging`."""
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def _on_one_line(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
