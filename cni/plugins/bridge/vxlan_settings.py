"""vxlan's configuration and its validation (docs/spec/vxlan.md)."""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...kernel import vxlan
from ...owner import digest
from ...protocol import config
from ...protocol.address import format_ip, parse_ip
from ...protocol.errors import BadEnvironment, CNIError
from ...protocol.request import check_ifname
from ..shared import veth
from ..shared.network_link import Sort
from . import gateway

SORT = Sort("vxlan", vxlan.KIND, "VXLAN", "cnivx")
FROM_CLUSTER = "cluster"  # the value of peersFrom
_VNI_MAX = (1 << 24) - 1  # a VNI has 24 bits (RFC 7348)


class Conf(veth.PairConf):
    vni: int = 0
    peers: list[str] = []
    peers_from: str = ""
    store: dict[str, Any] | None = None
    group: str = ""
    dev: str = ""
    local: str = ""
    port: int = vxlan.PORT
    bridge: str = ""
    is_gateway: bool = False
    is_default_gateway: bool = False
    force_address: bool = False
    remove_empty_bridge: bool = True


class Settings:
    """The validated configuration, and the values derived from it. Raises CNIError.

    Addresses are packed. `mtu` is 0 until the underlay's MTU has been looked up. With `from_store`
    vxlan_peers.py finds the peers, `v6` and `uplink` (the index of this node's link to the others),
    and sets `are_peers_new`.
    """

    def __init__(self, call: Call[Conf]) -> None:
        conf = call.conf
        self.conf = conf
        self.network = call.network
        self.ipam = conf.ipam.type
        self.gateway = gateway.is_wanted(conf)
        _check_numbers(conf)
        self.bridge = bridge_name(conf)
        self.from_store = bool(conf.peers_from)
        self.are_peers_new = False
        self.uplink = 0
        self.peers = [_unicast(each, "peers") for each in conf.peers]
        self.group = _multicast(conf.group) if conf.group else b""
        self.local = _unicast(conf.local, "local") if conf.local else b""
        self.v6 = self._one_family()
        self._check_places()
        self._check_combinations()
        pairs = call.parse_args(frozenset({"MAC"}))
        mac = conf.runtime_config.mac or conf.args.cni.mac or pairs.get("MAC", "")
        self.mac = veth.parse_mac(mac)
        self.mtu = 0 if conf.mtu is config.AUTO else veth.mtu(conf.mtu)

    @property
    def mark(self) -> str:
        """The alias of the network's VXLAN link; it tells which configuration has set it up."""
        conf = self.conf
        keys: tuple[object, ...] = (conf.vni, conf.port, conf.group, conf.dev, conf.local, conf.mtu)
        keys = (*keys, sorted(conf.peers), *([conf.peers_from] if conf.peers_from else []))
        return SORT.alias(self.network, keys)

    @property
    def mark_unsettled(self) -> str:
        """The alias of a link that the next ADD has to look at again."""
        return SORT.alias(self.network)

    def _one_family(self) -> bool:
        """Is the underlay IPv6? Raises CNIError if addresses of both families are given."""
        given = [each for each in (*self.peers, self.group, self.local) if each]
        v6 = {len(each) == 16 for each in given}
        if len(v6) > 1:
            raise CNIError(
                "peers, group and local are of both families",
                "nodes send each other packets of one family: IPv4 or IPv6; what containers send "
                "each other may be of both",
            )
        return v6 == {True}

    def _check_places(self) -> None:
        """Refuse keys that do not determine where frames are sent. Raises CNIError."""
        conf = self.conf
        if bool(conf.peers) + bool(conf.group) + bool(conf.peers_from) != 1:
            several = "peers, group and peersFrom exclude each other"
            is_any = conf.peers or conf.group
            raise CNIError(
                f"vxlan: {several if is_any else 'needs peers, group or peersFrom'}",
                "`peers` lists the nodes' addresses (this node's may be among them), `group` is a "
                "multicast address that all of them listen to, `peersFrom` takes them from a store",
            )
        if conf.peers_from not in ("", FROM_CLUSTER):
            raise CNIError(
                f"invalid peersFrom {conf.peers_from!r}",
                f'it is "{FROM_CLUSTER}": the store of the cluster\'s nodes',
            )
        if conf.store is not None and not conf.peers_from:
            raise CNIError("store needs peersFrom", f'`"peersFrom": "{FROM_CLUSTER}"`')
        if conf.group and not conf.dev:
            raise CNIError(
                "group needs dev", "`dev` names the link by which the node reaches the group"
            )
        if not conf.dev:
            for each in (*self.peers, self.local):
                # fe80::/10
                if len(each) == 16 and each[0] == 0xFE and each[1] & 0xC0 == 0x80:
                    raise CNIError(
                        f"the link-local address {format_ip(each)} needs dev",
                        "`dev` names the link on which the address is valid",
                    )

    def _check_combinations(self) -> None:
        conf = self.conf
        for key, name in (("bridge", self.bridge), ("dev", conf.dev)):
            if name:
                _check_name(key, name)
        gateway.check_keys(conf)
        veth.check_host_name(conf.host_interface_name)


def bridge_name(conf: Conf) -> str:
    """The name of the network's bridge."""
    return conf.bridge or f"cni-vx{conf.vni}"


def _check_numbers(conf: Conf) -> None:
    if not 1 <= conf.vni <= _VNI_MAX:
        raise CNIError(
            f"invalid vni {conf.vni} (must be between 1 and {_VNI_MAX})",
            "all nodes of a network have one VNI, and each network another one",
        )
    if not 1 <= conf.port <= 65535:
        raise CNIError(f"invalid port {conf.port} (must be between 1 and 65535)")


def _check_name(key: str, name: str) -> None:
    try:
        check_ifname(name)
    except BadEnvironment as error:
        raise CNIError(f"invalid {key} {name!r}: {error.msg}") from None


def _unicast(text: str, key: str) -> bytes:
    packed = parse_ip(text)
    if not any(packed) or _is_multicast(packed):
        raise CNIError(f"{key}: {text} is no address of a node", "a multicast address is a `group`")
    return packed


def _multicast(text: str) -> bytes:
    packed = parse_ip(text)
    if not _is_multicast(packed):
        raise CNIError(f"group: {text} is no multicast address", "for example 239.1.1.1 or ff05::1")
    return packed


def _is_multicast(packed: bytes) -> bool:
    return packed[0] == 0xFF if len(packed) == 16 else packed[0] >> 4 == 0xE


def gateway_mac(vni: int, gateways: list[Any]) -> bytes:
    """The MAC of the bridge on each node that has these gateways (packed addresses).

    Nodes with the same gateway address have the same MAC, so that a container finds the gateway of
    its node, whichever node has answered. Different addresses have different ones.
    """
    raw = bytes.fromhex(digest(repr((vni, sorted(gateways))))[:12])
    # unicast, and locally administered
    return bytes((raw[0] & 0xFC | 0x02,)) + raw[1:]
