"""What plugins and the daemon write to stderr is shown by a terminal, never obeyed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import delegate, dispatch, stderr
from cni.call import Call
from cni.protocol.config import NetConf
from tests.harness.terminal import BAD, shown

ROOT = Path(__file__).resolve().parents[2]


@given(st.text(st.characters(), max_size=50))
def test_one_line_stays_one(text: str) -> None:
    escaped = stderr.printable(text, keep="")
    assert escaped.isprintable()
    assert escaped == text or not text.isprintable()


@given(st.binary(max_size=50))
def test_any_bytes_of_another_program(data: bytes) -> None:
    read, write = os.pipe()
    saved = os.dup(2)
    try:
        os.dup2(write, 2)
        stderr.passed_on(data)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert shown(pipe.read().decode())


@pytest.mark.parametrize("bad", BAD)
def test_every_way_to_write(bad: str, capfd: pytest.CaptureFixture[str]) -> None:
    Call.log(None, f"before{bad}after")  # type: ignore[arg-type]
    delegate.pass_on(f"before{bad}after\n".encode(errors="surrogatepass"))
    stderr.line(f"before{bad}after")
    stderr.lines(f"before{bad}after\n\tmore\n")
    text = capfd.readouterr().err
    assert shown(text)
    assert text.count("\n") == 5
    assert text.count("before") == text.count("after") == 4


def test_a_name_makes_no_line_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    Call.log(None, "net\nforged: all is well")  # type: ignore[arg-type]
    assert capfd.readouterr().err == "net\\nforged: all is well\n"


@pytest.mark.parametrize("bad", BAD)
def test_tracebacks(
    bad: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin = ModuleType("tests.broken")

    def add(_call: Call[NetConf]) -> None:
        raise RuntimeError(f"of a name {bad}")

    plugin.Conf, plugin.add = NetConf, add  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setitem(dispatch.TABLE, "broken", dispatch.Plugin(plugin.__name__, "breaks"))
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/nowhere",
        "CNI_PATH": "/nowhere",
    }
    conf = b'{"cniVersion": "1.1.0", "name": "net"}'
    assert dispatch.answer("broken", env, lambda: conf)[0] == 1
    text = capfd.readouterr().err
    assert "Traceback" in text
    assert "RuntimeError: of a name" in text
    assert shown(text)


def test_a_file_s_name(tmp_path: Path) -> None:
    """A plugin by exec, as a runtime runs it."""
    network = tmp_path / "net"
    network.mkdir()
    (network / "10.1.2.9").write_text("\x1b]0;own\x07\r\nb\r\nc")
    (network / "10.1.2.8\x1b[31m").write_text("a\r\nb\r\nc")
    ipam = {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": str(tmp_path)}
    conf = {"cniVersion": "1.1.0", "name": "net", "ipam": ipam, "cni.dev/valid-attachments": []}
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CNI_PATH": "/nowhere"}
    code = "import sys; sys.argv = ['/bin/host-local']; from cni.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env | {"CNI_COMMAND": "GC"},
        input=json.dumps(conf),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "left alone" in done.stderr
    assert shown(done.stderr)


# Where something is written to stderr that has no names of others in it, or is escaped there.
ALLOWED = {
    "cni/stderr.py": 1,
    "cni/__main__.py": 1,  # that there is no memory
}


def test_there_is_no_other_way() -> None:
    """All but the command line, which has a test of its own, and what old Pythons must read."""
    found: dict[str, int] = {}
    for path in (ROOT / "cni").rglob("*.py"):
        name = str(path.relative_to(ROOT))
        if name.startswith(("cni/cli/", "cni/describe/")) or name == "cni/startup_error.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _writes(node):
                found[name] = found.get(name, 0) + 1
    assert found == ALLOWED


def _writes(node: ast.Call) -> bool:
    text = ast.unparse(node)
    return text.startswith(("os.write(2,", "print(", "sys.stderr.write(", "traceback.print"))
