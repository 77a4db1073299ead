"""ipvlan: an interface that shares a host link's MAC, in the container (docs/spec/ipvlan.md).

It stands alone, or in a chain behind a plugin whose result names the master and maybe addresses.
"""

from __future__ import annotations

from ..call import Call
from ..kernel import link
from ..kernel.link import Link
from ..protocol.errors import CNIError
from ..protocol.result import Interface, Result
from .shared import checks, configure, sublink


class Conf(sublink.Conf):
    mode: str = ""


def add(call: Call[Conf]) -> Result:
    """Make the interface; the result lists it alone."""
    conf = call.conf
    mode = _mode(conf)
    sublink.check_unsigned("mtu", conf.mtu)
    previous = call.prev_result()
    name = sublink.configured_master(conf) or _chained_master(call, previous)
    netns = call.open_netns()
    made, entry, _ = sublink.create_on_master(
        call,
        netns,
        "ipvlan",
        name,
        lambda sock, master: link.create_ipvlan(
            sock, call.ifname, master.index, mode=mode, mtu=conf.mtu, netns=netns.fd
        ),
    )
    ipam = sublink.addresses(call, previous, lambda: call.ipam_add(conf.ipam.type))
    result = Result(interfaces=[entry], ips=ipam.ips, routes=ipam.routes, dns=conf.dns)
    sublink.configure(call, netns, made, result, configure.announce_settings(call.ifname))
    return result


def _mode(conf: Conf) -> int:
    try:
        return link.IPVLAN_MODES[conf.mode or "l2"]
    except KeyError:
        raise CNIError(f'unknown ipvlan mode: "{conf.mode}"', "mode is l2, l3 or l3s") from None


def _chained_master(call: Call[Conf], previous: Result | None) -> str:
    """The name of the prevResult's only interface; empty without a prevResult. Raises CNIError."""
    name = sublink.chained_master(call, previous)
    if name or previous is None:
        return name
    raise CNIError(
        "chained master failure. PrevResult lacks a single named interface",
        "name the interface to use as `master`",
    )


def delete(call: Call[Conf]) -> None:
    """Delete the interface, then release the address; every step runs."""
    sublink.delete(call, "ipvlan")


gc = sublink.gc
status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare the interface with prevResult and configuration."""
    mode = _mode(call.conf)
    sublink.check(call, "ipvlan", lambda device, entry: _differences(mode, device, entry))


def _differences(mode: int, device: Link, entry: Interface) -> list[str]:
    problems = []
    if device.mode != mode:
        names = {number: name for name, number in link.IPVLAN_MODES.items()}
        problems.append(
            f"Container IPVlan mode {names.get(device.mode, device.mode)} does not match expected "
            f"value: {names[mode]}"
        )
    return problems + checks.mac_differs(entry, device)
