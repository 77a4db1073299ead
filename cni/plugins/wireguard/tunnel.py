"""wireguard: a node's WireGuard link of a network: made by the first ADD, removed after the last
container.

Its users are pairs of the network, each of which has a route in a routing table of the network's
own, to which no rule leads. The kernel removes that route together with the pair; so whether the
link is in use is seen in a list of the network's pairs alone. The lock of device.py keeps ADD and
removal apart. Peers of this link, and routes through it, are those of the configuration or of the
store: others are removed.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from errno import EADDRINUSE, EEXIST
from typing import Any, NamedTuple

from ...call import Call
from ...kernel import link, route, uapi, wireguard
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.route import Route
from ...kernel.wireguard import Control, Device
from ...owner import network_group
from ...protocol.address import Prefix
from ...protocol.errors import CNIError
from ...protocol.result import Result
from ..bridge import device
from ..shared import unlink, veth
from . import keys
from .settings import SORT, Peer, Settings, overhead

_MTU_UNKNOWN = 1500  # while there is no route to the other nodes


# --- ADD ------------------------------------------------------------------------------------------


def ensure(call: Call[Any], host: Netlink, want: Settings) -> bytes:
    """Make the link, or change it to the configuration; sets `want.mtu`, returns the public key.

    The caller holds the lock until its pair is there. Raises CNIError.
    """
    made = SORT.find(host, want.network)
    own = known_key(made, want)
    if made is not None and own and not want.are_peers_new:
        want.mtu = want.mtu or made.mtu
        return own
    private = keys.private(want.key_file)
    shared = {
        each.key: keys.preshared(each.preshared_file) for each in want.peers if each.preshared_file
    }
    want.mtu = want.mtu or fitting(host, want)
    try:
        return _complete(call, host, made or _create(call, host, want), want, private, shared)
    except (NetlinkError, LinkNotFound) as error:
        raise _failed(want, error) from None


def ensure_key(call: Call[Any], host: Netlink, want: Settings) -> bytes:
    """Make the link and give it its private key, unless it has it; returns the public key.

    The caller holds the lock. Raises CNIError.
    """
    made = SORT.find(host, want.network)
    own = known_key(made, want)
    if own:
        return own
    private = keys.private(want.key_file)
    try:
        made = made or _create(call, host, want)
        with Netlink(uapi.NETLINK_GENERIC) as sock:
            control = Control(sock)
            before = control.get(made.index)
            if before.has_key(private):
                return before.public
            if made.alias:
                _keep_former(call, host, made, before, want)
            _set_device(control, made, want, private)
            return control.get(made.index).public
    except (NetlinkError, LinkNotFound) as error:
        raise _failed(want, error) from None


def known_key(made: Link | None, want: Settings) -> bytes:
    """The public key of a link that is set up as configured; else empty."""
    if made is not None and made.alias == want.mark and made.up:
        return keys.noted_public(want.key_file)
    return b""


def _failed(want: Settings, error: Exception) -> CNIError:
    return CNIError(f"failed to set up the WireGuard link {SORT.name(want.network)}: {error}")


def fitting(host: Netlink, want: Settings) -> int:
    """The largest MTU whose packets fit, encrypted, into those of the links to other nodes."""
    endpoints = [each.endpoint for each in want.peers if each.endpoint is not None]
    links = {want.uplink} if want.uplink else set()
    for each in endpoints:
        try:
            way = route.lookup(host, each.ip)
        except NetlinkError:
            continue  # no route yet; there may be one later
        if way.kind != route.LOCAL:
            links.add(way.link)
    found = [link.find(host, each) for each in links or set(route.default_links(host)) if each]
    mtu = min((each.mtu for each in found if each), default=_MTU_UNKNOWN)
    added = want.overhead or overhead(endpoints)
    return min(max(mtu - added, veth.MTU_MIN), veth.MTU_MAX)


def _create(call: Call[Any], host: Netlink, want: Settings) -> Link:
    """Make the link, unless another ADD has made it by now."""
    name = SORT.name(want.network)
    call.undo.callback(remove_unused, call)
    try:
        link.create(host, wireguard.KIND, name, mtu=want.mtu, group=network_group(want.network))
    except NetlinkError as error:
        if not link.is_name_taken(error):
            from ...kernel import link_advice

            advice = link_advice.of(error, wireguard.KIND, name)
            raise CNIError(f"failed to make the WireGuard link {name}: {error}", advice) from None
        call.undo.withdraw()
        SORT.find(host, want.network)
    return link.get(host, name)


def _complete(
    call: Call[Any],
    host: Netlink,
    made: Link,
    want: Settings,
    private: bytes,
    shared: dict[bytes, bytes],
) -> bytes:
    """Set key, port, peers, routes and MTU; returns the public key."""
    with Netlink(uapi.NETLINK_GENERIC) as sock:
        control = Control(sock)
        before = control.get(made.index)
        if made.alias and made.alias != want.mark:
            _keep_former(call, host, made, before, want)
        if before.port != want.conf.listen_port or not before.has_key(private):
            _set_device(control, made, want, private)
            before = control.get(made.index)
        keys.note_public(want.key_file, before.public)
        others = want.others(before.public)
        _set_peers(control, made.index, before, others, shared)
    try:
        link.change(host, made.index, up=True, mtu=want.mtu)
    except NetlinkError as error:
        raise _port_taken(error, want) from None
    set_routes(host, made, others)
    link.change(host, made.index, alias=want.mark, group=0)
    return before.public


def _set_device(control: Control, made: Link, want: Settings, private: bytes) -> None:
    try:
        control.set_device(made.index, private, want.conf.listen_port)
    except NetlinkError as error:
        raise _port_taken(error, want) from None


def _port_taken(error: NetlinkError, want: Settings) -> Exception:
    if error.errno != EADDRINUSE:
        return error
    port = want.conf.listen_port
    return CNIError(
        f"failed to set up the WireGuard link: UDP port {port} is in use",
        f"`ss -lunp sport = {port}` and `wg show all listen-port` tell by whom: each network of a "
        "node needs a `listenPort` of its own",
    )


def _set_peers(
    control: Control,
    index: int,
    before: Device,
    others: list[Peer],
    shared: dict[bytes, bytes],
) -> None:
    wanted = [
        wireguard.Peer(
            each.key, each.endpoint, each.subnets, each.keepalive, shared.get(each.key, b"")
        )
        for each in others
    ]
    # packets may have shown the kernel a newer endpoint of a peer that it knows
    wanted = [
        each._replace(endpoint=None) if other.is_known and each.public in before.peers else each
        for each, other in zip(wanted, others, strict=True)
    ]
    control.agree(index, before.peers, wanted)


def _wanted_routes(others: list[Peer]) -> set[Prefix]:
    return {subnet for each in others for subnet in each.subnets}


def set_routes(host: Netlink, made: Link, others: list[Peer]) -> None:
    """Route the peers' subnets, and nothing else, through the link. Raises NetlinkError, and
    CNIError after all have been tried.

    A route that the node has already is not replaced: it may be what the node is reached by.
    """
    present = _routes(host, made.index)
    wanted = _wanted_routes(others)
    route.delete_all(host, [entry for dst, entry in present.items() if dst not in wanted])
    missing = sorted(wanted - present.keys())
    failure: CNIError | None = None
    for dst in missing:
        scope = route.SCOPE_LINK if dst.is_v4 else route.SCOPE_UNIVERSE
        try:
            route.add_new(host, [Route(dst, made.index, scope=scope)])
        except NetlinkError as error:
            if error.errno != EEXIST:
                failure = CNIError(f"failed to route {dst} to {made.name}: {error}")
            elif dst not in _routes(host, made.index):  # another ADD may have added it
                failure = CNIError(
                    f"failed to route {dst} to {made.name}: the node has a route to it",
                    f"`ip route show {dst}`: delete that route, or correct the subnets of `peers`",
                )
    if failure is not None:
        raise failure


def _routes(host: Netlink, index: int) -> dict[Prefix, Route]:
    """The link's routes in the main table, by destination, without those that the kernel made."""
    return {
        entry.dst: entry
        for family in (AF_INET, AF_INET6)
        for entry in route.show(host, family, index)
        if entry.protocol != route.PROTO_KERNEL
    }


