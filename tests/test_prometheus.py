from __future__ import annotations

import asyncio
import gzip
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from syslogger import __version__, prometheus, tls
from syslogger.counters import Counters
from syslogger.prometheus import MetricsServer, View


@dataclass
class Program:
    """What the server shows, and a state that a test sets."""

    counters: Counters = field(default_factory=Counters)
    state: tuple[bool, str] = (True, "")

    @contextmanager
    def served(self, host: str = "127.0.0.1") -> Iterator[MetricsServer]:
        view = View(asyncio.get_running_loop(), self.counters, lambda: self.state)
        with MetricsServer((host, 0), view, pace_seconds=0) as server:
            yield server


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def samples(self) -> dict[str, float]:
        """Each sample by its name and labels as they stand in the text: `x{cause="eof"}`."""
        return {
            sample.name
            + ("{" + ",".join(f'{k}="{v}"' for k, v in sample.labels.items()) + "}" if sample.labels else ""): (
                sample.value
            )
            for family in parser.text_string_to_metric_families(self.text)
            for sample in family.samples
        }


def ask(server: MetricsServer, path: str, method: str = "GET", host: str = "", **headers: str) -> Reply:
    connection = http.client.HTTPConnection(host or server.address[0], server.address[1], timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


async def get(server: MetricsServer, path: str, method: str = "GET", host: str = "", **headers: str) -> Reply:
    return await asyncio.to_thread(ask, server, path, method, host, **headers)


async def test_every_counter_is_exported_under_its_name() -> None:
    program = Program()
    now = program.counters
    now.records_received, now.records_delivered, now.records_in_flight = 12, 7, 5
    now.bytes_received, now.bytes_delivered, now.bytes_in_flight = 1200, 700, 500
    now.connections_open, now.connections_accepted = 3, 4
    now.batches, now.records_redelivered, now.producer_rebuilds, now.brokers_known = 8, 9, 10, 11
    now.records_cut["size"] = 21
    now.records_misframed = 25
    now.records_withdrawn, now.bytes_withdrawn = 26, 2600
    now.connections_ended["eof"] = 22
    now.accept_pauses["files"] = 23
    now.connections_refused["allow"] = 27
    now.tls_handshakes = 28
    now.tls_handshake_failures["expired"] = 29
    now.certificate_expiry_seconds[":6514"] = 2e9
    now.batch_failures["NotLeaderForPartitionError"] = 24
    with program.served() as server:
        samples = (await get(server, "/metrics")).samples
    expected = {
        "syslogger_records_received_total": 12,
        "syslogger_records_delivered_total": 7,
        "syslogger_records_in_flight": 5,
        "syslogger_bytes_received_total": 1200,
        "syslogger_bytes_delivered_total": 700,
        "syslogger_bytes_in_flight": 500,
        "syslogger_records_misframed_total": 25,
        "syslogger_records_withdrawn_total": 26,
        "syslogger_bytes_withdrawn_total": 2600,
        "syslogger_connections_open": 3,
        "syslogger_connections_accepted_total": 4,
        "syslogger_batches_delivered_total": 8,
        "syslogger_records_redelivered_total": 9,
        "syslogger_producer_rebuilds_total": 10,
        "syslogger_brokers_known": 11,
        'syslogger_records_cut_total{cause="size"}': 21,
        'syslogger_connections_ended_total{cause="eof"}': 22,
        'syslogger_accept_pauses_total{cause="files"}': 23,
        'syslogger_connections_refused_total{cause="allow"}': 27,
        "syslogger_tls_handshakes_total": 28,
        'syslogger_tls_handshake_failures_total{cause="expired"}': 29,
        'syslogger_tls_certificate_expiry_timestamp_seconds{listener=":6514"}': 2e9,
        'syslogger_batch_failures_total{error="NotLeaderForPartitionError"}': 24,
        "syslogger_ready": 1,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert samples["process_resident_memory_bytes"] > 1_000_000


async def test_known_causes_are_0_from_the_start() -> None:
    with Program().served() as server:
        samples = (await get(server, "/metrics")).samples
    causes = {name: value for name, value in samples.items() if "cause=" in name}
    assert causes == {
        'syslogger_records_cut_total{cause="size"}': 0,
        'syslogger_records_cut_total{cause="eof"}': 0,
        'syslogger_records_cut_total{cause="reset"}': 0,
        'syslogger_records_cut_total{cause="quiet"}': 0,
        'syslogger_records_cut_total{cause="urgent"}': 0,
        'syslogger_records_cut_total{cause="stalled"}': 0,
        'syslogger_connections_ended_total{cause="eof"}': 0,
        'syslogger_connections_ended_total{cause="reset"}': 0,
        'syslogger_connections_ended_total{cause="timeout"}': 0,
        'syslogger_connections_ended_total{cause="quiet"}': 0,
        'syslogger_connections_ended_total{cause="deadline"}': 0,
        'syslogger_connections_ended_total{cause="error"}': 0,
        'syslogger_connections_ended_total{cause="handshake"}': 0,
        'syslogger_connections_ended_total{cause="handover"}': 0,
        'syslogger_connections_ended_total{cause="close"}': 0,
        'syslogger_connections_ended_total{cause="serverclose"}': 0,
        'syslogger_connections_ended_total{cause="malformed"}': 0,
        'syslogger_connections_ended_total{cause="too_long"}': 0,
        'syslogger_connections_ended_total{cause="unread"}': 0,
        'syslogger_connections_ended_total{cause="age"}': 0,
        'syslogger_connections_ended_total{cause="refused"}': 0,
        'syslogger_connections_refused_total{cause="allow"}': 0,
        'syslogger_connections_refused_total{cause="per_address"}': 0,
        'syslogger_connections_refused_total{cause="proxy_header"}': 0,
        'syslogger_accept_pauses_total{cause="max_connections"}': 0,
        'syslogger_accept_pauses_total{cause="files"}': 0,
        'syslogger_accept_pauses_total{cause="handshakes"}': 0,
    } | {f'syslogger_tls_handshake_failures_total{{cause="{cause}"}}': 0 for cause in tls._FAILURES}


async def test_histograms_are_cumulative() -> None:
    program = Program()
    for seconds in (0.001, 0.002, 0.04, 1000):
        program.counters.delivery_seconds.observe(seconds)
    with program.served() as server:
        samples = (await get(server, "/metrics")).samples
    name = "syslogger_delivery_duration_seconds"
    assert samples[f'{name}_bucket{{le="0.001"}}'] == 1
    assert samples[f'{name}_bucket{{le="0.0025"}}'] == 2
    assert samples[f'{name}_bucket{{le="0.05"}}'] == 3
    assert samples[f'{name}_bucket{{le="300.0"}}'] == 3
    assert samples[f'{name}_bucket{{le="+Inf"}}'] == 4
    assert samples[f"{name}_count"] == 4
    assert samples[f"{name}_sum"] == pytest.approx(1000.043)


async def test_build_info_names_the_versions() -> None:
    with Program().served() as server:
        families = {f.name: f for f in parser.text_string_to_metric_families((await get(server, "/metrics")).text)}
    [sample] = families["syslogger_build_info"].samples
    assert sample.value == 1
    assert sample.labels["version"] == __version__
    assert sample.labels["python"].startswith("3.")
    assert sample.labels["aiokafka"].startswith("0.14")


async def test_received_is_delivered_plus_in_flight_at_every_scrape() -> None:
    program = Program()
    now = program.counters

    async def work() -> None:
        while True:
            now.records_received += 3
            now.bytes_received += 300
            now.records_in_flight += 3
            now.bytes_in_flight += 300
            await asyncio.sleep(0)
            now.records_delivered += 1
            now.bytes_delivered += 100
            now.records_in_flight -= 1
            now.bytes_in_flight -= 100
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    with program.served() as server:
        scrapes = [(await get(server, "/metrics")).samples for _ in range(50)]
    task.cancel()
    for samples in scrapes:
        for unit in ("records", "bytes"):
            delivered, in_flight = samples[f"syslogger_{unit}_delivered_total"], samples[f"syslogger_{unit}_in_flight"]
            assert samples[f"syslogger_{unit}_received_total"] == delivered + in_flight
    received = [samples["syslogger_records_received_total"] for samples in scrapes]
    assert received == sorted(set(received)), "the counters stood still, so the test shows nothing"


async def test_what_is_counted_after_a_snapshot_is_not_in_it() -> None:
    program = Program()
    with program.served() as server:
        snapshot = await asyncio.to_thread(server.snapshot)
    program.counters.records_received += 1
    program.counters.records_cut["size"] += 1
    program.counters.batch_bytes.observe(100)
    assert snapshot.counters.records_received == 0
    assert snapshot.counters.records_cut == {}
    assert sum(snapshot.counters.batch_bytes.counts) == snapshot.counters.batch_bytes.count == 0


async def test_openmetrics_for_who_accepts_it() -> None:
    with Program().served() as server:
        reply = await get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in openmetrics_parser.text_string_to_metric_families(reply.text)}
    assert {"syslogger_records_received", "syslogger_build", "syslogger_delivery_duration_seconds"} <= names


async def test_gzip_for_who_accepts_it() -> None:
    with Program().served() as server:
        plain = await get(server, "/metrics")
        packed = await get(server, "/metrics", Accept_Encoding="gzip")
    assert plain.headers["Content-Encoding"] is None
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert b"syslogger_records_received_total 0.0\n" in gzip.decompress(packed.body)


async def test_one_metric_by_name() -> None:
    with Program().served() as server:
        reply = await get(server, "/metrics?name[]=syslogger_brokers_known")
    assert reply.samples == {"syslogger_brokers_known": 0}


async def test_healthz_and_readyz() -> None:
    program = Program()
    with program.served() as server:
        assert ((await get(server, "/healthz")).status, (await get(server, "/healthz")).body) == (200, b"ok\n")
        assert ((await get(server, "/readyz")).status, (await get(server, "/readyz")).body) == (200, b"ready\n")
        program.state = (False, "waiting for Kafka at kafka1:9092")
        reply = await get(server, "/readyz")
        assert (reply.status, reply.body) == (503, b"waiting for Kafka at kafka1:9092\n")
        assert (await get(server, "/healthz")).status == 200
        assert (await get(server, "/metrics")).samples["syslogger_ready"] == 0


async def test_other_paths_and_methods() -> None:
    with Program().served() as server:
        reply = await get(server, "/")
        assert (reply.status, reply.body) == (404, b"There are: /metrics /healthz /readyz\n")
        assert (await get(server, "/metrics", method="POST")).status == 501


async def test_head_has_the_headers_and_no_body() -> None:
    with Program().served() as server, socket.create_connection(server.address) as client:
        client.sendall(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        reply = await asyncio.to_thread(client.makefile("rb").read)
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"Content-Length: 3" in head
    assert body == b""


async def test_ipv6() -> None:
    with Program().served("::1") as server:
        assert server.address[0] == "::1"
        assert (await get(server, "/healthz")).status == 200


async def test_an_empty_host_is_every_address() -> None:
    with Program().served("") as server:
        for host in ("127.0.0.1", "::1"):
            assert (await get(server, "/healthz", host=host)).status == 200


async def test_a_taken_port_raises_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = threading.active_count()
        with pytest.raises(OSError, match="in use"):
            MetricsServer(taken.getsockname(), View(asyncio.get_running_loop(), Counters(), lambda: (True, "")))
        assert threading.active_count() == before


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_a_stuck_loop_is_503(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_ANSWER_SECONDS", 0.2)
    answered = threading.Event()
    with Program().served() as server:

        def ask_and_free_the_loop() -> Reply:
            try:
                return ask(server, path)
            finally:
                answered.set()

        reply = asyncio.get_running_loop().run_in_executor(None, ask_and_free_the_loop)
        assert answered.wait(10)  # this is the loop, stuck
        assert (await reply).status == 503
        assert (await reply).body == b"the event loop does not answer\n"
        assert (await get(server, path)).status == 200


def test_a_closed_loop_is_503() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    with MetricsServer(("127.0.0.1", 0), View(loop, Counters(), lambda: (True, "")), pace_seconds=0) as server:
        reply = ask(server, "/metrics")
        assert (reply.status, reply.body) == (503, b"the event loop is closed\n")


async def test_close_in_the_loop_answers_a_request_that_waits_for_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_ANSWER_SECONDS", 30)
    with Program().served() as server:
        reply = asyncio.get_running_loop().run_in_executor(None, ask, server, "/healthz")
        holds(lambda: len(server._waiting) == 1)  # blocks the loop, so the request keeps waiting
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 1
        assert ((await reply).status, (await reply).body) == (503, b"syslogger is stopping\n")
        assert not any(thread.is_alive() for thread in server._threads)


async def test_close_waits_a_second_at_most_for_a_silent_client() -> None:
    with Program().served() as server, socket.create_connection(server.address) as silent:
        address = server.address
        silent.sendall(b"GET")
        assert (await get(server, "/healthz")).status == 200  # so the silent one, first in the backlog, was accepted
        began = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - began < 2
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(address)
        silent.shutdown(socket.SHUT_RDWR)
        holds(lambda: not any(thread.is_alive() for thread in server._threads))


async def test_silent_and_dripping_clients_free_their_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_THREADS", 2)
    monkeypatch.setattr(prometheus, "_REQUEST_SECONDS", 0.5)
    with Program().served() as server, socket.create_connection(server.address) as silent:
        dripping = await asyncio.to_thread(drip, server.address)
        assert dripping < 5
        assert silent.recv(1) == b""
        assert (await get(server, "/healthz")).status == 200


def drip(address: tuple[str, int]) -> float:
    """Send a byte of a header whenever the last 50 ms brought no end; return after how long the end came."""
    began = time.monotonic()
    with socket.create_connection(address) as client:
        client.settimeout(0.05)
        client.sendall(b"GET /healthz HTTP/1.0\r\nX: ")
        while time.monotonic() - began < 10:
            try:
                client.send(b"x")
                if not client.recv(100):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    return time.monotonic() - began


async def test_no_request_is_logged_above_debug(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with Program().served() as server:
        await get(server, "/metrics")
        await get(server, "/nothing")
        with socket.create_connection(server.address) as rude:
            rude.sendall(b"\x00\xff nonsense\r\n\r\n")
            await asyncio.to_thread(rude.recv, 1000)
    assert {record.levelname for record in caplog.records if record.name.startswith("syslogger")} == {"DEBUG"}
    assert capfd.readouterr().err == ""


async def test_requests_are_accepted_at_the_pace() -> None:
    view = View(asyncio.get_running_loop(), Counters(), lambda: (True, ""))
    with MetricsServer(("127.0.0.1", 0), view, pace_seconds=0.1) as server:
        began = time.monotonic()
        await asyncio.gather(*(get(server, "/healthz") for _ in range(4)))
        assert time.monotonic() - began >= 0.3


def holds(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Wait until the condition holds, blocking the loop; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never held"
        time.sleep(0.001)
