"""Holds a program open until a signal; what it asks of and tells the service manager. Imports nothing of ours.

Sources: sd_notify(3), sd_listen_fds(3), sd_pid_notify_with_fds(3), systemd.service(5).
"""

from __future__ import annotations

import array
import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn, Self

import uvloop

_FIRST_FD = 3
"""SD_LISTEN_FDS_START"""

_HANDED_OVER = "_SYSLOGGER_SOCKETS"
"""Names the file in which a process that re-executes itself leaves the numbers of its open sockets."""

_PEERS, _PEERS_NAME = "_SYSLOGGER_PEERS", "peers"
"""The variable with the number of the file of `_Peers`, and what that is called in the file descriptor store."""

_REHEARSE_SECONDS = 20.0

_AGAIN_SECONDS = 0.01
"""When to try again to tell a service manager whose socket is full."""


_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""


class Stop:
    """What signals ask for."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        """SIGTERM or SIGINT: finish what is in flight and end."""
        self.at_once = asyncio.Event()
        """A second one: do not finish."""
        self.reload = asyncio.Event()
        """SIGHUP: begin anew with the configuration and the code as they are now."""

    def ask(self) -> None:
        """Ask once more."""
        (self.at_once if self.asked.is_set() else self.asked).set()


class Handover(NamedTuple):
    """What a `main` returns to be re-executed with these sockets open."""

    sockets: list[socket.socket]


Main = Callable[[Stop], Coroutine[None, None, int | Handover]]


def run(main: Main) -> int:
    """Run `main` on a fresh uvloop; return its exit status, or re-execute the program as it was started."""
    keep_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(_hold(main))
    if isinstance(outcome, Handover):
        _execute_again(outcome.sockets)
    return outcome


def keep_memory() -> None:
    """Have the C library keep what is freed for the next batch, 16 MiB at most.

    Else it gives the pages back and they are faulted in anew: a fifth of the CPU at full speed (mallopt(3)).
    """
    with suppress(AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 16 << 20)


async def _hold(main: Main) -> int | Handover:
    stop = Stop()
    with _signals({signal.SIGTERM: stop.ask, signal.SIGINT: stop.ask, signal.SIGHUP: stop.reload.set}):
        outcome = await main(stop)
        if isinstance(outcome, Handover):
            # What comes before the next loop hears it waits for that: neither is forgotten by execve(2).
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            if stop.asked.is_set():
                signal.raise_signal(signal.SIGTERM)
    return outcome


@contextmanager
def _signals(calls: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, call in calls.items():
        loop.add_signal_handler(number, call)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        yield
    finally:
        for number in calls:
            loop.remove_signal_handler(number)


def _execute_again(sockets: list[socket.socket]) -> NoReturn:
    """Replace the process by a new start of the same command line; only the sockets stay open."""
    # A file in memory: a variable could not name ten thousand of them (MAX_ARG_STRLEN).
    memory = os.memfd_create("sockets", 0)
    os.write(memory, json.dumps([sock.fileno() for sock in sockets]).encode())
    for sock in sockets:
        sock.set_inheritable(True)
    os.environ[_HANDED_OVER] = str(memory)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - our own command line


async def rehearse(argument: str) -> str:
    """Start the same command line with ``--rehearse=ARGUMENT``, which ends before it serves; return why it failed.

    The text is empty if a new start would succeed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *sys.orig_argv[1:],
        f"--rehearse={argument}",
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_REHEARSE_SECONDS):
            _, said = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"it did not start within {_REHEARSE_SECONDS:.0f} s"
    lines = said.decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit status {process.returncode}") if process.returncode else ""


def inherited() -> tuple[list[socket.socket], list[socket.socket]]:
    """Return the sockets that this process was started with, non-blocking; a second call finds none.

    The first list is of those that a process of ours had before (the file descriptor store, `Handover`), the second of
    those that the service manager opened (a socket unit).
    """
    ours: list[socket.socket] = []
    units: list[socket.socket] = []
    for fd, name in (*_from_manager(), *_from_before()):
        if name == _PEERS_NAME:
            os.environ[_PEERS] = str(fd)
            continue
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        sock.set_inheritable(False)
        (ours if name in {"", _name(sock)} else units).append(sock)
    return ours, units


def _from_manager() -> list[tuple[int, str]]:
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return [(_FIRST_FD + number, "".join(names[number : number + 1]) or "unknown") for number in range(int(count))]


def _from_before() -> list[tuple[int, str]]:
    memory = os.environ.pop(_HANDED_OVER, "")
    if not memory:
        return []
    with os.fdopen(int(memory), "r+") as file:
        file.seek(0)
        return [(int(fd), "") for fd in json.load(file)]


