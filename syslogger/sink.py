"""What a sink is: the place where records are safe."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol


class Sink(Protocol):
    """One ordered way into a store. A connection has one of its own and calls it from one task.

    The two calls are made in turn: `room`, then (without awaiting anything between) `deliver`.
    """

    def room(self) -> Awaitable[None] | None:
        """Return None if the sink would start on another delivery at once, else what returns when it would.

        Nothing is read from a socket before. It is what keeps the undelivered bytes
        in the kernel and out of the process, however many connections wait.
        """

    def deliver(self, records: Sequence[bytes], size: int) -> Awaitable[None]:
        """Return what returns when every record is stored and acknowledged, in order; wait for as long as it takes.

        `records` is not empty; `size` is the sum of their lengths in bytes. There is no failure to
        handle: a sink that cannot deliver goes on trying. Cancelled, it lets go of what it has not
        yet begun to send, and what it has begun may or may not be stored.
        """

    def close(self) -> None:
        """Let go of the sink: its connection has ended."""
