"""Names up to what files and the kernel take: nothing derived from them is too long."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import link as kernel_link
from cni.kernel.errors import NetlinkError
from cni.netns import Namespace
from cni.owner import ALIAS_MAX, COMMENT_MAX, IPTABLES_COMMENT_MAX, Owner
from tests.harness import CommandError, Netns, Runtime, iptables_save, link, links, nft

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]
IPAM = {
    "type": "static",
    "addresses": [
        {"address": "10.77.0.9/24", "gateway": "10.77.0.1"},
        {"address": "fd77::9/64", "gateway": "fd77::1"},
    ],
}
PREV: Json = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.77.0.9/24", "interface": 0}, {"address": "fd77::9/64", "interface": 0}],
}
PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
CASES: dict[str, Json] = {
    "bridge": {"type": "bridge", "isGateway": True, "macspoofchk": True, "ipam": IPAM},
    "bridge-nftables": {"type": "bridge", "ipMasq": True, "ipMasqBackend": "nftables"},
    "bridge-iptables": {"type": "bridge", "ipMasq": True, "ipMasqBackend": "iptables"},
    "ptp": {"type": "ptp"},
    "vxlan": {"type": "vxlan", "vni": 7, "peers": ["192.0.2.1"], "isGateway": True, "ipam": IPAM},
    "portmap-nftables": {"type": "portmap", "runtimeConfig": PORTS, "prevResult": PREV},
    "portmap-iptables": {"type": "portmap", "runtimeConfig": PORTS, "prevResult": PREV},
    "firewall-nftables": {"type": "firewall", "prevResult": PREV},
    "firewall-iptables": {"type": "firewall", "prevResult": PREV},
    "tuning": {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}, "prevResult": PREV},
}


def network_for(alias: int, cid: str, ifname: str = "eth0") -> str:
    """A network's name with which the text of the alias has so many bytes before it is cut."""
    rest = len(f"cni:{'0' * 33} /{cid}/{ifname}")
    return "n" * (alias - rest)


@pytest.mark.parametrize("size", [10, 110, ALIAS_MAX - 1, ALIAS_MAX, ALIAS_MAX + 1, 290])
@pytest.mark.parametrize("name", CASES)
def test_long_names(
    runtime: Runtime, container: Netns, data_dir: Path, name: str, size: int
) -> None:
    cid = "c" * (3 if size == 10 else 64)
    conf: Json = {"cniVersion": "1.1.0", **CASES[name]}
    conf["name"] = "n" if size < ALIAS_MAX - 1 else network_for(size, cid)
    if size == 110:
        conf["name"] = "n" * size
    plugin, _, backend = name.partition("-")
    if plugin in ("portmap", "firewall"):
        conf["backend"] = backend
    if plugin == "tuning":
        conf["dataDir"] = str(data_dir)
    if plugin in ("bridge", "ptp"):
        conf["ipam"] = IPAM
    owner = Owner(conf["name"], cid, "eth0")
    result = runtime.add(plugin, conf, container, container_id=cid).result
    runtime.check(plugin, conf, container, container_id=cid, prev_result=result).succeeded()
    marks = (owner.key, owner.chain(), owner.chain("DN-"), owner.veth())
    made = [mark for mark in marks if mark in state(runtime.host)]
    assert made or plugin in ("tuning", "firewall")
    runtime.delete(plugin, conf, container, container_id=cid).succeeded()
    assert not [mark for mark in marks if mark in state(runtime.host)]


def state(host: Netns) -> str:
    """All that could bear an owner's mark, as text."""
    rulesets = [iptables_save(host, version) for version in (4, 6)]
    return json.dumps([links(host), nft(host, "ruleset"), rulesets])


def test_the_limits_are_the_kernels(host: Netns) -> None:
    host.ip("link", "add", "dut", "type", "veth", "peer", "name", "peer")
    with Namespace.open(host.path) as netns:
        sock = netns.netlink()
        index = kernel_link.get(sock, "dut").index
        for size in (ALIAS_MAX - 1, ALIAS_MAX):
            kernel_link.change(sock, index, alias="a" * size)
            assert link(host, "dut")["ifalias"] == "a" * size
        with pytest.raises(NetlinkError):
            kernel_link.change(sock, index, alias="a" * (ALIAS_MAX + 1))

    host.exec(["nft", "add table ip t; add chain ip t c"])
    for size in (COMMENT_MAX - 1, COMMENT_MAX):
        host.exec(["nft", f'add rule ip t c accept comment "{"a" * size}"'])
    with pytest.raises(CommandError):
        host.exec(["nft", f'add rule ip t c accept comment "{"a" * (COMMENT_MAX + 1)}"'])
    assert "a" * COMMENT_MAX in json.dumps(nft(host, "table", "ip", "t"))

    # iptables takes longer ones, and keeps what has room: those would not be found again.
    for size in (IPTABLES_COMMENT_MAX - 1, IPTABLES_COMMENT_MAX, IPTABLES_COMMENT_MAX + 1):
        host.exec(["iptables", "-F", "INPUT"])
        host.exec(["iptables", "-A", "INPUT", "-m", "comment", "--comment", "a" * size])
        kept = any("a" * size in line for line in iptables_save(host))
        assert kept == (size <= IPTABLES_COMMENT_MAX)


@pytest.mark.parametrize("network", ["net", "n" * 110, "n" * 255])
def test_who_has_a_port_is_named_in_full(runtime: Runtime, container: Netns, network: str) -> None:
    """Also where the comment has no room for it: the key leads to what is kept."""
    conf: Json = {
        "cniVersion": "1.1.0",
        "name": network,
        "backend": "nftables",
        **CASES["portmap-nftables"],
    }
    cid = "c" * 64
    runtime.add("portmap", conf, container, container_id=cid).succeeded()
    other = {**conf, "name": "other"}
    error = runtime.add("portmap", other, container, container_id="second").failed(999)
    assert f"container {cid} (eth0 in network {network})" in error["msg"]
    assert len(Owner(network, cid, "eth0").comment.encode()) <= COMMENT_MAX
