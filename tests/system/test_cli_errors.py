"""A configuration that cannot be used: one sentence that names the setting, exit status 2, nothing started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.parts import Kafka43, free_port

pytestmark = pytest.mark.row(28)

GOOD = '[kafka]\nbootstrap_servers = ["127.0.0.1:1"]\n[prometheus]\naddress = ""\n'


def _run(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Return the exit status and what stands on standard error; nothing may stand on standard output."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SYSLOGGER_")}
    ended = subprocess.run(
        [sys.executable, "-m", "syslogger", *arguments],
        env=plain | (environment or {}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


def _refused(text: str, *named: str) -> None:
    assert "Traceback" not in text, text
    assert len(text.strip().splitlines()) == 1, f"one line: {text}"
    for name in named:
        assert name in text, f"{name} is not named: {text}"


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("[kafka]\ntopik = 'a'\n", ("topik", "topic")),
        ("[kafak]\ntopic = 'a'\n", ("kafak", "kafka")),
        ("[[listeners]]\nadress = ':1514'\n", ("adress", "address")),
        ("[kafka]\nbootstrap_servers = 'one'\ntopic = 7\n", ("kafka.",)),
        ("drain_seconds = 'soon'\n", ("drain_seconds",)),
        ("[[listeners]]\nmax_record_bytes = 2_000_000\n", ("max_record_bytes", "1,000,000")),
        ("[[listeners]]\naddress = 'nowhere'\n", ("listeners", "address", "nowhere")),
        ("[kafka]\ncompression = 'rar'\n", ("kafka.compression", "zstd")),
        ("this is not TOML", ("syslogger.toml",)),
        ("", ("bootstrap_servers", "zookeeper")),
    ],
)
def test_a_wrong_setting(toml: str, named: tuple[str, ...], tmp_path: Path):
    path = tmp_path / "syslogger.toml"
    path.write_text(toml)
    code, text = _run("run", "--config", str(path))
    assert code == 2, text
    _refused(text, *named)


def test_a_file_that_is_not_there(tmp_path: Path):
    code, text = _run("run", "--config", str(tmp_path / "nowhere.toml"))
    assert code == 2
    _refused(text, "nowhere.toml")


def test_a_file_that_cannot_be_read(tmp_path: Path):
    """A directory stands for a file without the right to read it: root may read every file."""
    code, text = _run("run", "--config", str(tmp_path))
    assert code == 2
    _refused(text, str(tmp_path))


def test_a_wrong_environment_variable(tmp_path: Path):
    path = tmp_path / "syslogger.toml"
    path.write_text(GOOD)
    code, text = _run("run", "--config", str(path), environment={"SYSLOGGER_DRAIN_SECONDS": "soon"})
    assert code == 2
    _refused(text, "SYSLOGGER_DRAIN_SECONDS")


@pytest.mark.parametrize("listening", [True, False], ids=["a listening socket", "a bound one"])
@pytest.mark.parametrize("setting", ["listeners", "prometheus"])
def test_a_port_that_is_taken(setting: str, listening: bool, tmp_path: Path, kafka43: Kafka43):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listening:
            other.listen()
        taken = other.getsockname()[1]
        ports = {"listeners": free_port(), "prometheus": free_port()} | {setting: taken}
        path = tmp_path / "syslogger.toml"
        path.write_text(
            f"[kafka]\nbootstrap_servers = ['{kafka43.bootstrap}']\ntopic = 'any'\n"
            f"[[listeners]]\naddress = '127.0.0.1:{ports['listeners']}'\n"
            f"[prometheus]\naddress = '127.0.0.1:{ports['prometheus']}'\n"
        )
        code, text = _run("run", "--config", str(path))
    assert code == 2, text
    assert "Traceback" not in text, text
    refusals = [line for line in text.splitlines() if str(taken) in line]
    assert len(refusals) == 1, text
    assert setting in refusals[0]


def test_a_sound_configuration_is_not_refused(kafka43: Kafka43, make_syslogger, topic: str):
    """The counterpart of all the above: so it is the fault that is refused."""
    syslogger = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    syslogger.start()
    assert syslogger.stop() == 0
