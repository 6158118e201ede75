"""What is shipped for Riemann asks for services that are pushed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from syslogger.counters import Counters
from syslogger.riemann import _Services

RIEMANN = Path(__file__).parent.parent / "packaging" / "riemann"
CONFIG = (RIEMANN / "riemann.config").read_text()
PUSHED = set(_Services(Counters()).measures(time.monotonic() + 1))


def views(view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a view of riemann-dash and all in it."""
    yield view
    for child in [*view.get("children", ()), *filter(None, [view.get("child")])]:
        yield from views(child)


def test_the_configuration_is_whole_forms() -> None:
    code = re.sub(r'"(?:[^"\\]|\\.)*"|;.*', "", CONFIG)
    closes = {")": "(", "]": "[", "}": "{"}
    opened: list[str] = []
    for char in code:
        if char in closes.values():
            opened.append(char)
        elif char in closes:
            assert opened.pop() == closes[char]
    assert opened == []


def test_its_streams_are_of_services_that_are_pushed() -> None:
    named = re.findall(r'\(service "([^"]*)"\)', CONFIG)
    assert len(named) >= 4
    assert set(named) <= PUSHED
    assert set(re.findall(r'\(service #"([^"]*)"\)', CONFIG)) == {"^syslogger "}
    assert all(re.match("^syslogger ", name) for name in PUSHED)


def test_the_workspace_is_of_services_that_are_pushed() -> None:
    workspaces = json.loads((RIEMANN / "dashboard.json").read_text())["workspaces"]
    found = [view for workspace in workspaces for view in views(workspace["view"])]
    assert {view["type"] for view in found} == {"Balloon", "VStack", "HStack", "Title", "Gauge", "Flot", "Grid"}
    named = [name for view in found for name in re.findall(r'service = "([^"]*)"', view.get("query", ""))]
    assert len(named) >= 8
    assert set(named) <= PUSHED
    assert all(view["query"] for view in found if view["type"] in {"Gauge", "Flot", "Grid"})
