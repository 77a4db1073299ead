"""What every main plugin does beside its links: its IPAM plugin, forwarding, masquerading, DNS."""

from __future__ import annotations

from typing import Any

from ...call import Attachment, Call, Steps
from ...kernel import sysctl
from ...owner import Owner
from ...protocol.address import Prefix
from ...protocol.config import DNS
from ...protocol.errors import CNIError
from ...protocol.result import Result


def dns(conf: DNS, ipam: DNS) -> DNS:
    """The configuration's DNS replaces IPAM's as soon as it says anything."""
    return conf if conf.given() else ipam


def enable_forwarding(prefixes: list[Prefix]) -> None:
    """Switch on IP forwarding on the host for the families in use. Raises CNIError."""
    for v6 in sorted({not p.is_v4 for p in prefixes}):
        try:
            sysctl.enable_forwarding(v6)
        except OSError as error:
            raise CNIError(
                f"Could not enable IP forwarding: {(error.strerror or '').lower()}",
                "is /proc/sys writable here?",
            ) from None


def masquerade(call: Call[Any], result: Result, backend: str | None) -> None:
    """Masquerade the result's addresses; taken back if the ADD fails. Raises CNIError."""
    from . import masquerade as masq

    prefixes = [ip.prefix for ip in result.ips]
    call.undo.callback(masq.teardown, call.owner, prefixes)
    masq.setup(call.owner, prefixes, backend)


def remasquerade(call: Call[Any], result: Result, backend: str | None) -> None:
    """For `reload`: masquerade what is not masqueraded any more. Raises CNIError."""
    from . import masquerade as masq

    masq.setup(call.owner, [ip.prefix for ip in result.ips], backend)


def missing_masquerade(call: Call[Any], result: Result) -> list[str]:
    """For CHECK: the rules that are gone, a line each."""
    from . import masquerade as masq

    missing = masq.check(call.owner, [ip.prefix for ip in result.ips])
    return [f"{line}. Rules are gone: run `cni reload`" for line in missing]


def check_backend(ip_masq: bool, backend: str | None) -> None:
    """Refuse an unknown masquerading backend before anything is changed. Raises CNIError."""
    if ip_masq and backend not in (None, "", "iptables", "nftables"):
        raise CNIError(
            f'unknown ipmasq backend "{backend}"', 'ipMasqBackend is "iptables" or "nftables"'
        )


def unmasquerade(call: Call[Any], prefixes: list[Prefix]) -> None:
    """Remove the owner's masquerading, also when its addresses are not known any more."""
    from . import masquerade as masq

    masq.teardown(call.owner, prefixes)


def owners(call: Call[Any], keep: frozenset[Attachment]) -> list[Owner]:
    """The attachments that GC keeps, as owners in this network."""
    return [Owner(call.network, a.container_id, a.ifname) for a in sorted(keep)]


def collect_masquerade(call: Call[Any], keep: frozenset[Attachment]) -> None:
    """Remove the masquerading of this network's attachments that are not in `keep`."""
    from . import masquerade as masq

    masq.gc(call.network, owners(call, keep))


def collect_ipam(call: Call[Any], name: str, steps: Steps) -> None:
    """Forward GC to the IPAM plugin."""
    if name:
        steps.run(call.delegate, name)
