"""Links (network interfaces): get, create, change, delete (rtnetlink(7), linux/if_link.h).

Longer than most modules: each kind of link has a function that makes it. These functions share the
form of their request, and callers find them side by side as `link.create_…`.
"""

from __future__ import annotations

import struct
import sys
from _socket import AF_INET6
from collections.abc import Callable
from errno import EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, ERANGE
from time import monotonic
from typing import NamedTuple

from . import netlink as nl
from . import uapi
from .errors import LinkNotFound, NetlinkError
from .netlink import Netlink

RTM_NEWLINK = uapi.RTM_NEWLINK
RTNLGRP_LINK = uapi.RTNLGRP_LINK

IFF_UP = uapi.IFF_UP
IFF_LOOPBACK = uapi.IFF_LOOPBACK
IFF_PROMISC = uapi.IFF_PROMISC
IFF_ALLMULTI = uapi.IFF_ALLMULTI
IF_OPER_DOWN = uapi.IF_OPER_DOWN
IF_OPER_UP = uapi.IF_OPER_UP
_OPERSTATES = (
    "unknown", "not-present", "down", "lower-layer-down", "testing", "dormant", "up",
)  # fmt: skip

# Names of the configuration and values of the kernel.
MACVLAN_MODES = {
    "private": uapi.MACVLAN_MODE_PRIVATE,
    "vepa": uapi.MACVLAN_MODE_VEPA,
    "bridge": uapi.MACVLAN_MODE_BRIDGE,
    "passthru": uapi.MACVLAN_MODE_PASSTHRU,
}
IPVLAN_MODES = {
    "l2": uapi.IPVLAN_MODE_L2,
    "l3": uapi.IPVLAN_MODE_L3,
    "l3s": uapi.IPVLAN_MODE_L3S,
}

ETH_P_8021Q, ETH_P_8021AD = uapi.ETH_P_8021Q, uapi.ETH_P_8021AD

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_NO_ADDRESSES = nl.attr(uapi.IFLA_INET6_ADDR_GEN_MODE, bytes((uapi.IN6_ADDR_GEN_MODE_NONE,)))
_NO_LINK_LOCAL = nl.nest(uapi.IFLA_AF_SPEC, nl.nest(AF_INET6, _NO_ADDRESSES))
# asks for all links, without their counters
_EVERY_LINK = _IFINFO.pack(0, 0, 0, 0, 0) + nl.u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)
_ONE_QUEUE = nl.u32(uapi.IFLA_NUM_TX_QUEUES, 1) + nl.u32(uapi.IFLA_NUM_RX_QUEUES, 1)
_STATS64 = struct.Struct("=QQ")  # packets received, sent; and more
_NSID = struct.Struct("=i")


