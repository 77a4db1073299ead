"""What a request costs on a node with many pods: `make bench-node`.

One server and one bridge network get more and more pods; at each number of pods a few more come
and go, one request at a time. Beside each figure is the floor: the same requests to the kernel in a
bare loop, on the same bridge (floor.py). Then the GC of half of the pods is timed, what a new
connection costs with both forms of masquerading (packets.py), and bursts of pods (burst.py), also
by exec and with the Go plugins. Writes build/bench/node.json and node.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness import Netns
from tests.harness.build import GO_BIN_DIR, ROOT, install_dist

from . import burst, chain, chart, packets, split
from .measure import VERSION, Attachment, Json, Node, PluginFailedError

PODS, QUICK_PODS = (10, 225, 450, 900), (10, 60)
ROUNDS = 15
AT_A_TIME = 4
QUIET = 5.0  # seconds: the kernel repeats what it has told of an address for that long
BRIDGE = "brlist"


@dataclass
class Stage:
    """Medians in ms with that many pods; `verbs` by verb and plugin.

    `cpu` is the server's processor time for one pod's ADD, CHECK, STATUS and DEL (ms).
    """

    pods: int
    verbs: dict[str, dict[str, float]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    memory: float = 0.0  # MiB, resident, of all of the server's processes

    def total(self, verb: str) -> float:
        return sum(self.verbs[verb].values())


class Cluster:
    """Pods on one node, attached by a list of plugins."""

    def __init__(self, node: Node, stack: ExitStack) -> None:
        self.node = node
        self.stack = stack
        self.plugins = chain.conflist(node, nftables=True)
        self.pods: dict[str, tuple[Attachment, Json]] = {}
        self.made = 0

    def grow(self, count: int) -> None:
        """Add pods until there are so many."""
        wheres = [self.fresh() for _ in range(count - len(self.pods))]
        ports = {where.container_id: 10000 + self.made + n for n, where in enumerate(wheres)}

        def add(where: Attachment) -> tuple[Attachment, Json]:
            port = ports[where.container_id]
            return where, chain.add(self.node, self.plugins, where, port)[1]

        with ThreadPoolExecutor(AT_A_TIME, initializer=self.node.host.enter) as pool:
            for where, result in pool.map(add, wheres):
                self.pods[where.container_id] = where, result

    def fresh(self) -> Attachment:
        """A new container."""
        self.made += 1
        netns = self.stack.enter_context(Netns(f"pod{self.made}"))
        return Attachment(f"pod{self.made}", netns.path)

    def verb(self, command: str, where: Attachment, result: Json) -> dict[str, float]:
        """The list's verb with ADD's result, and what each plugin takes (ms)."""
        took = {}
        order = reversed(self.plugins) if command == "DEL" else self.plugins
        for plugin in order:
            conf = chain.completed(plugin, 8080, result)
            if command in ("STATUS", "GC"):
                conf["cniVersion"] = "1.1.0"
                conf.pop("prevResult", None)
            took[plugin["type"]] = self.node.plugin_here(command, conf, where)[0].wall
        return took

    def come_and_go(self) -> dict[str, dict[str, float]]:
        """One more container: ADD, CHECK, STATUS, DEL; what each plugin takes."""
        where = self.fresh()
        result: Json = {}
        added = {}
        for plugin in self.plugins:
            conf = chain.completed(plugin, 8080, result)
            sample, result = self.node.plugin_here("ADD", conf, where)
            added[plugin["type"]] = sample.wall
        verbs = {"ADD": added}
        for command in ("CHECK", "STATUS", "DEL"):
            verbs[command] = self.verb(command, where, result)
        return verbs

    def gc(self, keep: Sequence[str]) -> dict[str, float]:
        """GC of all plugins that keeps these pods; what each takes."""
        attachments = [{"containerID": name, "ifname": "eth0"} for name in keep]
        took = {}
        for plugin in self.plugins:
            conf = chain.completed(plugin, 8080, {})
            conf.update({"cniVersion": "1.1.0", "cni.dev/valid-attachments": attachments})
            where = Attachment("", "", "")
            took[plugin["type"]] = self.node.plugin_here("GC", conf, where)[0].wall
        return took

    def memory(self) -> float:
        """MiB, resident, of the server's processes."""
        pages = sum(int(_read(pid, "statm").split()[1]) for pid in _family(self.node.server.pid))
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def cpu(self) -> float:
        """Milliseconds of the processor that the server's processes have taken."""
        ticks = 0
        for pid in _family(self.node.server.pid):
            fields = _read(pid, "stat").rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # its own, and of children that have ended
        return ticks * 1000 / os.sysconf("SC_CLK_TCK")


