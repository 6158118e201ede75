"""Who may send: networks, and what a listener asks of who comes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network


class Networks:
    """Networks of both families. An IPv4 address that IPv6 maps (``::ffff:192.0.2.1``) counts as the IPv4 one."""

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """Take networks as ``10.0.0.0/8``, ``2001:db8::/32``, or an address alone; raise ValueError if one is none."""
        self._of_version: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for each in map(network, networks):
            # Numbers are compared in a fifth of the time that `ipaddress` takes.
            self._of_version[each.version].append((int(each.netmask), int(each.network_address)))
        self._some = any(self._of_version.values())

    def __bool__(self) -> bool:
        return self._some

    def __contains__(self, host: str) -> bool:
        """Whether one of them has this address; a text that is none is in no network."""
        if not self._some:
            return False
        try:
            address = ip_address(host)
        except ValueError:
            return False
        if address.version == 6 and (mapped := address.ipv4_mapped):  # noqa: PLR2004 - IPv6
            address = mapped
        number = int(address)
        return any(number & mask == prefix for mask, prefix in self._of_version[address.version])


def network(text: str) -> IPv4Network | IPv6Network:
    """Return a network, as IPv4 where IPv6 maps it. Raises ValueError, also if bits behind the prefix are set."""
    found = ip_network(text)
    if found.version == 6 and found.prefixlen >= 96 and (mapped := found.network_address.ipv4_mapped):  # noqa: PLR2004
        return IPv4Network((mapped, found.prefixlen - 96))
    return found


@dataclass(frozen=True, slots=True)
class Admission:
    """What a listener asks of who comes; by default nothing."""

    setting: str = "listeners[0]"
    """Where that stands, for the log."""
    allow: Networks = Networks()  # noqa: RUF009 - it never changes
    """Who may send; empty, everybody may."""
    proxies: Networks = Networks()  # noqa: RUF009
    """Who must say first, by the PROXY protocol, whose connection it passes on."""
    max_age_seconds: float = 0.0
    """How long a connection may last, more or less; 0 sets no bound."""

    def allows(self, host: str) -> bool:
        """Whether a peer with this address may send."""
        return not self.allow or host in self.allow
