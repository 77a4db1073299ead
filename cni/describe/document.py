"""A JSON document with the position of each key and value, as Go's decoder takes it.

The reader of cni/protocol/gojson.py decides what is JSON; this module adds the positions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from msgspec import Struct

from cni.protocol import gojson

_KINDS = {str: "string", bool: "bool", int: "number", float: "number", type(None): "null"}


class Member(NamedTuple):
    """A key of an object; `start` is where its opening quotation mark is."""

    key: str
    start: int
    node: Node


class Node(Struct):
    """A value: its kind is ``object``, ``array``, ``string``, ``number``, ``bool`` or ``null``.

    `start` is its offset in the text. `scalar` is the value if it is neither object nor array.
    """

    kind: str
    start: int
    scalar: Any = None
    members: list[Member] = []
    items: list[Node] = []

    def get(self, key: str, *, exact: bool = False) -> Member | None:
        """The last member of that key, in any case unless `exact`; null counts as absent."""
        found = None
        for each in self.members:
            same = each.key == key if exact else each.key.lower() == key.lower()
            if same and each.node.kind != "null":
                found = each
        return found

    def at(self, path: str) -> Member | None:
        """The member that ``a.b.c`` leads to; None if there is none."""
        node, member = self, None
        for name in path.split("."):
            member = node.get(name)
            if member is None:
                return None
            node = member.node
        return member

    def plain(self) -> Any:
        """The value as Go decodes it: objects of a key that is given twice are merged."""
        if self.kind == "array":
            return [each.plain() for each in self.items]
        if self.kind != "object":
            return self.scalar
        out: dict[str, Any] = {}
        for each in self.members:
            # The document keeps both members, so that the repetition can be a finding.
            gojson.merge(out, each.key, each.node.plain())
        return out


class Malformed(ValueError):
    """The text is no JSON: `start` is where."""

    def __init__(self, text: str, start: int) -> None:
        super().__init__(text)
        self.start = start


class Document:
    """A text with its root. Raises Malformed."""

    def __init__(self, data: bytes) -> None:
        # As Go, which replaces bytes that are no UTF-8.
        self.text = data.decode("utf-8", "replace")
        self._lines = [0, *_line_starts(self.text)]
        reader = _Reader(self.text)
        try:
            self.root = reader.root()
        except ValueError as error:
            raise Malformed(str(error), min(reader.at, len(self.text))) from None

    def position(self, start: int) -> tuple[int, int]:
        """Line and column of an offset, both from 1; a column counts characters."""
        return position(self._lines, start)


def position_in(data: bytes, start: int) -> tuple[int, int]:
    """As Document.position, for a text that is not parsed."""
    return position([0, *_line_starts(data.decode("utf-8", "replace"))], start)


def position(lines: list[int], start: int) -> tuple[int, int]:
    """Line and column of an offset, where `lines` are the offsets at which lines begin."""
    # Bisected, because a document with many findings would otherwise be read anew for each.
    line = bisect_right(lines, start)
    return line, start - lines[line - 1] + 1


def _line_starts(text: str) -> Iterator[int]:
    at = text.find("\n")
    while at >= 0:
        yield at + 1
        at = text.find("\n", at + 1)


class _Reader(gojson.Reader):
    """Builds nodes. Leaves out values below gojson.DEPTH, which no plugin reads.

    `_read` is the last key, and its start.
    """

    _read = ("", 0)

    def root(self) -> Node:
        self.skip_space()
        node = self._node()
        self.skip_space()
        if self.at < len(self.text):
            raise self.invalid("after top-level value")
        return node

    def _node(self) -> Node:
        """The value at this place; a stack holds the open objects and lists."""
        # Not recursive: Go accepts deeper documents than Python's stack.
        open_nodes: list[Node] = []
        while True:
            self.skip_space()
            node = self._begin(len(open_nodes))
            if open_nodes:
                self._put(open_nodes, node)
            if node.kind in ("object", "array") and not self._ends(node, first=True):
                open_nodes.append(node)
            else:
                while open_nodes and self._ends(open_nodes[-1], first=False):
                    node = open_nodes.pop()
                if not open_nodes:
                    return node

    def _begin(self, depth: int) -> Node:
        """The scalar at this place, or the object or array that begins here."""
        start, opening = self.at, self.peek()
        if opening not in ("{", "["):
            value = self.scalar()
            return Node(_KINDS[type(value)], start, value)
        if depth == gojson.GO_DEPTH:
            raise ValueError("exceeded max depth")
        self.at += 1
        return Node("object" if opening == "{" else "array", start)

    def _put(self, open_nodes: list[Node], node: Node) -> None:
        """Make `node` a part of the innermost open node."""
        holder = open_nodes[-1]
        if holder.kind == "object":
            key, start = self._read
            kept = node if len(open_nodes) < gojson.DEPTH else Node("null", node.start)
            holder.members.append(Member(key, start, kept))
        elif len(open_nodes) < gojson.DEPTH:
            holder.items.append(node)

    def _ends(self, node: Node, *, first: bool) -> bool:
        """Read the end of an object or array; or what stands before its next value."""
        end = "}" if node.kind == "object" else "]"
        self.skip_space()
        mark = self.peek()
        if mark == end:
            self.at += 1
            return True
        if not first:
            if mark != ",":
                what = "object key:value pair" if end == "}" else "array element"
                raise self.invalid(f"after {what}")
            self.at += 1
        if end == "}":
            self._read_key()
        return False

    def _read_key(self) -> None:
        self.skip_space()
        start = self.at
        if self.peek() != '"':
            raise self.invalid("looking for beginning of object key string")
        self._read = (self.string(), start)
        self.skip_space()
        if self.peek() != ":":
            raise self.invalid("after object key")
        self.at += 1
