"""A syslogger that is started again whenever it dies, with the descriptors it had stored: what systemd does, in short.

sd_notify(3), sd_pid_notify_with_fds(3), sd_listen_fds(3).
"""

from __future__ import annotations

import array
import os
import socket
import sys
from pathlib import Path

from tests.system.parts import Syslogger, until


class Kept(Syslogger):
    """A syslogger beneath a store. `kill` is for the syslogger; SIGTERM for the store, which passes it on."""

    def argv(self) -> list[str]:
        return [sys.executable, str(Path(__file__)), str(self.directory), *super().argv()]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    @property
    def child(self) -> int:
        """The syslogger's process."""
        return int((self.directory / "child").read_text())

    def kill(self) -> None:
        """SIGKILL; return when the next one serves."""
        before = self.child
        os.kill(before, 9)
        until(lambda: self.child != before, "it is started again")
        self.wait_ready()


def _serve(directory: Path, argv: list[str]) -> int:
    path = directory / "notify"
    stored: dict[str, int] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(0.05)
        while True:
            child = os.fork()
            if not child:
                _become(argv, path, stored)
            temporary = directory / "child.new"
            temporary.write_text(str(child))
            temporary.rename(directory / "child")
            status = _listen(told, child, stored)
            if os.WIFEXITED(status):
                return os.WEXITSTATUS(status)


def _listen(told: socket.socket, child: int, stored: dict[str, int]) -> int:
    """Store what comes until the child has ended and everything that it sent is heard; return its status."""
    ended, status = 0, 0
    while True:
        try:
            text, ancillary, _, _ = told.recvmsg(4096, socket.CMSG_SPACE(4))
        except TimeoutError:
            if ended:
                return status
            ended, status = os.waitpid(child, os.WNOHANG)
            continue
        lines = text.decode().split("\n")
        name = "".join(line.removeprefix("FDNAME=") for line in lines if line.startswith("FDNAME="))
        for _, _, data in ancillary:
            stored[name] = array.array("i", data)[0]
        if "FDSTOREREMOVE=1" in lines and name in stored:
            os.close(stored.pop(name))


def _become(argv: list[str], notify: Path, stored: dict[str, int]) -> None:
    high = [os.dup2(fd, 1000 + number, inheritable=False) for number, fd in enumerate(stored.values())]
    for number, fd in enumerate(high):
        os.dup2(fd, 3 + number)
    listen = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(stored)}
    os.execve(argv[0], argv, os.environ | {"NOTIFY_SOCKET": str(notify)} | listen)  # noqa: S606


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGTERM, lambda *_: os.kill(int((Path(sys.argv[1]) / "child").read_text()), signal.SIGTERM))
    sys.exit(_serve(Path(sys.argv[1]), sys.argv[2:]))
