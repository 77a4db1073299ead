"""Commands show the same from dist/cni and from the self-contained file."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.harness import Netns
from tests.harness.command_line import Node

COMMANDS = [
    ["inspect", "shop/web-0"],
    ["inspect", "shop/web-0", "-o", "json"],
    ["inspect", "shop"],
    ["ps", "-o", "name"],
    ["ls", "-o", "json"],
    ["graph"],
    ["rules"],
    ["ports"],
    ["ipam", "list"],
    ["status", "shop"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_same_from_both_files(
    command: list[str], host: Netns, bin_dir: Path, program: Path, tmp_path: Path, container: Netns
) -> None:
    node = Node(host, bin_dir, tmp_path)
    limits = {"type": "bandwidth", "ingressRate": 10**6, "ingressBurst": 10**6}
    conf = node.network("shop", "10.81.0.0/24", {"type": "sbr"}, limits, ipMasq=True)
    node.start(conf, container, "shop/web-0", cid="5" * 64)
    of_dist = node.run(*command)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/cni").symlink_to(program)
    node.bin_dir = tmp_path / "bin"
    of_program = node.run(*command)
    assert (of_dist.returncode, of_dist.stdout, of_dist.stderr) == (
        of_program.returncode,
        of_program.stdout,
        of_program.stderr,
    )
    assert of_dist.returncode == 0, of_dist.stdout + of_dist.stderr
    if command[:2] == ["inspect", "shop/web-0"] and "json" in command:
        kinds = {(each["kind"], each["where"]) for each in json.loads(of_dist.stdout)[0]["kernel"]}
        assert kinds >= {
            ("link", "node"),
            ("link", "container"),
            ("address", "container"),
            ("route", "container"),
            ("policy rule", "container"),
        }


def test_messages_come_from_no_directory_of_others(program: Path, tmp_path: Path) -> None:
    """Who calls `cni` in a directory of somebody else reads our texts."""
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=open,openat,stat,access", program, "ports", "nosuch"],
        cwd=tmp_path,
        env={"LANG": "de_DE.UTF-8", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert "LC_MESSAGES" in done.stderr
    assert not re.findall(r'\w+\((?:AT_FDCWD, )?"[^/][^"]*"', done.stderr)
