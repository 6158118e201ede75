"""Every framing against its two rules, against a reading of the book that takes its time, and by hand."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syslogger.framing import Framing, Split
from syslogger.framing.detected import Detected
from syslogger.framing.newline import Newline
from syslogger.framing.octet_counted import OctetCounted

Kind = type[Newline | OctetCounted]

FRAMINGS: list[Kind] = [Newline, OctetCounted, Detected]
FIRST = {Newline: None, OctetCounted: rb"[\s\S]", Detected: rb"<"}
MISFRAMED = {Newline: None, OctetCounted: rb"", Detected: rb"-?[0-9]+ ?<"}

PIECES = [b"", b"\n", b" ", b"<", b"-", b"0", b"1", b"9", b"12", b"777", b"a", b"\r", b"\x00\xff", b"x" * 23]
COUNTED = [b"1 <", b"5 <1>a", b"7 <2>a\nb", b"3 abc", b"8 <345678", b"12 <13>a message"]
LIES = [b"0 <", b"99 <a", b"-5 <", b"20<x"]
STREAM = st.one_of(
    st.binary(max_size=80), st.lists(st.sampled_from(PIECES + COUNTED + LIES), max_size=14).map(b"".join)
)
CUTS = st.lists(st.integers(0, 80))
SMALLEST = 8  # of the sizes tried; a count must be shorter


@pytest.fixture(params=FRAMINGS, scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


class Found(NamedTuple):
    records: list[bytes]
    size: int = 0
    cuts: int = 0
    fragments: int = 0
    misframed: int = 0


def drain(framing: Framing, pieces: list[bytes]) -> Found:
    """Feed the pieces as a connection would; return all that was found."""
    held, found = b"", Found([])
    for piece in [*pieces, b""]:
        held += piece
        while True:
            split = framing.split(held, final=piece == b"")
            assert split.size == sum(map(len, split.records))
            assert all(0 < len(record) <= framing.max_record_bytes for record in split.records)
            held = held[split.used :]
            found = Found(
                found.records + split.records,
                found.size + split.size,
                found.cuts + split.cuts,
                found.fragments + split.fragment,
                found.misframed + split.misframed,
            )
            if not split.more:
                assert piece == b"" or not framing.split(held).used, "it would wait, and hold back a record"
                break
    assert held == b""
    return found


def by_the_book(kind: Kind, data: bytes, largest: int) -> Found:
    """Read a whole stream record by record."""
    records, cuts, fragments, misframed = [], 0, 0, 0

    def count(at: int) -> re.Match[bytes] | None:
        first = FIRST[kind]
        return (
            re.compile(rb"([1-9][0-9]{0,%d}) (?=%s)" % (len(str(largest)) - 1, first)).match(data, at)
            if first
            else None
        )

    at = 0
    while at < len(data):
        found = count(at)
        if found and int(found[1]) <= largest:
            end = found.end() + int(found[1])
            records.append(data[found.end() : end])
            fragments += end > len(data)
            at = end
            continue
        line, feed, _ = data[at:].partition(b"\n")
        fragments += not feed and 0 < len(line) <= largest
        if len(line) > largest:
            line, feed = line[:largest], b""
            while count(at + len(line)):
                line = line[:-1]
            cuts += 1
        if line:
            records.append(line)
            misframed += MISFRAMED[kind] is not None and bool(re.match(MISFRAMED[kind], line))
        at += len(line + feed)
    return Found(records, sum(map(len, records)), cuts, fragments, misframed)


@given(STREAM, CUTS, st.integers(SMALLEST, 20), st.integers(0, 3))
@example(b"01234567\n", [8], 8, 0)
@example(b"012345678\n\n", [8, 9, 10], 8, 1)
@example(b"8 <1234567", [1, 2, 3, 9], 8, 0)
@example(b"12 <13>a messag1 <", [], 12, 0)
@example(b"abcdefg15 <2345\n", [8, 9, 10, 11], 8, 0)
@example(b"a\n-5 <\n", [], 8, 0)
@example(b"a\n9 <123456789\n", [], 12, 0)
def test_same_bytes_same_records_however_they_are_cut(
    kind: Kind, data: bytes, cuts: list[int], largest: int, most: int
) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    framing = kind(largest, most)
    whole = drain(framing, [data] if data else [])
    assert drain(framing, pieces) == whole
    assert whole == by_the_book(kind, data, largest)


@given(STREAM, st.integers(SMALLEST, 20))
def test_every_byte_is_a_records_or_a_line_feed_or_a_count(kind: Kind, data: bytes, largest: int) -> None:
    framing, rest = kind(largest, 1), data
    while rest:
        split = framing.split(rest, final=True)
        used, rest = rest[: split.used], rest[split.used :]
        record = b"".join(split.records)
        fed = used.removesuffix(b"\n") if not used.endswith(record) or not record else used
        assert fed.endswith(record)
        assert re.fullmatch(rb"\n*([1-9][0-9]* )?", fed.removesuffix(record)), (used, record)


@given(STREAM, st.integers(SMALLEST, 20), st.booleans())
def test_no_more_is_left_than_twice_the_largest_record(kind: Kind, data: bytes, largest: int, final: bool) -> None:
    split = kind(largest).split(data, final=final)
    assert len(data) - split.used <= (0 if final else 2 * largest)


LINES = st.binary(min_size=1, max_size=30).map(lambda line: b"." + line.replace(b"\n", b"."))
MESSAGES = st.binary(max_size=30).map(lambda message: b"<" + message)


@given(st.lists(st.tuples(st.booleans(), LINES, MESSAGES, st.sampled_from([b"", b"\n"]))), CUTS)
def test_lines_and_counted_records_mixed_come_back(
    mixed: list[tuple[bool, bytes, bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(
        b"%d %s%s" % (len(message), message, feed) if counted else line + b"\n"
        for counted, line, message, feed in mixed
    )
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = drain(Detected(64), [data[a:b] for a, b in pairwise(edges)])
    assert found.records == [message if counted else line for counted, line, message, _ in mixed]
    assert found[2:] == (0, 0, 0)


@given(st.lists(st.binary(min_size=1, max_size=30)))
def test_counted_records_come_back_whatever_is_in_them(records: list[bytes]) -> None:
    found = drain(OctetCounted(64), [b"%d %s" % (len(record), record) for record in records])
    assert found == Found(records, sum(map(len, records)))


@pytest.mark.parametrize(
    ("data", "final", "expected"),
    [
        (b"", False, Split([], 0, 0, 0, False, False)),
        (b"abc", False, Split([], 0, 0, 0, False, False)),
        (b"abc", True, Split([b"abc"], 3, 3, 0, True, False)),
        (b"abc\nde", False, Split([b"abc"], 4, 3, 0, False, False)),
        (b"abc\r\n", False, Split([b"abc\r"], 5, 4, 0, False, False)),
        (b"\n\n\na\n\n", False, Split([b"a"], 6, 1, 0, False, False)),
        (b"\xef\xbb\xbf\x00\xff\n", False, Split([b"\xef\xbb\xbf\x00\xff"], 6, 5, 0, False, False)),
        (b"12345678", False, Split([], 0, 0, 0, False, False)),
        (b"12345678\n", False, Split([b"12345678"], 9, 8, 0, False, False)),
        (b"123456789", False, Split([b"12345678"], 8, 8, 1, False, False)),
        (b"12345678x", True, Split([b"12345678", b"x"], 9, 9, 1, True, False)),
        (b"123456789\n", False, Split([b"12345678", b"9"], 10, 9, 1, False, False)),
        (b"123456789abcdefgh", True, Split([b"12345678", b"9abcdefg", b"h"], 17, 17, 2, True, False)),
    ],
)
def test_lines_by_hand_with_records_of_at_most_eight_bytes(data: bytes, final: bool, expected: Split) -> None:
    assert Newline(8).split(data, final=final) == expected
    if data != b"123456789":  # where a count might begin
        assert Detected(8).split(data, final=final) == expected
    assert drain(OctetCounted(8), [data])[:2] == drain(Newline(8), [data])[:2]


def test_newline_takes_a_count_as_it_comes() -> None:
    assert Newline(64).split(b"5 <1>ab\n") == Split([b"5 <1>ab"], 8, 7, 0, False, False)


@pytest.mark.parametrize(
    ("data", "final", "expected"),
    [
        (b"5 <1>ab", False, Split([b"<1>ab"], 7, 5, 0, False, False)),
        (b"5 <1>ab5 <1>cd", False, Split([b"<1>ab", b"<1>cd"], 14, 10, 0, False, False)),
        (b"5 <1>ab\n5 <1>\n\n\n", False, Split([b"<1>ab", b"<1>\n\n"], 16, 10, 0, False, False)),
        (b"64 <" + b"x" * 63, False, Split([b"<" + b"x" * 63], 67, 64, 0, False, False)),
        # not all there yet
        (b"5", False, Split([], 0, 0, 0, False, False)),
        (b"5 ", False, Split([], 0, 0, 0, False, False)),
        (b"5 <1>a", False, Split([], 0, 0, 0, False, False)),
        (b"5 <1>ab6 <1>", False, Split([b"<1>ab"], 7, 5, 0, False, False)),
        # the next is shorter than the last one's header
        (b"10 <12345678\n1 <", False, Split([b"<12345678\n", b"<"], 16, 11, 0, False, False)),
        (b"1 <10 <123456789" + b"1 <", False, Split([b"<", b"<123456789", b"<"], 19, 12, 0, False, False)),
        # and never will be
        (b"5", True, Split([b"5"], 1, 1, 0, True, False)),
        (b"5 <1>a", True, Split([b"<1>a"], 6, 4, 0, True, False)),
        (b"60 <1>a\n<2>b\n", True, Split([b"<1>a\n<2>b\n"], 13, 10, 0, True, False)),
    ],
)
@pytest.mark.parametrize("counting", [OctetCounted, Detected])
def test_counts_by_hand(counting: Kind, data: bytes, final: bool, expected: Split) -> None:
    found = counting(64).split(data, final=final)
    assert found._replace(misframed=0) == expected
    assert found.misframed == (data == b"5" and final and counting is OctetCounted)


@pytest.mark.parametrize(
    "lie",
    [
        b"65 <13>one more than the largest",
        b"99999999999999999999999999999999 <13>huge",
        b"0 <13>zero",
        b"00000000000000000000000000000000 <13>zeros",
        b"08 <13>zero first",
        b"-5 <13>negative",
        b"12<13>no space",
    ],
)
@pytest.mark.parametrize("counting", [OctetCounted, Detected])
def test_a_lie_is_a_line_with_every_byte_of_it_and_counted(counting: Kind, lie: bytes) -> None:
    data = b"5 <1>ab" + lie + b"\n5 <1>cd"
    assert drain(counting(64), [data]) == Found([b"<1>ab", lie, b"<1>cd"], 10 + len(lie), misframed=1)


@pytest.mark.parametrize(
    "line", [b"text", b"2024-11-21 <13>", b"12: <13>", b"+5 <13>", b"1_0 <13>", b" 5 <13>", b"5  <1>"]
)
def test_what_has_no_count_is_misframed_only_where_there_must_be_one(line: bytes) -> None:
    data = line + b"\n5 <1>ab"
    assert drain(Detected(64), [data]).misframed == 0
    if line != b"5  <1>":
        assert drain(OctetCounted(64), [data]) == Found([line, b"<1>ab"], len(line) + 5, misframed=1)
    assert drain(Detected(64), [data]).records == [line, b"<1>ab"]


def test_who_insists_on_counts_needs_no_priority() -> None:
    assert OctetCounted(64).split(b"5 hello3 \xff\n\n").records == [b"hello", b"\xff\n\n"]
    assert Detected(64).split(b"5 hello3 \xff\n").records == [b"5 hello3 \xff"]


@pytest.mark.parametrize("digits", range(1, 30))
def test_the_rest_of_a_long_line_is_no_count(digits: int) -> None:
    """Wherever it would be cut: no byte of it is taken for framing."""
    for before in range(40, 70):
        line = b"x" * before + b"7" * digits + b" <" + b"x" * 90
        for counting in (OctetCounted, Detected):
            assert b"".join(drain(counting(64), [line + b"\n"]).records) == line


def test_a_bound_on_the_records_of_one_split(kind: Kind) -> None:
    assert kind(8, 2).split(b"a\n\nb\nc\n")[:6] == ([b"a", b"b"], 5, 2, 0, False, True)
    assert kind(8, 1).split(b"abcdefghi")[:6] == ([b"abcdefgh"], 8, 8, 1, False, True)
    if kind is not Newline:
        assert kind(8, 2).split(b"1 <1 <1 <")[:6] == ([b"<", b"<"], 6, 2, 0, False, True)
