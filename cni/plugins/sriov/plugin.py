"""sriov: a virtual function of a network card, with its settings, in the container.

The function is the runtime's `deviceID`, as a device plugin has allocated it. Its link moves as
with host-device (host_device/move.py); VLAN, MAC, rates and checks are settings of the card, which
the container cannot change. What the card had before is noted on the host, and DEL restores it.
A function that is bound to a driver of user space (DPDK) has no link: only the card is changed.
Keys and forms are those of the plugin of this name (docs/plugins/sriov.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ...call import Call
from ...kernel import link, sysfs
from ...kernel.errors import DeviceError, LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.vf import Settings
from ...netns import Namespace
from ...netns.namespace import cookie
from ...protocol.errors import CNIError
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..host_device import move
from ..shared import checks, device_notes, moved, sublink
from ..shared.device_notes import Note
from . import function as functions
from . import settings
from .function import Function
from .settings import Conf

# A driver is told of a MAC by its card, and takes it over a little later.
_MAC_TRIES, _MAC_PAUSE = 20, 0.1

# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Configure the function, and move its link; the result lists it alone."""
    conf = call.conf
    address = _address(conf)
    mac = sublink.mac(call)
    wanted = settings.wanted(conf, link.format_mac(mac))
    netns = call.open_netns()
    entry = Interface(name=call.ifname, sandbox=call.netns, mac=wanted.mac or "", pci_id=address)
    inner = None
    with Netlink() as host:
        _recover(call, host)
        _take_over(call, host, address)
        function = functions.find(host, address)
        if _in_user_space(address):
            _configure_alone(call, host, netns, function, wanted)
        else:
            inner = _move(call, host, netns, function, wanted)
            entry.mac = _own_mac(netns.netlink(), inner, mac)
    result = Result(interfaces=[entry], dns=conf.dns)
    if conf.ipam.type:
        ipam = call.ipam_add(conf.ipam.type)
        result.ips, result.routes = ipam.ips, ipam.routes
        result.dns = conf.dns if conf.dns.given() else ipam.dns
        for ip in result.ips:
            ip.interface = 0
        if inner is not None:
            sublink.configure(call, netns, inner, result)
    return result


def _address(conf: Conf) -> str:
    """The PCI address of the function. Raises CNIError."""
    address = conf.runtime_config.device_id or conf.device_id
    if not address:
        raise CNIError(
            "deviceID is required",
            'declare the capability "deviceID", so that the runtime hands over the function that '
            "its device plugin has allocated; or set `deviceID`",
        )
    if not sysfs.is_pci(address):
        raise CNIError(
            f"deviceID {address} not found",
            "it is the PCI address of a virtual function of this node, like 0000:3b:02.1",
        )
    return address


def _in_user_space(address: str) -> bool:
    try:
        return sysfs.is_user_space(address)
    except DeviceError as error:
        raise CNIError(str(error), f"bind {address} to a driver") from None


def _move(
    call: Call[Conf], host: Netlink, netns: Namespace, function: Function, wanted: Settings
) -> Link:
    """Move the function's link into the container, once the card has the wanted settings."""

    def prepare(note: Note) -> Callable[[], None]:
        functions.note_settings(note, function, function.settings(host))
        # before the move: the container sends no frame that the card has not checked
        return lambda: function.change(host, wanted)

    try:
        device = link.get(host, sysfs.link_of_pci(function.address))
    except (DeviceError, LinkNotFound) as error:
        raise CNIError(
            f"virtual function {function.address} has no link on the node: {error}",
            "it may be in a container already, or its driver makes no link",
        ) from None
    return move.into(call, host, netns, device, "", prepare)


def _configure_alone(
    call: Call[Conf], host: Netlink, netns: Namespace, function: Function, wanted: Settings
) -> None:
    """Note and change the settings of a function that has no link."""
    note = Note(device_notes.identity_of(call.netns), 0, "", cookie=cookie(netns.netlink().sock))
    functions.note_settings(note, function, function.settings(host))
    device_notes.save(call, note)
    call.undo.callback(_restore_alone, call, note)
    function.change(host, wanted)


