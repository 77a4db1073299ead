"""Each kind of finding of `cni doctor`, made for real: it is found, and its command mends it."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cni.cli.doctor import _AREAS
from tests.harness import Netns
from tests.harness.build import file_under_test, install_dist
from tests.harness.combinations import every_day
from tests.harness.command_line import Node

BRIDGE = "br-net"
FOREIGN = "#!/bin/sh\nexit 0\n"


class World:
    """A node with directories of its own, one network, and a container on its bridge."""

    def __init__(self, host: Netns, container: Netns, root: Path) -> None:
        self.host, self.container = host, container
        self.node = Node(host, install_dist(root / "bin"), root)
        self.node.env["CNI_SERVER_SOCKET"] = str(root / "cni.sock")
        self.node.network("net", "10.81.0.0/24", ipMasq=True)
        self.node.ok("add", "net", container.path)

    @property
    def port(self) -> str:
        [link] = json.loads(self.host.ip("-j", "link", "show", "master", BRIDGE))
        return str(link["ifname"])

    def state_files(self) -> list[Path]:
        return list(Path(self.node.env["CNI_STATE_DIR"], "intent").iterdir())

    def found(self) -> list[dict[str, Any]]:
        argv = [str(file_under_test()), "doctor", "--json", "--cache-dir", str(self.node.cache)]
        done = self.host.exec(argv, env=self.node.env, cwd="/", check=False)
        assert done.stderr == ""
        found = json.loads(done.stdout)["findings"]
        assert not [each for each in found if "could not be looked at" in each["text"]]
        # The machine that runs the tests may be full, and the file is no installed one.
        wrong = [each for each in found if each["level"] in ("warning", "error")]
        return [each for each in wrong if "of the space" not in each["text"]]

    def run(self, command: str) -> None:
        """What a finding names, as it stands; `cni` is the release's file."""
        argv = shlex.split(command)
        if argv[0] in ("cni", "./cni"):
            argv[0] = str(file_under_test())
        if argv[1:2] == ["gc"]:
            argv += ["--cache-dir", str(self.node.cache)]
        self.host.exec(argv, env=self.node.env, cwd="/")


class Case(NamedTuple):
    """`break_it` makes it; `text` is said of it. `by_hand` is what mends it, where the command that
    is named only shows more.
    """

    check: str
    break_it: Callable[[World], Any]
    text: str
    by_hand: Callable[[World], Any] | None = None


def ip(*words: str) -> Callable[[World], Any]:
    return lambda world: world.host.ip(*(each.format(world=world) for each in words))


def attach_again(world: World) -> None:
    world.node.ok("del", "net", world.container.path)
    world.node.ok("add", "net", world.container.path)


def add_macvlan(world: World) -> None:
    world.host.ip("link", "add", "uplink", "type", "veth", "peer", "name", "far")
    world.host.ip("link", "set", "uplink", "up")
    world.node.write({"cniVersion": "1.0.0", "name": "lan",
                      "plugins": [{"type": "macvlan", "master": "uplink"}]})  # fmt: skip
    world.host.set_sysctl("net/ipv4/conf/all/rp_filter", 1)


def overwrite(name: str) -> Callable[[World], Any]:
    return lambda world: (world.node.bin_dir / name).write_text(FOREIGN)


def close_container(world: World) -> None:
    world.container.close()


def write_conf(name: str, text: str) -> Callable[[World], Any]:
    return lambda world: (world.node.net_d / name).write_text(text)


def remove_conf(name: str) -> Callable[[World], Any]:
    return lambda world: (world.node.net_d / name).unlink()


def listen_without_answer(world: World) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(world.node.env["CNI_SERVER_SOCKET"])


