"""wireguard: peers out of the store of the cluster's nodes (docs/spec/wireguard.md, "Peers from a
store").

The mechanism is in shared/peers.py. A node publishes its public key, its addresses and port, and
the subnets of its containers; those of the others become peers of the network's WireGuard link, as
far as records.py accepts them. Private keys stay on their node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...call import Call
from ...kernel import wireguard
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.wireguard import Endpoint
from ...protocol import config
from ...protocol.address import Prefix, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import Result
from ...store import node_blocks, settings
from ..bridge import device
from ..shared import peers
from ..shared.peers import Note, Place
from . import keys, records, tunnel
from .settings import MOST_SUBNETS, SORT, Conf, Peer, parse_endpoint
from .settings import Settings as Want


class WireGuard:
    """What distinguishes networks of wireguard (shared.peers.Overlay).

    `public` is this node's key if the caller knows it; else the kernel is asked.
    """

    kind = SORT.plugin
    advice = (
        "give its address and port as `endpoint`, or its link to the other nodes as `dev`; without "
        "both it is an address of the default route's link"
    )

    def __init__(self, public: bytes = b"") -> None:
        self._public = public

    def find(self, host: Netlink, network: str) -> Link | None:
        return SORT.find(host, network)

    def own(self, host: Netlink, place: Place, note: Note, made: Link | None) -> dict[str, Any]:
        addresses, port, _ = reached_at(host, note)
        public = self._public or (tunnel.public_key(made) if made is not None else b"")
        if not addresses or not public:
            return {}
        _require_outside(addresses, note)
        note.v6 = not any("." in each for each in addresses)
        return {
            "port": port,
            "addresses": addresses,
            "publicKey": keys.text_of(public),
            "subnets": _own_subnets(place, note),
        }

    def is_published(self, place: Place, note: Note) -> bool:
        return note.published.get("subnets") == _own_subnets(place, note)

    def accept(self, network: str, note: Note, said: Mapping[str, dict[str, Any]]) -> None:
        subnets = note.published.get("subnets") or note.keys["subnets"]
        own = records.Own(
            note.published.get("publicKey", ""),
            _prefixes(subnets),
            _prefixes(note.keys["allowed"]),
            note.v6,
        )
        note.peers, note.refused = records.accept(network, own, said, note.peers)

    def settle(self, host: Netlink, made: Link, note: Note) -> None:
        tunnel.follow(host, made, _peers(note))


OVERLAY = WireGuard()


def reached_at(host: Netlink, note: Note) -> tuple[list[str], int, int]:
    """Addresses and port by which others reach this node, and the index of its link to them."""
    given = note.keys["endpoint"]
    endpoint = parse_endpoint(given, "endpoint") if given else None
    addresses, index = peers.reached_at(
        host, note.keys["dev"], endpoint.ip if endpoint is not None else b""
    )
    return addresses, endpoint.port if endpoint is not None else note.keys["port"], index


def _own_subnets(place: Place, note: Note) -> list[str]:
    """The addresses of this node's containers: as configured, else its blocks by now."""
    if note.keys["subnets"]:
        given: list[str] = note.keys["subnets"]
        return given
    allowed = _prefixes(note.keys["allowed"])
    blocks = [
        each
        for each in node_blocks.of_space(place.data_dir, note.keys["space"])
        if any(subnet.contains(each.ip) for subnet in allowed)
    ]
    if len(blocks) > MOST_SUBNETS:
        raise CNIError(
            f"wireguard: this node has {len(blocks)} blocks of addresses (at most {MOST_SUBNETS} "
            "can be published)",
            "let the pool have larger blocks (`blockSize`), or give the node's addresses as "
            "`subnets`",
        )
    return [str(each) for each in blocks]


def _prefixes(texts: list[str]) -> list[Prefix]:
    return [Prefix.parse(each) for each in texts]


def _peers(note: Note) -> list[Peer]:
    """The accepted peers of a note."""
    return [
        Peer(
            keys.parse(each["publicKey"], "publicKey"),
            Endpoint(parse_ip(each["addresses"][0]), each["port"]),
            tuple(_prefixes(each["subnets"])),
            "",
            note.keys["keepalive"],
            is_known=node not in note.fresh,
        )
        for node, each in note.peers.items()
    ]


# --- the verbs ------------------------------------------------------------------------------------


