"""`cni conform BINARY…`: does a plugin, or a chain, do what the specification asks for?"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import Any, NamedTuple

import click

from cni.kernel.errors import KernelError
from cni.protocol.config import is_at_least

from .. import formats
from . import cases
from .bench import Bench, Json

# What a plugin is given to do, where a configuration is not.
_KNOWN: dict[str, Json] = {
    "bridge": {"bridge": "conformbr0", "isGateway": True},
    "macvlan": {"master": "conform0"},
    "ipvlan": {"master": "conform0"},
    "vlan": {"master": "conform0", "vlanId": 7},
    "tuning": {"sysctl": {"net.core.somaxconn": "500"}},
    "portmap": {},
    "route-override": {"flushgateway": True},
    "vrf": {"vrfname": "conform"},
}
_WITHOUT_IPAM = frozenset(
    ["loopback", "tuning", "portmap", "firewall", "bandwidth", "sbr", "vrf", "route-override"]
)


class Outcome(NamedTuple):
    """The outcome of a case: `passed`, `failed` or `skipped`, and why."""

    case: str
    version: str
    outcome: str
    text: str

    @property
    def title(self) -> str:
        return f"{self.case} {self.version}".strip()


@click.command()
@click.argument("binaries", metavar="BINARY…", nargs=-1, required=True)
@click.option(
    "--config",
    "config",
    metavar="FILE",
    type=click.File("rb"),
    help="The plugins' configurations: a list, or one plugin's object. The binaries' names replace "
    "the types.",
)
@click.option("--junit", metavar="FILE", type=click.Path(), help="Also write a JUnit report.")
@formats.options
def conform(binaries: tuple[str, ...], config: Any, junit: str | None) -> None:
    """Run plugins against the specification, on a node that is made for it.

    Several binaries are called as one list of plugins, in the order of ADD. Links, addresses and
    rules are in namespaces that end with the command, so this node's network does not change. Needs
    root. Exit code 1 if the plugins fail a case.

    \b
    Example:  cni conform /opt/cni/bin/bridge /opt/cni/bin/portmap
    See also: cni test, cni validate
    """  # noqa: D301 - click wants the control character
    paths = [_path_of(each) for each in binaries]
    plugins = _configurations(paths, config)
    directory = tempfile.mkdtemp(prefix="cni-conform-")
    try:
        outcomes = _run(paths, plugins, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if junit:
        with open(junit, "w", encoding="utf-8") as file:
            file.write(junit_of(outcomes, " ".join(map(os.path.basename, paths))))
    failures = [each for each in outcomes if each.outcome == "failed"]
    lines = [f"{each.outcome:7} {each.title}" + _why(each) for each in outcomes]
    passed = sum(each.outcome == "passed" for each in outcomes)
    lines.append(
        f"{passed} passed, {len(failures)} failed, {len(outcomes) - passed - len(failures)} skipped"
    )
    formats.present(
        {
            "plugins": paths,
            "passed": passed,
            "failed": len(failures),
            "cases": [each._asdict() for each in outcomes],
        },
        lines=lines,
        names=[each.title for each in failures],
    )
    if failures:
        raise SystemExit(1)


def _why(outcome: Outcome) -> str:
    return f": {outcome.text}" if outcome.text else ""


def _path_of(binary: str) -> str:
    found = binary if os.sep in binary else shutil.which(binary, path=os.environ.get("CNI_PATH"))
    if not found or not os.access(found, os.X_OK):
        raise click.BadParameter(f"{binary} is no program", param_hint="BINARY")
    return os.path.abspath(found)


def _configurations(paths: list[str], config: Any) -> list[Json]:
    """A configuration for each plugin, without name and version."""
    types = [os.path.basename(path) for path in paths]
    if config is None:
        return [{"type": name, **_KNOWN.get(name, {})} for name in types]
    try:
        document = json.load(config)
    except ValueError as error:
        raise click.BadParameter(f"it is no JSON: {error}", param_hint="--config") from None
    given = document.get("plugins", [document]) if isinstance(document, dict) else []
    if len(given) != len(paths):
        raise click.BadParameter(
            f"it has {len(given)} plugins, and {len(paths)} are to be run", param_hint="--config"
        )
    return [{**conf, "type": name} for conf, name in zip(given, types, strict=True)]


def _with_ipam(plugins: list[Json], directory: str) -> None:
    """Give the first plugin addresses, unless it has some or takes none."""
    first = plugins[0]
    if first["type"] not in _WITHOUT_IPAM:
        first.setdefault("ipam", {"type": "host-local", "subnet": "10.254.200.0/24"})
    if isinstance(first.get("ipam"), dict) and first["ipam"].get("type") == "host-local":
        # Otherwise host-local would leave reservations in the node's own directory.
        first["ipam"] = {**first["ipam"], "dataDir": f"{directory}/addresses"}


def _run(paths: list[str], plugins: list[Json], directory: str) -> list[Outcome]:
    _with_ipam(plugins, directory)
    bench = Bench(paths, plugins, directory)
    try:
        bench.enter()
    except (OSError, KernelError) as error:
        raise click.ClickException(f"cannot make a node: {error}: are you root?") from None
    try:
        try:
            versions = cases.common_versions(bench)
        except cases.Failed as failure:
            return [Outcome("version", "", "failed", str(failure))]
        outcomes = []
        for case in cases.CASES:
            wanted = [each for each in versions if case.least and is_at_least(each, case.least)]
            # Cases that do not depend on the version are run once, with the newest.
            for version in wanted if case.least else versions[-1:]:
                outcomes.append(_outcome(bench, case, version))
        return outcomes
    finally:
        bench.close()


def _outcome(bench: Bench, case: cases.Case, version: str) -> Outcome:
    shown = version if case.least else ""
    try:
        case.run(bench, version)
    except cases.Failed as failure:
        return Outcome(case.name, shown, "failed", str(failure))
    except cases.Skipped as reason:
        return Outcome(case.name, shown, "skipped", str(reason))
    except (OSError, KernelError) as error:
        return Outcome(case.name, shown, "failed", f"the run was stopped: {error}")
    return Outcome(case.name, shown, "passed", "")


def _quoted(text: str) -> str:
    """A text as XML's value of an attribute; the self-contained file has no module for that."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return f'"{text}"'


def junit_of(outcomes: list[Outcome], suite: str) -> str:
    """The outcomes in JUnit's XML."""
    failed = sum(each.outcome == "failed" for each in outcomes)
    skipped = sum(each.outcome == "skipped" for each in outcomes)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuite name={_quoted(suite)} "
        f'tests="{len(outcomes)}" failures="{failed}" skipped="{skipped}">',
    ]
    for each in outcomes:
        head = f"  <testcase classname={_quoted(each.case)} name={_quoted(each.title)}"
        kind = {"failed": "failure", "skipped": "skipped"}.get(each.outcome)
        if kind is None:
            lines.append(f"{head}/>")
        else:
            # Control characters are not allowed in XML.
            text = "".join(c if c.isprintable() else " " for c in each.text)
            lines.append(f"{head}><{kind} message={_quoted(text)}/></testcase>")
    return "\n".join([*lines, "</testsuite>", ""])
