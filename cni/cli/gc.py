"""`cni gc`: delete attachments whose namespace is gone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import click

from cni.protocol.errors import CNIError

from . import cache, conflist, errors, formats, output, target
from .completion import Container
from .runtime import Runtime
from .session import DRY_RUN, given, hinting, interruptible, network_of, network_options, runtime
from .view import attachments
from .view.attached import Attached, Places
from .view.namespaces import Live


@click.command()
@network_options
@click.option("--all", "everything", is_flag=True, help="Also delete those in use.")
@click.option("--yes", is_flag=True, help="With --all: do not ask for confirmation.")
@click.option(
    "--keep",
    metavar="ID/IFNAME",
    multiple=True,
    type=Container(with_ifname=True),
    help="Never delete this attachment. May be repeated; the beginning of the id is enough.",
)
@DRY_RUN
def gc(
    network: str,
    netns: str,
    cache_dir: str,
    everything: bool,
    yes: bool,
    keep: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Delete the network's attachments whose namespace is gone; with --all every one.

    With --all --keep, plugins also remove what belongs to no known attachment (cniVersion 1.1.0).

    \b
    Examples: cni gc mynet --dry-run
              cni gc mynet
    See also: cni ps, cni ipam check
    """  # noqa: D301 - click wants the control character
    del netns  # cnitool takes one
    pairs = [_pair(text) for text in keep]
    errors.require_root("delete attachments")
    with interruptible("the rest is deleted when the command is repeated") as interrupts:
        places = Places.of(cache_dir)
        known = attachments.gather(places, network)
        network_list = network_of(network, known)
        choice = _Choice(places, network, everything, [_only(pair, known).name for pair in pairs])
        chosen, live = choice.made(known), choice.live
        in_use = [each for each in chosen if not each.is_dead(live)]
        if in_use and not dry_run and not yes:
            _confirm(in_use, live)
            # While the person reads the question, containers may start; these were not agreed to.
            choice = choice._replace(only=frozenset(each.name for each in in_use))
        if not dry_run:
            with hinting("everything else was deleted; put the cause right, then repeat it"):
                chosen = _collect(network_list, runtime(cache_dir, interrupts), choice)
    off = network_list.disable_gc
    if off:
        chosen = []
    value = {
        "network": network,
        "deleted": [each.as_dict(live) for each in chosen],
        "dryRun": dry_run,
        "disableGC": off,
    }
    verb = "would be deleted" if dry_run else "deleted"
    lines = [f"{network}: {len(chosen)} {_plural(len(chosen))} {verb}"]
    if off:
        lines = [f"{network}: nothing is deleted, because its configuration has disableGC"]
    lines += [f"  {each.container_id} {each.ifname}  {each.state(live)}" for each in chosen]
    formats.done(value, "\n".join(lines), [each.name for each in chosen], always=dry_run)


def _pair(text: str) -> tuple[str, str]:
    name, slash, ifname = text.partition("/")
    if not (name and slash and ifname):
        raise click.BadParameter(f"{text!r} is not of the form ID/IFNAME", param_hint="--keep")
    return name, ifname


def _only(pair: tuple[str, str], known: list[Attached]) -> Attached:
    """The attachment that --keep names. Raises NotFound, Ambiguous."""
    name, ifname = pair
    fitting = [
        each for each in known if each.ifname == ifname and each.container_id.startswith(name)
    ]
    exact = [each for each in fitting if each.container_id == name]
    if len(exact or fitting) > 1:
        raise errors.Ambiguous(
            f"--keep {name}/{ifname} may be one of {len(fitting)}", target.listed(fitting)
        )
    for each in exact or fitting:
        return each
    raise errors.NotFound(
        f"--keep {name}/{ifname}: there is no such attachment",
        f"nothing was deleted; there are {target.listed(known) or 'none'}",
    )


def _confirm(in_use: list[Attached], live: Live) -> None:
    """Ask on a terminal. Raises Refused."""
    count = f"{len(in_use)} {_plural(len(in_use))} in use"
    # A script is never asked: it would wait for ever, or take the rest of its stdin for an answer.
    if not (output.is_terminal() and sys.stdin is not None and sys.stdin.isatty()):
        raise errors.Refused(
            f"{count} would be deleted, and their containers lose the network",
            f"{target.listed(in_use, live)}; without --all only those whose namespace is gone "
            "are deleted, and --yes deletes all",
        )
    for each in in_use:
        output.paragraph(f"  {target.listed([each], live)}")
    output.line(f"{count}: if deleted, containers that run lose the network.")
    try:
        wanted = click.confirm("Delete all the same?")
    except click.Abort:
        output.line("\nnothing was deleted", err=True)
        raise
    if not wanted:
        raise errors.Refused("nothing was deleted", "without --all only dead ones are")


class _Choice(NamedTuple):
    """The attachments to delete: those whose namespace is gone, or all except `kept` (names).

    If `only` is given, no others that are in use are deleted.
    """

    places: Places
    network: str
    everything: bool
    kept: list[str]
    only: frozenset[str] | None = None

    @property
    def live(self) -> Live:
        """The namespaces of this moment."""
        return Live()

    def made(self, known: list[Attached]) -> list[Attached]:
        """The attachments to delete, of those that are known now."""
        live = self.live
        return [
            each
            for each in known
            if each.name not in self.kept and (each.is_dead(live) or self._goes(each))
        ]

    def _goes(self, each: Attached) -> bool:
        return self.everything and (self.only is None or each.name in self.only)


def _collect(
    network_list: conflist.NetworkList, executor: Runtime, choice: _Choice
) -> list[Attached]:
    """Delete the chosen attachments; return them. Raises CNIError."""
    chosen: list[Attached] = []
    rest: list[Attached] = []

    def stale() -> Iterator[cache.Attachment]:
        # Chosen again under the lock: what was listed before may be in use by now.
        known = attachments.gather(choice.places, choice.network)
        chosen.extend(choice.made(known))
        going = {each.name for each in chosen}
        rest.extend(each for each in known if each.name not in going)
        with output.progress([given(each) for each in chosen], "deleting") as steps:
            yield from steps

    def plugins(problems: list[CNIError]) -> None:
        # Not only those of --keep: others may have come while the person read the question.
        valid = [(each.container_id, each.ifname) for each in rest]
        executor.gc(network_list, valid or None, problems)

    # The plugins' GC only with --all: it removes every attachment that is not in its list.
    executor.delete_stale(network_list, stale, plugins if choice.everything else lambda _: None)
    return chosen


def _plural(count: int) -> str:
    return "attachment" if count == 1 else "attachments"
