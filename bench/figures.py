"""What was measured: figures of runs, what they come to, and whether they reach their goals. Nothing here measures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.works import OURS, Figure, Goal

UNITS: dict[Figure, str] = {
    "cpu": "CPU-seconds per million messages",
    "rate": "messages a second",
    "rss": "memory (RSS, peak), MB",
    "p50": "latency, half, ms",
    "p99": "latency, 99 %, ms",
    "p999": "latency, 99.9 %, ms",
    "growth": "memory grown in that time, MB",
    "ready": "until ready, s",
    "help": "`--help`, s",
}

_MORE_IS_BETTER = ("rate",)


@dataclass
class Runs:
    """One forwarder's runs of one work."""

    runs: list[dict[Figure, float]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Why runs gave no figures: they lost something, or were no fair measurement."""

    def values(self, figure: Figure) -> list[float]:
        """Return the figure of each run that has it."""
        return [run[figure] for run in self.runs if figure in run]

    def median(self, figure: Figure) -> float | None:
        """Return the median; None if there is no figure."""
        values = self.values(figure)
        return statistics.median(values) if values else None


@dataclass
class Compared:
    """All runs of one work, by forwarder."""

    name: str
    title: str
    goals: list[Goal] = field(default_factory=list)
    forwarders: dict[str, Runs] = field(default_factory=dict)

    def figures(self) -> list[Figure]:
        """Return what was measured of anybody, in the usual order."""
        return [figure for figure in UNITS if any(runs.values(figure) for runs in self.forwarders.values())]

    def best_peer(self, figure: Figure) -> float | None:
        """Return the best median among our peers; None if there is none."""
        medians = [runs.median(figure) for name, runs in self.forwarders.items() if name != OURS]
        found = [median for median in medians if median is not None]
        if not found:
            return None
        return max(found) if figure in _MORE_IS_BETTER else min(found)

    def ratio(self, figure: Figure) -> float | None:
        """Return our median by the best peer's; None without both."""
        ours, best = self._ours(figure), self.best_peer(figure)
        return ours / best if ours is not None and best else None

    def _ours(self, figure: Figure) -> float | None:
        return self.forwarders[OURS].median(figure) if OURS in self.forwarders else None

    def found(self, goal: Goal) -> float | None:
        """Return what a goal bounds, of our median; None if there is none."""
        ours, best = self._ours(goal.figure), self.best_peer(goal.figure)
        if ours is None or goal.against == "value":
            return ours
        if best is None:
            return None
        return ours / (best or 1.0) if goal.against == "ratio to the best peer" else ours - best

    def reached(self, goal: Goal) -> bool | None:
        """Return whether our median reaches a goal; None if that cannot be said."""
        found = self.found(goal)
        if found is None:
            return None
        return found >= goal.bound if goal.figure in _MORE_IS_BETTER else found <= goal.bound


@dataclass
class Results:
    """One run of the benchmark."""

    date: str
    machine: str
    versions: dict[str, str]
    rounds: int
    quick: bool
    works: list[Compared]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote; raises msgspec.ValidationError if it is not that."""
        return msgspec.json.decode(path.read_bytes(), type=cls)


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the least value that at least this `share` of the `ordered` values do not exceed."""
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def shown(value: float) -> str:
    """Return a figure as people read it: three digits of it."""
    if abs(value) >= 100:  # noqa: PLR2004 - the three digits
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"  # noqa: PLR2004 - as above


def spread(values: Sequence[float]) -> str:
    """Return the median, and the least and the most where there are several."""
    if not values:
        return "–"
    median = shown(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({shown(min(values))}–{shown(max(values))})"


def said(goal: Goal) -> str:
    """Return a goal in short."""
    sign = "≥" if goal.figure in _MORE_IS_BETTER else "≤"
    match goal.against:
        case "ratio to the best peer":
            return f"{sign} {goal.bound:.1f} ×"
        case "more than the best peer":
            return f"{sign} +{goal.bound:g}"
        case _:
            return f"{sign} {goal.bound:g}"


@dataclass
class Row:
    """One line of the table: a figure of a work."""

    title: str
    figure: str
    cells: list[str]
    """Of every forwarder, in the order of `names`."""
    ratio: str
    goal: str
    found: str
    """What the goal bounds, in its terms."""
    reached: bool | None


def names(works: Sequence[Compared]) -> list[str]:
    """Return all forwarders, ours first."""
    found = {name: None for work in works for name in work.forwarders}
    return sorted(found, key=lambda name: name != OURS)


def rows(works: Sequence[Compared]) -> Iterator[Row]:
    """Yield the table."""
    forwarders = names(works)
    for work in works:
        goals = {goal.figure: goal for goal in work.goals}
        for figure in work.figures():
            runs = [work.forwarders.get(name, Runs()) for name in forwarders]
            ratio, goal = work.ratio(figure), goals.get(figure)
            yield Row(
                work.title,
                UNITS[figure],
                [spread(each.values(figure)) for each in runs],
                "" if ratio is None else f"{ratio:.2f}",
                said(goal) if goal else "",
                _found(work, goal) if goal else "",
                work.reached(goal) if goal else None,
            )


def _found(work: Compared, goal: Goal) -> str:
    found = work.found(goal)
    if found is None:
        return ""
    return {"ratio to the best peer": f"{found:.2f} ×", "more than the best peer": f"{found:+.1f}"}.get(
        goal.against, f"{found:g}"
    )


def refusals(works: Sequence[Compared]) -> list[str]:
    """Return a sentence for each run that gave no figure."""
    return [
        f"{work.title}: {name}: {reason}"
        for work in works
        for name, runs in work.forwarders.items()
        for reason in runs.refused
    ]


def table(works: Sequence[Compared]) -> str:
    """Return the table for a terminal: medians (least–most), and our ratio to the best peer."""
    head = ["", *names(works), "ratio", "goal"]
    lines: list[list[str]] = []
    title = ""
    for row in rows(works):
        if row.title != title:
            title = row.title
            lines += [[""], [title]]
        goal = row.goal and f"{row.goal} {'' if row.reached is None else 'met' if row.reached else 'MISSED'}"
        lines.append([f"  {row.figure}", *row.cells, row.ratio, goal])
    widths = [max((len(line[at]) for line in [head, *lines] if len(line) > 1), default=0) for at in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip()
        for line in [head, *lines]
    ]
    return "\n".join([*text, *(f"REFUSED  {each}" for each in refusals(works))])


@dataclass(frozen=True)
class Curve:
    """How one forwarder's cost grows with something: (how much of it, CPU-microseconds per message), rising."""

    axis: str
    forwarder: str
    points: tuple[tuple[int, float], ...]

    def worse_than_linear(self) -> list[tuple[int, int]]:
        """Return the steps over which the cost grew more than the thing itself, by over a tenth."""
        return [
            (one[0], other[0])
            for one, other in zip(self.points, self.points[1:], strict=False)
            if other[1] / one[1] > 1.1 * other[0] / one[0]
        ]


def curves(works: Sequence[Compared]) -> list[Curve]:
    """Return the curves of works whose names are like `100-connections` and `50-bytes`."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for work in works:
        amount, _, axis = work.name.partition("-")
        for name, runs in work.forwarders.items() if amount.isdigit() else ():
            median = runs.median("cpu")
            if median is not None:
                found.setdefault((axis, name), []).append((int(amount), median))
    return [Curve(axis, name, tuple(sorted(points))) for (axis, name), points in found.items()]
