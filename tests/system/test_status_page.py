"""The status page in a real browser: Debian's headless Chromium shows it, and complains of nothing.

`SCREENSHOT=docs/status.png` keeps the picture that the test takes.
"""

from __future__ import annotations

import asyncio
import html
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from syslogger.counters import Counters
from syslogger.prometheus import MetricsServer, View
from syslogger.status import status
from tests.system.parts import Kafka43, Syslogger, until

BROWSER = "chromium-headless-shell"


@pytest.fixture(autouse=True)
def _browser_is_there() -> None:
    """In CI a missing browser is a failure; elsewhere the test is skipped."""
    if not shutil.which(BROWSER):
        text = f"This machine has no Chromium (Debian package {BROWSER}); `make test` installs it."
        if os.environ.get("CI"):
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


def browse(url: str, profile: Path, *arguments: str) -> str:
    """Return the page as it stands after some turns; it must not have said anything on its console."""
    found = subprocess.run(
        [
            BROWSER,
            "--no-sandbox",  # the tests may run as root
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--window-size=1200,1150",
            "--hide-scrollbars",
            # The page's clock runs ahead of ours, and waits for its requests: some turns pass within a second.
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            "--dump-dom",
            *arguments,
            url,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert "CONSOLE" not in found.stderr, found.stderr
    return html.unescape(re.sub(r"<script>.*?</script>|<style>.*?</style>", "", found.stdout, flags=re.DOTALL))


def shown(page: str) -> str:
    """Return what is to be read of a page, a cell after the other."""
    return " | ".join(text.strip() for text in re.sub(r"<[^>]*>", "\0", page).split("\0") if text.strip())


@contextmanager
def sending(port: int) -> Iterator[None]:
    """Send from three hosts, each more than the one before, until the end."""
    stop = threading.Event()

    def send(host: str, count: int) -> None:
        with socket.create_connection(("127.0.0.1", port), source_address=(host, 0)) as peer:
            while not stop.wait(0.02):
                peer.sendall(b"<13>Oct 11 22:14:15 web1 shop[33]: what a line of syslog looks like\n" * count)

    threads = [threading.Thread(target=send, args=(f"127.0.0.{7 + number}", 20 * number)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_it_shows_a_syslogger_at_work(
    make_syslogger: Callable[..., Syslogger], kafka43: Kafka43, tmp_path: Path
) -> None:
    topic = kafka43.create_topic("syslog", partitions=3)
    part = make_syslogger(kafka={"bootstrap_servers": [kafka43.bootstrap], "topic": topic})
    part.start()
    picture = tmp_path / "status.png"
    url = f"http://{part.config['prometheus']['address']}/"
    with sending(part.port):
        until(lambda: part.metric("syslogger_records_delivered_total") > 5000, "records flow")
        page = browse(url, tmp_path / "profile")
        browse(url, tmp_path / "profile", f"--screenshot={picture}")
    text = shown(page)
    assert 'id="state" role="status" class="good">ready<' in page
    assert f"listening on 127.0.0.1:{part.port}" in text
    assert int(re.findall(r"Delivered \| ([\d,]+)/s", text)[0].replace(",", "")) > 0
    assert re.search(r"Latency, p99 \| [\d.]+ m?s \| median [\d.]+ m?s", text)
    assert "Connections | 3 | of 10,000" in text
    peers = re.findall(r"(127\.0\.0\.\d+) \| 1 \| [\d.]+ [kM]?B \| ([\d.]+) kB/s", text)
    assert {host for host, _ in peers} == {"127.0.0.10", "127.0.0.9", "127.0.0.8"}
    speeds = [float(speed) for _, speed in peers]
    assert speeds == sorted(speeds, reverse=True), "the busiest first"
    rates = re.findall(rf"\d \| {re.escape(kafka43.bootstrap)} \| 1 \| ([\d,]+) \| ", text)
    assert len(rates) == 3
    assert any(rate != "0" for rate in rates)
    assert f"{kafka43.bootstrap} | 3 | So far" in text
    assert re.search(r'id="curve" d="M[\d.]+ [\d.]+L', page), "the curve has points"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
    if kept := os.environ.get("SCREENSHOT"):
        shutil.copy(picture, kept)
    assert part.stop() == 0


async def test_it_says_what_is_wrong_and_takes_no_name_for_markup(tmp_path: Path) -> None:
    evil = "<img src=x onerror=\"document.title='broken'\"> ~&amp;"
    counters = Counters(max_connections=10)

    async def of() -> dict[str, Any]:
        found = await status(counters, (False, f"waiting for Kafka: {evil}"))
        peer = {"peer": evil, "connections": 1, "received_bytes": 5, "waiting_bytes": 2500}
        return found | {"peers": [peer], "peers_left_out": 40, "topic": evil, "listening": [evil]}

    view = View(asyncio.get_running_loop(), counters, lambda: (False, evil), of)
    with MetricsServer(("127.0.0.1", 0), view, pace_seconds=0) as server:
        page = await asyncio.to_thread(browse, "http://{}:{}/".format(*server.address), tmp_path / "profile")
    assert f'class="bad">waiting for Kafka: {evil}<' in page
    assert f"{evil}</td><td>1</td>" in page
    assert "<title>✗ syslogger</title>" in page
    assert "… and 21 more" in page


def test_before_kafka_has_answered(make_syslogger: Callable[..., Syslogger], tmp_path: Path) -> None:
    part = make_syslogger(kafka={"bootstrap_servers": ["127.0.0.1:1"]})
    part.start(wait=False)
    until(lambda: "refused" in part.get("/readyz")[1], "it knows why it waits")
    text = shown(browse(f"http://{part.config['prometheus']['address']}/", tmp_path / "profile"))
    assert re.search(r"syslogger \| waiting for Kafka: .*refused.* \| version .* listening on nothing", text)
    assert part.stop() == 0
