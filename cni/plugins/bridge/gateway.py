"""bridge and vxlan: IPAM's result, the VLANs of ports, and the gateway addresses on the bridge or
on a VLAN's interface (docs/spec/bridge.md, ADD steps 5 and 8).
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from typing import Any, NamedTuple, Protocol

import msgspec

from ...call import Call
from ...kernel import address, link, route
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...owner import digest
from ...protocol import config
from ...protocol.address import Prefix, format_ip, is_global_unicast, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import Interface, Result
from ..shared import configure, masquerade, veth
from . import device


class Keys(masquerade.Keys, Protocol):
    """The keys of layer 3 that bridge and vxlan share."""

    ipam: config.IPAM
    is_gateway: bool
    is_default_gateway: bool
    no_default_route: bool


def is_wanted(conf: Keys) -> bool:
    """Does the bridge get addresses?"""
    return conf.is_gateway or conf.is_default_gateway


def check_keys(conf: Keys) -> None:
    """Refuse combinations that ADD cannot serve. Raises CNIError."""
    if conf.ipam.type:
        masquerade.configured_backend(conf)
    if conf.no_default_route and conf.is_default_gateway:
        raise CNIError("cannot set noDefaultRoute and isDefaultGateway at the same time")
    if is_wanted(conf) and configure.learns(conf.ipam.type):
        raise CNIError(
            "cannot set isGateway with slaac",
            "the gateway is the router that advertises itself, not this node's bridge",
        )


def allocate(call: Call[Any]) -> Result:
    """IPAM's result, with the gateways and default routes of the configuration added.

    Raises CNIError.
    """
    conf: Keys = call.conf
    ipam = call.ipam_add(conf.ipam.type)
    for ip in ipam.ips:
        # the container's end, which follows the bridge and the host's end in the result
        ip.interface = 2
        if is_wanted(conf) and not ip.gateway:
            ip.gateway = format_ip(ip.prefix.nth(1))
    if conf.is_default_gateway:
        _add_default_routes(ipam)
    return ipam


class Trunk(config.Folded):
    """An item of `vlanTrunk`: a range, an id, or both."""

    min_id: int | None = msgspec.field(default=None, name="minid")
    max_id: int | None = msgspec.field(default=None, name="maxid")
    id: int | None = None


def trunk_vlans(items: list[Trunk]) -> list[int]:
    """The sorted VLAN ids of `vlanTrunk`. Raises CNIError."""
    vids: set[int] = set()
    for item in items:
        low, high = item.min_id, item.max_id
        if low is not None and high is not None:
            _require_vlan(low, "minID")
            _require_vlan(high, "maxID")
            if high < low:
                raise CNIError("minID is greater than maxID in trunk parameter")
            vids.update(range(low, high + 1))
        elif low is not None or high is not None:
            missing = "maxID" if high is None else "minID"
            raise CNIError(
                f"minID and maxID should be configured simultaneously, {missing} is missing"
            )
        if item.id is not None:
            _require_vlan(item.id, "id")
            vids.add(item.id)
    return sorted(vids)


def _require_vlan(vid: int, what: str) -> None:
    if not 1 <= vid <= 4094:
        raise CNIError(f"incorrect trunk {what} parameter", f"{vid} is not between 1 and 4094")


class Vlans(NamedTuple):
    """A port's VLANs: the untagged one (0: none), the tagged ones, and whether VLAN 1 stays."""

    access: int
    trunk: list[int]
    keep_default: bool

    @property
    def tagged(self) -> list[int]:
        """Those that an uplink of the bridge has to carry."""
        return [*self.trunk, *([self.access] if self.access else [])]


