"""Starting plugins as a runtime does, and timing them.

A run is timed from posix_spawn to the reaped exit, with files in memory as stdin and stdout, so
that the measuring side does nothing in between, and no disk is waited for (a runtime has pipes). It
is the same for every implementation; what it costs is measured with /bin/true and reported, not
subtracted.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.harness import Netns, Runtime
from tests.harness.netns import PATH
from tests.harness.server import serving

Json = dict[str, Any]
VERSION = "1.0.0"  # the newest that both implementations speak
EXEC_EVERY = 2
WALL, CPU = "median", "cpu"  # figures of a Summary that are compared


class PluginFailedError(Exception):
    """A plugin did not succeed, so its time means nothing."""


@dataclass(frozen=True)
class Sample:
    """One run: milliseconds from start to end, and of processor time (its children's too).

    `start` is in seconds of CLOCK_MONOTONIC.
    """

    wall: float
    cpu: float
    start: float = 0.0

    def then(self, other: Sample) -> Sample:
        """This and then that, as one."""
        return Sample(self.wall + other.wall, self.cpu + other.cpu, self.start)


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


class Attachment(NamedTuple):
    """What a runtime tells a plugin of the container; `netns` is a path."""

    container_id: str
    netns: str
    ifname: str = "eth0"


class Node:
    """A namespace that plays the node of one implementation, with containers in it."""

    def __init__(
        self,
        name: str,
        bin_dir: Path,
        scratch: Path,
        *,
        server: bool = False,
        trace: Path | None = None,
    ) -> None:
        self.name = name
        self.environ = {"PATH": PATH, "CNI_SERVER": "off"}
        self.bin_dir = bin_dir
        self.scratch = scratch / name
        self.scratch.mkdir(parents=True)
        self.data_dir = self.scratch / "networks"  # on a disk, as /var/lib/cni
        self.run_dir = self.scratch / "run"  # in memory, as /run
        self.run_dir.mkdir()
        self.cluster_conf = self.scratch / "cluster.json"  # in place of /etc/cni/cluster.json
        store = {"type": "directory", "path": str(self.data_dir / "store")}
        settings = {"nodeName": name, "dataDir": str(self.data_dir / "claims"), "store": store}
        self.cluster_conf.write_text(json.dumps(settings))
        subprocess.run(["mount", "-t", "tmpfs", "cni-bench", self.run_dir], check=True)
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
        self._serving = ExitStack()
        if server:
            path = self.scratch / "socket"
            runtime = Runtime(bin_dir, self.host)
            self.server = self._serving.enter_context(serving(runtime, path, trace=trace))
            self.environ = {"PATH": PATH, "CNI_SERVER_SOCKET": str(path)}

    def close(self) -> None:
        self._serving.close()
        self.container.close()
        self.host.close()
        subprocess.run(["umount", "-l", self.run_dir], check=True)

    def command(self, argv: Sequence[str]) -> Sample:
        """Time a command that needs no input, in the node's namespace."""
        status, sample, _ = self.host.run(self._spawn, argv, {"PATH": PATH})
        if status:
            raise PluginFailedError(f"{argv[0]}: exit status {status}")
        return sample

    def plugin(
        self, verb: str, conf: Mapping[str, Any], container_id: str = "c1", ifname: str = ""
    ) -> tuple[Sample, Json]:
        """Time one run of a plugin; the sample and the result. Raises PluginFailedError."""
        ifname = ifname or ("lo" if conf["type"] in ("loopback", "tuning") else "eth0")
        where = Attachment(container_id, self.container.path, ifname)
        return self.host.run(self.plugin_here, verb, conf, where)

    def plugin_here(
        self, verb: str, conf: Mapping[str, Any], where: Attachment
    ) -> tuple[Sample, Json]:
        """The same in a thread that is in the node's namespace already."""
        environ = self.request(verb, where)
        argv = [str(self.bin_dir / conf["type"])]
        status, sample, output = self._spawn(argv, environ, json.dumps(conf))
        if status:
            raise PluginFailedError(f"{self.name}: {conf['type']} {verb} failed: {output}")
        return sample, json.loads(output) if output else {}

    def request(self, verb: str, where: Attachment) -> dict[str, str]:
        """The environment of a request."""
        return {
            **self.environ,
            "CNI_STATE_DIR": str(self.run_dir / "state"),
            "CNI_CLUSTER_CONF": str(self.cluster_conf),
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": where.container_id,
            "CNI_NETNS": where.netns,
            "CNI_IFNAME": where.ifname,
            "CNI_PATH": str(self.bin_dir),
        }

    def speaks(self, plugin: str, version: str) -> bool:
        """Does a plugin support that version of the specification?"""
        said = self.environ | {"CNI_COMMAND": "VERSION"}
        done = subprocess.run(
            [self.bin_dir / plugin],
            env=said,
            input=json.dumps({"cniVersion": VERSION}),
            capture_output=True,
            text=True,
        )
        return done.returncode == 0 and version in json.loads(done.stdout)["supportedVersions"]

    def _spawn(
        self, argv: Sequence[str], environ: Mapping[str, str], stdin: str = ""
    ) -> tuple[int, Sample, str]:
        """Exit status, sample, output. The child stays in the calling thread's namespace."""
        source, sink = os.memfd_create("stdin"), os.memfd_create("stdout")
        try:
            os.pwrite(source, stdin.encode(), 0)
            actions = [
                (os.POSIX_SPAWN_DUP2, source, 0),
                (os.POSIX_SPAWN_DUP2, sink, 1),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),  # some tell all they do
            ]
            start = time.perf_counter()
            pid = os.posix_spawn(argv[0], argv, environ, file_actions=actions)
            _, status, usage = os.wait4(pid, 0)
            wall = time.perf_counter() - start
            cpu = usage.ru_utime + usage.ru_stime
            sample = Sample(wall * 1000, cpu * 1000, start)
            output = os.pread(sink, os.fstat(sink).st_size, 0).decode()
            return os.waitstatus_to_exitcode(status), sample, output
        finally:
            os.close(source)
            os.close(sink)


