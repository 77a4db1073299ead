"""What plugins have set on the node for good, as a file that `sysctl --system` reads (sysctl.d(5)).

A package's script, or an administrator, runs `sysctl --system`: it sets whatever the files say, and
one of them may say that the node forwards no packets. Our file comes after those of a distribution
and of an administrator. A file of the same name in /etc/sysctl.d takes its place.

Loaded when a parameter was changed, on a node that has a place for the file.
"""

from __future__ import annotations

import os
import time
from errno import EEXIST

from . import files, lockfile

DIRECTORY = "/run/sysctl.d"
NAME = "99-zz-cni.conf"
_LOCK = ".99-zz-cni.lock"  # no *.conf, which would be read
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
    path, lock = f"{DIRECTORY}/{NAME}", f"{DIRECTORY}/{_LOCK}"
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(lock, flags, 0o600)  # who may open it could stop every ADD
    try:
        lockfile.acquire(fd, lock, time.monotonic() + lockfile.TIMEOUT)
        lines = _lines(path)
        line = f"{name} = {value}"
        if line not in lines:
            others = [each for each in lines if each.partition(" = ")[0] != name]
            text = "".join(f"{each}\n" for each in sorted([*others, line]))
            files.replace(path, (_HEAD + text).encode(), 0o644)
    finally:
        lockfile.release(fd)


def remove() -> list[str]:
    """Remove the file, if it is ours; returns the paths of what was removed. Raises OSError."""
    path = f"{DIRECTORY}/{NAME}"
    try:
        if not files.read(path, _MAX_SIZE).startswith(_HEAD.encode()):
            return []
    except (FileNotFoundError, files.Unusable):
        return []
    os.unlink(path)
    try:
        os.unlink(f"{DIRECTORY}/{_LOCK}")
    except FileNotFoundError:
        pass
    return [path]


def _lines(path: str) -> list[str]:
    """The settings in our file; none if it is not there. Raises OSError, also for another's."""
    try:
        text = files.read(path, _MAX_SIZE).decode(errors="replace")
    except FileNotFoundError:
        return []
    if not text.startswith(_HEAD):
        raise FileExistsError(EEXIST, "is there, and is not of these plugins", path)
    return text.removeprefix(_HEAD).splitlines()


def _is_of_the_machine() -> bool:
    try:
        return os.path.samestat(os.stat("/proc/1/ns/net"), os.stat("/proc/self/ns/net"))
    except OSError:
        return False
