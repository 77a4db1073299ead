"""What an ADD of a network would meet on this node: plugins, links, kernel, addresses.

Nothing is changed. What cannot be looked at, for lack of rights, is not reported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from shlex import quote
from typing import Any, NamedTuple

from cni import delegate, dispatch
from cni.describe import addresses, catalogue, pairs, walk
from cni.describe.network import Network, Part
from cni.kernel import kinds, link, uapi
from cni.kernel.address import show as addresses_of
from cni.kernel.errors import LinkNotFound, NetlinkError
from cni.kernel.link import Link
from cni.kernel.netlink import Netlink
from cni.kernel.route import Route
from cni.kernel.route import show as routes_of
from cni.protocol.address import Prefix
from cni.protocol.errors import CNIError

# Kind of link -> kernel module, where the names differ.
_MODULES = {"vlan": "8021q"}
_ON_MASTER = frozenset({"macvlan", "macvtap", "ipvlan", "vlan"})
_MAC_LENGTH = 17  # characters
_LISTED = 8  # links that are named at most

NO_MASTER = "there is no master, and the node has no default route whose link could be it"


class Problem(NamedTuple):
    """What an ADD would meet. `key` is the path of the key in the part's object."""

    part: Part
    key: str
    code: str
    message: str
    advice: str = ""
    is_warning: bool = False


class Facts(NamedTuple):
    """A part with its values: `get` looks one up by its path, whatever the case."""

    part: Part
    host: Netlink
    get: Callable[[str], Any]


def problems(network: Network, path: list[str]) -> list[Problem]:
    """Everything that an ADD would meet, with plugins looked for in the directories `path`."""
    found: list[Problem] = []
    with Netlink() as host:
        for part in network.parts:
            facts = Facts(part, host, walk.getter(part.node))
            found += _missing_plugins(facts, path)
            for look in (_kind, _master, _bridge, _device, _tun):
                try:
                    found += look(facts)
                except NetlinkError:  # not permitted, for example
                    continue
        found += _addresses(network, host)
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


# --- plugins ---


def _missing_plugins(facts: Facts, path: list[str]) -> Iterator[Problem]:
    keys = ["type", "ipam.type"]
    if facts.part.plugin == "flannel":
        keys.append("delegate.type")
    for key in keys:
        name = _text(facts.get(key))
        if not name:
            continue
        if catalogue.known_as(name) not in (None, *dispatch.TABLE):
            message = f"{name} is a plugin of another system than {sys.platform}"
            advice = "judge the file there, or with --offline, which looks at the text alone"
            yield Problem(facts.part, key, "missing-plugin", message, advice)
            continue
        try:
            delegate.find(name, path)
        except CNIError as error:
            said = delegate.with_remedy(error, dispatch.TABLE)
            yield Problem(facts.part, key, "missing-plugin", said.msg, said.details)


# --- the kernel ---


def _kind(facts: Facts) -> Iterator[Problem]:
    described = catalogue.plugin(facts.part.plugin)
    kind = described.link_kind if described is not None else ""
    # None: without CAP_NET_ADMIN the kernel does not say.
    if kind and kinds.supported(facts.host, kind) is False:
        module = _MODULES.get(kind, kind)
        yield Problem(
            facts.part,
            "type",
            "missing-kernel-module",
            f"the kernel has no links of the kind {kind}",
            f"load the module: modprobe {module}; or use a kernel that has it",
        )


def _tun(facts: Facts) -> Iterator[Problem]:
    if facts.part.plugin == "tap" and not os.path.exists("/dev/net/tun"):
        yield Problem(
            facts.part,
            "type",
            "missing-kernel-module",
            "/dev/net/tun does not exist",
            "load the module: modprobe tun",
        )


# --- links ---


def _master(facts: Facts) -> Iterator[Problem]:
    """The link that an interface is made on."""
    part, get = facts.part, facts.get
    if part.plugin not in _ON_MASTER or get("linkInContainer") is True:
        return
    name = _text(get("master"))
    if not name:
        # With deviceID the runtime names the master at the ADD.
        if not get("runtimeConfig.deviceID") and not get("capabilities.deviceID"):
            yield from _default_master(facts)
        return
    try:
        master = link.get(facts.host, name)
    except LinkNotFound:
        advice = "`ip link` shows the links of this node"
        yield Problem(part, "master", "missing-link", f"the node has no link {name}", advice)
        return
    mtu = _integer(get("mtu"))
    if mtu > master.mtu:
        message = f"mtu is {mtu}, and the master {master.name} has {master.mtu}"
        yield Problem(part, "mtu", "mtu", message, "an interface cannot have more than its master")
    yield from _busy_master(facts, master)
    yield from _unfit_master(facts, master, "master")
    if not master.up:
        advice = f"no packet passes until it is up: ip link set {master.name} up"
        message = f"the master {master.name} is down"
        yield Problem(part, "master", "link-down", message, advice, is_warning=True)


def _default_master(facts: Facts) -> Iterator[Problem]:
    """Without `master`, macvlan and ipvlan take the default route's link."""
    if facts.part.plugin == "vlan" or facts.part.path not in ("", "plugins[0]"):
        return
    routes = _default_routes(facts.host)
    if routes:
        yield from _unfit_master(facts, link.get(facts.host, routes[0].index), "type")
        return
    advice = f"name the link as `master`{masters_in_words(facts.host)}"
    yield Problem(facts.part, "type", "missing-link", NO_MASTER, advice)


