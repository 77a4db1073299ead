"""On Windows nothing of Linux is imported; on Linux, nothing of Windows is on the way.

Windows is played by an interpreter whose sys.platform says so, which lacks the modules and
constants that only Linux has, and whose msvcrt is ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cni import dispatch
from cni.windows.launcher import is_twin, plugin_name

ROOT = Path(__file__).resolve().parents[2]

# What CPython on Windows does not have.
PRELUDE = """
import errno, os, signal, sys, types
import ctypes, subprocess, socket, select, tempfile  # the interpreter's own still run on Linux
import contextlib, importlib, json, msgspec, traceback
BLOCKED = {"fcntl", "resource", "pwd", "grp", "termios", "_posixsubprocess", "syslog"}
class Block:
    def find_spec(self, name, path=None, target=None):
        ours = name.startswith(("cni.kernel.", "cni.netns."))
        if name in BLOCKED or ours and name not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
ALLOWED = {"cni.owner", "cni.netns.unsupported", "cni.kernel.errors"}
import _posixsubprocess, fcntl as real, _socket
LOCKED = set()
def locking(fd, mode, size):
    assert size == 1 and os.lseek(fd, 0, os.SEEK_CUR) == 0
    if mode == 2:
        if fd in LOCKED:
            raise PermissionError(13, "Permission denied")
        LOCKED.add(fd)
    else:
        LOCKED.remove(fd)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
for name in BLOCKED:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Block())
for module, names in {
    os: "O_CLOEXEC O_NOFOLLOW O_NONBLOCK O_TMPFILE O_DIRECTORY WNOHANG "
        "fork posix_spawn memfd_create",
    signal: "SIGHUP SIGKILL",
    _socket: "AF_NETLINK AF_UNIX AF_PACKET SOCK_CLOEXEC CMSG_SPACE SCM_RIGHTS socketpair",
}.items():
    for name in names.split():
        delattr(module, name)
os.O_BINARY = os.O_NOINHERIT = 0
sys.platform = "win32"
"""


def on_windows(code: str, *arguments: Any) -> Any:
    """Run code there; what it prints, as JSON."""
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_plugin_of_windows_can_be_imported() -> None:
    found = on_windows("""
import cni.__main__
from cni import dispatch
for plugin in dispatch.TABLE.values():
    importlib.import_module(plugin.module)
import cni.ipam.host_local.store_windows, cni.intent
print(json.dumps([sorted(dispatch.TABLE), sorted(m for m in sys.modules if m.startswith("cni."))]))
""")
    names, modules = found
    assert names == ["host-local", "static", "win-bridge", "win-overlay"]
    assert [m for m in modules if m.startswith(("cni.kernel.", "cni.netfilter"))] == [
        "cni.kernel.errors"
    ]


def test_linux_offers_none_of_them() -> None:
    assert not set(dispatch.WINDOWS) & set(dispatch.TABLE)


@pytest.mark.parametrize("plugin", ["bridge", "host-local"])
def test_linux_imports_none_of_it(plugin: str) -> None:
    code = (
        f"import sys, importlib; from cni import dispatch; "
        f"importlib.import_module(dispatch.TABLE[{plugin!r}].module); "
        "assert not [m for m in sys.modules if m.startswith('cni.windows') "
        "or m in ('cni.netns.unsupported', 'cni.ipam.host_local.store_windows', "
        "'subprocess', 'msvcrt')]"
    )
    subprocess.run([sys.executable, "-S", "-c", PATHS + code], cwd=ROOT, check=True)


PATHS = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "


HOST_LOCAL = """
from cni import dispatch
conf = {"cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": {
    "type": "host-local", "dataDir": sys.argv[1], "ranges": [
        [{"subnet": "10.1.2.0/29"}], [{"subnet": "fd00::/64"}]]}}
def run(verb, container, **more):
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": "none",
           "CNI_IFNAME": "eth0", "CNI_PATH": "C:/opt/cni/bin"}
    stdin = json.dumps({**conf, **more}).encode()
    code, output = dispatch.answer("host-local", env, lambda: stdin)
    return json.loads(output) if output else code
def files():
    where = os.path.join(sys.argv[1], "net")
    return {name: open(os.path.join(where, name), newline="").read() for name in os.listdir(where)}
"""


def test_host_local(tmp_path: Path) -> None:
    """Files, names and lock are those of the reference on Windows."""
    first, kept, again, check, left, other, locked = on_windows(
        HOST_LOCAL
        + """
out = [run("ADD", "a"), files(), run("ADD", "a"), run("CHECK", "a")]
run("ADD", "b"); run("DEL", "a"); run("DEL", "a")
out.append(sorted(files()))
out.append(run("GC", "", cniVersion="1.1.0", **{"cni.dev/valid-attachments": []}))
run("ADD", "c")
out.append(sorted(LOCKED))
print(json.dumps(out))
""",
        tmp_path / "data",
    )
    assert [ip["address"] for ip in first["ips"]] == ["10.1.2.2/29", "fd00::2/64"]
    assert kept == {
        "10.1.2.2": "a\r\neth0",
        "fd00__2": "a\r\neth0",
        "last_reserved_ip.0": "10.1.2.2",
        "last_reserved_ip.1": "fd00::2",
        "lock": "",
    }
    assert "duplicate allocation is not allowed" in again["msg"]
    assert check == 0
    assert left == ["10.1.2.3", "fd00__3", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    assert other == 0
    assert locked == []


def test_host_local_fills_up_and_says_so(tmp_path: Path) -> None:
    *added, full, status = on_windows(
        HOST_LOCAL
        + """
conf["ipam"]["ranges"].pop()
out = [run("ADD", f"c{number}")["ips"][0]["address"] for number in range(5)]
print(json.dumps([*out, run("ADD", "more"), run("STATUS", "", cniVersion="1.1.0")]))
""",
        tmp_path / "data",
    )
    assert len(set(added)) == 5
    assert "no IP addresses available" in full["msg"]
    assert status["code"] == 50


def test_a_delegate_is_run_as_a_program(tmp_path: Path) -> None:
    """CNI_PATH is split at semicolons, and the name gets .exe."""
    # os.pathsep and os.sep are the interpreter's own, which still is one of Linux.
    program = tmp_path / "other.exe"
    program.write_text("")
    found = on_windows(
        """
os.pathsep = ";"
from cni import delegate
from cni.protocol import request
env = {"CNI_COMMAND": "GC", "CNI_PATH": f"C:/no;{sys.argv[1]}"}
read = request.read(env, lambda: b"{}")
print(json.dumps([read.path, delegate.find("other", read.path)]))
""",
        tmp_path,
    )
    assert found == [["C:/no", str(tmp_path)], str(program)]


def test_the_name_of_a_launcher() -> None:
    assert plugin_name(r"C:\opt\cni\bin\win-bridge.exe") == "win-bridge"
    assert plugin_name("C:/opt/cni/bin/HOST-LOCAL.EXE") == "host-local"
    assert plugin_name("win-overlay") == "win-overlay"


def test_twins(tmp_path: Path) -> None:
    """Only a copy of ourselves beside us would start the same code."""
    for name, content in (("a.exe", "x"), ("b.exe", "x"), ("c.exe", "y"), ("sub/a.exe", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    ours = str(tmp_path / "a.exe")
    twins = {n: is_twin(str(tmp_path / n), ours) for n in ("b.exe", "c.exe", "sub/a.exe")}
    assert twins == {"b.exe": True, "c.exe": False, "sub/a.exe": False}
