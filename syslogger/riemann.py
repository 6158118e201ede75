"""The counters as Riemann gets them: pushed over TCP, under the Go program's service names.

bernhard blocks, so all of this runs in a thread of its own. The thread reads the counters and never
writes them; the data path does not know that it exists.

The measures are go-metrics': a meter is a count, its mean rate since the start, and the moving
averages of 1, 5 and 15 minutes, all per second; a timer adds statistics of the newest observations,
in nanoseconds. bernhard is imported where it is used: it costs 9 MB, and most run without Riemann.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Self, TypeVar

from syslogger.config import parse_address
from syslogger.counters import Counters

_log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 5.0
"""How long Riemann may take to connect, to take a message, and to answer it; each."""
_MAX_BACKOFF_SECONDS = 60.0
_CLOSE_SECONDS = 1.0
_MAX_ANSWER_BYTES = 1 << 20
"""More than any answer to an event; a longer one is another protocol's text read as a length."""
_WINDOWS = (("one-minute", 60.0), ("five-minute", 300.0), ("fifteen-minute", 900.0))
_PERCENTILES = (0.75, 0.95, 0.99, 0.999)

_T = TypeVar("_T")

Measures = dict[str, int | float]
"""Values by service name; an int is sent as a whole number, a float as a double."""


class Riemann:
    """Pushes the counters to the Riemann at `address` every `interval_seconds`, between enter and exit.

    The first push comes one interval after the start. Events carry `host` (this machine's name if
    empty) and expire after three intervals. While Riemann does not take them it is tried again ever
    less often, at least once a minute (or an interval, if that is longer); nothing is kept for later,
    each push being the state of its moment.

    Entering never waits for Riemann. Leaving pushes nothing more and takes at most about a second.
    """

    def __init__(self, *, address: str, counters: Counters, interval_seconds: float = 10.0, host: str = "") -> None:
        self._address = address
        self._interval_seconds = interval_seconds
        self._host = host or socket.gethostname()
        self._bernhard = _bernhard()
        self._client = _client(self._bernhard, address)
        self._services = _Services(counters)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="riemann", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stopping.set()
        connection = self._client.connection
        if connection is not None:
            connection.interrupt()
        # a thread that is still connecting is a daemon and ends at its timeout
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        failures = 0
        works: bool | None = None
        while not self._stopping.wait(self._delay_seconds(failures)):
            events = self._events()
            try:
                self._push(events)
            except OSError as error:
                if self._stopping.is_set():
                    break
                _disconnect(self._client)
                failures += 1
                if works is not False:
                    _log.warning(
                        "Riemann at %s does not take metrics (%s); records are not affected, and it is tried again",
                        self._address,
                        error,
                    )
                works = False
            else:
                if not works:
                    _log.info("Riemann at %s takes metrics", self._address)
                failures, works = 0, True
        _disconnect(self._client)

    def _delay_seconds(self, failures: int) -> float:
        # the first retry comes after one interval, before anything pushed has expired
        backoff = self._interval_seconds * 2.0 ** min(max(0, failures - 1), 16)
        return max(self._interval_seconds, min(_MAX_BACKOFF_SECONDS, backoff))

    def _push(self, events: Sequence[Any]) -> None:
        """Return when Riemann has taken the events; raise OSError if it has not."""
        message = self._bernhard.Message(events=events)
        kept = self._client.connection is not None
        try:
            answer = self._exchange(message)
        except OSError:
            _disconnect(self._client)
            if not kept or self._stopping.is_set():
                raise
            # a connection kept since the last push may have died in between: that alone is no failure
            answer = self._exchange(message)
        if not answer.ok:
            reason = f"it refused them: {answer.error or 'no reason given'}"
            raise OSError(reason)

    def _exchange(self, message: Any) -> Any:
        if self._client.connection is None:
            self._client.connect()
        # __exit__ sets the event first and interrupts after: one of the two sees the other
        if self._stopping.is_set():
            raise InterruptedError("syslogger is stopping")
        return _transmit(self._client, message)

    def _events(self) -> list[Any]:
        now = int(time.time())
        return [
            self._bernhard.Event(
                params={
                    "time": now,
                    "host": self._host,
                    "service": service,
                    "ttl": 3 * self._interval_seconds,
                    # bernhard's own `metric` is a float32: wrong above 16,777,216
                    "metric_sint64" if isinstance(value, int) else "metric_d": value,
                }
            )
            for service, value in self._services.measures(time.monotonic()).items()
        ]


def probe(address: str) -> str:
    """Ask the Riemann at `address` for nothing, and say in a sentence that it answered; block until then.

    Raises OSError if nothing answers within some seconds, or what answers is not Riemann.
    """
    bernhard = _bernhard()
    client = _client(bernhard, address)
    try:
        answer = _transmit(client, bernhard.Message(query="false"))
    finally:
        _disconnect(client)
    if answer.ok:
        return f"Riemann at {address} answers."
    # it may have no index to query: that is Riemann all the same
    return f"Riemann at {address} answers, and refuses a query: {answer.error}"


