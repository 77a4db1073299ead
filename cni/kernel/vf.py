"""Settings of a virtual function, which its card's link has (rtnetlink, linux/if_link.h).

The card (physical function) enforces them, whoever has the virtual function's own link: its MAC and
VLAN, the check of source MACs, rates.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from . import netlink as nl
from . import uapi
from .link import format_mac, parse_mac
from .netlink import Netlink

_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_WITH_FUNCTIONS = nl.u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_VF | uapi.RTEXT_FILTER_SKIP_STATS)
_MAC = struct.Struct("=I32s")  # struct ifla_vf_mac: number, MAC (MAX_ADDR_LEN)
_VLAN = struct.Struct("=III")  # struct ifla_vf_vlan: number, VLAN, priority
_VLAN_INFO = struct.Struct("=III2s")  # struct ifla_vf_vlan_info: the same, protocol (big endian)
_VLAN_INFO_PADDING = bytes(2)
_RATE = struct.Struct("=III")  # struct ifla_vf_rate: number, Mbit/s at least, and at most
_SETTING = struct.Struct("=II")  # struct ifla_vf_spoofchk, _trust, _link_state: number, value
_UNKNOWN = 0xFFFFFFFF  # what the kernel puts where the driver says nothing (rtnl_fill_vfinfo)
_MAC_SIZE = 6

ETH_P_8021Q = uapi.ETH_P_8021Q


class Settings(NamedTuple):
    """A function's settings. None: the driver does not tell this one, or it is not to be changed.

    `vlan` is (id, priority, protocol), where id 0 is none; rates are in Mbit/s, and 0 is no limit;
    `link_state` is one of IFLA_VF_LINK_STATE_*.
    """

    mac: str | None = None
    vlan: tuple[int, int, int] | None = None
    rates: tuple[int, int] | None = None
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: int | None = None

    def differences(self, now: Settings) -> Settings:
        """Those of these settings that are known to be otherwise `now`."""
        pairs = zip(self, now, strict=True)
        return Settings._make(a if b is not None and a != b else None for a, b in pairs)


def get(sock: Netlink, card: int, number: int) -> Settings | None:
    """The settings of function `number` of the link with index `card`; None if it has no such.

    Raises NetlinkError.
    """
    payload = sock.get(uapi.RTM_GETLINK, _IFINFO.pack(0, 0, card, 0, 0) + _WITH_FUNCTIONS)
    functions = nl.attr_map(payload, _IFINFO.size).get(uapi.IFLA_VFINFO_LIST, b"")
    for _, function in nl.attrs(functions):
        values = nl.attr_map(function)
        mac = values.get(uapi.IFLA_VF_MAC, b"")
        if mac and nl.unpack(_MAC, mac)[0] == number:
            return _parse(values)
    return None


def _parse(values: dict[int, bytes]) -> Settings:
    def number(kind: int) -> int | None:
        data = values.get(kind)
        value = int(nl.unpack(_SETTING, data)[1]) if data else _UNKNOWN
        return None if value == _UNKNOWN else value

    spoofchk, trust = number(uapi.IFLA_VF_SPOOFCHK), number(uapi.IFLA_VF_TRUST)
    rates = values.get(uapi.IFLA_VF_RATE)
    return Settings(
        mac=format_mac(nl.unpack(_MAC, values[uapi.IFLA_VF_MAC])[1][:_MAC_SIZE]),
        vlan=_parse_vlan(values),
        rates=nl.unpack(_RATE, rates)[1:] if rates else None,
        spoofchk=None if spoofchk is None else bool(spoofchk),
        trust=None if trust is None else bool(trust),
        link_state=number(uapi.IFLA_VF_LINK_STATE),
    )


def _parse_vlan(values: dict[int, bytes]) -> tuple[int, int, int] | None:
    for _, data in nl.attrs(values.get(uapi.IFLA_VF_VLAN_LIST, b"")):
        _, vlan, priority, protocol = nl.unpack(_VLAN_INFO, data)
        return vlan, priority, int.from_bytes(protocol, "big")
    return None


def change(sock: Netlink, card: int, number: int, name: str, value: Any) -> None:
    """Change one setting, named as in `Settings`, of a function. Raises NetlinkError.

    One setting in a request: the kernel changes them one after the other, and its error does not
    say which one the driver has refused (do_setvfinfo).
    """
    data = nl.nest(
        uapi.IFLA_VFINFO_LIST, nl.nest(uapi.IFLA_VF_INFO, _attribute(number, name, value))
    )
    sock.request(uapi.RTM_SETLINK, _IFINFO.pack(0, 0, card, 0, 0) + data)


def _attribute(number: int, name: str, value: Any) -> bytes:
    if name == "mac":
        return nl.attr(uapi.IFLA_VF_MAC, _MAC.pack(number, parse_mac(value)))
    if name == "vlan":
        vlan, priority, protocol = value
        if protocol == ETH_P_8021Q:  # the older attribute, which every driver and kernel has
            return nl.attr(uapi.IFLA_VF_VLAN, _VLAN.pack(number, vlan, priority))
        info = _VLAN_INFO.pack(number, vlan, priority, protocol.to_bytes(2, "big"))
        return nl.nest(
            uapi.IFLA_VF_VLAN_LIST, nl.attr(uapi.IFLA_VF_VLAN_INFO, info + _VLAN_INFO_PADDING)
        )
    if name == "rates":
        return nl.attr(uapi.IFLA_VF_RATE, _RATE.pack(number, *value))
    kinds = {
        "spoofchk": uapi.IFLA_VF_SPOOFCHK,
        "trust": uapi.IFLA_VF_TRUST,
        "link_state": uapi.IFLA_VF_LINK_STATE,
    }
    return nl.attr(kinds[name], _SETTING.pack(number, value))
