"""Importing the request path finds the same, wherever and whenever it is done.

The heap after these imports is what the snapshot of the interpreter is made of, from which requests
begin (docs/self-contained.md). So nothing in it may come from the process or the machine that made
it. Each test compares two interpreters, object by object (tests/harness/heap.py).
"""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from tests.harness.build import ROOT
from tests.harness.combinations import every_day
from tests.harness.heap import SEPARATOR, own_modules

PYTHON = "/usr/bin/python3"
WALK = ROOT / "tests/harness/heap.py"
LIBRARIES = str(Path(msgspec.__file__).parents[1])

# Where two heaps differ, and why no request can tell: the beginnings of places.
HARMLESS = {
    "_ctypes:_": "addresses of the C library; the self-contained file has no ctypes",
    "ctypes:_": "the same",
    "ctypes:pythonapi": "the same",
    "cni.netns.libc:_libc": "the same: a handle of dlopen(3)",
    "cni.kernel.syscalls:_libc": "the same",
    "cni.kernel.syscalls:_capget": "the same: a function of the C library",
    "cni.kernel.syscalls:_statx": "the same",
    "cni.kernel.syscalls:_capability_": "the same: memory for a system call's answer",
    "os:environ": "renewed when a process begins from the snapshot (tools/interpreter/src/main.c)",
    "posix:environ": "the same",
    "sys:argv": "the same",
    "sys:orig_argv": "the same",
    "sys:stdin": "the same",
    "sys:__stdin__": "the same",
    "sys:stdout": "the same",
    "sys:__stdout__": "the same",
    "sys:stderr": "the same",
    "sys:__stderr__": "the same",
    "time:tzname": "the time zone: no request uses local time (a test below)",
    "time:timezone": "the same",
    "time:altzone": "the same",
    "time:daylight": "the same",
    "tokenize:": "alternatives of patterns in the order of a set, which the hash seed decides",
}

# What our modules keep: why a snapshot may have it.
NOTED = "a request notes it of its process or machine; a snapshot is written before the first one"
COMPUTED = "a result of computing, the same on every machine"
STATE = {
    "cni.call:_verbs": COMPUTED,
    "cni.delegate:_running": NOTED,
    "cni.dispatch:_debugging": NOTED,
    "cni.interrupts:_decided": NOTED,
    "cni.interrupts:_noted": NOTED,
    "cni.interrupts:_waiting": NOTED,
    "cni.ipam.host_local.plugin:_allocating": COMPUTED,
    "cni.ipam.host_local.reservation:_told": NOTED,
    "cni.kernel.sysctl:_keeper": NOTED,
    "cni.kernel.sysctl:_kept": NOTED,
    "cni.kernel.netlink_debug:errorcode": "the table of the module errno",
    "cni.netfilter.iptables_netlink:_known": COMPUTED,
    "cni.netfilter.iptables_netlink:_seen": NOTED,
    "cni.netfilter.nft:_deleted_by": NOTED,
    "cni.netfilter.nft:_kept": NOTED,
    "cni.netns.executor:Executor._idle": NOTED,
    "cni.netns.namespace:_extras": NOTED,
    "cni.netns.namespace:_handed": NOTED,
    "cni.netns.namespace:_handed_status": NOTED,
    "cni.netns.namespace:_home": NOTED,
    "cni.netns.namespace:_netlink_type": COMPUTED,
    "cni.record.tracing:_spans": "of a request that is traced: none is while the file is built",
    "cni.stopwatch:functions": "of requests that are watched: none is while the file is built",
    "cni.stopwatch:_names": COMPUTED,
    "cni.standins:doubt": NOTED,
    "cni.standins:enabled": "the same in each process that is made from the snapshot",
    "cni.standins.msgspec_:_struct": "set once, when the stand-ins are put in place",
}
# What msgspec has made of a class, when it was decoded for the first time.
# It asks its base classes for annotations, and they have none.
_DECODER = re.compile(r"\+StructInfo|\.__annotations__: None \| builtins.dict of 0$")
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*|_?[A-Z]\w*|__\w+__")
_GENERATED = re.compile(r"\._field_defaults$|:__|\.__")
_CHANGING = frozenset(
    {
        "append",
        "add",
        "clear",
        "discard",
        "extend",
        "insert",
        "pop",
        "popitem",
        "remove",
        "setdefault",
    }
    | {"update", "sort", "reverse"}
)
_IMMUTABLE = frozenset(
    {"int", "str", "bytes", "float", "complex", "bool", "NoneType", "range", "ellipsis", "module"}
    | {"type", "code", "=", "builtin_function_or_method", "method_descriptor", "re.Pattern"}
    | {"wrapper_descriptor", "_struct.Struct", "builtins.function", "builtins.tuple"}
    | {"builtins.frozenset", "builtins.property", "builtins.classmethod", "builtins.staticmethod"}
    | {"builtins.getset_descriptor", "builtins.member_descriptor", "_collections._tuplegetter"}
)


