"""A file that is cut short or changed says so: no signal, no traceback."""

from __future__ import annotations

import json
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness.netns import BARE_ENV

if TYPE_CHECKING:
    from pathlib import Path

# struct image of launcher/image.c
DESCRIPTOR = struct.Struct("<16sQQQII")
MAGIC = b"cni-image\0\0\0\0\0\0\0"
REQUEST = {**BARE_ENV, "CNI_COMMAND": "VERSION", "CNI_SERVER": "off"}


def parts(data: bytes) -> tuple[int, int, int]:
    """Where the image begins, where what is behind it does, and where the file ends."""
    _, start, size, end, _, _ = DESCRIPTOR.unpack_from(data, data.index(MAGIC))
    return start, start + size, end


def snapshot_parts(data: bytes) -> list[tuple[int, int, int, int]]:
    """Address, size, bytes in the file, and where those are, of each part of the snapshot."""
    place = data.index(MAGIC) + DESCRIPTOR.size
    _, _, count = struct.unpack_from("<QII", data, place)
    return list(struct.iter_unpack("<QQQQ", data[place + 16 : place + 16 + 32 * count]))


@pytest.fixture
def copy(program: Path, tmp_path: Path) -> Path:
    """A copy of the file, called as a plugin."""
    path = tmp_path / "bridge"
    path.write_bytes(program.read_bytes())
    path.chmod(0o755)
    return path


def run(
    program: Path, *words: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words],
        env=env or BARE_ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )


def assert_says_so(program: Path, request: dict[str, str] = REQUEST) -> None:
    """For a runtime in JSON, for a person in words."""
    done = run(program, env=request)
    assert done.returncode == 1, done
    error = json.loads(done.stdout)
    assert error["code"] == 999
    assert "damaged" in error["msg"]
    assert error["details"]
    assert done.stderr == ""
    done = run(program, "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert "damaged" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kept", ["client", "image", "all but a byte"])
def test_a_file_that_is_cut_short(copy: Path, kept: str) -> None:
    data = copy.read_bytes()
    start, behind, end = parts(data)
    assert end == len(data)
    copy.write_bytes(data[: {"client": start, "image": behind, "all but a byte": end - 1}[kept]])
    assert_says_so(copy)


def test_a_file_with_more_behind_it_works(copy: Path) -> None:
    """As signed files have."""
    copy.write_bytes(copy.read_bytes() + b"signature")
    assert run(copy, env=REQUEST).returncode == 0


@pytest.mark.parametrize("octet", [0x00, 0x90, 0xCC, 0xFF])
def test_code_that_is_overwritten(copy: Path, octet: int) -> None:
    """Wherever the program begins, it soon meets what is no code of its own."""
    data = bytearray(copy.read_bytes())
    start, _, _ = parts(bytes(data))
    entry = struct.unpack_from("<Q", data, start + 24)[0]
    address = struct.unpack_from("<Q", data, start + 64 + 16)[0]
    place = start + entry - address
    data[place : place + 4096] = bytes([octet]) * 4096
    copy.write_bytes(data)
    assert_says_so(copy)


def test_modules_that_are_overwritten(copy: Path) -> None:
    """The names of our modules, wherever they are: nothing can be imported."""
    data = copy.read_bytes()
    start, behind, _ = parts(data)
    image = data[start:behind].replace(b"cni.dispatch\0", b"cni.dis\0atch\0")
    assert image != data[start:behind]
    copy.write_bytes(data[:start] + image + data[behind:])
    assert_says_so(copy, {**REQUEST, "CNI_SNAPSHOT": "off"})


@pytest.mark.parametrize("octet", [0x00, 0x41, 0xFF])
@pytest.mark.parametrize("number", [0, -1])
def test_a_snapshot_that_is_overwritten(copy: Path, number: int, octet: int) -> None:
    data = bytearray(copy.read_bytes())
    _, _, size, offset = snapshot_parts(bytes(data))[number]
    data[offset : offset + size] = bytes([octet]) * size
    copy.write_bytes(data)
    done = run(copy, env=REQUEST)
    assert done.returncode == 1, done
    assert "damaged" in json.loads(done.stdout)["msg"]


@pytest.mark.parametrize("place", [0, 8, 12, 16, 24, 32, 40])
def test_a_description_of_the_snapshot_that_is_changed(copy: Path, place: int) -> None:
    data = bytearray(copy.read_bytes())
    data[data.index(MAGIC) + DESCRIPTOR.size + place] ^= 1
    copy.write_bytes(data)
    assert_says_so(copy)


def test_install_compares_the_checksum(copy: Path, tmp_path: Path) -> None:
    """A byte that nothing reads is changed: the plugins would work, but it is not the same file."""
    data = bytearray(copy.read_bytes())
    _, _, end = parts(bytes(data))
    data[end - 300_000] ^= 1  # of the zip
    copy.with_name("cni").write_bytes(data)
    copy.with_name("cni").chmod(0o755)
    done = run(copy.with_name("cni"), "install", "--bin-dir", str(tmp_path / "bin"))
    assert done.returncode != 0
    assert "damaged" in done.stderr
    assert not (tmp_path / "bin").exists()


def test_no_headers(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    start, _, _ = parts(bytes(data))
    data[start : start + 512] = bytes(512)
    copy.write_bytes(data)
    assert_says_so(copy)


@pytest.mark.parametrize("bit", [0, 13, 31])
@pytest.mark.parametrize("segment", [0, 1])
@pytest.mark.parametrize("field", [0, 4, 8, 16, 32, 40, 48])  # of Elf64_Phdr: elf(5)
def test_segments_that_are_changed(copy: Path, segment: int, field: int, bit: int) -> None:
    """Also where the program would do without: the last bits of a size, an alignment."""
    data = bytearray(copy.read_bytes())
    start, _, _ = parts(bytes(data))
    data[start + 64 + 56 * segment + field + bit // 8] ^= 1 << bit % 8
    copy.write_bytes(data)
    assert_says_so(copy)


@pytest.mark.parametrize("megabytes", [1, 4])
def test_too_little_memory(copy: Path, megabytes: int) -> None:
    """The file is whole, and is not said to be damaged."""
    limited = copy.with_name("limited")
    limited.write_text(f'#!/bin/sh\nulimit -v {megabytes << 10}\nexec {copy} "$@"\n')
    limited.chmod(0o755)
    done = run(limited, env=REQUEST)
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert error["msg"] == "cannot start: too little memory"
    assert "ulimit -v" in error["details"]


def test_a_crash_of_a_file_that_is_whole(copy: Path, tmp_path: Path) -> None:
    """It ends by its signal, as any program."""
    copy = copy.rename(tmp_path / "cni")
    child = subprocess.Popen(
        [copy, "serve", "--socket", tmp_path / "s"], env=BARE_ENV, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    while "serving on" not in (line := child.stderr.readline()):
        assert line, "the server does not serve"
    child.send_signal(11)
    assert child.wait(60) == -11
    child.stderr.close()
