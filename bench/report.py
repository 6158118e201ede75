"""Writes the README's performance section anew from the results that are kept.

make bench BENCH="--json bench/results/compare.json --chart bench/results/compare.svg"
make bench BENCH="growth --json bench/results/growth.json --chart bench/results/growth.svg"
python -m bench.report
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.figures import Results, curves, names, refusals, rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BEGIN = "<!-- performance: made by bench.report from bench/results, held by tests/test_bench.py -->"
END = "<!-- end of performance -->"

_BARS = "bench/results/compare.svg"
_GROWTH = "bench/results/growth.svg"
_NONE = "Nothing has been measured yet: `make bench` does it, `make bench QUICK=1` roughly within two minutes."


def section(compared: Results | None, growth: Results | None) -> str:
    """Return the section's text, without its marks; it ends with a newline."""
    if compared is None:
        return _NONE + "\n"
    parts = [_made(compared), _table(compared), _short(compared), f"![CPU and latency of each]({_BARS})"]
    if growth is not None:
        parts += [_growth(growth), f"![How the cost grows]({_GROWTH})"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    how = "one rough round" if results.rounds == 1 else f"{results.rounds} rounds"
    quick = " with less of everything (`QUICK=1`), so roughly" if results.quick else ""
    return (
        f"Measured by `make bench` on {results.date}{quick}: {results.machine}, shared by the load, the "
        f"forwarder and Kafka; {versions}. Medians of {how}, the least and the most in brackets; all forwarders with "
        "`acks=all` and 5 ms to gather a batch in, in turn. A run that lost a message gives no figure. The last "
        "columns: syslogger's median by the best peer's, and what it is to be."
    )


def _table(results: Results) -> str:
    head = ["Work", "Figure", *names(results.works), "By the best peer", "Goal"]
    lines = [head, ["---"] * len(head)]
    title = ""
    for row in rows(results.works):
        goal = row.goal and f"{row.goal}{'' if row.reached is None else ' ✓' if row.reached else ' ✗'}"
        lines.append([row.title if row.title != title else "", row.figure, *row.cells, row.ratio, goal])
        title = row.title
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(results: Results) -> str:
    """Return what falls short, and what gave no figure."""
    found = [
        f"* {row.title}: {row.figure} is to be {row.goal}, and is {row.found}."
        for row in rows(results.works)
        if row.reached is False
    ]
    found += [f"* Refused: {each}." for each in refusals(results.works)]
    return "\n".join(["What falls short:", "", *found]) if found else "Nothing falls short of its goal."


def _growth(results: Results) -> str:
    found = [
        f"{curve.forwarder}'s grows faster than the {curve.axis} from "
        + ", ".join(f"{one:,} to {other:,}" for one, other in steps)
        for curve in curves(results.works)
        if (steps := curve.worse_than_linear())
    ]
    verdict = "; ".join(found) if found else "nowhere does it grow faster than they do"
    return (
        "How the processor time of a message grows with the number of connections (the same 10,000 messages a second "
        f"from all of them together) and with the bytes of a message: {verdict}."
    )


def made_from(folder: Path) -> str:
    """Return the section that the results in a folder give."""
    kept = [folder / "compare.json", folder / "growth.json"]
    compared, growth = (Results.load(path) if path.exists() else None for path in kept)
    return section(compared, growth)


def inserted(readme: str, text: str) -> str:
    """Return a README with this section between its marks; ValueError if it has none."""
    found, count = re.subn(
        re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: f"{BEGIN}\n\n{text}\n{END}", readme, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"The README has no {BEGIN} … {END}")
    return found


def main() -> None:
    """Write the README."""
    path = ROOT / "README.md"
    path.write_text(inserted(path.read_text(), made_from(RESULTS)))


if __name__ == "__main__":
    main()
