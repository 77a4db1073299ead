"""Network configurations: JSON on stdin -> typed Structs (docs/spec/protocol.md §6).

As in Go: keys match in any case; if a key is given several times, its last value counts, and
objects are merged; null means absent; unknown keys are ignored. A Struct's field is the key in
snake case: ``isGateway`` is ``is_gateway``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from .address import InvalidAddress, Prefix, canonical_ip
from .errors import CNIError, DecodeFailure, InvalidConfig

if TYPE_CHECKING:
    from .partial import Partial

# Larger than any real chain; a limit, so that a runaway runtime cannot exhaust memory.
MAX_STDIN = 16 << 20

# The versions of the specification, oldest first; a configuration without version has the oldest.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
DEFAULT_VERSION = VERSIONS[0]

# Maps: their keys are the user's, and keep their spelling. Each has the zero value of its values,
# which null stands for.
VERBATIM: dict[str, Any] = {
    "prevresult": None,
    "sysctl": "",
    "labels": "",
    "capabilities": False,
    # no maps, but long, and in no plugin's Conf
    "cni.dev/valid-attachments": None,
    "cni.dev/attachments": None,
}


_CONTAINERS = (dict, list)  # a union of the two would be made anew at each use


def fold(name: str) -> str:
    """The form in which keys are compared: ``is_gateway`` and ``isGateway`` -> ``isgateway``."""
    return name.replace("_", "").lower()


class Folded(msgspec.Struct, rename=fold):
    """Base of everything decoded from a configuration."""


T = TypeVar("T", bound=Folded)


class Mtu(int):
    """An `mtu`: a number of bytes, where 0 is the kernel's choice, or AUTO."""


AUTO = Mtu(0)  # "auto": the uplink's MTU; on a master the same as 0. Compare with `is`


def _convert_mtu(kind: type[Mtu], value: Any) -> Mtu:
    if value == "auto":
        return AUTO
    try:
        return kind(msgspec.convert(value, int))
    except msgspec.ValidationError as error:
        raise TypeError(str(error)) from None  # msgspec adds the path of the key


class DNS(Folded):
    """Resolver settings; None means that the key was absent."""

    nameservers: list[str] | None = None
    domain: str = ""
    search: list[str] | None = None
    options: list[str] | None = None

    def given(self) -> bool:
        """Does it replace IPAM's `dns`? Yes with a domain, or with any list, even an empty one."""
        lists = (self.nameservers, self.search, self.options)
        return bool(self.domain) or any(x is not None for x in lists)

    def as_dict(self) -> dict[str, Any]:
        """The JSON object, empty values left out."""
        pairs = (
            ("nameservers", self.nameservers),
            ("domain", self.domain),
            ("search", self.search),
            ("options", self.options),
        )
        return {key: value for key, value in pairs if value}


class Route(Folded):
    """A route as configured and as returned; `dst` keeps host bits, addresses are canonical."""

    dst: str = ""
    gw: str | None = None
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None
    metric: int = 0  # another name of `priority`, which wins

    def __post_init__(self) -> None:
        self.priority = self.priority or self.metric
        self.metric = 0
        try:
            self.dst = str(Prefix.parse(self.dst))
            self.gw = canonical_ip(self.gw) if self.gw else None
        except InvalidAddress as error:
            example = "a route's `dst` is like 10.1.0.0/16, its `gw` like 10.1.2.1"
            raise InvalidAddress(error.msg, example) from None

    def as_dict(self) -> dict[str, Any]:
        """The JSON object in the reference's key order, empty values left out."""
        out: dict[str, Any] = {"dst": self.dst}
        for key in ("gw", "mtu", "advmss", "priority"):
            value = getattr(self, key)
            if value:
                out[key] = value
        for key in ("table", "scope"):
            value = getattr(self, key)
            if value is not None:
                out[key] = value
        return out


class IPAM(Folded):
    """The `ipam` object as a main plugin sees it; the IPAM plugin reads the rest itself."""

    type: str = ""


class PluginConf(Folded):
    """The keys that all plugins read."""

    cni_version: str = ""
    name: str = ""
    type: str = ""


class NetConf(PluginConf):
    """The keys that all plugins read, except IPAM plugins."""

    ipam: IPAM = msgspec.field(default_factory=IPAM)
    dns: DNS = msgspec.field(default_factory=DNS)


