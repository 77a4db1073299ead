"""firewall: lets containers' traffic through a node that forwards nothing (docs/spec/firewall.md).

Chained after the plugin that makes the interface. It accepts packets from the container's addresses
and the replies to them; `ingressPolicy` separates bridges, or all containers, from each other.
There are three backends: firewalld if it runs, iptables as in the reference, and nftables if
iptables is unusable, or if the configuration names nftables.
"""

from __future__ import annotations

import os
from contextlib import suppress
from errno import ENOENT
from typing import TYPE_CHECKING, NamedTuple

from ... import intent
from ...call import Call, Steps
from ...kernel.errors import TRANSIENT, IptablesError, KernelError, NetlinkError
from ...netfilter import iptables
from ...netfilter.table import Table, drop_policies
from ...protocol import config
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Result
from .want import (
    DEFAULT_ZONE,
    SYSTEM_BUS,
    Conf,
    Want,
    check_policy,
    previous_result,
    want_of,
    zone_of,
)

if TYPE_CHECKING:
    from .want import Backend

BACKENDS = ("firewalld", "iptables", "nftables")
# The table of a backend's forward chain; a drop in another table is final.
_TABLES = {"firewalld": "firewalld", "iptables": "filter", "nftables": "cni_firewall"}


class Choice(NamedTuple):
    """A backend, the reason for the choice, and whether the configuration names it."""

    backend: str
    why: str
    asked_for: bool

    def __str__(self) -> str:
        return f"backend {self.backend}: {self.why}"


def add(call: Call[Conf]) -> Result:
    """Make the rules for prevResult's addresses; the result is prevResult."""
    result = previous_result(call)
    want = want_of(call, result)
    earlier = intent.find("firewall", call.owner, call.request.env)
    call.remember(result)  # first, so that DEL finds the rules of an ADD that was killed
    call.undo.callback(_take_back, call, want)
    _claim(call, want.addresses)
    if earlier is not None:
        _replace(call, want, earlier)
    _apply(call, want, result)
    return result


def _replace(call: Call[Conf], want: Want, earlier: intent.Intent) -> None:
    """Remove what an earlier ADD of this attachment made, if it had other addresses.

    That ADD had no DEL: the runtime may have lost it with the container.
    """
    stale = _not_in_use(call, [a for a in earlier.addresses if a not in want.addresses])
    if stale:
        steps = Steps()
        for backend in _load_used(call.conf, stale):
            steps.run(backend.teardown, call.owner, stale, _noted_zone(earlier))
        steps.finish()


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; prevResult is what it returned."""
    result = previous_result(call)
    _apply(call, want_of(call, result), result)


def delete(call: Call[Conf]) -> None:
    """Remove the attachment's rules from every backend; every step runs."""
    steps = Steps()
    conf = steps.run(lambda: call.conf) or Conf()
    noted = [address for one in _forgotten(call) for address in one.addresses]
    previous = steps.run(_previous_addresses, call) or []
    unknown = [address for address in previous if address not in noted]
    addresses = _release(call, call.owner.key, noted, steps)
    if _may_have_rules(conf, unknown):  # else no rule can be mistaken for ours
        addresses += steps.run(_not_in_use, call, unknown) or []
    zone = next(map(_noted_zone, _forgotten(call)), zone_of(conf))
    for backend in _load_used(conf, addresses):
        steps.run(backend.teardown, call.owner, addresses, zone)
    steps.run(check_policy, conf)
    steps.finish()


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove the rules of this network's attachments that are not kept."""
    steps = Steps()
    conf = steps.run(lambda: call.conf) or Conf()
    addresses: list[Prefix] = []
    for one in _forgotten(call):
        addresses += _release(call, one.owner.key, one.addresses, steps)
    for backend in _load_used(conf, addresses):
        steps.run(backend.gc, call.network, call.owners(keep), addresses, zone_of(conf))
    steps.finish()


def check(call: Call[Conf]) -> None:
    """Compare the rules with what is wanted; every difference is reported."""
    result = previous_result(call)
    want = want_of(call, result)
    choice = _usable_choice(call.conf)
    problems = _load(choice.backend).check(want)
    if choice.backend == "firewalld" and want.ingress is not None:
        other = "iptables" if iptables.usable(v6=False) else "nftables"
        problems += _load(other).check(want, accept=False)
    if want.ingress is not None and want.ingress.isolated:
        from . import isolation

        problems += isolation.check(want, result)
    if problems:
        from ..shared.checks import others

        raise CNIError(problems[0], "; ".join(filter(None, (str(choice), others(problems)))))