def close_standard_streams() -> None:
    for fd in range(3):
        os.close(fd)


def strange_limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 26, 1 << 26))
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    os.nice(5)


def strange_signals() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})


def strange_umask() -> None:
    os.umask(0o777)


def more_descriptors() -> None:
    for fd in range(3, 40):
        if not _is_open(fd):
            os.dup2(2, fd)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Surroundings:
    """Where an interpreter is started; `prefix` are words before its command."""

    env: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None
    directory: str = "/"


ODD_VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_NETNS": "/proc/self/ns/net",
    "CNI_PATH": "/nowhere",
    "CNI_DEBUG": "netlink",
    "CNI_STATE_DIR": "/nowhere",
    "CNI_SERVER": "off",
    "CNI_SERVER_SOCKET": "/nowhere",
    "CNI_SNAPSHOT": "off",
    "XTABLES_LOCKFILE": "/nowhere",
    "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere",
    "LISTEN_FDS": "3",
    "LISTEN_PID": "1",
    "NOTIFY_SOCKET": "/nowhere",
    "PATH": "",
    "HOME": "/nowhere",
    "TMPDIR": "/nowhere",
    "COLUMNS": "7",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "SOURCE_DATE_EPOCH": "0",
    "PYTHONHASHSEED": "1",
    "PYTHONPATH": "/nowhere",
    "NOT_UTF8": "\udcff",
}
UNSHARE = ("unshare", "--mount")
_COVER = 'for each in proc sys dev; do mount -t tmpfs none /$each || exit; done; exec "$@"'
WITHOUT_FILES = ("sh", "-c", _COVER, "sh")
SURROUNDINGS = {
    "another process": Surroundings(),
    "variables": Surroundings(ODD_VARIABLES),
    "time zone": Surroundings({"TZ": "Pacific/Chatham"}),
    "locale": Surroundings({"LC_ALL": "tr_TR.ISO-8859-9", "LANG": "de_DE"}),
    "descriptors 0 to 2 closed": Surroundings(prepare=close_standard_streams),
    "more descriptors": Surroundings(prepare=more_descriptors),
    "limits": Surroundings(prepare=strange_limits),
    "signals": Surroundings(prepare=strange_signals),
    "umask": Surroundings(prepare=strange_umask),
    "directory": Surroundings(directory="/proc/self"),
    "kernel version": Surroundings(prefix=("setarch", "--uname-2.6", "--addr-no-randomize")),
    "user": Surroundings(prefix=("unshare", "--user")),
    "network": Surroundings(prefix=("unshare", "--net", "--uts", "--ipc")),
    "no /proc, no /sys, no /dev": Surroundings(prefix=(*UNSHARE, *WITHOUT_FILES)),
    "pid": Surroundings(prefix=("unshare", "--pid", "--fork", "--mount-proc")),
    "clock": Surroundings(
        prefix=("unshare", "--time", "--boottime", "1000000", "--monotonic", "99")
    ),
}
# A start of two interpreters each.
EVERYDAY = {"variables", "descriptors 0 to 2 closed"}
NEED_ROOT = {"network", "no /proc, no /sys, no /dev", "pid", "clock"}


def heap(where: Surroundings, *, standins: bool = True, used: str = "") -> dict[str, str]:
    """What an interpreter has made there: a place -> what is at it."""
    with TemporaryDirectory() as folder:
        output = Path(folder, "heap")
        words = [PYTHON, "-B", "-I", "-S", str(WALK), str(output)]
        words += ["on" if standins else "off", used]
        done = subprocess.run(
            [*where.prefix, *words, str(ROOT), LIBRARIES],
            env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **where.env},
            preexec_fn=where.prepare,
            cwd=where.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        lines = output.read_text().splitlines()
        return dict(line.split(SEPARATOR, 1) for line in lines)


@cache
def plain_heap() -> dict[str, str]:
    return heap(Surroundings())


def differences(one: dict[str, str], other: dict[str, str]) -> Iterator[str]:
    """Lines about places where two heaps differ and that are not HARMLESS."""
    for place in [*one, *(place for place in other if place not in one)]:
        if one.get(place) != other.get(place) and not place.startswith(tuple(HARMLESS)):
            yield f"{place}: {one.get(place)} | {other.get(place)}"[:300]


@pytest.mark.parametrize("name", every_day(EVERYDAY, SURROUNDINGS))
def test_the_same_heap(name: str) -> None:
    """With the stand-ins, as a request by exec imports."""
    if name in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    found = list(differences(plain_heap(), heap(SURROUNDINGS[name])))
    assert not found, "\n".join(found[:20])