class Link(NamedTuple):
    """A link as the kernel describes it. `mac` is lower-case colon form; `peer` an index or 0.

    `kind_attributes` and `port_attributes` are the kernel's bytes (`data`, `port`): a bridge and
    its ports have 40 of either, and few requests need one.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    name: str
    kind: str
    flags: int
    mac: str
    mtu: int
    master: int
    peer: int
    peer_nsid: int | None
    alias: str
    operstate: int
    promiscuity: int
    txqlen: int
    kind_attributes: bytes
    port_attributes: bytes
    group: int = 0
    altnames: tuple[str, ...] = ()

    @property
    def data(self) -> dict[int, bytes]:
        """The attributes of the link's kind, by type (IFLA_BR_…, IFLA_VLAN_…)."""
        return nl.attr_map(self.kind_attributes)

    @property
    def port(self) -> dict[int, bytes]:
        """The attributes of a port of a bridge (IFLA_BRPORT_…) or of another master, by type."""
        return nl.attr_map(self.port_attributes)

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def carrier(self) -> bool:
        """Does the other end exist, and is it up? For a bridge: does any port forward?"""
        return bool(self.flags & uapi.IFF_LOWER_UP)

    @property
    def operstate_text(self) -> str:
        return _OPERSTATES[self.operstate] if self.operstate < len(_OPERSTATES) else "unknown"

    @property
    def vlan_filtering(self) -> bool:
        """For a bridge: does it filter by VLAN tags?"""
        return nl.get_byte(self.data.get(uapi.IFLA_BR_VLAN_FILTERING)) != 0

    @property
    def mode(self) -> int:
        """The mode of a macvlan or ipvlan, as the kernel's number."""
        return int.from_bytes(self.data.get(uapi.IFLA_MACVLAN_MODE, b""), sys.byteorder)

    @property
    def vlan_id(self) -> int:
        """The VLAN id of a vlan link."""
        return int.from_bytes(self.data.get(uapi.IFLA_VLAN_ID, b""), sys.byteorder)

    @property
    def vlan_protocol(self) -> int:
        """The protocol of a vlan link: ETH_P_8021Q or ETH_P_8021AD."""
        return int.from_bytes(self.data.get(uapi.IFLA_VLAN_PROTOCOL, b""), "big")

    @property
    def blocked(self) -> bool:
        """Has this bridge port a carrier, but will not forward frames by itself?

        Not while it is listening or learning (spanning tree protocol): then it will forward.
        """
        state = nl.get_byte(self.port.get(uapi.IFLA_BRPORT_STATE, b"\3"))
        return self.carrier and state in (uapi.BR_STATE_DISABLED, uapi.BR_STATE_BLOCKING)

    @property
    def hairpin(self) -> bool:
        """Does this bridge port send frames back to where they came from?"""
        return nl.get_byte(self.port.get(uapi.IFLA_BRPORT_MODE)) != 0

    @property
    def isolated(self) -> bool:
        """Is this bridge port kept from other isolated ports?"""
        return nl.get_byte(self.port.get(uapi.IFLA_BRPORT_ISOLATED)) != 0


def parse(payload: bytes) -> Link:
    """A Link from the payload of an RTM_NEWLINK message."""
    _, _, index, flags, _ = nl.unpack(_IFINFO, payload)
    a = nl.attr_map(payload, _IFINFO.size)
    info = nl.attr_map(a.get(uapi.IFLA_LINKINFO, b""))
    nsid = a.get(uapi.IFLA_LINK_NETNSID)
    return Link(
        index=index,
        name=nl.get_text(a.get(uapi.IFLA_IFNAME)),
        kind=nl.get_text(info.get(uapi.IFLA_INFO_KIND)),
        flags=flags,
        mac=format_mac(a.get(uapi.IFLA_ADDRESS, b"")),
        mtu=nl.get_u32(a.get(uapi.IFLA_MTU)),
        master=nl.get_u32(a.get(uapi.IFLA_MASTER)),
        peer=nl.get_u32(a.get(uapi.IFLA_LINK)),
        peer_nsid=nl.unpack(_NSID, nsid)[0] if nsid else None,
        alias=nl.get_text(a.get(uapi.IFLA_IFALIAS)),
        operstate=nl.get_byte(a.get(uapi.IFLA_OPERSTATE)),
        promiscuity=nl.get_u32(a.get(uapi.IFLA_PROMISCUITY)),
        txqlen=nl.get_u32(a.get(uapi.IFLA_TXQLEN)),
        kind_attributes=info.get(uapi.IFLA_INFO_DATA, b""),
        port_attributes=info.get(uapi.IFLA_INFO_SLAVE_DATA, b""),
        group=nl.get_u32(a.get(uapi.IFLA_GROUP)),
        altnames=tuple(
            nl.get_text(value)
            for key, value in nl.attrs(a.get(uapi.IFLA_PROP_LIST, b""))
            if key == uapi.IFLA_ALT_IFNAME
        ),
    )


def format_mac(raw: bytes) -> str:
    return raw.hex(":") if raw else ""


def parse_mac(text: str) -> bytes:
    """Six bytes from ``aa:bb:…``, ``aa-bb-…``, ``aabb.ccdd.eeff`` or ``aabbccddeeff``.

    Raises ValueError, whose text is that of Go's net.ParseMAC.
    """
    for separator, width in ((":", 2), ("-", 2), (".", 4), (" ", 12)):
        parts = text.split(separator)
        if len(parts) * width == 12 and all(len(p) == width for p in parts):
            try:
                return bytes.fromhex("".join(parts))
            except ValueError:
                break
    raise ValueError(f"address {text}: invalid MAC address")


