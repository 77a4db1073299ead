"""docs/reference.md names the environment variables that the code reads, and no others."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference.md").read_text()
SECTION = PAGE.partition("## Environment variables")[2].partition("\n## ")[0]
# Families of names. A text in the code that is nothing but such a name is a variable.
FAMILY = re.compile(
    r"(?:CNI|OTEL|NETCONF|XTABLES|DBUS|LISTEN|NOTIFY|KUBERNETES)_?[A-Z0-9][A-Z0-9_]*"
    r"|CAP_ARGS|TRACEPARENT|TRACESTATE|NODENAME|NO_COLOR"
)
# Names of that form that are something else, or are of no use to anybody but the code.
OTHERS = {
    "CNI_SERVE_COUNT": "a server tells the next build how many requests it has served",
}
# Of no family, since words like these mean much else; BAGGAGE is handed on, and not read.
NOT_HERE = {"PATH", "TERM", "COLUMNS", "BAGGAGE"}


@cache  # to parse all modules takes a second
def texts(path: Path) -> set[str]:
    if path.suffix != ".py":
        return set(re.findall(r'"([A-Z][A-Z0-9_]+)"', path.read_text()))
    tree = ast.parse(path.read_text())
    return {
        each.value
        for each in ast.walk(tree)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    }


def read() -> set[str]:
    """The variables that the code names, without the fields of the journal."""
    fields = texts(ROOT / "cni/record/journal.py")
    files = [*(ROOT / "cni").rglob("*.py"), *(ROOT / "launcher").glob("*.c")]
    shared = {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"}  # a field and a variable
    found = {each for path in files if path.name != "journal.py" for each in texts(path)}
    return {each for each in found if FAMILY.fullmatch(each)} - (fields - shared) - set(OTHERS)


def listed() -> set[str]:
    return set(re.findall(r"`([A-Z][A-Z0-9_]+)`", SECTION)) - {"CNI_MSG"}


def test_each_variable_is_on_the_page() -> None:
    assert len(read()) > 30
    assert sorted(read() - listed()) == []


def test_the_page_names_no_others() -> None:
    assert sorted(listed() - read() - NOT_HERE) == []


def test_each_exception_is_in_the_code() -> None:
    names = set().union(*(texts(each) for each in (ROOT / "cni").rglob("*.py")))
    assert set(OTHERS) <= names
