"""Accepts peers or refuses them, and holds the connections that came through; the caps on them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from . import proxy_protocol
from .admission import Admission
from .connection import Connection
from .counters import Counters
from .errors import ConfigError, ProxyHeaderError
from .framing import Framing
from .framing.relp import Relp
from .service import Manager
from .session import Session
from .sink import Sink
from .streams import PlainStream, Poller, Stream
from .tls import Tls, TlsStream
from .unix_sockets import UnixStream, close_bound, peer_of

_log = logging.getLogger(__name__)

_BACKLOG = 1024
"""Peers that wait to be accepted; nginx has 511, rsyslog 10 % of its sessions. `net.core.somaxconn` caps it."""

_ACCEPTS_A_WAKE = 64
"""Then the connections have their turn: a storm of peers does not stop the delivery."""

_OUT_OF_FILES_SECONDS = 1.0
"""How long accepting pauses when no file can be opened: another process may be the cause, so time must mend it too."""

_Address = tuple[str, int] | str
"""Host and port; or a unix socket's path, empty for most peers."""

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_PROBES = 60, 10, 6
"""A peer that vanished without a word is noticed after two minutes (Linux: two hours)."""

_HEADER_SECONDS = 5.0
"""How long a proxy may take to say whose connection it passes on; HAProxy sends that at once."""

_AGE_JITTER = 0.1
"""Which part of its age a connection may end sooner or later: who came together does not come again together."""

_OUTAGE_SECONDS = 1.0
"""While so long nothing is delivered, though something waits, nobody is told to end for its age."""


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
        raise cannot_listen(setting, host, port, error) from error
    return sockets


def _covers(sock: socket.socket, address: tuple[str, int]) -> bool:
    """Whether who connects to `address` comes to `sock`."""
    if sock.family == socket.AF_UNIX:
        return False
    own = sock.getsockname()[:2]
    return own == address or (own[1] == address[1] and own[0] in {"::", "0.0.0.0"})  # noqa: S104 - compared


def cannot_listen(setting: str, host: str, port: int, error: OSError) -> ConfigError:
    """Return the error that says in words why `host` and `port` of `setting` cannot be bound."""
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


class Terms(NamedTuple):
    """How the peers of a listener are served, and what is asked of them."""

    framing: Framing
    admission: Admission = Admission()
    tls: Tls | None = None

    @property
    def answered(self) -> bool:
        """Whether a peer is answered, and sends again what was not."""
        return isinstance(self.framing, Relp)

    @property
    def kept(self) -> bool:
        """Whether connections are worth keeping beyond a kill.

        No other process could decrypt what came over TLS. A RELP session that breaks is mended by its peer; one that
        goes on in another process could be answered twice.
        """
        return not self.answered and not self.tls


@dataclass(slots=True, eq=False)
class _Guest:
    """One peer, from when it is accepted or adopted until its end."""

    stream: Stream
    peer: str
    host: str
    """Its address; empty if it has none, or if nobody knows it yet."""
    terms: Terms
    connection: Connection | None = None
    """None while its proxy has yet to say whose connection it is."""
    announced: asyncio.Event | None = None
    """Set when that is settled; None if there is no such proxy."""
    expiry: asyncio.TimerHandle | None = None
    expired: bool = False
    refused: bool = False

    @property
    def resends(self) -> bool:
        """Whether the peer sends again, on another connection, what was not consumed."""
        return self.connection.resends if self.connection else self.terms.answered

    def end(self) -> None:
        """Tell the peer to end; what it sends until then is still delivered."""
        if self.connection:
            self.connection.end()
        else:
            self.stream.half_close()

    def close(self) -> None:
        (self.connection or self.stream).close()

    def release(self) -> socket.socket:
        return (self.connection or self.stream).release()