def follow(host: Netlink, made: Link, others: list[Peer]) -> None:
    """Have a link that is set up know these peers and no others. Raises NetlinkError, CNIError."""
    with Netlink(uapi.NETLINK_GENERIC) as sock:
        control = Control(sock)
        before = control.get(made.index)
        _set_peers(control, made.index, before, others, {})
    if made.up:
        set_routes(host, made, others)


def public_key(made: Link) -> bytes:
    """The public key of a link; empty while it has none. Raises NetlinkError."""
    with Netlink(uapi.NETLINK_GENERIC) as sock:
        return Control(sock).get(made.index).public


# --- undo -----------------------------------------------------------------------------------------


class _Former(NamedTuple):
    """A link before an ADD changed it."""

    made: Link
    device: Device
    routes: list[Route]


def _keep_former(
    call: Call[Any], host: Netlink, made: Link, before: Device, want: Settings
) -> None:
    """Before the link is changed: its former state comes back if this ADD fails."""
    former = _Former(made, before, list(_routes(host, made.index).values()))
    call.undo.callback(_put_back, call, want, former)
    # until all is changed: after a kill the next ADD of any configuration looks again
    link.change(host, made.index, alias=SORT.alias(want.network))


def _put_back(call: Call[Any], want: Settings, former: _Former) -> None:
    """Give the link its former key, port, peers, routes and MTU, unless another configuration has
    changed it meanwhile.
    """
    unsettled = SORT.alias(want.network)
    with Netlink() as host, device.Lock(call.request.env):  # the verb has released both by now
        made = SORT.find_own(host, want.network)
        if made is None or made.index != former.made.index:
            return
        if made.alias not in (want.mark, unsettled):
            return
        link.change(host, made.index, alias=unsettled)
        with Netlink(uapi.NETLINK_GENERIC) as sock:
            # what the store says of others stays right when this ADD fails
            Control(sock).put_back(made.index, former.device, peers=not want.from_store)
        if not want.from_store:
            present = _routes(host, made.index)
            wanted = {entry.dst for entry in former.routes}
            route.delete_all(host, [entry for dst, entry in present.items() if dst not in wanted])
            for entry in former.routes if made.up else ():
                if entry.dst not in present:
                    route.add(host, entry, exist_ok=True)
        was = former.made
        link.change(host, made.index, up=was.up, mtu=was.mtu, alias=was.alias)


