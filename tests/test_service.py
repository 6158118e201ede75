"""Signals, the service manager's protocol, and a process that re-executes itself, as the kernel really does them."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from syslogger import service
from tests.waiting import until


def test_a_signal_asks_and_a_second_one_asks_at_once() -> None:
    async def main(stop: service.Stop) -> int:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.asked.wait(), 5)
        assert not stop.at_once.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(stop.at_once.wait(), 5)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(stop.reload.wait(), 5)
        return 7

    assert service.run(main) == 7
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class FakeManager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.settimeout(5)

    def hear(self) -> tuple[list[str], list[int]]:
        """Return the assignments of one message, and the inodes of the sockets with it."""
        text, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(4))
        fds = array.array("i", b"".join(data for _, _, data in ancillary))
        inodes = [os.fstat(fd).st_ino for fd in fds]
        for fd in fds:
            os.close(fd)
        return text.decode().split("\n"), inodes


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    name = f"@syslogger-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    manager = FakeManager(name)
    yield manager
    manager.sock.close()


async def test_the_service_manager_is_told_and_keeps_sockets(manager: FakeManager) -> None:
    with service.Manager() as told, socket.socket() as sock:
        told.tell("READY=1", "STATUS=serving")
        assert manager.hear() == (["READY=1", "STATUS=serving"], [])
        told.keep(sock)
        assignments, inodes = manager.hear()
        assert inodes == [os.fstat(sock.fileno()).st_ino]
        assert assignments[0] == "FDSTORE=1"
        assert assignments[2] == "FDPOLL=0"
        told.forget(sock)
        assert manager.hear() == (["FDSTOREREMOVE=1", assignments[1]], [])


async def test_what_peers_are_called_outlives_the_process(
    manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SYSLOGGER_PEERS", "")
    one, other, third = (socket.socket() for _ in range(3))
    with service.Manager() as told, one, other, third:
        told.call(one, "192.0.2.1:4711")
        assignments, inodes = manager.hear()
        assert assignments == ["FDSTORE=1", "FDNAME=peers", "FDPOLL=0"]
        file = int(os.environ["_SYSLOGGER_PEERS"])
        assert inodes == [os.fstat(file).st_ino]
        told.call(other, "[2001:db8::1]:1")
        told.keep(other)
        assert manager.hear()[1] == [os.fstat(other.fileno()).st_ino], "the file is given once"
        assert (told.peer_of(one), told.peer_of(third)) == ("192.0.2.1:4711", "")
        # The next process: re-executed, or started with what the manager kept.
        monkeypatch.setattr(service, "_from_manager", lambda: [(file, "peers")])
        monkeypatch.delenv("_SYSLOGGER_PEERS")
        assert os.get_inheritable(file)
        assert service.inherited() == ([], [])
        following = service.Manager()
        assert (following.peer_of(one), following.peer_of(other)) == ("192.0.2.1:4711", "[2001:db8::1]:1")
        following.forget(one)
        following.call(third, "192.0.2.3:3")
        last = service.Manager()
        assert [last.peer_of(sock) for sock in (one, other, third)] == ["", "[2001:db8::1]:1", "192.0.2.3:3"]
        assert os.fstat(file).st_size == 2 * 96, "a blank line is used again"
    os.close(file)


async def test_a_manager_that_is_slow_is_told_later_and_in_order(manager: FakeManager) -> None:
    heard: list[str] = []

    def hear_all() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.extend(manager.hear()[0])
        return len(heard) >= 700

    with service.Manager() as told:
        for number in range(700):
            told.tell(f"STATUS={number}")
        manager.sock.setblocking(False)
        assert not hear_all()
        await until(hear_all)
    assert heard == [f"STATUS={number}" for number in range(700)]


async def test_a_socket_that_was_closed_meanwhile_is_not_sent(manager: FakeManager) -> None:
    with service.Manager() as told:
        sock = socket.socket()
        told._untold.append((b"FDSTORE=1", sock))
        sock.close()
        told._tell()
        assert manager.hear() == (["FDSTORE=1"], [])


async def test_no_service_manager_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with service.Manager() as told:
        told.tell("READY=1")
        assert not told._untold
    monkeypatch.delenv("NOTIFY_SOCKET")
    with service.Manager() as told, socket.socket() as sock:
        told.tell("READY=1")
        told.keep(sock)
        told.forget(sock)
        assert not told._untold


@pytest.mark.parametrize(("usec", "seconds"), [("3000000", 3.0), ("", 0.0), ("x", 0.0)])
def test_whether_it_watches(monkeypatch: pytest.MonkeyPatch, usec: str, seconds: float) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    assert service.Manager().watchdog_seconds == seconds


AS_MANAGER = """
import os, socket, sys
one, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
from syslogger import service
own = service._name(one)
os.dup2(one.fileno(), 3 + 20); os.dup2(other.fileno(), 3 + 21)
service._FIRST_FD = 23
os.environ.update(LISTEN_PID=PID, LISTEN_FDS="2", LISTEN_FDNAMES=f"{own}:syslogger.socket")
ours, units = service.inherited()
print(len(ours), len(units), [s.getblocking() for s in ours + units], service.inherited(), "LISTEN_FDS" in os.environ)
"""


@pytest.mark.parametrize(
    ("pid", "expected"),
    [("str(os.getpid())", "1 1 [False, False] ([], []) False"), ("'1'", "0 0 [] ([], []) False")],
)
def test_what_the_manager_hands_over(pid: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AS_MANAGER.replace("PID=PID", f"PID={pid}")],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr


AGAIN = """
import os, socket, sys
from syslogger import service
async def main(stop):
    ours, units = service.inherited()
    if not ours:
        one = socket.create_server(("127.0.0.1", 0))
        print(os.getpid(), one.getsockname()[1], "first", sys.argv[1:], flush=True)
        return service.Handover([one])
    print(os.getpid(), ours[0].getsockname()[1], "again", sys.argv[1:], flush=True)
    return 3
