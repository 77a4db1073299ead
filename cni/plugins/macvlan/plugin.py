"""macvlan: an interface with its own MAC on a host link, in the container
(docs/spec/macvlan.md).
"""

from __future__ import annotations

import msgspec

from ...call import Call, Steps
from ...kernel import link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError, DelegateError
from ...protocol.request import Attachment
from ...protocol.result import Interface, Result
from ..shared import checks, configure, sublink
from . import host_shim


class Mac(sublink.Runtime):
    mac: str = ""


class Conf(sublink.Conf):
    mode: str = ""
    mac: str = ""
    bcqueuelen: int = 0
    host_shim: bool = False
    runtime_config: Mac = msgspec.field(default_factory=Mac)


def add(call: Call[Conf]) -> Result:
    """Make the interface; the result lists it alone."""
    conf = call.conf
    mode = _mode(conf)
    mac = sublink.mac(call)
    sublink.check_unsigned("bcqueuelen", conf.bcqueuelen)
    routed = None
    if conf.host_shim:
        host_shim.check_config(conf.mode, conf.link_in_container, conf.ipam.type)
        routed = host_shim.noted_routes(call)
    master_name = sublink.configured_master(conf)
    previous = None if master_name else call.prev_result()
    name = master_name or sublink.chained_master(call, previous)
    netns = call.open_netns()

    def make(sock: Netlink, master: Link) -> None:
        sublink.check_mtu(conf.mtu, master)
        link.create_macvlan(
            sock,
            call.ifname,
            master.index,
            mode=mode,
            mtu=conf.mtu,
            mac=mac,
            bc_queue_len=conf.bcqueuelen,
            netns=netns.fd,
        )

    made, entry, master = sublink.create_on_master(call, netns, "macvlan", name, make)
    result = Result(interfaces=[entry], dns=conf.dns)
    if conf.ipam.type or (name and previous is not None and previous.ips):
        ipam = sublink.addresses(call, previous, lambda: call.ipam_add(conf.ipam.type))
        result.ips, result.routes = ipam.ips, ipam.routes
        sublink.configure(call, netns, made, result, configure.announce_settings(call.ifname))
        if conf.host_shim:
            host_shim.connect(call, master, result, routed)
    else:
        configure.set_up(call, netns, made.index)
    return result


def _mode(conf: Conf) -> int:
    try:
        return link.MACVLAN_MODES[conf.mode or "bridge"]
    except KeyError:
        raise CNIError(
            f'unknown macvlan mode: "{conf.mode}"',
            f"mode is one of {', '.join(link.MACVLAN_MODES)}",
        ) from None


def delete(call: Call[Conf]) -> None:
    """Delete the interface, then release the address; every step runs without the master."""
    steps = Steps()
    steps.run(host_shim.disconnect, call)  # even if hostShim is off now: the ADD may have had it
    steps.run(sublink.delete, call, "macvlan")
    steps.finish()


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Call the IPAM plugin's GC; the kernel deletes the interfaces with their namespaces."""
    steps = Steps()
    steps.run(host_shim.collect, call, keep)
    steps.run(sublink.gc, call, keep)
    steps.finish()


status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare the interface with prevResult and configuration."""
    mode = _mode(call.conf)
    try:
        sublink.check(call, "macvlan", lambda device, entry: _differences(mode, device, entry))
    except CNIError as error:  # the reference's texts for this plugin begin in lower case
        begins = ("Required", "Sandbox", "Container", "Error")
        if error.msg.startswith(begins) and not isinstance(error, DelegateError):
            raise CNIError(error.msg[0].lower() + error.msg[1:], error.details) from None
        raise


def _differences(mode: int, device: Link, entry: Interface) -> list[str]:
    problems = []
    if device.mode != mode:
        names = {number: name for name, number in link.MACVLAN_MODES.items()}
        problems.append(
            f"container macvlan mode {names.get(device.mode, device.mode)} does not match expected "
            f"value: {names[mode]}"
        )
    return problems + checks.mac_differs(entry, device, "interface")
