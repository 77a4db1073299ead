"""`isolated` between containers of one bridge, where the packet filter does not see them.

Frames that a bridge forwards pass the packet filter only with br_netfilter. Without it, the
kernel's port isolation does the same: isolated ports reach the node and other networks, but not
each other. The reference does not isolate containers in that case.
"""

from __future__ import annotations

from ...kernel import link, sysctl
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError
from ...protocol.result import Result
from .want import Want


def isolate(want: Want, result: Result) -> None:
    """Isolate the container's ports if the packet filter does not see their frames.

    Does nothing unless the policy is `isolated`. Raises CNIError.
    """
    if not _needed(want):
        return
    with Netlink() as host:
        for port in _ports(host, want, result):
            if not port.isolated:
                _set(host, port)


def check(want: Want, result: Result) -> list[str]:
    """The ports that should be isolated and are not, a line each."""
    if not _needed(want):
        return []
    with Netlink() as host:
        ports = _ports(host, want, result)
    return [f"bridge port {port.name} is not isolated" for port in ports if not port.isolated]


def _needed(want: Want) -> bool:
    if want.ingress is None or not want.ingress.isolated:
        return False
    return any(not _filtered(v6) for v6, _ in want.families)


def _filtered(v6: bool) -> bool:
    try:
        return sysctl.read(f"net/bridge/bridge-nf-call-ip{'6' if v6 else ''}tables") == "1"
    except OSError:
        return False  # there is no br_netfilter


def _ports(host: Netlink, want: Want, result: Result) -> list[Link]:
    """The node's ends of the container's links that are ports of the bridge."""
    assert want.ingress is not None
    bridge = link.find(host, want.ingress.bridge)
    names = [entry.name for entry in result.interfaces if not entry.sandbox]
    links = [device for name in names if (device := link.find(host, name)) is not None]
    return [one for one in links if bridge is not None and one.master == bridge.index]


def _set(host: Netlink, port: Link) -> None:
    try:
        link.set_port(host, port.index, hairpin=port.hairpin, isolated=True)
    except NetlinkError as error:
        raise CNIError(
            f"cannot isolate bridge port {port.name}: {error}",
            "without that and without br_netfilter the containers of the bridge see each other",
        ) from None
