"""portmap without a kernel: what it asks for, and how it reads what the kernel says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.kernel import netlink as nl
from cni.netfilter import conntrack
from cni.netfilter import elements as nft_elements
from cni.netfilter.elements import Element
from cni.netfilter.table import Table
from cni.owner import Owner, named_in
from cni.plugins.portmap import iptables_rules, nft_chains
from cni.plugins.portmap.want import Port, Want
from cni.protocol.address import Prefix, parse_ip

OWNER = Owner("net1", "c1", "eth0")
V4, V6 = Prefix.parse("10.0.0.2/24"), Prefix.parse("2001:db8::2/64")


def want(*ports: Port, owner: Owner = OWNER, **keys: object) -> Want:
    base = Want(owner, [V4, V6], list(ports), True, False, 0x2000, "", ([], []))
    return base._replace(**keys)  # type: ignore[arg-type]


def test_chain_name() -> None:
    assert OWNER.chain("DN-") == "CNI-DN-c2d892b58e87e28a12fe6"  # docs/spec/common.md §2


def test_ports_of_a_family() -> None:
    any4, any6 = Port(bytes(4), "tcp", 1, 11), Port(bytes(16), "tcp", 1, 12)
    plain, specific = Port(b"", "tcp", 1, 13), Port(parse_ip("192.0.2.1"), "tcp", 1, 14)
    ports = want(any4, any6, plain, specific)
    assert ports.ports_of(V4) == [Port(b"", "tcp", 1, 11), specific]
    assert ports.ports_of(V6) == [Port(b"", "tcp", 1, 12)]


def test_long_comments_are_cut() -> None:
    owner = Owner("n" * 200, "c" * 200, "eth0")
    (rule,) = iptables_rules.entry_rules(want(Port(b"", "tcp", 80, 80), owner=owner))
    text = rule.partition('--comment "')[2].partition('" -m multiport')[0]
    assert len(text.replace('\\"', '"')) == 255
    # a name that was cut is not a name
    assert iptables_rules.owner_of(rule) is None
    assert named_in(owner.comment) is None
    assert named_in(Owner("net", "c1", "eth0").comment) == Owner("net", "c1", "eth0")


def test_options_make_chains_of_their_own() -> None:
    port = Port(b"", "tcp", 80, 80)
    variants = [
        want(port),
        want(port, masq_all=True),
        want(port, mark=32),
        want(port, snat=False),
        want(port, conditions=(["ip", "ttl", "1"], [])),
        want(port, addresses=[Prefix.parse("10.9.0.2/24")]),
    ]
    names = [nft_chains.chains(each, each.addresses[0])[0].name for each in variants]
    assert len(set(names)) == len(variants)
    neighbour = want(port, addresses=[Prefix.parse("10.0.0.7/24")], owner=Owner("x", "y", "z"))
    assert nft_chains.chains(neighbour, neighbour.addresses[0])[0].name == names[0]


PORTS = st.builds(
    Port,
    st.one_of(st.just(b""), st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)),
    st.sampled_from(("tcp", "udp", "sctp")),
    st.integers(1, 65535),
    st.integers(1, 65535),
)


@given(st.lists(PORTS, max_size=8))
def test_a_key_says_which_port_it_is(ports: list[Port]) -> None:
    asked = want(*ports)
    for address in (V4, V6):
        found = nft_chains.elements(asked, address)
        keys = [element.key for name in ("published", "published_at") for element in found[name]]
        back = [nft_chains.port_of(key) for key in keys]
        wanted = [port._replace(container_port=0) for port in asked.ports_of(address)]
        assert sorted(back) == sorted(wanted)
        assert len(set(keys)) == len(keys)


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(data: bytes) -> None:
    nft_elements.parse(data)
    nft_elements.has_more_than([data], 0)
    nft_elements.matching([data], [b""])
    conntrack.parse(data)


@pytest.mark.parametrize(
    "element",
    [
        Element(b"\x06\0\0\0\x1f\x90\0\0", b"\x0a\0\0\x02\0\x50\0\0", "", "somebody"),
        Element(b"\x06\0\0\0\x1f\x90\0\0", b"", "net-0123", "somebody else"),
    ],
)
def test_elements_are_read_as_they_are_written(element: Element) -> None:
    ((_, payload, _),) = nft_elements.insert(Table("ip", "t"), "m", [element])
    assert nft_elements.matching([payload], [b"somebody"]) == [element]
    assert nft_elements.matching([payload], [b"nobody"]) == []
    assert nft_elements.has_more_than([payload], 0)
    assert not nft_elements.has_more_than([payload], 1)


def test_many_elements_are_several_messages() -> None:
    """The list of elements is an attribute, which has at most 64 KiB."""
    elements = [Element(i.to_bytes(8, "big"), bytes(20), "", "x" * 128) for i in range(1000)]
    changes = list(nft_elements.insert(Table("ip6", "t"), "m", elements))
    payloads = [payload for _, payload, _ in changes]
    assert nft_elements.has_more_than(payloads, 999)
    assert not nft_elements.has_more_than(payloads, 1000)
    assert all(len(payload) < 65000 for _, payload, _ in changes)


def flow(protocol: int, dst: str, port: int, answered_by: str) -> bytes:
    """A tracked flow as the kernel dumps it."""

    def half(kind: int, src: str, dst: str, dst_port: int) -> bytes:
        ips = nl.nest(1, nl.attr(1, parse_ip(src)), nl.attr(2, parse_ip(dst)))
        ports = nl.attr(2, b"\1\1") + nl.attr(3, dst_port.to_bytes(2, "big"))
        return nl.nest(kind, ips, nl.nest(2, nl.u8(1, protocol), ports))

    there = half(1, "192.0.2.1", dst, port)
    return b"\2\0\0\0" + there + half(2, answered_by, "192.0.2.1", 7) + nl.attr(12, b"\0\0\0\5")


def test_flow() -> None:
    found = conntrack.parse(flow(17, "192.0.2.9", 53, "10.0.0.2"))
    assert found[:4] == (17, parse_ip("192.0.2.9"), 53, parse_ip("10.0.0.2"))
