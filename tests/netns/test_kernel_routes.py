"""Routes as the kernel filters them, and CHECK in a container that has very many."""

from __future__ import annotations

import json
import shutil
import subprocess
from _socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import link, route
from cni.kernel.netlink import Netlink
from cni.protocol.address import Prefix
from tests.harness import Snapshot, difference

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime


@pytest.fixture
def routed(host: Netns) -> Netns:
    """Two links with routes in several tables, next hops through both, and unusual types."""
    host.ip_batch(
        "link add name le type veth peer name le1",
        "link add name ri type veth peer name ri1",
        *(f"link set {name} up" for name in ("le", "le1", "ri", "ri1")),
        "addr add 10.1.0.1/24 dev le",
        "addr add 10.2.0.1/24 dev ri",
        "addr add fd01::1/64 dev le nodad",
        "addr add fd02::1/64 dev ri nodad",
        "route add 10.9.0.0/16 via 10.1.0.2 table 100",
        "route add 10.9.0.0/16 via 10.2.0.2 table 1000",
        "route add default via 10.1.0.2",
        "route add default via 10.2.0.2 metric 5",
        "route add 10.8.0.0/16 nexthop via 10.1.0.3 nexthop via 10.2.0.3",
        "route add blackhole 10.7.0.0/16",
        "route add fd09::/64 via fd01::2 table 100",
        "route add fd08::/64 nexthop via fd01::3 nexthop via fd02::3",
        "route add default via fd02::2",
    )
    return host


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
@pytest.mark.parametrize("kind", [route.UNICAST, route.LOCAL])
def test_the_kernels_filter_is_ours(routed: Netns, family: int, kind: int) -> None:
    """What is asked for by table and link is what is in the list of all."""

    def compare() -> None:
        with Netlink() as sock:
            every = route.show(sock, family, table=0, kind=kind)
            assert every
            indexes = [0, 999, *(found.index for found in link.list_all(sock))]
            for table in (0, 100, 253, 254, 255, 1000, 1001):
                for index in indexes:
                    found = route.show(sock, family, index, table, kind)
                    assert found == [
                        one for one in every if table in (0, one.table) and index in (0, one.index)
                    ]

    routed.run(compare)


def test_routes_to_some_destinations(routed: Netns) -> None:
    names = ["0.0.0.0/0", "10.9.0.0/16", "10.8.0.0/16", "10.7.0.0/16", "10.8.0.0/24", "fd08::/64"]
    asked = [Prefix.parse(name) for name in [*names, "::/0", "fd01::/64", "fd77::/64"]]

    def compare() -> None:
        with Netlink() as sock:
            every = [
                one
                for family in (AF_INET, AF_INET6)
                for one in route.show(sock, family, table=0)
                if one.dst in asked
            ]
            assert len(every) == 2 + 2 + 2 + 2 + 1 + 1
            found = route.show_to(sock, asked)
            assert sorted(found, key=repr) == sorted(every, key=repr)
            assert route.show_to(sock, []) == []

    routed.run(compare)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_check_reads_all_routes_once(
    plugin: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    ranges = [[{"subnet": "10.20.0.0/24"}]]
    destinations = ["0.0.0.0/0", "10.50.0.0/16", "10.51.0.0/16", "10.52.0.0/16"]
    ipam: dict[str, Any] = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path / "d")}
    ipam["routes"] = [{"dst": dst} for dst in destinations]
    conf = {"cniVersion": "1.0.0", "name": "net", "type": plugin, "ipam": ipam}
    conf |= {"bridge": "br0", "isGateway": True} if plugin == "bridge" else {}
    conf["prevResult"] = runtime.add(plugin, conf, container).result
    container.ip_batch(
        *(f"route add 10.100.{n // 250}.{n % 250}/32 via 10.20.0.1" for n in range(5000))
    )
    before = Snapshot.take(container)
    trace = tmp_path / "trace"
    done = runtime.host.run(
        subprocess.run,
        [
            *("strace", "-f", "-qq", "-s", "1", "-o", str(trace), "-e", "trace=sendto"),
            str(runtime.bin_dir / plugin),
        ],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=runtime.environment("CHECK", container, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 0, done
    dumps = [
        line
        for line in trace.read_text().splitlines()
        if ("=RTM_GETROUTE" in line or "=0x1a " in line) and ("DUMP" in line or "0x300" in line)
    ]
    assert len(dumps) == 1, dumps
    assert not difference(before, Snapshot.take(container))
