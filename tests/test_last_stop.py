from __future__ import annotations

import time
from pathlib import Path

import pytest

from syslogger import last_stop
from syslogger.last_stop import LastStop


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    return tmp_path


def test_what_is_written_is_read_until_the_next_is(directory: Path) -> None:
    assert last_stop.read() == LastStop()
    last_stop.write(4096, 2)
    kept = last_stop.read()
    assert kept[1:] == (4096, 2)
    assert abs(kept.time - time.time()) < 10
    last_stop.write(0, 0)
    assert last_stop.read()[1:] == (0, 0)
    assert [path.name for path in directory.iterdir()] == ["last-stop.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a", "b", "c"]', "null", "[1, 2, 3, 4]"])
def test_what_cannot_be_read_is_nothing(directory: Path, text: str) -> None:
    (directory / "last-stop.json").write_text(text)
    assert last_stop.read() == LastStop()


def test_without_a_directory_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    last_stop.write(1, 1)
    assert last_stop.read() == LastStop()


def test_a_directory_that_cannot_be_written_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "missing"))
    last_stop.write(1, 1)
    assert last_stop.read() == LastStop()
