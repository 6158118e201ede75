"""A running daemon, watched from a terminal: `syslogger top` and `syslogger tap`.

Neither changes anything in it. `top` asks its HTTP address for the status once a second; `tap` has its Unix socket
send the records as they pass.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import socket
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from typing import Any

from .config import Config, parse_address
from .errors import ConfigError

Status = Mapping[str, Any]
"""As `status.status` makes it."""

_TAP = "/run/syslogger/tap"
"""Where the daemon's unit has it."""

_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0

_ROWS = 10
"""Peers and partitions that are shown at most; brokers too."""

_CLEAR = "\x1b[H\x1b[J"
_RED, _GREEN, _BOLD, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


def top(config: Config, count: int | None) -> int:
    """Show what the daemon is at, anew every second, until `count` times, Ctrl-C or nobody reads; return 0.

    Returns 1, saying why, when the first answer does not come.
    """
    if not config.prometheus.address:
        raise ConfigError("prometheus.address is empty: the daemon serves no status to show")
    host, port = parse_address(config.prometheus.address, "prometheus.address")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared
    screen = sys.stdout.isatty()
    before: Status = {}
    for shown in itertools.count():
        try:
            now = _status(host, port)
            text = render(now, before, shutil.get_terminal_size().columns, colored=screen) if before else ""
            before = now
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = (isinstance(error, OSError) and error.strerror) or error
            what = f"The daemon at {config.prometheus.address} does not answer: {why}"
            text = f"{what}\n"
            if not before:
                advice = "does it run, and is that its prometheus.address? --config names its file"
                sys.stderr.write(f"syslogger: {what}; {advice}\n")
                return 1
        # The first answer is only what the rates of the second are since.
        if (text and not _printed(f"{_CLEAR}{text}" if screen else f"{text}\n")) or shown == count:
            break
        time.sleep(_SECONDS)
    return 0


def tap(config: Config, peer: str, text: str, count: int | None) -> int:
    """Print each record as it passes, of peers with `peer` in their name and with `text` in it; return the exit status.

    0 after `count` records or when nobody reads, 1 when the daemon cannot be asked or has gone; it says why.
    """
    path = config.tap.path or _TAP
    printed = 0
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            sock.sendall(json.dumps({"peer": peer, "text": text}).encode() + b"\n")
        except OSError as error:
            sys.stderr.write(f"syslogger: cannot open {path}: {error.strerror or error}; {_advice(error)}\n")
            return 1
        for line in _lines(sock):
            if "record" in line:
                if not _printed(
                    f"{_clock(line['time'])} {line['peer']} {printable(line['record'].encode('latin-1'))}\n"
                ):
                    return 0
                printed += 1
                if printed == count:
                    return 0
            else:
                said = line.get("error") or f"{line.get('unseen', 0):,} records went by unseen"
                sys.stderr.write(f"syslogger: {said}\n")
    sys.stderr.write("syslogger: the daemon has ended the tap\n")
    return 1


def render(now: Status, before: Status, width: int, *, colored: bool) -> str:
    """Return the screen: `now`, with rates since `before`, in lines of at most `width` characters."""
    seconds = now["now"] - before["now"] if before else 0.0
    records, latency, open_ = now["records"], now["latency_seconds"], now["connections"]

    def rate(*path: str) -> str:
        return _rate(_at(now, path), _at(before, path), seconds)

    so_far = {
        "delivered": records["delivered"],
        "sent again": records["redelivered"],
        "dead letters": records["dead_lettered"],
        "cut": records["cut"],
        "producers rebuilt": now["producer_rebuilds"],
    }
    in_flight, throughput = f"{records['in_flight']:,} in flight", _bytes(rate_of(now, before, seconds))
    state = textwrap.wrap("ready" if now["ready"] else now["state"], width, break_on_hyphens=False)
    lines = [
        f"syslogger {now['version']}, up {_span(now['uptime_seconds'])}, on {', '.join(now['listening']) or 'nothing'}",
        *state,
        "",
        f"records   {rate('records', 'received')}/s in, {rate('records', 'delivered')}/s delivered, {in_flight}",
        f"bytes     {throughput}/s in {rate('batches')} batches/s",
        "latency   " + ", ".join(f"{name} {_span(value)}" for name, value in latency.items()),
        f"peers     {open_['open']:,} of {open_['most']:,} connections, {rate('connections', 'accepted')}/s accepted",
        *textwrap.wrap(
            "so far    " + ", ".join(f"{number:,} {name}" for name, number in so_far.items()),
            width,
            subsequent_indent=" " * 10,
        ),
    ]
    if failures := now["batch_failures"]:
        lines.append("errors    " + ", ".join(f"{name} {number:,}" for name, number in failures.items()))
    tables = [
        _table(
            ("peer", "connections", "received", "rate", "waiting"),
            [
                (
                    each["peer"],
                    f"{each['connections']:,}",
                    _bytes(each["received_bytes"]),
                    f"{_bytes(_of_peer(each, before, seconds))}/s",
                    _bytes(each["waiting_bytes"]),
                )
                for each in _busiest(now, before, seconds)
            ],
        ),
        _table(
            (f"{now['topic']}:", "leader", "connections", "records/s", "waiting", "unanswered", ""),
            [
                (
                    str(each["partition"]),
                    each["leader"] or "none",
                    f"{each['connections']:,}",
                    _rate(each["delivered"], _of_partition(each["partition"], before), seconds),
                    _bytes(each["waiting_bytes"]),
                    _span(each["unanswered_seconds"]),
                    each["problem"],
                )
                for each in now["partitions"][:_ROWS]
            ],
        ),
        _table(("broker", "leads"), [(each["address"], f"{each['leads']:,}") for each in now["brokers"][:_ROWS]]),
    ]
    for table, found in zip(tables, (len(now["peers"]) + now["peers_left_out"], len(now["partitions"])), strict=False):
        if found > _ROWS:
            table.append(f"… and {found - _ROWS:,} more")
    styles = dict.fromkeys(range(1, 1 + len(state)), _GREEN if now["ready"] else _RED)
    for table in tables:
        styles[len(lines) + 1] = _BOLD
        lines += ["", *table]
    # What a broker or a peer is called must not move the cursor.
    seen = ["".join(char if char.isprintable() else "?" for char in line)[:width] for line in lines]
    if colored:
        for number, style in styles.items():
            seen[number] = f"{style}{seen[number]}{_PLAIN}"
    return "\n".join(seen) + "\n"