def status(call: Call[Conf]) -> None:
    """Ready if the backend is ready. Names other tables' chains that drop by default, on stderr.

    Those are no error: their own rules may accept the containers' traffic.
    """
    check_policy(call.conf)
    choice = _usable_choice(call.conf)
    try:
        _load(choice.backend).status()
    except (CNIError, KernelError) as error:
        raise NotAvailable(error.msg, f"{choice}; {error.details}".rstrip("; ")) from None
    if choice.backend != "iptables" or choice.asked_for or _has_bus():
        # Otherwise load nothing: runtimes call STATUS often.
        call.log(f"firewall: {choice}")
    for chain in _foreign_drops(_TABLES[choice.backend]):
        call.log(
            f"firewall: warning: nft chain `{chain}` drops what it does not accept itself; no rule "
            f"of backend {choice.backend} changes that: see docs/plugins/firewall.md"
        )


def _foreign_drops(table: str) -> list[str]:
    """The forward chains with policy drop in tables of other names, as nft(8) names them."""
    try:
        chains = drop_policies()
    except NetlinkError:
        return []
    return [" ".join(names) for names in chains if names[1] != table]


# --- the backend ----------------------------------------------------------------------------------


def _load(name: str) -> Backend:
    if name == "firewalld":
        from . import backend_firewalld

        return backend_firewalld
    if name == "nftables":
        from . import backend_nft

        return backend_nft
    from . import backend_iptables

    return backend_iptables


def _load_used(conf: Conf, addresses: list[Prefix]) -> list[Backend]:
    """The backends that may have rules; takes two or three requests to the kernel, one to the bus.

    Rules in iptables and firewalld name no owner: without addresses they cannot be found.
    """
    used = ["nftables"] if _is_nft_used() else []
    return [_load(name) for name in used + _used_without_owners(conf, addresses)]


def _used_without_owners(conf: Conf, addresses: list[Prefix]) -> list[str]:
    """The backends without owners that may have rules for these addresses, of any attachment."""
    used = []
    families = {not address.is_v4 for address in addresses}
    if any(_is_iptables_used(v6) for v6 in families):
        used.append("iptables")
    if addresses and conf.backend != "iptables" and _firewalld_runs()[0]:
        used.append("firewalld")
    return used


def _may_have_rules(conf: Conf, addresses: list[Prefix]) -> bool:
    """May there be rules without owner for these addresses, of any attachment?

    In a repeated DEL mostly not: then the notes of all attachments need not be read.
    """
    used = _used_without_owners(conf, addresses)
    if used != ["iptables"]:
        return bool(used)
    from . import backend_iptables

    return backend_iptables.may_have(addresses)


def _is_nft_used() -> bool:
    try:
        return Table("inet", _TABLES["nftables"]).exists()
    except OSError:
        return True  # the backend will show why the kernel does not answer


def _is_iptables_used(v6: bool) -> bool:
    return iptables.may_be_used(v6, "filter", "CNI-FORWARD")


def _has_bus() -> bool:
    return "DBUS_SYSTEM_BUS_ADDRESS" in os.environ or os.path.exists(SYSTEM_BUS)


def _firewalld_runs() -> tuple[bool, str]:
    """Is firewalld on the system bus, and the reason. Loads dbus.py only if there is a bus."""
    if not _has_bus():
        return False, f"firewalld is not running: no bus at {SYSTEM_BUS}: {os.strerror(ENOENT)}"
    from . import dbus

    return dbus.firewalld_runs()


def _choose(conf: Conf) -> Choice:
    """The configured backend; else firewalld if it runs, else iptables (docs/spec/firewall.md)."""
    if conf.backend in BACKENDS:
        return Choice(conf.backend, "the configuration says so", asked_for=True)
    runs, why = _firewalld_runs()
    return Choice("firewalld" if runs else "iptables", why, asked_for=False)


def _usable_choice(conf: Conf) -> Choice:
    """As `_choose`, but nftables if iptables is unusable and the configuration does not name it.

    It starts a program, so only CHECK and STATUS use it; ADD tries iptables first.
    """
    choice = _choose(conf)
    if choice.backend == "iptables" and not choice.asked_for and not iptables.usable(v6=False):
        return Choice("nftables", f"{choice.why}, and iptables is unusable", asked_for=False)
    return choice


