"""No plugin waits for the grace period after which the kernel frees netfilter's objects.

Closing a socket of netfilter waits for it, if a transaction has deleted something (cni/netfilter/
nft.py). So an ADD deletes nothing that is not there. Nothing is timed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import nft, requires_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Netns, Runtime

Json = dict[str, Any]

pytestmark = [pytest.mark.own_server, requires_kernel("nft")]

WATCHED = {"CNI_SERVER": "off", "CNI_DEBUG": "netlink"}
_NAMES = re.compile(r'> NFT_MSG_NEWCHAIN .*\n(?: .*\n)*? +NFTA_CHAIN_NAME "([^"]+)"')
_DELETED = re.compile(r"> (NFT_MSG_DEL\w+) ")

BRIDGE: Json = {"type": "bridge", "bridge": "br0", "isGateway": True}
CASES: dict[str, Json] = {
    "firewall": {"type": "firewall", "backend": "nftables"},
    "firewall, same-bridge": {
        "type": "firewall",
        "backend": "nftables",
        "ingressPolicy": "same-bridge",
    },
    "firewall, isolated": {"type": "firewall", "backend": "nftables", "ingressPolicy": "isolated"},
    "firewall, iptables": {"type": "firewall", "backend": "iptables"},
    "portmap": {"type": "portmap", "backend": "nftables"},
    "portmap, iptables": {"type": "portmap", "backend": "iptables"},
    "macspoofchk": {**BRIDGE, "macspoofchk": True},
    "ipMasq": {**BRIDGE, "ipMasq": True, "ipMasqBackend": "nftables"},
    "ipMasq, iptables": {**BRIDGE, "ipMasq": True, "ipMasqBackend": "iptables"},
    "ipMasqSet": {**BRIDGE, "ipMasq": True, "ipMasqBackend": "nftables", "ipMasqSet": True},
    "outboundAddr": {
        **BRIDGE,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "ipMasqSet": True,
        "outboundAddr": ["192.0.2.7"],
    },
}


def configuration(case: str, number: int, tmp_path: Path) -> Json:
    """That of a network's container with this number."""
    conf = {"cniVersion": "1.1.0", "name": "net", **CASES[case]}
    if conf["type"] == "bridge":
        ranges = [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path)}
        return {**conf, "ipam": ipam}
    ips = [{"address": f"10.66.0.{9 + number}/24", "interface": 1}]
    ips.append({"address": f"fd66::{9 + number}/64", "interface": 1})
    interfaces = [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
    conf["prevResult"] = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips}
    port = {"hostPort": 8080 + number, "containerPort": 80, "protocol": "tcp"}
    return {**conf, "runtimeConfig": {"portMappings": [port]}}


@pytest.mark.parametrize("case", CASES)
def test_an_add_deletes_nothing(
    runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path, case: str
) -> None:
    """The first ADD of a node, and the next; and none changes a chain that exists."""
    for number in range(2):
        conf = configuration(case, number, tmp_path)
        before = {item["chain"]["name"] for item in nft(runtime.host, "chains")}
        reply = runtime.add(
            conf["type"], conf, netns("pod"), container_id=f"pod{number}", env=WATCHED
        )
        assert reply.result
        assert "> NFNL_MSG_BATCH_BEGIN " in reply.stderr
        # the first one flushes chains that it makes in the same transaction
        assert set(_DELETED.findall(reply.stderr)) <= ({"NFT_MSG_DELRULE"} if not number else set())
        assert not before & set(_NAMES.findall(reply.stderr))
