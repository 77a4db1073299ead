"""The Python that installed plugins run with: choosing, trying and compiling for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ..artifact import InstallError

MINIMUM = (3, 11)

# The chosen interpreter runs this on the unpacked tree. It fails if no plugin could start.
_PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import msgspec, cni.dispatch
"""


def choose_python(wanted: str | None) -> str:
    """The absolute path of a Python that is new enough: `wanted`, or else the distribution's.

    Raises InstallError naming the package to install.
    """
    candidates = (
        [wanted] if wanted else ["/usr/bin/python3", "/usr/local/bin/python3", sys.executable]
    )
    tried = []
    for candidate in candidates:
        path = shutil.which(candidate)
        version = python_version(path) if path else None
        if path and version and version >= MINIMUM:
            return os.path.abspath(path)
        verdict = f"is Python {version[0]}.{version[1]}" if version else "cannot be run"
        tried.append(f"{candidate} {verdict}")
    raise InstallError(
        f"no Python 3.11 or newer: {', '.join(tried)}; install the package python3 (Debian 12, "
        "Ubuntu 24.04 or newer), or name another interpreter with --python"
    )


def python_version(path: str) -> tuple[int, int] | None:
    """(major, minor) of the interpreter `path`, None if it cannot be run."""
    code = "import sys; print('%d %d' % sys.version_info[:2])"
    try:
        done = _run([path, "-I", "-S", "-c", code])
        major, minor = done.stdout.split()
        return int(major), int(minor)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def probe(python: str, tree: Path) -> None:
    """Raises InstallError if `python` cannot run the build in `tree`."""
    done = _run([python, "-I", "-S", "-B", "-c", _PROBE, str(tree)])
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InstallError(
            f"{python} cannot run this build: {words[-1]}; install Debian's package python3 "
            "(python3-minimal is not enough), or name another interpreter with --python"
        )


def compile_tree(python: str, tree: Path, final: Path) -> None:
    """Compile the modules of `tree`, which will be renamed to `final`: tracebacks name that.

    The bytecode is not checked against the sources when it is loaded: they do not change, and that
    saves a stat(2) each. Raises InstallError.
    """
    command = [python, "-I", "-S", "-m", "compileall", "-f", "-q", "-j", "0"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(tree), "-p", str(final)]
    done = _run([*command, str(tree)])
    if done.returncode:
        raise InstallError(
            f"{python} cannot compile the plugins: {(done.stdout + done.stderr)[-500:]}"
        )


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
