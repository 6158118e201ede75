"""What the README and docs/ say is true: the table of settings, files, commands, names of settings and metrics."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from syslogger import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def test_the_table_has_every_setting() -> None:
    begin = "<!-- settings: made by syslogger.config.settings_table(), held by tests/test_readme.py -->"
    table = README.partition(begin)[2].partition("<!-- end of settings -->")[0]
    assert table.strip() == config.settings_table().strip(), "python -m tests.test_readme writes it anew"


def test_its_links_lead_somewhere() -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_links_lead_somewhere(page: str) -> None:
    assert f"](docs/{page})" in README
    for target in re.findall(r"\]\(([^):]+)\)", PAGES[page]):
        path, _, section = target.partition("#")
        text = (ROOT / "docs" / (path or page)).resolve()
        assert text.exists(), target
        if section:
            headings = re.findall(r"^#+ (.*)$", text.read_text(), re.MULTILINE)
            assert section in [heading.lower().replace(" ", "-") for heading in headings], target


def test_the_pages_name_settings_that_are() -> None:
    tables = {each.name.partition(".")[0] for each in config.settings() if "." in each.name} | {"listeners"}
    names = {each.name for each in config.settings()}
    text = "".join(PAGES.values())
    named = set(re.findall(rf"`((?:{'|'.join(map(re.escape, tables))})\.[a-z_.]+)\b(?!/)", text))
    assert len(named) > 10
    assert {name for name in named if name not in names and not any(n.startswith(f"{name}.") for n in names)} == set()
    variables = {each.variable for each in config.settings()} | {"SYSLOGGER_CONFIG"}
    assert set(re.findall(r"\bSYSLOGGER_[A-Z_]+", text)) <= variables


def test_the_pages_name_metrics_that_are() -> None:
    served = (ROOT / "syslogger" / "prometheus.py").read_text()
    for name in set(re.findall(r"\bsyslogger_([a-z_]+)", "".join(PAGES.values()))):
        assert re.search(rf"(?:\b|syslogger_){re.sub('_(total|bucket|sum|count)$', '', name)}\b", served), name


def test_the_pages_configuration_files_are_there() -> None:
    shipped = {path.name for path in (ROOT / "rsyslog.d").iterdir()}
    assert set(re.findall(r"\b60-syslogger[a-z-]*\.conf", README + "".join(PAGES.values()))) <= shipped | {
        "60-syslogger.conf"
    }


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()))
    assert {"demo", "test"} <= named <= targets


def test_its_configuration_is_one(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "syslogger.toml"
    path.write_text(example)
    loaded = config.load(file=str(path))
    assert loaded.kafka.topic == tomllib.loads(example)["kafka"]["topic"]


def test_contributing_is_one_screen() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 50


if __name__ == "__main__":
    text = re.sub(
        r"(<!-- settings: .*?-->\n).*?(<!-- end of settings -->)",
        lambda found: found[1] + "\n" + config.settings_table() + "\n" + found[2],
        README,
        flags=re.DOTALL,
    )
    (ROOT / "README.md").write_text(text)
