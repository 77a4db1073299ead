"""tc-redirect-tap: a TAP device for a virtual machine, in place of the container's end of a link
(docs/spec/tc-redirect-tap.md).

    container's namespace
    eth0 ── all that arrives ──▶ tap1a2b3c4d ──▶ the virtual machine
    eth0 ◀── all that it sends ── tap1a2b3c4d ◀──

Filters at the ingress of each device redirect to the other one. So the machine takes the
container's place on the network, with MAC, addresses and MTU of eth0. The result lists it as an
interface whose sandbox is the container id.
"""

from __future__ import annotations

import os
from errno import EEXIST
from typing import Any

import msgspec

from ..call import Call, Steps
from ..kernel import link, sysctl, tc, tcfilter, tun
from ..kernel.errors import LinkNotFound, NetlinkError
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..netns import Namespace
from ..owner import digest
from ..protocol import config
from ..protocol.errors import CNIError, NotAvailable
from ..protocol.request import check_ifname
from ..protocol.result import Interface, IPConfig, Result
from .shared import checks, unlink

_KIND = "tun"  # the kind of a TAP device, too
_NAME, _UID, _GID = "TC_REDIRECT_TAP_NAME", "TC_REDIRECT_TAP_UID", "TC_REDIRECT_TAP_GID"
_MAX = (1 << 32) - 1


class Conf(config.PluginConf):
    tap_name: str = ""
    other_tap_name: str = msgspec.field(default="", name="tap_name")
    uid: int | None = None
    gid: int | None = None


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Make the device and both filters; the result is the prevResult with device and machine."""
    name, uid, gid = (
        _name(call),
        _number(call, _UID, call.conf.uid),
        _number(call, _GID, call.conf.gid),
    )
    result = _previous(call)
    netns = call.open_netns()
    sock = netns.netlink()
    outer = _redirected(call, sock)
    _require_free(sock, outer)
    call.undo.callback(_undo, call, name)
    _create(call, netns, name, uid, gid)
    tap = link.get(sock, name)
    link.change(sock, tap.index, alias=call.owner.alias)
    # else the container's own kernel would talk to the machine
    netns.sysctls([(sysctl.WRITE, f"net/ipv6/conf/{name}/disable_ipv6", "1")])
    link.change(sock, tap.index, mtu=outer.mtu, up=True)
    _connect(sock, outer, tap)
    _add_machine(call, result, outer, tap)
    return result


def _name(call: Call[Conf]) -> str:
    """The device's name: from CNI_ARGS, else the configuration, else derived from the owner."""
    text = _arguments(call).get(_NAME) or call.conf.tap_name or call.conf.other_tap_name
    if not text:
        return f"tap{digest(call.owner.key)[:8]}"
    try:
        check_ifname(text)
        if "\0" in text:
            raise CNIError("interface name contains a NUL character")
    except CNIError as error:
        raise CNIError(f'invalid name of a TAP device: "{text}"', str(error)) from None
    if text == call.ifname:
        raise CNIError(f'the TAP device cannot be called "{text}"', "the interface is called so")
    return text


def _number(call: Call[Conf], key: str, configured: int | None) -> int:
    """A uid or gid: from CNI_ARGS, else from the configuration, else this process's (root)."""
    text = _arguments(call).get(key)
    if text is not None:
        if not (text.isascii() and text.isdigit()):
            raise CNIError(f'{key} should be a number, got "{text}"', "it is of CNI_ARGS")
        # eleven digits are too large already: a text of any length need not be converted
        configured = int(text[:11])
    if configured is None:
        return 0
    if not 0 <= configured <= _MAX:
        raise CNIError(f"invalid uid or gid {configured}", "it is a number of 32 bits")
    return configured


def _arguments(call: Call[Conf]) -> dict[str, str]:
    """The keys of CNI_ARGS, which may also have keys of other plugins."""
    pairs = (piece.partition("=") for piece in call.args.split(";"))
    return {key: value for key, equals, value in pairs if equals}


def _previous(call: Call[Conf]) -> Result:
    previous = call.prev_result()
    if previous is None:
        raise CNIError(
            "no previous result was found, was this plugin chained with a previous one?",
            "put it behind the plugin that makes the interface, for example ptp or bridge",
        )
    return previous


def _redirected(call: Call[Conf], sock: Netlink) -> Link:
    try:
        return link.get(sock, call.ifname)
    except LinkNotFound as error:
        raise CNIError(
            f'failed to find redirect interface "{call.ifname}": {error}',
            "the plugin before this one has to make it in the container",
        ) from None


def _require_free(sock: Netlink, outer: Link) -> None:
    """Refuse an interface whose ingress has filters already: they would come before ours."""
    if tc.qdisc(sock, outer.index, tc.INGRESS) is not None:
        raise CNIError(
            f"{outer.name} has an ingress qdisc already",
            "of an earlier ADD, which a DEL removes, or of another program: see `tc qdisc show`",
        )


def _create(call: Call[Conf], netns: Namespace, name: str, uid: int, gid: int) -> None:
    if link.find(netns.netlink(), name) is not None:
        call.undo.withdraw()
        raise CNIError(
            f"failed to create tap device {name}: file exists",
            f"{call.netns} has an interface of that name; an earlier ADD's goes with its DEL",
        )
    try:
        # in the executor: /dev/net/tun makes the device in the
        # namespace of the process that opens it
        netns.run(tun.create_tap, name, False, uid, gid)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CNIError(
            f"failed to create tap device {name}: {reason}", "is /dev/net/tun available?"
        ) from None


