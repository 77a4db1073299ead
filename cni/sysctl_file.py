"""What plugins have set on the node for good, as a file that `sysctl --system` reads (sysctl.d(5)).

A package's script, or an administrator, runs `sysctl --system`: it sets whatever the files say, and
one of them may say that the node forwards no packets. Our file comes after those of a distribution
and of an administrator. A file of the same name in /etc/sysctl.d takes its place.

Loaded when a parameter was changed, on a node that has a place for the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EEXIST

from . import files, lockfile

DIRECTORY = "/run/sysctl.d"
NAME = "99-zz-cni.conf"
_PATH = f"{DIRECTORY}/{NAME}"
_LOCK = f"{DIRECTORY}/.99-zz-cni.lock"  # no *.conf, which would be read
_USER = "# for the plugins in "
_HEAD = (
    "# What the CNI plugins have set on this node, so that `sysctl --system` does not undo it.\n"
    f"# `cni uninstall` removes this file; /etc/sysctl.d/{NAME} takes its place.\n"
)
_MAX_SIZE = 1 << 16


def keep(name: str, value: str) -> None:
    """Note that the parameter (``net/ipv4/ip_forward``) has this value. Raises OSError, CNIError.

    Nothing is noted in a network namespace that is not the one of the machine, or container, whose
    first process we see: others set the parameters of that.
    """
    if not _is_of_the_machine():
        return
    os.makedirs(DIRECTORY, 0o755, exist_ok=True)
    setting = f"{name} = {value}"
    with _locked():
        lines = _lines()
        wanted = {_user(os.path.dirname(os.path.realpath(sys.argv[0]))), setting}
        if not wanted.issubset(lines):
            others = {each for each in lines if each.partition(" = ")[0] != name}
            _write(others | wanted)


def remove(bin_dir: str, *, dry_run: bool = False) -> list[str]:
    """Remove the file after the last of the directories whose plugins have written to it.

    Returns the paths of removed files; with `dry_run` they stay. Raises OSError, CNIError.
    """
    user = _user(bin_dir)
    try:
        lines = _lines()
    except (FileExistsError, files.Unusable):
        return []
    if user not in lines:
        return []
    if dry_run:
        return [] if _has_others(lines, user) else [_PATH]
    with _locked():
        lines = _lines()
        if _has_others(lines, user):
            _write({each for each in lines if each != user})
            return []
        os.unlink(_PATH)
        os.unlink(_LOCK)
    return [_PATH]


def _user(bin_dir: str) -> str:
    """The line that names a directory of plugins."""
    return f"{_USER}{bin_dir!a}"


def _has_others(lines: list[str], user: str) -> bool:
    return any(each.startswith(_USER) and each != user for each in lines)


@contextmanager
def _locked() -> Iterator[None]:
    fd = lockfile.take(_LOCK)  # of mode 0600: a process that may open it could stop every ADD
    try:
        yield
    finally:
        lockfile.release(fd)


def _write(lines: Iterable[str]) -> None:
    text = "".join(f"{each}\n" for each in sorted(lines))
    files.replace(_PATH, (_HEAD + text).encode(), 0o644)


def _lines() -> list[str]:
    """The lines of our file; none if it is not there. Raises OSError, also for another's file."""
    try:
        text = files.read(_PATH, _MAX_SIZE).decode(errors="replace")
    except FileNotFoundError:
        return []
    if not text.startswith(_HEAD):
        raise FileExistsError(EEXIST, "is there, and is not of these plugins", _PATH)
    return text.removeprefix(_HEAD).splitlines()


def _is_of_the_machine() -> bool:
    try:
        return os.path.samestat(os.stat("/proc/1/ns/net"), os.stat("/proc/self/ns/net"))
    except OSError:
        return False
