"""What cni.kernel reads, judged by pyroute2, which shares no code with it.

Links, addresses, routes, rules and the VLANs of bridge ports must be what pyroute2 reads of the
same namespace, field by field; what cni.kernel adds, pyroute2 must see. test_judge_requests.py has
pyroute2 decode the requests.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import IPRoute

from cni.kernel import address, bridge_vlan, link, route, rule
from cni.kernel.netlink import Netlink
from cni.protocol.address import Prefix
from tests.harness import Netns, requires_kernel
from tests.harness.contract import await_carrier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Json = dict[str, Any]

T = TypeVar("T")
J = TypeVar("J")

# Constants of the headers, written out: those of the code under test judge nothing.
RTN_UNICAST, RTNH_F_ONLINK = 1, 4
RT_TABLE_MAIN, RT_SCOPE_LINK = 254, 253
IFA_F_NODAD, IFA_F_TENTATIVE = 0x02, 0x40

FAMILIES = (socket.AF_INET, socket.AF_INET6)
OPERSTATES = {"UNKNOWN": 0, "NOTPRESENT": 1, "DOWN": 2, "LOWERLAYERDOWN": 3, "DORMANT": 5, "UP": 6}


# --- both views ----------------------------------------------------------------------------------


def ours(ns: Netns, read: Callable[[Netlink], Any]) -> Any:
    """What a function of cni.kernel says with a socket of the namespace."""

    def inside() -> Any:
        with Netlink() as sock:
            return read(sock)

    return ns.run(inside)


def theirs(ns: Netns, verb: str, **keys: Any) -> list[Any]:
    """The messages of a dump of pyroute2's."""

    def inside() -> list[Any]:
        with IPRoute() as ipr:
            return list(getattr(ipr, verb)(**keys))

    return ns.run(inside)


def quiet(read: Callable[[], T], judge: Callable[[], J]) -> tuple[T, J]:
    """Both, while nothing changed: lifetimes run, the kernel settles what a carrier brings."""
    after = judge()
    for _ in range(100):
        before, found = after, read()
        after = judge()
        if before == after:
            return found, after
    raise AssertionError("the namespace never stands still")


def packed(text: str | None, empty: bytes = b"") -> bytes:
    return empty if text is None else ipaddress.ip_address(text).packed


def judged_link(message: Any) -> Json:
    """What a Link should say, from pyroute2's message."""
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    slave = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None
    properties = message.get_attr("IFLA_PROP_LIST")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""

    def of(where: Any, name: str, default: Any = 0) -> Any:
        found = where.get_attr(name) if where else None
        return default if found is None else found

    wanted = {
        "index": message["index"],
        "flags": message["flags"],
        "name": message.get_attr("IFLA_IFNAME"),
        "kind": kind,
        "mac": message.get_attr("IFLA_ADDRESS") or "",
        "mtu": message.get_attr("IFLA_MTU"),
        "master": of(message, "IFLA_MASTER"),
        "peer": of(message, "IFLA_LINK"),
        "peer_nsid": message.get_attr("IFLA_LINK_NETNSID"),
        "alias": of(message, "IFLA_IFALIAS", ""),
        "operstate": OPERSTATES[message.get_attr("IFLA_OPERSTATE")],
        "promiscuity": message.get_attr("IFLA_PROMISCUITY"),
        "txqlen": message.get_attr("IFLA_TXQLEN"),
        "group": message.get_attr("IFLA_GROUP"),
        "altnames": tuple(properties.get_attrs("IFLA_ALT_IFNAME")) if properties else (),
        "up": message["state"] == "up",
    }
    if kind == "bridge":
        wanted["vlan_filtering"] = bool(of(data, "IFLA_BR_VLAN_FILTERING"))
    if kind == "macvlan":
        wanted["mode"] = link.MACVLAN_MODES[of(data, "IFLA_MACVLAN_MODE")]
    if kind == "ipvlan":
        wanted["mode"] = of(data, "IFLA_IPVLAN_MODE")
    if kind == "vlan":
        wanted["vlan_id"] = of(data, "IFLA_VLAN_ID")
    if info and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
        wanted["hairpin"] = bool(of(slave, "IFLA_BRPORT_MODE"))
        wanted["isolated"] = bool(of(slave, "IFLA_BRPORT_ISOLATED"))
    return wanted


