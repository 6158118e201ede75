"""The Debian package as its users meet it: on a booted Debian 12 that has never seen syslogger.

The tests stand in the order of a package's life, on one machine: installed first, purged last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.machine import Machine, Service, _do, lacking
from tests.system.parts import ROOT, Kafka43, _program, until
from tests.system.test_systemd import BESIDE_SIGKILL, RECORDS_IN_A_RECEIVE_BUFFER, Load

pytestmark = pytest.mark.timeout(420)  # the first one may have to make the image

NEWER = "99.0.0-1"
DRAIN_SECONDS = 5
WATCHDOG_SECONDS = 3

NOT_OF_A_PACKAGE = re.compile(
    r"/(var/(log|cache|backups|spool/rsyslog|tmp|lib/(dpkg|apt|systemd))|root|tmp|run|proc|sys|dev)/"
    r"|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-$"
    r"|/etc/rsyslog\.d/|/etc/systemd/system/syslogger\.service\.d"  # what these tests write
)
"""Files that come and go, or that a package manager keeps of any package."""


IMPORT_ALL = """\
import sys
sys.path.insert(0, "/usr/lib/syslogger")
import importlib, pkgutil, syslogger
for module in pkgutil.walk_packages(syslogger.__path__, "syslogger."):
    if module.name != "syslogger.demo":
        importlib.import_module(module.name)
"""
"""The demo's Kafka is not in the package: it is for who tries it before."""

TOOLS = {"dh": "debhelper", "lintian": "lintian"}
"""Of Debian, what makes a package and what judges it."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the package."""
    if absent := [f"{program} (Debian package {name})" for program, name in TOOLS.items() if not _program(program)]:
        text = f"This machine has no {', no '.join(absent)}."
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    directory = tmp_path_factory.mktemp("package")
    return Path(_do([str(ROOT / "packaging" / "build-deb"), str(directory)], PYTHON=sys.executable).strip())


