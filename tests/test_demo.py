from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

import pytest

SAMPLES = 4
DEMO = (sys.executable, "-m", "syslogger", "demo")
LOGGER = re.compile(r"logger -n (\S+) -P (\d+) -T hello")


class Demo:
    """The demo as a user starts it."""

    def __init__(self, *flags: str) -> None:
        # Unbuffered, so that `communicate` finds all that was not read by line.
        self.process = subprocess.Popen([*DEMO, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        assert self.process.stdout
        assert self.process.stderr
        self.out, self._err = self.process.stdout, self.process.stderr
        self.said = ""

    def hears(self, end: str) -> str:
        """Read standard error up to a line that has `end`; return all of it until now."""
        while end not in self.said:
            line = self._err.readline().decode()
            assert line, self.said
            self.said += line
        return self.said

    def address(self) -> tuple[str, int]:
        """Where the line for another terminal sends to."""
        found = LOGGER.search(self.hears("logger -n"))
        assert found
        return found[1], int(found[2])

    def prints(self, count: int) -> list[bytes]:
        """Read so many lines of standard output."""
        return [self.out.readline() for _ in range(count)]

    def ended(self) -> int:
        """Wait for its end and read the rest; return the exit status."""
        rest, said = self.process.communicate(timeout=20)
        self.rest, self.said = rest, self.said + said.decode()
        return self.process.returncode


@contextmanager
def running(*flags: str) -> Iterator[Demo]:
    demo = Demo(*flags)
    # So that no readline waits for ever.
    timer = threading.Timer(30, demo.process.kill)
    timer.start()
    try:
        yield demo
    finally:
        timer.cancel()
        demo.process.kill()
        demo.process.communicate()


def send(address: tuple[str, int], data: bytes) -> None:
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(data)


def test_it_shows_the_samples_and_ends_by_itself() -> None:
    with running("--listen", "127.0.0.1:0", "--count", str(SAMPLES)) as demo:
        assert demo.ended() == 0
    lines = demo.rest.decode().splitlines()
    assert len(lines) == SAMPLES
    assert re.fullmatch(r"<38>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d web1 sshd\[812\]: Accepted .* ssh2", lines[0])
    assert lines[3].endswith(r"no text: \x00 \x1b \xff")
    assert f"\n{SAMPLES} records received, {SAMPLES} delivered to the topic.\n" in demo.said
    assert "WARNING" not in demo.said


def test_a_count_below_the_samples_prints_no_more() -> None:
    with running("--listen", "127.0.0.1:0", "--count", "2") as demo:
        assert demo.ended() == 0
    assert demo.rest.count(b"\n") == 2
    assert f"{SAMPLES} records received, {SAMPLES} delivered" in demo.said


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "localhost:0", ":0"])
def test_a_count_above_the_samples_waits_for_the_user(listen: str) -> None:
    with running("--listen", listen, "--count", str(SAMPLES + 2)) as demo:
        address = demo.address()
        assert address[0] in ("127.0.0.1", "::1")
        demo.prints(SAMPLES)
        send(address, b"hello\n")
        assert demo.prints(1) == [b"hello\n"]
        assert demo.process.poll() is None
        send(address, b"again\n\xe2\x82\xac\n")
        assert demo.ended() == 0
    assert demo.rest == b"again\n"


def test_ctrl_c_delivers_and_prints_what_peers_still_send() -> None:
    with running("--listen", "127.0.0.1:0") as demo:
        address = demo.address()
        demo.prints(SAMPLES)
        with socket.create_connection(address, timeout=10) as peer:
            peer.sendall(b"first\n")
            assert demo.prints(1) == [b"first\n"]
            demo.process.send_signal(signal.SIGINT)
            assert peer.recv(1) == b""  # told to end
            peer.sendall(b"".join(b"last %d\n" % number for number in range(5000)))
        assert demo.ended() == 0
    assert demo.rest == b"".join(b"last %d\n" % number for number in range(5000))
    assert f"{SAMPLES + 5001} records received, {SAMPLES + 5001} delivered" in demo.said


def test_an_idle_peer_does_not_hold_it() -> None:
    with running("--listen", "127.0.0.1:0") as demo, socket.create_connection(demo.address(), timeout=10):
        demo.prints(SAMPLES)
        demo.process.send_signal(signal.SIGINT)
        assert demo.ended() == 0


def test_it_ends_when_nobody_reads_it() -> None:
    with running("--listen", "127.0.0.1:0") as demo:
        address = demo.address()
        demo.prints(SAMPLES)
        demo.out.close()
        send(address, b"into the void\n")
        demo.hears(f"{SAMPLES + 1} records received, {SAMPLES + 1} delivered")
        assert demo.process.wait(20) == 0


def test_what_is_to_be_seen_is_where_it_says_or_nowhere() -> None:
    with running("--listen", "127.0.0.1:0") as first:
        said = first.hears("Ctrl-C")
        first.prints(SAMPLES)
        if found := re.search(r"http://\S+/(?=\s)", said):
            with urlopen(f"{found[0]}metrics", timeout=10) as answer:  # noqa: S310 - http
                assert f"syslogger_records_received_total {SAMPLES}.0" in answer.read().decode()
        with running("--listen", "127.0.0.1:0", "--count", str(SAMPLES)) as second:
            assert second.ended() == 0
        assert "(port 9514 is taken)" in second.said


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with running("--listen", listen, "--count", "1") as demo:
            assert demo.ended() == 2
    assert demo.rest == b""
    assert demo.said == (
        f"syslogger: --listen: cannot listen on {listen}: another program already listens there; stop it or choose "
        "another port (--listen 127.0.0.1:0 takes one that is free)\n"
    )


def test_an_address_that_is_none_is_one_sentence() -> None:
    with running("--listen", "1514") as demo:
        assert demo.ended() == 2
    assert demo.said.startswith("syslogger: --listen ")
    assert demo.said.count("\n") == 1


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['confluent_kafka'] = None; from syslogger.cli import main; sys.exit(main(['demo']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("syslogger: The demo needs the package confluent-kafka")
    assert done.stderr.endswith("in the sources make demo, or pip install '.[demo]'.\n")
    assert done.stderr.count("\n") == 1
