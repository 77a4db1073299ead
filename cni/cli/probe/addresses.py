"""Checks of addresses: gateway, neighbour, the node, the way out, MTU, DNS."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from cni.describe import pairs
from cni.kernel.errors import KernelError
from cni.kernel.route import show as routes_of
from cni.netns.namespace import Namespace
from cni.protocol.address import InvalidAddress, parse_ip

from . import causes
from .causes import Cause
from .packets import Answer, Server, family_of, made_in, ping, why
from .row import Row, failed, passed, skipped
from .situation import Situation

_DNS_PORT = 53
_DNS_WAIT = 2.0  # seconds
# NS of the root, recursion desired: every server can answer it, at least by a refusal.
_QUERY = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01"
_SERVER_PORT = 7007  # of a throw-away host, which uses no other


def loopback(situation: Situation) -> Iterator[Row]:
    """The container's own lo."""
    for family, address in ((4, "127.0.0.1"), (6, "::1")):
        found = _ping(situation, situation.first.namespace, address)
        if found.arrived:
            yield passed("loopback", family, f"{address} answers")
        # Another error of IPv6 means that the kernel has none, which is no fault.
        elif family == 4 or found.reason == "no answer":
            yield failed("loopback", family, f"{address}: {found.reason}", "ip link set lo up")


def gateway(situation: Situation) -> Iterator[Row]:
    """The container's gateway, if it is on this node."""
    for family in situation.families:
        address = situation.first.gateway(family)
        if not address:
            yield skipped("gateway", family, "the network has none")
        elif situation.is_silent:
            yield skipped("gateway", family, situation.beside_the_node)
        elif situation.beside_the_node and situation.is_of_node(address):
            text = f"{address} is this node, and {situation.beside_the_node}"
            yield skipped("gateway", family, text)
        elif situation.may_ask(address):
            yield _gateway(situation, family, address)
        elif _should_be_on_node(situation):
            yield failed(
                "gateway",
                family,
                f"{address} is an address of no link of this node",
                f"`ip address show` shows what has happened to it; cni plan {_name(situation)}",
            )
        else:
            text = f"{address} is not on this node, and was not asked"
            yield skipped("gateway", family, f"{text} (--to {address} does)")


def _should_be_on_node(situation: Situation) -> bool:
    keys = (situation.key(name) for name in ("isGateway", "isDefaultGateway"))
    return pairs.is_gateway(situation.kind, *keys)


def _name(situation: Situation) -> str:
    return situation.network.name


def _gateway(situation: Situation, family: int, address: str) -> Row:
    container = situation.first
    found = _ping(situation, container.namespace, address)
    if found.arrived:
        return passed("gateway", family, f"{address} answers")
    found_causes = list(causes.of_link(situation, container, address))
    entry = causes.neighbour(container.namespace.netlink(), address)
    # ARP needs no rule that accepts it. An answer shows that frames arrive.
    if not found_causes and entry is not None and entry.mac and not entry.failed:
        text = f"{address} is there ({entry.mac}), and does not answer echo requests"
        return passed("gateway", family, f"{text}: a rule of the packet filter drops them")
    unknown = Cause(
        f"no packet comes back ({found.reason})", "`nft list ruleset` shows what drops it"
    )
    cause = causes.best(iter(found_causes), unknown)
    return failed("gateway", family, f"{address} does not answer: {cause.text}", cause.remedy)


def neighbour(situation: Situation) -> Iterator[Row]:
    """Another container of the network on this node; or that it cannot be reached, if so asked."""
    second = situation.second
    for family in situation.families:
        other = second.address(family) if second is not None else None
        if second is None or other is None:
            yield skipped("neighbour", family, situation.alone or "it has no address")
        elif situation.is_silent:
            yield skipped("neighbour", family, situation.beside_the_node)
        elif situation.kind == "macvlan" and situation.key("mode") == "vepa":
            yield skipped("neighbour", family, "in the mode vepa the switch outside connects them")
        else:
            yield _neighbour(situation, family, other.address)


