"""An ADD that has stopped, wherever that is, is in the way of no ADD of another network.

strace stops a plugin as it leaves a system call: one that takes a lock (flock), so that it has the
lock, or one that tells the kernel something (sendto). Nothing is timed: the ADD of the other
network ends while the first one is stopped, and the first one ends when it may go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

pytestmark = [pytest.mark.own_server, pytest.mark.timeout(600)]

VERSION = "1.1.0"
# Which of its calls a plugin is stopped at; there are fewer locks.
MOMENTS = (1, 2, 3, 5, 8, 13, 21)
STOPPED = "--- stopped by SIGSTOP ---"

BRIDGE = {"type": "bridge", "bridge": "br0", "isDefaultGateway": True, "ipMasq": True}
# One lock is the node's: portmap holds it while it lets 127.0.0.1 out to a link, for which there is
# one guard (docs/scale.md). With `snat` off it does not do that.
CASES: dict[str, Json] = {
    "bridge, nftables": {**BRIDGE, "ipMasqBackend": "nftables"},
    "bridge, iptables": {**BRIDGE, "ipMasqBackend": "iptables"},
    "portmap, nftables": {"type": "portmap", "backend": "nftables", "snat": False},
    "portmap, iptables": {"type": "portmap", "backend": "iptables", "snat": False},
    "firewall, nftables": {"type": "firewall", "backend": "nftables"},
    "firewall, iptables": {"type": "firewall", "backend": "iptables"},
    "tuning": {"type": "tuning", "mtu": 1400},
}


class Network:
    """A network on br0, with one container."""

    def __init__(self, runtime: Runtime, container: Netns, tmp_path: Path, number: int) -> None:
        self.runtime, self.container = runtime, container
        self.state, self.number = tmp_path, number

    def request(self, plugin: Json, result: Json | None) -> Json:
        conf = {"cniVersion": VERSION, "name": f"net{self.number}", **plugin}
        if plugin["type"] == "bridge":
            start = f"10.99.{self.number}"
            here = {"rangeStart": f"{start}.2", "rangeEnd": f"{start}.250"}
            ranges = [[{"subnet": "10.99.0.0/16", "gateway": "10.99.0.1", **here}]]
            leases = str(self.state / "leases")
            conf["ipam"] = {"type": "host-local", "dataDir": leases, "ranges": ranges}
        elif plugin["type"] == "tuning":
            conf["dataDir"] = str(self.state / "tuning")
        elif plugin["type"] == "portmap":
            ports = {"hostPort": 8080 + self.number, "containerPort": 80, "protocol": "udp"}
            conf["runtimeConfig"] = {"portMappings": [ports]}
        return conf if result is None else conf | {"prevResult": result}

    def add(self, plugin: Json, result: Json | None = None) -> Json:
        conf, who = self.request(plugin, result), f"c{self.number}"
        reply = self.runtime.add(plugin["type"], conf, self.container, container_id=who)
        return reply.result

    def delete(self, plugin: Json, result: Json | None = None) -> None:
        conf, who = self.request(plugin, result), f"c{self.number}"
        reply = self.runtime.delete(plugin["type"], conf, self.container, container_id=who)
        reply.succeeded()

    @contextmanager
    def stopped_add(
        self, plugin: Json, result: Json | None, call: str, number: int
    ) -> Iterator[bool]:
        """An ADD is stopped behind its `number`-th call; False if it ends without making so many.

        Afterwards it goes on, and has to succeed.
        """
        runtime, log, stdin = self.runtime, self.state / "log", self.state / "stdin"
        log.unlink(missing_ok=True)
        stdin.write_text(json.dumps(self.request(plugin, result)))
        options = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGSTOP:when={number}"]
        who, alone = f"c{self.number}", {"CNI_SERVER": "off"}
        with stdin.open() as file:
            child = runtime.host.popen(
                ["strace", "-o", log, *options, runtime.bin_dir / plugin["type"]],
                stdin=file,
                stdout=subprocess.PIPE,
                env=runtime.environment("ADD", self.container, container_id=who, env=alone),
                cwd="/",
            )
        wait_until(
            lambda: child.poll() is not None or (log.exists() and STOPPED in log.read_text()),
            f"{plugin['type']} stops or ends",
        )
        stopped = []
        if child.poll() is None:
            stopped = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        try:
            yield bool(stopped)
        finally:
            for pid in stopped:
                os.kill(int(pid), signal.SIGCONT)
        output, _ = child.communicate()
        assert child.returncode == 0, output


@pytest.mark.parametrize("call", ["flock", "sendto"])
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_add_is_not_in_the_way_of_another_network(
    runtime: Runtime, container: Netns, container2: Netns, tmp_path: Path, case: str, call: str
) -> None:
    plugin = CASES[case]
    one = Network(runtime, container, tmp_path, 1)
    two = Network(runtime, container2, tmp_path, 2)
    first = plugin["type"] == "bridge"
    before = None if first else one.add(BRIDGE)
    other = None if first else two.add(BRIDGE)
    stopped = 0
    for number in MOMENTS:
        with one.stopped_add(plugin, before, call, number) as has_stopped:
            if has_stopped:
                stopped += 1
                made = two.add(plugin, other)
                two.delete(plugin, made if first else other)
        one.delete(plugin, before)
        if not has_stopped:
            break
    assert stopped >= (1 if call == "sendto" or first else 0)
