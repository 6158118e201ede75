"""Unix sockets: what the kernel does with them, and what becomes of their files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from syslogger import streams, unix_sockets
from syslogger.errors import ConfigError
from syslogger.streams import Poller
from syslogger.unix_sockets import UnixStream, bind_unix, close_bound, peer_of
from tests.waiting import Reader, until

LARGEST = 4096


class Pair(Reader):
    """A stream and the peer's end of it."""

    def __init__(self, poller: Poller) -> None:
        self.peer, self.accepted = socket.socketpair(socket.AF_UNIX)
        self.stream = UnixStream(self.accepted, poller)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with Poller(LARGEST) as poller:
        pair = Pair(poller)
        yield pair
        pair.stream.close()
        pair.peer.close()


async def test_what_several_sends_left_is_shown_together_and_again(pair: Pair) -> None:
    for each in (b"ab", b"cd", b"ef"):
        pair.peer.sendall(each)
    assert await pair.peek() == b"abcdef"
    pair.stream.consume(3)
    assert pair.stream.unconsumed() == 3
    pair.peer.sendall(b"g")
    assert await pair.peek() == b"defg"
    pair.stream.consume(4)
    assert pair.stream.unconsumed() == 0


async def test_more_than_one_read_comes_in_several(pair: Pair) -> None:
    sent = os.urandom(3 * LARGEST + 7)
    pair.peer.sendall(sent[:5000])
    pair.peer.sendall(sent[5000:])
    pair.peer.close()
    got = b""
    while data := await pair.peek():
        assert pair.stream.final in {"", "eof"}
        pair.stream.consume(len(data))
        got += data
    assert got == sent
    assert pair.stream.ended == "eof"


async def test_what_came_before_a_reset_is_shown_first(pair: Pair) -> None:
    pair.accepted.send(b"never read")
    pair.peer.sendall(b"kept")
    pair.peer.close()
    assert await pair.peek() == b"kept"
    pair.stream.consume(4)
    assert await pair.peek() == b""
    assert pair.stream.ended == "reset"


async def test_descriptors_stop_nothing(pair: Pair) -> None:
    pair.peer.sendall(b"one\nha")
    with socket.socket() as carried:
        socket.send_fds(pair.peer, [b"lf"], [carried.fileno()] * 3)
    pair.peer.sendall(b" more\ntwo\n")
    got, finals = b"", []
    while len(got) < 18:
        data = await pair.peek()
        got += data
        finals.append(pair.stream.final)
        pair.stream.consume(len(data))
    assert got == b"one\nhalf more\ntwo\n"
    assert finals == ["urgent", ""]


async def test_urgent_data_stops_nothing(pair: Pair) -> None:
    pair.peer.sendall(b"keep")
    try:
        pair.peer.send(b"!", socket.MSG_OOB)
    except OSError:
        pytest.skip("this kernel has no urgent data on unix sockets")
    pair.peer.sendall(b"after")
    got = b""
    while len(got) < 10:
        data = await pair.peek()
        got += data
        pair.stream.consume(len(data))
    assert got == b"keep!after"


async def test_a_record_that_has_no_room_is_not_waited_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_sockets, "_STALLED_SECONDS", 0.1)
    pair.peer.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += pair.peer.send(b"x")
    assert sent < 1000, "each send takes room"
    got = 0
    while not pair.stream.final:
        got = len(await pair.peek())
        if not pair.stream.final:
            pair.stream.consume(0)
    assert (got, pair.stream.final) == (sent, "stalled")
    pair.stream.consume(got)
    pair.peer.send(b"y\n")
    assert await pair.peek() == b"y\n"
    assert pair.stream.final == ""


async def test_what_joins_in_the_last_moment_is_not_stalled(pair: Pair) -> None:
    pair.peer.send(b"x")
    assert await pair.peek() == b"x"
    pair.stream.consume(0)
    pair.peer.send(b"y")
    pair.stream._stall()
    assert pair.stream.peek() == b"xy"
    assert pair.stream.final == ""


