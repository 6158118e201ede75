"""The forwarders that are compared, one file each.

A file here defines a class `Forwarder(Peer)`: its configuration and command line (`argv`), when it answers (`ready`,
if more than a connection is to be asked for), what it lacks on this machine (`missing`) and its version. Its module's
name, with `-` for `_`, is its name. Adding a file adds a peer; the first line of its docstring is its description.
"""

from __future__ import annotations

import importlib
import pkgutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.works import OURS, Protocol
from tests.system.parts import Part


@dataclass(frozen=True)
class Route:
    """What a forwarder is to do: take lines, and append them to a topic, each as it came but for its LF.

    The same for all: acks from every in-sync replica, and 5 ms to gather a batch in.
    """

    port: int
    bootstrap: str
    topic: str
    partitions: int = 1
    compression: str = "none"
    protocol: Protocol = "syslog"
    connections: int = 1
    """How many there will be at a time, for whoever sizes its buffers by that."""


class Peer(Part):
    """One forwarder, as a process of its own with a directory of its own."""

    protocols: ClassVar[tuple[Protocol, ...]] = ("syslog",)
    """What it can be sent. Only who speaks a work's protocol takes part in that."""

    def __init__(self, directory: Path, route: Route) -> None:
        super().__init__(directory)
        self.route = route

    @classmethod
    def missing(cls) -> str:
        """Say what this machine lacks for it; nothing if it can run."""
        raise NotImplementedError

    @classmethod
    def version(cls) -> str:
        """Return the version of the program."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it accepts a connection."""
        try:
            socket.create_connection(("127.0.0.1", self.route.port), 2).close()
        except OSError:
            return False
        return True


def printed(*argv: str, environment: dict[str, str] | None = None) -> str:
    """Return what a program prints; it must end well within 30 s."""
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30, env=environment)
    return done.stdout + done.stderr


def load() -> dict[str, type[Peer]]:
    """Return every peer there is a file for, by name: ours first."""
    names = sorted((each.name for each in pkgutil.iter_modules(__path__)), key=lambda name: (name != OURS, name))
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}").Forwarder for name in names}
