"""A real systemd on a node, as its second process 1: in a PID namespace below the node's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness.wait import last_seen, wait_until

if TYPE_CHECKING:
    from .node import Node

SYSTEMD = Path("/lib/systemd/systemd")
UNITS = "/etc/systemd/system"
# Where units come from otherwise: the few of the distribution's that a test wants, and no others.
VENDOR = "/run/vendor-units"
NEEDED = (
    "basic.target",
    "multi-user.target",
    "network-pre.target",
    "shutdown.target",
    "sockets.target",
    "sysinit.target",
)

# Arguments: the node's tag, then the unit directories. The cgroup namespace shows systemd an empty
# hierarchy (version 2, which also a machine with version 1 has). Mounts made on the node later,
# such as containers' namespaces, have to reach systemd's services.
BOOT = """
set -e
mount --make-rshared /
mkdir -p /run/systemd-cgroup
mount -t cgroup2 cgroup2 /run/systemd-cgroup
mkdir -p "/run/systemd-cgroup/$1/systemd"
echo 0 >"/run/systemd-cgroup/$1/systemd/cgroup.procs"
umount /run/systemd-cgroup
exec unshare --cgroup --uts --pid --mount --propagation slave --fork --kill-child --mount-proc \
    sh -c "$2" sh "$3"
"""
BOOT_INSIDE = """
set -e
umount --lazy --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
touch /run/console
mount --bind /run/console /dev/console
export container=test SYSTEMD_UNIT_PATH="$1" SYSTEMD_GENERATOR_PATH=/nonexistent
exec /lib/systemd/systemd --system --unit=multi-user.target --show-status=yes
"""


class Systemd:
    """A booted systemd, which knows the units in UNITS (none at first) and `units`."""

    def __init__(self, node: Node, units: tuple[str, ...] = ()) -> None:
        self.node = node
        vendor = node.path(VENDOR)
        vendor.mkdir()
        for name in (*NEEDED, *units):
            shutil.copy(SYSTEMD.parent / "system" / name, vendor / name)
        # The node's /etc is an overlay: the machine's own is untouched.
        shutil.rmtree(node.path(UNITS), ignore_errors=True)
        node.path(UNITS).mkdir(parents=True)
        self.process = node.popen(
            ["sh", "-c", BOOT, "sh", node.tag, BOOT_INSIDE, f"{UNITS}:{VENDOR}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_until(
            lambda: self.state() == "running",
            "systemd boots",
            tell=lambda: f"{self.state()}\n{self.log()}",
        )

    def log(self) -> str:
        """What it said, to whom it might concern."""
        if self.process.poll() is not None:
            return str(self.process.communicate()[0])
        console = self.node.path("/run/console")
        return console.read_text() if console.exists() else ""

    def pid(self) -> int | None:
        """Of systemd itself, on the node."""
        found = self.node.processes().items()
        return next((pid for pid, line in found if line.startswith(f"{SYSTEMD} ")), None)

    def systemctl(self, *args: str, check: bool = True) -> str:
        """What it prints. It has to be seen by systemd as one of its processes."""
        pid = self.pid()
        if pid is None:
            return "not there"
        enter = ["nsenter", f"--target={pid}", "--mount", "--pid", "--"]
        done = self.node.run([*enter, "systemctl", "--no-pager", *args], check=False)
        if check and done.returncode != 0:
            status = self.systemctl("status", "--all", *args[-1:], check=False)
            pytest.fail(f"systemctl {' '.join(args)}: {done.stdout}{done.stderr}\n{status}")
        return done.stdout.strip()

    def change(self, *args: str) -> None:
        """A systemctl command, and wait for everything that follows from it."""
        self.systemctl(*args)
        jobs = last_seen(
            lambda: self.systemctl("list-jobs", "--no-legend", check=False),
            wanted=lambda jobs: "cni" not in jobs,
        )
        assert "cni" not in jobs, jobs

    def state(self) -> str:
        """Of the whole system: starting, running, degraded, …"""
        return self.systemctl("is-system-running", check=False)

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--property", key, "--value", unit)
