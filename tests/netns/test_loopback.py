"""loopback in real namespaces: every row of its behaviour table, in every spec version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    CHECK_VERSIONS,
    GC_VERSIONS,
    Netns,
    Runtime,
    addresses,
    each_version,
    link,
    ping,
    unchanged,
)

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]
CONF: Json = {"cniVersion": "1.1.0", "name": "lo"}


def up(ns: Netns) -> bool:
    return "UP" in link(ns, "lo")["flags"]


def expected(version: str, sandbox: str, *, v6: bool = True) -> Json:
    """The result of a first plugin in a chain."""
    cidrs = ["127.0.0.1/8", "::1/128"][: 2 if v6 else 1]
    if version in ("0.1.0", "0.2.0"):
        families = {f"ip{key}": {"ip": cidr} for key, cidr in zip("46", cidrs, strict=False)}
        return {"cniVersion": version, **families, "dns": {}}
    old = version.startswith("0.")
    ips = [
        {"address": cidr, "interface": 0} | ({"version": key} if old else {})
        for key, cidr in zip("46", cidrs, strict=False)
    ]
    interfaces = [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": sandbox}]
    dns: Json = {"dns": {}} if old else {}
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, **dns}


@each_version()
def test_life(runtime: Runtime, container: Netns, cni_version: str) -> None:
    """ADD, CHECK, DEL; twice each."""
    conf = {**CONF, "cniVersion": cni_version}
    for _ in range(2):
        reply = runtime.add("loopback", conf, container)
        assert reply.result == expected(cni_version, container.path)
        assert up(container)
    ping(container, "127.0.0.1")
    ping(container, "::1")
    for _ in range(2):
        checked = runtime.check("loopback", conf, container, prev_result=reply.json)
        if cni_version in CHECK_VERSIONS:
            checked.succeeded()
        else:
            checked.failed(1, "config version does not allow CHECK")
    for _ in range(2):
        runtime.delete("loopback", conf, container).succeeded()
        assert not up(container)
    if cni_version in CHECK_VERSIONS:
        runtime.check("loopback", conf, container).failed(999, "loopback interface is down")


def test_no_version_means_the_oldest(runtime: Runtime, container: Netns) -> None:
    reply = runtime.add("loopback", {"name": "lo"}, container)
    assert reply.result == expected("0.1.0", container.path)


def test_the_interface_name_does_not_matter(runtime: Runtime, container: Netns) -> None:
    result = runtime.add("loopback", CONF, container, ifname="whatever").result
    assert result["interfaces"][0]["name"] == "lo"
    assert up(container)


def test_without_ipv6(runtime: Runtime, container: Netns) -> None:
    container.set_sysctl("net/ipv6/conf/lo/disable_ipv6", 1)
    result = runtime.add("loopback", CONF, container).result
    assert result == expected("1.1.0", container.path, v6=False)


def test_only_the_first_address_is_reported(runtime: Runtime, container: Netns) -> None:
    container.ip_batch("link set lo up", "address add 127.0.0.2/8 dev lo")
    result = runtime.add("loopback", CONF, container).result
    assert [ip["address"] for ip in result["ips"]] == ["127.0.0.1/8", "::1/128"]
    assert "127.0.0.2/8" in addresses(container, "lo")


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "fd00::1/64"])
def test_a_foreign_address(runtime: Runtime, container: Netns, cidr: str) -> None:
    container.ip_batch("link set lo up", f"address add {cidr} dev lo")
    ip = cidr.partition("/")[0]
    runtime.add("loopback", CONF, container).failed(
        999, f'loopback interface found with non-loopback address "{ip}"'
    )
    runtime.check("loopback", CONF, container).succeeded()
    runtime.delete("loopback", CONF, container).succeeded()
    assert not up(container)


def test_prev_result_is_passed_on(runtime: Runtime, container: Netns) -> None:
    prev = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": container.path}],
        "ips": [{"address": "10.0.0.2/24", "interface": 0, "gateway": "10.0.0.1"}],
        "dns": {"nameservers": ["10.0.0.1"]},
    }
    result = runtime.add("loopback", CONF, container, prev_result=prev).result
    assert result == {**prev, "cniVersion": "1.1.0"}
    assert up(container)


def test_prev_result_of_another_family(runtime: Runtime, container: Netns) -> None:
    prev = {"cniVersion": "0.4.0", "ips": []}
    error = runtime.add("loopback", CONF, container, prev_result=prev).failed(999)
    assert "result type supports [1.0.0 1.1.0]" in error["msg"]
    assert not up(container)
    # the other verbs do not look at it
    runtime.add("loopback", CONF, container).succeeded()
    runtime.check("loopback", CONF, container, prev_result=prev).succeeded()
    runtime.delete("loopback", CONF, container, prev_result=prev).succeeded()


@pytest.mark.parametrize("cni_version", ["0.2.0", "0.4.0", "1.1.0"])
def test_without_a_namespace(
    runtime: Runtime, container: Netns, tmp_path: Path, cni_version: str
) -> None:
    conf = {**CONF, "cniVersion": cni_version}
    gone = "/run/netns/nosuch"
    plain = tmp_path / "file"
    plain.touch()
    with unchanged(runtime.host, container, tmp_path):
        runtime.add("loopback", conf, gone).failed(999, "failed to Statfs", gone)
        runtime.add("loopback", conf, None).failed(4, "[CNI_NETNS]")
        runtime.add("loopback", conf, plain).failed(999, "unknown FS magic on", str(plain))
        runtime.add("loopback", conf, tmp_path).failed(999, str(tmp_path))
        runtime.delete("loopback", conf, gone).succeeded()
        runtime.delete("loopback", conf, None).succeeded()
        runtime.delete("loopback", conf, plain).succeeded()
        if cni_version in CHECK_VERSIONS:
            runtime.check("loopback", conf, gone).failed(999, "failed to Statfs")
            runtime.check("loopback", conf, None).failed(4, "[CNI_NETNS]")
            runtime.check("loopback", conf, plain).failed(999, "unknown FS magic on")


@each_version()
def test_gc_and_status_do_nothing(runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf = {**CONF, "cniVersion": cni_version}
    with unchanged(runtime.host, container):
        for reply in (runtime.gc("loopback", conf, []), runtime.status("loopback", conf)):
            if cni_version in GC_VERSIONS:
                reply.succeeded()
            else:
                reply.failed(1, f"config version does not allow {reply.command}")


def test_version(runtime: Runtime) -> None:
    reply = runtime.version("loopback", "not read").succeeded()
    assert reply.stdout.endswith("}\n")
    assert reply.json == {"cniVersion": "1.1.0", "supportedVersions": list(ALL_VERSIONS)}


def test_the_node_is_not_touched(runtime: Runtime, container: Netns) -> None:
    with unchanged(runtime.host):
        runtime.add("loopback", CONF, container).succeeded()
        runtime.delete("loopback", CONF, container).succeeded()
        # its own namespace is not a container's
        runtime.add("loopback", CONF, runtime.host).failed(8)
        runtime.delete("loopback", CONF, runtime.host).failed(8)
    assert up(runtime.host)
    override = {"CNI_NETNS_OVERRIDE": "1"}
    runtime.add("loopback", CONF, runtime.host, env=override).succeeded()


def test_delete_of_a_renamed_lo(runtime: Runtime, container: Netns) -> None:
    conf = {"cniVersion": "1.0.0", "name": "net"}
    runtime.add("loopback", conf, container, ifname="lo").succeeded()
    container.ip_batch("link set lo down", "link set lo name eth0", "link set eth0 up")
    runtime.delete("loopback", conf, container, ifname="lo").succeeded()
    assert "UP" not in link(container, "eth0")["flags"]
