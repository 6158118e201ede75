"""One run: a forwarder does a work, everything that was sent is found in the topic, and there are its figures."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar, Self

from bench import lines, relp
from bench.peers import Peer, Route, printed
from bench.works import Burst, Figure, Outage, Paced, Starts, Work
from tests.system.cluster import Cluster
from tests.system.parts import ROOT, Kafka43, Part, free_port, until

Figures = dict[Figure, float]

_PER_SECOND_AT_LEAST = 10_000
"""Who is slower than this has not arrived in time, and is refused."""

_LATE = 1.05
"""How much longer than asked for a paced load may take, before its latencies are those of the load."""

_SETTLED_SECONDS = 0.3
"""What a forwarder does behind its last acknowledgement belongs to it too."""


_FULL_BYTES = 64 * 1024
"""More than this waits in a receive buffer that is full, however small the kernel's limits are."""


class Refused(Exception):  # noqa: N818 - it is what became of the run
    """The run gives no figure; the text says why."""


class Helper:
    """A process of the benchmark itself, that is told its work on its command line and prints JSON lines."""

    every: ClassVar[list[Helper]] = []
    """All that were made, for ending them whatever happens."""

    def __init__(self, module: str, **spec: Any) -> None:
        self.module = module
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        Helper.every.append(self)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, json.dumps(self._spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is the benchmark's alone
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End it, if it has not ended; may be said twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def expect(self, seconds: float) -> dict[str, Any]:
        """Return the next thing it says; Refused if it says nothing in time, or has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Refused(f"{self.module} said nothing for {seconds:.0f} s")
            data = os.read(self._process.stdout.fileno(), 65_536)
            if not data:
                raise Refused(f"{self.module} has ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def has_spoken(self) -> bool:
        """Whether there is something to expect, or it has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def go(self) -> None:
        """Let it do the next thing; Refused if it has ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
        except BrokenPipeError:
            raise Refused(f"{self.module} has ended") from None


def run(work: Work, forwarder: type[Peer], kafka: Kafka43 | Cluster, directory: Path, payload: Path) -> Figures:
    """Return the figures of one run. Raises Refused if it gives none: something was lost, or the load was not as said.

    `directory` is for the forwarder's files, `payload` where a burst's lines are kept from run to run.
    """
    with contextlib.ExitStack() as opened:
        topic = kafka.create_topic(partitions=work.partitions, message__timestamp__type="LogAppendTime")
        opened.callback(kafka.delete_topic, topic)
        if isinstance(work.load, Starts):
            return _starts(work.load, forwarder, kafka, topic, directory)
        load = work.load.burst if isinstance(work.load, Outage) else work.load
        route = Route(
            free_port(), kafka.bootstrap, topic, work.partitions, work.compression, work.protocol, load.connections
        )
        part = forwarder(directory, route)
        try:
            opened.enter_context(part)
        except AssertionError as error:
            raise Refused(f"it did not start: {error}") from None
        sender, arrivals = _helpers(load, route, payload, slow=isinstance(work.load, Outage))
        opened.enter_context(arrivals)
        _prime(route, arrivals)
        opened.enter_context(sender)
        sender.expect(60)
        _accepted(route)
        if isinstance(work.load, Outage):
            assert isinstance(kafka, Kafka43)
            return _outage(work.load, part, sender, arrivals, kafka)
        return _flow(load, part, sender, arrivals)


def _helpers(load: Burst | Paced, route: Route, payload: Path, *, slow: bool) -> tuple[Helper, Helper]:
    """Return the load generator and the counter, not yet started."""
    send: dict[str, Any] = {"port": route.port, "connections": load.connections, "protocol": route.protocol}
    count: dict[str, Any] = {
        "bootstrap": route.bootstrap,
        "topic": route.topic,
        "partitions": route.partitions,
        "expected": load.messages,
        "seconds": _patience(load) + 600 * slow,
    }
    if isinstance(load, Burst):
        if not payload.exists():
            lines.render(payload, lines.fixed(load.size) if load.size else lines.mixed(), load.messages)
        send["payload"] = count["payload"] = str(payload)
        if slow:
            send["send_buffer"] = 32_768  # a thousand grown ones take gigabytes of the kernel's memory
    else:
        send |= {"per_second": load.per_second, "seconds": load.seconds, "size": load.size}
        count["size"] = load.size
    return Helper("bench.load", **send), Helper("bench.arrivals", **count)


def _patience(load: Burst | Paced) -> float:
    seconds = load.seconds if isinstance(load, Paced) else 0.0
    return 60 + seconds + load.messages / _PER_SECOND_AT_LEAST


def _prime(route: Route, arrivals: Helper) -> None:
    """Return when a first line has come all the way: connections to Kafka are open, and the counter reads."""
    with socket.create_connection(("127.0.0.1", route.port), 10) as sock:
        sock.sendall(relp.Session(sock).framed([lines.PRIME]) if route.protocol == "relp" else lines.PRIME + b"\n")
        arrivals.expect(60)


def _accepted(route: Route) -> None:
    """Return when the forwarder has accepted every connection."""
    try:
        until(lambda: accepted(route.port) >= route.connections, "", 30, every=0.1)
    except AssertionError:
        raise Refused(f"it accepted {accepted(route.port)} of {route.connections} connections") from None


def accepted(port: int) -> int:
    """Return how many established connections to a local port a program holds."""
    return len(unread_bytes(port))


def unread_bytes(port: int) -> list[int]:
    """Return for each established connection to a local port that a program holds how much it has not read."""
    rows = (line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:])
    return [
        int(row[4].partition(":")[2], 16)
        for row in rows
        if row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] != "0"  # in the backlog it has no inode
    ]


def _flow(load: Burst | Paced, part: Peer, sender: Helper, arrivals: Helper) -> Figures:
    before = cpu_seconds(part.pid)
    sender.go()
    sent = sender.expect(_patience(load))
    arrived = arrivals.expect(_patience(load))["arrived"]
    time.sleep(_SETTLED_SECONDS)
    if not part.alive:
        raise Refused("it has ended")
    used, memory = cpu_seconds(part.pid) - before, peak_bytes(part.pid)
    sender.go()
    account = arrivals.expect(180)
    _check(account, arrived=arrived)
    figures: Figures = {"cpu": used * 1e6 / load.messages, "rss": memory / 1e6}
    if isinstance(load, Burst):
        figures["rate"] = load.messages / (account["last"] - sent["begun"])
        return figures
    if sent["seconds"] > load.seconds * _LATE:
        raise Refused(f"the load took {sent['seconds']:.1f} s instead of {load.seconds:g}: no fair latencies")
    return figures | {"p50": account["p50"], "p99": account["p99"], "p999": account["p999"]}


def _check(account: dict[str, Any], *, arrived: bool) -> None:
    if account["lost"] or account["foreign"] or account["twice"] or not arrived:
        raise Refused(
            f"of {account['expected']:,} messages {account['lost']:,} are not in the topic, "
            f"{account['twice']:,} are there twice, {account['foreign']:,} are not as they were sent"
            + ("" if arrived else "; it was not done in time")
        )


def _outage(load: Outage, part: Peer, sender: Helper, arrivals: Helper, kafka: Kafka43) -> Figures:
    kafka.sigkill()
    try:
        sender.go()
        samples = _watch(load, part)
        if sender.has_spoken() or min(unread_bytes(part.route.port)) < _FULL_BYTES:
            raise Refused("the load did not fill the buffers")
    finally:
        kafka.start()
    sender.expect(_patience(load.burst))
    arrived = arrivals.expect(_patience(load.burst))["arrived"]
    _check(arrivals.expect(180), arrived=arrived)
    few = max(1, len(samples) // 10)
    return {"rss": max(samples), "growth": statistics.mean(samples[-few:]) - statistics.mean(samples[:few])}


def _watch(load: Outage, part: Peer) -> list[float]:
    """Return the resident memory, in MB, twice a second of the outage; it is looked at once the buffers are full."""
    time.sleep(min(10.0, load.seconds / 3))
    samples, end = [], time.monotonic() + load.seconds
    while time.monotonic() < end:
        if not part.alive:
            raise Refused("it has ended")
        samples.append(part.rss_bytes() / 1e6)
        time.sleep(0.5)
    return samples


def _starts(load: Starts, forwarder: type[Peer], kafka: Kafka43 | Cluster, topic: str, directory: Path) -> Figures:
    ready, helped = [], []
    for number in range(load.times):
        part = forwarder(directory / str(number), Route(free_port(), kafka.bootstrap, topic))
        begin = time.monotonic()
        try:
            part.start(wait=False)
            until(part.ready, "it is ready", 20, every=0.01)
            ready.append(time.monotonic() - begin)
        finally:
            part.sigkill()
        begin = time.monotonic()
        printed(sys.executable, "-m", "syslogger", "--help")
        helped.append(time.monotonic() - begin)
    return {"ready": statistics.median(ready), "help": statistics.median(helped)}


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process, of all its threads, and of its children, living or waited for.

    It is what /proc/PID/stat has, which rounds to 10 ms; the process's CPU clock does not.
    """
    return sum(time.clock_gettime((~each << 3) | 2) + _waited_for(each) for each in _family(pid))


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _waited_for(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended since
            parents.setdefault(int(_stat(int(path.name))[1]), []).append(int(path.name))
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found


def peak_bytes(pid: int) -> int:
    """Return the most resident memory it and its children ever had."""
    total = 0
    for each in _family(pid):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text())
        total += int(found[1]) * 1024 if found else 0
    return total


def end_all() -> None:
    """End every process that was started, whatever happened."""
    for helper in Helper.every:
        helper.end()
    for part in Part.every:
        part.sigkill()
