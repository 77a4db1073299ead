"""`cni migrate`: rules in the form that the reference's Go plugins clean up, or back in our own.

What the Go plugins cannot clean up: ports in portmap's nftables maps, and addresses in the nftables
sets of firewall and of masquerading with `ipMasqSet`. All else has the reference's form already.
What plugins noted in the state directory does no harm: it is of namespaces, and a boot empties it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from cni import dispatch, intent
from cni.describe import pairs
from cni.intent import Intent
from cni.kernel.errors import KernelError
from cni.owner import Owner, named_in
from cni.protocol.address import format_ip
from cni.protocol.errors import CNIError

from . import errors, formats, output
from .reload import STATE_OPTION
from .table import Column, Table

_PLUGINS = ("portmap", "firewall")
_MASQUERADING = ("bridge", "ptp")  # of the reference; vxlan masquerades, too, and is not


# --- what there is --------------------------------------------------------------------------------


class Uncleanable(NamedTuple):
    """What the reference's DEL of an attachment would leave: `what` it is, in `where`.

    `owner` is None where the kernel has only a part of its names; `key` is its Owner.key. `noted`
    says whether the plugin's ADD is noted on the node, without which nothing can be rewritten.
    """

    plugin: str
    key: str
    owner: Owner | None
    what: str
    where: str
    noted: bool

    @property
    def attachment(self) -> str:
        """The container and interface, or what is known of them."""
        if self.owner is None:
            return self.key
        return f"{self.owner.container_id}/{self.owner.ifname}"

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        owner = self.owner
        named = {} if owner is None else {"network": owner.network, "attachment": self.attachment}
        rest = {"what": self.what, "where": self.where, "noted": self.noted}
        return {"plugin": self.plugin, "key": self.key, **named, **rest}


def uncleanable(state_dir: str) -> list[Uncleanable]:
    """What the reference could not clean up on this node, by attachment.

    Raises CNIError if the kernel or the state directory cannot be read.
    """
    try:
        return [*_ports(state_dir), *_addresses(state_dir), *_masqueraded(state_dir)]
    except KernelError as error:
        raise CNIError(f"cannot read the rules of nftables: {error}", error.details) from None
    except OSError as error:
        raise CNIError(f"cannot read {error.filename}: {error.strerror}") from None


def _ports(state_dir: str) -> list[Uncleanable]:
    from cni.plugins.portmap import migrate

    return [
        Uncleanable(
            "portmap",
            one.key,
            one.owner or _noted_owner("portmap", one.key, state_dir),
            f"host port {port} to {target}",
            "nftables maps in table cni_hostport",
            _is_noted("portmap", one.key, state_dir),
        )
        for one in migrate.published()
        for port, target in one.ports
    ]


def _addresses(state_dir: str) -> list[Uncleanable]:
    from cni.plugins.firewall import migrate

    listed = []
    for element in migrate.accepted():
        key = element.comment.partition(",")[0]
        listed.append(
            Uncleanable(
                "firewall",
                key,
                named_in(element.comment) or _noted_owner("firewall", key, state_dir),
                f"traffic of {format_ip(element.key)}",
                "nftables sets in table inet cni_firewall",
                _is_noted("firewall", key, state_dir),
            )
        )
    return listed


def _masqueraded(state_dir: str) -> list[Uncleanable]:
    from cni.plugins.shared.masquerade import migrate

    listed = []
    for element, prefix in migrate.masqueraded():
        key = element.comment.partition(",")[0]
        # The sets are shared by the plugins that masquerade: only the note says which one it was.
        noted = [name for name in sorted(pairs.ALL) if _is_noted(name, key, state_dir)]
        plugin = noted[0] if noted else " or ".join(_MASQUERADING)
        owner = named_in(element.comment) or _noted_owner(plugin, key, state_dir)
        what, where = f"masquerading of {prefix}", "nftables sets in table inet cni_masquerade"
        listed.append(Uncleanable(plugin, key, owner, what, where, plugin in _MASQUERADING))
    return listed


def _is_noted(plugin: str, key: str, state_dir: str) -> bool:
    return intent.find_by_key(plugin, key, {"CNI_STATE_DIR": state_dir}) is not None


def _noted_owner(plugin: str, key: str, state_dir: str) -> Owner | None:
    kept = intent.find_by_key(plugin, key, {"CNI_STATE_DIR": state_dir})
    return kept.owner if kept is not None else None


# --- rewriting ------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """The outcome for one noted attachment: `state` is rewritten, removed or failed."""

    intent: Intent
    state: str
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        owner = self.intent.owner
        body = {"plugin": self.intent.plugin, "network": owner.network}
        body |= {"containerID": owner.container_id, "ifname": owner.ifname, "state": self.state}
        return {**body, "text": self.text} if self.text else body


def rewrite(state_dir: str, form: str) -> list[Outcome]:
    """Rewrite the rules of every noted attachment in this `form`: reference or own.

    May be repeated, also after it was killed. Raises nothing: failures are outcomes.
    """
    outcomes: list[Outcome] = []

    def one(kept: Intent) -> None:
        if kept.plugin in _PLUGINS or _uses_sets(kept):
            outcomes.append(_rewrite(kept, form))

    def unreadable(error: OSError) -> None:
        key, _, plugin = os.path.basename(str(error.filename)).partition(".")
        kept = Intent(plugin, {"CNI_CONTAINERID": key, "CNI_IFNAME": ""}, {}, {})
        outcomes.append(Outcome(kept, "failed", f"cannot read {error.filename}: {error.strerror}"))

    intent.for_each({"CNI_STATE_DIR": state_dir}, one, unreadable)
    return outcomes


def _uses_sets(kept: Intent) -> bool:
    from cni.plugins.shared.masquerade import migrate

    return kept.plugin in _MASQUERADING and migrate.concerns(kept.config)


def _rewrite(kept: Intent, form: str) -> Outcome:
    netns = kept.env.get("CNI_NETNS", "")
    exists = kept.namespace_exists()
    # The address may be another container's by now; removing its rules would be as wrong.
    if exists is None and netns:
        return Outcome(kept, "failed", f"cannot find out whether its namespace {netns} exists")
    try:
        if exists is False:
            _forget(kept)
            return Outcome(kept, "removed", f"its namespace {netns} is gone")
        # The note has CNI_* variables only; programs are searched in this command's PATH.
        env = {"PATH": os.environ.get("PATH", os.defpath), **kept.env}
        dispatch.reload(kept.plugin, env, kept.config, kept.result, _work(kept.plugin, form))
    except (CNIError, KernelError) as error:
        return Outcome(kept, "failed", str(error))
    except Exception as error:  # noqa: BLE001 the other attachments are still to be rewritten
        return Outcome(kept, "failed", f"unexpected {type(error).__name__}: {error}")
    return Outcome(kept, "rewritten")


def _work(plugin: str, form: str) -> Callable[[Any], None] | None:
    """What is to be done instead of a reload; None for the reload itself."""
    from cni.plugins.firewall import migrate as firewall
    from cni.plugins.portmap import migrate as portmap
    from cni.plugins.shared.masquerade import migrate as masquerading

    if plugin in _MASQUERADING:
        return masquerading.to_reference if form == "reference" else masquerading.to_own
    if plugin == "portmap":
        return portmap.to_reference if form == "reference" else portmap.to_own
    # firewall's own form is what a reload makes.
    return firewall.to_reference if form == "reference" else None


def _forget(kept: Intent) -> None:
    from cni.plugins.firewall import migrate as firewall
    from cni.plugins.portmap import migrate as portmap
    from cni.plugins.shared.masquerade import migrate as masquerading

    if kept.plugin in _MASQUERADING:
        masquerading.forget(kept.owner)
    else:
        (portmap if kept.plugin == "portmap" else firewall).forget(kept.owner)


# --- the command ----------------------------------------------------------------------------------


@click.command()
@click.option(
    "--to",
    "form",
    type=click.Choice(["reference", "own"]),
    help="Rewrite the rules in this form. Without it, list what the Go plugins cannot clean up.",
)
@STATE_OPTION
@formats.options
def migrate(form: str | None, state_dir: str) -> None:
    """Prepare a return to the Go plugins, or undo that.

    With --to reference, published ports and traffic that `firewall` accepts keep working, by rules
    that the Go plugins can remove when the containers are deleted. New containers are not affected:
    install the Go plugins afterwards. The command lists what cannot be rewritten.

    \b
    See also: cni uninstall, cni reload
    """  # noqa: D301 - click wants the control character
    errors.require_root("look at rules of the packet filter")
    outcomes = rewrite(state_dir, form) if form else []
    # Listed after the rewriting, so that only what could not be rewritten is left.
    left = uncleanable(state_dir) if form != "own" else []
    value = {
        "rewritten": [outcome.as_dict() for outcome in outcomes],
        "uncleanable": [one.as_dict() for one in left],
    }
    if formats.current() == "name":
        for name in dict.fromkeys(_name(one) for one in left):
            output.line(name)
    elif not formats.data(value):
        _print(outcomes, left, form)
    if any(outcome.state == "failed" for outcome in outcomes) or (form and left):
        raise SystemExit(1)


def _name(one: Uncleanable) -> str:
    """NETWORK/ID/IFNAME, as `cni ps -o name` prints it."""
    return f"{one.owner.network}/{one.attachment}" if one.owner else one.attachment


def _rewritable(one: Uncleanable) -> str:
    if one.noted:
        return "yes"
    # A new ADD would use sets again: the network has to change to a plugin that Go has.
    if one.plugin in pairs.ALL and one.plugin not in _MASQUERADING:
        return f"no: there is no Go plugin {one.plugin}"
    return "no: restart the container"


def _print(outcomes: list[Outcome], left: list[Uncleanable], form: str | None) -> None:
    for outcome in outcomes:
        if outcome.text:
            owner = outcome.intent.owner
            who = f"{owner.container_id}/{owner.ifname} in {owner.network}"
            line = f"{outcome.intent.plugin}: {who}: {outcome.state}: {outcome.text}"
            output.paragraph(line, err=outcome.state == "failed")
    if form:
        rewritten = sum(outcome.state == "rewritten" for outcome in outcomes)
        output.line(f"{rewritten} of {len(outcomes)} rewritten")
    if left:
        output.line("The Go plugins cannot clean up:")
        rows = [
            (
                one.plugin,
                one.owner.network if one.owner else "?",
                one.attachment,
                one.what,
                _rewritable(one),
            )
            for one in left
        ]
        columns = [
            Column("PLUGIN"),
            Column("NETWORK", cut="end"),
            Column("ATTACHMENT", cut="middle", least=12),
            Column("WHAT", cut="end", least=30),
            Column("REWRITABLE", drop=1),
        ]
        output.table(Table(columns, rows))
    elif not form:
        output.line("The Go plugins can clean up everything.")
