"""Headers as proxies send them, and as they should not; every cut of one is asked for more."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syslogger.errors import ProxyHeaderError
from syslogger.proxy_protocol import Header, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = bytes([192, 0, 2, 1, 198, 51, 100, 1]) + struct.pack("!HH", 4711, 1514)
V6 = bytes.fromhex("20010db8" + "00" * 11 + "07" + "20010db8" + "00" * 11 + "01") + struct.pack("!HH", 4711, 1514)


def v2(command: int, kind: int, block: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(block)) + block


GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514\r\n", ("192.0.2.1", 4711)),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 65535 0\r\n", ("2001:db8::7", 65535)),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", ("192.0.2.1", 1)),
    (v2(0x21, 0x21, bytes(10) + b"\xff\xff" + V4[:4] + V6[16:]), ("192.0.2.1", 4711)),
    (b"PROXY TCP6 %s %s 65535 65535\r\n" % ((b"ffff:" * 7 + b"ffff",) * 2), (":".join(["ffff"] * 8), 65535)),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 whatever this is 0 0\r\n", None),
    (v2(0x21, 0x11, V4), ("192.0.2.1", 4711)),
    (v2(0x21, 0x21, V6), ("2001:db8::7", 4711)),
    (v2(0x21, 0x11, V4 + b"\x20\x00\x03abc" * 1000), ("192.0.2.1", 4711)),
    (v2(0x21, 0x00, b""), None),
    (v2(0x21, 0x31, b"/run/a".ljust(108, b"\0") + b"/run/b".ljust(108, b"\0")), None),
    (v2(0x20, 0x00, b""), None),
    (v2(0x20, 0xFF, b"ignored"), None),
]


@pytest.mark.parametrize(("data", "source"), GOOD)
def test_a_header_is_read_however_it_is_cut(data: bytes, source: tuple[str, int] | None) -> None:
    assert parse(data) == parse(data + b"<13>a record\n") == Header(len(data), source)
    assert [cut for cut in range(len(data)) if parse(data[:cut]) is not None] == []


@pytest.mark.parametrize(
    "data",
    [
        b"<13>a record\n",
        b"proxy TCP4 192.0.2.1 198.51.100.1 4711 1514\r\n",
        b"PROXY\r\n",
        b"\r\n\r\n\0\r\nQUIT\r",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4711\r\n",
        b"PROXY TCP4 192.0.2.1  198.51.100.1 4711 1514\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514 \r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.1 4711 1514\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.1 4711 1514\r\n",
        b"PROXY TCP4 192.0.2.1 nowhere 4711 1514\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 1514\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.1 4711 1514\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 4711 1514\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 65536 1514\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 04711 1514\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 -1 1514\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.1 4711 1514\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY " + b"x" * 101,
        v2(0x11, 0x11, V4),
        v2(0x22, 0x11, V4),
        v2(0x21, 0x11, V4[:-1]),
        v2(0x21, 0x21, V4),
        v2(0x21, 0x13, V4),
        v2(0x21, 0x41, V6),
        v2(0x21, 0x31, V6),
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(ProxyHeaderError, match=r"^it"):
        parse(data)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]), st.binary(max_size=300))
def test_more_bytes_never_unmake_a_decision(start: bytes, rest: bytes) -> None:
    data, decided = start + rest, None
    for cut in range(len(data) + 1):
        found: object = None
        with contextlib.suppress(ProxyHeaderError):
            found = parse(data[:cut])
            assert not decided or found == decided
            decided = found or decided
            continue
        assert decided is None
        with pytest.raises(ProxyHeaderError):
            parse(data)
        return
