"""dummy: an interface that only holds addresses; the kernel drops what is sent through it
(docs/spec/dummy.md).
"""

from __future__ import annotations

from ..call import Call
from ..kernel import link
from ..kernel.link import Link
from ..protocol import config
from ..protocol.errors import CNIError
from ..protocol.result import Interface, Result
from .shared import checks, sublink

Conf = config.NetConf


def add(call: Call[Conf]) -> Result:
    """Make the interface; the result lists it alone."""
    _require_ipam(call)
    netns = call.open_netns()
    made, entry = sublink.create(
        call, netns, "dummy", lambda: link.create(netns.netlink(), "dummy", call.ifname)
    )
    ipam = call.ipam_add(call.conf.ipam.type)
    result = Result(interfaces=[entry], ips=ipam.ips, routes=ipam.routes, dns=ipam.dns)
    sublink.configure(call, netns, made, result)
    return result


def _require_ipam(call: Call[Conf]) -> None:
    if not call.conf.ipam.type:
        raise CNIError(
            "dummy interface requires an IPAM configuration",
            'for example "ipam": {"type": "host-local", "subnet": "10.1.2.0/24"}',
        )


def delete(call: Call[Conf]) -> None:
    """Delete the interface, then release the address; every step runs."""
    sublink.delete(call, "dummy")


gc = sublink.gc


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready."""
    call.delegate(call.conf.ipam.type)


def check(call: Call[Conf]) -> None:
    """Compare the interface and its addresses with prevResult; routes are not looked at."""
    _require_ipam(call)
    sublink.check(call, "dummy", _differences, prefix="dummy: ", with_routes=False)


def _differences(device: Link, entry: Interface) -> list[str]:
    problems = checks.mac_differs(entry, device)
    if not device.up:
        problems.append(f"Interface {entry.name} is down")
    return problems
