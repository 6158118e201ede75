"""What is pushed to Riemann, read by a library that is not ours: Debian's libriemann-client."""

from __future__ import annotations

import ctypes
import ctypes.util
import time

import pytest

from syslogger.counters import Counters
from syslogger.riemann import Riemann
from tests.riemann_wire import FakeRiemann, decoded

pytestmark = pytest.mark.system

_BASE = [("descriptor", ctypes.c_void_p), ("n_unknown_fields", ctypes.c_uint), ("unknown_fields", ctypes.c_void_p)]


class Event(ctypes.Structure):
    """`struct Event` of `riemann/proto/riemann.pb-c.h`."""

    _fields_ = (
        *_BASE,
        ("has_time", ctypes.c_int),
        ("time", ctypes.c_int64),
        ("state", ctypes.c_char_p),
        ("service", ctypes.c_char_p),
        ("host", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("n_tags", ctypes.c_size_t),
        ("tags", ctypes.c_void_p),
        ("has_ttl", ctypes.c_int),
        ("ttl", ctypes.c_float),
        ("n_attributes", ctypes.c_size_t),
        ("attributes", ctypes.c_void_p),
        ("has_time_micros", ctypes.c_int),
        ("time_micros", ctypes.c_int64),
        ("has_metric_sint64", ctypes.c_int),
        ("metric_sint64", ctypes.c_int64),
        ("has_metric_d", ctypes.c_int),
        ("metric_d", ctypes.c_double),
        ("has_metric_f", ctypes.c_int),
        ("metric_f", ctypes.c_float),
    )


class Message(ctypes.Structure):
    """`struct Msg` of the same."""

    _fields_ = (
        *_BASE,
        ("has_ok", ctypes.c_int),
        ("ok", ctypes.c_int),
        ("error", ctypes.c_char_p),
        ("n_states", ctypes.c_size_t),
        ("states", ctypes.c_void_p),
        ("query", ctypes.c_void_p),
        ("n_events", ctypes.c_size_t),
        ("events", ctypes.POINTER(ctypes.POINTER(Event))),
    )


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    name = ctypes.util.find_library("riemann-client")
    assert name, "the Debian package libriemann-client0 is missing"
    loaded = ctypes.CDLL(name)
    loaded.riemann_message_from_buffer.restype = ctypes.POINTER(Message)
    loaded.riemann_message_from_buffer.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    loaded.riemann_message_free.restype = None
    loaded.riemann_message_free.argtypes = [ctypes.POINTER(Message)]
    return loaded


def test_libriemann_client_reads_what_is_pushed(library: ctypes.CDLL) -> None:
    counters = Counters(records_delivered=2**53 + 1, connections_open=3)
    counters.batch_failures["KafkaTimeoutError"] = 2**63 - 1
    counters.delivery_seconds.observe(0.25)
    before = int(time.time())
    with (
        FakeRiemann() as server,
        Riemann(address=server.address, counters=counters, interval_seconds=0.5, host="log1.example"),
    ):
        data = server.messages.get(timeout=10)
    message = library.riemann_message_from_buffer(data, len(data))
    assert message, "libriemann-client cannot read it"
    try:
        events = [message.contents.events[index].contents for index in range(message.contents.n_events)]
        assert message.contents.n_unknown_fields == 0
        assert len(events) == 23
        for event in events:
            assert (event.host, event.has_ttl, event.ttl, event.n_unknown_fields) == (b"log1.example", 1, 1.5, 0)
            assert before <= event.time <= time.time()
            assert event.has_metric_sint64 + event.has_metric_d == 1
            assert not event.has_metric_f
        whole = {event.service.decode(): event.metric_sint64 for event in events if event.has_metric_sint64}
        parts = {event.service.decode(): event.metric_d for event in events if event.has_metric_d}
    finally:
        library.riemann_message_free(message)
    assert whole == {
        "syslogger openConnections count": 3,
        "syslogger sentMessages.count": 2**53 + 1,
        "syslogger sendMessageErrors count.count": 2**63 - 1,
        "syslogger sendMessage.count": 1,
        "syslogger sendMessage.min": 250_000_000,
        "syslogger sendMessage.max": 250_000_000,
    }
    assert parts["syslogger sendMessage.percentile-0.999"] == 250_000_000.0
    # the unit tests' own decoder agrees in every value
    assert {event.service: event.metric_sint64 for event in decoded(data).events if event.metric_d is None} == whole
    assert {event.service: event.metric_d for event in decoded(data).events if event.metric_d is not None} == parts
