"""The veth or netkit pair between host and container, for bridge and ptp (docs/spec/common.md §3).

The name of the host's end is derived from the owner, and its alias names the owner.

Longer than 400 lines: ADD gives a pair its name and mark, by which DEL and GC recognise it. A
change of one of the three needs the other two in view.
"""

from __future__ import annotations

from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Any

import msgspec

from ...call import Call, Steps
from ...kernel import link, sysctl, uapi
from ...kernel import netlink as nl
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...owner import ALIAS_KEY_SIZE, Owner, network_group, network_key
from ...protocol import config
from ...protocol.errors import BadEnvironment, CNIError
from ...protocol.request import Attachment, check_ifname
from ...protocol.result import Interface
from . import unlink
from .unlink import needs_link

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

# How many names are tried for the host's end if the first one is taken.
ATTEMPTS = 10
MTU_MIN, MTU_MAX = 68, 65535  # the kernel's limits for veth and bridge

# The kinds of pairs. A netkit runs BPF programs in the peer's device, which saves a queue.
KINDS = ("veth", "netkit")


class Mac(config.Folded):
    mac: str = ""


class Args(config.Folded):
    cni: Mac = msgspec.field(default_factory=Mac)


class PairConf(config.NetConf):
    """The keys of all plugins that connect a container with a pair."""

    ip_masq: bool = False
    ip_masq_backend: str | None = None
    ip_masq_set: bool = False
    ip_masq_families: list[str] = []
    outbound_addr: list[str] = []
    mtu: config.Mtu = config.Mtu(0)
    no_default_route: bool = False
    accept_ra: bool | None = None
    autoconf: bool | None = None
    host_interface_name: str = ""
    args: Args = msgspec.field(default_factory=Args)
    runtime_config: Mac = msgspec.field(default_factory=Mac)


def parse_mac(mac: str) -> bytes:
    """The container's MAC as six bytes; b"" lets the kernel choose. Raises CNIError."""
    try:
        raw = link.parse_mac(mac) if mac else b""
    except ValueError as error:
        raise CNIError(
            f"failed to make veth pair: {error}", "a MAC looks like 02:00:00:12:34:56"
        ) from None
    if raw and (raw[0] & 1 or not any(raw)):
        raise CNIError(
            f"failed to make veth pair: address {mac}: not a unicast MAC address",
            "the first octet of an interface's MAC is even, for example 02:00:00:12:34:56",
        )
    return raw


def mtu(wanted: config.Mtu) -> int:
    """The MTU of both ends; 0 is the kernel's. Raises CNIError for one that it would refuse."""
    if wanted is config.AUTO:
        from . import uplink  # few configurations have "auto"

        return uplink.mtu()
    if wanted and not MTU_MIN <= wanted <= MTU_MAX:
        raise CNIError(
            f"invalid mtu {wanted}",
            f'mtu is 0 for the kernel\'s default, or {MTU_MIN} to {MTU_MAX}, or "auto"',
        )
    return wanted


def check_host_name(name: str, key: str = "hostInterfaceName") -> None:
    """Refuse a name in a configuration's `key` that no link can have. Raises CNIError."""
    if name:
        try:
            check_ifname(name)
        except BadEnvironment as error:
            raise CNIError(f"invalid {key} {name!r}: {error.msg}") from None


def require_free(call: Call[Any], host: Netlink, netns: Namespace) -> None:
    """Refuse an ADD for an interface that exists. Raises CNIError.

    ADD calls this before its first change: undoing a second ADD would otherwise release the lease
    that the first one allocated. A pair that an earlier ADD of this attachment made in another
    namespace is an error while that namespace exists; one that the kernel is about to delete with
    its namespace makes way for the new one.
    """
    if link.find(netns.netlink(), call.ifname) is not None:
        raise _taken(call, call.owner.veth())
    earlier = link.find(host, call.owner.veth())
    if earlier is None or not _is_marked(earlier, call.owner):
        return
    if _has_living_peer(host, earlier):
        raise CNIError(
            f"failed to make veth pair: an earlier ADD of {call.ifname} made {earlier.name}",
            "the namespace of its other end still exists: a DEL removes the pair",
        )
    unlink.delete_here(earlier.index)


