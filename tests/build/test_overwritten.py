"""Other projects copy their plugins over ours: only the one that they overwrite is theirs then."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cni.artifact import is_stub
from tests.harness.build import copy_installation

from .running import VERSION, install, need, run, supported, uninstall

THEIRS = '#!/bin/sh\necho \'{"supportedVersions": ["0.3.1"]}\'\n'
# $1 is their program, $2 the plugin's name in our directory: as install scripts of network add-ons
# do it, and then some.
WAYS = {
    "cp -f": 'cp -f "$1" "$2"',
    "cp": 'cp "$1" "$2"',
    "busybox cp -f": 'busybox cp -f "$1" "$2"',
    "cp of the directory": 'cp -rf "$(dirname "$1")/." "$(dirname "$2")/"',
    "install": 'install -m 755 "$1" "$2"',
    "cat": 'cat "$1" >"$2"',
    "dd": 'dd if="$1" of="$2" status=none',
    "mv": 'cp "$1" "$2.new" && mv -f "$2.new" "$2"',
    "tar": 'tar -C "$(dirname "$1")" -c "$(basename "$1")" | tar -C "$(dirname "$2")" -x',
    "tar --overwrite": 'tar -C "$(dirname "$1")" -c "$(basename "$1")" | '
    'tar -C "$(dirname "$2")" -x --overwrite',
    "sed -i": 'sed -i "1,\\$d" "$2"; cat "$1" >>"$2"',
    "ln -sf": 'ln -sf "$1" "$2"',
}


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bin_dir = tmp_path_factory.mktemp("installed") / "bin"
    install(dist, bin_dir)
    return bin_dir


@pytest.fixture
def bin_dir(installed: Path, tmp_path: Path) -> Path:
    """An installation of its own: a copy, since installing takes a second of the processor."""
    return copy_installation(installed, tmp_path / "bin")


def overwrite(bin_dir: Path, name: str, way: str = "cp -f") -> None:
    """Put another program under a plugin's name."""
    theirs = bin_dir.parent / "theirs" / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text(THEIRS)
    theirs.chmod(0o755)
    path = {"PATH": os.environ["PATH"]}
    done = run("/bin/sh", "-ec", WAYS[way], "sh", theirs, bin_dir / name, env=path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", WAYS)
def test_only_the_plugin_that_was_overwritten_is_theirs(bin_dir: Path, way: str) -> None:
    if way.startswith("busybox"):
        need("busybox")
    before = (bin_dir / "cni").read_bytes()
    overwrite(bin_dir, "flannel", way)
    assert (bin_dir / "cni").read_bytes() == before
    assert supported(run(bin_dir / "flannel", env=VERSION)) == ["0.3.1"]
    for name in ("bridge", "portmap", "loopback"):
        assert "1.1.0" in supported(run(bin_dir / name, env=VERSION))


def test_an_install_takes_it_back_and_an_uninstall_gives_it_up(dist: Path, bin_dir: Path) -> None:
    overwrite(bin_dir, "flannel")
    report = install(dist, bin_dir)
    assert (report["kept"], report["links"]) == ({"flannel": ".flannel.before-cni"}, ["flannel"])
    assert "1.1.0" in supported(run(bin_dir / "flannel", env=VERSION))
    overwrite(bin_dir, "portmap")
    uninstall(dist, bin_dir)
    assert {path.name for path in bin_dir.iterdir()} == {"flannel", "portmap"}
    assert supported(run(bin_dir / "flannel", env=VERSION)) == ["0.3.1"]


def test_an_installation_of_links_becomes_one_of_files(dist: Path, tmp_path: Path) -> None:
    """Earlier versions made links."""
    bin_dir = tmp_path / "bin"
    names = install(dist, bin_dir)["links"]
    for name in names:
        (bin_dir / name).unlink()
        (bin_dir / name).symlink_to("cni")
    said = str(files(dist, bin_dir))
    assert [name for name in names if name in said] == names
    report = install(dist, bin_dir)
    assert (report["links"], report["kept"]) == (names, {})
    assert all(is_stub(bin_dir / name) for name in names)
    assert files(dist, bin_dir) == []
    uninstall(dist, bin_dir)
    assert not bin_dir.exists()


# --- what a small file does when `cni` is not the one that it belongs to --------------------------


def test_cni_of_another_build_goes_on(bin_dir: Path, other_dist: Path) -> None:
    """In the middle of an upgrade, and after one by hand; with no tree of either build."""
    shutil.copy(other_dist, bin_dir / "cni")
    for tree in bin_dir.glob(".cni-[0-9a-f]*"):
        shutil.rmtree(tree)
    assert "1.1.0" in supported(run(bin_dir / "bridge", env=VERSION | {"PATH": "/usr/bin:/bin"}))


def missing(program: Path) -> None:
    program.unlink()


def foreign(program: Path) -> None:
    program.write_text(THEIRS)


def small(program: Path) -> None:
    shutil.copy(program.with_name("bridge"), program)


def others_may_write(program: Path) -> None:
    program.chmod(0o777)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (missing, "it is missing"),
        (foreign, "another program"),
        (small, "another program"),
        (others_may_write, "others than root may write"),
    ],
)
def test_says_what_is_wrong_with_cni(bin_dir: Path, harm: Any, said: str) -> None:
    """There is no tree either, so it is needed. It ends; it does not run what it does not know."""
    for tree in bin_dir.glob(".cni-[0-9a-f]*"):
        shutil.rmtree(tree)
    harm(bin_dir / "cni")
    done = run(bin_dir / "bridge", env={"CNI_COMMAND": "ADD"})
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert "the file cni, to which this plugin belongs, cannot be used" in found["msg"]
    assert said in found["details"]
    assert "install the release again" in found["details"]
    done = run(bin_dir / "bridge")
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


