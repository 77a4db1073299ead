"""host-device: moving a device into the container, and back as it was (docs/spec/host-device.md).

Before the move, ADD notes on the host how it found the device: index and kind, hardware, name, MAC,
MTU, flags, alternative names (shared/device_notes.py). DEL moves back the device of the note,
whatever it is called by now, and restores all that; so alias and names in the container decide
nothing. Without a note the reference or an older build moved the device: its alias is its old name.

In the container the device has two alternative names: the owner's key, and its old name, by which
another ADD finds it when the kernel has given it back from a namespace that ended.
"""

from __future__ import annotations

import os
from typing import Any

from ...call import Call
from ...kernel import hardware, link, peer
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...netns.namespace import cookie
from ...protocol.errors import CNIError
from ..shared import device_notes, veth
from ..shared.device_notes import Note

_MARK = "cni:"  # what the owner's key begins with

# --- ADD ------------------------------------------------------------------------------------------


def into(call: Call[Any], host: Netlink, netns: Namespace, device: Link, wanted: str) -> Link:
    """Move a link of the host into the container: noted, renamed, marked and up there.

    `wanted` is the configured name. Returns the link as it is in the container; it is moved back if
    the ADD fails. Raises CNIError.
    """
    sock = netns.netlink()
    if link.find(sock, call.ifname) is not None:
        raise CNIError(
            f"failed to move link {device.name}: file exists",
            f"{call.netns} has an interface {call.ifname}",
        )
    note = _describe(call, host, device, wanted)
    note.cookie = cookie(sock.sock)
    device_notes.save(call, note)
    call.undo.callback(_undo, call, device.up)
    try:
        link.change(host, device.index, netns=netns.fd, name=call.ifname, alias=note.name)
        inner = link.get(sock, call.ifname)
        # The kernel chooses another index if the container has a link of that one.
        if inner.index != note.index or not _has_hardware(note):
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
    # The kernel gave it back from a namespace that ended: it has another name, and our alias.
    strayed = device.alias != "" and device.alias == wanted
    name = device.alias if strayed else device.name
    behind = hardware.describe(host, device.index)
    return Note(
        netns=device_notes.identity_of(call.netns),
        index=device.index,
        kind=device.kind,
        name=name,
        alias="" if strayed else device.alias,
        mac=device.mac,
        mtu=device.mtu,
        promisc=bool(device.flags & link.IFF_PROMISC),
        allmulti=bool(device.flags & link.IFF_ALLMULTI),
        altnames=[n for n in device.altnames if n != name and not n.startswith(_MARK)],
        permanent_mac=behind.permanent_mac,
        parent=behind.parent,
        peer=device.peer,
        peer_nsid=device.peer_nsid,
    )


def recover(call: Call[Any], host: Netlink) -> None:
    """Put right the device of an earlier ADD of this attachment whose namespace has ended."""
    note = device_notes.load(call)
    if note is not None and (note.returned or put_right(call, host, note)):
        device_notes.remove(call)


def _undo(call: Call[Any], up: bool) -> None:
    with Namespace.open(call.netns) as netns:
        back(call, netns, up=up)


# --- DEL ------------------------------------------------------------------------------------------


def back(call: Call[Any], netns: Namespace | None, up: bool = False) -> bool:
    """Move the attachment's device to the host; True, also if it is there or gone already.

    `netns` is what CNI_NETNS names; another path to the container is looked for if that is gone.
    `up` also sets it up. Raises CNIError, KernelError when it is in the container still.
    """
    note = device_notes.load(call)
    with Netlink() as host:
        if note is None:
            if netns is not None:
                _move_unnoted(call, host, netns)
            return True
        inside = device_notes.namespace_of(call, note, netns)
        if not note.returned:
            _move_noted(call, host, inside, note)
        if up:
            link.change(host, link.get(host, note.name).index, up=True)
    if inside is not None and _find_unnoted(call, inside) is not None:
        # A repeated DEL must not take this link for one that the reference moved: keep the note.
        note.returned = True
        device_notes.write(call, note)
    else:
        device_notes.remove(call)
    return True


def _move_noted(call: Call[Any], host: Netlink, netns: Namespace | None, note: Note) -> None:
    """Move the device of the note out of the namespace, or find it on the host; put it right."""
    if netns is None:
        put_right(call, host, note)
        return
    inner = _find(host, netns.netlink(), note)
    if inner is not None:
        _move_out(host, netns, inner, note)
        _restore_settings(call, host, link.get(host, note.name), note)
    elif not put_right(call, host, note):
        _require_gone(netns, host, note)


def _find(host: Netlink, sock: Netlink, note: Note) -> Link | None:
    """The device of the note among the links of the socket's namespace. Raises NetlinkError."""
    device = link.find(sock, note.index)
    if device is not None and _is_noted(host, sock, note, device):
        return device
    if not _has_hardware(note):
        return None
    for device in link.list_all(sock):
        if device.index != note.index and _is_noted(host, sock, note, device):
            return device
    return None


