"""sbr: which routes an address's table gets; rules and routes as the kernel writes them."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.kernel import link, route, rule
from cni.kernel import netlink as nl
from cni.kernel.route import Route
from cni.plugins import sbr
from cni.plugins.sbr import Source
from cni.plugins.shared import tables
from cni.protocol.address import Prefix, parse_ip
from cni.protocol.errors import CNIError

NET1 = link.Link(7, "net1", "", 0, "", 1500, 0, 0, None, "", 6, 0, 1000, b"", b"")


def source(text: str, gateway: str = "", configured: bool = False) -> Source:
    return Source(Prefix.parse(text), parse_ip(gateway) if gateway else b"", configured)


def to(dst: str, via: str = "", src: str = "", metric: int = 0) -> Route:
    gateway, own = (parse_ip(text) if text else b"" for text in (via, src))
    return Route(Prefix.parse(dst), 7, gateway, own, metric)


V4 = source("10.1.0.2/24", "10.1.0.1")
V6 = source("fd00::2/64", "fd00::1")
CONNECTED = to("10.1.0.0/24", src="10.1.0.2")
GENERIC = to("10.9.0.0/16")
DEFAULT4, DEFAULT6 = to("0.0.0.0/0", "10.1.0.1"), to("::/0", "fd00::1")


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ([], [DEFAULT4]),
        ([CONNECTED], [CONNECTED, DEFAULT4]),
        ([GENERIC], [GENERIC, DEFAULT4]),
        ([to("0.0.0.0/0", "10.1.0.9")], [to("0.0.0.0/0", "10.1.0.9")]),
        ([to("0.0.0.0/0", "10.1.0.9", metric=5)], [to("0.0.0.0/0", "10.1.0.9", "", 5), DEFAULT4]),
        # the other address's
        ([to("10.5.0.0/16", "10.2.0.1")], [DEFAULT4]),
        ([to("10.2.0.0/24", src="10.2.0.2")], [DEFAULT4]),
        # nobody's: it would be lost
        ([to("10.6.0.0/16", "172.16.0.1")], [to("10.6.0.0/16", "172.16.0.1"), DEFAULT4]),
        ([to("fd00:6::/64", "fd00:9::1")], [DEFAULT4]),
    ],
)
def test_the_routes_of_an_address(main: list[Route], expected: list[Route]) -> None:
    assert sbr.plan(V4, [V4, source("10.2.0.2/24")], NET1, main) == expected


def test_a_configured_gateway_counts_for_more() -> None:
    chosen = V4._replace(configured=True)
    metric = to("0.0.0.0/0", "10.1.0.9", metric=5)
    main = [to("0.0.0.0/0", "10.1.0.9"), metric, to("::/0", metric=1024)]
    assert sbr.plan(chosen, [chosen], NET1, main) == [metric, main[2], DEFAULT4]
    assert sbr.plan(source("10.1.0.2/24"), [V4], NET1, main[:1]) == main[:1]


def test_ipv6_has_another_metric() -> None:
    there = to("::/0", "fd00::9", metric=1024)
    assert sbr.plan(V6, [V6], NET1, [there]) == [there]
    assert sbr.plan(V6, [V6], NET1, []) == [DEFAULT6]


NETWORKS = st.sampled_from(["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/16", "0.0.0.0/0", "fd00::/64"])
HOPS = st.sampled_from(["", "10.1.0.1", "10.2.0.1", "172.16.0.1"])
ROUTES = st.lists(
    st.builds(to, st.just("10.9.0.0/16") | NETWORKS.filter(lambda n: ":" not in n), HOPS, HOPS)
)


@given(ROUTES, st.lists(st.sampled_from(["10.1.0.2/24", "10.2.0.2/24", "fd00::2/64"]), min_size=1))
def test_no_route_is_lost(main: list[Route], addresses: list[str]) -> None:
    """With an IPv4 address, each IPv4 route comes into some table."""
    sources = [source("10.3.0.2/24"), *map(source, addresses)]
    copied = [entry for one in sources for entry in sbr.plan(one, sources, NET1, main)]
    assert set(copied) == set(main)


@given(st.sets(st.integers(0, 300)), st.integers(0, 300))
def test_the_first_free_table(used: set[int], start: int) -> None:
    found = tables.first_free(used, start)
    assert found >= start
    assert found not in used
    assert set(range(start, found)) <= used


@given(st.lists(st.ip_addresses().map(str) | st.text(max_size=8), max_size=4))
def test_any_gateways_are_taken_or_refused(texts: list[str]) -> None:
    try:
        found = sbr._static_gateways(texts)
    except CNIError:
        pass
    else:
        assert sorted(map(len, found.values())) in ([], [4], [16], [4, 16])
        assert len(found) == len(texts)


# -- rules ----------------------------------------------------------------------------------------


class Sent(nl.Netlink):
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.payload = b""

    def request(self, _kind: int, payload: bytes, _flags: int = 0) -> list[tuple[int, bytes]]:
        self.payload = payload
        return []


@pytest.mark.parametrize("text", ["10.0.0.2/24", "fd00::2/64"])
@given(table=st.integers(1, (1 << 32) - 1), owner=st.integers(1, (1 << 31) - 1))
def test_a_rule_round_trips(text: str, table: int, owner: int) -> None:
    sock, prefix = Sent(), Prefix.parse(text)
    _, payload, _ = rule.addition(prefix, table, owner)
    found = rule._parse(payload)
    assert (found.source, found.table, found.owner) == (prefix.host, table, owner)
    assert found.plain
    assert not found.of_vrfs
    rule.delete(sock, found)
    assert sock.payload == found.raw


SELECTORS = {
    "to": (struct.pack("=BBBBBxxBI", 2, 8, 32, 0, 100, 1, 0), nl.attr(1, bytes(4))),
    "tos": (struct.pack("=BBBBBxxBI", 2, 0, 32, 16, 100, 1, 0), b""),
    "not": (struct.pack("=BBBBBxxBI", 2, 0, 32, 0, 100, 1, 2), b""),
    "prohibit": (struct.pack("=BBBBBxxBI", 2, 0, 32, 0, 0, 8, 0), b""),
    "iif": (struct.pack("=BBBBBxxBI", 2, 0, 32, 0, 100, 1, 0), nl.text(3, "net1")),
    "mark": (
        struct.pack("=BBBBBxxBI", 2, 0, 32, 0, 100, 1, 0),
        nl.u32(10, 5) + nl.u32(16, 0xFFFFFFFF),
    ),
    "unknown": (struct.pack("=BBBBBxxBI", 2, 0, 32, 0, 100, 1, 0), nl.u32(99, 1)),
}


def test_the_rule_of_vrfs() -> None:
    """As the kernel makes it with the first VRF (vrf_fib_rule in drivers/net/vrf.c)."""
    header = struct.pack("=BBBBBxxBI", 2, 0, 0, 0, 0, 1, 0)
    found = rule._parse(header + nl.u32(6, 1000) + nl.u8(21, 2) + nl.u8(19, 1))
    assert found.of_vrfs
    assert not found.plain


@pytest.mark.parametrize(("header", "more"), SELECTORS.values(), ids=SELECTORS)
def test_rules_with_further_selectors_are_others(header: bytes, more: bytes) -> None:
    found = rule._parse(header + nl.attr(2, bytes(4)) + more)
    assert not found.plain
    assert found.owner == 0


# -- routes ---------------------------------------------------------------------------------------


def test_a_route_keeps_what_it_is_not_asked_about() -> None:
    message = struct.pack("=BBBBBBBBI", 2, 16, 0, 8, 254, 4, 0, 1, 4 | 1 << 4)
    metrics = nl.nest(8, nl.u32(2, 1300))
    message += nl.attr(1, b"\x0a\x01\0\0") + nl.u32(4, 7) + metrics + nl.attr(12, bytes(32))
    (found,) = route._parse(message, socket.AF_INET)
    assert (found.tos, found.protocol, found.flags) == (8, 4, route.FLAG_ONLINK)
    assert list(nl.attrs(found.extra)) == [(8, nl.u32(2, 1300))]
    (again,) = route._parse(route._message(found), socket.AF_INET)
    assert again == found


@pytest.mark.parametrize(("second", "shared"), [(7, False), (8, True)])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_next_hops(second: int, shared: bool, family: int) -> None:
    size = 4 if family == socket.AF_INET else 16
    hops = b""
    for index in (7, second):
        gateway = nl.attr(5, bytes([index]) * size)
        hops += struct.pack("=HBBi", 8 + len(gateway), 0, 0, index) + gateway
    message = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 3, 0, 1, 0) + nl.attr(9, hops)
    found = route._parse(message, family)
    assert [(hop.index, hop.gateway[:1], hop.shared) for hop in found] == [
        (7, b"\x07", shared),
        (second, bytes([second]), shared),
    ]
    assert all(hop.movable == (not shared or family == socket.AF_INET6) for hop in found)
