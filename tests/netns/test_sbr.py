"""sbr: what comes from an interface's addresses leaves by that interface."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    V4,
    Netns,
    Runtime,
    each_version,
    find_routes,
    has_route,
    reach,
    requires_kernel,
    routes,
    rules,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.contract import MASTER, await_carrier, plug, without_dad
from tests.harness.faults import undoes_whatever_fails

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Reply

Json = dict[str, Any]

A4, A6 = "192.168.1.209/24", "fd00:1::209/64"
GW4, GW6 = "192.168.1.1", "fd00:1::1"
ADDRESSES = (A4, A6)


def interface(
    ns: Netns, *addresses: str, name: str = "net1", peer: Netns | None = None, index: int = 1001
) -> None:
    """A link with these addresses whose other end is in the same namespace or in `peer`."""
    other = f"peer name {name}p index {index + 1000}" + (f" netns {peer.name}" if peer else "")
    lines = [f"link add {name} index {index} type veth {other}"]
    lines += [
        f"link set {one} addrgenmode none up" for one in (name, *([] if peer else [f"{name}p"]))
    ]
    lines += [f"address add {a} dev {name}" + (" nodad" if ":" in a else "") for a in addresses]
    ns.ip_batch(*lines)
    if peer is None:
        for one in (name, f"{name}p"):
            await_carrier(ns, one)


def previous(*ips: tuple[str, str | None], name: str = "net1", version: str = "1.1.0") -> Json:
    """A prevResult with addresses and gateways of the interface, and one of another's."""
    entries: list[Json] = []
    for address, gateway in ips:
        entry: Json = {"address": address, "interface": 1}
        if version < "1.0.0":
            entry["version"] = "6" if ":" in address else "4"
        entries.append({**entry, "gateway": gateway} if gateway else entry)
    other = {"address": "10.0.0.2/24", "interface": 0, "gateway": "10.0.0.1"}
    links = [{"name": "other0", "sandbox": "/x"}, {"name": name, "sandbox": "/x"}]
    if version < "1.0.0":
        other["version"] = "4"
    return {"cniVersion": version, "interfaces": links, "ips": [other, *entries]}


BOTH = ((A4, GW4), (A6, GW6))


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", **keys}


@pytest.fixture
def sbr(runtime: Runtime) -> Sbr:
    return Sbr(runtime)


class Sbr:
    """Runs the plugin for `net1`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        runtime.ifname = "net1"

    def add(
        self, ns: Netns, conf: Json | None = None, prev: Json | None = None, **kw: Any
    ) -> Reply:
        prev = previous(*BOTH) if prev is None else prev
        return self.runtime.add("sbr", conf or network(), ns, prev_result=prev, **kw)

    def check(self, ns: Netns, conf: Json | None = None, prev: Json | None = None) -> Reply:
        prev = previous(*BOTH) if prev is None else prev
        return self.runtime.check("sbr", conf or network(), ns, prev_result=prev)

    def delete(
        self, ns: Netns | None, conf: Json | None = None, prev: Json | None = None, **kw: Any
    ) -> Reply:
        return self.runtime.delete("sbr", conf or network(), ns, prev_result=prev, **kw)


def sources(ns: Netns) -> dict[str, str]:
    """address -> table, of the rules that somebody made."""
    return {rule["src"]: rule["table"] for rule in rules(ns) if rule["src"] != "all"}


def table(ns: Netns, number: int | str, dev: str = "net1") -> set[str]:
    """`destination[ via gateway]` of a table's routes through an interface."""
    known = routes(ns, table="all")
    name = str(number)
    found = [r for r in known if r.get("table", "main") == name and r.get("dev") == dev]
    found = [r for r in found if r.get("type", "unicast") == "unicast"]
    return {r["dst"] + (f" via {r['gateway']}" if "gateway" in r else "") for r in found}


# -- ADD and DEL ----------------------------------------------------------------------------------

