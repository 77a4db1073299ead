"""vxlan: peers out of the store of the cluster's nodes (docs/spec/vxlan.md, "Peers from a store").

The mechanism is in shared/peers.py. A node publishes its addresses; those of the others become
forwarding entries of the network's VXLAN link.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...call import Call
from ...kernel import address
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol.address import parse_ip
from ...store import endpoints
from ..shared import peers
from ..shared.peers import Note, Place
from . import vxlan_link
from .vxlan_settings import SORT, Conf
from .vxlan_settings import Settings as Want


class Vxlan:
    """What distinguishes networks of vxlan (shared.peers.Overlay)."""

    kind = SORT.plugin
    advice = (
        "give its address as `local`, or its link to the other nodes as `dev`; without both it is "
        "that of the default route's link"
    )

    def find(self, host: Netlink, network: str) -> Link | None:
        return SORT.find(host, network)

    def own(self, host: Netlink, place: Place, note: Note, made: Link | None) -> dict[str, Any]:
        _ = place
        addresses, _ = own_addresses(host, note)
        if not addresses:
            return {}
        local = note.keys["local"]
        if made is None:  # the family of a link that exists cannot be changed
            note.v6 = ":" in local if local else not any("." in each for each in addresses)
        return {"vni": note.keys["vni"], "port": note.keys["port"], "addresses": addresses}

    def is_published(self, place: Place, note: Note) -> bool:
        _ = place, note
        return True  # a change of the node's addresses is the server's to see

    def accept(self, network: str, note: Note, said: Mapping[str, dict[str, Any]]) -> None:
        """Only nodes of the same VNI and port; and no item of another node than its key says, which
        policies of a store may not have prevented.
        """
        _ = network
        ours = (note.keys["vni"], note.keys["port"])
        note.peers = {
            node: {"addresses": addresses}
            for node, value in said.items()
            if (value.get("node"), value.get("vni"), value.get("port")) == (node, *ours)
            and (addresses := endpoints.addresses_of(value))
        }

    def settle(self, host: Netlink, made: Link, note: Note) -> None:
        # a frame that this node sends to itself comes back at once
        own = {each.prefix.ip for each in address.show(host)}
        vxlan_link.forward(host, made.index, set(addresses_of(note)) - own)


OVERLAY = Vxlan()


def own_addresses(host: Netlink, note: Note) -> tuple[list[str], int]:
    """As peers.reached_at, for the keys of the note."""
    local = note.keys["local"]
    return peers.reached_at(host, note.keys["dev"], parse_ip(local) if local else b"")


def addresses_of(note: Note) -> list[bytes]:
    """The addresses of all nodes, this one first, of the link's family."""
    said = (note.published, *note.peers.values())
    packed = [parse_ip(text) for each in said for text in each.get("addresses", ())]
    return [each for each in dict.fromkeys(packed) if (len(each) == 16) == note.v6]


@contextmanager
def current(call: Call[Conf], host: Netlink, want: Want) -> Iterator[None]:
    """Give `want` the peers as they are now, and keep others from changing entries meanwhile.

    With nothing to do, since a server follows the store, `want` stays without. Raises CNIError.
    """
    its = peers.store_settings(call)
    conf = want.conf
    keys = {"vni": conf.vni, "port": conf.port, "dev": conf.dev, "local": conf.local}
    wanted = Note(its.node, SORT.plugin, keys, dict(its.store or {}), v6=want.v6)
    is_settled = vxlan_link.is_settled(SORT.find(host, want.network), want)
    place = Place(its.data_dir)
    with peers.current(call, host, OVERLAY, wanted, place, is_settled=is_settled) as (note, is_new):
        if is_new:
            _, want.uplink = own_addresses(host, note)
            want.peers, want.v6, want.are_peers_new = addresses_of(note), note.v6, True
        yield


def look(call: Call[Conf], host: Netlink, want: Want) -> list[str]:
    """For CHECK: give `want` the peers of the note; asks no store. A sentence for each problem."""
    note, problems = peers.look(call, host, OVERLAY, Place(peers.store_settings(call).data_dir))
    if note is not None:
        _, want.uplink = own_addresses(host, note)
        want.peers, want.v6 = addresses_of(note), note.v6
    return problems
