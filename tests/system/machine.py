"""A Debian 12 machine: systemd, really booted, with stock rsyslog, and syslogger installed as the README says.

It is a container of systemd-nspawn with a network of its own: its loopback is nobody else's. Its root is the image
made by `image()`, which no machine changes: what one writes goes into its memory and ends with it. It boots in a
second. Root's rights are needed.

    with Machine(tmp_path / "machine") as machine, machine.network(), Kafka43(tmp_path / "kafka") as kafka:
        ...    # the broker and the test run outside, but in the machine's network
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import inspect
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.system.parts import ROOT, SENDING_SIDE, Part, _program, toml, until

SUITE = "bookworm"
PACKAGES = "systemd,systemd-sysv,rsyslog,procps,python3,python3-venv"
PYTHON = "3.11"
NEWEST_GLIBC = 36
CACHE = ROOT / ".cache"
MARK = "image-of-syslogger-tests"
"""A file in the image's root: what it was made of. It also tells a machine's root from the host's."""

CLONE_NEWNET = 0x40000000
ESTABLISHED = "01"


def lacking() -> list[str]:
    """Return what a machine needs and is not here, one phrase each."""
    found = [
        f"{program} (Debian package {package})"
        for program, package in (("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container"))
        if _program(program) is None
    ]
    return found + ([] if os.geteuid() == 0 else ["root's rights (they boot a machine)"])


def image() -> Path:
    """Return the directory of a Debian 12 with an environment in /opt/syslogger that lacks nothing but syslogger.

    It is made when it is not there or was made of something else, which takes a minute or two.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe = [inspect.getsource(step) for step in (image, _debian, _wheels)]
    made_of = hashlib.sha256(repr((PACKAGES, project["dependencies"], recipe)).encode()).hexdigest()
    made = CACHE / "machine"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (made / MARK).exists() and (made / MARK).read_text() == made_of:
            return made
        # Whole or not at all: the directory has its name when all of it is there.
        with tempfile.TemporaryDirectory(prefix="machine.", dir=CACHE) as temporary:
            root, wheels = Path(temporary) / "root", Path(temporary) / "wheels"
            _debian(root)
            _wheels(wheels, project["dependencies"])
            shutil.copytree(wheels, root / "wheels")
            for command in (
                "rm -f /etc/hostname /etc/resolv.conf",  # this machine's
                "useradd --system syslogger",
                "python3 -m venv /opt/syslogger",
                "/opt/syslogger/bin/pip install --quiet --no-index --find-links /wheels /wheels/*",
                "rm -r /wheels",
            ):
                _do(["chroot", str(root), "sh", "-c", command], PATH="/usr/bin:/usr/sbin:/bin:/sbin")
            (root / MARK).write_text(made_of)
            if made.exists():
                made.rename(Path(temporary) / "old")
            root.rename(made)
    return made


def _debian(root: Path) -> None:
    """Bootstrap it from the mirror that this machine's apt uses, in the way it uses it."""
    indexes = _do(["apt-get", "indextargets", "--format", "$(CODENAME) $(SITE)", "Created-By: Packages"])
    mirror = [line.split()[1] for line in indexes.splitlines() if line.split()[0] == SUITE][:1]
    names = {"proxy": "Acquire::http::Proxy", "https_proxy": "Acquire::https::Proxy", "ca": "Acquire::https::CaInfo"}
    asked = [word for name, setting in names.items() for word in (name, setting)]
    settings = dict(re.findall(r"(\w+)='(.*)'", _do(["apt-config", "shell", *asked])))
    environment = {}
    if proxy := settings.get("proxy"):
        environment["http_proxy"] = proxy
    if proxy := settings.get("https_proxy", settings.get("proxy")):
        environment["https_proxy"] = proxy
    if ca := settings.get("ca"):
        environment["WGETRC"] = str(root.parent / "wgetrc")
        Path(environment["WGETRC"]).write_text(f"ca_certificate = {ca}\n")
    program = _program("debootstrap") or "debootstrap"
    _do([program, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root), *mirror], **environment)


