"""`removeEmptyBridge`: removes a bridge of this plugin after its last port, and the interface of a
VLAN's gateway after the VLAN's last port.

Links that this plugin makes for a network with this key bear a mark, their alias. Only links with
the mark are removed: none of the reference's, an administrator's, or a network's without the key.
Until a new link has its mark, it is in the network's link group.
"""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...kernel import bridge_vlan, link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...owner import network_group
from ..shared import veth
from . import device

MARK = "cni-bridge: removed with its last port (removeEmptyBridge)"

group = network_group


def mark(host: Netlink, name: str) -> None:
    """Mark a link that was made in the network's group. Raises NetlinkError, LinkNotFound."""
    made = link.get(host, name)
    link.change(host, made.index, alias=MARK, group=0)


def bridge_of(call: Call[Any], name: str) -> int:
    """The index of the attachment's bridge, else of the link `name`, else 0.

    Call it while the port exists, so before DEL removes it.
    """
    with Netlink() as host:
        ends = veth.ends_of(host, call.owner)
        if ends and ends[0].master:
            return ends[0].master
        found = link.find(host, name)
    return found.index if found is not None else 0


def remove(call: Call[Any], index: int, vlan: int) -> None:
    """Remove the gateway's interface of `vlan` (0: there is none), and the bridge, if they are
    unused and marked.

    Raises NetlinkError.
    """
    if not index:
        return
    with Netlink() as host:

        def delete(unused: int) -> None:
            link.delete(host, unused)
            if unused == index and _has_uplink(call):
                _uplinks().forget(call, index)

        device.remove_unused(
            call, "bridge: an empty bridge", lambda: _unused(call, host, index, vlan), delete
        )


def _has_uplink(call: Call[Any]) -> bool:
    return bool(getattr(call.conf, "uplink_interface", ""))  # vxlan has no such key


def _uplinks() -> Any:
    from . import uplink_port  # few configurations have one

    return uplink_port


def _unused(call: Call[Any], host: Netlink, index: int, vlan: int) -> list[int]:
    """The indexes of the links to delete, in that order."""
    bridge = link.find(host, index)
    if bridge is None or bridge.kind != "bridge":
        return []
    uplinks = _uplinks().ports_of(call, index) if _has_uplink(call) else set()
    forwards = bridge.carrier and not uplinks
    if not vlan and (forwards or not _is_marked(call, bridge)):
        return []  # the usual case, known without a list of ports: one of them forwards
    links = link.list_all(host)
    by_index = {each.index: each for each in links}
    ports = [each for each in links if each.master == index and each.index not in uplinks]
    inner = {
        port.index: by_index[port.peer]
        for port in ports
        if port.peer_nsid is None and port.peer in by_index
    }  # port → gateway's interface; a container's end is in another namespace
    gone = []
    for port, interface in inner.items():
        is_of_vlan = interface.name == f"{bridge.name}.{vlan}"
        if (
            vlan
            and is_of_vlan
            and _is_marked(call, interface)
            and _is_last(host, ports, port, vlan)
        ):
            gone.append(port)
    is_used = any(port.index not in gone for port in ports)
    has_upper = any(each.peer == index and each.peer_nsid is None for each in links)
    unused = [inner[port].index for port in gone]  # a port goes with its peer
    if not is_used and not has_upper and _is_marked(call, bridge):
        unused.append(index)
    return unused


def _is_last(host: Netlink, ports: list[Link], own: int, vlan: int) -> bool:
    """Is the gateway's own port the only one with this VLAN?"""
    having = bridge_vlan.ports_in(host, vlan)
    return not any(port.index in having for port in ports if port.index != own)


def _is_marked(call: Call[Any], made: Link) -> bool:
    return made.alias == MARK or (not made.alias and made.group == group(call.network))
