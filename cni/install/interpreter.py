"""The Python that runs installed plugins: choosing it, trying it, compiling for it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, NamedTuple

from ..artifact import InstallError, embedded
from ..startup_error import remedy

MINIMUM = (3, 11)

# The chosen interpreter runs this on the unpacked tree. It fails if no plugin could start.
_PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import msgspec, cni.dispatch
"""


class Interpreter(NamedTuple):
    """A Python: its path on the installed system, and the root directory in which it is run.

    Without a root it is this system's, which may stand for one that the other system will get.
    """

    path: str
    root: Path | None = None

    def run(
        self, *arguments: str, stdin: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        """Run it without site packages. Raises OSError, TimeoutExpired."""
        # Isolated: PYTHONPATH and the user's packages must not decide whether plugins work.
        command = [self.path, "-I", "-S", *arguments]
        root = self.root

        def enter() -> None:
            if root is not None:
                os.chroot(root)
                os.chdir("/")

        try:
            return subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                stdin=stdin,
                # Compiling everything takes seconds; a slow or emulated machine needs much longer.
                timeout=300,
                preexec_fn=enter if root is not None else None,
            )
        except subprocess.TimeoutExpired:
            raise
        except subprocess.SubprocessError as error:  # a failure of `enter`
            raise OSError(0, str(error)) from None

    def sees(self, path: Path) -> str:
        """The path by which the interpreter sees our `path`."""
        return str(path if self.root is None else Path("/", path.relative_to(self.root)))

    @property
    def version(self) -> tuple[int, int] | None:
        """(major, minor), None if it cannot be run."""
        code = "import sys; print('%d %d' % sys.version_info[:2])"
        try:
            major, minor = self.run("-c", code).stdout.split()
            return int(major), int(minor)
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return None


def choose(wanted: str | None, root: Path | None = None) -> tuple[Interpreter, list[str]]:
    """A Python that is new enough, and warnings: `wanted`, or else the distribution's.

    It belongs to the system with the root directory `root`. If that has no Python yet, as in a
    package's staging directory, this system's stands for it. Raises InstallError, which says what
    to install.
    """
    candidates = [wanted] if wanted else ["/usr/bin/python3", "/usr/local/bin/python3"]
    if root is not None:
        if wanted and not os.path.isabs(wanted):
            raise InstallError(f"with --root the path of the interpreter is absolute: {wanted}")
        inside = [path for path in candidates if os.path.lexists(f"{root}/{path}")]
        if inside:
            return _first(inside, root), []
        warning = f"{root} has no {candidates[0]}: plugins need it there, Python 3.11 or newer"
        return _first(candidates, None), [warning]
    if not wanted and not embedded() and sys.executable:
        # The last choice: a Python of somebody's own may disappear with its owner.
        candidates.append(sys.executable)
    return _first(candidates, None), []


def _first(candidates: list[str], root: Path | None) -> Interpreter:
    tried = []
    for candidate in candidates:
        path = candidate if root else shutil.which(candidate)
        python = Interpreter(os.path.abspath(path), root) if path else None
        version = python.version if python else None
        if python and version and version >= MINIMUM:
            return python
        verdict = f"is Python {version[0]}.{version[1]}" if version else "cannot be run"
        tried.append(f"{candidate} {verdict}")
    where = f" in {root}" if root else ""
    raise InstallError(
        f"no Python 3.11 or newer{where}: {', '.join(tried)}; {remedy(str(root or ''))}, or "
        "name another interpreter with --python"
    )


def probe(python: Interpreter, tree: Path) -> None:
    """Raise InstallError if `python` cannot run the build in `tree`."""
    # -B: the probe writes no bytecode into the tree.
    done = python.run("-B", "-c", _PROBE, python.sees(tree))
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InstallError(
            f"{python.path} cannot run this build: {words[-1]}; install Debian's package python3 "
            "(python3-minimal is not enough), or name another interpreter with --python"
        )


def compile_tree(python: Interpreter, archive: Path, tree: Path, final: Path) -> None:
    """Give the modules of `tree` bytecode: that of the built file `archive`, if `python` reads it.

    The later path of `tree` is `final`: tracebacks name that one. Loading does not compare the
    bytecode with the sources, which do not change: that saves a stat(2) for each module. Raises
    InstallError.
    """
    place = python.sees(tree)
    program = f"{place}/cni/install/bytecode.py"
    with archive.open("rb") as stdin:
        done = python.run(program, place, str(final), stdin=stdin)
    if done.returncode:  # of another version, or it lacks a module that this needs
        _check_room(done)
        done = _compile_all(python, place, final)
    if done.returncode:
        _check_room(done)
        probe(python, tree)  # which says what such a Python lacks
        words = done.stdout + done.stderr
        raise InstallError(f"{python.path} cannot compile the plugins: {words[-500:]}")


def _check_room(done: subprocess.CompletedProcess[str]) -> None:
    """Raises OSError if a program failed for want of room: its own text names a temporary file."""
    for number in (errno.ENOSPC, errno.EDQUOT):
        if f"[Errno {number}]" in done.stdout + done.stderr:
            raise OSError(number, os.strerror(number))


def _compile_all(python: Interpreter, place: str, final: Path) -> subprocess.CompletedProcess[str]:
    """Compile the sources below `place` in the interpreter's view."""
    options = ["-m", "compileall", "-f", "-q"]
    if python.root is None:
        options += ["-j", "0"]  # a root directory without /dev/shm has no semaphores for this
    options += ["--invalidation-mode", "unchecked-hash", "-s", place, "-p", str(final)]
    return python.run(*options, place)
