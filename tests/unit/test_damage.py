"""Damaged state files are named, in every directory of state, with what to do."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.cli import conflist, main
from cni.cli.cache import Cache
from cni.cli.checkup import state
from cni.cli.checkup.finding import ERROR, OK, WARNING, Situation
from cni.cli.view import damage
from cni.cli.view.attached import Places
from cni.owner import Owner

KEY = Owner("net", "c1", "eth0").key
RESULT = json.dumps(
    {
        "kind": "cniCacheV1",
        "containerId": "c1",
        "networkName": "net",
        "ifName": "eth0",
        "config": "",
    }
)
INTENT = json.dumps(
    {
        "plugin": "bridge",
        "env": {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"},
        "config": {"name": "net"},
        "result": {},
    }
)
NOTE = json.dumps({"netns": "", "index": 2, "kind": "veth"})
LEASE = (
    '{"boot":"b","container_id":"c1","network":"net","ifname":"eth0","place":{"netns":"/n",'
    '"ifname":"eth0"},"options":{}}'
)
# Directory of state -> a name and content there with which nothing is wrong.
GOOD = {
    "cache/results": ("net-c1-eth0", RESULT),
    "state/intent": (f"{KEY}.bridge", INTENT),
    "state/devices": (f"{KEY}.macvlan", NOTE),
    "networks/net": ("10.1.2.3", "c1\r\neth0"),
    "tuned": ("c1_eth0.json", '{"mtu": 1500}'),
    "flannel": ("c1:eth0", '{"type": "bridge"}'),
}
DIRECTORIES = [*GOOD, "state/dhcp-leases"]


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        for name in DIRECTORIES:
            (root / name).mkdir(parents=True)
        for name, (file, content) in GOOD.items():
            self.write(f"{name}/{file}", content)
        (root / "networks/net/last_reserved_ip.0").write_text("10.1.2.3")
        (root / "networks/net/lock").write_text("")
        ipam = {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": str(root / "networks")}
        conf: dict[str, Any] = {
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [
                {"type": "bridge", "ipam": ipam},
                {"type": "tuning", "dataDir": str(root / "tuned")},
                {"type": "flannel", "dataDir": str(root / "flannel")},
            ],
        }
        (root / "net.d").mkdir()
        (root / "net.d" / "1.conflist").write_text(json.dumps(conf))
        net_d = str(root / "net.d")
        self.networks = conflist.all_of(net_d)
        self.places = Places(Cache(str(root / "cache")), str(root / "state"), net_d)

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def found(self) -> list[damage.Damaged]:
        own = list(damage.everywhere(self.places, self.networks))
        return [each for each in own if each.path.startswith(str(self.root))]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def old(path: Path) -> Path:
    os.utime(path, (1, 1), follow_symlinks=False)
    return path


def test_nothing_is_wrong_with_what_is_as_it_should_be(world: World) -> None:
    assert world.found() == []
    (world.root / "flannel" / "c1").symlink_to("c1:eth0")
    legacy = {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.9/24"}}
    world.write("cache/results/net-c2-eth0", json.dumps(legacy))
    world.write("networks/net/10.1.2.4", "an-old-version-wrote-the-id-alone")
    world.write(f"state/intent/{KEY}.portmap-", INTENT)
    assert world.found() == []


def _socket(path: Path) -> None:
    import socket

    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(here)


FOREIGN = [
    ("fifo", os.mkfifo),
    ("directory", lambda path: path.mkdir()),
    ("socket", _socket),
    ("link", lambda path: path.symlink_to("/etc/hostname")),
]


def test_no_advice_to_remove_what_a_link_leads_to(world: World) -> None:
    directory, other = world.root / "networks" / "net", world.root / "other"
    world.write("networks/net/passwd", "not ours")
    assert [each.mend for each in world.found()] == [f"rm {directory}/passwd"]
    directory.rename(other)
    directory.symlink_to(other)
    (found,) = world.found()
    assert found.path.endswith("/passwd")
    assert not found.mend.startswith("rm ")


@pytest.mark.parametrize("directory", GOOD)
@pytest.mark.parametrize(("kind", "make"), FOREIGN, ids=[kind for kind, _ in FOREIGN])
def test_what_is_no_file_in_the_place_of_one(
    world: World, directory: str, kind: str, make: Callable[[Path], None]
) -> None:
    name, _ = GOOD[directory]
    path = world.root / directory / name
    path.unlink()
    make(path)
    found = [each for each in world.found() if each.path == str(path)]
    assert found, (directory, kind)
    assert shlex.split(found[0].mend)[-1] == str(path)


@pytest.mark.parametrize("directory", [each for each in GOOD if each != "networks/net"])
@pytest.mark.parametrize("content", ["", "{", '{"a', "[]", "null", "x", b"\xff\0", '{"x": 1}'])
def test_what_is_torn_or_other_json(world: World, directory: str, content: str | bytes) -> None:
    if content in ('{"x": 1}', "null") and directory in ("tuned", "flannel"):
        return  # all keys of it may be missing
    name, _ = GOOD[directory]
    path = old(world.write(f"{directory}/{name}", content))
    found = world.found()
    assert [each.path for each in found] == [str(path)]
    assert found[0].mend == f"rm {shlex.quote(str(path))}"
    subprocess.run(["sh", "-c", found[0].mend], check=True)
    assert world.found() == []


@pytest.mark.parametrize("directory", GOOD)
def test_a_torn_prefix_of_a_good_file(world: World, directory: str) -> None:
    name, content = GOOD[directory]
    if directory != "networks/net":
        old(world.write(f"{directory}/{name}", content[: len(content) // 2]))
        assert "torn" in world.found()[0].what


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("state/intent/README", "not a note of this project"),
        ("state/devices/x.txt", "not a note of this project"),
        ("networks/net/notes.txt", "not a reservation"),
        ("tuned/notes.txt", "not a backup"),
        ("state/dhcp-leases/notes.txt", "not a lease"),
        (f"state/intent/{KEY}.bridge~", "left by a process that was killed"),
        (f"state/devices/{KEY}.macvlan~", "left by a process that was killed"),
        (f"tuned/.{KEY}", "left by a process that was killed"),
        ("cache/results/.12-ab.tmp", "left by a process that was killed"),
        ("flannel/:1234:c1:eth0", "left by a process that was killed"),
        ("state/dhcp-leases/aa.json.new", "left by a process that was killed"),
        ("networks/net/.new", "left by a process that was killed"),
        ("networks/net/10.1.2.9", "counts as free"),
    ],
)
def test_foreign_and_left_over_files(world: World, name: str, what: str) -> None:
    path = world.write(name, "")
    if "left" in what or "free" in what:
        assert world.found() == []  # it may be in the making
    old(path)
    found = world.found()
    assert [(each.path, what in each.what) for each in found] == [(str(path), True)]


@pytest.mark.parametrize("content", [b"two words\r\neth0", b"a\r\nb\r\nc", b"\x01\x02"])
def test_a_reservation_of_nobody(world: World, content: bytes) -> None:
    old(world.write("networks/net/10.1.2.7", content))
    assert [(each.harms, "no holder" in each.what) for each in world.found()] == [(True, True)]


@pytest.mark.parametrize("directory", GOOD)
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_can_change(world: World, directory: str, what: str) -> None:
    path = world.root / directory
    if what == "file":
        path /= GOOD[directory][0]
    before = path.stat().st_mode
    path.chmod(before | 0o002)
    (found,) = world.found()
    assert (found.path, found.what) == (str(path), "can be written by anybody")
    subprocess.run(["sh", "-c", found.mend], check=True)
    assert world.found() == []
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        (found,) = world.found()
        assert "12345" in found.what
        subprocess.run(["sh", "-c", found.mend], check=True)
        assert world.found() == []


@pytest.mark.parametrize("directory", GOOD)
def test_a_file_in_the_place_of_the_directory(world: World, directory: str) -> None:
    path = world.root / directory
    for each in path.iterdir():
        each.unlink()
    path.rmdir()
    path.write_text("")
    if directory != "networks/net":  # then the network has none
        assert [(each.path, each.harms) for each in world.found()] == [(str(path), True)]


def situation(world: World) -> Situation:
    places = world.places
    return Situation(world.networks, [], places.state_dir, places.results.directory, places.net_d)


def test_doctor_names_them(world: World) -> None:
    clean = [each.level for each in state.damaged(situation(world)) if str(world.root) in each.text]
    assert clean == []
    torn = old(world.write(f"state/intent/{KEY}.bridge", INTENT[:30]))
    lost = old(world.write("cache/results/net-c1-eth0", "{"))
    found = {each.text.partition(":")[0]: each for each in state.damaged(situation(world))}
    assert found[str(torn)].level == WARNING
    assert "cni reload" in found[str(torn)].text
    assert found[str(lost)].level == ERROR
    assert found[str(lost)].mend == f"rm {lost}"
    assert OK not in [each.level for each in found.values()]


def test_doctor_names_a_bounded_number(world: World) -> None:
    for number in range(120):
        old(world.write(f"networks/net/foreign-{number}", "x"))
    found = [each for each in state.damaged(situation(world)) if each.level != OK]
    assert len(found) == 51
    assert "70 more" in found[-1].text


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["ps"], ["state/intent", "cache/results", "state/devices", "networks/net"]),
        (["ls"], ["state/intent", "cache/results", "state/devices", "networks/net"]),
        (["ipam"], ["networks/net"]),
        (["ipam", "list"], ["networks/net"]),
        (["ipam", "list", "net"], ["networks/net"]),
    ],
)
def test_commands_name_what_they_leave_out(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: list[str],
    names: list[str],
) -> None:
    monkeypatch.setenv("NETCONFPATH", world.places.net_d)
    monkeypatch.setenv("CNI_STATE_DIR", world.places.state_dir)
    argv = [*command, "--cache-dir", world.places.results.directory, "-o", "json"]
    assert main(argv) == 0
    assert capfd.readouterr().err == ""
    paths = []
    for directory in names:
        path = world.root / directory / GOOD[directory][0]
        path.unlink()
        os.mkfifo(path)
        paths.append(path)
    assert main(argv) == 0
    captured = capfd.readouterr()
    json.loads(captured.out)
    for path in paths:
        assert f"{path}: " in captured.err
        assert f"`rm {path}`" in captured.err
