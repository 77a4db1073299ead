"""Replacing our sets by rules that the reference can remove, and back.

The new rules are made first, and the old ones are removed afterwards: traffic is masqueraded all
the time, and after a kill another run, or a DEL by these plugins, removes the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....netfilter import elements
from ....netfilter.elements import Element
from ....owner import Owner
from ....protocol import config
from ....protocol.address import Prefix
from . import SET, backend_iptables, backend_nft, backend_set, outbound_of, setup, wanted

if TYPE_CHECKING:
    from ....call import Call


def masqueraded() -> list[tuple[Element, Prefix]]:
    """The sets' contents: (element that names the owner, its address). Raises NetlinkError."""
    listed = elements.elements(backend_set.TABLE, backend_set.BY_OWNER)
    return [(element, backend_set.prefix_of(element.value)) for element in listed]


def concerns(conf: dict[str, Any]) -> bool:
    """Does a configuration ask for sets?"""
    return bool(config.lookup(conf, "ipMasq") and config.lookup(conf, "ipMasqSet"))


def to_reference(call: Call[Any]) -> None:
    """Masquerade as the reference does. Raises CNIError, KernelError."""
    outbound = outbound_of(call.conf)
    setup(call.owner, _prefixes(call), call.conf.ip_masq_backend or None, outbound=outbound)
    forget(call.owner)


def to_own(call: Call[Any]) -> None:
    """Masquerade with sets again; the reference's rules go. Raises CNIError, KernelError."""
    prefixes = _prefixes(call)
    setup(call.owner, prefixes, SET, outbound=outbound_of(call.conf))
    backend_nft.teardown(call.owner, prefixes, list, [])
    backend_iptables.teardown(call.owner, prefixes, list, [])


def forget(owner: Owner) -> None:
    """Remove an attachment from the sets. Raises CNIError."""
    backend_set.teardown(owner, [], list, [])


def _prefixes(call: Call[Any]) -> list[Prefix]:
    result = call.prev_result()
    return wanted(call, result) if result is not None else []
