"""What a record says: RFC 5424, and RFC 3164 as real programs send it.

Rule 1: no bytes make it raise, and none are lost: what cannot be told apart is content, and where the parser had to
guess, `raw` is the whole record.
Rule 2: a message depends on the record, the day it was received (an RFC 3164 date has no year) and the zone; never on
the records before it.

Text is UTF-8. A byte that is not stands as one character from U+10F780 to U+10F7FF, whose low eight bits are the byte;
such a character in the record itself stands as the four bytes it is made of. So `original` gives every byte back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

StructuredData = dict[str, dict[str, str | list[str]]]
"""The parameters by element; one that its element has more than once has all its values."""

_DEFAULT_PRIORITY = 13
"""user.notice: what a record without PRI is (RFC 3164, section 4.3.3)."""

_AHEAD = timedelta(days=31)
"""How far ahead of ours a sender's clock may be: a date without a year that is farther ahead is of a year before."""

_CACHE_ENTRIES = 8192
"""A cache that is full is emptied when the next second begins."""
_LONGEST_DATE = 36
_HEAD = 20
"""Room for PRI and date, and for what comes behind a shorter PRI."""
_SPACE = 32
_LONGEST_ORIGIN = 160
"""In characters; a longer one is not remembered."""


class Message(Struct, frozen=True, gc=False):
    """A record's fields, in the order that they have in JSON; the first seven are the Go program's."""

    content: str
    """What is not told apart below, without CR, LF and NUL at its end."""
    facility: int
    hostname: str
    """Empty if the record has none."""
    priority: int
    severity: int
    tag: str
    """The program, without its process id; empty if the record names none."""
    timestamp: str
    """RFC 3339, as precise as in the record; `received_at` if it has none."""
    appname: str | None
    """As `tag`."""
    procid: str | None
    msgid: str | None
    structured_data: StructuredData | None
    received_at: str
    """RFC 3339, in UTC, with milliseconds."""
    peer: str
    raw: str | UnsetType = UNSET
    """The whole record, if it has no PRI or no date, or structured data that is not well formed."""


class GoMessage(Struct, frozen=True, gc=False):
    """What the Go program made of a record: see `Message`, but for spaces around the content, which it took away."""

    content: str
    facility: int
    hostname: str
    priority: int
    severity: int
    tag: str
    timestamp: str


encode = msgspec.json.Encoder().encode
"""Return a message as JSON."""


def encode_go(message: Message) -> bytes:
    """Return the Go program's seven keys of a message as JSON."""
    content, facility, hostname = message.content.strip(" "), message.facility, message.hostname
    return encode(
        GoMessage(content, facility, hostname, message.priority, message.severity, message.tag, message.timestamp)
    )


ENCODERS: dict[str, Callable[[Message], bytes]] = {"json": encode, "json-go": encode_go}
"""By what `kafka.value` calls them."""

_to_escape = re.compile("[\udc80-\udcff\U0010f780-\U0010f7ff]")
_escaped = re.compile("[\U0010f780-\U0010f7ff]")


def text(data: bytes) -> str:
    """Return bytes as a text that `original` turns back into them."""
    try:
        decoded = data.decode()
    except UnicodeDecodeError:
        decoded = data.decode(errors="surrogateescape")
    else:
        # So begins every character that stands for a byte.
        if decoded.isascii() or not (b"\xf4\x8f\x9e" in data or b"\xf4\x8f\x9f" in data):
            return decoded
    return _to_escape.sub(_escape, decoded)


def _escape(found: re.Match[str]) -> str:
    return "".join(chr(0x10F700 + byte) for byte in found[0].encode(errors="surrogateescape"))


def original(text: str) -> bytes:
    """Return the bytes that a text was made of."""
    return _escaped.sub(lambda found: chr(ord(found[0]) - 0x10F700 + 0xDC00), text).encode(errors="surrogateescape")