def _is_noted(host: Netlink, sock: Netlink, note: Note, device: Link) -> bool:
    """Is this link the device of the note? Compares only what a namespace cannot change."""
    if device.kind != note.kind or device.flags & link.IFF_LOOPBACK:
        return False
    if _has_hardware(note):
        behind = hardware.describe(sock, device.index)
        # The node may give a virtual function another MAC while the container has it.
        same_mac = behind.permanent_mac == note.permanent_mac
        return behind.parent == note.parent and (
            same_mac or (behind.parent != "" and device.index == note.index)
        )
    if note.kind in veth.KINDS:
        other = peer.find(host, note.peer, note.peer_nsid)
        if other is None or other.kind != note.kind or other.peer != device.index:
            return False
        if note.peer_nsid is None:  # the other end is on the host: is this one, too?
            return (other.peer_nsid is None) == (sock is host)
    return device.index == note.index and (note.moved or device.alias == note.name)


def _has_hardware(note: Note) -> bool:
    """Is it a device by itself, which no other link can be taken for?"""
    return bool(note.permanent_mac or note.parent)


def _move_out(host: Netlink, netns: Namespace, inner: Link, note: Note) -> None:
    """Move the device to the host, under the noted name. Raises CNIError."""
    if link.find(host, note.name) is not None:
        raise CNIError(
            f"failed to move link {inner.name} to the host: file exists",
            f"the host has an interface {note.name} by now: rename it and repeat the DEL",
        )
    sock = netns.netlink()
    with Namespace.current() as home:
        try:
            _give_old_name(sock, inner, note)
            link.change(sock, inner.index, netns=home.fd, name=note.name, alias=note.alias)
        except NetlinkError as error:
            _restore(sock, inner)
            raise CNIError(f"failed to move link {inner.name} to the host: {error}") from None


def _give_old_name(sock: Netlink, inner: Link, note: Note) -> None:
    """Rename the device before it moves, so that the host never sees the container's names.

    udev and the like act on the first name they see. Only where something else in the container
    has the old name, the kernel renames the device as it arrives.
    """
    link.change(sock, inner.index, up=False)  # what is up cannot be renamed before Linux 6.2
    for name in inner.altnames:
        if name not in note.altnames:
            link.remove_altname(sock, inner.index, name)
    if link.find(sock, note.name) is None:
        link.change(sock, inner.index, name=note.name)


def _restore(sock: Netlink, inner: Link) -> None:
    """Leave the device in the container as it was, so that DEL can be repeated."""
    if link.find(sock, inner.index) is not None:
        link.change(sock, inner.index, name=inner.name, alias=inner.alias)
        link.change(sock, inner.index, up=inner.up)
        for name in inner.altnames:
            link.add_altname(sock, inner.index, name)


def put_right(call: Call[Any], host: Netlink, note: Note) -> bool:
    """Restore what the note says if its device is on the host, as when its namespace has ended.

    Returns whether it is. Software links end with their namespace. Raises NetlinkError.
    """
    device = _find(host, host, note) if _has_hardware(note) or note.kind in veth.KINDS else None
    if device is not None:
        _restore_settings(call, host, device, note)
    return device is not None


def _restore_settings(call: Call[Any], host: Netlink, device: Link, note: Note) -> None:
    """Make the device on the host what it was before ADD. Raises NetlinkError.

    What the driver refuses is logged: the device is back all the same.
    """
    for name in device.altnames:
        if name not in note.altnames and name != note.name:
            link.remove_altname(host, device.index, name)
    for key, value in _differences(device, note).items():
        try:
            if key == "name":
                link.remove_altname(host, device.index, note.name)
                link.change(host, device.index, up=False)
            link.change(host, device.index, **{key: value})
        except NetlinkError as error:
            call.log(f"host-device: cannot restore {key} of {device.name}: {error}")


def _differences(device: Link, note: Note) -> dict[str, Any]:
    """What has to change for the device to be as noted, as keywords of link.change."""
    todo: dict[str, Any] = {}
    if device.name != note.name:
        todo["name"] = note.name
    if device.mac != note.mac:
        todo["mac"] = link.parse_mac(note.mac)
    if device.mtu != note.mtu:
        todo["mtu"] = note.mtu
    if bool(device.flags & link.IFF_PROMISC) != note.promisc:
        todo["promisc"] = note.promisc
    if bool(device.flags & link.IFF_ALLMULTI) != note.allmulti:
        todo["allmulti"] = note.allmulti
    if device.alias != note.alias:
        todo["alias"] = note.alias
    return todo


def _require_gone(netns: Namespace, host: Netlink, note: Note) -> None:
    """Refuse to end when the device exists, but is neither here nor in the container.

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
    note.altnames = [n for n in inner.altnames if n != inner.alias and not n.startswith(_MARK)]
    _move_out(host, netns, inner, note)


def _find_unnoted(call: Call[Any], netns: Namespace) -> Link | None:
    """The link that has the owner's key as alternative name, or else the one named CNI_IFNAME."""
    sock = netns.netlink()
    device = link.find_altname(sock, call.owner.alias_key) or link.find(sock, call.ifname)
    return None if device is None or device.flags & link.IFF_LOOPBACK else device
