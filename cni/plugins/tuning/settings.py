"""tuning's configuration: the wanted values, their sources in order of precedence, the allow-list
(docs/spec/tuning.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from ...call import Call
from ...kernel import link, sysctl
from ...protocol import config
from ...protocol.errors import CNIError

if TYPE_CHECKING:
    import re

ALLOWLIST = "/etc/cni/tuning/allowlist.conf"
ARGS = frozenset({"MAC"})  # the keys that are read from CNI_ARGS

_MAX = 1 << 31


class Overrides(config.Folded):
    """`args.cni`, which takes precedence over all other sources."""

    sysctl: dict[str, str | None] = {}
    mac: str | None = None
    promisc: bool | None = None
    mtu: int | None = None
    allmulti: bool | None = None
    tx_q_len: int | None = None


class Args(config.Folded):
    cni: Overrides = msgspec.field(default_factory=Overrides)


class Runtime(config.Folded):
    mac: str = ""


class Conf(config.NetConf):
    sysctl: dict[str, str | None] = {}
    mac: str = ""
    promisc: bool = False
    mtu: int = 0
    allmulti: bool | None = None
    tx_q_len: int | None = None
    ethtool: dict[str, bool] = {}
    data_dir: str = ""
    args: Args = msgspec.field(default_factory=Args)
    runtime_config: Runtime = msgspec.field(default_factory=Runtime)


class Settings:
    """The wanted values, validated. Raises CNIError.

    `link` holds keyword arguments of link.change; `sysctl` maps names below /proc/sys to values;
    `features` maps names of ethtool to on or off; `keys` are the sysctls as they are spelled.
    """

    def __init__(self, call: Call[Conf]) -> None:
        if not _seen_once(call.request.stdin, call.conf.sysctl):
            _refuse_duplicates(call.request.stdin)
        conf, over = call.conf, call.conf.args.cni
        pairs = call.parse_args(ARGS)
        self.keys = [*conf.sysctl, *over.sysctl]
        ifname = call.ifname or "IFNAME"  # STATUS has no interface
        self.sysctl = {**_names(conf.sysctl, ifname), **_names(over.sysctl, ifname)}
        mac = over.mac or conf.runtime_config.mac or pairs.get("MAC", "") or conf.mac
        self.link: dict[str, Any] = {}
        if mac:
            self.link["mac"] = _parse_mac(mac)
        if conf.promisc if over.promisc is None else over.promisc:
            self.link["promisc"] = True
        mtu = _number("mtu", conf.mtu if over.mtu is None else over.mtu)
        if mtu:
            self.link["mtu"] = mtu
        allmulti = conf.allmulti if over.allmulti is None else over.allmulti
        if allmulti is not None:
            self.link["allmulti"] = allmulti
        txqlen = conf.tx_q_len if over.tx_q_len is None else over.tx_q_len
        if txqlen is not None:
            self.link["txqlen"] = _number("txQLen", txqlen)
        self.features = conf.ethtool

    @property
    def anything(self) -> bool:
        return bool(self.sysctl or self.link or self.features)

    @property
    def mac(self) -> str:
        """The wanted MAC as the kernel shows it, or the empty string."""
        return link.format_mac(self.link.get("mac", b""))


# --- validation -----------------------------------------------------------------------------------


def _seen_once(stdin: bytes, keys: Iterable[str]) -> bool:
    """Does each key occur once in the text? A quick test, whose False may be wrong."""
    return b"\\" not in stdin and all(stdin.count(f'"{key}"'.encode()) == 1 for key in keys)


def _refuse_duplicates(stdin: bytes) -> None:
    """Refuse a key that occurs twice in `sysctl`: a decoder would drop one. Raises CNIError."""
    from ...protocol import gojson  # rarely needed: the quick test suffices

    repeated = {key for name, key in gojson.repeated(stdin) if name.lower() == "sysctl"}
    if repeated:
        twice = ", ".join(sorted(repeated))
        raise CNIError("duplicated sysctl keys are not allowed", f"twice: {twice}")


def _names(settings: dict[str, str | None], ifname: str) -> dict[str, str]:
    """The sysctls as a map from names below /proc/sys to values. Raises CNIError.

    White space around a value, such as the newline of a YAML block, is removed. An empty value or
    null, as a template without a value leaves it, sets nothing.
    """
    values: dict[str, str] = {}
    for key, text in settings.items():
        value = (text or "").strip()
        if not value:
            continue
        try:
            name = sysctl.parse(key).replace("IFNAME", ifname, 1)
        except ValueError:
            slashes = key.replace(".", "/")
            raise CNIError(
                f'invalid net sysctl key: "{slashes}"',
                "keys are like net.ipv4.conf.IFNAME.arp_filter: below net, and without `..`",
            ) from None
        if "\n" in value or "\0" in value:
            raise CNIError(
                f'invalid value of sysctl "{key}"', "a value is one line of text without NUL"
            )
        if name in values:
            raise CNIError(
                "duplicated sysctl keys are not allowed", f"{key}: another key means {name}, too"
            )
        values[name] = value
    return values


def _parse_mac(text: str) -> bytes:
    try:
        return link.parse_mac(text)
    except ValueError as error:
        raise CNIError(
            f"invalid args {text} for MAC addr: {error}", "a MAC looks like 02:00:00:12:34:56"
        ) from None


def _number(key: str, value: int) -> int:
    if not 0 <= value < _MAX:
        raise CNIError(f"invalid {key} {value}", f"{key} is 0 or more, and below {_MAX}")
    return value


def require_allowed(keys: list[str]) -> None:
    """Require that each key as a whole matches a line of the allow-list, if there is one.

    Raises CNIError. The reference accepts a match anywhere in the key: `net.ipv4.ip_forward` would
    admit `net.ipv4.ip_forward_use_pmtu`.
    """
    try:
        with open(ALLOWLIST, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise CNIError(f"open {ALLOWLIST}: {reason.lower()}", "no sysctl is set then") from None
    patterns = [_compile(line) for line in lines]
    for key in keys:
        if not any(pattern.fullmatch(key) for pattern in patterns):
            raise CNIError(
                f"Sysctl {key} is not allowed. Only the following sysctls are allowed: "
                f"[{' '.join(lines)}]",
                f"each line of {ALLOWLIST} is a regular expression that must match the whole key",
            )


def _compile(line: str) -> re.Pattern[str]:
    import re  # expensive, and few nodes have such a file

    try:
        if "[:" in line:  # in Go a character class, in Python a set with other members
            raise re.error("[:class:] is not supported")
        return re.compile(line)
    except re.error as error:
        raise CNIError(
            f"error parsing regexp: {error}: `{line}`",
            f"a line of {ALLOWLIST} is no regular expression",
        ) from None