sys.exit(service.run(main))
"""


def test_a_process_that_executes_itself_again_keeps_its_sockets(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(AGAIN)
    done = subprocess.run(
        [sys.executable, program, "--flag", "a b"], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 3, done.stderr
    first, again = done.stdout.splitlines()
    assert again == first.replace("first", "again")


STOPPED = """
import asyncio, os, signal, socket, sys
from syslogger import service
if "at the next start" in sys.argv and service._HANDED_OVER in os.environ:
    os.kill(os.getpid(), signal.SIGTERM)
async def main(stop):
    ours, units = service.inherited()
    if not ours:
        if "before it" in sys.argv:
            os.kill(os.getpid(), signal.SIGTERM)
            await stop.asked.wait()
        return service.Handover([socket.create_server(("127.0.0.1", 0))])
    async with asyncio.timeout(10):
        await stop.asked.wait()
    return 3
sys.exit(service.run(main))
"""


@pytest.mark.parametrize("when", ["before it", "at the next start"])
def test_a_stop_that_comes_while_it_executes_itself_is_not_forgotten(when: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(STOPPED)
    done = subprocess.run([sys.executable, program, when], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import sys; sys.exit(0)", ""),
        ("import sys; print('x'); sys.exit('kafka.topic is wrong')", "kafka.topic is wrong"),
        ("import nonsense", "ModuleNotFoundError: No module named 'nonsense'"),
        ("import os; os._exit(4)", "exit status 4"),
        ("import sys; sys.exit(0 if sys.argv[-1] == '--rehearse=x' else 'not told')", ""),
    ],
)
async def test_a_rehearsal_says_why_it_failed(program: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    assert await service.rehearse("x") == expected


async def test_a_rehearsal_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(service, "_REHEARSE_SECONDS", 0.2)
    assert "did not start" in await service.rehearse("x")


@pytest.mark.parametrize("kept", [True, False])
def test_memory_is_kept_for_the_next_batch(kept: bool) -> None:
    program = (
        "import resource, sys\n"
        "from syslogger import service\n"
        f"{kept} and service.keep_memory()\n"
        "def faults():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def batch():\n"
        "    [bytes(300_000) for _ in range(4)]\n"
        "batch()\n"
        "before = faults()\n"
        "for _ in range(20): batch()\n"
        "print(faults() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert (int(done.stdout) < 2000) is kept, done.stdout
