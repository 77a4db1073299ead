"""HCN, the newer API: handles and JSON documents of schema 2, through computenetwork.dll."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from ..protocol.config import DNS, Folded, convert
from ..protocol.errors import CNIError
from . import dll
from .dll import HANDLE, TEXT, HResultError
from .model import Endpoint, Network, Wanted, decode, encode

_computenetwork = dll.Library("computenetwork.dll")

_SCHEMA = {"Major": 2, "Minor": 0}
_NEW = bytes(16)  # the service chooses the GUID


class _Subnet(Folded):
    ip_address_prefix: str = ""


class _Ipam(Folded):
    subnets: list[_Subnet] = []


class _Network(Folded):
    id: str = ""
    name: str = ""
    type: str = ""
    ipams: list[_Ipam] = []


class _IpConfig(Folded):
    ip_address: str = ""


class _Route(Folded):
    next_hop: str = ""


class _Dns(Folded):
    domain: str = ""
    search: list[str] = []
    server_list: list[str] = []
    options: list[str] = []


class _Endpoint(Folded):
    id: str = ""
    name: str = ""
    host_compute_network: str = ""
    host_compute_namespace: str = ""
    mac_address: str = ""
    ip_configurations: list[_IpConfig] = []
    routes: list[_Route] = []
    dns: _Dns = msgspec.field(default_factory=_Dns)


def find_network(name: str) -> Network | None:
    """The network of that name. Raises CNIError."""
    for raw in _enumerate("Network", "HcnEnumerateNetworks", {"Name": name}):
        network = convert(raw, _Network)
        subnets = [subnet for ipam in network.ipams for subnet in ipam.subnets]
        prefix = subnets[0].ip_address_prefix if subnets else ""
        return Network(id=network.id, name=name, type=network.type, subnet=prefix)
    return None


def find_endpoint(name: str) -> Endpoint | None:
    """The endpoint of that name. Raises CNIError."""
    found = _enumerate("Endpoint", "HcnEnumerateEndpoints", {"Name": name})
    return _endpoint(found[0]) if found else None


def endpoints_of(network: Network) -> list[Endpoint]:
    """All endpoints of a network. Raises CNIError."""
    # The filter has the older schema's key; newer services do not know another.
    found = _enumerate("Endpoint", "HcnEnumerateEndpoints", {"VirtualNetwork": network.id})
    return [_endpoint(raw) for raw in found]


def create(wanted: Wanted) -> Endpoint:
    """Make an endpoint. Raises CNIError."""
    dns = wanted.dns
    servers = {"Domain": dns.domain, "Search": dns.search, "ServerList": dns.nameservers}
    document: dict[str, Any] = {
        "Name": wanted.name,
        "HostComputeNetwork": wanted.network_id,
        "Policies": wanted.policies,
        "IpConfigurations": [{"IpAddress": wanted.address}] if wanted.address else [],
        "Dns": {key: value for key, value in {**servers, "Options": dns.options}.items() if value},
        "Routes": _routes(wanted.gateway),
        "MacAddress": wanted.mac,
        "SchemaVersion": _SCHEMA,
    }
    with _opened("Network", wanted.network_id) as network:
        (handle,) = _computenetwork.call(
            "HcnCreateEndpoint", network, _NEW, encode(document), HANDLE
        )
        try:
            return _endpoint(_query("Endpoint", handle, _query_document()))
        finally:
            _computenetwork.close("HcnCloseEndpoint", handle)


def _routes(gateway: str) -> list[dict[str, str]]:
    if not gateway:
        return []
    default = "::/0" if ":" in gateway else "0.0.0.0/0"
    return [{"NextHop": gateway, "DestinationPrefix": default}]


def delete(endpoint: Endpoint) -> None:
    """Remove an endpoint; one that is gone is success. Raises CNIError."""
    try:
        _computenetwork.call("HcnDeleteEndpoint", dll.guid(endpoint.id))
    except HResultError as error:
        if error.hresult not in dll.NOT_FOUND:
            raise


def attach(endpoint: Endpoint, namespace: str) -> None:
    """Add the endpoint to a namespace. Raises CNIError."""
    _modify_namespace(namespace, "Add", endpoint)


def detach(endpoint: Endpoint) -> None:
    """Remove the endpoint from its namespace, if both exist. Raises CNIError."""
    # No namespace, or a GUID of zeros, by which the service says the same.
    if not endpoint.namespace.strip("{}0-"):
        return
    try:
        _modify_namespace(endpoint.namespace, "Remove", endpoint)
    except HResultError as error:
        if error.hresult not in dll.NOT_FOUND:
            raise


def _modify_namespace(namespace: str, how: str, endpoint: Endpoint) -> None:
    document = {
        "ResourceType": "Endpoint",
        "RequestType": how,
        "Settings": {"EndpointId": endpoint.id},
    }
    with _opened("Namespace", namespace) as handle:
        _computenetwork.call("HcnModifyNamespace", handle, encode(document))


# --- handles ---


@contextmanager
def _opened(kind: str, identity: str) -> Iterator[int]:
    """A handle of the Network, Endpoint or Namespace with that GUID."""
    (handle,) = _computenetwork.call(f"HcnOpen{kind}", dll.guid(identity), HANDLE)
    try:
        yield handle
    finally:
        _computenetwork.close(f"HcnClose{kind}", handle)


def _enumerate(kind: str, function: str, wanted: dict[str, str]) -> list[Any]:
    """The properties of objects that match `wanted`, without those that vanish meanwhile."""
    query = _query_document(wanted)
    (text,) = _computenetwork.call(function, query, TEXT)
    properties = []
    for identity in decode(text or "[]", function) or []:
        if not isinstance(identity, str):
            raise CNIError(f"{function} did not answer with GUIDs", text[:200])
        try:
            with _opened(kind, identity) as handle:
                properties.append(_query(kind, handle, query))
        except HResultError as error:
            if error.hresult not in dll.NOT_FOUND:
                raise
    return properties


def _query(kind: str, handle: int, query: str) -> Any:
    function = f"HcnQuery{kind}Properties"
    (text,) = _computenetwork.call(function, handle, query, TEXT)
    return decode(text, function)


def _query_document(wanted: dict[str, str] | None = None) -> str:
    """A query document; its filter is JSON in a string."""
    document: dict[str, Any] = {"SchemaVersion": _SCHEMA}
    if wanted:
        document["Filter"] = encode(dict(wanted))
    return encode(document)


def _endpoint(raw: Any) -> Endpoint:
    endpoint = convert(raw, _Endpoint)
    return Endpoint(
        id=endpoint.id,
        name=endpoint.name,
        network_id=endpoint.host_compute_network,
        mac=endpoint.mac_address,
        address=endpoint.ip_configurations[0].ip_address if endpoint.ip_configurations else "",
        gateway=endpoint.routes[0].next_hop if endpoint.routes else "",
        dns=DNS(
            nameservers=endpoint.dns.server_list,
            domain=endpoint.dns.domain,
            search=endpoint.dns.search,
            options=endpoint.dns.options,
        ),
        namespace=endpoint.host_compute_namespace,
    )
