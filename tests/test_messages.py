from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from syslogger import messages
from syslogger.messages import Message, Parser, encode, encode_go, original, text
from tests.corpus import RECEIVED_AT, RECEIVED_MS, Case, cases

ROOT = Path(__file__).parent.parent
CASES = list(cases())
GO = ["content", "facility", "hostname", "priority", "severity", "tag", "timestamp"]


def schema(name: str) -> Any:
    loaded = json.loads((ROOT / "schema" / f"{name}.schema.json").read_text())
    kind = jsonschema.validators.validator_for(loaded)
    kind.check_schema(loaded)
    return kind(loaded, format_checker=kind.FORMAT_CHECKER)


RECORD, RECORD_GO = schema("record"), schema("record-go")


def parse(record: bytes, received_ms: int = RECEIVED_MS, parser: Parser | None = None) -> Message:
    """Return a record's message, from a parser that has seen nothing before."""
    (message,) = (parser or Parser()).parse([record], received_ms, "192.0.2.1:514")
    return message


def in_milliseconds(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc, arg-type]


# The corpus


def test_there_are_enough() -> None:
    assert len(CASES) >= 150
    assert len({case.record for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name[:60] for case in CASES])
def test_the_corpus(case: Case) -> None:
    message = parse(case.record)
    assert {name: getattr(message, name) for name in case.fields} == case.fields
    assert message.received_at == RECEIVED_AT
    assert message.peer == "192.0.2.1:514"
    assert message.raw == (text(case.record) if case.raw else msgspec.UNSET)


def test_what_was_seen_before_changes_nothing() -> None:
    parser, records = Parser(), [case.record for case in CASES]
    expected = [parse(record) for record in records]
    for _ in range(3):
        assert parser.parse(records, RECEIVED_MS, "192.0.2.1:514") == expected


@pytest.mark.parametrize("case", CASES, ids=[case.name[:60] for case in CASES])
def test_the_schemas_hold(case: Case) -> None:
    message = parse(case.record)
    RECORD.validate(json.loads(encode(message)))
    RECORD_GO.validate(json.loads(encode_go(message)))


def test_a_schema_names_the_fields_that_there_are() -> None:
    names = list(Message.__struct_fields__)
    assert list(RECORD.schema["properties"]) == names
    assert RECORD.schema["required"] == [name for name in names if name != "raw"]
    assert list(RECORD_GO.schema["properties"]) == RECORD_GO.schema["required"] == GO == names[:7]
    for each in (RECORD, RECORD_GO):
        wrong = {**json.loads(encode_go(parse(b"<13>x"))), "severity": 8}
        assert not each.is_valid(wrong)


# JSON


def test_json() -> None:
    record = b'<86>Nov 21 08:00:01 web1 sshd[4711]: Accepted "publickey" for \xc3\xbc'
    assert encode(parse(record)).decode() == (
        '{"content":"Accepted \\"publickey\\" for ü","facility":10,"hostname":"web1","priority":86,"severity":6,'
        '"tag":"sshd","timestamp":"2026-11-21T08:00:01Z","appname":"sshd","procid":"4711","msgid":null,'
        '"structured_data":null,"received_at":"2026-11-21T12:00:00.000Z","peer":"192.0.2.1:514"}'
    )


def test_the_go_programs_json() -> None:
    value = encode_go(parse(b"<34>Oct 11 22:14:15 mymachine su:   'su root' failed  "))
    assert value.decode() == (
        '{"content":"\'su root\' failed","facility":4,"hostname":"mymachine","priority":34,"severity":2,"tag":"su",'
        '"timestamp":"2026-10-11T22:14:15Z"}'
    )


# Text


@settings(deadline=None)
@given(st.binary())
@example("\U0010f780".encode())
@example(b"\xed\xa0\x80")
@example("\U0010f77f\U0010f800".encode())
def test_every_byte_comes_back(data: bytes) -> None:
    shown = text(data)
    assert original(shown) == data
    assert json.loads(msgspec.json.encode(shown)) == shown


@settings(deadline=None)
@given(st.text())
def test_what_is_utf_8_stays(words: str) -> None:
    if not any("\U0010f780" <= each <= "\U0010f7ff" for each in words):
        assert text(words.encode()) == words


# Dates


@pytest.mark.parametrize(
    ("received", "date", "expected"),
    [
        ((2027, 1, 1, 0, 0, 5), "Dec 31 23:59:59", "2026-12-31T23:59:59Z"),
        ((2026, 12, 31, 23, 59, 59), "Jan  1 00:00:01", "2027-01-01T00:00:01Z"),
        ((2026, 12, 31, 23, 59, 59), "Dec 31 23:59:59", "2026-12-31T23:59:59Z"),
        ((2027, 1, 1), "Jan  1 00:00:00", "2027-01-01T00:00:00Z"),
        ((2026, 12, 1), "Jan  1 23:59:59", "2027-01-01T23:59:59Z"),
        ((2026, 11, 30), "Jan  1 00:00:00", "2026-01-01T00:00:00Z"),
        ((2028, 2, 29), "Feb 29 12:00:00", "2028-02-29T12:00:00Z"),
        ((2028, 2, 10), "Feb 29 12:00:00", "2028-02-29T12:00:00Z"),
        ((2027, 3, 1), "Feb 29 12:00:00", "2024-02-29T12:00:00Z"),
        ((2103, 3, 1), "Feb 29 12:00:00", "2096-02-29T12:00:00Z"),
    ],
)
def test_the_year(received: tuple[int, ...], date: str, expected: str) -> None:
    assert parse(f"<13>{date} web1 app: x".encode(), in_milliseconds(*received)).timestamp == expected


