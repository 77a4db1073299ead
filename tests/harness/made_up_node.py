"""A made-up node, always the same: its commands are run on it, and what a terminal shows is kept.

    unshare --mount --uts python -m tests.harness.made_up_node <requests.json

in a network namespace of its own. Directories, names, ids, addresses and MACs are those of a real
node, and the same each time. Requests and answers are those of many_commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cni import _build
from cni.artifact import build_of

from .build import install_dist
from .command_line import Node
from .many_commands import run
from .netns import JoinedNetns

EOF = b"\x04"  # what a person types who types nothing more
BIN_DIR = Path("/opt/cni/bin")
# Everything that a command reads or writes below its default paths.
DIRECTORIES = ("/etc/cni", "/etc/systemd/system", "/opt/cni", "/usr/local/bin", "/var/lib/cni")
WEB, DNS, OLD = "5c" * 32, "6d" * 32, "7e" * 32
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BROKEN = {
    "cniVersion": "1.1.0",
    "name": "wrong",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "br-wrong",
            "isGatway": True,
            "mtu": "1500",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.81.0.0/25", "gateway": "10.82.0.1"}]],
            },
        },
        {"type": "portmapp"},
    ],
}
TORN = """\
{
  "cniVersion": "1.1.0",
  "name": "torn",
  "plugins": [
    { "type": "bridge", }
  ]
}
"""


class MadeUp(Node):
    """The node, with the default paths of everything."""

    def __init__(self) -> None:
        self.host = JoinedNetns("/proc/self/ns/net", "host")
        self.bin_dir = BIN_DIR
        self.cache = Path("/var/lib/cni")
        self.net_d = Path("/etc/cni/net.d")
        self.data_dir = Path("/var/lib/cni/networks")
        self.env = {"CNI_STATE_DIR": "/run/cni"}


def prepare(file: Path) -> None:
    """Make the node: two living pods, a dead one, and networks of several kinds."""
    # /run is the machine's own where tests do not run in parallel; /mnt has what commands write.
    for directory in (*DIRECTORIES, "/run", "/mnt"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", directory], check=True)
    subprocess.run(["hostname", "node-1"], check=True)
    install_dist(BIN_DIR, file)
    _build.ID = build_of(BIN_DIR / "cni") or ""  # commands run from the sources, as if from that
    node = MadeUp()
    node.net_d.mkdir(parents=True)
    node.host.ip_batch(
        "link add eth1 type veth peer name eth1-peer",
        "link set eth1 address 02:00:00:00:01:01 up",
        "link set eth1-peer up",
        "address add 192.0.2.10/24 dev eth1",
        "route add default via 192.0.2.1",
    )
    shop = node.network("shop", "10.81.0.0/24", PORTMAP, {"type": "firewall"}, ipMasq=True)
    node.network("spare", "10.99.0.0/28")
    for name, pod, cid, ports in (
        ("web", "shop/web-0", WEB, [(8080, 80, "tcp", "")]),
        ("dns", "shop/dns-0", DNS, [(53, 5353, "udp", "10.81.0.1"), (9153, 9153, "tcp", "")]),
        ("old", "shop/old-0", OLD, [(8443, 443, "tcp", "")]),
    ):
        subprocess.run(["ip", "netns", "add", name], check=True)
        container = JoinedNetns(f"/run/netns/{name}", name)
        node.start(shop, container, pod, cid=cid, capabilities=mappings(ports))
        container.close()
    subprocess.run(["ip", "netns", "delete", "old"], check=True)
    subprocess.run(["ip", "netns", "add", "blue"], check=True)
    Path("/mnt/wrong.conflist").write_text(json.dumps(BROKEN, indent=2) + "\n")
    Path("/mnt/torn.conflist").write_text(TORN)


def mappings(ports: list[tuple[int, int, str, str]]) -> dict[str, Any]:
    found = []
    for host, container, protocol, ip in ports:
        one = {"hostPort": host, "containerPort": container, "protocol": protocol}
        found.append({**one, "hostIP": ip} if ip else one)
    return {"portMappings": found}


def main() -> None:
    request = json.load(sys.stdin)
    prepare(Path(request["file"]))
    os.chdir("/mnt")
    answers = [
        run(words, terminal=True, program=str(BIN_DIR / "cni"), typed=EOF)
        for words in request["commands"]
    ]
    json.dump(answers, sys.stdout)
    for name in ("web", "dns", "blue"):
        subprocess.run(["ip", "netns", "delete", name], check=False)


if __name__ == "__main__":
    main()