@pytest.fixture(scope="module")
def newer_package(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pack the same again as a higher version."""
    directory = tmp_path_factory.mktemp("newer")
    tree = directory / "tree"
    _do(["dpkg-deb", "--raw-extract", str(package), str(tree)])
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {NEWER}", control.read_text()))
    (metadata,) = tree.glob("usr/lib/syslogger/syslogger-*.dist-info/METADATA")
    metadata.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {NEWER.partition('-')[0]}", metadata.read_text()))
    metadata.parent.rename(metadata.parent.with_name("syslogger-99.0.0.dist-info"))
    newer = directory / f"syslogger_{NEWER}.deb"
    _do(["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(newer)])
    return newer


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, newer_package: Path) -> Iterator[Machine]:
    """Boot a machine, take from it what no clean one has, and put the tests into its network: it has no other.

    The packages are made before, where there is another.
    """
    assert newer_package.exists()
    if missing_here := lacking():
        text = f"A machine cannot be booted here: no {', no '.join(missing_here)}."
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    with Machine(tmp_path_factory.mktemp("machine") / "machine") as booted, booted.network():
        booted.run("rm", "-r", "/opt/syslogger")
        booted.run("userdel", "syslogger")
        booted.run("dpkg", "--purge", "procps", "python3-venv", "python3.11-venv", "python3-pip-whl")
        yield booted


@pytest.fixture(scope="module")
def kafka(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka43]:  # noqa: ARG001 - in its network
    with Kafka43(tmp_path_factory.mktemp("kafka")) as part:
        yield part


@pytest.fixture(scope="module")
def files_before(machine: Machine) -> set[str]:
    return files(machine)


def files(machine: Machine) -> set[str]:
    """Return what is on its disk, directories ending in a slash; not what comes and goes."""
    found = machine.run("find", "/", "-xdev", "-type", "d", "-printf", "%p/\\n", "-o", "-printf", "%p\\n").splitlines()
    return {name for name in found if not NOT_OF_A_PACKAGE.match(name)}


class Packaged(Service):
    """syslogger in a machine, installed from the package."""

    def __init__(self, machine: Machine, package: Path) -> None:
        self.machine = machine
        self.install(package)

    def install(self, package: Path) -> None:
        """Install or upgrade, as its users do."""
        shutil.copy(package, self.machine.path("/root"))
        self.apt("install", f"/root/{package.name}")

    def apt(self, verb: str, what: str = "syslogger") -> str:
        command = ["apt-get", "--yes", "--quiet=2", verb, what]
        return self.machine.run("env", "DEBIAN_FRONTEND=noninteractive", *command, seconds=120)

    def set(self, **settings: Any) -> None:
        """Set these in the configuration file, where they stand with their defaults, commented or not."""
        path = self.machine.path(f"{self.directory}/syslogger.toml")
        text = path.read_text()
        for key, value in settings.items():
            text, found = re.subn(rf"(?m)^#?{key} = .*$", f"{key} = {json.dumps(value)}", text)
            assert found == 1, key
        path.write_text(text)


@pytest.fixture(scope="module")
def installed(machine: Machine, package: Path, files_before: set[str]) -> Packaged:  # noqa: ARG001 - before it is
    return Packaged(machine, package)


@pytest.fixture(scope="module")
def running(installed: Packaged, kafka: Kafka43) -> Packaged:
    """Configure it and start it, as the file itself says."""
    installed.set(bootstrap_servers=[kafka.bootstrap], topic=kafka.create_topic(), drain_seconds=DRAIN_SECONDS)
    installed.add_to_unit(f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}\n")
    installed.start()
    return installed


@pytest.fixture
def topic(running: Packaged, kafka: Kafka43) -> str:
    """Give it a new topic, and the machine's rsyslog a fresh start."""
    name = kafka.create_topic()
    running.set(topic=name)
    running.systemctl("restart")
    running.machine.run("systemctl", "stop", "rsyslog", "syslog.socket")
    running.machine.run("sh", "-c", "rm -f /var/spool/rsyslog/imfile-state:*")
    return name


def test_lintian_finds_nothing(package: Path):
    assert _do(["lintian", "--allow-root", "--fail-on=error,warning", str(package)]) == ""


def test_it_waits_for_its_configuration(installed: Packaged):
    """Without it, it cannot run; nothing is started, and the file is for root and the daemon alone."""
    machine = installed.machine
    for unit in installed.units:
        assert machine.run("systemctl", "is-enabled", unit, check=False).strip() == "disabled"
        assert machine.run("systemctl", "is-active", unit, check=False).strip() == "inactive"
    assert "Where is Kafka" in machine.run("syslogger", "--config", "/etc/syslogger/syslogger.toml", check=False)
    assert machine.run("stat", "--format=%U:%G %a", "/etc/syslogger/syslogger.toml").strip() == "root:syslogger 640"
    assert machine.run("dpkg-query", "--show", "--showformat=${Conffiles}", "syslogger").split()[0].endswith(".toml")
    assert "/nologin" in machine.run("getent", "passwd", "syslogger")


def test_what_comes_with_it(installed: Packaged):
    machine = installed.machine
    assert re.fullmatch(r"syslogger \d+\.\d+\.\d+", machine.run("syslogger", "--version").strip())
    listed = machine.run("dpkg", "--listfiles", "syslogger").split()
    shipped = {path.name for path in (ROOT / "rsyslog.d").iterdir()}
    assert {name.rpartition("/")[2] for name in listed if "/doc/syslogger/rsyslog.d/" in name} == shipped
    for page in ("README.md", *(path.name for path in (ROOT / "docs").glob("*.md"))):
        assert f"/usr/share/doc/syslogger/{page}" in listed
    for name in (
        "/usr/share/man/man1/syslogger.1.gz",
        "/usr/share/bash-completion/completions/syslogger",
        "/lib/systemd/system/syslogger@.service",
    ):
        assert name in listed
    # All modules can be imported with nothing else on the machine, and are compiled.
    machine.run("/usr/bin/python3", "-ISBc", IMPORT_ALL)
    sources, compiled = (
        machine.run("find", "/usr/lib/syslogger/syslogger", "-name", f"*.{kind}").split() for kind in ("py", "pyc")
    )
    assert len(sources) == len(compiled) > 20


def test_the_units_are_hardened(installed: Packaged):
    machine = installed.machine
    for unit in (installed.unit, "syslogger@other.service"):
        said = machine.run("systemd-analyze", "security", "--no-pager", unit)
        found = re.search(r"Overall exposure level.*: (\d+\.\d)", said)
        assert found, said
        print(f"{unit}: {found[1]}")
        assert float(found[1]) <= 1.5, said
        assert machine.run("systemd-analyze", "verify", "--man=no", unit).strip() == ""


@pytest.mark.row(14)
@pytest.mark.row(16)
def test_nothing_is_lost_and_no_connection_ends(running: Packaged, kafka: Kafka43, topic: str, newer_package: Path):
    """SIGKILL, a reload, a hanging process and an upgrade, one after the other, under load."""
    before = running.version()
    with Load(running.machine, kafka, topic, every=BESIDE_SIGKILL) as load:
        load.wait_arrived(5000)
        killed = running.signal_main(signal.SIGKILL)
        until(lambda: running.main_pid not in (0, killed), "systemd starts it again", 10)
        load.wait_arrived(5000)

        pid, starts = running.main_pid, running.starts()
        running.systemctl("reload")
        until(lambda: running.starts() > starts, "it has started anew", 20)
        load.wait_arrived(5000)
        assert running.main_pid == pid

        hanging = running.signal_main(signal.SIGSTOP)
        until(lambda: running.main_pid not in (0, hanging), "the watchdog ends it and systemd starts it again", 20)
        load.wait_arrived(5000)

        pid = running.main_pid
        running.install(newer_package)
        until(lambda: running.version() == NEWER.partition("-")[0] != before, "the new version runs", 20)
        load.wait_arrived(5000)
        assert running.main_pid == pid
    load.check(twice=4 * RECORDS_IN_A_RECEIVE_BUFFER)
    assert "Watchdog timeout" in running.journal()
    assert running.shows("NRestarts") == "2"


@pytest.mark.row(16)
def test_a_restart_under_load(running: Packaged, kafka: Kafka43, topic: str):
    # A stop tells every peer to end. rsyslog does, and so do the new ones; the others would go on.
    with Load(running.machine, kafka, topic, held=0) as load:
        load.wait_arrived(5000)
        pid = running.main_pid
        running.systemctl("restart")
        load.wait_arrived(5000)
        assert running.main_pid != pid
    found = load.account()
    assert not load.refused, (len(load.refused), load.refused[:5])
    found.check(twice=True)


def test_it_listens_elsewhere(running: Packaged):
    """As syslogger.socket says how to."""
    machine, drop_in = running.machine, "/etc/systemd/system/syslogger.socket.d"
    machine.write(f"{drop_in}/override.conf", "[Socket]\nListenStream=\nListenStream=514\n")
    for port, other in ((514, running.port), (running.port, 514)):
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "stop", *running.units)
        machine.run("systemctl", "start", *running.units)
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", other), 5)
        machine.run("rm", "-rf", drop_in)  # and once more, back