_T = TypeVar("_T")
_Values = tuple[int, int, int]
"""Facility, priority, severity."""
_Head = tuple[int, int, int, int, str]
"""Where the date ends, the same and the timestamp."""
_Origin = tuple[str, str, str | None]
"""Hostname, tag, process id."""

_PRIORITIES: dict[str, _Values] = {
    f"<{value:{form}}>": (value >> 3, value, value & 7) for value in range(192) for form in ("d", "02", "03")
}
"""Leading zeros are not allowed, but sent."""

_NAMES = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905 - reads better
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_rfc3339 = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
).fullmatch

_seconds = re.compile(r":[0-5][0-9]").fullmatch

_dated = re.compile(
    # Cisco: a number, the device's name, how far its clock can be trusted
    r" *(?:\d*: )?(?:(?P<device>[\w.-]+): )?[*.]?"
    r"(?:"
    r"(?:(?P<year>\d{4}) )?(?P<month>[A-Z][a-z]{2}) {1,2}(?P<day>\d\d?) (?:(?P<year2>\d{4}) )?"
    r"(?P<time>\d\d:\d\d:\d\d)(?:[.:,](?P<fraction>\d{1,9}))?(?: (?P<year3>(?:19|20)\d\d)(?= |: |\Z))?"
    r"|(?P<iso>\d{4}-\d\d-\d\d)[Tt ](?P<iso_time>\d\d:\d\d:\d\d)(?:[.,](?P<iso_fraction>\d{1,9})\d*)?"
    r"(?P<offset>[Zz]|[+-]\d\d:?\d\d)?"
    r"|1 (?P<epoch>\d{9,10})(?:\.(?P<epoch_fraction>\d{1,9}))?"  # Meraki
    r")(?: (?P<zone>[A-Z]{3,5})(?=:))?(?=[ :]|\Z)",
    re.ASCII,
).match

_TAG = r"(?!\d+[\s:\[])([^\s:\[\]{}\"=,<>|'-][^\s:\[\]{}\"=,<>|]{0,127})"
_PROCID = r"\[([^\[\]\s]{0,127})\]"
_usual_origin = re.compile(r" ([A-Za-z0-9][\w.-]*+) ([A-Za-z(/][\w./()-]*+)(?:\[(\d++)\])?: ", re.ASCII).match
"""What most senders write between date and content; the expressions below find the same, and more."""
_sole_tag = re.compile(rf"{_TAG}(?:{_PROCID}(?:: ?| |\Z)|:(?: |\Z))").match
"""A tag where a hostname may stand: it has a process id, or a colon and nothing behind it."""
_tag = re.compile(rf"{_TAG}(?:{_PROCID}(?:: ?| |\Z)|: ?| )").match
_undated_tag = re.compile(rf" *{_TAG}(?:{_PROCID})?:(?: |\Z)").match
_address = re.compile(r"[\d.]+", re.ASCII).fullmatch
_hostname = re.compile(r"([\w:][\w.:%/@+-]*|\[[\da-fA-F:.%]+\])(?: (?:: )?|\Z)").match
_forwarded = re.compile(r"Message forwarded from ([^\s:]+): ").match
"""AIX."""
_repeated = re.compile(r"(?:([\w.:-]+) )?(?=last message repeated \d+ times?\Z)").match

_element = re.compile(r'\[([^\s="\]]++)((?: ++[^\s="\]]++="(?:[^"\\]++|\\.)*+")*+) *+\]', re.DOTALL).match
_parameters = re.compile(r' ([^\s="\]]++)="((?:[^"\\]++|\\.)*+)"', re.DOTALL).findall
_unescape = re.compile(r'\\(["\\\]])').sub