def compare_links(ns: Netns) -> dict[str, link.Link]:
    """Both views of all links must agree, listed and by each of their names; ours, by name."""

    def read(sock: Netlink) -> list[tuple[link.Link, list[link.Link]]]:
        return [
            (each, [link.get(sock, by) for by in (each.index, each.name, *each.altnames)])
            for each in link.list_all(sock)
        ]

    found, judged = quiet(
        lambda: ours(ns, read), lambda: list(map(judged_link, theirs(ns, "get_links")))
    )
    assert [each.name for each, _ in found] == [each["name"] for each in judged]
    for (listed, again), wanted in zip(found, judged, strict=True):
        for each in (listed, *again):
            assert {key: getattr(each, key) for key in wanted} == wanted
    return {each.name: each for each, _ in found}


def judged_address(message: Any) -> tuple[Any, ...]:
    times = message.get_attr("IFA_CACHEINFO")
    return (
        message["index"],
        packed(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")),
        message["prefixlen"],
        message["scope"],
        message.get_attr("IFA_FLAGS"),
        (times["ifa_preferred"], times["ifa_valid"]),
    )


def our_address(entry: address.Address) -> tuple[Any, ...]:
    prefix, lifetimes = entry.prefix, struct.unpack_from("=II", entry.lifetimes)
    return entry.index, prefix.ip, prefix.length, entry.scope, entry.flags, lifetimes


def compare_addresses(ns: Netns) -> list[address.Address]:
    """Both views of all addresses; ours."""
    found, judged = quiet(
        lambda: ours(ns, address.show), lambda: list(map(judged_address, theirs(ns, "get_addr")))
    )
    assert Counter(map(our_address, found)) == Counter(judged)
    return found


def judged_routes(message: Any) -> Iterator[tuple[Any, ...]]:
    """One for each next hop, as in cni.kernel.route."""
    empty = bytes(4 if message["family"] == socket.AF_INET else 16)
    base = (
        packed(message.get_attr("RTA_DST"), empty),
        message["dst_len"],
        packed(message.get_attr("RTA_PREFSRC")),
        message.get_attr("RTA_PRIORITY") or 0,
        message.get_attr("RTA_TABLE"),
        message["scope"],
        message["proto"],
        message["tos"],
    )
    hops = message.get_attr("RTA_MULTIPATH")
    if hops is None:
        gateway, oif = message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF") or 0
        yield *base, oif, packed(gateway), message["flags"] & RTNH_F_ONLINK, False
        return
    shared = len({hop["oif"] for hop in hops}) > 1
    for hop in hops:
        gateway = dict(hop["attrs"]).get("RTA_GATEWAY")
        yield *base, hop["oif"], packed(gateway), hop["flags"] & RTNH_F_ONLINK, shared


def our_route(entry: route.Route) -> tuple[Any, ...]:
    base = (entry.dst.ip, entry.dst.length, entry.source, entry.priority, entry.table)
    rest = (entry.scope, entry.protocol, entry.tos, entry.index, entry.gateway)
    return *base, *rest, entry.flags, entry.shared


def compare_routes(ns: Netns) -> list[route.Route]:
    """Both views of the unicast routes of all tables; ours."""

    def judge() -> tuple[list[tuple[Any, ...]], set[int]]:
        messages = [each for each in theirs(ns, "get_routes") if each["family"] in FAMILIES]
        unicast = [each for each in messages if each["type"] == RTN_UNICAST]
        hops = [hop for each in unicast for hop in judged_routes(each)]
        return hops, {each.get_attr("RTA_TABLE") for each in messages}

    def read(sock: Netlink) -> tuple[list[route.Route], tuple[list[route.Route], set[int]]]:
        found = [each for family in FAMILIES for each in route.show(sock, family, table=0)]
        return found, route.survey(sock)

    (found, (main, tables)), (hops, judged_tables) = quiet(lambda: ours(ns, read), judge)
    assert Counter(map(our_route, found)) == Counter(hops)
    assert Counter(main) == Counter(e for e in found if e.table == RT_TABLE_MAIN)
    assert tables == judged_tables
    return found


def compare_rules(ns: Netns) -> list[rule.Rule]:
    judged = []
    for each in theirs(ns, "get_rules"):
        if each["family"] not in FAMILIES:
            continue
        empty = bytes(4 if each["family"] == socket.AF_INET else 16)
        mask, mark = each.get_attr("FRA_FWMASK"), each.get_attr("FRA_FWMARK")
        judged.append(
            (
                each.get_attr("FRA_PRIORITY") or 0,
                packed(each.get_attr("FRA_SRC"), empty),
                each["src_len"],
                each.get_attr("FRA_TABLE"),
                0 if mask else mark or 0,
            )
        )
    found = ours(ns, rule.show)
    assert judged == [
        (each.priority, each.source.ip, each.source.length, each.table, each.owner)
        for each in found
    ]
    return found


# --- what we read --------------------------------------------------------------------------------


def test_links(host: Netns, container: Netns) -> None:
    host.ip_batch(
        "link add br0 address 02:00:00:00:00:01 mtu 1400 type bridge",
        f"link add port0 mtu 1300 type veth peer name eth0 netns {container.name}",
        "link set port0 master br0 alias 'cni:0123-4567 net' up",
        "link add port1 type veth peer name peer1",
        "link set port1 master br0",
        "link set dev port1 type bridge_slave hairpin on isolated on",
        "link set peer1 up promisc on allmulticast on txqueuelen 77 group 4711",
        "link property add dev peer1 altname a-name-longer-than-fifteen altname second",
        "tuntap add tap0 mode tap multi_queue vnet_hdr",
        "link add ifb0 numtxqueues 1 type ifb",
        "link set br0 up",
    )
    for mode in link.MACVLAN_MODES:
        master = "peer1" if mode != "passthru" else "tap0"
        host.ip("link", "add", f"mv-{mode}", "link", master, "type", "macvlan", "mode", mode)
    container.ip("link", "set", "eth0", "up")
    here, there = compare_links(host), compare_links(container)
    # the judge itself saw what was made
    assert here["port0"].alias == "cni:0123-4567 net"
    assert here["port0"].peer == there["eth0"].index
    assert there["eth0"].peer_nsid is not None
    assert here["port1"].hairpin
    assert here["port1"].isolated
    assert here["peer1"].altnames == ("a-name-longer-than-fifteen", "second")
    assert (here["peer1"].group, here["peer1"].txqlen) == (4711, 77)
    assert {here[f"mv-{mode}"].mode for mode in link.MACVLAN_MODES} == {1, 2, 4, 8}


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        pytest.param(
            "vlan",
            ["link add v link m0 type vlan id 4094", "link add w link m0 type vlan id 1"],
            marks=requires_kernel("vlan"),
        ),
        pytest.param(
            "ipvlan", ["link add v link m0 type ipvlan mode l3s"], marks=requires_kernel("ipvlan")
        ),
        pytest.param("dummy", ["link add v type dummy"], marks=requires_kernel("dummy")),
        pytest.param(
            "vrf",
            ["link add v type vrf table 1001", "link set m1 master v"],
            marks=requires_kernel("vrf"),
        ),
        pytest.param("netkit", ["link add v type netkit"], marks=requires_kernel("netkit")),
        pytest.param(
            "bridge",
            ["link add v type bridge vlan_filtering 1", "link set m1 master v"],
            marks=requires_kernel("vlan_filtering"),
        ),
        pytest.param(
            "vxlan", ["link add v type vxlan id 5 dstport 4789"], marks=requires_kernel("vxlan")
        ),
    ],
)
def test_links_of_kind(host: Netns, kind: str, commands: list[str]) -> None:
    host.ip("link", "add", "m0", "type", "veth", "peer", "name", "m1")
    host.ip_batch(*commands)
    found = compare_links(host)["v"]
    assert found.kind == kind
    if kind == "vlan":
        assert found.vlan_id == 4094


