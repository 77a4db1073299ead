"""The reference's own rules in the table `cni_hostport`, which DEL removes, too."""

from __future__ import annotations

from collections.abc import Sequence
from errno import ENOENT

from ...kernel.errors import NetlinkError, Unusable
from ...netfilter.table import Table
from ...protocol.address import Prefix
from ...protocol.errors import CNIError
from .nft_chains import FAMILIES, REFERENCE_CHAIN, TABLE, family_of

# The chains with rules of containers; the first one is in every table of the reference.
_CHAINS = (REFERENCE_CHAIN, "hostip_hostports", "masquerading")


def remove(container_id: str, addresses: Sequence[Prefix] | None) -> None:
    """Remove the reference's rules of a container: only those for its addresses, if they are known.

    They name the container, not the network: without addresses, those of another network go, too.
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
        counts = Table(family, TABLE).rule_counts()
        rules = [
            (chain, rule.handle)
            for chain in _CHAINS
            if chain in counts
            for rule in Table(family, TABLE).find_rules(chain, container_id)
            if rule.comment == container_id
            and (addresses is None or any(ip in rule.raw for ip in addresses))
        ]
        try:
            return Table(family, TABLE).delete(rules) if rules else None
        except NetlinkError as error:
            if error.errno != ENOENT or last:
                raise
    return None
