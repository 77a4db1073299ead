"""What a worker should not have to do when a request comes: imports, first uses, page faults."""

from __future__ import annotations

import ctypes
import os
import pkgutil
from importlib import import_module

from .. import dispatch
from ..protocol.errors import CNIError

# Packages of which no verb imports anything, and what only starts or installs the program.
_NOT_NEEDED = ("cli", "install", "ipam.dhcp", "server", "standins", "windows")
_LEFT_OUT = frozenset(f"cni.{name}" for name in (*_NOT_NEEDED, "__main__"))
_LARGE = 2 << 20  # bytes; of x86-64, and of the usual kernels of other machines
_HUGEPAGE, _COLLAPSE = 14, 25  # madvise(2)
# Of the standard library, what is imported in a rare moment.
_LIBRARY = ("errno", "fcntl", "json", "pickle", "select", "struct", "traceback", "ctypes.util")


def everything() -> None:
    """Import all that any verb of any plugin may import."""
    _import_below("cni")
    for plugin in dispatch.TABLE.values():
        _import(plugin.module)
    for name in _LIBRARY:
        _import(name)


def _import_below(package: str) -> None:
    for found in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if found.name in _LEFT_OUT:
            continue
        if found.ispkg:
            _import_below(found.name)
        else:
            _import(found.name)


def _import(name: str) -> None:
    try:
        import_module(name)
    except ImportError:
        pass  # for example without libnftables: the verb that needs it says so


def rehearse() -> None:
    """Do once what every request does: an executor, a netlink socket, the library's context."""
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
        nft.shared()
    except (CNIError, OSError):
        pass  # no nftables here: the verb that needs it says so
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}
    conf = b'{"cniVersion":"1.1.0","name":"rehearsal","type":"loopback"}'
    for name in ("loopback", "bridge"):
        dispatch.answer(name, env, lambda: conf)


def use_large_pages() -> None:
    """Have this process's heap in large pages, as far as the kernel lets us (madvise(2)).

    A request finds the caches cold, the ones for addresses too; so it finds its memory sooner. The
    pages are copies: a worker has some megabytes more of its own. Linux 6.1 or later does it at
    once, earlier ones may do it some time.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, end in _heap():
        first, last = -(-start // _LARGE) * _LARGE, end // _LARGE * _LARGE
        if first < last and madvise(first, last - first, _HUGEPAGE) == 0:
            madvise(first, last - first, _COLLAPSE)


def _heap() -> list[tuple[int, int]]:
    """Where memory is that was asked for, not mapped from files (proc_pid_maps(5))."""
    found = []
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            fields = line.split()
            if fields[1] == "rw-p" and fields[5:] in ([], ["[heap]"]):
                start, _, end = fields[0].partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found