@requires_kernel("vlan_filtering")
def test_vlans_of_ports(host: Netns) -> None:
    host.ip_batch(
        "link add br0 type bridge vlan_filtering 1",
        "link add port0 type veth peer name peer0",
        "link set port0 master br0",
    )
    for vid in ("100 pvid untagged", "200", "300 untagged", "4094"):
        host.exec(["bridge", "vlan", "add", "dev", "port0", "vid", *vid.split()])
    index = ours(host, lambda sock: link.get(sock, "port0")).index
    [message] = [each for each in theirs(host, "get_vlans") if each["index"] == index]
    judged = [
        (info["vid"], bool(info["flags"] & 2), bool(info["flags"] & 4))
        for info in message.get_attr("IFLA_AF_SPEC").get_attrs("IFLA_BRIDGE_VLAN_INFO")
    ]
    assert judged == ours(host, lambda sock: bridge_vlan.show(sock, index))
    assert (100, True, True) in judged


def test_addresses(host: Netns) -> None:
    host.ip_batch(
        "link add a0 type veth peer name a1",
        "link set a0 up",
        "address add 10.0.0.1/24 broadcast + dev a0",
        "address add 10.0.0.2/24 dev a0",  # secondary
        "address add 10.1.0.1 peer 10.9.0.1/32 dev a0",
        "address add 10.1.0.1 peer 10.9.1.1/16 dev a0",
        "address add 169.254.3.4/16 scope link dev a0",
        "address add 10.2.0.1/32 scope host valid_lft 4000 preferred_lft 3000 dev a0",
        "address add fd00::1/64 dev a0",  # tentative: the carrier is missing
        "address add fd00::2/64 nodad dev a0",
        "address add fd00::3/128 valid_lft 4000 preferred_lft 0 nodad dev a0",  # deprecated
        "address add fd00:1::1 peer fd00:2::1/64 nodad dev a0",
    )
    found = compare_addresses(host)
    flags = {str(each.prefix): each.flags for each in found}
    assert flags["fd00::1/64"] & IFA_F_TENTATIVE
    assert flags["fd00::2/64"] & IFA_F_NODAD
    usable = {str(each.prefix) for each in found if each.usable}
    assert "fd00::2/64" in usable
    assert "fd00::1/64" not in usable


