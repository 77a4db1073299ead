"""vrf: interfaces of the container with a routing table of their own."""

from __future__ import annotations

import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    V4,
    Netns,
    Runtime,
    address_info,
    addresses,
    each_version,
    has_route,
    kind,
    link,
    links,
    ping,
    requires_kernel,
    routes,
    tcp_server,
    unchanged,
)
from tests.harness.contract import MASTER, plug
from tests.harness.faults import undoes_whatever_fails
from tests.netns.test_sbr import interface, previous, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Reply

pytestmark = requires_kernel("vrf")

Json = dict[str, Any]

A4, A6 = "10.10.0.2/24", "fd00:10::2/64"
GW4, GW6 = "10.10.0.1", "fd00:10::1"
BOTH = ((A4, GW4), (A6, GW6))
SO_BINDTODEVICE = 25


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "vrfname": "blue", **keys}


@pytest.fixture
def vrf(runtime: Runtime) -> Vrf:
    return Vrf(runtime)


class Vrf:
    """Runs the plugin for an interface, `net1` unless another is named."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def __call__(
        self, verb: str, ns: Netns | str | None, conf: Json | None = None, name: str = "net1"
    ) -> Reply:
        conf = {"prevResult": previous(*BOTH, name=name), **(conf or network())}
        return self.runtime.call(verb, "vrf", conf, ns, ifname=name)


def members(ns: Netns, name: str = "blue") -> list[str]:
    return sorted(one for one, data in links(ns).items() if data.get("master") == name)


def vrfs(ns: Netns) -> dict[str, int]:
    """name -> table."""
    found = {name: one for name, one in links(ns).items() if kind(one) == "vrf"}
    return {name: one["linkinfo"]["info_data"]["table"] for name, one in found.items()}


# -- ADD and DEL ----------------------------------------------------------------------------------


@each_version(INTERFACE_VERSIONS[1:])
def test_versions(vrf: Vrf, container: Netns, cni_version: str) -> None:
    interface(container, A4, A6)
    container.ip_batch(
        f"route add default via {GW4}",
        "route add 10.11.0.0/16 via 10.10.0.9 metric 5 mtu 1300",
        "route add 10.12.0.0/16 dev net1 scope link",
        f"route add default via {GW6}",
        "route add fd00:11::/64 via fd00:10::9",
    )
    before = unicast(container, "main")
    prev = previous(*BOTH, version=cni_version)
    conf = network(cniVersion=cni_version, vrfName="blue", table=1001, prevResult=prev)
    del conf["vrfname"]  # its other spelling
    with unchanged(vrf.runtime.host):
        result = vrf("ADD", container, conf).result
        assert result == {**prev, "dns": result.get("dns", {})} or result == prev
        assert vrfs(container) == {"blue": 1001}
        assert "UP" in link(container, "blue")["flags"]
        assert members(container) == ["net1"]
        assert unicast(container, 1001) == before
        assert table(container, "main") == set()
        assert addresses(container, "net1") == [A4, A6]
        if cni_version in CHECK_VERSIONS:
            vrf("CHECK", container, conf).succeeded()
        for _ in range(2):
            vrf("DEL", container, conf).succeeded()
            assert vrfs(container) == {}
            assert "master" not in link(container, "net1")


def unicast(ns: Netns, number: int | str, dev: str = "net1") -> list[Json]:
    """A table's routes through an interface, all they have; not those of the kernel's own."""
    found = [r for r in routes(ns, table="all") if r.pop("table", "main") == str(number)]
    return [r for r in found if r.get("dev") == dev and r.get("type", "unicast") == "unicast"]


@pytest.mark.parametrize("keep", [0, 1])
def test_ipv6_addresses_are_kept(vrf: Vrf, container: Netns, keep: int) -> None:
    """With flags and lifetimes, usable at once: they have been found unique before."""
    interface(container, A4, A6)
    container.set_sysctl("net/ipv6/conf/net1/keep_addr_on_down", keep)
    container.ip_batch(
        "address add fd00:12::2/64 dev net1 nodad noprefixroute valid_lft 9000 preferred_lft 8000",
        "address change fd00:10::2/64 dev net1",
    )
    vrf("ADD", container).succeeded()
    for one in (A6, "fd00:12::2/64"):
        assert "tentative" not in address_info(container, "net1", one)
    other = address_info(container, "net1", "fd00:12::2/64")
    assert other["noprefixroute"]
    assert 8900 < other["valid_life_time"] <= 9000
    local = container.ip("-6", "route", "show", "table", "1", "type", "local")
    assert "fd00:10::2 dev net1" in local
    assert "fd00:12::2 dev net1" in local
    assert "fd00:12::/64" not in table(container, 1)


def test_an_address_that_waits_for_detection_goes_on_waiting(vrf: Vrf, container: Netns) -> None:
    interface(container, A4)
    container.ip("address", "add", A6, "dev", "net1")
    assert "tentative" in address_info(container, "net1", A6)
    vrf("ADD", container).succeeded()
    assert address_info(container, "net1", A6).get("tentative")


def test_an_interface_that_is_down(vrf: Vrf, container: Netns) -> None:
    interface(container, A4, A6)
    container.set_sysctl("net/ipv6/conf/net1/keep_addr_on_down", 1)
    container.ip("link", "set", "net1", "down")
    vrf("ADD", container).succeeded()
    container.ip("link", "set", "net1", "up")
    assert addresses(container, "net1") == [A4, A6]


def test_two_interfaces_in_one_vrf(vrf: Vrf, container: Netns) -> None:
    """The last one's DEL deletes the VRF."""
    interface(container, A4)
    interface(container, "10.13.0.2/24", name="net2", index=1101)
    container.ip_batch(f"route add default via {GW4}", "route add 10.14.0.0/16 via 10.13.0.1")
    vrf("ADD", container, network(table=7)).succeeded()
    assert has_route(container, "10.14.0.0/16", dev="net2")
    vrf("ADD", container, name="net2").succeeded()  # whatever table the VRF has
    vrf("ADD", container, network(table=7), "net2").failed(999, "already a master set: blue")
    assert members(container) == ["net1", "net2"]
    assert table(container, 7) == {"10.10.0.0/24", f"default via {GW4}"}
    assert table(container, 7, "net2") == {"10.13.0.0/24", "10.14.0.0/16 via 10.13.0.1"}
    vrf("DEL", container).succeeded()
    container.ip("link", "delete", "net1")
    assert members(container) == ["net2"]
    vrf("DEL", container).succeeded()  # repeated, and without its link
    assert vrfs(container) == {"blue": 7}
    vrf("DEL", container, name="net2").succeeded()
    assert vrfs(container) == {}