def _read(pid: int, name: str) -> str:
    return Path("/proc", str(pid), name).read_text()


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children = _read(pid, f"task/{pid}/children").split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def measure_stage(cluster: Cluster, pods: int, rounds: int, quiet: float) -> Stage:
    cluster.grow(pods)
    time.sleep(quiet)
    stage = Stage(pods)
    samples: dict[str, dict[str, list[float]]] = {}

    def once() -> dict[str, dict[str, float]]:
        return cluster.node.host.run(cluster.come_and_go)

    once()
    before = cluster.cpu()
    for _ in range(rounds):
        for verb, took in once().items():
            for plugin, ms in took.items():
                samples.setdefault(verb, {}).setdefault(plugin, []).append(ms)
        time.sleep(quiet / rounds)
    stage.verbs = {
        verb: {plugin: statistics.median(taken) for plugin, taken in by_plugin.items()}
        for verb, by_plugin in samples.items()
    }
    stage.cpu = (cluster.cpu() - before) / rounds
    stage.floors = split.run_inside("floor.py", cluster.node, rounds, BRIDGE)
    stage.memory = cluster.memory()
    return stage


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.node", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="up to 60 pods")
    parser.add_argument("--pods", type=int, action="append", help="with so many (repeatable)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bin-dir", type=Path, help="our plugins, installed")
    parser.add_argument("--go-bin-dir", type=Path, default=GO_BIN_DIR, help="the Go plugins")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench/node.json")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("bench-node: needs root, to make network namespaces", file=sys.stderr)
        return 1
    scratch = Path(tempfile.mkdtemp(prefix="cni-bench-node-"))
    try:
        with ExitStack() as stack:
            ours = options.bin_dir or install_dist(scratch / "bin")
            node = Node("node", ours, scratch, server=True)
            stack.callback(node.close)
            run(Cluster(node, stack), options)
        measure_bursts(ours, scratch, options)
    except PluginFailedError as error:
        print(f"bench-node: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def run(cluster: Cluster, options: argparse.Namespace) -> None:
    wanted = options.pods or (QUICK_PODS if options.quick else PODS)
    heads = " ".join(f"{head:>9}" for head in ("bridge", "others", "all", "floor", "cpu", "MiB"))
    print(f"{'pods':>5} {'verb':6} {heads}   (ms)")
    stages = []
    for pods in sorted(wanted):
        stage = measure_stage(cluster, pods, options.rounds, 1.0 if options.quick else QUIET)
        stages.append(stage)
        show(stage)
    host = cluster.node.host
    costs = []
    for keep in (list(cluster.pods), list(cluster.pods)[::2]):
        before = cluster.cpu()
        took = host.run(cluster.gc, keep)
        costs.append((took, cluster.cpu() - before))
    (kept, kept_cpu), (gone, gone_cpu) = costs
    heads = "".join(f"{plugin:>10}" for plugin in kept)
    print(f"\n{'GC (ms)':20}{heads}       all  processor")
    for what, took, cpu in (
        (f"all {len(cluster.pods)} kept", kept, kept_cpu),
        ("half of them gone", gone, gone_cpu),
    ):
        cells = "".join(f"{ms:10.1f}" for ms in took.values())
        print(f"{what:20}{cells}{sum(took.values()):10.1f}{cpu:11.1f}")
    rates = {pods: packets.measure(pods) for pods in (10, max(wanted))}
    print(f"\n{'new flows a second':20}" + "".join(f"{form:>9}" for form in packets.FORMS))
    for pods, by_form in rates.items():
        print(f"{pods:>16} pods" + "".join(f"{by_form[form]:9.0f}" for form in packets.FORMS))
    document: dict[str, Any] = {
        "stages": [vars(stage) for stage in stages],
        "gc": {"kept": kept, "half": gone},
        "flows": rates,
        "version": VERSION,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=2) + "\n")
    options.json.with_suffix(".svg").write_text(plot(stages))


def plot(stages: Sequence[Stage]) -> str:
    """The cost of each verb against pods, beside the floor of bridge's ADD and DEL."""
    series: dict[str, list[tuple[float, float]]] = {}
    for stage in stages:
        for verb in stage.verbs:
            series.setdefault(verb, []).append((stage.pods, stage.total(verb)))
            floor = stage.floors.get(f"bridge, ipMasq (nftables) {verb}")
            if floor is not None:
                series.setdefault(f"{verb}, floor of bridge", []).append((stage.pods, floor))
        series.setdefault("processor, all verbs", []).append((stage.pods, stage.cpu))
    title = "One pod's list of plugins on a node with many pods"
    return chart.lines(series, title, "pods on the node", "milliseconds")


def measure_bursts(ours: Path, scratch: Path, options: argparse.Namespace) -> None:
    """Bursts through the server, by exec, and with the Go plugins, each on a node of its own."""
    pods = burst.QUICK_PODS if options.quick else burst.PODS
    kinds = {"warm": (ours, True), "ours": (ours, False), "go": (options.go_bin_dir, False)}
    waits = []
    for name, (bin_dir, server) in kinds.items():
        if not (bin_dir / "bridge").exists():
            print(f"bench-node: no {bin_dir / 'bridge'}", file=sys.stderr)
            continue
        node = Node(name, bin_dir, scratch, server=server)
        try:
            for size in burst.SIZES:
                waits += burst.measure(node, pods, size)
        finally:
            node.close()
    burst.show(waits)


def show(stage: Stage) -> None:
    for verb, took in stage.verbs.items():
        bridge, everything = took["bridge"], stage.total(verb)
        floor = stage.floors.get(f"bridge, ipMasq (nftables) {verb}")
        shown = f"{floor:9.2f}" if floor is not None else f"{'–':>9}"
        cells = f"{bridge:9.2f} {everything - bridge:9.2f} {everything:9.2f} {shown}"
        more = f" {stage.cpu:9.2f} {stage.memory:9.1f}" if verb == "ADD" else ""
        print(f"{stage.pods:5} {verb:6} {cells}{more}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