def test_routes(host: Netns) -> None:
    host.ip_batch(
        "link add a0 type veth peer name a1",
        "link add b0 type veth peer name b1",
        *(f"link set {name} addrgenmode none" for name in ("a0", "a1", "b0", "b1")),
        *(f"link set {name} up" for name in ("a0", "a1", "b0", "b1")),
        "address add 10.0.0.1/24 dev a0",
        "address add 10.0.1.1/24 dev b0",
        "address add fd00::1/64 nodad dev a0",
        "address add fd00:1::1/64 nodad dev b0",
        "route add default via 10.0.0.9",
        "route add default via 10.0.0.8 metric 50",
        "route add 10.5.0.0/16 via 10.0.0.9 table 1000 proto static mtu 1300 advmss 1000",
        "route add 10.5.0.0/16 via 10.0.0.9 table 5 src 10.0.1.1",
        "route add 10.6.0.0/16 dev a0 scope link tos 0x10",
        "route add 10.7.0.0/16 via 192.0.2.1 dev a0 onlink",
        "route add 10.8.0.0/16 nexthop via 10.0.0.9 dev a0 nexthop via 10.0.1.9 dev b0 weight 3",
        "route add 10.9.0.0/16 nexthop via 10.0.0.9 dev a0 nexthop via 192.0.2.1 dev a0 onlink",
        "route add 10.10.0.0/16 via inet6 fe80::9 dev a0",
        "route add blackhole 10.11.0.0/16",
        "route add unreachable 10.12.0.0/16 table 6",
        "route add default via fd00::9 metric 70",
        "route add fd05::/64 via fd00::9 table 1000 proto static mtu 1300",
        "route add fd06::/64 dev a0 metric 7",
        "route add fd07::/64 via fe80::9 dev a0 onlink",
        "route add fd08::/64 nexthop via fd00::9 dev a0 nexthop via fd00:1::9 dev b0",
        "route add fd09::/64 via fd00::9 src fd00:1::1",
        "route add unreachable fd0a::/64",
    )
    found = compare_routes(host)
    shared = {str(entry.dst) for entry in found if entry.shared}
    assert shared == {"10.8.0.0/16", "fd08::/64"}
    assert {entry.table for entry in found} >= {5, 254, 1000}


def test_rules(host: Netns) -> None:
    host.ip_batch(
        "rule add from 10.0.0.1 lookup 100",
        "rule add from 10.0.0.0/8 lookup 1000 priority 77",
        "rule add from 10.0.0.2 fwmark 0x1234/0 lookup 101",
        "rule add from 10.0.0.3 fwmark 0x1234/0xff lookup 102",
        "rule add iif lo lookup 103",
        "rule add to 10.3.0.0/16 lookup 104",
        "rule add from 10.0.0.4 ipproto tcp lookup 105",
        "rule add from 10.0.0.5 suppress_prefixlength 0 lookup main",
        "rule add from 10.0.0.6 blackhole",
        "rule add not from 10.0.0.7 lookup 106",
    )
    host.ip("-6", "rule", "add", "from", "fd00::1", "lookup", "100")
    host.ip("-6", "rule", "add", "from", "fd00::/64", "fwmark", "0x99/0", "lookup", "100000")
    found = compare_rules(host)
    plain = {str(each.source): each.plain for each in found if each.source.length}
    assert plain["10.0.0.1/32"]
    assert plain["fd00::/64"]
    assert not any(plain[f"10.0.0.{n}/32"] for n in (3, 4, 6, 7))


# --- there and back -------------------------------------------------------------------------------


@pytest.fixture
def wire(host: Netns) -> Netns:
    """A namespace with a veth pair whose carrier is on, and an address of each family."""
    host.ip_batch(
        "link add a0 type veth peer name a1",
        *(f"link set {name} addrgenmode none up" for name in ("a0", "a1")),
        "address add 10.200.0.1/16 dev a0",
        "address add fd20::1/32 nodad dev a0",
    )
    await_carrier(host, "a0")
    return host


