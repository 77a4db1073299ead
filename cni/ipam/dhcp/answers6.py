"""Which answers of DHCPv6 servers count (RFC 8415 §18.2.9, §18.2.10).

An answer with everything that was requested counts at once. One that refuses, or has less, counts
only at the end of a pause: SOLICIT and REBIND go to all servers of the link, of which another may
answer with more; and any host of the link can send a message in the name of a server.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from ...protocol.address import Prefix
from . import message6 as m
from .conf import PrefixDelegation


class Worth(Enum):
    """Whether a message is the answer."""

    FULL = "at once"
    LESSER = "when the pause before the next repetition ends without a better one"
    NONE = "never"


class Wish(NamedTuple):
    """What an attachment asks for: an address, a prefix, or both."""

    address: bool
    prefix: PrefixDelegation | None

    def lacking(self, message: m.Message) -> list[str]:
        """What the message does not grant: "address", "prefix"."""
        missing = []
        if self.address and (message.address is None or message.address.usable is None):
            missing.append("address")
        if self.prefix is not None and (message.prefix is None or message.prefix.usable is None):
            missing.append("prefix")
        return missing

    def is_enough(self, message: m.Message) -> bool:
        """Does it grant all that is required?"""
        missing = self.lacking(message)
        if "address" in missing:
            return False
        if "prefix" not in missing:
            return True
        # with neither the lease would be empty
        return self.prefix is not None and not self.prefix.required and self.address

    def explain(self, message: m.Message) -> str:
        """What a server does not grant, its reason, and what to do; "" if it grants everything."""
        missing = self.lacking(message)
        if not missing:
            return ""
        parts = {"address": message.address, "prefix": message.prefix}
        statuses = [(a.status, a.reason) for name in missing if (a := parts[name]) and a.status]
        statuses += [(message.status, message.reason)] if message.status else []
        text = "a server grants no " + " and no ".join(missing)
        if statuses:
            text += f" ({', '.join(m.status_text(*each) for each in dict.fromkeys(statuses))})"
        if missing == ["prefix"]:
            text += ": configure prefixes to delegate there, or set prefixDelegation.required to "
            text += "false"
        return text


class Renewal(NamedTuple):
    """What a server says of a lease: it is extended, or replaced, or not valid any more.

    None of them if the message says nothing of it: the lease continues until it expires.
    """

    grant: m.Grant | None = None
    other: m.Grant | None = None
    refused: str = ""


class Renewals(NamedTuple):
    """What a server says of an attachment's leases; None for one that was not requested."""

    address: Renewal | None
    prefix: Renewal | None

    @property
    def grants(self) -> list[m.Grant]:
        """What is leased now, for a time that the server says."""
        parts = [part for part in self if part is not None]
        return [grant for part in parts if (grant := part.grant or part.other) is not None]

    @property
    def lost(self) -> str:
        """Why nothing is leased any more; "" if something is.

        Without its address the container is not reached, so a prefix alone is of no use.
        """
        if self.address is not None:
            return self.address.refused
        return self.prefix.refused if self.prefix and self.prefix.other is None else ""


def renewals(
    message: m.Message, wish: Wish, address: Prefix | None, prefix: Prefix | None
) -> Renewals:
    """What the answer to RENEW or REBIND says of the leased address and prefix."""
    return Renewals(
        renewal(message, message.address, address) if wish.address else None,
        renewal(message, message.prefix, prefix) if wish.prefix is not None else None,
    )


def renewal(message: m.Message, association: m.Association | None, held: Prefix | None) -> Renewal:
    """What the answer to RENEW or REBIND says of this lease, or grants in the place of none."""
    status, reason = message.status, message.reason
    grants: list[m.Grant] = []
    if association is not None:
        grants = association.grants
        if association.status:
            status, reason = association.status, association.reason
    other = next((g for g in grants if g.valid), None)
    if held is None:
        return Renewal(other=other)
    ours = next((g for g in grants if (g.address, g.length) == (held.ip, held.length)), None)
    if ours is not None and ours.valid:
        return Renewal(ours)
    if ours is not None:
        return Renewal(other=other, refused=f"the server takes {held} back")
    if status == m.NO_BINDING:
        return Renewal(other=other, refused=m.status_text(status, reason))
    return Renewal()


def worth_of_offer(message: m.Message, wish: Wish, rapid: bool) -> Worth:
    """Is it the answer to SOLICIT?

    `rapid`: the server may commit at once. RFC 8415 §18.2.9: what grants too little is ignored.
    """
    is_reply = rapid and message.rapid and message.kind == m.REPLY
    if not (is_reply or message.kind == m.ADVERTISE) or not wish.is_enough(message):
        return Worth.NONE
    return Worth.LESSER if wish.lacking(message) else Worth.FULL


def worth_of_reply(message: m.Message, wish: Wish, offer: m.Message) -> Worth:
    """Is it the answer to REQUEST?

    `offer` is the server's, which a reply normally confirms.
    """
    if message.kind != m.REPLY:
        return Worth.NONE
    missing = wish.lacking(message)
    if set(missing) <= set(wish.lacking(offer)):
        return Worth.FULL
    parts = (message.address, message.prefix)
    has_status = message.status or any(part is not None and part.status for part in parts)
    wanted = wish.address + (wish.prefix is not None)
    # no server answers with neither a lease nor a reason
    return Worth.LESSER if has_status or len(missing) < wanted else Worth.NONE


def worth_of_renewal(message: m.Message, news: Renewals) -> Worth:
    """Is it the answer to RENEW or REBIND?"""
    if message.kind != m.REPLY or not (news.lost or news.grants):
        return Worth.NONE
    refuses = any(part is not None and part.refused for part in news)
    return Worth.LESSER if refuses else Worth.FULL
