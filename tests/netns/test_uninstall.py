"""`cni uninstall` while containers are attached."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cni.cli import remaining
from tests.harness import Netns, Runtime
from tests.harness.build import file_under_test, install_dist

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NET = "uninstall-net"


class Node:
    """A node with a directory of plugins of its own."""

    def __init__(self, host: Netns, directory: Path) -> None:
        self.host, self.directory = host, directory
        self.runtime = Runtime(directory / "bin", host)
        # No other test's attachments are to be seen.
        self.runtime.env["CNI_STATE_DIR"] = str(directory / "state")
        install_dist(directory / "bin")

    def uninstall(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [f"{self.directory}/bin/cni", "uninstall", "--bin-dir", f"{self.directory}/bin"]
        return self.host.run(
            subprocess.run,
            [*command, *options],
            env=self.runtime.env,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def cni(self, *words: str, program: str = "") -> None:
        done = self.host.run(
            subprocess.run,
            [program or f"{self.directory}/bin/cni", *words],
            env=self.runtime.env,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def refused(self) -> list[str]:
        """The lines of the details; fails unless it is refused, and all is still there."""
        done = self.uninstall("--json")
        assert done.returncode == 5, done.stdout + done.stderr
        assert (self.directory / "bin/cni").exists()
        details = json.loads(done.stdout)["details"]
        assert isinstance(details, str)
        return details.splitlines()

    def conf(self, **keys: Any) -> dict[str, Any]:
        ipam = {"type": "host-local", "subnet": "10.42.0.0/24", "dataDir": f"{self.directory}/data"}
        return {"cniVersion": "1.1.0", "name": NET, "ipam": ipam, **keys}


@pytest.fixture
def node(host: Netns, tmp_path: Path) -> Node:
    return Node(host, tmp_path)


def test_refused_while_a_container_is_attached(node: Node, container: Netns) -> None:
    conf = node.conf()
    node.runtime.add("bridge", conf, container).succeeded()
    lines = node.refused()
    assert lines == [
        f"eth0 of c1 in {NET}",
        "delete these containers first, or repeat it with --force",
    ]
    assert node.uninstall("--dry-run").returncode == 5
    node.runtime.delete("bridge", conf, container).succeeded()
    done = node.uninstall()
    assert done.returncode == 0, done.stderr
    assert not (node.directory / "bin").exists()


def test_refused_in_one_line(node: Node, container: Netns) -> None:
    """Where no person reads it; what is attached is in the details of the object."""
    node.runtime.add("bridge", node.conf(), container).succeeded()
    done = node.uninstall()
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1
    assert "one attachment" in done.stderr
    assert "--force" in done.stderr
    assert len(node.refused()) == 2


def test_forced(node: Node, container: Netns) -> None:
    node.runtime.add("bridge", node.conf(), container).succeeded()
    done = node.uninstall("--force")
    assert done.returncode == 0, done.stderr
    assert f"warning: stays: eth0 of c1 in {NET}" in done.stderr
    assert not (node.directory / "bin").exists()


PORTS = [
    {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "UDP"},
]
ADVICE = (
    "delete these containers first, or repeat it with --force; "
    "before a change to the Go plugins run `cni migrate --to reference`"
)


def publish(node: Node, container: Netns) -> None:
    result = node.runtime.add("bridge", node.conf(), container).result
    conf = {"cniVersion": "1.1.0", "name": NET, "runtimeConfig": {"portMappings": PORTS}}
    node.runtime.add("portmap", conf, container, prev_result=result).succeeded()


def test_names_the_published_ports_that_others_do_not_find(node: Node, container: Netns) -> None:
    publish(node, container)
    named, advice = node.refused()
    assert named.startswith(f"eth0 of c1 in {NET}, with host port ")
    for text in (
        "host port 8081/tcp to 10.42.0.2 port 80",
        "host port 5353/udp to 10.42.0.2 port 53",
    ):
        assert text in named
    assert advice == ADVICE


def test_names_published_ports_of_a_container_that_has_ended(
    node: Node, netns: Callable[..., Netns]
) -> None:
    """They would lead to another container that gets the address, until the node is booted."""
    container = netns("short-lived")
    publish(node, container)
    container.close()
    named, advice = node.refused()
    assert "host port 8081/tcp to 10.42.0.2 port 80" in named
    assert advice == ADVICE
    node.runtime.delete("portmap", {"cniVersion": "1.1.0", "name": NET}).succeeded()
    assert node.uninstall().returncode == 0


def test_what_cannot_be_found_out_is_no_obstacle_with_force(node: Node) -> None:
    (node.directory / "state").mkdir()
    (node.directory / "state/devices").write_text("")
    done = node.uninstall("--json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "--force goes on" in json.loads(done.stdout)["details"]
    done = node.uninstall("--force")
    assert done.returncode == 0, done.stderr
    assert "warning: what stays is not known" in done.stderr


class Switched(Node):
    """A node on which the Go plugins were put aside. `cni add` keeps what it was told."""

    def __init__(self, host: Netns, directory: Path, go_bin_dir: Path) -> None:
        shutil.copytree(go_bin_dir, directory / "bin", symlinks=True)
        super().__init__(host, directory)
        (directory / "net.d").mkdir()
        self.runtime.env |= {
            "NETCONFPATH": f"{directory}/net.d",
            "CNI_PATH": f"{directory}/bin",
            "CAP_ARGS": '{"portMappings": [{"hostPort": 8082, "containerPort": 80}]}',
        }

    def add(self, container: Netns, *more: dict[str, Any], **keys: Any) -> None:
        conf = self.conf(type="bridge", **keys)
        first = {key: value for key, value in conf.items() if key != "name"}
        network = {"cniVersion": "1.0.0", "name": NET, "plugins": [first, *more]}
        (self.directory / "net.d/10.conflist").write_text(json.dumps(network))
        self.cni("add", NET, container.path, "--cache-dir", f"{self.directory}/cache")

    def uninstall(self, *options: str) -> subprocess.CompletedProcess[str]:
        return super().uninstall("--cache-dir", f"{self.directory}/cache", *options)


@pytest.fixture
def switched(host: Netns, tmp_path: Path, go_bin_dir: Path) -> Switched:
    return Switched(host, tmp_path, go_bin_dir)


def test_plugins_that_are_put_back_take_over(switched: Switched, container: Netns) -> None:
    """Going back to the Go plugins while containers run, whose DEL then removes everything."""
    switched.add(container)
    done = switched.uninstall()
    assert done.returncode == 0, done.stderr
    go = Runtime(switched.directory / "bin", switched.host)
    assert not (switched.directory / "bin/cni").exists()
    conf = switched.conf(cniVersion="1.0.0")
    result = json.loads(next((switched.directory / "cache/results").iterdir()).read_text())
    go.delete(
        "bridge",
        conf,
        container,
        prev_result=result["result"],
        container_id=result["containerId"],
    ).succeeded()
    assert not list((switched.directory / "data" / NET).glob("10.*"))


def test_what_the_go_plugins_detach_leaves_no_notes(switched: Switched, container: Netns) -> None:
    """They do not know of the notes for `cni reload`; `cni del` does, which has them run."""
    switched.add(container, isGateway=True, ipMasq=True, ipMasqBackend="iptables")
    notes = switched.directory / "state/intent"
    assert len(list(notes.iterdir())) == 1
    assert switched.uninstall().returncode == 0
    cache = ("--cache-dir", f"{switched.directory}/cache")
    switched.cni("del", NET, container.path, *cache, program=str(file_under_test()))
    assert list(notes.iterdir()) == []


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (
            {"type": "portmap", "capabilities": {"portMappings": True}},
            "with host port 8082/tcp to ",
        ),
        ({"type": "sample", "sampleKey": "x", "anotherAwesomeArg": "y"}, "eth0 of cnitool-"),
    ],
)
def test_plugins_that_are_put_back_cannot_take_over_everything(
    switched: Switched, container: Netns, plugin: dict[str, Any], text: str
) -> None:
    """Ports in nftables maps, and what a plugin made that does not come back."""
    switched.add(container, plugin)
    assert text in switched.refused()[0]


def test_a_device_in_a_container_is_an_attachment(node: Node, container: Netns) -> None:
    """There is no link on the node, and no address."""
    node.host.ip("link", "add", "uplink", "type", "veth", "peer", "name", "far")
    conf = {"cniVersion": "1.1.0", "name": NET, "device": "uplink"}
    node.runtime.add("host-device", conf, container).succeeded()
    lines = node.refused()
    assert len(lines) == 2
    assert "/state/devices/" in lines[0]
    node.runtime.delete("host-device", conf, container).succeeded()
    assert node.uninstall().returncode == 0


def test_of_a_dead_container_nothing_has_to_be_deleted(
    node: Node, netns: Callable[..., Netns]
) -> None:
    container = netns("short-lived")
    node.runtime.add("bridge", node.conf(), container).succeeded()
    container.close()
    assert node.uninstall().returncode == 0


def test_what_the_reference_made_is_no_reason(
    node: Node, go_bin_dir: Path, container: Netns
) -> None:
    Runtime(go_bin_dir, node.host).add(
        "bridge", node.conf(cniVersion="1.0.0"), container
    ).succeeded()
    assert node.uninstall().returncode == 0


def test_what_the_plugins_of_another_directory_made_is_no_reason(
    node: Node, container: Netns, tmp_path: Path
) -> None:
    """As far as an attachment tells it: by what it keeps for `cni reload`."""
    other = install_dist(tmp_path / "other")
    runtime = Runtime(other, node.host, env=node.runtime.env)
    runtime.add("bridge", node.conf(isGateway=True, ipMasq=True), container).succeeded()
    assert node.uninstall().returncode == 0


def test_where_nothing_is_installed_nothing_is_refused(
    node: Node, container: Netns, tmp_path: Path
) -> None:
    node.runtime.add("bridge", node.conf(), container).succeeded()
    done = node.uninstall("--bin-dir", str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert os.path.exists(node.directory / "bin/cni")


def test_an_image_has_no_containers(node: Node, container: Netns, tmp_path: Path) -> None:
    node.runtime.add("bridge", node.conf(), container).succeeded()
    done = node.uninstall("--root", str(tmp_path / "image"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (10, 10), (11, 9), (500, 9)])
def test_ten_lines_at_most(count: int, shown: int) -> None:
    lines = remaining.shortened([f"eth0 of c{number} in net" for number in range(count)])
    assert len(lines) == min(count, 10)
    if count > 10:
        assert lines[-1] == f"and {count - shown} more"
