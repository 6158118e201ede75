from __future__ import annotations

import asyncio

import pytest

from syslogger.brokers import BootstrapServers


async def test_a_configured_list_is_known_from_the_start_and_never_changes() -> None:
    brokers = BootstrapServers(("one:9092", "two:9092"))
    assert await brokers.changed(()) == ("one:9092", "two:9092")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(brokers.changed(brokers.addresses), 0.01)
    assert (brokers.problem, brokers.source) == ("", "kafka.bootstrap_servers")
