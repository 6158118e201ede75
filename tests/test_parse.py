from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from zoneinfo import ZoneInfo

import pytest

from syslogger.parse import parse

LINES = b"<86>Nov 21 08:00:01 web1 sshd[4711]: Accepted\n\nno newline at the end \xff"


def test_each_line_is_a_value() -> None:
    output = io.BytesIO()
    assert parse(io.BytesIO(LINES), output, "json", ZoneInfo("Europe/Berlin")) == 0
    first, second = map(json.loads, output.getvalue().splitlines())
    assert (first["tag"], first["procid"], first["content"], first["peer"]) == ("sshd", "4711", "Accepted", "stdin")
    assert first["timestamp"][4:] == "-11-21T08:00:01+01:00"
    assert second["raw"] == second["content"] == "no newline at the end \U0010f7ff"


def test_the_go_programs_keys() -> None:
    output = io.BytesIO()
    parse(io.BytesIO(LINES), output, "json-go", ZoneInfo("UTC"))
    assert len(json.loads(output.getvalue().splitlines()[0])) == 7


def run(*arguments: str, data: bytes = LINES) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "syslogger", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYSLOGGER_")}
    return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=30, check=False)


def test_the_command() -> None:
    done = run("parse", "--value=json-go", "--zone=America/St_Johns")
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["content"] for line in done.stdout.splitlines()] == [
        "Accepted",
        "no newline at the end \U0010f7ff",
    ]
    assert b'-11-21T08:00:01-03:30"' in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["parse", "--value=xml"], "xml"),
        (["parse", "--zone=Mars/Olympus"], "there is no time zone Mars/Olympus"),
        (["parse", "--zone=/etc/passwd"], "there is no time zone /etc/passwd"),
        (["parse", "--topic=a"], "parse takes --value and --zone only, not --topic"),
        (["check", "--value=json"], "--value is for parse, not for check"),
        (["check", "--zone=UTC"], "--zone is for parse, not for check"),
    ],
)
def test_a_wrong_line(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr.decode()


def test_who_reads_may_go() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "syslogger", "parse"], stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE
    ) as process:
        os.close(writing)
        assert process.communicate(LINES, 30)[1] == b""
    assert process.returncode == 0
