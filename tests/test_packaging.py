"""What the Debian package holds beside the program, as packaging/documents.py makes it from the program."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from syslogger import cli, config

PACKAGING = Path(__file__).parent.parent / "packaging"
SETTING = re.compile(r"^#(?=\[|[a-z_]+ = )", re.MULTILINE)

documents = SimpleNamespace(**runpy.run_path(str(PACKAGING / "documents.py"), run_name="documents"))


def test_the_configuration_as_shipped_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "syslogger.toml"
    path.write_text(documents.configuration())
    with pytest.raises(config.ConfigError, match="Where is Kafka"):
        config.load(file=str(path))
    kafka = ("--bootstrap-servers", "k:9092")
    loaded = config.load(file=str(path), flags={"kafka.bootstrap_servers": kafka})
    assert loaded == config.load(flags={"kafka.bootstrap_servers": kafka})


def test_every_setting_stands_in_it_with_its_default() -> None:
    text = documents.configuration()
    values = tomllib.loads(SETTING.sub("", text))
    assert values == json.loads(msgspec.json.encode(config.Config()))
    for each in config.settings():
        words = each.sentence.replace("`", "").split()
        assert re.search(r"\s+(?:# )?".join(map(re.escape, words)), text), each.name
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_flag_is_completed(shell: str) -> None:
    (text,) = [text for name, text in documents.completions() if name == getattr(documents, shell.upper())]
    flags = set(re.findall(r"--[a-z-]+", cli.command_line().format_help()))
    assert {flag for flag in flags if flag not in text and f"-l {flag[2:]}" not in text} == set()
    assert all(command in text for command in cli.COMMANDS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["che"], ["check"]),
        (["--boot"], ["--bootstrap-servers"]),
        (["check", "--to"], ["--topic"]),
        (["--config", "synt"], ["syntax.toml"]),
        (["--verbose", "r"], ["run"]),
    ],
)
def test_bash_completes(tmp_path: Path, line: list[str], offered: list[str]) -> None:
    (tmp_path / "syntax.toml").touch()
    words = " ".join(["syslogger", *line])
    script = f'COMP_WORDS=({words}); COMP_CWORD={len(line)}; _shtab_syslogger; printf "%s\\n" "${{COMPREPLY[@]}}"'
    (text,) = [text for name, text in documents.completions() if name == documents.BASH]
    done = subprocess.run(["bash", "-c", text + script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


def test_the_manual_has_every_flag_and_is_groff() -> None:
    text = documents.manual().replace("\\-", "-")
    for flag in set(re.findall(r"--[a-z-]+", cli.command_line().format_help())) - {"--help"}:
        assert flag in text
    assert text.startswith(".TH SYSLOGGER ")
    for heading in ("EXIT STATUS", "SIGNALS", "FILES", "SEE ALSO"):
        assert f"\n.SH {heading}\n" in text


def test_the_port_is_one_line() -> None:
    lines = [line for line in (PACKAGING / "syslogger.socket").read_text().splitlines() if "1514" in line]
    assert [line for line in lines if not line.startswith("#")] == ["ListenStream=1514"]
