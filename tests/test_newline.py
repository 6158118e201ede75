"""The newline framing against its two rules, and against lines written out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syslogger.framing import Split
from syslogger.framing.newline import Newline

LINES = st.lists(st.sampled_from([b"", b"a", b"bc", b"\r", b"\x00\xff", b"0123456789", b"x" * 23]), max_size=12)
STREAM = st.one_of(
    st.binary(max_size=80),
    st.tuples(LINES, st.binary(max_size=12)).map(lambda made: b"\n".join(made[0]) + made[1]),
)


def drain(framing: Newline, pieces: list[bytes]) -> tuple[list[bytes], int, int, int]:
    """Feed the pieces as a connection would; return records, their size, cuts and fragments."""
    records: list[bytes] = []
    held, size, cuts, fragments = b"", 0, 0, 0
    for piece in [*pieces, b""]:
        held += piece
        while True:
            split = framing.split(held, final=piece == b"")
            assert split.size == sum(map(len, split.records))
            assert b"" not in split.records
            records += split.records
            size, cuts, fragments = size + split.size, cuts + split.cuts, fragments + split.fragment
            held = held[split.used :]
            if not split.used:
                break
    assert held == b""
    return records, size, cuts, fragments


def by_the_book(data: bytes, largest: int) -> list[bytes]:
    return [line[at : at + largest] for line in data.split(b"\n") for at in range(0, len(line), largest)]


@given(STREAM, st.lists(st.integers(0, 80)), st.integers(1, 20), st.integers(0, 3))
@example(b"0123\n", [4], 4, 0)
@example(b"01234\n\n", [4, 5, 6], 4, 1)
def test_same_bytes_same_records_however_they_are_cut(data: bytes, cuts: list[int], largest: int, most: int) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    framing = Newline(largest, most)
    whole = drain(framing, [data] if data else [])
    assert drain(framing, pieces) == whole
    assert whole[0] == by_the_book(data, largest)


@given(STREAM, st.integers(1, 20), st.booleans())
def test_more_than_the_largest_record_is_never_left(data: bytes, largest: int, final: bool) -> None:
    split = Newline(largest).split(data, final=final)
    assert len(data) - split.used <= (0 if final else largest)


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
        (b"123456789\n", False, Split([b"12345678", b"9"], 10, 9, 1, False, False)),
        (b"123456789abcdefgh", True, Split([b"12345678", b"9abcdefg", b"h"], 17, 17, 2, True, False)),
    ],
)
def test_by_hand_with_records_of_at_most_eight_bytes(data: bytes, final: bool, expected: Split) -> None:
    assert Newline(8).split(data, final=final) == expected


def test_a_bound_on_the_records_of_one_split() -> None:
    assert Newline(8, 2).split(b"a\n\nb\nc\n") == Split([b"a", b"b"], 5, 2, 0, False, True)
    assert Newline(8, 1).split(b"123456789") == Split([b"12345678"], 8, 8, 1, False, True)