CONNECTED = {"192.168.1.0/24", "fd00:1::/64"}


@each_version(INTERFACE_VERSIONS)
def test_versions(sbr: Sbr, container: Netns, cni_version: str) -> None:
    interface(container, *ADDRESSES)
    container.ip_batch(
        "route add 192.168.2.0/24 via 192.168.1.2",
        "route add fd00:2::/64 via fd00:1::2",
    )
    conf = network(cniVersion=cni_version)
    prev = previous(*BOTH, version=cni_version)
    with unchanged(sbr.runtime.host):
        result = sbr.add(container, conf, prev).result
        assert result == {**prev, "dns": result.get("dns", {})} or result == prev
        assert sources(container) == {"192.168.1.209": "100", "fd00:1::209": "101"}
        generic = "fd00:1::/64"
        moved = {"192.168.1.0/24", "192.168.2.0/24 via 192.168.1.2", generic}
        assert table(container, 100) == {*moved, f"default via {GW4}"}
        assert table(container, 101) == {
            *(generic, "fd00:2::/64 via fd00:1::2", f"default via {GW6}")
        }
        assert table(container, "main") == set()
        if cni_version in CHECK_VERSIONS:
            sbr.check(container, conf, prev).succeeded()
        for _ in range(2):
            sbr.delete(container, conf).succeeded()
            assert sources(container) == {}
            assert table(container, 100) | table(container, 101) == set()


@each_version(ALL_VERSIONS[:2])
def test_the_oldest_versions(sbr: Sbr, container: Netns, cni_version: str) -> None:
    interface(container, A4)
    conf = network(cniVersion=cni_version)
    with unchanged(container):
        reply = sbr.runtime.add("sbr", conf, container)
        reply.failed(999, "This plugin must be called as chained plugin")
    prev = {"cniVersion": cni_version, "ip4": {"ip": A4, "gateway": GW4}}
    assert sbr.add(container, conf, prev).result["ip4"] == prev["ip4"]
    assert sources(container) == {"192.168.1.209": "100"}
    assert table(container, 100) == {"192.168.1.0/24", f"default via {GW4}"}


@pytest.mark.parametrize("family", [4, 6])
def test_a_default_route_that_is_there_is_moved(sbr: Sbr, container: Netns, family: int) -> None:
    """With all its attributes, and no second one beside it."""
    address, gateway = BOTH[0] if family == 4 else BOTH[1]
    interface(container, address)
    container.ip(f"-{family}", "route", "add", "default", "via", gateway, "mtu", "1300")
    sbr.add(container, prev=previous((address, gateway))).succeeded()
    (found,) = find_routes(container, "0.0.0.0/0" if family == 4 else "::/0", table="100")
    assert (found["gateway"], found["metrics"]) == (gateway, [{"mtu": 1300}])
    assert not has_route(container, "default", dev="net1")


def test_a_multipath_route_stays_one_route(sbr: Sbr, container: Netns) -> None:
    interface(container, A4)
    container.ip(
        *[
            "route",
            "add",
            "10.6.0.0/16",
            "nexthop",
            "via",
            "192.168.1.7",
            "weight",
            "3",
            "nexthop",
            "via",
            "192.168.1.8",
        ]
    )
    before = json.loads(container.ip("-j", "route", "show", "10.6.0.0/16"))
    sbr.add(container, prev=previous((A4, None))).succeeded()
    assert json.loads(container.ip("-j", "route", "show", "10.6.0.0/16")) == []
    moved = json.loads(container.ip("-j", "route", "show", "10.6.0.0/16", "table", "100"))
    assert [hop["weight"] for hop in moved[0]["nexthops"]] == [3, 1]
    assert moved == before