def test_the_same_heap_without_standins() -> None:
    here = Surroundings({**ODD_VARIABLES, "TZ": "Asia/Kathmandu"}, prepare=more_descriptors)
    one, other = heap(Surroundings(), standins=False), heap(here, standins=False)
    found = list(differences(one, other))
    assert not found, "\n".join(found[:20])


def test_requests_leave_only_what_is_known() -> None:
    """What requests change in the heap is in STATE, or made of a class once."""
    used = heap(Surroundings(), used="requests")
    found = [
        line
        for line in differences(plain_heap(), used)
        if not line.startswith(tuple(STATE)) and not _DECODER.search(line)
    ]
    assert not found, "\n".join(found[:20])
    assert len(used) > len(plain_heap())


def test_a_rehearsal_leaves_the_same_everywhere() -> None:
    """It only computes, and notes nothing of the process."""
    env = {**ODD_VARIABLES, "PATH": "/usr/bin:/bin"}  # for unshare(1)
    here = Surroundings(env, (*UNSHARE, "--net", *WITHOUT_FILES), strange_limits)
    if os.geteuid() != 0:
        here = Surroundings(ODD_VARIABLES, prepare=strange_limits)
    one, other = (heap(where, used="rehearsal") for where in (Surroundings(), here))
    found = list(differences(one, other))
    assert not found, "\n".join(found[:20])
    noted = [place for place, reason in STATE.items() if reason == NOTED]
    assert {place: one[place] for place in noted if place in one} == {
        place: text for place, text in plain_heap().items() if place in noted
    }
    decoders = [place for place in one if place.endswith("Conf+StructInfo0")]
    assert len(decoders) >= 15, decoders


def test_what_can_change_is_known() -> None:
    """Whatever a module keeps in a variable, a list, or a dict: each has a reason (STATE)."""
    found = {place for place, text in plain_heap().items() if _is_state(place, text)}
    found |= set(_rebound())
    found -= {place for place in found if place.startswith(tuple(HARMLESS))}
    assert found == set(STATE)


def test_constants_do_not_change() -> None:
    """No function of ours stores into what its name says is constant."""
    # once, while the stand-ins are put in place
    assert set(_stores_into_constants()) == {"cni/standins/msgspec_.py: _PLAIN"}


def test_no_request_uses_local_time() -> None:
    names = {"localtime", "ctime", "asctime", "mktime", "tzname", "timezone", "altzone", "daylight"}
    for path, tree in _sources():
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {
            each.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for each in node.names
        }
        assert not used & names, path


def _is_state(place: str, text: str) -> bool:
    """Is it a variable or an attribute of a class of ours, mutable, and no constant by its name?"""
    matched = re.fullmatch(r"cni[\w.]*:(?:\w+\.)*([a-zA-Z]\w*|_[a-zA-Z]\w*)", place)
    if matched is None or _CONSTANT.fullmatch(matched[1]) or _GENERATED.search(place):
        return False
    return text.split(" ", maxsplit=1)[0] not in _IMMUTABLE


def _rebound() -> Iterator[str]:
    """The variables that functions of ours assign to (`global`)."""
    for path, tree in _sources():
        module = str(path.with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                yield from (f"{module}:{name}" for name in node.names)


def _stores_into_constants() -> Iterator[str]:
    for path, tree in _sources():
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from (f"{path}: {name}" for name in _stores(function))


def _stores(function: ast.AST) -> Iterator[str]:
    for node in ast.walk(function):
        target: ast.AST | None = None
        if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value if node.func.attr in _CHANGING else None
        if isinstance(target, ast.Name) and _CONSTANT.fullmatch(target.id):
            yield target.id


@cache
def _sources() -> list[tuple[Path, ast.Module]]:
    found = []
    for name in own_modules(str(ROOT)):
        path = Path(name.replace(".", "/"))
        path = path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")
        found.append((path, ast.parse((ROOT / path).read_bytes())))
    return found


def test_a_difference_is_found(tmp_path: Path) -> None:
    """The walk sees what it is there for: what a module has taken from its process."""
    (tmp_path / "cni").mkdir()
    source = "import os\nclass Kept:\n    pid = {'of': [os.getpid()]}\ndef show(of=Kept.pid): ...\n"
    (tmp_path / "cni" / "impure.py").write_text(source)
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]; import json, heap, impure; "
        "print(json.dumps(heap.Walk().everything()))"
    )
    folders = [str(WALK.parent), str(tmp_path / "cni")]
    command = [PYTHON, "-B", "-I", "-S", "-c", script, *folders]
    one, other = (
        json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        for _ in range(2)
    )
    found = [line for line in differences(one, other) if line.startswith("impure:")]
    assert len(found) == 1
    assert re.fullmatch(r"impure:Kept\.pid\['of'\]\[0\]: int \d+ \| int \d+", found[0])
    assert one["impure:show.0"].startswith("code ")
    assert any(text.startswith("= impure:Kept") for text in one.values())
