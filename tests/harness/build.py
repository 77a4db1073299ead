"""Where the plugins under test come from."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from .netns import PATH
from .requires import in_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist" / "cni"
SELF_CONTAINED = ROOT / f"dist/cni-linux-{os.uname().machine}"
FOR_BOTH = ("tests/netns/", "tests/lab/")
GO_BIN_DIR = Path("/usr/lib/cni")


def _sources() -> Iterator[Path]:
    for name in ("cni", "launcher"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
    yield from (path for path in (ROOT / "pyproject.toml", ROOT / "Makefile") if path.exists())


def build_dist() -> Path:
    """dist/cni, built by `make build` if a source is newer; one test run at a time builds."""
    if in_lab():
        # The lab has no network; `make test-lab` has built it.
        assert DIST.exists(), "dist/cni is missing: run `make build` before the lab"
        return DIST
    DIST.parent.mkdir(exist_ok=True)
    with open(DIST.parent / ".test-build.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(path.stat().st_mtime for path in _sources())
        if not DIST.exists() or DIST.stat().st_mtime < newest:
            done = subprocess.run(
                ["make", "build"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert done.returncode == 0, f"make build failed:\n{done.stdout[-4000:]}"
            os.utime(DIST)  # also when make found nothing to do
    return DIST


def file_under_test(test: str | None = None) -> Path:
    """The file that a test is about, by default the running one: what $CNI_TEST_FILES says.

    Without it that is dist/cni; with ``self-contained`` the file with an interpreter; with ``both``
    that one, too, but for a third of the tests, which are always the same. The tests of one of them
    (tests/unit, tests/build …) are not asked. A file of ours in $CNI_TEST_BIN_DIR comes before all.
    """
    given = Path(os.environ.get("CNI_TEST_BIN_DIR", "/nonexistent"), "cni")
    if given.exists():
        return given
    if test is None:  # pytest keeps it there: the test's id, and what of it is running
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    wanted = os.environ.get("CNI_TEST_FILES", "")
    if wanted not in ("", "self-contained", "both"):
        raise ValueError(f"CNI_TEST_FILES is {wanted!r}: neither self-contained nor both")
    if (
        not wanted
        or not test.startswith(FOR_BOTH)
        or (wanted == "both" and crc32(test.encode()) % 3 == 0)
    ):
        return build_dist()
    assert SELF_CONTAINED.exists(), f"{SELF_CONTAINED} is missing: run `make build-selfcontained`"
    return SELF_CONTAINED


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Path]) -> Path:
    """What all workers of a test run use and none changes: `make(directory)`, of the first one."""
    own = factory.getbasetemp()
    common = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = common / f"{name}.made"
    with open(common / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():  # nor, perhaps, was it completed by the one that began
            directory = common / name
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            made.write_text(str(make(directory)))
    return Path(made.read_text())


def is_self_contained(bin_dir: Path) -> bool:
    """Whether our plugins there carry their interpreter: then nothing is unpacked beside them."""
    return not any(bin_dir.glob(".cni-[0-9a-f]*"))


def copy_installation(bin_dir: Path, target: Path) -> Path:
    """An installation of its own in `target`, for tests that change what is directly below it.

    The files of the trees are links: a thousand copies take half a second of the processor, and an
    install replaces files instead of writing into them.
    """

    def copy(source: str, there: str) -> None:
        (os.link if "/.cni-" in source else shutil.copy2)(source, there)

    return Path(shutil.copytree(bin_dir, target, symlinks=True, copy_function=copy))


def install_dist(bin_dir: Path, program: Path | None = None) -> Path:
    """Install the file under test, or another one, with its links, as a user does."""
    done = subprocess.run(
        [str(program or file_under_test()), "install", "--bin-dir", str(bin_dir)],
        env={"PATH": PATH},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"cni install failed:\n{done.stdout}"
    return bin_dir
