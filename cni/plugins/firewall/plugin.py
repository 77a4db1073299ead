"""firewall: lets containers' traffic through a node that forwards nothing (docs/spec/firewall.md).

Chained after the plugin that makes the interface. What comes from the container's addresses is
accepted, and what answers it; `ingressPolicy` keeps bridges, or all containers, from each other.
Three backends: firewalld when it runs, iptables as in the reference, and nftables where iptables is
unusable or when it is asked for.
"""

from __future__ import annotations

from typing import NamedTuple

from ... import intent
from ...call import Call, Steps
from ...kernel.errors import IptablesError, KernelError
from ...netfilter import iptables
from ...protocol import config
from ...protocol.address import Prefix
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Result
from . import backend_firewalld, backend_iptables, backend_nft, isolation
from .want import Ingress, Want

BACKENDS = ("firewalld", "iptables", "nftables")
_POLICIES = ("same-bridge", "isolated")
# An iptables chain's name has at most 28 characters; what is not among these would need quoting.
_CHAIN_MAX = 28
_CHAIN_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-/")
# The forward chains that a backend has a say in; a drop in another's is final.
_OURS = {"firewalld": "firewalld", "iptables": "filter", "nftables": backend_nft.TABLE}


class Conf(config.NetConf):
    backend: str = ""
    iptables_admin_chain_name: str = ""
    firewalld_zone: str = ""
    ingress_policy: str = ""


class Choice(NamedTuple):
    """A backend, why it is that one, and whether the configuration says so."""

    backend: str
    why: str
    asked_for: bool

    def __str__(self) -> str:
        return f"backend {self.backend}: {self.why}"


def add(call: Call[Conf]) -> Result:
    """Make the rules for prevResult's addresses; the result is prevResult."""
    result = _previous(call)
    want = _want(call, result)
    call.remember(result)  # first: what is begun and not finished can so be found
    call.undo.callback(_take_back, call, want)
    _apply(call, want, result)
    return result


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; prevResult is what it returned."""
    result = _previous(call)
    _apply(call, _want(call, result), result)


def delete(call: Call[Conf]) -> None:
    """Remove the attachment's rules from every backend; every step runs."""
    steps = Steps()
    steps.run(backend_nft.remove, call.owner)
    addresses = steps.run(_addresses_to_remove, call) or []
    _remove_addresses(call, addresses, steps)
    steps.run(_check_policy, call.conf)
    steps.finish()


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove the rules of this network's attachments that are not kept."""
    steps = Steps()
    steps.run(backend_nft.gc, call.network, call.owners(keep))
    addresses = [a for kept in _forgotten(call) for a in _kept_addresses(kept)]
    _remove_addresses(call, _not_in_use(call, addresses), steps)
    steps.finish()


def check(call: Call[Conf]) -> None:
    """Compare the rules with what is wanted; every difference is reported."""
    result = _previous(call)
    want = _want(call, result)
    choice = _usable_choice(call.conf)
    problems = []
    if choice.backend == "firewalld":
        problems += backend_firewalld.check(want.zone, want.addresses)
        if want.ingress is not None:
            other = backend_iptables if iptables.usable(v6=False) else backend_nft
            problems += other.check(want, accept=False)
    elif choice.backend == "iptables":
        problems += backend_iptables.check(want)
    else:
        problems += backend_nft.check(want)
    problems += isolation.check(want, result)
    if problems:
        others = f"; all differences: {'; '.join(problems)}" if len(problems) > 1 else ""
        raise CNIError(problems[0], f"{choice}{others}")


def status(call: Call[Conf]) -> None:
    """Ready if the backend is; what will drop containers' traffic all the same is told on stderr.

    A chain that drops by default may accept the containers before: so that is no error.
    """
    _check_policy(call.conf)
    choice = _usable_choice(call.conf)
    if choice.backend == "firewalld":
        _require_firewalld(choice)
    elif choice.backend == "nftables":
        _require_nftables(choice)
    elif not iptables.usable(v6=False):
        raise NotAvailable(
            "iptables is unusable: `iptables --wait -t filter -S INPUT` fails",
            f'{choice}; without that key, or with "backend": "nftables", it is not needed',
        )
    call.log(f"firewall: {choice}")
    for chain in backend_nft.foreign_drops((_OURS[choice.backend],)):
        call.log(
            f"firewall: warning: nft chain `{chain}` drops what it does not accept itself; no rule "
            f"of backend {choice.backend} changes that: see docs/plugins/firewall.md"
        )


# --- what is wanted -------------------------------------------------------------------------------


def _previous(call: Call[Conf]) -> Result:
    result = call.prev_result()
    if result is None:
        raise CNIError(
            "missing prevResult from earlier plugin",
            "firewall has to come after another plugin in the list",
        )
    return result


def _want(call: Call[Conf], result: Result) -> Want:
    """Everything that can be wrong is found here, before anything is changed. Raises CNIError."""
    conf = call.conf
    addresses = [ip.prefix.host for ip in result.ips]
    admin_chain = conf.iptables_admin_chain_name or "CNI-ADMIN"
    _check_chain(admin_chain)
    return Want(
        call.owner,
        list(dict.fromkeys(addresses)),
        admin_chain,
        _zone(conf),
        _ingress(conf, result) if addresses else None,
    )


def _zone(conf: Conf) -> str:
    return conf.firewalld_zone or "trusted"


