"""`cni trace`: an ADD, CHECK or DEL with the time that each step took."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from cni.netns.throwaway import ThrowAway
from cni.protocol.errors import CNIError
from cni.protocol.request import check_ifname

from .. import cache, commands, errors, formats, output, session, target
from ..completion import Container, Network, Where
from ..conflist import NetworkList
from ..probe.containers import PREFIX
from ..probe.signals import Signals
from ..session import CACHE_DIR
from ..target import DEFAULT_IFNAME, Wanted
from ..view import attachments
from ..view.attached import Places
from ..view.namespaces import Live
from . import steps
from .watched import Run, Watched


@click.command("trace")
@click.argument("network", type=Network())
@click.argument("where", metavar="[NETNS|NAMESPACE/POD]", type=Where(), required=False, default="")
@click.option("--check", "verb", flag_value="CHECK", help="Trace the CHECK of an attachment.")
@click.option("--del", "verb", flag_value="DEL", help="Trace the DEL of an attachment.")
@click.option("--keep", is_flag=True, help="Do not run DEL after the ADD.")
@click.option(
    "--id",
    "container",
    metavar="CONTAINER",
    type=Container(),
    default="",
    help="The container, by its id or the beginning of it, for --check and --del.",
)
@click.option("-i", "--ifname", help="The interface's name (CNI_IFNAME, else eth0).")
@click.option("--exec", "by_exec", is_flag=True, help="Run plugins without a server.")
@click.option("--force", is_flag=True, help="With --del: also if a runtime made the attachment.")
@CACHE_DIR
@formats.options
def trace(
    network: str,
    where: str,
    verb: str | None,
    keep: bool,
    container: str,
    ifname: str | None,
    by_exec: bool,
    force: bool,
    cache_dir: str,
) -> None:
    """Run an ADD, and say how long each step of each plugin took; then a DEL.

    Without NETNS, the command makes a namespace of its own, which ends with it. An ADD is refused
    if the namespace already has the interface. The three slowest steps are marked.

    \b
    Examples: cni trace mynet
              cni trace mynet /run/netns/blue --keep
              cni trace mynet --check --id 5f1b6e0c
    See also: cni test, cni plan, cni check
    """  # noqa: D301 - click wants the control character
    errors.require_root("attach and detach namespaces")
    _require_sense(where, container, verb or "ADD", keep)
    # The native client reads CNI_SERVER.
    env = {**os.environ, **({"CNI_SERVER": "off"} if by_exec else {})}
    problem: CNIError | None = None
    signals = Signals()
    try:
        with signals, _watched(cache_dir, env, signals) as runtime:
            try:
                if verb is None:
                    netns = _added(runtime, signals, network, where, ifname, cache_dir, keep)
                else:
                    wanted = Wanted(network, where, container, session.chosen_ifname(ifname))
                    netns = _of_attached(runtime, verb, wanted, cache_dir, force)
            except CNIError as error:
                # No plugin has run: there is nothing to show, only the error.
                if not runtime.runs:
                    raise
                signals.check()
                problem, netns = error, where
            _print(network, netns, runtime, problem)
    except KeyboardInterrupt:
        output.line("interrupted; what was made is removed", err=True)
        click.get_current_context().exit(signals.exit_code)
    if problem is not None:
        if not formats.is_data():
            output.error(problem)
        # The table first, since it shows how far the ADD got.
        raise SystemExit(errors.exit_code(problem))


def _require_sense(where: str, container: str, verb: str, keep: bool) -> None:
    if verb == "ADD" and container:
        raise click.UsageError("--id names what is attached: give it with --check or --del")
    if verb != "ADD" and not (where or container):
        raise click.UsageError("give NETNS, NAMESPACE/POD or --id CONTAINER")
    if keep and (verb != "ADD" or not where):
        raise click.UsageError("--keep is for an ADD in a NETNS that stays")


@contextmanager
def _watched(cache_dir: str, env: dict[str, str], signals: Signals) -> Iterator[Watched]:
    path = session.plugin_path(os.environ.get("CNI_PATH", ""))
    runtime = Watched(path, cache.Cache(os.path.abspath(cache_dir)), env, signals)
    try:
        yield runtime
    finally:
        runtime.close()


def _added(
    runtime: Watched,
    signals: Signals,
    network: str,
    where: str,
    ifname: str | None,
    cache_dir: str,
    keep: bool,
) -> str:
    """ADD, and DEL after it: the namespace's path. Raises CNIError."""
    network_list = session.configured(network)
    name = session.chosen_ifname(ifname) or DEFAULT_IFNAME
    check_ifname(name)
    if where:
        path = target.absolute(where)
        _require_free(Wanted(network, where, "", name), cache_dir)
        _add_and_delete(runtime, signals, network_list, path, name, target.container_id(path), keep)
        return path
    with ThrowAway() as space:
        # With the prefix of `cni test`, whose next run removes what a killed trace has left.
        own = PREFIX + os.urandom(8).hex()
        _add_and_delete(runtime, signals, network_list, space.path, name, own, False)
        return space.path