@contextmanager
def current(call: Call[Conf], host: Netlink, want: Want) -> Iterator[None]:
    """Give `want` the peers as they are now, and keep others from changing them meanwhile.

    The link exists then, and has its key, which is published. Raises CNIError.
    """
    its = peers.store_settings(call)
    place = Place(its.data_dir)
    wanted = _new_note(call, want, its)
    with device.Lock(call.request.env):
        public = tunnel.ensure_key(call, host, want)
    overlay = WireGuard(public)
    is_settled = bool(tunnel.known_key(SORT.find(host, want.network), want))
    with peers.current(call, host, overlay, wanted, place, is_settled=is_settled) as (note, is_new):
        _take(want, note)
        if is_new:
            want.are_peers_new = True
            want.uplink = reached_at(host, note)[2]
        yield


def _new_note(call: Call[Conf], want: Want, its: settings.Settings) -> Note:
    """The note of this configuration, before anything is known. Raises CNIError."""
    space, subnets = _pool(call, its.data_dir)
    allowed = want.allowed or subnets
    if not allowed:
        raise CNIError(
            "wireguard: needs allowedSubnets",
            "`ipam` names no subnet, in which the subnets of other nodes must lie: give it here",
        )
    if not want.subnets and not space:
        raise CNIError(
            "wireguard: needs subnets",
            "`subnets` are the addresses that `ipam` gives out on this node, which the others "
            "route to it; with the type cluster they are the node's blocks",
        )
    for each in want.subnets:
        if not any(other.contains(each.ip) for other in allowed):
            raise CNIError(
                f"wireguard: {each} of `subnets` is not in {', '.join(map(str, allowed))}",
                "other nodes refuse what is not in `allowedSubnets`, or in the subnets of `ipam`",
            )
    conf = want.conf
    given = {
        "port": conf.listen_port,
        "dev": conf.dev,
        "endpoint": conf.endpoint,
        "keepalive": want.keepalive,
        "space": space,
        "subnets": [str(each) for each in want.subnets],
        "allowed": [str(each) for each in allowed],
    }
    return Note(its.node, SORT.plugin, given, dict(its.store or {}))


def _pool(call: Call[Conf], data_dir: str) -> tuple[str, list[Prefix]]:
    """The address space of this node's blocks, empty without; and the subnets of `ipam`."""
    ipam = config.lookup(call.raw, "ipam")
    ipam = ipam if isinstance(ipam, dict) else {}
    if config.means(call.conf.ipam.type, "cluster"):
        return node_blocks.pool_of(data_dir, ipam)
    return "", node_blocks.subnets_of(ipam)


def _require_outside(addresses: list[str], note: Note) -> None:
    """Refuse addresses of this node that the others would not accept. Raises CNIError."""
    for text in addresses:
        for each in _prefixes(note.keys["allowed"]):
            if each.contains(parse_ip(text)):
                raise CNIError(
                    f"wireguard: this node's address {text} is in the subnet {each}",
                    "encrypted packets to it would have to be encrypted again: containers and "
                    "nodes need different subnets; or name the link to the other nodes as `dev`",
                )


def _take(want: Want, note: Note) -> None:
    """Give `want` the peers of the note, and this node among them."""
    want.allowed = _prefixes(note.keys["allowed"])
    want.overhead = wireguard.OVERHEAD_V6 if note.v6 else wireguard.OVERHEAD_V4
    want.peers = _peers(note)
    said = note.published
    if said:
        own = keys.parse(said["publicKey"], "publicKey")
        want.peers.append(Peer(own, None, tuple(_prefixes(said["subnets"])), "", 0))


def look(call: Call[Conf], host: Netlink, want: Want, previous: Result) -> list[str]:
    """For CHECK: give `want` the peers of the note; asks no store. A sentence for each problem.

    Of this node's subnets only those count in which the container's addresses are.
    """
    place = Place(peers.store_settings(call).data_dir)
    note, problems = peers.look(call, host, OVERLAY, place, later=("subnets",))
    if note is None or not note.published:
        return problems
    _take(want, note)
    want.uplink = reached_at(host, note)[2]
    try:
        want.check_addresses(previous, keys.parse(note.published["publicKey"], "publicKey"))
    except CNIError as error:
        problems.append(f"{error.msg}: {error.details}")
    return problems
