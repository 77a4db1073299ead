"""A single link in the container: the common code of macvlan, ipvlan, vlan, dummy and tap.

The kernel makes such a link in the container's namespace under its final name, in one request. So
there is no temporary name, and a kill leaves either the whole link or none.
"""

from __future__ import annotations

from _socket import AF_INET, AF_INET6
from collections.abc import Callable
from typing import Any

import msgspec

from ...call import Call, Steps
from ...kernel import link, route
from ...kernel.errors import LinkNotFound, NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...netns.namespace import cookie
from ...protocol import config
from ...protocol.errors import CNIError
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from . import checks, device_notes, unlink
from . import configure as _configure


class Runtime(config.Folded):
    device_id: str = ""


class Conf(config.NetConf):
    """The keys of plugins whose link has a master: macvlan, ipvlan, vlan."""

    master: str = ""
    mtu: config.Mtu = config.Mtu(0)  # AUTO is also the master's MTU
    link_in_container: bool = False
    no_default_route: bool = False
    accept_ra: bool | None = None
    autoconf: bool | None = None
    runtime_config: Runtime = msgspec.field(default_factory=Runtime)


def configured_master(conf: Conf) -> str:
    """The name of `master`, else of the link of the runtime's deviceID; "" without either.

    Raises CNIError if the device has no link.
    """
    device = conf.runtime_config.device_id
    if conf.master or not device:
        return conf.master
    from . import device_master

    return device_master.name_of(device, in_container=conf.link_in_container)


def default_route_link(sock: Netlink) -> str:
    """The name of the first default route's interface, IPv4 first. Raises CNIError."""
    for family in (AF_INET, AF_INET6):
        for entry in route.show(sock, family):
            if entry.dst.length == 0 and entry.index:
                return link.get(sock, entry.index).name
    raise CNIError("no default route interface found", "name the interface to use as `master`")


def find_master(sock: Netlink, name: str) -> Link:
    """The link `name`, or that of the default route when `name` is empty. Raises CNIError."""
    name = name or default_route_link(sock)
    try:
        return link.get(sock, name)
    except LinkNotFound as error:
        raise CNIError(str(error), f'the master "{name}" does not exist') from None


def chained_master(call: Call[Any], previous: Result | None) -> str:
    """The name of the prevResult's only interface; "" if it has none, several, or one without name.

    If that interface is in the container, the master's namespace is the container's. Raises
    CNIError if it has the name of the new interface.
    """
    only = previous.interfaces[0] if previous and len(previous.interfaces) == 1 else None
    if only is None or not only.name:
        return ""
    if only.sandbox:
        if only.name == call.ifname:
            raise CNIError(
                f"chained master failure. The prevResult's interface is {call.ifname} itself",
                "a container has one interface of a name: the plugin before has to make another",
            )
        call.conf.link_in_container = True
    return only.name


def addresses(call: Call[Any], previous: Result | None, allocate: Callable[[], Result]) -> Result:
    """The result of `allocate` (IPAM); without `ipam`, the addresses of the prevResult, if any."""
    if call.conf.ipam.type or previous is None or not previous.ips:
        return allocate()
    return previous


def check_mtu(mtu: int, master: Link) -> None:
    """Refuse an MTU larger than the master's. Raises CNIError."""
    if not 0 <= mtu <= master.mtu:
        raise CNIError(f"invalid MTU {mtu}, must be [0, master MTU({master.mtu})]")


def check_unsigned(name: str, value: int) -> None:
    """Refuse a number that does not fit into a netlink attribute. Raises CNIError."""
    if not 0 <= value < 1 << 32:
        raise CNIError(f"invalid {name} {value}, must be an unsigned 32 bit number")


def mac(call: Call[Any]) -> bytes:
    """The wanted MAC as six bytes: runtimeConfig's, or CNI_ARGS', or the configuration's, or b"".

    Raises CNIError ``invalid args <mac> for MAC addr: …``.
    """
    pairs = call.parse_args(frozenset({"MAC"}))
    text = call.conf.runtime_config.mac or pairs.get("MAC", "") or call.conf.mac
    try:
        return link.parse_mac(text) if text else b""
    except ValueError as error:
        raise CNIError(f"invalid args {text} for MAC addr: {error}") from None


