"""The real parts that system tests are made of: ZooKeeper, Kafka 3.9.2, Kafka 4.3.0, rsyslog, and syslogger itself.

A part is one process with a directory of its own for its configuration, data and log, on ports that were free when it
was made. `start` returns when the part answers; every wait is bounded and ends in an error that carries the end of the
log; only processes that a part started are ever signalled, by their id. A part may be stopped or killed and started
again: it keeps its directory and ports.

    with ZooKeeper(tmp_path / "zk") as zookeeper, Kafka39(tmp_path / "kafka", zookeeper) as kafka:
        kafka.create_topic("t")
        kafka.sigkill()
        kafka.start(port=free_port())    # back on another address
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
JARS = {version: ROOT / ".cache" / f"kafka-{version}" for version in ("3.9.2", "4.3.0")}
SENDING_SIDE = ROOT / "rsyslog.d" / "60-syslogger.conf"

QUIET = {"log_level": 0}  # librdkafka prints to standard error what the tests bring about on purpose


def missing() -> list[str]:
    """Return what this machine lacks for system tests, one phrase each; empty when they can run."""
    found = [
        f"{program} (Debian package {package})"
        for program, package in (("rsyslogd", "rsyslog"), ("java", "default-jre-headless"))
        if _program(program) is None
    ]
    if not list(Path("/usr/lib").glob("*/rsyslog/omrelp.so")):
        found.append("omrelp (Debian package rsyslog-relp)")
    found += [
        f"TLS driver {driver} of rsyslog (Debian package {package})"
        for driver, package in (("gtls", "rsyslog-gnutls"), ("ossl", "rsyslog-openssl"))
        if not any(Path("/usr/lib").glob(f"*/rsyslog/lmnsd_{driver}.so"))
    ]
    return found + [f"Kafka {version}'s jars in {path}" for version, path in JARS.items() if not path.is_dir()]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def free_port() -> int:
    """Return a TCP port nobody listens on, from below the range the kernel gives to outgoing connections.

    So a part that is down for a while finds its port free when it comes back.
    """
    for _ in range(200):
        port = random.randint(18_000, 31_999)  # noqa: S311
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("No free TCP port was found in 200 tries.")


def until(found: Callable[[], T], what: str, seconds: float = 30.0, every: float = 0.05) -> T:
    """Call `found` until it returns something true and return that; AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if value := found():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {seconds:g} s: {what}")
        time.sleep(every)


