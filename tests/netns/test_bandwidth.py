"""bandwidth: limits as the reference sets them, and what goes beyond; with real traffic."""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from subprocess import DEVNULL
from typing import Any, NamedTuple

import pytest

from cni.kernel import link as kernel_link
from cni.kernel import tc as kernel_tc
from cni.kernel import tcfilter
from cni.kernel.netlink import Netlink
from cni.plugins.bandwidth import ifb
from cni.protocol.address import Prefix
from tests.harness import (
    CHECK_VERSIONS,
    DUAL,
    INTERFACE_VERSIONS,
    V4,
    Netns,
    Runtime,
    each_version,
    kind,
    link,
    links,
    ping,
    requires_kernel,
    tc,
    unchanged,
)
from tests.harness.contract import await_carrier, without_ipv6
from tests.harness.requires import missing
from tests.harness.wait import wait_until

Json = dict[str, Any]

IFB = "bwpc2d892b58e87"  # of container c1 in net1
LIMITS: Json = {
    "ingressRate": 8_000_000,
    "ingressBurst": 400_000,
    "egressRate": 16_000_000,
    "egressBurst": 800_000,
}
INGRESS = {"rate": 1_000_000, "burst": 50_000, "lat": 25_000}
EGRESS = {"rate": 2_000_000, "burst": 100_000, "lat": 25_000}


class Pod(NamedTuple):
    """A container with a veth pair, and the result of whatever plugin made it."""

    ns: Netns
    outer: str
    inner: str
    result: Json


def plug(host: Netns, ns: Netns, outer: str = "veth1", inner: str = "eth0", index: int = 70) -> Pod:
    without_ipv6(host, ns)
    host.ip_batch(
        f"link add {outer} mtu 1400 index {index} type veth "
        f"peer name {inner} index {index + 100} mtu 1400 netns {ns.name}",
        f"link set {outer} up",
    )
    ns.ip("link", "set", inner, "up")
    await_carrier(host, outer)
    interfaces = [{"name": outer}, {"name": inner, "sandbox": ns.path}]
    return Pod(ns, outer, inner, {"cniVersion": "1.1.0", "interfaces": interfaces})


@pytest.fixture
def pod(host: Netns, container: Netns) -> Pod:
    return plug(host, container)


class Plugin:
    """bandwidth, called for a pod."""

    def __init__(self, runtime: Runtime, pod: Pod) -> None:
        self.runtime, self.pod = runtime, pod

    def __call__(
        self,
        verb: str,
        conf: Json,
        prev: Json | None = None,
        *,
        version: str = "1.1.0",
        **more: Any,
    ) -> Any:
        prev = {**(prev or self.pod.result), "cniVersion": version}
        document = {"cniVersion": version, "name": "net1", **conf}
        more.setdefault("ifname", self.pod.inner)
        netns = more.pop("netns", self.pod.ns)
        return self.runtime.call(verb, "bandwidth", document, netns, prev_result=prev, **more)

    def add(self, conf: Json, **more: Any) -> Json:
        return self("ADD", conf, **more).result


@pytest.fixture
def plugin(runtime: Runtime, pod: Pod) -> Plugin:
    return Plugin(runtime, pod)


def mirred(host: Netns, dev: str) -> list[str]:
    """Where what an interface receives is redirected to."""
    found = tc.filters(host, dev, "ffff:")
    return [action["to_dev"] for one in found for action in one["options"]["actions"]]


# -- as the reference -----------------------------------------------------------------------------


@each_version(INTERFACE_VERSIONS)
def test_life(plugin: Plugin, host: Netns, cni_version: str) -> None:
    result = plugin.add(LIMITS, version=cni_version)
    ifb = link(host, IFB)
    assert (kind(ifb), ifb["mtu"], "UP" in ifb["flags"]) == ("ifb", 1400, True)
    assert ifb["ifalias"].endswith(" net1/c1/eth0")
    assert result["interfaces"][2] == {"name": IFB, "mac": ifb["address"]}
    assert result["interfaces"][:2] == plugin.pod.result["interfaces"]
    assert tc.tbf(host, "veth1") == INGRESS
    assert tc.tbf(host, IFB) == EGRESS
    assert mirred(host, "veth1") == [IFB]
    check = plugin("CHECK", LIMITS, result, version=cni_version)
    if cni_version in CHECK_VERSIONS:
        check.succeeded()
    else:
        check.failed(1)
    for _ in range(2):
        plugin("DEL", LIMITS, result, version=cni_version).succeeded()
        assert set(links(host)) == {"lo", "veth1"}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_versions_without_interfaces(plugin: Plugin, version: str) -> None:
    plugin("ADD", LIMITS, version=version).failed(1)