def decode_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`, as Go reads it. Raises DecodeFailure (code 6)."""
    value = _decode(data)
    if not isinstance(value, dict):
        raise DecodeFailure(
            "error unmarshall network config: json: cannot unmarshal "
            f"{_json_type(value)} into an object",
            "the configuration on stdin must be one JSON object",
        )
    return value


def _decode(data: bytes) -> Any:
    """The JSON document in `data`. Raises DecodeFailure.

    A document that is no strict JSON, or may give a key twice, is read as Go would. With such a key
    the document has more colons than the decoded value, or, where escape sequences may be colons,
    its compact form is longer.
    """
    try:
        value = msgspec.json.decode(data)
        encoded = msgspec.json.encode(value)
        if b"\\" not in data and encoded.count(b":") == data.count(b":"):
            return value
        if len(encoded) == len(msgspec.json.format(data, indent=-1)):
            return value
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError):
        pass
    from . import gojson

    try:
        return gojson.decode(data)
    except ValueError as error:
        raise DecodeFailure(
            f"error unmarshall network config: {error}",
            "the configuration on stdin must be one JSON object",
        ) from None


def lookup(raw: Mapping[str, Any], key: str) -> Any:
    """The value of `key` in `raw`, in any case (the last of several); None if absent."""
    wanted, size = key.lower(), len(key)
    # in most cases: the key as it is written, and no other that may be the same
    if key in raw and "\n".join(raw).lower().count(wanted) == 1:
        return raw[key]
    value_of_key = None
    for name, value in raw.items():
        if name == key or (len(name) == size and name.lower() == wanted):
            value_of_key = value
    return value_of_key


def is_at_least(version: str, minimum: str) -> bool:
    """Is `version` `minimum` or later? Both are of VERSIONS; an empty `version` is the oldest."""
    return (version or DEFAULT_VERSION) in VERSIONS[VERSIONS.index(minimum) :]


def version_of(raw: dict[str, Any]) -> str:
    """The configuration's cniVersion; missing or empty means 0.1.0. Raises DecodeFailure."""
    version = lookup(raw, "cniVersion")
    if version is None or version == "":
        return DEFAULT_VERSION
    if not isinstance(version, str):
        raise DecodeFailure(
            "decoding version from network config: json: cannot unmarshal "
            f"{_json_type(version)} into field cniVersion of type string",
            'write the version as a string, for example "1.0.0"',
        )
    return version


def convert(value: Any, into: type[T], prefix: str = "") -> T:
    """`value` (decoded JSON) as the Struct `into`; keys match in any case.

    Raises CNIError ``<prefix>json: cannot unmarshal <what> into field <path> of type <type>``.
    """
    names: dict[str, str] = {}
    return _convert(fold_keys(value, names), into, prefix, names)


def convert_parts(
    value: Any, into: type[T], prefix: str, note: Callable[[CNIError], None]
) -> T | Partial:
    """`value` as the Struct `into`; a field whose value is wrong has its default.

    When such a field is read, `note` is called with the error.
    """
    names: dict[str, str] = {}
    folded = fold_keys(value, names)
    try:
        return _convert(folded, into, prefix, names)
    except CNIError:
        from .partial import Partial, pick

        struct, broken = pick(folded, lambda part: _convert(part, into, prefix, names))
        return Partial(struct, broken, note)


def _convert(folded: Any, into: type[T], prefix: str, names: dict[str, str]) -> T:
    try:
        return msgspec.convert(folded, into, dec_hook=_convert_mtu)
    except msgspec.ValidationError as error:
        from .wrong_type import explain  # correct configurations do not load it

        text, advice = explain(str(error), folded, names)
        raise CNIError(prefix + text, advice) from None


def require_name(raw: dict[str, Any]) -> str:
    """The network name, not yet validated. Raises InvalidConfig (code 7) or DecodeFailure (6)."""
    name = lookup(raw, "name")
    if name is not None and not isinstance(name, str):
        raise DecodeFailure(
            "error unmarshall network config: json: cannot unmarshal "
            f"{_json_type(name)} into field name of type string"
        )
    if not name:
        raise InvalidConfig("missing network name", "the configuration needs a key `name`")
    return name


def means(plugin_type: str, name: str) -> bool:
    """Does a configuration's `type` mean the plugin `name`, with or without a prefix?

    A prefix ends in `-`. Only for names in which no other plugin's name ends: `bridge` is not one,
    since `win-bridge` exists.
    """
    return plugin_type == name or plugin_type.endswith(f"-{name}")


def fold_keys(value: Any, names: dict[str, str]) -> Any:
    """Decoded JSON with keys in lower case; `names` gets the spelling of each (lower → written).

    Drops null in lists, except in a list of interfaces, which others refer to by index.
    """
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, item in value.items():
            low = key.lower()
            if low != key:
                names[low] = key
            if item is None:
                if isinstance(out.get(low), list):
                    del out[low]
            elif low in VERBATIM:
                out[low] = _without_nulls(item, VERBATIM[low])
            else:
                new = item
                if isinstance(item, _CONTAINERS):
                    if low == "interfaces" and isinstance(item, list):
                        new = [{} if each is None else fold_keys(each, names) for each in item]
                    else:
                        new = fold_keys(item, names)
                out[low] = _merged(out[low], new) if low in out else new
        return out
    if isinstance(value, list):
        return [fold_keys(item, names) for item in value if item is not None]
    return value


def _merged(old: Any, new: Any) -> Any:
    """The value of a key that is given twice: objects are merged, else the last value counts."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), item) for key, item in new.items()}}
    return new


def _without_nulls(value: Any, zero: Any) -> Any:
    """A map as Go decodes it: null becomes `zero`, the zero value of the map's values."""
    if zero is None or not isinstance(value, dict) or None not in value.values():
        return value
    return {key: zero if item is None else item for key, item in value.items()}


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "number"
