"""The programs of the image that some networks use: iptables and nft, from Debian's packages.

    python -m tools.release.programs       writes image.lock anew: what apt would install now

The packages are unpacked, not installed: there is no dpkg and no shell in the image. image.lock
pins each package by hash; apt fetches them, and .cache/packages keeps them (a file may be put there
by hand, under its hash, when Debian has a newer version and an older commit is released again).
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .components import Component, check_licences
from .source import ROOT, ReleaseError

LOCK = Path(__file__).with_name("image.lock")
CACHE = ROOT / ".cache/packages"
WANTED = ("iptables", "nftables")
# What update-alternatives links to the multi-call program when iptables is installed.
MULTI = "usr/sbin/xtables-nft-multi"
LINKS = tuple(f"ip{v}tables{verb}" for v in ("", "6") for verb in ("", "-restore", "-save"))

# Directories that are links into /usr on every present system.
_MERGED = re.compile(r"^(bin|sbin|lib|lib64)(?=/|$)")
_DROPPED = re.compile(
    r"^(usr/share/(?!doc/[^/]+/copyright$)|etc/(?!protocols$|ethertypes$)|var/"
    r"|usr/lib/(systemd|[^/]+/(gconv|audit))/)"
)
_DEB = re.compile(r"^'[^']+' (?P<name>[^_]+)_(?P<version>[^_]+)_[^_]+\.deb ", re.MULTILINE)
_ADVICE = (
    "if Debian has replaced it by a newer version, `make lock` pins that one; or put the package "
    "into .cache/packages under its hash (docs/releasing.md, When Debian has replaced a package)"
)
_HEADER = """\
# The packages of Debian in the image: architecture, name, version, SHA-256. Written by `make lock`.
"""


@dataclass(frozen=True)
class Locked:
    """One line of image.lock."""

    arch: str
    name: str
    version: str
    digest: str

    @property
    def file(self) -> Path:
        return CACHE / f"{self.digest}.deb"


def locked(arch: str) -> list[Locked]:
    """The packages for Debian's architecture `arch`."""
    lines = (line.split() for line in LOCK.read_text().splitlines() if not line.startswith("#"))
    return [each for each in (Locked(*words) for words in lines) if each.arch == arch]


def components(arch: str) -> list[Component]:
    """The packages as components of the image."""
    found = [
        Component(
            each.name,
            each.version,
            f"pkg:deb/debian/{each.name}@{_quoted(each.version)}?arch={arch}",
            ((f"{each.name}_{each.version}_{arch}.deb", each.digest),),
        )
        for each in locked(arch)
    ]
    check_licences(found)
    return found


def _quoted(version: str) -> str:
    return version.replace("+", "%2B").replace(":", "%3A")


def layer(arch: str, epoch: int) -> bytes:
    """A tar file of everything in the packages that a program needs. Raises ReleaseError."""
    packages = locked(arch)
    fetch(packages)
    members: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
    for package in packages:
        members |= {info.name: (info, data) for info, data in _members(package.file)}
    for name in ("bin", "sbin", "lib", "lib64"):
        members[name] = (_link(name, f"usr/{name}"), b"")
    for name in LINKS:
        members[f"usr/sbin/{name}"] = (_link(f"usr/sbin/{name}", os.path.basename(MULTI)), b"")
    if MULTI not in members:
        raise ReleaseError(f"the package iptables has no {MULTI}")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(members):
            info, data = members[name]
            info.mtime = epoch
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _members(package: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of a package's files that are kept, at their places in a merged /usr."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isfile() else None
            info.name = _MERGED.sub(r"usr/\1", info.name.removeprefix("./"))
            if info.name in ("", ".") or _DROPPED.match(info.name) or _is_bare(info):
                continue
            if info.issym() and info.linkname.startswith("/"):
                info.linkname = "/" + _MERGED.sub(r"usr/\1", info.linkname[1:])
            yield info, file.read() if file else b""


def _is_bare(info: tarfile.TarInfo) -> bool:
    """Whether it is a directory of which nothing is kept."""
    return info.isdir() and _DROPPED.match(f"{info.name}/_") is not None


def _link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    info.uname = info.gname = "root"
    return info


# --- apt -----------------------------------------------------------------------------------------


def fetch(packages: list[Locked]) -> None:
    """Have all packages in the cache, with the locked hashes. Raises ReleaseError."""
    missing = [each for each in packages if not each.file.exists()]
    if missing:
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            apt = Apt(Path(scratch), missing[0].arch)
            try:
                apt.run("download", *(f"{each.name}={each.version}" for each in missing))
            except ReleaseError as error:
                raise ReleaseError(
                    f"the packages of {LOCK.name} cannot be had: {error}; {_ADVICE}"
                ) from None
            for path in Path(scratch).glob("*.deb"):
                path.rename(CACHE / f"{_sha256(path)}.deb")
    for each in packages:
        if not each.file.exists() or _sha256(each.file) != each.digest:
            raise ReleaseError(
                f"{each.name} {each.version} cannot be had with the hash of {LOCK.name}: {_ADVICE}"
            )


class Apt:
    """apt-get for one architecture: the system's sources, but lists of its own in `directory`."""

    def __init__(self, directory: Path, arch: str) -> None:
        self.directory = directory
        (directory / "status").touch()
        (directory / "lists/partial").mkdir(parents=True)
        settings = {
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Sandbox::User": "root",
            "Dir::State::Lists": directory / "lists",
            "Dir::State::status": directory / "status",
            "Dir::Cache": directory,
        }
        self.options = [word for name in settings for word in ("-o", f"{name}={settings[name]}")]
        self.run("update")

    def run(self, *words: str) -> str:
        """What apt-get prints. Raises ReleaseError with its last words."""
        command = ["apt-get", "--quiet=2", *self.options, *words]
        done = subprocess.run(
            command, cwd=self.directory, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise ReleaseError(f"apt-get {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def plan(self, *packages: str) -> dict[str, str]:
        """What has to be installed for `packages` on an empty system: name -> version."""
        uris = self.run("--print-uris", "--no-install-recommends", "install", *packages)
        return {m["name"]: m["version"].replace("%3a", ":") for m in _DEB.finditer(uris)}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lock() -> None:
    """Write image.lock anew: what apt would install on an empty system."""
    lines = []
    CACHE.mkdir(parents=True, exist_ok=True)
    for arch in ("amd64", "arm64"):
        scratch = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            apt = Apt(scratch, arch)
            found = apt.plan(*WANTED)
            apt.run("download", *(f"{name}={version}" for name, version in found.items()))
            for path in sorted(scratch.glob("*.deb")):
                name, digest = path.name.partition("_")[0], _sha256(path)
                path.rename(CACHE / f"{digest}.deb")
                lines.append(f"{arch} {name} {found[name]} {digest}\n")
        finally:
            shutil.rmtree(scratch)
    LOCK.write_text(_HEADER + "".join(lines))


if __name__ == "__main__":
    try:
        lock()
    except ReleaseError as error:
        sys.exit(f"programs: {error}")
