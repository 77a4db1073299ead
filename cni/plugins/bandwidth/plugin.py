"""bandwidth: limit what a container sends and receives (docs/spec/bandwidth.md).

    container                      host
    eth0 ◀───────────────────────── veth…  its qdisc: the limit of `ingressRate`
    eth0 ─────────────────────────▶ veth…  all that arrives is redirected to
                                    bwp…   an ifb, with the limit of `egressRate`, and goes on

A qdisc limits only what a device sends; hence the detour for the container's own packets.
"""

from __future__ import annotations

from errno import EEXIST
from typing import Any

from ...call import Call, Steps
from ...kernel import link, tc, tcfilter
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import checks, veth
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
        outer = _host_interface(call, host, netns, result)
        if want.ingress:
            _limit_ingress(call, host, outer, want.ingress, want.subnets)
        if want.egress:
            device = _limit_egress(call, host, outer, want.egress, want.subnets)
            result.interfaces.append(Interface(name=device.name, mac=device.mac))
    return result


def _host_interface(call: Call[Conf], host: Netlink, netns: Namespace, result: Result) -> Link:
    """The host's end of the container's veth pair, which prevResult must list. Raises CNIError."""
    if not result.interfaces:
        raise CNIError("no interfaces provided", "prevResult lists none")
    inner = link.find(netns.netlink(), call.ifname)
    if inner is None or inner.kind not in veth.KINDS or not inner.peer:
        reason = "Link not found" if inner is None else f"it is a {inner.kind or 'device'}"
        raise CNIError(
            f"container interface {call.ifname} has no veth peer: {reason}",
            "only what bridge and ptp make can be limited",
        )
    outer = link.find(host, inner.peer)
    # The peer may be in a third namespace; then a link of that index here is of another pair.
    if outer is None or outer.kind != inner.kind or outer.peer != inner.index:
        raise CNIError(f"veth peer with index {inner.peer} is not in host ns")
    if not any(one.name == outer.name and not one.sandbox for one in result.interfaces):
        raise CNIError(
            "no veth peer of container interface found in host ns",
            f"prevResult does not list {outer.name} as an interface of the host",
        )
    return outer


def _limit_ingress(
    call: Call[Conf], host: Netlink, outer: Link, limit: Limit, subnets: Subnets
) -> None:
    """Limit what the host sends to the container. Raises CNIError."""
    _hint(call, "ingress", limit, outer.mtu)
    _require_free(host, outer, tc.ROOT, "create qdisc")
    call.undo.callback(_delete_qdisc, outer.index, tc.ROOT)
    try:
        shape.apply(host, outer, limit, subnets, source=True)
    except NetlinkError as error:
        raise _refused("create qdisc", outer, error) from None


def _limit_egress(
    call: Call[Conf], host: Netlink, outer: Link, limit: Limit, subnets: Subnets
) -> Link:
    """Limit what the host receives from the container: the ifb. Raises CNIError."""
    _hint(call, "egress", limit, outer.mtu)
    device = ifb.create(call, host, outer)
    _require_free(host, outer, tc.INGRESS, "create ingress qdisc")
    call.undo.callback(_delete_qdisc, outer.index, tc.INGRESS)
    what = "create ifb qdisc: create qdisc"
    try:
        shape.apply(host, device, limit, subnets, source=False)
        what = "create ingress qdisc"
        tc.add_ingress(host, outer.index)
        what = "add filter"
        tcfilter.redirect(host, outer.index, tc.INGRESS_HANDLE, device.index)
    except NetlinkError as error:
        raise _refused(what, outer, error) from None
    return device


def _require_free(host: Netlink, outer: Link, where: int, what: str) -> None:
    """Refuse a link that has a qdisc already, because undoing would remove it. Raises CNIError."""
    qdisc = tc.qdisc(host, outer.index, where)
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


def _delete_qdisc(index: int, where: int) -> None:
    with Netlink() as host:  # the verb's own socket is closed by now
        tc.delete_qdisc(host, index, where)


# --- DEL and GC -----------------------------------------------------------------------------------


def delete(call: Call[Any]) -> None:
    """Delete the ifb, whatever the configuration says; the veth's qdiscs go with the veth."""
    with Netlink() as host:
        ifb.delete(host, call.owner)


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Delete the ifbs of this network whose attachment is not in `keep`."""
    steps = Steps()
    with Netlink() as host:
        ifb.collect(host, call.network, call.owners(keep), steps)
    steps.finish()


# --- STATUS and CHECK -----------------------------------------------------------------------------


def status(call: Call[Conf]) -> None:
    """Ready if the kernel can do what the configuration, or a runtime, may ask for."""
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
        outer = _host_interface(call, host, netns, result)
        problems = []
        if want.ingress:
            problems += shape.differences(host, outer, want.ingress, want.subnets, source=True)
        if want.egress:
            problems += _egress_differences(call, host, outer, want.egress, want.subnets)
    checks.fail(problems)


def _egress_differences(
    call: Call[Conf], host: Netlink, outer: Link, limit: Limit, subnets: Subnets
) -> list[str]:
    ifbs = ifb.of(host, call.owner)
    if not ifbs:
        return ["get ifb device: Link not found"]
    device = ifbs[0]
    problems = [] if device.up else [f"Link {device.name} is down"]
    problems += shape.differences(host, device, limit, subnets, source=False)
    filters = tcfilter.show(host, outer.index, tc.INGRESS_HANDLE)
    if not any(each.redirect == device.index for each in filters):
        problems.append(f"Failed to find filter from {outer.name} to {device.name}")
    return problems
