"""wireguard: a node's WireGuard link of a network: made by the first ADD, removed after the last
container.

Its name is derived from the network; its alias names the network and the configuration that has set
it up. Until it has the alias it is in the network's link group. Its users are the node's ends of
the network's pairs. The lock of device.py keeps ADD and removal apart. Peers of this link, and
routes through it, are those of the configuration: others are removed.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from errno import EADDRINUSE, EEXIST
from typing import Any

from ...call import Call
from ...kernel import link, route, uapi, wireguard
from ...kernel import netlink as nl
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.route import Route
from ...kernel.wireguard import Control, Device
from ...owner import network_group, network_key
from ...protocol.address import Prefix
from ...protocol.errors import CNIError, TryAgainLater
from ..bridge import device
from ..shared import unlink, veth
from . import keys
from .settings import Peer, Settings, link_name, mark_of, overhead

_MTU_UNKNOWN = 1500  # while there is no route to the other nodes


def find(host: Netlink, network: str) -> Link | None:
    """The network's WireGuard link. Raises CNIError if something else has its name."""
    made = link.find(host, link_name(network))
    if made is not None and not _is_ours(made, network):
        raise CNIError(
            f'failed to make the WireGuard link: "{made.name}" exists and is not of this network',
            f"its alias is {made.alias!r}: rename or delete it (`ip -d link show {made.name}`)",
        )
    return made


def _is_ours(made: Link, network: str) -> bool:
    if made.kind != wireguard.KIND:
        return False
    is_unfinished = not made.alias and made.group == network_group(network)
    return made.alias.startswith(mark_of(network)) or is_unfinished


# --- ADD ------------------------------------------------------------------------------------------


def ensure(call: Call[Any], host: Netlink, want: Settings) -> bytes:
    """Make the link, or change it to the configuration; sets `want.mtu`, returns the public key.

    The caller holds the lock until its pair is there. Raises CNIError.
    """
    made = find(host, want.network)
    own = keys.noted_public(want.key_file)
    if made is not None and made.alias == want.mark and made.up and own:
        want.mtu = want.mtu or made.mtu
        return own
    private = keys.private(want.key_file)
    shared = {
        each.key: keys.preshared(each.preshared_file) for each in want.peers if each.preshared_file
    }
    want.mtu = want.mtu or fitting(host, want)
    try:
        if made is None:
            made = _create(call, host, want)
        return _complete(host, made, want, private, shared)
    except (NetlinkError, LinkNotFound) as error:
        raise CNIError(
            f"failed to set up the WireGuard link {link_name(want.network)}: {error}"
        ) from None


def fitting(host: Netlink, want: Settings) -> int:
    """The largest MTU whose packets fit, encrypted, into those of the links to other nodes."""
    endpoints = [each.endpoint for each in want.peers if each.endpoint is not None]
    links: set[int] = set()
    for each in endpoints:
        try:
            way = route.lookup(host, each.ip)
        except NetlinkError:
            continue  # no route yet; there may be one later
        if way.kind != route.LOCAL:
            links.add(way.link)
    found = [link.find(host, each) for each in links or set(route.default_links(host)) if each]
    mtu = min((each.mtu for each in found if each), default=_MTU_UNKNOWN)
    return min(max(mtu - overhead(endpoints), veth.MTU_MIN), veth.MTU_MAX)


def _create(call: Call[Any], host: Netlink, want: Settings) -> Link:
    """Make the link, unless another ADD has made it by now."""
    name = link_name(want.network)
    call.undo.callback(remove_unused, call)
    try:
        link.create(host, wireguard.KIND, name, mtu=want.mtu, group=network_group(want.network))
    except NetlinkError as error:
        if not link.is_name_taken(error):
            from ...kernel import link_advice

            advice = link_advice.of(error, wireguard.KIND, name)
            raise CNIError(f"failed to make the WireGuard link {name}: {error}", advice) from None
        call.undo.withdraw()
        find(host, want.network)
    return link.get(host, name)


def _complete(
    host: Netlink, made: Link, want: Settings, private: bytes, shared: dict[bytes, bytes]
) -> bytes:
    """Set key, port, peers, routes and MTU; returns the public key."""
    with Netlink(uapi.NETLINK_GENERIC) as sock:
        control = Control(sock)
        _set_device(control, made, want, private)
        before = control.get(made.index)
        keys.note_public(want.key_file, before.public)
        others = want.others(before.public)
        _set_peers(control, made.index, before, others, shared)
    try:
        link.change(host, made.index, up=True, mtu=want.mtu)
    except NetlinkError as error:
        raise _port_taken(error, want) from None
    _set_routes(host, made, others)
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
    control.set_peers(index, wanted, before.peers.keys() - {each.public for each in wanted})


def _wanted_routes(others: list[Peer]) -> set[Prefix]:
    return {subnet for each in others for subnet in each.subnets}


def _set_routes(host: Netlink, made: Link, others: list[Peer]) -> None:
    """Route the peers' subnets, and nothing else, through the link. Raises NetlinkError, CNIError.

    A route that the node has already is not replaced: it may be what the node is reached by.
    """
    present = _routes(host, made.index)
    wanted = _wanted_routes(others)
    route.delete_all(host, [entry for dst, entry in present.items() if dst not in wanted])
    for dst in sorted(wanted - present.keys()):
        scope = route.SCOPE_LINK if dst.is_v4 else route.SCOPE_UNIVERSE
        try:
            route.add_new(host, [Route(dst, made.index, scope=scope)])
        except NetlinkError as error:
            if error.errno != EEXIST:
                raise CNIError(f"failed to route {dst} to {made.name}: {error}") from None
            if dst not in _routes(host, made.index):  # another ADD may have added it
                raise CNIError(
                    f"failed to route {dst} to {made.name}: the node has a route to it",
                    f"`ip route show {dst}`: delete that route, or correct the subnets of `peers`",
                ) from None


def _routes(host: Netlink, index: int) -> dict[Prefix, Route]:
    """The link's routes in the main table, by destination, without those that the kernel made."""
    return {
        entry.dst: entry
        for family in (AF_INET, AF_INET6)
        for entry in route.show(host, family, index)
        if entry.protocol != route.PROTO_KERNEL
    }


# --- DEL, GC --------------------------------------------------------------------------------------


def remove_unused(call: Call[Any]) -> None:
    """Remove the network's link if no container uses it.

    If ADDs hold the lock for too long, the link stays until the next DEL or GC, which is logged.
    Raises NetlinkError.
    """
    network = call.network
    with Netlink() as host:
        if not _is_unused(host, network):
            return
        try:
            with device.Lock(call.request.env, alone=True):
                if _is_unused(host, network):
                    unlink.delete_here(link.get(host, link_name(network)).index)
        except LinkNotFound:
            pass
        except TryAgainLater as error:
            call.log(f"wireguard: an unused link stays for the next DEL or GC: {error}")


def _is_unused(host: Netlink, network: str) -> bool:
    """Is there a link of ours, and no pair of this network?"""
    made = link.find(host, link_name(network))
    if made is None or not _is_ours(made, network):
        return False
    mark = f"cni:{network_key(network)}-".encode()
    member = nl.u32(uapi.IFLA_GROUP, network_group(network))
    return not link.has_any(
        lambda data: (mark in data or member in data) and link.index_in(data) != made.index
    )


# --- CHECK ----------------------------------------------------------------------------------------


def differences(host: Netlink, want: Settings) -> list[str]:
    """Compare the link with the configuration; a sentence for each difference."""
    name = link_name(want.network)
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
