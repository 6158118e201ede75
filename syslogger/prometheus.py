"""The counters as Prometheus scrapes them, and whether the program is alive and ready, over HTTP.

Everything here runs in threads of its own and touches the event loop in one way: a tiny callback
that copies the counters. So a scrape sees them between two steps of the loop, where
received = delivered + in flight holds, and formatting never delays a record.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import dataclasses
import io
import logging
import platform
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from typing import Any, Self

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from syslogger import __version__
from syslogger.counters import Counters, Histogram

_log = logging.getLogger(__name__)

_THREADS = 8
"""Requests that may be under way at once; further ones wait in the listening socket's backlog."""
_PACE_SECONDS = 0.05
"""Requests are accepted at least this far apart: a flood of them must not take the interpreter from the loop."""
_ANSWER_SECONDS = 2.0
"""How long the event loop may take to answer before it counts as stuck."""
_REQUEST_SECONDS = 5.0
"""How long a client may take to send its whole request, and again to take the reply."""
_CLOSE_SECONDS = 1.0

_CAUSES = {
    "records_cut": ("size", "eof", "reset", "quiet", "urgent", "stalled"),
    "connections_ended": (
        *("eof", "reset", "timeout", "quiet", "deadline", "error", "handshake", "handover", "age", "refused"),
        *("close", "serverclose", "malformed", "too_long", "unread"),
    ),
    "connections_refused": ("allow", "per_address", "proxy_header"),
    "accept_pauses": ("max_connections", "files", "handshakes"),
    "tls_handshake_failures": (
        *("closed", "timeout", "not_tls", "refused", "no_certificate", "expired", "foreign", "not_permitted"),
        *("version", "protocol"),
    ),
}
"""The causes that `Counters` names: each is exported as 0 from the start, so that `rate()` sees the first."""


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What the server shows: counters written by `loop` only, and `state`, called in `loop`.

    `state` returns at once: whether the program is ready, and if not, why, in words.
    """

    loop: asyncio.AbstractEventLoop
    counters: Counters
    state: Callable[[], tuple[bool, str]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Snapshot:
    ready: bool
    reason: str
    counters: Counters


class MetricsServer:
    """Serves `/metrics`, `/healthz` and `/readyz` of a `View` from construction to `close`.

    An empty host is every address. A name that does not resolve and a port that is taken raise
    OSError from the constructor. Make it before or after the loop runs, in any thread.
    """

    def __init__(self, address: tuple[str, int], view: View, *, pace_seconds: float = _PACE_SECONDS) -> None:
        self._view = view
        self._pace_seconds = pace_seconds
        self._closing = threading.Event()
        self._waiting: set[concurrent.futures.Future[_Snapshot]] = set()
        self._turn = threading.Lock()
        self._next_accept = 0.0
        registry = CollectorRegistry()
        registry.register(_Counters(self.snapshot))
        ProcessCollector(registry=registry)
        self._handler = partial(_Handler, self.snapshot, make_wsgi_app(registry))
        self._socket = _bound(address)
        self._threads = [
            threading.Thread(target=self._serve, name=f"prometheus-{number}", daemon=True) for number in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def address(self) -> tuple[str, int]:
        """The address that is served, with the port the kernel chose for port 0."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def close(self) -> None:
        """Accept nothing more; wait at most a second for the requests under way. May be called again.

        Safe to call in the event loop: a request that waits for the loop is answered 503 at once.
        """
        # 1. no new requests; shutting a listening socket down wakes every accept on it
        if self._closing.is_set():
            return
        self._closing.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        # 2. nobody waits for the loop any more
        for future in tuple(self._waiting):
            future.cancel()
        # 3. what is left are slow clients: their threads are daemons and have deadlines
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        # 4. only now may another socket get the number
        self._socket.close()

    def snapshot(self) -> _Snapshot:
        """Ask the loop for the counters as they are between two of its steps; not to be called in the loop.

        Raises TimeoutError, saying why, when the loop does not answer.
        """
        future: concurrent.futures.Future[_Snapshot] = concurrent.futures.Future()

        def take() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(_Snapshot(*self._view.state(), _copied(self._view.counters)))

        self._waiting.add(future)
        try:
            # close() sets the event first and cancels after: one of the two sees the other
            if self._closing.is_set():
                future.cancel()
            self._view.loop.call_soon_threadsafe(take)
            return future.result(_ANSWER_SECONDS)
        except concurrent.futures.CancelledError:
            raise TimeoutError("syslogger is stopping") from None
        except TimeoutError:
            raise TimeoutError("the event loop does not answer") from None
        except RuntimeError:  # asyncio's word for a loop that was closed
            raise TimeoutError("the event loop is closed") from None
        finally:
            future.cancel()  # a late loop need not copy for nobody
            self._waiting.discard(future)

    def _serve(self) -> None:
        while connected := self._accepted():
            connection, peer = connected
            with connection:
                try:
                    self._handler(connection, peer)
                except OSError as error:  # the client went away
                    _log.debug("%s: %s", peer[0], error)
                except Exception:  # noqa: BLE001 - a thread that ended here would be missed by nobody
                    _log.exception("A request of %s could not be answered", peer[0])

    def _accepted(self) -> tuple[socket.socket, Any] | None:
        """Wait for the next client; None once the server is closing."""
        with self._turn:
            while not self._closing.wait(max(0.0, self._next_accept - time.monotonic())):
                try:
                    return self._socket.accept()
                except OSError as error:  # too many open files, or close() shut the socket down
                    _log.debug("Cannot accept: %s", error)
                finally:
                    self._next_accept = time.monotonic() + self._pace_seconds
        return None


