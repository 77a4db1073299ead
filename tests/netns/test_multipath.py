"""Several gateways of one destination: one multipath route in the container."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V4, V6, Family, Netns, Runtime, each_family, unchanged

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

DESTINATION = {4: "10.99.0.0/16", 6: "fd99::/64"}
DEFAULT = {4: "0.0.0.0/0", 6: "::/0"}
GATEWAYS = {4: ["10.22.0.8", "10.22.0.9"], 6: ["fd00:22::8", "fd00:22::9"]}

each_ipam = pytest.mark.parametrize("ipam", ["host-local", "static"])


def number(family: Family) -> int:
    return 4 if family is V4 else 6


def network(ipam: str, family: Family, data_dir: Path, routes: list[Json]) -> Json:
    given = family.host_local(data_dir) if ipam == "host-local" else family.static()
    document = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0"}
    return {**document, "ipam": {**given, "routes": routes}}


def shown(ns: Netns, dst: str) -> list[Json]:
    """The routes to a destination; a multipath route is one."""
    family = "-6" if ":" in dst else "-4"
    found: list[Json] = json.loads(ns.ip("-j", family, "route", "show", dst))
    return found


def gateways(one: Json) -> list[str]:
    return [hop["gateway"] for hop in one.get("nexthops", [one])]


@each_ipam
@each_family([V4, V6])
@pytest.mark.parametrize("default", [False, True])
def test_one_route(
    runtime: Runtime,
    container: Netns,
    data_dir: Path,
    ipam: str,
    family: Family,
    default: bool,
) -> None:
    """CHECK compares each of the hops, and DEL leaves nothing."""
    at = number(family)
    dst = DEFAULT[at] if default else DESTINATION[at]
    routes = [{"dst": dst, "gw": gateway} for gateway in GATEWAYS[at]]
    conf = network(ipam, family, data_dir, routes)
    result = runtime.add("bridge", conf, container).result
    assert result["routes"] == routes
    (made,) = shown(container, dst)
    assert gateways(made) == GATEWAYS[at]
    runtime.check("bridge", conf, container, prev_result=result).succeeded()
    container.ip("route", "replace", dst, "via", GATEWAYS[at][0])
    error = runtime.check("bridge", conf, container, prev_result=result).error
    assert f"{dst} via {GATEWAYS[at][1]}" in error["msg"]
    runtime.delete("bridge", conf, container).succeeded()


def test_what_stays_apart(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    """Another priority or table is another route."""
    dst = DESTINATION[4]
    first, second = GATEWAYS[4]
    routes = [
        {"dst": dst, "gw": first},
        {"dst": dst, "gw": second, "priority": 50},
        {"dst": dst, "gw": first, "table": 1000},
        {"dst": dst, "gw": second, "table": 1000},
    ]
    conf = network("static", V4, data_dir, routes)
    result = runtime.add("bridge", conf, container).result
    assert [(gateways(one), one.get("metric")) for one in shown(container, dst)] == [
        ([first], None),
        ([second], 50),
    ]
    assert container.ip("route", "show", "table", "1000").count("nexthop") == 2
    runtime.check("bridge", conf, container, prev_result=result).succeeded()


def test_a_gateway_out_of_reach_is_an_error(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    routes = [{"dst": DESTINATION[4], "gw": gw} for gw in ("10.22.0.8", "192.0.2.1")]
    conf = network("host-local", V4, data_dir, routes)
    with unchanged(runtime.host, container):
        reply = runtime.add("bridge", conf, container)
        reply.failed(999, "via 10.22.0.8, 10.99.0.0/16 via 192.0.2.1 dev eth0")


def test_the_same_route_twice_is_an_error(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    conf = network("static", V4, data_dir, 2 * [{"dst": DESTINATION[4], "gw": GATEWAYS[4][0]}])
    with unchanged(runtime.host, container):
        runtime.add("bridge", conf, container).failed(999, "file exists")
