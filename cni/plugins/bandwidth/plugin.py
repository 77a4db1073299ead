"""bandwidth: limit what a container sends and receives (docs/spec/bandwidth.md).

    container                      host
    eth0 ◀───────────────────────── veth…  its qdisc: the limit of `ingressRate`
    eth0 ─────────────────────────▶ veth…  all that arrives is redirected to
                                    bwp…   an ifb, with the limit of `egressRate`, and goes on

A qdisc limits only what a device sends; hence the detour for the container's own packets.
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
from ...owner import Owner, digest, network_group, network_key
from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import checks, unlink, veth
from . import shape
from .shape import Limit, Subnets

LATENCY_MAX = 10_000  # ms
BURST_MAX = 0xFFFFFFFF  # bytes
# What runtimes send that know only a rate: "no limit", as the largest numbers of 32 bits. In bits.
NO_BURST = (0x7FFFFFFF, 0xFFFFFFFF)

_IFB_PREFIX = "bwp"
_IFB_LENGTH = 15


class Keys(config.NetConf):
    """What may stand in the configuration or in runtimeConfig.bandwidth: bits, bits a second."""

    ingress_rate: int | None = None
    ingress_burst: int | None = None
    egress_rate: int | None = None
    egress_burst: int | None = None
    shaped_subnets: list[str] | None = None
    unshaped_subnets: list[str] | None = None
    latency: int | None = None

    def limits(self) -> dict[str, int | None]:
        """The four keys that make limits, as they are spelled."""
        return {
            "ingressRate": self.ingress_rate,
            "ingressBurst": self.ingress_burst,
            "egressRate": self.egress_rate,
            "egressBurst": self.egress_burst,
        }


class Runtime(config.Folded):
    bandwidth: Keys | None = None


class Conf(Keys):
    runtime_config: Runtime | None = None


class Settings(NamedTuple):
    """The validated configuration: a limit a direction, or None."""

    ingress: Limit | None
    egress: Limit | None
    subnets: Subnets


def settings(conf: Conf) -> Settings:
    """What is to be limited. Raises CNIError.

    As soon as one of the four keys is in the configuration, runtimeConfig's are ignored.
    """
    runtime = (conf.runtime_config and conf.runtime_config.bandwidth) or Keys()
    given = any(value is not None for value in conf.limits().values())
    limits = conf.limits() if given else runtime.limits()
    for key, value in limits.items():
        if value is not None and not 0 <= value < 1 << 64:
            raise CNIError(
                "failed to parse network configuration: json: cannot unmarshal number "
                f"{value} into field {key} of type uint64"
            )
    latency = conf.latency if conf.latency is not None else runtime.latency
    if latency is not None and not 1 <= latency <= LATENCY_MAX:
        raise CNIError(f"invalid latency {latency}", f"latency is 1 to {LATENCY_MAX} milliseconds")
    return Settings(
        _limit("ingress", limits, latency),
        _limit("egress", limits, latency),
        _subnets(conf, runtime),
    )


def _limit(direction: str, limits: dict[str, int | None], latency: int | None) -> Limit | None:
    rate, burst = limits[f"{direction}Rate"] or 0, limits[f"{direction}Burst"] or 0
    if latency is not None and rate and burst in NO_BURST:
        burst = 0
    if rate and not burst and latency is None:
        raise CNIError(
            "if rate is set, burst must also be set",
            f"give {direction}Burst in bits; or `latency` in ms, which comes with a default burst",
        )
    if burst and not rate:
        raise CNIError("if burst is set, rate must also be set", f"give {direction}Rate in bit/s")
    if burst // 8 >= BURST_MAX:
        raise CNIError("burst cannot be more than 4GB", f"{direction}Burst is {burst} bits")
    if not rate:
        return None
    if rate < 8 or 0 < burst < 8:
        raise CNIError(
            f"{direction}Rate and {direction}Burst must be at least 8",
            f"they are {rate} bit/s and {burst} bits: less than a byte",
        )
    return Limit(rate // 8, burst // 8, shape.LATENCY if latency is None else latency)


def _subnets(conf: Conf, runtime: Keys) -> Subnets:
    """The subnets of the configuration, or else of runtimeConfig. Raises CNIError."""
    own = conf.shaped_subnets is not None or conf.unshaped_subnets is not None
    source: Keys = conf if own else runtime
    shaped, unshaped = source.shaped_subnets or [], source.unshaped_subnets or []
    if shaped and unshaped:
        raise CNIError(
            "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be "
            "discarded"
        )
    prefixes: list[Prefix] = []
    for text in shaped or unshaped:
        try:
            prefix = Prefix.parse(text).network
        except InvalidAddress as error:
            raise CNIError(
                f'bad subnet "{text}" provided, details {error.msg}', "a subnet is like 10.0.0.0/8"
            ) from None
        if prefix not in prefixes:
            prefixes.append(prefix)
    return Subnets(prefixes, shaped=bool(shaped))


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Limit; the result is prevResult and, if the container's sending is limited, the ifb."""
    want = settings(call.conf)
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
            ifb = _limit_egress(call, host, outer, want.egress, want.subnets)
            result.interfaces.append(Interface(name=ifb.name, mac=ifb.mac))
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
    # a link of that number, but of another pair: the peer is in a third namespace
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
    ifb = _create_ifb(call, host, outer)
    _require_free(host, outer, tc.INGRESS, "create ingress qdisc")
    call.undo.callback(_delete_qdisc, outer.index, tc.INGRESS)
    what = "create ifb qdisc: create qdisc"
    try:
        shape.apply(host, ifb, limit, subnets, source=False)
        what = "create ingress qdisc"
        tc.add_ingress(host, outer.index)
        what = "add filter"
        tcfilter.redirect(host, outer.index, tc.INGRESS_HANDLE, ifb.index)
    except NetlinkError as error:
        raise _refused(what, outer, error) from None
    return ifb


