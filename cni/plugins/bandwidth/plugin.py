"""bandwidth: limit what a container sends and receives (docs/spec/bandwidth.md).

    container                      host
    eth0 ◀───────────────────────── veth…  its qdisc: the limit of `ingressRate`
    eth0 ─────────────────────────▶ veth…  all that arrives is redirected to
                                    bwp…   an ifb, with the limit of `egressRate`, and goes on

A qdisc limits only what a device sends; hence the detour for the container's own packets. An
interface without an end on the node (macvlan, ipvlan, vlan …) is limited in the container, with the
directions exchanged: its qdisc has the limit of `egressRate`, and what it receives goes through the
ifb.
"""

from __future__ import annotations

from errno import EEXIST
from typing import Any, NamedTuple

from ...call import Call, Steps
from ...kernel import link, tc, tcfilter
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import checks, unlink, veth
from . import ifb, shape
from .settings import Conf, validated
from .shape import Limit, Subnets

# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Limit the interface; the result is the prevResult, with the ifb if there is one."""
    want = validated(call.conf)
    result = call.prev_result()
    if result is None:
        raise CNIError(
            "must be called as chained plugin", "it limits the veth of a plugin before it in a list"
        )
    if not (want.ingress or want.egress):
        return result
    netns = call.open_netns()
    with Netlink() as host:
        place = _place(call, host, netns, result)
        direct, detour = (
            (want.egress, want.ingress) if place.inside else (want.ingress, want.egress)
        )
        if direct:
            _limit_sent(call, place, direct, want.subnets)
        if detour:
            device = _limit_received(call, place, detour, want.subnets)
            sandbox = call.netns if place.inside else ""
            result.interfaces.append(Interface(name=device.name, mac=device.mac, sandbox=sandbox))
    return result


class _Place(NamedTuple):
    """The link that is limited: the node's end of a pair, or (`inside`) the container's own."""

    sock: Netlink
    device: Link
    inside: bool

    @property
    def sent(self) -> str:
        """What the device sends, in words of the configuration."""
        return "egress" if self.inside else "ingress"

    @property
    def received(self) -> str:
        """What the device receives."""
        return "ingress" if self.inside else "egress"


def _place(call: Call[Conf], host: Netlink, netns: Namespace, result: Result) -> _Place:
    """Where to limit the interface that prevResult lists. Raises CNIError."""
    if not result.interfaces:
        raise CNIError("no interfaces provided", "prevResult lists none")
    inner = link.find(netns.netlink(), call.ifname)
    if inner is None or inner.kind == "bridge" or inner.flags & link.IFF_LOOPBACK:
        reason = "Link not found" if inner is None else f"it is a {inner.kind or 'device'}"
        raise CNIError(
            f"container interface {call.ifname} has no veth peer: {reason}",
            "what main plugins make can be limited",
        )
    if inner.kind not in veth.KINDS:
        return _Place(netns.netlink(), inner, True)
    outer = link.find(host, inner.peer) if inner.peer else None
    # If the peer is in a third namespace, the link of that index here belongs to another pair.
    if outer is None or outer.kind != inner.kind or outer.peer != inner.index:
        raise CNIError(f"veth peer with index {inner.peer} is not in host ns")
    if not any(one.name == outer.name and not one.sandbox for one in result.interfaces):
        raise CNIError(
            "no veth peer of container interface found in host ns",
            f"prevResult does not list {outer.name} as an interface of the host",
        )
    return _Place(host, outer, False)


def _limit_sent(call: Call[Conf], place: _Place, limit: Limit, subnets: Subnets) -> None:
    """Limit what the device sends. Raises CNIError."""
    device = place.device
    _hint(call, place.sent, limit, device.mtu)
    _require_free(place.sock, device, tc.ROOT, "create qdisc")
    call.undo.callback(_delete_qdisc, _path(call, place), device.index, tc.ROOT)
    try:
        shape.apply(place.sock, device, limit, subnets, source=not place.inside)
    except NetlinkError as error:
        raise _refused("create qdisc", device, error) from None


def _limit_received(call: Call[Conf], place: _Place, limit: Limit, subnets: Subnets) -> Link:
    """Limit what the device receives, on the ifb, which is returned. Raises CNIError."""
    sock, device, path = place.sock, place.device, _path(call, place)
    _hint(call, place.received, limit, device.mtu)
    detour = ifb.create(call, sock, device, path)
    _require_free(sock, device, tc.INGRESS, "create ingress qdisc")
    call.undo.callback(_delete_qdisc, path, device.index, tc.INGRESS)
    what = "create ifb qdisc: create qdisc"
    try:
        shape.apply(sock, detour, limit, subnets, source=place.inside)
        # only now, since packets that are redirected to an ifb without its limit would be unlimited
        what = "create ingress qdisc"
        tc.add_ingress(sock, device.index)
        what = "add filter"
        tcfilter.redirect(sock, device.index, tc.INGRESS_HANDLE, detour.index)
    except NetlinkError as error:
        raise _refused(what, device, error) from None
    return detour


def _path(call: Call[Conf], place: _Place) -> str:
    """The namespace of the place, for undoing; empty for the node's."""
    return call.netns if place.inside else ""


