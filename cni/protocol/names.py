"""What container ids, network names and interface names may be (docs/spec/protocol.md §1.2)."""

from __future__ import annotations

from .errors import BadEnvironment, InvalidConfig, UnknownContainer

_PUNCTUATION = str.maketrans("_.-", "xxx")

IFNAME_MAX = 15  # bytes; IFNAMSIZ less the terminating NUL


def check_container_id(value: str) -> None:
    """Raises UnknownContainer (3) when empty, BadEnvironment (4) for other characters."""
    if not value:
        raise UnknownContainer("missing containerID")
    if not _is_name(value):
        raise BadEnvironment("invalid characters in containerID", value)


def check_network_name(value: str) -> None:
    """Raises InvalidConfig (code 7)."""
    if not value:
        raise InvalidConfig("missing network name:")
    if not _is_name(value):
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


def _is_name(value: str) -> bool:
    """[a-zA-Z0-9][a-zA-Z0-9_.-]*, without importing `re` for it."""
    return value.isascii() and value[0].isalnum() and value.translate(_PUNCTUATION).isalnum()
