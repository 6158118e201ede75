"""What the last stop could not deliver, kept for the next start: a process that ends is scraped no more.

It is kept in the directory that systemd gives for such things (StateDirectory=); without one nothing is.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple


class LastStop(NamedTuple):
    """One stop; all zeros where none is known."""

    time: float = 0.0
    """In Unix seconds."""
    undelivered_bytes: int = 0
    peers_cut_off: int = 0
    """Peers that had not ended: what was on its way from them is lost too."""


def read() -> LastStop:
    """Return the last stop as it was written."""
    if path := _path():
        with contextlib.suppress(OSError, ValueError, TypeError):  # another version may have written something else
            when, size, peers = json.loads(path.read_text())
            return LastStop(float(when), int(size), int(peers))
    return LastStop()


def write(undelivered_bytes: int, peers_cut_off: int) -> None:
    """Keep what a stop left undelivered; a disk that is full is no reason to stop differently."""
    if path := _path():
        new = path.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.write_text(json.dumps(LastStop(time.time(), undelivered_bytes, peers_cut_off)))
            new.replace(path)


def _path() -> Path | None:
    # More than one directory is separated by colons; ours is the first.
    directory = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(directory, "last-stop.json") if directory else None
