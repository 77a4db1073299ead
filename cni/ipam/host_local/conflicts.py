"""conflictCheck: no host on the link has the addresses that an ADD has got, and gateways answer.

An address that another host has is set aside: a reservation of the container `conflict` keeps it
from being given out until a GC of the network, or a reboot. The ADD takes another address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...protocol.address import format_ip, parse_ip
from ...protocol.errors import CNIError
from .. import conflict

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...call import Call
    from ...protocol.result import IPConfig
    from .allocation import Allocation
    from .ranges import ConflictCheck

_MOST = 16  # conflicting addresses after which the ADD gives up


def settle(
    call: Call[Any],
    allocation: Allocation,
    ips: list[IPConfig],
    requested: list[bytes],
    again: Callable[[], list[IPConfig]],
    conf: ConflictCheck,
) -> list[IPConfig]:
    """Addresses that no other host on the link has: `ips`, or those of `again` in their place.

    Addresses that the attachment had before are not probed. Raises CNIError.
    """
    netns = call.open_netns()
    checked: set[str] = set()
    for _ in range(_MOST):
        new = [
            each for each in ips if allocation.is_new(_name(each)) and _name(each) not in checked
        ]
        gateways = {parse_ip(ip.gateway) for ip in ips if ip.gateway} if conf.gateway else set()
        packed = {parse_ip(_name(each)) for each in new}
        asked = packed | (set() if checked else gateways)
        if not asked:
            return ips
        answered = conflict.answers(netns, call.ifname, asked, conf.probes, conf.interval / 1000)
        missing = [] if checked else sorted(gateways - answered.keys())
        if missing:
            raise CNIError(
                f"gateway {format_ip(missing[0])} does not answer on the link of {call.ifname}",
                "is it up, and in the same LAN? Without `gateway` in conflictCheck it is not asked",
            )
        taken = {each: mac for each, mac in answered.items() if each in packed}
        # the "" says that gateways were asked, even if no address was free
        checked |= {format_ip(each) for each in packed - taken.keys()} | {""}
        if not taken:
            return ips
        for each, mac in taken.items():
            _tell(call, each, mac, requested)
        allocation.set_aside({format_ip(each): mac for each, mac in taken.items()})
        ips = again()
    raise CNIError(
        f"somebody on the link of {call.ifname} has each of {_MOST} addresses that were free",
        "another program hands out addresses of this range: compare the configurations",
    )


def _tell(call: Call[Any], packed: bytes, mac: str, requested: list[bytes]) -> None:
    name = format_ip(packed)
    if packed in requested:
        raise CNIError(
            f"requested IP address {name} is in use on the link: {mac} has it",
            "end that host's use of the address, or request another one",
        )
    call.log(f"conflictCheck: {mac} has {name}, which was free here: it is set aside")


def _name(ip: IPConfig) -> str:
    return ip.address.partition("/")[0]