class Part:
    """One process. A subclass says how it is run (`argv`) and when it answers (`ready`)."""

    every: ClassVar[list[Part]] = []  # all that were made, for showing logs when a test fails
    start_seconds = 40.0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_path = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        Part.every.append(self)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} in {self.directory.name}"

    def argv(self) -> list[str]:
        """Write the configuration and return the command line."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers; must not block for longer than a few seconds."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.sigkill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.sigkill()

    def start(self, *, wait: bool = True) -> None:
        """Start it, and return when it answers (`wait=False`: at once)."""
        if self.alive:
            raise AssertionError(f"{self.name} is already running.")
        argv = self.argv()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is pytest's alone
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, seconds: float | None = None) -> None:
        def answers() -> bool:
            if not self.alive:
                code = self.process and self.process.returncode
                raise AssertionError(f"{self.name} ended with exit code {code}:\n{self.log_tail()}")
            return self.ready()

        try:
            until(answers, f"{self.name} answers", seconds or self.start_seconds, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started."
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.alive:
            os.kill(self.pid, number)

    def sigterm(self) -> None:
        self.signal(signal.SIGTERM)

    def sigstop(self) -> None:
        self.signal(signal.SIGSTOP)

    def sigcont(self) -> None:
        self.signal(signal.SIGCONT)

    def sigkill(self) -> None:
        """End it at once; on return it is gone."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait(30)

    def wait(self, seconds: float = 30.0) -> int:
        """Wait until it has ended by itself and return its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {seconds:g} s.\n{self.log_tail()}") from None

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and the exit code."""
        self.sigcont()
        self.sigterm()
        return self.wait(seconds)

    def log(self) -> str:
        """All that it has printed so far, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def rss_bytes(self) -> int:
        """Return the resident memory."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found, f"{self.name} has no VmRSS: it has ended."
        return int(found[1]) * 1024

    def cpu_seconds(self) -> float:
        """Return the processor time used since its start, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class _Java(Part):
    """A Java program from one of the jar folders, with little memory and a fast start."""

    version = ""

    def java(self, *arguments: str) -> list[str]:
        return [
            _program("java") or "java",
            "-Xms64m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dlog4j2.level=WARN",
            "-Djava.net.preferIPv4Stack=true",
            f"-Djava.io.tmpdir={self.directory}",
            "-cp",
            f"{JARS[self.version]}/*",
            *arguments,
        ]

    def properties(self, name: str, **values: object) -> str:
        """Write a properties file, `__` in a key standing for a dot, and return its path."""
        path = self.directory / name
        path.write_text("".join(f"{key.replace('__', '.')}={value}\n" for key, value in values.items()))
        return str(path)


class ZooKeeper(_Java):
    """One ZooKeeper 3.8 (its jars come with Kafka 3.9.2). `hosts` is its connection string."""

    version = "3.9.2"

    def __init__(self, directory: Path, port: int | None = None) -> None:
        super().__init__(directory)
        self.port = port or free_port()

    @property
    def hosts(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True, port: int | None = None) -> None:
        self.port = port or self.port
        super().start(wait=wait)

    def argv(self) -> list[str]:
        path = self.properties(
            "zookeeper.properties",
            dataDir=self.directory / "data",
            clientPortAddress="127.0.0.1",
            clientPort=self.port,
            tickTime=500,  # the shortest session is two of these
            maxClientCnxns=0,
            admin__enableServer="false",
            **{"4lw__commands__whitelist": "srvr,dump"},
        )
        return self.java("-Dzookeeper.forceSync=no", "org.apache.zookeeper.server.quorum.QuorumPeerMain", path)

    def ready(self) -> bool:
        return "Mode:" in self.ask("srvr")

    def ask(self, four_letters: str) -> str:
        """Return what it answers to a four-letter word; empty if it does not."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as connection:
            connection.settimeout(2)
            connection.sendall(four_letters.encode())
            return b"".join(iter(lambda: connection.recv(65_536), b"")).decode()
        return ""


