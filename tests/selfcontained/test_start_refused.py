"""A system call at the start that the kernel refuses: an answer, or one error object.

A seccomp profile may refuse any of them, and memory may be short at any. What the interpreter says
then in its own way (a traceback, `Fatal Python error`) is not for a runtime.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.harness.netns import BARE_ENV

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

REQUEST = {**BARE_ENV, "CNI_COMMAND": "VERSION", "CNI_SERVER": "off"}
# Without these there is no program (beginning, end, thread pointer), and no answer.
NOT_ASKED = ("execve", "exit_group", "arch_prctl", "write")


@pytest.fixture
def bridge(program: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bridge"
    path.symlink_to(program)
    return path


def traced(bridge: Path, choice: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-o", bridge.with_name("trace"), *words, bridge],
        env={**REQUEST, "CNI_SNAPSHOT": choice},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def is_told(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether stdout has the answer or an error, and stderr nothing."""
    try:
        said = json.loads(done.stdout)
    except ValueError:
        return False
    wanted = "supportedVersions" if done.returncode == 0 else "msg"
    return wanted in said and done.returncode in (0, 1) and not done.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("choice", "often", "error"),
    [
        pytest.param(
            choice, often, error, id=f"{way}, {error} {'from then on' if often else 'once'}"
        )
        for choice, way in (("on", "snapshot"), ("off", "plain"))
        for often, error in (("", "EPERM"), ("+", "EPERM"), ("", "ENOMEM"), ("+", "ENOMEM"))
        # a plain start makes four times as many calls, and takes ten times as long
        if choice == "on" or (often, error) in (("", "ENOMEM"), ("+", "EPERM"))
    ],
)
def test_each_system_call_refused(bridge: Path, choice: str, often: str, error: str) -> None:
    assert is_told(traced(bridge, choice))
    names = re.findall(r"^(\w+)\(", bridge.with_name("trace").read_text(), re.MULTILINE)
    assert {"mmap", "rt_sigaction", "rt_sigprocmask"} <= set(names)
    seen: Counter[str] = Counter()
    problems = []
    for name in names:
        seen[name] += 1
        if name in NOT_ASKED:
            continue
        done = traced(bridge, choice, "-e", f"inject={name}:error={error}:when={seen[name]}{often}")
        if not is_told(done):
            problems.append(f"{name} {seen[name]}: {done.returncode} {done.stdout} {done.stderr}")
    assert not problems, "\n".join(problems)
