"""What the README says is true: its table of settings, its files, its commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from syslogger import config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_has_every_setting() -> None:
    begin = "<!-- settings: made by syslogger.config.settings_table(), held by tests/test_readme.py -->"
    table = README.partition(begin)[2].partition("<!-- end of settings -->")[0]
    assert table.strip() == config.settings_table().strip(), "python -m tests.test_readme writes it anew"


def test_its_links_lead_somewhere() -> None:
    links = set(re.findall(r"\]\(([^)#:]+)\)", README))
    assert len(links) >= 5
    assert [link for link in links if not (ROOT / link).exists()] == []


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
