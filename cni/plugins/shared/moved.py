"""A device of the host that ADD has moved into a container: finding it, and restoring it.

Only properties that a namespace cannot change are compared: the hardware, the other end of a pair,
an index. So alias and names in the container decide nothing. Which device to move is not decided
here.
"""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...kernel import hardware, link, peer
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError
from . import device_notes, veth
from .device_notes import Note

MARK = "cni:"  # prefix of the owner's key


def describe(host: Netlink, device: Link, netns: str) -> Note:
    """The note for a device on the host that is going to be moved into the namespace at `netns`.

    Raises NetlinkError.
    """
    behind = hardware.describe(host, device.index)
    return Note(
        netns=device_notes.identity_of(netns),
        index=device.index,
        kind=device.kind,
        name=device.name,
        alias=device.alias,
        mac=device.mac,
        mtu=device.mtu,
        promisc=bool(device.flags & link.IFF_PROMISC),
        allmulti=bool(device.flags & link.IFF_ALLMULTI),
        altnames=[n for n in device.altnames if n != device.name and not n.startswith(MARK)],
        permanent_mac=behind.permanent_mac,
        parent=behind.parent,
        peer=device.peer,
        peer_nsid=device.peer_nsid,
    )


def find(host: Netlink, sock: Netlink, note: Note) -> Link | None:
    """The device of the note among the links of the socket's namespace. Raises NetlinkError."""
    device = link.find(sock, note.index)
    if device is not None and _is_noted(host, sock, note, device):
        return device
    if not has_hardware(note):
        return None
    for device in link.list_all(sock):
        if device.index != note.index and _is_noted(host, sock, note, device):
            return device
    return None


def _is_noted(host: Netlink, sock: Netlink, note: Note, device: Link) -> bool:
    """Is this link the device of the note? Compares only what a namespace cannot change."""
    if device.kind != note.kind or device.flags & link.IFF_LOOPBACK:
        return False
    if has_hardware(note):
        behind = hardware.describe(sock, device.index)
        # The node may give a virtual function another MAC while the container has it. Some drivers
        # take that for the permanent one (igbvf); a function has one link only.
        same_mac = behind.permanent_mac == note.permanent_mac or note.function != ""
        return behind.parent == note.parent and (
            same_mac or (behind.parent != "" and device.index == note.index)
        )
    if note.kind in veth.KINDS:
        other = peer.find(host, note.peer, note.peer_nsid)
        if other is None or other.kind != note.kind or other.peer != device.index:
            return False
        if note.peer_nsid is None:  # the other end is on the host: is this end there, too?
            return (other.peer_nsid is None) == (sock is host)
    return device.index == note.index and (note.moved or device.alias == note.name)


def has_hardware(note: Note) -> bool:
    """Is it hardware, so that no other link can be mistaken for it?"""
    return bool(note.permanent_mac or note.parent)


def move_out(host: Netlink, netns: Namespace, inner: Link, note: Note) -> None:
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

    udev and others act on the first name that they see. Only if another link in the container
    has the old name, the kernel renames the device as it arrives.
    """
    link.change(sock, inner.index, up=False)  # before Linux 6.2 a link that is up cannot be renamed
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
    """If the note's device is on the host, as after the end of its namespace, restore it.

    Returns whether it is there. Software links end with their namespace. Raises NetlinkError.
    """
    device = find(host, host, note) if has_hardware(note) or note.kind in veth.KINDS else None
    if device is not None:
        restore_settings(call, host, device, note)
    return device is not None


def restore_settings(call: Call[Any], host: Netlink, device: Link, note: Note) -> None:
    """Restore the settings that the device had before ADD. Raises NetlinkError.

    A setting that the driver refuses is only logged: the device itself is back.
    """
    if note.function:
        from ..sriov import function

        # first: as long as the card enforces a MAC, the function's own link cannot get another one
        function.restore(call, host, note)
    for name in device.altnames:
        if name not in note.altnames and name != note.name:
            link.remove_altname(host, device.index, name)
    for key, value in _differences(device, note).items():
        try:
            if key == "name":
                # the kernel keeps names and alternative names in one table (netdev_name_in_use),
                # so an alternative name of that text would be in the way
                link.remove_altname(host, device.index, note.name)
                link.change(host, device.index, up=False)
            if key == "mac" and note.function:
                function.set_own_mac(host, note, device.index, value)
            else:
                link.change(host, device.index, **{key: value})
        except NetlinkError as error:
            call.log(f"{call.plugin}: cannot restore {key} of {device.name}: {error}")


def _differences(device: Link, note: Note) -> dict[str, Any]:
    """The settings that differ from the note, as keywords of link.change."""
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
