"""portmap: publishes a container's ports on the node (docs/spec/portmap.md).

A chained plugin: the addresses come from prevResult, the ports from the runtime
(runtimeConfig.portMappings). It uses nftables, unless the configuration names iptables or has
options in its syntax.

Beyond the reference: a host port has one owner, and the error of an ADD that wants another's port
names that owner; DEL finds the rules of both backends without knowing the ports; and there are GC,
STATUS and `cni reload`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ... import intent
from ...call import Call, Steps
from ...kernel.errors import KernelError
from ...netfilter.table import Table
from ...owner import Owner
from ...protocol.errors import CNIError, NotAvailable
from ...protocol.request import Attachment
from ...protocol.result import Result
from . import localhost, settings
from .settings import IPTABLES, NFTABLES, Conf, Settings
from .want import CONNECTIONLESS, LoadHolders, Port, Taken, Want

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...netfilter.conntrack import Flow
    from .holders import Holders
    from .want import Backend

__all__ = ["Conf", "add", "check", "delete", "gc", "reload", "status"]

_FAMILIES = (False, True)  # is it IPv6?


# --- the backends ---------------------------------------------------------------------------------


def _load(name: str) -> Backend:
    if name == IPTABLES:
        from . import backend_iptables

        return backend_iptables
    from . import backend_nft

    return backend_nft


def _load_used(*chains: str) -> list[Backend]:
    """The backends that may have rules; iptables if its nat table has one of these chains."""
    from ...netfilter import iptables

    used = []
    if _is_nft_used():
        used.append(NFTABLES)
    if any(iptables.may_be_used(v6, "nat", *chains) for v6 in _FAMILIES):
        used.append(IPTABLES)
    return [_load(name) for name in used]


def _is_nft_used() -> bool:
    try:
        return any(Table(family, "cni_hostport").exists() for family in ("ip", "ip6"))
    except OSError:
        return True  # the backend will show why the kernel does not answer


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Publish the ports; the result is prevResult."""
    asked = settings.read(call)
    previous = asked.previous
    if previous is None:
        raise CNIError(
            "must be called as chained plugin", "put portmap behind a plugin that gives addresses"
        )
    if not asked.mappings:
        return previous
    want = settings.want_of(call.owner, asked, settings.ports_to_publish(call, asked))
    if not want.addresses:
        call.log(f"cni: portmap: {call.ifname} has no address: no port is published")
        return previous
    if asked.conf.check_host_listeners:
        from . import listeners

        listeners.require_none(want)
    # a lambda, since the handles are known only after the rules were made
    call.undo.callback(lambda: _remove(call, want, call.handles))
    earlier = _noted_earlier(call)
    call.remember(previous)  # first, because the DEL of a holder that this one stands by reads it
    call.handles = _publish(call, want, asked.backend, earlier)
    if call.handles:
        call.keep_with_handles(previous)
    return previous


def _noted_earlier(call: Call[Conf]) -> Want | None:
    """What an earlier ADD of this attachment published, if that had no DEL."""
    one = intent.find("portmap", call.owner, call.request.env)
    if one is None:
        return None
    asked = settings.of_intent(one)
    ports = settings.known_ports(asked) if asked is not None else []
    return settings.want_of(call.owner, asked or Settings(Conf(), "", None, []), ports)


def reload(call: Call[Conf]) -> None:
    """Make the rules of an earlier ADD again; prevResult is what it returned."""
    asked = settings.read(call)
    _publish_again(call, call.owner, asked)


def _publish_again(call: Call[Conf], owner: Owner, asked: Settings) -> None:
    want = settings.want_of(owner, asked, settings.known_ports(asked))
    if want.addresses and want.ports:
        _publish(call, want, asked.backend)


def _publish(call: Call[Conf], want: Want, backend: str, earlier: Want | None = None) -> list[int]:
    """Make the missing rules, and end flows that began without them.

    Returns the handles of rules, as Backend.setup.
    """
    used, handles = _setup(call, want, backend, earlier)
    for address in want.addresses:
        here = address.ip

        def strays(flow: Flow, here: bytes = here) -> bool:
            return flow.answered_by != here

        ports = want.ports_of(address)
        if _has_flows(ports):
            from . import flows

            flows.forget(call, not address.is_v4, ports, strays)
        # With iptables only 127.0.0.1 is supported, not ::1, as in the reference.
        if want.snat and (address.is_v4 or used != IPTABLES):
            localhost.enable(call, want.owner, address, filtered=used == NFTABLES)
    return handles


def _has_flows(ports: list[Port]) -> bool:
    return any(port.protocol in CONNECTIONLESS for port in ports)


def _setup(
    call: Call[Conf], want: Want, backend: str, earlier: Want | None
) -> tuple[str, list[int]]:
    """Make the rules; return the name of the backend, and the handles of Backend.setup.

    The backend is the configured one; else nftables, or iptables if nftables is unusable. Raises
    CNIError, KernelError.
    """
    holders = judge_of(call, want.owner)
    if backend == IPTABLES:
        return IPTABLES, _load(IPTABLES).setup(want, holders, earlier)
    try:
        return NFTABLES, _load(NFTABLES).setup(want, holders, earlier)
    except Taken:
        raise
    except (CNIError, KernelError) as error:
        from ...netfilter import iptables

        # To test nftables beforehand would cost each ADD a request, so test it after a failure.
        if backend or not iptables.usable(v6=False):
            raise
        try:
            return IPTABLES, _load(IPTABLES).setup(want, holders, earlier)
        except Taken:
            raise
        except (CNIError, KernelError) as other:
            raise CNIError(error.msg, f"and with iptables, tried instead: {other}") from None


