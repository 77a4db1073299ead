"""`uplinkInterface`: a link of the node that becomes a port of the bridge, and carries the VLANs of
the containers (docs/plugins/bridge.md).

A VLAN on a port has no place for an owner. So each VLAN that an ADD puts on the uplink is noted
before, and so is that the link became a port:

    <state>/uplinks/<namespace>-<bridge>-<uplink>-<VLAN; 0: the port>    empty; all are numbers

What is noted is removed when no other port of the bridge has the VLAN. What an administrator has
put there, which bears no note, stays. ADD holds the bridge's lock (device.py) from the note until
its container's port has the VLAN; who removes holds it alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from ...call import Call
from ...kernel import address, bridge_vlan, link
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns.namespace import own_identity
from ...protocol.address import is_global_unicast
from ...protocol.errors import CNIError, NotAvailable, TryAgainLater
from . import device

_PORT = 0  # instead of a VLAN


class _Note(NamedTuple):
    """A note, by the indexes of bridge and uplink; the first is the namespace's inode."""

    namespace: int
    bridge: int
    uplink: int
    vlan: int

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


# --- ADD ------------------------------------------------------------------------------------------


def require(host: Netlink, name: str, bridge_name: str) -> Link:
    """The uplink, before anything is changed.

    Raises CNIError if it is missing, has addresses, or is the port of something else.
    """
    try:
        uplink = link.get(host, name)
    except LinkNotFound:
        raise CNIError(
            f'uplinkInterface "{name}" not found', "it is a link of the node: see `ip link`"
        ) from None
    bridge = link.find(host, bridge_name)
    if bridge is not None and uplink.index == bridge.index:
        raise CNIError(
            f'uplinkInterface "{name}" is the bridge itself',
            "it names the link that leads to the network outside",
        )
    # the kernel refuses both, but only when they are made ports
    if uplink.flags & link.IFF_LOOPBACK or uplink.kind == "bridge":
        what = "a bridge" if uplink.kind == "bridge" else "the loopback link"
        raise CNIError(f'uplinkInterface "{name}" cannot be a port: it is {what}')
    if uplink.master and (bridge is None or uplink.master != bridge.index):
        master = link.find(host, uplink.master)
        other = master.name if master is not None else uplink.master
        raise CNIError(
            f'uplinkInterface "{name}" is a port of {other}, not of {bridge_name}',
            f"it is not taken away from {other}: name that as `bridge`, or release the link with "
            f"`ip link set {name} nomaster`",
        )
    if not uplink.master:
        _require_no_addresses(host, uplink, bridge_name)
    return uplink


def _require_no_addresses(host: Netlink, uplink: Link, bridge: str) -> None:
    """A port's addresses are not reachable any more: the bridge takes its packets."""
    present = [
        str(each.prefix)
        for each in address.show(host, uplink.index)
        # the kernel itself gives a link its link-local IPv6 address
        if each.prefix.is_v4 or is_global_unicast(each.prefix.ip)
    ]
    if present:
        raise CNIError(
            f'uplinkInterface "{uplink.name}" has addresses, which would be unreachable: '
            f"{', '.join(present)}",
            f"a port of a bridge receives nothing itself: put the addresses on {bridge} first, or "
            "choose a link without addresses",
        )


def attach(call: Call[Any], host: Netlink, name: str, bridge: Link) -> Link:
    """Make the uplink a port of the bridge, and up; undone if the ADD fails, unless others use it.

    Raises CNIError.
    """
    uplink = require(host, name, bridge.name)  # again: now with the lock
    is_new = not uplink.master
    call.undo.callback(_undo, call, bridge.index, uplink.index if is_new else 0, uplink.up)
    try:
        if is_new:
            _write(call, [_note(bridge.index, uplink.index, _PORT)])
            link.change(host, uplink.index, master=bridge.index)
        if not uplink.up:
            link.change(host, uplink.index, up=True)
    except NetlinkError as error:
        raise CNIError(
            f"failed to make uplinkInterface {name} a port of {bridge.name}: {error}",
            "something else may have taken the link's packets: a macvlan, a bond, a team",
        ) from None
    return uplink


def carry(call: Call[Any], host: Netlink, bridge: Link, uplink: Link, vlans: Iterable[int]) -> None:
    """Put VLANs on the uplink, tagged, but for those that it has. Raises CNIError."""
    try:
        present = {vlan.vid for vlan in bridge_vlan.show(host, uplink.index)}
        missing = sorted(set(vlans) - present)
        _write(call, [_note(bridge.index, uplink.index, vid) for vid in missing])
        bridge_vlan.add(host, uplink.index, missing)
    except NetlinkError as error:
        raise CNIError(
            f"failed to setup VLANs on uplinkInterface {uplink.name}: {error}",
            "does this kernel have bridge VLAN filtering, and is it on for the bridge?",
        ) from None


def _undo(call: Call[Any], bridge: int, uplink: int, was_up: bool) -> None:
    """Take off what nobody uses; release the `uplink` (0: it was a port before), if it is alone."""
    with Netlink() as host, device.Lock(call.request.env, alone=True):
        notes = _notes(call, bridge)
        _take_off(call, host, bridge, notes)
        if not uplink or any(port.index != uplink for port in _ports(host, bridge)):
            return
        link.change(host, uplink, master=0)
        if not was_up:
            link.change(host, uplink, up=False)
        _forget(call, notes)


