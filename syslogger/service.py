"""Holds a program open until a signal, and tells systemd how it is (sd_notify(3)). Imports nothing of ours."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress

import uvloop


class Stop:
    """What SIGTERM and SIGINT ask for."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """Finish what is in flight and end."""
        self.at_once = asyncio.Event()
        """A second signal: do not finish."""

    def ask(self) -> None:
        """Ask once more."""
        (self.at_once if self.asked.is_set() else self.asked).set()


def run(main: Callable[[Stop], Coroutine[None, None, int]]) -> int:
    """Run `main` on a fresh uvloop; return its exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_hold(main))


async def _hold(main: Callable[[Stop], Coroutine[None, None, int]]) -> int:
    stop = Stop()
    with _signals(stop.ask):
        return await main(stop)


@contextmanager
def _signals(call: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager; do nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    # A service manager that cannot hear is no reason to end.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send("\n".join(assignments).encode())
