"""`cni validate`: what is wrong with network configurations, with file, line and column."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import click

from cni import dispatch
from cni.describe import addresses, catalogue, network
from cni.describe.findings import ERROR, WARNING, Finding, Report
from cni.describe.network import Network, Part, Unreadable
from cni.protocol import config
from cni.protocol.errors import CNIError
from cni.protocol.request import check_network_name

from . import conflist, formats, output
from .completion import Network as NetworkName
from .configurations import STDIN, Files, files_of, read
from .session import plugin_path

# Faults that an ADD does not notice: it succeeds, though not as meant.
_UNNOTICED = frozenset(
    {
        "unknown-key",
        "duplicate-key",
        "gateway",
        "overlap",
        "ignored-value",
        "duplicate-name",
        "file-name",
    }
)


def stops_add(finding: Finding) -> bool:
    """Would an ADD fail for this reason?"""
    return finding.severity == ERROR and finding.code not in _UNNOTICED


class Target(NetworkName):
    """A file, a directory or a network; completes networks and paths."""

    name = "file|dir|network"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        names = super().shell_complete(ctx, param, incomplete)
        return names or click.Path().shell_complete(ctx, param, incomplete)


@dataclass
class Judgement:
    """The files that were read: findings are shown for `asked` ones; others are for comparison."""

    asked: list[str]
    networks: list[Network] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """All findings in the files that were asked for, in the order of the files."""
        found = [each for one in self.unreadable for each in one.findings]
        found += [each for report in self.reports.values() for each in report.findings]
        places = {file: at for at, file in enumerate(self.asked)}
        asked = {each for each in found if each.file in places}
        return sorted(
            asked, key=lambda each: (places[each.file], each.line, each.column, each.code)
        )


@click.command()
@click.argument("targets", metavar="[FILE|DIR|NETWORK]...", nargs=-1, type=Target())
@click.option("--strict", is_flag=True, help="Treat warnings as errors.")
@click.option(
    "--offline",
    is_flag=True,
    help="Judge the text only: not whether this node has the plugins, links and kernel modules.",
)
@formats.options
def validate(targets: tuple[str, ...], strict: bool, offline: bool) -> None:
    """Find what is wrong with network configurations, and where.

    Without an argument, all configurations in NETCONFPATH (/etc/cni/net.d) are judged. `-` reads a
    configuration from stdin.

    \b
    An error: an ADD would fail, or the network would not work as written.
    A warning: it may work, but something has no effect or looks wrong.

    The exit code is 1 if there is an error.
    """  # noqa: D301 - click wants the control character
    judgement = judge(files_of(targets), strict=strict, offline=offline)
    findings = judgement.findings()
    if not targets and not offline:  # everything of this node
        findings += _of_recording(ERROR if strict else WARNING)
    present(findings, len(judgement.asked))


def _of_recording(severity: str) -> list[Finding]:
    """Settings of the request log and of traces that have no effect."""
    from cni.server import wrong_settings

    return [
        Finding(each.where, 0, 0, severity, "recording", "", each.text)
        for each in wrong_settings.all_of(os.environ)
    ]


def present(findings: list[Finding], count: int) -> None:
    """Print findings; raises SystemExit if there is an error among them."""
    wrong = sum(each.severity == ERROR for each in findings)
    warnings = len(findings) - wrong
    lines = [line for each in findings for line in _lines(each)]
    formats.present(
        {
            "files": count,
            "errors": wrong,
            "warnings": warnings,
            "findings": [each.as_dict() for each in findings],
        },
        lines=[*lines, _summary(count, wrong, warnings)],
        names=[each.place for each in findings],
    )
    if wrong:
        raise SystemExit(1)


def _lines(finding: Finding) -> list[str]:
    lines = [
        f"{output.printable(finding.place, keep='')}: {finding.severity}: {message_of(finding)} "
        f"[{finding.code}]"
    ]
    return [*lines, f"    {output.printable(finding.advice, keep='')}"] if finding.advice else lines


def message_of(finding: Finding) -> str:
    """The message on one line: a configuration's names may have line breaks."""
    return output.printable(finding.message, keep="")


def _summary(count: int, wrong: int, warnings: int) -> str:
    what = "1 file" if count == 1 else f"{count} files"
    if not wrong and not warnings:
        return f"{what}: nothing is wrong"
    return f"{what}: {_counted(wrong, 'error')}, {_counted(warnings, 'warning')}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# --- judging ---


def judge_new(path: str, data: bytes, directory: str) -> list[Finding]:
    """Findings about a file that does not exist yet, together with those in the directory.

    Raises CommandError.
    """
    wanted = Files([path], conflist.paths(directory))
    return judge(wanted, contents={path: data}).findings()


def judge(
    wanted: Files,
    *,
    strict: bool = False,
    offline: bool = False,
    contents: Mapping[str, bytes] | None = None,
) -> Judgement:
    """Judge files, each by itself and all together.

    Raises CommandError if a single file cannot be read; if it is one of several, that is a finding.

    `contents` are those of files that do not exist yet.
    """
    judgement = Judgement(wanted.asked)
    given = contents or {}
    for path in [*wanted.asked, *wanted.context]:
        try:
            data = given[path] if path in given else read(path)
        except CNIError as error:
            # A single file that cannot be read is a failure of the command, not a finding.
            if wanted.asked == [path]:
                raise
            if path in wanted.asked:
                judgement.unreadable.append(_unreadable(path, error))
            continue
        found = network.read(path, data)
        if isinstance(found, Unreadable):
            judgement.unreadable.append(found)
            continue
        judgement.networks.append(found)
        _judge_file(found, judgement)
    _judge_together(judgement, offline)
    if strict:
        for report in judgement.reports.values():
            report.findings[:] = [each._replace(severity=ERROR) for each in report.findings]
    return judgement