class Parser:
    """Makes messages of records. `zone` is that of dates which name none.

    It remembers what records have in common with earlier ones: PRI and date, hostname and tag.
    """

    def __init__(self, zone: tzinfo = UTC) -> None:
        self._zone = zone
        self._heads: dict[str, _Head] = {}
        self._origins: dict[str, _Origin] = {}
        """By what stands between a date of 15 characters and the content."""
        self._later_origins: dict[str, _Origin] = {}
        """The same of RFC 3339 dates, which no year or zone can follow."""
        self._minutes: dict[str, tuple[str, str]] = {}
        """What a timestamp begins and ends with, by the minute as RFC 3164 writes it, ``Nov 21 23:59``."""
        self._exist: dict[str, bool] = {}
        """Whether there is such a minute, by how RFC 3339 writes it, ``2026-02-29T23:59``."""
        self._day = self._second = -1
        self._today = _EPOCH
        self._received_at = ""
        self._peer = ""

    def parse(self, records: Sequence[bytes], received_ms: int, peer: str) -> list[Message]:
        """Return each record's message. `received_ms` is in milliseconds since 1970, before the year 9999."""
        self._begin(received_ms, peer)
        received_at, heads, origins = self._received_at, self._heads, self._origins
        messages = []
        for record in records:
            decoded = record.decode() if record.isascii() else text(record)
            # What most send, `<PRI>Mmm dd hh:mm:ss hostname tag[procid]: content`, if its like was seen before.
            if (
                (head := heads.get(decoded[:_HEAD]))
                and (end := decoded.find(": ", head[0], head[0] + _LONGEST_ORIGIN) + 2)
                and (origin := origins.get(decoded[head[0] : end]))
                and record[-1] >= _SPACE
            ):
                _, facility, priority, severity, timestamp = head
                hostname, tag, procid = origin
                message = Message(
                    decoded[end:], facility, hostname, priority, severity, tag, timestamp, tag, procid, None, None,
                    received_at, peer,
                )  # fmt: skip
            else:
                message = self._parse(decoded)
            messages.append(message)
        return messages

    def _begin(self, received_ms: int, peer: str) -> None:
        received = _EPOCH + timedelta(milliseconds=received_ms)
        self._received_at = f"{received.isoformat(timespec='milliseconds')[:23]}Z"
        self._peer = peer
        second, day = received_ms // 1000, received_ms // 86_400_000
        if day != self._day:
            self._day = day
            self._today = _EPOCH + timedelta(days=day)
            self._heads.clear()
            self._minutes.clear()
        if second != self._second:
            self._second = second
            caches: tuple[dict[str, Any], ...] = (
                self._heads, self._origins, self._later_origins, self._minutes, self._exist
            )  # fmt: skip
            for cache in caches:
                if len(cache) >= _CACHE_ENTRIES:
                    cache.clear()

    def _parse(self, record: str) -> Message:
        line = record.rstrip("\r\n\0")
        if line[:1] == "\ufeff":
            line = line[1:]
        at = line.find(">", 0, 5) + 1
        values = _PRIORITIES.get(line[:at])
        if not values:
            return self._guess(record, line, 0, None)
        if line.startswith("1 ", at) and (message := self._rfc5424(record, line, values)):
            return message
        if line[at : at + 1].isdigit():
            end = line.find(" ", at, at + _LONGEST_DATE)
            if self._is_rfc3339(date := line[at:end]):
                origin, begin = self._origin(line, end, self._later_origins)
                return self._message(line[begin:], values, date, origin)
        elif (timestamp := self._usual_date(line, at)) and (found := _usual_origin(line, at + 15)):
            origin, begin = (found[1], found[2], found[3]), found.end()
            _remember(self._heads, line[:_HEAD], (at + 15, *values, timestamp))
            _remember(self._origins, line[at + 15 : begin], origin)
            return self._message(line[begin:], values, timestamp, origin)
        return self._guess(record, line, at, values)

    def _message(  # noqa: PLR0917 - names would cost
        self,
        content: str,
        values: _Values,
        timestamp: str,
        origin: _Origin,
        msgid: str | None = None,
        structured_data: StructuredData | None = None,
        raw: str | UnsetType = UNSET,
    ) -> Message:
        facility, priority, severity = values
        hostname, tag, procid = origin
        received_at, peer = self._received_at, self._peer
        return Message(
            content, facility, hostname, priority, severity, tag, timestamp or received_at, tag or None, procid, msgid,
            structured_data, received_at, peer, raw,
        )  # fmt: skip

    # RFC 5424, section 6: <PRI>1 timestamp hostname app-name procid msgid structured-data content

    def _rfc5424(self, record: str, line: str, values: _Values) -> Message | None:
        """Return the message; None if the header is not that of RFC 5424."""
        try:
            _, timestamp, hostname, tag, procid, msgid, content = line.split(" ", 6)
        except ValueError:
            return None
        if timestamp == "-":
            timestamp = ""
        elif not self._is_rfc3339(timestamp):
            return None
        data: StructuredData | None = None
        raw: str | UnsetType = UNSET
        if content[:1] == "[":
            data, end = _structured_data(content)
            content = content[end:]
            if data is None:
                raw = record
        elif content[:2] == "- ":
            content = content[2:]
        elif content == "-":
            content = ""
        # Otherwise it is Heroku's, which has no structured data and no `-` in its place.
        if content[:1] == "\ufeff":
            content = content[1:]
        origin = "" if hostname == "-" else hostname, "" if tag == "-" else tag, None if procid == "-" else procid
        return self._message(content, values, timestamp, origin, None if msgid == "-" else msgid, data, raw)

    def _usual_date(self, line: str, at: int) -> str:
        """Return the timestamp of a date of 15 characters if its minute was seen before, or nothing."""
        minute, seconds = self._minutes.get(line[at : at + 12]), line[at + 12 : at + 15]
        return f"{minute[0]}{seconds}{minute[1]}" if minute and _seconds(seconds) else ""

    def _is_rfc3339(self, timestamp: str) -> bool:
        if not _rfc3339(timestamp):
            return False
        minute = timestamp[:16]
        exists = self._exist.get(minute)
        if exists is None:
            exists = _is_time(minute)
            _remember(self._exist, minute, exists)
        return exists

    # RFC 3164: <PRI>date hostname tag[procid]: content, of which each may be missing

    def _guess(self, record: str, line: str, at: int, values: _Values | None) -> Message:
        """Return the message of a record that begins in an uncommon way."""
        dated = _dated(line, at)
        timestamp = self._timestamp(dated) if dated else ""
        if dated and timestamp:
            end = dated.end()
            usual = dated.start("month") == at and end == at + 15
            (hostname, tag, procid), begin = self._origin(line, end, self._origins if usual else None)
            if usual and values:
                _remember(self._heads, line[:_HEAD], (end, *values, timestamp))
                _remember(self._minutes, line[at : at + 12], (timestamp[:16], timestamp[19:]))
            origin = hostname or dated["device"] or "", tag, procid
        else:
            found = _undated_tag(line, at) if values else None
            origin = ("", found[1], found[2] or None) if found else ("", "", None)
            begin = found.end() if found else at
        raw = UNSET if values and timestamp else record
        return self._message(line[begin:], values or _PRIORITIES[f"<{_DEFAULT_PRIORITY}>"], timestamp, origin, raw=raw)

    def _origin(self, line: str, at: int, cache: dict[str, _Origin] | None) -> tuple[_Origin, int]:
        """Return what stands behind a date, and where the content begins."""
        end = line.find(": ", at, at + _LONGEST_ORIGIN) + 2
        if cache is None:
            return _origin(line, at)
        if origin := cache.get(line[at:end]):
            return origin, end
        origin, begin = _origin(line, at)
        # Only if the same text will always be the same origin: what follows it has had no say.
        if begin == end and origin[1]:
            _remember(cache, line[at:end], origin)
        return origin, begin

    def _timestamp(self, dated: re.Match[str]) -> str:
        """Return a date as RFC 3339 has it; empty if there is no such date."""
        if dated["epoch"]:
            moment = _EPOCH + timedelta(seconds=int(dated["epoch"]))
            return _written(moment, dated["epoch_fraction"])
        zone = UTC if dated["zone"] in ("UTC", "GMT") else self._zone
        try:
            if dated["iso"]:
                if offset := dated["offset"]:
                    zone = datetime.fromisoformat(f"{dated['iso']}T00:00:00{offset.upper()}").tzinfo or UTC
                moment = datetime.fromisoformat(f"{dated['iso']}T{dated['iso_time']}").replace(tzinfo=zone)
                return _written(moment, dated["iso_fraction"])
            hour, minute, second = map(int, dated["time"].split(":"))
            month, day = _MONTHS[dated["month"]], int(dated["day"])
            year = dated["year"] or dated["year2"] or dated["year3"]
            moment = datetime(int(year or 2000), month, day, hour, minute, second, tzinfo=zone)
            return _written(moment if year else self._in_its_year(moment), dated["fraction"])
        except (KeyError, ValueError, OverflowError):
            return ""

    def _in_its_year(self, moment: datetime) -> datetime:
        """Return the last such date that is not too far ahead of the day of receipt. Raises ValueError if none is."""
        latest = self._today.replace(tzinfo=None) + _AHEAD
        for year in range(latest.year, latest.year - 9, -1):
            # 29 February is not in every year.
            if (moment.month, moment.day) != (2, 29) or _is_time(f"{year:04}-02-29T00:00"):
                candidate = moment.replace(year=year)
                if candidate.replace(tzinfo=None) < latest + timedelta(days=1):
                    return candidate
        raise ValueError(moment)


