"""Endpoints of Windows containers, for win-bridge and win-overlay (docs/spec/win-bridge.md).

The name of an endpoint is derived from the container and the network, so that it is found without a
prevResult, and after a kill at any point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ...call import Call, Steps
from ...protocol.address import InvalidAddress, Prefix, canonical_ip, parse_ip
from ...protocol.config import DNS, Folded, NetConf, lookup
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Interface, IPConfig, Result
from ...windows import dll, hcn, hns
from ...windows.model import Endpoint, Network, Wanted
from ...windows.policies import Policies, PortMapping

# With HNS (apiVersion 1), CNI_NETNS of a pod's first container. For its other containers CNI_NETNS
# is "container:<id of the first one>".
PAUSE = "none"


class _Policy(Folded):
    name: str = ""
    value: Any = None


class _RuntimeDNS(Folded):
    servers: list[str] = []
    searches: list[str] = []


class _PortMapping(Folded):
    host_port: int = 0
    container_port: int = 0
    protocol: str = ""
    host_ip: str = ""


class _RuntimeConfig(Folded):
    dns: _RuntimeDNS = msgspec.field(default_factory=_RuntimeDNS)
    port_mappings: list[_PortMapping] = []


class SharedConf(NetConf):
    """The keys that both plugins have."""

    api_version: int = 1
    policies: list[_Policy | None] = []  # validates their form; they are read from the raw JSON
    loopback_dsr: bool = msgspec.field(default=False, name="loopbackdsr")
    runtime_config: _RuntimeConfig = msgspec.field(default_factory=_RuntimeConfig)


def v2(call: Call[Any]) -> bool:
    """Does the configuration ask for HCN (apiVersion 2) instead of HNS?"""
    return bool(call.conf.api_version == 2)


def policies(call: Call[Any]) -> Policies:
    """The configured policies, to which the plugin may add."""
    return Policies(lookup(call.raw, "policies"), v2(call))


def dns(conf: SharedConf) -> DNS:
    """The configured DNS; lists from the runtime replace the configured ones."""
    given = conf.runtime_config.dns
    return DNS(
        nameservers=given.servers or conf.dns.nameservers,
        domain=conf.dns.domain,
        search=given.searches or conf.dns.search,
        options=conf.dns.options,
    )


def port_mappings(conf: SharedConf) -> list[PortMapping]:
    """The ports to publish."""
    given = conf.runtime_config.port_mappings
    return [PortMapping(m.host_port, m.container_port, m.protocol, m.host_ip) for m in given]


def loop_back(call: Call[Any], into: Policies, address: str) -> None:
    """Add the policy for loopback DSR if it is configured and this host supports it."""
    if not call.conf.loopback_dsr or not address:
        return
    if hns.supports_dsr():
        into.loop_back(address)
    else:
        call.log("this Windows has no loopback DSR (HNS 9.3 to 9.x, or 10.2): loopbackDSR ignored")


# --- names ---


def sandbox_id(container_id: str, netns: str) -> str:
    """The id of the pod, that is of its first container, to which Docker's CNI_NETNS refers."""
    before, colon, after = netns.partition(":")
    return after if before and colon and netns != PAUSE else container_id


def endpoint_name(call: Call[Any]) -> str:
    return f"{sandbox_id(call.container_id, call.netns)}_{call.network}"


def shares(call: Call[Any]) -> bool:
    """Does this container use the endpoint and the address of its pod's first container?"""
    return not v2(call) and bool(call.netns) and call.netns != PAUSE


# --- ADD ---


def allocate(call: Call[Any], texts: tuple[str, str]) -> IPConfig:
    """The first address of the IPAM plugin's result, released if this ADD fails.

    `texts` are the prefixes for errors of running IPAM and of reading its result. Raises CNIError.
    """
    name = call.conf.ipam.type
    if name:
        # first: a plugin that fails may have reserved an address all the same
        call.undo.callback(call.delegate, name, "DEL")
    try:
        result = call.delegate(name, "ADD")
    except InvalidAddress as error:
        raise error.wrapped(texts[1]) from None
    except CNIError as error:
        raise error.wrapped(texts[0]) from None
    if result is None or not result.ips:
        raise CNIError(
            "IPAM plugin return is missing IP config", f'the IPAM plugin "{name}" gave no address'
        )
    return result.ips[0]


