"""wireguard's configuration and its validation (docs/spec/wireguard.md)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...call import Call
from ...kernel import wireguard
from ...kernel.wireguard import Endpoint
from ...owner import file_name
from ...protocol import config
from ...protocol.address import Prefix, format_ip, is_global_unicast, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import Result
from ..shared import configure, masquerade, veth
from ..shared.network_link import Sort
from ..shared.unlink import needs_link
from . import keys

SORT = Sort("wireguard", wireguard.KIND, "WireGuard", "cniwg")
KEY_DIR = "/var/lib/cni/wireguard"
FROM_CLUSTER = "cluster"  # the value of peersFrom
MOST_SUBNETS = 1000  # of a peer; they have to fit into one message
_KEEPALIVE_MAX = 65535


class PeerConf(config.Folded):
    """An item of `peers`."""

    public_key: str = ""
    endpoint: str = ""
    subnets: list[str] = []
    preshared_key_file: str = ""
    persistent_keepalive: int = 0


class Conf(veth.PairConf):
    peers: list[PeerConf] | None = None
    peers_from: str = ""
    store: dict[str, Any] | None = None
    subnets: list[str] = []
    allowed_subnets: list[str] = []
    endpoint: str = ""
    dev: str = ""
    persistent_keepalive: int = 0
    private_key_file: str = ""
    listen_port: int = wireguard.PORT


class Peer(NamedTuple):
    """A node; `key` is its public key. With `is_known` the kernel knows its endpoint, or a newer
    one.
    """

    key: bytes
    endpoint: Endpoint | None
    subnets: tuple[Prefix, ...]
    preshared_file: str
    keepalive: int
    is_known: bool = False


class Settings:
    """The validated configuration, and the values derived from it. Raises CNIError.

    `mtu` is 0 until the uplink's has been looked up. With `from_store` peers.py finds the peers,
    `uplink` (the index of this node's link to the others) and `overhead`, and sets `are_peers_new`.
    """

    def __init__(self, call: Call[Conf]) -> None:
        conf = call.conf
        self.conf = conf
        self.network = call.network
        self.key_file = key_file(conf, call.network)
        _check_ipam(conf)
        self.from_store = bool(conf.peers_from)
        self.are_peers_new = False
        self.uplink = self.overhead = 0
        _check_places(conf)
        if not 1 <= conf.listen_port <= 65535:
            raise CNIError(f"invalid listenPort {conf.listen_port} (must be between 1 and 65535)")
        self.keepalive = _keepalive(conf.persistent_keepalive, "persistentKeepalive")
        self.peers = [_peer(each, f"peers[{at}]") for at, each in enumerate(conf.peers or [])]
        self.subnets = [_subnet(each, "subnets") for each in conf.subnets]
        self.allowed = [_subnet(each, "allowedSubnets") for each in conf.allowed_subnets]
        self.endpoint = parse_endpoint(conf.endpoint, "endpoint") if conf.endpoint else None
        _check_together(self.peers)
        self.backend = masquerade.configured_backend(conf)
        veth.check_host_name(conf.host_interface_name)
        self.mac = veth.parse_mac(conf.runtime_config.mac or conf.args.cni.mac)
        self.mtu = 0 if conf.mtu is config.AUTO else veth.mtu(conf.mtu)

    @property
    def mark(self) -> str:
        """The alias of the network's link; it tells which configuration has set it up."""
        conf = self.conf
        own = (conf.listen_port, conf.mtu, self.key_file)
        if self.from_store:  # what the store says is not of the configuration
            return SORT.alias(self.network, (*own, conf.peers_from))
        return SORT.alias(self.network, (*own, *self.peers))

    def others(self, own: bytes) -> list[Peer]:
        """The peers without this node, whose public key is `own`."""
        return [each for each in self.peers if each.key != own]

    def check_addresses(self, result: Result, own: bytes) -> None:
        """Refuse addresses that other nodes would send elsewhere. Raises CNIError."""
        mine = [each for each in self.peers if each.key == own]
        for ip in result.ips:
            packed = ip.prefix.ip
            for each in self.others(own):
                if any(subnet.contains(packed) for subnet in each.subnets):
                    raise CNIError(
                        f"wireguard: {format_ip(packed)} is in the subnets of another node",
                        f"its public key is {keys.text_of(each.key)}: give this node's `ipam` a "
                        f"range of its own, or correct `peers` (this node's key is "
                        f"{keys.text_of(own)})",
                    )
            if mine and not any(subnet.contains(packed) for subnet in mine[0].subnets):
                raise CNIError(
                    f"wireguard: {format_ip(packed)} is not in this node's subnets",
                    f"they are {', '.join(map(str, mine[0].subnets)) or 'none'}, by "
                    f"`{'subnets' if self.from_store else 'peers'}` or this node's blocks (its key "
                    f"is {keys.text_of(own)}), and others drop packets from other addresses",
                )
        if self.conf.ip_masq:
            self._check_masquerading(result, own)

    def _check_masquerading(self, result: Result, own: bytes) -> None:
        """Refuse ipMasq that would hide containers from those of other nodes."""
        homes = [ip.prefix for ip in result.ips]
        # of nodes in a store, more may come
        far = [*self.allowed] if self.from_store else []
        for subnet in (*far, *(each for peer in self.others(own) for each in peer.subnets)):
            if not any(home.contains(subnet.ip) and home.length <= subnet.length for home in homes):
                raise CNIError(
                    f"wireguard: ipMasq would masquerade packets to the peer's subnet {subnet}",
                    "masquerading leaves out the subnet of the container's address: give `ipam` "
                    "one subnet for all nodes, and each node its part as rangeStart and rangeEnd",
                )


def key_file(conf: Conf, network: str) -> str:
    """The file of this node's private key of a network."""
    # a long name is cut so that there is room for the names of what is beside the file
    name = file_name(network, ".key.lock~").removesuffix(".lock~")
    return conf.private_key_file or f"{KEY_DIR}/{name}"


def _check_places(conf: Conf) -> None:
    """Refuse keys that do not determine who the peers are. Raises CNIError."""
    if conf.peers is None and not conf.peers_from:
        raise CNIError(
            "wireguard: needs peers or peersFrom",
            "`peers` lists the nodes: publicKey, endpoint, subnets; an empty list is for a node "
            "that has only its key so far; `peersFrom` takes them from a store",
        )
    if conf.peers is not None and conf.peers_from:
        raise CNIError("wireguard: peers and peersFrom exclude each other")
    if conf.peers_from not in ("", FROM_CLUSTER):
        raise CNIError(
            f"invalid peersFrom {conf.peers_from!r}",
            f'it is "{FROM_CLUSTER}": the store of the cluster\'s nodes',
        )
    if conf.peers_from:
        return
    for key, value in (
        ("store", conf.store is not None),
        ("subnets", conf.subnets),
        ("allowedSubnets", conf.allowed_subnets),
        ("endpoint", conf.endpoint),
        ("dev", conf.dev),
        ("persistentKeepalive", conf.persistent_keepalive),
    ):
        if value:
            raise CNIError(
                f"{key} needs peersFrom", f'`"peersFrom": "{FROM_CLUSTER}"`; `peers` has its own'
            )


def _keepalive(seconds: int, where: str) -> int:
    if not 0 <= seconds <= _KEEPALIVE_MAX:
        raise CNIError(
            f"invalid {where} {seconds} (must be between 0 and {_KEEPALIVE_MAX} seconds)"
        )
    return seconds


def _check_ipam(conf: Conf) -> None:
    if not conf.ipam.type:
        raise CNIError("wireguard: needs ipam", "packets are routed by the containers' addresses")
    if needs_link(conf.ipam.type) or configure.learns(conf.ipam.type):
        raise CNIError(
            f"cannot use {conf.ipam.type} with wireguard",
            "the other end of the container's link is this node: use cluster, host-local or static",
        )
    if conf.private_key_file and not conf.private_key_file.startswith("/"):
        raise CNIError(f"invalid privateKeyFile {conf.private_key_file!r}", "a path begins with /")


def _peer(conf: PeerConf, where: str) -> Peer:
    key = keys.parse(conf.public_key, f"{where}.publicKey")
    if not any(key):
        raise CNIError(f"invalid {where}.publicKey", "it is zero: no node has that key")
    if not conf.subnets:
        raise CNIError(f"{where} needs subnets", "the addresses of the containers on that node")
    if len(conf.subnets) > MOST_SUBNETS:
        raise CNIError(f"{where} has {len(conf.subnets)} subnets (at most {MOST_SUBNETS})")
    if conf.preshared_key_file and not conf.preshared_key_file.startswith("/"):
        raise CNIError(
            f"invalid {where}.presharedKeyFile {conf.preshared_key_file!r}", "a path begins with /"
        )
    return Peer(
        key,
        parse_endpoint(conf.endpoint, f"{where}.endpoint") if conf.endpoint else None,
        tuple(_subnet(each, f"{where}.subnets") for each in conf.subnets),
        conf.preshared_key_file,
        _keepalive(conf.persistent_keepalive, f"{where}.persistentKeepalive"),
    )


def _subnet(text: str, where: str) -> Prefix:
    prefix = Prefix.parse(text).network
    if not prefix.length or not (prefix.length == prefix.bits or is_global_unicast(prefix.ip)):
        raise CNIError(
            f"{where}: {text} is no subnet of containers",
            "packets to these addresses leave through the link: neither all addresses, nor those "
            "of loopback, multicast or one link",
        )
    return prefix


def parse_endpoint(text: str, where: str) -> Endpoint:
    """``192.0.2.1:51820`` or ``[2001:db8::1]:51820``. Raises CNIError."""
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = parse_ip(host[1:-1] if is_bracketed else host)
        number = int(port) if port.isascii() and port.isdigit() else 0
    except CNIError:
        ip, number = b"", 0
    if not colon or (len(ip) == 16) != is_bracketed or not 1 <= number <= 65535:
        raise CNIError(
            f"invalid {where} {text!r}",
            "an address and a port, as 192.0.2.1:51820 or [2001:db8::1]:51820",
        )
    if not is_global_unicast(ip):
        raise CNIError(f"{where}: {format_ip(ip)} is no address of a node")
    return Endpoint(ip, number)


def _check_together(peers: list[Peer]) -> None:
    """Refuse peers that contradict each other. Raises CNIError."""
    found: dict[bytes, Peer] = {}
    owners: dict[Prefix, bytes] = {}
    for each in peers:
        if each.key in found:
            raise CNIError(f"peers: the public key {keys.text_of(each.key)} is there twice")
        found[each.key] = each
        for subnet in each.subnets:
            if owners.setdefault(subnet, each.key) != each.key:
                raise CNIError(
                    f"peers: two of them have the subnet {subnet}",
                    "the addresses of a container lead to one node",
                )
    for each in peers:
        ip = each.endpoint.ip if each.endpoint is not None else b""
        if ip and any(subnet.contains(ip) for subnet in owners):
            raise CNIError(
                f"peers: the endpoint {format_ip(ip)} is in a peer's subnets",
                "encrypted packets to it would have to be encrypted again",
            )


def overhead(endpoints: list[Endpoint]) -> int:
    """Bytes that are added to a packet; the larger number if any node, or none, has IPv6."""
    if endpoints and all(len(each.ip) == 4 for each in endpoints):
        return wireguard.OVERHEAD_V4
    return wireguard.OVERHEAD_V6