def _origin(line: str, at: int) -> tuple[_Origin, int]:
    cisco = line.startswith(":", at)
    at += cisco
    while line.startswith(" ", at):
        at += 1
    if found := _repeated(line, at):
        return (found[1] or "", "", None), found.end()
    hostname = ""
    found = _forwarded(line, at)
    if not found and (found := _sole_tag(line, at)):
        if found[2] is not None or not _address(found[1]):
            return ("", found[1], found[2] or None), found.end()
    elif not found and not cisco:
        found = _hostname(line, at)
    if found:
        hostname, at = found[1], found.end()
    if found := _tag(line, at):
        return (hostname, found[1], found[2] or None), found.end()
    return (hostname, "", None), at


def _structured_data(text: str) -> tuple[StructuredData | None, int]:
    """Return the elements that a text begins with and where the rest begins; None and 0 if they are malformed."""
    data: StructuredData = {}
    at = 0
    while found := _element(text, at):
        at = found.end()
        name, parameters = found[1], _parameters(found[2])
        element: dict[str, str | list[str]] = dict(parameters)
        if len(element) < len(parameters) or "\\" in found[2] or name in data:
            element = data.get(name, {})
            for key, escaped in parameters:
                value, before = _unescape(r"\1", escaped), element.get(key)
                if before is None:
                    element[key] = value
                elif isinstance(before, list):
                    before.append(value)
                else:
                    element[key] = [before, value]
        data[name] = element
    if text[at : at + 1] not in ("", " "):
        return None, 0
    return data, at + 1


def _is_time(minute: str) -> bool:
    try:
        datetime.fromisoformat(minute)
    except ValueError:
        return False
    return True


def _written(moment: datetime, fraction: str | None) -> str:
    """Return a moment as RFC 3339 has it."""
    offset = int((moment.utcoffset() or timedelta()).total_seconds()) // 60
    sign, offset = "-" if offset < 0 else "+", abs(offset)
    zone = f"{sign}{offset // 60:02}:{offset % 60:02}" if offset else "Z"
    return f"{moment.isoformat()[:19]}{'.' + fraction if fraction else ''}{zone}"


def _remember(cache: dict[str, _T], key: str, value: _T) -> None:
    """Enter a value if there is room. To make room each time would cost more than it saves where no two are alike."""
    if len(cache) < _CACHE_ENTRIES:
        cache[key] = value
