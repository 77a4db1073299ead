"""Kernel parameters below /proc/sys/net.

What is below net/ belongs to the network namespace of the process that opens the file, so these run
in the namespace's executor. Names use ``/`` only: an interface name may contain dots.
"""

from __future__ import annotations

import os

ROOT = "/proc/sys/"
# Directories with one directory a link: net/<family>/conf/<link>/<parameter>.
_PER_LINK = ("conf", "neigh")


def parse(key: str) -> str:
    """A parameter as people write it (``net.ipv4.ip_forward``, ``net/ipv4/…``) as a name.

    Dots separate as slashes do, but not inside the name of a link, which is known by its place:
    ``net.ipv4.conf.eth0.100.rp_filter`` is of the link ``eth0.100``. Raises ValueError for what
    is not below net/.
    """
    parts = key.replace(".", "/").split("/")
    if all(parts) and len(parts) > 5 and parts[2] in _PER_LINK:
        parts[3:-1] = [".".join(parts[3:-1])]
    name = "/".join(parts)
    if len(parts) < 2:
        raise ValueError(f"not a parameter: {key!r}")
    _path(name)
    return name


def read(name: str) -> str:
    """The value of e.g. ``net/ipv4/ip_forward``, without its newline. Raises OSError."""
    fd = os.open(_path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode().rstrip("\n")
    finally:
        os.close(fd)


def write(name: str, value: str) -> None:
    """Set a parameter. Raises OSError."""
    fd = os.open(_path(name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read_each(names: list[str]) -> list[tuple[str | None, int]]:
    """For each parameter its value and 0, or None and the errno that reading it gave."""
    found: list[tuple[str | None, int]] = []
    for name in names:
        try:
            found.append((read(name), 0))
        except OSError as error:
            found.append((None, error.errno or 0))
    return found


def write_all(settings: list[tuple[str, str]]) -> tuple[str, int] | None:
    """Set parameters in order up to the first failure: its name and errno; None if all are set."""
    for name, value in settings:
        try:
            write(name, value)
        except OSError as error:
            return name, error.errno or 0
    return None


def put_back(settings: list[tuple[str, str, str]]) -> list[tuple[str, int]]:
    """Undo (name, value before, value set), the last first; the names and errnos of failures.

    What has another value by now is somebody else's, and left alone; so is what is gone.
    """
    failed = []
    for name, before, ours in reversed(settings):
        try:
            if same(read(name), ours):
                write(name, before)
        except FileNotFoundError:
            pass
        except OSError as error:
            failed.append((name, error.errno or 0))
    return failed


def same(one: str, other: str) -> bool:
    """Are two values equal? The kernel prints tabs between numbers, people write blanks."""
    return one.split() == other.split()


def ensure(name: str, value: str) -> None:
    """Set a parameter unless it has the value: a file that may be read-only is left alone."""
    if read(name) != value:
        write(name, value)


def write_each(settings: list[tuple[str, str]]) -> None:
    """Set several parameters, ignoring those the kernel lacks or refuses."""
    for name, value in settings:
        try:
            write(name, value)
        except OSError:
            pass


def enable_ipv6(ifname: str) -> str:
    """Switch IPv6 on for `lo` and `ifname` and keep addresses when the link goes down.

    Returns a warning, or the empty string. Raises OSError with the interface in its text
    (spec/common.md §4).
    """
    warning = ""
    for name in ("lo", ifname):
        key = f"net/ipv6/conf/{name}/disable_ipv6"
        try:
            value = read(key)
        except OSError as error:
            warning = f"failed to read sysctl {key}: {error.strerror}"
            continue
        if value != "0":
            try:
                write(key, "0")
            except OSError as error:
                raise OSError(
                    error.errno,
                    f'failed to enable IPv6 for interface "{name}" ({key}: {error.strerror})',
                ) from None
    key = f"net/ipv6/conf/{ifname}/keep_addr_on_down"
    try:
        write(key, "1")
    except OSError as error:
        if not warning:
            raise OSError(error.errno, f"failed to set {key}: {error.strerror}") from None
    return warning


def enable_forwarding(v6: bool) -> None:
    """Let this namespace route packets of a family. Raises OSError."""
    ensure("net/ipv6/conf/all/forwarding" if v6 else "net/ipv4/ip_forward", "1")


def _path(name: str) -> str:
    parts = name.split("/")
    if parts[0] != "net" or not all(parts) or ".." in parts or "." in parts or "\0" in name:
        raise ValueError(f"not a parameter below net/: {name!r}")
    return ROOT + name
