"""Kernel parameters below /proc/sys/net.

What is below net/ belongs to the network namespace of the process that opens the file, so these run
in the namespace's executor. Names use ``/`` only: an interface name may contain dots.
"""

from __future__ import annotations

import os

_ROOT = "/proc/sys/"


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
    return _ROOT + name