def _require_free(host: Netlink, outer: Link, where: int, what: str) -> None:
    """Nobody's qdisc may be there: undoing would remove it. Raises CNIError."""
    found = tc.qdisc(host, outer.index, where)
    if found is not None and found.handle:
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
    with Netlink() as host:  # the verb's own is closed by now
        tc.delete_qdisc(host, index, where)


# --- the ifb --------------------------------------------------------------------------------------


def ifb_name(network: str, container_id: str, ifname: str = "") -> str:
    """The reference's name; with `ifname` the one for a container's further interfaces.

    The reference has one name for all interfaces of a container in a network (spec: "IFB name").
    """
    seed = f"{network}{container_id}" + (f"\0{ifname}" if ifname else "")
    return (_IFB_PREFIX + digest(seed))[:_IFB_LENGTH]


def _names(owner: Owner) -> tuple[str, str]:
    network, container_id, ifname = owner
    return ifb_name(network, container_id), ifb_name(network, container_id, ifname)


def _create_ifb(call: Call[Conf], host: Netlink, outer: Link) -> Link:
    """Make the attachment's ifb, marked with its owner. Raises CNIError.

    One that is ours already, though nothing comes from our veth, is of an ADD that was killed.
    """
    problem = NetlinkError(EEXIST)
    for name in _names(call.owner):
        stale = link.find(host, name)
        if stale is not None and stale.alias == call.owner.alias:
            if tc.qdisc(host, outer.index, tc.INGRESS) is not None:
                break
            link.delete(host, stale.index)
        try:
            link.create_ifb(host, name, mtu=outer.mtu, group=network_group(call.network))
        except NetlinkError as error:
            problem = error
            if error.errno == EEXIST:
                continue
            break
        made = link.get(host, name)
        call.undo.callback(_undo_ifb, made.index)
        link.change(host, made.index, alias=call.owner.alias, group=0)
        return made
    raise CNIError(
        f"adding link: {problem}",
        f"{call.ifname} has an ifb already: a DEL removes it"
        if problem.errno == EEXIST
        else "does the kernel have ifb (CONFIG_IFB)?",
    )


def _undo_ifb(index: int) -> None:
    with Netlink() as host:  # the verb's own is closed by now
        link.delete(host, index)


def delete(call: Call[Any]) -> None:
    """Delete the ifb, whatever the configuration says; the veth's qdiscs go with the veth."""
    with Netlink() as host:
        _delete_ifbs(host, call.owner)


def _delete_ifbs(host: Netlink, owner: Owner) -> None:
    """One without alias is the reference's, or of an ADD that was killed: ours, unless we have one.

    Then it is that of another interface of the container, under the name they share.
    """
    found = [one for one in (link.find(host, name) for name in _names(owner)) if one is not None]
    mine = [one for one in found if one.alias == owner.alias]
    for one in mine or [one for one in found if one.kind == "ifb" and not one.alias]:
        unlink.delete_here(one.index)


# --- GC -------------------------------------------------------------------------------------------


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Delete the ifbs of this network whose attachment is not kept, and dead ones of Go's."""
    owners = call.owners(keep)
    kept = {owner.alias_key for owner in owners}
    names = {name for owner in owners for name in _names(owner)}
    prefix, group = f"cni:{network_key(call.network)}-", network_group(call.network)
    steps = Steps()
    with Netlink() as host:
        links = link.list_all(host)
        for one in links:
            if one.kind != "ifb" or not one.name.startswith(_IFB_PREFIX):
                continue
            if one.alias:
                if one.alias.startswith(prefix) and one.alias.split(" ", 1)[0] not in kept:
                    steps.run(link.delete, host, one.index)
            elif one.name in names:
                continue
            elif one.group == group:  # of an ADD that was killed
                steps.run(link.delete, host, one.index)
            elif not one.group:
                steps.run(_delete_if_dead, host, one, links)
    steps.finish()


def _delete_if_dead(host: Netlink, ifb: Link, links: list[Link]) -> None:
    """Delete an ifb of the reference, of whatever network, whose veth is gone.

    Its name does not tell the network. It has sent packets, so its ADD was complete; and nobody
    redirects any to it, so its container's interface is gone, and nothing can use it again.
    """
    if len(ifb.name) != _IFB_LENGTH or not link.packets_sent(host, ifb.index):
        return
    for one in links:
        if one.kind in veth.KINDS:
            filters = tcfilter.show(host, one.index, tc.INGRESS_HANDLE)
            if any(found.redirect == ifb.index for found in filters):
                return
    link.delete(host, ifb.index)


# --- STATUS and CHECK -----------------------------------------------------------------------------


def status(call: Call[Conf]) -> None:
    """Ready if the kernel can do what the configuration, or a runtime, may ask for."""
    want = settings(call.conf)
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
    want = settings(call.conf)
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
    found = [link.find(host, name) for name in _names(call.owner)]
    mine = [one for one in found if one is not None and one.alias in ("", call.owner.alias)]
    if not mine:
        return ["get ifb device: Link not found"]
    ifb = max(mine, key=lambda one: one.alias)  # the one that is ours for sure
    problems = [] if ifb.up else [f"Link {ifb.name} is down"]
    problems += shape.differences(host, ifb, limit, subnets, source=False)
    filters = tcfilter.show(host, outer.index, tc.INGRESS_HANDLE)
    if not any(one.redirect == ifb.index for one in filters):
        problems.append(f"Failed to find filter from {outer.name} to {ifb.name}")
    return problems