def test_delete_leaves_others_alone(vrf: Vrf, container: Netns) -> None:
    """What is a port of something else stays it; a VRF with somebody in it stays."""
    interface(container, A4)
    interface(container, "10.13.0.2/24", name="net2", index=1101)
    container.ip_batch("link add br0 type bridge", "link set net1 master br0")
    vrf("DEL", container).succeeded()
    vrf("ADD", container, name="net2").succeeded()
    vrf("DEL", container).succeeded()
    assert members(container, "br0") == ["net1"]
    assert members(container) == ["net2"]


@pytest.mark.parametrize("path", [None, "/run/netns/nosuch"])
def test_delete_without_a_namespace(vrf: Vrf, path: str | None) -> None:
    vrf("DEL", path).succeeded()


def test_tables(vrf: Vrf, container: Netns) -> None:
    """The smallest that nobody uses, be it a VRF, a route or a rule; a given one may be shared."""
    container.ip_batch(
        "link add v1 type vrf table 1",
        "link add v3 type vrf table 3",
        "link add dum type dummy",
        "link set dum up",
        "route add 10.99.0.0/16 dev dum table 2",
        "rule add from 10.99.0.1 lookup 4",
    )
    given = {"a": 0, "b": 0, "c": 1, "d": 4294967295}
    for n, (name, number) in enumerate(given.items()):
        interface(container, f"10.{n}.0.2/24", name=f"net{n}", index=1001 + 2 * n)
        conf = network(vrfname=name, table=number)
        vrf("ADD", container, conf, f"net{n}").succeeded()
    expected = {"v1": 1, "v3": 3, "a": 5, "b": 6, "c": 1, "d": 4294967295}
    assert vrfs(container) == expected


