"""What DHCPv6 leases: an address, a delegated prefix, or both, and how long."""

from __future__ import annotations

import msgspec

from ...protocol.address import Prefix
from . import message6 as m
from .conf import PrefixDelegation
from .exchange import Lease, now
from .placement import own_address

FOREVER = float("inf")
_RETRY = 60.0  # seconds until a required prefix that the server took back is asked for again
# as RFC 8415 §21.4 recommends to servers
_LIFETIME_SHARE = (0.5, 0.8)  # T1 and T2 as shares of the preferred lifetime


class Router(msgspec.Struct):
    """A router on the link, by its link-local address; prefixes as text."""

    address: bytes
    is_default: bool
    routes: list[str]


class Lease6(Lease):
    """What was leased, with the routers that answered then.

    `address` is empty if only a prefix was requested. `prefixes` has an address of the prefix if
    the interface has one.
    """

    routers: list[Router] = []
    delegated: Prefix | None = None
    assigned: bool = False

    @property
    def prefixes(self) -> list[Prefix]:
        found = [self.prefix] if self.address else []
        own = self.own_address
        return [*found, own] if own is not None else found

    @property
    def leased(self) -> list[Prefix]:
        found = [self.prefix] if self.address else []
        return [*found, self.delegated] if self.delegated is not None else found

    @property
    def own_address(self) -> Prefix | None:
        """The interface's address of the delegated prefix, unless it is the leased one."""
        if self.delegated is None or not self.assigned:
            return None
        own = own_address(self.delegated)
        return own if own.ip != self.address else None

    @property
    def discarded(self) -> Prefix | None:
        return self.delegated


def of_grants(
    reply: m.Message,
    wish: PrefixDelegation | None,
    address: bytes,
    delegated: Prefix | None,
    grants: list[m.Grant],
    *,
    before: Lease6 | None,
    bound: float = FOREVER,
) -> Lease6:
    """The lease of these grants (at least one): it is renewed, and ends, with the first of them.

    At the time `bound` (of `now()`) it ends at the latest. DNS options that the reply omits are
    those of the lease `before`, if that is of the same address.
    """
    start = now()
    t1, t2, valid = (min(times) for times in zip(*map(_durations, grants), strict=True))
    if delegated is None and wish is not None and wish.required:
        t1 = min(t1, _RETRY)
    expires = min(start + valid, bound)
    t2 = min(start + t2, expires)
    times = [None if each == FOREVER else each for each in (min(start + t1, t2), t2, expires)]
    kept = before.options if before is not None and before.address == address else {}
    return Lease6(
        address,
        128,
        reply.server,
        times[0],
        times[1],
        times[2],
        reply.options or kept,
        delegated=delegated,
        assigned=wish is not None and wish.assign,
    )


def address_of(grant: m.Grant | None) -> bytes:
    """The address that is granted; empty if none is."""
    return grant.address if grant is not None else b""


def prefix_of(grant: m.Grant | None) -> Prefix | None:
    """The prefix that is granted, if any."""
    return Prefix(grant.address, grant.length) if grant is not None else None


def _durations(grant: m.Grant) -> tuple[float, float, float]:
    """Seconds until a lease has to be renewed, to be rebound, and ends."""
    if grant.valid == m.INFINITE:
        return FOREVER, FOREVER, FOREVER
    t1, t2 = grant.t1, grant.t2
    if not 0 < t1 <= t2 <= grant.valid:
        base = grant.preferred or grant.valid
        t1, t2 = (int(base * share) for share in _LIFETIME_SHARE)
    return t1, t2, grant.valid
