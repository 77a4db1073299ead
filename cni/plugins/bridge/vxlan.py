"""vxlan: a bridge on each node, joined by VXLAN to one Ethernet (docs/spec/vxlan.md).

    container netns            node                                        other nodes
    eth0 ──── veth ──── veth1a2b3c4d ── port of ── cni-vx100 ── port of ── cnivx1a2b3c4d ═══ UDP ═══

Pair, gateway and masquerading are those of bridge, in the same modules. The VXLAN link is added in
vxlan_link.py.
"""

from __future__ import annotations

from ...call import Call, Steps
from ...kernel import link, vxlan
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol import config
from ...protocol.address import parse_ip
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import configure, masquerade, veth
from ..shared.unlink import needs_link
from . import device, gateway, vxlan_link
from .plugin import asks_on_link, await_port
from .vxlan_settings import SORT, Settings, bridge_name, gateway_mac
from .vxlan_settings import Conf as _Conf

Conf = _Conf

_NO_VLANS = gateway.Vlans(0, [], keep_default=False)


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Attach the container; the result's interfaces are bridge, host veth, container veth."""
    want = Settings(call)
    netns = call.open_netns()
    with Netlink() as host, Netlink(groups=(link.RTNLGRP_LINK,)) as events:
        veth.require_free(call, host, netns)
        late = needs_link(want.ipam) or asks_on_link(call)
        ipam = gateway.allocate(call) if want.ipam and not late else None
        if want.from_store:
            from . import vxlan_peers

            with vxlan_peers.current(call, host, want):
                bridge, outer, inner = _join(call, host, netns, want, ipam)
        else:
            bridge, outer, inner = _join(call, host, netns, want, ipam)
        if want.ipam and late:
            ipam = gateway.allocate(call)
        result = Result(
            interfaces=[
                Interface(name=bridge.name, mac=bridge.mac),
                Interface(name=outer.name, mac=outer.mac),
                Interface(name=call.ifname, mac=inner.mac, sandbox=call.netns),
            ]
        )
        if ipam is None:
            configure.set_up(call, netns, inner.index)
        else:
            result.ips, result.routes, result.dns = ipam.ips, ipam.routes, ipam.dns
            _connect_layer3(call, host, netns, bridge, inner, result, want)
        outer = await_port(host, events, outer)
        if result.ips:
            configure.announce_again(netns.netlink(), inner.index, inner.mac)
        # The MAC of a bridge that we did not make may change when its first port joins.
        result.interfaces[0].mac = link.get(host, bridge.index).mac
        result.interfaces[1].mac = outer.mac  # udev may have given it another one
    result.dns = configure.dns(want.conf.dns, result.dns)
    if want.conf.ip_masq:
        call.remember()
    return result


def _join(
    call: Call[Conf], host: Netlink, netns: Namespace, want: Settings, ipam: Result | None
) -> tuple[Link, Link, Link]:
    """See to bridge and VXLAN link, and make the pair: bridge, the node's end, the container's."""
    with device.Lock(call.request.env):  # nobody removes the links until the port is there
        bridge = vxlan_link.ensure(call, host, want, _mac(want, ipam))
        outer, inner = veth.create(call, host, netns, want.mtu, want.mac, bridge.index)
    return bridge, outer, inner


def _mac(want: Settings, ipam: Result | None) -> bytes:
    """The MAC for a new bridge; b"" if each node may have its own."""
    gateways = [parse_ip(ip.gateway) for ip in ipam.ips if ip.gateway] if ipam else []
    return gateway_mac(want.conf.vni, gateways) if want.gateway and gateways else b""