def _judge_together(judgement: Judgement, offline: bool) -> None:
    """Judge the files beside each other, and beside the node."""
    _judge_names(judgement)
    places = [place for each in judgement.networks for place in addresses.judge(each)]
    addresses.judge_together(places, set(judgement.asked))
    for each in judgement.networks:
        if each.file in judgement.asked:
            _judge_decoding(each)
            if not offline:
                _judge_on_node(each)


def _unreadable(path: str, error: CNIError) -> Unreadable:
    """The finding for an unreadable file; the others are judged nevertheless."""
    found = Finding(path, 0, 0, ERROR, "unreadable", "", error.msg, error.details)
    return Unreadable(path, [found])


def _judge_file(found: Network, judgement: Judgement) -> None:
    """The file's name, the plugins beside it, and the order of all plugins."""
    judgement.reports[found.file] = found.report
    root = found.report.document.root
    if found.is_list and found.file.endswith((".conf", ".json")):
        found.report.add(
            root,
            "file-name",
            "",
            "a list in this file is not found by runtimes",
            "the name of a list's file ends in .conflist",
        )
    elif not found.is_list and found.file.endswith(".conflist"):
        found.report.add(
            root,
            "file-name",
            "",
            "a .conflist file needs a list of plugins",
            'put the plugin into "plugins": [ … ]',
        )
    for part in _parts_beside(found, judgement):
        found.parts.append(part)
    if found.is_list and not found.parts and root.get("plugins", exact=True) is None:
        found.report.add(root, "missing-key", "plugins", "plugins is missing: a list needs one")
    network.judge_chain(found, {name: each.versions for name, each in _TABLE.items()})


# A configuration for Windows may be judged on Linux, and the other way round.
_TABLE = {**dispatch.TABLE, **dispatch.WINDOWS}


def _parts_beside(found: Network, judgement: Judgement) -> list[Part]:
    """The plugins in `<network>/*.conf` beside a list, which libcni appends."""
    only = found.report.document.root.get("loadOnlyInlinedPlugins", exact=True)
    inlined = only is not None and str(only.node.scalar).lower() == "true"
    if not found.is_list or inlined or found.file == STDIN or not _is_name(found.name):
        return []
    parts: list[Part] = []
    for path in conflist.paths_beside(found.file, found.name):
        if found.file in judgement.asked and path not in judgement.asked:
            judgement.asked.append(path)
        part = network.read_part(path, read(path))
        if isinstance(part, Unreadable):
            judgement.unreadable.append(part)
        else:
            judgement.reports[path] = part.report
            parts.append(part)
    return parts


def _is_name(name: str) -> bool:
    try:
        check_network_name(name)
    except CNIError:
        return False
    return True


def _judge_names(judgement: Judgement) -> None:
    """Of two files with one network's name the first counts."""
    first: dict[str, Network] = {}
    for each in sorted(judgement.networks, key=_search_order):
        if not each.name:
            continue
        other = first.setdefault(each.name, each)
        if other is each:
            continue
        mine, theirs = (each, other) if each.file in judgement.asked else (other, each)
        member = mine.report.document.root.get("name")
        if member is None:
            continue
        counts = "this one counts" if mine is other else f"{other.file} counts"
        message = f"{theirs.file} is of the network {each.name}, too: {counts}"
        mine.report.add(member, "duplicate-name", "name", message, "rename or remove one of them")


def _search_order(found: Network) -> tuple[bool, str]:
    """As libcni looks for a network: lists first, by name."""
    return not found.file.endswith(".conflist"), found.file


def _judge_decoding(found: Network) -> None:
    """Run the plugins' own decoders, so that everything that they refuse is a finding."""
    text = found.report.document.text.encode("utf-8", "surrogatepass")
    try:
        if found.is_list:
            conflist.from_bytes(text)
        else:
            conflist.plugin_from_bytes(text)
    except CNIError as error:
        # Otherwise the decoder would only repeat in its own words what was found with a line
        # number.
        if not found.report.has_errors():
            root = found.report.document.root
            found.report.add(root, "decode", "", error.msg, error.details)
    for part in found.parts:
        # Its decoder would stop at the first fault that is a finding already.
        if any(each.severity == ERROR for each in part.report.findings):
            continue
        names = [part.plugin, catalogue.known_as(_ipam_type(part)) or ""]
        for name in names:
            problem = _conversion(name, part.value()) if name in _TABLE else ""
            if problem:
                # A fault that the descriptions did not foresee.
                part.report.add(part.node, "decode", part.path, problem)
                break


def _ipam_type(part: Part) -> str:
    ipam = config.lookup(part.value(), "ipam")
    name = config.lookup(ipam, "type") if isinstance(ipam, dict) else None
    return name if isinstance(name, str) else ""


def _conversion(name: str, value: Any) -> str:
    """The plugin's error for a configuration that it cannot decode; "" if it can."""
    try:
        config.convert(value, import_module(_TABLE[name].module).Conf)
    except ImportError:
        return ""  # a plugin for Windows: the self-contained file contains only its description
    except CNIError as error:
        return f"{error.msg}: {error.details}" if error.details else error.msg
    return ""


def _judge_on_node(found: Network) -> None:
    """What an ADD on this node would miss."""
    from . import status_checks

    path = plugin_path(os.environ.get("CNI_PATH", ""))
    for problem in status_checks.problems(found, path):
        part = problem.part
        member = part.node.at(problem.key) or part.node
        where = f"{part.path}.{problem.key}" if part.path else problem.key
        severity = WARNING if problem.is_warning else ERROR
        part.report.add(
            member, problem.code, where, problem.message, problem.advice, severity=severity
        )