def _has_living_peer(host: Netlink, outer: Link) -> bool:
    """Is the other end of the pair in a namespace that is not being deleted?"""
    from ...kernel import peer  # needed only if an earlier ADD had no DEL

    return peer.find(host, outer.peer, outer.peer_nsid) is not None


def _taken(call: Call[Any], name: str) -> CNIError:
    return CNIError(
        f'container veth name ("{call.ifname}") peer provided ("{name}") already exists',
        f"{call.netns} has an interface {call.ifname}; a DEL removes what an earlier ADD left",
    )


def create(
    call: Call[Any],
    host: Netlink,
    netns: Namespace,
    mtu: int,
    mac: bytes,
    master: int = 0,
    kind: str = "veth",
) -> tuple[Link, Link]:
    """Make the pair, with the host's end up and marked with the owner: (host end, container end).

    One request makes both ends, each in its namespace, so that a kill leaves both or none. Until
    the alias is set, the link group names the network. A kernel without netkit gets a veth pair and
    a line on stderr. The pair is deleted if the ADD fails later. Raises CNIError.
    """
    name = _create(call, host, netns, mtu, mac, master, kind)
    outer = link.get(host, name)
    wanted = call.conf.host_interface_name
    if wanted and wanted != name:
        # before the name: DEL finds the link by the mark, whenever the ADD is killed
        link.change(host, outer.index, alias=call.owner.alias)
        call.undo.callback(_undo_renamed, call.owner, wanted)
        _rename(host, outer, wanted)
        name, outer = wanted, outer._replace(name=wanted)
    prepare_host_end(name)
    # A port's packets are its bridge's. With an address each port would have three routes, and the
    # kernel walks through all routes of the node whenever a link goes down.
    link.change(host, outer.index, up=True, alias=call.owner.alias, group=0, link_local=not master)
    inner = link.get(netns.netlink(), call.ifname)
    if mac and inner.mac != link.format_mac(mac):  # a netkit is made without a MAC
        link.change(netns.netlink(), inner.index, mac=mac)
        inner = inner._replace(mac=link.format_mac(mac))
    return outer, inner


def _rename(host: Netlink, outer: Link, wanted: str) -> None:
    """Give the host's end its configured name; the derived one becomes its alternative name.

    Raises CNIError.
    """
    try:
        link.change(host, outer.index, name=wanted)
        link.add_altname(host, outer.index, outer.name)
    except NetlinkError as error:
        details = ""
        if link.is_name_taken(error):
            details = (
                "the node has an interface of that name: hostInterfaceName is for one container"
            )
        raise CNIError(
            f"failed to name the host's end of the veth pair {wanted}: {error}", details
        ) from None


def prepare_host_end(name: str) -> None:
    """Write the IPv6 sysctls of a link of ours on the host, before the link comes up.

    Router discovery is off, because a container could send rogue advertisements (CVE-2020-10749).
    Duplicate address detection is off, because it would delay the link-local address by one to two
    seconds, and without that the node cannot discover the neighbours to whom it forwards.
    """
    conf = f"net/ipv6/conf/{name}"
    sysctl.write_each([(f"{conf}/accept_ra", "0"), (f"{conf}/accept_dad", "0")])


def _undo(owner: Owner, name: str) -> None:
    with Netlink() as host:  # the verb's own socket is closed by now
        outer = link.find(host, name)
        if outer is not None and _is_ours(outer, owner):
            link.delete(host, outer.index)


def _undo_renamed(owner: Owner, name: str) -> None:
    with Netlink() as host:
        outer = link.find(host, name)
        if outer is not None and _is_marked(outer, owner):
            link.delete(host, outer.index)


