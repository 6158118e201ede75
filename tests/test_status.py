from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from syslogger.counters import Counters
from syslogger.status import status
from tests.waiting import until


async def of(peers: list[tuple[str, socket.socket]], counters: Counters | None = None) -> dict[str, Any]:
    found = await status(counters or Counters(), (True, ""), peers=peers)
    assert json.loads(json.dumps(found)) == found
    return found


async def test_before_anything_has_happened() -> None:
    found = await status(Counters(max_connections=7), (False, "starting"))
    assert (found["ready"], found["state"], found["topic"], found["peers"]) == (False, "starting", "", [])
    assert found["connections"] == {"open": 0, "most": 7, "accepted": 0, "ended": {}}
    assert found["latency_seconds"] == {"p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0}


async def test_what_was_counted() -> None:
    counters = Counters(records_delivered=5, bytes_delivered=500, connections_open=1, batches=2)
    counters.records_dead_lettered.update(a=1, b=2)
    counters.batch_failures["NotEnoughReplicasError"] += 1
    for milliseconds in range(100, 0, -1):
        counters.delivery_seconds.observe(milliseconds / 1000)
    found = await of([], counters)
    assert found["records"]["delivered"] == 5
    assert found["records"]["dead_lettered"] == 3
    assert found["batch_failures"] == {"NotEnoughReplicasError": 1}
    assert found["latency_seconds"] == {"p50": 0.051, "p95": 0.096, "p99": 0.1, "max": 0.1}


async def test_what_each_host_has_sent_is_the_kernel_s_to_say() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = []
        for _ in range(3):
            client = socket.create_connection(server.getsockname())
            pairs.append((client, server.accept()[0]))
        names = ["10.0.0.1:1", "10.0.0.1:2", "[2001:db8::1]:3"]
        peers = [(name, ours) for name, (_, ours) in zip(names, pairs, strict=True)]
        for size, (client, _) in zip((1000, 200, 5), pairs, strict=True):
            client.sendall(b"x" * size)
        pairs[0][1].recv(300)
        expected = [
            {"peer": "10.0.0.1", "connections": 2, "received_bytes": 1200, "waiting_bytes": 900},
            {"peer": "[2001:db8::1]", "connections": 1, "received_bytes": 5, "waiting_bytes": 5},
        ]

        async with asyncio.timeout(10):
            while (await of(peers))["peers"] != expected:  # noqa: ASYNC110 - the kernel has no event for it
                await asyncio.sleep(0.01)
        for pair in pairs:
            for sock in pair:
                sock.close()
        ended = await of(peers)
    assert [(each["connections"], each["received_bytes"]) for each in ended["peers"]] == [(2, 0), (1, 0)]


async def test_what_is_no_tcp_connection_has_no_bytes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"1234")
        found = await of([("process 7 of user 0 at unix:/run/log.sock", ours)])
    (peer,) = found["peers"]
    assert peer == {
        "peer": "process 7 of user 0 at unix:/run/log.sock",
        "connections": 1,
        "received_bytes": 0,
        "waiting_bytes": 0,
    }


async def test_of_many_hosts_a_hundred_are_named_and_others_have_their_turn() -> None:
    ours, theirs = socket.socketpair()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.ensure_future(others())
    await until(lambda: turns)
    with ours, theirs:
        before = turns
        found = await of([(f"10.0.{number // 256}.{number % 256}:1", ours) for number in range(1000)])
    other.cancel()
    assert len(found["peers"]) == 100
    assert found["peers_left_out"] == 900
    assert turns - before >= 4
