"""How a test waits for what has no event: it looks again, and gives up with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from syslogger.streams import Stream


async def until(true: Callable[[], object], seconds: float = 20) -> None:
    """Return when `true` is; raise TimeoutError after so many seconds."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.005)


class Reader:
    """Whoever has a stream to look at."""

    stream: Stream

    async def peek(self) -> bytes:
        """Wait until a peek shows something (or the end)."""
        async with asyncio.timeout(5):
            while await self.stream.readable():
                if data := self.stream.peek():
                    return data
        return b""
