"""Tab completes networks, containers, pods, addresses, ports and namespaces, in every command that
takes them.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cni.cli import completion
from cni.cli.group import cli

CID = "5f" * 32
# A word of what a parameter is called -> what Tab has to offer there.
OFFERED = {
    "NETWORK": "shop",
    "CONTAINER": CID,
    "POD": "store/web-0",
    "ID/IFNAME": f"{CID}/eth0",
    "PORT": "8080/tcp",
    "NETNS": "/run/netns/blue",
    "ADDRESS": "10.81.0.2",
}
# Parameters that name what is not there yet, or what the node does not know.
NEW = {("network create", "name"), ("add", "ifname"), ("test", "beyond")}


def parameters(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command, click.Parameter]]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from parameters(command, (*path, name))
        for parameter in command.params:
            yield " ".join((*path, name)), command, parameter


def words(parameter: click.Parameter) -> list[str]:
    """What the parameter takes, by its name on the command line."""
    text = parameter.metavar or (parameter.name or "").upper()
    if isinstance(parameter.type, completion.Network) and "NETWORK" not in text:
        return ["NETWORK"]
    if isinstance(parameter, click.Option) and parameter.metavar is None:
        return ["CONTAINER"] if parameter.name == "container" else []
    return [
        word
        for word in OFFERED
        if word == text.strip("[].…")
        or word in text.replace("…", "").strip("[].").split("|")
        or (word == "POD" and "NAMESPACE/POD" in text)
    ]


CASES = [
    (name, command, parameter, word)
    for name, command, parameter in parameters(cli)
    for word in words(parameter)
    if (name, parameter.name) not in NEW
]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One network, and one pod that is attached to it, with a port and an address."""
    conf = {
        "cniVersion": "1.0.0",
        "name": "shop",
        "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local", "dataDir": str(tmp_path / "n")}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    for name in ("net.d", "cache/results", "n/shop"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "net.d/1.conflist").write_text(json.dumps(conf))
    (tmp_path / "n/shop/10.81.0.2").write_bytes(f"{CID}\r\neth0".encode())
    record = {
        "kind": "cniCacheV1",
        "containerId": CID,
        "config": base64.b64encode(json.dumps(conf).encode()).decode(),
        "ifName": "eth0",
        "networkName": "shop",
        "cniArgs": [["K8S_POD_NAMESPACE", "store"], ["K8S_POD_NAME", "web-0"]],
        "capabilityArgs": {
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        },
        "result": {"cniVersion": "1.0.0", "ips": [{"address": "10.81.0.2/24"}]},
    }
    (tmp_path / f"cache/results/shop-{CID}-eth0").write_text(json.dumps(record))
    monkeypatch.setenv("NETCONFPATH", str(tmp_path / "net.d"))
    monkeypatch.setenv("CNI_STATE_DIR", str(tmp_path / "state"))
    listed = os.listdir
    monkeypatch.setattr(
        "os.listdir", lambda path: ["blue"] if path == "/run/netns" else listed(path)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("name", "command", "parameter", "word"),
    CASES,
    ids=[f"{name} {parameter.name} {word}" for name, _, parameter, word in CASES],
)
def test_what_is_offered(
    node: Path, name: str, command: click.Command, parameter: click.Parameter, word: str
) -> None:
    context = click.Context(command, info_name=name)
    context.params = {"cache_dir": str(node / "cache")}
    wanted = OFFERED[word]
    for typed in ("", wanted[:2]):
        offered = [each.value for each in parameter.type.shell_complete(context, parameter, typed)]
        if not (typed == "" and word == "NETNS"):  # all files, too
            assert wanted in offered
    assert wanted not in [
        each.value for each in parameter.type.shell_complete(context, parameter, "zzz")
    ]


def test_all_of_them_are_found() -> None:
    found = {(name, word) for name, _, _, word in CASES}
    assert found >= {
        *(("add", word) for word in ("NETWORK", "NETNS")),
        *((verb, word) for verb in ("check", "del") for word in ("NETWORK", "NETNS", "POD")),
        *((verb, "CONTAINER") for verb in ("check", "del", "rules", "inspect", "ipam release")),
        *((verb, "NETWORK") for verb in ("gc", "status", "plan", "validate", "ps", "graph")),
        *((verb, "NETWORK") for verb in ("test", "ipam list", "ipam check", "ipam release")),
        *(("network rm", "NETWORK"), ("ports", "PORT"), ("gc", "ID/IFNAME"), ("inspect", "POD")),
        *(("ipam release", "ADDRESS"), ("ipam release", "POD"), ("inspect", "NETWORK")),
    }
