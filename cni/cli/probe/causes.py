"""Why packets did not arrive, as far as the node shows it, and what mends that."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from shlex import quote
from typing import NamedTuple

from cni.describe import pairs
from cni.kernel import link, sysctl
from cni.kernel import netlink as nl
from cni.kernel.errors import KernelError
from cni.kernel.netlink import Netlink
from cni.netfilter import table
from cni.netns.namespace import Namespace
from cni.protocol.address import parse_ip

from ..view import ruleset
from .containers import Container
from .situation import Situation

# linux/neighbour.h
_RTM_GETNEIGH = 30
_NDMSG = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_FAILED, _NUD_INCOMPLETE = 0x20, 0x01
_AF = {4: 2, 16: 10}


# Where an accept of the plugin firewall counts: its own table, and that of iptables.
_OWN_TABLE, _OF_IPTABLES = "cni_firewall", "filter"


class Cause(NamedTuple):
    text: str
    remedy: str


class Neighbour(NamedTuple):
    """An entry of the neighbour cache; `mac` is "" while nobody has answered."""

    mac: str
    failed: bool


def neighbour(sock: Netlink, address: str) -> Neighbour | None:
    """What a namespace knows of an address on its links; None without an entry."""
    wanted = parse_ip(address)
    for data in sock.dump(_RTM_GETNEIGH, _NDMSG.pack(_AF[len(wanted)], 0, 0, 0, 0)):
        _, _, state, _, _ = nl.unpack(_NDMSG, data)
        found = nl.attr_map(data, _NDMSG.size)
        if found.get(_NDA_DST) == wanted:
            mac = link.format_mac(found.get(_NDA_LLADDR, b""))
            return Neighbour(mac, bool(state & (_NUD_FAILED | _NUD_INCOMPLETE)))
    return None


def of_link(situation: Situation, container: Container, address: str) -> Iterator[Cause]:
    """Of the container's interface, its end on the node, and its bridge."""
    own = container.link()
    if own is None:
        yield Cause(f"{container.ifname} is not there", "find what removes it: cni trace")
        return
    if not own.up:
        yield Cause(f"{container.ifname} of the container is down", "find what sets it down")
    far = _far_end(situation.node, container)
    if far is not None:
        yield from _of_port(situation.node, far)
    entry = neighbour(container.namespace.netlink(), address)
    if entry is not None and entry.failed:
        what = "neighbour solicitation" if ":" in address else "ARP"
        yield Cause(
            f"nothing answers {what} for {address}",
            f"`ip address` shows whether {address} is where it should be, "
            "`bridge link` whether frames get there",
        )


def _of_port(node: Netlink, far: link.Link) -> Iterator[Cause]:
    if not far.up:
        yield Cause(
            f"{far.name}, its end on the node, is down", f"ip link set {quote(far.name)} up"
        )
    master = link.find(node, far.master) if far.master else None
    if master is not None and not master.up:
        yield Cause(f"{master.name} is down", f"ip link set {quote(master.name)} up")


def _far_end(node: Netlink, container: Container) -> link.Link | None:
    number = container.number()
    if number is None:
        return None
    # Of an end of a pair the kernel tells in which namespace the other one is.
    return next((each for each in link.list_all(node) if each.peer_nsid == number), None)


def of_forwarding(situation: Situation, family: int) -> Iterator[Cause]:
    """Of the node, where packets pass through it."""
    name = "net/ipv4/ip_forward" if family == 4 else "net/ipv6/conf/all/forwarding"
    try:
        if sysctl.read(name) == "0":
            dotted = name.replace("/", ".")
            yield Cause(f"{dotted} is 0: the node forwards nothing", f"sysctl -w {quote(dotted)}=1")
    except OSError:
        pass
    yield from of_policies(situation, family)


def of_bridged(situation: Situation, family: int) -> Iterator[Cause]:
    """Of the rules of IP, where frames within a bridge pass them."""
    if situation.kind in pairs.ON_BRIDGE and bridge_frames_pass_rules(family):
        yield from of_policies(situation, family)


def bridge_frames_pass_rules(family: int) -> bool:
    """Do frames within a bridge pass the rules of IP?"""
    name = "iptables" if family == 4 else "ip6tables"
    try:
        return sysctl.read(f"net/bridge/bridge-nf-call-{name}") == "1"
    except OSError:
        return False


def of_policies(situation: Situation, family: int) -> Iterator[Cause]:
    """Of forward chains that drop by default.

    Rules of plugins help only in those of iptables: an accept ends the chains of its own table.
    """
    try:
        dropping = table.drop_policies()
    except (KernelError, OSError):
        return
    for kind, name, chain in dropping:
        # Tables of the family netdev or bridge have no forward chain of IP.
        if kind not in ("inet", "ip" if family == 4 else "ip6") or name == _OWN_TABLE:
            continue
        where = f"the chain {chain} of the table {kind} {name}"
        if name != _OF_IPTABLES:
            yield Cause(
                f"{where}, which is of another program, drops what it does not accept itself",
                "no rule of a plugin changes that: have that program accept containers' packets "
                f"there; `nft list chain {kind} {name} {chain}` shows what it accepts",
            )
        elif situation.has("firewall"):
            yield Cause(
                f"{where} drops what nothing accepts, also with the plugin firewall",
                f"`nft list chain {kind} {name} {chain}` shows what comes before its rules; "
                "cni reload makes them again, if they are gone",
            )
        else:
            yield Cause(
                f"{where} drops what nothing accepts",
                "add the plugin firewall to the network, behind the others",
            )


def of_rules(container: Container, words: str) -> Iterator[Cause]:
    """Are there any rules of the packet filter that were made for the container?"""
    try:
        found = ruleset.Index(ruleset.read()).belonging(container.known())
    except KernelError:
        return
    except Exception as error:  # noqa: BLE001 a program that cannot read them says nothing of them
        del error
        return
    # Without nft not all rules can be read, so that none was found says nothing.
    if not found and ruleset.has_nft():
        yield Cause(
            f"the rules of {words} are not there: something has removed them after the ADD",
            "cni reload makes those of other containers again; find what flushes the packet filter",
        )


def best(causes: Iterator[Cause], otherwise: Cause) -> Cause:
    """All that was found, in one; else the other."""
    found = list(dict.fromkeys(causes))
    if not found:
        return otherwise
    return Cause("; ".join(each.text for each in found), "; ".join(each.remedy for each in found))


def stale(namespace: Namespace, address: str, mac: str) -> str:
    """The MAC that a namespace still has for an address, if it is not `mac`; else ""."""
    entry = neighbour(namespace.netlink(), address)
    return entry.mac if entry is not None and entry.mac and entry.mac != mac else ""