class KafkaClient:
    """A Kafka cluster as a client sees it: its topics, and what is in them."""

    replication = 1  # of the topics that it makes

    @property
    def bootstrap(self) -> str:
        """Addresses of brokers, separated by commas."""
        raise NotImplementedError

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, **QUIET})

    def create_topic(
        self, name: str = "", partitions: int = 1, assignment: Sequence[Sequence[int]] = (), **config: object
    ) -> str:
        """Create a topic (named by chance if no name is given), wait until it is whole, return its name.

        `assignment` has for each partition the numbers of its brokers, the first to lead it.
        """
        name = name or f"t-{uuid.uuid4().hex[:12]}"
        admin = self.admin()
        settings = {key.replace("__", "."): str(value) for key, value in config.items()}
        partitions = len(assignment) or partitions
        placed = {"replica_assignment": assignment} if assignment else {"replication_factor": self.replication}
        topic = NewTopic(name, num_partitions=partitions, config=settings, **placed)
        admin.create_topics([topic], operation_timeout=20)[name].result(30)
        until(lambda: len(self.leaders(name)) == partitions, f"topic {name} has leaders", 20)
        return name

    def leaders(self, topic: str) -> dict[int, int]:
        """Return the broker that leads each partition whose replicas are all in sync, as it is now."""
        found = self.admin().list_topics(topic, timeout=5).topics[topic].partitions
        return {
            number: each.leader
            for number, each in found.items()
            if each.leader >= 0 and len(each.isrs) == len(each.replicas)
        }

    def alter_topic(self, name: str, **config: object) -> None:
        """Change settings of a topic, `__` standing for a dot."""
        admin = self.admin()
        entries = [
            ConfigEntry(key.replace("__", "."), str(value), incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        change = ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries)
        admin.incremental_alter_configs([change])[change].result(20)

    def delete_topic(self, name: str) -> None:
        admin = self.admin()
        admin.delete_topics([name], operation_timeout=20)[name].result(30)

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Return the next offset of each partition: how many records were ever appended."""
        with _reader(self.bootstrap) as consumer:

            def ends() -> dict[int, int]:
                partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
                try:
                    return {
                        number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
                        for number in partitions
                    }
                except KafkaException as error:
                    # A broker that was away leads nothing for a moment.
                    if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                        raise
                    return {}

            return until(ends, f"every partition of {topic} has a leader", 20)

    def records(self, topic: str, seconds: float = 60.0) -> list[tuple[int, bytes]]:
        """Return every record from the beginning to the end as it is now: (partition, value), in order."""
        with _reader(self.bootstrap) as consumer:
            left = {number: end for number, end in self.end_offsets(topic).items() if end}
            consumer.assign([TopicPartition(topic, number, 0) for number in left])
            found: list[tuple[int, bytes]] = []
            deadline = time.monotonic() + seconds
            while left and time.monotonic() < deadline:
                for message in consumer.consume(num_messages=10_000, timeout=0.5):
                    if message.error() is not None:
                        continue  # retried by librdkafka; the deadline bounds it
                    found.append((message.partition(), message.value() or b""))
                    if message.offset() + 1 >= left.get(message.partition(), sys.maxsize):
                        left.pop(message.partition(), None)
            assert not left, f"The end of partitions {sorted(left)} of {topic} was not reached within {seconds:g} s."
            return found

    def values(self, topic: str) -> list[bytes]:
        return [value for _, value in self.records(topic)]

    def wait_count(self, topic: str, count: int, seconds: float = 60.0) -> None:
        """Return when at least `count` records were appended."""
        until(lambda: sum(self.end_offsets(topic).values()) >= count, f"{count} records in {topic}", seconds, every=0.2)

    def wait_account(self, topic: str, sent: Mapping[str, int], seconds: float = 60.0) -> Account:
        """Account for `topic` when every number `sent` is in it, or when `seconds` are over."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            with contextlib.suppress(AssertionError):
                self.wait_count(topic, sum(sent.values()), max(0.0, left))
            found = account(self.records(topic), sent)
            if not found.lost or left <= 0:
                return found
            time.sleep(0.5)  # copies stand in for what is still missing


class _Kafka(KafkaClient, _Java):
    """One broker, cluster of its own; `bootstrap` is its address."""

    common: ClassVar[dict[str, object]] = {
        "auto__create__topics__enable": "false",
        "offsets__topic__replication__factor": 1,
        "offsets__topic__num__partitions": 1,
        "group__initial__rebalance__delay__ms": 0,
        "num__network__threads": 2,
        "num__io__threads": 2,
        "log__cleaner__enable": "false",
        "log__segment__bytes": 64 * 1024 * 1024,
    }

    def __init__(self, directory: Path, port: int | None = None, **properties: object) -> None:
        super().__init__(directory)
        self.port = port or free_port()
        self.extra = properties

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True, port: int | None = None) -> None:
        """Start it, on another port if one is given."""
        self.port = port or self.port
        super().start(wait=wait)

    def ready(self) -> bool:
        with contextlib.suppress(OSError, KafkaException):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            brokers = self.admin().list_topics(timeout=3).brokers
            return any(broker.port == self.port for broker in brokers.values())
        return False