DROP = (
    "add table inet own; "
    "add chain inet own forwarding { type filter hook forward priority 0; policy drop; }"
)
CASES = {
    "forwarding": Case(
        "forwarding",
        lambda world: world.host.set_sysctl("net/ipv4/ip_forward", 0),
        "net.ipv4.ip_forward is 0",
    ),
    "strict reverse path": Case("reverse_path", add_macvlan, "lan may need 2"),
    "rules flushed": Case(
        "flushed", lambda world: world.host.exec(["nft", "flush", "ruleset"]), "rules are gone"
    ),
    "chain that drops": Case(
        "drops",
        lambda world: world.host.exec(["nft", DROP]),
        "inet own forwarding drops",
        lambda world: world.host.exec(["nft", "delete table inet own"]),
    ),
    "bridge down": Case("connected", ip("link", "set", BRIDGE, "down"), "br-net is down"),
    "port down": Case("connected", ip("link", "set", "{world.port}", "down"), "is down"),
    "gateway gone": Case(
        "connected",
        ip("address", "del", "10.81.0.1/24", "dev", BRIDGE),
        "lacks the address 10.81.0.1/24",
    ),
    "port blocked": Case(
        "connected",
        lambda world: world.host.exec(
            ["bridge", "link", "set", "dev", world.port, "state", "0"]
        ),
        "forwards nothing through its port",
    ),
    "bridge deleted": Case(
        "connected", ip("link", "del", BRIDGE), "the bridge br-net is gone", attach_again
    ),
    "dead container": Case("leftovers", close_container, "1 attachment of dead containers"),
    "writable by anybody": Case(
        "permissions", lambda world: world.node.net_d.chmod(0o777), "can be written by anybody"
    ),
    "torn file": Case(
        "damaged",
        lambda world: [each.write_text('{"pl') for each in world.state_files()],
        "/intent/",
    ),
    "foreign plugin": Case("files_of", overwrite("bridge"), "another project's programs"),
    "cni overwritten": Case("files_of", overwrite("cni"), "was overwritten by another program"),
    "cni missing": Case(
        "files_of", lambda world: (world.node.bin_dir / "cni").unlink(), "it is missing"
    ),
    "plugin missing": Case(
        "plugins", lambda world: (world.node.bin_dir / "bridge").unlink(), "missing in"
    ),
    "no server answers": Case(
        "server",
        listen_without_answer,
        "no server answers",
        lambda world: os.unlink(world.node.env["CNI_SERVER_SOCKET"]),
    ),
    "setting without effect": Case(
        "recording",
        lambda world: world.node.env.update(CNI_LOG_LEVEL="everything"),
        "CNI_LOG_LEVEL",
        lambda world: world.node.env.pop("CNI_LOG_LEVEL"),
    ),
    "broken configuration": Case(
        "readable", write_conf("99-x.conflist", "{"), "99-x.conflist", remove_conf("99-x.conflist")
    ),
    "not ready": Case(
        "ready",
        write_conf(
            "99-x.conflist",
            '{"cniVersion": "1.0.0", "name": "x", "plugins": '
            '[{"type": "macvlan", "master": "eth77"}]}',
        ),
        "eth77",
        remove_conf("99-x.conflist"),
    ),
}  # fmt: skip
# Of the machine, not of a network namespace: other tests give these functions its numbers.
OF_THE_MACHINE = {
    "sight": "test_doctor.py: test_what_cannot_be_looked_at_is_not_all_right",
    "version": "tests/unit/test_doctor.py",
    "links": "tests/lab: a kernel that lacks a kind of link",
    "bridge_frames": "a warning only on a node of Kubernetes",
    "conntrack": "tests/unit/test_doctor.py",
    "neighbours": "the limit is the machine's",
    "writable": "/proc/sys that is mounted read-only",
    "variants": "iptables-legacy beside iptables-nft needs modules of the machine",
    "firewalld": "test_firewalld.py",
    "room": "tests/unit/test_doctor.py",
    "programs": "the program ip is where tests are",
}


@pytest.fixture
def world(host: Netns, container: Netns, tmp_path: Path) -> World:
    return World(host, container, tmp_path)


def test_every_check_has_a_case() -> None:
    checks = {check.__name__ for area in _AREAS for check in area.CHECKS}
    assert {each.check for each in CASES.values()} | OF_THE_MACHINE.keys() == checks


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", every_day(["bridge down", "torn file", "foreign plugin"], CASES))
def test_found_and_mended(world: World, name: str) -> None:
    case = CASES[name]
    case.break_it(world)
    found = [each for each in world.found() if case.text in each["text"]]
    assert found, world.found()
    if case.by_hand is None:
        for finding in found:
            world.run(finding["mend"])
    else:
        case.by_hand(world)
    left = world.found()
    assert left == [], left
