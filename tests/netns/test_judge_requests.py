"""What cni.kernel sends, decoded by pyroute2's message classes, which share no code with it.

Each message must say what its caller wanted, whatever that was; test_judge.py and the plugins'
tests have the kernel's own opinion.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTM_NEWRULE,
    RTM_SETLINK,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cni.kernel import address, bridge_vlan, link, route, rule, vf
from cni.kernel import netlink as nl
from cni.protocol.address import Prefix

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]

OPERSTATES = {"UNKNOWN": 0, "NOTPRESENT": 1, "DOWN": 2, "LOWERLAYERDOWN": 3, "DORMANT": 5, "UP": 6}


# --- what we send --------------------------------------------------------------------------------


class Request(NamedTuple):
    """A message as it would go to the kernel, and what pyroute2 makes of it."""

    kind: int
    flags: int
    message: Any


class Wiretap:
    """In a socket's place: keeps what is sent, and says that it was done."""

    def __init__(self, decoder: type) -> None:
        self.decoder = decoder
        self.sent: list[Request] = []

    def request(self, kind: int, payload: bytes, flags: int = 0) -> None:
        header = struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0)
        message = self.decoder(header + payload)
        message.decode()
        assert message["header"]["length"] == 16 + len(payload)
        self.sent.append(Request(kind, flags, message))

    def batch(self, messages: list[nl.Message]) -> list[None]:
        for message in messages:
            self.request(*message)
        return [None] * len(messages)


def sent(decoder: type, function: Callable[..., Any], *args: Any, **keys: Any) -> Request:
    """The only request that a function sends."""
    tap = Wiretap(decoder)
    function(tap, *args, **keys)
    [only] = tap.sent
    return only


def attributes(message: Any) -> Json:
    """The attributes by name, nested ones as dicts; what pyroute2 does not know is left out."""
    return {
        cell[0]: attributes(cell[1]) if hasattr(cell[1], "get_attr") else cell[1]
        for cell in message["attrs"]
        if cell[0] != "UNKNOWN"
    }


# Constants of the headers, written out: those of the code under test judge nothing.
IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200
RTN_UNICAST, RTNH_F_ONLINK = 1, 4
NEW = nl.NLM_F_CREATE | nl.NLM_F_EXCL
macs = st.binary(min_size=6, max_size=6)
mtus = st.integers(0, 65535)
names = st.text("abcdefgh0123456789-_.é", min_size=1).filter(lambda t: len(t.encode()) < 16)
indexes = st.integers(1, 2**31 - 1)
u32s = st.integers(0, 2**32 - 1)


def without(**keys: Any) -> Json:
    """What is 0 or empty is not sent: then the kernel decides."""
    return {key: value for key, value in keys.items() if value not in (0, "", None)}


@given(names, names, mtus, macs | st.just(b""), indexes | st.none(), u32s, u32s)
def test_create_veth(
    name: str, peer: str, mtu: int, mac: bytes, netns: int | None, master: int, group: int
) -> None:
    kind, flags, message = sent(
        ifinfmsg,
        link.create_veth,
        name,
        peer,
        mtu=mtu,
        peer_mac=mac,
        peer_netns=netns,
        master=master,
        group=group,
    )
    assert (kind, flags, message["family"], message["index"]) == (RTM_NEWLINK, NEW, 0, 0)
    queues = {"IFLA_NUM_TX_QUEUES": 1, "IFLA_NUM_RX_QUEUES": 1}
    inner = without(IFLA_IFNAME=peer, IFLA_MTU=mtu, IFLA_ADDRESS=mac.hex(":"), IFLA_NET_NS_FD=netns)
    assert attributes(message) == {
        **without(IFLA_IFNAME=name, IFLA_MTU=mtu, IFLA_MASTER=master, IFLA_GROUP=group),
        **queues,
        "IFLA_LINKINFO": {
            "IFLA_INFO_KIND": "veth",
            "IFLA_INFO_DATA": {"VETH_INFO_PEER": inner | queues},
        },
    }


