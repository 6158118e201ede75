"""The daemon's side of the tap: who may open it, what it shows, and that it keeps nobody waiting."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from syslogger import tap as tap_module
from syslogger.tap import See, Tap
from tests.waiting import until


class Source:
    """What passes: deliveries, shown to whoever the tap has put in place."""

    def __init__(self) -> None:
        self.see: See | None = None

    def show(self, see: See | None) -> None:
        self.see = see

    def pass_(self, peer: str, *records: bytes) -> None:
        assert self.see
        self.see(records, peer)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def path(tmp_path: Path, source: Source) -> AsyncIterator[str]:
    path = str(tmp_path / "tap")
    async with Tap(path, source.show):
        yield path


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            line: dict[str, Any] = json.loads(await self.reader.readline())
            return line

    async def records(self, count: int) -> list[tuple[str, str]]:
        lines = [await self.next() for _ in range(count)]
        return [(line["peer"], line["record"]) for line in lines]


@asynccontextmanager
async def looking(path: str, source: Source, **asked: str) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_unix_connection(path)
    before = source.see
    writer.write(json.dumps(asked).encode() + b"\n")
    if not before:
        await until(lambda: source.see)
    yield Client(reader, writer)
    writer.close()
    await writer.wait_closed()


async def test_nobody_looks_before_and_after(path: str, source: Source) -> None:
    assert source.see is None
    async with looking(path, source) as client:
        source.pass_("a:1", b"one", b"\xff\x00\n")
        assert await client.records(2) == [("a:1", "one"), ("a:1", "\xff\x00\n")]
    await until(lambda: source.see is None)


async def test_it_shows_what_was_asked_for(path: str, source: Source) -> None:
    async with looking(path, source, peer="10.0.0.1:", text="Grüße") as client:
        source.pass_("10.0.0.2:7", "Grüße".encode())
        source.pass_("10.0.0.1:7", b"hello", "1 Grüße 1".encode(), "2 Grüße".encode())
        source.pass_("10.0.0.1:8", "3 Grüße".encode())
        found = await client.records(3)
    assert [(peer, record.encode("latin-1").decode()) for peer, record in found] == [
        ("10.0.0.1:7", "1 Grüße 1"),
        ("10.0.0.1:7", "2 Grüße"),
        ("10.0.0.1:8", "3 Grüße"),
    ]


async def test_two_look_at_once_and_one_goes(path: str, source: Source) -> None:
    async with looking(path, source) as first:
        async with looking(path, source) as second:
            second.writer.write(b"")
            await until(lambda: len(source.see.__self__._clients) == 2)  # type: ignore[union-attr]
            source.pass_("a:1", b"one")
            assert await first.records(1) == await second.records(1)
        await until(lambda: len(source.see.__self__._clients) == 1)  # type: ignore[union-attr]
        source.pass_("a:1", b"two")
        assert await first.records(1) == [("a:1", "two")]


async def test_more_than_there_is_time_for_goes_by_and_is_counted(
    path: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_module, "_TELL_SECONDS", 0.01)
    monkeypatch.setattr(tap_module, "_SHARE", 0.0)
    monkeypatch.setattr(tap_module, "_UNREAD_BYTES", 1 << 30)
    async with looking(path, source, text="x") as client:
        for _ in range(20):
            source.pass_("a:1", *[b"x" * 1000] * 1000)
        seen = unseen = 0
        while seen + unseen < 20_000:
            line = await client.next()
            seen, unseen = seen + ("record" in line), unseen + line.get("unseen", 0)
        assert seen + unseen == 20_000
        assert unseen > 5000


async def test_who_does_not_read_keeps_nobody_waiting(
    path: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap_module, "_UNREAD_BYTES", 100_000)
    monkeypatch.setattr(tap_module, "_TELL_SECONDS", 0.01)
    monkeypatch.setattr(tap_module, "_SHARE", 1000.0)
    monkeypatch.setattr(tap_module, "_BURST_SECONDS", 1000.0)
    async with looking(path, source) as client:
        for _ in range(100):
            source.pass_("a:1", *[b"y" * 1000] * 100)
        (other,) = source.see.__self__._clients  # type: ignore[union-attr]
        assert other.writer.transport.get_write_buffer_size() < 400_000
        seen = unseen = 0
        while seen + unseen < 10_000:
            line = await client.next()
            seen, unseen = seen + ("record" in line), unseen + line.get("unseen", 0)
        assert 0 < seen < 10_000


@pytest.mark.parametrize("said", [b"nonsense\n", b"[1]\n", b"x" * 10_000, b"", b"\xff\xfe\n"])
async def test_who_asks_for_nothing_is_let_go(path: str, source: Source, said: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(said)
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    assert source.see is None


async def test_only_so_many_may_look(path: str, source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap_module, "_MOST_CLIENTS", 1)
    async with looking(path, source), looking(path, source) as second:
        assert await second.next() == {"error": "1 others look already"}


async def test_only_root_and_its_user_may_open_it(source: Source) -> None:
    # pytest's own folders are closed to others, which would hide what the socket itself allows.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # noqa: PTH101, S103 - see above
        path = os.path.join(directory, "tap")  # noqa: PTH118 - a loop may not use Path
        async with Tap(path, source.show):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116 - as above
            if os.geteuid():
                pytest.skip("Only root can become somebody else.")
            code = (
                "import os, socket, sys\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n"
                "try:\n    socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
                "except PermissionError:\n    sys.exit(7)"
            )
            other = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, path], check=False)
            assert other.returncode == 7


async def test_the_socket_of_one_that_was_killed_is_replaced(tmp_path: Path, source: Source) -> None:
    path = str(tmp_path / "tap")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(path)
    dead.close()
    async with Tap(path, source.show), looking(path, source) as client:
        source.pass_("a:1", b"one")
        assert await client.records(1) == [("a:1", "one")]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - a loop may not use Path


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tap", "another syslogger serves it"),
        ("file", "there is a file that is no socket"),
        ("missing/tap", "No such file or directory"),
        ("x" * 200, "AF_UNIX path too long"),
    ],
)
async def test_a_path_that_cannot_be_is_told_and_stops_nothing(
    source: Source, path: str, caplog: pytest.LogCaptureFixture, name: str, why: str
) -> None:
    directory = Path(path).parent
    file = directory / "file"
    file.write_text("kept")
    async with Tap(str(directory / name), source.show):
        assert f"tap.path: cannot listen on {directory / name}: {why}. There is no tap" in caplog.text
    assert file.read_text() == "kept"
    async with looking(path, source) as client:
        source.pass_("a:1", b"one")
        assert await client.records(1) == [("a:1", "one")]


async def test_without_a_path_it_is_where_systemd_says(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/other")
    async with Tap("", source.show), looking(str(tmp_path / "tap"), source):
        pass
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "missing"))
    async with Tap("", source.show):
        assert "There is no tap" in caplog.text
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    async with Tap("", source.show):
        assert os.listdir(tmp_path) == []  # noqa: PTH208 - a loop may not use Path


async def test_the_end_of_the_daemon_ends_the_client(tmp_path: Path, source: Source) -> None:
    path = str(tmp_path / "tap")
    async with Tap(path, source.show):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"{}\n")
        await until(lambda: source.see)
    assert source.see is None
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
