"""Where Kafka is: the contract of whatever knows the brokers' addresses, and the plain list."""

from __future__ import annotations

import asyncio
from typing import Protocol


class Brokers(Protocol):
    """Knows the addresses to ask for the cluster's metadata, and when they change."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The last good list, sorted, each ``host:port`` (``[v6]:port``); empty until one is known."""

    @property
    def source(self) -> str:
        """Where the list comes from, for messages: ``ZooKeeper zk1:2181/kafka``."""

    @property
    def problem(self) -> str:
        """Why the list may be missing or old, in words; empty when all is well."""

    async def changed(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Wait until there is a list that is not empty and not `known`; return it."""


class BootstrapServers:
    """The `Brokers` of a configured list: known from the start, never changing."""

    problem = ""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self.addresses = addresses
        self.source = "kafka.bootstrap_servers"

    async def changed(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Return the list if it is not `known`, else wait for ever."""
        if self.addresses == known:
            await asyncio.get_running_loop().create_future()
        return self.addresses