def configure_vlans(host: Netlink, port: Link, vlans: Vlans) -> None:
    """Put the VLANs on a port (docs/spec/bridge.md, ADD step 5). Raises CNIError."""
    if not vlans.access and not vlans.trunk:
        return
    from ...kernel import bridge_vlan

    try:
        if not vlans.keep_default:
            present = [v.vid for v in bridge_vlan.show(host, port.index)]
            bridge_vlan.remove(host, port.index, present)
        bridge_vlan.add(host, port.index, vlans.trunk)
        # a trunk without `vlan` keeps VLAN 1 for untagged frames, as in the reference
        bridge_vlan.add(host, port.index, [vlans.access or 1], access=True)
    except NetlinkError as error:
        raise CNIError(
            f"failed to setup VLANs on interface {port.name}: {error}",
            "does this kernel have bridge VLAN filtering, and is it on for the bridge?",
        ) from None


def _add_default_routes(ipam: Result) -> None:
    """For `isDefaultGateway`: add a default route for each family that has a gateway.

    IPAM's own default route is enough if its gateway is one of this bridge, or not named. Raises
    CNIError if it has another gateway: the configuration contradicts itself.
    """
    for family in (AF_INET, AF_INET6):
        gateways = [ip.gateway for ip in ipam.ips if ip.gateway and ip.prefix.family == family]
        if not gateways:
            continue
        default = configure.default_route(family)
        given = [entry for entry in ipam.routes if _is_default(entry, default)]
        own = {parse_ip(gateway) for gateway in gateways}
        for other in (entry.gw for entry in given if entry.gw):
            if parse_ip(other) not in own:
                raise _disagreement(default, gateways[0], other)
        if not given:
            ipam.routes.append(config.Route(dst=str(default), gw=gateways[0]))


def _is_default(entry: config.Route, default: Prefix) -> bool:
    """Is this route the `default` of the main routing table?"""
    return entry.table in (None, 0, route.TABLE_MAIN) and Prefix.parse(entry.dst) == default


def _disagreement(default: Prefix, gateway: str, other: str) -> CNIError:
    return CNIError(
        f"isDefaultGateway and the routes of ipam disagree: {default} via {gateway} or via {other}",
        "leave out isDefaultGateway (isGateway alone puts the gateway's address on the bridge), or "
        f"the route to {default} in the routes of ipam",
    )


def set_up(
    call: Call[Any],
    host: Netlink,
    bridge: Link,
    result: Result,
    vlans: Vlans,
    force: bool,
    *,
    offered: bool,
) -> None:
    """Put the gateway addresses on the bridge or the VLAN's interface; switch on IP forwarding.

    `force` replaces addresses that conflict. `offered`: a DHCP server has sent the gateways. They
    are checked, since any host on the network can be such a server. The VLAN's interface is added
    to the result. Raises CNIError.
    """
    target, prefix = bridge, "failed to set bridge addr: "
    if vlans.access:
        target = _ensure_vlan_interface(call, host, bridge, vlans)
        prefix = "failed to set vlan interface for bridge with addr: "
        result.interfaces.append(Interface(name=target.name, mac=target.mac))
    # IPv4 first, as in the reference (docs/spec/bridge.md, ADD step 8)
    for ip in sorted(result.ips, key=lambda ip: not ip.prefix.is_v4):
        assert ip.gateway is not None
        wanted = Prefix(parse_ip(ip.gateway), ip.prefix.length)
        try:
            if offered:
                _check_offer(host, target, wanted, ip.prefix)
            _ensure_address(host, target, wanted, force)
        except CNIError as error:
            raise error.wrapped(prefix) from None
        except NetlinkError as error:
            raise CNIError(f"{prefix}could not add IP address to {target.name}: {error}") from None
    configure.enable_forwarding([ip.prefix for ip in result.ips])


# The shortest prefix of a subnet for which a DHCP server may make this node the router.
_SHORTEST_V4, _SHORTEST_V6 = 8, 32


