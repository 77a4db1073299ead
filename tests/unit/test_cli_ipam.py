"""`cni ipam list|release|check`: exit codes, what is printed, and what is on disk afterwards."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni.cli import main
from cni.cli.cache import Attachment, Cache
from cni.ipam.host_local import reservation
from cni.ipam.host_local.directory import open_store

from . import ipam_node
from .ipam_node import Ipam

IPAM = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
}


class Node:
    """A configured network, a result cache, and addresses that were handed out."""

    def __init__(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.capture = capture
        self.root = root
        self.data = root / "networks"
        self.net = self.data / "net"
        self.conf = {"cniVersion": "1.1.0", "name": "net"}
        plugin = {"type": "bridge", "ipam": {**IPAM, "dataDir": str(self.data)}}
        (root / "net.d").mkdir()
        (root / "net.d" / "1.conflist").write_text(json.dumps({**self.conf, "plugins": [plugin]}))
        monkeypatch.setenv("NETCONFPATH", str(root / "net.d"))
        self.ipam = Ipam("host-local", {**self.conf, **plugin})
        self.cache = Cache(str(root / "cache"))

    def add(self, cid: str, netns: str = "") -> None:
        self.ipam.add(cid)
        if netns:
            self.cache.write(Attachment(cid, "net", "eth0", netns), b"{}", {"cniVersion": "1.1.0"})

    def run(self, command: str, *args: str) -> tuple[int, str]:
        """Exit code and stdout."""
        self.capture.readouterr()
        code = main(["ipam", command, "--cache-dir", str(self.root / "cache"), *args])
        return code, self.capture.readouterr().out

    def json(self, *args: str, code: int = 0) -> Any:
        status, output = self.run(*args, "--json")
        assert status == code, output
        return json.loads(output)

    def held(self) -> set[str]:
        return {name for name in os.listdir(self.net) if name[0] in "1f"}


@pytest.fixture
def node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Node:
    return Node(tmp_path, monkeypatch, capfd)


def test_list(node: Node) -> None:
    node.add("alive", "/proc/self/ns/net")
    node.add("dead", "/run/netns/nosuch")
    node.add("unknown")
    (node.net / "10.0.0.99").write_text("legacy")
    os.utime(node.net / "10.0.0.2", (0, 0))
    found = node.json("list", "net")
    assert [each["address"] for each in found] == [
        "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.99", "fd00::2", "fd00::3", "fd00::4",
    ]  # fmt: skip
    assert found[0] == {
        "network": "net",
        "address": "10.0.0.2",
        "containerID": "alive",
        "ifname": "eth0",
        "pod": "",
        "since": "1970-01-01T00:00:00Z",
        "netns": "/proc/self/ns/net",
        "netnsAlive": True,
        "earlierBoot": False,
    }
    assert [each["netnsAlive"] for each in found[1:4]] == [False, None, None]
    code, text = node.run("list", "net")
    assert code == 0
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["ADDRESS", "CONTAINER", "IFNAME", "SINCE", "NAMESPACE"]
    assert lines[1] == ["10.0.0.2", "alive", "eth0", "1970-01-01T00:00:00Z", "alive"]
    assert [line[-1] for line in lines[2:5]] == ["gone", "unknown", "unknown"]
    assert lines[4][:3] == ["10.0.0.99", "legacy", "-"]


def test_list_changes_nothing(node: Node) -> None:
    node.add("a")
    before = node.net.stat()
    node.run("list", "net")
    after = node.net.stat()  # looking at it may change when it was looked at
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_release(node: Node) -> None:
    for cid in "abc":
        node.add(cid)
    assert node.run("release", "net", "10.0.0.2", "FD00:0::3") == (
        0,
        "released 10.0.0.2, held by a/eth0\nreleased fd00::3, held by b/eth0\n",
    )
    assert node.held() == {"10.0.0.3", "10.0.0.4", "fd00::2", "fd00::4"}
    assert {each["address"] for each in node.json("release", "net", "c")} == {"10.0.0.4", "fd00::4"}
    assert node.held() == {"10.0.0.3", "fd00::2"}
    assert node.json("check", "net") == {"problems": [], "indexed": True}


def test_release_of_what_is_in_use(node: Node) -> None:
    node.add("a", "/proc/self/ns/net")
    for what in ("a", "10.0.0.2"):
        error = node.json("release", "net", what, code=5)
        assert error["msg"] == "10.0.0.2 is in use by a/eth0"
        assert "--force" in error["details"]
    assert node.held() == {"10.0.0.2", "fd00::2"}
    assert node.run("release", "net", "a", "--force")[0] == 0
    assert not node.held()


def test_release_of_nothing(node: Node) -> None:
    node.add("a")
    for what in ("nobody", "10.0.0.77"):
        error = node.json("release", "net", "a", what, code=3)
        assert error["msg"] == f"nothing is reserved for {what} in net"
    assert node.held() == {"10.0.0.2", "fd00::2"}  # all or nothing


def test_release_of_a_pod_or_a_beginning(node: Node) -> None:
    for cid in ("ab12", "ab34", "cd56"):
        node.add(cid)
    args = (("K8S_POD_NAMESPACE", "shop"), ("K8S_POD_NAME", "web-0"))
    netns = "/run/netns/nosuch"
    pod = Attachment("cd56", "net", "eth0", netns, args)
    node.cache.write(pod, b"{}", {"cniVersion": "1.1.0"})
    error = node.json("release", "net", "ab", code=4)
    assert "10.0.0.2 of ab12/eth0" in error["details"]
    assert "10.0.0.3 of ab34/eth0" in error["details"]
    assert "it is empty" in node.json("release", "net", "", code=2)["msg"]
    assert len(node.held()) == 6
    assert {each["address"] for each in node.json("release", "net", "ab3")} == {
        "10.0.0.3", "fd00::3",
    }  # fmt: skip
    # What `list` calls the holder, `release` understands.
    assert node.json("list", "net")[1]["pod"] == "shop/web-0"
    assert node.run("release", "net", "shop/web-0")[0] == 0
    assert node.held() == {"10.0.0.2", "fd00::2"}


def test_check_advises_what_leaves_no_rule_behind(node: Node) -> None:
    node.add("dead", "/run/netns/nosuch")
    problems = node.json("check", "net", code=1)["problems"]
    assert all("`cni gc net`" in each for each in problems)
    # Of a directory that no configuration names, gc knows nothing.
    elsewhere = node.root / "elsewhere"
    node.data.rename(elsewhere)
    problems = node.json("check", "net", "--data-dir", str(elsewhere), code=1)["problems"]
    assert all("`cni ipam release net " in each for each in problems)
    assert problems


def test_check(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.add("a", "/proc/self/ns/net")
    node.add("dead", "/run/netns/nosuch")
    assert node.run("release", "net", "dead")[0] == 0
    assert node.json("check", "net") == {"problems": [], "indexed": True}
    node.add("dead", "/run/netns/nosuch")
    (node.net / "10.0.0.50").write_text("")
    (node.net / "10.0.0.51").write_text("a\r\neth0")
    (node.net / "10.0.1.1").write_text("b\r\neth0")
    (node.net / "README").write_text("hello")
    found = node.json("check", "net", code=1)
    assert not found["indexed"]
    text = "\n".join(found["problems"])
    for part in (
        "10.0.0.50: empty", "10.0.0.51: a/eth0 holds 10.0.0.2 of this range set", "README: not a",
        "10.0.1.1: outside", "10.0.0.4: dead/eth0 was of /run/netns/nosuch, which is gone",
    ):  # fmt: skip
        assert part in text
    monkeypatch.setattr(reservation, "_told", [(b"another boot 123", True)])
    assert "10.0.0.2: a/eth0 was of an earlier boot" in node.run("check", "net")[1]
    assert "10.0.0.2" in node.held()


def test_check_lists_what_conflict_check_has_set_aside(node: Node) -> None:
    """One host may have several of the addresses."""
    node.add("a", "/proc/self/ns/net")
    for address in ("10.0.0.50", "10.0.0.51"):
        (node.net / address).write_text("conflict\r\n02:00:00:00:00:01")
    assert node.json("check", "net", code=1)["problems"] == [
        f"{address}: set aside: 02:00:00:00:00:01 on the link has it"
        for address in ("10.0.0.50", "10.0.0.51")
    ]


def test_check_finds_a_wrong_index(node: Node) -> None:
    node.add("a")
    with open_store(str(node.data), "net") as store:
        store.set_last_reserved(0, "10.0.0.9")
        (node.net / "10.0.0.2").unlink()
    problems = node.json("check", "net", code=1)["problems"]
    assert "index: 2 addresses are taken in the index, 1 on disk" in problems
    assert node.json("check", "net") == {"problems": [], "indexed": False}
    node.ipam.delete("nobody")
    assert node.json("check", "net") == {"problems": [], "indexed": True}


def test_without_a_configuration(node: Node) -> None:
    node.add("a")
    (node.root / "net.d" / "1.conflist").unlink()
    error = node.json("list", "net", code=3)
    assert error["msg"] == "no reservations of network net"
    assert len(node.json("list", "net", "--data-dir", str(node.data))) == 2
    error = node.json("list", "../etc", code=1)
    assert "network name" in error["msg"]
    assert not (node.data / ".." / "etc").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make network namespaces")
def test_who_lives_is_told_by_the_namespace(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the path, which names another namespace by now; and without any result cache."""
    path = tmp_path / "ns"

    def pin() -> None:
        path.touch()
        subprocess.run(["unshare", f"--net={path}", "true"], check=True)

    real = ipam_node.environment
    monkeypatch.setattr(
        ipam_node, "environment", lambda *args: {**real(*args), "CNI_NETNS": str(path)}
    )
    pin()
    try:
        node.add("dead", str(path))
        node.add("without-cache")
        assert [each["netnsAlive"] for each in node.json("list", "net")] == [True] * 4
        subprocess.run(["umount", path], check=True)
        pin()
        node.add("alive", str(path))
        alive = {each["containerID"]: each["netnsAlive"] for each in node.json("list", "net")}
        assert alive == {"dead": False, "without-cache": False, "alive": True}
        problems = node.json("check", "net", code=1)["problems"]
        assert sum("is gone; `cni gc net`" in text for text in problems) == 4
        assert node.run("release", "net", "dead", "without-cache")[0] == 0
        assert "alive" in node.json("release", "net", "alive", code=5)["msg"]
    finally:
        subprocess.run(["umount", path], check=True)


def test_one_address_of_two_spellings(node: Node) -> None:
    node.add("a")
    (node.net / "FD00::2").write_text("b\r\neth0")
    problems = node.json("check", "net", code=1)["problems"]
    assert any("the same address as" in text for text in problems)
    assert node.run("release", "net", "fd00:0::2")[0] == 0
    assert node.held() == {"10.0.0.2"}
    assert not (node.net / "FD00::2").exists()


def test_what_is_no_file_is_reported(node: Node) -> None:
    node.add("a")
    os.mkfifo(node.net / "10.0.0.7")
    problems = node.json("check", "net", code=1)["problems"]
    assert any(text.startswith("10.0.0.7: no small regular file") for text in problems)