def test_attributes_and_odd_routes_are_kept(sbr: Sbr, container: Netns) -> None:
    """Metrics, a gateway beyond the subnet, two routes to one place: nothing is lost."""
    interface(container, A4)
    container.ip_batch(
        "route add 10.1.0.0/16 via 192.168.1.7 metric 50 mtu 1400 proto static",
        "route add 10.2.0.0/16 via 172.16.0.1 dev net1 onlink",
        "route add 10.3.0.0/16 via 192.168.1.7 metric 7",
        "route append 10.3.0.0/16 via 192.168.1.8 metric 7",
        "route add 10.4.0.0/16 dev net1 scope link",
    )
    before = routes(container, 4, dev="net1")
    sbr.add(container, prev=previous((A4, None))).succeeded()
    assert routes(container, 4, table="100", dev="net1") == before
    assert routes(container, 4, dev="net1") == []


def test_a_multipath_route_keeps_its_other_hops(sbr: Sbr, container: Netns) -> None:
    """Two default routes of IPv6 with one metric are one route with two hops to the kernel."""
    interface(container, "10.0.0.2/24", "fd00:9::2/64", name="other0", index=1101)
    interface(container, *ADDRESSES)
    container.ip_batch(
        "route add default via fd00:9::1",
        f"route append default via {GW6}",
        f"route add 10.5.0.0/16 nexthop via {GW4} nexthop via 10.0.0.1",
    )
    (shared,) = find_routes(container, "::/0", via=GW6)
    assert len(shared["nexthops"]) == 2
    shared = find_routes(container, "10.5.0.0/16")
    sbr.add(container).succeeded()
    assert find_routes(container, "10.5.0.0/16") == shared
    (left,) = find_routes(container, "::/0")
    assert (left["gateway"], left["dev"]) == ("fd00:9::1", "other0")
    (moved,) = find_routes(container, "::/0", table="101")
    assert (moved["gateway"], moved["dev"]) == (GW6, "net1")


def test_several_addresses(sbr: Sbr, container: Netns) -> None:
    """In their own subnets, and two in one."""
    interface(container, A4, "192.168.101.209/24", "192.168.1.210/24")
    container.ip_batch(
        "route add 192.168.2.0/24 via 192.168.1.2",
        "route add 192.168.102.0/24 via 192.168.101.2",
        "route add 10.9.0.0/16 dev net1",
    )
    prev = previous((A4, GW4), ("192.168.101.209/24", "192.168.101.1"), ("192.168.1.210/24", GW4))
    sbr.add(container, prev=prev).succeeded()
    assert sources(container) == {
        "192.168.1.209": "100",
        "192.168.101.209": "101",
        "192.168.1.210": "102",
    }
    first = {"192.168.1.0/24", "192.168.2.0/24 via 192.168.1.2", f"default via {GW4}"}
    second = {"192.168.101.0/24", "192.168.102.0/24 via 192.168.101.2"}
    assert table(container, 100) == {*first, "10.9.0.0/16"}
    assert table(container, 101) == {*second, "default via 192.168.101.1", "10.9.0.0/16"}
    assert table(container, 102) == table(container, 100)
    assert table(container, "main") == set()


def test_a_fixed_table(sbr: Sbr, container: Netns) -> None:
    """Only rules; gateways and hints do not matter."""
    interface(container, *ADDRESSES)
    container.ip("route", "add", "default", "via", GW4, "table", "5000")
    conf = network(table=5000, gateways=["nonsense"], addSourceHints=True)
    before = routes(container, table="all")
    with unchanged(container):
        sbr.add(container, conf).succeeded()
        assert sources(container) == {"192.168.1.209": "5000", "fd00:1::209": "5000"}
        assert routes(container, table="all") == before
        sbr.check(container, conf).succeeded()
        sbr.delete(container, conf).succeeded()


GATEWAYS = {
    "v4": (["192.168.1.254"], "192.168.1.254", GW6),
    "v6": (["fd00:1:0::254"], GW4, "fd00:1::254"),
    "dual": (["fd00:1::254", "192.168.1.254"], "192.168.1.254", "fd00:1::254"),
}


