"""Unix stream sockets: bound by path, named by process, and read as TCP sockets are.

What is different from TCP (Linux 6.18, each tried; unix(7)):

* MSG_TRUNC discards nothing without copying it; a consume copies.
* A peek ends behind a send that carries descriptors, as at urgent data, however much follows. FIONREAD counts what
  follows too, so the two are compared at every peek. The descriptors are dropped.
* SO_RCVLOWAT holds no edge back: each send is one.
* What is not consumed counts against the *sender's* buffer (SO_SNDBUF, 212,992 by default), with some 700 bytes more
  for each send; SO_RCVBUF is for nothing. So a record that comes in more than 277 sends, or is too large, never is
  whole: the peer waits for room, and this end for the rest. See `_STALLED_SECONDS`.
* A half-close is an edge at this end too.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path

from .errors import ConfigError
from .streams import PlainStream, Poller

_STALLED_SECONDS = 10.0
"""An unfinished record that nothing has joined for so long is a record as it is.

Nothing at this end tells a peer that has no room left from one that has nothing more to say yet."""

_SOCKETS = Path("/proc/net/unix")

_CREDENTIALS = struct.Struct("3i")
"""struct ucred of unix(7): process, user, group."""


class UnixStream(PlainStream):
    """A `Stream` over a unix socket. `final` may also be ``stalled``."""

    def __init__(self, sock: socket.socket, poller: Poller) -> None:
        super().__init__(sock, poller)
        # There may be a mark at any time, with no event to tell of it.
        self._urgent = True
        self._stalled = False

    async def _wait(self) -> None:
        timer = self._loop.call_later(_STALLED_SECONDS, self._stall) if self._left else None
        try:
            await super()._wait()
        finally:
            if timer:
                timer.cancel()

    def _stall(self) -> None:
        self._stalled = True
        self._more = True
        self._wake()

    def peek(self) -> bytes:
        """See `Stream`."""
        left, stalled, self._stalled = self._left, self._stalled, False
        data = super().peek()
        if stalled and not self.final and len(data) == left:
            self.final = "stalled"
        return data


def bind_unix(path: str, mode: int, setting: str, inherited: list[socket.socket] | None = None) -> socket.socket:
    """Return a socket bound to `path`, with these permissions; a file there that is no socket's any more is removed.

    A socket of `inherited` that has the path already is taken from that list instead of a new one. Raises
    `ConfigError`, naming `setting`, if somebody listens there or it cannot be bound.
    """
    for sock in inherited or ():
        # Where the file has been removed nobody would find it.
        if sock.family == socket.AF_UNIX and sock.getsockname() == path and Path(path).exists():
            inherited.remove(sock)  # type: ignore[union-attr] # it has some
            return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        sock.bind(path)
        # It does not listen yet: nobody was let in by other permissions.
        Path(path).chmod(mode)
    except OSError as error:
        sock.close()
        why = str(error.strerror or error)
        if error.errno != errno.EADDRINUSE:
            why += "; its directory must exist, and be syslogger's to write to"
        raise ConfigError(f"{setting}: cannot listen on unix:{path}: {why}") from error
    return sock


def _remove_stale(path: str) -> None:
    """Remove a socket file that no socket has any more; raise OSError (EADDRINUSE) if it is anything else."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "a file that is no socket has this name; remove it or choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                if not _is_bound(path):
                    Path(path).unlink()
                    return
            except BlockingIOError:
                pass  # its backlog is full
        raise OSError(errno.EADDRINUSE, "another program already listens there; stop it or choose another path")


def _is_bound(path: str) -> bool:
    """Whether a socket has this path that nobody listens on yet: a syslogger that waits for Kafka, say."""
    # Number, references, protocol, flags, type, state (1: not connected), inode, path.
    sockets = (line.split(maxsplit=7) for line in _SOCKETS.read_text(errors="surrogateescape").splitlines())
    return any(fields[5] == "01" and fields[7:] == [path] for fields in sockets)


def close_bound(sock: socket.socket) -> None:
    """Close a socket that was bound to listen on; the file of one that this program has bound is removed.

    A socket unit's file stays: the service manager, whose child this process is, began to listen there.
    """
    if sock.fileno() >= 0 and sock.family == socket.AF_UNIX and _credentials(sock)[0] != os.getppid():
        with suppress(OSError):
            Path(sock.getsockname()).unlink()
    sock.close()


def peer_of(sock: socket.socket) -> str:
    """Return words for the peer of a connection: its process, user and where it has connected."""
    process, user = _credentials(sock)
    return f"process {process} of user {user} at unix:{sock.getsockname()}"


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """Return the process and user of the peer, or of who began to listen; process 0 if nobody did or it is not seen."""
    process, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return process, user
