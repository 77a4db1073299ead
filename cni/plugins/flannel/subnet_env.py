"""subnet.env: what flanneld says of this node's share of the network (docs/spec/flannel.md).

Lines ``KEY=value``, without quotes or comments; unknown keys mean nothing, of several lines with
one key the last holds.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ...protocol.address import InvalidAddress, Prefix
from ...protocol.errors import CNIError

_LARGEST = 1 << 20  # bytes; flanneld writes some hundred
_MTU_MAX = (1 << 32) - 1


class SubnetEnv(NamedTuple):
    """`networks` IPv4 first; `subnets` this node's, IPv4 first; `ip_masq`: flanneld does it."""

    networks: list[Prefix]
    subnets: list[Prefix]
    mtu: int
    ip_masq: bool


def load(path: str) -> SubnetEnv:
    """The contents of flanneld's file. Raises CNIError ``open <path>: …`` and those of parse()."""
    return parse(_read(path), path)


def parse(text: str, path: str) -> SubnetEnv:
    """A SubnetEnv from the text of the file `path`, which only errors name. Raises CNIError."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        key, equals, value = line.removesuffix("\r").partition("=")
        if key in _KEYS:
            if not equals:
                raise CNIError(f'invalid line "{key}": it has no "="')
            found[key] = value
    missing = [", ".join(keys) for keys in _REQUIRED if not any(key in found for key in keys)]
    if missing:
        raise CNIError(f"{path} is missing {', '.join(missing)}")
    return SubnetEnv(
        networks=[prefix for key in _NETWORKS if key in found for prefix in _prefixes(key, found)],
        subnets=[_prefixes(key, found, single=True)[0] for key in _SUBNETS if key in found],
        mtu=_mtu(found["FLANNEL_MTU"]),
        ip_masq=found["FLANNEL_IPMASQ"] == "true",
    )


_NETWORKS = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
_SUBNETS = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
# One of each group has to be there; in the order in which they are said to be missing.
_REQUIRED = (_NETWORKS, _SUBNETS, ("FLANNEL_MTU",), ("FLANNEL_IPMASQ",))
_KEYS = frozenset(key for keys in _REQUIRED for key in keys)


def _prefixes(key: str, found: dict[str, str], *, single: bool = False) -> list[Prefix]:
    """Networks from a list with commas, or from one; none is there twice."""
    texts = [found[key]] if single else found[key].split(",")
    try:
        return list(dict.fromkeys(Prefix.parse(text).network for text in texts))
    except InvalidAddress as error:
        raise error.wrapped(f"{key}: ") from None


def _mtu(value: str) -> int:
    digits = value.lstrip("0") or value[-1:]
    problem = ""
    if not (value.isascii() and value.isdigit()):
        problem = "invalid syntax"
    elif len(digits) > 10 or int(digits) > _MTU_MAX:
        problem = "value out of range"
    if problem:
        raise CNIError(f'FLANNEL_MTU: parsing "{value[:40]}": {problem}')
    return int(digits)


def _read(path: str) -> str:
    try:
        # not to wait for somebody to write, should it be a FIFO
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise CNIError(f"open {path}: {_reason(error)}") from None
    try:
        with open(fd, "rb") as file:
            return file.read(_LARGEST).decode(errors="replace")
    except OSError as error:
        raise CNIError(f"read {path}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).lower()
