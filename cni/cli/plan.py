"""`cni plan`: what an ADD would do, step by step, without doing it.

The steps are told from the configuration and from what the node has now: an ADD may find another
node. Of a plugin of another project nothing is known.

Longer than 400 lines: a function for each plugin, which say the same things in the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import click

from cni.describe import pairs, walk
from cni.describe.findings import Finding
from cni.describe.network import Network, Part
from cni.kernel import link
from cni.kernel.errors import NetlinkError
from cni.kernel.netlink import Netlink
from cni.kernel.route import show as routes_of
from cni.protocol.errors import CNIError
from cni.protocol.request import check_ifname

from . import configurations, errors, formats, output, plan_ipam, validate
from .completion import Network as NetworkName


class Step(NamedTuple):
    """What a plugin would do; of several words of one plugin in order."""

    plugin: str
    text: str


class Situation(NamedTuple):
    """A plugin's configuration, and the node. `get` looks up a value by its path in any case."""

    network: str
    part: Part
    get: Callable[[str], Any]
    host: Netlink
    ifname: str
    addresses: list[plan_ipam.Allocated]

    def text(self, path: str, default: str = "") -> str:
        """A string of the configuration."""
        value = self.get(path)
        return value if isinstance(value, str) and value else default

    def exists(self, name: str) -> bool:
        """Has the node a link of that name?"""
        return link.find(self.host, name) is not None


Tell = Callable[[Situation], Iterator[str]]


@click.command()
@click.argument("name", metavar="NETWORK", type=NetworkName())
@click.option("-i", "--ifname", default="eth0", show_default=True, help="The interface's name.")
@formats.options
def plan(name: str, ifname: str) -> None:
    """Say what `cni add` would do, step by step, without doing it.

    The addresses are those that are free now. Exit code 1 if the ADD would fail.

    \b
    Example:  cni plan mynet
    See also: cni status, cni validate, cni explain
    """  # noqa: D301 - click wants the control character
    try:
        check_ifname(ifname)
    except CNIError as error:
        raise click.BadParameter(f"{error}", param_hint="-i") from None
    judgement = validate.judge(configurations.files_of_network(name))
    findings = judgement.findings()
    wrong = [each for each in findings if validate.stops_add(each)]
    found = judgement.networks[0] if judgement.networks else None
    steps = steps_of(found, ifname) if found is not None else []
    lines = [f"{output.printable(name, keep='')}: an ADD of {ifname} would"]
    width = len(str(len(steps)))
    lines += [f"  {at:>{width}}. {each.plugin}: {each.text}" for at, each in enumerate(steps, 1)]
    lines += _troubles(findings, wrong)
    formats.present(
        {
            "network": name,
            "ifname": ifname,
            "steps": [each._asdict() for each in steps],
            "fails": bool(wrong),
            "findings": [each.as_dict() for each in findings],
        },
        lines=lines,
        names=[each.text for each in steps],
    )
    if wrong:
        raise SystemExit(1)


def _troubles(findings: list[Finding], wrong: list[Finding]) -> list[str]:
    said = [(each, validate.message_of(each)) for each in findings]
    lines = [f"  it would fail: {text} ({each.place})" for each, text in said if each in wrong]
    lines += [f"  note: {text} ({each.place})" for each, text in said if each not in wrong]
    return lines


def steps_of(found: Network, ifname: str) -> list[Step]:
    """What each plugin of a network would do. Raises NotFound for one without plugins."""
    if not found.parts:
        raise errors.NotFound(f"the network {found.name} has no plugins", f"in {found.file}")
    steps: list[Step] = []
    addresses: list[plan_ipam.Allocated] = []
    with Netlink() as host:
        for part in found.parts:
            situation = Situation(found.name, part, walk.getter(part.node), host, ifname, addresses)
            own, problem = plan_ipam.allocate(situation.network, part, found.version)
            # Later plugins of the chain (portmap, firewall, sbr) work with the addresses of the
            # first.
            addresses.extend(own)
            if not part.type:  # what is wrong with it is said below
                steps.append(Step(part.path or "type", "no plugin can be told from its type"))
                continue
            steps += [Step(part.type, each) for each in plan_ipam.told(part, own, problem)]
            tell = TELLERS.get(part.plugin, _unknown)
            try:
                steps += [Step(part.type, each) for each in tell(situation)]
            # The other plugins can still be told.
            except (NetlinkError, CNIError) as error:
                steps.append(Step(part.type, f"cannot be told: {error}"))
    steps.append(Step("the caller", "keep the result, for CHECK and DEL"))
    return steps


