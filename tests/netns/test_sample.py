"""sample: what docs/writing-a-plugin.md walks through passes results on, and changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    STATUS_VERSIONS,
    V4,
    Netns,
    Runtime,
    each_version,
    unchanged,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]


def network(version: str = "1.1.0", **keys: Any) -> Json:
    return {"cniVersion": version, "name": "demo", "anotherAwesomeArg": "yes", **keys}


def previous(version: str, container: Netns) -> Json:
    if version not in INTERFACE_VERSIONS:
        return {"cniVersion": version, "ip4": {"ip": "10.77.0.5/24"}, "dns": {}}
    ip: Json = {"address": "10.77.0.5/24", "gateway": "10.77.0.1", "interface": 0}
    old = version.startswith("0.")
    result: Json = {
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": container.path}],
        "ips": [{"version": "4", **ip} if old else ip],
    }
    return {**result, "dns": {}} if old else result


@pytest.fixture(autouse=True)
def nothing_changes(runtime: Runtime, container: Netns) -> Iterator[None]:
    with unchanged(runtime.host, container):
        yield


@each_version()
def test_life(runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf, made = network(cni_version), previous(cni_version, container)
    assert runtime.add("sample", conf, container, prev_result=made).result == made
    checked = runtime.check("sample", conf, container, prev_result=made)
    checked.failed(*((999, "not implemented") if cni_version in CHECK_VERSIONS else (1,)))
    for _ in range(2):
        runtime.delete("sample", conf, container).succeeded()
    if cni_version in STATUS_VERSIONS:
        runtime.gc("sample", conf, []).succeeded()


def test_what_a_newer_specification_added_is_passed_on(runtime: Runtime, container: Netns) -> None:
    made = previous("1.1.0", container)
    made["interfaces"][0] |= {"mtu": 1400, "socketPath": "/run/x"}
    made["routes"] = [{"dst": "10.0.0.0/8", "priority": 7, "table": 100}]
    conf = network(runtimeConfig={"sample": {"note": "x"}}, myAwesomeFlag=True)
    assert runtime.add("sample", conf, container, prev_result=made).result == made


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "must be called as chained plugin"),
        ({"prevResult": {"cniVersion": "1.1.0"}}, "got no container IPs"),
        ({"prevResult": 5}, "could not parse prevResult: "),
        ({"anotherAwesomeArg": ""}, "anotherAwesomeArg must be specified"),
        (
            {"anotherAwesomeArg": 5},
            "failed to parse network configuration: json: cannot unmarshal number into field "
            "anotherAwesomeArg",
        ),
    ],
)
def test_bad_input(runtime: Runtime, container: Netns, keys: Json, text: str) -> None:
    runtime.add("sample", network(**keys), container).failed(999, text)
    runtime.delete("sample", network(**keys), container).succeeded()


def test_status_asks_the_ipam_plugin(runtime: Runtime, data_dir: Path) -> None:
    runtime.status("sample", network(ipam=V4.static())).succeeded()
    runtime.status("sample", network()).failed(999, "no plugin name provided")
    runtime.status("sample", network(ipam={"type": "nosuch"})).failed(999, "nosuch")
    runtime.status("sample", network(anotherAwesomeArg="")).failed(999, "anotherAwesomeArg")
