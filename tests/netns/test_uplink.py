"""`uplinkInterface`: a link of the node becomes a port of the bridge (without VLANs; those are in
tests/lab/test_uplink_vlan.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, link, links, ping, ports, unchanged
from tests.harness.contract import leases, plug

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]


def network(data_dir: Path, **keys: Any) -> Json:
    """Containers on a LAN on which 10.77.0.1 is the router."""
    subnet = {"subnet": "10.77.0.0/24", "rangeStart": "10.77.0.100", "gateway": "10.77.0.1"}
    ipam = {"type": "host-local", "ranges": [[subnet]], "dataDir": str(data_dir)}
    base = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0", "uplinkInterface": "lan0"}
    return {**base, "ipam": ipam, **keys}


@pytest.fixture
def lan(runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path) -> Netns:
    """The router on the LAN that the node's lan0 leads to."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    router = netns("router")
    plug(runtime.host, router)
    (inside,) = [name for name in links(router) if name != "lo"]
    router.ip("address", "flush", "dev", inside)
    router.ip("address", "add", "10.77.0.1/24", "dev", inside)
    runtime.host.ip("address", "flush", "dev", "lan0")
    return router


def notes(runtime: Runtime) -> list[str]:
    from pathlib import Path

    directory = Path(runtime.env["CNI_STATE_DIR"]) / "uplinks"
    return sorted(each.name for each in directory.iterdir()) if directory.exists() else []


@pytest.mark.parametrize("is_up", [True, False])
def test_containers_are_on_the_lan(
    runtime: Runtime, container: Netns, lan: Netns, data_dir: Path, is_up: bool
) -> None:
    """ADD, CHECK, STATUS, GC, DEL; the link stays a port of the bridge, which stays."""
    if not is_up:
        runtime.host.ip("link", "set", "lan0", "down")
    conf = network(data_dir)
    runtime.status("bridge", conf).succeeded()
    result = runtime.add("bridge", conf, container).result
    ping(container, "10.77.0.1")
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    runtime.status("bridge", conf).succeeded()
    runtime.gc("bridge", conf, [("c1", "eth0")]).succeeded()
    ping(container, "10.77.0.1")
    runtime.delete("bridge", conf, container).succeeded()
    assert link(runtime.host, "lan0")["master"] == "br0"
    runtime.add("bridge", conf, container).succeeded()
    ping(container, "10.77.0.1")
    assert len(leases(data_dir)) == 1


@pytest.mark.parametrize("verb", ["DEL", "GC"])
def test_with_an_empty_bridge_the_link_is_free(
    runtime: Runtime, netns: Callable[..., Netns], lan: Netns, data_dir: Path, verb: str
) -> None:
    conf = network(data_dir, removeEmptyBridge=True)
    one, two = netns("one"), netns("two")
    runtime.add("bridge", conf, one, container_id="c1").succeeded()
    runtime.add("bridge", conf, two, container_id="c2").succeeded()
    runtime.delete("bridge", conf, one, container_id="c1").succeeded()
    ping(two, "10.77.0.1")
    if verb == "DEL":
        runtime.delete("bridge", conf, two, container_id="c2").succeeded()
    else:
        runtime.gc("bridge", conf, []).succeeded()
    assert "br0" not in links(runtime.host)
    assert "master" not in link(runtime.host, "lan0")
    assert notes(runtime) == []


def test_a_bridge_with_a_port_of_others_stays(
    runtime: Runtime, container: Netns, lan: Netns, data_dir: Path
) -> None:
    conf = network(data_dir, removeEmptyBridge=True)
    runtime.add("bridge", conf, container).succeeded()
    runtime.host.ip("link", "add", "tap9", "master", "br0", "type", "veth", "peer", "name", "tap9p")
    runtime.delete("bridge", conf, container).succeeded()
    assert set(ports(runtime.host, "br0")) == {"lan0", "tap9"}


def test_a_port_before_stays_one(
    runtime: Runtime, container: Netns, lan: Netns, data_dir: Path
) -> None:
    """Of a bridge that an administrator has made, with the link as its port."""
    runtime.host.ip_batch("link add br0 type bridge", "link set br0 up", "link set lan0 master br0")
    conf = network(data_dir, removeEmptyBridge=True)
    runtime.add("bridge", conf, container).succeeded()
    ping(container, "10.77.0.1")
    assert notes(runtime) == []
    runtime.delete("bridge", conf, container).succeeded()
    assert set(ports(runtime.host, "br0")) == {"lan0"}


REFUSED: dict[str, tuple[list[str], str]] = {
    "addresses": (["address add 10.77.0.9/24 dev lan0"], "has addresses"),
    "ipv6": (["address add 2001:db8::9/64 dev lan0 nodad"], "2001:db8::9/64"),
    "others": (["link add br1 type bridge", "link set lan0 master br1"], "is a port of br1"),
    "missing": (["link set lan0 down", "link set lan0 name lan9"], '"lan0" not found'),
    "a bridge": (["link set lan0 name lan9", "link add lan0 type bridge"], "it is a bridge"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_an_uplink(
    runtime: Runtime, container: Netns, lan: Netns, data_dir: Path, case: str
) -> None:
    """ADD changes nothing, STATUS says so beforehand, DEL works all the same."""
    commands, text = REFUSED[case]
    runtime.host.ip("link", "set", "lan0", "down")
    for each in commands:
        runtime.host.ip(*each.split())
    conf = network(data_dir)
    with unchanged(runtime.host, container):
        runtime.add("bridge", conf, container).failed(999, text)
        runtime.status("bridge", conf).failed(50, text)
        runtime.delete("bridge", conf, container).succeeded()


@pytest.mark.parametrize("name", ["br0", "lo", "a/b", "x" * 16])
def test_names_that_cannot_be(
    runtime: Runtime, container: Netns, lan: Netns, data_dir: Path, name: str
) -> None:
    with unchanged(runtime.host, container, data_dir):
        conf = network(data_dir, uplinkInterface=name)
        runtime.add("bridge", conf, container).failed(999, "uplinkInterface")


@pytest.mark.parametrize("others", [True, False])
def test_an_add_that_fails_releases_it(
    runtime: Runtime, netns: Callable[..., Netns], lan: Netns, data_dir: Path, others: bool
) -> None:
    """As it was, down; unless another container uses it by then."""
    runtime.host.ip("link", "set", "lan0", "down")
    conf = network(data_dir)
    one, two = netns("one"), netns("two")
    if others:
        runtime.add("bridge", conf, one, container_id="c1").succeeded()
    routes = [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]  # to which there is no way
    broken = network(data_dir)
    broken["ipam"] = {**conf["ipam"], "routes": routes}
    runtime.add("bridge", broken, two, container_id="c2").failed(999, "failed to add route")
    if others:
        ping(one, "10.77.0.1")
        return
    assert "br0" not in links(runtime.host)
    left = link(runtime.host, "lan0")
    assert "master" not in left
    assert "UP" not in left["flags"]
    assert notes(runtime) == []


def test_check_says_what_is_wrong(
    runtime: Runtime, container: Netns, lan: Netns, data_dir: Path
) -> None:
    conf = network(data_dir)
    result = runtime.add("bridge", conf, container).result
    for command, text in (
        ("link set lan0 down", "uplinkInterface lan0 is down"),
        ("link set lan0 nomaster", "uplinkInterface lan0 is no port of br0"),
        ("link set lan0 name lan9", "uplinkInterface lan0 not found"),
    ):
        runtime.host.ip(*command.split())
        error = runtime.check("bridge", conf, container, prev_result=result).failed(999)
        assert text in error["msg"] + error.get("details", "")