@pytest.mark.parametrize(
    ("conf", "ingress", "egress"),
    [
        ({**LIMITS, "ingressRate": 0, "ingressBurst": 0}, None, EGRESS),
        ({**LIMITS, "egressRate": 0, "egressBurst": 0}, INGRESS, None),
        (dict.fromkeys(LIMITS, 0), None, None),
        ({}, None, None),
        ({"runtimeConfig": {"bandWidth": LIMITS}}, INGRESS, EGRESS),
        ({"ingressRate": 0, "runtimeConfig": {"bandwidth": LIMITS}}, None, None),
        (
            {
                "INGRESSRATE": 8_000_000,
                "ingressburst": 400_000,
                "runtimeConfig": {"bandwidth": {"egressRate": 8, "egressBurst": 8}},
            },
            INGRESS,
            None,
        ),
    ],
    ids=["egress", "ingress", "zero", "absent", "runtime", "precedence", "no-merge"],
)
def test_what_is_limited(
    plugin: Plugin, host: Netns, conf: Json, ingress: Json | None, egress: Json | None
) -> None:
    result = plugin.add(conf)
    assert tc.tbf(host, "veth1") == ingress
    assert (IFB in links(host)) == (egress is not None)
    assert len(result["interfaces"]) == (3 if egress else 2)
    if egress:
        assert tc.tbf(host, IFB) == egress
    plugin("CHECK", conf, result).succeeded()


NO_BURST = "if rate is set, burst must also be set"
NO_RATE = "if burst is set, rate must also be set"


@pytest.mark.parametrize(
    ("conf", "text"),
    [
        ({"ingressRate": 1}, NO_BURST),
        ({"egressRate": 8_000_000}, NO_BURST),
        ({"ingressBurst": 123}, NO_RATE),
        ({**LIMITS, "egressRate": 0}, NO_RATE),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": 8000}}}, NO_BURST),
        ({"ingressRate": 5000, "ingressBurst": 1 << 35}, "burst cannot be more than 4GB"),
        ({"egressRate": 7, "egressBurst": 80}, "egressRate and egressBurst must be at least 8"),
        ({"egressRate": 80, "egressBurst": 7}, "egressRate and egressBurst must be at least 8"),
        ({"ingressRate": -1}, "number -1 into field ingressRate of type uint64"),
        ({"ingressRate": 1 << 64}, "into field ingressRate of type uint64"),
        ({"ingressRate": 1.5}, "json: cannot unmarshal number into field ingressRate"),
        ({"ingressRate": "1M"}, "json: cannot unmarshal string into field ingressRate"),
        ({**LIMITS, "latency": 0}, "invalid latency 0"),
        ({**LIMITS, "latency": 10_001}, "invalid latency 10001"),
        (
            {**LIMITS, "shapedSubnets": ["10.0.0.0/8"], "unshapedSubnets": ["fd00::/8"]},
            "unshapedSubnets and shapedSubnets cannot be both specified, one of them should be "
            "discarded",
        ),
        (
            {**LIMITS, "unshapedSubnets": ["10.0.0.0/8", "hello"]},
            'bad subnet "hello" provided, details invalid CIDR address: hello',
        ),
        ({**LIMITS, "shapedSubnets": ["10.0.0.0/33"]}, 'bad subnet "10.0.0.0/33" provided'),
    ],
    ids=str,
)
def test_bad_input(plugin: Plugin, host: Netns, conf: Json, text: str) -> None:
    with unchanged(host):
        reply = plugin("ADD", conf)
        assert text in reply.failed(999)["msg"]
        if "json" in text or "uint64" in text:
            start = "failed to parse network configuration: json: cannot unmarshal "
            assert reply.json["msg"].startswith(start)
        plugin("CHECK", conf).failed(999, text)
        # what cannot be understood was never set up, but its ifb is looked for nevertheless
        plugin("DEL", conf).succeeded()
    assert tc.tbf(host, "veth1") is None


def test_largest_burst(plugin: Plugin) -> None:
    conf = {"ingressRate": 5000, "ingressBurst": (1 << 35) - 16}
    plugin("CHECK", conf, plugin.add(conf)).succeeded()