class _Counters(Collector):
    """The custom collector: every collection is one snapshot."""

    def __init__(self, snapshot: Callable[[], _Snapshot]) -> None:
        self._snapshot = snapshot
        self._build = {
            "version": __version__,
            "python": platform.python_version(),
            "aiokafka": version("aiokafka"),
        }

    def describe(self) -> Iterable[Metric]:
        """Return the families' names, so that `/metrics?name[]=…` finds them; asks no loop."""
        return self._families(_Snapshot(ready=False, reason="", counters=Counters()))

    def collect(self) -> Iterable[Metric]:
        """Return all families of one moment. Raises TimeoutError when the loop does not answer."""
        return self._families(self._snapshot())

    def _families(self, snapshot: _Snapshot) -> list[Metric]:
        now = snapshot.counters
        return [
            _counter("records_received", "Records read from connections.", now.records_received),
            _counter("bytes_received", "Bytes of those records, without framing.", now.bytes_received),
            _counter("records_delivered", "Records that Kafka acknowledged.", now.records_delivered),
            _counter("bytes_delivered", "Bytes of those records.", now.bytes_delivered),
            _gauge("records_in_flight", "Records received and not yet acknowledged.", now.records_in_flight),
            _gauge("bytes_in_flight", "Bytes of those records.", now.bytes_in_flight),
            _counter("records_withdrawn", "RELP records let go unanswered with their peer.", now.records_withdrawn),
            _counter("bytes_withdrawn", "Bytes of those records.", now.bytes_withdrawn),
            _counters("records_cut", "Records that are pieces of what was sent, by cause.", "cause", now.records_cut),
            _counter("records_misframed", "Records whose octet count is wrong or missing.", now.records_misframed),
            _gauge("connections_open", "Connections now open.", now.connections_open),
            _counter("connections_accepted", "Connections accepted.", now.connections_accepted),
            _counter("connections_adopted", "Connections taken over from the process before.", now.connections_adopted),
            _counters("connections_ended", "Connections ended, by cause.", "cause", now.connections_ended),
            _counters("connections_refused", "Connections refused, by cause.", "cause", now.connections_refused),
            _counters("accept_pauses", "How often accepting stopped, by cause.", "cause", now.accept_pauses),
            _counter("tls_handshakes", "TLS handshakes completed.", now.tls_handshakes),
            _counters(
                "tls_handshake_failures", "TLS handshakes failed, by cause.", "cause", now.tls_handshake_failures
            ),
            _expiries(now.certificate_expiry_seconds),
            _counter("batches_delivered", "Batches that Kafka acknowledged.", now.batches),
            _counters(
                "batch_failures", "Batches that failed and were sent again, by error.", "error", now.batch_failures
            ),
            _counter("records_redelivered", "Records of failed batches, sent again.", now.records_redelivered),
            _counters(
                "records_dead_lettered",
                "Delivered records that went to the dead-letter topic, by error.",
                "error",
                now.records_dead_lettered,
            ),
            _counter("producer_rebuilds", "Kafka producers built to replace one.", now.producer_rebuilds),
            _gauge("brokers_known", "Kafka brokers whose address is known.", now.brokers_known),
            _histogram(
                "delivery_duration_seconds",
                "From a batch's first submission to its acknowledgement, with every retry.",
                now.delivery_seconds,
            ),
            _histogram("batch_records", "Records in an acknowledged batch.", now.batch_records),
            _histogram("batch_bytes", "Bytes of an acknowledged batch, before compression.", now.batch_bytes),
            _gauge("ready", "1 while Kafka acknowledges and peers are accepted, else 0.", int(snapshot.ready)),
            InfoMetricFamily("syslogger_build", "What runs.", value=self._build),
        ]


