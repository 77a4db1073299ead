"""`cni add|check|del NETWORK …`, compatible with cnitool for what cnitool makes.

add           of a network; `add` derives the container id from the namespace's path
check, del    of an attachment: of a namespace, a container or a pod (target.py)
gc            of a network's attachments whose namespace is gone
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from cni import intent
from cni.protocol.errors import CNIError
from cni.protocol.request import check_container_id

from . import added as result
from . import cache, conflist, errors, formats, target
from .cache import outcome
from .completion import Container, Namespace, Network, Where
from .session import (
    CACHE_DIR,
    DRY_RUN,
    F,
    capability_args,
    chosen_ifname,
    configured,
    configured_or_known,
    given,
    hint_for_name,
    hinting,
    interruptible,
    netns_given,
    network_of,
    parse_args,
    runtime,
)
from .target import DEFAULT_IFNAME, Target, Wanted, absolute, container_id
from .view import attachments
from .view.attached import Attached, Places
from .view.namespaces import Live

_IFNAME = click.option("-i", "--ifname", help="The interface's name (CNI_IFNAME, else eth0).")


def _attachment_options(function: F) -> F:
    """Give a command NETWORK, and the arguments and options that name one attachment of it."""
    # The last one first: click shows options in the reverse order of their decorators.
    for option in (
        formats.options,
        CACHE_DIR,
        click.option(
            "--id",
            "container",
            metavar="CONTAINER",
            type=Container(),
            default="",
            help="The container, by its id or the beginning of it.",
        ),
        _IFNAME,
        click.argument(
            "where", metavar="[NETNS|NAMESPACE/POD]", type=Where(), required=False, default=""
        ),
        click.argument("network", type=Network()),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("network", type=Network())
@click.argument("netns", type=Namespace(), callback=netns_given)
@_IFNAME
@CACHE_DIR
@formats.options
def add(network: str, netns: str, ifname: str | None, cache_dir: str) -> None:
    """Attach the namespace to the network, and print the result.

    The container id is derived from the namespace's path, as cnitool does it.

    \b
    Example:  cni add mynet /run/netns/blue
    See also: cni ps, cni check, cni del
    """  # noqa: D301 - click wants the control character
    errors.require_root("attach a namespace")
    with interruptible(f"what is there is detached by `cni del {network} {netns}`") as interrupts:
        network_list = configured(network)
        path = absolute(netns)
        what = cache.Attachment(
            container_id=container_id(path),
            network=network_list.name,
            ifname=chosen_ifname(ifname) or DEFAULT_IFNAME,
            netns=path,
            args=parse_args(os.environ.get("CNI_ARGS", "")),
            capability_args=capability_args(),
        )
        try:
            added = runtime(cache_dir, interrupts).add(network_list, what)
        except CNIError as problem:
            hint = hint_for_name(netns) or _hint_if_attached(what, cache_dir)
            raise errors.Failed(_of_missing(problem, path), hint) from None
        result.present(added, what, formats.current())


@click.command()
@_attachment_options
def check(network: str, where: str, container: str, ifname: str | None, cache_dir: str) -> None:
    """Check that an attachment is as its ADD left it.

    \b
    Examples: cni check mynet /run/netns/blue
              cni check mynet --id 5f1b6e0c
              cni check mynet default/web-0
    See also: cni inspect, cni reload
    """  # noqa: D301 - click wants the control character
    errors.require_root("look into a namespace")
    with interruptible() as interrupts:
        found, live, network_list = _find(network, where, container, ifname, cache_dir)
        what = found.attached
        if not found.known:
            raise errors.NotFound(
                f"{what.ifname} in {what.netns} is not attached to {network}",
                "nothing on this node says that it ever was; `cni ps` shows what is attached",
            )
        executor = runtime(cache_dir, interrupts)
        try:
            # The cache may be another one (--cache-dir) than the runtime's.
            with _naming_missing(executor.cache.path(given(what))):
                executor.check(network_list, given(what))
        except CNIError as problem:
            raise errors.Failed(_of_missing(problem, what.netns), _hint(what, live)) from None
    checked = not network_list.disable_check
    switched_off = "" if checked else " (disableCheck: nothing was checked)"
    value = {**what.as_dict(live), "checked": checked}
    formats.done(value, f"{_described(what)}: as it should be{switched_off}", [what.name])


@click.command("del")
@_attachment_options
@click.option("--force", is_flag=True, help="Also detach what a container runtime has attached.")
@DRY_RUN
def delete(
    network: str,
    where: str,
    container: str,
    ifname: str | None,
    cache_dir: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Detach a namespace or container from the network; the namespace may be gone.

    An attachment of a container runtime is refused without --force: delete the container with the
    runtime instead.

    \b
    Examples: cni del mynet /run/netns/blue
              cni del mynet --id 5f1b6e0c --force
              cni del mynet default/web-0 --dry-run
    See also: cni ps, cni gc
    """  # noqa: D301 - click wants the control character
    errors.require_root("detach a namespace")
    with interruptible("what is left is detached when the command is repeated") as interrupts:
        found, live, network_list = _find(network, where, container, ifname, cache_dir, force)
        what = found.attached
        if not force:
            require_own(found, live)
        if not dry_run:
            with hinting("put the cause right, then repeat the command"):
                runtime(cache_dir, interrupts).delete(network_list, given(what), result_of(what))
                _require_gone(what)
    value = {**what.as_dict(live), "known": found.known, "dryRun": dry_run}
    text = f"{_described(what)} is detached from {what.network}"
    if dry_run:
        text = f"{_described(what)} would be detached from {what.network}"
    elif not found.known:
        text = f"{_described(what)} was not attached to {what.network}"
    formats.done(value, text, [what.name], always=dry_run)


