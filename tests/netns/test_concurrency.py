"""Many attachments at once, as when a node starts: nothing is lost, doubled or left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import DUAL, V4, Netns, Runtime, addresses, kind, link, links, ports
from tests.netns.test_bridge import leases, once, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Reply

COUNT = 32
WORKERS = 16

pytestmark = pytest.mark.timeout(240)


def at_once(function: Callable[[int], Reply], count: int = COUNT) -> list[Reply]:
    """Call a function with 0, 1, … from many threads; results in order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, range(count)))


def test_a_new_bridge_for_many_containers(
    runtime: Runtime, netns: Callable[..., Netns], data_dir: Path
) -> None:
    """From nothing: the first ones race to make the bridge, its address and the lease directory."""
    host = runtime.host
    spaces = [netns(f"c{number}") for number in range(COUNT)]
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "net",
        "bridge": "br0",
        "isDefaultGateway": True,
        "ipam": DUAL.host_local(data_dir, routes=False),
    }

    def add(number: int) -> Reply:
        return runtime.add("bridge", conf, spaces[number], container_id=f"c{number}")

    results = [reply.result for reply in at_once(add)]
    given = [ip["address"] for result in results for ip in result["ips"]]
    assert len(set(given)) == len(given) == 2 * COUNT
    assert len(leases(data_dir)) == 2 * COUNT
    assert len(ports(host, "br0")) == COUNT
    assert sorted(addresses(host, "br0")) == ["10.22.0.1/24", "fd00:22::1/64"]
    # all of them saw one bridge, with one MAC
    mac = link(host, "br0")["address"]
    assert {result["interfaces"][0]["mac"] for result in results} == {mac}
    for ns, result in zip(spaces, results, strict=True):
        assert sorted(addresses(ns, "eth0")) == sorted(ip["address"] for ip in result["ips"])
    for number in (0, COUNT // 2, COUNT - 1):
        peer = results[(number + 1) % COUNT]["ips"][0]["address"]
        assert once(spaces[number], "10.22.0.1")
        assert once(spaces[number], "fd00:22::1")
        assert once(spaces[number], plain(peer))
        runtime.check(
            "bridge", conf, spaces[number], container_id=f"c{number}", prev_result=results[number]
        ).succeeded()

    def delete(number: int) -> Reply:
        # every second runtime has lost the namespace's path
        path = spaces[number] if number % 2 else None
        return runtime.delete("bridge", conf, path, container_id=f"c{number}")

    for reply in at_once(delete):
        reply.succeeded()
    assert ports(host, "br0") == {}
    assert leases(data_dir) == set()
    assert [name for name, one in links(host).items() if kind(one) == "veth"] == []
    assert link(host, "br0")["address"] == mac


def test_adds_and_deletes_of_one_attachment(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    """A runtime must not do that, but some do: whatever wins, a DEL at the end leaves nothing."""
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "net",
        "bridge": "br0",
        "ipam": V4.host_local(data_dir),
    }

    def either(number: int) -> Reply:
        verb = runtime.delete if number % 2 else runtime.add
        return verb("bridge", conf, container)

    for reply in at_once(either, 12):
        if reply.rc:
            assert reply.error["msg"]
            assert "unexpected" not in reply.error.get("details", ""), str(reply)
    runtime.delete("bridge", conf, container).succeeded()
    assert "eth0" not in links(container)
    assert ports(runtime.host, "br0") == {}
    assert leases(data_dir) == set()


def test_many_point_to_point_links(
    runtime: Runtime, netns: Callable[..., Netns], data_dir: Path
) -> None:
    spaces = [netns(f"c{number}") for number in range(8)]
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "p2p",
        "ipam": DUAL.host_local(data_dir),
    }

    def add(number: int) -> Reply:
        return runtime.add("ptp", conf, spaces[number], container_id=f"c{number}")

    given = [plain(reply.result["ips"][0]["address"]) for reply in at_once(add, 8)]
    assert len(set(given)) == 8
    for number, ns in enumerate(spaces):
        assert once(ns, given[(number + 1) % 8])
    for reply in at_once(
        lambda number: runtime.delete("ptp", conf, spaces[number], container_id=f"c{number}"), 8
    ):
        reply.succeeded()
    assert [name for name, one in links(runtime.host).items() if kind(one) == "veth"] == []
    assert leases(data_dir) == set()