def create_on_master(
    call: Call[Any],
    netns: Namespace,
    kind: str,
    name: str,
    make: Callable[[Netlink, Link], None],
) -> tuple[Link, Interface, Link]:
    """As create(), for a link on the master `name`: (link, entry, master).

    The configuration says in which namespace the master is; `make` is given a socket there.
    """
    with Netlink() as host:
        sock = netns.netlink() if call.conf.link_in_container else host
        master = find_master(sock, name)
        made, entry = create(call, netns, kind, lambda: make(sock, master))
    return made, entry, master


def create(
    call: Call[Any], netns: Namespace, what: str, make: Callable[[], None], *, kind: str = ""
) -> tuple[Link, Interface]:
    """Run `make`, which creates CNI_IFNAME in `netns`: (link, its entry for the result).

    `kind` is the kernel's name of `what`, if it differs. The link is marked with its owner, and its
    index is noted on the host, so that DEL finds it. It is deleted if the ADD fails later.
    Raises CNIError ``failed to create <what>: …``.
    """
    _require_free(call, what)
    call.undo.callback(_undo, call, kind or what)
    try:
        make()
    except NetlinkError as error:
        from ...kernel import link_advice

        details = link_advice.of(error, kind or what, call.ifname)
        if link.is_name_taken(error):
            # the link that has the name is not of this ADD
            call.undo.withdraw()
            details = f"{call.netns} has an interface {call.ifname} already, or the id is in use"
        raise CNIError(f"failed to create {what}: {error}", details) from None
    sock = netns.netlink()
    device = link.get(sock, call.ifname)
    # A kill before the alias or the note is set leaves a link that
    # find_unnoted recognises by its name and kind.
    link.change(sock, device.index, alias=call.owner.alias)
    identity = device_notes.identity_of(call.netns)
    number = cookie(sock.sock)
    device_notes.save(call, device_notes.Note(identity, device.index, device.kind, cookie=number))
    return device, Interface(name=call.ifname, mac=device.mac, sandbox=call.netns)


def _require_free(call: Call[Any], what: str) -> None:
    """Refuse an ADD while the link of an earlier ADD is in another namespace that exists.

    Both links would be connected, with the address of the earlier ADD. A namespace that only a
    descriptor holds is about to end: the link in it is deleted. Raises CNIError.
    """
    note = device_notes.load(call)
    if note is None or note.is_of(call.netns):
        return
    earlier = device_notes.namespace_of(call, note, None)
    if earlier is None:
        return
    device = link.find(earlier.netlink(), note.index)
    if device is None or device.kind != note.kind:
        return
    if not device_notes.is_namespace_gone(note):
        raise CNIError(
            f"failed to create {what}: an earlier ADD of {call.ifname} made {device.name}",
            "it is in another namespace, which still exists: a DEL removes it",
        )
    # not unlink.delete: its executor stays in the namespace for a while, which then looks used
    link.delete(earlier.netlink(), device.index)


def _undo(call: Call[Any], kind: str) -> None:
    with Namespace.open(call.netns) as netns:
        sock = netns.netlink()
        device = link.find(sock, call.ifname)
        if device is not None and _may_be_ours(call, device, kind):
            link.delete(sock, device.index)


def configure(
    call: Call[Any],
    netns: Namespace,
    made: Link,
    result: Result,
    settings: list[tuple[str, str]] | None = None,
    *,
    nodad: bool = False,
) -> None:
    """Give the only interface of the result its addresses and routes."""
    for ip in result.ips:
        ip.interface = 0
    _configure.interface(call, netns, made.index, result, settings or [], nodad=nodad)


# --- the other verbs ------------------------------------------------------------------------------


def delete(call: Call[Any], kind: str) -> None:
    """Delete the link, which has this kind, then release the address; no step needs the master.

    Raises as `disconnect`.
    """
    disconnect(call, lambda netns: _delete_link(call, netns, kind))


def disconnect(
    call: Call[Any],
    take_away: Callable[[Namespace | None], bool],
    *,
    needs_netns: bool = True,
    keep_note: bool = False,
) -> None:
    """Call `take_away`, which returns whether the link is gone, then release the address.

    The address stays reserved while the link may still be connected, as when this process could not
    look into the container: then DEL fails, and the next DEL does everything. `needs_netns` is
    False if the container has no link of this attachment. With `keep_note` what becomes of the note
    of the device is left to `take_away`. Raises CNIError.
    """
    ipam = call.conf.ipam.type
    steps = Steps()
    # in a list: find_netns returns None if there is no namespace,
    # and steps.run if there was an error
    opened = steps.run(lambda: [call.find_netns()])
    looked = bool(opened) and not call.netns_unknown
    if looked or not needs_netns:
        if unlink.needs_link(ipam):
            steps.run(call.delegate, ipam)
        if steps.run(take_away, opened[0] if opened else None):
            if ipam and not unlink.needs_link(ipam):
                steps.run(call.delegate, ipam)
            if not keep_note:
                steps.run(device_notes.remove, call)
    steps.finish()