def _connect_layer3(
    call: Call[Conf],
    host: Netlink,
    netns: Namespace,
    bridge: Link,
    inner: Link,
    result: Result,
    want: Settings,
) -> None:
    """Set up the gateway, the container's addresses and routes, and masquerading."""
    conf = want.conf
    if want.gateway:
        offered = config.means(want.ipam, "dhcp")
        gateway.set_up(call, host, bridge, result, _NO_VLANS, conf.force_address, offered=offered)
    ipv6 = any(not ip.prefix.is_v4 for ip in result.ips)
    settings = [
        (f"net/ipv6/conf/{call.ifname}/accept_dad", "0"),
        *configure.announce_settings(call.ifname, ipv6=ipv6),
    ]
    configure.interface(call, netns, inner.index, result, settings, nodad=True)
    if conf.ip_masq:
        masquerade.add(call, result, masquerade.configured_backend(conf))


# --- DEL, GC --------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Delete the pair, release the address, remove what no container uses; every step runs."""
    steps = Steps()
    # while the port is there, as in bridge
    bridge = steps.run(_bridge_of, call)
    veth.delete(call, steps)
    steps.run(_remove_unused, call, bridge or 0)
    steps.finish()


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove links, rules and leases of this network whose attachment is not in `keep`."""
    steps = Steps()
    veth.gc(call, keep, steps)
    steps.run(lambda: _remove_unused(call, _bridge_of(call)))
    steps.finish()


def _bridge_of(call: Call[Conf]) -> int:
    """The index of the network's bridge, before its ports go; 0: there is none."""
    if not call.conf.remove_empty_bridge:
        return 0
    with Netlink() as host:
        made = link.find(host, SORT.name(call.network))
        if made is not None and made.master:
            return made.master
    from . import empty

    return empty.bridge_of(call, bridge_name(call.conf))


def _remove_unused(call: Call[Conf], bridge: int) -> None:
    """Remove the VXLAN link after the network's last container, and then the bridge, if this plugin
    made it and it is empty.
    """
    if vxlan_link.remove_unused(call) and bridge:
        from . import empty

        empty.remove(call, bridge, 0)


# --- the other verbs ------------------------------------------------------------------------------


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has VXLAN, `dev` is up, and the IPAM plugin is ready."""
    want = Settings(call)
    with Netlink() as host:
        if not link.has_kind(host, vxlan.KIND):
            raise NotAvailable(
                "the kernel has no links of the kind vxlan", "load the module: `modprobe vxlan`"
            )
        _require_underlay(host, want.conf.dev)
        if want.from_store:
            from ..shared import peers

            peers.require_store(call)
    if want.ipam:
        call.delegate(want.ipam)


def _require_underlay(host: Netlink, dev: str) -> None:
    if not dev:
        return
    try:
        under = vxlan_link.underlay_link(host, dev)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None
    if not under.up:
        raise NotAvailable(f"dev {dev} is down", f"`ip link set {dev} up`")


def check(call: Call[Conf]) -> None:
    """Compare the kernel with the prevResult and the configuration; report every difference."""
    from ..shared import checks
    from . import differences

    want = Settings(call)
    netns = call.open_netns()
    if want.ipam:
        call.delegate(want.ipam)
    previous = checks.previous_result(call)
    entry = checks.container_interface(call, previous)
    with Netlink() as host:
        problems = []
        if want.from_store:
            from . import vxlan_peers

            problems = vxlan_peers.look(call, host, want)
        problems += differences.bridge(host, previous, want.bridge, promiscuous=False)
        problems += differences.pair(host, netns, entry, previous, want.bridge)
        problems += vxlan_link.differences(host, want)
        if want.gateway:
            problems += differences.gateways(host, previous, want.bridge, call.ifname)
            problems += checks.forwarding(previous, want.bridge)
    rules = masquerade.check(call, previous) if want.conf.ip_masq else []
    checks.compare(call, netns, previous, problems, rules)


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; the prevResult is the result of that ADD."""
    want = Settings(call)
    result = call.prev_result()
    if result is None or len(result.interfaces) < 3:
        raise CNIError("Required prevResult missing")
    if want.conf.ip_masq:
        masquerade.reload(call, result, masquerade.configured_backend(want.conf))