# --- what plugins do ------------------------------------------------------------------------------


def _unknown(situation: Situation) -> Iterator[str]:
    yield f"run the plugin {situation.part.type}, which is of another project"


def _addresses_of(situation: Situation) -> Iterator[str]:
    """Addresses and routes in the container."""
    if not situation.addresses:
        return
    shown = ", ".join(each.shown for each in situation.addresses)
    yield f"put {shown} on {situation.ifname} in the container"
    routes = situation.get("ipam.routes")
    for each in routes if isinstance(routes, list) else ():
        if isinstance(each, dict) and each.get("dst"):
            via = each.get("gw") or _gateway(situation, str(each["dst"]))
            yield f"route {each['dst']} there via {via}" if via else f"route {each['dst']} there"


def _gateway(situation: Situation, destination: str) -> str:
    same = [each for each in situation.addresses if each.is_v4 == (":" not in destination)]
    return same[0].gateway if same else ""


def _masquerade(situation: Situation) -> Iterator[str]:
    if situation.get("ipMasq") is True and situation.addresses:
        backend = situation.text("ipMasqBackend", "iptables (nftables, if iptables is unusable)")
        subnets = ", ".join(dict.fromkeys(each.subnet for each in situation.addresses))
        fixed = situation.get("outboundAddr")
        under = f" under {' and '.join(map(str, fixed))}" if isinstance(fixed, list) else ""
        yield f"masquerade packets that leave {subnets}{under}, with {backend}"


def _forwarding(situation: Situation) -> Iterator[str]:
    if situation.addresses:
        yield "switch on IP forwarding of the node"


def _bridge(situation: Situation) -> Iterator[str]:
    get = situation.get
    name = pairs.bridge_name(situation.part.plugin, get("bridge"), get("vni"))
    vlans = get("vlan") or get("vlanTrunk")
    mtu = f", MTU {get('mtu')}" if get("mtu") else ""
    mtu = ", with the uplink's MTU" if get("mtu") == "auto" else mtu
    if situation.exists(name):
        yield f"use the bridge {name}, which exists"
    else:
        yield f"make the bridge {name}{mtu}{', with VLAN filtering' if vlans else ''}"
    if get("uplinkInterface"):
        carried = ", which carries the VLANs" if vlans else ""
        yield f"make {get('uplinkInterface')} a port of {name}, if it is none{carried}"
    yield f"make a veth pair{mtu}: {situation.ifname} in the container, a port of {name} here"
    settings = [
        text
        for key, text in (
            ("hairpinMode", "hairpin mode"),
            ("portIsolation", "isolated from other isolated ports"),
        )
        if get(key)
    ]
    if vlans:
        settings.append(f"VLAN {get('vlan')}" if get("vlan") else "tagged VLANs")
    if settings:
        yield f"set the port: {', '.join(settings)}"
    if get("macspoofchk"):
        yield "drop frames from the port with another source MAC (nftables)"
    # The plugin then allows no IPAM, so there are no addresses.
    if get("disableContainerInterface"):
        yield f"leave {situation.ifname} down"
        return
    yield from _addresses_of(situation)
    if get("isGateway") or get("isDefaultGateway"):
        yield from _bridge_gateway(situation, name)
    yield from _masquerade(situation)


def _vxlan(situation: Situation) -> Iterator[str]:
    peers = situation.get("peers")
    others = situation.text("group") or ", ".join(peers if isinstance(peers, list) else ())
    if situation.text("peersFrom"):
        yield "publish this node's address in the cluster's store, and read those of the others"
        others = "the nodes that are in the store"
    yield from _bridge(situation)
    yield f"make a VXLAN link (VNI {situation.get('vni')}) from the bridge to {others}"


def _wireguard(situation: Situation) -> Iterator[str]:
    yield from _ptp(situation)
    peers = situation.get("peers")
    count = len(peers) if isinstance(peers, list) else 0
    yield f"make a WireGuard link to {count} nodes, and route their subnets through it"


def _bridge_gateway(situation: Situation, name: str) -> Iterator[str]:
    where = f"{name}.{situation.get('vlan')}" if situation.get("vlan") else name
    for each in situation.addresses:
        if each.gateway:
            yield f"put the gateway's address {each.gateway}/{each.length} on {where}"
            if situation.get("isDefaultGateway"):
                default = "0.0.0.0/0" if each.is_v4 else "::/0"
                yield f"route {default} in the container via {each.gateway}"
    yield from _forwarding(situation)