def _delete_link(call: Call[Any], netns: Namespace | None, kind: str) -> bool:
    """Delete the attachment's link in the container; True, even if it is gone already.

    Raises CNIError, KernelError, OSError.
    """
    note = device_notes.load(call)
    if note is not None:
        netns = device_notes.namespace_of(call, note, netns)
    if netns is None:
        return True  # the kernel has deleted the link with its namespace
    sock = netns.netlink()
    device = find_unnoted(call, sock, kind) if note is None else link.find(sock, note.index)
    if device is not None and device.kind == kind:
        unlink.delete(netns, device.index)
    return True


def find_unnoted(call: Call[Any], sock: Netlink, kind: str) -> Link | None:
    """The link of an ADD that left no note: the reference's, or one that was killed.

    It is CNI_IFNAME, unless that has another kind or owner; or else the link with our alias.
    """
    device = link.find(sock, call.ifname)
    if device is not None and _may_be_ours(call, device, kind):
        return device
    for device in link.list_all(sock):
        if device.alias.partition(" ")[0] == call.owner.alias_key:
            return device
    return None


def _may_be_ours(call: Call[Any], device: Link, kind: str) -> bool:
    """Has the link this kind, and either this owner's alias or no alias of these plugins?"""
    key = device.alias.partition(" ")[0]
    return device.kind == kind and (key == call.owner.alias_key or not key.startswith("cni:"))


def _collect_notes(call: Call[Any], keep: frozenset[Attachment]) -> None:
    for _ in device_notes.collect(call, keep):
        pass


def gc(call: Call[Any], keep: frozenset[Attachment]) -> None:
    """Call the IPAM plugin's GC; the kernel deletes the links with their namespaces."""
    gc_with(_collect_notes, call, keep)


def gc_with(
    collect: Callable[[Call[Any], frozenset[Attachment]], None],
    call: Call[Any],
    keep: frozenset[Attachment],
) -> None:
    """Call `collect`, which removes the notes of attachments that are gone, and IPAM's GC."""
    steps = Steps()
    steps.run(collect, call, keep)
    # it passes the request's own verb on, which is GC here
    steps.run(status, call)
    steps.finish()


def status(call: Call[Any]) -> None:
    """Ready if the IPAM plugin, where there is one, is ready. Raises its error."""
    if call.conf.ipam.type:
        call.delegate(call.conf.ipam.type)


def check(
    call: Call[Any],
    kind: str,
    differences: Callable[[Link, Interface], list[str]],
    *,
    prefix: str = "",
    ipam_required: bool = False,
    with_routes: bool = True,
) -> None:
    """Call the IPAM plugin's CHECK, then compare master, link, addresses and routes.

    `differences` compares a link of the right kind with its entry in the prevResult; `prefix`
    begins the messages about a missing prevResult or link. Raises CNIError.
    """
    netns = call.open_netns()
    if call.conf.ipam.type or ipam_required:
        call.delegate(call.conf.ipam.type)
    previous = checks.previous_result(call, prefix)
    entry = checks.container_interface(call, previous)
    problems = _missing_master(call.conf, netns) if isinstance(call.conf, Conf) else []
    sock = netns.netlink()
    device = link.find(sock, entry.name)
    if device is None:
        problems.append(f"{prefix}Container Interface name in prevResult: {entry.name} not found")
    elif device.kind != kind:
        problems.append(f"Error: Container interface {entry.name} not of type {kind}")
    else:
        problems += differences(device, entry)
    have = checks.routed(sock, previous)
    problems += checks.addresses(sock, call.ifname, previous.ips, have)
    if with_routes:
        problems += checks.routes(previous, have)
    checks.fail(problems)


def _missing_master(conf: Conf, netns: Namespace) -> list[str]:
    """A sentence if the configured master is gone; [] if no master is configured."""
    try:
        name = configured_master(conf)
    except CNIError as error:
        return [str(error)]
    if not name:
        return []
    if conf.link_in_container:
        master = link.find(netns.netlink(), name)
    else:
        with Netlink() as host:
            master = link.find(host, name)
    return [] if master else [f'failed to lookup master "{name}": Link not found']
