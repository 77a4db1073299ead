"""Another network namespace is visited by a child that shares the interpreter's memory.

By exec, without a server: the plugin's process never enters another namespace, and is not copied.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Runtime, addresses
from tests.harness.build import install_dist

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns

CONF: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "bridge",
    "bridge": "br0",
    "ipam": {
        "type": "static",
        "addresses": [{"address": "10.8.0.2/24"}, {"address": "fd08::2/64"}],
    },
}


@pytest.fixture
def traced(program: Path, host: Netns, tmp_path: Path) -> Traced:
    bin_dir = install_dist(tmp_path / "bin", program)
    return Traced(Runtime(bin_dir, host, env={"CNI_SERVER": "off"}), tmp_path / "trace")


class Traced:
    """Runs verbs of bridge under strace."""

    def __init__(self, runtime: Runtime, log: Path) -> None:
        self.runtime, self.log = runtime, log

    def run(self, verb: str, container: Netns, *inject: str) -> subprocess.CompletedProcess[str]:
        calls = "trace=clone,fork,vfork,setns,socketpair,execve,write,poll"
        options = [word for each in inject for word in ("-e", f"inject={each}")]
        command = ["strace", "-f", "-qq", "-o", str(self.log), "-e", calls, *options]
        return self.runtime.host.run(
            subprocess.run,
            [*command, str(self.runtime.bin_dir / "bridge")],
            input=json.dumps(CONF),
            capture_output=True,
            text=True,
            env=self.runtime.environment(verb, container),
            cwd="/",
            timeout=60,
        )

    def calls(self, name: str) -> list[tuple[str, str]]:
        """Process id and arguments of each call."""
        return re.findall(rf"^(\d+) +{name}\((.*)", self.log.read_text(), re.MULTILINE)


def announces(container: Netns) -> list[str]:
    """Parameters that the plugin sets in the container."""
    names = ("ipv4/conf/eth0/arp_notify", "ipv6/conf/eth0/ndisc_notify")
    paths = [f"/proc/sys/net/{name}" for name in names]
    return str(container.exec(["cat", *paths]).stdout).split()


def copies(traced: Traced) -> int:
    """How many children were made by copying the process."""
    clones = [text for _, text in traced.calls("clone") if "CLONE_VM" not in text]
    return len(clones) + len(traced.calls("fork"))


def test_add(traced: Traced, container: Netns) -> None:
    """Sockets and kernel parameters are those of the container, and nothing was copied."""
    done = traced.run("ADD", container)
    assert done.returncode == 0, done.stdout + done.stderr
    assert addresses(container, "eth0")[:2] == ["10.8.0.2/24", "fd08::2/64"]
    assert announces(container) == ["1", "1"]
    plugin = traced.calls("execve")[0][0]
    entered = [process for process, _ in traced.calls("setns")]
    assert len(entered) >= 2
    assert plugin not in entered
    assert copies(traced) == 0


@pytest.mark.parametrize("refused", ["socketpair:error=EMFILE:when=1", "clone:error=EPERM:when=1"])
def test_without_visits_the_executor_does_it(
    traced: Traced, container: Netns, refused: str
) -> None:
    done = traced.run("ADD", container, refused)
    assert done.returncode == 0, done.stdout + done.stderr
    assert addresses(container, "eth0")[:2] == ["10.8.0.2/24", "fd08::2/64"]
    assert announces(container) == ["1", "1"]
    assert copies(traced) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("setns:error=EPERM", "cannot enter the network namespace: operation not permitted"),
        ("setns:signal=KILL", "the process working in the network namespace was lost"),
    ],
)
def test_errors_are_the_executors(traced: Traced, container: Netns, fault: str, said: str) -> None:
    done = traced.run("ADD", container, fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in json.loads(done.stdout)["msg"]
    assert copies(traced) >= 1


def test_del(traced: Traced, container: Netns) -> None:
    """The link is gone when the plugin ends, its lease as well, and nothing was copied."""
    assert traced.run("ADD", container).returncode == 0
    done = traced.run("DEL", container)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eth0" not in container.exec(["ip", "-br", "link"]).stdout
    assert traced.runtime.host.exec(["ip", "-br", "link", "show", "type", "veth"]).stdout == ""
    plugin = traced.calls("execve")[0][0]
    assert plugin not in [process for process, _ in traced.calls("setns")]
    clones = [text for _, text in traced.calls("clone")]
    assert all("CLONE_VM" in text for text in clones)
    assert not traced.calls("fork")


@pytest.mark.parametrize(
    "fault",
    [
        "clone:error=EPERM:when=2",  # the child that is to send the request
        "write:error=EPERM:when=1",  # what it sends
        "write:signal=KILL:when=1",
    ],
)
def test_without_a_sender_the_executor_deletes(
    traced: Traced, container: Netns, fault: str
) -> None:
    assert traced.run("ADD", container).returncode == 0
    done = traced.run("DEL", container, fault)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eth0" not in container.exec(["ip", "-br", "link"]).stdout
    assert copies(traced) >= 1


def test_killed_while_the_link_goes(traced: Traced, container: Netns) -> None:
    """The next DEL does the rest, and nothing is left."""
    assert traced.run("ADD", container).returncode == 0
    assert traced.run("DEL", container, "poll:signal=KILL:when=2").returncode != 0
    done = traced.run("DEL", container)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eth0" not in container.exec(["ip", "-br", "link"]).stdout
    assert traced.runtime.host.exec(["ip", "-br", "link", "show", "type", "veth"]).stdout == ""