def test_without_prev_result(runtime: Runtime, pod: Pod) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net1", **LIMITS}
    with unchanged(runtime.host):
        runtime.add("bandwidth", conf, pod.ns).failed(999, "must be called as chained plugin")
        reply = runtime.check("bandwidth", conf, pod.ns)
        reply.failed(999, "must be called as a chained plugin")
        plain = {"cniVersion": "1.1.0", "name": "net1"}
        runtime.add("bandwidth", plain, pod.ns).failed(999, "must be called as chained plugin")
        runtime.delete("bandwidth", conf, pod.ns).succeeded()
        bad = {**conf, "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "x"}]}}
        runtime.add("bandwidth", bad, pod.ns).failed(999, "could not parse prevResult: ")


@pytest.mark.parametrize(
    ("interfaces", "text"),
    [
        ([], "no interfaces provided"),
        ([{"name": "other"}], "no veth peer of container interface found in host ns"),
        (
            [{"name": "veth1", "sandbox": "/run/netns/x"}],
            "no veth peer of container interface found in host ns",
        ),
    ],
)
def test_host_interface_is_not_listed(
    plugin: Plugin, host: Netns, interfaces: list[Json], text: str
) -> None:
    with unchanged(host):
        for verb in ("ADD", "CHECK"):
            plugin(verb, LIMITS, {"interfaces": interfaces}).failed(999, text)


def test_container_interface_is_not_of_a_pair(plugin: Plugin, host: Netns) -> None:
    plugin.pod.ns.ip("link", "add", "br0", "type", "bridge")
    with unchanged(host):
        text = "container interface br0 has no veth peer: it is a bridge"
        plugin("ADD", LIMITS, ifname="br0").failed(999, text)
        text = "container interface gone has no veth peer: Link not found"
        plugin("ADD", LIMITS, ifname="gone").failed(999, text)


@requires_kernel("macvlan")
def test_limits_inside(runtime: Runtime, host: Netns, container: Netns, container2: Netns) -> None:
    """An interface without an end on the node is limited in the container, both ways."""
    host.ip_batch("link add lan0 type veth peer name lan1", "link set lan0 up", "link set lan1 up")
    macvlan = {"type": "macvlan", "master": "lan0"}
    limits = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 4_000_000}
    limits |= {"egressBurst": 40_000}
    network = {"cniVersion": "1.1.0", "name": "net1"}
    plugins = [
        {**macvlan, "ipam": V4.static()},
        {"type": "bandwidth", **limits},
    ]
    conflist = {**network, "plugins": plugins}
    before = set(links(host))
    result = runtime.add_list(conflist, container)
    assert set(links(host)) == before
    ifb = result["interfaces"][-1]
    assert ifb["sandbox"] == container.path
    assert kind(links(container)[ifb["name"]]) == "ifb"
    assert (tc.tbf(container, "eth0") or {})["rate"] == 500_000
    assert (tc.tbf(container, ifb["name"]) or {})["rate"] == 1_000_000
    runtime.check_list(conflist, container, result)

    other = V4.static() | {"addresses": [{"address": "10.22.0.9/24"}]}
    peer = {**network, "type": "macvlan", "master": "lan0", "ipam": other}
    runtime.add("macvlan", peer, container2, container_id="c2").succeeded()
    ping(container, "10.22.0.9", size=1400, count=3)
    for dev in ("eth0", ifb["name"]):
        assert tc.passed(container, dev) >= 3 * 1400, dev

    container.exec(["tc", "qdisc", "delete", "dev", "eth0", "ingress"])
    bandwidth = {**network, **limits}
    reply = runtime.check("bandwidth", bandwidth, container, prev_result=result)
    reply.failed(999, f"Failed to find filter from eth0 to {ifb['name']}")
    for previous in (result, None):
        runtime.delete("bandwidth", bandwidth, container, prev_result=previous).succeeded()
        assert ifb["name"] not in links(container)
        assert tc.tbf(container, "eth0") is None
    runtime.delete_list(conflist, container, result)
    assert set(links(container)) == {"lo"}


@requires_kernel("macvlan")
@pytest.mark.parametrize("limited", ["ingress", "egress"])
def test_failed_add_inside_leaves_nothing(
    runtime: Runtime, host: Netns, container: Netns, limited: str
) -> None:
    """Another program shapes or filters there already; what was made before is undone."""
    host.ip_batch("link add lan0 type veth peer name lan1", "link set lan0 up", "link set lan1 up")
    conf = {"cniVersion": "1.1.0", "name": "net1"}
    made = runtime.add("macvlan", {**conf, "master": "lan0", "ipam": V4.static()}, container)
    before = made.result
    both = {**conf, "ingressRate": 8_000_000, "egressRate": 8_000_000, "latency": 25}
    where = ["root", "tbf", "rate", "1mbit", "burst", "10k", "latency", "50ms"]
    taken = ["ingress"] if limited == "ingress" else where
    container.exec(["tc", "qdisc", "add", "dev", "eth0", *taken])
    with unchanged(host, container):
        qdiscs = tc.qdiscs(container)
        reply = runtime.add("bandwidth", both, container, prev_result=before)
        reply.failed(999, "file exists")
        assert tc.qdiscs(container) == qdiscs
        runtime.delete("bandwidth", both, container, prev_result=before).succeeded()
        assert tc.qdiscs(container) == qdiscs


def test_peer_is_elsewhere(plugin: Plugin, host: Netns, container2: Netns) -> None:
    """On the host is a link of the same number, and it is even listed."""
    host.ip("link", "set", "veth1", "netns", container2.name)
    host.ip("link", "add", "veth1", "index", "70", "type", "veth", "peer", "name", "veth2")
    with unchanged(host):
        plugin("ADD", LIMITS).failed(999, "veth peer with index 70 is not in host ns")
    host.ip("link", "delete", "veth1")
    with unchanged(host):
        plugin("ADD", LIMITS).failed(999, "veth peer with index 70 is not in host ns")


