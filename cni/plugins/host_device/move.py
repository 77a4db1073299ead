"""host-device: moving a device into the container and back (docs/spec/host-device.md).

Before the move, ADD notes on the host how it found the device: index and kind, hardware, name, MAC,
MTU, flags, alternative names (shared/device_notes.py). DEL moves back the device of the note,
under whatever name it has, and restores all that; so alias and names in the container decide
nothing. Without a note the reference or an older build moved the device: its alias is its old name.

In the container the device has two alternative names: the owner's key, and its old name. By that
one a later ADD finds it after its namespace has ended, when the kernel has returned it to the node.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ...call import Call
from ...kernel import link, peer
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...netns.namespace import cookie
from ...protocol.errors import CNIError
from ..shared import device_notes, moved, veth
from ..shared.device_notes import Note

# --- ADD ------------------------------------------------------------------------------------------


def into(
    call: Call[Any],
    host: Netlink,
    netns: Namespace,
    device: Link,
    wanted: str,
    prepare: Callable[[Note], Callable[[], None]] | None = None,
) -> Link:
    """Move a link of the host into the container: noted, renamed, marked and up there.

    `wanted` is the configured name. `prepare` may complete the note; what it returns is called
    when the note is written, before the move. Returns the link as it is in the container; it is
    moved back if the ADD fails. Raises CNIError.
    """
    sock = netns.netlink()
    if link.find(sock, call.ifname) is not None:
        raise CNIError(
            f"failed to move link {device.name}: file exists",
            f"{call.netns} has an interface {call.ifname}",
        )
    note = _describe(call, host, device, wanted)
    note.cookie = cookie(sock.sock)
    change = prepare(note) if prepare is not None else None
    device_notes.save(call, note)
    call.undo.callback(_undo, call, device.up)
    if change is not None:
        change()
    try:
        link.change(host, device.index, netns=netns.fd, name=call.ifname, alias=note.name)
        inner = link.get(sock, call.ifname)
        # The kernel chooses another index if the container has a link of that one.
        if inner.index != note.index or not moved.has_hardware(note):
            note.index, note.moved = inner.index, True
            device_notes.write(call, note)
        link.add_altname(sock, inner.index, call.owner.alias_key)
        link.add_altname(sock, inner.index, note.name)
        link.change(sock, inner.index, up=True)
    except (NetlinkError, LinkNotFound) as error:
        raise CNIError(f"failed to move link {device.name}: {error}") from None
    return inner


def _describe(call: Call[Any], host: Netlink, device: Link, wanted: str) -> Note:
    """The note for a device on the host. Raises NetlinkError."""
    note = moved.describe(host, device, call.netns)
    # The kernel returned it when its namespace ended: it has another name, and our alias.
    if device.alias != "" and device.alias == wanted:
        note.name, note.alias = device.alias, ""
        note.altnames = [name for name in device.altnames if not name.startswith(moved.MARK)]
        note.altnames = [name for name in note.altnames if name != note.name]
    return note


def recover(call: Call[Any], host: Netlink) -> None:
    """Restore the device of an earlier ADD of this attachment whose namespace has ended."""
    note = device_notes.load(call)
    if note is not None and (note.returned or moved.put_right(call, host, note)):
        device_notes.remove(call)


def _undo(call: Call[Any], up: bool) -> None:
    with Namespace.open(call.netns) as netns:
        back(call, netns, up=up)


# --- DEL ------------------------------------------------------------------------------------------


def back(call: Call[Any], netns: Namespace | None, up: bool = False) -> bool:
    """Move the attachment's device to the host; True, also if it is there or gone already.

    `netns` is the namespace at CNI_NETNS; if that is gone, another path to the container is looked
    for. `up` also sets the device up. Raises CNIError, KernelError if it is still in the container.
    """
    note = device_notes.load(call)
    with Netlink() as host:
        if note is None:
            device_notes.remove_unfinished(call)
            if netns is not None:
                _move_unnoted(call, host, netns)
            return True
        inside = device_notes.namespace_of(call, note, netns)
        if not note.returned:
            _move_noted(call, host, inside, note)
        if up:
            link.change(host, link.get(host, note.name).index, up=True)
    if inside is not None and _find_unnoted(call, inside) is not None:
        # Keep the note: a repeated DEL must not take this link for one that the reference moved.
        note.returned = True
        device_notes.write(call, note)
    else:
        device_notes.remove(call)
    return True


def _move_noted(call: Call[Any], host: Netlink, netns: Namespace | None, note: Note) -> None:
    """Move the device of the note out of the namespace, or find it on the host; restore it."""
    if netns is None:
        moved.put_right(call, host, note)
        return
    inner = moved.find(host, netns.netlink(), note)
    if inner is not None:
        moved.move_out(host, netns, inner, note)
        moved.restore_settings(call, host, link.get(host, note.name), note)
    elif not moved.put_right(call, host, note):
        _require_gone(netns, host, note)


def _require_gone(netns: Namespace, host: Netlink, note: Note) -> None:
    """Refuse to end while the device exists, but is neither on the host nor in the container.

    Hardware is looked for in sysfs; a pair exists as long as its other end. Raises CNIError,
    NetlinkError.
    """
    bus, _, name = note.parent.partition("/")
    there, what = False, f"{note.name} ({note.parent})"
    if name:
        there = os.path.exists(f"/sys/bus/{bus}/devices/{name}")
    elif note.moved and note.kind in veth.KINDS:
        other = peer.find(host, note.peer, note.peer_nsid)
        there, what = other is not None and other.kind == note.kind, note.name
    if there:
        raise CNIError(
            f"failed to find device {what}",
            f"it is neither on the host nor in {netns.path}: something in the container has moved "
            "it on; it comes back when that namespace ends, then repeat the DEL",
        )


# --- devices without a note -----------------------------------------------------------------------


def _move_unnoted(call: Call[Any], host: Netlink, netns: Namespace) -> None:
    """Move back what the reference or an older build moved in: its alias is its old name."""
    inner = _find_unnoted(call, netns)
    if inner is None:
        return
    if not inner.alias:
        raise CNIError(
            f'failed to find original ifname for "{inner.name}" (alias is not set)',
            "it was not moved here by this plugin, or somebody changed its alias",
        )
    note = Note("", inner.index, inner.kind, name=inner.alias)
    note.altnames = [n for n in inner.altnames if n != inner.alias and not n.startswith(moved.MARK)]
    moved.move_out(host, netns, inner, note)


def _find_unnoted(call: Call[Any], netns: Namespace) -> Link | None:
    """The link that has the owner's key as alternative name, or else the one named CNI_IFNAME."""
    sock = netns.netlink()
    device = link.find_altname(sock, call.owner.alias_key) or link.find(sock, call.ifname)
    return None if device is None or device.flags & link.IFF_LOOPBACK else device
