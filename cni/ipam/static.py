"""static: hands out the addresses of the configuration; keeps no state (docs/spec/static.md)."""

from __future__ import annotations

from ..call import Call
from ..protocol import args, config
from ..protocol.address import InvalidAddress, Prefix, format_ip, parse_ip
from ..protocol.config import DNS, Folded, PluginConf, Route
from ..protocol.errors import CNIError
from ..protocol.result import IPConfig, Result


class Address(Folded):
    """``10.0.0.5/24`` and the gateway that goes with it, if any."""

    address: str = ""
    gateway: str | None = None

    def __post_init__(self) -> None:
        try:
            if self.gateway:
                parse_ip(self.gateway)
        except InvalidAddress as error:
            what = f"`gateway` of the address {self.address} is like 10.1.2.1"
            raise InvalidAddress(error.msg, what) from None


class IpamConf(Folded):
    type: str = ""
    addresses: list[Address] = []
    routes: list[Route] = []
    dns: DNS | None = None


class _Requested(Folded):
    ips: list[str] = []


class _Args(Folded):
    cni: _Requested | None = None


class Conf(PluginConf):
    ipam: IpamConf | None = None
    args: _Args | None = None
    runtime_config: _Requested | None = None


def add(call: Call[Conf]) -> Result:
    """The configured addresses, routes and DNS. Raises CNIError."""
    conf = _conf(call)
    ipam = _ipam(conf)
    return Result(ips=_addresses(call, conf), routes=ipam.routes, dns=ipam.dns or DNS())


def delete(call: Call[Conf]) -> None:
    """There is nothing to release, whatever the configuration."""


def check(call: Call[Conf]) -> None:
    """prevResult must have every configured address, with its gateway. Raises CNIError."""
    configured = _addresses(call, _conf(call))
    previous = call.prev_result()
    if previous is None:
        raise CNIError(
            "Required prevResult missing", "the runtime gives CHECK the result of the last ADD"
        )
    gateways = {ip.prefix.ip: ip.gateway for ip in previous.ips}
    for want in configured:
        packed = want.prefix.ip
        reason = ""
        # the reference says nothing of a missing one (docs/spec/static.md)
        if packed not in gateways:
            reason = "prevResult does not have this address"
        elif want.gateway and want.gateway != gateways[packed]:
            reason = (
                f"its gateway is {gateways[packed]} in prevResult, {want.gateway} in the config"
            )
        if reason:
            raise CNIError(
                f"static: Failed to match addr {format_ip(packed)} on interface {call.ifname}",
                f"{reason}: the configuration changed since ADD; recreate the container",
            )


def _conf(call: Call[Conf]) -> Conf:
    """The configuration, without what the reference's own structures add to it. Raises CNIError.

    An entry of `addresses` that a program has marshalled from the reference's type has a second
    key, `Address`, with an object. Keys match in any case, but there the exact one counts.
    """
    ipam = config.lookup(call.raw, "ipam")
    entries = config.lookup(ipam, "addresses") if isinstance(ipam, dict) else None
    if not isinstance(entries, list) or not any(map(_has_second_key, entries)):
        return call.conf
    cleaned = [
        {key: value for key, value in entry.items() if key != "Address"}
        if _has_second_key(entry)
        else entry
        for entry in entries
    ]
    kept = {key: value for key, value in ipam.items() if key.lower() != "addresses"}
    others = {key: value for key, value in call.raw.items() if key.lower() != "ipam"}
    return config.convert({**others, "ipam": {**kept, "addresses": cleaned}}, Conf)


def _has_second_key(entry: object) -> bool:
    if not isinstance(entry, dict) or "Address" not in entry:
        return False
    return "address" in entry or not isinstance(entry["Address"], str)


def _ipam(conf: Conf) -> IpamConf:
    if conf.ipam is None:
        raise CNIError(
            "IPAM config missing 'ipam' key", 'static reads "ipam": {"type": "static", …}'
        )
    return conf.ipam


def _addresses(call: Call[Conf], conf: Conf) -> list[IPConfig]:
    """Of runtimeConfig, else of args.cni, else ipam.addresses and those of CNI_ARGS.

    Every source is checked, also one that another replaces. Raises CNIError.
    """
    chosen = [*_ipam(conf).addresses, *_of_environment(call.args)]
    for source in (conf.args.cni if conf.args is not None else None, conf.runtime_config):
        if source is not None and source.ips:
            what = "an entry in the 'ips' field is NOT in CIDR notation"
            # without gateways, as in the reference
            chosen = [Address(address=str(_prefix(text, what))) for text in source.ips]
    what = "the 'address' field is expected to be in CIDR notation"
    ips = [
        IPConfig(address=str(_prefix(each.address, what)), gateway=each.gateway) for each in chosen
    ]
    v4 = sum(ip.prefix.is_v4 for ip in ips)
    stated = conf.cni_version
    if max(v4, len(ips) - v4) > 1 and not config.is_at_least(stated, "0.3.0"):
        raise CNIError(
            f"CNI version {stated} does not support more than 1 address per family",
            "use cniVersion 0.3.0 or later",
        )
    return ips


def _of_environment(text: str) -> list[Address]:
    """The addresses of CNI_ARGS' IP; its GATEWAY goes with those whose subnet contains it.

    Not with the configuration's addresses: they have gateways of their own. Raises CNIError.
    """
    pairs = args.parse(text, frozenset({"IP", "GATEWAY"}))
    what = "the 'ip' field is expected to be in CIDR notation"
    prefixes = [_prefix(item.strip(), what) for item in _items(pairs.get("IP"))]
    addresses = [Address(address=str(prefix)) for prefix in prefixes]
    for item in _items(pairs.get("GATEWAY")):
        gateway = _gateway(item.strip())
        for prefix, address in zip(prefixes, addresses, strict=True):
            if prefix.contains(gateway):
                address.gateway = format_ip(gateway)
    return addresses


def _items(text: str | None) -> list[str]:
    return text.split(",") if text else []


def _prefix(text: str, what: str) -> Prefix:
    try:
        return Prefix.parse(text)
    except InvalidAddress:
        raise CNIError(f"{what}, got: '{text}'", "write it as 10.0.0.5/24") from None


def _gateway(text: str) -> bytes:
    try:
        return parse_ip(text)
    except InvalidAddress:
        raise CNIError(
            f"invalid gateway address: {text}", "GATEWAY in CNI_ARGS lists addresses by comma"
        ) from None
