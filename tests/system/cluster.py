"""Three Kafka 3.9.2 brokers that keep three copies of everything, and proxies that make one of them slow or deaf.

with Cluster(tmp_path) as cluster:
    topic = cluster.create_topic(partitions=3)
    cluster.brokers[cluster.leaders(topic)[0]].sigkill()
    cluster.heal()    # everything runs, nothing is slow or deaf
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException, TopicPartition

from tests.system.parts import Kafka39, KafkaClient, Part, ZooKeeper, _reader, free_port, until


class Proxy:
    """Passes TCP connections on to a port of 127.0.0.1; it can make the answers late, or swallow everything."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.delay_seconds = 0.0
        """How much later what the target answers is passed on, at least."""
        self._target = target
        self._open = threading.Event()
        self._open.set()
        self._closed = False
        self._fillers: list[socket.socket] = []
        self._sock = socket.create_server(("127.0.0.1", self.port))
        self._accepting = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def swallow(self) -> None:
        """From now on nothing is answered: what comes in goes nowhere, and nobody can connect."""
        self._open.clear()
        with self._accepting:
            # The kernel drops the SYN of whoever finds the backlog full.
            self._sock.listen(0)
            while not self._is_deaf():
                pass

    def _is_deaf(self) -> bool:
        filler = socket.socket()
        filler.settimeout(0.3)
        self._fillers.append(filler)
        try:
            filler.connect(("127.0.0.1", self.port))
        except TimeoutError:
            return True
        return False

    def heal(self) -> None:
        """Pass everything on at once again, and what was held back too."""
        self.delay_seconds = 0.0
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._sock.listen(128)
        self._open.set()

    def close(self) -> None:
        """Accept nobody any more; the connections there are go on until their ends."""
        self._closed = True
        self.heal()
        with self._accepting:
            self._sock.close()

    def _accept(self) -> None:
        while not self._closed:
            self._open.wait()
            with self._accepting:
                if self._closed or not self._open.is_set() or not select.select([self._sock], [], [], 0.1)[0]:
                    continue
                near, _ = self._sock.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the broker is down: so is its proxy
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                near.close()
                continue
            for one, other, answers in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(one, other, answers), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                if answers and self.delay_seconds:
                    time.sleep(self.delay_seconds)
                self._open.wait()
                other.sendall(data)
        self._open.wait()  # an end is swallowed too
        for sock in (one, other):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # ends the other direction's thread, which may close in peace
        one.close()


class Broker(Kafka39):
    """One of the cluster's brokers: at `port` itself, at `proxy.address` as the proxies' users see it."""

    def __init__(self, directory: Path, zookeeper: ZooKeeper, number: int) -> None:
        super().__init__(directory, zookeeper, number=number)
        behind = free_port()
        self.proxy = Proxy(behind)
        self.extra = {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},PROXIED://127.0.0.1:{behind}",
            "advertised__listeners": f"PLAINTEXT://127.0.0.1:{self.port},PROXIED://{self.proxy.address}",
            "listener__security__protocol__map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            "inter__broker__listener__name": "PLAINTEXT",
            "zookeeper__session__timeout__ms": 2000,
            "default__replication__factor": 3,
            "min__insync__replicas": 2,
            "offsets__topic__replication__factor": 3,
            "transaction__state__log__replication__factor": 3,
            "transaction__state__log__min__isr": 2,
            "unclean__leader__election__enable": "false",
            "auto__leader__rebalance__enable": "false",  # a leader moves when a test moves it
            "replica__lag__time__max__ms": 5000,
            "controlled__shutdown__retry__backoff__ms": 500,
        }


