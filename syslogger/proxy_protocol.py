r"""The PROXY protocol, versions 1 and 2: a proxy's first bytes, which say whose connection it passes on.

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt, section 2. Version 1 is a line of at most 107
bytes, ``PROXY TCP4 192.0.2.1 198.51.100.1 4711 1514\r\n``; version 2 a signature, 4 bytes, and an address with
type-length-values behind it, which are ignored. Pure: it is given what has come so far.
"""

from __future__ import annotations

import re
import struct
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from .errors import ProxyHeaderError

_LINE = b"PROXY "
_LONGEST_LINE = 107
"""With CR LF (section 2.1)."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct("!12sBBH")

_LOCAL, _PROXY = 0x20, 0x21
"""Version 2, and the command."""
_UNSPECIFIED, _IPV4, _IPV6, _UNIX = range(4)
_DATAGRAM = 2
"""The last of the transports: unspecified, stream, datagram."""

_tcp_line = re.compile(
    rb"PROXY TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})\r\n"
).fullmatch


class Header(NamedTuple):
    """What a proxy has said."""

    size: int
    """How many bytes it said it with."""
    source: tuple[str, int] | None
    """The peer's own host and port; None if the proxy speaks for itself (LOCAL) or cannot tell (UNKNOWN)."""


def parse(data: bytes) -> Header | None:
    """Return the header that `data` begins with; None if more bytes must tell.

    Raises `ProxyHeaderError` as soon as no bytes that follow could make it one.
    """
    if data.startswith(_LINE):
        return _version_1(data)
    if data.startswith(_SIGNATURE):
        return _version_2(data)
    if _LINE.startswith(data) or _SIGNATURE.startswith(data):
        return None
    raise ProxyHeaderError("it does not begin with a PROXY header")


def _version_1(data: bytes) -> Header | None:
    size = data.find(b"\n", 0, _LONGEST_LINE) + 1
    if not size:
        if len(data) >= _LONGEST_LINE:
            raise ProxyHeaderError(f"its PROXY line is longer than {_LONGEST_LINE} bytes")
        return None
    line = data[:size]
    if re.fullmatch(rb"PROXY UNKNOWN( .*)?\r\n", line):
        return Header(size, None)
    if found := _tcp_line(line):
        family, host, own_host, port, own_port = (part.decode() for part in found.groups())
        kind = IPv4Address if family == "4" else IPv6Address
        try:
            kind(own_host)
            if int(port) < 1 << 16 and int(own_port) < 1 << 16:
                return Header(size, (_text(kind(host)), int(port)))
        except AddressValueError:
            pass
    raise ProxyHeaderError("its PROXY line is none")


def _version_2(data: bytes) -> Header | None:
    if len(data) < _FIXED.size:
        return None
    _, command, kind, length = _FIXED.unpack_from(data)
    family, transport = divmod(kind, 16)
    least = {_IPV4: 12, _IPV6: 36, _UNIX: 216}.get(family, 0)
    if command not in {_LOCAL, _PROXY}:
        raise ProxyHeaderError(f"its PROXY header has the unknown version and command {command:#04x}")
    if command == _PROXY and (family > _UNIX or transport > _DATAGRAM or length < least):
        raise ProxyHeaderError("its PROXY header has an address that is none")
    size = _FIXED.size + length
    if len(data) < size:
        return None
    if command == _LOCAL or family in {_UNSPECIFIED, _UNIX}:
        return Header(size, None)
    if family == _IPV4:
        host, port = struct.unpack_from("!4s4xH", data, _FIXED.size)
        return Header(size, (_text(IPv4Address(host)), port))
    host, port = struct.unpack_from("!16s16xH", data, _FIXED.size)
    return Header(size, (_text(IPv6Address(host)), port))


def _text(address: IPv4Address | IPv6Address) -> str:
    """Return the address in words, as IPv4 where IPv6 maps it."""
    return str((isinstance(address, IPv6Address) and address.ipv4_mapped) or address)