class Kafka39(_Kafka):
    """Kafka 3.9.2, registered in a ZooKeeper as `number`, under `chroot` if one is given (`/kafka`)."""

    version = "3.9.2"

    def __init__(
        self, directory: Path, zookeeper: ZooKeeper, *, chroot: str = "", number: int = 0, **properties: Any
    ) -> None:
        super().__init__(directory, **properties)
        self.zookeeper = zookeeper
        self.number = number
        self.chroot = chroot

    @property
    def zookeeper_hosts(self) -> str:
        """What to configure a client of this cluster with."""
        return self.zookeeper.hosts + self.chroot

    def start(self, *, wait: bool = True, port: int | None = None) -> None:
        """Start it, on another port if one is given; while ZooKeeper still holds a killed one's registration, wait."""
        registration = f"{self.chroot}/brokers/ids/{self.number}\n"
        until(lambda: registration not in self.zookeeper.ask("dump"), "ZooKeeper forgets the killed broker", 20, 0.1)
        super().start(wait=wait, port=port)

    def argv(self) -> list[str]:
        path = self.properties(
            "server.properties",
            **self.common
            | {
                "broker__id": self.number,
                "zookeeper__connect": self.zookeeper_hosts,
                "zookeeper__session__timeout__ms": 3000,
                "listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
                "log__dirs": self.directory / "data",
            }
            | self.extra,
        )
        return self.java("kafka.Kafka", path)


class Kafka43(_Kafka):
    """Kafka 4.3.0, KRaft: broker and controller in one process."""

    version = "4.3.0"

    def __init__(self, directory: Path, **properties: Any) -> None:
        super().__init__(directory, **properties)
        self.controller_port = free_port()

    def argv(self) -> list[str]:
        path = self.properties(
            "server.properties",
            **self.common
            | {
                "process__roles": "broker,controller",
                "node__id": 1,
                "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
                "advertised__listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
                "controller__listener__names": "CONTROLLER",
                "broker__session__timeout__ms": 3000,  # how long a killed broker keeps its place
                "broker__heartbeat__interval__ms": 500,
                "controller__quorum__bootstrap__servers": f"127.0.0.1:{self.controller_port}",
                "log__dirs": self.directory / "data",
            }
            | self.extra,
        )
        if not (self.directory / "data" / "meta.properties").exists():
            with self.log_path.open("ab") as log:
                subprocess.run(
                    self.java(
                        "kafka.tools.StorageTool", "format", "--standalone", "-t", "c3lzbG9nZ2VyLXRlc3RzMQ", "-c", path
                    ),
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=60,
                )
        return self.java("kafka.Kafka", path)


@contextlib.contextmanager
def _reader(bootstrap: str) -> Iterator[Consumer]:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "none",  # demanded, though nothing is committed
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.message.max.bytes": 8 * 1024 * 1024,
            **QUIET,
        }
    )
    try:
        yield consumer
    finally:
        consumer.close()


