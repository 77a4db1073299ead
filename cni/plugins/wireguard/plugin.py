"""wireguard: routes between containers of several nodes, encrypted (docs/spec/wireguard.md).

    container netns              node                                             other nodes
    eth0 ──── veth ──── veth1a2b3c4d ── routes ── cniwg1a2b3c4d ═══ encrypted UDP ═══

The pair, its addresses and routes are those of ptp, in the same module. The WireGuard link is added
in tunnel.py.
"""

from __future__ import annotations

from ...call import Call, Steps
from ...kernel import link, wireguard
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Result
from .. import ptp
from ..bridge import device
from ..shared import checks, masquerade, veth
from . import keys, tunnel
from .settings import Conf as _Conf
from .settings import Settings

Conf = _Conf


def add(call: Call[Conf]) -> Result:
    """Attach the container; the result's interfaces are the host veth and the container veth."""
    want = Settings(call)
    netns = call.open_netns()
    with Netlink() as host, Netlink(groups=(link.RTNLGRP_LINK,)) as events:
        veth.require_free(call, host, netns)
        ipam = ptp.allocate(call)
        if want.from_store:
            from . import peers

            with peers.current(call, host, want):
                ends = _join(call, host, netns, want, ipam)
        else:
            ends = _join(call, host, netns, want, ipam)
        result = ptp.connect(call, host, events, netns, ipam, ends)
    if want.conf.ip_masq:
        masquerade.add(call, result, want.backend)
        call.remember()
    return result


def _join(
    call: Call[Conf], host: Netlink, netns: Namespace, want: Settings, ipam: Result
) -> tuple[Link, Link]:
    """See to the WireGuard link, and make the pair: the node's end, and the container's."""
    with device.Lock(call.request.env):  # nobody removes the link until the pair is there
        own = tunnel.ensure(call, host, want)
        want.check_addresses(ipam, own)
        ends = veth.create(call, host, netns, want.mtu, want.mac)
        tunnel.note_user(host, want.network, ends[0], ipam)
    return ends


def delete(call: Call[Conf]) -> None:
    """Delete the pair, release the address, remove a link without users; every step runs."""
    steps = Steps()
    veth.delete(call, steps, ipam_required=True)
    steps.run(tunnel.remove_unused, call)
    steps.finish()


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove links, rules and leases of this network whose attachment is not in `keep`."""
    steps = Steps()
    veth.gc(call, keep, steps)
    steps.run(tunnel.remove_unused, call)
    steps.finish()


def status(call: Call[Conf]) -> None:
    """Ready if the kernel has WireGuard, keys can be read, and the IPAM plugin is ready."""
    want = Settings(call)
    with Netlink() as host:
        if not link.has_kind(host, wireguard.KIND):
            raise NotAvailable(
                "the kernel has no links of the kind wireguard",
                "load the module: `modprobe wireguard` (Linux 5.6 or later)",
            )
    try:
        keys.existing(want.key_file)
        for each in want.peers:
            if each.preshared_file:
                keys.preshared(each.preshared_file)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None
    if want.from_store:
        from ..shared import peers

        peers.require_store(call)
    call.delegate(want.conf.ipam.type)


def check(call: Call[Conf]) -> None:
    """Compare the kernel with the prevResult and the configuration; report every difference."""
    want = Settings(call)
    netns = call.open_netns()
    call.delegate(want.conf.ipam.type)
    previous = checks.previous_result(call, "wireguard: ")
    entry = checks.container_interface(call, previous)
    problems = ptp.differences(call, netns, entry, previous)
    with Netlink() as host:
        if want.from_store:
            from . import peers

            problems += peers.look(call, host, want, previous)
        problems += tunnel.differences(host, want)
    rules = masquerade.check(call, previous) if want.conf.ip_masq else []
    checks.compare(call, netns, previous, problems, rules)


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; the prevResult is the result of that ADD."""
    ptp.reload(call)
