"""bridge: connects each container to a Linux bridge with a veth pair (docs/spec/bridge.md).

    container netns                 host
    eth0 ───────── veth ─────────── veth1a2b3c4d ── port of ── cni0 (gateway address, if wanted)

ADD validates everything first, then changes the kernel; each change pushes its undo.
"""

from __future__ import annotations

from typing import Any

from ...call import Call, Steps
from ...kernel import link
from ...kernel.errors import KernelError, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol import config
from ...protocol.errors import CNIError
from ...protocol.request import Attachment
from ...protocol.result import Interface, IPConfig, Result
from ..shared import configure, masquerade, veth
from ..shared.unlink import needs_link
from . import device, gateway

# the sum of the reference's waits (docs/spec/bridge.md, ADD step 10)
PORT_TIMEOUT = 2.55  # seconds until a port that is not forwarding is an error


class Conf(veth.PairConf):
    bridge: str = ""
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    hairpin_mode: bool = False
    promisc_mode: bool = False
    vlan: int = 0
    vlan_trunk: list[gateway.Trunk] | None = None
    preserve_default_vlan: bool = False
    macspoofchk: bool = False
    enabledad: bool = False
    disable_container_interface: bool = False
    port_isolation: bool = False
    remove_empty_bridge: bool = False
    uplink_interface: str = ""


class Settings:
    """The validated configuration, and the values derived from it. Raises CNIError."""

    def __init__(self, call: Call[Conf]) -> None:
        conf = call.conf
        self.conf = conf
        self.bridge = conf.bridge or "cni0"
        self.gateway = gateway.is_wanted(conf)
        self.ipam = conf.ipam.type
        # an empty vlanTrunk counts, as in the reference
        self.filtering = conf.vlan != 0 or conf.vlan_trunk is not None
        trunk = gateway.trunk_vlans(conf.vlan_trunk or [])
        self.vlans = gateway.Vlans(conf.vlan, trunk, conf.preserve_default_vlan)
        if not 0 <= conf.vlan <= 4094:
            raise CNIError(f"invalid VLAN ID {conf.vlan} (must be between 0 and 4094)")
        pairs = call.parse_args(frozenset({"MAC"}))
        self.mtu = 0  # set after the combinations are checked
        self.mac = conf.runtime_config.mac or conf.args.cni.mac or pairs.get("MAC", "")

    def check_combinations(self) -> None:
        """Refuse combinations of keys that ADD cannot serve. Raises CNIError."""
        conf = self.conf
        if conf.hairpin_mode and conf.promisc_mode:
            raise CNIError("cannot set hairpin mode and promiscuous mode at the same time")
        if self.ipam and conf.disable_container_interface:
            raise CNIError("cannot use IPAM when DisableContainerInterface flag is set")
        gateway.check_keys(conf)
        veth.check_host_name(conf.uplink_interface, "uplinkInterface")
        self.mtu = veth.mtu(conf.mtu)
        veth.check_host_name(conf.host_interface_name)


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Attach the container; the result's interfaces are bridge, host veth, container veth."""
    want = Settings(call)
    want.check_combinations()
    mac = veth.parse_mac(want.mac)
    netns = call.open_netns()
    # subscribed before the port is made, so that no change of its state is missed
    with Netlink() as host, Netlink(groups=(link.RTNLGRP_LINK,)) as events:
        veth.require_free(call, host, netns)
        if want.conf.uplink_interface:
            _uplinks().require(host, want.conf.uplink_interface, want.bridge)
        ipam = None
        late = needs_link(want.ipam) or asks_on_link(call)
        if want.ipam and not late:
            # IPAM first: it fails most often, and then nothing else has to be undone.
            ipam = gateway.allocate(call)
        bridge, outer, inner = _join(call, host, netns, want, mac)
        if want.ipam and late:
            ipam = gateway.allocate(call)
        result = Result(
            interfaces=[
                Interface(name=bridge.name, mac=bridge.mac),
                Interface(name=outer.name, mac=outer.mac),
                Interface(name=call.ifname, mac=inner.mac, sandbox=call.netns),
            ]
        )
        # before the container's link comes up: no frame passes unchecked
        if want.conf.macspoofchk:
            _protect_mac(call, outer, inner)
        if ipam is not None:
            result.ips, result.routes, result.dns = ipam.ips, ipam.routes, ipam.dns
            _connect_layer3(call, host, netns, bridge, inner, result, want)
        elif not want.conf.disable_container_interface:
            configure.set_up(call, netns, inner.index)
        if want.conf.disable_container_interface:
            outer = link.get(host, outer.index)
        else:
            outer = await_port(host, events, outer)
            if result.ips:
                configure.announce_again(netns.netlink(), inner.index, inner.mac)
        # The MAC of a bridge that we did not make may change when its first port joins.
        result.interfaces[0].mac = link.mac_of(host, bridge.index)
        result.interfaces[1].mac = outer.mac  # udev may have changed it
    result.dns = configure.dns(want.conf.dns, result.dns)
    if want.conf.macspoofchk or want.conf.ip_masq:
        call.remember()
    return result


