"""vxlan: a node's VXLAN link of a network: made by the first ADD, removed after the last container.

The link is a port of the bridge; its users are the bridge's ports that bear the network's key. The
bridge's lock keeps ADD and removal apart (device.py).

Forwarding entries for 00:00:00:00:00:00 on this link are ours: they name the nodes that get a copy
of frames to unknown MACs. Entries that the link learns, or a person adds for other MACs, stay.
"""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...kernel import fdb, link, route, uapi, vxlan
from ...kernel import netlink as nl
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...owner import network_group, network_key
from ...protocol.address import format_ip
from ...protocol.errors import CNIError
from ..shared import unlink, veth
from . import device
from .vxlan_settings import SORT, Settings

_MTU_UNKNOWN = 1500  # while there is no route to the underlay


# --- ADD ------------------------------------------------------------------------------------------


def ensure(call: Call[Any], host: Netlink, want: Settings, mac: bytes) -> Link:
    """Make bridge and VXLAN link, or complete them; returns the bridge, and sets `want.mtu`.

    `mac` is that of a bridge that is made; b"" lets it be chosen. The caller holds the lock until
    its port is there. Raises CNIError.
    """
    made = SORT.find(host, want.network)
    underlay = None if is_settled(made, want) and not want.are_peers_new else Underlay(host, want)
    if made is not None and underlay is not None:
        _require_same(made, want, underlay.parent)
    want.mtu = want.mtu or (made.mtu if underlay is None and made else _fitting(underlay, want))
    bridge = device.ensure(
        call, host, want.bridge, mtu=want.mtu, filtering=False, promisc=False, mac=mac
    )
    if made is not None and made.master not in (0, bridge.index):
        raise CNIError(
            f"{made.name} of this network is a port of another bridge than {bridge.name}",
            "containers of the network are attached there; `bridge` can be changed when the last "
            "one is gone",
        )
    if underlay is None:
        return bridge
    if underlay.parent and want.mtu > _fitting(underlay, want):
        raise CNIError(
            f"invalid mtu {want.mtu}: at most {_fitting(underlay, want)} fits",
            f"{want.conf.dev} has the MTU {underlay.mtu}, and VXLAN needs "
            f"{underlay.mtu - _fitting(underlay, want)} of it",
        )
    try:
        if made is None:
            made = _create(call, host, want, underlay, bridge)
        _complete(call, host, made, want, underlay, bridge)
    except (NetlinkError, LinkNotFound) as error:
        raise CNIError(
            f"failed to set up the VXLAN link {SORT.name(want.network)}: {error}"
        ) from None
    return bridge


def is_settled(made: Link | None, want: Settings) -> bool:
    """Is there nothing to do for the link of this configuration?"""
    return made is not None and made.alias == want.mark and made.up and bool(made.master)


class Underlay:
    """The links and addresses by which this node reaches others. Raises CNIError without `dev`.

    `parent` is the index of `dev`, or 0; `remote` are the peers without this node's own addresses;
    `mtu` is the smallest of the links that lead to them.
    """

    def __init__(self, host: Netlink, want: Settings) -> None:
        self.remote: list[bytes] = []
        links = {want.uplink}
        for each in want.peers:
            way = _way(host, each)
            if way is None or way.kind != route.LOCAL:
                self.remote.append(each)
            if way is not None and way.kind != route.LOCAL:
                links.add(way.link)
        # this node has its address, which is in the list: later ADDs need not look again
        self.is_settled = bool(want.group) or len(self.remote) < len(want.peers)
        self.parent = 0
        if want.conf.dev:
            dev = underlay_link(host, want.conf.dev)
            self.parent, self.mtu = dev.index, dev.mtu
        else:
            found = [link.find(host, each) for each in links if each]
            self.mtu = min((each.mtu for each in found if each), default=_MTU_UNKNOWN)


def _way(host: Netlink, address: bytes) -> route.Way | None:
    try:
        return route.lookup(host, address)
    except NetlinkError:
        return None  # no route yet; there may be one later


def underlay_link(host: Netlink, name: str) -> Link:
    """The link `dev`. Raises CNIError if it is missing."""
    try:
        return link.get(host, name)
    except LinkNotFound as error:
        raise CNIError(
            f"failed to lookup dev {name!r}: {error}",
            "`dev` is the node's link by which it reaches the others",
        ) from None


