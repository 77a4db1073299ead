"""bond's configuration and its validation."""

from __future__ import annotations

from ...kernel import bond
from ...protocol import config
from ...protocol.config import means
from ...protocol.errors import BadEnvironment, CNIError
from ...protocol.request import check_ifname

_LEAST_MTU = 68
_DEFAULT_MTU = 1500


class Port(config.Folded):
    """An entry of `links`."""

    name: str = ""


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


def validate(conf: Conf) -> None:
    """Refuse wrong values and combinations. Raises CNIError."""
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
    _validate_links(conf)


def milliseconds(conf: Conf) -> int:
    """`miimon` as a number. Raises CNIError."""
    text = conf.miimon
    if not (text.isascii() and text.isdigit()) or int(text) >= 1 << 31:
        raise CNIError(
            f"Failed to convert bondMiimon value ({text}) to an int",
            'miimon is a number of milliseconds in quotation marks, for example "100"',
        )
    return int(text)


def _validate_links(conf: Conf) -> None:
    names = [port.name for port in conf.links]
    if len(names) < 2:
        raise CNIError(f"Bonding requires at least two links, we have {len(names)}")
    for name in names:
        if not name:
            raise CNIError("failed to find link name", "each of `links` has a `name`")
        try:
            check_ifname(name)
        except BadEnvironment as error:
            raise CNIError(f"failed to lookup link {name}: {error.msg}") from None
        if names.count(name) > 1:
            raise CNIError(f"link {name} is listed twice", "a port can be in the bond once")


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
