"""Riemann's side of the wire, without protobuf and without the code under test: a decoder, and a server.

The field numbers are those of Riemann's `proto.proto`, as Debian's libriemann-client 1.10.4 has them
in its descriptors; `tests/system/test_riemann_decoded.py` reads the same bytes with that library.
"""

from __future__ import annotations

import queue
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass
class Event:
    """One event; a field that is not on the wire is None."""

    time: int | None = None
    state: str | None = None
    service: str | None = None
    host: str | None = None
    description: str | None = None
    ttl: float | None = None
    time_micros: int | None = None
    metric_sint64: int | None = None
    metric_d: float | None = None
    metric_f: float | None = None


@dataclass
class Message:
    """One message; a field that is not on the wire is None."""

    ok: bool | None = None
    error: str | None = None
    query: str | None = None
    events: list[Event] = field(default_factory=list)


def decoded(data: bytes) -> Message:
    """Decode one message, without its length before it. Raises ValueError for a field that is not Riemann's."""
    message = Message()
    for number, value in _fields(data):
        match number, value:
            case 2, int():
                message.ok = bool(value)
            case 3, bytes():
                message.error = value.decode()
            case 5, bytes():
                query = dict(_fields(value))[1]
                assert isinstance(query, bytes)
                message.query = query.decode()
            case 6, bytes():
                message.events.append(_event(value))
            case _:
                raise ValueError(f"Msg has no field {number} of {type(value)}")
    return message


def encoded(*, ok: bool, error: str = "") -> bytes:
    """Encode an answer, its length before it. `error` is shorter than 128 bytes."""
    text = error.encode()
    assert len(text) < 128
    message = bytes([2 << 3 | _VARINT, ok]) + (bytes([3 << 3 | _BYTES, len(text)]) + text if text else b"")
    return struct.pack("!I", len(message)) + message


def _event(data: bytes) -> Event:
    event = Event()
    texts = {2: "state", 3: "service", 4: "host", 5: "description"}
    for number, value in _fields(data):
        match number, value:
            case ((1 | 10), int()):  # int64: two's complement
                signed = value - (1 << 64) if value >> 63 else value
                setattr(event, "time" if number == 1 else "time_micros", signed)
            case ((2 | 3 | 4 | 5), bytes()):
                setattr(event, texts[number], value.decode())
            case 8, memoryview():
                (event.ttl,) = struct.unpack("<f", value)
            case 13, int():  # sint64: zigzag
                event.metric_sint64 = (value >> 1) ^ -(value & 1)
            case 14, memoryview():
                (event.metric_d,) = struct.unpack("<d", value)
            case 15, memoryview():
                (event.metric_f,) = struct.unpack("<f", value)
            case _:
                raise ValueError(f"Event has no field {number} of {type(value)}")
    return event


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes | memoryview]]:
    """Yield each field's number and value: an int, length-delimited bytes, or the memory of a fixed one."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if size is None:
            if kind != _BYTES:
                raise ValueError(f"there is no wire type {kind}")
            size, at = _varint(data, at)
        piece, at = data[at : at + size], at + size
        if len(piece) < size:
            raise ValueError("the message ends within a field")
        yield number, piece if kind == _BYTES else memoryview(piece)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


class FakeRiemann:
    """A TCP server that keeps what it is sent, and gives `answer` to each message.

    `answer` is bytes with their length before them; None swallows messages. With `hangs_up` each
    connection ends after its first answer.
    """

    def __init__(self, port: int = 0) -> None:
        self.answer: bytes | None = encoded(ok=True)
        self.hangs_up = False
        self.messages: queue.Queue[bytes] = queue.Queue()
        self.connections: set[socket.socket] = set()
        fake = self

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            block_on_close = False

        class Connection(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                fake.connections.add(self.request)
                fake._serve(self.request)
                fake.connections.discard(self.request)

        self._server = Server(("127.0.0.1", port), Connection)
        self.port: int = self._server.server_address[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in tuple(self.connections):
            connection.shutdown(socket.SHUT_RDWR)

    def next(self) -> Message:
        """Wait for the next message and decode it; fail after 5 s."""
        return decoded(self.messages.get(timeout=5))

    def _serve(self, connection: socket.socket) -> None:
        while size := _received(connection, 4):
            self.messages.put(_received(connection, *struct.unpack("!I", size)))
            if self.answer is not None:
                connection.sendall(self.answer)
                if self.hangs_up:
                    return


def _received(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes, or none if the peer leaves before."""
    received = b""
    while len(received) < size:
        try:
            piece = connection.recv(size - len(received))
        except OSError:
            return b""
        if not piece:
            return b""
        received += piece
    return received
