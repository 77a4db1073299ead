"""Results: the in-memory form (spec 1.1.0), parsing, printing, conversion
(docs/spec/protocol.md §3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from .address import Prefix, canonical_ip
from .config import DEFAULT_VERSION, DNS, VERSIONS, Folded, Route, T, convert, fold_keys, lookup
from .errors import BadEnvironment, CNIError
from .request import check_ifname_characters

if TYPE_CHECKING:
    from typing import Literal

_FAMILIES = (("0.1.0", "0.2.0"), ("0.3.0", "0.3.1", "0.4.0"), ("1.0.0", "1.1.0"))
# As the reference prints them, with its blank in the list of the oldest family.
_FAMILY_TEXT = ("[ 0.1.0 0.2.0]", "[0.3.0 0.3.1 0.4.0]", "[1.0.0 1.1.0]")


class Interface(Folded):
    """A link that an ADD made or uses; `sandbox` is the netns path, empty for the host's."""

    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = msgspec.field(default="", name="pciid")


class IPConfig(Folded):
    """An address (with prefix, canonical), its gateway, and the index of its interface."""

    address: str = ""
    interface: int | None = None
    gateway: str | None = None

    def __post_init__(self) -> None:
        self.address = str(Prefix.parse(self.address))
        self.gateway = canonical_ip(self.gateway) if self.gateway else None

    @property
    def prefix(self) -> Prefix:
        return Prefix.parse(self.address)


class _LegacyIP(Folded):
    ip: str = ""
    gateway: str | None = None
    routes: list[Route] = []


class _LegacyResult(Folded):
    ip4: _LegacyIP | None = None
    ip6: _LegacyIP | None = None
    dns: DNS = msgspec.field(default_factory=DNS)


class Result(Folded):
    """What an ADD returns, independent of the version in which it is printed."""

    interfaces: list[Interface] = []
    ips: list[IPConfig] = []
    routes: list[Route] = []
    dns: DNS = msgspec.field(default_factory=DNS)

    @classmethod
    def parse(cls, raw: Any, config_version: str) -> Result:
        """A result object as a plugin printed it, or a prevResult; ``None`` is the empty result.

        It is read in the format of `config_version`; its own cniVersion must have that format, too.
        Raises CNIError.
        """
        if raw is None:
            return cls()
        if not isinstance(raw, dict):
            raise CNIError("json: cannot unmarshal result: it is not an object")
        config_version = config_version or DEFAULT_VERSION
        rank = _family(config_version)
        own = lookup(raw, "cniVersion") or config_version
        if own not in _FAMILIES[rank]:
            raise CNIError(
                f'result type supports {_FAMILY_TEXT[rank]} but unmarshalled CNIVersion is "{own}"'
            )
        if rank == 0:
            return _from_legacy(_convert(raw, _LegacyResult))
        return _convert(raw, cls)

    @classmethod
    def salvage(cls, raw: Any, config_version: str) -> Result:
        """The readable parts of a prevResult, for DEL: of any version, without wrong parts.

        Raises nothing.
        """
        if not isinstance(raw, dict):
            return cls()
        from .partial import pick

        own = lookup(raw, "cniVersion")
        known = [each for each in (own, config_version) if each in VERSIONS]
        folded = fold_keys(_integers(raw), {})
        if known and _family(known[0]) == 0:
            legacy: Result = pick(folded, _convert_legacy)[0]
            return legacy
        result: Result = pick(folded, lambda part: convert(part, cls))[0]
        for link in result.interfaces:
            if _wrong_name(link.name):
                link.name = ""
        return result

    def checked(self) -> Result:
        """This result, unless a name in it cannot be that of an interface. Raises CNIError.

        The names in a prevResult reach rules, paths and the input of other programs.
        """
        for link in self.interfaces:
            wrong = _wrong_name(link.name)
            if wrong:
                raise CNIError(f"{wrong}: {link.name!r}", "an interface of the result is called so")
        return self

    def as_dict(self, version: str) -> dict[str, Any]:
        """The JSON object in `version` (empty means 0.1.0), keys in the order of the reference.

        Raises CNIError ``cannot convert: no valid IP addresses`` for 0.1.0 and 0.2.0 without one.
        """
        out, is_sorted = self._fields(version)
        return _sort(out) if is_sorted else out

    def _fields(self, version: str) -> tuple[dict[str, Any], bool]:
        """The JSON object, and whether its keys are still to be sorted."""
        version = version or DEFAULT_VERSION
        rank = _family(version)
        if rank == 0:
            return self._as_legacy(version), False
        out: dict[str, Any] = {"cniVersion": version}
        modern = rank == 2
        if self.interfaces:
            out["interfaces"] = [_interface(i, modern) for i in self.interfaces]
        if self.ips:
            out["ips"] = [_ip(ip, modern) for ip in self.ips]
        if self.routes:
            out["routes"] = [route.as_dict() for route in self.routes]
        dns = self.dns.as_dict()
        if dns or not modern:
            out["dns"] = dns
        return out, modern

    def encode(self, version: str) -> bytes:
        """The printed form: 4-space indent, no trailing newline, Go's escapes."""
        out, is_sorted = self._fields(version)
        return encode_json(out, "sorted" if is_sorted else None)

    def through(self, version: str) -> Result:
        """This result printed in `version` and parsed again, without what that cannot say."""
        if _family(version or DEFAULT_VERSION) == 2:
            return self
        return Result.parse(self.as_dict(version), version)

    def _as_legacy(self, version: str) -> dict[str, Any]:
        out: dict[str, Any] = {"cniVersion": version}
        for key, want_v4 in (("ip4", True), ("ip6", False)):
            for ip in self.ips:
                if ip.prefix.is_v4 == want_v4:
                    out[key] = _legacy_ip(ip, self.routes, want_v4)
                    break
        if len(out) == 1:
            raise CNIError(
                "cannot convert: no valid IP addresses",
                f"a result of version {version} needs an address: configure ipam, or use "
                "cniVersion 0.3.0 or later",
            )
        out["dns"] = self.dns.as_dict()
        return out


