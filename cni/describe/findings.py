"""Findings: the faults of a configuration, and their places."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Struct

from .document import Document, Member, Node

ERROR, WARNING = "error", "warning"


class Finding(NamedTuple):
    """`code` is the kind of fault (``unknown-key``), `path` the key (``plugins[0].mtu``).

    `line` and `column` count from 1; they are 0 where a finding is about a whole file.
    """

    file: str
    line: int
    column: int
    severity: str
    code: str
    path: str
    message: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``-o json``."""
        return self._asdict()

    @property
    def place(self) -> str:
        """``FILE:LINE:COLUMN``, as editors take it."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class Report(Struct):
    """Collects the findings of one document."""

    file: str
    document: Document
    findings: list[Finding]

    def add(
        self,
        where: Node | Member,
        code: str,
        path: str,
        message: str,
        advice: str = "",
        *,
        severity: str = ERROR,
    ) -> None:
        """Note a fault at a key or value."""
        line, column = self.document.position(where.start)
        self.findings.append(
            Finding(self.file, line, column, severity, code, path, message, advice)
        )

    def has_errors(self) -> bool:
        """Was there an error?"""
        return any(each.severity == ERROR for each in self.findings)
