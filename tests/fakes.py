"""Stand-ins for the fast tests: a sink that acknowledges when it is told to, a service manager that remembers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence


class FakeManager:
    """What a service manager was asked to keep, by inode, and what the peers are called that it was told of."""

    def __init__(self) -> None:
        self.kept: set[int] = set()
        self.peers: dict[int, str] = {}

    def keep(self, sock: socket.socket) -> None:
        self.kept.add(os.fstat(sock.fileno()).st_ino)

    def call(self, sock: socket.socket, peer: str) -> None:
        self.peers[os.fstat(sock.fileno()).st_ino] = peer

    def peer_of(self, sock: socket.socket) -> str:
        return self.peers.get(os.fstat(sock.fileno()).st_ino, "")

    def forget(self, sock: socket.socket) -> None:
        self.kept.discard(os.fstat(sock.fileno()).st_ino)


class FakeSink:
    """Keeps records in memory. While `holding`, deliveries wait as they would for a slow Kafka."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.given: list[bytes] = []
        self.deliveries: list[int] = []
        self.closed = 0
        self._go = asyncio.Event()
        self._go.set()
        self._space = asyncio.Event()
        self._space.set()
        self._moved = asyncio.Condition()

    def hold(self) -> None:
        """Acknowledge nothing from now on."""
        self._go.clear()

    def release(self) -> None:
        """Acknowledge again, also what waits."""
        self._go.set()

    def fill(self, full: bool = True) -> None:
        """Have no room (or have it again)."""
        if full:
            self._space.clear()
        else:
            self._space.set()

    async def room(self) -> None:
        await self._space.wait()

    async def deliver(self, records: Sequence[bytes], size: int) -> None:
        assert records
        assert size == sum(map(len, records))
        self.given += records
        self.deliveries.append(len(records))
        await self._tell()
        await self._go.wait()
        self.records += records
        await self._tell()

    def close(self) -> None:
        self.closed += 1

    async def _tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def has(self, count: int) -> list[bytes]:
        """Wait until `count` records are stored; return all."""
        async with asyncio.timeout(10), self._moved:
            await self._moved.wait_for(lambda: len(self.records) >= count)
        return self.records

    async def was_given(self, count: int) -> list[bytes]:
        """Wait until `count` records were handed over, stored or not; return all."""
        async with asyncio.timeout(10), self._moved:
            await self._moved.wait_for(lambda: len(self.given) >= count)
        return self.given
