"""`cni reload`: make the rules of all attachments again, after something flushed them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click

from cni import dispatch, intent
from cni.artifact import OwnFile
from cni.intent import Intent
from cni.protocol.errors import CNIError

from . import errors, formats, output

STATE_OPTION = click.option(
    "--state-dir",
    metavar="DIR",
    envvar="CNI_STATE_DIR",
    default=intent.STATE_DIR,
    show_default=True,
    help="Directory with the plugins' notes about the rules that they made.",
)


class Outcome(NamedTuple):
    """The outcome for one attachment's rules: `state` is restored, skipped or failed."""

    intent: Intent
    state: str
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        owner = self.intent.owner
        body = {
            "plugin": self.intent.plugin,
            "network": owner.network,
            "containerID": owner.container_id,
            "ifname": owner.ifname,
            "state": self.state,
        }
        return {**body, "text": self.text} if self.text else body


@click.command()
@STATE_OPTION
@formats.options
@click.option(
    "--watch", "watching", is_flag=True, help="Do not end: do it whenever firewalld reloads."
)
def reload(state_dir: str, watching: bool) -> None:
    """Make the plugins' packet filter rules again.

    Use it after `nft flush ruleset` or a restart of the firewall. Existing rules stay as they are.
    Containers need not be restarted, and others may start during the command.
    """
    errors.require_root("make rules of the packet filter")
    if watching:
        if formats.current():
            raise click.UsageError("--watch goes without -o and --json")
        _watch(state_dir)
    outcomes = reload_all(state_dir)
    if not formats.data([outcome.as_dict() for outcome in outcomes]):
        _print(outcomes)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise SystemExit(1)


def _watch(state_dir: str) -> NoReturn:
    """Reload at each change until the bus ends, which is an error: systemd restarts the unit."""
    from cni._build import ID

    from .watch import watch

    own = OwnFile(Path(sys.argv[0]), ID)
    try:
        watch(lambda reason: _print(reload_all(state_dir), f"{reason}: "), lambda: _follow(own))
    except CNIError as error:
        raise click.ClickException(str(error)) from None
    raise click.ClickException("the system bus has ended")


def _follow(own: OwnFile) -> None:
    """Go on with the build that was installed meanwhile; say once that there is none any more."""
    found = own.change()
    if found is None:
        return
    if not found:
        output.line(
            f"{own.path} is not of this project any more: this process goes on, but plugins fail "
            "and it could not be started again; `cni doctor`, of the release's file, says more",
            err=True,
        )
        return
    output.line(f"build {found} is installed: going on with that")
    # execv(2) would discard what is still in the buffer.
    sys.stdout.flush()
    try:
        os.execv(own.path, sys.argv)
    except OSError as error:
        output.line(f"cannot execute {own.path}: {error.strerror}; this build goes on", err=True)


def _print(outcomes: list[Outcome], prefix: str = "") -> None:
    for outcome in outcomes:
        if outcome.text:
            owner = outcome.intent.owner
            who = f"{owner.container_id}/{owner.ifname} in {owner.network}"
            line = f"{outcome.intent.plugin}: {who}: {outcome.state}: {outcome.text}"
            output.paragraph(line, err=outcome.state == "failed")
    restored = sum(outcome.state == "restored" for outcome in outcomes)
    output.line(f"{prefix}{restored} of {len(outcomes)} restored")


def reload_all(state_dir: str) -> list[Outcome]:
    """Reload every attachment that `state_dir` has. Raises nothing: failures are outcomes."""
    outcomes: list[Outcome] = []
    intent.for_each(
        {"CNI_STATE_DIR": state_dir},
        lambda kept: outcomes.append(_reload(kept)),
        lambda error: outcomes.append(_unread(error)),
    )
    return outcomes


def _unread(error: OSError) -> Outcome:
    """Of a file that cannot be read only the name is known: ``<owner's key>.<plugin>``."""
    path = str(error.filename)
    key, _, plugin = os.path.basename(path).partition(".")
    kept = Intent(plugin, {"CNI_CONTAINERID": key, "CNI_IFNAME": ""}, {}, {})
    return Outcome(kept, "failed", f"cannot read {path}: {error.strerror}")


def _reload(kept: Intent) -> Outcome:
    netns = kept.env.get("CNI_NETNS", "")
    exists = kept.namespace_exists()
    if exists is False:
        return Outcome(kept, "skipped", f"its namespace {netns} is gone")
    # The address may be another container's by now, so its rules are not made on suspicion.
    if exists is None and netns:
        return Outcome(kept, "failed", f"cannot find out whether its namespace {netns} exists")
    # Noted by a version with more plugins.
    if kept.plugin not in dispatch.TABLE:
        return Outcome(kept, "skipped", "this file has no such plugin")
    # The note has CNI_* variables only; programs are searched in this command's PATH.
    env = {"PATH": os.environ.get("PATH", os.defpath), **kept.env}
    try:
        dispatch.reload(kept.plugin, env, kept.config, kept.result)
    except CNIError as error:
        return Outcome(kept, "failed", str(error))
    except Exception as error:  # noqa: BLE001 the other attachments are still to be reloaded
        return Outcome(kept, "failed", f"unexpected {type(error).__name__}: {error}")
    return Outcome(kept, "restored")
