"""`cni doctor`: what is wrong with this node, each finding with the command that mends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import click

from cni import intent
from cni.protocol.errors import CNIError

from . import conflist, formats, output
from .checkup import networks, node, packet_filter, software, state
from .checkup.finding import ERROR, NOTE, OK, UNKNOWN, WARNING, Finding, Situation
from .serve import SOCKET
from .session import CACHE_DIR, plugin_path

_NOT_ALL = 7  # exit code, docs/cli.md
_AREAS = (software, node, packet_filter, state, networks)
_MARKS = {OK: "✓", NOTE: "·", UNKNOWN: "?", WARNING: "!", ERROR: "✗"}


@click.command()
@click.option("--strict", is_flag=True, help="Also exit with code 1 if there are warnings.")
@CACHE_DIR
@formats.options
def doctor(strict: bool, cache_dir: str) -> None:
    """Look for faults of this node, and name the command that repairs each.

    Looks at the kernel, its modules and sysctls, the packet filter, state directories and disks,
    leftovers of dead containers, the installed plugins, the server, and each network. Changes
    nothing. Exit code 1 if there is an error, 7 if not everything could be looked at.

    \b
    See also: cni status, cni validate, cni ps
    """  # noqa: D301 - click wants the control character
    found = list(examine(situation_of(cache_dir)))
    counts = {level: sum(each.level == level for each in found) for level in _MARKS}
    lines = [line for each in found for line in _lines(each)]
    lines.append(_summary(counts))
    formats.present(
        {
            "errors": counts[ERROR],
            "warnings": counts[WARNING],
            "unknown": counts[UNKNOWN],
            "findings": [each.as_dict() for each in found],
        },
        lines=lines,
        names=[each.text for each in found if each.level in (UNKNOWN, WARNING, ERROR)],
    )
    if counts[ERROR] or (strict and counts[WARNING]):
        raise SystemExit(1)
    if counts[UNKNOWN]:
        raise SystemExit(_NOT_ALL)


def situation_of(cache_dir: str) -> Situation:
    """What the environment and the command line say, and the networks that can be read."""
    net_d = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
    return Situation(
        networks=_configured(net_d),
        path=plugin_path(os.environ.get("CNI_PATH", "")),
        state_dir=os.environ.get("CNI_STATE_DIR") or intent.STATE_DIR,
        cache_dir=os.path.abspath(cache_dir),
        net_d=net_d,
        socket=os.environ.get("CNI_SERVER_SOCKET") or SOCKET,
    )


def _configured(net_d: str) -> list[conflist.NetworkList]:
    try:
        return conflist.all_of(net_d)
    except CNIError:  # of which checkup.networks speaks
        return []


def examine(situation: Situation) -> Iterator[Finding]:
    """Run all checks; one that fails says so, and the others go on."""
    for area in _AREAS:
        for check in area.CHECKS:
            yield from _tried(area.AREA, check, situation)


def _tried(
    area: str, check: Callable[[Situation], Iterator[Finding]], situation: Situation
) -> Iterator[Finding]:
    try:
        yield from check(situation)
    except Exception as error:  # noqa: BLE001 the other checks are still to be made
        # The first line of a check's docstring is therefore a text for people.
        what = (check.__doc__ or check.__name__).splitlines()[0].rstrip(".")
        yield Finding(UNKNOWN, area, f"could not be looked at: {what}: {error}")


def _lines(finding: Finding) -> list[str]:
    lines = [f"{_MARKS[finding.level]} {finding.area}: {finding.text}"]
    return [*lines, output.Whole(f"    {finding.mend}")] if finding.mend else lines


def _summary(counts: dict[str, int]) -> str:
    unknown = counts[UNKNOWN]
    unseen = f"{unknown} {'check' if unknown == 1 else 'checks'} could not be made"
    if not counts[ERROR] and not counts[WARNING]:
        return f"nothing wrong was found, but {unseen}" if unknown else "nothing is wrong"
    errors, warnings = counts[ERROR], counts[WARNING]
    text = (
        f"{errors} {'error' if errors == 1 else 'errors'}, "
        f"{warnings} {'warning' if warnings == 1 else 'warnings'}"
    )
    return f"{text}; {unseen}" if unknown else text
