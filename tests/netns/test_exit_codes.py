"""Each exit code of docs/cli.md, of the built file on a node: each can be had."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.cli.errors import EXIT_CODES
from tests.harness import Netns
from tests.harness.command_line import Node
from tests.harness.paths import let_everybody_in

Namespaces = Callable[..., Netns]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# A plugin of another project that works until it is told to end, and says when it has begun.
SLOW = """#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo >"$BEGUN"
read -r line <"$GO"
echo '{"cniVersion": "1.0.0"}'
"""


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    made = Node(host, bin_dir, tmp_path)
    made.env["CNI_SERVER_SOCKET"] = str(tmp_path / "cni.sock")
    made.configure()
    return made


def two_pods(node: Node, netns: Namespaces) -> None:
    conf = json.loads((node.net_d / "10-net.conflist").read_text())
    for number, end in enumerate(("a", "b")):
        node.start(conf, netns(f"pod{number}"), f"shop/web-{number}", cid="5" * 63 + end)


def done(node: Node, netns: Namespaces) -> int:
    return node.run("add", "net", netns("c").path).returncode


def failed(node: Node, netns: Namespaces) -> int:
    (node.net_d / "10-net.conflist").write_text("{")
    return node.run("status", "net").returncode


def wrong_usage(node: Node, netns: Namespaces) -> int:
    return node.run("add", "net").returncode


def not_found(node: Node, netns: Namespaces) -> int:
    return node.run("status", "nosuch").returncode


def ambiguous(node: Node, netns: Namespaces) -> int:
    two_pods(node, netns)
    found = node.run("check", "net", "--id", "5")
    assert "5" * 63 + "a" in found.stderr
    assert "5" * 63 + "b" in found.stderr
    return found.returncode


def refused(node: Node, netns: Namespaces) -> int:
    two_pods(node, netns)
    found = node.run("del", "net", "shop/web-0")
    assert "--force" in found.stderr
    assert len(node.leases("net")) == 2
    return found.returncode


def not_permitted(node: Node, netns: Namespaces) -> int:
    let_everybody_in(node.bin_dir)
    let_everybody_in(node.net_d)
    argv = [*NOBODY, *node.argv("gc", "net")]
    return node.host.exec(argv, env=node.env, cwd="/", check=False).returncode


def unknown(node: Node, netns: Namespaces) -> int:
    """Without /sys the kernel's modules are unknown."""
    script = 'mount -t tmpfs none /sys && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *node.argv("doctor", "--json")]
    found = node.host.exec(argv, env=node.env, cwd="/", check=False)
    value = json.loads(found.stdout)
    assert value["unknown"] > 0
    if value["errors"]:  # of this machine, as a disk that is full: errors come first
        pytest.skip(f"this machine has errors of its own: {value['findings']}")
    return found.returncode


def try_again(node: Node, netns: Namespaces) -> int:
    """Another process holds the lock of host-local's directory."""
    node.ok("add", "net", netns("first").path)
    lock = node.data_dir / "net/lock"
    fd = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return node.run("add", "net", netns("second").path).returncode
    finally:
        os.close(fd)


def not_ready(node: Node, netns: Namespaces) -> int:
    """STATUS of a network whose range is full; before, it is ready."""
    assert node.run("status", "net").returncode == 0
    path = node.net_d / "10-net.conflist"
    conf = json.loads(path.read_text())
    conf["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "10.9.0.0/30", "rangeStart": "10.9.0.2"}]]
    path.write_text(json.dumps(conf))
    node.ok("add", "net", netns("only").path)
    return node.run("status", "net").returncode


def cut_off(node: Node, netns: Namespaces) -> int:
    node.ok("add", "net", netns("c").path)
    node.host.ip("link", "set", "cni0", "down")
    return node.run("status", "net").returncode


def interrupted(number: int) -> Callable[[Node, Namespaces], int]:
    """By a signal, while a plugin works: it finishes, and the next is not started."""

    def drive(node: Node, netns: Namespaces) -> int:
        root = node.net_d.parent
        plugins = root / "plugins"
        plugins.mkdir()
        for name in ("slow", "next"):
            (plugins / name).write_text(SLOW if name == "slow" else "#!/bin/sh\nexit 1\n")
            (plugins / name).chmod(0o755)
        begun, go = root / "begun", root / "go"
        os.mkfifo(begun)
        os.mkfifo(go)
        chain = [{"type": "slow"}, {"type": "next"}]
        node.write({"cniVersion": "1.0.0", "name": "long", "plugins": chain})
        env = {**node.env, "CNI_PATH": str(plugins), "BEGUN": str(begun), "GO": str(go)}
        argv = node.argv("add", "long", netns("c").path)
        child = node.host.popen(
            argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        begun.read_text()
        child.send_signal(number)
        go.write_text("\n")
        out, err = child.communicate(timeout=60)
        assert out == ""
        assert "interrupted" in err
        return child.returncode

    return drive


def without_reader(node: Node, netns: Namespaces) -> int:
    ours, theirs = os.pipe()
    os.close(ours)
    argv = [str(node.bin_dir / "cni"), "explain", "bridge"]
    with open(theirs, "wb") as stdout:
        child = node.host.popen(
            argv, env=node.env, stdout=stdout, stderr=subprocess.PIPE, text=True
        )
    _, err = child.communicate(timeout=60)
    assert err == ""
    return child.returncode


DRIVEN: dict[int, Callable[[Node, Namespaces], int]] = {
    0: done,
    1: failed,
    2: wrong_usage,
    3: not_found,
    4: ambiguous,
    5: refused,
    6: not_permitted,
    7: unknown,
    11: try_again,
    50: not_ready,
    51: cut_off,
    129: interrupted(signal.SIGHUP),
    130: interrupted(signal.SIGINT),
    141: without_reader,
    143: interrupted(signal.SIGTERM),
}


@pytest.mark.parametrize("code", DRIVEN)
def test_an_exit_code(node: Node, netns: Namespaces, code: int) -> None:
    assert DRIVEN[code](node, netns) == code


def test_each_code_is_driven() -> None:
    assert set(DRIVEN) == set(EXIT_CODES)
