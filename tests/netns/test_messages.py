"""Errors say what to do next: for mistakes that operators make, of each kind more than one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns, Runtime
from tests.harness.requires import ensure

STATIC = {"type": "static", "addresses": [{"address": "10.0.0.2/24"}]}
PREVIOUS = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}


def conf(**keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "ipam": STATIC, **keys}


@pytest.mark.parametrize("kind", ["dummy", "vlan", "ipvlan", "vrf"])
def test_a_kernel_without_that_kind_of_link(
    runtime: Runtime, host: Netns, container: Netns, kind: str
) -> None:
    try:
        ensure([kind])
    except pytest.skip.Exception:
        pass
    else:
        pytest.skip("this kernel has it")
    host.ip_batch("link add up0 type veth peer name up1", "link set up0 up")
    keys = {"master": "up0", "vlanId": 5, "vrfname": "blue"}
    previous = None
    if kind == "vrf":
        container.ip_batch("link add eth0 type veth peer name eth1", "link set eth0 up")
        previous = {**PREVIOUS, "interfaces": [{"name": "eth0", "sandbox": container.path}]}
    reply = runtime.add(kind, conf(**keys), container, prev_result=previous)
    module = {"vlan": "8021q"}.get(kind, kind)
    reply.failed(999, "operation not supported", f"`modprobe {module}`")


@pytest.mark.parametrize(("plugin", "key"), [("bridge", "bridge")])
def test_a_name_that_is_too_long(runtime: Runtime, container: Netns, plugin: str, key: str) -> None:
    error = runtime.add(plugin, conf(**{key: "a-bridge-of-many-letters"}), container).failed(999)
    assert error["details"] == "an interface's name has at most 15 bytes, and this one 24"


def test_a_macvlan_on_a_port_of_a_bridge(runtime: Runtime, host: Netns, container: Netns) -> None:
    ensure(["macvlan"])
    host.ip_batch(
        "link add up0 type veth peer name up1",
        "link add br0 type bridge",
        "link set up0 master br0 up",
    )
    reply = runtime.add("macvlan", conf(master="up0"), container)
    reply.failed(999, "device or resource busy", "the master is a port of a bridge")


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"device": "eth77"}, 'device "eth77"'),
        ({"hwaddr": "02:00:00:00:00:77"}, 'hwaddr "02:00:00:00:00:77"'),
    ],
)
def test_a_device_that_is_not_there(
    runtime: Runtime, container: Netns, keys: dict[str, str], text: str
) -> None:
    runtime.add("host-device", conf(**keys), container).failed(
        999, "failed to find host device", text
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spiderpool", "install the plugin there"),
        ("calico-ipam", "install the plugin there"),
        ("host-locl", 'did you mean "host-local"?'),
        ("hostlocal", 'did you mean "host-local"?'),
        ("statik", 'did you mean "static"?'),
    ],
)
def test_a_plugin_that_is_not_there(
    runtime: Runtime, container: Netns, name: str, text: str
) -> None:
    error = runtime.add("bridge", conf(ipam={"type": name}), container).failed(999, text)
    assert "cni install" not in error["details"]


def test_a_plugin_of_ours_that_is_not_installed(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    reply = runtime.add("bridge", conf(), container, env={"CNI_PATH": str(tmp_path)})
    reply.failed(999, 'failed to find plugin "static"', f"`cni install --bin-dir {tmp_path}`")


@pytest.mark.parametrize("command", ["add", "Add", "dEL", "check"])
def test_a_verb_in_lower_case(runtime: Runtime, container: Netns, command: str) -> None:
    reply = runtime.call(command, "bridge", conf(), container)
    reply.failed(4, f"unknown CNI_COMMAND: {command}", f"write {command.upper()}")


def test_a_verb_that_there_is_not(runtime: Runtime) -> None:
    assert "details" not in runtime.call("ATTACH", "bridge", conf()).failed(4)


def test_which_plugin_does_not_read_an_argument(runtime: Runtime, container: Netns) -> None:
    reply = runtime.add("bridge", conf(), container, args="IP=10.0.0.7")
    reply.failed(999, 'unknown args ["IP=10.0.0.7"]', "it reads MAC")


def test_firewalld_that_does_not_run(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    address = f"unix:path={tmp_path}/bus"
    reply = runtime.add(
        "firewall",
        {**conf(backend="firewalld"), "prevResult": PREVIOUS},
        container,
        env={"DBUS_SYSTEM_BUS_ADDRESS": address},
    )
    reply.failed(999, address, "no such file or directory", "start firewalld")


def test_check_of_what_was_never_added(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "subnet": "10.3.0.0/24"}
    error = runtime.check("host-local", conf(ipam=ipam), container).failed(999)
    assert "it was never attached to this network, or" in error["details"]


def test_check_says_each_difference_once(runtime: Runtime, host: Netns, container: Netns) -> None:
    network = conf(isGateway=True, ipam={**STATIC, "routes": [{"dst": "0.0.0.0/0"}]})
    result = runtime.add("bridge", network, container).result
    container.ip("link", "set", "eth0", "down")
    error = runtime.check("bridge", network, container, prev_result=result).failed(999)
    assert "eth0 is down, so it has no routes" in error["details"]
    assert error["msg"] not in error["details"]
    assert json.dumps(error).count(error["msg"]) == 1
