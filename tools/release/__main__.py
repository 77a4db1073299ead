"""make release: writes the files of a release into a directory.

    python -m tools.release [--output DIR] [--self-contained MACHINE=FILE]... [--machine MACHINE]...

A self-contained file that is not given is built. Nothing is written before all is made.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from . import components, contents, layout, programs, provenance, sbom, source
from .build import ARCHITECTURES, Executables, build
from .components import Component
from .debian import deb
from .image import Archive, archive
from .rpm import rpm
from .source import ROOT, ReleaseError, Source
from .tarball import tarball

Files = dict[str, bytes]


def main() -> int:
    parser = argparse.ArgumentParser(prog="release", description="Write the files of a release.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist/release", metavar="DIR")
    parser.add_argument("--self-contained", action="append", default=[], metavar="MACHINE=FILE")
    parser.add_argument("--machine", action="append", choices=ARCHITECTURES, metavar="MACHINE")
    options = parser.parse_args()
    machines = tuple(options.machine or ARCHITECTURES)
    try:
        given = dict(_pair(each) for each in options.self_contained)
        state = source.read()
        files = release(state, build(state, given, machines))
        write(options.output, files)
    except (ReleaseError, OSError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for name, data in files.items():
        print(f"{hashlib.sha256(data).hexdigest()}  {len(data) / 1e6:7.1f} MB  {name}")
    print(f"release: {options.output} has version {state.version} of commit {state.commit[:12]}")
    return 0


def _pair(text: str) -> tuple[str, Path]:
    machine, equals, path = text.partition("=")
    if not equals or machine not in ARCHITECTURES:
        raise ReleaseError(
            f"--self-contained {text}: give MACHINE=FILE, MACHINE of {[*ARCHITECTURES]}"
        )
    return machine, Path(path)


def release(state: Source, made: Executables) -> Files:
    """All files: name -> content. Raises ReleaseError."""
    _refuse_forbidden(made)
    small, large = components.bundled(state.root), components.selfcontained(state.root)
    zipped = dict(_zip(made.zipapp))
    licences = components.licence_texts(large, zipped)
    documents = {name: (state.root / name).read_bytes() for name in layout.DOCUMENTS}
    documents["LICENSES"] = licences.encode()
    files: Files = {f"cni-{state.version}.pyz": made.zipapp}
    inside: dict[str, list[Component]] = dict.fromkeys(files, small)
    for machine in made.selfcontained:
        forms = _forms(state, machine, made, documents)
        inside |= dict.fromkeys(forms, large)
        files |= forms
    image = _image(state, made, documents)
    name = f"cni-plugins-image-v{state.version}.tar"
    arches = [ARCHITECTURES[machine] for machine in made.selfcontained]
    tools = [each for arch in arches for each in programs.components(arch)]
    files[name], inside[name] = image.data, [*large, *tools]
    files["daemonset.yaml"] = _daemonset(state.root, image.digest)
    files["LICENSES"] = licences.encode()
    bill = sbom.sbom(state, files, inside)
    files[f"cni-plugins-{state.version}.cdx.json"] = bill.encode()
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    used = [*large, *tools]
    statement = provenance.statement(state, digests, used, made.selfcontained)
    files[f"cni-plugins-{state.version}.provenance.json"] = statement.encode()
    return files | _checksums(files)


def _forms(state: Source, machine: str, made: Executables, documents: Files) -> Files:
    """The executable of one machine, alone and in archives and packages."""
    executable, plugins = made.selfcontained[machine], made.plugins
    arch = ARCHITECTURES[machine]
    more = {"LICENSES": documents["LICENSES"].decode()}
    package = layout.package(executable, plugins, state.root, more, made.manual)
    version = state.package_version
    licence = components.expression(components.selfcontained(state.root))
    return {
        f"cni-linux-{machine}": executable,
        f"cni-plugins-linux-{arch}-v{state.version}.tgz": tarball(
            executable, plugins, documents, state.epoch
        ),
        f"{layout.NAME}_{version}_{arch}.deb": deb(package, arch, state),
        f"{layout.NAME}-{version}-1.{machine}.rpm": rpm(package, machine, state, licence),
    }


def _image(state: Source, made: Executables, documents: Files) -> Archive:
    """The image: Debian's programs, which change seldom, in a layer below the executable's."""
    images = {ARCHITECTURES[machine]: data for machine, data in made.selfcontained.items()}
    layers = {arch: [programs.layer(arch, state.epoch)] for arch in images}
    return archive(state, images, documents, layers)


def _daemonset(root: Path, digest: str) -> bytes:
    """The DaemonSet for the released image; the registry's part of its name is the user's."""
    text = (root / "deploy/daemonset.yaml").read_text()
    return text.replace("@IMAGE@", f"@REPOSITORY@@{digest}").encode()


def _refuse_forbidden(made: Executables) -> None:
    """Look into what all other files are made of. Raises ReleaseError."""
    files = {"the zipapp": made.zipapp}
    files |= {f"the file for {machine}": data for machine, data in made.selfcontained.items()}
    found = [name for name, data in files.items() if contents.forbidden(name, data)]
    if found:
        raise ReleaseError(f"the GPL-2.0-only binding of nftables is in {', '.join(found)}")


def _checksums(files: Mapping[str, bytes]) -> Files:
    """SHA256SUMS for all; beside the reference's archives the files that it has beside its own."""
    made: Files = {}
    for name, data in files.items():
        if name.endswith(".tgz"):
            for kind in ("sha256", "sha512"):
                made[f"{name}.{kind}"] = f"{hashlib.new(kind, data).hexdigest()}  {name}\n".encode()
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return {**made, "SHA256SUMS": "".join(lines).encode()}


def _zip(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        return [(name, zipped.read(name)) for name in zipped.namelist()]


def write(output: Path, files: Files) -> None:
    """Replace the directory `output` by one with `files`."""
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, data in files.items():
        (partial / name).write_bytes(data)
        (partial / name).chmod(0o755 if _is_executable(name) else 0o644)
    shutil.rmtree(output, ignore_errors=True)
    # A rename at the end, so that the directory never has half a release.
    partial.rename(output)


def _is_executable(name: str) -> bool:
    return name.startswith("cni-linux-") or name.endswith(".pyz")


if __name__ == "__main__":
    sys.exit(main())
