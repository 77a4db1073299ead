"""The Debian package, made by dpkg-deb."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from . import layout
from .archive import Entry
from .layout import Package
from .source import ReleaseError, Source

_WHEN = {
    "preinst": "before_install",
    "postinst": "after_install",
    "prerm": "before_remove",
    "postrm": "after_remove",
}
# dpkg calls a script for more than its name says.
_CASES = {
    "preinst": "install|upgrade",
    "postinst": "configure",
    "prerm": "remove",
    "postrm": "remove",
}


def deb(package: Package, arch: str, source: Source) -> bytes:
    """The package for Debian's architecture `arch`. Raises ReleaseError."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, target = Path(scratch, "tree"), Path(scratch, "package.deb")
        write_tree(tree, [*package.files, *_copyright(package), *_control(package, arch, source)])
        # xz in one thread: its blocks depend on the number of threads; every dpkg can read it.
        options = ["--root-owner-group", "-Zxz", "--threads-max=1", "--build"]
        run_with_epoch(["dpkg-deb", *options, str(tree), str(target)], source.epoch)
        return target.read_bytes()


def write_tree(tree: Path, entries: list[Entry]) -> None:
    """Write `entries` below the new directory `tree`."""
    tree.mkdir()
    for entry in entries:
        path = tree / entry.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.link is not None:
            path.symlink_to(entry.link)
        else:
            path.write_bytes(entry.data or b"")
            path.chmod(entry.mode)
    for path in (tree, *tree.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)  # whatever the umask was


def run_with_epoch(command: list[str], epoch: int) -> None:
    """Run a packaging tool that takes times from SOURCE_DATE_EPOCH. Raises ReleaseError."""
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    env["SOURCE_DATE_EPOCH"] = str(epoch)
    try:
        with tempfile.TemporaryDirectory() as home:  # rpm makes a database in it
            env["HOME"] = home
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    except OSError as error:
        raise ReleaseError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise ReleaseError(f"{command[0]}: {(done.stderr or done.stdout).strip()}")


def _control(package: Package, arch: str, source: Source) -> list[Entry]:
    size = sum(len(entry.data or b"") for entry in package.files) // 1024 + 1
    fields = {
        "Package": layout.NAME,
        "Version": source.package_version,
        "Architecture": arch,
        "Maintainer": layout.MAINTAINER,
        "Installed-Size": str(size),
        "Section": "net",
        "Priority": "optional",
        "Provides": f"{layout.REPLACES} (= {layout.REFERENCE})",
        "Conflicts": layout.REPLACES,
        "Replaces": layout.REPLACES,
        "Suggests": ", ".join(layout.SUGGESTS),
        "Description": "\n ".join([layout.SUMMARY, *layout.DESCRIPTION.splitlines()]),
    }
    control = "".join(f"{name}: {value}\n" for name, value in fields.items())
    sums = "".join(
        f"{hashlib.md5(entry.data).hexdigest()}  {entry.name}\n"
        for entry in [*package.files, *_copyright(package)]
        if entry.data is not None
    )
    scripts = [
        Entry(f"DEBIAN/{name}", _script(name, getattr(package, attribute)).encode(), 0o755)
        for name, attribute in _WHEN.items()
    ]
    return [
        Entry("DEBIAN/control", control.encode()),
        Entry("DEBIAN/md5sums", sums.encode()),
        *scripts,
    ]


def _script(name: str, text: str) -> str:
    body = "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())
    return f'#!/bin/sh\nset -e\ncase "$1" in\n{_CASES[name]})\n{body}    ;;\nesac\n'


def _copyright(package: Package) -> list[Entry]:
    """Debian's name for what NOTICE and the licences say."""
    texts = {entry.name.rpartition("/")[2]: entry.data or b"" for entry in package.files}
    names = ("NOTICE", "LICENSES", "LICENSE")
    data = b"\n\n".join(texts[name] for name in names if name in texts)
    return [Entry(f"{layout.DOC_DIR}/copyright", data)]
