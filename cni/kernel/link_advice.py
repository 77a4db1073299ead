"""Why the kernel refused to make a link, and what to do; loaded only after a refusal."""

from __future__ import annotations

from errno import EBUSY, EOPNOTSUPP, ERANGE

from .errors import NetlinkError

NAME_MAX = 15  # IFNAMSIZ less the NUL
# Kinds whose module has another name.
_MODULES = {"vlan": "8021q", "bond": "bonding"}
_EXCLUSIVE = {"macvlan": "ipvlan", "macvtap": "ipvlan", "ipvlan": "macvlan"}


def of(error: NetlinkError, kind: str, name: str) -> str:
    """The error's `details` for a link of that kind and name; "" if nothing more is known."""
    size = len(name.encode("utf-8", "surrogateescape"))
    if error.errno == ERANGE and size > NAME_MAX:
        return f"an interface's name has at most {NAME_MAX} bytes, and this one {size}"
    if error.errno == EOPNOTSUPP and "Unknown device type" in error.explanation:
        module = _MODULES.get(kind, kind)
        return (
            f"the kernel has no links of the kind {kind}: load its module (`modprobe {module}`), "
            "or install the package with the kernel's further modules"
        )
    if error.errno == EBUSY and kind in _EXCLUSIVE:
        return (
            "the master is a port of a bridge or bond, or already has links of the kind "
            f"{_EXCLUSIVE[kind]}: use another master, or attach to the bridge itself"
        )
    return ""