@pytest.mark.parametrize(("given", "v4", "v6"), GATEWAYS.values(), ids=GATEWAYS)
@pytest.mark.parametrize("default", [False, True])
def test_static_gateways(
    sbr: Sbr, container: Netns, given: list[str], v4: str, v6: str, default: bool
) -> None:
    """They count for more than the result's, and than default routes the interface has."""
    interface(container, *ADDRESSES)
    if default:
        container.ip_batch(f"route add default via {GW4}", f"route add default via {GW6}")
    conf = network(gateways=given)
    sbr.add(container, conf).succeeded()
    assert {one["gateway"] for one in find_routes(container, "0.0.0.0/0", table="100")} == {v4}
    assert {one["gateway"] for one in find_routes(container, "::/0", table="101")} == {v6}
    assert not has_route(container, "default", dev="net1")
    sbr.check(container, conf).succeeded()


def test_source_hints(sbr: Sbr, container: Netns) -> None:
    """The subnets stay in the main table with the address to use; the rest is moved."""
    interface(container, *ADDRESSES)
    container.ip_batch(f"route add default via {GW4}", "route add 10.9.0.0/16 dev net1 scope link")
    conf = network(addSourceHints=True)
    sbr.add(container, conf).succeeded()
    assert table(container, "main") == {*CONNECTED, "10.9.0.0/16"}
    (hint,) = find_routes(container, "192.168.1.0/24")
    assert (hint["prefsrc"], hint["scope"]) == ("192.168.1.209", "link")
    (hint,) = find_routes(container, "fd00:1::/64")
    assert (hint["prefsrc"], hint["metric"]) == ("fd00:1::209", 1024)
    assert f"default via {GW4}" in table(container, 100)
    sbr.check(container, conf).succeeded()
    sbr.delete(container, conf).succeeded()
    assert sources(container) == {}


def test_link_local_routes_stay(sbr: Sbr, container: Netns) -> None:
    """They belong to the link, whatever the source."""
    without_dad(container)
    container.ip_batch(
        "link add net1 index 1001 type veth peer name p index 2001",
        "link set p up",
        "link set net1 up",
        f"address add {A6} dev net1 nodad",
    )
    sbr.add(container, prev=previous((A6, GW6))).succeeded()
    local = container.ip("-6", "route", "show", "fe80::/64", "dev", "net1")
    assert "fe80::/64" in local


# -- tables and rules of others -------------------------------------------------------------------


def test_tables_in_use_are_left_alone(sbr: Sbr, container: Netns) -> None:
    interface(container, "10.0.0.2/24", name="other0", index=1101)
    interface(container, A4)
    container.ip_batch(
        "route add 10.8.0.0/16 dev other0 table 100",
        "rule add from 10.0.0.2 lookup 101",
        "route add blackhole 10.7.0.0/16 table 103",
    )
    container.ip("-6", "rule", "add", "from", "fd00::7", "lookup", "102")
    sbr.add(container, prev=previous((A4, GW4))).succeeded()
    assert sources(container)["192.168.1.209"] == "104"
    sbr.delete(container).succeeded()
    assert sources(container) == {"10.0.0.2": "101", "fd00::7": "102"}
    assert table(container, 100, "other0") == {"10.8.0.0/16"}


def test_rules_of_others_stay(sbr: Sbr, container: Netns) -> None:
    interface(container, A4)
    container.ip_batch(
        "rule add from 192.168.1.209 iif net1 lookup 200",
        "rule add from 192.168.1.209 fwmark 0x1 lookup 200",
        "rule add from 192.168.1.209 tos 0x10 lookup 200",
        "rule add from 192.168.1.209 ipproto tcp lookup 200",
        "rule add from 192.168.1.0/24 lookup 200",
        "rule add not from 192.168.1.209 lookup 200",
        "rule add from 192.168.1.209 to 10.0.0.0/8 lookup 200",
        "rule add from 192.168.1.209 prohibit",
    )
    before = [rule for rule in rules(container) if rule["src"] != "all"]
    sbr.add(container, prev=previous((A4, GW4))).succeeded()
    sbr.delete(container).succeeded()
    assert [rule for rule in rules(container) if rule["src"] != "all"] == before