def rate_of(now: Status, before: Status, seconds: float) -> float:
    """Return the bytes a second that were delivered."""
    return (now["bytes"]["delivered"] - before["bytes"]["delivered"]) / seconds if seconds else 0.0


def printable(record: bytes) -> str:
    r"""Return the record on one line: UTF-8 as text, each byte of what cannot be printed as ``\x1b``."""
    text = record.decode(errors="backslashreplace")
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(char: str) -> str:
    return char if char.isprintable() else "".join(f"\\x{byte:02x}" for byte in char.encode())


def _status(host: str, port: int) -> Status:
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise OSError(body.decode(errors="replace").strip())
    found: Status = json.loads(body)
    return found


def _lines(sock: socket.socket) -> Iterator[dict[str, Any]]:
    with sock.makefile("rb") as file:
        try:
            for line in file:
                yield json.loads(line)
        except (OSError, ValueError):  # cut off within a line
            return


def _printed(text: str) -> bool:
    """Write to standard output; return whether somebody reads it."""
    data = text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")
    try:
        # Not by sys.stdout: what a closed pipe did not take it would try to write again at the exit, and fail.
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
    except BrokenPipeError:
        return False
    return True


def _advice(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "only root and the daemon's own user may, for it shows everybody's messages"
    return (
        "does the daemon run, and is tap.path where it says? Without systemd there is no tap until tap.path is set; "
        "--config names the daemon's file"
    )


def _at(status: Status, path: tuple[str, ...]) -> float:
    value: Any = status
    for name in path:
        value = value.get(name, {}) if isinstance(value, Mapping) else {}
    return float(value) if isinstance(value, int | float) else 0.0


def _of_peer(peer: Mapping[str, Any], before: Status, seconds: float) -> float:
    """Return the bytes a second of a host; those of connections that have ended are not known."""
    was = {each["peer"]: each["received_bytes"] for each in before.get("peers", ())}
    return max(0.0, (peer["received_bytes"] - was.get(peer["peer"], 0)) / seconds) if seconds else 0.0


def _busiest(now: Status, before: Status, seconds: float) -> list[Mapping[str, Any]]:
    return sorted(now["peers"], key=lambda each: -_of_peer(each, before, seconds))[:_ROWS]


def _of_partition(partition: int, before: Status) -> float:
    return next((each["delivered"] for each in before.get("partitions", ()) if each["partition"] == partition), 0)


def _rate(now: float, before: float, seconds: float) -> str:
    return f"{max(0.0, now - before) / seconds:,.0f}" if seconds else "-"


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:  # noqa: PLR2004 - decimal units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _span(seconds: float) -> str:
    """Return a duration as people say it."""
    for least, size, unit in ((86_400, 86_400, "d"), (3600, 3600, "h"), (60, 60, "min"), (1, 1, "s")):
        if seconds >= least:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1000:.1f} ms" if seconds else "0"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return lines with columns as wide as need be: numbers to the right, the first column and text to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    left = {0, *(number for number, name in enumerate(head) if name in {"leader", ""})}
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
