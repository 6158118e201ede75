"""What every test has: the choice of tests by `--row`, and of system tests by what the machine has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
import uvloop

from tests.mock_kafka import MockKafka


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--row", type=int, help="run only the tests of this row of the table of faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of one row if `--row` is given."""
    row = config.getoption("--row")
    if row is None:
        return
    chosen = [item for item in items if any(row in marker.args for marker in item.iter_markers("row"))]
    if not chosen:
        raise pytest.UsageError(f"No test is marked row({row}).")
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the loop that the daemon runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def cluster() -> Iterator[MockKafka]:
    """Run a mock cluster of one broker with the topic ``syslog``."""
    with MockKafka() as cluster:
        cluster.create_topic("syslog")
        yield cluster
