"""The parts that system tests share, and what is shown of them when a test fails.

A broker is shared by all tests of the run that do no harm to it: each takes a topic of its own. A test that stops,
kills or moves a broker starts one for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine import Machine, lacking
from tests.system.parts import SENDING_SIDE, Kafka39, Kafka43, Part, Sender, Syslogger, ZooKeeper, free_port, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test here the `system` marker and time for real parts."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session", autouse=True)
def _everything_is_there() -> None:
    """In CI a missing part is a failure; elsewhere the test is skipped and says what to install."""
    if lacking := missing():
        text = f"This machine has no {', no '.join(lacking)}. `make test` installs them; `make test-unit` needs none."
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of every part's log beside a failure."""
    report = yield
    if report.failed and item.get_closest_marker("system"):
        for part in Part.every:
            report.sections.append((f"{part.name} {'runs' if part.alive else 'has ended'}", part.log_tail(60)))
    return report


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """End whatever a test has started, and forget the parts of earlier tests."""
    before = [part for part in Part.every if part.alive]
    Part.every[:] = before
    yield
    for part in Part.every:
        if part not in before:
            part.sigkill()


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    with ZooKeeper(tmp_path_factory.mktemp("zookeeper")) as part:
        yield part


@pytest.fixture(scope="session")
def kafka39(tmp_path_factory: pytest.TempPathFactory, zookeeper: ZooKeeper) -> Iterator[Kafka39]:
    with Kafka39(tmp_path_factory.mktemp("kafka39"), zookeeper, chroot="/kafka") as part:
        yield part


@pytest.fixture(scope="session")
def kafka43(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka43]:
    with Kafka43(tmp_path_factory.mktemp("kafka43")) as part:
        yield part


@pytest.fixture
def topic(kafka43: Kafka43) -> str:
    """Make a topic of one partition in the shared Kafka 4.3.0."""
    return kafka43.create_topic()


MakeSyslogger = Callable[..., Syslogger]


@pytest.fixture
def make_syslogger(tmp_path: Path) -> MakeSyslogger:
    """`make_syslogger(kafka={…}, listeners=[…], …)`: a syslogger of these settings, not yet started."""

    def make(*flags: str, name: str = "syslogger", **config: Any) -> Syslogger:
        return Syslogger(tmp_path / name, config, *flags)

    return make


@pytest.fixture
def syslogger(make_syslogger: MakeSyslogger, kafka43: Kafka43, topic: str) -> Syslogger:
    """Start a syslogger that appends to `topic`; its records are at most 4,096 bytes long."""
    part = make_syslogger(
        kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
        listeners=[{"address": f"127.0.0.1:{free_port()}", "max_record_bytes": 4096}],
    )
    part.start()
    return part


@pytest.fixture
def make_sender(tmp_path: Path) -> Callable[..., Sender]:
    """`make_sender(port)`: a running rsyslog that sends the lines written to it to this port, as shipped.

    A second argument names another file of `rsyslog.d/`; a third has texts of it to change.
    """

    def make(port: int, shipped_as: str = SENDING_SIDE.name, changes: Mapping[str, str] | None = None) -> Sender:
        sender = Sender(tmp_path, port, shipped_as, changes or {})
        sender.rsyslog.start()
        return sender

    return make


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Boot a machine, and put the test into its network: 127.0.0.1 is the machine's until the test is over."""
    if missing_here := lacking():
        text = f"A machine cannot be booted here: no {', no '.join(missing_here)}."
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    with Machine(tmp_path / "machine") as booted, booted.network():
        yield booted
