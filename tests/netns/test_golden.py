"""What every command shows a person: the texts themselves, on a terminal of 80 columns.

`make golden` writes tests/netns/golden anew; look at what git says has changed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from cni.cli import COMMANDS
from tests.conftest import make_host, making_netns
from tests.harness.build import file_under_test
from tests.harness.made_up_node import BIN_DIR
from tests.harness.netns import PATH

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
WRITE = os.environ.get("CNI_GOLDEN") == "write"

# File -> command lines, in the order in which they run: first those that change nothing.
SHOWN: dict[str, list[str]] = {
    "cni": ["cni --help", "cni --version", "cni nosuch", "cni", "cni lss"],
    "ls": ["cni ls", "cni ls -o wide"],
    "ps": ["cni ps", "cni ps -o wide", "cni ps spare", "cni ps nosuch"],
    "inspect": [
        "cni inspect shop/web-0",
        "cni inspect 7e",
        "cni inspect shop",
        "cni inspect nosuch",
    ],
    "ports": ["cni ports", "cni ports 8080", "cni ports 8081", "cni ports http"],
    "rules": ["cni rules shop/web-0", "cni rules shop/web-0 -o wide", "cni rules nosuch"],
    "ipam": [
        "cni ipam",
        "cni ipam list",
        "cni ipam list nosuch",
        "cni ipam check shop",
        "cni ipam release shop 10.81.0.2",
        "cni ipam release shop 10.81.0.77",
        "cni ipam release shop 10.81.0.4 --dry-run",
    ],
    "graph": ["cni graph", "cni graph shop", "cni graph shop -o dot", "cni graph nosuch"],
    "metrics": ["cni metrics", "cni metrics --to /nosuch/cni.prom"],
    "plugins": ["cni plugins", "cni plugins -o wide"],
    "validate": [
        "cni validate",
        "cni validate /mnt/wrong.conflist",
        "cni validate /mnt/torn.conflist",
        "cni validate nosuch",
    ],
    "plan": ["cni plan shop", "cni plan nosuch"],
    "doctor": ["cni doctor"],
    "explain": [
        "cni explain sbr",
        "cni explain bridge.vlanTrunk",
        "cni explain bridge.vlanTrnk",
    ],
    "schema": ["cni schema sbr", "cni schema brige"],
    "status": ["cni status shop", "cni status nosuch"],
    "network": [
        "cni network ls",
        "cni network create back --internal --dry-run",
        "cni network create back --subnet 10.81.0.0/16",
        "cni network create back --driver nosuch",
        "cni network rm shop",
        "cni network rm nosuch",
    ],
    "dhcp": ["cni dhcp leases"],
    "install": ["cni uninstall", "cni uninstall --bin-dir /nosuch"],
    "migrate": ["cni migrate"],
    "reload": ["cni reload"],
    "serve": ["cni serve --status"],
    "completion": ["cni completion tcsh"],
    "trace": ["cni trace nosuch", "cni trace shop /run/netns/web", "cni trace shop -o wide"],
    "test": ["cni test spare", "cni test nosuch"],
    "conform": [],
    "sysdump": [
        "cni sysdump -o /mnt/node-1.tar.gz",
        "cni sysdump -o /mnt/node-1.tar.gz",
        "cni sysdump -o x",
    ],
    "add": [
        "cni add spare /run/netns/blue",
        "cni add spare /run/netns/blue",
        "cni add spare blue",
        "cni add spare /run/netns/nosuch",
        "cni add nosuch /run/netns/blue",
        "cni add spare",
    ],
    "check": [
        "cni check spare /run/netns/blue",
        "cni check shop shop/web-0",
        "cni check shop --id 6d",
        "cni check shop shop/old-0",
        "cni check shop nosuch/pod",
        "cni check shop",
    ],
    "del": [
        "cni del spare /run/netns/blue --dry-run",
        "cni del spare /run/netns/blue",
        "cni del spare /run/netns/blue",
        "cni del shop shop/web-0",
        "cni del shop shop/web-0 --force",
        "cni del shop --id 9",
    ],
    "gc": [
        "cni gc shop --dry-run",
        "cni gc shop --keep nosuch/eth0",
        "cni gc shop --all",
        "cni gc shop",
        "cni gc nosuch",
    ],
}
CHANGING = ("add", "check", "del", "gc")
ALL = sorted(SHOWN, key=lambda name: CHANGING.index(name) if name in CHANGING else -1)


# Plugins come and go; of their list these rows are kept.
_ROWS = ("NAME", "bridge", "host-local", "portmap", "route-override", "sample")


def _some_plugins(text: str) -> str:
    """The list of plugins, as if there were only a few."""
    rows = re.compile(r"^[\w-]+ +(main|ipam|meta|KIND) ")
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not rows.match(line) or line.split()[0] in _ROWS)


_STEP = re.compile(r"^ *\d+\.\d\d +(?:◀ +)?")
_OUTER = re.compile(r"start +the process|verb |end +the answer|[\w-]+ (ADD|DEL) +by ")


def _outline(text: str) -> str:
    """A trace without its times, and without what is below a plugin's verb: that is others' work,
    differs from file to file, and tests/netns/test_trace.py looks at it.
    """
    lines = []
    for line in text.splitlines(keepends=True):
        step = _STEP.sub("", line)
        if step == line:
            heading = re.fullmatch(r" *MS +STEP +WHAT\n", line)
            lines.append("MS    STEP  WHAT\n" if heading else re.sub(r"[\d.]+ ms", "0 ms", line))
        elif _OUTER.match(step) and not (step.startswith("verb") and "host-local" in step):
            lines.append("0.00  " + re.sub(r"(?<=\S) {2,}", "  ", step))
    return "".join(lines)


_MOST = 12  # lines of a schema


def _beginning(text: str) -> str:
    """Schemas without most of their lines: tests/unit/test_describe.py looks at those."""
    parts = re.split(r"(?m)^(?=\$ )", text)
    shown = []
    for lines in (part.splitlines(keepends=True) for part in parts):
        is_schema = any('"$schema"' in line for line in lines)
        shown += [*lines[:_MOST], "…\n\n"] if is_schema else lines
    return "".join(shown)


def commands(name: str) -> list[str]:
    """The command lines of a file: its help first."""
    more = {"ipam": ["list", "check", "release"], "network": ["create", "rm", "ls"]}
    more |= {"dhcp": ["leases", "daemon"], "install": []}
    helps = [f"cni {name} --help"] if name != "cni" else []
    helps += [f"cni {name} {sub} --help" for sub in more.get(name, ())]
    if name == "install":
        helps.append("cni uninstall --help")
    return [*helps, *SHOWN[name]]


# What differs from one run, machine or build to another, and what stands for it. Where columns
# stand below each other, the width stays.
VARIABLE = [
    (r"\b(?!02:00:)(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", lambda _: "MM:MM:MM:MM:MM:MM"),
    (r"\d{4}-\d\d-\d\dT[\d:]+(\.\d+)?Z", lambda _: "2026-11-29T12:00:00Z"),
    (r"( +)\d+[smh](?= )", lambda found: "0s".rjust(len(found[0]))),
    (r"\bbuild [0-9a-f]{12}\b", lambda _: "build BUILD"),
    (r'build="[^"]*"', lambda _: 'build="BUILD"'),
    (r"Python 3\.\d+\.\d+ \([^)]*\)", lambda _: "Python 3.X.Y (INTERPRETER)"),
    (r"Linux \d\S*[^\s,;:)]", lambda _: "Linux KERNEL"),
    (r"\bmachine: .*", lambda _: "machine: MACHINE"),
    (r"…[0-9a-f:]{5,17} mtu", lambda found: "…" + "M" * (len(found[0]) - 5) + " mtu"),
    (r"fe80::[0-9a-f:]+/64", lambda found: "fe80::LL/64".ljust(len(found[0]))),
    (r"127\.0\.0\.1:\d+", lambda _: "127.0.0.1:PORT"),
    (r"/proc/\d+/", lambda _: "/proc/PID/"),
    (r"\d+ files, [\d.]+ [KM]iB", lambda _: "N files, N KiB"),
    (r"collecting: \d+ …", lambda _: "collecting: N …"),
    # Kernel and programs of a machine: test_doctor.py judges what is said of them.
    (
        r"(?m)(^[✓·?!✗] (software|kernel|packet filter): .*\n(  .*\n)*)+",
        lambda _: "… software, kernel, packet filter\n",
    ),
]


def normal(text: str) -> str:
    for form, by in VARIABLE:
        text = re.sub(form, by, text)  # type: ignore[arg-type]
    return text


_CUT = {"plugins": _some_plugins, "schema": _beginning, "trace": _outline}


@pytest.fixture(scope="module")
def shown(_namespaces: None) -> dict[str, str]:
    """File -> what its commands show on the made-up node."""
    lines = [line for name in ALL for line in commands(name)]
    request = {
        "file": str(file_under_test()),
        "commands": [shlex.split(line)[1:] for line in lines],
    }
    env = {
        "PATH": f"{BIN_DIR}:{PATH}",
        "TERM": "dumb",
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "TZ": "UTC",
    }
    with making_netns() as make:
        host = make_host(make)
        done = host.exec(
            ["unshare", "--mount", "--uts", sys.executable, "-m", "tests.harness.made_up_node"],
            stdin=json.dumps(request),
            env=env,
            cwd="/",
            timeout=600,
        )
    answers = iter(json.loads(done.stdout))
    found = {}
    for name in ALL:
        text = ""
        for line in commands(name):
            code, said, _ = next(answers)
            ended = f"[exit code {code}]\n" if code else ""
            text += f"$ {line}\n{normal(said)}{ended}\n"
        found[name] = _CUT.get(name, str)(text)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ALL)
def test_texts(shown: dict[str, str], name: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if WRITE:
        path.write_text(shown[name])
    kept = path.read_text() if path.exists() else ""
    diff = difflib.unified_diff(
        kept.splitlines(), shown[name].splitlines(), str(path.relative_to(ROOT)), "now", lineterm=""
    )
    text = "\n".join(diff)
    assert not text, f"texts have changed (`make golden` takes them over):\n{text}"


def test_every_command_is_shown() -> None:
    assert set(COMMANDS) - set(SHOWN) == {"uninstall"}  # with install
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(SHOWN)