def _apply(call: Call[Conf], want: Want, result: Result) -> None:
    """Make the rules that are missing. Raises CNIError."""
    choice = _choose(call.conf)
    try:
        if choice.backend == "iptables" and not choice.asked_for:
            _add_with_either(want, accept=True)
        else:
            _load(choice.backend).setup(want)
        if choice.backend == "firewalld" and want.ingress is not None:
            _add_with_either(want, accept=False)
        if want.ingress is not None and want.ingress.isolated:
            from . import isolation

            isolation.isolate(want, result)
    except (CNIError, KernelError) as error:
        raise CNIError(error.msg, f"{error.details}; {choice}".lstrip("; ")) from None


def _add_with_either(want: Want, *, accept: bool) -> None:
    """Make the rules with iptables, or, if iptables is unusable, with nftables."""
    try:
        iptables.require()  # without the tool its backend need not be loaded
        _load("iptables").setup(want, accept=accept)
    except IptablesError as error:
        # Whether iptables is usable takes a program to find out, so look only after a failure.
        if iptables.usable(v6=False):
            raise
        try:
            _load("nftables").setup(want, accept=accept)
        except (CNIError, KernelError) as other:
            details = f"and nftables, tried instead: {other}; {error.details}".rstrip("; ")
            raise CNIError(error.msg, details) from None


# --- removing -------------------------------------------------------------------------------------


def _take_back(call: Call[Conf], want: Want) -> None:
    steps = Steps()
    addresses = _release(call, call.owner.key, want.addresses, steps)
    for backend in _load_used(call.conf, addresses):
        steps.run(backend.teardown, call.owner, addresses, want.zone)
    steps.finish()


def _claims(call: Call[Conf]) -> str:
    """The directory that has, for each address, a symbolic link to the key of its last owner."""
    return f"{os.path.dirname(intent.directory(call.request.env))}/firewall"


def _claim(call: Call[Conf], addresses: list[Prefix]) -> None:
    """Note that the addresses are this attachment's from now on; failures are only logged."""
    where = _claims(call)
    try:
        os.makedirs(where, 0o755, exist_ok=True)
        for address in addresses:
            path = f"{where}/{format_ip(address.ip)}"
            temporary = f"{path}~{call.owner.key}"
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            # a link has its text from the beginning, so a kill leaves no claim that is empty
            os.symlink(call.owner.key, temporary)
            os.rename(temporary, path)
    except OSError as error:
        call.log(f"cni: firewall: cannot note in {where} whose addresses these are: {error}")


def _release(call: Call[Conf], owner: str, addresses: list[Prefix], steps: Steps) -> list[Prefix]:
    """Remove the owner's claims; return the addresses that no other attachment has claimed since.

    `owner` is the Owner.key of the attachment that gives them up. A claim that cannot be read may
    be another's: its address is not returned, and the failure is an error of `steps`.
    """
    free: list[Prefix] = []
    for address in addresses:
        if steps.run(_release_one, call, owner, address):
            free.append(address)
    return free


def _release_one(call: Call[Conf], owner: str, address: Prefix) -> bool:
    """Remove the owner's claim; True if nobody else has one. Raises CNIError."""
    path = f"{_claims(call)}/{format_ip(address.ip)}"
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(f"{path}~{owner}")  # left by an ADD that was killed
        key = ""
        with suppress(FileNotFoundError, NotADirectoryError):
            key = os.readlink(path)
        if key == owner:
            os.unlink(path)
    except OSError as error:
        if error.errno not in TRANSIENT:  # a file that is not a claim
            return True
        raise CNIError(
            f"cannot read or remove {path}: {(error.strerror or str(error)).lower()}",
            "it says whose rules the address has: repeat this",
        ) from None
    return key in ("", owner) or intent.find_by_key("firewall", key, call.request.env) is None


def _previous_addresses(call: Call[Conf]) -> list[Prefix]:
    """The addresses of prevResult, for containers without a note (started by the Go plugin)."""
    previous = call.prev_result()
    return [ip.prefix.host for ip in previous.ips] if previous is not None else []


def _not_in_use(call: Call[Conf], addresses: list[Prefix]) -> list[Prefix]:
    """The addresses that no other attachment has.

    A late DEL must not remove the rules of the container that has got the address since.
    """
    if not addresses:
        return []
    everybody = intent.all_of("firewall", call.request.env)
    used = {a for one in everybody if one.owner != call.owner for a in one.addresses}
    return [address for address in addresses if address not in used]


def _forgotten(call: Call[Conf]) -> list[intent.Intent]:
    return call.forgotten.intents if call.forgotten is not None else []


def _noted_zone(one: intent.Intent) -> str:
    return str(config.lookup(one.config, "firewalldZone") or "") or DEFAULT_ZONE