def get(sock: Netlink, name: str | int) -> Link:
    """The link of that name, or index. Raises LinkNotFound, NetlinkError."""
    return parse(_get(sock, name))


def _get(sock: Netlink, name: str | int) -> bytes:
    index = name if isinstance(name, int) else 0
    # without the counters, which the kernel would add up over all CPUs
    payload = _IFINFO.pack(0, 0, index, 0, 0) + nl.u32(
        uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS
    )
    if isinstance(name, str):
        size = len(name.encode("utf-8", "surrogateescape"))
        # a name of 16 bytes or more can only be an alternative name
        payload += nl.text(uapi.IFLA_IFNAME if size < uapi.IFNAMSIZ else uapi.IFLA_ALT_IFNAME, name)
    try:
        return sock.get(uapi.RTM_GETLINK, payload)
    except NetlinkError as error:
        # ERANGE: the name is longer than any name that a link can have
        if error.errno in (ENODEV, ENOENT, ERANGE):
            raise LinkNotFound("Link not found") from None
        raise


def index_of(sock: Netlink, name: str) -> tuple[int, bool]:
    """The index of the link of that name, and whether it is set up. Raises as get()."""
    _, _, index, flags, _ = nl.unpack(_IFINFO, _get(sock, name))
    return index, bool(flags & IFF_UP)


def mac_of(sock: Netlink, index: int) -> str:
    """The MAC of the link with that index, as Link has it. Raises as get()."""
    attributes = nl.attrs(_get(sock, index), _IFINFO.size)
    return next((format_mac(raw) for kind, raw in attributes if kind == uapi.IFLA_ADDRESS), "")


def find(sock: Netlink, name: str | int) -> Link | None:
    """Like get(), but None when there is none."""
    try:
        return get(sock, name)
    except LinkNotFound:
        return None


def packets_sent(sock: Netlink, index: int) -> int:
    """How many packets a link has sent. Raises NetlinkError."""
    stats = nl.attr_map(sock.get(uapi.RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0)), _IFINFO.size)
    return int(nl.unpack(_STATS64, stats.get(uapi.IFLA_STATS64, b""))[1])


def list_all(sock: Netlink) -> list[Link]:
    """Every link of the namespace."""
    return [parse(data) for data in dump(sock)]


def dump(sock: Netlink) -> list[bytes]:
    """The payload of a message about every link, for `parse`.

    To parse a payload takes as long as twenty searches in it for the bytes of an attribute. So a
    caller that wants few of a thousand links searches first
    (`nl.u32(uapi.IFLA_GROUP, …) in data`).
    """
    return sock.dump(uapi.RTM_GETLINK, _EVERY_LINK)


def has_port(bridge: int, wanted: Callable[[bytes], bool]) -> bool:
    """Has the bridge (or bond) of that index a port whose message is `wanted`?

    The kernel lists the ports alone, and the list is read no further than to the first such port.
    """
    with Netlink() as sock:
        return sock.search(uapi.RTM_GETLINK, _EVERY_LINK + nl.u32(uapi.IFLA_MASTER, bridge), wanted)


def has_any(wanted: Callable[[bytes], bool]) -> bool:
    """Is there a link whose message is `wanted`? The list is read no further than to the first."""
    with Netlink() as sock:
        return sock.search(uapi.RTM_GETLINK, _EVERY_LINK, wanted)


def index_in(payload: bytes) -> int:
    """The index of the link that a message is about. Raises NetlinkError."""
    return int(nl.unpack(_IFINFO, payload)[2])