def masters_in_words(host: Netlink) -> str:
    """``; this node has eth0, eth1``: the links on which an interface can be made; "" for none."""
    names = [each.name for each in link.list_all(host) if _fits(each, "macvlan")]
    more = ", …" if len(names) > _LISTED else ""
    return f"; this node has {', '.join(names[:_LISTED])}{more}" if names else ""


def _fits(master: Link, plugin: str) -> bool:
    """Does the kernel make links of that kind on this one?"""
    if master.flags & uapi.IFF_LOOPBACK:
        return False
    # macvlan and ipvlan are made on Ethernet only; a VLAN also on links without a MAC.
    return plugin == "vlan" or len(master.mac) == _MAC_LENGTH


def _unfit_master(facts: Facts, master: Link, key: str) -> Iterator[Problem]:
    """macvlan and ipvlan need an Ethernet link; a loopback has no VLANs, either."""
    if _fits(master, facts.part.plugin):
        return
    what = "a loopback" if master.flags & uapi.IFF_LOOPBACK else "a link without MAC addresses"
    message = f"the kernel makes no {facts.part.plugin} on {master.name}, {what}"
    advice = f"name another link as `master`{masters_in_words(facts.host)}"
    yield Problem(facts.part, key, "unfit-link", message, advice)


def _default_routes(host: Netlink) -> list[Route]:
    families = (Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0"))
    return [
        each
        for default in families
        for each in routes_of(host, default.family)
        if each.dst.length == 0 and each.index
    ]


def _busy_master(facts: Facts, master: Link) -> Iterator[Problem]:
    """A bridge port has no macvlan and ipvlan."""
    # The receive handler of a link is either the bridge's or that of macvlan and ipvlan.
    if not master.master or facts.part.plugin == "vlan":
        return
    owner = link.get(facts.host, master.master)
    if owner.kind == "bridge":
        message = f"the master {master.name} is a port of the bridge {owner.name}"
        advice = f"use the plugin bridge with the bridge {owner.name}, or another link"
        yield Problem(facts.part, "master", "busy-link", message, advice)


def _bridge(facts: Facts) -> Iterator[Problem]:
    part, get = facts.part, facts.get
    if part.plugin not in pairs.ON_BRIDGE:
        return
    name = pairs.bridge_name(part.plugin, get("bridge"), get("vni"))
    device = link.find(facts.host, name)
    if device is None:
        return  # an ADD makes it
    if device.kind != "bridge":
        message = f"{name} exists, and is no bridge"
        yield Problem(part, "bridge", "busy-link", message, "choose another name for the bridge")
        return
    key = "vlan" if get("vlan") else "vlanTrunk"
    if get(key) and not device.vlan_filtering:
        message = f"the bridge {name} exists, and does not look at VLANs"
        advice = f"ip link set {quote(name)} type bridge vlan_filtering 1"
        yield Problem(part, key, "vlan-filtering", message, advice)


def _device(facts: Facts) -> Iterator[Problem]:
    name = _text(facts.get("device")) if facts.part.plugin == "host-device" else ""
    if name and link.find(facts.host, name) is None:
        message = f"the node has no link {name}"
        advice = "`ip link` shows the links of this node; a container may have it now"
        yield Problem(facts.part, "device", "missing-link", message, advice, is_warning=True)


# --- addresses ---


def _addresses(network: Network, host: Netlink) -> Iterator[Problem]:
    """Subnets that the node reaches in another way, and gateways that the bridge cannot have."""
    for place in addresses.judge(network, quiet=True):
        if not place.is_on_node:
            continue
        name = place.link
        device = link.find(host, name) if name else None
        yield from _conflicting_address(place, host, device)
        yield from _routed_elsewhere(place, host, device)


def _key_of(place: addresses.Place) -> str:
    """The path of the place in its part's object."""
    return place.path.removeprefix(place.part.path).removeprefix(".")


def _conflicting_address(
    place: addresses.Place, host: Netlink, device: Link | None
) -> Iterator[Problem]:
    get = walk.getter(place.part.node)
    if device is None or place.range is None or get("forceAddress") or get("vlan"):
        return
    wanted = Prefix(place.range.gateway, place.subnet.length)
    present = [each.prefix for each in addresses_of(host, device.index, wanted.family)]
    # Of IPv6, bridge refuses only addresses that overlap: a link always has several.
    others = [each for each in present if each.is_v4 or each.overlaps(wanted)]
    if others and wanted not in present:
        message = f"{device.name} has the address {others[0]}, and would need {wanted}"
        advice = (
            f"another network may use the bridge; `ip address del {others[0]} dev {device.name}` "
            "removes the address, or set forceAddress"
        )
        yield Problem(place.part, _key_of(place), "conflicting-address", message, advice)


def _routed_elsewhere(
    place: addresses.Place, host: Netlink, device: Link | None
) -> Iterator[Problem]:
    """Note the first route to a part of the subnet that leads to a link which is not ours."""
    for each in routes_of(host, place.subnet.family):
        own = device is not None and each.index == device.index
        if own or not each.dst.length or not each.index or not each.dst.overlaps(place.subnet):
            continue
        out = link.get(host, each.index)
        if out.kind in ("veth", "netkit"):  # to a container of this network or of another
            continue
        message = f"the node reaches {each.dst} through {out.name}"
        advice = f"{place.subnet} overlaps with it: choose another subnet"
        yield Problem(place.part, _key_of(place), "overlap", message, advice)
        return
