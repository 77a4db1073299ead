"""DEL whatever the configuration, the prevResult and CNI_ARGS say: what can be done is done.

A container that cannot be deleted is a node that somebody has to repair by hand. So each plugin is
added, then deleted with something broken that DEL does not need.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V4, Netns, Runtime, iptables_save, links, nft, routes, tree
from tests.harness.contract import leases

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.netns

Json = dict[str, Any]

# The plugins that make an interface, with the keys that make their ADD work on any kernel.
MAIN: dict[str, Json] = {
    "bridge": {
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "macspoofchk": True,
    },
    "ptp": {"ipMasq": True, "ipMasqBackend": "nftables"},
    "macvlan": {"master": "dev0", "hostShim": True},
    "tap": {},
    "host-device": {"device": "dev0"},
}
# Those whose kind of link a kernel may lack: DEL is tried without an ADD.
ELSEWHERE: dict[str, Json] = {
    "ipvlan": {"master": "dev0"},
    "vlan": {"master": "dev0", "vlanId": 5},
    "dummy": {},
    "bond": {"mode": "active-backup", "miimon": "100", "links": [{"name": "a"}, {"name": "b"}]},
}
CHAINED: dict[str, Json] = {
    "tuning": {"sysctl": {"net.ipv4.conf.all.arp_announce": "2"}, "mtu": 1400},
    "sbr": {},
    "route-override": {"flushgateway": True},
    "bandwidth": {"egressRate": 1_000_000, "egressBurst": 1_000_000},
    "portmap": {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}},
    "firewall": {"backend": "nftables"},
}

# What is broken: keys of the configuration ("-": of its IPAM), None for a wrong prevResult.
BROKEN: dict[str, Json] = {
    "mtu": {"mtu": "x"},
    "vlan": {"vlan": 5000, "vlanId": 5000, "vlanTrunk": [{"minid": 9, "maxid": 2}]},
    "types": {"vlan": [], "mac": 5, "isGateway": "no", "linkInContainer": 1, "dns": 7},
    "ranges": {"-ranges": [[{"subnet": "10.300.0.0/24"}]]},
    "routes": {"-routes": [{"dst": "somewhere"}]},
    "table": {"table": -1, "vrfname": "a b"},
    "limits": {"ingressRate": -5, "egressRate": "fast", "latency": 0},
    "sysctl": {"sysctl": {"kernel.panic": "1", "net.ipv4": 7}},
    "ports": {"runtimeConfig": {"portMappings": "8080:80"}},
    "mark": {"markMasqBit": -1},
    "large mark": {"markMasqBit": 1 << 40},
    "mac": {"runtimeConfig": {"mac": "none"}},
    "switches": {
        "ipMasq": "yes",
        "ipMasqBackend": 5,
        "macspoofchk": 1,
        "hostShim": "yes",
        "backend": ["nftables"],
    },
    "switched off since": {"ipMasq": False, "macspoofchk": False, "hostShim": False},
    "prevResult of nothing": {"prevResult": "none"},
    "prevResult of another version": {"prevResult": {"cniVersion": "7.0.0"}},
    "prevResult of 0.2.0 with a bad address": {
        "prevResult": {"cniVersion": "0.2.0", "ip4": {"ip": "nowhere"}}
    },
    "prevResult with bad addresses": {
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "nowhere"}], "interfaces": 5}
    },
}

each_breakage = pytest.mark.parametrize("broken", BROKEN)


def network(plugin: str, keys: Json, data_dir: Path) -> Json:
    conf = {"cniVersion": "1.0.0", "name": "net", "type": plugin, **keys}
    if plugin not in CHAINED:
        conf["ipam"] = V4.host_local(data_dir)
    return conf


def breaking(conf: Json, what: str) -> Json:
    broken = json.loads(json.dumps(conf))
    for key, value in BROKEN[what].items():
        if not key.startswith("-"):
            broken[key] = value
        elif "ipam" in broken:
            broken["ipam"][key[1:]] = value
    return broken


def own_links(host: Netns) -> set[str]:
    """The links of attachments: not the bridge and the shim, which stay for the next one."""
    return {name for name in links(host) if name != "cni0" and not name.startswith("cnishim")}


def routes_to(host: Netns, address: str) -> list[Json]:
    return [one for one in routes(host) if one["dst"] == address]


@pytest.fixture
def device(host: Netns) -> None:
    host.ip_batch("link add dev0 type veth peer name wire0", "link set wire0 up")


@pytest.mark.usefixtures("device")
@each_breakage
@pytest.mark.parametrize("plugin", MAIN)
def test_main(
    plugin: str, broken: str, runtime: Runtime, host: Netns, container: Netns, data_dir: Path
) -> None:
    conf = network(plugin, MAIN[plugin], data_dir)
    before = own_links(host)
    runtime.add(plugin, conf, container).succeeded()
    assert leases(data_dir)
    runtime.call("DEL", plugin, breaking(conf, broken), container, args="nonsense")
    assert not leases(data_dir)
    assert "eth0" not in links(container)
    assert own_links(host) == before
    rules = str(nft(host))
    assert "id: c1" not in rules, "masquerading stays"
    assert "c1-eth0" not in rules, "the spoof check stays"
    assert not routes_to(host, "10.22.0.2"), "macvlan's shim still routes to the container"


@each_breakage
@pytest.mark.parametrize("plugin", ELSEWHERE)
def test_without_add(
    plugin: str, broken: str, runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = network(plugin, ELSEWHERE[plugin], data_dir)
    runtime.add("host-local", conf, container).succeeded()
    runtime.call("DEL", plugin, breaking(conf, broken), container, args="nonsense")
    assert not leases(data_dir)


@each_breakage
@pytest.mark.parametrize("plugin", CHAINED)
def test_chained(
    plugin: str,
    broken: str,
    runtime: Runtime,
    host: Netns,
    container: Netns,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    main = network("bridge", {"isGateway": True}, data_dir)
    previous = runtime.add("bridge", main, container).result
    state = (set(links(host)), iptables_save(host))
    announce = container.sysctl("net/ipv4/conf/all/arp_announce")
    conf = {**network(plugin, CHAINED[plugin], data_dir), "dataDir": str(tmp_path / "tuning")}
    runtime.add(plugin, conf, container, prev_result=previous).succeeded()
    document = {"prevResult": previous, **breaking(conf, broken)}
    if "prevResult" in BROKEN[broken]:
        document["prevResult"] = BROKEN[broken]["prevResult"]
    runtime.call("DEL", plugin, document, container, args="nonsense")
    assert set(links(host)) == state[0]
    assert "id: c1" not in str(nft(host))
    assert "8080" not in str(nft(host))
    assert iptables_save(host) == state[1]
    assert container.sysctl("net/ipv4/conf/all/arp_announce") == announce
    assert tree(tmp_path / "tuning") == {}