def _check_chain(name: str) -> None:
    if len(name) > _CHAIN_MAX or not _CHAIN_CHARACTERS.issuperset(name) or not name[0].isalpha():
        raise CNIError(
            f'invalid iptablesAdminChainName "{name}"',
            f"at most {_CHAIN_MAX} letters, digits and _ . - /, a letter first",
        )


def _check_policy(conf: Conf) -> None:
    if conf.ingress_policy not in ("", "open", *_POLICIES):
        raise CNIError(
            f'unknown ingress policy: "{conf.ingress_policy}"',
            'ingressPolicy is "open", "same-bridge" or "isolated"',
        )


def _ingress(conf: Conf, result: Result) -> Ingress | None:
    _check_policy(conf)
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
    # With these, iptables or nft would mean other interfaces, too.
    if set(bridge) & set('"*+\\!') or bridge.startswith("-") or len(bridge.encode()) > 15:
        raise CNIError(f'cannot write rules for a bridge named "{bridge}"', "rename the bridge")
    return Ingress(policy, bridge)


# --- the backend ----------------------------------------------------------------------------------


def _choose(conf: Conf) -> Choice:
    """The configured backend; else firewalld if it runs, else iptables (docs/spec/firewall.md)."""
    if conf.backend in BACKENDS:
        return Choice(conf.backend, "the configuration says so", asked_for=True)
    found, why = backend_firewalld.running()
    return Choice("firewalld" if found else "iptables", why, asked_for=False)


def _usable_choice(conf: Conf) -> Choice:
    """The same, and nftables in place of an iptables that nobody asked for and that is unusable.

    For CHECK and STATUS: it costs a fork. ADD sees by trying.
    """
    choice = _choose(conf)
    if choice.backend == "iptables" and not choice.asked_for and not iptables.usable(v6=False):
        return Choice("nftables", f"{choice.why}, and iptables is unusable", asked_for=False)
    return choice


def _require_firewalld(choice: Choice) -> None:
    found, why = backend_firewalld.running() if choice.asked_for else (True, "")
    if not found:
        raise NotAvailable(why, "start firewalld, or leave `backend` out of the configuration")


def _require_nftables(choice: Choice) -> None:
    try:
        backend_nft.status()
    except (CNIError, KernelError) as error:
        raise NotAvailable(error.msg, f"{choice}; {error.details}".rstrip("; ")) from None


def _apply(call: Call[Conf], want: Want, result: Result) -> None:
    """Have all rules, those that are there already included. Raises CNIError."""
    choice = _choose(call.conf)
    try:
        if choice.backend == "firewalld":
            backend_firewalld.add(want.zone, want.addresses)
            if want.ingress is not None:
                _iptables_or_nft(want, accept=False)
        elif choice.backend == "nftables":
            backend_nft.add(want)
        elif choice.asked_for:
            backend_iptables.add(want)
        else:
            _iptables_or_nft(want, accept=True)
        isolation.isolate(want, result)
    except (CNIError, KernelError) as error:
        raise CNIError(error.msg, f"{error.details}; {choice}".lstrip("; ")) from None


def _iptables_or_nft(want: Want, *, accept: bool) -> None:
    try:
        backend_iptables.add(want, accept=accept)
    except IptablesError as error:
        # Asking whether iptables is usable would cost a fork each time; its failure asks for it.
        if iptables.usable(v6=False):
            raise
        try:
            backend_nft.add(want, accept=accept)
        except (CNIError, KernelError) as other:
            details = f"and nftables, tried instead: {other}; {error.details}".rstrip("; ")
            raise CNIError(error.msg, details) from None


# --- removing -------------------------------------------------------------------------------------


def _take_back(call: Call[Conf], want: Want) -> None:
    steps = Steps()
    steps.run(backend_nft.remove, call.owner)
    _remove_addresses(call, want.addresses, steps)
    steps.finish()


def _remove_addresses(call: Call[Conf], addresses: list[Prefix], steps: Steps) -> None:
    """Out of iptables and firewalld, where rules do not say whose they are."""
    steps.run(backend_iptables.remove, addresses)
    if call.conf.backend != "iptables":
        steps.run(backend_firewalld.remove, _zone(call.conf), addresses)


def _addresses_to_remove(call: Call[Conf]) -> list[Prefix]:
    """What its ADD was kept with, or prevResult's: of the Go plugin's containers we kept nothing.

    A DEL that comes a second time must not take the address from whoever has it now.
    """
    kept = [address for one in _forgotten(call) for address in _kept_addresses(one)]
    previous = call.prev_result()
    addresses = [ip.prefix.host for ip in previous.ips] if previous is not None else []
    return kept + _not_in_use(call, [a for a in addresses if a not in kept])


def _not_in_use(call: Call[Conf], addresses: list[Prefix]) -> list[Prefix]:
    """Without those that another attachment has."""
    if not addresses:
        return []
    everybody = intent.all_of("firewall", call.request.env)
    used = {a for one in everybody if one.owner != call.owner for a in _kept_addresses(one)}
    return [address for address in addresses if address not in used]


def _forgotten(call: Call[Conf]) -> list[intent.Intent]:
    return call.forgotten.intents if call.forgotten is not None else []


def _kept_addresses(one: intent.Intent) -> list[Prefix]:
    try:
        result = Result.parse(one.result, intent.VERSION)
    except CNIError:
        return []
    return [ip.prefix.host for ip in result.ips]