def test_right_interface_of_several(plugin: Plugin, host: Netns, container2: Netns) -> None:
    other = plug(host, container2, "veth2", "eth0", 80)
    both = [*other.result["interfaces"][:1], *plugin.pod.result["interfaces"]]
    plugin("ADD", LIMITS, {"interfaces": both}).succeeded()
    assert tc.tbf(host, "veth1") == INGRESS
    assert tc.tbf(host, "veth2") is None


# -- failures, and what is there already ----------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "text"),
    [
        (LIMITS, "create qdisc: file exists"),
        ({key: LIMITS[key] for key in ("egressRate", "egressBurst")}, "adding link: file exists"),
    ],
)
def test_second_add(plugin: Plugin, host: Netns, conf: Json, text: str) -> None:
    result = plugin.add(conf)
    with unchanged(host):
        plugin("ADD", conf).failed(999, text)
    plugin("CHECK", conf, result).succeeded()


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("root handle 1: htb default 1", "create qdisc: file exists"),
        ("ingress", "create ingress qdisc: file exists"),
        ("clsact", "create ingress qdisc: file exists"),
    ],
)
def test_somebody_elses_qdisc_stays(plugin: Plugin, host: Netns, command: str, text: str) -> None:
    host.exec(["tc", "qdisc", "add", "dev", "veth1", *command.split()])
    before = tc.qdiscs(host, "veth1")
    with unchanged(host):
        error = plugin("ADD", LIMITS).failed(999, text)
    assert "tc qdisc show" in error["details"]
    assert tc.qdiscs(host, "veth1") == before


def test_failure_is_undone(plugin: Plugin, host: Netns) -> None:
    """Both names of the ifb are somebody else's."""
    for name in (IFB, ifb.name_of("net1", "c1", "eth0")):
        host.ip("link", "add", name, "type", "bridge")
    before = tc.qdiscs(host, "veth1")
    with unchanged(host):
        plugin("ADD", LIMITS).failed(999, "adding link: file exists")
    assert tc.qdiscs(host, "veth1") == before
    plugin("DEL", LIMITS).succeeded()
    assert IFB in links(host)


def test_small_burst_is_hinted_at(plugin: Plugin) -> None:
    reply = plugin("ADD", {"ingressRate": 8000, "ingressBurst": 80})
    reply.succeeded()
    assert "ingressBurst is 10 bytes" in reply.stderr
    assert plugin("ADD", LIMITS, container_id="c2").stderr == ""


def test_what_a_killed_add_left_is_replaced(plugin: Plugin, host: Netns) -> None:
    """Same container, same name, and a new veth: as after a reboot of the runtime without DEL."""
    conf = {key: LIMITS[key] for key in ("egressRate", "egressBurst")}
    plugin.add(conf)
    host.ip("link", "delete", "veth1")
    plug(host, plugin.pod.ns)
    result = plugin.add(conf)
    assert mirred(host, "veth1") == [IFB]
    plugin("CHECK", conf, result).succeeded()


def test_two_interfaces_of_one_container(runtime: Runtime, plugin: Plugin, host: Netns) -> None:
    """The reference has one name for both."""
    second = Plugin(runtime, plug(host, plugin.pod.ns, "veth2", "eth1", 80))
    first_result = plugin.add(LIMITS)
    result = second.add({**LIMITS, "egressRate": 24_000_000})
    other = ifb.name_of("net1", "c1", "eth1")
    assert result["interfaces"][2]["name"] == other
    assert mirred(host, "veth1") == [IFB]
    assert mirred(host, "veth2") == [other]
    second("CHECK", {**LIMITS, "egressRate": 24_000_000}, result).succeeded()
    second("CHECK", LIMITS, result).failed(999, "Rate doesn't match")
    second("DEL", LIMITS).succeeded()
    assert IFB in links(host)
    assert other not in links(host)
    plugin("CHECK", LIMITS, first_result).succeeded()


# -- beyond the reference -------------------------------------------------------------------------


def test_latency_and_default_burst(plugin: Plugin, host: Netns) -> None:
    conf = {"ingressRate": 80_000_000, "egressRate": 80_000, "latency": 100}
    result = plugin.add(conf)
    assert tc.tbf(host, "veth1") == {"rate": 10_000_000, "burst": 100_000, "lat": 100_000}
    small = tc.tbf(host, IFB)
    assert small is not None
    # a burst must hold a packet with its headers
    assert small["burst"] == pytest.approx(1432, abs=2)
    assert small["lat"] == pytest.approx(100_000, abs=2_000)
    plugin("CHECK", conf, result).succeeded()


