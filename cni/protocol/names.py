"""What container ids, network names and interface names may be (spec/protocol.md §1.2)."""

from __future__ import annotations

import re

from .errors import BadEnvironment, InvalidConfig, UnknownContainer

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*", re.ASCII)

IFNAME_MAX = 15  # bytes; IFNAMSIZ less the terminating NUL


def check_container_id(value: str) -> None:
    """Raises UnknownContainer (3) when empty, BadEnvironment (4) for other characters."""
    if not value:
        raise UnknownContainer("missing containerID")
    if not _NAME.fullmatch(value):
        raise BadEnvironment("invalid characters in containerID", value)


def check_network_name(value: str) -> None:
    """Raises InvalidConfig (code 7)."""
    if not value:
        raise InvalidConfig("missing network name:")
    if not _NAME.fullmatch(value):
        raise InvalidConfig("invalid characters found in network name", value)


def check_ifname(value: str) -> None:
    """Raises BadEnvironment (code 4)."""
    if not value:
        raise BadEnvironment("interface name is empty")
    if len(value.encode("utf-8", "surrogateescape")) > IFNAME_MAX:
        raise BadEnvironment(
            "interface name is too long", "interface name should be less than 16 characters"
        )
    if value in (".", ".."):
        raise BadEnvironment("interface name is . or ..")
    if any(c in "/:" or c.isspace() for c in value):
        raise BadEnvironment("interface name contains / or : or whitespace characters")