def provide(call: Call[Any], network: Network, make: Callable[[], Wanted]) -> Endpoint:
    """Attach the attachment's endpoint, which `make` describes if it has to be created.

    An endpoint created here is removed if the ADD fails. Raises CNIError.
    """
    return _provide_v2(call, network, make) if v2(call) else _provide_v1(call, network, make)


def _provide_v1(call: Call[Any], network: Network, make: Callable[[], Wanted]) -> Endpoint:
    name = endpoint_name(call)
    endpoint = hns.find_endpoint(name)
    if endpoint is None and shares(call):
        raise CNIError(
            f"failed to find HNSEndpoint {name}: Endpoint {name} not found",
            f"a container whose CNI_NETNS is not {PAUSE} shares the endpoint of its pod's first "
            "container; with containerd set apiVersion to 2",
        )
    endpoint = _unless_elsewhere(endpoint, network, hns.delete, "HNSEndpoint")
    made = endpoint is None
    if endpoint is None:
        wanted = make()
        call.undo.callback(_remove_by_name, hns.find_endpoint, hns.delete, name)
        try:
            endpoint = hns.create(wanted)
        except CNIError as error:
            raise error.wrapped("failed to create the new HNSEndpoint: ") from None
    try:
        running = hns.attach(endpoint, call.container_id)
        if not running and made:
            raise CNIError("The compute system does not exist")
    except CNIError as error:
        where = f"failed to attach container {call.container_id} to HNSEndpoint {endpoint.id}: "
        raise error.wrapped(where) from None
    return endpoint


def _provide_v2(call: Call[Any], network: Network, make: Callable[[], Wanted]) -> Endpoint:
    dll.guid(call.netns)  # validates it before the first change
    name = endpoint_name(call)
    endpoint = hcn.find_endpoint(name)
    endpoint = _unless_elsewhere(endpoint, network, hcn.delete, "HostComputeEndpoint")
    if endpoint is None:
        wanted = make()
        call.undo.callback(_remove_by_name, hcn.find_endpoint, hcn.delete, name)
        try:
            endpoint = hcn.create(wanted)
        except CNIError as error:
            raise error.wrapped("failed to create the new HostComputeEndpoint: ") from None
    if endpoint.namespace.lower() != call.netns.lower():
        try:
            hcn.attach(endpoint, call.netns)
        except CNIError as error:
            where = (
                f"failed to add HostComputeEndpoint {name} to HostComputeNamespace {call.netns}: "
            )
            raise error.wrapped(where) from None
    return endpoint


def _unless_elsewhere(
    endpoint: Endpoint | None, network: Network, delete: Callable[[Endpoint], None], kind: str
) -> Endpoint | None:
    """The endpoint if it is in this network, else None; one in another network is removed."""
    # GUIDs are equal in upper and lower case
    if endpoint is None or endpoint.network_id.lower() == network.id.lower():
        return endpoint
    try:
        delete(endpoint)
    except CNIError as error:
        raise error.wrapped(f"failed to delete corrupted {kind} {endpoint.name}: ") from None
    return None


def _remove_by_name(
    find: Callable[[str], Endpoint | None], delete: Callable[[Endpoint], None], name: str
) -> None:
    """Undo the creation of an endpoint, also if the answer to the creation was lost."""
    endpoint = find(name)
    if endpoint is not None:
        delete(endpoint)


def result(call: Call[Any], network: Network, endpoint: Endpoint) -> Result:
    """The endpoint as an ADD returns it. Raises CNIError."""
    try:
        length = Prefix.parse(network.subnet).length
        address = f"{canonical_ip(endpoint.address)}/{length}"
        gateway = canonical_ip(endpoint.gateway) if endpoint.gateway else None
    except InvalidAddress as error:
        raise CNIError(
            f"endpoint {endpoint.name} has no valid address: {error.msg}",
            f'address "{endpoint.address}", gateway "{endpoint.gateway}"; the first subnet of '
            f'network {call.network} is "{network.subnet}"',
        ) from None
    return Result(
        interfaces=[Interface(name=endpoint.name, mac=endpoint.mac)],
        ips=[IPConfig(address=address, gateway=gateway)],
        dns=endpoint.dns,
    )


# --- the other verbs ---


