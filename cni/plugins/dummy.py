"""dummy: an interface that swallows what is sent, to hold addresses (docs/spec/dummy.md)."""

from __future__ import annotations

from ..call import Call
from ..kernel import link
from ..kernel.link import Link
from ..protocol import config
from ..protocol.errors import CNIError
from ..protocol.result import Interface, Result
from .shared import sublink

Conf = config.NetConf


def add(call: Call[Conf]) -> Result:
    """Make the interface; the result has it alone."""
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


delete = sublink.delete
gc = sublink.gc


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is."""
    call.delegate(call.conf.ipam.type)


def check(call: Call[Conf]) -> None:
    """Compare the interface and its addresses with prevResult; routes are not looked at."""
    _require_ipam(call)
    sublink.check(call, "dummy", _differences, prefix="dummy: ", with_routes=False)


def _differences(found: Link, entry: Interface) -> list[str]:
    problems = []
    if entry.mac and entry.mac != found.mac:
        problems.append(
            f"Interface {entry.name} Mac {entry.mac} doesn't match container Mac: {found.mac}"
        )
    if not found.up:
        problems.append(f"Interface {entry.name} is down")
    return problems