@pytest.mark.parametrize("burst", [2**31 - 1, 2**32 - 1])
def test_a_runtime_without_an_opinion_on_burst(plugin: Plugin, host: Netns, burst: int) -> None:
    """With `latency` the first seconds are limited, too; without it all is as in the reference."""
    limits = {"ingressRate": 8_000_000, "ingressBurst": burst}
    conf = {"latency": 25, "runtimeConfig": {"bandwidth": limits}}
    plugin("CHECK", conf, plugin.add(conf)).succeeded()
    assert tc.tbf(host, "veth1") == {"rate": 1_000_000, "burst": 10_000, "lat": 25_000}
    host.exec(["tc", "qdisc", "del", "dev", "veth1", "root"])
    conf = {"runtimeConfig": {"bandwidth": limits}}
    plugin("CHECK", conf, plugin.add(conf)).succeeded()
    found = tc.tbf(host, "veth1")
    assert found is not None
    assert found["burst"] > 200_000_000


@pytest.mark.parametrize("key", ["unshapedSubnets", "shapedSubnets"])
def test_subnets(runtime: Runtime, host: Netns, container: Netns, key: str) -> None:
    """Which class packets go through, to and from addresses in and out of the subnets."""
    listed = {"unshapedSubnets": "1:1", "shapedSubnets": "1:30"}[key]
    rest = {"1:1": "1:30", "1:30": "1:1"}[listed]
    subnets = ["198.51.100.0/25", "2001:db8:1::/50"]
    limit: Json = {"type": "bandwidth", "capabilities": {"bandwidth": True}, key: subnets}
    conflist = {
        "cniVersion": "1.1.0",
        "name": "net1",
        "plugins": [{"type": "ptp", "ipam": DUAL.static()}, limit],
    }
    addresses = ("198.51.100.1", "2001:db8:1::1", "198.51.100.129", "2001:db8:1:4000::1")
    host.ip_batch(*(f"address add {one} dev lo" for one in addresses))
    options = {"capabilities": {"bandwidth": LIMITS}}
    result = runtime.add_list(conflist, container, **options)
    veth, _, ifb = (one["name"] for one in result["interfaces"])
    for address in addresses:
        ping(container, address)  # the neighbours know each other then
    for number, address in enumerate(addresses):
        used, idle = (listed, rest) if number < 2 else (rest, listed)
        for dev in (veth, ifb):
            before = tc.sent(host, dev, used), tc.sent(host, dev, idle)
            ping(container, address, count=3, size=1000)
            after = tc.sent(host, dev, used), tc.sent(host, dev, idle)
            assert after[0] - before[0] >= 3000, f"{address} on {dev}"
            assert after[1] - before[1] < 1000, f"{address} on {dev}"
    runtime.check_list(conflist, container, result, **options)
    runtime.delete_list(conflist, container, result, **options)
    assert set(links(host)) == {"lo"}


def test_classes(plugin: Plugin, host: Netns) -> None:
    subnets = ["10.1.2.3/8", "fd00::/8", "10.0.0.0/8"]
    result = plugin.add({**LIMITS, "unshapedSubnets": subnets, "latency": 50})
    for dev, side in ((IFB, 16), ("veth1", 12)):
        root = tc.qdiscs(host, dev)[0]
        assert (root["kind"], root["handle"], root["options"]["default"]) == ("htb", "1:", "0x30")
        open_class, shaped = tc.classes(host, dev)
        assert " rate 800Gbit ceil 800Gbit " in open_class
        rate, burst = ("16Mbit", "100000b") if dev == IFB else ("8Mbit", "50000b")
        assert f" rate {rate} ceil {rate} burst {burst} cburst {burst}" in shaped
        v6, v4 = tc.filters(host, dev, "1:")
        assert (v6["protocol"], v6["pref"], v4["protocol"], v4["pref"]) == ("ipv6", 15, "ip", 16)
        assert v4["options"]["match"]["off"] == side
        assert v4["options"]["flowid"] == "1:1"
    other = {**LIMITS, "unshapedSubnets": ["10.0.0.0/8", "192.0.2.0/24"], "latency": 50}
    plugin("CHECK", other, result).failed(999, "Failed to find filter for 192.0.2.0/24")
    shaped_instead = {**LIMITS, "shapedSubnets": subnets, "latency": 50}
    plugin("CHECK", shaped_instead, result).failed(999, "Default class doesn't match")
    plugin("CHECK", {**LIMITS, "latency": 50}, result).failed(999, "want tbf, have htb")


def test_subnets_may_be_static_and_rates_the_runtimes(plugin: Plugin, host: Netns) -> None:
    """The runtime knows a pod's rates, the administrator what is local."""
    conf = {"unshapedSubnets": ["10.0.0.0/8"], "runtimeConfig": {"bandwidth": LIMITS}}
    plugin("CHECK", conf, plugin.add(conf)).succeeded()
    assert len(tc.filters(host, IFB, "1:")) == 1


