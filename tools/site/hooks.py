"""What mkdocs reads differently from forges, put into its form: the pages stay as they are."""

from __future__ import annotations

import re
from typing import Any

_QUOTED = re.compile(r"^```(\w+) (\S+)$")
_ITEM = re.compile(r"^(?:[-*+]|\d+\.) ")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Give a quotation of a file its name as a title, and lists and blocks a blank line before."""
    lines: list[str] = []
    in_block = False
    for written in markdown.splitlines():
        line = written
        before = lines[-1] if lines else ""
        if line.startswith("```"):
            if not in_block and before:
                lines.append("")
            in_block = not in_block
            line = _QUOTED.sub(r'```\1 title="\2"', line)
        elif not in_block and _ITEM.match(line) and before and not _continues(lines):
            lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _continues(lines: list[str]) -> bool:
    """Is the last line an item of a list, or its continuation?"""
    for line in reversed(lines):
        if not line:
            return False
        if _ITEM.match(line):
            return True
        if not line.startswith(" "):
            return False
    return False
