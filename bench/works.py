"""What the forwarders are put to, and what the figures must reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bench.lines import SHORTEST_TIMED_BYTES

OURS = "syslogger"
"""Whom the others are peers of."""

Figure = Literal["cpu", "rate", "rss", "p50", "p99", "p999", "growth", "ready", "help"]

Protocol = Literal["syslog", "relp"]
"""How the lines are sent: each with its LF, or in RELP's frames, with a window of them unanswered."""

Against = Literal["ratio to the best peer", "more than the best peer", "value"]


@dataclass(frozen=True)
class Goal:
    """A bound for one of our figures, or for what it is beside the best peer's; the bound itself is good."""

    figure: Figure
    against: Against
    bound: float
    """The most it may be; for `rate`, the least."""


@dataclass(frozen=True)
class Burst:
    """So many messages, shared out among the connections, as fast as they are taken."""

    messages: int
    connections: int = 1
    size: int = 156
    """Bytes with the LF; 0 for real log lines of 60 to 1,500 bytes."""


@dataclass(frozen=True)
class Paced:
    """Single messages at a steady pace, round the connections, each a `send` of its own that carries its time."""

    connections: int
    per_second: int
    seconds: float
    size: int = 156

    def __post_init__(self) -> None:
        if self.size < SHORTEST_TIMED_BYTES:
            raise ValueError(f"A timed message has at least {SHORTEST_TIMED_BYTES} bytes, not {self.size}.")

    @property
    def messages(self) -> int:
        """How many are sent in all."""
        return round(self.per_second * self.seconds)


@dataclass(frozen=True)
class Outage:
    """A burst that meets a dead Kafka for so many seconds: every buffer on the way is full. Then Kafka comes back."""

    burst: Burst
    seconds: float


@dataclass(frozen=True)
class Starts:
    """So many starts, until it is ready, and as many `--help`s."""

    times: int


@dataclass(frozen=True)
class Work:
    """One comparison: a load, the cluster it ends in, and what must be reached."""

    name: str
    title: str
    load: Burst | Paced | Outage | Starts
    goals: tuple[Goal, ...]
    quick: Burst | Paced | Outage | Starts | None = None
    """The load instead, when a rough answer is wanted at once; None leaves it out."""
    brokers: int = 1
    partitions: int = 1
    compression: str = "none"
    protocol: Protocol = "syslog"
    """Other than `syslog` only for a burst."""

    @property
    def ours_alone(self) -> bool:
        """Whether no peer takes part."""
        return isinstance(self.load, Outage | Starts)

    @property
    def key(self) -> tuple[int, bool]:
        """Works of the same key share a cluster."""
        return self.brokers, isinstance(self.load, Outage)


def _most(figure: Figure, bound: float) -> Goal:
    return Goal(figure, "ratio to the best peer", bound)


WORKS = (
    Work(
        "one-connection",
        "One connection, 156-byte messages at full speed",
        Burst(1_000_000),
        (_most("cpu", 0.4), _most("rate", 1.0)),
        quick=Burst(200_000),
    ),
    Work(
        "mixed-lines",
        "One connection, real log lines of 60 to 1,500 bytes at full speed",
        Burst(500_000, size=0),
        (_most("cpu", 0.4),),
        quick=Burst(100_000, size=0),
    ),
    Work(
        "zstd",
        "The same lines, compressed with zstd",
        Burst(500_000, size=0),
        (_most("cpu", 0.6),),
        compression="zstd",
    ),
    Work(
        "many-busy",
        "1,000 connections, together 20,000 single messages a second",
        Paced(1000, 20_000, 10),
        (_most("cpu", 1.0),),
    ),
    Work(
        "many-quiet",
        "1,000 connections, together 2,000 single messages a second",
        Paced(1000, 2000, 15),
        (_most("cpu", 1.0),),
    ),
    Work(
        "hundred",
        "100 connections, together 10,000 single messages a second",
        Paced(100, 10_000, 10),
        (_most("cpu", 1.0), Goal("p99", "more than the best peer", 1.0)),
        quick=Paced(100, 10_000, 2),
    ),
    Work(
        "cluster",
        "8 connections at full speed, 8 partitions on 3 brokers",
        Burst(800_000, connections=8),
        (_most("rate", 1.0), _most("cpu", 0.5)),
        brokers=3,
        partitions=8,
    ),
    Work(
        "relp",
        "RELP, 8 sessions with 128 unanswered messages each, at full speed (only syslogger answers after Kafka)",
        Burst(400_000, connections=8),
        (),
        quick=Burst(100_000, connections=8),
        protocol="relp",
    ),
    Work(
        "outage",
        "1,000 connections with full buffers, Kafka down for 5 minutes",
        Outage(Burst(4_000_000, connections=1000), 300),
        (Goal("rss", "value", 64.0), Goal("growth", "value", 1.0)),
    ),
    Work(
        "start",
        "From the start until it is ready, and `--help`",
        Starts(5),
        (Goal("ready", "value", 1.0), Goal("help", "value", 0.3)),
        quick=Starts(2),
    ),
)


WARM_UP = Work("warm-up", "", Burst(200_000, connections=8), (), partitions=8)
"""What Kafka is given before anything is measured: a Java program is slow at first."""


def quick(works: tuple[Work, ...]) -> tuple[Work, ...]:
    """Return the works that have a quick load, with it."""
    return tuple(replace(work, load=work.quick) for work in works if work.quick)


# Messages of one size, by connections; and as many bytes on one connection, by the size of a message.

GROWTH_CONNECTIONS = tuple(
    Work(f"{count}-connections", f"{count:,} connections", Paced(count, 10_000, 10), (), quick=Paced(count, 10_000, 2))
    for count in (1, 10, 100, 1000, 5000)
)
GROWTH_SIZES = tuple(
    Work(
        f"{size}-bytes",
        f"{size:,}-byte messages",
        Burst(min(1_000_000, 200_000_000 // size), size=size),
        (),
        quick=Burst(min(100_000, 20_000_000 // size), size=size),
    )
    for size in (50, 156, 500, 1500, 4096, 16_384, 65_536)
)


def scaled(work: Work, times: float) -> Work:
    """Return a work with so many times the messages, or the seconds of a paced load; for trying the benchmark out."""
    load = work.load
    match load:
        case Burst():
            load = replace(load, messages=max(load.connections, round(load.messages * times)))
        case Paced():
            load = replace(load, seconds=max(0.5, load.seconds * times))
        case Outage():
            load = replace(load, seconds=max(5.0, load.seconds * times))
        case Starts():
            load = replace(load, times=max(1, round(load.times * times)))
    return replace(work, load=load)