class Rsyslog(Part):
    """Stock rsyslogd with a private configuration; what it queues on disk is in its directory.

    `config` is its whole configuration, RainerScript; `{directory}` in it stands for the part's directory.
    """

    def __init__(self, directory: Path, config: str) -> None:
        super().__init__(directory)
        self.config = config

    def argv(self) -> list[str]:
        (self.directory / "work").mkdir(exist_ok=True)
        path = self.directory / "rsyslog.conf"
        path.write_text(self.config.replace("{directory}", str(self.directory)))
        pidfile = self.directory / "pid"
        pidfile.unlink(missing_ok=True)
        return [_program("rsyslogd") or "rsyslogd", "-n", "-f", str(path), "-i", str(pidfile)]

    def ready(self) -> bool:
        return (self.directory / "pid").exists()

    @classmethod
    def following(
        cls,
        directory: Path,
        *,
        port: int,
        followed: Path,
        target: str = "127.0.0.1",
        shipped_as: str = SENDING_SIDE.name,
        changes: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """Make an rsyslog that sends each line appended to the file `followed`, as a shipped configuration says.

        It is that file of `rsyslog.d/` with nothing changed but the target, the port and the texts in `changes`, such
        as the paths of certificates.
        """
        shipped = SENDING_SIDE.with_name(shipped_as).read_text()
        changed = re.sub(r'target="[^"]*"', f'target="{target}"', shipped)
        changed = re.sub(r'port="[^"]*"', f'port="{port}"', changed)
        assert changed != shipped
        for text, other in changes.items():
            assert text in changed, text
            changed = changed.replace(text, other)
        config = (
            'global(workDirectory="{directory}/work")\n'
            'module(load="imfile")\n'
            f'input(type="imfile" file="{followed}" tag="numbers:" severity="info" facility="local0")\n'
        )
        return cls(directory, config + changed)


class Sender:
    """A stock rsyslog that follows a file, and the file."""

    def __init__(
        self,
        directory: Path,
        port: int,
        shipped_as: str = SENDING_SIDE.name,
        changes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.followed = directory / "messages"
        self.followed.touch()
        self.rsyslog = Rsyslog.following(
            directory / "rsyslog", port=port, followed=self.followed, shipped_as=shipped_as, changes=changes
        )

    def write(self, *lines: str) -> None:
        """Append lines to the file."""
        with self.followed.open("a") as file:
            file.write("".join(f"{line}\n" for line in lines))


class Numbers:
    """So many numbered messages were sent, by a thread that a subclass says (`_send`), until it is told to stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _send(self) -> None:
        raise NotImplementedError


class Load(Numbers):
    """Writes numbered messages for rsyslog at a steady rate."""

    def __init__(self, sender: Sender, per_second: int, name: str = "a") -> None:
        super().__init__(name)
        self._sender = sender
        self._per_tick = per_second // 20

    def _send(self) -> None:
        while not self._stop.wait(0.05):
            self._sender.write(*numbered(self.name, self._per_tick, self.count))
            self.count += self._per_tick


class Syslogger(Part):
    """`syslogger run` with `config` as its TOML file, and flags behind it.

    Left out of `config`, a listener and a Prometheus address on free ports of 127.0.0.1 are filled in; they are the
    same at every start.
    """

    start_seconds = 20.0

    def __init__(self, directory: Path, config: Mapping[str, Any], *flags: str, **environment: str) -> None:
        super().__init__(directory)
        defaults: dict[str, Any] = {
            "listeners": [{"address": f"127.0.0.1:{free_port()}"}],
            "prometheus": {"address": f"127.0.0.1:{free_port()}"},
        }
        self.config = defaults | dict(config)
        self.flags = flags
        self.extra_environment = environment

    @property
    def port(self) -> int:
        """The first listener's."""
        return int(self.config["listeners"][0]["address"].rpartition(":")[2])

    def argv(self) -> list[str]:
        path = self.directory / "syslogger.toml"
        path.write_text(toml(self.config))
        return [sys.executable, "-m", "syslogger", "run", "--config", str(path), *self.flags]

    def environment(self) -> dict[str, str]:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("SYSLOGGER_")}
        return plain | self.extra_environment

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and body its HTTP server answers with; 0 if nothing answers."""
        url = f"http://{self.config['prometheus']['address']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """One scrape: `name` or `name{label="value"}` → number."""
        status, text = self.get("/metrics")
        assert status == 200, f"/metrics answered {status}"
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum over all samples of `name` that have these labels; 0 if there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in self.metrics().items()
            if sample.partition("{")[0] == name and all(label in sample for label in wanted)
        )

    def check_sums(self) -> None:
        """Assert of one scrape: received = delivered + in flight + withdrawn."""
        now = self.metrics()
        received, *become = (
            now[f"syslogger_records_{name}"]
            for name in ("received_total", "delivered_total", "in_flight", "withdrawn_total")
        )
        assert received == sum(become), (received, become)

    def connect(self) -> socket.socket:
        """Open a TCP connection to the first listener, on which no call takes longer than 20 s."""
        return socket.create_connection(("127.0.0.1", self.port), 20)

    def send(self, data: bytes) -> None:
        """Send `data` on a connection of its own, end it, and wait until syslogger has ended it too."""
        with self.connect() as peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b"", "syslogger sent something"


def toml(config: Mapping[str, Any]) -> str:
    """`config` as TOML: its plain values, then its tables and arrays of tables, which may have tables."""

    def value(of: object) -> str:
        if isinstance(of, bool):
            return str(of).lower()
        if isinstance(of, (int, float)):
            return repr(of)
        if isinstance(of, (list, tuple)):
            return "[" + ", ".join(value(each) for each in of) + "]"
        return '"' + str(of).replace("\\", "\\\\").replace('"', '\\"') + '"'

    def plain(table: Mapping[str, Any]) -> list[str]:
        return [f"{key} = {value(of)}" for key, of in table.items() if not isinstance(of, Mapping) and not tables(of)]

    def tables(of: object) -> bool:
        return isinstance(of, list) and bool(of) and isinstance(of[0], Mapping)

    lines = plain(config)
    for key, of in config.items():
        if isinstance(of, Mapping):
            lines += ["", f"[{key}]", *plain(of)]
        elif tables(of):
            for each in of:
                lines += ["", f"[[{key}]]", *plain(each)]
                for inner, table in each.items():
                    if isinstance(table, Mapping):
                        lines += [f"[{key}.{inner}]", *plain(table)]
    return "\n".join(lines) + "\n"


NUMBERED = re.compile(rb"\[([a-z0-9-]+) (\d+)\]")


def numbered(sender: str, count: int, start: int = 0, length: int = 100) -> Iterator[str]:
    """Message texts `[sender number]xxx…` of `length` characters, numbered from `start`, `count` of them."""
    for number in range(start, start + count):
        yield f"[{sender} {number}]".ljust(length, "x")


@dataclass
class Account:
    """What became of numbered messages."""

    sent: int
    delivered: int = 0  # different numbers found
    twice: int = 0  # copies beyond the first
    lost: list[tuple[str, int]] = field(default_factory=list)
    out_of_order: list[tuple[str, int]] = field(default_factory=list)  # first copies behind a higher number
    foreign: list[bytes] = field(default_factory=list)  # records that carry no number, or one never sent

    def __str__(self) -> str:
        return (
            f"sent {self.sent}, delivered {self.delivered}, twice {self.twice}, "
            f"lost {len(self.lost)} {self.lost[:5]}, out of order {len(self.out_of_order)} {self.out_of_order[:5]}, "
            f"foreign {len(self.foreign)} {self.foreign[:3]}"
        )

    def check(self, *, twice: bool = False) -> None:
        """Assert that nothing was lost, mangled or swapped, and nothing came twice unless `twice` allows it."""
        assert not self.lost, str(self)
        assert not self.out_of_order, str(self)
        assert not self.foreign, str(self)
        assert twice or not self.twice, str(self)
        assert self.delivered == self.sent, str(self)


def account(records: Iterable[tuple[int, bytes]], sent: Mapping[str, int]) -> Account:
    """Compare a topic's `records` with what was `sent`: sender → how many, numbered from 0.

    Order is judged within a partition, as Kafka keeps none across them.
    """
    result = Account(sent=sum(sent.values()))
    seen = {sender: bytearray(count) for sender, count in sent.items()}
    last: dict[tuple[str, int], int] = {}
    for partition, value in records:
        found = NUMBERED.search(value)
        sender, number = (found[1].decode(), int(found[2])) if found else ("", 0)
        if sender not in seen or number >= sent[sender]:
            result.foreign.append(value)
        elif seen[sender][number]:
            result.twice += 1
        else:
            seen[sender][number] = 1
            result.delivered += 1
            if number < last.get((sender, partition), -1):
                result.out_of_order.append((sender, number))
            else:
                last[sender, partition] = number
    result.lost = [(sender, number) for sender, flags in seen.items() for number, flag in enumerate(flags) if not flag]
    return result
