"""Network configurations: JSON on stdin -> typed Structs (docs/spec/protocol.md §6).

A key matches whatever its case, as in Go; the last of several wins; null means absent; unknown keys
are ignored. Struct fields are the key in snake case: ``isGateway`` is ``is_gateway``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from .address import InvalidAddress, Prefix, canonical_ip
from .errors import CNIError, DecodeFailure, InvalidConfig

# Large enough for any real chain; a bound, so that a runaway runtime cannot exhaust memory.
MAX_STDIN = 16 << 20

# What is below these keys belongs to somebody else, and keeps its spelling.
VERBATIM = frozenset({"prevresult", "sysctl", "labels", "capabilities"})


def fold(name: str) -> str:
    """The form in which keys are compared: ``is_gateway`` and ``isGateway`` -> ``isgateway``."""
    return name.replace("_", "").lower()


class Folded(msgspec.Struct, rename=fold):
    """Base of everything decoded from a configuration."""


T = TypeVar("T", bound=msgspec.Struct)


class DNS(Folded):
    """Resolver settings; None means that the key was absent."""

    nameservers: list[str] | None = None
    domain: str = ""
    search: list[str] | None = None
    options: list[str] | None = None

    def given(self) -> bool:
        """Does it replace what IPAM said? A list that is present counts, even an empty one."""
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

    def __post_init__(self) -> None:
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


class NetConf(Folded):
    """The keys every plugin's configuration shares."""

    cni_version: str = ""
    name: str = ""
    type: str = ""
    ipam: IPAM = msgspec.field(default_factory=IPAM)
    dns: DNS = msgspec.field(default_factory=DNS)


def decode_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`. Raises DecodeFailure (code 6)."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        reason = "unexpected end of JSON input" if not data.strip() else str(error)
        raise DecodeFailure(
            f"error unmarshall network config: {reason}",
            "the configuration on stdin must be one JSON object",
        ) from None
    if not isinstance(value, dict):
        raise DecodeFailure(
            "error unmarshall network config: json: cannot unmarshal "
            f"{_json_type(value)} into an object",
            "the configuration on stdin must be one JSON object",
        )
    return value


def lookup(raw: dict[str, Any], key: str) -> Any:
    """The value of `key` in `raw` whatever the key's case (the last of several); None if absent."""
    wanted, size = key.lower(), len(key)
    found = None
    for name, value in raw.items():
        if name == key or (len(name) == size and name.lower() == wanted):
            found = value
    return found


def version_of(raw: dict[str, Any]) -> str:
    """The configuration's cniVersion; missing or empty means 0.1.0. Raises DecodeFailure."""
    version = lookup(raw, "cniVersion")
    if version is None or version == "":
        return "0.1.0"
    if not isinstance(version, str):
        raise DecodeFailure(
            "decoding version from network config: json: cannot unmarshal "
            f"{_json_type(version)} into field cniVersion of type string",
            'write the version as a string, for example "1.0.0"',
        )
    return version


def convert(value: Any, into: type[T], prefix: str = "") -> T:
    """`value` (decoded JSON) as the Struct `into`; case of keys ignored.

    Raises CNIError ``<prefix>json: cannot unmarshal <what> into field <path> of type <type>``.
    """
    names: dict[str, str] = {}
    folded = _fold_keys(value, names)
    try:
        return msgspec.convert(folded, into)
    except msgspec.ValidationError as error:
        raise CNIError(prefix + _explain(str(error), names)) from None


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


def _fold_keys(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, item in value.items():
            low = key.lower()
            if low != key:
                names[low] = key
            if item is None:
                out.pop(low, None)
            else:
                out[low] = item if low in VERBATIM else _fold_keys(item, names)
        return out
    if isinstance(value, list):
        return [_fold_keys(item, names) for item in value]
    return value


_GO_TYPES = {
    "int": "number",
    "float": "number",
    "str": "string",
    "bool": "bool",
    "array": "array",
    "object": "object",
    "null": "null",
}


def _explain(text: str, names: dict[str, str]) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.mtu`" in the words of the reference."""
    parts = text.split("`")
    if text.startswith("Expected `") and len(parts) >= 5:
        path = parts[5][2:] if len(parts) > 5 else ""
        path = ".".join(_spelled(step, names) for step in path.split("."))
        wanted = parts[1].removesuffix(" | null")
        got = _GO_TYPES.get(parts[3], parts[3])
        return f"json: cannot unmarshal {got} into field {path or '(top)'} of type {wanted}"
    return f"json: cannot unmarshal: {text}"


def _spelled(step: str, names: dict[str, str]) -> str:
    key, bracket, index = step.partition("[")
    return names.get(key, key) + bracket + index


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "bool"), (str, "string"), (list, "array"), (dict, "object")):
        if isinstance(value, kind):
            return name
    return "number"