# -- CHECK ----------------------------------------------------------------------------------------

CHANGES = [
    ("tc qdisc del dev veth1 root", "Failed to find qdisc (veth1: want tbf, have noqueue)"),
    ("tc qdisc replace dev veth1 root handle 2: bfifo", "want tbf, have bfifo"),
    (
        "tc qdisc change dev veth1 root tbf rate 4mbit burst 25000 limit 75000",
        "Rate doesn't match (veth1: want 1000000 B/s, have 500000 B/s)",
    ),
    (
        "tc qdisc change dev veth1 root tbf rate 8mbit burst 50000 limit 99999",
        "Limit doesn't match (veth1: want 75000 bytes, have 99999 bytes)",
    ),
    (
        "tc qdisc change dev veth1 root tbf rate 8mbit burst 40000 limit 75000",
        "Buffer doesn't match (veth1: ",
    ),
    (f"ip link delete {IFB}", "get ifb device: Link not found"),
    (f"ip link set {IFB} down", f"Link {IFB} is down"),
    (f"tc qdisc del dev {IFB} root", f"Failed to find qdisc ({IFB}: want tbf, have "),
    ("tc qdisc del dev veth1 ingress", f"Failed to find filter from veth1 to {IFB}"),
    ("tc filter del dev veth1 parent ffff:", f"Failed to find filter from veth1 to {IFB}"),
]


@pytest.mark.parametrize(("command", "text"), CHANGES, ids=[command for command, _ in CHANGES])
def test_check(plugin: Plugin, host: Netns, command: str, text: str) -> None:
    result = plugin.add(LIMITS)
    plugin("CHECK", LIMITS, result).succeeded()
    host.exec(command.split())
    plugin("CHECK", LIMITS, result).failed(999, text)


def test_check_reports_every_difference(plugin: Plugin, host: Netns) -> None:
    result = plugin.add(LIMITS)
    host.exec(["tc", "qdisc", "del", "dev", "veth1", "root"])
    host.exec(["tc", "filter", "del", "dev", "veth1", "parent", "ffff:"])
    error = plugin("CHECK", LIMITS, result).failed(999, "also: ")
    assert error["msg"].count("Failed to find") == error["details"].count("Failed to find") == 1


# -- DEL, GC and STATUS ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, "/run/netns/gone"])
@pytest.mark.parametrize("conf", [LIMITS, {}, {"ingressRate": "nonsense"}, {"egressBurst": 1}])
def test_delete_needs_nothing(
    runtime: Runtime, plugin: Plugin, host: Netns, path: str | None, conf: Json
) -> None:
    plugin.add(LIMITS)
    document = {"cniVersion": "1.1.0", "name": "net1", **conf}
    for _ in range(2):
        runtime.delete("bandwidth", document, path).succeeded()
        assert IFB not in links(host)


def test_gc(runtime: Runtime, plugin: Plugin, host: Netns, container2: Netns) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net1", **LIMITS}
    second = Plugin(runtime, plug(host, container2, "veth2", "eth0", 80))
    plugin.add(LIMITS)
    second.add(LIMITS, container_id="c2")
    elsewhere = Plugin(runtime, plug(host, container2, "veth3", "eth1", 90))
    elsewhere.add({**LIMITS, "name": "net2"}, container_id="c2")
    mine, other = ifb.name_of("net1", "c2"), ifb.name_of("net2", "c2")
    host.ip("link", "add", "bwp0", "type", "ifb")
    with unchanged(host):
        runtime.gc("bandwidth", conf, None).succeeded()
        runtime.gc("bandwidth", conf, [("c1", "eth0"), ("c2", "eth0")]).succeeded()
    runtime.gc("bandwidth", conf, [("c2", "eth0"), ("c1", "eth1")]).succeeded()
    assert IFB not in links(host)
    assert {mine, other, "bwp0"} <= set(links(host))
    runtime.gc("bandwidth", conf, []).succeeded()
    assert mine not in links(host)
    assert {other, "bwp0"} <= set(links(host))


def test_status(runtime: Runtime, host: Netns) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net1"}
    with unchanged(host):
        before = tc.qdiscs(host, "lo")
        runtime.status("bandwidth", conf).succeeded()
        runtime.status("bandwidth", {**conf, **LIMITS, "shapedSubnets": ["10.0.0.0/8"]}).succeeded()
        assert tc.qdiscs(host, "lo") == before
        runtime.status("bandwidth", {**conf, "ingressRate": 8000}).failed(999, NO_BURST)


