"""What is shipped for watching it, against the real watchers: Prometheus 2.42 and promtool from Debian."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.system.parts import ROOT, Kafka43, Part, Syslogger, free_port, until

PROMETHEUS = ROOT / "packaging" / "prometheus"


@pytest.fixture(autouse=True)
def _prometheus_is_there() -> None:
    """In CI a missing part is a failure; elsewhere the test is skipped."""
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        text = "This machine has no Prometheus (Debian package prometheus); `make test` installs it."
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


class Prometheus(Part):
    """A Prometheus that scrapes one address every second, with the alert rules as shipped."""

    def __init__(self, directory: Path, target: str) -> None:
        super().__init__(directory)
        self.target = target
        self.port = free_port()

    def argv(self) -> list[str]:
        shipped = (PROMETHEUS / "scrape.yml").read_text()
        changed = (
            shipped.replace("127.0.0.1:9514", self.target)
            .replace("15s", "1s")
            .replace("/usr/share/doc/syslogger/prometheus", str(PROMETHEUS))
        )
        path = self.directory / "prometheus.yml"
        path.write_text(f"global:\n  evaluation_interval: 1s\n{changed}")
        return [
            "prometheus",
            f"--config.file={path}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self._get("/-/ready").startswith(b"Prometheus")
        return False

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            text: bytes = answer.read()
            return text

    def api(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer."""
        return json.loads(self._get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]

    def values(self, expr: str) -> list[float]:
        """Return what a query gives now, without what is not a number."""
        found = [float(sample["value"][1]) for sample in self.api("query", query=expr)["result"]]
        return [value for value in found if value == value]  # noqa: PLR0124 - NaN is not


@pytest.fixture
def busy(make_syslogger: Callable[..., Syslogger], kafka43: Kafka43, tmp_path: Path) -> Iterator[Syslogger]:
    """Start a syslogger to whose topic Kafka refuses records of more than 2,000 bytes."""
    topic = kafka43.create_topic(max__message__bytes=2000)
    kafka43.create_topic(f"{topic}.dead-letter")
    part = make_syslogger(
        kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic},
        listeners=[
            {"address": f"127.0.0.1:{free_port()}"},
            {"address": f"127.0.0.1:{free_port()}", "tls": Authority(tmp_path / "certificates").listener()},
        ],
    )
    part.start()
    yield part
    assert part.stop() == 0


def panels() -> Iterator[tuple[str, str]]:
    """Yield the title and each query of every panel, as Grafana would ask it."""
    for panel in json.loads((ROOT / "packaging" / "grafana" / "syslogger.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            expr = (
                target["expr"].replace("$instance", ".*").replace("$__rate_interval", "10s").replace("$__range", "1m")
            )
            assert "$" not in expr
            yield panel["title"], expr


def test_every_panel_and_every_rule_finds_data(busy: Syslogger, tmp_path: Path) -> None:
    with Prometheus(tmp_path / "prometheus", busy.config["prometheus"]["address"]) as prometheus:
        until(lambda: prometheus.values("syslogger_ready") == [1.0], "the first scrape")
        busy.send(b"<13>" + b"x" * 5000 + b"\n")
        wanted = list(panels())
        assert len(wanted) > 30

        def missing() -> list[tuple[str, str]]:
            # Something for every second, so that rates and percentiles are of something.
            busy.send(b"<13>hello\n" * 100)
            return [(title, expr) for title, expr in wanted if not prometheus.values(expr)]

        try:
            until(lambda: not missing(), "every panel has data", 30, every=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}: {missing()}") from None
        rules = prometheus.api("rules")["groups"][0]["rules"]
        assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
        fired = prometheus.values('ALERTS{alertname="SysloggerDeadLetters", alertstate="firing"}')
        assert fired == [1.0], "Kafka refused one record, for one reason"
        assert prometheus.values("syslogger_records_delivered_total")[0] > 100


def test_the_rules_pass_their_own_tests(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path / "rules")
    config = tmp_path / "rules" / "scrape.yml"
    config.write_text(config.read_text().replace("/usr/share/doc/syslogger/prometheus/", ""))
    for check in (["check", "config", "scrape.yml"], ["test", "rules", "alerts_test.yml"]):
        found = subprocess.run(
            ["promtool", *check], cwd=config.parent, capture_output=True, text=True, check=False, timeout=60
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert "SUCCESS" in found.stdout


def test_every_rule_has_a_test() -> None:
    alerts = re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())
    tests = (PROMETHEUS / "alerts_test.yml").read_text()
    assert [name for name in alerts if name not in tests] == []