def test_two_interfaces_with_one_address(sbr: Sbr, container: Netns) -> None:
    """Each DEL takes away its own."""
    interface(container, A4, name="net1", index=1001)
    interface(container, "192.168.2.2/24", A4, name="net2", index=1101)
    second = network(name="net2")
    prev = previous((A4, GW4), name="net2")
    sbr.add(container, prev=previous((A4, GW4))).succeeded()
    sbr.add(container, second, prev, ifname="net2").succeeded()
    assert sorted(r["table"] for r in rules(container) if r["src"] != "all") == ["100", "101"]
    sbr.delete(container, prev=previous((A4, GW4))).succeeded()
    assert sources(container) == {"192.168.1.209": "101"}
    assert table(container, 101, "net2") == {
        *("192.168.1.0/24", "192.168.2.0/24", f"default via {GW4}")
    }
    sbr.delete(container, second, ifname="net2").succeeded()
    assert sources(container) == {}


def test_many_at_once(sbr: Sbr, container: Netns) -> None:
    """Each gets tables that nobody else has."""
    count = 8
    for n in range(count):
        interface(container, f"10.{n}.0.2/24", name=f"net{n}", index=1001 + 2 * n)

    def run(verb: str, n: int) -> Reply:
        prev = previous((f"10.{n}.0.2/24", f"10.{n}.0.1"), name=f"net{n}")
        conf = network(name=f"net{n}")
        return sbr.runtime.call(verb, "sbr", conf, container, ifname=f"net{n}", prev_result=prev)

    with ThreadPoolExecutor(count) as pool:
        for reply in pool.map(lambda n: run("ADD", n), range(count)):
            reply.succeeded()
        given = sources(container)
        assert sorted(given.values()) == [str(100 + n) for n in range(count)]
        for n in range(count):
            number = given[f"10.{n}.0.2"]
            assert table(container, number, f"net{n}") == {
                *(f"10.{n}.0.0/24", f"default via 10.{n}.0.1")
            }
        for reply in pool.map(lambda n: run("DEL", n), range(count)):
            reply.succeeded()
    assert sources(container) == {}


def test_one_at_a_time(sbr: Sbr, container: Netns) -> None:
    """As the reference it takes a lock on the namespace, so that both can be used side by side."""
    interface(container, A4)
    fd = os.open(container.path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        child = sbr.runtime.start(
            "ADD", "sbr", network(), container, prev_result=previous((A4, GW4)), ifname="net1"
        )
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.7)
        assert sources(container) == {}
    finally:
        os.close(fd)
    assert child.wait(10) == 0
    assert sources(container) == {"192.168.1.209": "100"}


# -- DEL in every situation -----------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["nothing", "address", "link"])
@pytest.mark.parametrize("keys", [{}, {"table": 5000}], ids=["own", "fixed"])
def test_delete_without_prev_result(sbr: Sbr, container: Netns, gone: str, keys: Json) -> None:
    interface(container, *ADDRESSES)
    conf = network(**keys)
    sbr.add(container, conf).succeeded()
    if gone == "link":
        container.ip("link", "delete", "net1")
    elif gone == "address":
        container.ip("address", "flush", "dev", "net1")
    for _ in range(2):
        # also when the configuration has changed meanwhile
        sbr.delete(container).succeeded()
        assert sources(container) == {}
        assert table(container, 100) | table(container, 101) == set()


@pytest.mark.parametrize("path", [None, "/run/netns/nosuch"])
def test_delete_without_a_namespace(sbr: Sbr, path: str | None) -> None:
    sbr.runtime.delete("sbr", network(), path).succeeded()
    assert path is None or not os.path.exists(path)


