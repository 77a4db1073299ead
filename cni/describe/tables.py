"""The tables of keys in the documentation, between two markers of a page.

    <!-- keys of bridge -->
    | key | type | default | meaning |
    …
    <!-- end of keys -->

`python -m cni.describe.tables docs` writes them anew; with `--check` it only says which differ.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from . import words
from .catalogue import below, entries, plugin
from .common import COMMON, DNS, LIST, ROUTE
from .model import Key, Record

_BLOCK = re.compile(r"(<!-- keys of ([\w-]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)


def table(name: str) -> str:
    """The table of a plugin, or of ``list``, ``common``, ``route`` or ``dns``."""
    others = {"list": LIST, "common": COMMON, "route": ROUTE.keys, "dns": DNS.keys}
    if name in others:
        return _table((key.name, key) for key in others[name] if key.text)
    described = plugin(name)
    if described is None:
        raise KeyError(name)
    rows = [(path, key) for path, key in entries(described) if is_row(path, key)]
    rows += [(f"CNI_ARGS.{key.name}", key) for key in described.args]
    return _table(rows)


def is_row(path: str, key: Key) -> bool:
    """Not what only holds other keys, nor the parts of routes, DNS settings and given ranges."""
    if re.search(r"^(?:ipam\.)?(?:routes|dns)\.|ipRanges\.", path):
        return False
    return path not in ("args", "args.cni", "runtimeConfig") and not (
        isinstance(key.kind, Record) and not key.text
    )


def _table(rows: Iterable[tuple[str, Key]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for path, key in rows:
        lines.append(f"| `{path}` | {words.kind(key.kind)} | {_default(key)} | {_meaning(key)} |")
    return "\n".join(line.replace("|  |", "| |") for line in lines) + "\n"


def _default(key: Key) -> str:
    text = words.default(key)
    is_value = not key.required and key.default not in (None, [], {})
    return f"`{text}`" if is_value else text


def _meaning(key: Key) -> str:
    more = below(key.kind)
    text = f"{key.text}; {more}" if more else key.text
    remarks = " ".join(words.remarks(key))
    return f"{text}. *{remarks}*" if remarks else text


def written(page: str) -> str:
    """A page with the tables that belong there."""
    return _BLOCK.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", page)


def main(arguments: list[str]) -> int:
    """Write the tables of all pages below a directory, or compare them: the exit code."""
    wrong = 0
    for path in sorted(Path(arguments[0]).rglob("*.md")):
        old = path.read_text()
        new = written(old)
        if new == old:
            continue
        if "--check" in arguments:
            wrong += 1
            sys.stderr.write(f"{path}: its tables differ from cni/describe\n")
        else:
            path.write_text(new)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
