"""bond: joins links to one link, which survives the failure of some of them
(docs/spec/bond.md).

    node          ens1f0 ─┐ moved (or, with linksInContainer, there already)
                  ens2f0 ─┤
    container             └─▶ ports of eth0 (bond) ── addresses, routes

The bond is made in the container, under its final name and without ports. Then the links are noted,
moved and joined one by one, so that DEL finds all of them however the ADD ends (ports.py).
"""

from __future__ import annotations

from typing import Any

from ...call import Call
from ...kernel import bond, link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import checks, device_notes, moved, sublink
from . import ports, settings

Conf = settings.Conf


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Make the bond; the result lists it alone."""
    conf = call.conf
    settings.validate(call)
    netns = call.open_netns()
    sock = netns.netlink()
    with Netlink() as host:
        ports.recover(call, host)
        names = settings.link_names(conf)
        devices = ports.find(sock if conf.links_in_container else host, names)
        made, entry = _create(call, netns, devices)
        if not conf.links_in_container:
            devices = ports.move_in(call, host, netns, devices)
    ports.join(call, sock, made, devices)
    entry.mac = link.get(sock, made.index).mac  # that of the first port
    result = Result(interfaces=[entry])
    if conf.ipam.type:
        ipam = call.ipam_add(conf.ipam.type)
        result.ips, result.routes, result.dns = ipam.ips, ipam.routes, conf.dns
    sublink.configure(call, netns, made, result)
    return result


def _create(call: Call[Conf], netns: Namespace, devices: list[Link]) -> tuple[Link, Interface]:
    conf = call.conf
    smallest = min(devices, key=lambda device: device.mtu)
    mtu = settings.mtu(conf, smallest.mtu, smallest.name)
    data = bond.data(
        conf.mode,
        miimon=settings.milliseconds(conf),
        fail_over_mac=conf.fail_over_mac,
        hash_policy=conf.xmit_hash_policy,
        all_slaves_active=conf.all_slaves_active,
        tlb_dynamic_lb=conf.tlb_dynamic_lb,
    )
    return sublink.create(
        call,
        netns,
        bond.KIND,
        lambda: link.create(netns.netlink(), bond.KIND, call.ifname, data=data, mtu=mtu),
    )


# --- DEL, GC --------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Put the links back, delete the bond, then release the address; every step runs."""
    sublink.disconnect(call, lambda netns: ports.take_apart(call, netns))


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Call the IPAM plugin's GC, and restore devices whose namespace has ended."""
    sublink.gc_with(_collect, call, keep)


def _collect(call: Call[Any], keep: frozenset[Attachment]) -> None:
    with Netlink() as host:
        for note in device_notes.collect(call, keep):
            for each in note.links:
                moved.put_right(call, host, each)


# --- the other verbs ------------------------------------------------------------------------------


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has bonds, the configuration is in order, and IPAM is ready."""
    settings.validate(call)
    with Netlink() as host:
        if not link.has_kind(host, bond.KIND):
            raise NotAvailable("the kernel has no bonds", "load its module: `modprobe bonding`")
    sublink.status(call)


def check(call: Call[Conf]) -> None:
    """Compare the bond, its ports, addresses and routes with prevResult and configuration."""
    settings.validate(call)
    sublink.check(call, bond.KIND, lambda device, entry: _differences(call, device, entry))


def _port_names(call: Call[Conf]) -> list[str]:
    """The links that ADD has made ports: those of `links`, and of the runtime's device."""
    names = [port.name for port in call.conf.links]
    note = device_notes.load(call) if settings.takes_device(call) else None
    moved_in = [each.name for each in note.links] if note is not None else []
    return list(dict.fromkeys([*names, *moved_in]))


def _differences(call: Call[Conf], device: Link, entry: Interface) -> list[str]:
    conf = call.conf
    # with failOverMac 1 the bond has the MAC of its active port
    problems = [] if conf.fail_over_mac == 1 else checks.mac_differs(entry, device)
    if not device.up:
        problems.append(f"Interface {entry.name} is down")
    for what, have, want in (
        ("mode", bond.mode(device), conf.mode),
        ("miimon", bond.miimon(device), settings.milliseconds(conf)),
        ("failOverMac", bond.fail_over_mac(device), conf.fail_over_mac),
        ("xmitHashPolicy", bond.hash_policy(device), conf.xmit_hash_policy),
        ("mtu", device.mtu, conf.mtu),
    ):
        if want and have != want:
            problems.append(f"bond {entry.name} has the {what} {have}, want {want}")
    sock = call.open_netns().netlink()
    for name in _port_names(call):
        inner = link.find(sock, name)
        if inner is None or inner.master != device.index:
            problems.append(f"link {name} is no port of the bond {entry.name}")
    return problems
