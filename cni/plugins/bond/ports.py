"""bond's ports: moving them into the container, and back with their old settings.

Links of the node are noted before they are moved (shared/device_notes.py, the `links` of the bond's
note). So DEL finds them by index and hardware, even under other names, and GC finds those that the
kernel returned to the node when their namespace ended. Links of the container stay there.
"""

from __future__ import annotations

from typing import Any

from ...call import Call, Steps
from ...kernel import bond, link
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError
from ..shared import device_notes, moved, sublink, unlink
from ..shared.device_notes import Note

# --- ADD ------------------------------------------------------------------------------------------


def find(sock: Netlink, names: list[str]) -> list[Link]:
    """The links that are to be ports. Raises CNIError when one is missing or cannot be a port."""
    ports = []
    for name in names:
        try:
            device = link.get(sock, name)
        except LinkNotFound as error:
            raise CNIError(
                f"failed to lookup link interface {name}: {error}",
                "it is looked for on the node, or with linksInContainer in the container",
            ) from None
        if device.master:
            master = link.find(sock, device.master)
            raise CNIError(
                f"link {name} has already a master: {master.name if master else device.master}",
                "a link is a port of one bond or bridge: was this ADD run before, without a DEL?",
            )
        if device.flags & link.IFF_LOOPBACK:
            raise CNIError(f"link {name} cannot be a port of a bond", "it is the loopback link")
        ports.append(device)
    _require_no_pair(ports)
    return ports


def _require_no_pair(devices: list[Link]) -> None:
    """Refuse both ends of one pair: they lead nowhere, and DEL recognises a moved end by the other
    one, on the node. Raises CNIError.
    """
    by_index = {device.index: device for device in devices}
    for device in devices:
        other = by_index.get(device.peer) if device.peer_nsid is None else None
        if other is not None and other is not device and device.kind == other.kind:
            raise CNIError(
                f"links {device.name} and {other.name} cannot be ports of one bond",
                f"they are the two ends of one {device.kind} pair",
            )


def recover(call: Call[Any], host: Netlink) -> None:
    """Restore the links of an earlier ADD of this attachment whose namespace has ended."""
    note = device_notes.load(call)
    for each in note.links if note is not None else ():
        moved.put_right(call, host, each)


def join(call: Call[Any], sock: Netlink, master: Link, devices: list[Link]) -> None:
    """Make links of the container ports of the bond; the undo restores them."""
    for device in devices:
        call.undo.callback(_release, call, device.index, device.up)
        try:
            # the driver refuses a link that is up, and sets its ports up itself
            link.change(sock, device.index, up=False)
            link.change(sock, device.index, master=master.index)
        except NetlinkError as error:
            raise CNIError(
                f"Failed to attached links to bond: {device.name}: {error}",
                "the driver of the link may not support being a port",
            ) from None


def _release(call: Call[Any], index: int, up: bool) -> None:
    with Namespace.open(call.netns) as netns:
        sock = netns.netlink()
        if link.find(sock, index) is not None:
            link.change(sock, index, master=0)
            link.change(sock, index, up=up)


def move_in(call: Call[Any], host: Netlink, netns: Namespace, devices: list[Link]) -> list[Link]:
    """Move links of the node into the container, under their names; the undo moves them back.

    The bond's note must be written before. Returns the links as they are in the container.
    """
    sock = netns.netlink()
    for device in devices:
        if link.find(sock, device.name) is not None:
            raise CNIError(
                f"failed to move link interface {device.name} to container netns: file exists",
                f"{call.netns} has an interface {device.name}",
            )
    note = device_notes.load(call) or Note(device_notes.identity_of(call.netns), 0, bond.KIND)
    note.links = [moved.describe(host, device, call.netns) for device in devices]
    device_notes.write(call, note)
    call.undo.callback(_undo_move, call, note, [each.name for each in devices if each.up])
    inside = []
    for each in note.links:
        try:
            link.change(host, each.index, netns=netns.fd)
            device = link.get(sock, each.name)
        except (NetlinkError, LinkNotFound) as error:
            raise CNIError(
                f"failed to move link interface {each.name} to container netns: {error}"
            ) from None
        # by what is noted, the link could be mistaken there for another one
        if device.index != each.index or not moved.has_hardware(each):
            each.index, each.moved = device.index, True
            device_notes.write(call, note)
        inside.append(device)
    return inside


def _undo_move(call: Call[Any], note: Note, up: list[str]) -> None:
    with Namespace.open(call.netns) as netns, Netlink() as host:
        for each in note.links:
            _move_back(call, host, netns, each)
        for name in up:
            link.change(host, link.get(host, name).index, up=True)


# --- DEL ------------------------------------------------------------------------------------------


def take_apart(call: Call[Any], netns: Namespace | None) -> bool:
    """Move the node's links back, and delete the bond; True if that is done, or was before.

    Raises CNIError, KernelError, after every step.
    """
    note = device_notes.load(call)
    if note is not None:
        netns = device_notes.namespace_of(call, note, netns)
    steps = Steps()
    links = list(note.links) if note is not None else []
    master = None if netns is None else _bond(call, netns.netlink(), note)
    stay: list[Link] = []
    if netns is not None and master is not None:
        ports = [each for each in link.list_all(netns.netlink()) if each.master == master.index]
        if note is None:
            links = _unnoted(call, ports)
        ours = {each.index for each in links}
        stay = [port for port in ports if port.index not in ours]
    with Netlink() as host:
        for each in links:
            steps.run(_move_back, call, host, netns, each)
    if netns is not None and master is not None:
        steps.run(unlink.delete, netns, master.index)
        for port in stay:  # the driver leaves them down
            steps.run(_set_up, netns.netlink(), port.index)
    steps.finish()
    return True


def _bond(call: Call[Any], sock: Netlink, note: Note | None) -> Link | None:
    if note is None:
        return sublink.find_unnoted(call, sock, bond.KIND)
    device = link.find(sock, note.index)
    return device if device is not None and device.kind == bond.KIND else None


def _unnoted(call: Call[Any], ports: list[Link]) -> list[Note]:
    """The node's links among the ports of a bond without a note (the other bond plugin's)."""
    if call.conf.links_in_container:
        return []
    names = {port.name for port in call.conf.links}
    return [
        Note("", port.index, port.kind, name=port.name, alias=port.alias, moved=True)
        for port in ports
        if port.name in names
    ]


def _move_back(call: Call[Any], host: Netlink, netns: Namespace | None, note: Note) -> None:
    """Move a link out of the container, if it is there, and restore its former settings."""
    inner = None
    if netns is not None:
        sock = netns.netlink()
        inner = moved.find(host, sock, note) if note.netns else link.find(sock, note.index)
    if inner is None or netns is None:
        if note.netns:
            moved.put_right(call, host, note)
        return
    if inner.master:
        link.change(netns.netlink(), inner.index, master=0)
    moved.move_out(host, netns, inner, note)
    if note.netns:
        moved.restore_settings(call, host, link.get(host, note.name), note)


def _set_up(sock: Netlink, index: int) -> None:
    if link.find(sock, index) is not None:
        link.change(sock, index, up=True)
