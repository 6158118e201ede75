"""syslogger under a really booted systemd, with the machine's own rsyslog sending at full speed.

Beside rsyslog's one connection there are others: some that stay open all the time, and a new one every few
milliseconds, so that a moment in which nobody is let in does not go unseen.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from confluent_kafka import KafkaException

from tests.system.machine import InsideRsyslog, Machine, Service, wheel
from tests.system.parts import Account, Kafka43, account, numbered, until

pytestmark = pytest.mark.timeout(420)  # the first one may have to make the image

LENGTH = 100
"""Characters of a message; rsyslog's header makes a record of some 140 bytes of it."""

BESIDE_SIGKILL = 0.1
"""Seconds between new connections. What is killed between accepting one and giving it to systemd, some 20 µs, loses it:
with this many connections that is not to be expected in a thousand runs."""

RECORDS_IN_A_RECEIVE_BUFFER = 2 * 262_144 // (LENGTH + 30)
"""At most; it is what a connection can have in flight."""

OF_THE_MACHINE = re.compile(rb"<\d+>[A-Z][a-z]{2} [ \d]\d [\d:]{8} \S+ (?!numbers:)\S")
"""What the machine logs by itself; its rsyslog sends that too, as shipped."""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def newer_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(tmp_path_factory.mktemp("package"), version="99.0.0")


@pytest.fixture
def kafka(machine: Machine, tmp_path: Path) -> Iterator[Kafka43]:  # noqa: ARG001 - in its network
    with Kafka43(tmp_path / "kafka") as part:
        yield part