@given(
    indexes,
    st.integers(0, 255),
    macs,
    st.integers(0, 4094),
    st.integers(0, 7),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2),
)
def test_settings_of_a_virtual_function(
    card: int, vf_: int, mac: bytes, vlan: int, qos: int, least: int, most: int, state: int
) -> None:
    """One setting in each request; the VLAN in the attribute that every driver knows, if it can."""
    cases: dict[tuple[str, Any], tuple[str, Json]] = {
        ("mac", mac.hex(":")): ("IFLA_VF_MAC", {"mac": mac.hex(":")}),
        ("vlan", (vlan, qos, 0x8100)): ("IFLA_VF_VLAN", {"vlan": vlan, "qos": qos}),
        ("vlan", (vlan, qos, 0x88A8)): (
            "IFLA_VF_VLAN_LIST",
            {"vlan": vlan, "qos": qos, "proto": 0x88A8},
        ),
        ("rates", (least, most)): ("IFLA_VF_RATE", {"min_tx_rate": least, "max_tx_rate": most}),
        ("spoofchk", True): ("IFLA_VF_SPOOFCHK", {"spoofchk": 1}),
        ("spoofchk", False): ("IFLA_VF_SPOOFCHK", {"spoofchk": 0}),
        ("trust", True): ("IFLA_VF_TRUST", {"trust": 1}),
        ("trust", False): ("IFLA_VF_TRUST", {"trust": 0}),
        ("link_state", state): ("IFLA_VF_LINK_STATE", {"link_state": state}),
    }
    for (name, value), (attribute, fields) in cases.items():
        kind, flags, message = sent(ifinfmsg, vf.change, card, vf_, name, value)
        assert (kind, flags, message["family"], message["index"]) == (RTM_SETLINK, 0, 0, card)
        [info] = message.get_attr("IFLA_VFINFO_LIST").get_attrs("IFLA_VF_INFO")
        [(given_attribute, data)] = [(cell[0], cell[1]) for cell in info["attrs"]]
        if attribute == "IFLA_VF_VLAN_LIST":
            data = data.get_attr("IFLA_VF_VLAN_INFO")
            # two headers, four nested attributes, sizeof(struct ifla_vf_vlan_info)
            assert message["header"]["length"] == 2 * 16 + 4 * 4 + 16
        decoded = {key: data[key] for key in ("vf", *fields)}
        assert (given_attribute, decoded) == (attribute, {"vf": vf_, **fields})


@given(names, mtus, macs | st.just(b""), st.booleans())
def test_create_bridge(name: str, mtu: int, mac: bytes, filtering: bool) -> None:
    kind, flags, message = sent(
        ifinfmsg, link.create_bridge, name, mtu=mtu, mac=mac, vlan_filtering=filtering
    )
    assert (kind, flags) == (RTM_NEWLINK, NEW)
    info: Json = {"IFLA_INFO_KIND": "bridge"}
    if filtering:
        info["IFLA_INFO_DATA"] = {"IFLA_BR_VLAN_FILTERING": 1}
    assert attributes(message) == {
        **without(IFLA_IFNAME=name, IFLA_MTU=mtu, IFLA_ADDRESS=mac.hex(":")),
        "IFLA_LINKINFO": info,
    }


@given(names, indexes, st.sampled_from(sorted(link.MACVLAN_MODES)), mtus, indexes | st.none())
def test_create_macvlan(name: str, parent: int, mode: str, mtu: int, netns: int | None) -> None:
    number = link.MACVLAN_MODES[mode]
    _, flags, message = sent(
        ifinfmsg, link.create_macvlan, name, parent, mode=number, mtu=mtu, netns=netns
    )
    assert flags == NEW
    assert attributes(message) == {
        **without(IFLA_IFNAME=name, IFLA_MTU=mtu, IFLA_LINK=parent, IFLA_NET_NS_FD=netns),
        "IFLA_LINKINFO": {
            "IFLA_INFO_KIND": "macvlan",
            "IFLA_INFO_DATA": {"IFLA_MACVLAN_MODE": mode},
        },
    }


@given(names, indexes, st.integers(0, 4094), st.sampled_from(sorted(link.IPVLAN_MODES)))
def test_create_vlan_and_ipvlan(name: str, parent: int, vid: int, mode: str) -> None:
    vlan = attributes(sent(ifinfmsg, link.create_vlan, name, parent, vid=vid).message)
    assert vlan["IFLA_LINK"] == parent
    assert vlan["IFLA_LINKINFO"] == {
        "IFLA_INFO_KIND": "vlan",
        "IFLA_INFO_DATA": {"IFLA_VLAN_ID": vid},
    }
    number = link.IPVLAN_MODES[mode]
    ipvlan = attributes(sent(ifinfmsg, link.create_ipvlan, name, parent, mode=number).message)
    assert ipvlan["IFLA_LINK"] == parent
    assert ipvlan["IFLA_LINKINFO"] == {
        "IFLA_INFO_KIND": "ipvlan",
        "IFLA_INFO_DATA": {"IFLA_IPVLAN_MODE": number},
    }


