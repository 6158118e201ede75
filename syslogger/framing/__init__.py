"""What a framing is: bytes in, records out.

Rule 1: a framing does no I/O, never awaits, logs or reads a clock, and keeps nothing between calls.
Rule 2: the same bytes give the same records, however they are cut; no bytes make it raise.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Split(NamedTuple):
    """What a framing found at the beginning of the bytes it was given."""

    records: list[bytes]
    """Complete records, none empty, in order."""
    used: int
    """How many of the bytes those records and their framing took; the rest is not complete yet."""
    size: int
    """The sum of the records' lengths, in bytes."""
    cuts: int
    """How many times a record longer than the largest was cut."""
    fragment: bool
    """Whether the last record is what stood unfinished before the end."""
    more: bool
    """Whether a bound on the records ended it, so that the rest may hold complete ones."""
    misframed: int = 0
    """How many of the records have a count that is none, or none where there must be one."""
    replies: bytes = b""
    """What the peer is to be told once the records are safe, before their bytes are consumed."""
    ends: str = ""
    """Why the session ends here, whatever follows: ``close`` (the peer asked for it), ``malformed``, ``too_long``."""


class Framing(Protocol):
    """How records are told apart in a stream of bytes (RFC 6587, section 3.4)."""

    max_record_bytes: int
    """No record is longer, 64 at least; twice as many bytes always let `split` use some."""

    def split(self, data: bytes, *, final: bool = False) -> Split:
        """Cut what can be cut from the beginning of `data`.

        `final` says that nothing will join these bytes: what is unfinished is a record too.
        """
