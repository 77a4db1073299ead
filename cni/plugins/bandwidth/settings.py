"""bandwidth's configuration: the limits that it asks for (docs/spec/bandwidth.md)."""

from __future__ import annotations

from typing import NamedTuple

from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix
from ...protocol.errors import CNIError
from . import shape
from .shape import Limit, Subnets

LATENCY_MAX = 10_000  # ms
BURST_MAX = 0xFFFFFFFF  # bytes
# "No limit", in bits: runtimes that know only a rate send the largest numbers of 32 bits for it.
NO_BURST = (0x7FFFFFFF, 0xFFFFFFFF)


class Keys(config.NetConf):
    """Keys of the configuration and of runtimeConfig.bandwidth, in bits and bits a second."""

    ingress_rate: int | None = None
    ingress_burst: int | None = None
    egress_rate: int | None = None
    egress_burst: int | None = None
    shaped_subnets: list[str] | None = None
    unshaped_subnets: list[str] | None = None
    latency: int | None = None

    def limits(self) -> dict[str, int | None]:
        """The four keys that set limits, in the configuration's spelling, with their values."""
        return {
            "ingressRate": self.ingress_rate,
            "ingressBurst": self.ingress_burst,
            "egressRate": self.egress_rate,
            "egressBurst": self.egress_burst,
        }


class Runtime(config.Folded):
    bandwidth: Keys | None = None


class Conf(Keys):
    runtime_config: Runtime | None = None


class Settings(NamedTuple):
    """The validated configuration: a limit a direction, or None."""

    ingress: Limit | None
    egress: Limit | None
    subnets: Subnets


def validated(conf: Conf) -> Settings:
    """The limits to set. Raises CNIError.

    If the configuration has any of the four keys, runtimeConfig's are ignored.
    """
    runtime = (conf.runtime_config and conf.runtime_config.bandwidth) or Keys()
    # presence counts, also of a 0, as in the reference (docs/spec/bandwidth.md)
    given = any(value is not None for value in conf.limits().values())
    limits = conf.limits() if given else runtime.limits()
    for key, value in limits.items():
        if value is not None and not 0 <= value < 1 << 64:
            raise CNIError(
                "failed to parse network configuration: json: cannot unmarshal number "
                f"{value} into field {key} of type uint64"
            )
    latency = conf.latency if conf.latency is not None else runtime.latency
    if latency is not None and not 1 <= latency <= LATENCY_MAX:
        raise CNIError(f"invalid latency {latency}", f"latency is 1 to {LATENCY_MAX} milliseconds")
    return Settings(
        _limit("ingress", limits, latency),
        _limit("egress", limits, latency),
        _subnets(conf, runtime),
    )


def _limit(direction: str, limits: dict[str, int | None], latency: int | None) -> Limit | None:
    rate, burst = limits[f"{direction}Rate"] or 0, limits[f"{direction}Burst"] or 0
    if latency is not None and rate and burst in NO_BURST:
        burst = 0
    if rate and not burst and latency is None:
        raise CNIError(
            "if rate is set, burst must also be set",
            f"give {direction}Burst in bits; or `latency` in ms, which comes with a default burst",
        )
    if burst and not rate:
        raise CNIError("if burst is set, rate must also be set", f"give {direction}Rate in bit/s")
    if burst // 8 >= BURST_MAX:
        raise CNIError("burst cannot be more than 4GB", f"{direction}Burst is {burst} bits")
    if not rate:
        return None
    if rate < 8 or 0 < burst < 8:
        raise CNIError(
            f"{direction}Rate and {direction}Burst must be at least 8",
            f"they are {rate} bit/s and {burst} bits: less than a byte",
        )
    return Limit(rate // 8, burst // 8, shape.LATENCY if latency is None else latency)


def _subnets(conf: Conf, runtime: Keys) -> Subnets:
    """The subnets of the configuration, or else of runtimeConfig. Raises CNIError."""
    own = conf.shaped_subnets is not None or conf.unshaped_subnets is not None
    source: Keys = conf if own else runtime
    shaped, unshaped = source.shaped_subnets or [], source.unshaped_subnets or []
    if shaped and unshaped:
        raise CNIError(
            "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be "
            "discarded"
        )
    prefixes: list[Prefix] = []
    for text in shaped or unshaped:
        try:
            prefix = Prefix.parse(text).network
        except InvalidAddress as error:
            raise CNIError(
                f'bad subnet "{text}" provided, details {error.msg}', "a subnet is like 10.0.0.0/8"
            ) from None
        if prefix not in prefixes:
            prefixes.append(prefix)
    return Subnets(prefixes, shaped=bool(shaped))
