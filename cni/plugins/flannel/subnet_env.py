"""subnet.env: the file in which flanneld describes this node's subnet (docs/spec/flannel.md).

It consists of lines ``KEY=value`` without quotes or comments. Unknown keys are ignored; if a key
occurs several times, the last line counts.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ...protocol.address import InvalidAddress, Prefix
from ...protocol.errors import CNIError

_LARGEST = 1 << 20  # bytes; flanneld writes some hundred
_MTU_MAX = (1 << 32) - 1


class SubnetEnv(NamedTuple):
    """The file's values: `networks` of all nodes and `subnets` of this one, IPv4 first.

    `mtu` is in bytes; `ip_masq` says that flanneld masquerades.
    """

    networks: list[Prefix]
    subnets: list[Prefix]
    mtu: int
    ip_masq: bool


def load(path: str) -> SubnetEnv:
    """The contents of flanneld's file. Raises CNIError ``open <path>: …`` and those of parse()."""
    return parse(_read(path), path)


def parse(text: str, path: str) -> SubnetEnv:
    """A SubnetEnv from the text of the file `path`, which only errors name. Raises CNIError."""
    values: dict[str, str] = {}
    for line in text.split("\n"):
        key, equals, value = line.removesuffix("\r").partition("=")
        if key in _KEYS:
            if not equals:
                raise CNIError(f'invalid line "{key}": it has no "="')
            values[key] = value
    missing = [", ".join(keys) for keys in _REQUIRED if not any(key in values for key in keys)]
    if missing:
        raise CNIError(f"{path} is missing {', '.join(missing)}")
    return SubnetEnv(
        networks=[
            prefix for key in _NETWORKS if key in values for prefix in _prefixes(key, values)
        ],
        subnets=[_prefixes(key, values, single=True)[0] for key in _SUBNETS if key in values],
        mtu=_mtu(values["FLANNEL_MTU"]),
        ip_masq=values["FLANNEL_IPMASQ"] == "true",
    )


_NETWORKS = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
_SUBNETS = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
# One key of each group is required. Errors name the missing ones in this order.
_REQUIRED = (_NETWORKS, _SUBNETS, ("FLANNEL_MTU",), ("FLANNEL_IPMASQ",))
_KEYS = frozenset(key for keys in _REQUIRED for key in keys)


def _prefixes(key: str, values: dict[str, str], *, single: bool = False) -> list[Prefix]:
    """The networks of a comma-separated list, or with `single` the only one; without duplicates."""
    texts = [values[key]] if single else values[key].split(",")
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
        # O_NONBLOCK: if the path is a FIFO, open(2) would wait for a writer.
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
