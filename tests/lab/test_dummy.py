"""dummy: an interface that holds addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    INTERFACE_VERSIONS,
    V4,
    Netns,
    Runtime,
    each_version,
    kind,
    link,
    links,
    requires_kernel,
    unchanged,
)
from tests.harness.contract import InterfaceContract

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("dummy")

Json = dict[str, Any]


class TestContract(InterfaceContract):
    plugin = "dummy"
    kind = "dummy"
    places = ()
    no_prev_result = "dummy: Required prevResult missing"
    check_routes = False


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "ipam": V4.static(), **keys}


@each_version()
def test_an_equally_named_one_on_the_host(
    runtime: Runtime, container: Netns, cni_version: str
) -> None:
    runtime.host.ip("link", "add", "eth0", "type", "dummy")
    with unchanged(runtime.host):
        conf = network(cniVersion=cni_version)
        with runtime.attached("dummy", conf, container):
            assert kind(link(container, "eth0")) == "dummy"


@each_version(ALL_VERSIONS)
@pytest.mark.parametrize("path", ["container", "missing"])
def test_ipam_is_required(
    runtime: Runtime, container: Netns, tmp_path: Path, cni_version: str, path: str
) -> None:
    conf = network(cniVersion=cni_version, ipam={})
    netns = container.path if path == "container" else tmp_path / "none"
    with unchanged(runtime.host, container):
        reply = runtime.add("dummy", conf, netns)
        reply.failed(999, "dummy interface requires an IPAM configuration")
        assert reply.json["msg"] == "dummy interface requires an IPAM configuration"


def test_verbs_without_ipam(runtime: Runtime, container: Netns) -> None:
    conf = network(ipam=None)
    reply = runtime.check("dummy", conf, container, prev_result={"cniVersion": "1.1.0"})
    reply.failed(999, "dummy interface requires an IPAM configuration")
    runtime.delete("dummy", conf, container).succeeded()
    runtime.status("dummy", conf).failed(None, "no plugin name provided")
    runtime.gc("dummy", conf, []).succeeded()


@each_version(INTERFACE_VERSIONS)
def test_dns_is_that_of_ipam(runtime: Runtime, container: Netns, cni_version: str) -> None:
    ipam = {**V4.static(), "dns": {"domain": "ipam.example"}}
    conf = network(cniVersion=cni_version, ipam=ipam, dns={"domain": "example.org"})
    assert runtime.add("dummy", conf, container).result["dns"] == {"domain": "ipam.example"}


def test_check_sees_a_link_that_is_down(runtime: Runtime, container: Netns) -> None:
    conf = network()
    result = runtime.add("dummy", conf, container).result
    container.ip("link", "set", "eth0", "down")
    reply = runtime.check("dummy", conf, container, prev_result=result)
    reply.failed(999, "Interface eth0 is down")


def test_malformed_configuration(runtime: Runtime, container: Netns) -> None:
    with unchanged(runtime.host, container):
        reply = runtime.add("dummy", network(ipam="host-local"), container)
        reply.failed(999, "failed to parse network config: json: cannot unmarshal string")
    assert "eth0" not in links(container)