def _join(
    call: Call[Conf], host: Netlink, netns: Namespace, want: Settings, mac: bytes
) -> tuple[Link, Link, Link]:
    """Make what is missing of bridge, pair and uplink; returns bridge, host's end, other end."""
    conf = want.conf
    with device.Lock(call.request.env):  # nobody removes the bridge until the port is there
        bridge = device.ensure(
            call,
            host,
            want.bridge,
            mtu=want.mtu,
            filtering=want.filtering,
            promisc=conf.promisc_mode,
        )
        if conf.macspoofchk:
            _prepare_spoofcheck(call, host, bridge, mac)
        uplink = None
        if conf.uplink_interface:
            uplink = _uplinks().attach(call, host, conf.uplink_interface, bridge)
        outer, inner = veth.create(call, host, netns, want.mtu, mac, bridge.index)
        _configure_port(host, outer, want)
        if uplink is not None:
            _uplinks().carry(call, host, bridge, uplink, want.vlans.tagged)
    return bridge, outer, inner


def _uplinks() -> Any:
    """The module for `uplinkInterface`, which few configurations have."""
    from . import uplink_port

    return uplink_port


def asks_on_link(call: Call[Any]) -> bool:
    """Does the IPAM plugin probe on the container's link whether an address is free?"""
    ipam = config.lookup(call.raw, "ipam")
    return isinstance(ipam, dict) and config.lookup(ipam, "conflictCheck") is not None


def _configure_port(host: Netlink, port: Link, want: Settings) -> None:
    """Set flags and VLANs of the host's end. Raises CNIError."""
    conf = want.conf
    try:
        link.set_port(host, port.index, hairpin=conf.hairpin_mode, isolated=conf.port_isolation)
    except NetlinkError as error:
        raise CNIError(f"failed to setup port flags of {port.name}: {error}") from None
    gateway.configure_vlans(host, port, want.vlans)


def _prepare_spoofcheck(call: Call[Conf], host: Netlink, bridge: Link, mac: bytes) -> None:
    from . import spoofcheck

    spoofcheck.require_unused(host, bridge, mac)
    spoofcheck.guard_learning(call, host, bridge)


def _protect_mac(call: Call[Conf], outer: Link, inner: Link) -> None:
    from . import spoofcheck

    call.undo.callback(lambda: spoofcheck.teardown(_spoof_ref(call), call.guard))
    call.guard = spoofcheck.setup(_spoof_ref(call), outer.name, inner.mac)


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
    if want.gateway:
        offered = config.means(want.ipam, "dhcp")
        gateway.set_up(
            call, host, bridge, result, want.vlans, want.conf.force_address, offered=offered
        )
    settings = _sysctls(call.ifname, want, result.ips)
    nodad = not want.conf.enabledad
    configure.interface(call, netns, inner.index, result, settings, nodad=nodad)
    if want.conf.ip_masq:
        masquerade.add(call, result, masquerade.configured_backend(want.conf))


def _sysctls(ifname: str, want: Settings, ips: list[IPConfig]) -> list[tuple[str, str]]:
    conf = f"net/ipv6/conf/{ifname}"
    if want.conf.enabledad:
        dad = [(f"{conf}/enhanced_dad", "1"), (f"{conf}/accept_dad", "1")]
    else:
        dad = [(f"{conf}/accept_dad", "0")]
    # a bridge floods each announcement to every container
    ipv6 = any(not ip.prefix.is_v4 for ip in ips)
    return dad + configure.announce_settings(ifname, ipv6=ipv6)


def await_port(host: Netlink, events: Netlink, port: Link) -> Link:
    """Wait until the port is up, and return it; until then the bridge drops its packets.

    Raises CNIError.
    """
    state = link.wait_operational(host, events, port.index, PORT_TIMEOUT)
    if state.operstate != link.IF_OPER_UP:
        raise CNIError(
            f"bridge port in error state: {state.operstate_text}",
            f"{port.name} did not come up within {PORT_TIMEOUT} s",
        )
    return state