def create(  # noqa: PLR0913
    sock: Netlink,
    kind: str,
    name: str,
    *,
    data: bytes = b"",
    mtu: int = 0,
    mac: bytes = b"",
    parent: int = 0,
    master: int = 0,
    netns: int | None = None,
    group: int = 0,
    txqlen: int | None = None,
    up: bool = False,
    index: int = 0,
    more: bytes = b"",
) -> None:
    """Make a link, which must not exist. `data` is the kind's own attributes, `netns` a descriptor,
    `more` further attributes of links.

    The kernel chooses the index unless one is given. Raises NetlinkError (EEXIST when the name is
    taken).
    """
    info = [nl.text(uapi.IFLA_INFO_KIND, kind)]
    if data:
        info.append(nl.nest(uapi.IFLA_INFO_DATA, data))
    flags = IFF_UP if up else 0
    parts = [_IFINFO.pack(0, 0, index, flags, flags), _common(name, mtu, mac, netns)]
    if txqlen is not None:
        parts.append(nl.u32(uapi.IFLA_TXQLEN, txqlen))
    for key, value in (
        (uapi.IFLA_LINK, parent),
        (uapi.IFLA_MASTER, master),
        (uapi.IFLA_GROUP, group),
    ):
        if value:
            parts.append(nl.u32(key, value))
    parts.append(more)
    parts.append(nl.nest(uapi.IFLA_LINKINFO, *info))
    # EXCL: a link of that name belongs to somebody else, and must not be changed
    sock.request(RTM_NEWLINK, b"".join(parts), nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def create_veth(
    sock: Netlink,
    name: str,
    peer: str,
    *,
    mtu: int = 0,
    peer_mac: bytes = b"",
    peer_netns: int | None = None,
    master: int = 0,
    group: int = 0,
) -> None:
    """Make a veth pair: `name` in this namespace, `peer` in `peer_netns` (a descriptor).

    Each end has one queue a direction. Without these attributes the kernel makes one for each
    processor, and takes all but one out of use (veth_init_queues). For that it waits twice until no
    processor can still use them (synchronize_net), and holds the lock of all links meanwhile.
    """
    other = _IFINFO.pack(0, 0, 0, 0, 0) + _common(peer, mtu, peer_mac, peer_netns) + _ONE_QUEUE
    create(
        sock,
        "veth",
        name,
        data=nl.attr(uapi.VETH_INFO_PEER, other),
        mtu=mtu,
        master=master,
        group=group,
        more=_ONE_QUEUE,
    )


def create_netkit(
    sock: Netlink,
    name: str,
    peer: str,
    *,
    mtu: int = 0,
    peer_netns: int | None = None,
    group: int = 0,
) -> None:
    """Make a netkit pair in layer 2 mode: `name` here, `peer` in `peer_netns`; Linux 6.7 or later.

    Raises NetlinkError (EOPNOTSUPP when the kernel has no netkit).
    """
    other = _IFINFO.pack(0, 0, 0, 0, 0) + _common(peer, mtu, b"", peer_netns)
    data = nl.u32(uapi.IFLA_NETKIT_MODE, uapi.NETKIT_L2) + nl.attr(
        uapi.IFLA_NETKIT_PEER_INFO, other
    )
    create(sock, "netkit", name, data=data, mtu=mtu, group=group)


def create_bridge(
    sock: Netlink,
    name: str,
    *,
    mtu: int = 0,
    mac: bytes = b"",
    vlan_filtering: bool = False,
    group: int = 0,
) -> None:
    """Make a bridge; the kernel picks the MAC unless one is given."""
    data = nl.u8(uapi.IFLA_BR_VLAN_FILTERING, 1) if vlan_filtering else b""
    create(sock, "bridge", name, data=data, mtu=mtu, mac=mac, group=group)


def create_macvlan(
    sock: Netlink,
    name: str,
    parent: int,
    *,
    mode: int,
    mtu: int = 0,
    mac: bytes = b"",
    bc_queue_len: int = 0,
    netns: int | None = None,
    kind: str = "macvlan",
    index: int = 0,
) -> None:
    """Make a macvlan, or macvtap, on the link `parent`; `mode` is one of MACVLAN_MODES' values."""
    data = nl.u32(uapi.IFLA_MACVLAN_MODE, mode)
    if bc_queue_len:
        data += nl.u32(uapi.IFLA_MACVLAN_BC_QUEUE_LEN, bc_queue_len)
    create(sock, kind, name, data=data, mtu=mtu, mac=mac, parent=parent, netns=netns, index=index)


def create_ipvlan(
    sock: Netlink, name: str, parent: int, *, mode: int, mtu: int = 0, netns: int | None = None
) -> None:
    """Make an ipvlan on the link `parent`; `mode` is one of IPVLAN_MODES' values."""
    data = nl.u16(uapi.IFLA_IPVLAN_MODE, mode)
    create(sock, "ipvlan", name, data=data, mtu=mtu, parent=parent, netns=netns)


def create_vlan(
    sock: Netlink,
    name: str,
    parent: int,
    *,
    vid: int,
    protocol: int = ETH_P_8021Q,
    mtu: int = 0,
    netns: int | None = None,
) -> None:
    """Make an interface with that VLAN id on the link `parent`; `protocol` is an ETH_P_8021*."""
    data = nl.u16(uapi.IFLA_VLAN_ID, vid)
    if protocol != ETH_P_8021Q:
        data += nl.attr(uapi.IFLA_VLAN_PROTOCOL, protocol.to_bytes(2, "big"))
    create(sock, "vlan", name, data=data, mtu=mtu, parent=parent, netns=netns)


def create_ifb(sock: Netlink, name: str, *, mtu: int, group: int = 0) -> None:
    """Make an intermediate functional block (ifb), up and without a queue of its own.

    Packets that are redirected to it pass its qdisc, and then go on from where they were taken.
    """
    create(sock, "ifb", name, mtu=mtu, group=group, txqlen=0, up=True)


def has_kind(sock: Netlink, kind: str) -> bool:
    """Does the kernel have this kind of link? Loads the kind's module, as making a link would.

    No link is made: the kernel looks the kind up, and then refuses the name.
    """
    try:
        create(sock, kind, ".")
    except NetlinkError as error:
        return error.errno != EOPNOTSUPP
    return True


def check_literal(name: str) -> None:
    """Refuse a name that the kernel would change. Raises NetlinkError (EINVAL).

    The kernel takes a name with ``%`` for a pattern (``eth%d``), and ends a name at a NUL.
    """
    if "%" in name:
        raise NetlinkError(EINVAL, f"{name!r} is a pattern to the kernel, not a name")
    if "\0" in name:
        raise NetlinkError(EINVAL, f"{name!r} contains a NUL character")


def _common(name: str, mtu: int, mac: bytes, netns: int | None) -> bytes:
    check_literal(name)
    out = nl.text(uapi.IFLA_IFNAME, name)
    if mtu:
        out += nl.u32(uapi.IFLA_MTU, mtu)
    if mac:
        out += nl.attr(uapi.IFLA_ADDRESS, mac)
    if netns is not None:
        out += nl.u32(uapi.IFLA_NET_NS_FD, netns)
    return out


def change(  # noqa: PLR0913
    sock: Netlink,
    index: int,
    *,
    up: bool | None = None,
    promisc: bool | None = None,
    allmulti: bool | None = None,
    name: str | None = None,
    mac: bytes | None = None,
    mtu: int | None = None,
    txqlen: int | None = None,
    master: int | None = None,
    alias: str | None = None,
    netns: int | None = None,
    group: int | None = None,
    link_local: bool = True,
) -> None:
    """Change what is given, in one request; `master=0` releases a port. Raises NetlinkError.

    Without `link_local` the kernel gives the link no IPv6 address of its own when it comes up.
    """
    flags = mask = 0
    for wanted, bit in ((up, IFF_UP), (promisc, IFF_PROMISC), (allmulti, IFF_ALLMULTI)):
        if wanted is not None:
            mask |= bit
            flags |= bit if wanted else 0
    parts = [_IFINFO.pack(0, 0, index, flags, mask)]
    if name is not None:
        check_literal(name)
        parts.append(nl.text(uapi.IFLA_IFNAME, name))
    if mac is not None:
        parts.append(nl.attr(uapi.IFLA_ADDRESS, mac))
    numbers = {
        uapi.IFLA_MTU: mtu,
        uapi.IFLA_TXQLEN: txqlen,
        uapi.IFLA_MASTER: master,
        uapi.IFLA_NET_NS_FD: netns,
        uapi.IFLA_GROUP: group,
    }
    parts += [nl.u32(kind, value) for kind, value in numbers.items() if value is not None]
    if alias is not None:
        parts.append(nl.text(uapi.IFLA_IFALIAS, alias))
    message = b"".join(parts)
    if link_local:
        sock.request(RTM_NEWLINK, message)
        return
    # First, since it is of no use when the link is up. A link without IPv6 refuses it.
    quiet = _IFINFO.pack(0, 0, index, 0, 0) + _NO_LINK_LOCAL
    _, failed = sock.batch([(RTM_NEWLINK, quiet, 0), (RTM_NEWLINK, message, 0)])
    if failed is not None:
        raise failed


def add_altname(sock: Netlink, index: int, name: str) -> None:
    """Give a link an alternative name; does nothing before Linux 5.5."""
    _change_altname(sock, uapi.RTM_NEWLINKPROP, index, name, nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def remove_altname(sock: Netlink, index: int, name: str) -> None:
    """Remove an alternative name of a link; one that it does not have is success."""
    _change_altname(sock, uapi.RTM_DELLINKPROP, index, name, 0)


def _change_altname(sock: Netlink, kind: int, index: int, name: str, flags: int) -> None:
    names = nl.nest(uapi.IFLA_PROP_LIST, nl.text(uapi.IFLA_ALT_IFNAME, name))
    try:
        sock.request(kind, _IFINFO.pack(0, 0, index, 0, 0) + names, flags)
    except NetlinkError as error:
        # EOPNOTSUPP: before Linux 5.5 there are no alternative names
        if error.errno not in (EEXIST, ENOENT, EOPNOTSUPP, EINVAL):
            raise


def find_altname(sock: Netlink, name: str) -> Link | None:
    """The link with that alternative name; None when there is none."""
    payload = _IFINFO.pack(0, 0, 0, 0, 0) + nl.text(uapi.IFLA_ALT_IFNAME, name)
    try:
        return parse(sock.get(uapi.RTM_GETLINK, payload))
    except NetlinkError as error:
        # the last two: before Linux 5.5 there are no alternative names
        if error.errno in (ENODEV, ENOENT, EINVAL, EOPNOTSUPP):
            return None
        raise


def set_port(sock: Netlink, index: int, *, hairpin: bool, isolated: bool) -> None:
    """Set hairpin and isolation of a bridge port. Raises NetlinkError."""
    port = nl.nest(
        uapi.IFLA_PROTINFO,
        nl.u8(uapi.IFLA_BRPORT_MODE, hairpin),
        nl.u8(uapi.IFLA_BRPORT_ISOLATED, isolated),
    )
    sock.request(uapi.RTM_SETLINK, _IFINFO.pack(uapi.AF_BRIDGE, 0, index, 0, 0) + port)


def delete(sock: Netlink, index: int) -> None:
    """Delete a link; one that is gone already is success. Raises NetlinkError."""
    try:
        sock.request(*deletion(index))
    except NetlinkError as error:
        if error.errno != ENODEV:
            raise


def deletion(index: int) -> tuple[int, bytes]:
    """Type and payload of the request that deletes a link."""
    return uapi.RTM_DELLINK, _IFINFO.pack(0, 0, index, 0, 0)


def says_gone(kind: int, payload: bytes, index: int) -> bool:
    """Does this notification (of RTNLGRP_LINK) announce that the link `index` was deleted?"""
    if kind != uapi.RTM_DELLINK:
        return False
    family, _, deleted, _, _ = nl.unpack(_IFINFO, payload)
    # a bridge announces a port that leaves it by the same message, of the family AF_BRIDGE
    return bool(family == 0 and deleted == index)


def delete_name(sock: Netlink, name: str) -> bool:
    """Delete the link of that name; False if there is none. Raises NetlinkError."""
    device = find(sock, name)
    if device is None:
        return False
    delete(sock, device.index)
    return True


def wait_operational(sock: Netlink, events: Netlink, index: int, timeout: float) -> Link:
    """Wait until the link's operstate is UP, at most `timeout` seconds; return its last state.

    `events` is a socket that was subscribed to RTNLGRP_LINK before the link was changed.
    """
    deadline = monotonic() + timeout
    while True:
        # the state is looked up, since a notification may have been lost (Netlink.events)
        device = get(sock, index)
        left = deadline - monotonic()
        if device.operstate == IF_OPER_UP or left <= 0:
            return device
        events.events(min(left, 0.25))


def is_name_taken(error: NetlinkError) -> bool:
    """Did create() fail because the name is taken?"""
    return error.errno == EEXIST
