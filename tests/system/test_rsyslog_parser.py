"""What rsyslog makes of the corpus, beside what `messages` makes of it: each difference stands in the corpus's README.

The day is today: the years of dates that have none are compared in `tests/test_messages.py` instead.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from syslogger.messages import Message, Parser, text
from tests.corpus import Case, cases
from tests.system.parts import Rsyslog, free_port, until

DIFFERENCES = Path(__file__).parents[1] / "corpus" / "README.md"

CONFIG = """\
global(workDirectory="{directory}" maxMessageSize="64k" parser.escapeControlCharactersOnReceive="off")
module(load="imtcp")
input(type="imtcp" port="PORT" address="127.0.0.1" ruleset="parse")
template(name="fields" type="list" option.jsonf="on") {
  property(outname="pri" name="pri" format="jsonf")
  property(outname="timestamp" name="timereported" dateformat="rfc3339" format="jsonf")
  property(outname="hostname" name="hostname" format="jsonf")
  property(outname="programname" name="programname" format="jsonf")
  property(outname="appname" name="app-name" format="jsonf")
  property(outname="procid" name="procid" format="jsonf")
  property(outname="msgid" name="msgid" format="jsonf")
  property(outname="data" name="structured-data" format="jsonf")
  property(outname="version" name="protocol-version" format="jsonf")
  property(outname="content" name="msg" format="jsonf")
}
ruleset(name="parse") { action(type="omfile" file="{directory}/parsed" template="fields") }
"""


class InUTC(Rsyslog):
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TZ": "UTC"}


def parsed(directory: Path, records: list[bytes]) -> list[dict[str, str]]:
    """Return rsyslog's fields of each record."""
    port = free_port()
    with InUTC(directory, CONFIG.replace("PORT", str(port))):
        with until(lambda: _connected(port), "rsyslog listens") as peer:
            peer.sendall(b"".join(b"%d %b" % (len(record), record) for record in records))
        path = directory / "parsed"
        until(lambda: path.exists() and path.read_bytes().count(b"\n") >= len(records), "rsyslog has parsed the corpus")
        return [json.loads(text(line)) for line in path.read_bytes().splitlines()]


def _connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except OSError:
        return None


def _moment(timestamp: str) -> str:
    """Return a time in one way of writing it; without the year, which is today's if the date has none."""
    if not re.fullmatch(r"[\d:T.Z+-]+", timestamp):
        return timestamp
    short = timestamp[5:].replace("Z", "+00:00")
    try:
        age = abs(datetime.fromisoformat(timestamp).timestamp() - time.time())
    except ValueError:
        return short
    return "now" if age < 100 else short


def differences(message: Message, theirs: dict[str, str], record: bytes) -> list[str]:
    """Name the fields in which the two differ."""
    local = "localhost" if b"localhost" not in record else ""
    rfc3164 = theirs["version"] == "0"
    ours: dict[str, Any] = {
        "pri": str(message.priority),
        "timestamp": _moment(message.timestamp),
        "hostname": message.hostname,
        "tag": message.tag,
        "procid": message.procid or "",
        "msgid": message.msgid or "",
        "data": bool(message.structured_data),
        "content": message.content,
    }
    rsyslogs: dict[str, Any] = {
        "pri": theirs["pri"],
        "timestamp": _moment(theirs["timestamp"]),
        # Where there is none it has the name of the peer.
        "hostname": theirs["hostname"].replace(local, "") if local else theirs["hostname"],
        "tag": (theirs["programname"] if rfc3164 else theirs["appname"]).removeprefix("-"),
        "procid": theirs["procid"].removeprefix("-"),
        "msgid": theirs["msgid"].removeprefix("-"),
        "data": theirs["data"] not in ("-", ""),
        # It keeps the space behind the colon.
        "content": theirs["content"].removeprefix(" ") if rfc3164 else theirs["content"],
    }
    return [name for name in ours if ours[name] != rsyslogs[name]]


def _explained(corpus: list[Case]) -> dict[str, list[str]]:
    """Return the fields of each record that the README explains."""
    found: dict[str, list[str]] = {}
    for start, names in re.findall(r"^\* (.+?) — ([a-z, ]+)$", DIFFERENCES.read_text(), re.MULTILINE):
        begin = start.strip("`")
        same = [case.name for case in corpus if case.name == begin]
        (name,) = same or [case.name for case in corpus if case.name.startswith(begin)]
        assert name not in found, f"{name} stands there twice"
        found[name] = names.split(", ")
    return found


def test_each_difference_is_explained(tmp_path: Path) -> None:
    corpus = list(cases())
    records = [case.record for case in corpus]
    theirs = parsed(tmp_path / "rsyslog", records)
    ours = Parser().parse(records, time.time_ns() // 1_000_000, "")
    found = {
        case.name: different
        for case, message, rsyslogs in zip(corpus, ours, theirs, strict=True)
        if (different := differences(message, rsyslogs, case.record))
    }
    (tmp_path / "found").write_text("".join(f"* `{name}` — {', '.join(fields)}\n" for name, fields in found.items()))
    assert found == _explained(corpus), f"what was found is in {tmp_path / 'found'}"