def _require_free(wanted: Wanted, cache_dir: str) -> None:
    """Raises Refused if the interface is there, or NotFound without a namespace."""
    found = target.find(wanted, attachments.gather(Places.of(cache_dir)), Live())
    if found.known or found.foreign:
        what = f"{wanted.ifname} in {target.absolute(wanted.where)}"
        raise errors.Refused(
            f"{what} is attached already, and the DEL after this ADD would remove it",
            "name another interface with -i, or leave NETNS out: then the command makes one; "
            "--check traces what is attached",
        )


def _add_and_delete(
    runtime: Watched,
    signals: Signals,
    network: NetworkList,
    netns: str,
    ifname: str,
    container_id: str,
    keep: bool,
) -> None:
    what = cache.Attachment(
        container_id=container_id,
        network=network.name,
        ifname=ifname,
        netns=netns,
        args=session.parse_args(os.environ.get("CNI_ARGS", "")),
        capability_args=session.capability_args(),
    )
    try:
        runtime.add(network, what)
    # Also KeyboardInterrupt: the namespace is about to go, so what is on the node goes first.
    except BaseException:
        with signals.ignoring():
            _undo(runtime, network, what)
        raise
    if not keep:
        with signals.ignoring():
            runtime.delete(network, what)


def _undo(runtime: Watched, network: NetworkList, what: cache.Attachment) -> None:
    """DEL after an ADD that failed, as a runtime does it; the ADD's error is the one to tell."""
    try:
        runtime.delete(network, what)
    except CNIError as error:
        output.line(f"the DEL after it failed, too: {error}", err=True)


def _of_attached(runtime: Watched, verb: str, wanted: Wanted, cache_dir: str, force: bool) -> str:
    """CHECK or DEL of an attachment: its namespace's path. Raises CNIError."""
    everything = attachments.gather(Places.of(cache_dir))
    live = Live()
    session.configured_or_known(wanted.network, everything)
    found = target.find(wanted, everything, live)
    what = found.attached
    if not found.known:
        raise errors.NotFound(
            f"{what.ifname} in {what.netns} is not attached to {wanted.network}",
            "`cni ps` shows what is attached",
        )
    known = [each for each in everything if each.network == wanted.network]
    network_list = session.network_of(wanted.network, [what, *known])
    if verb == "CHECK":
        runtime.check(network_list, session.given(what))
        return what.netns
    if not force:
        commands.require_own(found, live)
    runtime.delete(network_list, session.given(what), commands.result_of(what))
    return what.netns


def _print(network: str, netns: str, runtime: Watched, problem: CNIError | None) -> None:
    runs = runtime.runs
    value: dict[str, Any] = {
        "network": network,
        "netns": netns,
        "runs": [each.as_dict() for each in runs],
        "error": None
        if problem is None
        else {"code": problem.code, "msg": problem.msg, "details": problem.details},
    }
    shown = [each.as_step() for each in runs]
    lines = [_summary(network, netns, runs)]
    if formats.current() != "wide":
        shown = steps.without_short(shown)
        lines.append("steps below 0.1 ms are left out: -o wide has them")
    formats.present(
        value,
        lines=lines,
        rows=steps.table(shown),
        names=[f"{each.verb}/{each.plugin}" for each in runs],
    )


def _summary(network: str, netns: str, runs: list[Run]) -> str:
    """``ADD 12.30 ms, DEL 8.10 ms: mynet, /run/netns/blue``."""
    verbs = dict.fromkeys(each.verb for each in runs)
    times = [
        f"{verb} {sum(each.end - each.begin for each in runs if each.verb == verb) * 1000:.2f} ms"
        for verb in verbs
    ]
    return f"{', '.join(times)}: {network}, {netns}"