def _check_offer(host: Netlink, target: Link, wanted: Prefix, leased: Prefix) -> None:
    """Refuse a gateway from a DHCP server that would divert addresses which the node uses.

    The gateway becomes an address of the node, with a route to its subnet. Raises CNIError.
    """
    shortest = _SHORTEST_V4 if leased.is_v4 else _SHORTEST_V6
    problem = ""
    if leased.length < shortest:
        problem = f"the leased prefix {leased} is shorter than /{shortest}"
    elif not is_global_unicast(wanted.ip):
        problem = "it is no unicast address that is valid beyond one link"
    elif not leased.contains(wanted.ip):
        problem = f"it is not in the leased subnet {leased.network}"
    elif wanted.ip == leased.ip:
        problem = "it is the address that was leased to the container"
    else:
        for other in address.show(host, family=wanted.family):
            if other.index != target.index and other.prefix.overlaps(wanted):
                name = link.get(host, other.index).name
                problem = f"its subnet overlaps with {other.prefix}, which {name} of this node has"
    if problem:
        raise CNIError(
            f"refused the gateway {wanted} that DHCP offers",
            f"{problem}: correct the DHCP server on this network, or set isGateway to false and "
            "leave it to the router that is there",
        )


def _ensure_address(host: Netlink, target: Link, wanted: Prefix, force: bool) -> None:
    """Put the gateway address on the link.

    An address that conflicts is an error, or is deleted with `force` (docs/spec/bridge.md). Raises
    CNIError, NetlinkError.
    """
    present = [a.prefix for a in address.show(host, target.index, wanted.family)]
    if wanted in present:
        return
    for other in present:
        # a link has IPv6 addresses of several subnets, such as its link-local one
        if other.is_v4 or other.overlaps(wanted):
            if not force:
                raise CNIError(
                    f'"{target.name}" already has an IP address different from {wanted}',
                    f"it has {other}: `ip address del {other} dev {target.name}` removes it, or "
                    "set forceAddress",
                )
            address.delete(host, target.index, other)
    try:
        # Duplicate address detection would keep the gateway from answering for a second.
        address.add(host, target.index, wanted, nodad=True)
    except NetlinkError as error:
        # EEXIST: another ADD has just put it there
        if not link.is_name_taken(error):
            raise
    # A bridge whose MAC was never set takes that of a port; so set it to its present value.
    link.change(host, target.index, mac=link.parse_mac(target.mac))


def _ensure_vlan_interface(call: Call[Any], host: Netlink, bridge: Link, vlans: Vlans) -> Link:
    """The host's interface in the VLAN: one end of a veth pair whose other end is a bridge port.

    Also completes an interface that another ADD is making, or was killed over. Raises CNIError.
    """
    name = f"{bridge.name}.{vlans.access}"
    call.undo.callback(_remove_vlan_interface, call, name)
    group = 0
    if call.conf.remove_empty_bridge:
        from . import empty  # few configurations have `removeEmptyBridge`

        group = empty.group(call.network)
    try:
        try:
            link.create_veth(host, name, f"veth{digest(name)[:8]}", mtu=bridge.mtu, group=group)
            veth.prepare_host_end(name)
            if group:
                empty.mark(host, name)
        except NetlinkError as error:
            if not link.is_name_taken(error):
                raise
            # another ADD has made the interface: it stays
            call.undo.withdraw()
        inner = link.get(host, name)
        port = link.get(host, inner.peer)
        if port.master != bridge.index or not port.up:
            link.change(host, port.index, master=bridge.index, up=True)
            link.set_port(host, port.index, hairpin=False, isolated=False)
            configure_vlans(host, port, vlans)
        link.change(host, inner.index, up=True)
    except (NetlinkError, LinkNotFound) as error:
        raise CNIError(
            f'failed to create vlan gateway "{name}": {error}',
            f"if {name} is not a veth whose other end is a port of {bridge.name}, delete it",
        ) from None
    return inner


def _remove_vlan_interface(call: Call[Any], name: str) -> None:
    """Undo the creation of a VLAN's interface, unless another container is on the bridge by now."""
    with (
        Netlink() as host,
        device.Lock(call.request.env, alone=True),
    ):  # the verb's own socket is closed by now
        inner = link.find(host, name)
        port = link.find(host, inner.peer) if inner is not None and inner.peer else None
        if inner is None or port is None:
            return
        own = {port.index, *(device.index for device in veth.ends_of(host, call.owner))}
        ports = [device for device in link.list_all(host) if device.master == port.master]
        if not port.master or all(device.index in own for device in ports):
            link.delete(host, inner.index)
