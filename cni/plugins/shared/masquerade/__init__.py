"""Masquerading what containers send outside their subnet (docs/spec/common.md §6).

Plugins call this facade. `backend_nft` and `backend_iptables` have the reference's names and texts,
so that each implementation can remove the other's rules; `backend_set` has no counterpart in the
reference. An ADD loads only the backend with which it makes rules. DEL, CHECK and GC load those
that may have rules, which three or four requests to the kernel tell.

Rules are removed by owner: all rules of the attachment, whatever addresses the container has now.
But an iptables chain is named after network and container, not after the interface. So the rules of
another interface of the container in that network are recognised by that interface's addresses,
which its own ADD noted on the host (cni.intent).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ....call import Steps
from ....kernel.errors import IptablesError, KernelError
from ....owner import Owner
from ....protocol.address import InvalidAddress, Prefix, format_ip, is_global_unicast, parse_ip
from ....protocol.errors import CNIError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ....call import Call
    from ....protocol.request import Attachment
    from ....protocol.result import Result

    # By "is IPv4": the packed address under which packets of that family leave (`outboundAddr`).
    # Those of a family that is not in it leave under the address of the link that they go through.
    Outbound = Mapping[bool, bytes]

ANY: Outbound = {}
BACKENDS = ("iptables", "nftables")
FAMILIES = ("ipv4", "ipv6")
SET = "set"  # the third backend, which a key of its own selects
# Chains by which the other backends are recognised; those modules make them.
_NFT_CHAINS = {
    "nftables": ("inet", "cni_plugins_masquerade", "masq_checks"),
    SET: ("inet", "cni_masquerade", "postrouting"),
}


class Keys(Protocol):
    """The keys that all plugins with masquerading have."""

    ip_masq: bool
    ip_masq_backend: str | None
    ip_masq_set: bool
    ip_masq_families: list[str]
    outbound_addr: list[str]


class Backend(Protocol):
    """A packet filter that masquerades, in the current network namespace.

    Methods raise CNIError or KernelError.
    """

    def setup(
        self,
        owner: Owner,
        prefixes: list[Prefix],
        *,
        first: bool = False,
        outbound: Outbound = ANY,
    ) -> list[int]:
        """Make the rules of these addresses (with their subnets' prefix lengths).

        Rules that exist stay. After a failure none of the rules is left. `first`: every known ADD
        of the owner had its DEL, so there is no need to look for its old rules. Returns the handles
        by which `teardown` and `check` find the rules faster, if the backend needs any.
        """

    def teardown(
        self,
        owner: Owner,
        mine: list[Prefix],
        others: Callable[[], list[Prefix]],
        handles: Sequence[int] = (),
    ) -> None:
        """Remove the owner's rules; no rules are no error.

        `others` returns the addresses of the container's other interfaces in the network, whose
        rules stay. It is slow, so it is called only if the backend cannot tell the interfaces
        apart, and there are rules for addresses beyond `mine`, the owner's known ones. `handles`
        are those that `setup` returned, as far as known.
        """

    def gc(self, network: str, keep: list[Owner]) -> None:
        """Remove the rules of the network's attachments that are not in `keep`."""

    def check(
        self,
        owner: Owner,
        prefixes: list[Prefix],
        handles: Sequence[int] = (),
        outbound: Outbound = ANY,
    ) -> dict[Prefix, list[str]]:
        """The addresses that lack rules, each with the rules that it has. Raises nothing."""


def _load(name: str) -> Backend:
    if name == "iptables":
        from . import backend_iptables

        return backend_iptables
    if name == SET:
        from . import backend_set

        return backend_set
    from . import backend_nft

    return backend_nft


def _load_used(chain: str) -> list[Backend]:
    """The backends that may have rules; iptables if this chain is in its nat table."""
    from ....netfilter import iptables

    used: list[str] = []
    for v6 in (False, True):
        if iptables.may_be_used(v6, "nat", chain) and not used:
            used.append("iptables")
    used += filter(_is_nft_used, _NFT_CHAINS)
    return [_load(name) for name in used]


def _is_nft_used(backend: str) -> bool:
    from ....netfilter.table import Table

    family, table, chain = _NFT_CHAINS[backend]
    try:
        return Table(family, table).has_chain(chain)
    except OSError:
        return True  # the backend will show why the kernel does not answer


# --- a plugin's verbs -----------------------------------------------------------------------------


def add(call: Call[Any], result: Result, backend: str | None) -> None:
    """For ADD: masquerade the result's addresses; undone if the ADD fails. Raises CNIError."""
    from .... import intent

    prefixes, outbound = wanted(call, result), outbound_of(call.conf)
    undo = (call.owner, prefixes, lambda: _addresses_of_others(call))
    call.undo.callback(lambda: teardown(*undo, call.handles))
    earlier = intent.find(call.plugin, call.owner, call.request.env)
    if earlier is not None and set(earlier.addresses) - {prefix.host for prefix in prefixes}:
        teardown(*undo)  # an earlier ADD, which had no DEL, had other addresses
    call.handles = setup(call.owner, prefixes, backend, first=earlier is None, outbound=outbound)


def wanted(call: Call[Any], result: Result) -> list[Prefix]:
    """The addresses to masquerade: those of `ipMasqFamilies`, which the plugin has checked."""
    families = call.conf.ip_masq_families or FAMILIES
    return [ip.prefix for ip in result.ips if FAMILIES[not ip.prefix.is_v4] in families]


def reload(call: Call[Any], result: Result, backend: str | None) -> None:
    """For `reload`: make the missing rules for the result's addresses. Raises CNIError."""
    setup(call.owner, wanted(call, result), backend, outbound=outbound_of(call.conf))


def check(call: Call[Any], result: Result) -> list[str]:
    """For CHECK: the addresses that are not masqueraded, a line each."""
    outbound = outbound_of(call.conf)
    lines = missing(
        call.owner, wanted(call, result), lambda: _noted_handles(call), outbound=outbound
    )
    return [f"{line}. Rules are gone: run `cni reload`" for line in lines]


def delete(call: Call[Any]) -> None:
    """For DEL: remove the attachment's rules, whatever its addresses are. Raises CNIError."""
    noted = call.forgotten.intents if call.forgotten is not None else []
    mine = [address for kept in noted for address in kept.addresses]
    handles = [handle for kept in noted for handle in kept.handles]
    teardown(call.owner, mine, lambda: _addresses_of_others(call), handles)


def gc(call: Call[Any], keep: frozenset[Attachment]) -> None:
    """For GC: remove the rules of the network's attachments that are not kept. Raises CNIError."""
    collect(call.network, call.owners(keep))


def _noted_handles(call: Call[Any]) -> list[int]:
    """The handles of the attachment's rules that its ADD noted; [] if unknown."""
    from .... import intent

    try:
        kept = intent.find(call.plugin, call.owner, call.request.env)
    except OSError:
        return []
    return kept.handles if kept is not None else []


def _addresses_of_others(call: Call[Any]) -> list[Prefix]:
    """The noted addresses of the container's other interfaces in this network."""
    from .... import intent

    return [
        address
        for kept in intent.all_of(call.plugin, call.request.env, call.network)
        if kept.owner.container_id == call.container_id and kept.owner.ifname != call.ifname
        for address in kept.addresses
    ]


# --- functions that take an owner -----------------------------------------------------------------


def configured_backend(conf: Keys) -> str | None:
    """The backend that a configuration names; None if it names none, and without `ipMasq`.

    Raises CNIError for values that its keys cannot have.
    """
    if not conf.ip_masq:
        return None
    _check_families(conf.ip_masq_families)
    outbound_of(conf)
    return backend_of(conf.ip_masq_backend, conf.ip_masq_set)


def backend_of(backend: str | None, in_set: bool) -> str | None:
    """The backend that the keys `ipMasqBackend` and `ipMasqSet` select; None if neither is set.

    Raises CNIError ``unknown ipmasq backend "x"``.
    """
    if backend and backend not in BACKENDS:
        raise CNIError(
            f'unknown ipmasq backend "{backend}"', 'ipMasqBackend is "iptables" or "nftables"'
        )
    if in_set and backend == "iptables":
        raise CNIError(
            "ipMasqSet cannot be used with ipMasqBackend iptables",
            'iptables has no such sets: set ipMasqBackend to "nftables", or leave it out',
        )
    return SET if in_set else backend


def _check_families(families: list[str]) -> None:
    """Refuse a word that is no address family. Raises CNIError."""
    for family in families:
        if family not in FAMILIES:
            raise CNIError(
                f'unknown family of addresses "{family}"', 'ipMasqFamilies has "ipv4" or "ipv6"'
            )


def outbound_of(conf: Keys) -> Outbound:
    """The addresses that packets leave under, as `outboundAddr` lists them: one a family at most.

    Raises CNIError for what no packet can leave under.
    """
    outbound: dict[bool, bytes] = {}
    for text in conf.outbound_addr:
        try:
            ip = parse_ip(text)
        except InvalidAddress:
            ip = b""
        if not ip or not is_global_unicast(ip):
            raise CNIError(
                f'invalid outboundAddr "{text}"',
                "it is a list of addresses of this node, such as 192.0.2.7: no prefix, and neither "
                "loopback, link-local nor multicast",
            )
        if (len(ip) == 4) in outbound:
            raise CNIError(
                f"outboundAddr has two addresses of one family: {', '.join(conf.outbound_addr)}",
                "give one IPv4 and one IPv6 address at most",
            )
        outbound[len(ip) == 4] = ip
    return outbound


def setup(
    owner: Owner,
    prefixes: list[Prefix],
    backend: str | None,
    *,
    first: bool = False,
    outbound: Outbound = ANY,
) -> list[int]:
    """Masquerade traffic from these addresses to outside their subnets; may be repeated.

    `backend` is one of BACKENDS, SET, or None: iptables, or nftables if iptables is unusable.
    `first` and the returned handles are those of Backend.setup. Raises CNIError; then none of the
    rules is left.
    """
    if backend != SET:
        backend_of(backend, in_set=False)
    if not prefixes:
        return []
    if backend:
        return _load(backend).setup(owner, prefixes, first=first, outbound=outbound)
    return _setup_with_either(owner, prefixes, first, outbound)


def _setup_with_either(
    owner: Owner, prefixes: list[Prefix], first: bool, outbound: Outbound
) -> list[int]:
    from ....netfilter import iptables

    try:
        iptables.require()  # without the tool its backend need not be loaded
        return _load("iptables").setup(owner, prefixes, first=first, outbound=outbound)
    except IptablesError as error:
        # Whether iptables is usable takes a program to find out, so look only after a failure.
        if iptables.usable(v6=False):
            raise
        try:
            return _load("nftables").setup(owner, prefixes, first=first, outbound=outbound)
        except (CNIError, KernelError) as other:
            raise CNIError(
                error.msg, f"and nftables, tried instead: {other}; {error.details}".rstrip("; ")
            ) from None


def teardown(
    owner: Owner,
    mine: list[Prefix],
    others: Callable[[], list[Prefix]] = list,
    handles: Sequence[int] = (),
) -> None:
    """Remove the owner's rules from all backends; arguments as in Backend. Raises CNIError.

    Nothing to remove is no error, nor is a backend that cannot be used here.
    """
    steps = Steps()
    for backend in _load_used(owner.chain()):
        steps.run(backend.teardown, owner, mine, others, handles)
    steps.finish()


def collect(network: str, keep: list[Owner]) -> None:
    """Remove the rules of the network's attachments that are not in `keep`. Raises CNIError."""
    steps = Steps()
    for backend in _load_used("POSTROUTING"):
        steps.run(backend.gc, network, keep)
    steps.finish()


def missing(
    owner: Owner,
    prefixes: list[Prefix],
    handles: Callable[[], list[int]] = list,
    *,
    outbound: Outbound = ANY,
) -> list[str]:
    """The addresses without their rules, a line each; the rules of any backend suffice.

    `handles` returns those that `setup` returned, as far as known.
    """
    rest: dict[Prefix, list[str]] = {prefix: [] for prefix in prefixes}
    for name in (SET, "nftables"):  # the set first: it needs no list of all rules
        if rest and _is_nft_used(name):
            noted = [] if name == SET else handles()
            rest = _load(name).check(owner, list(rest), noted, outbound)
    if rest:
        rest = _load("iptables").check(owner, list(rest), handles(), outbound)
    return [_difference(prefix, have, outbound) for prefix, have in rest.items()]


def _difference(prefix: Prefix, have: list[str], outbound: Outbound) -> str:
    there = f"only {'; '.join(have)}" if have else "none"
    address = outbound.get(prefix.is_v4)
    under = f" under {format_ip(address)}" if address else ""
    chain = " ".join(_NFT_CHAINS["nftables"])
    return (
        f"masquerading of {prefix}{under}: want its rule in {chain}, or its address in the sets of "
        f"inet cni_masquerade, or the chain and the POSTROUTING rule in iptables' nat table; have "
        f"{there}"
    )