class Connections:
    """The open connections of all listeners, at most `most` of them, each with a duplicate kept by the manager.

    At most `most_per_address` of them are of one address; 0 sets no bound.
    """

    def __init__(
        self,
        most: int,
        open_sink: Callable[[str], Sink],
        poller: Poller,
        manager: Manager,
        counters: Counters,
        *,
        most_per_address: int = 0,
    ) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._manager = manager
        self._open_sink = open_sink
        self._poller = poller
        self._counters = counters
        self._open: dict[asyncio.Task[None], _Guest] = {}
        self._of_address: dict[str, int] = {}
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

    def accept(self, sock: socket.socket, address: _Address, terms: Terms) -> None:
        """Serve a socket that was just accepted until its end; or close it, if its peer may not send."""
        peer, host = (peer_of(sock), "") if isinstance(address, str) else (name(address), host_of(address))
        through_proxy = host in terms.admission.proxies
        if not through_proxy and self._refuses(peer, host, terms.admission):
            sock.close()
            return
        self._counters.connections_accepted += 1
        tls = None if through_proxy else terms.tls
        guest = _Guest(self._stream(sock, peer, tls), peer, host, terms)
        if through_proxy:
            guest.announced = asyncio.Event()
        else:
            if terms.kept:
                self._manager.keep(sock)
            self._admit(guest)
        self._start(guest)

    def adopt(self, sock: socket.socket, terms: Terms) -> None:
        """Serve a socket that this process was started with until its end; what nobody has consumed is still in it.

        What a proxy says first was consumed before the manager was given the socket to keep. It is not TLS, whatever
        its listener speaks now: none is handed over.
        """
        self._counters.connections_adopted += 1
        if told := self._manager.peer_of(sock):
            peer, host = told, told.rpartition(":")[0].strip("[]")
        else:
            peer, host = name_of(sock), _host_behind(sock)
        guest = _Guest(self._stream(sock, peer, None), peer, host, terms)
        self._admit(guest)
        self._start(guest)

    def _stream(self, sock: socket.socket, peer: str, tls: Tls | None) -> Stream:
        if tls:
            return TlsStream(sock, self._poller, tls, peer, self._counters)
        kind = UnixStream if sock.family == socket.AF_UNIX else PlainStream
        return kind(sock, self._poller)

    def _refuses(self, peer: str, host: str, admission: Admission) -> bool:
        """Whether this peer may not send; if so it is counted and logged."""
        cause = ""
        if host and not admission.allows(host):
            cause = "allow"
            _log.warning("%s was refused, and nothing of it read: it is not in %s.allow.", peer, admission.setting)
        elif host and 0 < self._most_per_address <= self._of_address.get(host, 0):
            cause = "per_address"
            text = "%s was refused, and nothing of it read: %s has as many open as max_connections_per_address allows."
            _log.warning(text, peer, host)
        if cause:
            self._counters.connections_refused[cause] += 1
        return bool(cause)

    def _admit(self, guest: _Guest) -> None:
        """Connect a peer that may send to a sink of its own."""
        sink = self._open_sink(guest.peer)
        kind = Session if guest.terms.answered else Connection
        guest.connection = kind(guest.peer, guest.stream, guest.terms.framing, sink, self._counters)
        if guest.host:
            self._of_address[guest.host] = self._of_address.get(guest.host, 0) + 1
        if age := guest.terms.admission.max_age_seconds:
            age *= random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)  # noqa: S311 - no secret
            guest.expiry = asyncio.get_running_loop().call_later(age, self._expire, guest)

    def _expire(self, guest: _Guest, delivered_before: int = -1) -> None:
        counters = self._counters
        if counters.records_in_flight and delivered_before in {-1, counters.records_delivered}:
            # In an outage each peer would come again and again, and leave a connection that waits behind each time.
            loop, delivered = asyncio.get_running_loop(), counters.records_delivered
            guest.expiry = loop.call_later(_OUTAGE_SECONDS, self._expire, guest, delivered)
            return
        guest.expired = True
        guest.end()

    def _start(self, guest: _Guest) -> None:
        # Nothing stands between the loop and a connection that has no proxy: each wake would pass it.
        served = guest.connection.run() if guest.connection else self._serve_announced(guest)
        task = asyncio.get_running_loop().create_task(served)
        self._open[task] = guest
        self._none_open.clear()
        self._counters.connections_open += 1
        task.add_done_callback(self._end)
        if self._draining:
            guest.end()

    async def _serve_announced(self, guest: _Guest) -> None:
        try:
            await self._announce(guest)
        finally:
            if guest.announced:
                guest.announced.set()
        if guest.connection:
            await guest.connection.run()

    async def _announce(self, guest: _Guest) -> None:
        """Wait until the proxy has said whose connection it passes on, and admit that peer or refuse it."""
        proxy = guest.peer
        try:
            async with asyncio.timeout(_HEADER_SECONDS):
                header = await _header(guest.stream)
        except (ProxyHeaderError, TimeoutError) as error:
            guest.refused = True
            self._counters.connections_refused["proxy_header"] += 1
            why = str(error) or f"it sent no PROXY header within {_HEADER_SECONDS:g} s"
            text = "%s, a proxy of %s.proxy_protocol_from, was refused, and no record of it read: %s."
            _log.warning(text, proxy, guest.terms.admission.setting, why)
            return
        if not header:
            return
        if header.source:
            guest.peer, guest.host = name(header.source), header.source[0]
        terms = guest.terms
        guest.refused = self._refuses(guest.peer, guest.host, terms.admission)
        if not guest.refused:
            if terms.tls:
                guest.stream = self._stream(guest.stream.release(), guest.peer, terms.tls)
            else:
                # Only now: whoever adopts it does not ask for a header.
                self._manager.call(guest.stream.sock, guest.peer)
            if terms.kept:
                self._manager.keep(guest.stream.sock)
            self._admit(guest)
            if self._draining:
                guest.end()

    def _end(self, task: asyncio.Task[None]) -> None:
        guest = self._open.pop(task)
        cause = guest.stream.ended
        if guest.refused:
            cause = "refused"
        elif guest.expired and cause in {"eof", "quiet", "serverclose"}:
            cause = "age"
        if not task.cancelled() and (error := task.exception()):
            cause = "error"
            _log.error("%s was let go by a fault in syslogger; please report it.", guest.peer, exc_info=error)
        if self._released is not None and not cause:
            cause = "handover"
            self._released.append(guest.release())
        elif not cause and task.cancelled():
            cause = "deadline"
            # What the manager keeps of it may have another chance, in the next process.
            guest.release().close()
        else:
            if guest.connection and guest.stream.transferable:
                self._manager.forget(guest.stream.sock)
            guest.close()
        self._forget(guest)
        self._counters.connections_open -= 1
        self._counters.connections_ended[cause] += 1
        if not self._open:
            self._none_open.set()
        freed, self._freed = self._freed, []
        for call in freed:
            call()

    def _forget(self, guest: _Guest) -> None:
        if guest.expiry:
            guest.expiry.cancel()
        if guest.connection and guest.host:
            self._of_address[guest.host] -= 1
            if not self._of_address[guest.host]:
                del self._of_address[guest.host]

    def half_close(self) -> None:
        """Tell every peer to end, and whoever still comes. They are read until they have."""
        self._draining = True
        for guest in self._open.values():
            guest.end()

    async def untransferable_ended(self) -> None:
        """Tell the peers to end whose connections no other process could go on with; wait until they have."""
        for guest in self.untransferable:
            guest.end()
        while self.untransferable:
            one_ended = asyncio.Event()
            self.when_freed(one_ended.set)
            await one_ended.wait()

    @property
    def untransferable(self) -> list[_Guest]:
        """The connections that only this process can serve."""
        return [guest for guest in self._open.values() if not guest.stream.transferable]

    async def ended(self) -> None:
        """Wait until no connection is open."""
        await self._none_open.wait()

    async def announced(self) -> None:
        """Wait until no proxy has yet to say whose connection it passes on; that is seconds at most."""
        for guest in list(self._open.values()):
            if guest.announced:
                await guest.announced.wait()

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
        """End the connections that are left; return their peers, and how many bytes of each were not delivered.

        Those that send again what was not delivered are not among them.
        """
        left = [(guest.peer, guest.stream.unconsumed()) for guest in self._open.values() if not guest.resends]
        for task in self._open:
            task.cancel()
        await self.ended()
        return left