def _of_missing(problem: CNIError, netns: str) -> CNIError:
    """The error; a NotFound if it is about the namespace's path, which does not exist."""
    if netns and netns in problem.msg and not os.path.lexists(netns):
        found = errors.NotFound(problem.msg, problem.details)
        # The JSON error keeps the plugin's code; only the exit code changes.
        found.code = problem.code
        return found
    return problem


def _hint_if_attached(what: cache.Attachment, cache_dir: str) -> str:
    """The hint after a failed ADD: detach an earlier attachment."""
    try:
        known = attachments.gather(Places.of(cache_dir), what.network)
    except CNIError:
        return ""
    if all(each.name != what.name for each in known):
        return ""
    # ADD fails by itself if the interface exists; its error does not say what to do.
    return f"it is attached already; `cni del {what.network} {what.netns}` detaches it"


# --- which attachment ---


def _find(
    network: str,
    where: str,
    container: str,
    ifname: str | None,
    cache_dir: str,
    force: bool = False,
) -> tuple[Target, Live, conflist.NetworkList]:
    """The attachment that the command line names, and its network. Raises CNIError."""
    # Not required arguments of click, because one of the two is enough.
    if not where and not container:
        raise click.UsageError("give NETNS, NAMESPACE/POD or --id CONTAINER")
    everything = attachments.gather(Places.of(cache_dir))
    live = Live()
    wanted = Wanted(network, where, container, chosen_ifname(ifname))
    try:
        found = target.find(wanted, everything, live)
    except (errors.NotFound, errors.Refused):
        if not force:
            # If the network does not exist either, say that: its name is probably misspelled.
            configured_or_known(network, everything)
            raise
        # What is left of an attachment that nothing on the node knows: DEL by names alone.
        found = _by_force(wanted)
    if where and container and not _agree(found.attached, where):
        raise errors.Refused(
            f"container {found.attached.container_id} is not in {absolute(where)}",
            "leave out one of the two",
        )
    # The attachment's own ADD comes first: its configuration fits what is to be removed.
    of_network = [each for each in everything if each.network == network]
    return found, live, network_of(network, [found.attached, *of_network])


def _by_force(wanted: Wanted) -> Target:
    """An unknown attachment, exactly as the command line names it. Raises CNIError."""
    path = absolute(wanted.where) if wanted.where else ""
    name = wanted.container or container_id(path)
    # From the command line, and about to become part of paths.
    check_container_id(name)
    ifname = wanted.ifname or DEFAULT_IFNAME
    return Target(Attached(wanted.network, name, ifname, netns=path), known=False)


def _agree(what: Attached, where: str) -> bool:
    """Is the attachment in the namespace, or the pod's, that was named as well?"""
    return where == what.pod or not what.netns or target.is_same_place(what.netns, where)


def require_own(found: Target, live: Live) -> None:
    """Raise Refused for an attachment that was not made by a person."""
    what = found.attached
    if found.known and not what.is_direct:
        raise errors.Refused(
            f"{_described(what)} was attached by a container runtime",
            f"{target.listed([what], live)}: delete the container there; "
            "--force detaches it all the same, and the runtime does not learn of it",
        )
    if found.foreign:
        raise errors.Refused(
            f"{what.netns} has an interface {what.ifname}, and nothing says who attached it",
            "name the container with --id if a runtime did; --force detaches it all the same",
        )


def result_of(what: Attached) -> cache.Outcome | None:
    """The attachment's result, if another source than the cache has it."""
    if what.result is None:
        return None
    try:
        return outcome(what.result, "")
    except CNIError:
        return None


def _left_in_nftables(what: Attached) -> bool:
    # Imported here: it loads the backends of the packet filter, which few commands need.
    from .migrate import uncleanable

    directory = os.environ.get("CNI_STATE_DIR") or intent.STATE_DIR
    return any(one.key == what.owner.key for one in uncleanable(directory))


def _require_gone(what: Attached) -> None:
    """Raise CommandError if any source still has the attachment after DEL.

    If other plugins, such as the reference's, have detached it, the notes for `cni reload` stay.
    They are removed here, unless the noted objects still exist.
    """
    left = attachments.still_there(what)
    if left and all(each.kind == "intent" for each in left) and not _left_in_nftables(what):
        for kept in what.intents:
            # The reference's plugins do not know these notes, so only this command can remove them.
            intent.drop(kept.plugin, kept.owner, os.environ).finish()
        left = attachments.still_there(what)
    if left:
        raise errors.CommandError(
            f"the plugins succeeded, but {_described(what)} is not detached completely",
            "still there: " + "; ".join(f"{each.kind} {each.where}" for each in left),
        )


def _described(what: Attached) -> str:
    if what.netns:
        return f"{what.ifname} in {what.netns}"
    return f"{what.ifname} of container {what.container_id}"


@contextmanager
def _naming_missing(kept: str) -> Iterator[None]:
    """Adds to a CNIError in the block that there is no kept result for CHECK to compare with."""
    try:
        yield
    except CNIError as error:
        if not os.path.lexists(kept):
            why = f"CHECK compares with the result of ADD, and there is no {kept}"
            error.details = f"{error.details}; {why}" if error.details else why
        raise


def _hint(what: Attached, live: Live) -> str:
    """The hint after a failed CHECK."""
    if what.is_dead(live):
        return f"its namespace is gone: `cni gc {what.network}` deletes what is left of it"
    if what.is_direct:
        return ""
    return f"`cni inspect {what.container_id[:12]}` shows all that it has"