class Load:
    """Everything that sends, while it is entered; `topics` are where it may arrive.

    rsyslog always has at least 100,000 messages to send, so its speed is the machine's. `held` connections stay open
    from the first moment to the last and send now and then. A new connection that sends one message and ends comes
    every `every` seconds.
    """

    ahead = 100_000

    def __init__(self, machine: Machine, kafka: Kafka43, *topics: str, held: int = 20, every: float = 0.01) -> None:
        self.machine = machine
        self.topics = topics
        self.held = held
        self.every = every
        self.refused: list[str] = []
        self.closed: list[str] = []
        self.sent = dict.fromkeys(("rsyslog", "new", *(f"held-{number}" for number in range(self.held))), 0)
        self.before: list[tuple[int, int]] = []
        self._kafka = kafka
        self._rsyslog = InsideRsyslog(machine)
        self._held: list[socket.socket] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._write, self._connect, self._talk)]

    def __enter__(self) -> Self:
        self._rsyslog.write(numbered("rsyslog", 1))
        self.sent["rsyslog"] = 1
        self.before = until(lambda: self.machine.connections_to(Service.port), "rsyslog is connected")
        assert len(self.before) == 1
        self._held = [self._connected() for _ in range(self.held)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        with contextlib.ExitStack() as opened:
            for peer in self._held:
                opened.enter_context(peer)
            if kind is None:
                for number, peer in enumerate(self._held):
                    self._say(number, peer)
                    self._end(number, peer)

    def arrived(self) -> int:
        """Return how many records were ever appended; 0 while Kafka does not say."""
        with contextlib.suppress(KafkaException):
            return sum(sum(self._kafka.end_offsets(topic).values()) for topic in self.topics)
        return 0

    def wait_arrived(self, more: int) -> None:
        """Wait until so many more records were appended."""
        wanted = until(self.arrived, "Kafka says how many records it has", 20) + more
        until(lambda: self.arrived() >= wanted, f"{more} more records arrive", 30)

    def account(self) -> Account:
        """Wait until all that was sent has arrived, a minute at most; print and return the account."""
        deadline = time.monotonic() + 60
        while True:
            records = [
                (place * 1000 + partition, value)
                for place, topic in enumerate(self.topics)
                for partition, value in self._kafka.records(topic)
                if not OF_THE_MACHINE.match(value)
            ]
            found = account(records, self.sent)
            # Each of these came on a connection of its own.
            found.out_of_order = [each for each in found.out_of_order if each[0] != "new"]
            if not found.lost or time.monotonic() > deadline:
                break
            time.sleep(1)  # only the account tells when the last record is there
        print(f"\n{found}; refused {len(self.refused)}, closed {len(self.closed)}; {self.sent['new']} new connections")
        return found

    def check(self, *, twice: int) -> Account:
        """Assert: nothing lost, swapped, refused or closed, and at most so many came twice."""
        found = self.account()
        assert found.sent > 100_000, "too little to be a load"
        after = self.machine.connections_to(Service.port)
        assert not self.refused, (len(self.refused), self.refused[:5])
        assert not self.closed, (len(self.closed), self.closed[:5])
        assert self.before == after, "rsyslog's connection is not the one it was"
        found.check(twice=True)
        assert found.twice <= twice, found
        return found

    def _write(self) -> None:
        while not self._stop.wait(0.1):
            while self.sent["rsyslog"] < self.arrived() + self.ahead:
                self._rsyslog.write(numbered("rsyslog", 25_000, self.sent["rsyslog"], LENGTH))
                self.sent["rsyslog"] += 25_000

    def _connect(self) -> None:
        while not self._stop.wait(self.every):
            try:
                with self._connected() as peer:
                    peer.sendall(f"[new {self.sent['new']}]\n".encode())
                    self.sent["new"] += 1
            except OSError as error:
                self.refused.append(f"{time.monotonic():.3f}: {error}")

    def _talk(self) -> None:
        while self.held and not self._stop.wait(0.05):
            number = random.randrange(self.held)  # noqa: S311
            self._say(number, self._held[number])

    def _say(self, number: int, peer: socket.socket) -> None:
        sender = f"held-{number}"
        try:
            peer.sendall(f"[{sender} {self.sent[sender]}]\n".encode())
            self.sent[sender] += 1
        except OSError as error:
            self.closed.append(f"{number}: {error}")

    def _end(self, number: int, peer: socket.socket) -> None:
        try:
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b"", "syslogger sent something"
        except OSError as error:
            self.closed.append(f"{number} at its end: {error}")

    def _connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", Service.port), 20)


@pytest.fixture
def topic(kafka: Kafka43) -> str:
    return kafka.create_topic()


@pytest.fixture
def service(machine: Machine, kafka: Kafka43, topic: str, package: Path) -> Service:
    """Install syslogger with the shipped unit and start it."""
    service = Service(machine, package, {"kafka": {"bootstrap_servers": [kafka.bootstrap], "topic": topic}})
    service.start()
    return service


def _chance() -> random.Random:
    seed = random.randrange(10**6)  # noqa: S311
    print(f"\nseed {seed}")
    return random.Random(seed)  # noqa: S311


@pytest.mark.row(14)
def test_twelve_sigkills_under_load(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    chance, kills = _chance(), 12
    with Load(machine, kafka, topic, every=BESIDE_SIGKILL) as load:
        killed = set()
        for _ in range(kills):
            load.wait_arrived(2000)
            time.sleep(chance.uniform(0, 0.5))
            killed.add(service.signal_main(signal.SIGKILL))
            until(lambda: service.main_pid not in {0, *killed}, "systemd starts it again", 10)
        assert len(killed) == kills
        load.wait_arrived(2000)
    load.check(twice=kills * RECORDS_IN_A_RECEIVE_BUFFER)
    assert int(service.shows("NRestarts")) == kills


@pytest.mark.row(14)
def test_killed_again_while_it_starts(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    """What the new process was handed is not lost with it, however early it is killed; here without the socket unit."""
    chance, kills = _chance(), 6
    machine.run("systemctl", "disable", "--now", "syslogger.socket", service.unit)
    machine.run("systemctl", "enable", "--now", service.unit)
    with Load(machine, kafka, topic, every=BESIDE_SIGKILL) as load:
        load.wait_arrived(2000)
        for _ in range(kills):
            killed = service.signal_main(signal.SIGKILL)
            until(lambda last=killed: service.main_pid not in (0, last), "systemd starts it again", 10)
            time.sleep(chance.uniform(0, 0.4))  # it takes about that long to start
        load.wait_arrived(2000)
    load.check(twice=kills * RECORDS_IN_A_RECEIVE_BUFFER)


@pytest.mark.row(14)
def test_a_process_that_hangs_is_replaced(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    service.add_to_unit("[Service]\nWatchdogSec=3\n")
    service.systemctl("restart")
    with Load(machine, kafka, topic) as load:
        load.wait_arrived(2000)
        hanging = service.signal_main(signal.SIGSTOP)
        until(lambda: service.main_pid not in (0, hanging), "the watchdog ends it and systemd starts it again", 15)
        load.wait_arrived(2000)
    load.check(twice=RECORDS_IN_A_RECEIVE_BUFFER)
    assert "Watchdog timeout" in service.journal()


@pytest.mark.row(14)
def test_a_process_that_is_busy_is_not_replaced(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    """The watchdog hears of a load, and of a Kafka that is away, longer than WatchdogSec."""
    service.add_to_unit("[Service]\nWatchdogSec=2\n")
    service.systemctl("restart")
    pid = service.main_pid
    with Load(machine, kafka, topic) as load:
        load.wait_arrived(2000)
        kafka.sigstop()
        time.sleep(6)  # three times as long
        kafka.sigcont()
        load.wait_arrived(2000)
    load.check(twice=RECORDS_IN_A_RECEIVE_BUFFER)
    assert service.main_pid == pid
    assert service.shows("NRestarts") == "0"


@pytest.mark.row(16)
def test_three_restarts_under_load(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    # Stopping tells every peer to end. rsyslog does, and so do the new ones; the others would go on.
    with Load(machine, kafka, topic, held=0) as load:
        pids = {service.main_pid}
        for _ in range(3):
            load.wait_arrived(2000)
            service.systemctl("restart")
            pids.add(service.main_pid)
        load.wait_arrived(2000)
    assert len(pids) == 4
    found = load.account()
    assert not load.refused, (len(load.refused), load.refused[:5])
    found.check(twice=True)


@pytest.mark.row(16)
def test_a_reload_changes_the_topic_under_load(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    other = kafka.create_topic()
    pid = service.main_pid
    with Load(machine, kafka, topic, other) as load:
        for destination in (other, topic, other):
            load.wait_arrived(5000)
            service.configure({"kafka": service.config["kafka"] | {"topic": destination}})
            before = kafka.end_offsets(destination)[0]
            service.systemctl("reload")
            until(lambda to=destination, start=before: kafka.end_offsets(to)[0] > start + 2000, "the new topic fills")
    assert service.main_pid == pid
    # Between two topics there is no order to keep, and numbers come back to one.
    load.check(twice=3 * RECORDS_IN_A_RECEIVE_BUFFER)


@pytest.mark.row(16)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('[kafka]\nbootstrap_servers = ["127.0.0.1:1"]\ntopci = "t"\n', "topci"),
        ("[kafka\n", "syslogger.toml"),
    ],
)
def test_a_wrong_configuration_leaves_the_old_one_running(  # noqa: PLR0917
    machine: Machine, kafka: Kafka43, topic: str, service: Service, wrong: str, said: str
):
    pid = service.main_pid
    with Load(machine, kafka, topic) as load:
        load.wait_arrived(2000)
        machine.write("/etc/syslogger/syslogger.toml", wrong)
        machine.run("systemctl", "reload", service.unit, check=False)
        until(lambda: said in service.journal(), "the journal says what is wrong", 10)
        load.wait_arrived(100_000)
    assert service.main_pid == pid
    assert service.shows("ActiveState") == "active"
    load.check(twice=0)


@pytest.mark.row(16)
def test_an_upgrade_in_place_under_load(
    machine: Machine, kafka: Kafka43, topic: str, service: Service, newer_package: Path
):
    pid = service.main_pid
    with Load(machine, kafka, topic) as load:
        load.wait_arrived(2000)
        service.install(newer_package)
        load.wait_arrived(50_000)
        service.systemctl("reload")
        until(lambda: service.version() == "99.0.0", "the new version runs", 20)
        load.wait_arrived(50_000)
    assert service.main_pid == pid
    load.check(twice=RECORDS_IN_A_RECEIVE_BUFFER)


@pytest.mark.row(16)
def test_broken_new_code_leaves_the_old_running(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    pid = service.main_pid
    with Load(machine, kafka, topic) as load:
        load.wait_arrived(2000)
        (found,) = machine.path("/opt/syslogger/lib").glob("python3*/site-packages/syslogger/listener.py")
        found.write_text("def\n")
        machine.run("systemctl", "reload", service.unit, check=False)
        until(lambda: "SyntaxError" in service.journal(), "the journal says what is wrong", 10)
        load.wait_arrived(100_000)
    assert service.main_pid == pid
    load.check(twice=0)


@pytest.mark.row(14)
@pytest.mark.row(16)
def test_killed_and_reloaded_while_kafka_is_away(machine: Machine, kafka: Kafka43, topic: str, service: Service):
    """Whatever befalls it while Kafka is away, in any order, peers keep their connections."""
    with Load(machine, kafka, topic) as load:
        load.wait_arrived(2000)
        kafka.sigkill()
        for step in ("kill", "reload", "reload", "kill", "reload"):
            pid = service.main_pid
            if step == "kill":
                service.signal_main(signal.SIGKILL)
                until(lambda last=pid: service.main_pid not in (0, last), "systemd starts it again", 10)
            else:
                starts = service.starts()
                service.systemctl("reload")
                until(lambda before=starts: service.starts() > before, "it has started anew", 20)
                assert service.main_pid == pid
            until(lambda: "waiting for Kafka" in service.status(), "it waits")
        kafka.start()
        load.wait_arrived(2000)
    load.check(twice=RECORDS_IN_A_RECEIVE_BUFFER)


@pytest.mark.row(3)
def test_the_status_says_what_it_waits_for(kafka: Kafka43, topic: str, service: Service):
    def shows(pattern: str) -> None:
        try:
            until(lambda: re.search(pattern, service.status(), re.DOTALL), pattern, 20)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{service.status()}") from None

    serving = rf'active \(running\).*Status: "forwarding to topic {topic}'
    waiting = rf'Status: "waiting for Kafka.* {re.escape(kafka.bootstrap)}\b.*: connection refused.* \d+ s'
    shows(serving)
    service.systemctl("stop")
    kafka.sigkill()
    service.systemctl("start", "--no-block")
    shows(waiting)
    kafka.start()
    shows(serving)
    kafka.sigkill()
    with socket.create_connection(("127.0.0.1", Service.port), 20) as peer:
        peer.sendall(b"waits\n")
        shows(waiting)
        kafka.start()
        shows(serving)