async def _header(stream: Stream) -> proxy_protocol.Header | None:
    """Take the PROXY header off a stream; return None if the stream ends before its first byte.

    Raises `ProxyHeaderError` if it begins with anything else.
    """
    came = False
    while await stream.readable():
        data = stream.peek()
        if header := proxy_protocol.parse(data):
            stream.consume(header.size, more=True)
            return header
        came = came or bool(data)
        if stream.final:
            break
        stream.consume(0)
    if came:
        raise ProxyHeaderError("it ended within its PROXY header")
    return None


class Listener:
    """One bound socket, whose peers become connections while it is open."""

    def __init__(
        self,
        sock: socket.socket,
        terms: Terms,
        connections: Connections,
        manager: Manager,
        counters: Counters,
    ) -> None:
        self.address = name(sock.getsockname())
        self.socket = self._sock = sock
        self._manager = manager
        self._terms = terms
        self._connections = connections
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._accepting = False
        self._closed = False

    def open(self) -> None:
        """Listen and accept, also after a `pause`. Raises `OSError` if another program has begun to listen there."""
        if not is_listening(self._sock):
            self._sock.listen(_BACKLOG)
        self._manager.keep(self._sock)
        self._closed = False
        self._resume()

    def pause(self) -> None:
        """Accept nobody for now; who connects waits."""
        self._closed = True
        self._pause()

    def close(self) -> None:
        """Accept who has connected already, then nobody."""
        self.pause()
        # Closing resets who is in the backlog, with what it has sent.
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                self._accept()
        close_bound(self._sock)

    def _resume(self) -> None:
        if not self._accepting and not self._closed:
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
            if (tls := self._terms.tls) and tls.full:
                self._pause_for("handshakes", "as many TLS handshakes are under way as may be at a time")
                tls.when_freed(self._resume)
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
        self._connections.accept(sock, address, self._terms)


def is_listening(sock: socket.socket) -> bool:
    """Whether peers can connect to a socket."""
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def name_of(sock: socket.socket) -> str:
    """Return the peer of a connection, or words for one that has gone."""
    try:
        return peer_of(sock) if sock.family == socket.AF_UNIX else name(sock.getpeername())
    except OSError:
        return "a peer that has gone"


def name(address: _Address) -> str:
    """Return an address as people write it, ``host:port``, ``[v6]:port`` or ``unix:/path``; a mapped one as IPv4."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = host_of(address), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: tuple[str, int]) -> str:
    """Return the host of an address; an IPv4 one that IPv6 maps as IPv4."""
    return address[0].removeprefix("::ffff:")


def _host_behind(sock: socket.socket) -> str:
    """Return the host of a connection's peer; empty if that has gone, or has no address."""
    try:
        return "" if sock.family == socket.AF_UNIX else host_of(sock.getpeername())
    except OSError:
        return ""
