"""Records as they pass, shown to whoever asks on a Unix socket: the daemon's side of `syslogger tap`.

A client sends one line, ``{"peer": "…", "text": "…"}``: what must be in the peer's name and in the record, both may be
empty. It is sent a line for each record, ``{"time": 1.0, "peer": "…", "record": "…"}``, its bytes as Latin-1, and now
and then ``{"unseen": 3}``: so many records went by that there was no time for, or that it was too slow to read.
Whoever may open the socket reads everybody's messages: that is root and the user the daemon runs as.

The data path neither waits for a client nor keeps a record for one; with no client it does not know of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_log = logging.getLogger(__name__)

_SHARE = 0.05
"""Of the event loop's time, for all clients together: what does not fit goes by unseen."""

_BURST_SECONDS = 0.02
"""How much of that time may have been saved up: the longest that a delivery is delayed."""

_A_TURN = 64
"""Records that are written before the time is looked at again."""

_UNREAD_BYTES = 1 << 20
"""While a client has so much not read it is sent nothing."""

_MOST_CLIENTS = 8

_REQUEST_SECONDS = 5.0
_TELL_SECONDS = 1.0

_DIRECTORY = "RUNTIME_DIRECTORY"

See = Callable[[Sequence[bytes], str], None]


class Tap:
    """Serves a Unix socket at `path`, as an async context manager; `show` is called with who sees, or None for nobody.

    Without a path it is `tap` in the directory that systemd gives for such things, or there is none. Nor is there if
    the socket cannot be, which the log says.
    """

    def __init__(self, path: str, show: Callable[[See | None], None]) -> None:
        directory = os.environ.get(_DIRECTORY, "").partition(":")[0]
        self._path = path or (str(Path(directory, "tap")) if directory else "")
        self._show = show
        self._clients: set[_Client] = set()
        self._credit = 0.0
        self._credit_at = 0.0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        if self._path:
            try:
                self._server = await asyncio.start_unix_server(self._serve, sock=_bound(self._path), limit=4096)
            except OSError as error:
                # Not worth a start, or a reload, that fails.
                why = error.strerror or error
                _log.warning(
                    "tap.path: cannot listen on %s: %s. There is no tap; choose another path.", self._path, why
                )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._server:
            self._server.close()
            with contextlib.suppress(OSError):
                Path(self._path).unlink()  # noqa: ASYNC240 - in memory, and at the end
            for client in tuple(self._clients):
                client.writer.close()
            self._clients.clear()
            self._show(None)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = None
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                asked = json.loads(await reader.readuntil())
            if len(self._clients) >= _MOST_CLIENTS:
                writer.write(_line(error=f"{_MOST_CLIENTS} others look already"))
                return
            client = _Client(writer, str(asked.get("peer", "")), str(asked.get("text", "")))
            self._look(client)
            while not await _ended(reader, _TELL_SECONDS):
                client.tell()
        except (
            OSError,
            TimeoutError,
            ValueError,
            AttributeError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass  # it went away, or asked for nothing that there is
        finally:
            if client in self._clients:
                self._clients.discard(client)
                if not self._clients:
                    self._show(None)
            writer.close()

    def _look(self, client: _Client) -> None:
        if not self._clients:
            self._credit, self._credit_at = _BURST_SECONDS, time.perf_counter()
            self._show(self._see)
        self._clients.add(client)

    def _see(self, records: Sequence[bytes], peer: str) -> None:
        """Take note of a delivery, within the time there is for it."""
        began = time.perf_counter()
        self._credit = min(_BURST_SECONDS, self._credit + _SHARE * (began - self._credit_at))
        for client in self._clients:
            client.offer(records, peer, until=began + self._credit)
        self._credit_at = time.perf_counter()
        self._credit -= self._credit_at - began


class _Client:
    """One who looks."""

    def __init__(self, writer: asyncio.StreamWriter, peer: str, text: str) -> None:
        self.writer = writer
        self._peer = peer
        self._text = text.encode("utf-8", "surrogateescape")
        self._unseen = 0

    def offer(self, records: Sequence[bytes], peer: str, until: float) -> None:
        """Send what it asked for of these records, if there is time `until` then and it has read the last ones."""
        if self._peer not in peer:
            return
        for first in range(0, len(records), _A_TURN):
            if time.perf_counter() >= until:
                self._unseen += len(records) - first
                return
            found = [record for record in records[first : first + _A_TURN] if self._text in record]
            if not found:
                continue
            if self.writer.transport.get_write_buffer_size() > _UNREAD_BYTES:
                self._unseen += len(found)
                continue
            now = time.time()
            self.writer.write(b"".join(_line(time=now, peer=peer, record=record.decode("latin-1")) for record in found))

    def tell(self) -> None:
        """Say how many went by unseen since the last time."""
        if self._unseen and self.writer.transport.get_write_buffer_size() <= _UNREAD_BYTES:
            self.writer.write(_line(unseen=self._unseen))
            self._unseen = 0


def _line(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


async def _ended(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the client goes within so many seconds; what it sends is read and not heeded."""
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(4096):
                pass
    except TimeoutError:
        return False
    return True


def _bound(path: str) -> socket.socket:
    """Return a socket bound to the path, in the place of one that nobody serves any more. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # Before it has a name, so that there is no moment at which somebody else may open it (unix(7)).
        os.fchmod(sock.fileno(), 0o600)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                if not Path(path).is_socket():
                    raise FileExistsError(0, "there is a file that is no socket") from None
                Path(path).unlink()
            except FileNotFoundError:
                pass
            else:
                raise FileExistsError(0, "another syslogger serves it")
        sock.bind(path)
    except OSError:
        sock.close()
        raise
    return sock
