"""A worker's preparation before its first request: imports, first uses, page faults."""

from __future__ import annotations

import _imp
import os
import pkgutil
from importlib import import_module

from .. import dispatch
from ..kernel import syscalls

# Modules that no verb imports: they start, install or serve the program.
_NOT_NEEDED = ("cli", "install", "ipam.dhcp", "server", "standins", "store", "windows")
_LEFT_OUT = frozenset(f"cni.{name}" for name in (*_NOT_NEEDED, "__main__"))
_LARGE = 2 << 20  # bytes of a large page: of x86-64, and of most kernels of other machines
_HUGEPAGE, _COLLAPSE = 14, 25  # madvise(2)
# Modules of the standard library that plugins import only in rare cases.
_LIBRARY = ("errno", "fcntl", "json", "pickle", "select", "struct", "traceback", "ctypes.util")


def import_plugins() -> None:
    """Import every module that a verb of a plugin may import."""
    if __spec__.origin == "frozen":
        _import_frozen()
    else:
        _import_below("cni")
    for plugin in dispatch.TABLE.values():
        _import(plugin.module)
    for name in _LIBRARY:
        _import(name)


def _import_below(package: str) -> None:
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if module.name in _LEFT_OUT:
            continue
        if module.ispkg:
            _import_below(module.name)
        else:
            _import(module.name)


def _import_frozen() -> None:
    """As _import_below, for frozen packages, which have no directory."""
    for name in _imp._frozen_module_names():  # type: ignore[attr-defined]
        if name.startswith("cni.") and not any(f"{name}.".startswith(f"{n}.") for n in _LEFT_OUT):
            _import(name)


def _import(name: str) -> None:
    try:
        import_module(name)
    except ImportError:
        pass  # a verb that needs the module will report the error


def rehearse() -> None:
    """Do the first steps of requests once: start an executor, open netlink sockets."""
    from ..kernel import link
    from ..kernel.netlink import Netlink
    from ..netfilter import nft
    from ..netns import Namespace

    with Namespace.current() as here:
        here.run(os.getpid)
        here.netlink()
    with Netlink() as host:
        link.find(host, "lo")
    try:
        nft.socket()
    except OSError:
        pass  # no netfilter in this kernel; a verb that needs it will report that
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}
    conf = b'{"cniVersion":"1.1.0","name":"rehearsal","type":"loopback"}'
    for name in ("loopback", "bridge"):
        dispatch.answer(name, env, lambda: conf)


def use_large_pages() -> None:
    """Put this process's heap into large pages, as far as the kernel permits (madvise(2)).

    A request begins with cold caches, also of address translations, of which large pages need
    fewer. The pages are copies, so a worker takes some megabytes more. Linux 6.1 or later makes
    them at once; earlier kernels make them later or not at all.
    """
    for start, end in _heap():
        first, last = -(-start // _LARGE) * _LARGE, end // _LARGE * _LARGE
        try:
            if first < last:
                syscalls.madvise(first, last - first, _HUGEPAGE)
                syscalls.madvise(first, last - first, _COLLAPSE)
        except OSError:
            pass  # an older kernel, or no memory for it


def _heap() -> list[tuple[int, int]]:
    """Start and end of each range of memory that is mapped from no file (proc_pid_maps(5))."""
    ranges = []
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            fields = line.split()
            if fields[1] == "rw-p" and fields[5:] in ([], ["[heap]"]):
                start, _, end = fields[0].partition("-")
                ranges.append((int(start, 16), int(end, 16)))
    return ranges