def _own_mac(sock: Netlink, inner: Link, mac: bytes) -> str:
    """Give the function's own link the MAC that the card has for it; the MAC that it has then.

    Some drivers refuse a MAC that the card has set, and take it over when the link comes up
    (igbvf); others take it over by themselves, a little later (iavf). Raises CNIError.
    """
    wanted, problem = link.format_mac(mac), ""
    for _ in range(_MAC_TRIES):
        now = link.get(sock, inner.index).mac
        if not mac or now == wanted:
            return now
        # down, so that the link-local address follows the MAC
        link.change(sock, inner.index, up=False)
        try:
            link.change(sock, inner.index, mac=mac)
        except NetlinkError as error:
            problem = f": {error}"
        link.change(sock, inner.index, up=True)
        if link.get(sock, inner.index).mac != wanted:
            time.sleep(_MAC_PAUSE)
    raise CNIError(
        f"failed to set the MAC {wanted} of {inner.name}{problem}",
        "the card accepts it, but the function's own driver does not: `dmesg` may say why",
    )


def _recover(call: Call[Conf], host: Netlink) -> None:
    """Restore the function of an earlier ADD of this attachment, if that has ended without a DEL.

    Otherwise its settings would be noted as those that the card had before.
    """
    note = device_notes.load(call)
    if note is None or not _is_alone(note):
        move.recover(call, host)
        return
    if not note.returned:
        functions.restore(call, host, note)
    device_notes.remove(call)


def _take_over(call: Call[Conf], host: Netlink, address: str) -> None:
    """Finish what another attachment of this function has left, if its namespace has ended.

    Otherwise its DEL, which may still come, would restore settings under the new user. Raises
    CNIError if the function is in use.
    """
    for path, note in device_notes.of_others(call):
        if note.function != address or note.returned:
            continue
        if not device_notes.is_namespace_gone(note):
            raise CNIError(
                f"virtual function {address} is in use by another attachment",
                f"{path} notes it: delete that one first; see `cni ps`",
            )
        _restore(call, host, note)
        note.returned = True
        device_notes.write_at(call, path, note)


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Move the link back, restore the card, then release the address; every step runs."""
    sublink.disconnect(call, lambda netns: _back(call, netns), keep_note=True)


def _back(call: Call[Any], netns: Namespace | None) -> bool:
    note = device_notes.load(call)
    if note is not None and _is_alone(note):
        if not note.returned:
            _restore_alone(call, note)
        device_notes.remove(call)
        return True
    if note is None:
        # nothing of this plugin is there: another plugin's link is left alone
        device_notes.remove_unfinished(call)
        return True
    return move.back(call, netns)


def _is_alone(note: Note) -> bool:
    """Is it the note of a function without a link?"""
    return note.function != "" and note.index == 0


def _restore_alone(call: Call[Any], note: Note) -> None:
    with Netlink() as host:
        functions.restore(call, host, note)


def _restore(call: Call[Any], host: Netlink, note: Note) -> None:
    """Restore a function whose container is gone."""
    if _is_alone(note):
        functions.restore(call, host, note)
    else:
        moved.put_right(call, host, note)


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Call the IPAM plugin's GC, and restore functions whose namespace has ended."""
    sublink.gc_with(_collect, call, keep)


def _collect(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    with Netlink() as host:
        for note in device_notes.collect(call, keep):
            if not note.returned:
                _restore(call, host, note)


# --- the other verbs ------------------------------------------------------------------------------


status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare the card's settings with the configuration, and the link with prevResult."""
    conf = call.conf
    address = _address(conf)
    wanted = settings.wanted(conf, link.format_mac(sublink.mac(call)))
    in_user_space = _in_user_space(address)
    netns = call.open_netns()
    if conf.ipam.type:
        call.delegate(conf.ipam.type)
    previous = checks.previous_result(call)
    with Netlink() as host:
        problems = _differences(functions.find(host, address), host, wanted)
    if in_user_space:
        if problems:
            raise CNIError(problems[0], "; ".join(problems[1:]))
        return
    entry = checks.container_interface(call, previous)
    inner = link.find(netns.netlink(), entry.name)
    if inner is None:
        raise CNIError(f"Container Interface name in prevResult: {entry.name} not found")
    if entry.mac and entry.mac != inner.mac:
        problems.append(
            f"Interface {entry.name} Mac {entry.mac} doesn't match container Mac: {inner.mac}"
        )
    checks.compare(call, netns, previous, problems)


def _differences(function: Function, host: Netlink, wanted: Settings) -> list[str]:
    """What the card has that the configuration does not want."""
    now = function.settings(host)
    return [
        f"{functions.KEYS[name]} of virtual function {function.number} of {function.card_name} is "
        f"{functions.as_text(name, getattr(now, name))}, want {functions.as_text(name, value)}"
        for name, value in wanted.differences(now)._asdict().items()
        if value is not None
    ]