def _wheels(directory: Path, requirements: list[str]) -> None:
    """Fetch what syslogger needs at run time, for the machine's Python, whatever this one is."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    sources = [one for one in requirements if one.startswith("bernhard")]  # the one that has no wheel
    _do([*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), *sources])
    kinds = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in range(17, NEWEST_GLIBC + 1)]
    only = [f"--python-version={PYTHON}", "--only-binary=:all:", f"--platform=manylinux2014_{platform.machine()}"]
    _do([*pip, "download", "--find-links", str(directory), "--dest", str(directory), *only, *kinds, *requirements])


def wheel(directory: Path, version: str = "") -> Path:
    """Build syslogger's wheel from the sources as they are, as `version` if one is given; return its path."""
    source = directory / f"source-{version or 'as-is'}"
    source.mkdir(parents=True)
    shutil.copytree(ROOT / "syslogger", source / "syslogger", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    project = (ROOT / "pyproject.toml").read_text()
    if version:
        project = re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project)
    (source / "pyproject.toml").write_text(project)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _do([*pip, "wheel", "--no-deps", "--wheel-dir", str(source), str(source)])
    return next(source.glob("*.whl"))


def _do(argv: list[str], **environment: str) -> str:
    """Run a program to its end; return what it prints, AssertionError with that if it fails."""
    done = subprocess.run(
        argv,
        check=False,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{' '.join(argv)} failed:\n{done.stdout[-4000:]}"
    return done.stdout


# What is booted.


class Machine(Part):
    """One machine. Everything in it ends with it, and it ends with the test."""

    start_seconds = 60.0

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.machine_name = f"m-{os.getpid()}-{random.randrange(16**6):06x}"  # noqa: S311
        self.leader = 0
        """Its systemd, by its id here."""
        self._groups = [Path(mount, self.machine_name) for mount in _control_groups()]

    def argv(self) -> list[str]:
        for group in self._groups:
            group.mkdir()
        return [
            "sh",
            "-c",
            # A control group of its own: its systemd takes the group that it finds itself in for the whole machine's.
            "".join(f"echo $$ >{group}/cgroup.procs && " for group in self._groups) + 'exec "$0" "$@"',
            _program("systemd-nspawn") or "systemd-nspawn",
            "--boot",
            "--quiet",
            "--register=no",  # there may be no systemd here
            "--keep-unit",
            f"--directory={image()}",
            f"--machine={self.machine_name}",
            "--read-only",
            "--volatile=overlay",
            "--private-network",
            "--console=pipe",
        ]

    def ready(self) -> bool:
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                inside = re.search(r"(?m)^NSpid:.*\t1$", Path(f"/proc/{child}/status").read_text())
                # Until its root is its own, a command "inside" would reach this machine's systemd.
                if inside and Path(f"/proc/{child}/root/{MARK}").exists():
                    self.leader = int(child)
        if not self.leader:
            return False
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def sigkill(self) -> None:
        """Pull its plug; on return all its processes are gone."""
        if self.alive and self.leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.leader, signal.SIGKILL)  # and the kernel ends all that is under it
            with contextlib.suppress(subprocess.TimeoutExpired):
                assert self.process is not None
                self.process.wait(10)
        super().sigkill()
        self.leader = 0
        for group in self._groups:
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of its own log and, while it runs, of its journal of syslogger and rsyslog."""
        journal = ""
        if self.alive and self.leader:
            with contextlib.suppress(subprocess.TimeoutExpired):
                journal = self.run(
                    "journalctl", "--no-pager", f"--lines={lines}", "--unit=syslogger", "--unit=rsyslog", check=False
                )
        return super().log_tail(lines) + "\n" + journal

    def run(self, *argv: str, check: bool = True, seconds: float = 60.0) -> str:
        """Run a command in it as root and return what it prints; AssertionError with that if it fails and `check`."""
        done = subprocess.run(
            ["nsenter", f"--target={self.leader}", "--mount", "--pid", "--net", "--uts", "--ipc", "--", *argv],
            check=False,
            cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
        assert done.returncode == 0 or not check, f"{' '.join(argv)} failed in {self.name}:\n{done.stdout}"
        return done.stdout

    def path(self, inside: str) -> Path:
        """Where a file of the machine is seen from here, while it runs."""
        return Path(f"/proc/{self.leader}/root") / inside.lstrip("/")

    def write(self, inside: str, text: str) -> None:
        """Write a file, and the directories above it."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Move this thread, and the threads and processes that it starts, into the machine's network meanwhile."""
        with Path("/proc/thread-self/ns/net").open() as here, Path(f"/proc/{self.leader}/ns/net").open() as there:
            _enter_network(there.fileno())
            try:
                yield
            finally:
                _enter_network(here.fileno())

    def connections_to(self, port: int) -> list[tuple[int, int]]:
        """Return the client sides of the established TCP connections to a port: (local port, the socket's inode)."""
        rows = (line.split() for line in Path(f"/proc/{self.leader}/net/tcp").read_text().splitlines()[1:])
        return [
            (int(row[1].rpartition(":")[2], 16), int(row[9]))
            for row in rows
            if row[3] == ESTABLISHED and int(row[2].rpartition(":")[2], 16) == port
        ]


