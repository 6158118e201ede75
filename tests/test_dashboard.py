"""What watches syslogger asks for what there is: the Grafana dashboard, the alert rules and their runbook."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from syslogger.counters import Counters
from syslogger.prometheus import MetricsServer, View

ROOT = Path(__file__).parent.parent
ALERTS = (ROOT / "packaging" / "prometheus" / "alerts.yml").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()


def dashboard_module() -> ModuleType:
    """Import the program that makes the dashboard; `packaging/` is no package, for that name is another's."""
    spec = spec_from_file_location("dashboard", ROOT / "packaging" / "grafana" / "dashboard.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def panels() -> list[dict[str, Any]]:
    """Return the panels that ask for something."""
    found = json.loads((ROOT / "packaging" / "grafana" / "syslogger.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def metrics(text: str) -> set[str]:
    """Return the names of the metrics in a query or in alert rules."""
    return set(re.findall(r"\b(?:syslogger|process)_[a-z_]+\b", re.sub(r"#.*|\{[^}]*\}|\{\{.*?\}\}", "", text)))


@pytest.fixture
async def served() -> set[str]:
    """Return the names of all samples that `/metrics` can have, from its TYPE lines: some appear once counted."""
    view = View(asyncio.get_running_loop(), Counters(), lambda: (True, ""))
    with MetricsServer(("127.0.0.1", 0), view) as server:

        def scrape() -> str:
            connection = http.client.HTTPConnection(*server.address, timeout=10)
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()

        families = re.findall(r"^# TYPE (\S+) (\S+)$", await asyncio.to_thread(scrape), re.MULTILINE)
    assert len(families) > 30
    return {name for name, _ in families} | {
        f"{name}_{part}" for name, kind in families if kind == "histogram" for part in ("bucket", "sum", "count")
    }


def test_the_dashboard_is_what_the_code_makes() -> None:
    made = dashboard_module()
    assert made.FILE.read_text() == made.build(), "make dashboard writes it anew"
    assert "dashboard" not in sys.modules


def test_every_query_asks_for_what_is_served(served: set[str]) -> None:
    assert len(queries()) > 30
    for query in queries():
        assert metrics(query), query
        assert metrics(query) <= served, query


def test_every_query_is_of_the_chosen_instances() -> None:
    for query in queries():
        assert query.count('{instance=~"$instance"}') == len(re.findall(r"\b(?:syslogger|process)_[a-z_]+\b", query))


def test_the_panels_fill_rows_and_overlap_nowhere() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


def test_every_alert_asks_for_what_is_served(served: set[str]) -> None:
    expressions = "".join(re.findall(r"expr: *(\|\n(?: {10}.*\n)+|.*\n)", ALERTS))
    assert len(metrics(expressions)) > 10
    assert metrics(expressions) <= served
    assert metrics(ALERTS) <= served


def test_every_alert_has_its_section_and_no_section_is_without() -> None:
    alerts = re.findall(r"- alert: (\w+)\n(.*?)(?=\n\n|\Z)", ALERTS, re.DOTALL)
    assert len(alerts) > 8
    for name, body in alerts:
        assert f"runbook_url: file:///usr/share/doc/syslogger/runbook.md#{name.lower()}\n" in f"{body}\n"
        assert re.search(r"severity: (page|ticket)\n", body)
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert sorted(name for name, _ in sections) == sorted(name for name, _ in alerts)
    for name, body in sections:
        assert "```console\n$ " in body, f"{name} says what to type"


def test_the_runbook_s_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK):
        path, _, section = target.partition("#")
        assert not path or (ROOT / "docs" / path).exists()
        assert not section or re.search(rf"^## {section}$", RUNBOOK, re.MULTILINE | re.IGNORECASE)


def test_the_runbook_names_settings_and_metrics_that_are(served: set[str]) -> None:
    settings = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:kafka|prometheus|riemann|log|tap)\.[a-z_]+)`", RUNBOOK))
    assert named
    assert [name for name in named if f"| `{name}` |" not in settings] == []
    assert metrics(RUNBOOK) <= served
