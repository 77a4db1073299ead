"""The verb VALIDATE: judges a configuration, and changes nothing.

The specification does not have it yet (containernetworking/cni proposes it). It takes what ADD
takes; the container's variables may be missing, since there may be no container. It prints nothing
if the configuration is right, else an error with code 7 that names every fault. Warnings are
written to stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cni.protocol import args
from cni.protocol.errors import InvalidConfig
from cni.protocol.request import check_container_id, check_ifname

from . import addresses, catalogue, chain, walk
from .document import Document, Node
from .findings import ERROR, Finding, Report
from .model import Plugin
from .network import Network, Part

if TYPE_CHECKING:
    from cni.call import Call


def validate(call: Call[Any]) -> None:
    """Judge the call's configuration and variables. Raises InvalidConfig, BadEnvironment."""
    described = catalogue.plugin(call.plugin)
    request = call.request
    if request.container_id:
        check_container_id(request.container_id)
    if request.ifname:
        check_ifname(request.ifname)
    if described is not None:
        if described.place != "ipam" and described.args:
            # As ADD does: it refuses arguments that it does not know.
            args.parse(request.args, frozenset(key.name for key in described.args))
        _raise(call, findings(described, request.stdin, call.version))
    _ = call.conf  # the decoder has the last word


def findings(described: Plugin, stdin: bytes, version: str) -> list[Finding]:
    """What is wrong with the configuration of one plugin, in the order of the text."""
    document = Document(stdin)  # decoded before, so it is no Malformed
    report = Report("", document, [])
    if described.place == "ipam":
        _judge_ipam(report, document.root, described)
    else:
        walk.plugin_object(report, document.root, "", described, named=True)
    part = Part(report, document.root, "")
    chain.require_master(part)
    addresses.judge(Network("", "", version, report, [part], is_list=False))
    # Several passes have found them; a person reads the text from top to bottom.
    return sorted(report.findings, key=lambda each: (each.line, each.column))


def _judge_ipam(report: Report, root: Node, described: Plugin) -> None:
    """An IPAM plugin reads `ipam`, whatever else stands in the object of the main plugin."""
    found = root.get("ipam")
    judge = walk.Walk(report, described)
    if found is None:
        report.add(root, "missing-key", "ipam", "ipam is missing")
        return
    judge.record(found.node, catalogue.ipam_keys(described.name), "ipam")
    # Rules are about values of the right types.
    if not report.has_errors():
        judge.rules_of(root, described, "")


def _raise(call: Call[Any], found: list[Finding]) -> None:
    """Raise the errors as one; log the warnings."""
    wrong = [each for each in found if each.severity == ERROR]
    for each in found:
        if each.severity != ERROR:
            call.log(f"cni: {call.plugin}: {_shown(each)}")
    if wrong:
        raise InvalidConfig(wrong[0].message, "; ".join(map(_shown, wrong)))


def _shown(finding: Finding) -> str:
    place = f"line {finding.line}, column {finding.column}"
    advice = f" ({finding.advice})" if finding.advice else ""
    return f"{place}: {finding.message}{advice}"