@pytest.mark.parametrize("ours", ["ADD", "DEL"])
def test_together_with_the_reference(
    sbr: Sbr, go_runtime: Runtime, container: Netns, ours: str
) -> None:
    """A container that one of them made the other cleans up."""
    interface(container, *ADDRESSES)
    conf, prev = network(cniVersion="1.0.0"), previous(*BOTH, version="1.0.0")
    go_runtime.ifname = "net1"
    first, second = (sbr.runtime, go_runtime) if ours == "ADD" else (go_runtime, sbr.runtime)
    first.add("sbr", conf, container, prev_result=prev).succeeded()
    assert sources(container) == {"192.168.1.209": "100", "fd00:1::209": "101"}
    sbr.check(container, conf, prev).succeeded()
    second.delete("sbr", conf, container).succeeded()
    assert sources(container) == {}


def test_what_the_reference_leaves_without_a_link(
    sbr: Sbr, go_runtime: Runtime, container: Netns
) -> None:
    """The prevResult tells the addresses that the link had."""
    interface(container, *ADDRESSES)
    conf, prev = network(cniVersion="1.0.0"), previous(*BOTH, version="1.0.0")
    go_runtime.add("sbr", conf, container, prev_result=prev, ifname="net1").succeeded()
    container.ip("link", "delete", "net1")
    sbr.delete(container, conf, prev).succeeded()
    assert sources(container) == {}


# -- what fails -----------------------------------------------------------------------------------

CHAINED = "This plugin must be called as chained plugin"
FOUR = "gateways list contains multiple IPv4 addresses: 192.168.1.1 and 192.168.1.2"
BAD: list[tuple[Json, Json, str]] = [
    ({"prevResult": None}, {}, CHAINED),
    ({}, {"ips": []}, "No IP addresses supplied on interface: net1"),
    ({}, {"cniVersion": "0.3.0"}, "could not parse prevResult: "),
    ({}, {"ips": 7}, "could not parse prevResult: "),
    ({"table": "x"}, {}, "failed to parse network configuration: json: cannot unmarshal string"),
    ({"table": -1}, {}, "failed to parse network configuration: json: cannot unmarshal number -1"),
    ({"table": 1 << 32}, {}, "into field table of type uint32"),
    ({"gateways": "192.168.1.1"}, {}, "failed to parse network configuration: json: cannot"),
    ({"gateways": ["x"]}, {}, "invalid static gateway IP address: x"),
    ({"gateways": ["192.168.1.1/24"]}, {}, "invalid static gateway IP address: 192.168.1.1/24"),
    ({"gateways": ["192.168.1.1", "192.168.1.2"]}, {}, FOUR),
    ({"gateways": ["fd00::1", "fd00::2"]}, {}, "multiple IPv6 addresses: fd00::1 and fd00::2"),
    ({"gateways": [GW4, GW6, GW4]}, {}, "gateways list cannot contain more than 2 entries"),
    ({"addSourceHints": 1}, {}, "failed to parse network configuration: json: cannot unmarshal"),
    # The kernel refuses these in the middle.
    ({"gateways": ["10.99.0.1"]}, {}, "Failed to add default route to 10.99.0.1: "),
    ({"gateways": ["fd00:99::1"]}, {}, "Failed to add default route to fd00:99::1: "),
    ({"gateways": ["fd00:99::1"], "addSourceHints": True}, {}, "Failed to add default route to"),
    ({"table": 0}, {}, "failed to add rule: "),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "prev", "text"), BAD, ids=[str(one[:2]) for one in BAD])