def test_an_instance_of_its_own(running: Packaged, kafka: Kafka43):
    machine, topic = running.machine, kafka.create_topic()
    machine.write(
        "/etc/syslogger/other.toml",
        '[[listeners]]\naddress = ":1515"\n[prometheus]\naddress = ""\n'
        f'[kafka]\nbootstrap_servers = ["{kafka.bootstrap}"]\ntopic = "{topic}"\n',
    )
    machine.run("systemctl", "enable", "--now", "syslogger@other")

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", 1515), 5)
        except ConnectionRefusedError:
            return None

    with until(connected, "it listens") as peer:
        peer.sendall(b"to the other one\n")
        kafka.wait_count(topic, 1)
        # Left running, with a connection: for what removes the package.
        machine.run("systemctl", "is-active", "syslogger@other")


@pytest.mark.row(13)
def test_a_stop_with_kafka_down(running: Packaged, kafka: Kafka43, topic: str):
    assert topic
    with socket.create_connection(("127.0.0.1", running.port), 20) as peer:
        peer.sendall(b"arrives\n")
        kafka.wait_count(topic, 1)
        kafka.sigkill()
        peer.sendall(b"does not\n")
        began = time.monotonic()
        running.systemctl("stop")
        assert DRAIN_SECONDS - 1 < time.monotonic() - began < DRAIN_SECONDS + 5
    assert running.shows("Result") == "exit-code"
    assert running.shows("ExecMainStatus") == "1"
    assert re.search(r"9 bytes from 127\.0\.0\.1:\d+ were not delivered", running.journal())
    kafka.start()


def test_removed_it_leaves_its_configuration_purged_nothing(installed: Packaged, files_before: set[str]):
    machine = installed.machine
    said = installed.apt("remove")
    left = files(machine) - files_before
    assert {name for name in left if not name.startswith(("/etc/s", "/var/lib/syslogger"))} == set(), said
    assert "/etc/syslogger/syslogger.toml" in left
    machine.run("sh", "-c", "! command -v syslogger")
    assert machine.run("systemctl", "list-units", "--plain", "--no-legend", "syslogger*") == ""
    assert not machine.connections_to(Service.port)

    said = installed.apt("purge")
    assert files(machine) ^ files_before == set(), said
    assert machine.run("getent", "passwd", "syslogger", check=False) == ""
    assert machine.run("getent", "group", "syslogger", check=False) == ""
    assert "syslogger" not in machine.run("dpkg", "--list")
