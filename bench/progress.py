"""The bar that shows how far the benchmark is, and for how long it will go on."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """Steps of estimated seconds; what is printed stands above it."""

    def __init__(self, seconds: float) -> None:
        self._progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("done, left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            speed_estimate_period=3600,
        )
        self._task = self._progress.add_task("", total=seconds)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def now(self, what: str) -> None:
        """Say what is done now."""
        self._progress.update(self._task, description=what)

    def advance(self, seconds: float) -> None:
        """Count a step as done."""
        self._progress.advance(self._task, seconds)

    def say(self, text: str) -> None:
        """Print a line."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
