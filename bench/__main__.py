"""Compares syslogger with other forwarders: the same lines, the same Kafka, one after the other.

    make bench                      everything; some half an hour
    make bench QUICK=1              a rough answer within two minutes
    make bench BENCH="--work one-connection --rounds 3 --json FILE --chart FILE.svg"
    make bench BENCH=growth         how the cost grows with the connections, and with the size of a message

The forwarders take turns, and each round begins with another one. Of a run that lost a message there is no figure.
The exit status is 1 if there was such a run, and 2 if something is missing on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import itertools
import os
import platform
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bench import figures, measure, peers, works
from bench.figures import Compared, Results, Runs
from bench.peers import Peer
from bench.progress import Bar
from bench.works import OURS, Outage, Paced, Starts, Work
from tests.system.cluster import Cluster
from tests.system.parts import JARS, Kafka43, missing

_QUICK_SECONDS = 85
"""No step begins later than this: the last one, and the end, still fit into two minutes."""

_AROUND_SECONDS = 4.0
"""What a run takes beside its load: topic, start, connections, counting."""


def main() -> int:
    """Measure, print, write."""
    line = _line()
    chosen = _works(line)
    forwarders = _forwarders(line)
    if lacking := [*missing(), *([] if forwarders else ["forwarder to measure"])]:
        print(f"This machine has no {', no '.join(lacking)}.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = Results(
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        machine=_machine(),
        versions={name: forwarder.version() for name, forwarder in forwarders.items()} | _around(),
        rounds=line.rounds,
        quick=line.quick,
        works=[Compared(work.name, work.title, list(work.goals)) for work in chosen],
    )
    interrupted = False
    try:
        with tempfile.TemporaryDirectory(prefix="syslogger-bench-", ignore_cleanup_errors=True) as scratch:
            _measure(chosen, forwarders, results, line, Path(scratch))
    except KeyboardInterrupt:
        interrupted = True
        print("Interrupted; what was measured so far:", file=sys.stderr)
    finally:
        measure.end_all()
    results.works = [work for work in results.works if work.forwarders]
    print(figures.table(results.works))
    _growing(results)
    if line.json:
        results.save(Path(line.json))
    if line.chart and results.works:
        from bench import chart  # noqa: PLC0415 - slow to import, and not always wanted

        (chart.growth if line.what == "growth" else chart.bars)(results.works, Path(line.chart))
    if interrupted:
        return 130
    return 1 if figures.refusals(results.works) else 0


def _line() -> argparse.Namespace:
    usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=usage[0],
        epilog=usage[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", choices=("compare", "growth"), default="compare")
    parser.add_argument("--work", action="append", help="only this work; may be given several times")
    parser.add_argument("--peer", action="append", help="only this forwarder and syslogger; as above")
    parser.add_argument("--rounds", type=int, help="how often each does each (5; quickly and for growth, 3)")
    parser.add_argument("--quick", action="store_true", help="less of everything; at most two minutes")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--chart", metavar="FILE", help="draw a chart, .svg or .png")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the messages and the time, as in 0.01")
    line = parser.parse_args()
    line.rounds = line.rounds or (3 if line.quick or line.what == "growth" else 5)
    return line


def _works(line: argparse.Namespace) -> tuple[Work, ...]:
    known = works.WORKS if line.what == "compare" else works.GROWTH_CONNECTIONS + works.GROWTH_SIZES
    names = {work.name for work in known}
    if wrong := [name for name in line.work or () if name not in names]:
        sys.exit(f"No work is called {wrong[0]}; there are {', '.join(work.name for work in known)}.")
    chosen = works.quick(known) if line.quick else known
    if line.work:
        chosen = tuple(work for work in known if work.name in line.work)
        chosen = tuple(replace(work, load=work.quick) if line.quick and work.quick else work for work in chosen)
    return tuple(works.scaled(work, line.scale) for work in chosen)


def _forwarders(line: argparse.Namespace) -> dict[str, type[Peer]]:
    """Return those that were asked for, or all that this machine can run."""
    known = peers.load()
    wanted = line.peer or (["rsyslog"] if line.what == "growth" else [])
    if wrong := [name for name in wanted if name not in known]:
        sys.exit(f"No forwarder is called {wrong[0]}; there are {', '.join(known)}.")
    found = {}
    for name, forwarder in known.items():
        if wanted and name not in wanted and name != OURS:
            continue
        if lacking := forwarder.missing():
            print(f"{name} is left out: it needs {lacking}.", file=sys.stderr)
        else:
            found[name] = forwarder
    return found


def _measure(
    chosen: Sequence[Work], forwarders: dict[str, type[Peer]], results: Results, line: argparse.Namespace, scratch: Path
) -> None:
    """Run everything, filling in the results."""
    begun, compared = time.monotonic(), {work.name: work for work in results.works}
    steps = [(work, number) for number in range(line.rounds) for work in chosen if _takes_part(work, number)]
    each = {work.name: _seconds(work, len(_who(work, forwarders))) for work, _ in steps}
    with Bar(sum(each[work.name] for work, _ in steps)) as bar:
        for key in dict.fromkeys(work.key for work in chosen):
            bar.now("starts Kafka")
            with _kafka(key, scratch) as kafka:
                if not key[1]:
                    bar.now("warms Kafka up")
                    _warm_up(forwarders[OURS], kafka, scratch, times=1 if line.quick else 3)
                for work, number in steps:
                    if work.key != key:
                        continue
                    if line.quick and number and time.monotonic() - begun > _QUICK_SECONDS:
                        bar.say(f"Round {number + 1} of {work.name} is left out: the two minutes are over.")
                        continue
                    _round(
                        work,
                        number,
                        forwarders=forwarders,
                        kafka=kafka,
                        compared=compared[work.name],
                        bar=bar,
                        scratch=scratch,
                    )
        for path in scratch.glob("*.lines"):
            path.unlink()


def _warm_up(forwarder: type[Peer], kafka: Kafka43 | Cluster, scratch: Path, *, times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(measure.Refused):  # if something is wrong, the measurement will say so
            measure.run(works.WARM_UP, forwarder, kafka, scratch / f"warm-{next(_serial)}", scratch / "warm-up.lines")


def _takes_part(work: Work, number: int) -> bool:
    return number == 0 or not isinstance(work.load, Outage)  # its figures hardly differ, and it takes long


def _who(work: Work, forwarders: dict[str, type[Peer]]) -> list[str]:
    if work.ours_alone:
        return [OURS]
    return [name for name, forwarder in forwarders.items() if work.protocol in forwarder.protocols]


def _round(
    work: Work,
    number: int,
    *,
    forwarders: dict[str, type[Peer]],
    kafka: Kafka43 | Cluster,
    compared: Compared,
    bar: Bar,
    scratch: Path,
) -> None:
    """Let each forwarder do the work once, beginning with another one each time."""
    names = _who(work, forwarders)
    turn = number % len(names)
    for name in names[turn:] + names[:turn]:
        bar.now(f"{work.name}, round {number + 1}, {name}")
        runs = compared.forwarders.setdefault(name, Runs())
        directory = scratch / f"{name}-{next(_serial)}"
        try:
            found = measure.run(work, forwarders[name], kafka, directory, scratch / f"{work.name}.lines")
        except measure.Refused as reason:
            runs.refused.append(str(reason).partition("\n")[0])
            bar.say(f"{work.name}, round {number + 1}, {name}: REFUSED: {reason}")
        else:
            runs.runs.append(found)
            bar.say(
                f"{work.name}, round {number + 1}, {name}: "
                + ", ".join(f"{figure} {figures.shown(value)}" for figure, value in found.items())
            )
        bar.advance(_seconds(work, 1))


_serial = itertools.count()


@contextlib.contextmanager
def _kafka(key: tuple[int, bool], scratch: Path) -> Iterator[Kafka43 | Cluster]:
    """Run the cluster that works of this key share: one broker 4.3.0, or three 3.9.2."""
    directory = scratch / f"kafka-{next(_serial)}"
    cluster = Kafka43(directory) if key[0] == 1 else Cluster(directory)
    with cluster:
        yield cluster


def _seconds(work: Work, forwarders: int) -> float:
    """Return about how long a round takes, for the bar."""
    match work.load:
        case Outage(burst, seconds):
            return seconds + _AROUND_SECONDS + burst.messages / 50_000
        case Starts(times):
            return times * 1.5
        case Paced(seconds=seconds):
            return forwarders * (seconds + _AROUND_SECONDS)
        case burst:
            return forwarders * (burst.messages / 150_000 + _AROUND_SECONDS)


def _machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = model[1].strip() if model else platform.machine()
    return f"{os.cpu_count()} × {processor}, {memory:.0f} GiB, Linux {platform.release().partition('-')[0]}"


def _around() -> dict[str, str]:
    return {"Python": platform.python_version(), "Kafka": " and ".join(sorted(JARS, reverse=True))}


def _growing(results: Results) -> None:
    for curve in figures.curves(results.works):
        steps = curve.worse_than_linear()
        said = ", ".join(f"{one:,} to {other:,}" for one, other in steps) or "nowhere"
        print(f"{curve.forwarder}: CPU per message grows faster than the {curve.axis}: {said}")


if __name__ == "__main__":
    sys.exit(main())
