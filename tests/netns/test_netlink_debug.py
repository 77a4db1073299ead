"""CNI_DEBUG=netlink: messages decoded on stderr, and nothing of it without the variable."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from cni.kernel import netlink as nl
from cni.kernel import uapi
from cni.kernel.netlink_debug import describe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime


def network(tmp_path: Path) -> dict[str, Any]:
    ranges = [[{"subnet": "10.20.0.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path)}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "ipam": ipam}
    return {**conf, "isGateway": True, "ipMasq": True, "ipMasqBackend": "nftables"}


def test_what_is_shown(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    env = {"CNI_DEBUG": "netlink", "CNI_SERVER": "off"}
    conf = network(tmp_path)
    runtime.add("bridge", conf, container).succeeded()
    runtime.delete("bridge", conf, container).succeeded()
    reply = runtime.add("bridge", conf, container, env=env)
    assert reply.result["ips"]
    for text in (
        "> RTM_NEWLINK #",
        " REQUEST|ACK|EXCL|CREATE ",
        '    IFLA_IFNAME "eth0"',
        "    IFLA_LINKINFO\n        IFLA_INFO_KIND",
        "> RTM_NEWADDR #",
        "    IFA_LOCAL 0a140003",
        "> NFNL_MSG_BATCH_BEGIN #",
        "> NFT_MSG_NEWRULE #",
        '    NFTA_RULE_CHAIN "masq_checks"',
        '            NFTA_EXPR_NAME "payload"\n            NFTA_EXPR_DATA\n',
        "                NFTA_PAYLOAD_DREG 00000001",
        "< ack #",
    ):
        assert text in reply.stderr, reply.stderr
    reply = runtime.delete("bridge", conf, container, env=env)
    assert "> NFT_MSG_DELRULE #" in reply.succeeded().stderr


def test_errors(runtime: Runtime, container: Netns) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "macvlan", "master": "nosuch"}
    env = {"CNI_DEBUG": "netlink", "CNI_SERVER": "off"}
    reply = runtime.add("macvlan", conf, container, env=env)
    assert reply.error
    assert "< error ENODEV #" in reply.stderr


def test_without_it(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    for value in (None, "", "other"):
        env = {"CNI_DEBUG": value, "CNI_SERVER": "off"}
        reply = runtime.add("bridge", network(tmp_path), container, env=env)
        assert reply.result
        assert reply.stderr == ""
        runtime.delete("bridge", network(tmp_path), container, env=env).succeeded()
    code = "import sys; from cni.kernel.netlink import Netlink; Netlink(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={}, timeout=60
    )
    assert "cni.kernel.netlink" in done.stdout.split()
    assert "cni.kernel.netlink_debug" not in done.stdout.split()


@given(st.sampled_from([0, 12, 16, 99]), st.binary(max_size=200))
def test_any_bytes_are_described(protocol: int, data: bytes) -> None:
    assert all(isinstance(line, str) for line in describe(protocol, "<", data))


@given(st.binary(max_size=40))
def test_any_attributes_are_described(data: bytes) -> None:
    payload = bytes(16) + nl.nest(uapi.IFLA_LINKINFO, data) + nl.text(uapi.IFLA_IFNAME, "eth0")
    message = (16 + len(payload)).to_bytes(4, sys.byteorder)
    message += uapi.RTM_NEWLINK.to_bytes(2, sys.byteorder) + bytes(10) + payload
    lines = list(describe(nl.NETLINK_ROUTE, ">", message))
    assert lines[0].startswith("> RTM_NEWLINK #0")
    assert "    IFLA_LINKINFO" in lines
    assert '    IFLA_IFNAME "eth0"' in lines
