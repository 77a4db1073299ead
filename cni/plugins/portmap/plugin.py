"""portmap: publishes a container's ports on the node (docs/spec/portmap.md).

A chained plugin: the addresses come from prevResult, the ports from the runtime
(runtimeConfig.portMappings). With nftables unless iptables is asked for, by name or by its syntax.

Beyond the reference: a host port has one owner, and who wants another's is told whose it is; a port
that no packet could reach is refused; DEL finds what there is without the ports, in both backends,
and GC, STATUS and `cni reload` exist.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ... import intent
from ...call import Call, Steps
from ...kernel import route, sysctl
from ...kernel.errors import KernelError, NetlinkError
from ...kernel.netlink import Netlink
from ...netfilter import iptables
from ...netfilter.conntrack import Flow
from ...owner import Owner
from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.errors import CNIError, NotAvailable, from_exception
from ...protocol.request import Attachment
from ...protocol.result import Result
from ..shared import checks
from . import backend_iptables, backend_nft, flows, localhost
from .want import PROTOCOLS, Port, Want

_IPTABLES, _NFTABLES = "iptables", "nftables"
_MARK_BIT = 13
_FAMILIES = (False, True)  # is it IPv6?


class Mapping(config.Folded):
    host_port: int = 0
    container_port: int = 0
    protocol: str = ""
    host_ip: str = ""


class RuntimeConf(config.Folded):
    port_mappings: list[Mapping] = []


class Conf(config.NetConf):
    backend: str | None = None
    snat: bool = True
    masq_all: bool = False
    mark_masq_bit: int | None = None
    external_set_mark_chain: str | None = None
    conditions_v4: list[str] = []
    conditions_v6: list[str] = []
    runtime_config: RuntimeConf = msgspec.field(default_factory=RuntimeConf)


class Settings(NamedTuple):
    """A valid configuration. `backend` is empty when either will do, nftables rather."""

    conf: Conf
    backend: str
    previous: Result | None
    mappings: list[Mapping]


# --- the configuration ----------------------------------------------------------------------------


def _settings(call: Call[Conf], prefix: str = "failed to parse config: ") -> Settings:
    """Read and validate as the reference does, in its order. Raises CNIError."""
    try:
        conf = call.conf
        previous = call.prev_result()
        _check_mark(conf)
        backend = _backend(conf)
        mappings = conf.runtime_config.port_mappings
        for mapping in mappings:
            if mapping.container_port <= 0:
                raise CNIError(f"Invalid container port number: {mapping.container_port}")
            if mapping.host_port <= 0:
                raise CNIError(f"Invalid host port number: {mapping.host_port}")
        return Settings(conf, backend, previous, mappings)
    except CNIError as error:
        raise error.wrapped(prefix) from None


def _check_mark(conf: Conf) -> None:
    if conf.external_set_mark_chain is not None and conf.mark_masq_bit is not None:
        raise CNIError("Cannot specify externalSetMarkChain and markMasqBit")
    if conf.mark_masq_bit is not None and not 0 <= conf.mark_masq_bit <= 31:
        raise CNIError("MasqMarkBit must be between 0 and 31")


def _backend(conf: Conf) -> str:
    """The backend that is asked for, by name or by options that only one of them understands."""
    if conf.backend not in (None, _IPTABLES, _NFTABLES):
        raise CNIError(f'unrecognized backend "{conf.backend}"')
    options: dict[str, list[str]] = {_IPTABLES: [], _NFTABLES: []}
    if conf.external_set_mark_chain is not None:
        options[_IPTABLES].append("externalSetMarkChain")
    for name, words in (
        ("conditionsV4", conf.conditions_v4),
        ("conditionsV6", conf.conditions_v6),
    ):
        if words:
            options[_IPTABLES if words[0][:1] in ("-", "!") else _NFTABLES].append(name)
        if any("\n" in word or ";" in word for word in words):
            raise CNIError(f"{name}: a condition cannot have a newline or semicolon")
    backend = conf.backend or next((name for name in options if options[name]), "")
    other = _NFTABLES if backend == _IPTABLES else _IPTABLES
    if backend and options[other]:
        raise CNIError(
            f"{backend} backend was requested but configuration contains {other}-specific options "
            f"[{' '.join(options[other])}]"
        )
    return backend


def _addresses(call: Call[Conf], previous: Result | None) -> list[Prefix]:
    """The container's first address of each family on this interface."""
    found: dict[bool, Prefix] = {}
    interfaces = previous.interfaces if previous else []
    for ip in previous.ips if previous else []:
        if ip.interface is not None and 0 <= ip.interface < len(interfaces):
            entry = interfaces[ip.interface]
            if entry.name != call.ifname or not entry.sandbox:
                continue
        found.setdefault(ip.prefix.is_v4, ip.prefix)
    return [found[v4] for v4 in (True, False) if v4 in found]


