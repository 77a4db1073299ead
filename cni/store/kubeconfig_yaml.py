"""YAML as kubeconfigs are written: block mappings and sequences, scalars in one line, `|` texts.

A few percent of YAML, and strict: whatever else there is (anchors, tags, flow mappings, folded
texts, several documents) is an error and never misread. A library would be 0.2 MB in every file and
30 ms in a request that claims a block, for one file that others can write as JSON.
"""

from __future__ import annotations

import re
from typing import Any

_PLAIN_KEY = re.compile(
    r"([A-Za-z0-9_./@+-](?:[A-Za-z0-9_./@+ -]*[A-Za-z0-9_./@+-])?)[ \t]*:(?:[ \t]+|$)"
)
_QUOTED_KEY = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')[ \t]*:(?:[ \t]+|$)""")
_NUMBER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
# What some reader of YAML takes for a number, a boolean or a null, and some other for a string.
_DOUBTFUL = re.compile(
    r"(?i)[-+]?(\.\d+|\d[\d_]*(\.\d*)?)(e[-+]?\d+)?|[-+]?0[xob][\da-f_]+|[-+]?\.(inf|nan)"
    r"|\d+(:[0-5]?\d)+|yes|no|on|off|y|n|true|false|null"
)
# Some take these for the end of a line, or refuse them.
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_BLANKS = " \t"
_SPECIAL = frozenset("!&*[]{}|>%@`,?#\"'")
_WORDS: dict[str, Any] = {"null": None, "~": None, "": None, "true": True, "false": False}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "/": "/", "0": "\0"}

_Line = tuple[int, str, int]  # spaces in front, text, number in the file


def decode(text: str) -> Any:
    """The value of the document: dicts, lists, strings, integers, booleans and None.

    Raises ValueError, with the number of the line.
    """
    reader = _Reader(text.replace("\r\n", "\n"))
    value = reader.block(0) if reader.lines else None
    if reader.at < len(reader.lines):
        raise reader.error("is indented in a way that does not fit")
    return value


class _Reader:
    def __init__(self, text: str) -> None:
        odd = _ODD.search(text)
        if odd:
            number = text.count("\n", 0, odd.start()) + 1
            raise ValueError(f"line {number} has the character U+{ord(odd[0]):04X}")
        self.raw = text.split("\n")
        self.lines: list[_Line] = []
        self.at = 0
        for number, line in enumerate(self.raw, 1):
            stripped = line.strip(_BLANKS)
            if not stripped or stripped.startswith("#") or (stripped == "---" and not self.lines):
                continue
            indent = len(line) - len(line.lstrip(" "))
            if line[indent] == "\t":
                raise ValueError(f"line {number} is indented by a tab")
            self.lines.append((indent, stripped, number))

    def error(self, why: str) -> ValueError:
        return ValueError(f"line {self.lines[self.at][2]} {why}")

    def block(self, indent: int) -> Any:
        """The value that begins in the present line, at `indent` or deeper."""
        here, text, _ = self.lines[self.at]
        if here < indent:
            return None
        if text == "-" or text.startswith("- "):
            return self._sequence(here)
        if _key(text) is not None:
            return self._mapping(here)
        value = self._scalar(text)
        self.at += 1
        return value

    def _sequence(self, indent: int) -> list[Any]:
        items: list[Any] = []
        while self.at < len(self.lines):
            here, text, number = self.lines[self.at]
            if here != indent or not (text == "-" or text.startswith("- ")):
                break
            rest = text[1:].lstrip(_BLANKS)
            if not rest or rest.startswith("#"):
                self.at += 1
                items.append(self._deeper(indent))
            else:
                # What stands behind the dash is a block of its own, that much further in.
                self.lines[self.at] = (indent + len(text) - len(rest), rest, number)
                items.append(self.block(indent + 1))
        return items

    def _mapping(self, indent: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.at < len(self.lines) and self.lines[self.at][0] == indent:
            split = _key(self.lines[self.at][1])
            if split is None:
                raise self.error("has no key")
            key, rest = split
            if key in found:
                raise self.error(f"has the key {key} again")
            found[key] = self._value(indent, rest)
        return found

    def _value(self, indent: int, rest: str) -> Any:
        if rest in ("|", "|-"):
            return self._text(indent, keep=rest == "|")
        if rest and not rest.startswith("#"):
            value = self._scalar(rest)
            self.at += 1
            return value
        self.at += 1
        if self.at < len(self.lines):
            here, text, _ = self.lines[self.at]
            # A sequence may stand at the key's own depth.
            if here == indent and (text == "-" or text.startswith("- ")):
                return self._sequence(indent)
        return self._deeper(indent)

    def _deeper(self, indent: int) -> Any:
        if self.at < len(self.lines) and self.lines[self.at][0] > indent:
            return self.block(indent + 1)
        return None

    def _text(self, indent: int, keep: bool) -> str:
        """A literal text: all lines that are further in than its key."""
        number = self.lines[self.at][2]
        lines: list[str] = []
        for line in self.raw[number:]:
            if line.strip(_BLANKS) and len(line) - len(line.lstrip(" ")) <= indent:
                break
            lines.append(line)
        while lines and not lines[-1].strip(_BLANKS):
            lines.pop()
        last = number + len(lines)
        self.at += 1
        while self.at < len(self.lines) and self.lines[self.at][2] <= last:
            self.at += 1
        if not lines:
            return ""
        depth = len(lines[0]) - len(lines[0].lstrip(" "))
        if any(line.strip(_BLANKS) and line[:depth].strip() for line in lines):
            raise ValueError(f"line {number + 1} begins a text of uneven indentation")
        return "\n".join(line[depth:] for line in lines) + ("\n" if keep else "")

    def _scalar(self, text: str) -> Any:
        if text[0] in "\"'":
            return self._quoted(text)
        text = re.split(r"[ \t]#", text, maxsplit=1)[0].rstrip(_BLANKS)
        if text in ("{}", "[]"):
            return {} if text == "{}" else []
        if text[0] in _SPECIAL or ": " in text or text.endswith(":") or text.startswith("- "):
            raise self.error(f"has something that is not understood here: {text[:40]}")
        if text in _WORDS:
            return _WORDS[text]
        if _NUMBER.fullmatch(text):
            return int(text)
        if _DOUBTFUL.fullmatch(text):
            raise self.error(f"has {text}, which may be a string or not: write it in quotes")
        return text

    def _quoted(self, text: str) -> str:
        match = re.match(r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')[ \t]*([ \t]#.*)?$""", text)
        if match is None:
            raise self.error("has a quoted string that does not end there")
        try:
            return _unquoted(match[1])
        except KeyError as error:
            raise self.error(f"has an escape that is not understood: \\{error.args[0]}") from None


def _key(text: str) -> tuple[str, str] | None:
    """Key and rest of a line `key: rest`; None if it is none."""
    match = _QUOTED_KEY.match(text)
    if match:
        return _unquoted(match[1]), text[match.end() :]
    match = _PLAIN_KEY.match(text)
    return (match[1], text[match.end() :]) if match else None


def _unquoted(text: str) -> str:
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    return re.sub(r"\\(.)", lambda found: _ESCAPES[found[1]], text[1:-1])