async def test_what_goes_on_in_time_is_not_stalled(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_sockets, "_STALLED_SECONDS", 0.5)
    for sent in range(1, 8):
        pair.peer.send(b"x")
        assert await pair.peek() == b"x" * sent
        assert pair.stream.final == ""
        pair.stream.consume(0)
        await asyncio.sleep(0.1)


async def test_a_half_closed_peer_that_stays_silent(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_QUIET_SECONDS", 0.05)
    pair.peer.sendall(b"half")
    assert await pair.peek() == b"half"
    pair.stream.consume(0)
    pair.stream.half_close()
    assert pair.peer.recv(1) == b""
    while not pair.stream.final:
        assert await pair.peek() == b"half"
        pair.stream.consume(0)
    assert pair.stream.final == "quiet"
    pair.stream.consume(4)
    assert await pair.peek() == b""
    assert pair.stream.ended == "quiet"


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def test_a_path_is_bound_once_and_its_file_goes_with_it(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    sock = bind_unix(path, 0o620, "x")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o620
    sock.listen()
    connect(path).close()
    with pytest.raises(ConfigError, match=rf"^listeners\[1\]\.address: cannot listen on unix:{path}: another program"):
        bind_unix(path, 0o600, "listeners[1].address")
    assert bind_unix(path, 0o600, "x", inherited := [sock]) is sock
    assert inherited == []
    close_bound(sock)
    assert not Path(path).exists()
    close_bound(sock)


def test_a_stale_file_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    bind_unix(path, 0o600, "x").close()
    assert Path(path).exists()
    sock = bind_unix(path, 0o600, "x")
    close_bound(sock)
    assert not Path(path).exists(), "of one that never listened too"


def test_who_is_bound_but_does_not_listen_yet_keeps_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with bind_unix(path, 0o600, "x") as waiting:
        with pytest.raises(ConfigError, match="another program already listens there"):
            bind_unix(path, 0o600, "x")
        waiting.listen()
        with connect(path) as peer:
            accepted, _ = waiting.accept()
            waiting.close()
            # The path of a connection that has outlived its listener is nobody's to listen on.
            close_bound(bind_unix(path, 0o600, "x"))
            accepted.close()
            assert peer.recv(1) == b""


def test_a_listener_whose_backlog_is_full_is_not_stale(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with bind_unix(path, 0o600, "x") as busy:
        busy.listen(0)
        with connect(path), pytest.raises(ConfigError, match="another program already listens there"):
            bind_unix(path, 0o600, "x")
    assert Path(path).exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [("file", "a file that is no socket"), ("no/such", "directory must exist"), ("x" * 108, "AF_UNIX path too long")],
)
def test_a_path_that_cannot_be(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=says):
        bind_unix(str(tmp_path / name), 0o600, "x")
    assert (tmp_path / "file").read_text() == "kept"


def test_an_inherited_socket_whose_file_is_gone_is_no_use(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with bind_unix(path, 0o600, "x") as old:
        old.listen()
        Path(path).unlink()
        inherited = [old]
        new = bind_unix(path, 0o600, "x", inherited)
        assert inherited == [old]
        close_bound(new)


def test_the_file_of_a_socket_unit_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    sock = bind_unix(path, 0o600, "x")
    sock.listen()
    monkeypatch.setattr(os, "getppid", os.getpid)
    close_bound(sock)
    assert Path(path).exists()


async def test_a_peer_is_named_by_its_process(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    sock = bind_unix(path, 0o600, "x")
    sock.listen()
    with connect(path):
        await until(lambda: True)
        accepted, _ = sock.accept()
        assert peer_of(accepted) == f"process {os.getpid()} of user {os.getuid()} at unix:{path}"
        accepted.close()
    close_bound(sock)
