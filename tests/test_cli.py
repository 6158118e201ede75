from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from types import ModuleType

import pytest

from syslogger import __version__, logs
from syslogger.cli import main
from syslogger.config import Config, Listener
from syslogger.errors import ConfigError


class Program:
    """Stands for the modules behind the commands: notes what it was called with, then does as told."""

    def __init__(self) -> None:
        self.called: list[tuple[object, ...]] = []
        self.status = 0
        self.error: BaseException | None = None

    def command(self, name: str):
        def called(*arguments: object) -> int:
            self.called.append((name, *arguments))
            if self.error:
                raise self.error
            return self.status

        return called

    @property
    def config(self) -> Config:
        (((_, config),)) = self.called
        assert isinstance(config, Config)
        return config


@pytest.fixture
def program(monkeypatch):
    program = Program()
    for module, command in (("forwarder", "run"), ("check", "check"), ("demo", "demo")):
        fake = ModuleType(f"syslogger.{module}")
        setattr(fake, command, program.command(command))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    for variable in [name for name in os.environ if name.startswith("SYSLOGGER_")]:
        monkeypatch.delenv(variable)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield program
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    root.setLevel(level)
    for name in logs.NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET)


SERVERS = ["--bootstrap-servers", "k1:9092,k2:9092"]


@pytest.mark.parametrize(
    ("line", "command"),
    [([], "run"), (["run"], "run"), (["check"], "check")],
)
def test_commands(program, line, command):
    program.status = 7
    assert main([*line, *SERVERS]) == 7
    assert program.called[0][0] == command
    assert program.config.kafka.bootstrap_servers == ("k1:9092", "k2:9092")


def test_a_command_may_stand_anywhere(program):
    assert main(["--topic", "run", "check", *SERVERS]) == 0
    assert program.called[0][0] == "check"
    assert program.config.kafka.topic == "run"


def test_flags(program, tmp_path):
    file = tmp_path / "file.toml"
    file.write_text("drain_seconds = 3")
    line = ["--config", str(file), "--listen", ":1", "--listen=[::1]:2", "--zookeeper", "z:1", "--topic=t"]
    assert main([*line, "--riemann", "r:1", "--verbose"]) == 0
    config = program.config
    assert config.drain_seconds == 3
    assert config.listeners == (Listener(address=":1"), Listener(address="[::1]:2"))
    assert (config.kafka.zookeeper, config.kafka.topic) == ("z:1", "t")
    assert (config.riemann.address, config.log.level) == ("r:1", "debug")
    assert logging.getLogger().level == logging.DEBUG


def test_the_environment_counts(program, monkeypatch):
    monkeypatch.setenv("SYSLOGGER_KAFKA_TOPIC", "environment")
    assert main(SERVERS) == 0
    assert program.config.kafka.topic == "environment"


def test_an_old_start_line(program, capsys):
    line = "-port 1514 -topic old -zkstring zk:2181/chroot -riemann rie:5555 -publish -verbose"
    assert main(line.split()) == 0
    config = program.config
    assert config.listeners == (Listener(address=":1514"),)
    assert (config.kafka.topic, config.kafka.zookeeper) == ("old", "zk:2181/chroot")
    assert (config.riemann.address, config.log.level) == ("rie:5555", "debug")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("line", ["-port=2000", "--port=2000", "-port 2000", "--port 2000"])
def test_a_port_listens_on_every_address(program, line):
    assert main([*line.split(), "-publish"]) == 0
    assert program.config.listeners == (Listener(address=":2000"),)


def test_the_go_programs_defaults_hold_with_its_own_flags(program):
    assert main(["-publish"]) == 0
    config = program.config
    assert config.listeners == (Listener(address=":1514"),)
    assert (config.kafka.topic, config.kafka.zookeeper) == ("syslog", "localhost:2181")
    assert config.riemann.address == "localhost:5555"


def test_the_go_programs_defaults_do_not_hold_without_its_own_flags(program):
    assert main([*SERVERS, "-topic", "t"]) == 0
    config = program.config
    assert config.listeners == (Listener(),)
    assert (config.kafka.zookeeper, config.riemann.address) == ("", "")


def test_the_go_programs_defaults_give_way(program, tmp_path, monkeypatch):
    file = tmp_path / "file.toml"
    file.write_text('[riemann]\naddress = ""\n[kafka]\ntopic = "file"')
    monkeypatch.setenv("SYSLOGGER_LISTEN", "127.0.0.1:7")
    assert main(["-publish", "--config", str(file), *SERVERS]) == 0
    config = program.config
    assert config.listeners == (Listener(address="127.0.0.1:7"),)
    assert (config.kafka.topic, config.kafka.zookeeper, config.riemann.address) == ("file", "", "")


@pytest.mark.parametrize("line", ["-port 1", "-zkstring z:1", "-publish=false", "-publish=0 run", "check -port 1"])
def test_without_publish_it_says_that_it_sends(program, capsys, line):
    assert main(line.split()) == 0
    (said,) = capsys.readouterr().err.splitlines()
    assert "WARNING" in said
    assert "would have sent nothing to Kafka; this one always sends" in said
    assert ("-publish=false" if "-publish" in line else "without -publish") in said
    assert len(program.called) == 1


@pytest.mark.parametrize("line", ["-publish -port 1", "-publish=true", "--publish=T"])
def test_with_publish_there_is_nothing_to_say(program, capsys, line):
    assert main(line.split()) == 0
    assert capsys.readouterr().err == ""
    assert len(program.called) == 1


