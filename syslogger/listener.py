"""Accepts peers, and holds the connections that came through; the cap on them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable

from .connection import Connection
from .counters import Counters
from .errors import ConfigError
from .framing import Framing
from .service import Manager
from .sink import Sink
from .streams import PlainStream, Poller

_log = logging.getLogger(__name__)

_BACKLOG = 1024
"""Peers that wait to be accepted; nginx has 511, rsyslog 10 % of its sessions. `net.core.somaxconn` caps it."""

_ACCEPTS_A_WAKE = 64
"""Then the connections have their turn: a storm of peers does not stop the delivery."""

_OUT_OF_FILES_SECONDS = 1.0
"""How long accepting pauses when no file can be opened: another process may be the cause, so time must mend it too."""

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_PROBES = 60, 10, 6
"""A peer that vanished without a word is noticed after two minutes (Linux: two hours)."""


def bind(
    host: str, port: int, receive_buffer_bytes: int, setting: str, inherited: list[socket.socket] | None = None
) -> list[socket.socket]:
    """Return bound sockets, one for each address that `host` has; "" is every address.

    A socket of `inherited` that has the address already is taken from that list instead of a new one; it listens. A
    new one does not yet. Raises `ConfigError`, naming `setting`, if there is no such address or it is taken.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            if found := [sock for sock in inherited or () if _covers(sock, address)]:
                inherited.remove(found[0])  # type: ignore[union-attr] # it has some
                sockets.append(found[0])
                continue
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
            _set_inherited(sock, receive_buffer_bytes)
            sock.bind(address)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise _cannot_listen(setting, host, port, error) from error
    return sockets


