"""The counters of the whole program: plain ints, added to once a delivery or a batch.

A plain int costs 0.03 µs to add to, a library's counter 0.2 to 1 µs; so the data path counts here,
and the views (`prometheus.py`, `riemann.py`) read from here. All are written by the event loop only.

``records_received == records_delivered + records_in_flight + records_withdrawn`` holds between any two
steps of the loop, and the same for bytes: the four are counted apart, so that a loss would show.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass, field

_RECENT = 1024
"""How many of the newest observations a histogram keeps for percentiles (go-metrics keeps 1,028)."""


class Histogram:
    """Counts observations in buckets, and keeps the newest for percentiles.

    `counts` has one entry for each of `bounds` (the bucket of values ≤ bound) and one more for
    values above the last; they are not cumulative.
    """

    def __init__(self, *bounds: float) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0
        self.count = 0
        self.recent: deque[float] = deque(maxlen=_RECENT)

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self.count += 1
        self.recent.append(value)


def _seconds() -> Histogram:
    return Histogram(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def _records() -> Histogram:
    return Histogram(1, 4, 16, 64, 256, 1024, 4096, 16384)


def _bytes() -> Histogram:
    return Histogram(256, 1024, 4096, 16384, 65536, 262144, 1048576)


@dataclass(slots=True)
class Counters:
    """What has been counted since the process started. Bytes are those of records, without framing."""

    records_received: int = 0
    bytes_received: int = 0
    records_delivered: int = 0
    bytes_delivered: int = 0
    records_in_flight: int = 0
    bytes_in_flight: int = 0
    records_withdrawn: int = 0
    """Records of RELP sessions whose peer went before they were acknowledged: not answered, it sends them again."""
    bytes_withdrawn: int = 0
    records_cut: Counter[str] = field(default_factory=Counter)
    """Records that are pieces, by cause: ``size`` (longer than `max_record_bytes`), or why nothing joined the
    fragment: ``eof``, ``reset``, ``quiet`` (the drain), ``urgent`` (urgent data), ``stalled`` (a unix socket's peer
    could not or would not go on)."""

    records_misframed: int = 0
    """Records with an octet count that is none, or with none where a listener insists on one."""

    connections_open: int = 0
    connections_accepted: int = 0
    connections_adopted: int = 0
    """Connections that the process was started with: they came to the one before it."""
    connections_ended: Counter[str] = field(default_factory=Counter)
    """By cause: ``eof``, ``reset``, ``timeout``, ``quiet`` (the drain), ``deadline`` (the drain), ``error``,
    ``handshake`` (TLS), ``handover`` (not ended, but given to the next process), ``refused``, ``age``
    (`max_connection_age_seconds`); and of RELP sessions: ``close`` (the peer asked for it), ``serverclose`` (the
    drain), ``malformed``, ``too_long``, ``unread`` (the peer does not read its answers)."""
    connections_refused: Counter[str] = field(default_factory=Counter)
    """By cause: ``allow``, ``per_address`` (`max_connections_per_address`), ``proxy_header`` (none, or a wrong one)."""
    accept_pauses: Counter[str] = field(default_factory=Counter)
    """How often accepting stopped, by cause: ``max_connections``, ``files``, ``handshakes``."""
    tls_handshakes: int = 0
    """TLS handshakes that came to a good end."""
    tls_handshake_failures: Counter[str] = field(default_factory=Counter)
    """And the others, by cause: see `tls.py`."""
    certificate_expiry_seconds: dict[str, float] = field(default_factory=dict)
    """When the certificate of each TLS listener expires, in Unix seconds, by the listener's `address`."""

    batches: int = 0
    """Batches that Kafka acknowledged."""
    batch_failures: Counter[str] = field(default_factory=Counter)
    """Batches that failed and were delivered again, by the error's name."""
    records_redelivered: int = 0
    """Records in those batches: at most so many may stand in the topic twice."""
    records_dead_lettered: Counter[str] = field(default_factory=Counter)
    """Delivered records that Kafka refused for themselves and that stand in the dead-letter topic, by the error."""
    producer_rebuilds: int = 0
    brokers_known: int = 0
    delivery_seconds: Histogram = field(default_factory=_seconds)
    """From a batch's first submission to its acknowledgement, with every retry."""
    batch_records: Histogram = field(default_factory=_records)
    batch_bytes: Histogram = field(default_factory=_bytes)
