"""The load generator: a process of its own, so that what it costs is not the forwarder's.

    python -m bench.load '{"port": …, …}'

It connects, prints `{"connected": N}`, waits for a line, sends, prints what it sent, waits for a line or the end of
its input, and closes. A burst's lines are rendered before; what is left to do is one `send` for 256 KiB.
"""

from __future__ import annotations

import gc
import json
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Any

from bench import relp
from bench.lines import timed

_TICK_SECONDS = 0.001
"""The pace is kept in steps of this; finer ones would cost the forwarder processor time on a small machine."""

_PIECE = 256 * 1024


def burst(sockets: list[socket.socket], payload: bytes) -> int:
    """Send the lines of `payload`, shared out among the connections, as fast as they go; return how many bytes."""
    if len(sockets) == 1:
        sockets[0].sendall(payload)
        return len(payload)
    view, position = memoryview(payload), 0
    with selectors.EpollSelector() as selector:
        for index, sock in enumerate(sockets, 1):
            end = payload.rfind(b"\n", 0, len(payload) * index // len(sockets)) + 1
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, [position, end])
            position = end
        while selector.get_map():
            for key, _ in selector.select():
                part = key.data
                if part[0] < part[1]:
                    part[0] += key.fileobj.send(view[part[0] : min(part[1], part[0] + _PIECE)])  # type: ignore[union-attr]
                if part[0] >= part[1]:
                    selector.unregister(key.fileobj)
    return position


def paced(sockets: list[socket.socket], *, per_second: int, seconds: float, size: int) -> int:
    """Send single timed lines, one connection after the other, at this pace; return how many."""
    line, total, sent = timed(size), round(per_second * seconds), 0
    begin, count = time.monotonic(), len(sockets)
    while sent < total:
        due = min(total, int((time.monotonic() - begin) * per_second))
        while sent < due:
            sockets[sent % count].sendall(line(time.monotonic_ns(), sent))
            sent += 1
        time.sleep(_TICK_SECONDS)
    return sent


def _connect(port: int, send_buffer: int) -> socket.socket:
    sock = socket.socket()
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect(("127.0.0.1", port))
    return sock


def _say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """Do what the line says."""
    spec = json.loads(sys.argv[1])
    payload = Path(spec["payload"]).read_bytes() if "payload" in spec else b""
    sockets = [_connect(spec["port"], spec.get("send_buffer", 0)) for _ in range(spec["connections"])]
    sessions = [relp.Session(sock) for sock in sockets] if spec.get("protocol") == "relp" else []
    gc.disable()
    _say({"connected": len(sockets)})
    if not sys.stdin.readline():
        return
    begun, began = time.time(), time.monotonic()
    if sessions:
        relp.burst(sessions, payload)
    elif payload:
        burst(sockets, payload)
    else:
        paced(sockets, per_second=spec["per_second"], seconds=spec["seconds"], size=spec["size"])
    _say({"begun": begun, "seconds": time.monotonic() - began})
    sys.stdin.readline()
    for sock in sockets:
        sock.close()


if __name__ == "__main__":
    main()