def isolation(situation: Situation) -> str:
    """Why the containers of the network are kept apart; "" if they are not."""
    if situation.key("portIsolation") is True:
        return "portIsolation"
    if situation.key("ingressPolicy", "firewall") == "isolated":
        return "ingressPolicy isolated"
    if situation.kind == "macvlan" and situation.key("mode") == "private":
        return "mode private"
    return ""


def _neighbour(situation: Situation, family: int, address: str) -> Row:
    apart = isolation(situation)
    # Isolated containers do not answer, so the whole time would pass in a good network.
    found = _ping(situation, situation.first.namespace, address, 0.6 if apart else 3.0)
    if apart and found.arrived:
        return failed(
            "neighbour",
            family,
            f"{address} answers, though the network has {apart}",
            f"cni check finds what is different; `nft list ruleset` and `bridge -d link` show "
            f"where {apart} is lost",
        )
    if apart:
        return passed("neighbour", family, f"{address} cannot be reached, as {apart} says")
    if found.arrived:
        return passed("neighbour", family, f"{address} answers")
    unknown = Cause(found.reason, "`nft list ruleset` shows what drops the packets")

    def found_causes() -> Iterator[Cause]:
        yield from causes.of_link(situation, situation.first, address)
        assert situation.second is not None
        yield from causes.of_link(situation, situation.second, address)
        # With ptp the node routes from one container to the other.
        if situation.kind in pairs.ALONE:
            yield from causes.of_forwarding(situation, family)
        yield from causes.of_bridged(situation, family)

    cause = causes.best(found_causes(), unknown)
    return failed("neighbour", family, f"{address} does not answer: {cause.text}", cause.remedy)


def node(situation: Situation) -> Iterator[Row]:
    """From the node to the container."""
    for family in situation.families:
        own = situation.first.address(family)
        assert own is not None
        if situation.beside_the_node:
            text = situation.beside_the_node
            if situation.kind == "macvlan":
                text += ": the node reaches it with hostShim"
            yield skipped("from node", family, text)
            continue
        if not _node_has_way(situation, own.address):
            yield skipped("from node", family, "the node has no address on the network")
            continue
        found = _ping(situation, None, own.address)
        if found.arrived:
            yield passed("from node", family, f"{own.address} answers")
            continue
        unknown = Cause(found.reason, f"`ip route get {own.address}` shows where packets go")
        cause = causes.best(causes.of_link(situation, situation.first, own.address), unknown)
        text = f"{own.address} does not answer: {cause.text}"
        yield failed("from node", family, text, cause.remedy)


def _node_has_way(situation: Situation, address: str) -> bool:
    """Has the node a route to the container that is no default route?

    Without one, packets would leave the node.
    """
    wanted = parse_ip(address)
    kind = socket.AF_INET if len(wanted) == 4 else socket.AF_INET6
    for each in routes_of(situation.node, kind, table=0):
        bits = 8 * len(wanted) - each.dst.length
        same = int.from_bytes(each.dst.ip, "big") >> bits == int.from_bytes(wanted, "big") >> bits
        if each.dst.length and same:
            return True
    return False


def uplink(situation: Situation) -> Iterator[Row]:
    """The node's own address on the link of its default route."""
    for family in situation.families:
        if situation.beside_the_node:
            yield skipped("uplink", family, situation.beside_the_node)
            continue
        address = situation.uplink.addresses.get(family, "") if situation.uplink else ""
        if not address:
            yield skipped("uplink", family, "the node has no default route with an address")
        elif not situation.stays_here(address):
            yield skipped("uplink", family, f"the container has no way to {address} on this node")
        else:
            assert situation.uplink is not None
            found = _ping(situation, situation.first.namespace, address)
            text = f"{address} of {situation.uplink.name}"
            if found.arrived:
                yield passed("uplink", family, f"{text} answers")
                continue
            unknown = Cause(found.reason, "`nft list ruleset` shows what drops it on its way in")
            cause = causes.best(causes.of_link(situation, situation.first, address), unknown)
            yield failed("uplink", family, f"{text} does not answer: {cause.text}", cause.remedy)


