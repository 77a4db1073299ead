"""What is pinned by version and hash: that Debian has replaced it is said, and how to go on.

apt-get is a stand-in: an archive that has other versions than the pinned ones.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path

import pytest

from tools.interpreter import cpython, sources
from tools.interpreter.sources import BuildError
from tools.release import programs
from tools.release.source import ReleaseError

APT = """#!/bin/sh
case "$*" in
    *indextargets*) echo "http://archive.invalid/debian/ bookworm" ;;
    *" download "*) echo "E: Version '9' for 'nftables' was not found" >&2; exit 100 ;;
    *" source "*=*:*) echo "E: Can not find version '9' of package 'zlib'" >&2; exit 100 ;;
    *" source "*)
        for package; do :; done
        [ "$package" = python3.11 ] && package=python3.11_3.11.99 || package=${package}_9.1
        printf 'Format: 3.0\\nVersion: 1:9.1-2\\n' >"$package-2.dsc"
        for kind in orig.tar.gz orig.tar.bz2; do echo "$package" >"$package.$kind"; done
        echo patches >"$package-2.debian.tar.xz" ;;
esac
"""


@pytest.fixture(autouse=True)
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs_dir = tmp_path / "bin"
    programs_dir.mkdir()
    (programs_dir / "apt-get").write_text(APT)
    (programs_dir / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs_dir}:{os.environ['PATH']}")
    monkeypatch.setattr(programs, "CACHE", tmp_path / "packages")
    monkeypatch.setattr(sources, "CACHE", tmp_path / "interpreter")


def test_a_package_of_the_image_is_gone() -> None:
    package = programs.Locked("amd64", "nftables", "9", "0" * 64)
    with pytest.raises(ReleaseError) as raised:
        programs.fetch([package])
    for words in ("Version '9' for 'nftables' was not found", "make lock", "docs/releasing.md"):
        assert words in str(raised.value)


def test_a_source_is_gone() -> None:
    with pytest.raises(BuildError) as raised:
        sources.fetch("zlib")
    text = str(raised.value)
    assert f"zlib {sources.PINS['zlib']['version']} of pins.toml" in text
    for words in ("Can not find version", "make lock", f"{sources.CACHE}/sources"):
        assert words in text


def test_files_put_there_by_hand_need_no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = sources.CACHE / "sources"
    directory.mkdir(parents=True)
    (pin,) = sources.PINS["zlib"]["files"]
    (directory / pin["name"]).write_bytes(b"from a snapshot")
    with pytest.raises(BuildError, match="has not the hash"):
        sources.fetch("zlib")
    digest = hashlib.sha256(b"from a snapshot").hexdigest()
    monkeypatch.setitem(pin, "sha256", digest)
    assert sources.fetch("zlib") == [directory / pin["name"]]


def test_make_lock_pins_the_newest_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (sources.HERE / "pins.toml").read_text()
    (tmp_path / "pins.toml").write_text(before)
    monkeypatch.setattr(sources, "HERE", tmp_path)
    sources.lock()
    text = (tmp_path / "pins.toml").read_text()
    pins = tomllib.loads(text)
    assert pins.keys() == sources.PINS.keys()
    assert pins["msgspec"] == sources.PINS["msgspec"]
    assert {pins[name]["version"] for name in ("python", "zlib", "musl")} == {"1:9.1-2"}
    names = [file["name"] for file in pins["python"]["files"]]
    assert names == ["python3.11_3.11.99.orig.tar.gz", "python3.11_3.11.99-2.debian.tar.xz"]
    (zlib,) = pins["zlib"]["files"]
    assert zlib["name"] == "zlib_9.1.orig.tar.bz2"
    assert zlib["sha256"] == hashlib.sha256(b"zlib_9.1\n").hexdigest()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in before.splitlines() if line.startswith("#")
    ]


def test_no_build_without_the_kernel_s_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """configure would find no netlink, and say nothing."""
    monkeypatch.setattr(cpython, "_HERE", (str(tmp_path),))
    with pytest.raises(BuildError, match="no linux/netlink"):
        cpython.build(cpython.Target(os.uname().machine), lambda _: None)
