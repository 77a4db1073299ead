"""What the firewall plugin is asked for, independent of the backend that renders it."""

from __future__ import annotations

from typing import NamedTuple

from ...owner import Owner
from ...protocol.address import Prefix

RELOAD = "run `cni reload`"


class Ingress(NamedTuple):
    """Who may reach the containers on a bridge: `policy` is same-bridge or isolated."""

    policy: str
    bridge: str

    @property
    def isolated(self) -> bool:
        """Not even containers on the same bridge."""
        return self.policy == "isolated"


class Want(NamedTuple):
    """The rules of one attachment. `addresses` are hosts: /32 or /128."""

    owner: Owner
    addresses: list[Prefix]
    admin_chain: str
    zone: str
    ingress: Ingress | None

    @property
    def families(self) -> list[tuple[bool, list[Prefix]]]:
        """The addresses by family, (is IPv6, those), families without any left out."""
        return families(self.addresses)


def families(addresses: list[Prefix]) -> list[tuple[bool, list[Prefix]]]:
    """The addresses by family, (is IPv6, those), families without any left out."""
    both = ((v6, [a for a in addresses if a.is_v4 != v6]) for v6 in (False, True))
    return [(v6, family) for v6, family in both if family]


def gone(text: str) -> str:
    """CHECK's line for something that is missing."""
    return f"{text}: rules are gone: {RELOAD}"
