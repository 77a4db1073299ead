"""A row of the table: a check and its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .. import output
from ..table import Column, Table

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
MARKS = {OK: "✓", FAILED: "✗", SKIPPED: "–"}
FAMILIES = {4: "IPv4", 6: "IPv6", 0: ""}
_NAME_WIDTH, _FAMILY_WIDTH = 15, 4
_INDENT = 2 + _NAME_WIDTH + 2 + _FAMILY_WIDTH + 2


class Row(NamedTuple):
    """`family` is 4, 6 or 0 (of no family); `remedy` says what mends it, if it failed."""

    check: str
    family: int
    state: str
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For programs; the family is null for a check of no family."""
        return {**self._asdict(), "family": self.family or None}

    @property
    def name(self) -> str:
        """``gateway/IPv4``."""
        return f"{self.check}/{FAMILIES[self.family]}".rstrip("/")


def passed(check: str, family: int, text: str) -> Row:
    return Row(check, family, OK, text)


def failed(check: str, family: int, text: str, remedy: str) -> Row:
    return Row(check, family, FAILED, text, remedy)


def skipped(check: str, family: int, why: str) -> Row:
    return Row(check, family, SKIPPED, why)


def table(rows: list[Row]) -> Table:
    """All of it, for -o wide."""
    columns = [Column(""), Column("CHECK"), Column("FAMILY"), Column("RESULT"), Column("REMEDY")]
    cells = [
        [MARKS[each.state], each.check, FAMILIES[each.family], each.text, each.remedy]
        for each in rows
    ]
    return Table(columns, cells)


def lines(row: Row) -> Iterator[str]:
    """The row for people: long texts continue on further lines, and a remedy comes below."""
    head = f"{MARKS[row.state]} {row.check:{_NAME_WIDTH}}  {FAMILIES[row.family]:{_FAMILY_WIDTH}}  "
    for piece in _wrapped(row.text):
        yield head + piece
        head = " " * _INDENT
    for piece in _wrapped(row.remedy) if row.remedy else ():
        yield f"{head}{piece}" if head.strip() else f"{' ' * (_INDENT - 2)}> {piece}"


def _wrapped(text: str) -> list[str]:
    text = output.printable(text, keep="").strip()
    if not output.is_terminal():
        return [text]
    return output.wrapped(text, output.terminal_width() - _INDENT)
