"""A tree of boxes as text with lines, as a graph for Graphviz, and as SVG."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from .output import printable
from .table import cell_width

_CHAR, _LINE, _GAP, _INDENT = 7.3, 26, 10, 36  # pixels of the SVG, whose font has 12
# Fill and edge of a box by what it stands for.
_COLOURS = {
    "node": ("#e8eaf0", "#39424e"),
    "container": ("#e6f4ea", "#1e7f3c"),
    "dead": ("#fce8e6", "#b3261e"),
}
_OTHER = ("#e7f0fb", "#1f5fa8")


class Box(NamedTuple):
    """A box with its text, what it stands for, and the boxes that hang on it."""

    label: str
    kind: str
    children: list[Box]


def text(root: Box) -> str:
    """Lines, as tree(1) draws them."""
    return "\n".join([printable(root.label, keep=""), *_branches(root, "")]) + "\n"


def _branches(box: Box, indent: str) -> Iterator[str]:
    for child in box.children:
        last = child is box.children[-1]
        yield f"{indent}{'└─' if last else '├─'} {printable(child.label, keep='')}"
        yield from _branches(child, indent + ("   " if last else "│  "))


def dot(root: Box) -> str:
    """The language of Graphviz."""
    lines = ["graph cni {", "  rankdir=LR;", '  node [shape=box, fontname="sans-serif"];']
    numbered = list(_numbered(root))
    for number, _, box in numbered:
        fill, edge = _COLOURS.get(box.kind, _OTHER)
        # Graphviz escapes quotes and backslashes as JSON does; nothing else to escape is left in
        # it.
        label = json.dumps(printable(box.label, keep=""), ensure_ascii=False)
        lines.append(
            f'  n{number} [label={label}, style=filled, fillcolor="{fill}", color="{edge}"];'
        )
    lines += [f"  n{parent} -- n{number};" for number, parent, _ in numbered if parent]
    return "\n".join([*lines, "}"]) + "\n"


def _numbered(root: Box) -> Iterator[tuple[int, int, Box]]:
    """Number, number of the parent (0: none), and box; depth first."""
    count = 0

    def walk(box: Box, parent: int) -> Iterator[tuple[int, int, Box]]:
        nonlocal count
        count += 1
        number = count
        yield number, parent, box
        for child in box.children:
            yield from walk(child, number)

    return walk(root, 0)


class _Placed(NamedTuple):
    """A box in the drawing: its row, its depth, and the row of its parent."""

    row: int
    depth: int
    parent: int
    box: Box


def svg(root: Box) -> str:
    """A drawing: one box a line, each level further to the right."""
    placed = list(_rows(root))
    width = max(each.depth * _INDENT + _width(each.box) for each in placed) + 2 * _GAP
    height = len(placed) * (_LINE + _GAP) + _GAP
    body = [line for each in placed for line in _drawn(each)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
            f'viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, monospace" '
            'font-size="12">',
            f"<title>{_xml(root.label)}</title>",
            f'<rect width="{width:.0f}" height="{height}" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )


def _rows(root: Box) -> Iterator[_Placed]:
    row = -1

    def walk(box: Box, depth: int, parent: int) -> Iterator[_Placed]:
        nonlocal row
        row += 1
        own = row
        yield _Placed(own, depth, parent, box)
        for child in box.children:
            yield from walk(child, depth + 1, own)

    return walk(root, 0, -1)


def _drawn(each: _Placed) -> Iterator[str]:
    left, top = _GAP + each.depth * _INDENT, _top(each.row)
    middle = top + _LINE / 2
    if each.parent >= 0:
        x, y = left - _INDENT / 2, _top(each.parent) + _LINE
        yield (f'<path d="M{x:.0f} {y:.0f} V{middle:.0f} H{left}" fill="none" stroke="#8a94a0"/>')
    fill, edge = _COLOURS.get(each.box.kind, _OTHER)
    yield (
        f'<rect x="{left}" y="{top:.0f}" width="{_width(each.box):.0f}" height="{_LINE}" rx="4" '
        f'fill="{fill}" stroke="{edge}"/>'
    )
    yield (
        f'<text x="{left + _GAP}" y="{middle + 4:.0f}" xml:space="preserve">'
        f"{_xml(each.box.label)}</text>"
    )


def _top(row: int) -> float:
    return _GAP + row * (_LINE + _GAP)


def _width(box: Box) -> float:
    return cell_width(printable(box.label, keep="")) * _CHAR + 2 * _GAP


def _xml(label: str) -> str:
    return escape(printable(label, keep=""), quote=False)