@given(names, mtus)
def test_create_ifb(name: str, mtu: int) -> None:
    message = sent(ifinfmsg, link.create_ifb, name, mtu=mtu).message
    assert (message["flags"], message["change"]) == (IFF_UP, IFF_UP)
    assert attributes(message) == {
        **without(IFLA_IFNAME=name, IFLA_MTU=mtu),
        "IFLA_TXQLEN": 0,
        "IFLA_LINKINFO": {"IFLA_INFO_KIND": "ifb"},
    }


switches = st.booleans() | st.none()


@given(
    indexes,
    st.fixed_dictionaries(
        {},
        optional={
            "name": names,
            "mac": macs,
            "mtu": u32s,
            "txqlen": u32s,
            "master": u32s,
            "alias": st.text(st.characters(min_codepoint=32, codec="utf-8"), max_size=60),
            "netns": indexes,
            "group": u32s,
            "up": st.booleans(),
            "promisc": st.booleans(),
            "allmulti": st.booleans(),
        },
    ),
)
@example(5, {"master": 0})
@example(5, {"alias": ""})
def test_change(index: int, wanted: Json) -> None:
    kind, flags, message = sent(ifinfmsg, link.change, index, **wanted)
    assert (kind, flags, message["index"]) == (RTM_NEWLINK, 0, index)
    bits = {"up": IFF_UP, "promisc": IFF_PROMISC, "allmulti": IFF_ALLMULTI}
    assert message["change"] == sum(bits[key] for key in bits if key in wanted)
    assert message["flags"] == sum(bits[key] for key in bits if wanted.get(key))
    if "mac" in wanted:
        wanted = {**wanted, "mac": wanted["mac"].hex(":")}
    known = {
        "name": "IFLA_IFNAME",
        "mac": "IFLA_ADDRESS",
        "mtu": "IFLA_MTU",
        "txqlen": "IFLA_TXQLEN",
        "master": "IFLA_MASTER",
        "alias": "IFLA_IFALIAS",
        "netns": "IFLA_NET_NS_FD",
        "group": "IFLA_GROUP",
    }
    assert attributes(message) == {known[key]: wanted[key] for key in wanted if key in known}


@given(indexes, st.booleans(), st.booleans(), st.text("abc-é", min_size=1, max_size=60))
def test_ports_and_altnames(index: int, hairpin: bool, isolated: bool, name: str) -> None:
    kind, _, message = sent(ifinfmsg, link.set_port, index, hairpin=hairpin, isolated=isolated)
    assert (kind, message["family"], message["index"]) == (RTM_SETLINK, 7, index)
    assert attributes(message) == {
        "IFLA_PROTINFO": {"IFLA_BRPORT_MODE": hairpin, "IFLA_BRPORT_ISOLATED": isolated}
    }
    for function, wanted in ((link.add_altname, (108, NEW)), (link.remove_altname, (109, 0))):
        kind, flags, message = sent(ifinfmsg, function, index, name)
        assert (kind, flags, message["index"]) == (*wanted, index)
        assert attributes(message) == {"IFLA_PROP_LIST": {"IFLA_ALT_IFNAME": name}}


@given(indexes, st.lists(st.integers(1, 4094), min_size=1, max_size=9), st.booleans())
def test_vlans(index: int, vids: list[int], access: bool) -> None:
    for function, keys, number, bits in (
        (bridge_vlan.add, {"access": access}, RTM_SETLINK, 6 if access else 0),
        (bridge_vlan.remove, {}, RTM_DELLINK, 0),
    ):
        kind, _, message = sent(ifinfmsg, function, index, vids, **keys)
        assert (kind, message["family"], message["index"]) == (number, 7, index)
        infos = message.get_attr("IFLA_AF_SPEC").get_attrs("IFLA_BRIDGE_VLAN_INFO")
        assert [(info["vid"], info["flags"]) for info in infos] == [(vid, bits) for vid in vids]


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    size = draw(st.sampled_from((4, 16)))
    ip = draw(st.binary(min_size=size, max_size=size))
    return Prefix(ip, draw(st.integers(1, size * 8)))