class _Services:
    """The Go program's services and their values; rates need the time since the last look."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        start = time.monotonic()
        self._sent = _Meter(start)
        self._errors = _Meter(start)
        self._deliveries = _Meter(start)

    def measures(self, now: float) -> Measures:
        """Return every service's value; `now` is `time.monotonic()`."""
        counters = self._counters
        timer = counters.delivery_seconds
        recent = sorted(_read(lambda: list(timer.recent)))
        errors = _read(lambda: sum(counters.batch_failures.values()))
        deliveries = self._deliveries.measures(timer.count, now)
        del deliveries["mean"]  # a timer's mean is that of its durations
        return {
            "syslogger openConnections count": counters.connections_open,
            **_named("syslogger sentMessages", self._sent.measures(counters.records_delivered, now)),
            **_named("syslogger sendMessageErrors count", self._errors.measures(errors, now)),
            **_named("syslogger sendMessage", deliveries | _statistics([value * 1e9 for value in recent])),
        }


class _Meter:
    """The rates of one count, as go-metrics has them; but for its 5 s tick, which is here the time between looks."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._seen_at = start
        self._seen = 0
        self._rates: dict[str, float] = {}

    def measures(self, count: int, now: float) -> Measures:
        """Return the five measures of the `count` that stands at `now`."""
        elapsed = now - self._seen_at
        if elapsed > 0:
            rate = (count - self._seen) / elapsed
            for name, seconds in _WINDOWS:
                average = self._rates.get(name, rate)
                self._rates[name] = average + (1 - math.exp(-elapsed / seconds)) * (rate - average)
            self._seen_at, self._seen = now, count
        uptime = now - self._start
        return {
            "count": count,
            "mean": count / uptime if uptime > 0 else 0.0,
            **{name: self._rates.get(name, 0.0) for name, _seconds in _WINDOWS},
        }


def _statistics(values: list[float]) -> Measures:
    """Return a timer's statistics of sorted values; zeros if there are none."""
    count = len(values)
    mean = sum(values) / count if count else 0.0
    return {
        "min": round(values[0]) if values else 0,
        "max": round(values[-1]) if values else 0,
        "mean": mean,
        "std-dev": math.sqrt(sum((value - mean) ** 2 for value in values) / count) if count else 0.0,
        **{f"percentile-{share:.3f}": _percentile(values, share) for share in _PERCENTILES},
    }


def _percentile(values: list[float], share: float) -> float:
    """Interpolate between the two nearest of the sorted values, as go-metrics does."""
    if not values:
        return 0.0
    position = share * (len(values) + 1)
    below = math.floor(position)
    if below < 1:
        return values[0]
    if below >= len(values):
        return values[-1]
    return values[below - 1] + (position - below) * (values[below] - values[below - 1])


def _named(base: str, measures: Measures) -> Measures:
    return {f"{base}.{measure}": value for measure, value in measures.items()}


def _read(look: Callable[[], _T]) -> _T:
    """Return what `look` sees of a container that the event loop's thread may be changing."""
    while True:
        with contextlib.suppress(RuntimeError):  # "mutated during iteration"
            return look()


class _Connection:
    """bernhard's transport, with time limits and an end from outside; everything raises OSError.

    Its own waits 15 s for each step, answers an early end of the stream with half an answer, and
    logs every failure at ERROR with a traceback.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), _TIMEOUT_SECONDS)

    def write(self, message: bytes) -> bytes:
        """Send one message and return the answer to it."""
        self._socket.sendall(struct.pack("!I", len(message)) + message)
        (size,) = struct.unpack("!I", self._received(4))
        if size > _MAX_ANSWER_BYTES:
            raise OSError("what answers is not Riemann")
        return self._received(size)

    def interrupt(self) -> None:
        """End whatever another thread does with this connection."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _received(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            piece = self._socket.recv(size - len(received))
            if not piece:
                raise ConnectionError("the connection was closed before the answer")
            received += piece
        return received


def _bernhard() -> ModuleType:
    """Import bernhard, whose dependencies warn of their age: that is known, and pinned in pyproject.toml."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bernhard  # noqa: PLC0415 - costs 9 MB, and most run without Riemann
    return bernhard  # type: ignore[no-any-return]


def _client(bernhard: ModuleType, address: str) -> Any:
    host, port = parse_address(address, "riemann.address")
    return bernhard.Client(host, port, transport=_Connection)


def _transmit(client: Any, message: Any) -> Any:
    """Return Riemann's answer to the message, connecting first if need be; raise OSError if there is none."""
    try:
        answer = client.transmit(message)
    except OSError:
        raise
    except Exception as error:  # protobuf's own kind, for bytes that are no message
        reason = f"what answers is not Riemann: {error}"
        raise OSError(reason) from error
    if not answer.message.HasField("ok"):
        raise OSError("what answers is not Riemann")
    return answer


def _disconnect(client: Any) -> None:
    if client.connection is not None:
        client.disconnect()