# --- the other verbs ------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Delete the link, release the address, remove the rules; every step runs."""
    steps = Steps()
    conf = call.conf
    goes = conf.remove_empty_bridge or conf.uplink_interface
    # while the port is there, which tells the bridge even if the
    # configuration names another one by now
    bridge = steps.run(_bridge_of, call) if goes else 0
    veth.delete(call, steps)
    if veth.asked_for(call, "macspoofchk", call.conf.macspoofchk):
        _unprotect_mac(call)
    if bridge:
        _tidy(call, steps, bridge)
    steps.finish()


def _tidy(call: Call[Conf], steps: Steps, bridge: int) -> None:
    """Remove what the bridge (an index) has for ports that are gone."""
    if call.conf.uplink_interface:
        steps.run(lambda: _uplinks().release(call, bridge, call.conf.vlan))
    if call.conf.remove_empty_bridge:
        steps.run(_remove_empty, call, bridge)


def _bridge_of(call: Call[Conf]) -> int:
    from . import empty

    return empty.bridge_of(call, call.conf.bridge or "cni0")


def _remove_empty(call: Call[Conf], bridge: int) -> None:
    from . import empty

    empty.remove(call, bridge, call.conf.vlan)


def _unprotect_mac(call: Call[Any]) -> None:
    """Remove the spoof check; a failure is logged, as in the reference."""
    from . import spoofcheck

    noted = call.forgotten.intents if call.forgotten is not None else []
    try:
        spoofcheck.teardown(_spoof_ref(call), next((one.guard for one in noted if one.guard), 0))
    except (CNIError, KernelError) as error:
        call.log(str(error))


def _spoof_ref(call: Call[Any]) -> str:
    """The reference that the comments of the spoof check's rules contain, without the network."""
    return f"{call.container_id}-{call.ifname}"


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove links, rules and leases of this network whose attachment is not in `keep`."""
    steps = Steps()
    veth.gc(call, keep, steps)
    if veth.asked_for(call, "macspoofchk", call.conf.macspoofchk):
        steps.run(_collect_spoofchecks)
    if call.conf.remove_empty_bridge or call.conf.uplink_interface:
        _tidy(call, steps, steps.run(_bridge_of, call) or 0)
    steps.finish()


def _collect_spoofchecks() -> None:
    from . import spoofcheck

    with Netlink() as host:
        spoofcheck.gc(lambda: {device.name for device in link.list_all(host)})


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready."""
    want = Settings(call)
    if want.conf.uplink_interface:
        _uplinks().ready(want.conf.uplink_interface, want.bridge)
    if want.ipam:
        call.delegate(want.ipam)


def check(call: Call[Conf]) -> None:
    """Compare the kernel with the prevResult, and report every difference."""
    from ..shared import checks
    from . import differences

    want = Settings(call)
    netns = call.open_netns()
    if want.ipam:
        call.delegate(want.ipam)
    previous = checks.previous_result(call)
    entry = checks.container_interface(call, previous)
    with Netlink() as host:
        problems = differences.bridge(host, previous, want.bridge, want.conf.promisc_mode)
        problems += differences.pair(host, netns, entry, previous, want.bridge)
        if want.conf.uplink_interface:
            name = want.conf.uplink_interface
            problems += _uplinks().differences(host, name, want.bridge, want.vlans.tagged)
        if want.gateway:
            inner = f"{want.bridge}.{want.conf.vlan}" if want.conf.vlan else want.bridge
            problems += differences.gateways(host, previous, inner, call.ifname)
            problems += checks.forwarding(previous, inner)
    if want.conf.mtu is config.AUTO:
        from ..shared import uplink

        problems += uplink.too_large(netns, call.ifname)
    rules = masquerade.check(call, previous) if want.conf.ip_masq else []
    checks.compare(call, netns, previous, problems, rules)


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; the prevResult is the result of that ADD."""
    want = Settings(call)
    result = call.prev_result()
    # ADD's result begins with bridge, host's end and container's end
    if result is None or len(result.interfaces) < 3:
        raise CNIError("Required prevResult missing")
    _, outer, inner = result.interfaces[:3]
    if want.conf.macspoofchk:
        from . import spoofcheck

        spoofcheck.setup(_spoof_ref(call), outer.name, inner.mac)
    if want.conf.ip_masq:
        masquerade.reload(call, result, masquerade.configured_backend(want.conf))
