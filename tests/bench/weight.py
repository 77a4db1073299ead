"""How much memory a run of the self-contained file takes at most, and how large the file is.

A run's peak is read (VmHWM) while it waits to write its result, which is the last thing that it
does: its stdout is a pipe that is full. What wait4(2) says would count the measuring process as
well, whose memory a child shares until it executes the plugin.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .chain import completed, conflist
from .measure import Attachment, Json, Node, PluginFailedError

MB = 1_000_000
_DEADLINE = 30.0  # seconds


@dataclass
class Weight:
    """In MB: the peak of each plugin's ADD, and the file."""

    size: float
    peaks: dict[str, float] = field(default_factory=dict)


def measure(node: Node) -> Weight:
    """The chain's ADDs, and VERSION. Raises PluginFailedError."""
    weight = Weight((node.bin_dir / "cni").stat().st_size / MB)
    result: Json = {}
    plugins = conflist(node, nftables=False)
    confs = []
    for plugin in plugins:
        confs.append(completed(plugin, 8080, result))
        weight.peaks[f"{plugin['type']} ADD"], result = _peak(node, "ADD", confs[-1])
    weight.peaks["VERSION"], _ = _peak(node, "VERSION", confs[0])
    for conf in reversed(confs):
        node.plugin("DEL", conf)
    return weight


def _peak(node: Node, verb: str, conf: Json) -> tuple[float, Json]:
    """The most memory that the process had, in MB, and its result."""
    environ = node.request(verb, Attachment("c1", node.container.path))
    return node.host.run(_run, [str(node.bin_dir / conf["type"])], environ, json.dumps(conf))


def _run(argv: Sequence[str], environ: dict[str, str], stdin: str) -> tuple[float, Json]:
    source = os.memfd_create("stdin")
    os.pwrite(source, stdin.encode(), 0)
    read_end, write_end = os.pipe()
    filling = _fill(write_end)
    actions = [
        (os.POSIX_SPAWN_DUP2, source, 0),
        (os.POSIX_SPAWN_DUP2, write_end, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
    os.close(source)
    os.close(write_end)
    try:
        peak = _peak_of_writer(pid)
        with open(read_end, "rb") as pipe:
            output = pipe.read()[filling:]
    finally:
        _, status = os.waitpid(pid, 0)
    if status:
        raise PluginFailedError(f"{argv[0]} failed: {output.decode()}")
    return peak, json.loads(output)


def _fill(write_end: int) -> int:
    """Write to a pipe until it is full; how many bytes."""
    filled = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
    return os.write(write_end, bytes(filled))


def _peak_of_writer(pid: int) -> float:
    """Wait until a process writes to its stdout; the most memory that it had until then, in MB."""
    deadline = time.monotonic() + _DEADLINE
    while not _is_writing(pid):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            raise PluginFailedError("it does not write its result")
        time.sleep(0.001)
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / MB


def _is_writing(pid: int) -> bool:
    """Does the process wait for its stdout? (/proc/PID/syscall: the number, then the arguments)"""
    call = Path(f"/proc/{pid}/syscall").read_text().split()
    return call[:2] == [_WRITE, "0x1"]


_WRITE = {"x86_64": "1", "aarch64": "64"}.get(os.uname().machine, "")
