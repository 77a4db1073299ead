"""Compares an object of a configuration with a description: keys, types, values, combinations.

A finding is an error if an ADD would fail, or if a key has no effect because it is misspelled,
misplaced or given twice; a warning if a key has no effect for another reason.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cni.kernel import sysctl
from cni.protocol.config import fold_keys

from . import catalogue, words
from .document import Member, Node
from .findings import ERROR, WARNING, Report
from .forms import FORMS, problem
from .model import (
    DelegateRecord,
    Flag,
    Get,
    IpamRecord,
    Key,
    Kind,
    Many,
    Number,
    Plugin,
    Record,
    Table,
    Text,
    replace,
)

# Keys that no plugin reads and that stand there rightly: of tools, of the specification, comments.
FOREIGN = re.compile(r"[./]|^[$_]|^x-")
_A = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "number": "a number",
    "bool": "a bool",
}


def plugin_object(
    report: Report, node: Node, path: str, described: Plugin, *, named: bool = False
) -> None:
    """Judge the object of a plugin. `path` is where it stands, "" for the whole document.

    With `named` it needs the network's name, which in a list the list has.
    """
    walk = Walk(report, described)
    before = len(report.findings)
    ipam = text_at(node, "ipam.type")
    keys = catalogue.whole(described, ipam).keys
    if not named:
        # In a list the list has the name.
        keys = tuple(_optional(key) if key.name == "name" else key for key in keys)
    walk.record(node, Record(keys), path)
    if any(each.severity == ERROR for each in report.findings[before:]):
        return  # the rules are about values of the right types
    # flannel completes `ipam` at the ADD, so its rules cannot be applied before.
    helper = catalogue.plugin(ipam) if ipam and described.name != "flannel" else None
    for each in (described, helper):
        if each is not None:
            walk.rules_of(node, each, path)


def text_at(node: Node, path: str) -> str:
    """The string that `path` leads to; empty if there is none."""
    member = node.at(path)
    return member.node.scalar if member is not None and member.node.kind == "string" else ""


def below(path: str, name: str) -> str:
    """The path of a key of an object."""
    return f"{path}.{name}" if path else name


def getter(node: Node) -> Get:
    """Looks up a value by its path, as the plugin would: in any case, and null is absent."""
    value = fold_keys(node.plain(), {})

    def get(path: str) -> Any:
        found = value
        for name in path.split("."):
            holder = found if isinstance(found, dict) else {}
            # in `capabilities` the case counts, and the keys were not folded
            found = holder.get(name, holder.get(name.lower()))
        return found

    return get


class Walk:
    """Notes in `report` what is wrong in an object of the plugin `described`."""

    def __init__(self, report: Report, described: Plugin | None) -> None:
        self._report = report
        self._described = described

    # --- keys ---

    def record(self, node: Node, kind: Record, path: str, *, exact: bool = False) -> None:
        """Judge an object with the keys of `kind`; with `exact` their case counts."""
        if not self._is(node, "object", path):
            return
        self.repeated(node, path, exact=exact)
        keys = {key.name if exact else key.name.lower(): key for key in kind.keys}
        for member in node.members:
            key = keys.get(member.key if exact else member.key.lower())
            if key is None:
                self._unknown(member, kind, path, exact)
            # Go's decoder leaves a field as it is for null, so null is like an absent key.
            elif member.node.kind != "null":
                self.value(member.node, key.kind, below(path, member.key))
            elif exact:  # libcni decodes a list into a map, in which null is a value
                where = below(path, member.key)
                self._report.add(member.node, "type", where, f"{where} must not be null")
        for key in kind.keys:
            if key.required:
                self._require(node, key, path, exact)

    def _require(self, node: Node, key: Key, path: str, exact: bool) -> None:
        member = node.get(key.name, exact=exact)
        if member is None:
            text = f"{below(path, key.name)} is missing: {key.text}"
            self._report.add(node, "missing-key", path, text, _for_example(key))
        elif member.node.kind == "string" and not member.node.scalar:
            where = below(path, key.name)
            self._report.add(member.node, "empty", where, f"{where} must not be empty")

    def repeated(self, node: Node, path: str, *, exact: bool) -> None:
        """Note each key that an object gives twice, also in another case unless `exact`."""
        seen: dict[str, Member] = {}
        for member in node.members:
            name = member.key if exact else member.key.lower()
            first = seen.setdefault(name, member)
            if first is member:
                continue
            line, _ = self._report.document.position(first.start)
            as_what = "" if first.key == member.key else f", as {first.key}"
            self._report.add(
                member,
                "duplicate-key",
                below(path, member.key),
                f"{member.key} is given twice, first in line {line}{as_what}",
                "the last one counts: remove the other",
            )

    def _unknown(self, member: Member, kind: Record, path: str, exact: bool) -> None:
        name = member.key
        if FOREIGN.search(name):
            return
        where = below(path, name)
        like = catalogue.near(name, [key.name for key in kind.keys])
        # Beside the known keys others are allowed; only what looks misspelled is worth a finding.
        if kind.is_open and (not like or like.lower() == name.lower()):
            return
        message = f"unknown key {name}"
        if like:
            case = exact and like.lower() == name.lower()
            advice = f"did you mean {like}?" + (" The case of a list's keys counts" if case else "")
            severity = WARNING if kind.is_open else ERROR
            self._report.add(member, "unknown-key", where, message, advice, severity=severity)
            return
        severity, advice = self._elsewhere(name, path)
        self._report.add(member, "unknown-key", where, message, advice, severity=severity)

    def _elsewhere(self, name: str, path: str) -> tuple[str, str]:
        """What to say of a key that has no effect where it stands."""
        if self._described is not None:
            of_ipam = path.endswith("ipam")
            own = {key.name.lower() for key in catalogue.whole(self._described).keys}
            if of_ipam and name.lower() in own:
                return ERROR, f"{name} belongs beside ipam, not into it"
            if not of_ipam and name.lower() in _ipam_names():
                return ERROR, f"{name} belongs into ipam"
        owners = [
            each.name
            for each in catalogue.plugins()
            if catalogue.own_key(each, name) is not None and each is not self._described
        ]
        if owners:
            return WARNING, f"it has no effect here: it is a key of {', '.join(owners)}"
        return WARNING, "it has no effect"

    # --- values ---

    def value(self, node: Node, kind: Kind, path: str) -> None:
        """Judge a value that is not null."""
        if isinstance(kind, Flag):
            self._flag(node, kind, path)
        elif isinstance(kind, Number):
            self._number(node, kind, path)
        elif isinstance(kind, Text):
            self._text(node, kind, path)
        elif isinstance(kind, Many):
            self._many(node, kind, path)
        elif isinstance(kind, Table):
            self._table(node, kind, path)
        elif isinstance(kind, Record):
            self.record(node, kind, path)
        elif isinstance(kind, IpamRecord):
            self._ipam(node, kind, path)
        elif isinstance(kind, DelegateRecord):
            self._delegate(node, kind, path)

    def _is(self, node: Node, kind: str, path: str, wanted: str = "", advice: str = "") -> bool:
        if node.kind == kind:
            return True
        text = f"{path or 'the document'} must be {wanted or _A[kind]}, and is {_shown(node)}"
        self._report.add(node, "type", path, text, advice)
        return False

    def _flag(self, node: Node, kind: Flag, path: str) -> None:
        word = node.scalar.lower() if node.kind == "string" else ""
        is_word = word in ("true", "false")
        if kind.or_text and is_word:
            return
        advice = f"write {word} without quotes" if is_word else "write true or false"
        self._is(node, "bool", path, "true or false", advice)

    def _number(self, node: Node, kind: Number, path: str) -> None:
        text = node.scalar if node.kind == "string" else ""
        if kind.word and text == kind.word:
            return
        # isdigit alone is also true for digits that are not ASCII.
        plain = text.removeprefix("-")
        advice = f"write {text} without quotes" if plain.isascii() and plain.isdigit() else ""
        wanted = f'an integer or "{kind.word}"' if kind.word else "an integer"
        if not self._is(node, "number", path, wanted, advice):
            return
        value = node.scalar
        if not isinstance(value, int):
            message = f"{path} must be {wanted}, and is {_shown(node)}"
            self._report.add(node, "type", path, message)
        elif not kind.allows(value):
            message = f"{path} is {value}: it must be {_bounds(kind)}"
            self._report.add(node, "range", path, message)

    def _text(self, node: Node, kind: Text, path: str) -> None:
        # As it is written in JSON: true, not Python's True.
        literal = json.dumps(node.scalar) if node.kind in ("number", "bool") else ""
        advice = f'write "{literal}", with quotes' if literal else ""
        if not self._is(node, "string", path, advice=advice):
            return
        value = node.scalar
        if kind.values and value and value not in kind.values:
            like = catalogue.near(value, list(kind.values))
            advice = f"did you mean {like}? " if like else ""
            known = ", ".join(kind.values)
            message = f'{path} is "{value}"'
            code = "ignored-value" if kind.ignores_others else "value"
            self._report.add(node, code, path, message, f"{advice}it is one of {known}")
        elif kind.form:
            reason = problem(kind.form, value)
            if reason:
                form = FORMS[kind.form]
                advice = f"it is {form.name}, like {form.example}"
                self._report.add(node, "form", path, f"{path}: {reason}", advice)

    def _many(self, node: Node, kind: Many, path: str) -> None:
        if not self._is(node, "array", path):
            return
        for index, item in enumerate(node.items):
            if item.kind != "null":
                self.value(item, kind.of, f"{path}[{index}]")
        if kind.most is not None and len(node.items) > kind.most:
            message = f"{path} has {len(node.items)} entries"
            self._report.add(node, "range", path, message, f"at most {kind.most} are possible")

    def _table(self, node: Node, kind: Table, path: str) -> None:
        if not self._is(node, "object", path):
            return
        self.repeated(node, path, exact=True)
        parameters: dict[str, str] = {}
        for member in node.members:
            where = below(path, member.key)
            reason = problem(kind.form, member.key) if kind.form else ""
            if reason:
                form = FORMS[kind.form]
                advice = f"it is {form.name}, like {form.example}"
                self._report.add(member, "form", where, f"{member.key}: {reason}", advice)
            elif kind.form == "sysctl" and _sets_something(member.node):
                self._same_parameter(member, where, parameters)
            if member.node.kind != "null":
                self.value(member.node, kind.of, where)

    def _same_parameter(self, member: Member, path: str, seen: dict[str, str]) -> None:
        """Note a parameter that two spellings name. An empty key, which has no form, is none."""
        try:
            name = sysctl.parse(member.key)
        except ValueError as error:
            self._report.add(member, "form", path, str(error), "remove it")
            return
        first = seen.setdefault(name, member.key)
        if first != member.key:
            message = f"{member.key} is the same parameter as {first}"
            self._report.add(member, "duplicate-key", path, message, "remove one of them")

    # --- objects of other plugins ---

    def _ipam(self, node: Node, kind: IpamRecord, path: str) -> None:
        if not self._is(node, "object", path):
            return
        name = text_at(node, "type") or kind.default
        helper = catalogue.plugin(name) if name else None
        if helper is not None and helper.place != "ipam":
            kinds = ", ".join(catalogue.IPAM_NAMES)
            member = node.get("type") or node
            message = f"{name} is no IPAM plugin"
            self._report.add(member, "type-of-plugin", below(path, "type"), message, f"as {kinds}")
            return
        keys = [each for each in node.members if each.key.lower() != "type"]
        if not name and keys and node.get("type") is None:
            message = f"{path} has no type: its keys have no effect"
            advice = 'add "type": "host-local", or the plugin that is meant'
            self._report.add(node, "missing-key", path, message, advice)
            return
        self.record(node, catalogue.ipam_keys(name), path)

    def _delegate(self, node: Node, kind: DelegateRecord, path: str) -> None:
        if not self._is(node, "object", path):
            return
        described = catalogue.plugin(text_at(node, "type") or kind.default)
        if described is None:
            return
        # flannel adds what is missing, so nothing is required.
        keys = [_optional(key) for key in catalogue.whole(described, "host-local").keys]
        Walk(self._report, described).record(node, Record(tuple(keys)), path)

    # --- combinations ---

    def rules_of(self, node: Node, described: Plugin, path: str) -> None:
        """Apply a plugin's rules to the object `node`."""
        get = getter(node)
        for rule in described.rules:
            if rule.broken(get):
                members = [(each, name) for name in rule.keys if (each := node.at(name))]
                # Without any of the keys the finding is about the whole object.
                where, name = members[0] if members else (node, "")
                severity = WARNING if rule.is_warning else ERROR
                place = below(path, name) if name else path
                self._report.add(
                    where, "combination", place, rule.message, rule.advice, severity=severity
                )


def _optional(key: Key) -> Key:
    return replace(key, required=False)


def _ipam_names() -> set[str]:
    """The keys of all IPAM plugins' objects, in lower case."""
    return {
        key.name.lower() for name in catalogue.IPAM_NAMES for key in catalogue.ipam_keys(name).keys
    }


def _sets_something(node: Node) -> bool:
    return node.kind == "string" and bool(node.scalar.strip())


def _for_example(key: Key) -> str:
    example = words.example(key)
    return f"for example {example}" if example else ""


def _bounds(kind: Number) -> str:
    if kind.high is None:
        text = f"{kind.low} or more"
    elif kind.low is None:
        text = f"{kind.high} or less"
    else:
        text = f"{kind.low} to {kind.high}"
    return f"{text}, or 0" if kind.or_zero else text


def _shown(node: Node) -> str:
    """``a string: "1500"``; only what an object is, not what is in it."""
    if node.kind in ("object", "array"):
        return _A[node.kind]
    text = json.dumps(node.scalar, ensure_ascii=False)
    return f"{_A[node.kind]}: {text if len(text) <= 40 else text[:39] + '…'}"