def _ptp(situation: Situation) -> Iterator[str]:
    kind = situation.text("linkType", "veth")
    mtu = f", MTU {situation.get('mtu')}" if situation.get("mtu") else ""
    yield from _forwarding(situation)
    yield f"make a {kind} pair{mtu}: {situation.ifname} in the container, the other end here"
    yield from _addresses_of(situation)
    for each in situation.addresses:
        if each.gateway:
            yield f"put the gateway's address {each.gateway} on the end here, with a route to it"
    yield from _masquerade(situation)


def _default_link(situation: Situation) -> str:
    for family in (2, 10):  # AF_INET, AF_INET6
        for each in routes_of(situation.host, family):
            if each.dst.length == 0 and each.index:
                return link.get(situation.host, each.index).name
    return "the default route's link, which is missing"


def _default_master(situation: Situation) -> str:
    device = situation.text("runtimeConfig.deviceID")
    return f"the link of the device {device}" if device else _default_link(situation)


def _on_master(situation: Situation) -> Iterator[str]:
    kind = situation.part.plugin
    master = situation.text("master") or _default_master(situation)
    details = {
        "macvlan": f"mode {situation.text('mode', 'bridge')}",
        "macvtap": f"mode {situation.text('mode', 'bridge')}",
        "ipvlan": f"mode {situation.text('mode', 'l2')}",
        "vlan": f"VLAN {situation.get('vlanId') or 0}",
    }[kind]
    mtu = f", MTU {situation.get('mtu')}" if situation.get("mtu") else ""
    place = "the container's " if situation.get("linkInContainer") else ""
    yield f"make the {kind} {situation.ifname} in the container on {place}{master}: {details}{mtu}"
    yield from _addresses_of(situation)
    if situation.get("hostShim"):
        yield f"let the node reach the container by a macvlan of its own on {master}"


def _made(situation: Situation) -> Iterator[str]:
    kinds = {"dummy": "a dummy interface", "tap": "a persistent TAP device"}
    yield f"make {kinds[situation.part.plugin]} {situation.ifname} in the container"
    if situation.text("bridge"):
        yield f"make it a port of the bridge {situation.text('bridge')} there"
    yield from _addresses_of(situation)


def _host_device(situation: Situation) -> Iterator[str]:
    keys = ("device", "hwaddr", "kernelpath", "pciBusID", "runtimeConfig.deviceID")
    given = [f"{key} {situation.text(key)}" for key in keys if situation.text(key)]
    which = given[0] if given else "that the runtime names"
    yield f"move the device ({which}) into the container, as {situation.ifname}"
    yield from _addresses_of(situation)


def _sriov(situation: Situation) -> Iterator[str]:
    which = situation.text("runtimeConfig.deviceID") or situation.text("deviceID")
    which = which or "that the runtime names"
    keys = ("mac", "vlan", "vlanQoS", "vlanProto", "min_tx_rate", "max_tx_rate")
    given = [
        f"{key} {value}"
        for key in (*keys, "spoofchk", "trust", "link_state")
        if (value := situation.get(key)) is not None
    ]
    if given:
        yield f"set for the virtual function {which} on its card: {', '.join(given)}"
    yield f"move the virtual function {which} into the container, as {situation.ifname}"
    yield from _addresses_of(situation)


def _loopback(_situation: Situation) -> Iterator[str]:
    yield "set lo up in the container"


def _portmap(situation: Situation) -> Iterator[str]:
    backend = situation.text("backend", "nftables")
    mappings = situation.get("runtimeConfig.portMappings")
    for each in mappings if isinstance(mappings, list) else ():
        if isinstance(each, dict):
            yield (
                f"publish port {each.get('hostport')} of the node as {each.get('containerport')} "
                f"of the container, with {backend}"
            )
    if not mappings:
        yield f"publish the ports that the runtime gives, with {backend}; none are given here"


def _firewall(situation: Situation) -> Iterator[str]:
    backend = situation.text("backend") or "the backend that is detected"
    if situation.addresses:
        hosts = ", ".join(each.address for each in situation.addresses)
        yield f"let the traffic of {hosts} through the node's firewall, with {backend}"
    policy = situation.text("ingressPolicy", "open")
    if policy != "open":
        yield f"give the bridge the ingress policy {policy}"


