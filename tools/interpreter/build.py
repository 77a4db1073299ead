"""Builds the self-contained file: the plugins, and the interpreter that runs them, in one.

    build.py --arch x86_64 [--pgo] [--output PATH]

The file is the native client, behind it the image of an interpreter in which our modules and those
of the standard library are frozen code, and behind that a zip: modules for plugins of others, which
run on the node's Python (docs/writing-a-plugin.md), and what is not code. It needs a Linux kernel
and nothing else. docs/self-contained.md says what is in it.

The first build takes minutes; CPython and the libraries stay in .cache/interpreter. The same input
gives the same file, byte for byte.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import sys
from pathlib import Path

# This file is executed by its path, and `tools` is no installed package.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools import build as zipapp  # noqa: E402
from tools.interpreter import cpython, image, modules, snapshot, touched, training  # noqa: E402
from tools.interpreter.cpython import Target  # noqa: E402
from tools.interpreter.sources import CACHE, HERE, PINS, ROOT, BuildError, spent  # noqa: E402

IMAGE = zipapp.CLIENT.with_name("image.c")
MAIN = IMAGE.with_name("selfmain.py")
# Code that only the file's own interpreter runs: commands, server, daemon.
_NOT_IN_THE_ZIP = (
    *("cni/cli/", "cni/describe/", "cni/install/", "cni/server/", "cni/windows/"),
    "cni/ipam/dhcp/",
    *("click/", "run.py"),
)
# What the native client has instead of a script: there is nothing to start but the image.
_SETTINGS = "#!cni\ncni_build={build}\ncni_python=''\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", choices=sorted(image.PAGE), default=os.uname().machine)
    parser.add_argument("--pgo", action="store_true", help="with a profile: slower to build")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    output = options.output or ROOT / f"dist/cni-linux-{options.arch}"
    before = os.times()
    try:
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"lock-{options.arch}").open("w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)
            data, build = make(Target(options.arch, profile=options.pgo))
        zipapp.write_executable(output, data)
    except (BuildError, zipapp.BuildError, OSError) as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    print(f"build: {output}: build {build}, {len(data) / 1e6:.2f} MB ({spent(before)})")
    return 0


def make(target: Target) -> tuple[bytes, str]:
    """The file's bytes, and its build id. Raises BuildError."""
    pinned = PINS["msgspec"]["version"]
    if cpython.msgspec_version() != pinned:
        raise BuildError(f"pins.toml has msgspec {pinned}, tools/bundle.lock another version")
    files = payload(target)
    trained_by = zipapp.content_id(files, Path(training.__file__).read_bytes())
    built = cpython.build(target, lambda counting: training.train(counting, files), trained_by)
    build = zipapp.content_id(files, _ingredients(built))
    files["cni/_build.py"] = zipapp.build_module(build, files)
    sources = modules.Sources(files, built.source / "Lib")
    folder, frozen = CACHE / f"image-{target.arch}", modules.closure(sources)
    linked = image.link(built, frozen, folder)
    names = snapshot.names(frozen)
    recorded = snapshot.record(folder, names) if snapshot.is_made_for(target) else None
    client = zipapp.native_client(
        _SETTINGS.format(build=build).encode(), str(built.compiler), "-DCNI_IMAGE", IMAGE
    )
    page = image.PAGE[target.arch]
    known = touched.NOTHING
    if recorded:
        draft = image.assemble(client, linked, recorded, lambda _: b"", page)
        known = touched.find(draft, recorded)
    beside = _beside_the_image(files)
    data = image.assemble(
        client, linked, recorded, lambda start: zipapp.archive(beside, start), page, known
    )
    return data, build


def payload(target: Target) -> dict[str, bytes]:
    """Path in dist/cni's zip -> content, but for cni/_build.py, and for other machines' modules."""
    return {
        name: data
        for name, data in zipapp.payload().items()
        if not (name.endswith(".so") and f"-{target.arch}-" not in name)
        and not name.startswith("pyroute2")  # which only scripts of people import, from dist/cni
    }


def _beside_the_image(files: dict[str, bytes]) -> dict[str, bytes]:
    """The zip of the file: modules that plugins of others can import, and what is not code."""
    kept = {
        name: data
        for name, data in files.items()
        if not (name.endswith(".py") and name.startswith(_NOT_IN_THE_ZIP))
    }
    return {**kept, "__main__.py": MAIN.read_bytes()}


def _ingredients(built: cpython.Build) -> bytes:
    """What the build id depends on, beside the payload."""
    digest = hashlib.sha256(built.source.parent.name.encode())
    headers = zipapp.CLIENT.parent.glob("*.h")
    for path in sorted(
        [zipapp.CLIENT, IMAGE, *headers, *HERE.rglob("*.py"), *HERE.glob("src/*.*")]
    ):
        digest.update(path.read_bytes())
    return digest.digest()


if __name__ == "__main__":
    sys.exit(main())
