r"""Records as real programs send them, each with what it says.

A case is a record's line and, indented by two spaces, what is expected: PRI, timestamp, hostname, tag, process id (`-`
is none, the timestamp `now` that of receipt), then `msgid=…` and `raw` where there are such, and after `| ` the
content. A content that ends in `…` is what it begins with, to the record's end. Another indented line beginning `sd `
is the structured data. `\xff`, `\t`, `\r`, `\n` and `\0` in a record are single bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

RECEIVED_MS = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp() * 1000)
RECEIVED_AT = "2026-11-21T12:00:00.000Z"

_NAMED = {"t": b"\t", "r": b"\r", "n": b"\n", "0": b"\0"}


class Case(NamedTuple):
    """A record, and the fields of its message that are not the same for all."""

    name: str
    """Its line."""
    record: bytes
    fields: dict[str, Any]
    raw: bool


def _bytes(line: str) -> bytes:
    return re.sub(
        rb"\\(?:x([0-9a-f]{2})|([trn0]))",
        lambda found: bytes.fromhex(found[1].decode()) if found[1] else _NAMED[found[2].decode()],
        line.encode(),
    )


def _or_none(word: str) -> str | None:
    return None if word == "-" else word


def cases() -> Iterator[Case]:
    """Yield every case, by file."""
    for path in sorted(Path(__file__).parent.glob("*.txt")):
        lines = [line for line in path.read_text().split("\n") if line and not line.startswith("#")]
        for number, line in enumerate(lines):
            if line.startswith("  "):
                continue
            expected = lines[number + 1].removeprefix("  ")
            data = lines[number + 2] if number + 2 < len(lines) else ""
            head, _, content = expected.partition("| ")
            if content.endswith("…"):
                assert content[:-1] in line, expected
                content = line[line.index(content[:-1]) :]
            content = _bytes(content).decode()
            pri, timestamp, hostname, tag, procid, *others = head.split()
            named = dict(other.split("=", 1) for other in others if "=" in other)
            fields = {
                "content": content,
                "facility": int(pri) >> 3,
                "hostname": _or_none(hostname) or "",
                "priority": int(pri),
                "severity": int(pri) & 7,
                "tag": _or_none(tag) or "",
                "timestamp": RECEIVED_AT if timestamp == "now" else timestamp,
                "appname": _or_none(tag),
                "procid": _or_none(procid),
                "msgid": named.get("msgid"),
                "structured_data": json.loads(data[5:]) if data.startswith("  sd ") else None,
            }
            yield Case(line, _bytes(line), fields, "raw" in others)
