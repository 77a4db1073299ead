"""What belongs to one process: renewed when the interpreter comes out of a snapshot.

A snapshot is the heap of an interpreter that was started, and has imported every module of the
request path, when the file was built. Another process continues with it, on another machine. Two
functions keep both apart:

    forget()    at the build, before the heap is written: nothing seen there stays
    renew()     in the process that goes on: what it was given takes the place of the builder's

What neither of them names must be the same in every process. So no module of the request path may
look at the process, the machine, or the clock when it is imported: tests/unit/test_pure_imports.py
imports them in strange surroundings, and compares all that they have made.

Not renewed, as no request uses it: the local time zone (`time.tzname`), and buffering that depends
on a terminal (`sys.stdout`). It cannot be renewed: the seed of str.__hash__.
"""

from __future__ import annotations

import os
import sys
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIG_IGN,
    SIGALRM,
    SIGHUP,
    SIGINT,
    SIGPIPE,
    SIGTERM,
    SIGXFSZ,
    getsignal,
    signal,
)

# What requests note in modules, and what it is before the first one.
FACTS: tuple[tuple[str, str, object], ...] = (
    ("cni.dispatch", "_debugging", None),
    ("cni.interrupts", "_decided", False),
    ("cni.interrupts", "_noted", 0),
    ("cni.interrupts", "_waiting", False),
    ("cni.kernel.sysctl", "_keeper", 0),
    ("cni.netns.namespace", "_home", None),
    ("cni.standins", "doubt", None),
)
# What requests put into lists and dicts of modules, which are empty before the first one.
NOTES: tuple[tuple[str, str], ...] = (
    ("cni.delegate", "_running"),
    ("cni.ipam.host_local.reservation", "_this_boot"),
    ("cni.kernel.sysctl", "_kept"),
    ("cni.netfilter.iptables_netlink", "_seen"),
    ("cni.netns.namespace", "_extras"),
    ("cni.netns.namespace", "_handed"),
    ("cni.netns.namespace", "_handed_status"),
)


def forget() -> None:
    """Forget what requests have left in this process: descriptors, children, facts of the machine.

    Pure results of computing stay (a rule's expressions, a type's decoder).
    """
    modules = sys.modules
    if "cni.netns.executor" in modules:
        modules["cni.netns.executor"].Executor.discard_idle()
    if "cni.netfilter.nft" in modules:
        modules["cni.netfilter.nft"].forget()
    if "cni.kernel.sysctl" in modules:
        for fd in modules["cni.kernel.sysctl"]._kept.values():
            os.close(fd)
    for module, name, value in FACTS:
        if module in modules:
            setattr(modules[module], name, value)
    for module, name in NOTES:
        if module in modules:
            getattr(modules[module], name).clear()


def renew(argv: list[bytes], executable: bytes, environment: list[bytes]) -> None:
    """Put what this process was given in the place of what the builder had.

    `environment` is as in environ(7). Changes nothing else of the process than the dispositions of
    signals. The umask, ids, limits and the directory need no renewal: Python asks the kernel for
    them whenever they are wanted.
    """
    sys.argv[:] = [os.fsdecode(each) for each in argv]
    sys.orig_argv[:] = sys.argv
    sys.executable = os.fsdecode(executable)
    _set_environment(environment)
    _close_streams()
    _set_signals()


def _set_environment(environment: list[bytes]) -> None:
    variables: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]  # posix.environ
    variables.clear()
    for each in environment:
        name, separator, value = each.partition(b"=")
        if separator:
            variables.setdefault(name, value)  # the first one counts, as in the C library


def _close_streams() -> None:
    """As at the start of Python: there is no stream for a descriptor that is closed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.get_inheritable(fd)  # F_GETFD
        except OSError:
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)


def _set_signals() -> None:
    """As at the start of Python, which ignores two signals and notes what handlers there are."""
    signal(SIGPIPE, SIG_IGN)
    signal(SIGXFSZ, SIG_IGN)
    for number in (SIGALRM, SIGHUP, SIGINT, SIGTERM):
        if getsignal(number) != SIG_DFL:  # a handler of the builder's, which this process has not
            signal(number, SIG_DFL)