def test_the_year_when_a_day_begins() -> None:
    """What was remembered on the last day of a year is not believed on the first of the next."""
    parser, record = Parser(), b"<13>Jan 31 23:59:00 web1 app: x"
    assert parse(record, in_milliseconds(2026, 12, 30), parser).timestamp == "2026-01-31T23:59:00Z"
    assert parse(record, in_milliseconds(2026, 12, 30, 23), parser).timestamp == "2026-01-31T23:59:00Z"
    assert parse(record, in_milliseconds(2026, 12, 31), parser).timestamp == "2027-01-31T23:59:00Z"


@settings(deadline=None)
@given(st.datetimes(datetime(1971, 1, 1), datetime(2199, 1, 1)), st.integers(-330, 31))  # noqa: DTZ001
def test_a_date_of_the_last_months_is_found_again(received: datetime, days: int) -> None:
    sent = (received + timedelta(days=days)).replace(microsecond=0)
    record = f"<13>{sent:%b} {sent.day:2} {sent:%H:%M:%S} web1 app: x".encode()
    at = int(received.replace(tzinfo=UTC).timestamp() * 1000)
    assert parse(record, at).timestamp == f"{sent.isoformat()}Z"


@pytest.mark.parametrize(
    ("zone", "date", "expected"),
    [
        ("Europe/Berlin", "Nov 21 08:00:00", "2026-11-21T08:00:00+01:00"),
        ("Europe/Berlin", "Jul  1 08:00:00", "2026-07-01T08:00:00+02:00"),
        ("Europe/Berlin", "Oct 25 02:30:00", "2026-10-25T02:30:00+02:00"),
        ("America/St_Johns", "Nov 21 08:00:00", "2026-11-21T08:00:00-03:30"),
        ("Asia/Kolkata", "Nov 21 08:00:00.123", "2026-11-21T08:00:00.123+05:30"),
        ("Europe/Berlin", "2026-11-21T08:00:00", "2026-11-21T08:00:00+01:00"),
        ("Europe/Berlin", "2026-11-21T08:00:00Z", "2026-11-21T08:00:00Z"),
        ("Europe/Amsterdam", "Nov 21 1910 08:00:00", "1910-11-21T08:00:00+00:19"),
        ("UTC", "Nov 21 08:00:00", "2026-11-21T08:00:00Z"),
    ],
)
def test_the_zone(zone: str, date: str, expected: str) -> None:
    parser = Parser(ZoneInfo(zone))
    for _ in range(2):
        assert parse(f"<13>{date} web1 app: x".encode(), parser=parser).timestamp == expected


def test_a_zone_that_the_record_names() -> None:
    parser = Parser(ZoneInfo("Europe/Berlin"))
    assert parse(b"<13>Nov 21 08:00:00 UTC: %A-1-B: x", parser=parser).timestamp == "2026-11-21T08:00:00Z"
    assert parse(b"<13>Nov 21 08:00:00 CET: %A-1-B: x", parser=parser).timestamp == "2026-11-21T08:00:00+01:00"


def test_when_it_was_received() -> None:
    assert parse(b"x", 1).received_at == parse(b"x", 1).timestamp == "1970-01-01T00:00:00.001Z"


# Whatever comes

PIECES = st.sampled_from(
    b"<13>|<134>|<7>|<192>|1 |Nov 21 08:00:00|Nov  1 08:00:0|Nov 21 2026|08:00:00|2026-11-21T08:00:00.123Z|2026| |  |:"
    b"|: |[|]"
    b'|[1]|web1|app|app[1]: |a@1|=|"|\\|x="1"|-|- - - -|%ASA-6-1: | UTC: |last message repeated 3 times'
    b"|Message forwarded from |10.0.0.1|::|\xef\xbb\xbf|\xff|\xc3\xbc|\r|\n|\0|\t|*|.|29: |1795248000.1 |(|{".split(
        b"|"
    )
)
RECORDS = st.one_of(st.binary(), st.lists(PIECES).map(b"".join), st.text().map(str.encode))


@settings(max_examples=1000, deadline=None)
@given(RECORDS)
@example(b"")
@example(b"<13>Nov 21 08:00:00 0000 web1 app: x")
@example(b"<13>Nov 21 0000 08:00:00 web1 app: x")
@example(b"<13>1 1795248000 a b c")
@example(b"<13>9999-12-31T23:59:59+14:00 a b: c")
def test_whatever_comes_is_a_message(record: bytes) -> None:
    message = parse(record)
    value = json.loads(encode(message))
    RECORD.validate(value)
    RECORD_GO.validate(json.loads(encode_go(message)))
    line = record.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n\0")
    assert original(value["content"]) in (line[-len(original(value["content"])) :], b"")
    if message.raw is not msgspec.UNSET:
        assert original(value["raw"]) == record


