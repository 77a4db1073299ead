"""What a package puts onto a node, and the scripts that run when it is installed and removed.

Plugins are in /opt/cni/bin, where every runtime looks without being told, as in the package
kubernetes-cni, whose place this one takes (docs/releasing.md, "Packages").
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cni.artifact import stub_of

from .archive import Entry

NAME = "cni-plugins-python"
SUMMARY = "Container networking (CNI) plugins in one self-contained file"
DESCRIPTION = """\
Drop-in replacement for the CNI reference plugins: bridge, ptp, macvlan, host-local, dhcp, portmap,
firewall and others, in /opt/cni/bin, with one executable behind them, which needs neither Python
nor other libraries. Its systemd units are installed, but not enabled."""
MAINTAINER = "cni-plugins maintainers <maintainers@cni-plugins.invalid>"
# Its place is taken: same files, and kubelet depends on it. The level is the reference's.
REPLACES = "kubernetes-cni"
REFERENCE = "1.9.1"
# What some networks use: the backend iptables, portmap's conditions, kernel modules.
SUGGESTS = ("iptables", "nftables", "kmod")

BIN_DIR = "opt/cni/bin"
MAN_DIR = "usr/share/man"
UNIT_DIR = "usr/lib/systemd/system"
DOC_DIR = f"usr/share/doc/{NAME}"
DOCUMENTS = ("README.md", "CHANGELOG.md", "NOTICE", "LICENSE")
# Services that run the file and have to be started anew with a new one, if they run.
RESTARTED = ("cni.service", "cni-dhcp.service", "cni-reload-watch.service")

_MARK = re.compile(r"^# Written by .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """The files of a package, and its scripts: shell functions of the package managers' names."""

    files: list[Entry]
    before_install: str
    after_install: str
    before_remove: str
    after_remove: str


def package(
    executable: bytes,
    plugins: tuple[str, ...],
    root: Path,
    more: Mapping[str, str],
    manual: Mapping[str, bytes],
) -> Package:
    """The package of `executable` with the texts of the repository at `root`.

    `more` are further documents, file name -> text; `manual` are manual pages,
    ``man1/cni.1.gz`` -> content.
    """
    units = _units(root)
    files = [Entry(f"{BIN_DIR}/cni", executable, 0o755)]
    files += [plugin(f"{BIN_DIR}/{name}", executable) for name in plugins]
    files.append(Entry("usr/bin/cni", link=f"../../{BIN_DIR}/cni"))
    files += [Entry(f"{UNIT_DIR}/{name}", text.encode()) for name, text in units.items()]
    files += [Entry(f"{DOC_DIR}/{name}", (root / name).read_bytes()) for name in DOCUMENTS]
    files += [Entry(f"{DOC_DIR}/{name}", text.encode()) for name, text in more.items()]
    files += [Entry(f"{MAN_DIR}/{name}", data) for name, data in manual.items()]
    names = shlex.join(sorted(units))
    restarted = shlex.join(name for name in RESTARTED if name in units)
    return Package(
        sorted(files, key=lambda entry: entry.name),
        before_install=_BEFORE_INSTALL,
        after_install=_AFTER_INSTALL.format(units=restarted),
        before_remove=_BEFORE_REMOVE.format(units=names),
        after_remove=_AFTER_REMOVE,
    )


def plugin(path: str, executable: bytes) -> Entry:
    """The file of a plugin: a small one, or a link if `executable` begins with a script."""
    stub = stub_of(executable)
    return Entry(path, link="cni") if stub is None else Entry(path, stub, 0o755)


def _units(root: Path) -> dict[str, str]:
    """The systemd units with the packages' paths, by name."""
    found = [*root.glob("cni/units/*"), *root.glob("units/*")]
    texts = {
        path.name: path.read_text() for path in found if path.suffix in (".service", ".socket")
    }
    return {
        name: _MARK.sub("", text).replace("@BIN_DIR@", f"/{BIN_DIR}")
        for name, text in sorted(texts.items())
    }


# An installation by `cni install` has backups of other plugins, which would be orphaned.
_BEFORE_INSTALL = f"""\
if [ -e /{BIN_DIR}/.cni-manifest.json ]; then
    echo '{NAME}: /{BIN_DIR} was filled by "cni install". Run "/{BIN_DIR}/cni uninstall",' >&2
    echo 'then install this package.' >&2
    exit 1
fi
"""
_AFTER_INSTALL = """\
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
    systemctl try-restart {units} || true
fi
"""
_BEFORE_REMOVE = f"""\
attachments=0
for file in /var/lib/cni/results/*; do
    [ ! -f "$file" ] || attachments=$((attachments + 1))
done
if [ "$attachments" -gt 0 ]; then
    echo "{NAME}: $attachments attachments of containers are noted in /var/lib/cni/results." >&2
    echo 'They keep working, but no runtime can delete them until there are plugins in' >&2
    echo '/{BIN_DIR} again. Remove the containers afterwards; delete no note by hand.' >&2
fi
if [ -d /run/systemd/system ]; then
    systemctl disable --now {{units}} || true
fi
"""
_AFTER_REMOVE = """\
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
"""