def _want(call: Call[Conf], settings: Settings, ports: list[Port]) -> Want:
    conf = settings.conf
    bit = _MARK_BIT if conf.mark_masq_bit is None else conf.mark_masq_bit
    return Want(
        owner=call.owner,
        addresses=_addresses(call, settings.previous),
        ports=ports,
        snat=conf.snat,
        masq_all=conf.masq_all,
        mark=1 << bit,
        mark_chain=conf.external_set_mark_chain or "",
        conditions=(conf.conditions_v4, conf.conditions_v6),
    )


# --- the ports ------------------------------------------------------------------------------------


def _port(mapping: Mapping) -> Port:
    """Raises CNIError for what no packet could be for."""
    for what, number in (("container", mapping.container_port), ("host", mapping.host_port)):
        if number > 65535:
            raise CNIError(f"Invalid {what} port number: {number}", "the highest is 65535")
    protocol = mapping.protocol.lower() or "tcp"
    if protocol not in PROTOCOLS:
        raise CNIError(
            f'unknown protocol "{mapping.protocol}" of host port {mapping.host_port}',
            "it is tcp, udp or sctp",
        )
    try:
        host_ip = parse_ip(mapping.host_ip) if mapping.host_ip else b""
    except InvalidAddress:
        text = f'invalid hostIP "{mapping.host_ip}" of host port {mapping.host_port}'
        raise CNIError(text, "it is an IPv4 or IPv6 address of this node") from None
    return Port(host_ip, protocol, mapping.host_port, mapping.container_port)


def _strict_ports(call: Call[Conf], settings: Settings) -> list[Port]:
    """The ports to publish; all of them can be reached. Raises CNIError."""
    try:
        wanted = [_port(mapping) for mapping in settings.mappings]
        specific = {port.host_ip: port for port in wanted if any(port.host_ip)}
        if specific:
            _check_host_ips(specific, _addresses(call, settings.previous))
    except CNIError as error:
        raise error.wrapped("failed to parse config: ") from None
    first: dict[tuple[bytes, str, int], Port] = {}
    for port in wanted:
        target = first.setdefault(port.key, port).container_port
        if target != port.container_port:
            call.log(
                f"cni: portmap: host port {port} goes to container port {target}; "
                f"the mapping to {port.container_port} has no effect"
            )
    return wanted


def _known_ports(settings: Settings) -> list[Port]:
    """What there is of the ports, for a DEL: those that ADD refuses were never published."""
    ports = []
    for mapping in settings.mappings:
        try:
            ports.append(_port(mapping))
        except CNIError:
            pass
    return ports


def _check_host_ips(specific: dict[bytes, Port], addresses: list[Prefix]) -> None:
    """As for a socket: an address that is not on this node cannot be bound. Raises CNIError."""
    with Netlink() as host:
        for ip, port in specific.items():
            text = f"hostIP {format_ip(ip)} of host port {port.host_port}/{port.protocol}"
            if all(len(address.ip) != len(ip) for address in addresses):
                family = "IPv4" if len(ip) == 4 else "IPv6"
                raise CNIError(f"{text}: the container has no {family} address")
            if not route.is_local(host, ip) and not _nonlocal_bind(ip):
                raise CNIError(
                    f"{text} is not an address of this node",
                    "see `ip address`; an address that comes and goes (keepalived) needs the "
                    f"sysctl net.ipv{4 if len(ip) == 4 else 6}.ip_nonlocal_bind=1",
                )


def _nonlocal_bind(ip: bytes) -> bool:
    try:
        return sysctl.read(f"net/ipv{4 if len(ip) == 4 else 6}/ip_nonlocal_bind") == "1"
    except OSError:
        return False


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Publish the ports; the result is prevResult."""
    settings = _settings(call)
    previous = settings.previous
    if previous is None:
        raise CNIError(
            "must be called as chained plugin", "put portmap behind a plugin that gives addresses"
        )
    if not settings.mappings:
        return previous
    want = _want(call, settings, _strict_ports(call, settings))
    if not want.addresses:
        call.log(f"cni: portmap: {call.ifname} has no address: no port is published")
        return previous
    call.undo.callback(_remove, call, want)
    again = intent.find("portmap", call.owner, call.request.env) is not None
    _publish(call, want, settings.backend, again=again)
    call.remember()
    return previous


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; prevResult is what it returned."""
    settings = _settings(call)
    want = _want(call, settings, _known_ports(settings))
    if want.addresses and want.ports:
        _publish(call, want, settings.backend)


def _publish(call: Call[Conf], want: Want, backend: str, *, again: bool = False) -> None:
    """Make the rules, unless they are there; flows that began without them are forgotten."""
    _install(call, want, backend, again)
    for address in want.addresses:
        here = address.ip

        def strays(flow: Flow, here: bytes = here) -> bool:
            return flow.answered_by != here

        flows.forget(call, not address.is_v4, want.ports_of(address), strays)
        # With iptables only localhost of IPv4 is published, as in the reference.
        if want.snat and (address.is_v4 or backend != _IPTABLES):
            localhost.enable(address, call.log)


