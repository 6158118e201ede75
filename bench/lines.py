"""The messages that are sent: rendered beforehand, each with its number at its end.

A line ends in ` #` and nine digits, then LF; where the latency is measured, the time of sending stands before them, as
` @` and nineteen digits, nanoseconds of the monotonic clock. Fixed places from the end: a topic of a million lines is
read back and checked in seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

PRIME = b"<13>Nov 21 08:00:00 web1 bench[4711]: the first line opens the way to Kafka"
"""Sent alone before the measurement; not counted."""

_NUMBER = b" #%09d\n"
_TIMED = b" @%019d #%09d\n"
_HEAD = b"<13>Nov 21 08:00:00 web1 bench[4711]: "
SHORTEST_BYTES = len(_HEAD) + len(_NUMBER % 0)
SHORTEST_TIMED_BYTES = len(_HEAD) + len(_TIMED % (0, 0))


def number(line: bytes) -> int:
    """Return the number of a line without its LF; -1 if it has none."""
    digits = line[-9:]
    return int(digits) if line[-11:-9] == b" #" and digits.isdigit() else -1


def sent_at(line: bytes) -> int:
    """Return when a timed line was sent, in nanoseconds; raises ValueError for any other line."""
    return int(line[-30:-11])


def fixed(size: int) -> Callable[[int], bytes]:
    """Return what renders a line of `size` bytes with its LF, at least `SHORTEST_BYTES`."""
    body = _HEAD.ljust(size - len(_NUMBER % 0), b"x")
    return lambda each: body + _NUMBER % each


def timed(size: int) -> Callable[[int, int], bytes]:
    """Return what renders a line of `size` bytes from its time and number."""
    body = _HEAD.ljust(size - len(_TIMED % (0, 0)), b"x")
    return lambda time_ns, each: body + _TIMED % (time_ns, each)


def mixed() -> Callable[[int], bytes]:
    """Return what renders lines as a mixed fleet writes them, 60 to 1,500 bytes with the LF.

    They repeat after 20,011, which is more than any forwarder compresses at a time.
    """
    chance = random.Random(4711)  # noqa: S311 - the same lines every time
    bodies = [_real(chance) for _ in range(20_011)]
    count = len(bodies)
    return lambda each: bodies[each % count] + _NUMBER % each


def render(path: Path, line: Callable[[int], bytes], count: int) -> None:
    """Write the lines 0 to `count` into a file."""
    with path.open("wb") as file:
        for begin in range(0, count, 50_000):
            file.write(b"".join(map(line, range(begin, min(count, begin + 50_000)))))


def _real(chance: random.Random) -> bytes:
    host = f"{chance.choice(['web', 'db', 'cache', 'mail', 'k8s-node'])}{chance.randrange(40)}"
    when = f"Nov 21 {chance.randrange(24):02}:{chance.randrange(60):02}:{chance.randrange(60):02}"
    address = ".".join(str(chance.randrange(1, 255)) for _ in range(4))
    path = "/".join(chance.choice(_WORDS) for _ in range(chance.randrange(2, 6)))
    token = f"{chance.getrandbits(128):032x}"
    pid = chance.randrange(300, 99_999)
    agent = (
        f"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.{chance.randrange(40)} Chrome/1{chance.randrange(40)}.0.0.0"
    )
    kind = chance.choices(range(6), (22, 34, 18, 12, 9, 5))[0]
    if kind == 0:
        what = f"<86>{when} {host} sshd[{pid}]: Accepted publickey for deploy from {address} port {pid}"
    elif kind == 1:
        what = (
            f'<134>{when} {host} nginx: {address} - - "GET /{path}?id={token[:12]} HTTP/1.1" 200 '
            f'{chance.randrange(200, 90_000)} "https://www.example.net/{path}" "{agent}" {chance.random():.3f}'
        )
    elif kind == 2:  # noqa: PLR2004 - one of the six
        what = f"<30>{when} {host} systemd[1]: {chance.choice(_WORDS)}: Deactivated."
    elif kind == 3:  # noqa: PLR2004
        what = (
            f'<14>{when} {host} api[{pid}]: {{"level":"info","trace":"{token}","path":"/{path}","peer":"{address}",'
            f'"ms":{chance.random() * 300:.2f},"text":"{" ".join(chance.choices(_WORDS, k=chance.randrange(8, 40)))}"}}'
        )
    elif kind == 4:  # noqa: PLR2004
        columns = ", ".join(chance.choices(_WORDS, k=chance.randrange(6, 60)))
        what = (
            f"<148>{when} {host} postgres[{pid}]: duration: {chance.random() * 9000:.3f} ms  statement: "
            f"EXECUTE find_{chance.choice(_WORDS)}({columns}, '{token}')"
        )
    else:
        frames = " ".join(
            f"at net.example.{chance.choice(_WORDS)}.{chance.choice(_WORDS).title()}({chance.randrange(900)})"
            for _ in range(chance.randrange(8, 46))
        )
        what = f"<11>{when} {host} shop[{pid}]: java.lang.IllegalStateException: {token} {frames}"
    return what.encode().ljust(60 - len(_NUMBER % 0), b".")[: 1500 - len(_NUMBER % 0)]


_WORDS = """account address agent archive basket batch billing cache cart catalog channel check client cluster command
config connection consumer counter customer delivery device discount document event export feature filter gateway group
handler image index inventory invoice item job journal label ledger limit listing login market member message metric
network notice object offer order owner partition payment pool price product profile purchase queue quota record refund
region report request resource result review route schedule search section segment server service session setting shard
shipping signal snapshot source status stock storage store stream subject supplier support table task template tenant
ticket token topic total tracking transfer update upload user value version vendor volume warehouse window worker
""".split()  # noqa: SIM905 - reads better
