"""bandwidth where the kernel has more: fq_codel below the limit, matchall and flower for u32."""

from __future__ import annotations

import re
import statistics
from errno import ENOENT
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import tc as kernel_tc
from cni.kernel import tcfilter
from cni.kernel.errors import NetlinkError
from cni.kernel.netlink import Netlink
from cni.plugins.bandwidth import shape
from cni.protocol.address import Prefix
from tests.harness import V4, Netns, Runtime, kind, links, ping, requires_kernel, tc
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = requires_kernel("tbf", "ifb", "fq_codel", "matchall")

Json = dict[str, Any]

LATENCY = 500  # ms; the queue of the limit alone


@pytest.fixture
def conflist() -> Json:
    limit = {"type": "bandwidth", "ingressRate": 10_000_000, "egressRate": 10_000_000}
    plugins = [{"type": "ptp", "ipam": V4.static()}, {**limit, "latency": LATENCY}]
    return {"cniVersion": "1.1.0", "name": "net1", "plugins": plugins}


def test_fq_codel(runtime: Runtime, container: Netns, conflist: Json) -> None:
    result = runtime.add_list(conflist, container)
    for dev in (result["interfaces"][0]["name"], result["interfaces"][2]["name"]):
        found = {one["kind"]: one for one in tc.qdiscs(runtime.host, dev)}
        assert found["tbf"]["options"] == {"rate": 1_250_000, "burst": 12_500, "lat": 500_000}
        below = found["fq_codel"]
        assert below["parent"] == "1:1"
        assert below["options"]["target"] == pytest.approx(5000, abs=2)
        assert below["options"]["memory_limit"] == 2 * (625_000 + 12_500)
    runtime.check_list(conflist, container, result)
    runtime.delete_list(conflist, container, result)
    assert not [one for one in links(runtime.host).values() if kind(one) == "ifb"]


def test_fq_codel_below_a_class(runtime: Runtime, container: Netns, conflist: Json) -> None:
    conflist["plugins"][1]["unshapedSubnets"] = ["192.0.2.0/24"]
    result = runtime.add_list(conflist, container)
    for dev in (result["interfaces"][0]["name"], result["interfaces"][2]["name"]):
        found = {one.get("parent"): one["kind"] for one in tc.qdiscs(runtime.host, dev)}
        assert found["1:30"] == "fq_codel"
        assert found["1:1"] == "bfifo"
    ping(container, "10.22.0.1")
    runtime.check_list(conflist, container, result)


def test_a_flood_does_not_delay_others(runtime: Runtime, container: Netns, conflist: Json) -> None:
    """The flood fills its own queues; a ping has another.

    Which one, is a hash of what it is, its id included: once in 250 times it is one of the flood's
    four (of 1,024), so there is a second try.
    """
    runtime.add_list(conflist, container)
    runtime.host.popen(["iperf3", "-s"], stdout=DEVNULL, stderr=DEVNULL)
    wait_until(lambda: "5201" in runtime.host.exec(["ss", "-Hltn"]).stdout, "iperf3 listens")
    flood = ["iperf3", "-c", "10.22.0.1", "-u", "-b", "6M", "-P", "4", "-l", "1400", "-t", "60"]
    child = container.popen(flood, stdout=DEVNULL, stderr=DEVNULL)
    for _ in range(2):
        shown = container.exec(["ping", "-n", "-c", "80", "-i", "0.05", "10.22.0.1"], check=False)
        assert child.poll() is None, "the flood has ended"
        answers = re.findall(r"icmp_seq=(\d+) .* time=([\d.]+) ms", shown.stdout)
        times = [
            float(ms) for number, ms in answers if int(number) > 40
        ]  # the queue is full by then
        if len(times) > 30 and statistics.median(times) < LATENCY / 4:
            return
    pytest.fail(shown.stdout)


@requires_kernel("netkit")
def test_a_pair_of_netkit(runtime: Runtime, container: Netns, conflist: Json) -> None:
    conflist["plugins"][0]["linkType"] = "netkit"
    result = runtime.add_list(conflist, container)
    ping(container, "10.22.0.1", size=1400, count=3)
    outer, ifb = (result["interfaces"][number]["name"] for number in (0, 2))
    assert kind(links(runtime.host)[outer]) == "netkit"
    for dev in (outer, ifb):
        assert tc.passed(runtime.host, dev) >= 3 * 1400, dev
    runtime.check_list(conflist, container, result)
    runtime.delete_list(conflist, container, result)


@pytest.fixture
def without_u32(monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., None] = tcfilter._add

    def add(sock: Netlink, index: int, parent: int, kind: str, *rest: Any) -> None:
        if kind == "u32":
            raise NetlinkError(ENOENT)
        real(sock, index, parent, kind, *rest)

    monkeypatch.setattr(tcfilter, "_add", add)


@pytest.mark.usefixtures("without_u32")
def test_without_u32(host: Netns, container: Netns) -> None:
    """matchall redirects, flower classifies, and CHECK knows both."""
    host.ip_batch(
        f"link add veth1 index 70 type veth peer name eth0 netns {container.name}",
        "link set veth1 up",
        "address add 192.0.2.1/24 dev veth1",
        "link add ifb7 index 71 type ifb",
        "link set ifb7 up",
    )
    container.ip_batch("link set eth0 up", "address add 192.0.2.2/24 dev eth0")
    prefixes = [Prefix.parse(text) for text in ("192.0.2.0/24", "2001:db8::/33", "0.0.0.0/0")]
    subnets = shape.Subnets(prefixes, shaped=True)
    limit = shape.Limit(1_000_000, 0, 25)

    def make() -> list[str]:
        with Netlink() as sock:
            from cni.kernel import link

            ifb = link.get(sock, 71)
            shape.apply(sock, ifb, limit, subnets, source=False)
            kernel_tc.add_ingress(sock, 70)
            tcfilter.redirect(sock, 70, kernel_tc.INGRESS_HANDLE, 71)
            [found] = tcfilter.show(sock, 70, kernel_tc.INGRESS_HANDLE)
            assert (found.kind, found.redirect) == ("matchall", 71)
            assert {one.kind for one in tcfilter.show(sock, 71, shape.ROOT)} == {"flower"}
            return shape.differences(sock, ifb, limit, subnets, source=False)

    assert host.run(make) == []
    ping(container, "192.0.2.1")
    before = tc.sent(host, "ifb7", "1:30")
    ping(container, "192.0.2.1", count=3, size=1000)
    assert tc.sent(host, "ifb7", "1:30") - before >= 3000
