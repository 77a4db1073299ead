"""cni.standins: they behave as the real modules, and where they do not, the real ones come."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cni
from cni.dispatch import TABLE

ROOT = Path(cni.__file__).parent.parent
PACKAGES = Path(msgspec.__file__).parent.parent
SCENARIOS = Path(__file__).with_name("standins_scenarios.py")
NAMES = re.findall(r"^def (scenario_\w+)", SCENARIOS.read_text(), re.MULTILINE)

START = """
import os, sys
sys.path[:0] = {path}
from cni import standins
standins.restart = None
standins.enable()
assert standins.enabled == (os.environ.get("CNI_STANDINS") != "off")
module = sys.modules["cni.scenarios"] = type(sys)("cni.scenarios")
with open(sys.argv[1]) as file:
    exec(compile(file.read(), sys.argv[1], "exec"), vars(module))
import json
print(json.dumps(getattr(module, sys.argv[2])(), default=repr))
"""


def documents() -> list[dict[str, Any]]:
    """The configurations in docs/plugins: each entry of each list, and its ipam."""
    found: list[dict[str, Any]] = []
    for page in sorted((ROOT / "docs/plugins").glob("*.md")):
        for text in re.findall(r"^```json\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            try:
                document = json.loads(text)
            except ValueError:  # a part of one, or one with comments
                continue
            if isinstance(document, dict):
                found += [document, *document.get("plugins", [])]
    return found


def run(
    python: str, *arguments: str | Path, standins: bool, path: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    start = START.format(path=path or [str(ROOT), str(PACKAGES)])
    env = {
        **os.environ,
        "DOCUMENTS": json.dumps(documents()),
        "CNI_STANDINS": "" if standins else "off",
    }
    command = [python, "-I", "-S", "-c", start, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("name", NAMES)
def test_as_the_real_modules(name: str) -> None:
    with_stand_ins, without = (
        run(sys.executable, SCENARIOS, name, standins=q) for q in (True, False)
    )
    assert without.returncode == 0, without.stderr
    assert with_stand_ins.returncode == 0, with_stand_ins.stderr
    assert json.loads(with_stand_ins.stdout) == json.loads(without.stdout)


def test_examples_of_every_plugin_are_compared() -> None:
    types = {document.get("type") for document in documents()}
    types |= {document.get("ipam", {}).get("type") for document in documents()}
    assert set(TABLE) - types <= {"sample"}


# --- what it cannot do ---------------------------------------------------------------------------

CALL = """
import sys
sys.path[:0] = {path}
sys.argv[:] = ["/opt/cni/bin/loopback"]
{before}
import run
run.start()
"""


def call(
    tmp_path: Path, before: str, padding: int = 0, **env: str
) -> subprocess.CompletedProcess[str]:
    """One STATUS of loopback, after a piece of code that may sabotage it.

    Where that code writes `start` to stderr, one sees how often the process began.
    """
    script = CALL.format(path=[str(ROOT / "launcher"), str(ROOT), str(PACKAGES)], before=before)
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "loopback", "padding": "x" * padding}
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        env={"CNI_COMMAND": "STATUS", "CNI_PATH": str(tmp_path), **env},
        input=json.dumps(conf),
        capture_output=True,
        text=True,
        timeout=100,
    )


# Replaces the plugin's module by one whose STATUS tells which `typing` is there.
PLUGIN = """
import os, sys
os.write(2, b"start ")
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cni.plugins.loopback":
            from _frozen_importlib import ModuleSpec
            return ModuleSpec(name, self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(SOURCE, vars(module))
sys.meta_path.insert(0, Finder())
SOURCE = '''
from __future__ import annotations
import os
import msgspec
from cni.protocol import config
%s
class Conf(config.NetConf):
    mode: %s = %s
def status(call):
    os.write(2, f"{call.conf.mode!r} {call.conf.name}".encode())
'''
"""


@pytest.mark.parametrize(
    ("imports", "hint", "default", "starts"),
    [
        ("", "str", "'a'", 1),
        ("", "dict[str, list[int | None]] | str", "'a'", 1),
        ("from typing import Literal", "Literal['a', 'b']", "'a'", 2),
        ("from typing import Optional", "Optional[str]", "'a'", 2),
        ("from typing import Annotated", "Annotated[str, msgspec.Meta(max_length=3)]", "'a'", 2),
        ("from enum import StrEnum\nclass E(StrEnum):\n    a = 'a'", "E", "'a'", 2),
        ("from datetime import date", "date | int", "'a'", 2),
        ("from uuid import UUID", "UUID | int", "'a'", 2),
        ("import typing", "typing.Union[str, int]", "'a'", 2),
        ("import msgspec\nmsgspec.structs", "str", "'a'", 2),
        ("from msgspec import structs", "str", "'a'", 2),
    ],
)
def test_starts_over_for_what_is_missing(
    tmp_path: Path, imports: str, hint: str, default: str, starts: int
) -> None:
    """A plugin may use all of typing and msgspec: the request is answered all the same."""
    done = call(tmp_path, PLUGIN % (imports, hint, default))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "start " * starts + "'a' n"


def test_submodule_of_msgspec(tmp_path: Path) -> None:
    """An ImportError the first time."""
    done = call(tmp_path, PLUGIN % ("import msgspec.structs", "str", "'a'"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.endswith("start 'a' n")


@pytest.mark.parametrize(
    "imports", ["import no_such_module", "len(5)", "os.no_such_name", "no_such"]
)
def test_unexpected_error_is_tried_without(tmp_path: Path, imports: str) -> None:
    """It could be the stand-ins' fault; if not, the error is the second attempt's."""
    done = call(tmp_path, PLUGIN % (imports, "str", "'a'"))
    assert json.loads(done.stdout)["code"] == 999
    assert done.stderr.count("start ") == 2


def test_expected_error_is_not(tmp_path: Path) -> None:
    done = call(tmp_path, PLUGIN % ("", "int", "'a'\n    cni_version: int = 1"))
    assert "json: cannot unmarshal string into" in json.loads(done.stdout)["msg"]
    assert done.stderr == "start "


NO_EXEC = "\nos.execve = lambda *args: (_ for _ in ()).throw(OSError(2, 'no exec'))\n"


def test_error_is_told_where_nothing_can_be_started(tmp_path: Path) -> None:
    done = call(tmp_path, PLUGIN % ("from typing import Literal", "str", "'a'") + NO_EXEC)
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 999)
    assert "typing.Literal is not in cni.standins" in json.loads(done.stdout)["msg"]


SABOTAGE = {
    "core wants more": "from cni.standins import typing_; typing_.FOR_MSGSPEC.clear()",
    "core is another": "from cni.standins import msgspec_; msgspec_.public = lambda module: 1 / 0",
    "no core at all": (
        "if os.environ.get('CNI_STANDINS') != 'off': sys.modules['msgspec._core'] = None"
    ),
    "no _datetime": "sys.modules['_datetime'] = None",
    "broken stand-in": "from cni.standins import typing_; del typing_.NAMES",
}


@pytest.mark.parametrize("how", SABOTAGE)
def test_sabotage(tmp_path: Path, how: str) -> None:
    """Whatever goes wrong while they are put in place, the request is answered."""
    before = f"import os\nos.write(2, b'start ')\n{SABOTAGE[how]}"
    done = call(tmp_path, before)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "start start ")


@pytest.mark.parametrize("how", ["core wants more", "core is another", "broken stand-in"])
def test_sabotage_where_nothing_can_be_started(tmp_path: Path, how: str) -> None:
    done = call(tmp_path, f"import os\n{NO_EXEC}\n{SABOTAGE[how]}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_python_gets_the_real_modules(tmp_path: Path) -> None:
    before = "from cni import standins; standins.PYTHONS = (); standins._enable = None"
    assert call(tmp_path, before).returncode == 0


def test_off(tmp_path: Path) -> None:
    done = call(tmp_path, "from cni import standins; standins._enable = None", CNI_STANDINS="off")
    assert (done.returncode, done.stderr) == (0, "")


def test_large_stdin_survives_the_second_start(tmp_path: Path) -> None:
    """More than a pipe holds."""
    plugin = PLUGIN % ("from typing import Literal", "Literal['a']", "'a'\n    padding: str = ''")
    done = call(tmp_path, plugin.replace("call.conf.mode!r", "len(call.conf.padding)"), 300_000)
    assert done.stderr == "start start 300000 n"