def test_many_at_once(vrf: Vrf, container: Netns) -> None:
    """Eight interfaces, two a VRF: four VRFs, four tables."""
    count = 8
    for n in range(count):
        interface(container, f"10.{n}.0.2/24", name=f"net{n}", index=1001 + 2 * n)

    def run(verb: str, n: int) -> Reply:
        return vrf(verb, container, network(vrfname=f"vrf{n % 4}"), f"net{n}")

    with ThreadPoolExecutor(count) as pool:
        for reply in pool.map(lambda n: run("ADD", n), range(count)):
            reply.succeeded()
        assert sorted(vrfs(container).values()) == [1, 2, 3, 4]
        for n in range(4):
            assert members(container, f"vrf{n}") == [f"net{n}", f"net{n + 4}"]
        for reply in pool.map(lambda n: run("DEL", n), range(count)):
            reply.succeeded()
    assert vrfs(container) == {}


def test_a_multipath_route_keeps_its_other_hops(vrf: Vrf, container: Netns) -> None:
    """Two default routes of IPv6 with one metric are one route with two hops to the kernel."""
    interface(container, A6)
    interface(container, "fd00:9::2/64", name="other0", index=1101)
    container.ip_batch(f"route add default via {GW6}", "route append default via fd00:9::1")
    vrf("ADD", container).succeeded()
    assert f"default via {GW6}" in table(container, 1)
    assert table(container, "main", "other0") == {"fd00:9::/64", "default via fd00:9::1"}


# -- what fails -----------------------------------------------------------------------------------

NAME = "configuration is expected to have a valid vrf name"
ADD = "cmdAdd failed: "
BAD: list[tuple[str, Json, str]] = [
    *((verb, {"vrfname": ""}, NAME) for verb in ("ADD", "CHECK")),
    ("ADD", {"vrfname": 7}, "failed to load netconf: json: cannot unmarshal number into field vrf"),
    ("ADD", {"table": -1}, "failed to load netconf: json: cannot unmarshal number -1 into field t"),
    ("ADD", {"table": 1 << 32}, "into field table of type uint32"),
    *((verb, {"prevResult": None}, "missing prevResult from earlier") for verb in ("ADD", "CHECK")),
    ("ADD", {"prevResult": {"ips": 7}}, "could not parse prevResult: "),
    ("ADD", {"vrfname": "a" * 16}, f"{ADD}could not add VRF aaaaaaaaaaaaaaaa: interface name is"),
    ("ADD", {"vrfname": "a/b"}, f"{ADD}could not add VRF a/b: "),
    ("ADD", {"vrfname": "net1"}, f"{ADD}Netlink net1 is not a VRF"),
    ("DEL", {"vrfname": "net1"}, "Netlink net1 is not a VRF"),
    ("CHECK", {"vrfname": "net1"}, "Netlink net1 is not a VRF"),
    ("CHECK", {"vrfname": "blue"}, "VRF blue not found"),
    ("ADD", {"vrfname": "red", "table": 8}, f"{ADD}VRF red already exist with different routing t"),
]


@pytest.mark.parametrize(("verb", "keys", "text"), BAD, ids=[str(b[:2]) for b in BAD])
def test_bad_input_changes_nothing(
    vrf: Vrf, container: Netns, verb: str, keys: Json, text: str
) -> None:
    interface(container, A4, A6)
    container.ip_batch("link add red type vrf table 9", f"route add default via {GW4}")
    with unchanged(vrf.runtime.host, container):
        error = vrf(verb, container, network(**keys)).failed(999)
        assert text in error["msg"]


def test_delete_without_a_vrfname(vrf: Vrf, container: Netns) -> None:
    """The VRF is the one that the interface is in."""
    interface(container, A4)
    vrf("ADD", container).succeeded()
    vrf("DEL", container, network(vrfname="", table=-1)).succeeded()
    assert "blue" not in links(container)
    assert "master" not in link(container, "net1")
    vrf("DEL", container, network(vrfname="")).succeeded()


def test_an_interface_that_is_not_free(vrf: Vrf, container: Netns) -> None:
    interface(container, A4)
    container.ip_batch("link add br0 type bridge", "link set net1 master br0")
    with unchanged(container):
        vrf("ADD", container).failed(999, f"{ADD}interface net1 has already a master set: br0")
        reply = vrf("ADD", container, name="nosuch")
        reply.failed(999, f"{ADD}could not get link by name nosuch")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_failed_add_is_undone(vrf: Vrf, container: Netns) -> None:
    """Whichever request to the kernel fails."""
    interface(container, "fd00:9::2/64", name="other0", index=1101)
    interface(container, A4, A6)
    container.ip_batch(
        "link add red type vrf table 9",  # the kernel's rules for VRFs stay once they are there
        "route add default via fd00:9::1",
        f"route append default via {GW6}",
        f"route add default via {GW4}",
        "route add 10.12.0.0/16 dev net1 scope link",
    )
    conf = network(prevResult=previous(*BOTH))
    undoes_whatever_fails(vrf.runtime, "vrf", conf, container, ifname="net1")


