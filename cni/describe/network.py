"""Judges the configuration of a network: the text, the list, its plugins, and their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from cni.protocol import version as versions
from cni.protocol.errors import CNIError

from . import catalogue, chain, walk
from .common import LIST
from .document import Document, Malformed, Node, position_in
from .findings import ERROR, WARNING, Finding, Report
from .model import Many, Record, replace

# Keys that container engines write into lists.
_ENGINES = ("nerdctlid", "nerdctllabels")


class Part(Struct):
    """A plugin of a network: its object, the file that has it, and where it stands there."""

    report: Report
    node: Node
    path: str

    @property
    def type(self) -> str:
        """The plugin's `type`, as written; empty if there is none."""
        return walk.text_at(self.node, "type")

    @property
    def plugin(self) -> str:
        """The plugin of this project that `type` means, without a prefix; empty if it is none."""
        return catalogue.known_as(self.type) or ""

    def value(self) -> Any:
        """The object, decoded as Go does."""
        return self.node.plain()


class Network(Struct):
    """A network that was read: `version` is what its plugins are called with."""

    name: str
    file: str
    version: str
    report: Report
    parts: list[Part]
    is_list: bool

    @property
    def main(self) -> Part | None:
        """The first plugin."""
        return self.parts[0] if self.parts else None

    @property
    def findings(self) -> list[Finding]:
        """What was found in its own file."""
        return self.report.findings


class Unreadable(Struct):
    """A file that is no JSON object."""

    file: str
    findings: list[Finding]


def read(file: str, data: bytes) -> Network | Unreadable:
    """The network in a file, judged key by key. `judge_chain` is for when all parts are there."""
    try:
        document = Document(data)
    except Malformed as error:
        line, column = position_in(data, error.start)
        return Unreadable(file, [Finding(file, line, column, ERROR, "syntax", "", str(error))])
    report = Report(file, document, [])
    root = document.root
    if root.kind != "object":
        report.add(root, "type", "", "the document must be an object")
        return Unreadable(file, report.findings)
    # A list's keys are matched exactly, a single plugin's in any case; which one this is, is
    # decided below.
    name = root.get("name", exact=True) or root.get("name")
    network = Network(
        name=walk.text_at(root, "name") if name is not None else "",
        file=file,
        version=_version(root),
        report=report,
        parts=[],
        is_list=root.get("plugins") is not None or root.get("type") is None,
    )
    if network.is_list:
        _judge_list(network, root)
    else:
        network.parts = [Part(report, root, "")]
        _judge_part(network.parts[0], single=True)
    return network


def read_part(file: str, data: bytes) -> Part | Unreadable:
    """A plugin's object in a file of its own (`<network>/*.conf`), judged key by key."""
    found = read(file, data)
    if isinstance(found, Unreadable):
        return found
    # It was read as a network, and has no name of its own.
    found.report.findings.clear()
    part = Part(found.report, found.report.document.root, "")
    _judge_part(part, single=False)
    return part


def _version(root: Node) -> str:
    """The version that libcni chooses: the highest it knows of `cniVersions` and `cniVersion`."""
    single = walk.text_at(root, "cniVersion")
    several = root.get("cniVersions", exact=True)
    texts = [each.scalar for each in several.node.items] if several is not None else []
    known = [text for text in [*texts, single] if isinstance(text, str) and _is_known(text)]
    # Without a known one the plugins get `cniVersion`, and refuse it.
    return max(known, key=versions.parse) if known else single or versions.DEFAULT


def _is_known(text: str) -> bool:
    try:
        return bool(text) and versions.parse(text) <= versions.parse(versions.CURRENT)
    except CNIError:
        return False


# --- the list ---


def _judge_list(network: Network, root: Node) -> None:
    """Judge a list's own keys, and each plugin.

    Plugins may also be in files beside it: that there are none is judged when those were read.
    """
    any_plugins = Many(Record((), is_open=True))
    keys = tuple(
        replace(key, kind=any_plugins, required=False) if key.name == "plugins" else key
        for key in LIST
    )
    # Runtimes ignore such keys, so they are no mistake.
    engines = [each for each in root.members if each.key.lower() not in _ENGINES]
    walk.Walk(network.report, None).record(
        replace(root, members=engines), Record(keys), "", exact=True
    )
    plugins = root.get("plugins", exact=True)
    if plugins is None or plugins.node.kind != "array":
        return
    if not plugins.node.items:
        network.report.add(plugins, "empty", "plugins", "plugins is empty: a list needs one")
    for index, node in enumerate(plugins.node.items):
        part = Part(network.report, node, f"plugins[{index}]")
        if node.kind == "object":
            network.parts.append(part)
            _judge_part(part, single=False)
            _judge_common(network, part)


def _judge_common(network: Network, part: Part) -> None:
    """In a list the name and version of a plugin's object have no effect."""
    for key, counts in (("name", network.name), ("cniVersion", network.version)):
        own = walk.text_at(part.node, key)
        member = part.node.get(key)
        if member is not None and own and own != counts:
            part.report.add(
                member,
                "no-effect",
                walk.below(part.path, member.key),
                f"{member.key} has no effect here",
                f'that of the list counts: "{counts}"',
                severity=WARNING,
            )


def _judge_part(part: Part, *, single: bool) -> None:
    """Judge the object of a plugin. A `single` one needs the network's name."""
    described = catalogue.plugin(part.type) if part.type else None
    if described is None:
        _judge_unknown(part)
        return
    if described.place == "ipam":
        member = part.node.get("type") or part.node
        message = f"{part.type} is an IPAM plugin"
        advice = "name it in the ipam of the plugin that makes the interface"
        part.report.add(member, "type-of-plugin", part.path, message, advice)
        return
    walk.plugin_object(part.report, part.node, part.path, described, named=single)


def _judge_unknown(part: Part) -> None:
    """A plugin of another project, or none: only its type is judged."""
    member = part.node.get("type")
    path = walk.below(part.path, "type")
    if member is None or not part.type:
        is_wrong = member is not None and member.node.kind != "string"
        message = f"{path} must be a string" if is_wrong else f"{path} is missing"
        part.report.add(member or part.node, "missing-key", path, message)
        return
    like = catalogue.near(part.type, list(catalogue.NAMES))
    if like and not part.type.endswith(f"-{like}"):  # a link of ours, or another project's plugin
        message = f"unknown plugin {part.type}"
        part.report.add(member, "unknown-plugin", path, message, f"did you mean {like}?")


# --- the whole ---


def judge_chain(network: Network, supported: Mapping[str, tuple[str, ...]]) -> None:
    """Judge the order of the plugins, versions and capabilities, once all parts are there.

    `supported` are the versions of the specification that each plugin speaks.
    """
    _judge_version(network)
    chain.judge(network.parts)
    for part in network.parts:
        known = supported.get(part.plugin)
        if known is not None and network.version not in known and _is_known(network.version):
            member = part.node.get("type") or part.node
            message = f"{part.type} does not support version {network.version}"
            advice = f"it supports {known[0]} to {known[-1]}"
            part.report.add(member, "version", walk.below(part.path, "type"), message, advice)


def _judge_version(network: Network) -> None:
    root = network.report.document.root
    member = root.get("cniVersions", exact=True) or root.get("cniVersion")
    if member is None or _is_known(network.version):
        return
    if member.node.kind == "string" and any(
        each.path == member.key for each in network.report.findings
    ):
        return  # the list of versions was named already
    message = f"no plugin speaks version {network.version}"
    network.report.add(member, "version", member.key, message, f"the newest is {versions.CURRENT}")