def judge_of(call: Call[Conf], owner: Owner) -> LoadHolders:
    """A function that loads the judge of other owners, for `owner`."""

    def load() -> Holders:
        from .holders import Holders

        return Holders(call, owner)

    return load


# --- DEL, GC, CHECK, STATUS -----------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Remove what was published, with either backend, by us or by the reference."""
    steps = Steps()
    asked: Settings | None = steps.run(settings.read, call)
    # The note that ADD wrote on the host outranks what the runtime says now.
    asked = settings.of_noted(call) or asked or settings.read_what_can_be(call)
    want = settings.want_of(call.owner, asked, settings.known_ports(asked))
    intents = call.forgotten.intents if call.forgotten is not None else []
    steps.run(_remove, call, want, [handle for one in intents for handle in one.handles])
    steps.finish()


def _remove(call: Call[Conf], want: Want, handles: Sequence[int]) -> None:
    """Remove everything of the owner; `want` may lack addresses and ports."""
    steps = Steps()
    steps.run(localhost.release, call)  # first, because the guard goes with the last rules
    aside = call.forgotten
    noted = aside is not None and bool(aside.intents or aside.errors)
    ports = set(want.ports)
    for backend in _load_used(want.owner.chain("DN-"), want.owner.chain("SN-")):
        removed = steps.run(lambda b=backend: b.teardown(want, noted=noted, handles=handles))
        ports |= set(removed or ())
    _forget_flows(call, list(ports), [address.ip for address in want.addresses])
    steps.run(_serve_those_that_stand_by, call, want.owner.key)
    steps.finish()


def _serve_those_that_stand_by(call: Call[Conf], key: str) -> None:
    """Publish the ports, which are free now, through the container's other networks."""
    from .holders import standing_by

    for other in standing_by(call, key):
        intent.work_on("portmap", other, call.request.env, lambda one: _serve(call, one))


def _serve(call: Call[Conf], one: intent.Intent) -> None:
    asked = settings.of_intent(one)
    if asked is not None and not one.is_of_gone_namespace(call.netns):
        _publish_again(call, one.owner, asked)


def _forget_flows(call: Call[Conf], ports: list[Port], addresses: list[bytes]) -> None:
    if _has_flows(ports):
        from . import flows

        flows.forget_translated(call, ports, addresses)


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """Remove the ports of this network's attachments that are not in `keep`."""
    steps = Steps()
    steps.run(localhost.gc, call, call.owners(keep))
    ports: list[Port] = []
    for backend in _load_used("CNI-HOSTPORT-DNAT"):
        ports += steps.run(backend.gc, call.network, call.owners(keep)) or []
    _forget_flows(call, ports, [])
    for one in call.forgotten.intents if call.forgotten is not None else []:
        steps.run(_serve_those_that_stand_by, call, one.owner.key)
    steps.finish()


def check(call: Call[Conf]) -> None:
    """Require all rules that ADD made. Raises CNIError with every difference."""
    from ..shared import checks

    asked = settings.read(call, prefix="")
    if asked.previous is None:
        raise CNIError("Required prevResult missing")
    if not asked.mappings:
        return
    want = settings.want_of(call.owner, asked, settings.known_ports(asked))
    problems = _missing_rules(want, asked.backend, judge_of(call, call.owner))
    checks.fail([*problems, *_missing_localhost(want, v6=False)])


def _missing_rules(want: Want, backend: str, holders: LoadHolders) -> list[str]:
    if backend == IPTABLES:
        return _load(IPTABLES).check(want, holders)
    try:
        problems = _load(NFTABLES).check(want, holders)
    except KernelError as error:
        problems = [f"could not list rules in table cni_hostport: {error}"]
    problems += _missing_localhost(want, v6=True)
    if problems and not backend and _has_iptables_chain(want.owner.chain("DN-")):
        return _load(IPTABLES).check(want, holders)  # the reference started it
    return problems


def _has_iptables_chain(chain: str) -> bool:
    from ...netfilter import iptables

    return any(iptables.has_nft_chain(v6, "nat", chain) for v6 in _FAMILIES)


def _missing_localhost(want: Want, *, v6: bool) -> list[str]:
    if not want.snat:
        return []
    addresses = [address for address in want.addresses if address.is_v4 != v6]
    return [problem for one in addresses for problem in localhost.missing(one)]


def status(call: Call[Conf]) -> None:
    """Ready if the backend is usable."""
    asked = settings.read(call, prefix="")
    nft_problem = "" if asked.backend == IPTABLES else _problem(NFTABLES, asked.conf)
    if asked.backend == NFTABLES and nft_problem:
        raise NotAvailable(f"nftables is not usable: {nft_problem}")
    if (asked.backend == IPTABLES or nft_problem) and _problem(IPTABLES, asked.conf):
        raise NotAvailable(
            "iptables is not usable"
            if asked.backend
            else f"no backend is usable; nftables: {nft_problem}",
            "install the package iptables, or load nf_tables into the kernel; are we root?",
        )


def _problem(name: str, conf: Conf) -> str:
    try:
        _load(name).status(conditions=bool(conf.conditions_v4 or conf.conditions_v6))
    except (CNIError, KernelError) as error:
        return str(error)
    return ""
