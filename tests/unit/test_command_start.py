"""What a command imports before it works: each takes a person, and a script, longer."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cni
from cni.standins import click_

ROOT = Path(cni.__file__).parent.parent
PACKAGES = Path(pytest.__file__).parent.parent
# Each costs two milliseconds or more, and `cni ps` needs none of them.
COSTLY = ("ast", "dis", "tokenize", "bz2", "lzma", "_hashlib", "dataclasses", "difflib")

START = """
import sys
sys.path[:0] = sys.argv[1:3]
sys.modules["typing_extensions"] = None  # of the developers' tools: it is in no built file
sys.argv[:] = ["cni", *sys.argv[3:]]
from cni.__main__ import main
main()
print(*sys.modules, "inspect.signature" if "signature" in vars(sys.modules["inspect"]) else "")
"""


def loaded(*arguments: str, **env: str) -> set[str]:
    """The modules that a command has loaded when it ends."""
    command = [sys.executable, "-I", "-S", "-c", START, str(ROOT), str(PACKAGES), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_nothing_costly(tmp_path: Path) -> None:
    env = {"NETCONFPATH": str(tmp_path)}
    assert not loaded("validate", **env) & {*COSTLY, "inspect.signature"} - {"dataclasses"}
    assert not loaded("schema", "bridge", **env) & {*COSTLY, "inspect.signature"}


def test_off(tmp_path: Path) -> None:
    found = loaded("schema", "bridge", CNI_STANDINS="off", NETCONFPATH=str(tmp_path))
    assert {"ast", "inspect.signature"} <= found


TEXTS = st.text(st.sampled_from("ab \t\n"), max_size=30)


@given(TEXTS)
def test_cleandoc(text: str) -> None:
    assert click_.cleandoc(text) == inspect.cleandoc(text)


@pytest.mark.parametrize("value", [print, test_cleandoc, lambda: 0, click_.Front, 7])
def test_is_function(value: object) -> None:
    assert click_.is_function(value) == inspect.isfunction(value)


def test_system() -> None:
    assert click_.system() == platform.system()


def test_another_name_is_the_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "textwrap", raising=False)
    front = click_.Front("textwrap", indent=None)
    assert sys.modules["textwrap"] is front
    assert front.dedent("  a") == "a"
    assert front.indent("a", " ") == " a"
    with pytest.raises(AttributeError):
        front.no_such_name  # noqa: B018
