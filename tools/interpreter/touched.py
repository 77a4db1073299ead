"""Which pages of the snapshot every request writes to, so that the client can copy them at once.

The first write to a page of the file is a page fault, in which the kernel copies it: 2 to 3 µs each
on a virtual machine, and 350 of them in the shortest request. Copying the same pages in one go
(MADV_POPULATE_WRITE) takes a quarter of that.

The finished file is executed with requests that need neither privileges nor files. Its standard
output is a full pipe, so that it waits where it writes the answer, and the kernel tells which pages
are no longer the file's (proc_pid_pagemap(5)). Nothing of this machine may change which they are:
path, environment and directory are the same in every build.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.interpreter.snapshot import Snapshot
from tools.interpreter.sources import BuildError

MAX_RUNS = 512  # of launcher/image.c
_PRESENT, _IS_FILES = 1 << 63, 1 << 61  # in an entry of pagemap
_FD = 9  # where the child has the file open: the path that it was started by
_PATIENCE = 60  # seconds
_ADDRESS = {"address": "10.1.0.2/24", "gateway": "10.1.0.1"}
_CONF = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "static",
    "ipam": {"type": "static", "addresses": [_ADDRESS], "routes": [{"dst": "0.0.0.0/0"}]},
}


@dataclass(frozen=True)
class Touched:
    """Runs of pages, each as the number of the first page and how many there are.

    The first `always` runs are for every request, the others for all verbs but VERSION.
    """

    always: int
    runs: tuple[tuple[int, int], ...]


NOTHING = Touched(0, ())


def find(file: bytes, snapshot: Snapshot) -> Touched:
    """Have the finished file, which may be without its zip, answer requests. Raises BuildError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cni")
        path.write_bytes(file)
        path.chmod(0o700)
        short = _pages(path, snapshot, "VERSION")
        other = _pages(path, snapshot, "ADD") - short
    always, more = list(_runs(short)), list(_runs(other))
    if not always or len(always) + len(more) > MAX_RUNS:
        raise BuildError(f"requests write to {len(always)} and {len(more)} runs of pages")
    return Touched(len(always), (*always, *more))


def _pages(path: Path, snapshot: Snapshot, verb: str) -> set[int]:
    """The numbers of the snapshot's pages that this request has written to."""
    reading, writing = os.pipe()
    try:
        _fill(writing)
        child = _start(path, verb, writing)
        try:
            _await_sleep(child)
            return set(_written(child.pid, snapshot))
        finally:
            child.kill()
            child.wait()
    except OSError as error:
        raise BuildError(f"cannot see which pages requests write to: {error}") from error
    finally:
        os.close(reading)
        os.close(writing)


def _fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, bytes(4096))
    except BlockingIOError:
        os.set_blocking(pipe, True)


def _start(path: Path, verb: str, output: int) -> subprocess.Popen[bytes]:
    """The request, started by a descriptor: the path would be another one in each build."""
    with tempfile.TemporaryFile() as request, path.open("rb") as program:
        request.write(json.dumps(_CONF).encode())
        request.seek(0)
        return subprocess.Popen(
            ["static"],
            executable=f"/proc/self/fd/{_FD}",
            stdin=request,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_environment(verb),
            pass_fds=[_FD],
            preexec_fn=lambda: os.dup2(program.fileno(), _FD),  # noqa: PLW1509 no threads here
        )


def _environment(verb: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "container",
        "CNI_NETNS": "/nonexistent",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nonexistent",
        "CNI_SERVER": "off",
        "CNI_RECORD_CONF": "/nonexistent",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }


def _await_sleep(child: subprocess.Popen[bytes]) -> None:
    """Wait until it waits: its input is a file, so that only its output can make it. OSError."""
    before = b""
    for _ in range(_PATIENCE * 20):
        time.sleep(0.05)
        now = Path(f"/proc/{child.pid}/stat").read_bytes().rpartition(b")")[2].strip()
        if child.poll() is not None:
            raise OSError(f"it ended with {child.returncode} instead of waiting for its output")
        if now == before and now.startswith(b"S"):  # neither faults nor time since
            return
        before = now
    raise OSError("it does not end")


def _written(pid: int, snapshot: Snapshot) -> Iterator[int]:
    """The pages of this process that are of the snapshot no more. Raises OSError."""
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for part in snapshot.parts:
            first, count = part.address // snapshot.page, part.size // snapshot.page
            pagemap.seek(8 * first)
            for number, (entry,) in enumerate(struct.iter_unpack("=Q", pagemap.read(8 * count))):
                if entry & _PRESENT and not entry & _IS_FILES:
                    yield first + number


def _runs(pages: set[int]) -> Iterator[tuple[int, int]]:
    start = end = -1
    for page in sorted(pages):
        if page != end:
            if start >= 0:
                yield start, end - start
            start = page
        end = page + 1
    if start >= 0:
        yield start, end - start