def test_a_boolean_takes_no_word_after_it(program):
    assert main(["-verbose", "check", *SERVERS]) == 0
    assert program.called[0][0] == "check"
    assert main(["-verbose=false", *SERVERS]) == 0
    assert program.called[1][1].log.level == "info"


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("demo", ("127.0.0.1:1514", None)),
        ("demo --count 3", ("127.0.0.1:1514", 3)),
        ("--listen :9 demo --count=1", (":9", 1)),
    ],
)
def test_demo(program, line, arguments):
    program.status = 5
    assert main(line.split()) == 5
    assert program.called == [("demo", *arguments)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--topci x", "there is no flag --topci: did you mean --topic?"),
        ("-prot 1514", "there is no flag --prot: did you mean --port?"),
        ("--bootstrap_servers=k:1", "there is no flag --bootstrap_servers: did you mean --bootstrap-servers?"),
        ("-p 1", "there is no flag -p; see syslogger --help"),
        ("-po 1", "there is no flag --po: did you mean --port?"),
        ("-xyz=1", "there is no flag --xyz; see syslogger --help"),
        ("--top x", "there is no flag --top: did you mean --topic?"),
        ("chekc", "there is no command 'chekc': did you mean check?"),
        ("zzzz", "there is no command 'zzzz': there are run, check, top, tap, demo and parse; see syslogger --help"),
        ("run check", "'check' is one word too many after the command run; see syslogger --help"),
        ("-publish true", "there is no command 'true'"),
        ("-port x", "--port: 'x' is no port: it may be 0 to 65535; see syslogger --help"),
        ("-port 65536", "--port: '65536' is no port"),
        ("-port", "--port: expected one argument; see syslogger --help"),
        ("-port --topic x", "--port: expected one argument"),
        ("-publish=maybe", "--publish: 'maybe' is neither true nor false"),
        ("demo --count 0", "--count: '0' is no number of records: it may be 1 or more"),
        ("demo --count -1", "--count: '-1' is no number of records"),
        ("--count 1", "--count is for demo, top and tap, not for run"),
        ("check --text x", "--text is for tap, not for check"),
        ("top --topic x", "top takes --config and --count only, not --topic"),
        ("top --peer x", "top takes --config and --count only, not --peer"),
        ("tap --listen :1", "tap takes --config, --count, --peer and --text only, not --listen"),
        ("demo --topic x", "demo takes --listen and --count only, not --topic"),
        ("demo -publish=false", "demo takes --listen and --count only, not -publish"),
        ("demo --listen :1 --listen :2", "demo takes one --listen only"),
        ("-port 1 --listen :1", "--listen and -port say the same; give only one of them"),
        ("-zkstring a:1 --zookeeper a:1", "--zookeeper and -zkstring say the same"),
        ("", "Where is Kafka? Set kafka.bootstrap_servers (--bootstrap-servers) or "),
        ("--listen 1514 -publish", 'listeners[0].address (--listen) is "1514": '),
        ("-zkstring :1", 'kafka.zookeeper (-zkstring) is ":1": '),
        ("--config /nonexistent/file", "The configuration file /nonexistent/file (--config) cannot be read: "),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(program, capsys, line, says):
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (said,) = printed.err.splitlines()
    assert said.startswith(f"syslogger: {says}")
    assert program.called == []


@pytest.mark.parametrize(
    "ending",
    [
        (ConfigError("listeners: cannot listen."), 2, "syslogger: listeners: cannot listen.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "demo"])
def test_how_a_command_may_end(program, capsys, command, ending):
    program.error, status, said = ending
    assert main([command, *(SERVERS if command != "demo" else [])]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("line", ["run -publish", "check -publish", "demo"])
def test_linux_only(program, capsys, monkeypatch, line):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(line.split()) == 2
    assert capsys.readouterr().err == "syslogger: It runs on Linux only, and this is darwin.\n"
    assert program.called == []
    assert main(["--help"]) == 0


@pytest.mark.parametrize("line", ["--version", "-version", "run --version"])
def test_version(program, capsys, line):
    assert main(line.split()) == 0
    assert capsys.readouterr().out == f"syslogger {__version__}\n"
    assert program.called == []


@pytest.mark.parametrize("line", ["--help", "-h", "-help", "check --help"])
def test_help(program, capsys, monkeypatch, line):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(line.split()) == 0
    text = capsys.readouterr().out
    for words in ("run ", "check ", "demo ", "--config FILE", "--port N", "example:", "README.md"):
        assert words in text
    assert len(text.splitlines()) < 50
    assert max(map(len, text.splitlines())) <= 80
    assert program.called == []


def test_help_answers_at_once_and_brings_nothing_in():
    command = [sys.executable, "-X", "importtime", "-m", "syslogger", "--help"]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    took = time.monotonic() - started
    assert done.stdout.startswith("usage: syslogger ")
    imported = set(re.findall(r"\| +(\w+)", done.stderr))
    assert "argparse" in imported
    assert not imported & {"msgspec", "aiokafka", "kazoo", "asyncio", "uvloop", "prometheus_client", "bernhard"}
    assert took < 3  # measured 0.07 s; a machine that runs tests may be ten times slower


def test_the_module_is_the_program():
    command = [sys.executable, "-m", "syslogger", "--topci", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 2
    assert done.stderr == "syslogger: there is no flag --topci: did you mean --topic?\n"
