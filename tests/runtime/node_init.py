"""Process 1 of the node that the runtime tests use; see node.py.

Runs in new mount, PID, IPC and network namespaces: gives the node private versions of all
directories that runtimes and plugins write to, says "ready", and then only collects orphans. It
ends when its standard input does, so that a killed test run takes the node with it; the kernel then
ends every process of the node.

Argument: a directory for the node's files.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

# Where the writes of runtimes and plugins go. An overlay keeps what the machine has there (and the
# machine never sees what is written on top).
OVERLAID = ("/etc", "/opt", "/var/lib")
# State of other runs, which must not be on a fresh node.
EMPTIED = ("/var/lib/cni", "/var/lib/containers", "/var/lib/containerd", "/etc/cni", "/opt/cni")
# Other places where podman or containerd of some distribution look for plugins.
OTHER_BIN_DIRS = (
    "/usr/lib/cni",
    "/usr/libexec/cni",
    "/usr/local/lib/cni",
    "/usr/local/libexec/cni",
)


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


def forget_foreign_namespaces() -> None:
    """Drop the copies of named namespaces: with them the node would keep other tests' alive."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        fields = line.split()
        if fields[fields.index("-") + 1] == "nsfs":
            # Failure: its maker has just removed it, and with it our copy.
            subprocess.run(["umount", "--lazy", fields[4]], capture_output=True)


def set_up(base: Path) -> None:
    mount("-t", "proc", "proc", "/proc")
    forget_foreign_namespaces()

    # /sys shows the network namespace it was mounted in; the cgroups have to come along.
    cgroups = base / "cgroups"
    cgroups.mkdir()
    mount("--rbind", "/sys/fs/cgroup", str(cgroups))
    mount("-t", "sysfs", "sysfs", "/sys")
    mount("--rbind", str(cgroups), "/sys/fs/cgroup")
    subprocess.run(["umount", "--lazy", "--recursive", str(cgroups)], check=True)

    disk = base / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(disk))
    for target in OVERLAID:
        layer = disk / target.strip("/").replace("/", "-")
        for part in ("upper", "work"):
            (layer / part).mkdir(parents=True)
        options = f"lowerdir={target},upperdir={layer / 'upper'},workdir={layer / 'work'}"
        mount("-t", "overlay", "-o", options, "overlay", target)
    for directory in EMPTIED:
        shutil.rmtree(directory, ignore_errors=True)
    for directory in ("/etc/cni/net.d", "/opt/cni/bin", "/var/lib/cni"):
        os.makedirs(directory)

    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    os.mkdir("/run/lock")
    (disk / "tmp").mkdir(mode=0o1777)
    mount("--bind", str(disk / "tmp"), "/var/tmp")
    resolv = Path("/etc/resolv.conf")
    resolv.unlink(missing_ok=True)
    resolv.write_text("nameserver 198.51.100.2\n")

    for directory in OTHER_BIN_DIRS:
        if os.path.isdir(directory) and not os.path.islink(directory):
            mount("-t", "tmpfs", "-o", "ro", "tmpfs", directory)


def collect_orphans() -> None:
    """Reap what is re-parented to process 1, until standard input ends."""
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if 0 in ready and not os.read(0, 1):
            return
        if awake in ready:
            os.read(awake, 4096)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    set_up(Path(sys.argv[1]))
    collect_orphans()
