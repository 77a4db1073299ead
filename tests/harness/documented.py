"""Command lines and configurations of the documentation, as a reader would copy them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# An example that stands for others: [--option], A|B, and so on.
_SYNTAX = re.compile(r"[\[…]|(?<=\S)\|(?=\S)|\b[A-Z]{4,}\b")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language (``sh``, ``json``, "" …) and text of each block, in order; indented ones are sh."""
    text = (ROOT / page).read_text()
    found: list[tuple[int, str, str]] = []
    for match in _FENCE.finditer(text):
        found.append((match.start(), match[1], match[2]))
    outside = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    for match in re.finditer(r"(?:^    \S.*\n)+", outside, re.MULTILINE):
        lines = [line[4:] for line in match[0].splitlines()]
        line = outside[: match.start()].count("\n")
        found.append((_offset(text, line), "sh", "\n".join(lines) + "\n"))
    return iter([each[1:] for each in sorted(found)])


def _offset(text: str, line: int) -> int:
    return sum(len(each) + 1 for each in text.split("\n")[:line])


def commands(page: str) -> Iterator[str]:
    """What a shell is given: lines of `sh` blocks (a here-document is one), and after ``$ ``."""
    for language, text in blocks(page):
        lines = iter(text.splitlines())
        for line in lines:
            if language in ("sh", "shell", "bash"):
                yield _whole(line, lines)
            elif line.startswith("$ "):
                yield line[2:]


def _whole(line: str, lines: Iterator[str]) -> str:
    end = re.search(r"<<'?(\w+)'?$", line)
    if end is None:
        return re.sub(r"\s+# .*$", "", line)
    text = [line]
    for more in lines:
        text.append(more)
        if more == end[1]:
            break
    return "\n".join(text)


def is_syntax(command: str) -> bool:
    """Does it stand for others, so that it cannot be run as it is? Quoted JSON does not."""
    plain = re.sub(r"'\{[^'…]*\}'", "{}", command)
    return "\n" not in plain and _SYNTAX.search(plain) is not None


def cni_words(command: str) -> list[str]:
    """The words after `cni` of a line of syntax, without brackets."""
    plain = re.sub(r"[\[\]]", " ", command)
    return shlex.split(plain, comments=True)[1:]


def configurations(page: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of ``json`` blocks."""
    for language, text in blocks(page):
        if language == "json":
            value = json.loads(text)
            assert isinstance(value, dict)
            yield value