def _create(
    call: Call[Any],
    host: Netlink,
    netns: Namespace,
    mtu: int,
    mac: bytes,
    master: int,
    kind: str,
) -> str:
    for attempt in range(ATTEMPTS):
        name = call.owner.veth(attempt)
        call.undo.callback(_undo, call.owner, name)
        try:
            if kind == "netkit":
                kind = _netkit_or_veth(call, host, netns, name, mtu)
            if kind == "veth":
                link.create_veth(
                    host,
                    name,
                    call.ifname,
                    mtu=mtu,
                    peer_mac=mac,
                    peer_netns=netns.fd,
                    master=master,
                    group=network_group(call.network),
                )
            return name
        except NetlinkError as error:
            if not link.is_name_taken(error):
                from ...kernel import link_advice

                advice = link_advice.of(error, kind, name)
                raise CNIError(f"failed to make veth pair: {error}", advice) from None
            call.undo.withdraw()
            if link.find(netns.netlink(), call.ifname) is not None:
                raise _taken(call, name) from None
    raise CNIError(
        "failed to make veth pair: no free name for the host's end",
        f"{call.owner.veth(0)} and {ATTEMPTS - 1} more are taken: see `ip link show type veth`",
    )


def _netkit_or_veth(call: Call[Any], host: Netlink, netns: Namespace, name: str, mtu: int) -> str:
    """Make a netkit pair and return "netkit"; return "veth" if the kernel has no netkit.

    Raises NetlinkError.
    """
    try:
        link.create_netkit(
            host,
            name,
            call.ifname,
            mtu=mtu,
            peer_netns=netns.fd,
            group=network_group(call.network),
        )
        return "netkit"
    except NetlinkError as error:
        if error.errno != EOPNOTSUPP:
            raise
        call.log("this kernel has no netkit (Linux 6.7, CONFIG_NETKIT): using veth")
        return "veth"


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Any], steps: Steps, *, ipam_required: bool = False) -> None:
    """Delete the pair, release the address, stop masquerading: the steps of a DEL.

    The address stays reserved only if the pair cannot be deleted; then the next DEL releases it.
    """
    ipam = call.conf.ipam.type
    if needs_link(ipam):
        steps.run(call.delegate, ipam)
    gone = _delete_pair(call, steps)
    if gone and (ipam or ipam_required) and not needs_link(ipam):
        steps.run(call.delegate, ipam)
    if asked_for(call, "ipMasq", call.conf.ip_masq):
        from . import masquerade  # bandwidth also uses this module, and needs no masquerading

        steps.run(masquerade.delete, call)


def asked_for(call: Call[Any], key: str, now: bool) -> bool:
    """In DEL and GC: is the key set (`now`), or was it set for an ADD whose rules have to go?

    The configuration may have changed since, or be broken.
    """
    kept = call.forgotten.intents if call.forgotten is not None else []
    return now or any(config.lookup(intent.config, key) for intent in kept)


def _delete_pair(call: Call[Any], steps: Steps) -> bool:
    """Delete the attachment's pair; False if it is known to exist still.

    The pair is found by name and alias of its host end, which the container cannot change, so its
    namespace is not needed. Only a pair of the reference has no mark.
    """
    deleted = steps.run(_delete_on_host, call)
    if deleted is None:
        return False
    netns = None if deleted else steps.run(call.find_netns)
    return netns is None or steps.run(_delete_in_container, call, netns) is not None


def _delete_on_host(call: Call[Any]) -> bool:
    """Delete the pair with our mark, or whose host end the prevResult names; False without one."""
    with Netlink() as host:
        ends = ends_of(host, call.owner) or _renamed(host, call)
        ends = ends or _named(host, _host_interfaces(call))
        for outer in ends:
            unlink.delete_here(outer.index)
    return bool(ends)


def _renamed(host: Netlink, call: Call[Any]) -> list[Link]:
    """The host end with a configured name, on a kernel without alternative names."""
    name = call.conf.host_interface_name
    outer = link.find(host, name) if name else None
    return [outer] if outer is not None and _is_marked(outer, call.owner) else []


def ends_of(host: Netlink, owner: Owner) -> list[Link]:
    """The host ends with a name of the owner, and with its alias or none.

    There is no alias if the ADD was killed before it set one. Usually there is one end, under the
    first name. The other names are looked up, too: another link may have had the first name then.
    """
    ends: list[Link] = []
    for attempt in range(ATTEMPTS):
        outer = link.find(host, owner.veth(attempt))
        if outer is not None and _is_ours(outer, owner):
            ends.append(outer)
        elif outer is None and ends:
            break
    return ends


def _is_ours(outer: Link, owner: Owner) -> bool:
    return outer.kind in KINDS and (not outer.alias or _is_marked(outer, owner))