def _wrong_name(name: str) -> str:
    """Why this is no name of an interface; "" if it may be one, also an alternative one."""
    try:
        check_ifname_characters(name)
    except BadEnvironment as error:
        return error.msg
    return ""


def _convert(raw: Any, into: type[T]) -> T:
    """As convert, but 1.0 is also an integer: Go's parser has one kind of number only."""
    try:
        return convert(raw, into)
    except CNIError:
        return convert(_integers(raw), into)


def _integers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_integers(item) for item in value]
    return value


def encode_error(error: CNIError) -> bytes:
    """The error object as a plugin prints it (docs/spec/protocol.md §3.3)."""
    body: dict[str, Any] = {"code": error.code, "msg": error.msg}
    if error.details:
        body["details"] = error.details
    return encode_json(body)


def encode_json(value: Any, order: Literal["sorted"] | None = None) -> bytes:
    """Indented JSON with the escapes of Go's encoder for ``<``, ``>``, ``&``, U+2028 and U+2029.

    `order` is that of the keys: as they are, or sorted.
    """
    try:
        text = msgspec.json.encode(value, order=order)
    except UnicodeEncodeError:
        text = msgspec.json.encode(_replace_invalid(value), order=order)
    text = msgspec.json.format(text, indent=4)
    for raw, escaped in _ESCAPES:
        if raw in text:
            text = text.replace(raw, escaped)
    return text


def _replace_invalid(value: Any) -> Any:
    """`value` with U+FFFD for bytes that are no UTF-8, as in Go: variables may have any."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_replace_invalid(key): _replace_invalid(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_invalid(item) for item in value]
    return value


_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def _family(version: str) -> int:
    for rank, members in enumerate(_FAMILIES):
        if version in members:
            return rank
    raise CNIError(f'unsupported CNI result version "{version}"')


def _convert_legacy(raw: Any) -> Result:
    """A result of the oldest family, its addresses included. Raises CNIError."""
    return _from_legacy(convert(raw, _LegacyResult))


def _from_legacy(old: _LegacyResult) -> Result:
    result = Result(dns=old.dns)
    for entry in (old.ip4, old.ip6):
        if entry is not None:
            result.ips.append(IPConfig(address=entry.ip, gateway=entry.gateway))
            result.routes.extend(entry.routes)
    return result


def _interface(link: Interface, modern: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"name": link.name}
    if link.mac:
        out["mac"] = link.mac
    if link.sandbox:
        out["sandbox"] = link.sandbox
    if modern:
        for key, value in (
            ("mtu", link.mtu),
            ("socketPath", link.socket_path),
            ("pciID", link.pci_id),
        ):
            if value:
                out[key] = value
    return out


def _ip(ip: IPConfig, modern: bool) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if not modern:
        out["version"] = "4" if ip.prefix.is_v4 else "6"
    if ip.interface is not None:
        out["interface"] = ip.interface
    out["address"] = ip.address
    if ip.gateway:
        out["gateway"] = ip.gateway
    return out


def _legacy_ip(ip: IPConfig, routes: list[Route], v4: bool) -> dict[str, Any]:
    out: dict[str, Any] = {"ip": ip.address}
    if ip.gateway:
        out["gateway"] = ip.gateway
    mine = []
    for route in routes:
        if Prefix.parse(route.dst).is_v4 == v4:
            mine.append({"dst": route.dst, "gw": route.gw} if route.gw else {"dst": route.dst})
    if mine:
        out["routes"] = mine
    return out


def _sort(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sort(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sort(item) for item in value]
    return value
