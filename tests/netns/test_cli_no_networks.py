"""A directory of configurations that is missing, empty, or unreadable.

Every command that reads it says so: to find nothing wrong in nothing means nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

from cni.cli.group import cli
from tests.harness import Netns
from tests.harness.command_line import Node

NAMED = ("validate", "status", "plan", "test", "trace", "network rm")
LISTING = ("ls", "network ls", "ps", "graph", "ipam", "ipam list", "metrics", "ports", "rules")


def empty(path: Path) -> None:
    path.mkdir()


def of_others(path: Path) -> None:
    path.mkdir()
    (path / "README").write_text("none of a network's")
    (path / "old.conflist.bak").write_text("{}")
    (path / "folder.conflist").mkdir()


def missing(path: Path) -> None:
    pass


NOTHING: dict[str, Callable[[Path], None]] = {
    "empty": empty,
    "only other files": of_others,
    "missing": missing,
}
GOOD = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    node = Node(host, bin_dir, tmp_path)
    node.env["CNI_SERVER_SOCKET"] = str(tmp_path / "cni.sock")
    return node


def has_cache_dir(words: Sequence[str]) -> bool:
    """Does the command take --cache-dir?"""
    command: click.Command | None = cli
    for word in words:
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), word) or command
    assert command is not None
    return any("--cache-dir" in parameter.opts for parameter in command.params)


def run(node: Node, *words: str) -> tuple[int, str, str]:
    extra = ["--cache-dir", str(node.cache)] if has_cache_dir(words) else []
    argv = [str(node.bin_dir / "cni"), *words, *extra]
    done = node.host.exec(argv, check=False, env=node.env, cwd="/")
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("state", NOTHING)
def test_nothing_is_there(node: Node, tmp_path: Path, state: str) -> None:
    directory = tmp_path / "networks of the node"
    NOTHING[state](directory)
    node.env["NETCONFPATH"] = str(directory)
    for name in NAMED:
        code, out, err = run(node, *name.split(), "net")
        assert (code, out) == (3, ""), (name, err)
        assert str(directory) in err, (name, err)
    for words in ([], [str(directory)], ["--json"]):
        code, out, err = run(node, "validate", *words)
        assert code == 3, (words, out, err)
        assert str(directory) in out + err, (words, out, err)
        assert "nothing is wrong" not in out + err
    for name in LISTING:
        assert run(node, *name.split())[0] == 0, name
        assert run(node, *name.split(), "--json")[2] == "", name
    assert f"no network configurations in {directory}" in run(node, "ls")[2]
    assert f"there is no network in {directory}" in run(node, "doctor")[1]


def test_a_file_in_place_of_the_directory(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "net d"
    path.write_text("{}")
    node.env["NETCONFPATH"] = str(path)
    for name in (*NAMED, *LISTING):
        code, out, err = run(node, *name.split(), *(["net"] if name in NAMED else []))
        assert (code, out) == (1, ""), (name, err)
        assert f"{path}: not a directory" in err, (name, err)
        assert "NETCONFPATH" in err, (name, err)
    code, out, _ = run(node, "doctor", "--json")
    (found,) = [each for each in json.loads(out)["findings"] if each["area"] == "networks"]
    assert (code, found["level"], found["mend"]) == (1, "error", f"ls -ld '{path}'")


def test_a_directory_that_this_user_may_not_read(node: Node, tmp_path: Path) -> None:
    for parent in (node.bin_dir, *node.bin_dir.parents, *tmp_path.parents, tmp_path):
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    node.write(GOOD)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    program = [*user, str(node.bin_dir / "cni")]
    for mode, kind in ((0o700, "directory"), (0o755, "file")):
        node.net_d.chmod(mode)
        (node.net_d / "10-net.conflist").chmod(0o600)
        for name in ("validate", "status", "plan"):
            argv = [*program, name, "net"]
            done = node.host.exec(argv, check=False, env=node.env, cwd="/")
            assert done.returncode == 6, (kind, name, done)
            assert "permission denied" in done.stderr, (kind, name, done)
            assert "root" in done.stderr, (kind, name, done)
    node.net_d.chmod(0o700)
    done = node.host.exec([*program, "doctor", "--json"], check=False, env=node.env, cwd="/")
    found = [each for each in json.loads(done.stdout)["findings"] if each["area"] == "networks"]
    assert [each["level"] for each in found] == ["unknown"], found


def test_what_is_no_file_is_not_waited_for(node: Node) -> None:
    node.write(GOOD)
    os.mkfifo(node.net_d / "05-fifo.conflist")
    (node.net_d / "06-link.conflist").symlink_to("/nosuch")
    done = run(node, "validate", str(node.net_d))
    assert done[0] == 1
    assert "is a fifo" in done[1]
    assert "06-link.conflist" in done[1]
    for listing in LISTING:
        assert run(node, *listing.split())[0] == 0, listing


def test_bytes_that_are_no_utf8_are_read_as_go_reads_them(node: Node, container: Netns) -> None:
    data = json.dumps({**GOOD, "note": "XX"}).encode().replace(b"XX", b"\xff\xfe")
    (node.net_d / "10-net.conflist").write_bytes(data)
    assert run(node, "ls")[2] == ""
    assert run(node, "add", "net", container.path)[0] == 0
    assert run(node, "del", "net", container.path)[0] == 0
