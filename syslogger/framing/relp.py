"""RELP, as librelp speaks it: frames `TXNR SP COMMAND SP DATALEN [SP DATA] LF`, each answered by its number.

A `syslog` frame is a record, its DATA. Its answer says that the record is safe, so whoever splits writes the replies
only after the sink has acknowledged the records; the peer sends again what was not answered. Each frame stands for
itself: a session's `open` changes nothing, and what is left unconsumed can be split by another process.

The answer to a `syslog` is 200 or none, never 500: on a 500 librelp destroys the message. So where a frame is none
(`malformed`) or too long to be seen whole (`too_long`: over twice `max_record_bytes`) the session ends instead. Up to
that a record longer than `max_record_bytes` is delivered in two pieces and answered once.
"""

from __future__ import annotations

import re

from syslogger import __version__

from . import Split

SERVERCLOSE = b"0 serverclose 0\n"
"""Tells the peer that the session ends here. It opens another and sends again what was not answered."""

_OFFERS = b"200 OK\nrelp_version=0\nrelp_software=syslogger,%s\ncommands=syslog" % __version__.encode()
"""A `relp_version` of 1 would make librelp try again for ever."""

_OK = b" rsp 6 200 OK\n"

_LF = 0x0A

_syslog = re.compile(rb"([0-9]{1,9}) syslog ([1-9][0-9]{0,8}) ").match
"""What nearly every frame begins with; to ask for this first takes half the time."""

_header = re.compile(rb"([0-9]{1,9}) ([A-Za-z]{1,32}) (?:([1-9][0-9]{0,8}) |0(?=\n))").match
_begins_like_a_header = re.compile(
    rb"[0-9]{0,9}(?:\Z|(?<=[0-9]) [A-Za-z]{0,32}(?:\Z|(?<=[A-Za-z]) (?:0|[1-9][0-9]{0,8})?\Z))"
).match


class Relp:
    """The framing. `max_records` bounds the frames of one split; 0 sets no bound."""

    def __init__(self, max_record_bytes: int, max_records: int = 0) -> None:
        self.max_record_bytes = max_record_bytes
        self._max_records = max_records

    def split(self, data: bytes, *, final: bool = False) -> Split:  # noqa: ARG002 - what is unfinished comes again
        """Cut the complete frames from the beginning of `data`; see `Split.replies` and `Split.ends`."""
        records: list[bytes] = []
        replies: list[bytes] = []
        start, cuts, ends = 0, 0, ""
        length, largest, most = len(data), self.max_record_bytes, self._max_records
        while not (more := bool(most) and len(replies) >= most):
            found = _syslog(data, start)
            if found:
                number, digits = found.groups()
                command = b"syslog"
            elif found := _header(data, start):
                number, command, digits = found.groups(b"0")
            else:
                ends = "" if _begins_like_a_header(data, start) else "malformed"
                break
            begin = found.end()
            end = begin + int(digits)
            if end - start >= 2 * largest:
                ends = "too_long"
            elif end < length and data[end] != _LF:
                ends = "malformed"
            if ends or end >= length:
                break
            start = end + 1
            if command != b"syslog":
                replies.append(_reply(number, command))
                if command == b"close":
                    ends = "close"
                    break
                continue
            replies.append(number + _OK)
            if end - begin > largest:
                records += (data[begin : begin + largest], data[begin + largest : end])
                cuts += 1
            elif digits != b"0":
                records.append(data[begin:end])
        size = sum(map(len, records))
        return Split(records, start, size, cuts, fragment=False, more=more, replies=b"".join(replies), ends=ends)


def _reply(number: bytes, command: bytes) -> bytes:
    """Return what answers a frame that is no `syslog`."""
    if command == b"open":
        return b"%s rsp %d %s\n" % (number, len(_OFFERS), _OFFERS)
    if command == b"close":
        return number + _OK + SERVERCLOSE
    return number + b" rsp 20 500 command disabled\n"


def took_leave(data: bytes) -> bool:
    """Whether `data` ends with a `close`: its sender will not send again what stands before it."""
    return data.endswith(b" close 0\n")
