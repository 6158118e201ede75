"""Charts of the results, as SVG or PNG, by the ending of the file's name; the same results give the same SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

from bench.figures import UNITS, Compared, Curve, curves, names, shown
from bench.works import OURS, Figure

mpl.use("Agg")
mpl.rcParams.update({"svg.hashsalt": "syslogger", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

from matplotlib import pyplot as plt  # noqa: E402 - after the choice above
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure as Picture  # noqa: E402

_COLOURS = {OURS: "#0b6e4f", "rsyslog": "#8d99ae", "syslog-ng": "#c9ada7", "vector": "#e0b36a"}


def _save(picture: Picture, path: Path) -> None:
    picture.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(picture)


def bars(works: Sequence[Compared], path: Path) -> None:
    """Draw the processor time and the latency of every work that several forwarders did."""
    both = [work for work in works if len(work.forwarders) > 1 or "cpu" in work.figures()]
    panels: list[tuple[Figure, list[Compared]]] = [
        (figure, chosen) for figure in ("cpu", "p99") if (chosen := [work for work in both if figure in work.figures()])
    ]
    if not panels:
        return
    heights = [len(chosen) * (len(names(both)) + 1) for _, chosen in panels]
    picture, axes = plt.subplots(
        len(panels),
        figsize=(8, 0.19 * sum(heights) + 1.2 * len(panels)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, (figure, chosen) in zip(axes[:, 0], panels, strict=True):
        _bars(axis, figure, chosen, names(both))
    picture.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=9)
    _save(picture, path)


def _bars(axis: Axes, figure: Figure, works: Sequence[Compared], forwarders: Sequence[str]) -> None:
    thick = 1 / (len(forwarders) + 1)
    for index, name in enumerate(forwarders):
        medians = [work.forwarders[name].median(figure) if name in work.forwarders else None for work in works]
        by = [work.best_peer(figure) or work.forwarders[OURS].median(figure) or 1.0 for work in works]
        places = [at + index * thick for at in range(len(works))]
        drawn = axis.barh(
            places,
            [(each or 0.0) / one for each, one in zip(medians, by, strict=True)],
            thick * 0.9,
            label=name,
            color=_COLOURS.get(name, "#555555"),
        )
        axis.bar_label(drawn, ["" if each is None else shown(each) for each in medians], padding=2, fontsize=8)
    axis.set_yticks(
        [at + thick * (len(forwarders) - 1) / 2 for at in range(len(works))], [_two(w.title) for w in works]
    )
    axis.invert_yaxis()
    axis.axvline(1.0, color="#333333", linewidth=0.8, linestyle=":")
    axis.set_title(f"{UNITS[figure]} (bars: best peer = 1)", loc="left")
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.12)


def _two(title: str) -> str:
    """Return a title on lines that fit beside the bars."""
    return "\n".join(textwrap.wrap(title, 36))


_AXES = {"connections": "connections, together 10,000 messages a second", "bytes": "bytes of a message, one connection"}


def growth(works: Sequence[Compared], path: Path) -> None:
    """Draw CPU per message against connections, and against the size of a message."""
    found = curves(works)
    axes = [axis for axis in _AXES if any(curve.axis == axis for curve in found)]
    if not axes:
        return
    picture, places = plt.subplots(1, len(axes), figsize=(4.5 * len(axes), 3.4), layout="constrained", squeeze=False)
    for place, axis in zip(places[0], axes, strict=True):
        for curve in found:
            if curve.axis == axis:
                _curve(place, curve)
        place.set(xscale="log", yscale="log", xlabel=_AXES[axis], ylabel="CPU-µs a message")
        place.grid(visible=True, which="major", alpha=0.3)
        ticks = sorted({amount for curve in found if curve.axis == axis for amount, _ in curve.points})
        place.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30)
        place.minorticks_off()
        least, most = place.get_ylim()
        steps = [one * 10.0**power for power in range(-3, 5) for one in (1, 2, 5)]
        below, above = max(step for step in steps if step <= least), min(step for step in steps if step >= most)
        place.set_yticks([step for step in steps if below <= step <= above])
        place.set_ylim(below, above)
        place.yaxis.set_major_formatter("{x:g}")
        place.legend(frameon=False)
    _save(picture, path)


def _curve(place: Axes, curve: Curve) -> None:
    amounts, costs = zip(*curve.points, strict=True)
    place.plot(amounts, costs, marker="o", label=curve.forwarder, color=_COLOURS.get(curve.forwarder, "#555555"))