# -- CHECK and STATUS -----------------------------------------------------------------------------


def test_check_tells_every_difference(vrf: Vrf, container: Netns) -> None:
    interface(container, A4, A6)
    prev = previous(*BOTH)
    prev["routes"] = [{"dst": "0.0.0.0/0"}]
    container.ip("route", "add", "default", "via", GW4)
    conf = network(table=5, prevResult=prev)
    vrf("ADD", container, conf).succeeded()
    vrf("CHECK", container, conf).succeeded()
    container.ip_batch(
        f"address delete {A6} dev net1",
        "route delete default vrf blue",
        "link set net1 nomaster",
        "link set blue down",
    )
    error = vrf("CHECK", container, {**conf, "table": 6}).failed(999)
    assert error["msg"] == "failed to find net1 associated to vrf blue"
    for text in (
        "VRF blue has table 5, want 6",
        "VRF blue is down",
        f"Failed to match addr {A6} on interface net1",
        "Expected Route 0.0.0.0/0 not found in routing table",
    ):
        assert text in error["details"]


def test_status_makes_nothing(runtime: Runtime) -> None:
    with unchanged(runtime.host):
        runtime.status("vrf", network()).succeeded()
        runtime.gc("vrf", network(), []).succeeded()
        runtime.status("vrf", network(vrfname="")).failed(999, NAME)


# -- packets --------------------------------------------------------------------------------------


def ask(ns: Netns, device: str, address: str, port: int) -> str:
    """Connect from inside a VRF; the address that the server saw."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ns.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, device.encode())
        sock.connect((address, port))
        return sock.makefile("rb").readline().decode().strip()


def test_two_vrfs_with_the_same_subnets(
    vrf: Vrf, container: Netns, netns: Callable[..., Netns]
) -> None:
    """The same address twice in one container: each VRF reaches its own network, and beyond."""
    remote = ("203.0.113.9", "2001:db8:9::9")
    routers = {}
    for n, name in enumerate(("net1", "net2")):
        router = routers[name] = netns(name)
        for ns in (router, container):
            ns.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
        interface(container, A4, A6, name=name, peer=router, index=1001 + n)
        router.ip_batch(
            "link set lo up",
            f"link set {name}p up",
            f"address add {GW4}/24 dev {name}p",
            f"address add {GW6}/64 dev {name}p nodad",
            *(f"address add {one} dev lo" for one in remote),
        )
        for gateway in (GW4, GW6):
            # before the interfaces are told apart, the second route cannot be made
            container.ip("route", "add", "default", "via", gateway, "dev", name)
        vrf("ADD", container, network(vrfname=f"vrf-{name}"), name).succeeded()
    assert vrfs(container) == {"vrf-net1": 1, "vrf-net2": 2}
    for name, router in routers.items():
        ping(container, GW4, source=f"vrf-{name}")
        ping(container, GW6, source=f"vrf-{name}")
        with tcp_server(router) as server:
            for address, own in ((GW4, A4), (GW6, A6), (remote[0], A4), (remote[1], A6)):
                seen = ask(container, f"vrf-{name}", address, server.port)
                assert seen == own.partition("/")[0]
            assert len(server.clients) == 4
    for name in routers:
        vrf("DEL", container, network(vrfname=f"vrf-{name}"), name).succeeded()
    assert vrfs(container) == {}


def test_a_chain(runtime: Runtime, container: Netns, outside: Netns, data_dir: Path) -> None:
    """macvlan and vrf in a list, as it is used; also macvlan's CHECK finds what was moved."""
    plug(runtime.host, outside)
    conflist = {
        "cniVersion": "1.1.0",
        "name": "net",
        "plugins": [
            {"type": "macvlan", "master": MASTER, "ipam": V4.host_local(data_dir)},
            {"type": "vrf", "vrfname": "blue"},
        ],
    }
    result = runtime.add_list(conflist, container)
    runtime.check_list(conflist, container, result)
    ping(container, V4.gateways[0], source="blue")
    runtime.delete_list(conflist, container, result)
    assert links(container).keys() == {"lo"}
