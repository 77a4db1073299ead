"""The RPM package, made by rpmbuild."""

from __future__ import annotations

import tempfile
from pathlib import Path

from . import layout
from .archive import directories
from .debian import run_with_epoch, write_tree
from .layout import Package
from .source import ReleaseError, Source

# The directories that only this package makes; others belong to the system's own packages.
_OWN = ("opt/cni", "opt/cni/bin", layout.DOC_DIR)

_SPEC = """\
Name: {name}
Version: {version}
Release: 1
Summary: {summary}
License: {license}
Provides: {replaces} = {reference}
Conflicts: {replaces}
{suggests}
AutoReqProv: no

%description
{description}

%install
mkdir -p %{{buildroot}}
cp -a {tree}/. %{{buildroot}}/

%pre
{before_install}
%post
{after_install}
%preun
if [ "$1" = 0 ]; then
{before_remove}fi
%postun
if [ "$1" = 0 ]; then
{after_remove}fi

%files
%defattr(-,root,root,-)
{files}
"""
# The build machine's habits (strip, compression of documents, host name, time) are switched off.
_DEFINES = {
    "_build_id_links": "none",
    "_buildhost": "localhost",
    "_binary_payload": "w6.xzdio",
    "_rpmfilename": "package.rpm",
    "__os_install_post": "%{nil}",
    "clamp_mtime_to_source_date_epoch": "1",
    "debug_package": "%{nil}",
    "use_source_date_epoch_as_buildtime": "1",
}


def rpm(package: Package, machine: str, source: Source, licence: str) -> bytes:
    """The package for `machine`, as uname calls it. Raises ReleaseError."""
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        write_tree(top / "tree", package.files)
        (top / "package.spec").write_text(_spec(package, source, licence, top / "tree"))
        defines = {**_DEFINES, "_topdir": scratch, "_rpmdir": scratch, "_tmppath": scratch}
        options = [word for name in defines for word in ("--define", f"{name} {defines[name]}")]
        options += ["--target", f"{machine}-linux", "--buildroot", f"{scratch}/root"]
        run_with_epoch(["rpmbuild", "-bb", *options, f"{scratch}/package.spec"], source.epoch)
        target = top / "package.rpm"
        if not target.exists():
            raise ReleaseError("rpmbuild wrote no package")
        return target.read_bytes()


def _spec(package: Package, source: Source, licence: str, tree: Path) -> str:
    own = [f"%dir /{each.name}" for each in directories(package.files) if each.name in _OWN]
    return _SPEC.format(
        name=layout.NAME,
        version=source.package_version,
        summary=layout.SUMMARY,
        license=licence,
        replaces=layout.REPLACES,
        reference=layout.REFERENCE,
        suggests="\n".join(f"Suggests: {name}" for name in layout.SUGGESTS),
        description=layout.DESCRIPTION,
        tree=tree,
        before_install=package.before_install,
        after_install=package.after_install,
        before_remove=package.before_remove,
        after_remove=package.after_remove,
        files="\n".join([*own, *(f"/{entry.name}" for entry in package.files)]),
    )