def test_status_of_a_kernel_that_lacks_something(
    host: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cni.dispatch import answer

    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/nonexistent"}
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "net1", "type": "bandwidth"}).encode()
    real = kernel_tc.has_qdisc
    monkeypatch.setattr(kernel_tc, "has_qdisc", lambda sock, _: real(sock, "nosuch"))
    monkeypatch.setattr(kernel_link, "has_kind", lambda *_: False)
    code, output = host.run(answer, "bandwidth", env, lambda: stdin)
    error = json.loads(output)
    assert (code, error["code"]) == (1, 50)
    assert error["msg"] == "this kernel lacks the qdisc tbf and the link kind ifb"


def test_probes(host: Netns) -> None:
    """What the kernel has, without making anything."""

    def probe() -> None:
        with Netlink() as sock:
            assert kernel_tc.has_qdisc(sock, "tbf")
            assert kernel_tc.has_qdisc(sock, "htb")
            assert not kernel_tc.has_qdisc(sock, "nosuch")
            assert kernel_link.has_kind(sock, "ifb")
            assert not kernel_link.has_kind(sock, "nosuch")

    with unchanged(host):
        host.run(probe)


# -- Go's attachments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [
        LIMITS,
        {"ingressRate": 10_000_000, "ingressBurst": 2**32 - 1},  # too long for 32 bits of µs
        {"egressRate": 8000, "egressBurst": 80},
        {"egressRate": 40_000_000_000, "egressBurst": 8_000_000},
    ],
    ids=str,
)
def test_switching_over(
    plugin: Plugin, go_runtime: Runtime, host: Netns, container: Netns, limits: Json
) -> None:
    go = Plugin(go_runtime, plugin.pod)
    result = go.add(limits, version="1.0.0")
    plugin("CHECK", limits, result, version="1.0.0").succeeded()
    plugin("DEL", limits, result, version="1.0.0").succeeded()
    assert set(links(host)) == {"lo", "veth1"}


def test_delete_takes_go_for_the_sibling_only_if_it_has_to(
    runtime: Runtime, go_runtime: Runtime, plugin: Plugin, host: Netns
) -> None:
    """eth0 is Go's, eth1 ours; both were to have the same ifb."""
    Plugin(go_runtime, plugin.pod).add(LIMITS, version="1.0.0")
    second = Plugin(runtime, plug(host, plugin.pod.ns, "veth2", "eth1", 80))
    result = second.add(LIMITS)
    second("CHECK", LIMITS, result).succeeded()
    second("DEL", LIMITS, result).succeeded()
    assert mirred(host, "veth1")[0] == IFB
    assert ifb.name_of("net1", "c1", "eth1") not in links(host)


def test_gc_of_what_go_left(
    runtime: Runtime, go_runtime: Runtime, plugin: Plugin, host: Netns, container2: Netns
) -> None:
    """Dead: it has carried packets, and its veth is gone. Whatever may be alive stays."""
    conf = {"cniVersion": "1.1.0", "name": "net1"}
    second = plug(host, container2, "veth2", "eth0", 80)
    Plugin(go_runtime, plugin.pod).add(LIMITS, version="1.0.0")
    Plugin(go_runtime, second).add(LIMITS, version="1.0.0", container_id="c2")
    other = ifb.name_of("net1", "c2")
    for pod in (plugin.pod, second):
        pod.ns.ip_batch("address add 192.0.2.1/24 dev eth0")
        ping(pod.ns, "192.0.2.2", expect=False)  # asks for the neighbour
    with unchanged(host):
        runtime.gc("bandwidth", conf, []).succeeded()
    host.ip("link", "delete", "veth1")
    host.ip("link", "delete", "veth2")
    host.ip("link", "add", ifb.name_of("net1", "c3"), "type", "ifb")  # perhaps of an ADD right now
    runtime.gc("bandwidth", conf, [("c2", "eth0")]).succeeded()
    assert IFB not in links(host)
    assert {other, ifb.name_of("net1", "c3")} <= set(links(host))


# -- the kernel interface by itself ---------------------------------------------------------------


def test_filters(host: Netns) -> None:
    """What is read back is what was asked for, bit by bit."""
    host.ip_batch("link add veth1 index 70 type veth peer name veth2", "link set veth1 up")
    texts = ["10.1.2.3/8", "192.0.2.128/25", "0.0.0.0/0", "198.51.100.1/32"]
    texts += ["fd00:db8:abcd:1234:e000::/68", "::/0", "fd00::1/128", "2001:db8::/32"]
    prefixes = [Prefix.parse(text) for text in texts]

    def run() -> list[tcfilter.Filter]:
        with Netlink() as sock:
            kernel_tc.add_htb(sock, 70, 1, own=kernel_tc.handle(1))
            for prefix in prefixes:
                for source in (True, False):
                    tcfilter.classify(sock, 70, 0x10000, prefix, source=source, target=0x10001)
            return tcfilter.show(sock, 70, 0x10000)

    found = host.run(run)
    expected = {
        tcfilter.matching(found[0].kind, prefix, source=source)
        for prefix in prefixes
        for source in (True, False)
    }
    assert {one.match for one in found} == expected
    assert {one.target for one in found} == {0x10001}
    assert len(found) == 2 * len(prefixes)