@given(indexes, prefixes(), st.booleans())
def test_address_requests(index: int, prefix: Prefix, nodad: bool) -> None:
    text = str(ipaddress.ip_address(prefix.ip))
    wanted: Json = {"IFA_LOCAL": text, "IFA_ADDRESS": text}
    kind, flags, message = sent(ifaddrmsg, address.add, index, prefix, nodad=nodad)
    assert (kind, flags) == (RTM_NEWADDR, NEW)
    head = (message["family"], message["prefixlen"], message["scope"], message["index"])
    assert head == (prefix.family, prefix.length, 0, index)
    assert message["flags"] == (0x02 if nodad and not prefix.is_v4 else 0)
    interface = ipaddress.ip_interface(f"{text}/{prefix.length}")
    broadcast = {"IFA_BROADCAST": str(interface.network.broadcast_address)}
    has_broadcast = prefix.is_v4 and prefix.length < 31
    assert attributes(message) == {**wanted, **(broadcast if has_broadcast else {})}

    kind, flags, message = sent(ifaddrmsg, address.delete, index, prefix)
    assert (kind, flags, message["prefixlen"]) == (RTM_DELADDR, 0, prefix.length)
    assert attributes(message) == wanted


@st.composite
def routes(draw: st.DrawFn) -> route.Route:
    size = draw(st.sampled_from((4, 16)))
    packed_ips = st.binary(min_size=size, max_size=size)
    return route.Route(
        dst=Prefix(draw(packed_ips), draw(st.integers(0, size * 8))).network,
        index=draw(indexes),
        gateway=draw(st.just(b"") | packed_ips),
        source=draw(st.just(b"") | packed_ips),
        priority=draw(u32s),
        table=draw(st.integers(1, 2**32 - 1)),
        scope=draw(st.sampled_from((0, 200, 253, 254))),
        protocol=draw(st.integers(0, 255)),
        tos=draw(st.integers(0, 255)),
        flags=draw(st.sampled_from((0, RTNH_F_ONLINK))),
    )


@given(routes())
def test_route_requests(entry: route.Route) -> None:
    def text(ip: bytes) -> str:
        return str(ipaddress.ip_address(ip)) if ip else ""

    for function, wanted in (
        (route.add, (RTM_NEWROUTE, nl.NLM_F_CREATE)),
        (route.delete, (RTM_DELROUTE, 0)),
    ):
        kind, flags, message = sent(rtmsg, function, entry)
        assert (kind, flags) == wanted
        assert message["family"] == entry.dst.family
        assert message["dst_len"] == entry.dst.length
        assert message["table"] == (entry.table if entry.table < 256 else 0)
        assert (message["scope"], message["proto"]) == (entry.scope, entry.protocol)
        assert (message["tos"], message["flags"]) == (entry.tos, entry.flags)
        assert message["type"] == RTN_UNICAST
        assert attributes(message) == {
            "RTA_TABLE": entry.table,
            "RTA_OIF": entry.index,
            **without(
                RTA_DST=text(entry.dst.ip) if entry.dst.length else "",
                RTA_GATEWAY=text(entry.gateway),
                RTA_PREFSRC=text(entry.source),
                RTA_PRIORITY=entry.priority,
            ),
        }


@given(prefixes(), st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1))
def test_rule_requests(source: Prefix, table: int, owner: int) -> None:
    tap = Wiretap(fibmsg)
    tap.batch([rule.addition(source, table, owner)])
    [(kind, flags, message)] = tap.sent
    assert (kind, flags) == (RTM_NEWRULE, NEW)
    head = (message["family"], message["src_len"], message["dst_len"], message["action"])
    assert head == (source.family, len(source.ip) * 8, 0, 1)
    assert attributes(message) == {
        "FRA_SRC": str(ipaddress.ip_address(source.ip)),
        "FRA_TABLE": table,
        "FRA_FWMARK": owner,
        "FRA_FWMASK": 0,
    }


def test_delete_requests() -> None:
    kind, flags, message = sent(ifinfmsg, link.delete, 77)
    assert (kind, flags, message["index"]) == (RTM_DELLINK, 0, 77)
    assert attributes(message) == {}
