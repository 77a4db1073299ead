"""win-overlay: Windows containers on VXLAN overlay networks (docs/spec/win-overlay.md)."""

from __future__ import annotations

from typing import Any

from ..call import Call
from ..protocol.address import format_ip
from ..protocol.errors import CNIError
from ..protocol.result import Result
from ..windows import hcn, hns
from ..windows.model import Network, Wanted
from .shared import windows

_MAC_PREFIX = "0E-2A"
_IPAM_TEXTS = {
    False: ("error while ipam.ExecAdd: ", "error while NewResultFromResult: "),
    True: (
        "error while executing IPAM addition: ",
        "error while converting the result from IPAM addition: ",
    ),
}


class Conf(windows.SharedConf):
    ip_masq: bool = False
    endpoint_mac_prefix: str = ""


def add(call: Call[Conf]) -> Result:
    """Make the endpoint if it is missing, and attach it; the result lists it alone."""
    _check_mac_prefix(call.conf.endpoint_mac_prefix)
    network = _find_network(call)
    _require_subnet(network)
    v2 = windows.v2(call)
    try:
        endpoint = windows.provide(call, network, lambda: _wanted(call, network))
    except CNIError as error:
        name = windows.endpoint_name(call)
        v1 = f"AddHnsEndpoint({name},{network.id},{call.container_id})"
        what = "adding HostComputeEndpoint" if v2 else v1
        raise error.wrapped(f"error while {what}: ") from None
    try:
        return windows.result(call, network, endpoint)
    except CNIError as error:
        what = "constructing HostComputeEndpoint addition result" if v2 else "constructResult"
        raise error.wrapped(f"error while {what}: ") from None


def _check_mac_prefix(prefix: str) -> None:
    if prefix and (len(prefix) != 5 or prefix[2] != "-"):
        raise CNIError(
            f"endpointMacPrefix [{prefix}] is invalid, value must be of the format xx-xx",
            f"two bytes in hexadecimal; {_MAC_PREFIX} if it is left out",
        )


def _require_subnet(network: Network) -> None:
    if not network.subnet:
        raise CNIError(
            f"network {network.name} has no subnet",
            "win-overlay takes the gateway and the prefix length from the network's first subnet",
        )


def _find_network(call: Call[Any]) -> Network:
    """The overlay network. Raises CNIError.

    With apiVersion 2 both services must know it: subnet and management address come from HNS.
    """
    name = call.network
    identity = ""
    if windows.v2(call):
        try:
            network = hcn.find_network(name)
        except CNIError as error:
            raise error.wrapped(f"error while hcn.GetNetworkByName({name}): ") from None
        if network is None:
            raise CNIError(f"network {name} is not found", _ADVICE)
        _check_type(network, exact=True)
        identity = network.id
    try:
        network = hns.find_network(name)
    except CNIError as error:
        # the reference's spelling
        raise error.wrapped(f"error while GETHNSNewtorkByName({name}): ") from None
    if network is None:
        raise CNIError(f"network {name} not found", _ADVICE)
    _check_type(network, exact=False)
    return network._replace(id=identity or network.id)


_ADVICE = "Get-HnsNetwork lists what this host has; flanneld or an administrator makes it"


def _check_type(network: Network, exact: bool) -> None:
    if network.type != "Overlay" and (exact or network.type.lower() != "overlay"):
        raise CNIError(
            f"network {network.name} is of an unexpected type: {network.type}",
            "win-overlay connects to Overlay; win-bridge to L2Bridge or L2Tunnel",
        )


def _wanted(call: Call[Conf], network: Network) -> Wanted:
    """The description of the endpoint, with the address of the IPAM plugin."""
    conf = call.conf
    address, mac = _allocate(call)
    policies = windows.policies(call)
    # The order of the policies has no effect; it is the reference's, which differs by API.
    v2 = windows.v2(call)
    if v2:
        windows.loop_back(call, policies, address)
    policies.provider_address(network.management_ip)
    if conf.ip_masq:
        policies.except_from_nat(network.subnet)
    if not v2:
        windows.loop_back(call, policies, address)
    return Wanted(
        name=windows.endpoint_name(call),
        network_id=network.id,
        policies=policies.document(),
        dns=windows.dns(conf),
        address=address,
        gateway=network.gateway,
        mac=mac,
    )


def _allocate(call: Call[Conf]) -> tuple[str, str]:
    """The address, and the MAC derived from it; with HCN both are empty without an IPAM plugin."""
    v2 = windows.v2(call)
    if v2 and not call.conf.ipam.type:
        return "", ""
    ip = windows.allocate(call, _IPAM_TEXTS[v2])
    if not ip.prefix.is_v4:
        text = "IPAM plugin return is missing valid IP Address"
        raise CNIError(
            text if v2 else "win-overlay doesn't support IPv6 now",
            f"its first address is {ip.address}: the MAC is made of an IPv4 address",
        )
    prefix = call.conf.endpoint_mac_prefix or _MAC_PREFIX
    return format_ip(ip.prefix.ip), f"{prefix}-{ip.prefix.ip.hex('-')}"


delete = windows.delete
gc = windows.gc


def check(call: Call[Conf]) -> None:
    """Compare the endpoint with the prevResult."""
    windows.check(call, _find_network)


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready and the network exists."""
    windows.status(call, _find_network)