# --- users ----------------------------------------------------------------------------------------


def note_user(host: Netlink, network: str, outer: Link, ipam: Result) -> None:
    """Note that a pair uses the network's link; `outer` is the node's end, which is up.

    The kernel forgets that with the pair. Raises CNIError.
    """
    address = ipam.ips[0].prefix.host
    entry = Route(address, outer.index, table=network_group(network), scope=route.SCOPE_LINK)
    try:
        route.add(host, entry, exist_ok=True)
    except NetlinkError as error:
        raise CNIError(f"failed to add route on host: {error}") from None


def _has_user(host: Netlink, network: str) -> bool:
    table = network_group(network)
    return any(route.show(host, family, table=table) for family in (AF_INET, AF_INET6))


def remove_unused(call: Call[Any]) -> None:
    """Remove the network's link if no container uses it. Raises NetlinkError."""
    with Netlink() as host:
        device.remove_unused(
            call,
            "wireguard: an unused link",
            lambda: _unused(host, call.network),
            unlink.delete_here,
        )


def _unused(host: Netlink, network: str) -> list[int]:
    """The index of the link of ours, if no pair of this network uses it."""
    made = SORT.find_own(host, network)
    return [made.index] if made is not None and not _has_user(host, network) else []


# --- CHECK ----------------------------------------------------------------------------------------


def differences(host: Netlink, want: Settings) -> list[str]:
    """Compare the link with the configuration; a sentence for each difference."""
    name = SORT.name(want.network)
    made = link.find(host, name)
    if made is None or made.kind != wireguard.KIND:
        return [f"the WireGuard link {name} not found: an ADD of any container makes it again"]
    problems = [] if made.up else [f"{name} is down (`ip link set {name} up`)"]
    with Netlink(uapi.NETLINK_GENERIC) as sock:
        have = Control(sock).get(made.index)
    if have.port != want.conf.listen_port:
        problems.append(f"{name} has the port {have.port}, want {want.conf.listen_port}")
    try:
        private = keys.existing(want.key_file)
        if not private or not have.has_key(private):
            problems.append(f"{name} has another private key than {want.key_file}")
    except CNIError as error:
        problems.append(f"{error.msg}: {error.details}")
    others = want.others(have.public)
    problems += _peer_differences(name, have, others)
    if made.up:
        missing = _wanted_routes(others) - _routes(host, made.index).keys()
        problems += [
            f"the node has no route to the peer's subnet {each} through {name} "
            f"(`ip route add {each} dev {name}`)"
            for each in sorted(missing)
        ]
    most = fitting(host, want)
    if made.mtu > most:
        problems.append(
            f"{name} has the MTU {made.mtu}, but only {most} fits into the packets between nodes: "
            "large packets may be lost"
        )
    return problems


def _peer_differences(name: str, have: Device, others: list[Peer]) -> list[str]:
    problems = []
    for each in others:
        text = keys.text_of(each.key)
        present = have.peers.get(each.key)
        if present is None:
            problems.append(f"{name} lacks the peer {text}: an ADD of any container adds it")
            continue
        missing = sorted(set(each.subnets) - set(present.allowed))
        if missing:
            shown = ", ".join(map(str, missing))
            problems.append(f"{name} accepts no packets of the peer {text} from {shown}")
    wanted = {each.key for each in others}
    problems += [
        f"{name} has the peer {keys.text_of(each)}, which is not in the configuration "
        f"(`wg set {name} peer {keys.text_of(each)} remove`)"
        for each in sorted(have.peers.keys() - wanted)
    ]
    return problems