def delete(call: Call[Any]) -> None:
    """Release the address and remove the endpoint; success if they are missing."""
    steps = Steps()
    if call.conf.ipam.type and not shares(call):
        steps.run(call.delegate, call.conf.ipam.type)
    steps.run(_remove_v2 if v2(call) else _remove_v1, call)
    steps.finish()


def _remove_v1(call: Call[Any]) -> None:
    endpoint = hns.find_endpoint(endpoint_name(call)) if call.netns else None
    if endpoint is None:
        return
    if shares(call):
        _try(call, hns.detach, endpoint, call.container_id)
        return
    _try(call, hns.hot_detach, endpoint, call.container_id)
    hns.delete(endpoint)


def _try(call: Call[Any], function: Callable[..., Any], *args: Any) -> None:
    """Call a function that may fail because the container has ended; log a failure."""
    try:
        function(*args)
    except CNIError as error:
        call.log(f"detaching {call.container_id} from its endpoint: {error}")


def _remove_v2(call: Call[Any]) -> None:
    endpoint = hcn.find_endpoint(endpoint_name(call))
    if endpoint is not None:
        _remove_hcn(endpoint)


def _remove_hcn(endpoint: Endpoint) -> None:
    try:
        hcn.detach(endpoint)
    except CNIError as error:
        where = f"error removing endpoint: {endpoint.name} from namespace: "
        raise error.wrapped(where) from None
    try:
        hcn.delete(endpoint)
    except CNIError as error:
        raise error.wrapped(f"failed to remove HostComputeEndpoint {endpoint.name}: ") from None


def gc(call: Call[Any], keep: frozenset[Attachment]) -> None:
    """Remove this network's endpoints whose containers are not in `keep`.

    Only with HCN: HNS endpoints are named after pods, and `keep` has no pods.
    """
    steps = Steps()
    if call.conf.ipam.type:
        steps.run(call.delegate, call.conf.ipam.type)
    if v2(call):
        kept = {each.container_id for each in keep}
        for endpoint in steps.run(_endpoints, call) or []:
            owner = endpoint.name.removesuffix(f"_{call.network}")
            if owner != endpoint.name and owner not in kept:
                steps.run(_remove_hcn, endpoint)
    steps.finish()


def _endpoints(call: Call[Any]) -> list[Endpoint]:
    network = hcn.find_network(call.network)
    return hcn.endpoints_of(network) if network is not None else []


def check(call: Call[Any], find_network: Callable[[Call[Any]], Network]) -> None:
    """Require the endpoint in this network, with MAC and address of the prevResult."""
    if call.conf.ipam.type and not shares(call):
        call.delegate(call.conf.ipam.type)
    name = endpoint_name(call)
    network = find_network(call)
    endpoint = hcn.find_endpoint(name) if v2(call) else hns.find_endpoint(name)
    if endpoint is None:
        raise CNIError(f"endpoint {name} is gone", "recreate the container")
    problems = _differences(call, network, endpoint)
    if problems:
        raise CNIError("; ".join(problems), f"endpoint {endpoint.id}; recreate the container")


def _differences(call: Call[Any], network: Network, endpoint: Endpoint) -> list[str]:
    problems = []
    if endpoint.network_id.lower() != network.id.lower():
        problems.append(f"endpoint {endpoint.name}: want network {network.id}, have another")
    if v2(call) and endpoint.namespace.lower() != call.netns.lower():
        have = endpoint.namespace or "none"
        problems.append(f"endpoint {endpoint.name}: want namespace {call.netns}, have {have}")
    previous = call.prev_result()
    if previous is None:
        return problems
    for entry in previous.interfaces:
        if entry.name == endpoint.name and entry.mac.lower() != endpoint.mac.lower():
            problems.append(f"endpoint {entry.name}: want MAC {entry.mac}, have {endpoint.mac}")
    wanted = [ip.prefix.ip for ip in previous.ips]
    if wanted and parse_ip(endpoint.address) not in wanted:
        listed = ", ".join(ip.address for ip in previous.ips)
        problems.append(f"endpoint {endpoint.name}: want {listed}, have {endpoint.address}")
    return problems


def status(call: Call[Any], find_network: Callable[[Call[Any]], Network]) -> None:
    """Ready if the IPAM plugin is ready and the network exists. Raises NotAvailable (code 50)."""
    if call.conf.ipam.type:
        call.delegate(call.conf.ipam.type)
    try:
        find_network(call)
    except CNIError as error:
        raise NotAvailable(error.msg, error.details) from None