class Manager:
    """The service manager, if there is one: it is told how the program is, and keeps duplicates of its sockets.

    What is told never waits: while the manager's socket is full it is kept, in order, and told as soon as it can be.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        usec = os.environ.get("WATCHDOG_USEC", "")
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdecimal() and self._address else 0.0
        """How often at least it wants ``WATCHDOG=1``; 0 if it does not watch."""
        self._sock: socket.socket | None = None
        self._untold: deque[tuple[bytes, socket.socket | _Peers | None]] = deque()
        self._again: asyncio.TimerHandle | None = None
        self._peers = _Peers()

    def __enter__(self) -> Self:
        if self._address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            # A manager that cannot hear is no reason to end.
            with suppress(OSError):
                self._sock.connect("\0" + self._address[1:] if self._address.startswith("@") else self._address)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._again:
            self._again.cancel()
        if self._sock:
            self._sock.close()
            self._sock = None

    def tell(self, *assignments: str, keep: socket.socket | _Peers | None = None) -> None:
        """Send assignments such as ``READY=1``, and a descriptor with them; do nothing where there is no manager."""
        if self._sock:
            self._untold.append(("\n".join(assignments).encode(), keep))
            self._tell()

    def keep(self, sock: socket.socket) -> None:
        """Have a duplicate kept (FileDescriptorStoreMax=), for the next start should this process die.

        It is kept whatever becomes of the connection (``FDPOLL=0``): bytes that nobody has read may wait in it.
        """
        if self._sock:
            self.tell("FDSTORE=1", f"FDNAME={_name(sock)}", "FDPOLL=0", keep=sock)

    def call(self, sock: socket.socket, peer: str) -> None:
        """Have the next process that gets the socket, a re-executed one too, call who is at its other end `peer`."""
        if self._peers.note(sock, peer):
            self.tell("FDSTORE=1", f"FDNAME={_PEERS_NAME}", "FDPOLL=0", keep=self._peers)

    def forget(self, sock: socket.socket) -> None:
        """Have the duplicate let go."""
        self._peers.forget(sock)
        if self._sock:
            self.tell("FDSTOREREMOVE=1", f"FDNAME={_name(sock)}")

    def peer_of(self, sock: socket.socket) -> str:
        """Return what a process before this one has called the peer of a socket; empty if nothing."""
        return self._peers.known(sock)

    def _tell(self) -> None:
        self._again = None
        while self._sock and self._untold:
            text, sock = self._untold[0]
            ancillary = []
            if sock and sock.fileno() >= 0:
                ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()])))
            try:
                self._sock.sendmsg([text], ancillary)
            except BlockingIOError:
                self._again = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._tell)
                return
            except OSError:
                pass  # as in `__enter__`
            self._untold.popleft()


class _Peers:
    """What the peers of kept sockets are called, where the socket cannot tell, in a file that outlives the process.

    It is in memory, of lines of one length, ``INODE PEER``; the lines of sockets that are kept no more are blank.
    """

    _LINE = 96

    def __init__(self) -> None:
        self._fd = -1
        self._size = 0
        self._lines: dict[int, tuple[int, str]] = {}
        self._blank: list[int] = []
        self._is_read = False

    def fileno(self) -> int:
        return self._fd

    def note(self, sock: socket.socket, peer: str) -> bool:
        """Call the peer of a socket so; return whether that has made the file."""
        self._read()
        made = self._fd < 0
        if made:
            # Without MFD_CLOEXEC: it stays open for who takes the place of this process.
            self._fd = os.memfd_create(_PEERS_NAME, 0)
            self._is_read = True
            os.environ[_PEERS] = str(self._fd)
        inode = os.fstat(sock.fileno()).st_ino
        if self._blank:
            place = self._blank.pop()
        else:
            place, self._size = self._size, self._size + self._LINE
        self._lines[inode] = place, peer
        self._write(place, f"{inode} {peer}")
        return made

    def known(self, sock: socket.socket) -> str:
        """Return what the peer of a socket is called; empty if nothing is."""
        self._read()
        return self._lines[inode][1] if self._lines and (inode := os.fstat(sock.fileno()).st_ino) in self._lines else ""

    def forget(self, sock: socket.socket) -> None:
        """Blank the line of a socket, if there is one."""
        if self._lines and (line := self._lines.pop(os.fstat(sock.fileno()).st_ino, None)):
            self._write(line[0], "")
            self._blank.append(line[0])

    def _write(self, place: int, text: str) -> None:
        os.pwrite(self._fd, text.encode()[: self._LINE - 1].ljust(self._LINE - 1) + b"\n", place)

    def _read(self) -> None:
        """Read what the process before has left, once `inherited` has found it."""
        if self._is_read or not os.environ.get(_PEERS):
            return
        self._is_read = True
        self._fd = int(os.environ[_PEERS])
        self._size = os.fstat(self._fd).st_size
        for place in range(0, self._size, self._LINE):
            inode, _, peer = os.pread(self._fd, self._LINE, place).decode().strip().partition(" ")
            if inode:
                self._lines[int(inode)] = place, peer
            else:
                self._blank.append(place)


def _name(sock: socket.socket) -> str:
    """Return a name of the socket that no other has, and that a process it is handed to finds again.

    It is short: all names together come back in one variable, which holds 131,072 bytes.
    """
    number, name = os.fstat(sock.fileno()).st_ino, ""
    while number:
        number, digit = divmod(number, 36)
        name = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + name
    return name
