"""Files beside the program that another user may have put there are neither run nor waited for."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.paths import let_everybody_in

from .running import build_id, install, run, supported, uninstall

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user, too")


@pytest.fixture(params=["client", "script"])
def built(request: pytest.FixtureRequest, dist: Path, script_dist: Path) -> Path:
    return dist if request.param == "client" else script_dist


def plant(where: Path, build: str) -> Path:
    """A tree that tells when it is run."""
    tree = where / f".cni-{build}"
    (tree / "modules").mkdir(parents=True)
    (tree / "run.py").write_text(f"import os; open({str(where / 'proof')!r}, 'w'); os._exit(0)\n")
    (tree / "modules/more.py").write_text("")
    for path in (tree, tree / "modules"):
        path.chmod(0o755)
    for path in (tree / "run.py", tree / "modules/more.py"):
        path.chmod(0o644)
    return tree


def copied(built: Path, where: Path, python: str = "", *, link: bool = True) -> Path:
    """A plugin that is the file in another place, or a link to it.

    With `python` it is as if it had been installed and then copied.
    """
    data = built.read_bytes()
    if python:
        line = re.search(rb"^cni_python='[^'\n]*'[^\n]*$", data, re.MULTILINE)
        assert line
        new = f"cni_python='{python}'  # ".encode().ljust(len(line[0]), b".")
        data = data.replace(line[0], new, 1)
    file = where / ("cni" if link else "bridge")
    file.write_bytes(data)
    file.chmod(0o755)
    if link:
        (where / "bridge").symlink_to("cni")
    return where / "bridge"


UNSAFE = {
    "another user's": lambda tree: shutil.chown(tree, NOBODY),
    "writable for all": lambda tree: tree.chmod(0o777),
    "writable for a group": lambda tree: tree.chmod(0o775),
    "with another user's run.py": lambda tree: shutil.chown(tree / "run.py", NOBODY),
    "with a run.py for all": lambda tree: (tree / "run.py").chmod(0o666),
}
UNSAFE_INSIDE = {
    "with another user's module": lambda tree: shutil.chown(tree / "modules/more.py", NOBODY),
    "with a module for all": lambda tree: (tree / "modules/more.py").chmod(0o646),
    "with a directory for all": lambda tree: (tree / "modules").chmod(0o757),
}


@pytest.mark.parametrize("python", ["", sys.executable], ids=["built", "installed"])
@pytest.mark.parametrize("how", UNSAFE.values(), ids=UNSAFE)
def test_a_tree_that_others_may_change_is_not_run(
    built: Path, tmp_path: Path, how: object, python: str
) -> None:
    plugin = copied(built, tmp_path, python)
    how(plant(tmp_path, build_id(built)))  # type: ignore[operator]
    if python and built.read_bytes().startswith(b"#!") and "chmod" in how.__code__.co_names:  # type: ignore[attr-defined]
        pytest.skip("without a fork, an installed script can see the owner only")
    supported(run(plugin, env={"CNI_COMMAND": "VERSION"}))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("how", UNSAFE_INSIDE.values(), ids=UNSAFE_INSIDE)
def test_every_file_of_the_tree_counts(built: Path, tmp_path: Path, how: object) -> None:
    plugin = copied(built, tmp_path)
    how(plant(tmp_path, build_id(built)))  # type: ignore[operator]
    supported(run(plugin, env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}))
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("python", ["", sys.executable], ids=["built", "installed"])
def test_a_plugin_that_is_a_copy_looks_as_closely(built: Path, tmp_path: Path, python: str) -> None:
    for owner in (NOBODY, 0):
        where = tmp_path / str(owner)
        where.mkdir()
        plugin = copied(built, where, python, link=False)
        shutil.chown(plant(where, build_id(built)), owner)
        run(plugin, env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"})
        assert (where / "proof").exists() is (owner == 0)


@pytest.mark.parametrize("python", ["", sys.executable], ids=["built", "installed"])
def test_a_link_to_a_tree_is_not_run(built: Path, tmp_path: Path, python: str) -> None:
    plugin = copied(built, tmp_path, python)
    tree = plant(tmp_path / "other", build_id(built))
    tree.rename(tmp_path / "elsewhere")
    (tmp_path / tree.name).symlink_to("elsewhere")
    supported(run(plugin, env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}))
    assert not (tmp_path / "other/proof").exists()


@pytest.mark.parametrize("python", ["", sys.executable], ids=["built", "installed"])
def test_one_s_own_tree_is_run(built: Path, tmp_path: Path, python: str) -> None:
    """So the tests above can fail."""
    plugin = copied(built, tmp_path, python)
    plant(tmp_path, build_id(built))
    assert run(plugin, env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}).returncode == 0
    assert (tmp_path / "proof").exists()


# --- the installer --------------------------------------------------------------------------------


def test_installing_replaces_another_user_s_tree(dist: Path, tmp_path: Path) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    tree = plant(bin_dir, build_id(dist))
    shutil.chown(tree, NOBODY)
    install(dist, bin_dir)
    assert not (tree / "modules/more.py").exists()
    assert tree.stat().st_uid == 0
    supported(run(bin_dir / "bridge", env={"CNI_COMMAND": "VERSION"}))
    assert not (bin_dir / "proof").exists()


def test_another_user_s_manifest_is_not_obeyed(dist: Path, tmp_path: Path) -> None:
    bin_dir, victim = tmp_path / "bin", tmp_path / "victim"
    bin_dir.mkdir()
    victim.mkdir()
    manifest = bin_dir / ".cni-manifest.json"
    manifest.write_text(f'{{"names": [], "made": ["{victim}"]}}')
    shutil.chown(manifest, NOBODY)
    uninstall(dist, bin_dir)
    assert victim.exists()


HOLD = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("what", [".", ".cni-lock"])
def test_another_user_cannot_hold_the_lock(dist: Path, tmp_path: Path, what: str) -> None:
    """Neither by the directory, which everybody may read, nor by a file made beforehand."""
    let_everybody_in(tmp_path)
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    bin_dir.chmod(0o1777)
    if what != ".":
        (bin_dir / what).touch()
        shutil.chown(bin_dir / what, NOBODY)
    command = [sys.executable, "-I", "-S", "-c", HOLD, bin_dir / what]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, user=NOBODY, group=NOBODY)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        install(dist, bin_dir)
    finally:
        holder.kill()
        holder.communicate()
    supported(run(bin_dir / "bridge", env={"CNI_COMMAND": "VERSION"}))
    assert not (bin_dir / ".cni-lock").exists()


def test_the_lock_keeps_another_install_out(
    dist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cni import install as installer
    from cni.artifact import InstallError

    monkeypatch.setattr(installer, "LOCK_SECONDS", 0.3)
    with open(tmp_path / ".cni-lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InstallError, match="another install is at work"):
            installer.install(dist, tmp_path, ["bridge"])
    assert not (tmp_path / "cni").exists()
    installer.install(dist, tmp_path, ["bridge"])
    assert (tmp_path / "cni").exists()
    assert not (tmp_path / ".cni-lock").exists()