def _fitting(underlay: Underlay | None, want: Settings) -> int:
    """The largest MTU of containers whose frames fit into the underlay's packets."""
    mtu = underlay.mtu if underlay is not None else _MTU_UNKNOWN
    overhead = vxlan.OVERHEAD_V6 if want.v6 else vxlan.OVERHEAD_V4
    return min(max(mtu - overhead, veth.MTU_MIN), veth.MTU_MAX)


def _create(
    call: Call[Any], host: Netlink, want: Settings, underlay: Underlay, bridge: Link
) -> Link:
    """Make the link, a port of the bridge, unless another ADD has made it by now."""
    name = SORT.name(want.network)
    _refuse_other(bridge, name)
    call.undo.callback(remove_unused, call)
    data = vxlan.data(
        want.conf.vni,
        port=want.conf.port,
        v6=want.v6,
        parent=underlay.parent,
        group=want.group,
        local=want.local,
    )
    try:
        link.create(
            host,
            vxlan.KIND,
            name,
            data=data,
            mtu=want.mtu,
            master=bridge.index,
            group=network_group(want.network),
        )
    except NetlinkError as error:
        if not link.is_name_taken(error):
            raise _refused(error, name) from None
        call.undo.withdraw()
        other = SORT.find(host, want.network)
        if other is None:
            raise _vni_taken(host, want) from None
        _require_same(other, want, underlay.parent)
    return link.get(host, name)


def _refused(error: NetlinkError, name: str) -> CNIError:
    from ...kernel import link_advice

    advice = link_advice.of(error, vxlan.KIND, name)
    return CNIError(f"failed to make the VXLAN link {name}: {error}", advice)


def _vni_taken(host: Netlink, want: Settings) -> CNIError:
    """The kernel has one VXLAN link for a VNI and a port."""
    conf = want.conf
    others = [
        each.name
        for each in link.list_all(host)
        if each.kind == vxlan.KIND and vxlan.vni(each) == conf.vni
    ]
    return CNIError(
        f"failed to make the VXLAN link: VNI {conf.vni} on port {conf.port} is in use",
        f"by {', '.join(others) or 'another link'}: give this network another `vni` (on all nodes)",
    )


def _refuse_other(bridge: Link, own: str) -> None:
    """Refuse a bridge with a VXLAN link that is not called `own`: it would join two networks.

    Raises CNIError.
    """
    kind, name = nl.text(uapi.IFLA_INFO_KIND, vxlan.KIND), nl.text(uapi.IFLA_IFNAME, own)
    if link.has_port(bridge.index, lambda data: kind in data and name not in data):
        raise CNIError(
            f"the bridge {bridge.name} is of another VXLAN network",
            "`bridge link show` lists its ports; give this network a `bridge` of its own",
        )


def _require_same(made: Link, want: Settings, parent: int) -> None:
    """Refuse a link that sends to other places than configured. Raises CNIError."""
    wrong = _unlike(made, want, parent)
    if wrong:
        raise CNIError(
            f"the VXLAN link {made.name} has been made for another configuration",
            f"{'; '.join(wrong)}. These keys can be changed when the last container of the network "
            "is gone from this node",
        )


def _unlike(made: Link, want: Settings, parent: int) -> list[str]:
    conf = want.conf
    pairs: tuple[tuple[str, object, object], ...] = (
        ("vni", vxlan.vni(made), conf.vni),
        ("port", vxlan.port(made), conf.port),
        ("group", _shown(vxlan.group(made)), _shown(want.group)),
        ("local", _shown(vxlan.local(made)), _shown(want.local)),
        ("dev", vxlan.parent(made), parent),
    )
    return [
        f"{made.name} has another dev"
        if key == "dev"
        else f"{made.name} has {key} {have}, want {wanted}"
        for key, have, wanted in pairs
        if have != wanted
    ]


def _shown(packed: bytes) -> str:
    return format_ip(packed) if packed else "none"


