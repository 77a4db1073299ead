"""Features of links (offloads), by generic netlink (linux/ethtool_netlink.h; Linux 5.6 and later).

What ``ethtool -k`` shows and ``ethtool -K`` sets, without the program.
"""

from __future__ import annotations

from typing import NamedTuple

from . import genl, uapi
from . import netlink as nl
from .netlink import Netlink

NETLINK_GENERIC = uapi.NETLINK_GENERIC

# Short names that ethtool(8) knows, and the kernel's, which may end in a wildcard.
_SHORT = {
    "rx": "rx-checksum",
    "tx": "tx-checksum-*",
    "sg": "tx-scatter-gather*",
    "tso": "tx-tcp*",
    "gso": "tx-generic-segmentation",
    "gro": "rx-gro",
    "lro": "rx-lro",
    "rxvlan": "rx-vlan-hw-parse",
    "txvlan": "tx-vlan-hw-insert",
    "ntuple": "rx-ntuple-filter",
    "rxhash": "rx-hashing",
}


class Feature(NamedTuple):
    """A feature: does the link use it, was it requested, and is it fixed (cannot be changed)?"""

    active: bool
    wanted: bool
    fixed: bool


class Ethtool:
    """Requests over a generic netlink socket of the link's namespace. Raises NetlinkError.

    ENOENT when the kernel has no ethtool netlink, ENODEV when there is no such link.
    """

    def __init__(self, sock: Netlink) -> None:
        self._sock = sock
        self._family = genl.family(sock, "ethtool")

    def features(self, link: str) -> dict[str, Feature]:
        """Every feature the kernel knows, by the kernel's name."""
        replies = self._sock.request(
            self._family, self._request(uapi.ETHTOOL_MSG_FEATURES_GET, link)
        )
        sets = nl.attr_map(replies[0][1], genl.HEADER.size)
        hw, active, wanted, nochange = (
            _bits(sets.get(kind, b""))
            for kind in (
                uapi.ETHTOOL_A_FEATURES_HW,
                uapi.ETHTOOL_A_FEATURES_ACTIVE,
                uapi.ETHTOOL_A_FEATURES_WANTED,
                uapi.ETHTOOL_A_FEATURES_NOCHANGE,
            )
        )
        return {
            name: Feature(name in active, name in wanted, not changeable or name in nochange)
            for name, changeable in hw.items()
        }

    def set_features(self, link: str, wanted: dict[str, bool]) -> None:
        """Request features on or off; one that depends on others may stay inactive."""
        bits = [
            nl.nest(
                uapi.ETHTOOL_A_BITSET_BITS_BIT,
                nl.text(uapi.ETHTOOL_A_BITSET_BIT_NAME, name)
                + (nl.attr(uapi.ETHTOOL_A_BITSET_BIT_VALUE, b"") if on else b""),
            )
            for name, on in wanted.items()
        ]
        bitset = nl.nest(uapi.ETHTOOL_A_FEATURES_WANTED, nl.nest(uapi.ETHTOOL_A_BITSET_BITS, *bits))
        self._sock.request(
            self._family, self._request(uapi.ETHTOOL_MSG_FEATURES_SET, link) + bitset
        )

    def _request(self, command: int, link: str) -> bytes:
        return genl.HEADER.pack(command, 1, 0) + nl.nest(
            uapi.ETHTOOL_A_FEATURES_HEADER, nl.text(uapi.ETHTOOL_A_HEADER_DEV_NAME, link)
        )


def _bits(bitset: bytes) -> dict[str, bool]:
    """A bitset's bits by name; without a mask, only those that are on are listed."""
    bits = {}
    for _, bit in nl.attrs(nl.attr_map(bitset).get(uapi.ETHTOOL_A_BITSET_BITS, b"")):
        parts = nl.attr_map(bit)
        bits[nl.get_text(parts.get(uapi.ETHTOOL_A_BITSET_BIT_NAME))] = (
            uapi.ETHTOOL_A_BITSET_BIT_VALUE in parts
        )
    return bits


def select(features: dict[str, Feature], name: str) -> list[str]:
    """The kernel's names of the features that `name` stands for.

    `name` is the kernel's, or one of ethtool(8)'s short names. A short name stands for all
    features of its group that can be changed.

    Raises KeyError for a feature that this kernel does not know.
    """
    begin, wildcard, _ = _SHORT[name].partition("*") if name in _SHORT else (name, "", "")
    if not wildcard:
        features[begin]
        return [begin]
    names = [one for one in features if one.startswith(begin)]
    return [one for one in names if not features[one].fixed] or names