def _connect(sock: Netlink, outer: Link, tap: Link) -> None:
    """Redirect packets that arrive at either device to the other one. Raises CNIError."""
    for source, target in ((tap, outer), (outer, tap)):
        try:
            tc.add_ingress(sock, source.index)
            tcfilter.redirect(sock, source.index, tc.INGRESS_HANDLE, target.index)
        except NetlinkError as error:
            details = f"another program uses the ingress of {source.name}"
            if error.errno != EEXIST:
                details = "does the kernel have sch_ingress, cls_u32 or cls_matchall, act_mirred?"
            text = f"failed to redirect {source.name} to {target.name}: {error}"
            raise CNIError(text, details) from None


def _add_machine(call: Call[Conf], result: Result, outer: Link, tap: Link) -> None:
    """Add to the result the device, and the machine's interface with the container's addresses."""
    own = [ip for ip in result.ips if ip.interface is not None and _is_of(call, ip, result)]
    result.interfaces.append(Interface(name=tap.name, mac=tap.mac, sandbox=call.netns))
    machine = Interface(name=tap.name, mac=outer.mac, sandbox=call.container_id)
    result.interfaces.append(machine)
    index = len(result.interfaces) - 1
    result.ips += [IPConfig(address=ip.address, gateway=ip.gateway, interface=index) for ip in own]


def _is_of(call: Call[Conf], ip: IPConfig, result: Result) -> bool:
    assert ip.interface is not None
    if not 0 <= ip.interface < len(result.interfaces):
        return False
    entry = result.interfaces[ip.interface]
    return entry.name == call.ifname and entry.sandbox == call.netns


def _undo(call: Call[Conf], name: str) -> None:
    with Namespace.open(call.netns) as netns:
        sock = netns.netlink()
        tap = link.find(sock, name)
        if tap is not None and _is_ours(call, tap):
            _disconnect(sock, call.ifname, tap)
            link.delete(sock, tap.index)


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Any]) -> None:
    """Delete the device and the interface's filter; both go with the namespace anyway."""
    netns = call.find_netns()
    if netns is None:
        return
    sock = netns.netlink()
    steps = Steps()
    taps = _taps(call, sock)
    steps.run(_disconnect, sock, call.ifname, *taps)
    for tap in taps:
        steps.run(unlink.delete, netns, tap.index)
    steps.finish()


def _taps(call: Call[Any], sock: Netlink) -> list[Link]:
    """The attachment's devices: by its mark, or by the names that an ADD would have given."""
    names = {f"tap{digest(call.owner.key)[:8]}", *_noted(call)}
    try:
        names.add(_name(call))
    except CNIError:
        pass  # no ADD can have made a device with this name
    marked = call.owner.alias_key
    return [
        device
        for device in link.list_all(sock)
        if _is_ours(call, device) and (device.alias.startswith(marked) or device.name in names)
    ]


def _noted(call: Call[Any]) -> list[str]:
    """The names of the machine's interfaces in the prevResult, also of the original plugin's."""
    previous = call.prev_result()
    entries = previous.interfaces if previous is not None else []
    return [entry.name for entry in entries if entry.sandbox == call.container_id]


def _is_ours(call: Call[Any], device: Link) -> bool:
    """Is it marked with this owner, or unmarked: by an ADD that was killed, or another plugin's?"""
    return device.kind == _KIND and device.alias.partition(" ")[0] in ("", call.owner.alias_key)


def _disconnect(sock: Netlink, ifname: str, *taps: Link) -> None:
    """Remove the interface's ingress qdisc if all of its filters redirect to one of these.

    A qdisc without filters was left by an ADD that was killed.
    """
    outer = link.find(sock, ifname)
    indexes = {tap.index for tap in taps}
    if outer is not None and indexes and _redirections(sock, outer) <= indexes:
        tc.delete_qdisc(sock, outer.index, tc.INGRESS)


# --- STATUS and CHECK -----------------------------------------------------------------------------


def status(call: Call[Conf]) -> None:
    """Ready if /dev/net/tun is there and the kernel has ingress. Raises NotAvailable (code 50)."""
    _number(call, _UID, call.conf.uid)
    _number(call, _GID, call.conf.gid)
    if not os.path.exists("/dev/net/tun"):
        raise NotAvailable("there is no /dev/net/tun", "load the module tun")


def check(call: Call[Conf]) -> None:
    """Compare device and filters with the prevResult; every difference is reported."""
    previous = _previous(call)
    names = [entry.name for entry in previous.interfaces if entry.sandbox == call.container_id]
    if not names:
        raise CNIError(
            f"prevResult has no interface whose sandbox is {call.container_id}",
            "ADD adds one for the virtual machine",
        )
    sock = call.open_netns().netlink()
    outer = _redirected(call, sock)
    tap = link.find(sock, names[0])
    if tap is None or tap.kind != _KIND:
        raise CNIError(f'there is no TAP device "{names[0]}" in the container', "recreate it")
    problems = [] if tap.up else [f"{tap.name} is down"]
    if tap.mtu != outer.mtu:
        problems.append(f"the MTU of {tap.name} is {tap.mtu}, that of {outer.name} {outer.mtu}")
    for source, target in ((outer, tap), (tap, outer)):
        if target.index not in _redirections(sock, source):
            problems.append(f"{source.name} is not redirected to {target.name}")
    checks.fail(problems)


def _redirections(sock: Netlink, source: Link) -> set[int]:
    """The indexes to which a link's ingress filters redirect; 0 for one that does not redirect."""
    if tc.qdisc(sock, source.index, tc.INGRESS) is None:
        return set()
    return {each.redirect for each in tcfilter.show(sock, source.index, tc.INGRESS_HANDLE)}