@settings(max_examples=500, deadline=None)
@given(st.lists(RECORDS, min_size=2, max_size=8), st.integers(0, 7))
def test_no_record_changes_what_another_is(records: list[bytes], head: int) -> None:
    """Also where one has the beginning of another."""
    heads = [b"<13>Nov 21 08:00:00", b"<134>Nov 21 08:00:00 web1", b"<13>2026-11-21T08:00:00Z", b"<13>Nov 21 08:00:0"]
    records = [*records, *(heads[head % 4] + record for record in records)]
    parser = Parser()
    for _ in range(2):
        assert parser.parse(records, RECEIVED_MS, "192.0.2.1:514") == [parse(record) for record in records]


def test_a_long_record_is_no_work() -> None:
    """No expression goes back and forth over it."""
    for record in (b"<13>" + b" " * 100_000, b"<13>1 - - - - - [a " + b'x="1" ' * 20_000, b"<13>" + b"1" * 100_000):
        assert parse(record).content
    assert parse(b'<13>1 - - - - - [a x="' + b"\\" * 100_001).structured_data is None


def test_what_it_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_CACHE_ENTRIES", 10)
    parser = Parser()
    records = [
        f"<13>Nov 21 08:{n % 60:02}:{n % 59:02} web{n} app[{n}]: {n}\n<13>2026-11-21T08:{n % 60:02}:00Z web{n} app: x"
        for n in range(200)
    ]
    lines = [line.encode() for record in records for line in record.split("\n")]
    expected = [parse(line) for line in lines]
    for second in range(3):
        for begin in range(0, 400, 50):
            found = parser.parse(lines[begin : begin + 50], RECEIVED_MS + second * 1000, "192.0.2.1:514")
            assert [each.content for each in found] == [each.content for each in expected[begin : begin + 50]]
            assert [each.hostname for each in found] == [each.hostname for each in expected[begin : begin + 50]]
    kept = [each for each in vars(parser).values() if isinstance(each, dict)]
    assert len(kept) == 5
    assert all(len(each) <= 10 for each in kept)


# RFC 5424, written by its grammar

PRINTABLE = "".join(map(chr, range(33, 127)))
SD_NAME = st.text(st.sampled_from([each for each in PRINTABLE if each not in '="]']), min_size=1, max_size=32)
STAND_FOR_BYTES = "".join(map(chr, range(0x10F780, 0x10F800)))
VALUE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=STAND_FOR_BYTES))
DATA = st.dictionaries(
    SD_NAME, st.dictionaries(SD_NAME, st.lists(VALUE, min_size=1, max_size=3), max_size=3), max_size=3
)


def words(most: int) -> st.SearchStrategy[str]:
    return st.text(PRINTABLE, max_size=most).map(lambda word: "" if word == "-" else word)


@st.composite
def timestamps(draw: st.DrawFn) -> str:
    moment = draw(st.datetimes()).isoformat()[:19]
    fraction = draw(st.sampled_from(["", ".1", ".003", ".123456"]))
    return moment + fraction + draw(st.sampled_from(["Z", "+00:00", "-07:00", "+05:30", "+14:00"]))


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 191),
    timestamps() | st.just(""),
    st.tuples(words(255), words(48), words(128), words(32)),
    DATA,
    VALUE.map(lambda value: value.rstrip("\r\n\0").removeprefix("\ufeff")),
    st.booleans(),
)
def test_rfc_5424_comes_back_field_by_field(  # noqa: PLR0917 - hypothesis gives them
    priority: int,
    timestamp: str,
    header: tuple[str, str, str, str],
    data: dict[str, dict[str, list[str]]],
    content: str,
    bom: bool,
) -> None:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")

    elements = ""
    for name, parameters in data.items():
        pairs = [f'{key}="{escaped(value)}"' for key, values in parameters.items() for value in values]
        elements += f"[{' '.join([name, *pairs])}]"
    fields = [timestamp, *header]
    record = f"<{priority}>1 {' '.join(field or '-' for field in fields)} {elements or '-'}"
    if content:
        record += " " + ("\ufeff" if bom else "") + content
    hostname, appname, procid, msgid = header
    assert parse(record.encode()) == Message(
        content=content,
        facility=priority // 8,
        hostname=hostname,
        priority=priority,
        severity=priority % 8,
        tag=appname,
        timestamp=timestamp or RECEIVED_AT,
        appname=appname or None,
        procid=procid or None,
        msgid=msgid or None,
        structured_data={
            name: {key: values if len(values) > 1 else values[0] for key, values in parameters.items()}
            for name, parameters in data.items()
        }
        or None,
        received_at=RECEIVED_AT,
        peer="192.0.2.1:514",
    )
