"""host-device: moves a device of the host into the container and back (docs/spec/host-device.md).

One request to the kernel moves the device, renames it and sets its old name as its alias, as the
reference does. What ADD found is noted on the host before (move.py), and DEL believes the note
alone.
"""

from __future__ import annotations

from ...call import Call
from ...kernel import hardware, link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import checks, device_notes, moved, sublink
from . import move
from .selector import Conf, Selector

# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Move the device; the result lists it alone."""
    conf = call.conf
    selector = Selector(conf)
    user_space = selector.in_user_space()
    if user_space:
        selector.require_alone()
    netns = call.open_netns()
    entry = Interface(name=call.ifname, sandbox=call.netns)
    moved = None
    if not user_space:
        with Netlink() as host:
            move.recover(call, host)
            moved = move.into(call, host, netns, selector.find(host), selector.conf.device)
        entry.mac = moved.mac
    entry.pci_id = selector.pci_id or _pci_address(netns, moved)
    result = Result(interfaces=[entry])
    if conf.ipam.type:
        ipam = call.ipam_add(conf.ipam.type)
        # `dns` of the configuration, and only with IPAM: as in the reference
        result.ips, result.routes, result.dns = ipam.ips, ipam.routes, conf.dns
        for ip in result.ips:
            ip.interface = 0
        if moved is not None:
            sublink.configure(call, netns, moved, result)
    return result


def _pci_address(netns: Namespace, device: Link | None) -> str:
    """The PCI address of a link in the container; "" if it has none, or none is known."""
    if device is None:
        return ""
    bus, _, address = hardware.describe(netns.netlink(), device.index).parent.partition("/")
    return address if bus == "pci" else ""


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Move the device back, restore it, then release the address; every step runs."""
    if _in_user_space(call.conf):
        sublink.disconnect(call, lambda _: True, needs_netns=False, keep_note=True)
    else:
        sublink.disconnect(call, lambda netns: move.back(call, netns), keep_note=True)


def _in_user_space(conf: Conf) -> bool:
    """Is the device bound to a DPDK driver, as far as sysfs tells? It may be gone by now."""
    try:
        return Selector(conf).in_user_space()
    except CNIError:
        return False


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Call the IPAM plugin's GC, and restore devices whose namespace has ended."""
    sublink.gc_with(_collect, call, keep)


def _collect(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    with Netlink() as host:
        for note in device_notes.collect(call, keep):
            if not note.returned:
                moved.put_right(call, host, note)


# --- the other verbs ------------------------------------------------------------------------------


status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare the device with prevResult."""
    conf = call.conf
    user_space = Selector(conf).in_user_space()
    netns = call.open_netns()
    if conf.ipam.type:
        call.delegate(conf.ipam.type)
    previous = checks.previous_result(call)
    if user_space:
        return
    entry = checks.container_interface(call, previous)
    inner = link.find(netns.netlink(), entry.name)
    if inner is None:
        raise CNIError(f"Container Interface name in prevResult: {entry.name} not found")
    problems = []
    if entry.mac and entry.mac != inner.mac:
        problems.append(
            f"Interface {entry.name} Mac {entry.mac} doesn't match container Mac: {inner.mac}"
        )
    checks.compare(call, netns, previous, problems)
