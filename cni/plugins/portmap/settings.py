"""portmap's configuration, its validation, and the Want made of it (docs/spec/portmap.md)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ...call import Call
from ...intent import VERSION, Intent
from ...kernel import route
from ...kernel.netlink import Netlink
from ...owner import Owner
from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ...protocol.errors import CNIError
from ...protocol.result import Result
from .want import PROTOCOLS, Port, Want

IPTABLES, NFTABLES = "iptables", "nftables"
_MARK_BIT = 13  # the reference's default, 0x2000
# An iptables chain's name has at most 28 characters.
_CHAIN_MAX = 28


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
    check_host_listeners: bool = False
    mark_masq_bit: int | None = None
    external_set_mark_chain: str | None = None
    conditions_v4: list[str] = []
    conditions_v6: list[str] = []
    runtime_config: RuntimeConf = msgspec.field(default_factory=RuntimeConf)


class Settings(NamedTuple):
    """A valid configuration. `backend` is "" if it names none; then nftables is tried first."""

    conf: Conf
    backend: str
    previous: Result | None
    mappings: list[Mapping]


# --- the configuration ----------------------------------------------------------------------------


def read(call: Call[Conf], prefix: str = "failed to parse config: ") -> Settings:
    """The configuration, read and checked as the reference does, in its order. Raises CNIError."""
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


def of_intent(one: Intent) -> Settings | None:
    """The settings of an earlier ADD, from its note; None if that cannot be read."""
    try:
        conf = config.convert(one.config, Conf, "")
        previous = Result.parse(one.result, VERSION)
        return Settings(conf, _backend(conf), previous, conf.runtime_config.port_mappings)
    except CNIError:
        return None


def of_noted(call: Call[Conf]) -> Settings | None:
    """For a DEL: the settings that the last ADD of this attachment noted; None without a note."""
    intents = call.forgotten.intents if call.forgotten is not None else []
    noted = [settings for one in intents if (settings := of_intent(one)) is not None]
    return noted[-1] if noted else None


def read_what_can_be(call: Call[Conf]) -> Settings:
    """For a DEL with a broken configuration or prevResult: their readable parts."""
    try:
        conf = call.conf
    except CNIError:
        conf = Conf()
    known: Result | None = None
    try:
        known = call.prev_result()
    except CNIError:
        pass
    return Settings(conf, "", known, conf.runtime_config.port_mappings)


def _check_mark(conf: Conf) -> None:
    if conf.external_set_mark_chain is not None and conf.mark_masq_bit is not None:
        raise CNIError("Cannot specify externalSetMarkChain and markMasqBit")
    if conf.mark_masq_bit is not None and not 0 <= conf.mark_masq_bit <= 31:
        raise CNIError("MasqMarkBit must be between 0 and 31")
    chain = conf.external_set_mark_chain or ""
    if len(chain) > _CHAIN_MAX or not chain.isprintable() or set(chain) & set(" \"'\\"):
        raise CNIError(
            f"invalid externalSetMarkChain {chain!r}",
            f"the name of an iptables chain: at most {_CHAIN_MAX} characters, no blanks or quotes",
        )


def _backend(conf: Conf) -> str:
    """The backend that the configuration names, or whose options it has; "" for neither."""
    if conf.backend not in (None, IPTABLES, NFTABLES):
        raise CNIError(f'unrecognized backend "{conf.backend}"')
    options: dict[str, list[str]] = {IPTABLES: [], NFTABLES: []}
    if conf.external_set_mark_chain is not None:
        options[IPTABLES].append("externalSetMarkChain")
    for name, words in (
        ("conditionsV4", conf.conditions_v4),
        ("conditionsV6", conf.conditions_v6),
    ):
        if words:
            # by the first character, as in the reference (docs/spec/portmap.md)
            options[IPTABLES if words[0][:1] in ("-", "!") else NFTABLES].append(name)
        if not all(word.isprintable() for word in words) or any(";" in word for word in words):
            raise CNIError(f"{name}: a condition cannot have a control character or semicolon")
    backend = conf.backend or next((name for name in options if options[name]), "")
    other = NFTABLES if backend == IPTABLES else IPTABLES
    if backend and options[other]:
        raise CNIError(
            f"{backend} backend was requested but configuration contains {other}-specific options "
            f"[{' '.join(options[other])}]"
        )
    return backend


def _addresses(ifname: str, previous: Result | None) -> list[Prefix]:
    """The container's first address of each family on this interface."""
    first: dict[bool, Prefix] = {}
    interfaces = previous.interfaces if previous else []
    for ip in previous.ips if previous else []:
        if ip.interface is not None and 0 <= ip.interface < len(interfaces):
            entry = interfaces[ip.interface]
            if entry.name != ifname or not entry.sandbox:
                continue
        first.setdefault(ip.prefix.is_v4, ip.prefix)
    return [first[v4] for v4 in (True, False) if v4 in first]