def _is_marked(outer: Link, owner: Owner) -> bool:
    return outer.kind in KINDS and outer.alias.partition(" ")[0] == owner.alias_key


def _named(host: Netlink, entries: list[Interface]) -> list[Link]:
    """The host ends that the prevResult names, with its MAC, and without a mark of ours."""
    ends = []
    for entry in entries:
        outer = link.find(host, entry.name)
        if outer is None or outer.kind not in KINDS or outer.alias or outer.mac != entry.mac:
            continue
        if outer.peer_nsid is not None:  # else a VLAN's gateway interface, which containers share
            ends.append(outer)
    return ends


def _delete_in_container(call: Call[Any], netns: Namespace) -> bool:
    """Delete the pair of CNI_IFNAME if its other end is on the host, without another owner's mark.

    The reference does that, too, without marks. Returns True. Raises KernelError.
    """
    inner = link.find(netns.netlink(), call.ifname)
    if inner is None or not inner.peer:
        return True
    with Netlink() as host:
        outer = link.find(host, inner.peer)
    if outer is None or not _are_pair(outer, inner):
        return True
    named = [entry.name for entry in _host_interfaces(call)]
    others = outer.alias.startswith("cni:") and not _is_marked(outer, call.owner)
    if not others and (not named or outer.name in named):
        unlink.delete(netns, inner.index)  # not `outer`: a container can choose its indexes
    return True


def _host_interfaces(call: Call[Any]) -> list[Interface]:
    """The prevResult's interfaces on the host; [] without a readable prevResult."""
    try:
        previous = call.prev_result()
    except CNIError:
        return []
    return [entry for entry in previous.interfaces if not entry.sandbox] if previous else []


def _are_pair(outer: Link, inner: Link) -> bool:
    """Do these two links refer to each other as the ends of a pair?"""
    same_kind = outer.kind == inner.kind and inner.kind in KINDS
    return same_kind and outer.peer == inner.index and inner.peer == outer.index


# --- GC -------------------------------------------------------------------------------------------


def gc(call: Call[Any], keep: frozenset[Attachment], steps: Steps) -> None:
    """Remove pairs, leases and masquerading of attachments not in `keep`: the steps of a GC.

    The addresses stay reserved if not all pairs could be deleted.
    """
    kept = {owner.alias_key for owner in call.owners(keep)}
    with Netlink() as host:
        collected = steps.run(collect, host, call.network, kept)
    if collected is not None:
        call.note_removed("link", collected)
        call.collect_ipam(call.conf.ipam.type, steps)
    if asked_for(call, "ipMasq", call.conf.ip_masq):
        from . import masquerade  # as above

        steps.run(masquerade.gc, call, keep)


def collect(host: Netlink, network: str, keep: Collection[str]) -> int:
    """Delete the network's host ends whose alias key is not in `keep`; returns how many.

    An ADD that was killed may leave an end without alias, in the network's group. GC finds it only
    by that group, so it is deleted separately. Raises NetlinkError.
    """
    group = network_group(network)
    listed = link.dump(host)
    pairs = [each for each in _suspects(listed, network, keep) if each.kind in KINDS]
    unmarked = [each.index for each in pairs if not each.alias and each.group == group]
    marked = [each for each in pairs if each.alias]
    for index in unmarked:
        link.delete(host, index)
    if marked:
        from ...kernel import link_group

        link_group.delete(host, marked, listed)
    return len(unmarked) + len(marked)


def _suspects(listed: list[bytes], network: str, keep: Collection[str]) -> Iterator[Link]:
    """The links whose alias begins with a key of the network that is not in `keep`, and those in
    the network's group. Most links are recognised by searching their bytes, without parsing.
    """
    prefix, member = f"cni:{network_key(network)}-", nl.u32(uapi.IFLA_GROUP, network_group(network))
    mark = prefix.encode()
    kept = {key.encode() for key in keep}
    for data in listed:
        at = data.find(mark)
        if at < 0 and member not in data:
            continue
        if at >= 0 and data[at : at + ALIAS_KEY_SIZE] in kept:
            continue
        device = link.parse(data)
        if not device.alias or (
            device.alias.startswith(prefix) and device.alias.partition(" ")[0] not in keep
        ):
            yield device
