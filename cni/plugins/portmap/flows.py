"""Ending UDP and SCTP flows whose tracked destination is not that of the published port."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ...call import Call
from ...kernel import route
from ...kernel.errors import NetlinkError
from ...kernel.netlink import Netlink
from ...netfilter import conntrack, nft
from ...netfilter.conntrack import Flow
from .want import CONNECTIONLESS, PROTOCOLS, Port

_AT_ONCE = 16  # ports whose flows are ended with one request for each port


def forget(
    call: Call[Any], v6: bool, ports: Collection[Port], stale: Callable[[Flow], bool]
) -> None:
    """End the tracking of stale flows to these ports of the node; failures are only logged."""
    for protocol in CONNECTIONLESS:
        numbers = {port.host_port for port in ports if port.protocol == protocol}
        if not numbers:
            continue
        bound = {(p.host_ip if any(p.host_ip) else b"", p.host_port) for p in ports}
        try:
            with Netlink() as host:
                is_local = _Local(host)
                conntrack.forget(
                    nft.socket(),
                    [
                        flow
                        for flow in conntrack.flows(nft.socket(), v6, PROTOCOLS[protocol], numbers)
                        if ((b"", flow.dst_port) in bound or (flow.dst, flow.dst_port) in bound)
                        and stale(flow)
                        # last, because it may take a request to the kernel
                        and is_local[flow.dst]
                    ],
                )
        except NetlinkError as error:
            call.log(f"cni: portmap: cannot forget old {protocol} flows: {error}")


class _Local(dict[bytes, bool]):
    """Whether an address is local to this node; looked up once for each address."""

    def __init__(self, host: Netlink) -> None:
        super().__init__()
        self._host = host

    def __missing__(self, address: bytes) -> bool:
        self[address] = is_local = route.is_local(self._host, address)
        return is_local


def forget_translated(call: Call[Any], ports: Collection[Port], ours: Collection[bytes]) -> None:
    """End flows to these ports that a container answers: one of `ours`; any, if `ours` is empty."""

    def gone(flow: Flow) -> bool:
        return flow.answered_by in ours if ours else flow.answered_by != flow.dst

    for v6 in (False, True):
        size = 16 if v6 else 4
        family = [p for p in ports if len(p.host_ip) in (0, size)]
        if not ours or not _are_forgotten(family, [each for each in ours if len(each) == size]):
            forget(call, v6, family, gone)


def _are_forgotten(ports: Collection[Port], ours: Collection[bytes]) -> bool:
    """End all flows to these ports that one of `ours` answers, without reading them.

    False if the kernel cannot: then `forget` does it, and logs failures.
    """
    flowing = [port for port in ports if port.protocol in CONNECTIONLESS]
    if len(flowing) * len(ours) > _AT_ONCE:
        return False  # for each request the kernel walks all flows of the node
    try:
        return all(
            conntrack.forget_all(
                nft.socket(),
                PROTOCOLS[port.protocol],
                port.host_port,
                port.host_ip if any(port.host_ip) else b"",
                address,
            )
            for port in flowing
            for address in ours
        )
    except NetlinkError:
        return False
