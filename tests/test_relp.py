"""RELP's framing: against the framings' two rules, and by hand."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syslogger.framing.relp import SERVERCLOSE, Relp, took_leave

NUMBERS = st.one_of(st.integers(1, 999_999_999), st.sampled_from([1, 999_999_999]))
SYSLOG = st.builds(lambda number, data: frame(number, b"syslog", data), NUMBERS, st.binary(max_size=45))
FRAMES = st.one_of(
    SYSLOG,
    SYSLOG,
    st.builds(lambda number, command: frame(number, command, b""), NUMBERS, st.sampled_from([b"foo", b"rsp"])),
    st.builds(lambda number: frame(number, b"open", b"relp_version=0"), NUMBERS),
)
BAD = st.sampled_from(
    [
        b"1 close 0\n",
        b"1 syslog 3 abcd",
        b"x",
        b" ",
        b"\n",
        b"1 syslog 99999999 ",
        b"-1 syslog",
        b"1234567890 ",
        b"1 a1",
    ]
)
STREAM = st.one_of(st.binary(max_size=60), st.lists(st.one_of(FRAMES, FRAMES, BAD), max_size=8).map(b"".join))
CUTS = st.lists(st.integers(0, 120))


def frame(number: int, command: bytes, data: bytes) -> bytes:
    return b"%d %s %d%s%s\n" % (number, command, len(data), b" " if data else b"", data)


class Found(NamedTuple):
    records: list[bytes]
    replies: bytes
    ends: str
    cuts: int


def drain(framing: Relp, pieces: list[bytes]) -> Found:
    """Feed the pieces as a session would, until it ends."""
    held, found = b"", Found([], b"", "", 0)
    for piece in pieces:
        held += piece
        while True:
            split = framing.split(held)
            assert split.size == sum(map(len, split.records))
            assert all(0 < len(record) <= framing.max_record_bytes for record in split.records)
            held = held[split.used :]
            found = Found(
                found.records + split.records, found.replies + split.replies, split.ends, found.cuts + split.cuts
            )
            if split.ends:
                return found
            if not split.more:
                break
        assert len(held) <= 2 * framing.max_record_bytes, "what is unfinished is bounded"
    return found


@given(STREAM, CUTS, st.integers(20, 40), st.integers(0, 3))
@example(b"1 syslog 5 abcde\n2 syslog 39 " + b"x" * 39 + b"\n", [5, 9, 10, 11, 12, 16, 17], 20, 1)
@example(b"1 syslog 0\n2 close 0\n", [9, 10, 11, 20], 20, 0)
def test_same_bytes_same_records_and_answers_however_they_are_cut(
    data: bytes, cuts: list[int], largest: int, most: int
) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    framing = Relp(largest, most)
    whole = drain(framing, [data])
    assert drain(framing, [data[a:b] for a, b in pairwise(edges)]) == whole
    assert drain(framing, [bytes([byte]) for byte in data]) == whole


@given(st.lists(SYSLOG), st.integers(64, 80))
def test_every_message_comes_back_and_is_answered_once_in_order(frames: list[bytes], largest: int) -> None:
    found = drain(Relp(largest), [b"".join(frames)])
    numbers = [int(each.split(b" ")[0]) for each in frames]
    records = [re.fullmatch(rb"(?s)\d+ syslog \d+(?: (.*))?\n", each)[1] for each in frames]
    assert found == Found([each for each in records if each], b"".join(map(ok, numbers)), "", 0)


def ok(number: int) -> bytes:
    return b"%d rsp 6 200 OK\n" % number


@given(STREAM)
def test_a_message_is_never_refused(data: bytes) -> None:
    split = Relp(32).split(data)
    refused = set(re.findall(rb"(\d+) rsp 20 500", split.replies))
    assert not refused - set(re.findall(rb"(\d+) (?!syslog)[A-Za-z]+ ", data[: split.used]))


@pytest.mark.parametrize(
    ("data", "records", "replies", "ends", "used"),
    [
        (b"1 syslog 3 abc\n", [b"abc"], ok(1), "", 15),
        (b"1 syslog 3 a\nb\n", [b"a\nb"], ok(1), "", 15),
        (b"1 syslog 0\n", [], ok(1), "", 11),
        (b"007 syslog 1 a\n", [b"a"], b"007 rsp 6 200 OK\n", "", 15),
        (b"999999999 syslog 1 a\n1 syslog 1 b\n", [b"a", b"b"], ok(999_999_999) + ok(1), "", 34),
        (b"3 foo 2 xx\n", [], b"3 rsp 20 500 command disabled\n", "", 11),
        (b"1 syslog 1 a\n2 close 0\n", [b"a"], ok(1) + ok(2) + SERVERCLOSE, "close", 23),
        (b"2 close 0\n3 syslog 1 a\n", [], ok(2) + SERVERCLOSE, "close", 10),
        # the answers to what came before a fault are given
        (b"1 syslog 1 a\n<13>text\n", [b"a"], ok(1), "malformed", 13),
        (b"1 syslog 1 ab", [], b"", "malformed", 0),
        (b"1 syslog -1 a", [], b"", "malformed", 0),
        (b"1 syslog 0 \n", [], b"", "malformed", 0),
        (b"1 syslog 01 a\n", [], b"", "malformed", 0),
        (b"1  syslog 1 a\n", [], b"", "malformed", 0),
        (b"1234567890 syslog 1 a\n", [], b"", "malformed", 0),
        (b"1 " + b"x" * 33, [], b"", "malformed", 0),
        (b"1 syslog 1234567890", [], b"", "malformed", 0),
        # twice the largest record, in all
        (b"1 syslog 114 ", [], b"", "", 0),
        (b"1 syslog 115 ", [], b"", "too_long", 0),
        (b"1 open 999999999 ", [], b"", "too_long", 0),
    ],
)
def test_by_hand_with_records_of_at_most_64_bytes(
    data: bytes, records: list[bytes], replies: bytes, ends: str, used: int
) -> None:
    split = Relp(64).split(data)
    assert (split.records, split.replies, split.ends, split.used) == (records, replies, ends, used)


def test_offers() -> None:
    split = Relp(64).split(frame(1, b"open", b"relp_version=1\nrelp_software=librelp\ncommands=syslog"))
    head, _, offers = split.replies.partition(b"\n")
    assert head.endswith(b" 200 OK")
    assert int(head.split(b" ")[2]) == len(b"200 OK\n" + offers) - 1
    assert offers.splitlines()[0] == b"relp_version=0", "a 1 makes librelp try again for ever"
    assert offers.splitlines()[-1] == b"commands=syslog"


def test_a_long_message_comes_in_two_pieces_and_is_answered_once() -> None:
    data = frame(1, b"syslog", b"x" * 64 + b"y" * 40) + frame(2, b"syslog", b"z")
    assert drain(Relp(64), [data]) == Found([b"x" * 64, b"y" * 40, b"z"], ok(1) + ok(2), "", 1)


def test_a_bound_on_the_frames_of_one_split() -> None:
    data = frame(1, b"syslog", b"a") + frame(2, b"syslog", b"b")
    split = Relp(64, 1).split(data)
    assert (split.records, split.replies, split.more) == ([b"a"], ok(1), True)


def test_who_took_leave() -> None:
    assert took_leave(b"1 syslog 1 a\n2 close 0\n")
    assert not took_leave(b"1 syslog 1 a\n")
    assert not took_leave(b"")
