"""What a process that continues a snapshot gets anew, in interpreters of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from cni import renewal
from tests.harness.build import ROOT

_RENEW = """
import json, os, signal, sys
sys.path[:0] = sys.argv[1:]
from cni import renewal
for number in (signal.SIGTERM, signal.SIGALRM):
    signal.signal(number, lambda *_: None)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.close(0)
renewal.renew([b"bridge", b"--\\xff"], b"/opt/cni/bin/bridge", [b"A=1", b"A=2", b"B", b"C=\\xff="])
names = ("SIGTERM", "SIGALRM", "SIGINT", "SIGPIPE", "SIGXFSZ")
json.dump(
    {
        "argv": [os.fsencode(each).hex() for each in sys.argv],
        "orig_argv": sys.orig_argv == sys.argv,
        "executable": sys.executable,
        "environ": {key.decode(): value.hex() for key, value in os.environb.items()},
        "given to children": os.environ._data is __import__("posix").environ,
        "stdin": [sys.stdin is None, sys.__stdin__ is None, sys.stdout is None],
        "signals": {name: int(signal.getsignal(getattr(signal, name))) for name in names},
    },
    sys.stdout,
)
"""


_LIBRARIES = str(Path(msgspec.__file__).parents[1])


def _run(script: str) -> Any:
    command = [sys.executable, "-I", "-S", "-c", script, str(ROOT), _LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True, env={"OLD": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_renew() -> None:
    seen = _run(_RENEW)
    assert bytes.fromhex(seen["argv"][1]) == b"--\xff"
    assert seen["orig_argv"]
    assert seen["executable"] == "/opt/cni/bin/bridge"
    # as the C library reads environ(7): the first of a name, and none without a sign
    assert seen["environ"] == {"A": b"1".hex(), "C": b"\xff=".hex()}
    assert seen["given to children"]
    assert seen["stdin"] == [True, True, False]
    assert seen["signals"] == {"SIGTERM": 0, "SIGALRM": 0, "SIGINT": 0, "SIGPIPE": 1, "SIGXFSZ": 1}


_FACTS = """
import json, sys
sys.path[:0] = sys.argv[1:]
from cni import renewal
from cni.server import warmup

def facts():
    modules = sys.modules
    return [
        *(getattr(modules[module], name) for module, name, _ in renewal.FACTS),
        *(len(getattr(modules[module], name)) for module, name in renewal.NOTES),
        len(modules["cni.netfilter.nft"]._kept),
        len(modules["cni.netns.executor"].Executor._idle),
    ]

warmup.import_plugins()
first = facts()
warmup.rehearse()
for module, name, _ in renewal.FACTS:
    setattr(sys.modules[module], name, "seen")
for module, name in renewal.NOTES:
    notes = getattr(sys.modules[module], name)
    if name != "_kept":
        notes.append("seen") if isinstance(notes, list) else notes.update(seen="seen")
sys.modules["cni.kernel.sysctl"].keep_open()
used = facts()
renewal.forget()
json.dump([first, used, facts()], sys.stdout)
"""


def test_forget_leaves_what_an_import_leaves() -> None:
    """Each fact is as after the import of its module, whatever requests have noted since."""
    first, used, forgotten = _run(_FACTS)
    assert not [one for one, other in zip(first, used, strict=True) if one == other]
    assert forgotten == first
    assert first[: len(renewal.FACTS)] == [value for _, _, value in renewal.FACTS]


def test_forget_closes_what_it_forgets() -> None:
    script = """
import json, os, sys
sys.path[:0] = sys.argv[1:]
from cni import renewal
from cni.kernel import sysctl
from cni.server import warmup
warmup.import_plugins()
before = os.listdir("/proc/self/fd")
warmup.rehearse()
sysctl.keep_open()
between = os.listdir("/proc/self/fd")
renewal.forget()
json.dump([before, between, os.listdir("/proc/self/fd")], sys.stdout)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(0)
sys.exit(9)  # a child was left
"""
    before, between, after = _run(script)
    assert len(between) > len(before)
    assert after == before


def test_facts_are_names_that_exist() -> None:
    for module, name in (*((m, n) for m, n, _ in renewal.FACTS), *renewal.NOTES):
        assert name in vars(import_module(module))
