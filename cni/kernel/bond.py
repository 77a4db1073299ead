"""Bonds: one link made of several (linux/Documentation/networking/bonding.rst)."""

from __future__ import annotations

from . import netlink as nl
from . import uapi
from .link import Link

KIND = "bond"

# Words of the configuration, in the order of the kernel's numbers.
MODES = (
    "balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb",
    "balance-alb",
)  # fmt: skip
HASH_POLICIES = ("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")


def data(
    mode: str,
    *,
    miimon: int,
    fail_over_mac: int = 0,
    hash_policy: str = "",
    all_slaves_active: int | None = None,
    tlb_dynamic_lb: int | None = None,
) -> bytes:
    """The attributes of a new bond, for link.create; `miimon` is in milliseconds."""
    # The kernel applies attributes in the order of their numbers; the mode decides which it allows.
    parts = [
        nl.u8(uapi.IFLA_BOND_MODE, MODES.index(mode)),
        nl.u32(uapi.IFLA_BOND_MIIMON, miimon),
    ]
    if fail_over_mac:
        parts.append(nl.u8(uapi.IFLA_BOND_FAIL_OVER_MAC, fail_over_mac))
    if hash_policy:
        parts.append(nl.u8(uapi.IFLA_BOND_XMIT_HASH_POLICY, HASH_POLICIES.index(hash_policy)))
    if all_slaves_active is not None:
        parts.append(nl.u8(uapi.IFLA_BOND_ALL_SLAVES_ACTIVE, all_slaves_active))
    if tlb_dynamic_lb is not None:
        parts.append(nl.u8(uapi.IFLA_BOND_TLB_DYNAMIC_LB, tlb_dynamic_lb))
    return b"".join(parts)


def mode(device: Link) -> str:
    """The mode of a bond; "" if this module does not know it."""
    number = nl.get_byte(device.data.get(uapi.IFLA_BOND_MODE))
    return MODES[number] if number < len(MODES) else ""


def miimon(device: Link) -> int:
    """The interval at which a bond checks its ports' carrier, in milliseconds."""
    return nl.get_u32(device.data.get(uapi.IFLA_BOND_MIIMON))


def fail_over_mac(device: Link) -> int:
    return nl.get_byte(device.data.get(uapi.IFLA_BOND_FAIL_OVER_MAC))


def hash_policy(device: Link) -> str:
    number = nl.get_byte(device.data.get(uapi.IFLA_BOND_XMIT_HASH_POLICY))
    return HASH_POLICIES[number] if number < len(HASH_POLICIES) else ""
