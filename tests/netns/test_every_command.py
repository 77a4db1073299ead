"""Every command, as click lists them: what a terminal of 80 columns and what a program gets.

The node has names as long as they may be, IPv6, and names of pods in wide and combining characters
and with escape sequences.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import yaml as judge

from cni.cli import COMMANDS, errors, formats
from cni.cli.group import cli
from cni.cli.table import cell_width
from tests.harness import Netns
from tests.harness.combinations import every_day
from tests.harness.command_line import Node, Pod
from tests.harness.many_commands import BROKEN, COLUMNS
from tests.harness.netns import PATH

LONG = "n" * 150
CID = "5" * 64
ROOT = Path(__file__).parents[2]
PORTS = {
    "portMappings": [
        {"hostPort": port, "containerPort": port, "protocol": "tcp"} for port in range(8080, 8086)
    ]
}
WIDE = "網路/容器容器容器容器容器容器容器容器容器容器容器"
COMBINING = "e\u0301" * 30 + "/" + "a\u0308" * 40
ESCAPES = "\x1b[31mred/\x1b]0;own\x07web"


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[str]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
            if command.invoke_without_command:
                yield " ".join((*path, name))
        else:
            yield " ".join((*path, name))


# Arguments with which a command says something. A command that is not here is run as it is.
ARGUMENTS: dict[str, list[list[str]]] = {
    "add": [[LONG, "{netns}"], ["nosuch", "{netns}"]],
    "check": [[LONG, "--id", CID]],
    "del": [[LONG, "--id", CID, "--dry-run"], [LONG, "--id", CID]],
    "gc": [[LONG, "--dry-run"], [LONG]],
    "status": [[LONG], ["nosuch"]],
    "plan": [[LONG]],
    "validate": [[], [LONG], ["{wrong}"]],
    "doctor": [[]],
    "test": [["nosuch"]],
    "explain": [["bridge"], ["portmap.conditionsV4"], ["bridge.ipam"]],
    "schema": [["bridge"]],
    "inspect": [[CID], [LONG]],
    "ps": [[], [LONG]],
    "ports": [[], ["8080"]],
    "rules": [[], [CID]],
    "graph": [[], [LONG]],
    "ipam list": [[], [LONG]],
    "ipam check": [[LONG]],
    "ipam release": [[LONG, CID, "--dry-run"], [LONG, CID]],
    "network create": [["new", "--dry-run"], [LONG]],
    "network rm": [[LONG]],
    "migrate": [[], ["--to", "own"]],
    "install": [["--bin-dir", "{tmp}/nothing/there"]],
    "uninstall": [["--bin-dir", "{bin}"]],
    "completion": [["bash"]],
    "serve": [["--status", "--socket", "{tmp}/none.sock"]],
    "sysdump": [["-o", "{tmp}/x.tar.gz", "--force", "--timeout", "60"]],
    "dhcp leases": [["--socket", "{tmp}/none.sock"]],
}
# They go on until they are ended, or their flags are those of the reference's.
ENDLESS = ("dhcp daemon",)
CACHED = ("--cache-dir",)
ALL = [name for name in dict.fromkeys(leaves(cli)) if name not in ENDLESS]


def options(name: str) -> set[str]:
    command: click.Command = cli
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    return {option for parameter in command.params for option in parameter.opts}


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


@pytest.fixture
def pods(node: Node, netns: Callable[..., Netns], tmp_path: Path) -> dict[str, str]:
    """Four pods in the network with the longest name; what arguments may name."""
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    ranges = [[{"subnet": "10.81.0.0/24"}], [{"subnet": "fd00:1234:5678:9abc:def0::/80"}]]
    ipam = {"type": "host-local", "dataDir": str(node.data_dir), "ranges": ranges}
    bridge = {"type": "bridge", "bridge": "br-long", "isGateway": True, "ipam": ipam}
    conf = node.write({"cniVersion": "1.1.0", "name": LONG, "plugins": [bridge, portmap]}, "long")
    made: list[Pod] = []
    for number, pod in enumerate((WIDE, COMBINING, ESCAPES)):
        cid = CID if number == 0 else os.urandom(32).hex()
        ports = PORTS if number == 0 else None
        made.append(node.start(conf, netns(f"n{number}"), "a/b", cid=cid, capabilities=ports))
        rename(node, cid, pod)
    dead = node.start(conf, netns("dead"), "a" * 60 + "/" + "b" * 200)
    dead.netns.close()
    wrong = tmp_path / "wrong.conflist"
    wrong.write_text(
        json.dumps(
            {
                "cniVersion": "1.1.0",
                "name": LONG,
                "plugins": [{**bridge, "isGatway": True, "mtu": "1500", "x" * 200: "y" * 300}],
            }
        )
    )
    free = netns("free")
    return {
        "netns": free.path,
        "wrong": str(wrong),
        "tmp": str(tmp_path),
        "bin": str(node.bin_dir),
    }


def rename(node: Node, cid: str, pod: str) -> None:
    """Give a pod its name in the cache and the intents, where others have written it."""
    namespace, _, name = pod.partition("/")
    for path in (node.cache / "results").iterdir():
        record = json.loads(path.read_text())
        if record["containerId"] == cid:
            names = {"K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": name}
            record["cniArgs"] = [[key, names.get(key, old)] for key, old in record["cniArgs"]]
            path.write_text(json.dumps(record))


def run_all(node: Node, requests: Sequence[tuple[list[str], bool | str]], **env: str) -> list[Any]:
    done = node.host.exec(
        [sys.executable, "-m", "tests.harness.many_commands"],
        stdin=json.dumps(requests),
        env={
            **node.env,
            "PATH": PATH,
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            **env,
        },
        cwd="/",
        timeout=900,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def lines_of(node: Node, names: dict[str, str]) -> list[list[str]]:
    """A command line for each command and each of its arguments."""
    found = []
    for name in ALL:
        for arguments in ARGUMENTS.get(name, [[]]):
            words = [*name.split(), *(each.format(**names) for each in arguments)]
            if "--cache-dir" in options(name):
                words += ["--cache-dir", str(node.cache)]
            found.append(words)
    # What changes something comes last, so that there is something to be shown.
    changing = ("add", "del", "gc", "release", "rm", "create", "uninstall", "install")
    return sorted(found, key=lambda words: any(each in changing for each in words[:2]))


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def test_a_terminal_of_80_columns(node: Node, pods: dict[str, str]) -> None:
    lines = lines_of(node, pods)
    wrong = []
    for words, (code, shown, _) in zip(
        lines, run_all(node, [(words, True) for words in lines]), strict=True
    ):
        assert code in (0, 1, 2, 3, 4, 5, 50, 51), (words, shown)
        assert "Traceback" not in shown, shown
        if words[0] in ("schema", "completion", "metrics"):
            continue  # documents for programs
        for line in ESCAPE.sub("", shown.split("\r")[-1]).split("\n"):
            if cell_width(line) > COLUMNS and not _is_one_word(line):
                wrong.append(f"{' '.join(words)[:60]}: {cell_width(line)}: {line}")
            if not line.isprintable():
                wrong.append(f"{' '.join(words)[:60]}: not printable: {line!a}")
    assert not wrong, "\n".join(wrong)


def _is_one_word(line: str) -> bool:
    """A path, a name or a command that is to be copied stays in one piece."""
    words = line.split()
    if words[0] == "next":
        return True
    return max(map(len, words)) > COLUMNS - 20


@pytest.mark.parametrize("how", every_day(["pipe"], ["pipe", "NO_COLOR", "dumb"]))
def test_no_escapes_where_none_are_wanted(node: Node, pods: dict[str, str], how: str) -> None:
    env = {"NO_COLOR": {"NO_COLOR": "1"}, "dumb": {"TERM": "dumb"}}.get(how, {})
    lines = [words for words in lines_of(node, pods) if words[0] != "sysdump"]
    for words, (_, out, err) in zip(
        lines, run_all(node, [(words, how != "pipe") for words in lines], **env), strict=True
    ):
        assert not COLOUR.search(out + err), words
        assert how == "NO_COLOR" or "\x1b" not in out + err, words


def test_every_format_of_every_command(node: Node, pods: dict[str, str]) -> None:
    forms = [["-o", "json"], ["--json"], ["-o", "yaml"], ["-o", "name"], ["-o", "wide"]]
    lines = lines_of(node, pods)
    requests = [([*words, *form], False) for words in lines for form in forms]
    seen: dict[str, set[int]] = {}
    for (words, _), (code, out, err) in zip(requests, run_all(node, requests), strict=True):
        assert "Traceback" not in err, err
        assert code in (0, 1, 2, 3, 4, 5, 50, 51), (words, out, err)
        name = next(each for each in sorted(ALL, key=len, reverse=True) if _begins(words, each))
        seen.setdefault(name, set()).add(code)
        if "json" in words[-1]:
            assert json.loads(out) is not None, words
            assert "rror" not in err, (words, err)
        elif words[-1] == "yaml":
            assert judge.safe_load(re.sub(r"[\ud800-\udfff]", "?", out)) is not None, words
    for name in ("ls", "ps", "ports", "rules", "ipam", "plan", "explain", "schema", "network ls"):
        assert seen[name] == {0}, (name, seen[name])
    assert set(seen) == set(ALL)


# What succeeds, of each command; {new} is a network that an earlier line has made.
SUCCESS: dict[str, list[str]] = {
    **{name: [] for name in ("ls", "ps", "ports", "plugins", "ipam", "ipam list", "network ls")},
    **{name: [LONG] for name in ("plan", "status", "trace", "gc", "ipam check")},
    "rules": [CID],
    "inspect": [CID],
    "validate": [LONG],
    "explain": ["bridge"],
    "schema": ["bridge"],
    "completion": ["fish"],
    "graph": ["--to", "{tmp}/graph.txt"],
    "metrics": ["--to", "{tmp}/metrics.prom"],
    "reload": [],
    "migrate": ["--to", "own"],
    "sysdump": ["-o", "{tmp}/dump.tar.gz", "--force"],
    "conform": ["{bin}/loopback"],
    "network create": ["new"],
    "network rm": ["new"],
    "add": [LONG, "{netns}"],
    "check": [LONG, "--id", CID],
    "del": [LONG, "{netns}"],
    "ipam release": [LONG, CID, "--force"],
    "doctor": [],
    "test": [LONG],
}
# They tell of what is wrong on this node, or of a packet filter that this kernel lacks.
JUDGES = ("doctor", "test", "ipam check")
# What these need, other tests have: a store of blocks, a daemon, a server, the built file.
ELSEWHERE = {
    **{name: "tests/unit/test_cluster_cli.py" for name in ALL if name.startswith("ipam ")},
    "ipam reconcile": "tests/unit/test_cluster_reconciling.py",
    "dhcp leases": "tests/netns/test_dhcp.py",
    "serve": "tests/netns/test_server.py",
    "install": "tests/build/running.py",
    "uninstall": "tests/build/running.py",
}


@pytest.mark.timeout(600)
def test_success_is_a_document(node: Node, pods: dict[str, str]) -> None:
    """Also of a command that only does something, or writes a file."""
    assert set(SUCCESS) | set(ELSEWHERE) == set(ALL)
    order = [*SUCCESS]
    requests = []
    for name in order:
        words = [*name.split(), *(each.format(**pods) for each in SUCCESS[name])]
        cached = ["--cache-dir", str(node.cache)] if "--cache-dir" in options(name) else []
        requests.append(([*words, *cached, "--json"], False))
    for name, (code, out, err) in zip(order, run_all(node, requests), strict=True):
        assert code in ((0, 1) if name in JUDGES else (0,)), (name, out, err)
        assert isinstance(json.loads(out), dict | list), name


@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", every_day(["full"], BROKEN))
def test_a_stdout_or_directory_of_no_use(node: Node, pods: dict[str, str], how: str) -> None:
    """A sentence or nothing, and a documented exit code: never a traceback or a number."""
    lines = [words for words in lines_of(node, pods) if words[0] not in ("sysdump", "test")]
    lines += [[*name.split(), "--help"] for name in ALL] + [["--version"]]
    said = set()
    for words, (code, _, err) in zip(
        lines, run_all(node, [(words, how) for words in lines]), strict=True
    ):
        assert code in errors.EXIT_CODES, (words, code, err)
        assert "Traceback" not in err, err
        assert "[Errno" not in err, (words, err)
        said.add(code)
        if how == "no reader" and code == 141:
            assert err == "", (words, err)
        if how in ("full", "read-only") and words[-1] == "--help":
            assert (code, err.partition(":")[0]) == (1, "cannot write to stdout"), (words, err)
        if how in ("closed", "no directory") and words[-1] == "--help":
            assert (code, err) == (0, ""), (words, err)
    assert (141 in said) == (how == "no reader")


def _begins(words: list[str], name: str) -> bool:
    return words[: len(name.split())] == name.split()


def test_all_commands_are_here() -> None:
    assert {name.split()[0] for name in ALL} == set(COMMANDS)
    assert set(ARGUMENTS) <= set(ALL)
    for name in ALL:
        assert {"-o", "--json"} <= options(name), name
    assert formats.FORMATS == ("json", "yaml", "name", "wide")