def way_out(situation: Situation) -> Iterator[Row]:
    """Packets that the node forwards, and as whose they arrive, at a host behind a link of it."""
    for family in situation.families:
        outside = situation.outside
        address = outside.host.get(family, "") if outside is not None else ""
        if situation.beside_the_node:
            yield skipped("way out", family, situation.beside_the_node)
        elif outside is None or not address:
            yield skipped("way out", family, "there is no room for a throw-away host outside")
        elif situation.first.next_hop(address) is None:
            yield skipped("way out", family, "the container has no default route")
        elif not situation.stays_here(address):
            yield skipped("way out", family, "the container's default gateway is not this node")
        else:
            yield _way_out(situation, family, address)


def _way_out(situation: Situation, family: int, address: str) -> Row:
    outside, container = situation.outside, situation.first
    assert outside is not None
    own = container.address(family)
    assert own is not None
    # A server and not an echo request, since it sees as whose the packets arrive.
    with Server(outside.namespace, family, "tcp", _SERVER_PORT) as server, situation.waiting():
        found = server.asked(container.namespace, address, _SERVER_PORT)
    if not found.arrived:
        return _no_way_out(situation, family, found)
    masqueraded = found.source != own.address
    if situation.key("ipMasq") is True and not masqueraded:
        rules = causes.of_rules(container, "masquerading")
        unknown = Cause(
            "no rule masquerades it", "`nft list ruleset` shows which rule comes before"
        )
        cause = causes.best(rules, unknown)
        text = f"packets leave with {own.address}, though ipMasq is set: {cause.text}"
        return failed("way out", family, text, cause.remedy)
    how = "masqueraded" if masqueraded else f"as {own.address}, to which hosts need a route"
    return passed("way out", family, f"forwarded, {how}")


def _no_way_out(situation: Situation, family: int, found: Answer) -> Row:
    unknown = Cause(found.reason, "`nft list ruleset` shows what drops the packets")
    cause = causes.best(causes.of_forwarding(situation, family), unknown)
    situation.not_forwarded[family] = cause.text
    text = f"nothing is forwarded to a host behind the node: {cause.text}"
    return failed("way out", family, text, cause.remedy)


def asked_for(situation: Situation) -> Iterator[Row]:
    """The addresses that the operator has named."""
    for address in situation.beyond:
        family = family_of(address)
        if situation.is_silent:
            yield skipped("--to", family, situation.beside_the_node)
        elif situation.first.address(family) is None:
            yield skipped("--to", family, f"{address}: the container has no such address")
        else:
            found = _ping(situation, situation.first.namespace, address)
            if found.arrived:
                yield passed("--to", family, f"{address} answers")
                continue
            remedy = f"does it answer the node? `ping {address}`; if so, the row way out says more"
            yield failed("--to", family, f"{address}: {found.reason}", remedy)


def mtu(situation: Situation) -> Iterator[Row]:
    """Packets of full size that may not be fragmented, and none above."""
    container = situation.first
    size = container.mtu()
    for family in situation.families:
        if situation.is_silent:
            yield skipped("MTU", family, situation.beside_the_node)
            continue
        targets = dict(_targets(situation, family))
        if not targets:
            yield skipped("MTU", family, "there is nothing on this node to send to")
            continue
        yield _mtu(situation, family, size, targets)


def _targets(situation: Situation, family: int) -> Iterator[tuple[str, str]]:
    second, outside = situation.second, situation.outside
    other = second.address(family) if second is not None else None
    if other is not None and not isolation(situation) and situation.key("mode") != "vepa":
        yield "the neighbour", other.address
    gateway_address = situation.first.gateway(family)
    here = bool(gateway_address) and situation.is_of_node(gateway_address)
    if here and not situation.beside_the_node:
        yield "the gateway", gateway_address
    address = outside.host.get(family, "") if outside is not None else ""
    if address and not situation.beside_the_node and situation.stays_here(address):
        yield "a host outside", address


