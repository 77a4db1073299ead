"""The launcher of the plugins on Windows, under Wine, with a stand-in for Python."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni import dispatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import build  # noqa: E402

sys.path.pop(0)

# Says how it was started, and repeats its standard input.
STAND_IN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <io.h>
#include <wchar.h>
int wmain(int argc, wchar_t **argv) {
    int c;
    _setmode(0, _O_BINARY), _setmode(1, _O_BINARY);
    for (int i = 0; i < argc; i++) printf("[%ls]", argv[i]);
    printf(" %s ", getenv("CNI_COMMAND") ? getenv("CNI_COMMAND") : "none");
    while ((c = getchar()) != EOF) putchar(c);
    fprintf(stderr, "said");
    return 7;
}
"""


def test_the_build_has_what_the_dispatch_table_has() -> None:
    assert sorted(build.WINDOWS_PLUGINS) == sorted([*dispatch.WINDOWS, "host-local", "static"])


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(build.MINGW) is None:
        pytest.skip(f"needs {build.MINGW}: apt-get install gcc-mingw-w64-x86-64")
    directory = tmp_path_factory.mktemp("win dows")  # a path with a blank in it
    return Path(build.launcher_program(directory / "win-bridge.exe"))


def test_the_launcher_is_reproducible(launcher: Path, tmp_path: Path) -> None:
    again = build.launcher_program(tmp_path / "again.exe")
    assert again.read_bytes() == launcher.read_bytes()
    assert launcher.read_bytes()[:2] == b"MZ"


@pytest.fixture(scope="module")
def wine(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., subprocess.CompletedProcess[bytes]]]:
    """Runs a program; the first run makes a prefix, which takes a while."""
    program = shutil.which("wine64") or shutil.which("wine")
    if program is None:
        pytest.skip("needs Wine: apt-get install wine64")
    prefix = tmp_path_factory.mktemp("wine")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(prefix),
        "WINEPREFIX": str(prefix / "prefix"),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
    }

    def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [program, *command],
            input=b'{"a":\r\n1\x1a}' * 20_000,
            capture_output=True,
            env={**env, **more},
            timeout=100,
        )

    first = run("cmd.exe", "/c", "exit 0")
    if first.returncode:
        pytest.skip(f"Wine does not work here: {first.stderr.decode(errors='replace')[-200:]}")
    yield run
    run("wineboot", "--kill")


@pytest.mark.slow
def test_it_starts_python(
    launcher: Path, wine: Callable[..., subprocess.CompletedProcess[bytes]]
) -> None:
    """Arguments, environment, the three streams and the exit code go through."""
    done = wine(launcher, CNI_COMMAND="ADD")
    error = json.loads(done.stdout)
    assert (done.returncode, error["code"]) == (1, 999)
    assert error["msg"].startswith("python.exe not found (error ")
    assert "cni-lib\\python" in error["details"]
    by_hand = wine(launcher)
    assert (by_hand.returncode, by_hand.stdout) == (1, b"")
    assert by_hand.stderr.startswith(b"cni: python.exe not found")

    python = launcher.parent / "cni-lib/python/python.exe"
    python.parent.mkdir(parents=True)
    source = python.with_suffix(".c")
    source.write_text(STAND_IN)
    subprocess.run([build.MINGW, "-municode", "-o", python, source], check=True)
    done = wine(launcher, "one", "two words", CNI_COMMAND="ADD")
    assert done.returncode == 7
    assert done.stderr.endswith(b"said")
    started, _, stdin = done.stdout.partition(b" ADD ")
    assert stdin == b'{"a":\r\n1\x1a}' * 20_000
    directory = "Z:" + str(launcher.parent).replace("/", "\\")
    arguments = started.decode().strip("[]").split("][")
    assert arguments == [
        f"{directory}\\cni-lib\\python\\python.exe",
        "-I",
        "-S",
        f"{directory}\\cni-lib/run.py",
        f"{directory}\\win-bridge.exe",
        "one",
        "two words",
    ]
