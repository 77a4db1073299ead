"""Starting plugins as a runtime does, and timing them.

A run is timed from posix_spawn to the reaped exit, with files as stdin and stdout, so that the
measuring side does nothing in between. It is the same for every implementation; what it costs is
measured with /bin/true and reported, not subtracted.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import Netns, Runtime
from tests.harness.netns import PATH
from tests.harness.server import serving

Json = dict[str, Any]


class PluginFailedError(Exception):
    """A plugin did not succeed, so its time means nothing."""


@dataclass(frozen=True)
class Sample:
    """One run: milliseconds from start to end, and of processor time (its children's too)."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Summary:
    """What the samples of one thing say."""

    rounds: int
    median: float
    low: float
    high: float
    cpu: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Summary:
        walls = sorted(sample.wall for sample in samples)
        edge = len(walls) // 10
        return cls(
            len(walls),
            statistics.median(walls),
            walls[edge],
            walls[-1 - edge],
            statistics.median(sample.cpu for sample in samples),
        )


class Node:
    """A namespace that plays the node of one implementation, with containers in it."""

    def __init__(self, name: str, bin_dir: Path, scratch: Path, *, server: bool = False) -> None:
        self.name = name
        self.environ = {"PATH": PATH, "CNI_SERVER": "off"}
        self.bin_dir = bin_dir
        self.scratch = scratch / name
        self.scratch.mkdir(parents=True)
        self.data_dir = self.scratch / "networks"
        self.host = Netns(f"{name}-host")
        # As on a node: the first container's links are not the first links.
        self.host.ip_batch(
            "link set lo up",
            "link add type veth",
            "link delete veth0",
            "link add lan0 type veth peer name dev0",  # a master, and a device to move
            "link set lan0 up",
            "link set dev0 up",
        )
        self.container = Netns(f"{name}-container")
        self._stdin = self.scratch / "stdin"
        self._stdout = self.scratch / "stdout"
        self._serving = ExitStack()
        if server:
            path = self.scratch / "socket"
            runtime = Runtime(bin_dir, self.host)
            self.server = self._serving.enter_context(serving(runtime, path))
            self.environ = {"PATH": PATH, "CNI_SERVER_SOCKET": str(path)}

    def close(self) -> None:
        self._serving.close()
        self.container.close()
        self.host.close()

    def command(self, argv: Sequence[str]) -> Sample:
        """Time a command that needs no input, in the node's namespace."""
        self._stdin.write_bytes(b"")
        status, sample = self.host.run(self._spawn, argv, {"PATH": PATH})
        if status:
            raise PluginFailedError(f"{argv[0]}: exit status {status}")
        return sample

    def plugin(
        self, verb: str, conf: Mapping[str, Any], container_id: str = "c1"
    ) -> tuple[Sample, Json]:
        """Time one run of a plugin; the sample and the result. Raises PluginFailedError."""
        self._stdin.write_text(json.dumps(conf))
        environ = {
            **self.environ,
            "CNI_STATE_DIR": str(self.scratch / "state"),
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": "lo" if conf["type"] in ("loopback", "tuning") else "eth0",
            "CNI_PATH": str(self.bin_dir),
        }
        status, sample = self.host.run(self._spawn, [str(self.bin_dir / conf["type"])], environ)
        output = self._stdout.read_text()
        if status:
            raise PluginFailedError(f"{self.name}: {conf['type']} {verb} failed: {output}")
        return sample, json.loads(output) if output else {}

    def _spawn(self, argv: Sequence[str], environ: Mapping[str, str]) -> tuple[int, Sample]:
        """Runs in a thread that is in the node's namespace; the child stays there."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, str(self._stdin), os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self._stdout), flags, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),  # some tell all they do
        ]
        start = time.perf_counter()
        pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
        wall = time.perf_counter() - start
        cpu = usage.ru_utime + usage.ru_stime
        return os.waitstatus_to_exitcode(status), Sample(wall * 1000, cpu * 1000)


@dataclass
class Row:
    """One line of the table: a thing, and what each implementation takes for it (ms)."""

    case: str
    verb: str
    times: dict[str, Summary] = field(default_factory=dict)
    python: Summary | None = None  # an interpreter that does nothing, in the same rounds

    def ratio(self, name: str) -> float | None:
        """A node's time to Go's; None where only one of them was measured."""
        if {name, "go"} <= self.times.keys() and self.times["go"].median:
            return self.times[name].median / self.times["go"].median
        return None

    @property
    def to_python(self) -> float | None:
        """Ours to the bare interpreter's start."""
        if "ours" in self.times and self.python:
            return self.times["ours"].median / self.python.median
        return None


def alternate(nodes: list[Node], rounds: int) -> Iterable[Node]:
    """All nodes in every round, the first one taking turns."""
    for number in range(rounds):
        shift = number % len(nodes)
        yield from nodes[shift:] + nodes[:shift]
