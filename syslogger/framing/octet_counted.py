"""Octet counting: a record is `LEN SP` and LEN bytes (RFC 6587, section 3.4.1).

LEN is decimal, without a leading zero, and at most `max_record_bytes`; it is no part of the record. An empty line
between records is none: some senders end a counted record with LF as well. A count past the end of the stream leaves
a fragment, without the count.

What does not begin so is misframed: a record of everything that stands there before the next LF, whatever looks like
a count and is none included. As a line it is cut at `max_record_bytes`; where the rest would pass for a counted
record, a few bytes sooner, so that none of it is taken for framing. So a count that lies costs the liar the bounds of
its own records, and no byte. One larger than `max_record_bytes` is such a lie: a framing that keeps nothing could
not find the end of what it had begun to deliver.
"""

from __future__ import annotations

import re
from typing import ClassVar

from . import Split

_LF = b"\n"


class OctetCounted:
    """The framing. `max_records` bounds the records of one split; 0 sets no bound."""

    _FIRST: ClassVar[bytes] = rb"[\s\S]"
    """A pattern: the first byte of a counted record."""

    def __init__(self, max_record_bytes: int, max_records: int = 0) -> None:
        self.max_record_bytes = max_record_bytes
        self._max_records = max_records
        self._max_digits = len(str(max_record_bytes))
        # Has a second group if a counted record begins there; matches too where more bytes might make it one.
        self._header = re.compile(rb"([1-9][0-9]{0,%d})(?:\Z| (?:\Z|(%s)))" % (self._max_digits - 1, self._FIRST)).match

    def _is_misframed(self, _line: bytes) -> bool:
        """Whether a record that has no count should have one."""
        return True

    def split(self, data: bytes, *, final: bool = False) -> Split:
        """Cut the complete records from the beginning of `data`."""
        records: list[bytes] = []
        start, size, cuts, fragment, more, misframed = 0, 0, 0, False, False, 0
        length, largest, most, header = len(data), self.max_record_bytes, self._max_records, self._header
        # To match and convert each count takes 420 ns a record; most headers are as wide as the last, and known.
        counts: dict[bytes, int] = {}
        width = 0
        while not most or len(records) < most:
            head = data[start : start + width]
            octets = counts.get(head, 0)
            if not octets and (found := header(data, start)) and found[2] and int(found[1]) <= largest:
                head = found[0]
                width = len(head)
                octets = counts[head] = int(found[1])
            if octets:
                begin = start + len(head) - 1
                end = after = begin + octets
                if end > length:
                    if not final:
                        break
                    end = after = length
                    fragment = True
            else:
                begin = start
                end, after = self._line(data, start, final=final)
                if not after:
                    break
                cuts += end == after < length
                fragment = end == after == length
                misframed += end > start and self._is_misframed(data[start:end])
            if end > begin:
                records.append(data[begin:end])
                size += end - begin
            start = after
        else:
            more = True
        return Split(records, start, size, cuts, fragment, more, misframed)

    def _line(self, data: bytes, start: int, *, final: bool) -> tuple[int, int]:
        """Return where a line ends and where the rest begins: the same if no LF is between; 0, 0 if more must come."""
        reach = start + self.max_record_bytes
        end = data.find(_LF, start, reach + 1)
        if end >= 0:
            return end, end + 1
        if len(data) > reach:
            end = self._cut(data, reach, final=final)
        else:
            end = len(data) if final and start < len(data) else 0
        return end, end

    def _cut(self, data: bytes, reach: int, *, final: bool) -> int:
        """Return where to cut a line that goes on behind `reach`; 0 if more bytes must tell."""
        found = self._header(data, reach)
        if found and not found[2]:
            return reach if final else 0
        cut = reach
        while self._header(data, cut):
            cut -= 1  # until a byte that is no digit is first, or there are too many digits
        return cut
