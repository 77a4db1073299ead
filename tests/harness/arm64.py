"""A machine with Debian's kernel for arm64, emulated by qemu-system-aarch64.

It boots from an initial file system with that kernel's modules, busybox, ip and nft, runs one
script, and ends: ten seconds of a processor. The packages come from Debian's archive by apt, and
stay in .cache/arm64.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.release.programs import Apt

from .build import ROOT

CACHE = ROOT / ".cache/arm64"
QEMU = "qemu-system-aarch64"
# nftables and iproute2 with all that they depend on; of the kernel only its files.
_PROGRAMS = ("busybox-static", "iproute2", "nftables")
_KERNEL = "linux-image-cloud-arm64"
_DROPPED = ("boot", "etc", "usr/lib/*/gconv", "usr/lib/*/perl*", "usr/share", "var")
_MODULES = (
    *("net/802", "net/bridge", "net/llc", "net/netfilter", "net/ipv4/netfilter"),
    *("net/ipv6/netfilter", "drivers/net/veth.ko", "lib", "crypto"),
)
_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /busybox
export PATH=/sbin:/usr/sbin:/bin:/usr/bin:/busybox
ip() { /sbin/ip "$@"; } # not busybox' own
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
step() { # NAME COMMAND...
    echo "@begin $1"
    name=$1
    shift
    "$@" </dev/null 2>&1
    printf '\n@end %s %s\n' "$name" $? # whether or not the output ends with a line's end
}
. /script
poweroff -f
"""
_STEP = re.compile(r"^@begin (\S+)\n(.*?)\n@end \1 (\d+)$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """What a command has printed, on stdout and stderr, and how it ended."""

    output: str
    status: int


def run(script: str, files: dict[str, Path | str], seconds: float) -> dict[str, Step]:
    """Boot, run `script` by busybox' sh, and return its steps: `step NAME COMMAND...`.

    `files` are put into the file system: a path in it -> a file, or the target of a link. Fails
    the test if the machine has not ended after `seconds`.
    """
    kernel, base = _system()
    with tempfile.TemporaryDirectory() as scratch:
        tree, archive = Path(scratch, "tree"), Path(scratch, "initrd")
        subprocess.run(["cp", "--archive", base, tree], check=True)
        for name, content in files.items():
            place = tree / name.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copy(content, place)
            else:
                place.symlink_to(content)
        (tree / "script").write_text(script)
        (tree / "init").write_text(_INIT)
        (tree / "init").chmod(0o755)
        _archive(tree, archive)
        output = _boot(kernel, archive, seconds)
    steps = {name: Step(text, int(status)) for name, text, status in _STEP.findall(output)}
    assert "reboot: Power down" in output, f"the machine has not ended by itself:\n{output}"
    return steps


def _boot(kernel: Path, archive: Path, seconds: float) -> str:
    """What appears on the machine's serial line until it is switched off."""
    command = [QEMU, "-machine", "virt", "-cpu", "cortex-a72", "-m", "768", "-nic", "none"]
    command += ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
    command += ["-kernel", str(kernel), "-initrd", str(archive)]
    command += ["-append", "console=ttyAMA0 quiet panic=-1"]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
    )
    return done.stdout.decode(errors="replace").replace("\r\n", "\n")


def _archive(tree: Path, target: Path) -> None:
    names = "".join(f"./{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    with target.open("wb") as file:
        command = ["busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(
            command, cwd=tree, input=names.encode(), stdout=file, stderr=subprocess.PIPE, check=True
        )


# --- what it boots from --------------------------------------------------------------------------


def _system() -> tuple[Path, Path]:
    """The kernel, and the tree of the initial file system; made at the first call."""
    made = CACHE / "system"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not made.exists():
            _make_system(made)
    return made / "vmlinuz", made / "tree"


def _make_system(made: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        unpacked, tree = Path(scratch, "unpacked"), Path(scratch, "system/tree")
        _unpack(Path(scratch), unpacked)
        (kernel,) = unpacked.glob("boot/vmlinuz-*")
        release = kernel.name.partition("-")[2]
        tree.parent.mkdir()
        kernel.rename(tree.parent / "vmlinuz")
        _make_tree(unpacked, tree, release)
        # Last, and at once: what is there is complete, whatever ends this process before.
        tree.parent.rename(made)


def _unpack(scratch: Path, target: Path) -> None:
    """Fetch the packages, and unpack them into one tree."""
    apt = Apt(scratch, "arm64")
    (kernel,) = (
        name for name in apt.plan(_KERNEL) if re.fullmatch(r"linux-image-\d\S*-cloud-arm64", name)
    )
    apt.run("download", kernel, *apt.plan(*_PROGRAMS))
    for package in sorted(scratch.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, target], check=True)


def _make_tree(unpacked: Path, tree: Path, release: str) -> None:
    """The programs, and those of the kernel's modules that networks need."""
    kernel = Path("lib/modules", release, "kernel")
    for name in ("busybox", "dev", "proc", "run", "sys", "tmp", "var/lib"):
        (tree / name).mkdir(parents=True)
    for name in _MODULES:
        (tree / kernel / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["cp", "--archive", unpacked / kernel / name, tree / kernel / name], check=True
        )
    for path in (unpacked / kernel.parent).glob("modules.*"):
        shutil.copy(path, tree / kernel.parent)
    subprocess.run(["depmod", "--basedir", tree, release], check=True)
    shutil.rmtree(unpacked / "lib/modules")
    for pattern in _DROPPED:
        for path in unpacked.glob(pattern):
            shutil.rmtree(path)
    subprocess.run(["cp", "--archive", f"{unpacked}/.", tree], check=True)
    # The kernel loads modules by this program.
    if not (tree / "sbin/modprobe").exists():
        (tree / "sbin/modprobe").symlink_to("/bin/busybox")