def test_bad_input_changes_nothing(
    sbr: Sbr, container: Netns, keys: Json, prev: Json, text: str
) -> None:
    interface(container, *ADDRESSES)
    container.ip_batch(f"route add default via {GW4}", "route add 10.9.0.0/16 dev net1")
    with unchanged(sbr.runtime.host, container):
        conf = network(**{"prevResult": {**previous(*BOTH), **prev}, **keys})
        error = sbr.runtime.add("sbr", conf, container).failed(999)
        assert text in error["msg"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("keys", [{}, {"addSourceHints": True}], ids=["plain", "hints"])
def test_a_failed_add_is_undone(sbr: Sbr, container: Netns, keys: Json) -> None:
    """Whichever request to the kernel fails. A failing hint is no failure, nor its deletions."""
    interface(container, "10.0.0.2/24", "fd00:9::2/64", name="other0", index=1101)
    interface(container, *ADDRESSES)
    container.ip_batch(
        "route add default via fd00:9::1",
        f"route append default via {GW6}",
        f"route add default via {GW4}",
    )
    conf = network(prevResult=previous(*BOTH), **keys)
    # a rule with its routes is one request, and so are the deletions
    undoes_whatever_fails(sbr.runtime, "sbr", conf, container, ifname="net1", least=7)


def test_no_such_interface(sbr: Sbr, container: Netns) -> None:
    with unchanged(container):
        reply = sbr.add(container)
        reply.failed(999, "Cannot find network interface net1: Link not found")


def test_no_such_namespace(sbr: Sbr) -> None:
    reply = sbr.runtime.add("sbr", network(), "/run/netns/nosuch", prev_result=previous(*BOTH))
    reply.failed(999, 'failed to open netns "/run/netns/nosuch"')
    assert not os.path.exists("/run/netns/nosuch")


@pytest.mark.parametrize("keys", [{}, {"table": 5000}], ids=["own", "fixed"])
def test_a_second_add(sbr: Sbr, container: Netns, keys: Json) -> None:
    interface(container, *ADDRESSES)
    conf = network(**keys)
    sbr.add(container, conf).succeeded()
    with unchanged(container):
        sbr.add(container, conf).failed(999, "ailed to add rule: file exists", "second ADD")


def test_only_addresses_of_others(sbr: Sbr, container: Netns) -> None:
    """Nothing to do but to take the interface's routes away, as the reference does."""
    interface(container, A4)
    sbr.add(container, prev=previous()).succeeded()
    assert sources(container) == {}
    assert table(container, "main") == set()


# -- CHECK and STATUS -----------------------------------------------------------------------------


def test_check_tells_every_difference(sbr: Sbr, container: Netns) -> None:
    interface(container, *ADDRESSES)
    conf = network(addSourceHints=True)
    sbr.add(container, conf).succeeded()
    sbr.check(container, conf).succeeded()
    container.ip_batch(
        "rule delete from 192.168.1.209",
        "route delete 192.168.1.0/24",
    )
    container.ip("-6", "route", "delete", "default", "table", "101")
    error = sbr.check(container, conf).failed(999)
    assert error["msg"] == "no rule: want from 192.168.1.209/32 lookup a table of its own"
    assert error["details"] == (
        "also: no default route for fd00:1::209: want default via fd00:1::1 dev net1 in table 101; "
        "no source hint: want 192.168.1.0/24 src 192.168.1.209 dev net1 in table main"
    )
    container.ip("link", "delete", "net1")
    sbr.check(container, conf).failed(999, "Cannot find network interface net1")


def test_check_of_a_fixed_table(sbr: Sbr, container: Netns) -> None:
    interface(container, A4)
    prev = previous((A4, GW4))
    sbr.add(container, network(table=5000), prev).succeeded()
    sbr.check(container, network(table=5001), prev).failed(
        999, "no rule: want from 192.168.1.209/32 lookup 5001"
    )


def test_check_without_prev_result(sbr: Sbr, container: Netns) -> None:
    sbr.runtime.check("sbr", network(), container).succeeded()


def test_status_and_gc(runtime: Runtime) -> None:
    with unchanged(runtime.host):
        runtime.status("sbr", network()).succeeded()
        runtime.gc("sbr", network(), []).succeeded()
        runtime.status("sbr", network(table=-1)).failed(999)


# -- packets --------------------------------------------------------------------------------------

REMOTE = ("203.0.113.9", "2001:db8:9::9")


@pytest.fixture
def uplinks(container: Netns, netns: Callable[..., Netns]) -> tuple[Netns, Netns]:
    """Two routers, each on a link of the container; the default route is through the first."""
    first, second = netns("first"), netns("second")
    without_dad(container, first, second)
    container.ip("link", "set", "lo", "up")
    for n, (name, router) in enumerate((("eth0", first), ("net1", second)), 1):
        interface(
            container,
            *(f"10.{n}.0.2/24", f"fd00:{n}::2/64"),
            name=name,
            peer=router,
            index=1000 + n,
        )
        # a router asks for its neighbours from its link-local address
        router.ip("link", "set", f"{name}p", "up")
        router.ip_batch(
            "link set lo up",
            f"address add 10.{n}.0.1/24 dev {name}p",
            f"address add fd00:{n}::1/64 dev {name}p nodad",
            *(f"address add {remote} dev lo" for remote in REMOTE),
        )
    container.ip_batch("route add default via 10.1.0.1", "route add default via fd00:1::1")
    return first, second


UPLINK = (("10.2.0.2/24", "10.2.0.1"), ("fd00:2::2/64", "fd00:2::1"))


@pytest.mark.parametrize("keys", [{}, {"addSourceHints": True}], ids=["plain", "hints"])
def test_replies_leave_where_the_question_came_in(
    sbr: Sbr, container: Netns, uplinks: tuple[Netns, Netns], keys: Json
) -> None:
    first, second = uplinks
    container.set_sysctl("net/ipv4/conf/all/rp_filter", 0)
    container.set_sysctl("net/ipv4/conf/net1/rp_filter", 0)
    prev = previous(*UPLINK)
    with tcp_server(container) as server:

        def ask(router: Netns, n: int, timeout: float = 3) -> None:
            for address, remote in zip((f"10.{n}.0.2", f"fd00:{n}::2"), REMOTE, strict=True):
                tcp_exchange(router, address, server.port, source=remote, timeout=timeout)

        ask(first, 1)
        for address, remote in zip(("10.2.0.2", "fd00:2::2"), REMOTE, strict=True):
            with pytest.raises(OSError):  # noqa: PT011 a timeout or a reset, from the wrong router
                tcp_exchange(second, address, server.port, source=remote, timeout=0.3)
        sbr.add(container, network(**keys), prev).succeeded()
        ask(second, 2)
        ask(first, 1)
        container.set_sysctl("net/ipv4/conf/all/rp_filter", 1)
        ask(second, 2)
    sbr.delete(container, network(**keys), prev).succeeded()


@requires_kernel("macvlan")
def test_a_chain(
    runtime: Runtime, container: Netns, outside: Netns, netns: Callable[..., Netns], data_dir: Path
) -> None:
    """macvlan and sbr in a list, as it is used; also macvlan's CHECK finds what was moved."""
    plug(runtime.host, outside)
    outside.ip("address", "add", f"{REMOTE[0]}/32", "dev", "lo")
    ipam = V4.host_local(data_dir)
    conflist = {
        "cniVersion": "1.1.0",
        "name": "net",
        "plugins": [{"type": "macvlan", "master": MASTER, "ipam": ipam}, {"type": "sbr"}],
    }
    other = netns("other")
    interface(container, "10.1.0.2/24", name="eth0", peer=other)
    container.ip("route", "add", "default", "via", "10.1.0.1")
    with unchanged(runtime.host, container):
        result = runtime.add_list(conflist, container, ifname="net1")
        assert not has_route(container, "default", dev="net1")
        runtime.check_list(conflist, container, result, ifname="net1")
        with tcp_server(container) as server:
            reach(outside, "10.22.0.2", server.port, source=REMOTE[0], timeout=1)
        runtime.delete_list(conflist, container, result, ifname="net1")