# --- what `cni doctor` says ----------------------------------------------------------------------


def files(dist: Path, bin_dir: Path) -> list[dict[str, Any]]:
    """What it says of the installed files; of a node without networks."""
    env = {"CNI_PATH": str(bin_dir), "NETCONFPATH": str(bin_dir.parent / "net.d")}
    done = run(dist, "doctor", "--json", env=env | {"PATH": os.environ["PATH"]})
    found = json.loads(done.stdout)["findings"]
    return [each for each in found if str(bin_dir) in each["text"] and each["level"] != "ok"]


def test_doctor_is_content_with_an_installation(dist: Path, bin_dir: Path) -> None:
    assert files(dist, bin_dir) == []


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (missing, "it is missing"),
        (foreign, "overwritten by another program"),
        (small, "overwritten by the small file of a plugin"),
        (lambda program: program.chmod(0o644), "not executable"),
    ],
)
def test_doctor_sees_that_no_plugin_can_start(
    dist: Path, bin_dir: Path, harm: Any, said: str
) -> None:
    harm(bin_dir / "cni")
    (found,) = files(dist, bin_dir)
    assert (found["level"], said in found["text"]) == ("error", True), found
    assert found["mend"] == f"./cni install --bin-dir {bin_dir}"
    install(dist, bin_dir)
    assert files(dist, bin_dir) == []


def test_doctor_sees_another_build(dist: Path, other_dist: Path, bin_dir: Path) -> None:
    shutil.copy(other_dist, bin_dir / "cni")
    (found,) = files(dist, bin_dir)
    assert (found["level"], "not what was installed" in found["text"]) == ("warning", True)
    install(dist, bin_dir)
    assert files(dist, bin_dir) == []


@pytest.mark.parametrize(("used", "level"), [(False, "note"), (True, "warning")])
def test_doctor_names_what_is_another_project_s(
    dist: Path, bin_dir: Path, used: bool, level: str
) -> None:
    """It matters where a network of the node uses it."""
    if used:
        conf = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "flannel"}]}
        (bin_dir.parent / "net.d").mkdir()
        (bin_dir.parent / "net.d/1.conflist").write_text(json.dumps(conf))
    overwrite(bin_dir, "flannel")
    (found,) = files(dist, bin_dir)
    assert (found["level"], found["text"]) == (
        level,
        f"another project's programs in {bin_dir}: flannel",
    )
    install(dist, bin_dir)
    assert files(dist, bin_dir) == []
