"""What the program is at, in plain values: for the status page and `syslogger top`.

The data path counts nothing for it. What each peer has sent the kernel knows (TCP_INFO), and it is asked only while
somebody looks.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from . import __version__
from .counters import Counters
from .kafka import Topic
from .streams import unread

_STARTED = time.time()

_MOST_PEERS = 100
"""The hosts that are named; those that sent most. What is left out is counted."""

_A_TURN = 200
"""Connections that are asked before the loop does something else: 0.3 ms."""

_BYTES_RECEIVED = struct.Struct("128xQ")
"""Of Linux's `struct tcp_info` (linux/tcp.h): tcpi_bytes_received."""

_SHARES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


async def status(
    counters: Counters,
    state: tuple[bool, str],
    *,
    listening: Sequence[str] = (),
    topic: Topic | None = None,
    peers: Sequence[tuple[str, socket.socket]] = (),
) -> dict[str, Any]:
    """Return the status; numbers that are counted are since the start, durations in seconds.

    Latency is that of the newest deliveries, about a thousand.
    """
    hosts = await _hosts(peers)
    named = hosts[:_MOST_PEERS]
    ready, reason = state
    return {
        "version": __version__,
        "now": time.time(),
        "uptime_seconds": time.time() - _STARTED,
        "ready": ready,
        "state": reason,
        "listening": list(listening),
        "records": {
            "received": counters.records_received,
            "delivered": counters.records_delivered,
            "in_flight": counters.records_in_flight,
            "redelivered": counters.records_redelivered,
            "dead_lettered": sum(counters.records_dead_lettered.values()),
            "cut": sum(counters.records_cut.values()),
            "misframed": counters.records_misframed,
        },
        "bytes": {"delivered": counters.bytes_delivered, "in_flight": counters.bytes_in_flight},
        "latency_seconds": _latency(list(counters.delivery_seconds.recent)),
        "batches": counters.batches,
        "batch_failures": dict(counters.batch_failures),
        "producer_rebuilds": counters.producer_rebuilds,
        "connections": {
            "open": counters.connections_open,
            "most": counters.max_connections,
            "accepted": counters.connections_accepted,
            "ended": dict(counters.connections_ended),
        },
        "peers": named,
        "peers_left_out": len(hosts) - len(named),
        **(topic.status() if topic else {"topic": "", "partitions": [], "brokers": []}),
    }


def _latency(recent: list[float]) -> dict[str, float]:
    recent.sort()
    last = len(recent) - 1
    return {name: recent[min(last, int(share * len(recent)))] if recent else 0.0 for name, share in _SHARES}


async def _hosts(peers: Sequence[tuple[str, socket.socket]]) -> list[dict[str, Any]]:
    """Return what is known of each host that is connected, the one that sent most first."""
    hosts: dict[str, dict[str, Any]] = {}
    for number, (peer, sock) in enumerate(peers, 1):
        host, _, port = peer.rpartition(":")
        host = host if port.isdigit() else peer
        sums = hosts.setdefault(host, {"peer": host, "connections": 0, "received_bytes": 0, "waiting_bytes": 0})
        received, waiting = _bytes_of(sock)
        sums["connections"] += 1
        sums["received_bytes"] += received
        sums["waiting_bytes"] += waiting
        if number % _A_TURN == 0:
            await asyncio.sleep(0)
    return sorted(hosts.values(), key=lambda each: -int(each["received_bytes"]))


def _bytes_of(sock: socket.socket) -> tuple[int, int]:
    """Return how many bytes a connection has received since it was made, and how many of them wait in the kernel."""
    try:
        waiting = unread(sock)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        return _BYTES_RECEIVED.unpack(info)[0], waiting
    except (OSError, ValueError, struct.error):  # it has ended, or is no TCP connection
        return 0, 0
