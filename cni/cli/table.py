"""Tables for people: columns that fit the terminal, states in colour.

    Table([Column("ID", cut="end"), Column("ADDRESS")], rows)

On a terminal a table has at most its width: columns are cut as far as each allows, the widest
first; then columns are left out, the least important first. Otherwise the table is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_GAP = 2
_ELLIPSIS = "…"
# The colours of states (of what was looked at, and of what was found wrong).
COLOURS = {
    "alive": "green",
    "up": "green",
    "gone": "red",
    "of an earlier boot": "red",
    "down": "red",
    "unknown": "yellow",
}


class Column(NamedTuple):
    """A column. `cut` says how a cell becomes shorter: "" never, "end", "middle" (paths).

    `least` is what it may be cut to, in columns of the terminal. `drop` is the order in which
    columns are left out when all are cut: the highest first, 0 never. `wide` ones are for -o wide.
    """

    title: str
    cut: str = ""
    least: int = 8
    drop: int = 0
    wide: bool = False
    right: bool = False


class Table(NamedTuple):
    """Columns, and rows with a cell for each. Cells are printable text of one line."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def fitted(self, width: int | None, *, wide: bool = False) -> Table:
        """The columns that are shown in `width` (None: all the room there is), with cut cells."""
        shown = [at for at, column in enumerate(self.columns) if wide or not column.wide]
        if width is None or wide:
            return self._only(shown)
        while len(shown) > 1 and self._least_width(shown) > width:
            last = max(shown, key=lambda at: self.columns[at].drop)
            if not self.columns[last].drop:
                break
            shown.remove(last)
        return self._only(shown)._cut(width)

    def left_out(self, shown: Sequence[Column]) -> list[str]:
        """The titles of the columns that had no room, so that `fitted` gave those of `shown`."""
        kept = {column.title for column in shown}
        return [each.title for each in self.columns if not each.wide and each.title not in kept]

    def _only(self, shown: Sequence[int]) -> Table:
        return Table(
            [self.columns[at] for at in shown], [[row[at] for at in shown] for row in self.rows]
        )

    def widths(self) -> list[int]:
        """The width of each column."""
        return [
            max([cell_width(column.title), *(cell_width(row[at]) for row in self.rows)])
            for at, column in enumerate(self.columns)
        ]

    def _least_width(self, shown: Sequence[int]) -> int:
        widths = self.widths()
        least = [
            min(widths[at], max(self.columns[at].least, cell_width(self.columns[at].title)))
            if self.columns[at].cut
            else widths[at]
            for at in shown
        ]
        return sum(least) + _GAP * (len(shown) - 1)

    def _cut(self, width: int) -> Table:
        widths = self.widths()
        excess = sum(widths) + _GAP * (len(widths) - 1) - width
        for _ in range(max(excess, 0)):
            able = [
                at
                for at, column in enumerate(self.columns)
                if column.cut and widths[at] > max(column.least, cell_width(column.title))
            ]
            if not able:
                break
            # By one at a time from the widest, so that columns end up equally narrow.
            widths[max(able, key=lambda at: widths[at])] -= 1
        return Table(
            self.columns,
            [
                [
                    shortened(cell, size, column.cut)
                    for cell, size, column in zip(row, widths, self.columns, strict=True)
                ]
                for row in self.rows
            ],
        )


def cell_width(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    # Nearly every cell: unicodedata is not loaded for it.
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    import unicodedata  # the self-contained file has to unpack it

    # It is drawn over the character before it.
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shortened(text: str, width: int, cut: str = "end") -> str:
    """`text` in at most `width` columns, with … where something is left out."""
    if cell_width(text) <= width or not cut:
        return text
    room = max(width - 1, 0)
    if cut == "middle":
        # The end of a path or an id says more than its beginning, so it gets two thirds.
        end = taken(text[::-1], room - room // 3)[::-1]
        return taken(text, room - cell_width(end)) + _ELLIPSIS + end
    return taken(text, room) + _ELLIPSIS


def taken(text: str, width: int) -> str:
    """As much of the beginning as fits."""
    used = 0
    for at, char in enumerate(text):
        used += _char_width(char)
        if used > width:
            return text[:at]
    return text


def padded(cell: str, width: int, right: bool) -> str:
    """`cell` filled up with spaces."""
    spaces = " " * (width - cell_width(cell))
    return spaces + cell if right else cell + spaces
