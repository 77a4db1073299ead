"""bond's configuration and its validation."""

from __future__ import annotations

import msgspec

from ...call import Call
from ...kernel import bond
from ...protocol import config
from ...protocol.config import means
from ...protocol.errors import BadEnvironment, CNIError
from ...protocol.request import check_ifname

_LEAST_MTU = 68  # of IPv4 (RFC 791)
_DEFAULT_MTU = 1500


class Port(config.Folded):
    """An entry of `links`."""

    name: str = ""


class Runtime(config.Folded):
    device_id: str = ""


class Conf(config.NetConf):
    mode: str = ""
    miimon: str = ""
    mtu: config.Mtu = config.Mtu(0)
    fail_over_mac: int = 0
    links_in_container: bool = False
    links: list[Port] = []
    all_slaves_active: int | None = None
    tlb_dynamic_lb: int | None = None
    xmit_hash_policy: str = ""
    runtime_config: Runtime = msgspec.field(default_factory=Runtime)


def takes_device(call: Call[Conf]) -> bool:
    """Is one of the links that of a device which the runtime gives, or will give?"""
    declared = config.lookup(call.raw, "capabilities")
    # verbs without a container have no runtimeConfig, but the configuration promises one
    promised = isinstance(declared, dict) and declared.get("deviceID") is True
    return promised or bool(call.conf.runtime_config.device_id)


def validate(call: Call[Conf]) -> None:
    """Refuse wrong values and combinations. Raises CNIError."""
    conf = call.conf
    if means(conf.ipam.type, "bond"):
        raise CNIError("Bond is not a suitable IPAM type", "`ipam.type` is an IPAM plugin's name")
    if conf.mode not in bond.MODES:
        raise CNIError(f'invalid bond mode "{conf.mode}"', f"it is one of {', '.join(bond.MODES)}")
    milliseconds(conf)
    if not 0 <= conf.fail_over_mac <= 2:
        raise CNIError(
            f"FailOverMac mode should be 0, 1 or 2 actual: {conf.fail_over_mac}",
            "0: all ports have the bond's MAC; 1: the bond has the MAC of its active port; 2: the "
            "active port has the bond's MAC",
        )
    for key, value in (
        ("allSlavesActive", conf.all_slaves_active),
        ("tlbDynamicLb", conf.tlb_dynamic_lb),
    ):
        if value not in (None, 0, 1):
            raise CNIError(f"{key} should be 0 or 1 actual: {value}")
    if conf.xmit_hash_policy not in ("", *bond.HASH_POLICIES):
        raise CNIError(
            f'invalid xmitHashPolicy "{conf.xmit_hash_policy}"',
            f"it is one of {', '.join(bond.HASH_POLICIES)}",
        )
    if conf.mtu and not _LEAST_MTU <= conf.mtu < 1 << 31:
        raise CNIError(f"Invalid bond MTU value ({conf.mtu}), should be 68 or bigger")
    _validate_links(conf, takes_device(call))


def milliseconds(conf: Conf) -> int:
    """`miimon` as a number. Raises CNIError."""
    text = conf.miimon
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 31:
        raise CNIError(
            f"Failed to convert bondMiimon value ({text}) to an int",
            'miimon is a number of milliseconds in quotation marks, for example "100"',
        )
    return int(text)


def _validate_links(conf: Conf, device: bool) -> None:
    names = [port.name for port in conf.links]
    count = len(names) + device
    if count < 2:
        raise CNIError(f"Bonding requires at least two links, we have {count}")
    for name in names:
        if not name:
            raise CNIError("failed to find link name", "each of `links` has a `name`")
        try:
            check_ifname(name)
        except BadEnvironment as error:
            raise CNIError(f"failed to lookup link {name}: {error.msg}") from None
        if names.count(name) > 1:
            raise CNIError(f"link {name} is listed twice", "a port can be in the bond once")


def link_names(conf: Conf) -> list[str]:
    """The names of the links that are to be ports, that of the runtime's device as the last.

    Raises CNIError if the device has no link, or one that is in `links` as well.
    """
    names = [port.name for port in conf.links]
    device = conf.runtime_config.device_id
    if device:
        from ..shared import device_master

        name = device_master.name_of(device, in_container=conf.links_in_container, role="port")
        if name in names:
            raise CNIError(
                f"link {name} is listed twice",
                f"it is the link of the device {device} that the runtime gives: leave it out of "
                "`links`",
            )
        names.append(name)
    return names


def mtu(conf: Conf, smallest: int, name: str) -> int:
    """The MTU of the bond and its ports; `smallest` is the smallest of the ports, that of `name`.

    Raises CNIError.
    """
    if conf.mtu > smallest:
        raise CNIError(
            f"Invalid MTU ({conf.mtu}). The requested MTU for bond is bigger than that of the "
            f"slave link ({name}), slave MTU ({smallest})",
            f"set `mtu` to {smallest} or less, or give {name} a larger one",
        )
    if conf.mtu is config.AUTO:
        return smallest
    return conf.mtu or min(_DEFAULT_MTU, smallest)
