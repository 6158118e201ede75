"""`syslogger parse`: what records become, on the terminal, before Kafka is given any."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import tzinfo
from typing import BinaryIO

from syslogger.messages import ENCODERS, Parser

_PEER = "stdin"


def parse(lines: Iterable[bytes], output: BinaryIO, value: str, zone: tzinfo) -> int:
    """Write the value of each record, a line each; return the exit status. Empty lines are no records.

    Raises OSError if `output` takes no more.
    """
    parser, encode = Parser(zone), ENCODERS[value]
    for line in lines:
        if record := line.removesuffix(b"\n"):
            (message,) = parser.parse([record], time.time_ns() // 1_000_000, _PEER)
            output.write(encode(message) + b"\n")
            output.flush()
    return 0
