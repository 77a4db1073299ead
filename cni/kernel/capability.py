"""Which capabilities this process has (capabilities(7))."""

from __future__ import annotations

# What plugins need, by the bit numbers of linux/capability.h: the first for links, addresses,
# routes and the packet filter, the second to enter a network namespace.
_NEEDED = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def missing() -> list[str]:
    """The names of the capabilities that plugins need and this process lacks.

    Also empty if the kernel does not tell.
    """
    effective = _effective()
    if effective is None:
        return []
    return [name for name, bit in _NEEDED.items() if not effective >> bit & 1]


def is_effective(name: str) -> bool:
    """Has this process the capability `name`? Also False if the kernel does not tell."""
    return bool((_effective() or 0) >> _NEEDED[name] & 1)


def _effective() -> int | None:
    """The effective capabilities, one bit each; None if the kernel does not tell."""
    try:
        with open("/proc/self/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file if b":" in line)
        return int(lines[b"CapEff"], 16)
    except (OSError, KeyError, ValueError):
        return None