def test_addresses_there_and_back(wire: Netns) -> None:
    """What we add the judge sees, with what we said; what we delete is gone."""
    index = ours(wire, lambda sock: link.get(sock, "a0")).index
    before = set(compare_addresses(wire))
    texts = ("10.1.0.5/24", "10.1.0.5/31", "10.1.0.5/32", "10.1.0.6/8", "fd01::5/64", "fd01::6/128")
    mine = [Prefix.parse(text) for text in texts]
    for prefix in mine:
        ours(wire, lambda sock, prefix=prefix: address.add(sock, index, prefix, nodad=True))
    new = [entry for entry in compare_addresses(wire) if entry not in before]
    assert {entry.prefix for entry in new} == set(mine)
    judged = {
        (each.get_attr("IFA_ADDRESS"), each["prefixlen"]): each.get_attr("IFA_BROADCAST")
        for each in theirs(wire, "get_addr", index=index)
    }
    assert judged["10.1.0.5", 24] == "10.1.0.255"
    assert judged["10.1.0.5", 31] is None
    for entry in new:
        if not entry.prefix.is_v4:
            ours(wire, lambda sock, entry=entry: address.delete(sock, index, entry.prefix))
            ours(wire, lambda sock, entry=entry: address.put_back(sock, entry))
    assert {e.prefix for e in compare_addresses(wire)} == {e.prefix for e in before} | set(mine)
    for prefix in mine:
        ours(wire, lambda sock, prefix=prefix: address.delete(sock, index, prefix))
    assert set(compare_addresses(wire)) == before


@st.composite
def possible_routes(draw: st.DrawFn) -> Json:
    """Keys of a Route that the kernel takes on `wire`."""
    v4 = draw(st.booleans())
    size = 4 if v4 else 16
    head, gateway_head = (b"\x0a\x64", b"\x0a\xc8") if v4 else (b"\xfd\x64", b"\xfd\x20\0\0")
    tail = draw(st.binary(min_size=size - len(head), max_size=size - len(head)))
    dst = Prefix(head + tail, draw(st.integers(16, size * 8))).network
    gateway = b""
    if draw(st.booleans()):
        gateway = gateway_head + bytes(size - len(gateway_head) - 1) + b"\x09"
    keys: Json = {"dst": dst, "gateway": gateway}
    keys["priority"] = draw(st.integers(1, 2**32 - 1))
    keys["table"] = draw(st.sampled_from((254, 5, 255 + 1, 2**32 - 1)))
    keys["protocol"] = draw(st.sampled_from((3, 4, 186)))
    if v4 and not gateway:
        keys["scope"] = RT_SCOPE_LINK
    if gateway and draw(st.booleans()):
        keys["flags"] = RTNH_F_ONLINK
    if draw(st.booleans()):
        keys["source"] = b"\x0a\xc8\0\x01" if v4 else b"\xfd\x20" + bytes(13) + b"\x01"
    return keys


def test_routes_there_and_back(wire: Netns) -> None:
    """Any route that we add is the judge's, too, by all its fields; deleted, it is gone."""
    index = ours(wire, lambda sock: link.get(sock, "a0")).index
    before = Counter(compare_routes(wire))

    @given(possible_routes())
    def there_and_back(keys: Json) -> None:
        entry = route.Route(index=index, **keys)
        ours(wire, lambda sock: route.add(sock, entry))
        new = Counter(compare_routes(wire)) - before
        assert [each._replace(extra=b"") for each in new] == [entry]
        ours(wire, lambda sock: route.delete(sock, entry))
        assert Counter(compare_routes(wire)) == before

    there_and_back()


def test_rules_there_and_back(wire: Netns) -> None:
    before = compare_rules(wire)
    for text, table, owner in (("10.1.2.3/8", 100, 7), ("fd00::7/64", 2**32 - 1, 2**32 - 1)):
        request = rule.addition(Prefix.parse(text), table, owner)
        ours(wire, lambda sock, request=request: sock.batch([request]))
    new = [each for each in compare_rules(wire) if each not in before]
    assert [(str(each.source), each.table, each.owner) for each in new] == [
        ("10.1.2.3/32", 100, 7),
        ("fd00::7/128", 2**32 - 1, 2**32 - 1),
    ]
    for each in new:
        ours(wire, lambda sock, each=each: rule.delete(sock, each))
    assert compare_rules(wire) == before
