"""The configuration of a new network."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from cni.protocol.address import InvalidAddress, Prefix, format_ip

VERSION = "1.0.0"  # the version that every runtime in use supports
DRIVERS = ("bridge", "ptp", "macvlan", "ipvlan", "vlan")
ON_MASTER = ("macvlan", "ipvlan", "vlan")
_NAME_MAX = 15  # bytes of a link's name

Json = dict[str, Any]


class Wish(NamedTuple):
    """The wanted network. `gateway` and `ip_range` belong to the first subnet."""

    name: str
    driver: str
    subnets: list[Prefix]
    internal: bool = False
    master: str = ""
    vlan: int = 0
    mtu: int = 0
    gateway: str = ""
    ip_range: tuple[str, str] | None = None
    bridge: str = ""


def made(wish: Wish) -> Json:
    """A configuration list."""
    return {"cniVersion": VERSION, "name": wish.name, "plugins": _plugins(wish)}


def _plugins(wish: Wish) -> list[Json]:
    plugins = [_main(wish)]
    if wish.driver in ("bridge", "ptp") and not wish.internal:
        # Published ports would be a way into an internal network.
        plugins.append({"type": "portmap", "capabilities": {"portMappings": True}})
    if wish.driver in ("bridge", "ptp"):
        plugins.append({"type": "firewall"})
    return plugins


def _main(wish: Wish) -> Json:
    main: Json = {"type": wish.driver}
    if wish.driver == "bridge":
        main["bridge"] = wish.bridge or bridge_name(wish.name)
        if not wish.internal:
            # Hairpin: a container may then use its own published port.
            main.update({"isGateway": True, "ipMasq": True, "hairpinMode": True})
    elif wish.driver == "ptp" and not wish.internal:
        main["ipMasq"] = True
    if wish.master:
        main["master"] = wish.master
    if wish.driver == "vlan":
        main["vlanId"] = wish.vlan
    if wish.mtu:
        main["mtu"] = wish.mtu
    main["ipam"] = _ipam(wish)
    return main


def _ipam(wish: Wish) -> Json:
    if not wish.subnets:
        return {"type": "dhcp"}
    ranges = []
    for at, subnet in enumerate(wish.subnets):
        its_range: Json = {"subnet": str(subnet)}
        if at == 0 and wish.gateway:
            its_range["gateway"] = wish.gateway
        if at == 0 and wish.ip_range:
            its_range["rangeStart"], its_range["rangeEnd"] = wish.ip_range
        ranges.append([its_range])
    ipam: Json = {"type": "host-local", "ranges": ranges}
    routes = [{"dst": "0.0.0.0/0" if subnet.is_v4 else "::/0"} for subnet in wish.subnets]
    if not wish.internal:
        # Two subnets of one family would give the same default route twice.
        ipam["routes"] = [each for at, each in enumerate(routes) if each not in routes[:at]]
    return ipam


def bridge_name(network: str) -> str:
    """``cni-<network>``, or with a hash in place of what is too long."""
    name = f"cni-{network}"
    if len(name) <= _NAME_MAX:
        return name
    # 4 and 11 characters: as long as the kernel allows, and the same for each call.
    return f"cni-{hashlib.sha256(network.encode()).hexdigest()[:11]}"


def parse_range(text: str) -> tuple[str, str]:
    """``10.0.0.10-10.0.0.99``. Raises ValueError, InvalidAddress."""
    # Only --range needs it.
    from cni.ipam.host_local.ranges import excluded

    if "-" not in text or "/" in text:
        raise ValueError("a range is like 10.0.0.10-10.0.0.99")
    try:
        width, low, high = excluded(text)
    except InvalidAddress as error:  # its advice is about the key `exclude`
        raise ValueError(f"{error.msg}; a range is like 10.0.0.10-10.0.0.99") from None
    return format_ip(low.to_bytes(width, "big")), format_ip(high.to_bytes(width, "big"))