# -- traffic --------------------------------------------------------------------------------------


@pytest.fixture
def chain(runtime: Runtime, container: Netns) -> Iterator[Callable[..., Json]]:
    """ptp and bandwidth: call it with bandwidth's keys. The host is 10.22.0.1 and fd00:22::1."""
    used: list[Json] = []

    def make(**keys: Any) -> Json:
        plugins = [{"type": "ptp", "ipam": DUAL.static()}, {"type": "bandwidth", **keys}]
        used.append({"cniVersion": "1.1.0", "name": "net1", "plugins": plugins})
        return runtime.add_list(used[-1], container)

    yield make
    runtime.delete_list(used[-1], container)
    assert set(links(runtime.host)) == {"lo"}


def iperf(client: Netns, address: str, *options: str, seconds: float = 2) -> Json:
    """Run iperf3 against a server; its report without the first second."""
    argv = ["iperf3", "-J", "-c", address, "-t", str(seconds), "-O", "1", *options]
    done = client.exec(argv, check=False)
    return dict(json.loads(done.stdout))


def server(ns: Netns) -> None:
    """Start iperf3 and wait until it listens."""
    ns.popen(["iperf3", "-s"], stdout=DEVNULL, stderr=DEVNULL)
    wait_until(lambda: "5201" in ns.exec(["ss", "-Hltn"]).stdout, "iperf3 listens")


@pytest.mark.slow
def test_throughput(chain: Callable[..., Json], host: Netns, container: Netns) -> None:
    """Within 10 % of the limit, in each direction, with a default burst."""
    limits = {"ingress": 40_000_000, "egress": 20_000_000}
    chain(ingressRate=limits["ingress"], egressRate=limits["egress"], latency=40)
    server(host)
    measured = {}
    for direction, address, options in (
        ("egress", "10.22.0.1", []),
        ("ingress", "fd00:22::1", ["-R"]),
    ):
        deadline = time.monotonic() + 30
        while True:
            report = iperf(container, address, *options)
            rate = report.get("end", {}).get("sum_received", {}).get("bits_per_second", 0)
            measured[direction] = rate / limits[direction]
            if 0.9 <= measured[direction] <= 1.1 or time.monotonic() > deadline:
                break
    assert all(0.9 <= one <= 1.1 for one in measured.values()), measured


@pytest.mark.slow
def test_latency_under_load(runtime: Runtime, netns: Callable[..., Netns]) -> None:
    """What waits behind a flood waits as long as `latency` says, not longer."""
    if missing("fq_codel") is None:
        pytest.skip("needs a kernel without fq_codel, which keeps pings out of the queue")
    rtt = {}
    for number, latency in enumerate((20, 200)):
        pod = netns("pod")
        ipam = V4.static(number + 2)
        plugins = [
            {"type": "ptp", "ipam": ipam},
            {"type": "bandwidth", "egressRate": 10_000_000, "latency": latency},
        ]
        conflist = {"cniVersion": "1.1.0", "name": "net1", "plugins": plugins}
        runtime.add_list(conflist, pod, container_id=f"c{number}")
        rtt[latency] = loaded_rtt(pod)
        runtime.delete_list(conflist, pod, container_id=f"c{number}")
    assert rtt[200] > 4 * rtt[20], rtt


# 24 Mbit/s. Nobody need listen, so no connection of a former flood is in the way of the next.
FLOOD = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
SO_SNDBUFFORCE = 32
sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
due = time.monotonic()
while True:
    for _ in range(10):
        sock.sendto(bytes(1472), ("10.22.0.1", 9))
    due += 0.005
    time.sleep(max(due - time.monotonic(), 0))
"""


def loaded_rtt(pod: Netns) -> float:
    """The median round trip in ms while more than twice the rate is being sent."""
    flood = pod.popen([sys.executable, "-c", FLOOD])
    found: list[float] = []
    deadline = time.monotonic() + 20
    while len(found) < 30 and time.monotonic() < deadline:
        argv = ["ping", "-n", "-c", "70", "-i", "0.02", "-W", "1", "10.22.0.1"]
        shown = pod.exec(argv, check=False).stdout
        assert flood.poll() is None, "the flood has ended"
        answers = re.findall(r"icmp_seq=(\d+) .* time=([\d.]+) ms", shown)
        found += [float(ms) for number, ms in answers if int(number) > 30]
    flood.kill()
    flood.wait()
    return statistics.median(found)


def test_small_and_large_packets_pass(chain: Callable[..., Json], container: Netns) -> None:
    """The default burst holds a full packet, at any rate."""
    chain(ingressRate=64_000, egressRate=64_000, latency=1000)
    ping(container, "10.22.0.1", size=1472, timeout=10, wait=3)
    ping(container, "fd00:22::1", size=1452, timeout=10, wait=3)
