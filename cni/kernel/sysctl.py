"""Kernel parameters below /proc/sys/net.

Files below net/ belong to the network namespace of the process that opens them; Namespace.sysctls
performs steps (`perform`) in another namespace. Names are separated by ``/`` only, since a link's
name may contain dots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from errno import ENOENT

ROOT = "/proc/sys/"
READ, WRITE, ENSURE = "r", "w", "e"  # ENSURE writes unless the parameter has the value

Step = tuple[str, str, str]  # one of these, name, value to set
Outcome = tuple[str | None, int]  # the value that was read, if any; errno of what failed, or 0

FORWARDING_V4 = "net/ipv4/ip_forward"
FORWARDING_V6 = "net/ipv6/conf/all/forwarding"

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
    check(name)
    return name


def shown(name: str) -> str:
    """A name as ``sysctl -w`` takes it: with dots, or with slashes where a link's name has dots."""
    return name if "." in name else name.replace("/", ".")


def forwarding(v6: bool, through: str = "") -> list[tuple[str, str]]:
    """The parameters that decide whether packets are forwarded, and whose they are: the node's, and
    that of its link `through`.

    A packet is forwarded if the link on which it arrives forwards. The node's parameter is the
    default of new links; writing it sets that of all links.
    """
    family = "ipv6" if v6 else "ipv4"
    names = [(FORWARDING_V6 if v6 else FORWARDING_V4, "the node")]
    if through:
        names.append((f"net/{family}/conf/{through}/forwarding", through))
    return names


def read(name: str) -> str:
    """The value of e.g. ``net/ipv4/ip_forward``, without its newline. Raises OSError."""
    fd = _open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode().rstrip("\n")
    finally:
        os.close(fd)


def write(name: str, value: str) -> None:
    """Set a parameter. Raises OSError."""
    fd = _open(name, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # one write(2): the kernel takes each for the whole value
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def perform(steps: Sequence[Step], stop: bool = False) -> list[Outcome]:
    """Take the steps one after the other; with `stop`, up to the first that fails."""
    done: list[Outcome] = []
    for kind, name, wanted in steps:
        done.append(_do(kind, name, wanted))
        if stop and done[-1][1]:
            break
    return done


def _do(kind: str, name: str, wanted: str) -> Outcome:
    value = None
    try:
        if kind != WRITE:
            value = read(name)
        if kind == WRITE or (kind == ENSURE and value != wanted):
            write(name, wanted)
    except OSError as error:
        return value, error.errno or 0
    return value, 0


def put_back(
    perform: Callable[[list[Step]], list[Outcome]], settings: list[tuple[str, str, str]]
) -> list[tuple[str, int]]:
    """Undo settings (name, value before, value set), last first; return (name, errno) of failures.

    A parameter that has neither value by now was set by another program, and stays. One that is
    gone is no failure.
    """
    latest = settings[::-1]
    present = perform([(READ, name, "") for name, _, _ in latest])
    outcomes = list(zip(latest, present, strict=True))
    steps = [
        (WRITE, name, before)
        for (name, before, ours), (value, _) in outcomes
        if value is not None and same(value, ours)
    ]
    failed = [(name, errno) for (name, _, _), (_, errno) in outcomes]
    if steps:
        written = perform(steps)
        failed += [(name, errno) for (_, name, _), (_, errno) in zip(steps, written, strict=True)]
    return [(name, errno) for name, errno in failed if errno not in (0, ENOENT)]


def same(one: str, other: str) -> bool:
    """Are two values equal? The kernel writes tabs between numbers, people write blanks."""
    return one.split() == other.split()


def ensure(name: str, value: str) -> bool:
    """Set a parameter unless it has the value: a file that may be read-only is left alone.

    Was it set? Raises OSError.
    """
    if read(name) == value:
        return False
    write(name, value)
    return True


def write_each(settings: list[tuple[str, str]]) -> None:
    """Set several parameters, ignoring those the kernel lacks or refuses."""
    perform([(WRITE, name, value) for name, value in settings])


def ipv6_steps(ifname: str) -> list[Step]:
    """Switch IPv6 on for `lo` and `ifname`, and keep addresses when the link goes down."""
    conf = "net/ipv6/conf"
    return [
        (ENSURE, f"{conf}/lo/disable_ipv6", "0"),
        (ENSURE, f"{conf}/{ifname}/disable_ipv6", "0"),
        (WRITE, f"{conf}/{ifname}/keep_addr_on_down", "1"),
    ]


def ipv6_warning(steps: list[Step], outcomes: list[Outcome]) -> str:
    """The warning that follows from the outcomes of `ipv6_steps`; "" if there is none.

    Raises OSError with the interface in its text (docs/spec/common.md §4).
    """
    warning = ""
    for (kind, key, _), (value, errno) in zip(steps, outcomes, strict=True):
        reason = os.strerror(errno)
        if not errno:
            continue
        # keep_addr_on_down: fatal, as in the reference, unless a warning tells why
        if kind == WRITE:
            if not warning:
                raise OSError(errno, f"failed to set {key}: {reason}")
        elif value is None:
            warning = f"failed to read sysctl {key}: {reason}"
        else:
            ifname = key.split("/")[-2]
            text = f'failed to enable IPv6 for interface "{ifname}" ({key}: {reason})'
            raise OSError(errno, text)
    return warning


def enable_ipv6(ifname: str) -> str:
    """Take `ipv6_steps` in this process's namespace; return and raise as `ipv6_warning`."""
    steps = ipv6_steps(ifname)
    return ipv6_warning(steps, perform(steps))


def enable_forwarding(v6: bool) -> str:
    """Let this namespace route packets of a family. Raises OSError.

    The name of the parameter, if it was not set before.
    """
    name = FORWARDING_V6 if v6 else FORWARDING_V4
    return name if ensure(name, "1") else ""


def check(name: str) -> None:
    """Raise ValueError if `name` is no name of a parameter below net/."""
    parts = name.split("/")
    # the names come from configurations: none may lead out of the container's own parameters
    if parts[0] != "net" or not all(parts) or ".." in parts or "." in parts or "\0" in name:
        raise ValueError(f"not a parameter below net/: {name!r}")


def _open(name: str, flags: int) -> int:
    check(name)
    if _keeper == os.getpid():  # in a forked child the descriptors are the parent's
        family, _, rest = name.removeprefix("net/").partition("/")
        directory = _kept.get(family)
        if directory is not None and rest:
            try:
                return os.open(rest, flags, dir_fd=directory)
            except FileNotFoundError:
                pass  # the link may have been replaced by another of its name
    return os.open(ROOT + name, flags)


_keeper = 0  # the process that has `_kept` open, by family
_kept: dict[str, int] = {}


def keep_open() -> None:
    """Have this process, which never leaves its network namespace, keep directories open.

    For each namespace that was looked into, the kernel's cache has an entry of the same name in
    /proc/sys/net, and a lookup compares them one by one. With 900 containers opening a file takes
    0.12 ms, and 0.003 ms relative to its open directory.
    """
    global _keeper  # noqa: PLW0603 a fact of the process
    _kept.clear()
    for family in ("ipv4", "ipv6"):
        try:
            _kept[family] = os.open(f"{ROOT}net/{family}", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            pass  # a kernel without it
    _keeper = os.getpid()