def _mtu(situation: Situation, family: int, size: int, targets: dict[str, str]) -> Row:
    namespace = situation.first.namespace
    reached = []
    for what, address in targets.items():
        small = _ping(situation, namespace, address, 2.0)
        if not small.arrived:
            continue  # another row says so
        found = _ping(situation, namespace, address, 2.5, size, whole=True)
        if not found.arrived:
            return _too_large(situation, family, size, what, found)
        # The kernel refuses it at once, if the MTU is still that of the ADD.
        over = _ping(situation, namespace, address, 0.3, size + 1, whole=True)
        if over.reason != "too large":
            text = f"a packet of {size + 1} bytes is sent to {what}, though the MTU is {size}"
            return failed("MTU", family, text, f"ip link show: is the MTU still {size}?")
        reached.append(what)
    if not reached:
        return skipped("MTU", family, "nothing answers")
    last = f" and {reached[-1]}" if len(reached) > 1 else reached[-1]
    shown = ", ".join(reached[:-1]) + last
    return passed("MTU", family, f"{size} bytes reach {shown}; more is refused")


def _too_large(situation: Situation, family: int, size: int, what: str, found: Answer) -> Row:
    outside, name = situation.outside, situation.main.type
    if found.reason == "too large" and what == "a host outside" and outside is not None:
        link = situation.uplink.name if situation.uplink is not None else "the way out"
        return failed(
            "MTU",
            family,
            f"packets of {size} bytes are refused on their way out: {link} takes {outside.mtu}",
            f'"mtu": {outside.mtu} in the configuration of {name}',
        )
    why_not = "refused" if found.reason == "too large" else "lost"
    return failed(
        "MTU",
        family,
        f"packets of {size} bytes to {what} are {why_not}, smaller ones arrive",
        f"a link between has a smaller MTU (`ip link`): give it {size}, or {name} a smaller mtu",
    )


def dns(situation: Situation) -> Iterator[Row]:
    """The DNS servers of the result."""
    outcome = situation.first.outcome
    servers = outcome.result.dns.nameservers if outcome is not None else []
    if not servers:
        yield skipped("DNS", 0, "the result names no server")
    for server in servers or []:
        try:
            family = family_of(server)
            allowed = situation.may_ask(server)
        except InvalidAddress:
            yield failed("DNS", 0, f"{server} is no address", "put the network's dns right")
            continue
        # Nothing is sent beyond this node without --to.
        if not allowed:
            text = f"{server} is not on this node, and was not asked (--to {server} does)"
            yield skipped("DNS", family, text)
            continue
        reason = _dns(situation, server)
        if not reason:
            yield passed("DNS", family, f"{server} answers")
            continue
        remedy = f"start the server at {server}, or put the dns of the network right"
        yield failed("DNS", family, f"{server}: {reason}", remedy)


def _dns(situation: Situation, server: str) -> str:
    """Why a server does not answer; "" if it does."""
    family = family_of(server)
    try:
        namespace = situation.first.namespace
        with made_in(namespace, family, socket.SOCK_DGRAM) as sock, situation.waiting():
            sock.settimeout(_DNS_WAIT)
            sock.connect((server, _DNS_PORT))
            sock.send(_QUERY)
            return "" if sock.recv(4096)[:2] == _QUERY[:2] else "its answer makes no sense"
    except TimeoutError:
        return "no answer"
    except (OSError, KernelError) as error:
        return why(error) if isinstance(error, OSError) else str(error)


def _ping(
    situation: Situation,
    namespace: Namespace | None,
    address: str,
    timeout: float = 3.0,
    size: int = 84,
    *,
    whole: bool = False,
) -> Answer:
    try:
        with situation.waiting():
            return ping(namespace, address, size=size, whole=whole, timeout=timeout)
    except OSError as error:
        return Answer(False, f"no socket could be made: {why(error)}")
