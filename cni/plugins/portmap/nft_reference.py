"""The reference's own rules in the table `cni_hostport`: removed by DEL, made by `cni migrate`."""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOENT

from ...kernel.errors import NetlinkError, NftError, Unusable
from ...netfilter.table import Table
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError
from .nft_chains import FAMILIES, REFERENCE_CHAIN, TABLE, family_of
from .want import Want

# The chains with rules of containers; the first one is in every table of the reference.
_CHAINS = (REFERENCE_CHAIN, "hostip_hostports", "masquerading")


def remove(container_id: str, addresses: Sequence[Prefix] | None) -> None:
    """Remove the reference's rules of a container: only those for its addresses, if they are known.

    They name the container, not the network: without addresses, other networks' rules go, too.
    Raises CNIError.
    """
    try:
        for family in FAMILIES:
            ours = (
                None if addresses is None else [a.ip for a in addresses if family_of(a) == family]
            )
            _remove_rules(family, container_id, ours)
    except Unusable:
        return
    except NetlinkError as error:
        raise CNIError(f"error deleting nftables rules: {error}") from None


def _remove_rules(family: str, container_id: str, addresses: Sequence[bytes] | None) -> None:
    for last in (False, False, False, True):
        rules = _rules_of(family, container_id, addresses)
        try:
            return Table(family, TABLE).delete(rules) if rules else None
        except NetlinkError as error:
            if error.errno != ENOENT or last:
                raise
    return None


def _rules_of(
    family: str, container_id: str, addresses: Sequence[bytes] | None
) -> list[tuple[str, int]]:
    """The chain and handle of each rule of the container (for these addresses, if given)."""
    if not Table(family, TABLE).has_chain(REFERENCE_CHAIN):
        return []
    return [
        (chain, rule.handle)
        for chain in _CHAINS
        for rule in Table(family, TABLE).find_rules(chain, container_id)
        # find_rules compares the beginning only, and an id may begin another one
        if rule.comment == container_id
        and (addresses is None or any(ip in rule.raw for ip in addresses))
    ]


# --- making them, for `cni migrate` ---------------------------------------------------------------

_COMMENT_MAX = 128  # bytes
_RETRIES = 5


def publish(want: Want) -> None:
    """Publish the ports by the reference's nftables rules, in place of its existing ones.

    The network's conditions are put into the container's own rules; the reference applies them to
    all containers. Needs nft(8), as the reference does. Raises CNIError, NftError, NetlinkError.
    """
    from ...netfilter import compiler

    if len(want.owner.container_id.encode()) > _COMMENT_MAX:
        raise CNIError(
            f"the container's id is longer than {_COMMENT_MAX} bytes",
            "the reference's nftables backend cannot publish ports of such a container",
        )
    for address in want.addresses:
        for attempt in range(1, _RETRIES + 1):
            try:
                compiler.run(_script(want, address))
                break
            except NftError:
                if attempt == _RETRIES:  # before: the reference may have deleted the same rules
                    raise


def _script(want: Want, address: Prefix) -> str:
    family, ip = family_of(address), format_ip(address.ip)
    counts = Table(family, TABLE).rule_counts()
    comment = f'comment "{want.owner.container_id}"'
    target = ip if address.is_v4 else f"[{ip}]"
    conditions = " ".join(want.conditions_of(address))
    lines = [f'add table {family} {TABLE} {{ comment "CNI portmap plugin"; }}']
    lines += [f"add chain {family} {TABLE} {name}" for name in (*_CHAINS[:2], "hostports_all")]
    for name in ("prerouting", "output"):
        hook = f"{{ type nat hook {name} priority -100; }}"
        lines.append(f"add chain {family} {TABLE} {name} {hook}")
    needed = [
        *((hook, "fib daddr type local jump hostports_all") for hook in ("prerouting", "output")),
        *(("hostports_all", f"jump {chain}") for chain in ("hostip_hostports", REFERENCE_CHAIN)),
    ]
    rules = [(chain, text) for chain, text in needed if not counts.get(chain)]
    for port in want.ports_of(address):
        where = f"{family} daddr {format_ip(port.host_ip)} " if port.host_ip else ""
        text = f"{where}{port.protocol} dport {port.host_port} dnat to {target}"
        rules.append(
            (REFERENCE_CHAIN, f"{conditions} {text}:{port.container_port} {comment}".strip())
        )
    if want.snat:
        hook = "{ type nat hook postrouting priority 100; }"
        lines.append(f"add chain {family} {TABLE} masquerading {hook}")
        everywhere = "0.0.0.0/0" if address.is_v4 else "::/0"
        sources = [everywhere] if want.masq_all else [ip, "127.0.0.1"] if address.is_v4 else [ip]
        for source in sources:
            text = f"{family} saddr {source} {family} daddr {ip} masquerade {comment}"
            rules.append(("masquerading", text))
    lines += [
        f"delete rule {family} {TABLE} {chain} handle {handle}"
        for chain, handle in _rules_of(family, want.owner.container_id, [address.ip])
    ]
    lines += [f"add rule {family} {TABLE} {chain} {text}" for chain, text in rules]
    return "\n".join((*lines, ""))