def _install(call: Call[Conf], want: Want, backend: str, again: bool) -> None:
    if backend == _IPTABLES:
        return backend_iptables.install(want)
    try:
        return _install_nft(call, want, again)
    except backend_nft.Taken:
        raise
    except (CNIError, KernelError) as error:
        # Asking whether nftables is usable would cost each time; its failure asks for it.
        if backend or not iptables.usable(v6=False):
            raise
        try:
            return backend_iptables.install(want)
        except (CNIError, KernelError) as other:
            raise CNIError(error.msg, f"and with iptables, tried instead: {other}") from None


def _install_nft(call: Call[Conf], want: Want, again: bool) -> None:
    """Raises CNIError ``unable to set up nftables rules for port mappings: …`` or Taken."""
    try:
        backend_nft.install(want, lambda owner: _is_dead(call, owner), thorough=again)
    except backend_nft.Taken:
        raise
    except NetlinkError as error:
        raise CNIError(
            f"unable to set up nftables rules for port mappings: {error}",
            "is nftables in this kernel, and are we root?",
        ) from None
    except (CNIError, KernelError) as error:
        text = "unable to set up nftables rules for port mappings: "
        wrapped = from_exception(error).wrapped("" if error.msg.startswith(text) else text)
        raise wrapped from None


def _is_dead(call: Call[Conf], owner: Owner) -> bool:
    """Is the container certainly gone? Its namespace, as its own ADD was told, is no more."""
    kept = intent.find("portmap", owner, call.request.env)
    return kept is not None and kept.is_of_gone_namespace(call.netns)


# --- DEL, GC, CHECK, STATUS -----------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Remove what was published, with either backend, by us or by the reference."""
    settings = _settings(call)
    _remove(call, _want(call, settings, _known_ports(settings)))


def _remove(call: Call[Conf], want: Want) -> None:
    """Needs neither addresses nor ports."""
    steps = Steps()
    found: list[Port] = steps.run(_remove_nft, call, want) or []
    known = want.addresses or None
    steps.run(backend_nft.remove_of_go, want.owner.container_id, known)
    steps.run(backend_iptables.remove, want.owner, want if known and want.ports else None)
    flows.forget_translated(call, {*found, *want.ports}, [address.ip for address in want.addresses])
    steps.finish()


def _remove_nft(call: Call[Conf], want: Want) -> list[Port]:
    published = call.forgotten is not None and bool(call.forgotten.intents)
    return backend_nft.remove(want.owner, want.ports, published=published)


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove what this network's attachments published that are not kept."""
    kept = call.owners(keep)
    steps = Steps()
    found: list[Port] = steps.run(backend_nft.collect, call.network, kept) or []
    steps.run(backend_iptables.collect, call.network, kept)
    flows.forget_translated(call, found, [])
    steps.finish()


def check(call: Call[Conf]) -> None:
    """Everything must be there as ADD made it."""
    settings = _settings(call, prefix="")
    if settings.previous is None:
        raise CNIError("Required prevResult missing")
    if not settings.mappings:
        return
    want = _want(call, settings, _known_ports(settings))
    checks.fail([*_missing_rules(want, settings.backend), *_missing_localhost(want, v6=False)])


def _missing_rules(want: Want, backend: str) -> list[str]:
    if backend == _IPTABLES:
        return backend_iptables.check(want)
    try:
        problems = backend_nft.check(want)
    except NetlinkError as error:
        problems = [f"could not list rules in table cni_hostport: {error}"]
    problems += _missing_localhost(want, v6=True)
    chain = want.owner.chain("DN-")
    if (
        problems
        and not backend
        and any(iptables.has_nft_chain(v6, "nat", chain) for v6 in _FAMILIES)
    ):
        return backend_iptables.check(want)  # it was started by the reference
    return problems


def _missing_localhost(want: Want, *, v6: bool) -> list[str]:
    if not want.snat:
        return []
    addresses = [address for address in want.addresses if address.is_v4 != v6]
    return [problem for one in addresses for problem in localhost.missing(one)]


def status(call: Call[Conf]) -> None:
    """Ready if the backend is usable."""
    backend = _settings(call, prefix="").backend
    problem = "" if backend == _IPTABLES else _nft_problem(call.conf)
    if backend == _NFTABLES and problem:
        raise NotAvailable(f"nftables is not usable: {problem}")
    if (backend == _IPTABLES or problem) and not iptables.usable(v6=False):
        raise NotAvailable(
            "iptables is not usable" if backend else f"no backend is usable; nftables: {problem}",
            "install the package iptables, or libnftables for nftables; are we root?",
        )


def _nft_problem(conf: Conf) -> str:
    try:
        backend_nft.usable(conditions=bool(conf.conditions_v4 or conf.conditions_v6))
    except KernelError as error:
        return str(error)
    return ""
