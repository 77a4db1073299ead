"""HNS, the older API: requests like those of a web service, through one function of vmcompute.dll.

Attaching an endpoint to a running container goes to the compute service, in the same library.
"""

from __future__ import annotations

from typing import Any

from ..protocol.config import DNS, Folded, convert
from ..protocol.errors import CNIError
from . import dll
from .dll import HANDLE, TEXT, HResultError
from .model import Endpoint, Network, Wanted, decode, encode

_vmcompute = dll.Library("vmcompute.dll")

# Loopback DSR: first and last version of the ranges that have it, (major, minor).
_DSR = (((9, 3), (9, 1 << 31)), ((10, 2), (1 << 31, 0)))


class _Response(Folded):
    success: bool = False
    error: str = ""
    output: Any = None


class _Version(Folded):
    major: int = 0
    minor: int = 0


class _Subnet(Folded):
    address_prefix: str = ""
    gateway_address: str = ""


class _Network(Folded):
    id: str = ""
    name: str = ""
    type: str = ""
    subnets: list[_Subnet] = []
    management_ip: str = ""


class _Endpoint(Folded):
    id: str = ""
    name: str = ""
    virtual_network: str = ""
    mac_address: str = ""
    ip_address: str = ""
    ipv6_address: str = ""
    gateway_address: str = ""
    gateway_address_v6: str = ""
    dns_server_list: str = ""
    dns_suffix: str = ""


def request(method: str, path: str, document: str = "") -> Any:
    """Send a request; return the `Output` of its answer. Raises CNIError."""
    # No error record: the answer itself says whether the request has failed.
    (text,) = _vmcompute.call("HNSCall", method, path, document, TEXT, record=False)
    response = convert(decode(text, "HNSCall"), _Response)
    if not response.success:
        raise CNIError(f"HNS failed with error : {response.error}", f"{method} {path}")
    return response.output


def supports_dsr() -> bool:
    """Can this host do loopback direct server return?"""
    version = convert(request("GET", "/globals/version") or {}, _Version)
    return any(first <= (version.major, version.minor) <= last for first, last in _DSR)


def find_network(name: str) -> Network | None:
    """The network of that name. Raises CNIError."""
    for raw in request("GET", "/networks/") or []:
        network = convert(raw, _Network)
        if network.name == name:
            subnet = network.subnets[0] if network.subnets else _Subnet()
            return Network(
                id=network.id,
                name=name,
                type=network.type,
                subnet=subnet.address_prefix,
                gateway=subnet.gateway_address,
                management_ip=network.management_ip,
            )
    return None


def find_endpoint(name: str) -> Endpoint | None:
    """The endpoint of that name. Raises CNIError."""
    return next((e for e in endpoints() if e.name == name), None)


def endpoints() -> list[Endpoint]:
    """All endpoints of this host. Raises CNIError."""
    return [_endpoint(raw) for raw in request("GET", "/endpoints/") or []]


def create(wanted: Wanted) -> Endpoint:
    """Make an endpoint. Raises CNIError."""
    document = {
        "Name": wanted.name,
        "VirtualNetwork": wanted.network_id,
        "Policies": wanted.policies,
        "MacAddress": wanted.mac,
        "IPAddress": wanted.address,
        "DNSSuffix": ",".join(wanted.dns.search or []),
        "DNSServerList": ",".join(wanted.dns.nameservers or []),
        "GatewayAddress": wanted.gateway,
    }
    return _endpoint(request("POST", "/endpoints/", encode(document)))


def delete(endpoint: Endpoint) -> None:
    """Remove an endpoint. Raises CNIError."""
    request("DELETE", f"/endpoints/{endpoint.id}")


def attach(endpoint: Endpoint, container_id: str) -> bool:
    """Attach the endpoint to a running container; False if there is none. Raises CNIError."""
    return _modify(container_id, "Add", endpoint)


def hot_detach(endpoint: Endpoint, container_id: str) -> bool:
    """Detach the endpoint from a running container; False if there is none. Raises CNIError."""
    return _modify(container_id, "Remove", endpoint)


def detach(endpoint: Endpoint, container_id: str) -> None:
    """Tell HNS that the container no longer uses the endpoint. Raises CNIError."""
    document = encode({"ContainerId": container_id, "SystemType": "Container"})
    request("POST", f"/endpoints/{endpoint.id}/detach", document)


def _modify(container_id: str, how: str, endpoint: Endpoint) -> bool:
    try:
        (system,) = _vmcompute.call("HcsOpenComputeSystem", container_id, HANDLE)
    except HResultError as error:
        if error.hresult in dll.NO_SUCH_SYSTEM:
            return False
        raise
    document = {"ResourceType": "Network", "Settings": endpoint.id, "RequestType": how}
    try:
        _vmcompute.call("HcsModifyComputeSystem", system, encode(document))
    finally:
        _vmcompute.close("HcsCloseComputeSystem", system)
    return True


def _endpoint(raw: Any) -> Endpoint:
    endpoint = convert(raw, _Endpoint)
    return Endpoint(
        id=endpoint.id,
        name=endpoint.name,
        network_id=endpoint.virtual_network,
        mac=endpoint.mac_address,
        address=endpoint.ip_address or endpoint.ipv6_address,
        gateway=endpoint.gateway_address or endpoint.gateway_address_v6,
        dns=DNS(nameservers=_split(endpoint.dns_server_list), search=_split(endpoint.dns_suffix)),
    )


def _split(text: str) -> list[str]:
    return [each for each in text.split(",") if each]