@dataclass
class Row:
    """One line of the table: a thing, and what each implementation takes for it (ms)."""

    case: str
    verb: str
    times: dict[str, Summary] = field(default_factory=dict)
    python: Summary | None = None  # an interpreter that does nothing, in the same rounds

    def ratio(self, name: str, figure: str = WALL) -> float | None:
        """A node's time to Go's, WALL or CPU; None where only one of them was measured."""
        if {name, "go"} <= self.times.keys() and getattr(self.times["go"], figure):
            ours, go = (getattr(self.times[each], figure) for each in (name, "go"))
            return float(ours / go)
        return None

    @property
    def to_python(self) -> float | None:
        """Ours to the bare interpreter's start."""
        if "ours" in self.times and self.python:
            return self.times["ours"].median / self.python.median
        return None


# In the order of table and chart. "alone" is the self-contained file without a server.
NAMES = {
    "warm": "cni, server",
    "alone": "self-contained, exec",
    "ours": "cni, exec",
    "go": "Go plugins",
}


def summaries(
    samples: dict[str, list[Sample]], nodes: list[Node], failed: set[str]
) -> dict[str, Summary]:
    """By node, in the order of NAMES; without those that failed."""
    names = {node.name for node in nodes} - failed
    return {name: Summary.of(samples[name]) for name in NAMES if name in names & samples.keys()}


def alternate(nodes: list[Node], rounds: int) -> Iterable[tuple[int, Node]]:
    """All nodes in every round, with its number, the first one taking turns.

    By exec on the node's Python an interpreter starts each time: that takes long, so only every
    other round has it.
    """
    for number in range(rounds):
        shift = number % len(nodes)
        for node in nodes[shift:] + nodes[:shift]:
            if node.name != "ours" or number % EXEC_EVERY == 0 or len(nodes) == 1:
                yield number, node
