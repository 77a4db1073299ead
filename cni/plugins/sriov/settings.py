"""sriov's configuration, with the keys of the plugin of that name (docs/plugins/sriov.md)."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from ...kernel import uapi
from ...kernel.vf import Settings
from ...protocol import config
from ...protocol.errors import CNIError

LINK_STATES = {
    "auto": uapi.IFLA_VF_LINK_STATE_AUTO,
    "enable": uapi.IFLA_VF_LINK_STATE_ENABLE,
    "disable": uapi.IFLA_VF_LINK_STATE_DISABLE,
}
VLAN_PROTOCOLS = {"802.1q": uapi.ETH_P_8021Q, "802.1ad": uapi.ETH_P_8021AD}
_SWITCH = {"on": True, "off": False}

_MAX_VLAN, _MAX_PRIORITY = 4094, 7  # IEEE 802.1Q
_MAX_RATE = (1 << 31) - 1  # Mbit/s: drivers are given an int

T = TypeVar("T")


class Runtime(config.Folded):
    device_id: str = ""
    mac: str = ""


class Conf(config.NetConf):
    device_id: str = ""
    vlan: int | None = None
    vlan_qos: int | None = None
    vlan_proto: str = ""
    mac: str = ""
    min_tx_rate: int | None = msgspec.field(default=None, name="min_tx_rate")
    max_tx_rate: int | None = msgspec.field(default=None, name="max_tx_rate")
    spoofchk: str = ""
    trust: str = ""
    link_state: str = msgspec.field(default="", name="link_state")
    runtime_config: Runtime = msgspec.field(default_factory=Runtime)


def wanted(conf: Conf, mac: str) -> Settings:
    """What the configuration wants of the card; None for what it does not name. Raises CNIError.

    `mac` is the wanted MAC in colon form, or empty.
    """
    return Settings(
        mac=mac or None,
        vlan=_vlan(conf),
        rates=_rates(conf),
        spoofchk=_one_of("spoofchk", conf.spoofchk, _SWITCH),
        trust=_one_of("trust", conf.trust, _SWITCH),
        link_state=_one_of("link_state", conf.link_state, LINK_STATES),
    )


def _vlan(conf: Conf) -> tuple[int, int, int] | None:
    protocol = _one_of("vlanProto", conf.vlan_proto.lower(), VLAN_PROTOCOLS) or uapi.ETH_P_8021Q
    _check("vlan", conf.vlan, _MAX_VLAN)
    _check("vlanQoS", conf.vlan_qos, _MAX_PRIORITY)
    if conf.vlan is None or conf.vlan == 0:
        given = {"vlanQoS": conf.vlan_qos, "vlanProto": conf.vlan_proto}
        for key, value in given.items():
            if value:
                raise CNIError(
                    f"{key} needs a vlan", "without a VLAN frames have no tag: set `vlan`"
                )
    if conf.vlan is None:
        return None
    return conf.vlan, conf.vlan_qos or 0, protocol


def _rates(conf: Conf) -> tuple[int, int] | None:
    least, most = conf.min_tx_rate, conf.max_tx_rate
    _check("min_tx_rate", least, _MAX_RATE)
    _check("max_tx_rate", most, _MAX_RATE)
    if least is None and most is None:
        return None
    if least and most and least > most:
        raise CNIError(
            f"min_tx_rate {least} is larger than max_tx_rate {most}",
            "both are in Mbit/s; 0 is no limit",
        )
    return least or 0, most or 0


def _check(key: str, value: int | None, most: int) -> None:
    if value is not None and not 0 <= value <= most:
        raise CNIError(f"invalid {key} {value}, must be [0, {most}]")


def _one_of(key: str, value: str, values: dict[str, T]) -> T | None:
    if not value:
        return None
    if value not in values:
        allowed = ", ".join(values)
        raise CNIError(f'invalid {key} "{value}"', f"it is one of: {allowed}")
    return values[value]
