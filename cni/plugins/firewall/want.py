"""The rules that the firewall plugin has to make (Want), and the Protocol of its backends."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from ...call import Call
from ...owner import Owner
from ...protocol import config
from ...protocol.address import Prefix, by_family
from ...protocol.errors import BadEnvironment, CNIError
from ...protocol.request import check_ifname
from ...protocol.result import Result

RELOAD = "run `cni reload`"


DEFAULT_ZONE = "trusted"
# Where the system bus is, unless DBUS_SYSTEM_BUS_ADDRESS says otherwise.
SYSTEM_BUS = "/run/dbus/system_bus_socket"
_POLICIES = ("same-bridge", "isolated")
# The name of an iptables chain: at most 28 characters, of those that need no quoting.
_CHAIN_MAX = 28
_CHAIN_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-/")


class Conf(config.NetConf):
    backend: str = ""
    iptables_admin_chain_name: str = ""
    firewalld_zone: str = ""
    ingress_policy: str = ""


class Ingress(NamedTuple):
    """Who may reach the containers on a bridge: `policy` is same-bridge or isolated."""

    policy: str
    bridge: str

    @property
    def isolated(self) -> bool:
        """May not even containers on the same bridge reach each other?"""
        return self.policy == "isolated"


class Want(NamedTuple):
    """The rules of one attachment. `addresses` are hosts: /32 or /128."""

    owner: Owner
    addresses: list[Prefix]
    admin_chain: str
    zone: str
    ingress: Ingress | None

    @property
    def families(self) -> list[tuple[bool, list[Prefix]]]:
        """The addresses by family: (is IPv6, addresses); without families that have none."""
        return by_family(self.addresses)


def previous_result(call: Call[Conf]) -> Result:
    result = call.prev_result()
    if result is None:
        raise CNIError(
            "missing prevResult from earlier plugin",
            "firewall has to come after another plugin in the list",
        )
    return result


def want_of(call: Call[Conf], result: Result) -> Want:
    """The rules to make. Does all checks, before anything is changed. Raises CNIError."""
    conf = call.conf
    addresses = [ip.prefix.host for ip in result.ips]
    admin_chain = conf.iptables_admin_chain_name or "CNI-ADMIN"
    _check_chain(admin_chain)
    return Want(
        call.owner,
        list(dict.fromkeys(addresses)),
        admin_chain,
        zone_of(conf),
        _ingress(conf, result) if addresses else None,
    )


def zone_of(conf: Conf) -> str:
    return conf.firewalld_zone or DEFAULT_ZONE


def _check_chain(name: str) -> None:
    if len(name) > _CHAIN_MAX or not _CHAIN_CHARACTERS.issuperset(name) or not name[0].isalpha():
        raise CNIError(
            f'invalid iptablesAdminChainName "{name}"',
            f"at most {_CHAIN_MAX} letters, digits and _ . - /, a letter first",
        )


def check_policy(conf: Conf) -> None:
    if conf.ingress_policy not in ("", "open", *_POLICIES):
        raise CNIError(
            f'unknown ingress policy: "{conf.ingress_policy}"',
            'ingressPolicy is "open", "same-bridge" or "isolated"',
        )


def _ingress(conf: Conf, result: Result) -> Ingress | None:
    check_policy(conf)
    policy = conf.ingress_policy
    if policy not in _POLICIES:
        return None
    if not result.interfaces:
        raise CNIError(
            f'interface needs to be set for ingress policy "{policy}", make sure to chain '
            '"firewall" plugin with "bridge"'
        )
    bridge = result.interfaces[0].name
    if not bridge:
        raise CNIError("got empty bridge name", "prevResult's first interface is the bridge")
    # With one of these characters a name would match other interfaces, too.
    try:
        check_ifname(bridge)
    except BadEnvironment as error:
        raise CNIError(
            f"cannot write rules for a bridge named {bridge!r}: {error.msg}",
            "prevResult's first interface is the bridge",
        ) from None
    if set(bridge) & set('"*+\\!') or bridge.startswith("-") or not bridge.isprintable():
        raise CNIError(f"cannot write rules for a bridge named {bridge!r}", "rename the bridge")
    return Ingress(policy, bridge)


class Backend(Protocol):
    """A packet filter that accepts containers' traffic, in the current network namespace.

    Methods raise CNIError or KernelError.
    """

    def setup(self, want: Want, *, accept: bool = True) -> None:
        """Make the rules that are missing. Without `accept` only those of the ingress policy."""

    def check(self, want: Want, *, accept: bool = True) -> list[str]:
        """The rules that are missing, a line each."""

    def teardown(self, owner: Owner, addresses: list[Prefix], zone: str) -> None:
        """Remove the attachment's rules; no rules are no error.

        A backend whose rules do not name their owner removes the rules for `addresses`; `zone`
        is firewalld's.
        """

    def gc(self, network: str, keep: list[Owner], addresses: list[Prefix], zone: str) -> None:
        """Remove the rules of the network's attachments that are not in `keep`.

        `addresses` are those of the removed attachments, as far as known, for `teardown`.
        """

    def status(self) -> None:
        """Raise CNIError or KernelError if the backend cannot be used here."""


def gone(text: str) -> str:
    """CHECK's line for a missing object."""
    return f"{text}: rules are gone: {RELOAD}"
