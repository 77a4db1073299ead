"""route-override: the routes of an interface that another plugin has made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    Netns,
    Runtime,
    each_version,
    find_routes,
    ping,
    routes,
    unchanged,
)
from tests.harness.faults import undoes_whatever_fails
from tests.netns.test_sbr import A4, A6, ADDRESSES, BOTH, GW4, GW6, interface, previous, table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Reply

Json = dict[str, Any]

KERNELS = {"192.168.1.0/24", "fd00:1::/64"}
GIVEN = [
    {"dst": "0.0.0.0/0"},
    {"dst": "::/0"},
    {"dst": "10.1.0.0/16", "gw": "192.168.1.7"},
    {"dst": "fd00:7::/64", "gw": "fd00:1::7"},
]
MADE = {
    f"default via {GW4}",
    f"default via {GW6}",
    "10.1.0.0/16 via 192.168.1.7",
    "fd00:7::/64 via fd00:1::7",
}


class Chain:
    """Runs the plugin for `net1`, after one that has made the routes of `MADE`."""

    def __init__(self, runtime: Runtime, ns: Netns) -> None:
        self.runtime, self.ns = runtime, ns
        runtime.ifname = "net1"

    def prepare(self) -> None:
        interface(self.ns, *ADDRESSES)
        self.ns.ip_batch(*(f"route add {each}" for each in sorted(MADE)))

    def __call__(self, verb: str, prev: Json | None = None, **keys: Any) -> Reply:
        conf = {"cniVersion": "1.1.0", "name": "net", **keys}
        prev = {**previous(*BOTH), "routes": GIVEN} if prev is None else prev
        return self.runtime.call(
            verb, "route-override", {**conf, "prevResult": prev}, self.ns, ifname="net1"
        )


@pytest.fixture
def chain(runtime: Runtime, container: Netns) -> Chain:
    made = Chain(runtime, container)
    made.prepare()
    return made


# keys; the routes that are there then, but for the kernel's; those of the result
CHANGES: dict[str, tuple[Json, set[str], list[Json]]] = {
    "nothing": ({}, MADE, GIVEN),
    "flushroutes": ({"flushroutes": True}, set(), []),
    "flushgateway": (
        {"flushgateway": True},
        {each for each in MADE if "default" not in each},
        GIVEN[2:],
    ),
    "delroutes": (
        {"delroutes": [{"dst": "10.1.2.3/16"}, {"dst": "::/0"}, {"dst": "10.9.0.0/16"}]},
        {f"default via {GW4}", "fd00:7::/64 via fd00:1::7"},
        [GIVEN[0], GIVEN[3]],
    ),
    "delroutes by another gateway": (
        {"delroutes": [{"dst": "10.1.0.0/16", "gw": "192.168.1.99"}]},
        MADE,
        GIVEN,
    ),
    "the kernel's own": ({"delroutes": [{"dst": "192.168.1.0/24"}]}, MADE, GIVEN),
    "addroutes": (
        {"addroutes": [{"dst": "10.2.0.0/16", "gw": "192.168.1.8"}, {"dst": "fd00:8::/64"}]},
        {*MADE, "10.2.0.0/16 via 192.168.1.8", "fd00:8::/64"},
        [*GIVEN, {"dst": "10.2.0.0/16", "gw": "192.168.1.8"}, {"dst": "fd00:8::/64"}],
    ),
    "addroutes that is there": ({"addroutes": [GIVEN[2]]}, MADE, GIVEN),
    "a gateway that an added route leads to": (
        {"addroutes": [{"dst": "10.2.0.0/16", "gw": "10.5.0.1"}, {"dst": "10.5.0.0/24"}]},
        {*MADE, "10.2.0.0/16 via 10.5.0.1", "10.5.0.0/24"},
        [*GIVEN, {"dst": "10.2.0.0/16", "gw": "10.5.0.1"}, {"dst": "10.5.0.0/24"}],
    ),
    "another default route": (
        {"flushgateway": True, "addroutes": [{"dst": "0.0.0.0/0", "gw": "192.168.1.8"}]},
        {*(each for each in MADE if "default" not in each), "default via 192.168.1.8"},
        [*GIVEN[2:], {"dst": "0.0.0.0/0", "gw": "192.168.1.8"}],
    ),
    "all at once": (
        {
            "flushroutes": True,
            "flushgateway": True,
            "addroutes": [{"dst": "10.2.0.0/16", "gw": "192.168.1.8", "priority": 7}],
        },
        {"10.2.0.0/16 via 192.168.1.8"},
        [{"dst": "10.2.0.0/16", "gw": "192.168.1.8", "priority": 7}],
    ),
    "args replace the configuration": (
        {
            "flushroutes": True,
            "addroutes": [{"dst": "10.2.0.0/16"}],
            "args": {"cni": {"flushroutes": False, "addroutes": [{"dst": "10.3.0.0/16"}]}},
        },
        {*MADE, "10.3.0.0/16"},
        [*GIVEN, {"dst": "10.3.0.0/16"}],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes(chain: Chain, name: str) -> None:
    """Container and result have the same routes; CHECK agrees, and DEL may be repeated."""
    keys, there, given = CHANGES[name]
    result = chain("ADD", **keys).result
    assert table(chain.ns, "main") == there | KERNELS
    assert result.get("routes", []) == given
    has_gateways = not keys.get("flushgateway")
    mine = [ip for ip in result["ips"] if ip["interface"] == 1]
    assert [ip.get("gateway") for ip in mine] == ([GW4, GW6] if has_gateways else [None, None])
    chain("CHECK", result, **keys).succeeded()
    for _ in range(2):
        chain("DEL", **keys).succeeded()
    chain.runtime.delete("route-override", {"cniVersion": "1.1.0", "name": "net"}, None).succeeded()


@each_version(INTERFACE_VERSIONS)
def test_versions(chain: Chain, cni_version: str) -> None:
    prev = {**previous(*BOTH, version=cni_version), "routes": GIVEN}
    result = chain("ADD", prev, cniVersion=cni_version, flushroutes=True).result
    assert "routes" not in result
    assert result["interfaces"] == prev["interfaces"]
    if cni_version in CHECK_VERSIONS:
        chain("CHECK", result, cniVersion=cni_version, flushroutes=True).succeeded()


@each_version(("0.1.0", "0.2.0"))
def test_the_oldest_versions_name_no_interface(chain: Chain, cni_version: str) -> None:
    prev = {
        "cniVersion": cni_version,
        "ip4": {"ip": A4, "gateway": GW4, "routes": [{"dst": "10.1.0.0/16", "gw": "192.168.1.7"}]},
    }
    keys = {"delroutes": [{"dst": "10.1.0.0/16"}], "addroutes": [{"dst": "10.2.0.0/16"}]}
    result = chain("ADD", prev, cniVersion=cni_version, **keys).result
    assert result["ip4"] == {"ip": A4, "gateway": GW4, "routes": [{"dst": "10.2.0.0/16"}]}
    assert table(chain.ns, "main") == {*MADE, *KERNELS, "10.2.0.0/16"} - {
        "10.1.0.0/16 via 192.168.1.7"
    }


def shown(ns: Netns, dst: str) -> list[Json]:
    """The routes to a destination, those with several hops as one."""
    family = "-6" if ":" in dst else "-4"
    found: list[Json] = json.loads(ns.ip("-j", family, "route", "show", dst))
    return found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("key", ["addroutes", "addecmproutes"])
def test_several_gateways_are_one_route(chain: Chain, family: int, key: str) -> None:
    dst, gateways = (
        ("10.2.0.0/16", ["192.168.1.8", "192.168.1.9"])
        if family == 4
        else ("fd00:8::/64", ["fd00:1::8", "fd00:1::9"])
    )
    each = [{"dst": dst, "gw": gateway} for gateway in gateways]
    keys: Json = {key: each if key == "addroutes" else [{"dst": dst, "gws": gateways}]}
    result = chain("ADD", **keys).result
    assert result["routes"] == [*GIVEN, *each]
    (made,) = shown(chain.ns, dst)
    assert [hop["gateway"] for hop in made["nexthops"]] == gateways
    chain("CHECK", result, **keys).succeeded()
    # one of them less: the other stays
    del_keys = {"delroutes": [each[1]]}
    assert chain("ADD", result, **del_keys).result["routes"] == [*GIVEN, each[0]]
    (made,) = shown(chain.ns, dst)
    assert (made.get("gateway"), made.get("nexthops")) == (gateways[0], None)


def test_attributes_of_added_routes(chain: Chain) -> None:
    added = {
        "dst": "10.2.0.0/16",
        "gw": "192.168.1.8",
        "mtu": 1300,
        "advmss": 1200,
        "priority": 50,
        "table": 1000,
    }
    chain("ADD", addroutes=[added]).succeeded()
    (made,) = find_routes(chain.ns, "10.2.0.0/16", table="1000")
    assert made["metric"] == 50
    assert made["metrics"] == [{"mtu": 1300, "advmss": 1200}]


def test_other_interfaces_keep_their_routes(chain: Chain) -> None:
    interface(chain.ns, "172.16.0.2/24", name="net2", index=1500)
    chain.ns.ip_batch(
        "route add 10.1.0.0/16 via 172.16.0.1 metric 5", "route add 10.4.0.0/16 via 172.16.0.1"
    )
    before = routes(chain.ns, dev="net2")
    chain("ADD", flushroutes=True, flushgateway=True).succeeded()
    assert routes(chain.ns, dev="net2") == before
    reply = chain("ADD", addroutes=[{"dst": "10.4.0.0/16", "gw": "192.168.1.8"}])
    reply.failed(999, "failed to add route 10.4.0.0/16 via 192.168.1.8 dev net1: file exists")
    assert "priority" in reply.error["details"]
    assert routes(chain.ns, dev="net2") == before


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"addroutes": [{"dst": "10.1.0.0/16", "gw": "192.168.1.8"}]}, "file exists"),
        ({"addroutes": [{"dst": "10.2.0.0/16", "gw": "172.16.0.1"}]}, "network is unreachable"),
        ({"addroutes": [{"dst": "10.2.0.0/16", "gw": "fd00::1"}]}, "another family"),
        ({"addroutes": [{"dst": "somewhere"}]}, "invalid CIDR address"),
        ({"addroutes": [{"dst": "10.2.0.0/16", "priority": -1}]}, "priority"),
        ({"addecmproutes": [{"dst": "10.2.0.0/16"}]}, "gws must not be empty"),
        ({"flushroutes": "true"}, "flushroutes of type bool"),
        ({"prevResult": None}, "Required prevResult missing"),
    ],
)
def test_failures_leave_routes_as_they_were(chain: Chain, keys: Json, text: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "flushgateway": True}
    conf |= {"prevResult": {**previous(*BOTH), "routes": GIVEN}, **keys}
    with unchanged(chain.ns, chain.runtime.host):
        reply = chain.runtime.call("ADD", "route-override", conf, chain.ns, ifname="net1")
        reply.failed(999, text)
        if "prevResult" not in keys and "file exists" not in text and "unreachable" not in text:
            chain.runtime.status("route-override", conf).failed(999, text)
    chain.runtime.delete("route-override", {**conf, **keys}, chain.ns)
    assert table(chain.ns, "main") == MADE | KERNELS


def test_whatever_fails_is_undone(chain: Chain) -> None:
    chain.ns.ip_batch(
        "route add 10.6.0.0/16 nexthop via 192.168.1.7 weight 3 nexthop via 192.168.1.8",
        "route add fd00:6::/64 nexthop via fd00:1::7 nexthop via fd00:1::8",
    )
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "flushgateway": True,
        "delroutes": [
            {"dst": "10.6.0.0/16", "gw": "192.168.1.8"},
            {"dst": "fd00:6::/64", "gw": "fd00:1::8"},
            {"dst": "10.1.0.0/16"},
        ],
        "addroutes": [
            {"dst": "10.2.0.0/16", "gw": "192.168.1.8"},
            {"dst": "fd00:8::/64", "gw": "fd00:1::8"},
            {"dst": "fd00:8::/64", "gw": "fd00:1::9"},
        ],
        "prevResult": {**previous(*BOTH), "routes": GIVEN},
    }
    undoes_whatever_fails(chain.runtime, "route-override", conf, chain.ns, ifname="net1", least=7)


DIFFERENCES = {
    "a removed route is back": ("route add default via 192.168.1.5", "route is not removed"),
    "an added route is gone": ("route delete 10.2.0.0/16", "Expected Route 10.2.0.0/16"),
    "a hop is gone": (
        "route change 10.3.0.0/16 via 192.168.1.8",
        "Expected Route 10.3.0.0/16 via 192.168.1.9",
    ),
    "a kept route is gone": ("route delete 10.1.0.0/16", "Expected Route 10.1.0.0/16"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_check_sees_differences(chain: Chain, name: str) -> None:
    command, text = DIFFERENCES[name]
    keys: Json = {
        "flushgateway": True,
        "addroutes": [
            {"dst": "10.2.0.0/16", "gw": "192.168.1.8"},
            {"dst": "10.3.0.0/16", "gw": "192.168.1.8"},
            {"dst": "10.3.0.0/16", "gw": "192.168.1.9"},
        ],
    }
    result = chain("ADD", **keys).result
    chain("CHECK", result, **keys).succeeded()
    chain.ns.ip_batch(command)
    chain("CHECK", result, **keys).failed(999, text)
    chain("CHECK", result, **keys, skipcheck=True).succeeded()


def test_check_names_all_differences_at_once(chain: Chain) -> None:
    keys: Json = {"delroutes": [{"dst": "0.0.0.0/0"}], "addroutes": [{"dst": "10.2.0.0/16"}]}
    result = chain("ADD", **keys).result
    chain.ns.ip_batch("route add default via 192.168.1.5", "route delete 10.2.0.0/16")
    error = chain("CHECK", result, **keys).error
    assert "not removed" in error["msg"]
    assert "10.2.0.0/16" in error["details"]


def test_packets_take_the_other_way(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    """In a chain with bridge: two containers, of which one is the router of the other."""
    ipam = {
        "type": "host-local",
        "dataDir": str(data_dir),
        "ranges": [[{"subnet": "192.168.1.0/24"}]],
        "routes": [{"dst": "10.20.0.0/16", "gw": "192.168.1.77"}],
    }
    bridge = {"cniVersion": "1.1.0", "name": "net", "bridge": "br1", "ipam": ipam}
    made = runtime.add("bridge", bridge, container).result
    router = runtime.add("bridge", bridge, outside, container_id="router").result
    gateway = router["ips"][0]["address"].split("/")[0]
    outside.ip_batch("address add 10.20.0.1/32 dev lo", "link set lo up")
    ping(container, "10.20.0.1", expect=False)
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "delroutes": [{"dst": "10.20.0.0/16"}],
        "addroutes": [{"dst": "10.20.0.0/16", "gw": gateway}],
    }
    result = runtime.add("route-override", conf, container, prev_result=made).result
    ping(container, "10.20.0.1")
    runtime.check("bridge", bridge, container, prev_result=result).succeeded()
    runtime.check("route-override", conf, container, prev_result=result).succeeded()


def test_no_such_interface_or_namespace(runtime: Runtime, container: Netns) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "flushroutes": True}
    prev = {"cniVersion": "1.1.0", "ips": [{"address": A6}]}
    reply = runtime.add("route-override", conf, container, prev_result=prev)
    reply.failed(999, "no link eth0 in the container")
    runtime.add("route-override", conf, "/run/netns/nosuch", prev_result=prev).failed(
        999, "failed to open netns"
    )
    runtime.delete("route-override", conf, "/run/netns/nosuch").succeeded()
