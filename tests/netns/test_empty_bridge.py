"""A bridge without ports: who removes it, and that no ADD loses the bridge that it has found."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import link as kernel
from cni.kernel.netlink import Netlink
from cni.owner import network_group
from cni.plugins.bridge.empty import MARK
from tests.harness import DUAL, Netns, Runtime, addresses, link, links, ping, ports, unchanged
from tests.harness.contract import leases
from tests.harness.wait import last_seen, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness import Reply

Json = dict[str, Any]


def network(data_dir: Path, name: str = "net", **keys: Any) -> Json:
    ipam = DUAL.host_local(data_dir)
    conf = {"cniVersion": "1.1.0", "name": name, "bridge": "br0", "isGateway": True, "ipam": ipam}
    return {**conf, **keys}


def removing(data_dir: Path, name: str = "net", **keys: Any) -> Json:
    return network(data_dir, name, removeEmptyBridge=True, **keys)


def forwarding(host: Netns) -> None:
    """Have the node forward, as a gateway's ADD does."""
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        host.set_sysctl(name, 1)


# -- removeEmptyBridge ----------------------------------------------------------------------------


def test_it_goes_with_its_last_port(
    runtime: Runtime, netns: Callable[..., Netns], data_dir: Path
) -> None:
    """And not before; the next ADD makes another, and its container talks."""
    conf = removing(data_dir)
    one, two = netns("one"), netns("two")
    forwarding(runtime.host)
    with unchanged(runtime.host):
        for _ in range(2):
            runtime.add("bridge", conf, one, container_id="c1").succeeded()
            result = runtime.add("bridge", conf, two, container_id="c2").result
            assert link(runtime.host, "br0")["ifalias"] == MARK
            ping(one, DUAL.gateways[0])
            runtime.delete("bridge", conf, one, container_id="c1").succeeded()
            assert len(ports(runtime.host, "br0")) == 1
            ping(two, DUAL.gateways[0])
            runtime.check("bridge", conf, two, container_id="c2", prev_result=result).succeeded()
            runtime.delete("bridge", conf, None, container_id="c2").succeeded()
            assert "br0" not in links(runtime.host)
            runtime.delete("bridge", conf, two, container_id="c2").succeeded()
    assert not leases(data_dir)


def test_it_goes_although_the_namespace_took_the_port(
    runtime: Runtime, netns: Callable[..., Netns], data_dir: Path
) -> None:
    conf = removing(data_dir)
    one = netns("one")
    runtime.add("bridge", conf, one).succeeded()
    one.close()
    wait_until(lambda: not ports(runtime.host, "br0"), "the namespace ends")
    runtime.delete("bridge", conf, None).succeeded()
    assert "br0" not in links(runtime.host)