def _require_free(host: Netlink, outer: Link, where: int, what: str) -> None:
    """Refuse a link that has a qdisc already, because undoing would remove it. Raises CNIError."""
    qdisc = tc.qdisc(host, outer.index, where)
    # without a handle it is the default one, which the kernel has attached by itself
    if qdisc is not None and qdisc.handle:
        raise _refused(what, outer, NetlinkError(EEXIST))


def _refused(what: str, outer: Link, error: NetlinkError) -> CNIError:
    details = ""
    if error.errno == EEXIST:
        details = f"{outer.name} has a queueing discipline already: see `tc qdisc show`"
    return CNIError(f"{what}: {error}", details)


def _hint(call: Call[Conf], direction: str, limit: Limit, mtu: int) -> None:
    if limit.bucket(mtu).burst < mtu:
        call.log(
            f"bandwidth: {direction}Burst is {limit.burst} bytes: no packet larger than that "
            f"passes, and the MTU is {mtu}"
        )


def _delete_qdisc(path: str, index: int, where: int) -> None:
    if path:  # the verb's own sockets are closed by now
        with Namespace.open(path) as netns:
            tc.delete_qdisc(netns.netlink(), index, where)
        return
    with Netlink() as host:
        tc.delete_qdisc(host, index, where)


# --- DEL and GC -----------------------------------------------------------------------------------


def delete(call: Call[Any]) -> None:
    """Delete the ifb, whatever the configuration says; the veth's qdiscs go with the veth."""
    steps = Steps()
    with Netlink() as host:
        steps.run(ifb.delete, host, call.owner)
    steps.run(_delete_inside, call)
    steps.finish()


def _delete_inside(call: Call[Any]) -> None:
    """Remove the limits of an interface without an end on the node: ifb and qdiscs.

    If the prevResult has an interface on the node, the limits are there, and none in the container.
    """
    previous = call.prev_result()
    if previous is not None and any(not entry.sandbox for entry in previous.interfaces):
        return
    netns = call.find_netns()
    if netns is None:
        return
    sock = netns.netlink()
    ifbs = ifb.of(sock, call.owner)
    inner = link.find(sock, call.ifname)
    if inner is not None and inner.kind not in veth.KINDS:
        root, received = (tc.qdisc(sock, inner.index, where) for where in (tc.ROOT, tc.INGRESS))
        if root is not None and root.handle == shape.ROOT and root.kind in ("tbf", "htb"):
            tc.delete_qdisc(sock, inner.index, tc.ROOT)
        targets = {each.index for each in ifbs}
        if received is not None and targets and _redirections(sock, inner) <= targets:
            tc.delete_qdisc(sock, inner.index, tc.INGRESS)
    for device in ifbs:
        unlink.delete(netns, device.index)


def _redirections(sock: Netlink, device: Link) -> set[int]:
    """The indexes to which a link's ingress filters redirect; 0 for one that does not redirect."""
    return {each.redirect for each in tcfilter.show(sock, device.index, tc.INGRESS_HANDLE)}


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Delete the ifbs of this network whose attachment is not in `keep`."""
    steps = Steps()
    with Netlink() as host:
        ifb.collect(host, call.network, call.owners(keep), steps)
    steps.finish()


# --- STATUS and CHECK -----------------------------------------------------------------------------


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has what the configuration, or a runtime, may request."""
    want = validated(call.conf)
    kinds = ["tbf", "htb"] if want.subnets.prefixes else ["tbf"]
    with Netlink() as host:
        missing = [f"the qdisc {kind}" for kind in kinds if not tc.has_qdisc(host, kind)]
        if not link.has_kind(host, "ifb"):
            missing.append("the link kind ifb")
    if missing:
        raise NotAvailable(
            f"this kernel lacks {' and '.join(missing)}",
            "load the modules sch_tbf, sch_htb, ifb; or install the kernel's package that has them",
        )


def check(call: Call[Conf]) -> None:
    """Compare the limits with the configuration; every difference is reported."""
    want = validated(call.conf)
    result = call.prev_result()
    if result is None:
        raise CNIError("must be called as a chained plugin")
    netns = call.open_netns()
    with Netlink() as host:
        place = _place(call, host, netns, result)
        direct, detour = (
            (want.egress, want.ingress) if place.inside else (want.ingress, want.egress)
        )
        problems = []
        if direct:
            problems += shape.differences(
                place.sock, place.device, direct, want.subnets, source=not place.inside
            )
        if detour:
            problems += _detour_differences(call, place, detour, want.subnets)
    checks.fail(problems)


def _detour_differences(
    call: Call[Conf], place: _Place, limit: Limit, subnets: Subnets
) -> list[str]:
    sock, limited = place.sock, place.device
    ifbs = ifb.of(sock, call.owner)
    if not ifbs:
        return ["get ifb device: Link not found"]
    device = ifbs[0]
    problems = [] if device.up else [f"Link {device.name} is down"]
    problems += shape.differences(sock, device, limit, subnets, source=place.inside)
    if device.index not in _redirections(sock, limited):
        problems.append(f"Failed to find filter from {limited.name} to {device.name}")
    return problems
