"""The pages that requests write to are copied before they do, where the kernel can."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness.netns import BARE_ENV
from tools.interpreter import touched
from tools.interpreter.snapshot import Part, Snapshot

from .test_damage import parts, snapshot_parts

if TYPE_CHECKING:
    from pathlib import Path

TABLE = struct.Struct("<16sII")  # struct touched of launcher/image.c
MAGIC = b"cni-touched\0\0\0\0\0"
# what a client does with its table; a libc's madvise(2) has other advice
COPIED = re.compile(r"^madvise\((0x[0-9a-f]+), (\d+), MADV_POPULATE_WRITE\) += (.*)$", re.MULTILINE)
ADDRESSES = [{"address": "10.1.2.3/24"}]
CONF = {"cniVersion": "1.0.0", "name": "n", "type": "static"}
REQUEST = json.dumps({**CONF, "ipam": {"type": "static", "addresses": ADDRESSES}})


def table(data: bytes) -> tuple[int, list[tuple[int, int]]]:
    """How many runs are for every request; all runs, as first page and how many pages."""
    place = data.index(MAGIC)
    _, always, count = TABLE.unpack_from(data, place)
    place += TABLE.size
    return always, list(struct.iter_unpack("<II", data[place : place + 8 * count]))


@pytest.fixture
def static(program: Path, tmp_path: Path) -> Path:
    (tmp_path / "static").symlink_to(program)
    return tmp_path / "static"


def traced(static: Path, verb: str, *options: str) -> tuple[str, list[tuple[int, int, str]]]:
    """What a request answers; what it has copied: address, size, and what the kernel says."""
    log = static.parent / "log"
    env = {**BARE_ENV, "CNI_COMMAND": verb, "CNI_SERVER": "off", "CNI_DEBUG": "start"}
    env |= {"CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
    done = subprocess.run(
        ["strace", "-qq", "-o", log, "-e", "trace=madvise", *options, static],
        input=REQUEST,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cni: starts with the snapshot" in done.stderr
    calls = [(int(a, 16), int(n), said) for a, n, said in COPIED.findall(log.read_text())]
    return done.stdout, calls


def snapshot_of(data: bytes) -> Snapshot:
    place = data.index(b"cni-image\0\0\0\0\0\0\0") + struct.calcsize("<16sQQQII")
    page, replaced, _ = struct.unpack_from("<QII", data, place)
    found = tuple(Part(a, s, data[o : o + n]) for a, s, n, o in snapshot_parts(data))
    return Snapshot(page, replaced, found)


def test_the_table_is_what_requests_write_to(program: Path) -> None:
    """It is found again, in the file that has one: nothing of the building machine is in it."""
    data = program.read_bytes()
    always, runs = table(data)
    place = data.index(MAGIC) + TABLE.size - 8
    without = data[:place] + bytes(8) + data[place + 8 :]
    for file in (without, without[: parts(data)[2]]):
        found = touched.find(file, snapshot_of(data))
        assert (found.always, list(found.runs)) == (always, runs)
    written = sum(count for _, count in runs)
    assert 20 < written <= 90  # it was 217 before what a request writes to lay together


def test_each_verb_copies_its_pages(static: Path, program: Path) -> None:
    always, runs = table(program.read_bytes())
    page = snapshot_of(program.read_bytes()).page
    wanted = [(first * page, count * page, "0") for first, count in runs]
    if traced(static, "VERSION")[1][0][2] != "0":
        pytest.skip("this kernel has no MADV_POPULATE_WRITE (Linux 5.14)")
    assert traced(static, "VERSION")[1] == wanted[:always]
    assert traced(static, "ADD")[1] == wanted


@pytest.mark.parametrize("error", ["EINVAL", "EPERM", "ENOMEM", "ENOSYS", "EFAULT", "EHWPOISON"])
@pytest.mark.parametrize("verb", ["VERSION", "ADD"])
def test_a_kernel_that_refuses(static: Path, verb: str, error: str) -> None:
    """The answer is the same, and it is not asked again."""
    answer, calls = traced(static, verb, "-e", f"inject=madvise:error={error}:when=1..2")
    assert answer == traced(static, verb)[0]
    assert len(calls) == 1


def test_a_damaged_table_reaches_nothing_else(static: Path, program: Path, tmp_path: Path) -> None:
    """Pages that are not the snapshot's are not copied."""
    data = bytearray(program.read_bytes())
    place = data.index(MAGIC) + TABLE.size
    page = snapshot_of(bytes(data)).page
    for first, count in ((0, 1), (0xFFFFFFFF, 0xFFFFFFFF), (0x60000000 // page, 16)):
        struct.pack_into("<II", data, place, first, count)
        other = tmp_path / "other"
        other.mkdir(exist_ok=True)
        (other / "static").unlink(missing_ok=True)
        (other / "static").write_bytes(data)
        (other / "static").chmod(0o755)
        answer, calls = traced(other / "static", "ADD")
        assert json.loads(answer)["ips"]
        assert calls == []