class _Handler(BaseHTTPRequestHandler):
    """Answers one request and closes: HTTP/1.0, so that no idle client holds a thread."""

    server_version = f"syslogger/{__version__}"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def __init__(
        self,
        snapshot: Callable[[], _Snapshot],
        metrics: Callable[..., Iterable[bytes]],
        connection: socket.socket,
        peer: Any,
    ) -> None:
        self._snapshot = snapshot
        self._metrics = metrics
        super().__init__(connection, peer, None)  # type: ignore[arg-type] # there is no socketserver, nor use for one

    def setup(self) -> None:
        """Bound the whole request, where the base class bounds each read of it."""
        super().setup()
        self.rfile = io.BufferedReader(_Request(self.connection))

    def do_GET(self) -> None:
        """Answer a GET or HEAD."""
        path, _, query = self.path.partition("?")
        status, headers, body = HTTPStatus.OK, [("Content-Type", "text/plain; charset=utf-8")], b""
        try:
            if path == "/metrics":
                headers, body = self._render(query)
            elif path == "/healthz":
                self._snapshot()
                body = b"ok\n"
            elif path == "/readyz":
                snapshot = self._snapshot()
                status = HTTPStatus.OK if snapshot.ready else HTTPStatus.SERVICE_UNAVAILABLE
                body = b"ready\n" if snapshot.ready else f"{snapshot.reason}\n".encode()
            else:
                status, body = HTTPStatus.NOT_FOUND, b"There are: /metrics /healthz /readyz\n"
        except TimeoutError as error:
            status, body = HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def _render(self, query: str) -> tuple[list[tuple[str, str]], bytes]:
        """Let prometheus_client choose the format and the encoding; it does so as a WSGI application."""
        answer: list[tuple[str, str]] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        body = b"".join(self._metrics(environ, lambda _status, headers: answer.extend(headers)))
        return answer, body

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log at DEBUG, and no name looked up."""
        _log.debug("%s: " + format, self.client_address[0], *args)


class _Request(io.RawIOBase):
    """The reading side of a connection, with one deadline that a dripping client does not move."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + _REQUEST_SECONDS

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, or wait for it; raise TimeoutError past the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(_REQUEST_SECONDS)  # the reply's


def _bound(address: tuple[str, int]) -> socket.socket:
    host, port = address
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    family, _type, _proto, _name, resolved = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(resolved, family=family)


def _copied(counters: Counters) -> Counters:
    """Return a copy that the loop does not write to, without the histograms' newest values: nobody here reads them."""
    return Counters(
        **{field.name: _copied_value(getattr(counters, field.name)) for field in dataclasses.fields(counters)}
    )


def _copied_value(value: Any) -> Any:
    if isinstance(value, Histogram):
        histogram = copy.copy(value)
        histogram.counts = value.counts.copy()
        histogram.recent = deque()
        return histogram
    return value.copy() if isinstance(value, Counter) else value


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"syslogger_{name}", text, value=value)


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(f"syslogger_{name}", text, value=value)


def _expiries(seconds: Mapping[str, float]) -> Metric:
    text = "When a TLS listener's certificate expires, in Unix seconds."
    family = GaugeMetricFamily("syslogger_tls_certificate_expiry_timestamp_seconds", text, labels=["listener"])
    for listener, value in seconds.items():
        family.add_metric([listener], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"syslogger_{name}", text, labels=[label])
    for cause, value in (dict.fromkeys(_CAUSES.get(name, ()), 0) | dict(values)).items():
        family.add_metric([cause], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
    return HistogramMetricFamily(f"syslogger_{name}", text, buckets=buckets, sum_value=histogram.sum)
