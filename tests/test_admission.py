"""Who may send: both families, mapped addresses, and what is no network."""

from __future__ import annotations

import pytest

from syslogger.admission import Admission, Networks, network


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (["10.0.0.0/8"], ["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"], ["11.0.0.0", "::10.1.2.3", "2001:db8::1"]),
        (["192.0.2.7"], ["192.0.2.7", "::ffff:192.0.2.7"], ["192.0.2.8"]),
        (["2001:db8::/32"], ["2001:db8::1", "2001:db8:ffff::"], ["2001:db9::", "32.1.13.184"]),
        (["fe80::/10"], ["fe80::1", "fe80::1%eth0"], ["fec0::1"]),
        (["::ffff:10.0.0.0/104"], ["10.1.2.3", "::ffff:10.1.2.3"], ["11.1.2.3"]),
        (["0.0.0.0/0"], ["1.2.3.4", "::ffff:1.2.3.4"], ["::1"]),
        (["::/0"], ["::1", "2001:db8::1"], ["1.2.3.4", "::ffff:1.2.3.4"]),
        (["10.0.0.0/8", "192.168.0.0/16", "::1"], ["10.1.1.1", "192.168.255.1", "::1"], ["192.169.0.0", "::2"]),
        ([], [], ["10.0.0.1", "::1", "", "nonsense"]),
        (["0.0.0.0/0", "::/0"], [], ["", "nonsense", "1.2.3"]),
    ],
)
def test_who_is_in_a_network(networks: list[str], inside: list[str], outside: list[str]) -> None:
    some = Networks(networks)
    assert bool(some) == bool(networks)
    assert [host for host in inside if host not in some] == []
    assert [host for host in outside if host in some] == []


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10.0.0.0/33", "host", "", "10.0.0.0-10.0.0.9", "2001:db8::1/32"])
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        network(text)
    with pytest.raises(ValueError, match=r"\S"):
        Networks([text])


def test_an_empty_list_allows_everybody() -> None:
    assert Admission().allows("192.0.2.1")
    assert not Admission(allow=Networks(["10.0.0.0/8"])).allows("192.0.2.1")
    assert Admission(allow=Networks(["10.0.0.0/8"])).allows("10.0.0.1")
