"""win-bridge: Windows containers on L2Bridge and L2Tunnel networks (docs/spec/win-bridge.md)."""

from __future__ import annotations

from typing import Any

from ..call import Call
from ..protocol.address import Prefix, format_ip
from ..protocol.errors import CNIError
from ..protocol.result import IPConfig, Result
from ..windows import hcn, hns
from ..windows.model import Network, Wanted
from .shared import windows

_TYPES = ("L2Bridge", "L2Tunnel")
_IPAM_TEXTS = (
    "error while executing IPAM addition: ",
    "error while converting the result from IPAM addition: ",
)


class Conf(windows.SharedConf):
    ip_masq_network: str = ""


def add(call: Call[Conf]) -> Result:
    """Make the endpoint if it is missing, and attach it; the result lists it alone."""
    network = _find_network(call)
    try:
        endpoint = windows.provide(call, network, lambda: _wanted(call, network))
    except CNIError as error:
        kind = "HostComputeEndpoint" if windows.v2(call) else "HNSEndpoint"
        raise error.wrapped(f"error while adding {kind}: ") from None
    return windows.result(call, network, endpoint)


def _find_network(call: Call[Any]) -> Network:
    """The network of the configuration's name, of the right type. Raises CNIError."""
    name = call.network
    v2 = windows.v2(call)
    try:
        network = hcn.find_network(name) if v2 else hns.find_network(name)
    except CNIError as error:
        raise error.wrapped(f"error while getting network {name}: ") from None
    if network is None:
        raise CNIError(
            f"network {name} is not found", "Get-HnsNetwork lists what this host has; make it first"
        )
    fits = network.type in _TYPES or (not v2 and network.type.lower() in ("l2bridge", "l2tunnel"))
    if not fits:
        raise CNIError(
            f"network {name} is of unexpected type: {network.type}",
            f"win-bridge connects to {' or '.join(_TYPES)}; win-overlay to Overlay",
        )
    return network


def _wanted(call: Call[Conf], network: Network) -> Wanted:
    """The description of the endpoint, with the address of the IPAM plugin, if there is one."""
    conf = call.conf
    address = gateway = ""
    if conf.ipam.type:
        ip = windows.allocate(call, _IPAM_TEXTS)
        address, gateway = format_ip(ip.prefix.ip), _gateway(ip)
    policies = windows.policies(call)
    policies.except_from_nat(conf.ip_masq_network)
    for mapping in windows.port_mappings(conf):
        if not policies.publish(mapping):
            call.log(f'win-bridge: "{mapping.protocol}" is no protocol: port not published')
    windows.loop_back(call, policies, address)
    return Wanted(
        name=windows.endpoint_name(call),
        network_id=network.id,
        policies=policies.document(),
        dns=windows.dns(conf),
        address=address,
        gateway=gateway,
    )


def _gateway(ip: IPConfig) -> str:
    """The subnet's address with 2 added to its last byte; IPAM's gateway is ignored."""
    network = Prefix.parse(ip.address).network.ip
    return format_ip(network[:-1] + bytes([(network[-1] + 2) & 0xFF]))


delete = windows.delete
gc = windows.gc


def check(call: Call[Conf]) -> None:
    """Compare the endpoint with the prevResult."""
    windows.check(call, _find_network)


def status(call: Call[Conf]) -> None:
    """Ready if the IPAM plugin is ready and the network exists."""
    windows.status(call, _find_network)