def want_of(owner: Owner, settings: Settings, ports: list[Port]) -> Want:
    """The Want that publishes these ports of the container's addresses."""
    conf = settings.conf
    bit = conf.mark_masq_bit
    if bit is None or not 0 <= bit <= 31:  # ADD refuses it; a DEL does not need the mark
        bit = _MARK_BIT
    return Want(
        owner=owner,
        addresses=_addresses(owner.ifname, settings.previous),
        ports=ports,
        snat=conf.snat,
        masq_all=conf.masq_all,
        mark=1 << bit,
        mark_chain=conf.external_set_mark_chain or "",
        conditions=(conf.conditions_v4, conf.conditions_v6),
    )


# --- the ports ------------------------------------------------------------------------------------


def _port(mapping: Mapping) -> Port:
    """A mapping as a Port. Raises CNIError if no packet could ever match it."""
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


def ports_to_publish(call: Call[Conf], settings: Settings) -> list[Port]:
    """The ports of the mappings; logs a line for each that no packet can reach at present.

    Raises CNIError for an invalid port, protocol or hostIP.
    """
    try:
        wanted = [_port(mapping) for mapping in settings.mappings]
    except CNIError as error:
        raise error.wrapped("failed to parse config: ") from None
    specific = {port.host_ip: port for port in wanted if any(port.host_ip)}
    if specific:
        _warn_of_host_ips(call, specific, _addresses(call.ifname, settings.previous))
    first: dict[tuple[bytes, str, int], Port] = {}
    for port in wanted:
        target = first.setdefault(port.key, port).container_port
        if target != port.container_port:
            call.log(
                f"cni: portmap: host port {port} goes to container port {target}; "
                f"the mapping to {port.container_port} has no effect"
            )
    return wanted


def known_ports(settings: Settings) -> list[Port]:
    """For a DEL: the ports that an ADD may have published, without those that ADD refuses."""
    ports = []
    for mapping in settings.mappings:
        try:
            ports.append(_port(mapping))
        except CNIError:
            pass
    return ports


def _warn_of_host_ips(
    call: Call[Conf], specific: dict[bytes, Port], addresses: list[Prefix]
) -> None:
    """Log which mappings wait for an address of the node, and which can never work.

    The node may be the standby of a virtual IP: rules match only addresses local to the node. So
    they take effect when the node gets the address, and ignore packets to it on another node.
    """
    with Netlink() as host:
        for ip, port in specific.items():
            text = f"hostIP {format_ip(ip)} of host port {port.host_port}/{port.protocol}"
            if all(len(address.ip) != len(ip) for address in addresses):
                family = "IPv4" if len(ip) == 4 else "IPv6"
                why = f"has no effect: the container has no {family} address"
            elif not route.is_local(host, ip):
                why = "is no address of this node now: the port is published when it comes"
            else:
                continue
            call.log(f"cni: portmap: {text} {why}")