def _complete(
    call: Call[Any], host: Netlink, made: Link, want: Settings, underlay: Underlay, bridge: Link
) -> None:
    """Set the link's destinations to the nodes of the configuration."""
    mark = want.mark if underlay.is_settled else want.mark_unsettled
    # what the store says stays right when this ADD fails
    if made.alias and made.alias != mark and not want.from_store:
        call.undo.callback(_put_back, want, made, fdb.flooded(host, made.index))
        # until all is changed: after a kill the next ADD of any configuration looks again
        link.change(host, made.index, alias=want.mark_unsettled)
        made = made._replace(alias=want.mark_unsettled)
    forward(host, made.index, set(underlay.remote) | ({want.group} - {b""}))
    if (made.up, made.mtu, made.master, made.alias) != (True, want.mtu, bridge.index, mark):
        veth.prepare_host_end(made.name)
        link.change(
            host, made.index, up=True, mtu=want.mtu, master=bridge.index, alias=mark, group=0
        )


def _put_back(want: Settings, former: Link, destinations: set[bytes]) -> None:
    """Give the link its former destinations and MTU, unless it was changed again meanwhile."""
    with Netlink() as host:  # the verb's own socket is closed by now
        made = SORT.find_own(host, want.network)
        if made is None or made.index != former.index:
            return
        if made.alias in (want.mark, want.mark_unsettled):
            link.change(host, made.index, alias=want.mark_unsettled)
            forward(host, made.index, destinations)
            link.change(host, made.index, mtu=former.mtu, up=former.up, alias=former.alias)


def forward(host: Netlink, index: int, wanted: set[bytes]) -> None:
    """Have the link send to these addresses, and to no others; what it has learned of others goes.

    Raises NetlinkError.
    """
    present = fdb.flooded(host, index)
    fdb.change(host, index, sorted(wanted - present), sorted(present - wanted))
    if present - wanted:
        # else frames to MACs that were learned there would still go to a node that has left
        fdb.forget(host, index, present - wanted)


# --- DEL, GC --------------------------------------------------------------------------------------


def remove_unused(call: Call[Any]) -> bool:
    """Remove the network's VXLAN link if no container uses it; True if there is none afterwards.

    Raises NetlinkError.
    """
    with Netlink() as host:
        device.remove_unused(
            call, "vxlan: an unused link", lambda: _unused(host, call.network), unlink.delete_here
        )
        return link.find(host, SORT.name(call.network)) is None


def _unused(host: Netlink, network: str) -> list[int]:
    """The index of the link of ours, if its bridge has no port of a container of this network."""
    made = SORT.find_own(host, network)
    if made is None:
        return []
    own = made.index
    mark = f"cni:{network_key(network)}-".encode()
    # a port whose ADD is at work, or was killed, has no alias yet, but the network's group
    member = nl.u32(uapi.IFLA_GROUP, network_group(network))

    def is_user(data: bytes) -> bool:
        return (mark in data or member in data) and link.index_in(data) != own

    return [] if made.master and link.has_port(made.master, is_user) else [own]


# --- CHECK ----------------------------------------------------------------------------------------


def differences(host: Netlink, want: Settings) -> list[str]:
    """Compare the link with the configuration; a sentence for each difference."""
    name = SORT.name(want.network)
    made = link.find(host, name)
    if made is None or made.kind != vxlan.KIND:
        return [f"the VXLAN link {name} not found: an ADD of any container makes it again"]
    underlay = Underlay(host, want)
    problems = _unlike(made, want, underlay.parent)
    if not made.up:
        problems.append(f"{name} is down (`ip link set {name} up`)")
    bridge = link.find(host, want.bridge)
    if bridge is not None and made.master != bridge.index:
        problems.append(
            f"{name} is no port of the bridge {want.bridge} (`ip link set {name} master "
            f"{want.bridge}`)"
        )
    present = fdb.flooded(host, made.index)
    for each in sorted(set(underlay.remote) - present):
        entry = (
            f"bridge fdb append 00:00:00:00:00:00 dev {name} dst {format_ip(each)} self permanent"
        )
        problems.append(f"{name} does not send to the peer {format_ip(each)} (`{entry}`)")
    if made.mtu > _fitting(underlay, want):
        problems.append(
            f"{name} has the MTU {made.mtu}, but only {_fitting(underlay, want)} fits into the "
            f"packets between nodes ({underlay.mtu}): large packets may be lost"
        )
    return problems