def _control_groups() -> list[Path]:
    """Return the directories of this process's control group in the hierarchies that systemd uses."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounts[""] = where
        elif kind == "cgroup" and "name=systemd" in options.split(","):
            mounts["name=systemd"] = where
    groups = (line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    found = [Path(mounts[hierarchy], path.lstrip("/")) for hierarchy, path in groups if hierarchy in mounts]
    return [path for path in found if path.is_dir()]


def _enter_network(descriptor: int) -> None:
    # os.setns is there from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")


class Service:
    """syslogger in a machine, as the README installs it: in /opt/syslogger, with the shipped units."""

    unit = "syslogger.service"
    units = ("syslogger.socket", unit)
    directory = "/etc/syslogger"
    port = 1514

    def __init__(self, machine: Machine, package: Path, config: Mapping[str, Any]) -> None:
        self.machine = machine
        self.install(package)
        self.configure(config)
        for name in self.units:
            self.machine.write(f"/etc/systemd/system/{name}", (ROOT / "packaging" / name).read_text())
        self.machine.run("ln", "-s", "/opt/syslogger/bin/syslogger", "/usr/local/bin")
        self.machine.run("systemctl", "daemon-reload")

    def install(self, package: Path) -> None:
        """Install a wheel of syslogger in place of the one that is there."""
        copy = self.machine.path(f"/root/{package.name}")
        shutil.copy(package, copy)
        self.machine.run(
            "/opt/syslogger/bin/pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall",
            f"/root/{package.name}", seconds=120,
        )  # fmt: skip

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the configuration file."""
        self.config = {"listeners": [{"address": f":{self.port}"}]} | dict(config)
        self.machine.write(f"{self.directory}/syslogger.toml", toml(self.config))

    def add_to_unit(self, text: str) -> None:
        """Change the unit by a drop-in."""
        self.machine.write(f"/etc/systemd/system/{self.unit}.d/test.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def systemctl(self, verb: str, *options: str) -> str:
        return self.machine.run("systemctl", verb, *options, self.unit)

    def start(self) -> None:
        """Start it and enable it, as an operator does; return when it serves."""
        self.machine.run("systemctl", "enable", "--now", *self.units)

    def status(self) -> str:
        """Return what `systemctl status` says, without the journal's lines."""
        return self.machine.run("systemctl", "status", "--lines=0", "--full", self.unit, check=False)

    def shows(self, name: str) -> str:
        """Return one property of the unit."""
        return self.systemctl("show", f"--property={name}", "--value").strip()

    @property
    def main_pid(self) -> int:
        """The main process's id inside; 0 while there is none."""
        return int(self.shows("MainPID"))

    def signal_main(self, number: signal.Signals) -> int:
        """Send a signal to the main process; return which one that was."""
        pid = until(lambda: self.main_pid, "syslogger has a main process")
        self.machine.run("sh", "-c", f"kill -{number.value} {pid}")
        return pid

    def version(self) -> str:
        """Return the version that its metrics name, "" while it has none. To be asked from within the network."""
        with contextlib.suppress(OSError), urllib.request.urlopen("http://127.0.0.1:9514/metrics", timeout=5) as answer:
            found = re.search(r'[{,]version="([^"]*)"', answer.read().decode())
            return found[1] if found else ""
        return ""

    def starts(self) -> int:
        """Return how often it has begun to start, by systemd or by itself."""
        return self.journal().count("Metrics are at")

    def journal(self) -> str:
        """Return what the journal has of the unit: its own lines, and systemd's about it."""
        return self.machine.run("journalctl", "--no-pager", "--output=short-precise", f"--unit={self.unit}")


class InsideRsyslog:
    """The machine's own rsyslog, with the shipped configuration, and a file whose lines it follows and sends."""

    followed = "/var/log/numbers"

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.write(self.followed, "")
        machine.write("/etc/rsyslog.d/60-syslogger.conf", SENDING_SIDE.read_text())
        machine.write(
            "/etc/rsyslog.d/10-numbers.conf",
            'module(load="imfile")\n'
            f'input(type="imfile" file="{self.followed}" tag="numbers:" severity="info" facility="local0")\n',
        )
        machine.run("rsyslogd", "-N1")
        machine.run("systemctl", "restart", "rsyslog")

    def write(self, lines: Iterator[str]) -> None:
        with self.machine.path(self.followed).open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))