def _tuning(situation: Situation) -> Iterator[str]:
    sysctls = situation.part.node.at("sysctl")
    for member in sysctls.node.members if sysctls is not None else ():
        if member.node.kind == "string":
            yield f"set the sysctl {member.key} = {member.node.scalar} in the container"
    for key in ("mac", "mtu", "promisc", "allmulti", "txQLen"):
        value = situation.get(key)
        if value or (key == "allmulti" and value is not None):
            yield f"set {key} of {situation.ifname} to {str(value).lower()}"
    features = situation.get("ethtool")
    for name, on in features.items() if isinstance(features, dict) else ():
        yield f"turn the feature {name} {'on' if on else 'off'}"


def _bandwidth(situation: Situation) -> Iterator[str]:
    for key, what in (("ingressRate", "receives"), ("egressRate", "sends")):
        rate = situation.get(key) or situation.get(f"runtimeConfig.bandwidth.{key}")
        if rate:
            yield f"limit what the container {what} to {rate} bit/s"
    if not situation.get("ingressRate") and not situation.get("egressRate"):
        yield "limit the container to the rates that the runtime gives"


def _sbr(situation: Situation) -> Iterator[str]:
    for each in situation.addresses:
        yield f"give packets from {each.address} a routing table of their own in the container"


def _route_override(situation: Situation) -> Iterator[str]:
    if situation.get("flushroutes"):
        yield f"remove the routes of {situation.ifname} but those to its own subnets"
    else:
        for each in _destinations(situation, "delroutes"):
            yield f"remove the route to {each}"
    if situation.get("flushgateway"):
        yield f"remove the default routes of {situation.ifname}, and the gateways of the result"
    for each in _destinations(situation, "addroutes"):
        yield f"add a route to {each} in the container"


def _destinations(situation: Situation, key: str) -> list[str]:
    routes = situation.get(key)
    shown = []
    for each in routes if isinstance(routes, list) else ():
        if isinstance(each, dict):
            shown.append(f"{each.get('dst')} via {each['gw']}" if each.get("gw") else each["dst"])
    return shown


def _tc_redirect_tap(situation: Situation) -> Iterator[str]:
    name = situation.get("tapName") or "of a derived name"
    yield f"make the TAP device {name} in the container, for a virtual machine"
    yield f"redirect all that arrives at {situation.ifname} to it, and the other way round"


def _vrf(situation: Situation) -> Iterator[str]:
    yield f"make the VRF {situation.text('vrfname')} in the container, if it is missing"
    yield f"put {situation.ifname} into it"


def _bond(situation: Situation) -> Iterator[str]:
    links = situation.get("links")
    names = [str(each.get("name")) for each in links or () if isinstance(each, dict)]
    where = "the container's" if situation.get("linksInContainer") else "the node's"
    yield f"make the bond {situation.ifname} ({situation.text('mode')}) in the container"
    if not situation.get("linksInContainer"):
        yield f"move {', '.join(names)} into the container"
    yield f"make {where} links {', '.join(names)} ports of {situation.ifname}"
    yield from _addresses_of(situation)


def _flannel(situation: Situation) -> Iterator[str]:
    from cni.plugins.flannel import subnet_env

    path = situation.text("subnetFile", "/run/flannel/subnet.env")
    env = subnet_env.load(path)
    subnets = ", ".join(map(str, env.subnets))
    name = situation.text("delegate.type", "bridge")
    yield f"read {path}: the node's subnet is {subnets}, MTU {env.mtu}"
    yield f"call {name} with an address of {subnets}"


def _sample(_situation: Situation) -> Iterator[str]:
    yield "pass the result on"


TELLERS: dict[str, Tell] = {
    "bond": _bond,
    "bridge": _bridge,
    "ptp": _ptp,
    "macvlan": _on_master,
    "macvtap": _on_master,
    "ipvlan": _on_master,
    "vlan": _on_master,
    "dummy": _made,
    "tap": _made,
    "host-device": _host_device,
    "sriov": _sriov,
    "loopback": _loopback,
    "portmap": _portmap,
    "firewall": _firewall,
    "tuning": _tuning,
    "bandwidth": _bandwidth,
    "sbr": _sbr,
    "route-override": _route_override,
    "tc-redirect-tap": _tc_redirect_tap,
    "vrf": _vrf,
    "vxlan": _vxlan,
    "wireguard": _wireguard,
    "flannel": _flannel,
    "sample": _sample,
}