# --- DEL, GC --------------------------------------------------------------------------------------


def release(call: Call[Any], bridge: int, vlan: int) -> None:
    """Take the VLANs that no other port of the bridge (an index) has off its uplinks.

    The port of the gateway's interface in `vlan` does not count. While ADDs keep the lock for too
    long they stay, for the next DEL or GC; that is logged. Raises NetlinkError, CNIError.
    """
    if not bridge or not any(note.vlan for note in _notes(call, bridge)):
        return
    try:
        with Netlink() as host, device.Lock(call.request.env, alone=True):
            _take_off(call, host, bridge, _notes(call, bridge), _gateway(host, bridge, vlan))
    except TryAgainLater as error:
        call.log(f"bridge: VLANs stay on the uplink for the next DEL or GC: {error}")


def _gateway(host: Netlink, bridge: int, vlan: int) -> int:
    """The index of the port that leads to the gateway's interface in a VLAN; 0 without."""
    made = link.find(host, bridge) if vlan else None
    inner = link.find(host, f"{made.name}.{vlan}") if made is not None else None
    return inner.peer if inner is not None and inner.peer_nsid is None else 0


def _take_off(
    call: Call[Any], host: Netlink, bridge: int, notes: list[_Note], gateway: int = 0
) -> None:
    of_vlans = [note for note in notes if note.vlan]
    uplinks = {note.uplink for note in notes}
    used = bridge_vlan.used(bridge, {note.vlan for note in of_vlans}, {gateway, *uplinks})
    gone = [note for note in of_vlans if note.vlan not in used]
    for index in uplinks:
        vids = [note.vlan for note in gone if note.uplink == index]
        uplink = link.find(host, index)
        if vids and uplink is not None and uplink.master == bridge:
            # an ADD that was killed may have left a note without its VLAN
            present = {vlan.vid for vlan in bridge_vlan.show(host, index)}
            bridge_vlan.remove(host, index, sorted(present & set(vids)))
    _forget(call, gone)


def ports_of(call: Call[Any], bridge: int) -> set[int]:
    """The indexes of the links that ADDs made ports of the bridge (an index)."""
    return {note.uplink for note in _notes(call, bridge) if note.vlan == _PORT}


def forget(call: Call[Any], bridge: int) -> None:
    """The bridge is gone, and its uplinks are free. Raises CNIError."""
    _forget(call, _notes(call, bridge))


# --- the other verbs ------------------------------------------------------------------------------


def differences(host: Netlink, name: str, bridge_name: str, vlans: Iterable[int]) -> list[str]:
    """For CHECK: what is wrong with the uplink, a line each."""
    bridge, uplink = link.find(host, bridge_name), link.find(host, name)
    if uplink is None:
        return [f"uplinkInterface {name} not found"]
    if bridge is None or uplink.master != bridge.index:
        repair = f"`ip link set {name} master {bridge_name}`"
        return [f"uplinkInterface {name} is no port of {bridge_name} ({repair})"]
    problems = []
    if not uplink.up:
        problems.append(f"uplinkInterface {name} is down (`ip link set {name} up`)")
    missing = set(vlans) - {vlan.vid for vlan in bridge_vlan.show(host, uplink.index)}
    problems += [
        f"uplinkInterface {name} lacks VLAN {vid} (`bridge vlan add vid {vid} dev {name}`)"
        for vid in sorted(missing)
    ]
    return problems


def ready(name: str, bridge_name: str) -> None:
    """For STATUS. Raises NotAvailable if an ADD could not use the uplink."""
    with Netlink() as host:
        try:
            require(host, name, bridge_name)
        except CNIError as error:
            raise NotAvailable(error.msg, error.details) from None


# --- notes ----------------------------------------------------------------------------------------


def _directory(call: Call[Any]) -> str:
    return f"{call.request.env.get('CNI_STATE_DIR') or device.STATE_DIR}/uplinks"


def _note(bridge: int, uplink: int, vlan: int) -> _Note:
    return _Note(own_identity()[1], bridge, uplink, vlan)


def _notes(call: Call[Any], bridge: int) -> list[_Note]:
    """The notes about a bridge of this namespace."""
    try:
        names = os.listdir(_directory(call))
    except FileNotFoundError:
        return []
    here = f"{own_identity()[1]}-{bridge}-"
    rest = [name.split("-") for name in names if name.startswith(here)]
    return [
        _Note(*map(int, parts))
        for parts in rest
        if len(parts) == 4 and all(map(str.isdigit, parts))
    ]


def _write(call: Call[Any], notes: list[_Note]) -> None:
    directory = _directory(call)
    try:
        for note in notes:
            os.makedirs(directory, 0o755, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(f"{directory}/{note.name}", flags, 0o600))
    except OSError as error:
        raise CNIError(
            f"cannot write {directory}: {(error.strerror or str(error)).lower()}",
            "without a note nobody could tell which VLANs of the uplink are to be removed",
        ) from None


def _forget(call: Call[Any], notes: Iterable[_Note]) -> None:
    for note in notes:
        try:
            os.unlink(f"{_directory(call)}/{note.name}")
        except FileNotFoundError:
            pass


def _ports(host: Netlink, bridge: int) -> list[Link]:
    return [each for each in link.list_all(host) if each.master == bridge]