def _covers(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Whether who connects to `address` comes to `sock`."""
    own = sock.getsockname()[:2]
    return own == address or (own[1] == address[1] and own[0] in {"::", "0.0.0.0"})  # noqa: S104 - compared


def _cannot_listen(setting: str, host: str, port: int, error: OSError) -> ConfigError:
    why = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        why = "another program already listens there; stop it or choose another port"
    elif error.errno == errno.EACCES:
        why = "ports below 1024 need the capability CAP_NET_BIND_SERVICE; choose another port or grant it"
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ConfigError(f"{setting}: cannot listen on {shown}: {why}")


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    if not host:
        # One IPv6 socket takes IPv4 peers too; a host without IPv6 has IPv4 only.
        if socket.has_dualstack_ipv6():
            return [(socket.AF_INET6, ("::", port))]
        return [(socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104 - asked for
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address[:2]) for family, _, _, _, address in found))  # type: ignore[misc]


def _set_inherited(sock: socket.socket, receive_buffer_bytes: int) -> None:
    """Set what accepted sockets inherit, so that accepting costs no more calls."""
    # Peeked bytes do not drive the kernel's auto-tuning: unset, a read shows 47 kB at most.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)


class Connections:
    """The open connections of all listeners, at most `most` of them, each with a duplicate kept by the manager."""

    def __init__(
        self, most: int, open_sink: Callable[[str], Sink], poller: Poller, manager: Manager, counters: Counters
    ) -> None:
        self._most = most
        self._manager = manager
        self._open_sink = open_sink
        self._poller = poller
        self._counters = counters
        self._open: dict[asyncio.Task[None], Connection] = {}
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._freed: list[Callable[[], None]] = []
        self._draining = False
        self._released: list[socket.socket] | None = None
        """While the connections are handed over: the sockets of those that were."""

    @property
    def peers(self) -> list[tuple[str, socket.socket]]:
        """The peers of the connections that are open now, each with its socket."""
        return [(one.peer, one.stream.sock) for one in self._open.values()]

    @property
    def full(self) -> bool:
        """Whether the cap is reached. A drain has none: who is in the backlog may have sent already."""
        return len(self._open) >= self._most and not self._draining

    def when_freed(self, call: Callable[[], None]) -> None:
        """Call once, when the next connection ends."""
        self._freed.append(call)

    def accept(self, sock: socket.socket, peer: str, framing: Framing) -> None:
        """Serve a socket that was just accepted until its end."""
        self._manager.keep(sock)
        self._counters.connections_accepted += 1
        self._start(sock, peer, framing)

    def adopt(self, sock: socket.socket, framing: Framing) -> None:
        """Serve a socket that this process was started with until its end; what nobody has consumed is still in it."""
        self._counters.connections_adopted += 1
        self._start(sock, name_of(sock), framing)

    def _start(self, sock: socket.socket, peer: str, framing: Framing) -> None:
        stream = PlainStream(sock, self._poller)
        connection = Connection(peer, stream, framing, self._open_sink(peer), self._counters)
        task = asyncio.get_running_loop().create_task(connection.run())
        self._open[task] = connection
        self._none_open.clear()
        self._counters.connections_open += 1
        task.add_done_callback(self._end)
        if self._draining:
            stream.half_close()

    def _end(self, task: asyncio.Task[None]) -> None:
        connection = self._open.pop(task)
        cause = connection.stream.ended
        if not task.cancelled() and (error := task.exception()):
            cause = "error"
            _log.error("%s was let go by a fault in syslogger; please report it.", connection.peer, exc_info=error)
        if self._released is not None and not cause:
            cause = "handover"
            self._released.append(connection.release())
        elif task.cancelled():
            cause = "deadline"
            # What the manager keeps of it may have another chance, in the next process.
            connection.release().close()
        else:
            self._manager.forget(connection.stream.sock)
            connection.close()
        self._counters.connections_open -= 1
        self._counters.connections_ended[cause] += 1
        if not self._open:
            self._none_open.set()
        freed, self._freed = self._freed, []
        for call in freed:
            call()

    def half_close(self) -> None:
        """Tell every peer to end, and whoever still comes. They are read until they have."""
        self._draining = True
        for connection in self._open.values():
            connection.stream.half_close()

    async def ended(self) -> None:
        """Wait until no connection is open."""
        await self._none_open.wait()

    async def release(self) -> list[socket.socket]:
        """Let go of every connection without ending it; return their sockets.

        What is being delivered is not consumed: whoever gets the socket delivers it again.
        """
        self._released = []
        for task in self._open:
            task.cancel()
        await self.ended()
        return self._released

    async def cut_off(self) -> list[tuple[str, int]]:
        """End the connections that are left; return their peers, and how many bytes of each were not delivered."""
        left = [(one.peer, one.stream.unconsumed()) for one in self._open.values()]
        for task in self._open:
            task.cancel()
        await self.ended()
        return left


class Listener:
    """One bound socket, whose peers become connections while it is open."""

    def __init__(
        self, sock: socket.socket, framing: Framing, connections: Connections, manager: Manager, counters: Counters
    ) -> None:
        self.address = name(sock.getsockname())
        self.socket = self._sock = sock
        self._manager = manager
        self._framing = framing
        self._connections = connections
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._accepting = False

    def open(self) -> None:
        """Listen and accept. Raises `OSError` if another program has begun to listen there."""
        if not is_listening(self._sock):
            self._sock.listen(_BACKLOG)
        self._manager.keep(self._sock)
        self._resume()

    def pause(self) -> None:
        """Accept nobody for now; who connects waits."""
        self._pause()

    def close(self) -> None:
        """Accept who has connected already, then nobody."""
        self._pause()
        # Closing resets who is in the backlog, with what it has sent.
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                self._accept()
        self._sock.close()

    def _resume(self) -> None:
        if not self._accepting and self._sock.fileno() >= 0:
            self._accepting = True
            self._loop.add_reader(self._sock.fileno(), self._accept_some)

    def _pause(self) -> None:
        if self._accepting:
            self._accepting = False
            self._loop.remove_reader(self._sock.fileno())

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_A_WAKE):
            if self._connections.full:
                self._pause_for("max_connections", "as many connections are open as max_connections allows")
                self._connections.when_freed(self._resume)
                return
            try:
                self._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    self._pause_for("files", f"{error.strerror}; raise LimitNOFILE= or lower max_connections")
                    self._loop.call_later(_OUT_OF_FILES_SECONDS, self._resume)
                    return
                # accept(2): an error that the new connection already has is no error of ours.

    def _pause_for(self, cause: str, why: str) -> None:
        self._pause()
        self._counters.accept_pauses[cause] += 1
        _log.warning("%s accepts nobody for now: %s. Who connects waits; nobody is turned away.", self.address, why)

    def _accept(self) -> None:
        sock, address = self._sock.accept()
        self._connections.accept(sock, name(address), self._framing)


def is_listening(sock: socket.socket) -> bool:
    """Whether peers can connect to a socket."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def name_of(sock: socket.socket) -> str:
    """Return the peer of a connection, or words for one that has gone."""
    try:
        return name(sock.getpeername())
    except OSError:
        return "a peer that has gone"


def name(address: tuple[str, int]) -> str:
    """Return an address as people write it, ``host:port`` or ``[v6]:port``; an IPv4 one that IPv6 maps as IPv4."""
    host, port = address[0].removeprefix("::ffff:"), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
