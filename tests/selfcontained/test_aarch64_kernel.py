"""The file for aarch64 on Debian's kernel for that machine: `make test-aarch64`."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from cni import dispatch
from tests.harness import arm64
from tests.harness.arm64 import Step
from tests.selfcontained.test_aarch64 import FILE

Steps = dict[str, Step]

pytestmark = [
    pytest.mark.skipif(
        not FILE.exists() or shutil.which(arm64.QEMU) is None,
        reason=f"needs {FILE.name} and {arm64.QEMU}: make test-aarch64",
    ),
    pytest.mark.timeout(600),
]

BIN_DIR = "/opt/cni/bin"
CONF = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "bridge",
    "bridge": "br0",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd01::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
# `net` joins a host outside, which has no route to the containers, to the node.
SCRIPT = """
verb() { # COMMAND PLUGIN CONTAINER
    CNI_COMMAND=$1 CNI_CONTAINERID=$3 CNI_NETNS=/run/netns/$3 CNI_IFNAME=eth0 CNI_PATH={bin_dir} \\
        timeout 200 {bin_dir}/$2 </tmp/conf
}
checked() { # RESULT COMMAND: with a prevResult
    cp /tmp/conf /tmp/before
    sed -i "s|}$|,\\"prevResult\\":$(tr -d '\\n' <"$1")}|" /tmp/conf
    verb "$2" bridge c1
    status=$?
    mv /tmp/before /tmp/conf
    return $status
}
added() { verb ADD bridge "$1" >/tmp/"$1" && cat /tmp/"$1"; }
store() { ls /var/lib/cni/networks/net; }

ip link set lo up
ip netns add c1
ip netns add outside
ip link add wan0 type veth peer wan1 netns outside
ip address add 192.0.2.1/24 dev wan0
ip link set wan0 up
ip -n outside address add 192.0.2.2/24 dev wan1
ip -n outside link set wan1 up
echo '{conf}' >/tmp/conf

export CNI_SERVER=off
step version verb VERSION bridge c1
step add added c1
step inside ip -n c1 -j address show dev eth0
step ping ip netns exec c1 ping -c 1 -W 10 10.1.2.1
step masquerade ip netns exec c1 ping -c 1 -W 10 192.0.2.2
step check checked /tmp/c1 CHECK
step rules nft list ruleset
step leases store
step del verb DEL bridge c1
step links ip -j link show type veth
step norules nft list ruleset
step noleases store
step damage checked /tmp/c1 CHECK
step cli {bin_dir}/cni --version
"""


@pytest.fixture(scope="session")
def steps() -> Steps:
    """What the commands of SCRIPT have said, on a machine that has the file and its links."""
    files: dict[str, Any] = {f"{BIN_DIR}/{name}": "cni" for name in dispatch.TABLE}
    files[f"{BIN_DIR}/cni"] = FILE
    script = SCRIPT.replace("{bin_dir}", BIN_DIR).replace("{conf}", json.dumps(CONF))
    return arm64.run(script, files, seconds=500)


def test_version(steps: Steps) -> None:
    assert "1.1.0" in result(steps["version"])["supportedVersions"]
    assert "aarch64" in steps["cli"].output


def test_bridge_add(steps: Steps) -> None:
    ips = [ip["address"] for ip in result(steps["add"])["ips"]]
    assert ips == ["10.1.2.2/24", "fd01::2/64"]
    (eth0,) = result(steps["inside"])
    inside = [f"{each['local']}/{each['prefixlen']}" for each in eth0["addr_info"]]
    assert set(ips) <= set(inside)
    assert "10.1.2.2" in steps["leases"].output


@pytest.mark.parametrize("name", ["ping", "masquerade"])
def test_packets_flow(steps: Steps, name: str) -> None:
    assert (steps[name].status, "1 packets received" in steps[name].output) == (0, True), steps[
        name
    ]
    assert "masquerade" in steps["rules"].output


def test_check(steps: Steps) -> None:
    assert steps["check"].status == 0, steps["check"]
    assert steps["damage"].status != 0  # after the DEL
    assert "eth0" in steps["damage"].output


def test_bridge_del(steps: Steps) -> None:
    assert steps["del"] == Step("", 0)
    assert [each["ifname"] for each in result(steps["links"])] == ["wan0"]
    assert "10.1.2" not in steps["norules"].output
    assert "10.1.2.2" not in steps["noleases"].output


def result(step: Step) -> Any:
    """What a command that succeeds has printed."""
    assert step.status == 0, step
    return json.loads(step.output)
