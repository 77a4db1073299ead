"""Plugins that were copied: one by one, without the file that they belong to, without a tree.

The small files of an installation (launcher/beside.h) need the file `cni` beside them, and say so.

tests/netns/test_plugin_names.py has copies connect containers, and delegate to each other.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.artifact import is_stub
from cni.dispatch import about
from tests.harness.build import copy_installation

from .running import VERSION, build_id, install, run, supported, uninstall

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("bridge", "host-local", "static")


@pytest.fixture(params=["client", "script"])
def built(request: pytest.FixtureRequest, dist: Path, script_dist: Path) -> Path:
    return dist if request.param == "client" else script_dist


@pytest.fixture(params=["unpacked", "installed"])
def source(
    request: pytest.FixtureRequest,
    built: Path,
    dist: Path,
    installed: Path,
    installed_script: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A directory as from the tarball (the file and links to it), or as `cni install` makes it."""
    place = tmp_path_factory.mktemp("source") / "bin"
    if request.param == "installed":
        made = installed if built == dist else installed_script
        return copy_installation(made, place)
    place.mkdir()
    shutil.copy(built, place / "cni")
    for name in NAMES:
        (place / name).symlink_to("cni")
    return place


def sh(script: str) -> Callable[[Path, Path], None]:
    """A way to copy: a shell script, whose $1 is the source and $2 the target."""

    def copy(source: Path, target: Path) -> None:
        done = run("/bin/sh", "-ec", script, "sh", source, target, env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, done.stderr

    return copy


def hard_links(source: Path, target: Path) -> None:
    shutil.copy(source / "cni", target / NAMES[0])
    for name in NAMES[1:]:
        os.link(target / NAMES[0], target / name)


WAYS = {
    "one by one": sh('for n in bridge host-local static; do cp "$1/$n" "$2/"; done'),
    "by install(1)": sh('for n in bridge host-local static; do install "$1/$n" "$2/$n"; done'),
    "the directory's content": sh('cp -r "$1"/* "$2/"'),
    "all of the directory": sh('cp -a "$1/." "$2/"'),
    "following links": sh('cp -rL "$1"/* "$2/"'),
    "moved": sh('mv "$1"/* "$2/"'),
    "moved with cni last": sh('mv "$1/bridge" "$1/host-local" "$1/static" "$1/cni" "$2/"'),
    "the link itself, and cni": sh(
        'for n in cni bridge host-local static; do cp -P "$1/$n" "$2/"; done'
    ),
    "tar that follows links": sh('tar -C "$1" -hcf - bridge host-local static | tar -C "$2" -xf -'),
    "hard links": hard_links,
}


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def target(request: pytest.FixtureRequest, source: Path, tmp_path: Path) -> Path:
    place = tmp_path / "bin"
    place.mkdir()
    request.param(source, place)
    if is_stub(place / "bridge") and not (place / "cni").exists():
        found = json.loads(run(place / "bridge", env={"CNI_COMMAND": "ADD"}).stdout)
        assert "the file cni, to which this plugin belongs" in found["msg"]
        assert "it is missing beside this file: copy it there, too" in found["details"]
        shutil.copy(source / "cni", place)
    shutil.rmtree(source)  # nothing may depend on it any more
    return place


def test_each_is_the_plugin_of_its_name(target: Path, elsewhere: str, tmp_path: Path) -> None:
    for name in NAMES:
        assert "1.1.0" in supported(run(target / name, env=VERSION))
        said = run(target / name)
        assert (said.returncode, said.stdout, said.stderr) == (0, "", about(name))
    ipam = {"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": str(tmp_path / "data")}
    conf = {"cniVersion": "1.1.0", "name": "net", "ipam": ipam}
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": elsewhere,
        "CNI_PATH": str(target),
        "CNI_STATE_DIR": str(tmp_path / "state"),
    }
    done = run(target / "host-local", env=env, stdin=json.dumps(conf))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ips"][0]["address"] == "10.1.2.2/24"
    done = run(target / "host-local", env=env | {"CNI_COMMAND": "DEL"}, stdin=json.dumps(conf))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_installing_over_copies(dist: Path, other_dist: Path, tmp_path: Path) -> None:
    """They are plugins of this project, so they are replaced, not kept for `uninstall`."""
    for name, build in (("bridge", dist), ("host-local", other_dist), ("static", dist)):
        shutil.copy(build, tmp_path / name)
    (tmp_path / "ptp").write_text("#!/bin/sh\n# cni_build=0123456789ab\n")
    report = install(dist, tmp_path)
    assert report["kept"] == {"ptp": ".ptp.before-cni"}
    assert all(is_stub(tmp_path / name) for name in NAMES)
    assert uninstall(dist, tmp_path)["restored"] == ["ptp"]
    assert os.listdir(tmp_path) == ["ptp"]


def test_a_copy_installs_itself(built: Path, tmp_path: Path) -> None:
    """Where a tarball was unpacked without links: the file `cni` is one of the copies."""
    for name in ("cni", *NAMES):
        shutil.copy(built, tmp_path / name)
    report = install(tmp_path / "cni", tmp_path)
    assert report["kept"] == {}
    assert (tmp_path / f".cni-{build_id(built)}").is_dir()
    assert "1.1.0" in supported(run(tmp_path / "bridge", env=VERSION))
