"""Addresses and prefixes, with the standard library's ipaddress as the judge."""

from __future__ import annotations

import ipaddress
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.protocol.address import (
    DEFAULT_V4,
    DEFAULT_V6,
    InvalidAddress,
    Prefix,
    canonical_ip,
    family,
    format_ip,
    is_global_unicast,
    is_loopback,
    parse_ip,
)

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None)
IPS = st.one_of(V4, V6)


@st.composite
def interfaces(draw: st.DrawFn) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    ip = draw(IPS)
    return ipaddress.ip_interface((ip, draw(st.integers(0, ip.max_prefixlen))))


@given(IPS)
def test_addresses(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    packed = parse_ip(str(ip))
    assert packed == ip.packed
    assert parse_ip(format_ip(packed)) == packed
    assert family(packed) == (AF_INET if ip.version == 4 else AF_INET6)
    assert parse_ip(ip.exploded) == packed
    assert is_loopback(packed) == ip.is_loopback
    other = ip.is_multicast or ip.is_loopback or ip.is_link_local or ip.is_unspecified
    assert is_global_unicast(packed) == (not other and str(ip) != "255.255.255.255")


@given(interfaces())
def test_prefixes(net: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> None:
    prefix = Prefix.parse(str(net))
    assert (prefix.ip, prefix.length) == (net.packed, net.network.prefixlen)
    assert Prefix.parse(str(prefix)) == prefix
    assert prefix.network.ip == net.network.network_address.packed
    assert prefix.broadcast == net.network.broadcast_address.packed
    assert (prefix.bits, prefix.is_v4) == (net.max_prefixlen, net.version == 4)
    assert prefix.family == family(prefix.ip)
    assert prefix.host == Prefix(net.packed, net.max_prefixlen)
    assert prefix.contains(prefix.ip)
    if net.network.num_addresses > 1:
        assert prefix.nth(1) == net.network[1].packed


@given(interfaces(), interfaces(), st.booleans())
def test_containment(
    one: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
    two: ipaddress.IPv4Interface | ipaddress.IPv6Interface,
    related: bool,
) -> None:
    if related:  # two prefixes of the same address always overlap
        two = ipaddress.ip_interface((one.ip, min(two.network.prefixlen, one.max_prefixlen)))
    a, b = Prefix.parse(str(one)), Prefix.parse(str(two))
    assert a.contains(b.ip) == (two.ip in one.network)
    same = one.version == two.version
    assert a.overlaps(b) == (same and one.network.overlaps(two.network))
    assert a.overlaps(b) == b.overlaps(a)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("FD00:0:0::1", "fd00::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("::1.2.3.4", "::102:304"),
        ("::0.1.0.2", "::1:2"),
        ("::0.1.0.0", "::1:0"),
        ("::0.0.0.2", "::2"),
        ("::1:0:0", "::1:0:0"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
    ],
)
def test_canonical_form(text: str, wanted: str) -> None:
    assert canonical_ip(text) == wanted


BAD_IPS = [
    "", " ", "1", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.4 ", " 1.2.3.4",
    "1.2.3.4\n", "0x1.2.3.4", ":", ":::", "1::2::3", "fe80::1%eth0", "g::", "1.2.3.4\0", "::1\0",
    "1.2.3.-4", "١.2.3.4", "\udcff",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_IPS)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        parse_ip(text)
    assert caught.value.msg == f"invalid IP address: {text}"
    assert caught.value.code == 999


@pytest.mark.parametrize(
    "text",
    [
        *(f"{ip}/24" for ip in BAD_IPS), "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/-1",
        "10.0.0.1/+8", "10.0.0.1/255.0.0.0", "10.0.0.1/8/8", "10.0.0.1/ 8", "10.0.0.1/8\n",
        "10.0.0.1/²", "10.0.0.1/٣", "10.0.0.1/0008", "::1/129", "/8", "10.0.0.1/1e1",
    ],
)  # fmt: skip
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(InvalidAddress) as caught:
        Prefix.parse(text)
    assert caught.value.msg == f"invalid CIDR address: {text}"


def test_a_mapped_prefix_is_ipv4() -> None:
    assert str(Prefix.parse("::ffff:10.1.2.3/120")) == "10.1.2.3/24"
    assert Prefix.parse("::ffff:0.0.0.0/96") == DEFAULT_V4


def test_default_routes() -> None:
    assert (str(DEFAULT_V4), str(DEFAULT_V6)) == ("0.0.0.0/0", "::/0")


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for parse in (parse_ip, Prefix.parse):
        try:
            parse(text)
        except InvalidAddress:
            pass
