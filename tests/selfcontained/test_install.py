"""`cni install` where there is nothing but a kernel: no Python, no shell, no library."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from cni.artifact import is_stub
from cni.dispatch import about
from cni.install import units
from tests.selfcontained.conftest import BIN_DIR, Chroot

if TYPE_CHECKING:
    from pathlib import Path

UNITS = "/etc/systemd/system"
NAMES = {*units.RULES, *units.DHCP, *units.SERVER}


@pytest.fixture
def downloaded(chroot: Chroot, program: Path) -> str:
    """The file as it was downloaded, and no plugin."""
    (chroot.outside(BIN_DIR) / "cni").unlink()
    shutil.copy(program, chroot.outside("/cni-linux"))
    return "/cni-linux"


@pytest.mark.parametrize("root", ["", "/image"])
def test_install_and_uninstall(chroot: Chroot, downloaded: str, root: str) -> None:
    below = ("--root", root) if root else ()
    done = chroot.run(downloaded, "install", "--json", "--units", UNITS, "--service", *below)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["python"], report["warnings"]) == ("embedded", [])
    assert report["command"] == "/usr/local/bin/cni"
    bin_dir = chroot.outside(f"{root}{BIN_DIR}")
    others = {path.name for path in bin_dir.iterdir()} - set(report["links"])
    assert others == {"cni", ".cni-manifest.json"}
    assert is_stub(bin_dir / "bridge")
    assert os.readlink(chroot.outside(f"{root}/usr/local/bin/cni")) == f"{BIN_DIR}/cni"
    written = {path.name: path.read_text() for path in chroot.outside(root + UNITS).iterdir()}
    assert written.keys() == NAMES
    assert f"ExecStart={BIN_DIR}/dhcp daemon\n" in written["cni-dhcp.service"]

    said = chroot.run(f"{root}{BIN_DIR}/bridge")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", about("bridge"))

    done = chroot.run(downloaded, "uninstall", "--json", *below)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (bin_dir / "cni").exists()
    assert list(chroot.outside(root + UNITS).iterdir()) == []
    assert not os.path.lexists(chroot.outside(f"{root}/usr/local/bin/cni"))


def test_the_installed_file_is_found_by_a_shell(chroot: Chroot, downloaded: str) -> None:
    assert chroot.run(downloaded, "install").returncode == 0
    done = chroot.run("/usr/local/bin/cni", "--version")
    assert done.returncode == 0, done.stderr
    assert "(embedded)" in done.stdout
    done = chroot.run("/usr/local/bin/cni", "uninstall")
    assert done.returncode == 0, done.stderr


def test_an_interpreter_is_not_chosen(chroot: Chroot, downloaded: str) -> None:
    done = chroot.run(downloaded, "install", "--python", "/usr/bin/python3")
    assert done.returncode == 1
    assert "carries its interpreter: leave --python away" in done.stderr
    assert not (chroot.outside(BIN_DIR) / "cni").exists()


def test_copies_one_by_one(chroot: Chroot, downloaded: str) -> None:
    """Each is its plugin, under a name with a prefix, too, without `cni` beside it."""
    for name in ("bridge", "buildkit-cni-host-local"):
        shutil.copy(chroot.outside(downloaded), chroot.outside(f"/tmp-{name}"))
        done = chroot.run(f"/tmp-{name}")
        assert done.stderr == about(name.removeprefix("buildkit-cni-"))
        done = chroot.run(f"/tmp-{name}", env={"CNI_COMMAND": "VERSION"})
        assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
