"""A root directory with nothing in it but the self-contained file, /proc, /sys and namespaces."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni import dispatch
from tests.harness import Netns, Runtime
from tests.harness.build import ROOT
from tests.harness.netns import BARE_ENV, NETNS_DIR
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

BIN_DIR = "/opt/cni/bin"
_MOUNT = """
set -e
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount --rbind {netns} "$1{netns}"
: > "$2"
exec sleep infinity
"""


@pytest.fixture(scope="session")
def program() -> Path:
    """The self-contained file; CNI_TEST_BINARY names another one."""
    named = os.environ.get("CNI_TEST_BINARY")
    path = Path(named) if named else ROOT / f"dist/cni-linux-{os.uname().machine}"
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make build-selfcontained`")
    return path.resolve()


class Chroot:
    """A root directory, and a mount namespace in which /proc and /sys are mounted there.

    Programs in it share that mount namespace, as those of a node do.
    """

    def __init__(self, root: Path, host: Netns) -> None:
        self.root, self.host = root, host
        for name in ("proc", "sys", str(NETNS_DIR), BIN_DIR, "run/cni", "var/lib/cni"):
            self.outside(name).mkdir(parents=True, exist_ok=True)
        # A path of ours leads to the same file in there.
        self.outside(str(root.parent)).mkdir(parents=True)
        self.outside(str(root)).symlink_to("/")
        ready = root.parent / "ready"
        script = _MOUNT.format(netns=NETNS_DIR)
        unshare = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", script, "sh"]
        self._holder = host.popen([*unshare, str(root), str(ready)])
        wait_until(ready.exists, "the root directory's mounts", process=self._holder)

    def outside(self, path: str) -> Path:
        """Where the path of a file in here is outside."""
        return self.root / path.lstrip("/")

    @property
    def prefix(self) -> list[str]:
        """What comes before a command's words to run it in here."""
        mounts = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        return ["nsenter", mounts, "chroot", str(self.root)]

    def run(
        self, *words: str, env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the root directory in the node's network namespace."""
        variables = {**BARE_ENV, **(env or {})}
        return self.host.exec([*self.prefix, *words], env=variables, stdin=stdin, check=False)

    def scripts(self, outside: Path, names: Sequence[str]) -> Path:
        """A directory `outside` with a script for each of `names` that runs it in here."""
        outside.mkdir()
        for name in names:
            words = " ".join([*self.prefix, f"{BIN_DIR}/{name}"])
            (outside / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
            (outside / name).chmod(0o755)
        return outside


@pytest.fixture
def chroot(tmp_path: Path, host: Netns, program: Path) -> Chroot:
    """The root directory, with the file at /opt/cni/bin/cni."""
    root = tmp_path / "root"
    made = Chroot(root, host)
    target = made.outside(BIN_DIR) / "cni"
    shutil.copy(program, target)
    return made


@pytest.fixture
def installed(chroot: Chroot, tmp_path: Path) -> Runtime:
    """Plugins that run in the root directory, each by a link."""
    for name in dispatch.TABLE:
        (chroot.outside(BIN_DIR) / name).symlink_to("cni")
    scripts = chroot.scripts(tmp_path / "bin", ["cni", *dispatch.TABLE])
    state = {"CNI_STATE_DIR": "/run/cni/intent", "CNI_SERVER": "off"}
    return Runtime(scripts, chroot.host, cni_path=BIN_DIR, env=state)
