"""DEL and GC with a configuration or request that is broken since the ADD: all the same gone.

A key of the wrong type, CNI_ARGS, a prevResult: what a plugin does not need for its DEL cannot stop
it, and the error of what it does need comes after every step.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Reply, difference
from tests.harness.requires import ensure
from tests.harness.world import CASES, World, needing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

Json = dict[str, Any]


def _ipam(conf: Json, **keys: Any) -> Json:
    return {**conf, "ipam": {**conf["ipam"], **keys}}


BROKEN: dict[str, Callable[[Json], Json]] = {
    "mtu": lambda conf: {**conf, "mtu": "big"},
    "vlan": lambda conf: {**conf, "vlan": "blue", "vlanId": "blue", "vlanTrunk": 5},
    "dns": lambda conf: {**conf, "dns": {"nameservers": "1.1.1.1"}},
    "routes": lambda conf: _ipam(conf, routes=[{"dst": "nowhere"}]),
    "addresses": lambda conf: _ipam(conf, addresses=[{"address": "10.0.0.300/8"}]),
    "sysctl": lambda conf: {**conf, "sysctl": ["net.ipv4.ip_forward"]},
    "capabilities": lambda conf: {
        **conf,
        "runtimeConfig": {"mac": 5, "portMappings": 5, "ips": 5, "bandwidth": 5},
        "args": 5,
    },
    "prevResult": lambda conf: {**conf, "prevResult": {"cniVersion": "0.2.0", "ips": 5}},
    "prevResult of another version": lambda conf: {
        **conf,
        "prevResult": {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "x"}]},
    },
    "ifname in prevResult": lambda conf: {
        **conf,
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "a\nb/%d"}, None]},
    },
}


@pytest.fixture
def world(
    request: pytest.FixtureRequest, bin_dir: Path, tmp_path: Path, _namespaces: None
) -> Iterator[World]:
    ensure(["nft"])
    made = World(bin_dir, CASES[request.node.callspec.params["name"]], tmp_path / "world")
    yield made
    made.close()


@pytest.mark.parametrize("name", [needing(name) for name in CASES])
def test_delete(name: str, world: World) -> None:
    failures = []
    for what, change in BROKEN.items():
        world.add()
        conf = change(world.conf)
        reply = world.runtime.delete(world.plugin, conf, world.container)
        if reply.rc:
            error = json.loads(reply.stdout)
            assert set(error) <= {"code", "msg", "details"}
        world.finish()
        found = left_by(world, reply)
        if found or "Traceback" in reply.stderr:
            failures.append("\n    ".join([f"{what}:", *found, str(reply)]))
            world.runtime.delete(world.plugin, world.conf, world.container).succeeded()
    assert not failures, "\n".join(failures)


def left_by(world: World, reply: Reply) -> list[str]:
    """What a DEL has left; of one that failed, but for the notes that its repetition needs.

    An IPAM plugin releases the addresses, and then has its error as the reference does, which makes
    the whole DEL fail. With the configuration in order, it then removes the notes as well.
    """
    found = difference(world.clean, world.state())
    if reply.rc == 0:
        return found
    left = [line for line in found if not line.startswith(("state.intent/", "files.flannel/"))]
    if found and not left:
        world.runtime.delete(world.plugin, world.conf, world.container).succeeded()
        return difference(world.clean, world.state())
    return left


@pytest.mark.parametrize("name", [needing(name) for name in CASES])
def test_delete_with_broken_args(name: str, world: World) -> None:
    world.add()
    reply = world.runtime.delete(world.plugin, world.conf, world.container, args="no pair; MAC=x")
    world.finish()
    assert not left_by(world, reply), str(reply)
