"""The configuration, which plugin and daemon both read (docs/spec/dhcp.md)."""

from __future__ import annotations

import msgspec

from ...protocol.config import Folded, PluginConf
from ...protocol.errors import CNIError

SUBNET_MASK, ROUTER, DNS_SERVERS, HOST_NAME, DOMAIN_NAME = 1, 3, 6, 12, 15
MTU, STATIC_ROUTES, CLIENT_ID, DOMAIN_SEARCH, CLASSLESS_ROUTES = 26, 33, 61, 119, 121

# The reference's names of options; all others are given by number.
_NAMES = {
    "dhcp-client-identifier": CLIENT_ID,
    "subnet-mask": SUBNET_MASK,
    "routers": ROUTER,
    "host-name": HOST_NAME,
    "user-class": 77,
    "vendor-class-identifier": 60,
}
_DEFAULT_REQUEST = (ROUTER, SUBNET_MASK)
_LIBRARY_REQUEST = (SUBNET_MASK, ROUTER, DOMAIN_NAME, DNS_SERVERS)
_MAX_VALUE = 255
# Bits of a delegated prefix. No link and no customer has more than a /32, which is what a registry
# gives to a provider: a shorter one would lead the traffic to much of the Internet to nowhere.
SHORTEST_PREFIX, LONGEST_PREFIX = 32, 128
# Options of the exchange itself, which a configuration cannot set.
_RESERVED = frozenset({0, 50, 52, 53, 54, 255})


class RequestOption(Folded):
    """An option to ask the server for; `skip_default` leaves out router and subnet mask."""

    option: str = ""
    skip_default: bool = False


class ProvideOption(Folded):
    """An option to send: `value` as it is, or what CNI_ARGS has under the key `from_arg`."""

    option: str = ""
    value: str = ""
    from_arg: str = ""


class PrefixDelegation(Folded):
    """A prefix to ask for (IA_PD): its length in bits, which is a wish of the client only.

    `required`: without a prefix ADD fails. `assign`: the interface gets an address of the prefix.
    """

    length: int = 64
    required: bool = True
    assign: bool = False


class IpamConf(Folded):
    type: str = ""
    daemon_socket_path: str = ""
    request: list[RequestOption] = []
    provide: list[ProvideOption] = []
    priority: int = 0
    # Beyond the reference: the protocols. `ipv6` is DHCPv6 with routes from router advertisements.
    ipv4: bool = True
    ipv6: bool = False
    prefix_delegation: PrefixDelegation | None = None


class Conf(PluginConf):
    ipam: IpamConf = msgspec.field(default_factory=IpamConf)


class Options(msgspec.Struct):
    """Options in messages to a DHCPv4 server: requested codes, and options sent."""

    requested: bytes
    provided: dict[int, bytes]


def options(ipam: IpamConf, cni_args: str) -> Options:
    """The options of a configuration and CNI_ARGS. Raises CNIError in the reference's words."""
    codes = [parse_code(entry.option) for entry in ipam.request if entry.option]
    if not any(entry.skip_default for entry in ipam.request):
        codes += _DEFAULT_REQUEST
    values = _arguments(cni_args)
    provided: dict[int, bytes] = {}
    for entry in ipam.provide:
        code = parse_code(entry.option)
        if code in _RESERVED:
            raise CNIError(
                f'option "{entry.option}" cannot be provided',
                "it is part of the exchange with the server",
            )
        if entry.value:
            provided[code] = _value(entry.value, f'option "{entry.option}": "{entry.value}"')
        if entry.from_arg in values:
            text = values[entry.from_arg]
            what = f'option "{entry.option}" from CNI_ARGS "{entry.from_arg}": "{text}"'
            provided[code] = _value(text, what)
    return Options(bytes(dict.fromkeys(codes or _LIBRARY_REQUEST)), provided)


def delegation(ipam: IpamConf) -> PrefixDelegation | None:
    """The prefix to ask for, if any. Raises CNIError for a length that no prefix has."""
    wish = ipam.prefix_delegation
    if wish is not None and not SHORTEST_PREFIX <= wish.length <= LONGEST_PREFIX:
        raise CNIError(
            f"invalid length {wish.length} of prefixDelegation "
            f"(must be between {SHORTEST_PREFIX} and {LONGEST_PREFIX})",
            "the length that networks usually delegate to a host is 64",
        )
    return wish


def parse_code(text: str) -> int:
    """An option's number, from its name or number. Raises CNIError."""
    if text in _NAMES:
        return _NAMES[text]
    if text.isascii() and text.isdigit():
        if int(text[:9]) <= 255 and len(text) <= 9:
            return int(text)
        reason = "value out of range"
    else:
        reason = "invalid syntax"
    raise CNIError(
        f'Can not parse option "{text}": Can not parse option: '
        f'strconv.ParseUint: parsing "{text}": {reason}',
        f"an option is a number up to 255 or one of {', '.join(_NAMES)}",
    )


def _value(text: str, what: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > _MAX_VALUE:
        raise CNIError(f"value too long for {what}", f"an option holds {_MAX_VALUE} bytes")
    return data


def _arguments(text: str) -> dict[str, str]:
    """The pairs of CNI_ARGS; ignores parts that are no pair."""
    pairs = {}
    for piece in text.split(";"):
        key, equals, value = piece.partition("=")
        if equals:
            pairs[key] = value
    return pairs