class Cluster(KafkaClient):
    """Three brokers and their ZooKeeper: replication factor 3, `min.insync.replicas` 2."""

    replication = 3

    def __init__(self, directory: Path) -> None:
        self.zookeeper = ZooKeeper(directory / "zookeeper")
        self.brokers = [Broker(directory / f"broker-{number}", self.zookeeper, number) for number in range(3)]

    def __enter__(self) -> Self:
        try:
            self.zookeeper.start()
            self.heal()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for broker in self.brokers:
            broker.sigkill()
            broker.proxy.close()
        self.zookeeper.sigkill()

    @property
    def bootstrap(self) -> str:
        """The brokers that run, so that a test's own look at the cluster does not wait for a dead one."""
        return ",".join(broker.bootstrap for broker in self.brokers if broker.alive)

    @property
    def addresses(self) -> list[str]:
        """Where a syslogger finds the brokers."""
        return [broker.bootstrap for broker in self.brokers]

    @property
    def proxied(self) -> list[str]:
        """Where a syslogger finds them behind their proxies."""
        return [broker.proxy.address for broker in self.brokers]

    def heal(self) -> None:
        """Return when all brokers run and every replica is in sync."""
        for part in (self.zookeeper, *self.brokers):
            part.sigcont()
            if part not in Part.every:
                Part.every.append(part)
        for broker in self.brokers:
            broker.proxy.heal()
        stopped = [broker for broker in self.brokers if not broker.alive]
        for broker in stopped:
            broker.start(wait=False)
        for broker in stopped:
            broker.wait_ready()
        until(self.is_whole, "every replica is in sync", 40, every=0.2)

    def is_whole(self) -> bool:
        """Whether every broker is there, and every partition has its leader and all its replicas."""
        found = self.admin().list_topics(timeout=5)
        return len(found.brokers) == 3 and all(
            partition.leader >= 0 and len(partition.isrs) == len(partition.replicas)
            for topic in found.topics.values()
            for partition in topic.partitions.values()
        )

    def end_offsets(self, topic: str) -> dict[int, int]:
        """See `KafkaClient`; while leaders change, wait."""

        def found() -> dict[int, int]:
            with contextlib.suppress(KafkaException):
                return super(Cluster, self).end_offsets(topic)
            return {}

        return until(found, f"the partitions of {topic} have leaders", 30, every=0.1)

    def appended_at(self, topic: str) -> dict[int, list[float]]:
        """Return when each record of each partition was appended, by its broker's clock, in seconds since 1970.

        The topic's `message.timestamp.type` must be `LogAppendTime`.
        """
        times: dict[int, list[float]] = {}
        left = {number: end for number, end in self.end_offsets(topic).items() if end}
        with _reader(self.bootstrap) as consumer:
            consumer.assign([TopicPartition(topic, number, 0) for number in left])
            deadline = time.monotonic() + 60
            while left and time.monotonic() < deadline:
                for message in consumer.consume(num_messages=10_000, timeout=0.5):
                    if message.error() is None:
                        times.setdefault(message.partition(), []).append(message.timestamp()[1] / 1000)
                        if message.offset() + 1 >= left.get(message.partition(), 1 << 62):
                            left.pop(message.partition(), None)
        assert not left, f"The end of partitions {sorted(left)} of {topic} was not reached."
        return times


def longest_pause(times: list[float], begin: float, end: float) -> float:
    """Return the longest time between `begin` and `end`, seconds since 1970, in which nothing was appended."""
    inside = [begin, *(each for each in times if begin < each < end), end]
    return max(later - earlier for earlier, later in itertools.pairwise(inside))


def other_leader(cluster: Cluster, topic: str, leader: int, seconds: float = 20.0) -> float:
    """Wait until the first partition has another leader, as a client sees it; return when, in seconds since 1970."""
    admin = cluster.admin()

    def found() -> float:
        now = admin.list_topics(topic, timeout=5).topics[topic].partitions[0].leader
        return 0.0 if now in {leader, -1} else time.time()

    return until(found, f"another leader than {leader}", seconds, every=0.02)


@contextlib.contextmanager
def deaf(proxy: Proxy) -> Iterator[float]:
    """Swallow everything that comes to the proxy; yield since when, in seconds since 1970."""
    since = time.time()
    proxy.swallow()
    try:
        yield since
    finally:
        proxy.heal()
