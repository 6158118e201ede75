"""Random faults, one after another, against three brokers, while two stock rsyslogs send; then the account.

make soak MINUTES=60 SEED=1234

Every fault is printed with the time, how long it lasted until all was healed, and how long after that records flowed
again. The same seed gives the same faults in the same order; what they meet is up to the clock. syslogger is never
killed with SIGKILL here: without systemd's store that loses what rsyslog considers sent (`test_systemd.py` has it).

Exit status: 0 if nothing was lost and every check held, 1 if not, 2 if something is missing on this machine. Ctrl-C or
SIGTERM ends the faults early, not the account.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from confluent_kafka import KafkaException

from tests.system.cluster import Broker, Cluster, Proxy
from tests.system.parts import Load, Part, Sender, Syslogger, free_port, missing, until

PER_SECOND = 300
"""Messages of each rsyslog."""

FLOWING_SECONDS = 60.0
ARRIVED_SECONDS = 120.0


class Soak:
    """A cluster, a syslogger that finds it through ZooKeeper, and the faults that they are put through."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - repeatable
        self.trouble: list[str] = []
        """What did not hold, one sentence each."""
        self.cluster = Cluster(directory)
        for broker in self.cluster.brokers:
            # Of two listeners of one protocol syslogger takes the first: it sees the brokers through their proxies.
            for name in ("listeners", "advertised__listeners"):
                broker.extra[name] = ",".join(reversed(str(broker.extra[name]).split(",")))
        self.topic = ""
        self.syslogger = Syslogger(
            directory / "syslogger",
            {
                "listeners": [{"address": f"127.0.0.1:{free_port()}"} for _ in range(2)],
                "kafka": {"zookeeper": self.cluster.zookeeper.hosts, "topic": "soak", "request_timeout_seconds": 4},
            },
        )
        self.faults: list[Callable[[], str]] = [
            self.broker_killed,
            self.broker_restarted,
            self.broker_stopped,
            self.broker_on_another_port,
            self.broker_slow,
            self.broker_deaf,
            self.two_brokers_killed,
            self.all_brokers_killed,
            self.zookeeper_killed,
            self.syslogger_restarted,
            self.syslogger_reloaded,
            self.hostile_peers,
        ]

    # The faults: each returns what it did; what it leaves broken is healed afterwards.

    def broker_killed(self) -> str:
        broker = self._broker()
        broker.sigkill()
        return f"broker {broker.number} killed for {self._pause(2, 8)}"

    def broker_restarted(self) -> str:
        broker = self._broker()
        broker.stop(60)
        broker.start()
        return f"broker {broker.number} restarted"

    def broker_stopped(self) -> str:
        broker = self._broker()
        broker.sigstop()
        seconds = self._pause(2, 10)
        broker.sigcont()
        return f"broker {broker.number} held by SIGSTOP for {seconds}"

    def broker_on_another_port(self) -> str:
        broker = self._broker()
        broker.sigkill()
        old = broker.proxy
        behind = str(broker.extra["listeners"]).partition("PROXIED://127.0.0.1:")[2].partition(",")[0]
        broker.proxy = Proxy(int(behind))
        port = free_port()
        for name in ("listeners", "advertised__listeners"):
            addresses = str(broker.extra[name]).replace(old.address, broker.proxy.address)
            broker.extra[name] = addresses.replace(broker.bootstrap, f"127.0.0.1:{port}")
        old.close()
        broker.start(port=port)
        return f"broker {broker.number} killed, back on another port"

    def broker_slow(self) -> str:
        broker = self._broker()
        broker.proxy.delay_seconds = self.chance.uniform(0.5, 6)
        return f"broker {broker.number} answers {broker.proxy.delay_seconds:.1f} s late for {self._pause(5, 15)}"

    def broker_deaf(self) -> str:
        broker = self._broker()
        broker.proxy.swallow()
        return f"broker {broker.number} swallows packets for {self._pause(5, 15)}"

    def two_brokers_killed(self) -> str:
        killed = self.chance.sample(self.cluster.brokers, 2)
        for broker in killed:
            broker.sigkill()
        return f"brokers {killed[0].number} and {killed[1].number} killed for {self._pause(4, 12)}"

    def all_brokers_killed(self) -> str:
        for broker in self.cluster.brokers:
            broker.sigkill()
        return f"all brokers killed for {self._pause(5, 20)}"

    def zookeeper_killed(self) -> str:
        self.cluster.zookeeper.sigkill()
        return f"ZooKeeper killed for {self._pause(2, 12)}"

    def syslogger_restarted(self) -> str:
        self._expect(self.syslogger.stop(60) == 0, "syslogger's exit status was not 0")
        seconds = self._pause(0, 3)
        self.syslogger.start()
        return f"syslogger ended by SIGTERM, away for {seconds}"

    def syslogger_reloaded(self) -> str:
        received, pid = self.syslogger.metric("syslogger_records_received_total"), self.syslogger.pid
        self.syslogger.signal(signal.SIGHUP)

        def anew() -> bool:
            with contextlib.suppress(AssertionError):  # nobody answers while one process becomes the other
                return self.syslogger.metric("syslogger_records_received_total") < received
            return False

        until(anew, "syslogger counts from 0 again after SIGHUP", 40)
        self._expect(self.syslogger.alive and self.syslogger.pid == pid, "a reload ended syslogger")
        return "syslogger reloaded by SIGHUP"

    def hostile_peers(self) -> str:
        for _ in range(100):
            self._hostile().close()
        for _ in range(10):
            with self._hostile() as peer:
                peer.sendall(self.chance.randbytes(self.chance.randrange(1, 200_000)))
            with self._hostile() as peer:
                peer.sendall(b"half a record")
            with self._hostile() as peer:
                peer.sendall(b"a record and a reset\n" * 100)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        with self._hostile() as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(500):
                peer.sendall(b"x")
                time.sleep(0.005)
        return "100 connects, 10 peers each with random bytes, half a record, a reset; one that drips"

    def _broker(self) -> Broker:
        return self.chance.choice(self.cluster.brokers)

    def _pause(self, least: float, most: float) -> str:
        seconds = self.chance.uniform(least, most)
        time.sleep(seconds)
        return f"{seconds:.1f} s"

    def _hostile(self) -> socket.socket:
        host, _, port = self.syslogger.config["listeners"][1]["address"].rpartition(":")
        return socket.create_connection((host, int(port)), 20)

    def _expect(self, held: bool, otherwise: str) -> None:
        if not held:
            self.trouble.append(otherwise)
            print(f"  WRONG: {otherwise}", flush=True)

    # What comes around them.

    def run(self, minutes: float) -> None:
        """Put it through faults until the time is over or one is not survived."""
        end = time.monotonic() + minutes * 60
        for count, fault in enumerate(self._shuffled(), 1):
            if time.monotonic() > end:
                return
            began = time.monotonic()
            what = fault()
            self._expect(self.syslogger.alive, f"syslogger has ended:\n{self.syslogger.log_tail()}")
            self.heal()
            healed = time.monotonic()
            self.wait_flowing()
            print(
                f"{time.strftime('%H:%M:%S')} {count:3} {what}; well after {healed - began:.1f} s, "
                f"flowing {time.monotonic() - healed:.1f} s later; {self.syslogger.rss_bytes() / 1e6:.1f} MB",
                flush=True,
            )
            self.check_sums()

    def _shuffled(self) -> Iterator[Callable[[], str]]:
        while True:
            yield from self.chance.sample(self.faults, len(self.faults))

    def heal(self) -> None:
        """Return when everything runs and every replica is in sync."""
        if not self.cluster.zookeeper.alive:
            self.cluster.zookeeper.start()

        def healed() -> bool:
            with contextlib.suppress(KafkaException):  # the test's own look, while leaders change
                self.cluster.heal()
                return True
            return False

        until(healed, "the cluster is whole", 60, every=0.5)
        if not self.syslogger.alive:
            self.syslogger.start()

    def wait_flowing(self) -> None:
        """Return when as many records were appended as are sent in a second."""
        count = sum(self.cluster.end_offsets(self.topic).values()) + 2 * PER_SECOND
        self.cluster.wait_count(self.topic, count, FLOWING_SECONDS)

    def check_sums(self) -> None:
        try:
            self.syslogger.check_sums()
        except AssertionError as error:
            self._expect(False, f"received, delivered and in flight do not add up: {error}")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start everything but the rsyslogs; end it all."""
        with self.cluster:
            self.topic = self.cluster.create_topic("soak", partitions=4)
            with self.syslogger:
                yield


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long faults go on (%(default)s)")
    parser.add_argument("--seed", type=int, help="repeat the faults of a run")
    given = parser.parse_args()
    if lacking := missing():
        print(f"This machine has no {', no '.join(lacking)}.", file=sys.stderr)
        return 2
    seed = random.SystemRandom().randrange(10_000) if given.seed is None else given.seed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    directory = Path(tempfile.mkdtemp(prefix="syslogger-soak-"))
    print(f"seed {seed}; logs in {directory}", flush=True)
    try:
        good = _soak(directory, seed, given.minutes)
    finally:
        for part in Part.every:
            part.sigkill()
    if good:
        shutil.rmtree(directory)
    else:
        print(f"The logs are kept in {directory}.")
    return 0 if good else 1


def _soak(directory: Path, seed: int, minutes: float) -> bool:
    """Run, print the account, and return whether nothing was lost and every check held."""
    soak = Soak(directory, seed)
    with soak.running(), contextlib.ExitStack() as loading:
        loads = []
        for name in "ab":
            sender = Sender(directory / name, soak.syslogger.port)
            sender.rsyslog.start()
            loads.append(loading.enter_context(Load(sender, PER_SECOND, name)))
        soak.wait_flowing()
        soak.wait_flowing()
        memory = soak.syslogger.rss_bytes()
        try:
            soak.run(minutes)
        except KeyboardInterrupt:
            print("Interrupted: stops sending and waits for the rest.", flush=True)
        except (AssertionError, OSError, KafkaException) as error:
            soak._expect(False, f"{type(error).__name__}: {error}")
        try:
            soak.heal()
        except AssertionError as error:
            soak._expect(False, str(error))
        loading.close()
        found = soak.cluster.wait_account(soak.topic, {load.name: load.count for load in loads}, ARRIVED_SECONDS)
        try:
            nothing_waits = until(
                lambda: soak.syslogger.metric("syslogger_records_in_flight") == 0, "all delivered", 20
            )
        except AssertionError:
            nothing_waits = False
        soak._expect(nothing_waits, "records are in flight when all was sent")
        soak.check_sums()
        errors = [line for line in soak.syslogger.log().splitlines() if "ERROR" in line or "Traceback" in line]
        print(
            f"sent {found.sent:,}, in the topic {found.delivered:,}, twice {found.twice:,}, "
            f"lost {len(found.lost):,} {found.lost[:5] or ''}, "
            f"out of order {len(found.out_of_order):,} {found.out_of_order[:5] or ''}, "
            f"of others {len(found.foreign):,}\n"
            f"resident memory {memory / 1e6:.1f} MB, at the end {soak.syslogger.rss_bytes() / 1e6:.1f} MB\n"
            f"log lines {len(soak.syslogger.log().splitlines())}, at ERROR {len(errors)}",
            *errors[:20],
            *soak.trouble,
            sep="\n",
            flush=True,
        )
        soak._expect(soak.syslogger.stop(60) == 0, "syslogger's last exit status was not 0")
    return not found.lost and not soak.trouble


if __name__ == "__main__":
    sys.exit(main())
