"""What the firewall plugin is asked for, and what each of its backends does with it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...owner import Owner
from ...protocol.address import Prefix, by_family

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
        return by_family(self.addresses)


class Backend(Protocol):
    """One way to let containers through. All verbs act on the current network namespace.

    What fails raises CNIError or KernelError.
    """

    def add(self, want: Want, *, accept: bool = True) -> None:
        """Have the rules; those that are there stay. Without `accept` only the ingress policy's."""

    def check(self, want: Want, *, accept: bool = True) -> list[str]:
        """What is missing of that, a line each."""

    def remove(self, owner: Owner, addresses: list[Prefix], zone: str) -> None:
        """Remove the attachment's rules; that there are none is no error.

        A backend whose rules do not name their owner removes those of the addresses; `zone` is
        firewalld's.
        """

    def gc(self, network: str, keep: list[Owner], addresses: list[Prefix], zone: str) -> None:
        """Remove the rules of the network's attachments that are not in `keep`.

        `addresses` are theirs, as far as known; otherwise as `remove`.
        """

    def status(self) -> None:
        """Raises CNIError or KernelError if the backend cannot be used here."""


def gone(text: str) -> str:
    """CHECK's line for something that is missing."""
    return f"{text}: rules are gone: {RELOAD}"