def test_it_goes_by_gc(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = removing(data_dir)
    runtime.add("bridge", conf, container, container_id="c1").succeeded()
    runtime.gc("bridge", conf, [("c1", "eth0")]).succeeded()
    assert len(ports(runtime.host, "br0")) == 1
    runtime.gc("bridge", conf, []).succeeded()
    assert "br0" not in links(runtime.host)


def test_a_failed_add_leaves_none(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    conf = failing(removing(data_dir))
    forwarding(runtime.host)
    with unchanged(runtime.host, container):
        runtime.add("bridge", conf, container).failed(999, "failed to add route")


def made_by_hand(host: Netns, conf: Json, other: Netns, runtime: Runtime) -> None:
    _ = conf, other, runtime
    host.ip("link", "add", "br0", "type", "bridge")


def made_without_the_key(host: Netns, conf: Json, other: Netns, runtime: Runtime) -> None:
    _ = host
    plain = {**conf, "removeEmptyBridge": False}
    runtime.add("bridge", plain, other, container_id="plain").succeeded()
    runtime.delete("bridge", plain, other, container_id="plain").succeeded()


@pytest.mark.parametrize("make", [made_by_hand, made_without_the_key])
def test_others_bridges_stay(
    runtime: Runtime, netns: Callable[..., Netns], data_dir: Path, make: Callable[..., None]
) -> None:
    """The mark decides, not the name."""
    conf = removing(data_dir)
    make(runtime.host, conf, netns("other"), runtime)
    index = link(runtime.host, "br0")["ifindex"]
    container = netns("one")
    runtime.add("bridge", conf, container).succeeded()
    runtime.delete("bridge", conf, container).succeeded()
    runtime.gc("bridge", conf, []).succeeded()
    assert link(runtime.host, "br0")["ifindex"] == index


USES: dict[str, list[str]] = {
    "a port": ["link add dummy9 master br0 type veth peer name dummy8"],
    "a port that is up": [
        "link add dummy9 up master br0 type veth peer name dummy8",
        "link set dummy8 up",
    ],
    "a link on it": ["link add dummy9 link br0 type macvlan"],
}


@pytest.mark.parametrize("use", USES)
def test_it_stays_while_it_is_used(
    runtime: Runtime, container: Netns, data_dir: Path, use: str
) -> None:
    conf = removing(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    for command in USES[use]:
        runtime.host.ip(*command.split())
    runtime.delete("bridge", conf, container).succeeded()
    runtime.gc("bridge", conf, []).succeeded()
    assert link(runtime.host, "br0")["ifalias"] == MARK
    runtime.host.ip("link", "del", "dummy9")
    runtime.gc("bridge", conf, []).succeeded()
    assert "br0" not in links(runtime.host)


def set_group(name: str, group: int) -> None:
    """`ip link set NAME group` takes no number above 2^31."""
    with Netlink() as host:
        kernel.change(host, kernel.get(host, name).index, group=group)


def test_what_a_kill_left_goes(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    """Between its creation and its mark the bridge is in the network's link group."""
    conf = removing(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    runtime.delete("bridge", network(data_dir), container).succeeded()
    runtime.host.ip("link", "set", "br0", "alias", "")
    runtime.gc("bridge", conf, []).succeeded()
    assert "br0" in links(runtime.host)
    runtime.host.run(set_group, "br0", network_group("net"))
    runtime.gc("bridge", removing(data_dir, "other"), []).succeeded()
    assert "br0" in links(runtime.host)
    runtime.gc("bridge", conf, []).succeeded()
    assert "br0" not in links(runtime.host)


# -- the lock -------------------------------------------------------------------------------------


def failing(conf: Json) -> Json:
    """ADD fails after the port is there."""
    routes = [{"dst": "10.9.0.0/16", "gw": "192.0.2.99"}]
    return {**conf, "ipam": {**conf["ipam"], "routes": routes}}


def has_gateway(host: Netns) -> bool:
    """ADD gives it to the bridge after it has made its port."""
    return "br0" in links(host) and DUAL.gateways[0] in str(addresses(host, "br0"))


@contextmanager
def locked(runtime: Runtime, how: int) -> Iterator[None]:
    """The lock, as another plugin has it."""
    directory = runtime.env["CNI_STATE_DIR"]
    os.makedirs(directory, exist_ok=True)
    fd = os.open(f"{directory}/bridge.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


class Background:
    """A request in a thread, while the test holds the lock."""

    def __init__(self, request: Callable[[], Reply]) -> None:
        self.replies: list[Reply] = []
        self._thread = threading.Thread(target=lambda: self.replies.append(request()))
        self._thread.start()

    def result(self) -> Reply:
        self._thread.join(60)
        return self.replies[0]


def test_an_undo_leaves_the_bridge_that_another_add_has_found(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    """The second ADD has looked for the bridge, and its port comes after the first one's has gone.

    Without a lock the undo deletes the bridge in between.
    """
    conf = failing(network(data_dir))
    host = runtime.host
    with locked(runtime, fcntl.LOCK_SH):
        first = Background(lambda: runtime.add("bridge", conf, container))
        wait_until(lambda: has_gateway(host) and not ports(host, "br0"), "the port goes again")
        index = link(host, "br0")["ifindex"]
        host.ip("link", "add", "second0", "type", "veth", "peer", "name", "second1")
        host.ip("link", "set", "second0", "master", "br0")
    first.result().failed(999, "failed to add route")
    assert link(host, "br0")["ifindex"] == index
    assert list(ports(host, "br0")) == ["second0"]


def test_an_add_does_not_use_the_bridge_that_another_removes(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    """It looks for the bridge after the removal, and makes it anew."""
    conf = network(data_dir)
    host = runtime.host
    host.ip("link", "add", "br0", "type", "bridge")
    with locked(runtime, fcntl.LOCK_EX):
        add = Background(lambda: runtime.add("bridge", conf, container))
        wait_until(lambda: bool(leases(data_dir)), "the address is allocated, which comes first")
        assert not last_seen(lambda: ports(host, "br0"), timeout=1)
        host.ip("link", "del", "br0")
    add.result().succeeded()
    assert len(ports(host, "br0")) == 1
    ping(container, DUAL.gateways[0])


def test_adds_do_not_wait_for_each_other(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    with locked(runtime, fcntl.LOCK_SH):
        runtime.add("bridge", network(data_dir), container).succeeded()


def test_many_adds_and_dels(runtime: Runtime, netns: Callable[..., Netns], data_dir: Path) -> None:
    """Each ADD's container reaches the gateway, however often the bridge goes and comes."""
    conf = removing(data_dir)
    spaces = [netns(f"c{number}") for number in range(4)]
    wrong: list[str] = []

    def come_and_go(number: int) -> None:
        for _ in range(6):
            reply = runtime.add("bridge", conf, spaces[number], container_id=f"c{number}")
            if reply.rc:
                wrong.append(str(reply.error))
            elif not ports(runtime.host, "br0"):
                wrong.append("no bridge")
            runtime.delete("bridge", conf, spaces[number], container_id=f"c{number}").succeeded()

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not wrong, "\n".join(wrong)
    assert "br0" not in links(runtime.host)
    assert not leases(data_dir)
