"""What a request costs on a node with many pods: `make bench-node`.

A server and one bridge network get more and more pods, of both families; at each number of pods a
few more come and go, one request at a time, also by exec. Beside each figure is the floor: the same
requests to the kernel in a bare loop, on the same bridge (floor.py). Then half of the pods are
collected by GC. The same with 200 networks, 5,000 published ports and 1,000 containers with
bandwidth. Then what a new connection costs with both forms of masquerading (packets.py), and bursts
of pods (burst.py), also by exec and with the Go plugins. Writes build/bench/node.json, node-1.svg
and node-200.svg.
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.harness import Netns
from tests.harness.build import GO_BIN_DIR, ROOT, install_dist
from tests.harness.netns import PATH

from . import burst, chart, packets, split
from .layout import MANY_NETWORKS, MANY_PODS, QUICK, Layout
from .measure import VERSION, Attachment, Json, Node, PluginFailedError

ROUNDS = 15
EXEC_EVERY = 5  # a round by exec for so many through the server
FLOORS = ("bridge, ipMasq (nftables)", "portmap (nftables)", "firewall (nftables)")
AT_A_TIME = 4
QUIET = 5.0  # seconds: the kernel repeats what it has told of an address for that long


@dataclass
class Stage:
    """Medians in ms with that many pods; `verbs` and `by_exec` by verb and plugin.

    `cpu` is the server's processor time for one pod's ADD, CHECK, STATUS and DEL (ms).
    """

    pods: int
    verbs: dict[str, dict[str, float]] = field(default_factory=dict)
    by_exec: dict[str, dict[str, float]] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    cpu: float = 0.0
    memory: float = 0.0  # MiB, resident, of all of the server's processes

    def total(self, verb: str) -> float:
        return sum(self.verbs[verb].values())

    def floor(self, verb: str) -> float | None:
        """What a bare loop takes for the kernel's part of all plugins that have such a loop."""
        parts = [self.floors[name] for case in FLOORS if (name := f"{case} {verb}") in self.floors]
        return sum(parts) if parts else None


class Cluster:
    """Pods on one node, attached by lists of plugins."""

    def __init__(self, node: Node, stack: ExitStack, layout: Layout) -> None:
        self.node = node
        self.stack = stack
        self.layout = layout
        self.pods: dict[str, int] = {}  # container id -> its number
        self.made = 0

    def grow(self, count: int) -> None:
        """Add pods until there are so many."""
        pods = [self.fresh() for _ in range(count - len(self.pods))]

        def add(pod: tuple[int, Attachment]) -> None:
            number, where = pod
            self.add(number, where)
            self.pods[where.container_id] = number

        with ThreadPoolExecutor(AT_A_TIME, initializer=self.node.host.enter) as pool:
            list(pool.map(add, pods))

    def fresh(self) -> tuple[int, Attachment]:
        """A new container, and its number."""
        number = self.made
        self.made += 1
        netns = self.stack.enter_context(Netns(f"pod{number}"))
        return number, Attachment(f"pod{number}", netns.path)

    def add(self, number: int, where: Attachment) -> tuple[dict[str, float], Json]:
        """The list's ADD: what each plugin takes (ms), and the result."""
        took, result = {}, {}
        for plugin in self.layout.plugins(self.node, number):
            conf = self.layout.completed(plugin, number, result)
            sample, result = self.node.plugin_here("ADD", conf, where)
            took[plugin["type"]] = sample.wall
        return took, result

    def verb(self, command: str, number: int, where: Attachment, result: Json) -> dict[str, float]:
        """The list's verb with ADD's result, and what each plugin takes (ms)."""
        took = {}
        plugins = self.layout.plugins(self.node, number)
        for plugin in reversed(plugins) if command == "DEL" else plugins:
            conf = self.layout.completed(plugin, number, result)
            if command == "STATUS":
                conf["cniVersion"] = "1.1.0"
                conf.pop("prevResult", None)
            took[plugin["type"]] = self.node.plugin_here(command, conf, where)[0].wall
        return took

    def come_and_go(self) -> dict[str, dict[str, float]]:
        """One more container: ADD, CHECK, STATUS, DEL; what each plugin takes."""
        number, where = self.fresh()
        added, result = self.add(number, where)
        verbs = {"ADD": added}
        for command in ("CHECK", "STATUS", "DEL"):
            verbs[command] = self.verb(command, number, where, result)
        return verbs

    def gc(self, keep: Sequence[str]) -> dict[str, float]:
        """GC of the first pod's network that keeps these pods; what each plugin takes."""
        attachments = [{"containerID": name, "ifname": "eth0"} for name in keep]
        took = {}
        for plugin in self.layout.plugins(self.node, 0):
            conf = self.layout.completed(plugin, 0, {})
            conf.update({"cniVersion": "1.1.0", "cni.dev/valid-attachments": attachments})
            where = Attachment("", "", "")
            took[plugin["type"]] = self.node.plugin_here("GC", conf, where)[0].wall
        return took

    def of_first_network(self) -> list[str]:
        """The pods that are in the first pod's network."""
        return [name for name, number in self.pods.items() if number % self.layout.networks == 0]

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
    stage, node = Stage(pods), cluster.node
    node.host.run(cluster.come_and_go)
    before = cluster.cpu()
    stage.verbs = _medians(cluster, rounds, quiet / rounds)
    stage.cpu = (cluster.cpu() - before) / rounds
    served, node.environ = node.environ, {"PATH": PATH, "CNI_SERVER": "off"}
    stage.by_exec = _medians(cluster, max(rounds // EXEC_EVERY, 3), 0)
    node.environ = served
    stage.floors = split.run_inside("floor.py", node, rounds, cluster.layout.bridge(0))
    stage.memory = cluster.memory()
    return stage


def _medians(cluster: Cluster, rounds: int, pause: float) -> dict[str, dict[str, float]]:
    """Of so many containers that come and go one after the other: by verb and plugin (ms)."""
    samples: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for verb, took in cluster.node.host.run(cluster.come_and_go).items():
            for plugin, ms in took.items():
                samples.setdefault(verb, {}).setdefault(plugin, []).append(ms)
        time.sleep(pause)
    return {
        verb: {plugin: statistics.median(taken) for plugin, taken in by_plugin.items()}
        for verb, by_plugin in samples.items()
    }


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
    layouts = QUICK if options.quick else (MANY_PODS, MANY_NETWORKS)
    if options.pods:
        layouts = (replace(MANY_PODS, pods=tuple(sorted(options.pods))),)
    document: dict[str, Any] = {"version": VERSION}
    try:
        ours = options.bin_dir or install_dist(scratch / "bin")
        for number, layout in enumerate(layouts):
            with ExitStack() as stack:
                node = Node(f"node{number}", ours, scratch, server=True)
                stack.callback(node.close)
                document[layout.name] = run(Cluster(node, stack, layout), options)
        show_flows(document, (10, max(layouts[0].pods)))
        document["bursts"] = measure_bursts(ours, scratch, options)
    except PluginFailedError as error:
        print(f"bench-node: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def run(cluster: Cluster, options: argparse.Namespace) -> Json:
    """All stages of a layout, and a GC of its first network; also draws the plot."""
    columns = ("bridge", "others", "all", "floor", "by exec", "cpu", "MiB")
    print(f"\n{cluster.layout.name}\n{'pods':>5} {'verb':6} ", end="")
    print(" ".join(f"{head:>9}" for head in columns) + "   (ms)")
    stages = []
    for pods in cluster.layout.pods:
        stage = measure_stage(cluster, pods, options.rounds, 1.0 if options.quick else QUIET)
        stages.append(stage)
        show(stage)
    collected = show_gc(cluster)
    where = options.json.with_name(f"node-{cluster.layout.networks}.svg")
    where.parent.mkdir(parents=True, exist_ok=True)
    where.write_text(plot(stages, cluster.layout.name))
    return {"stages": [vars(stage) for stage in stages], "gc": collected}


def show_gc(cluster: Cluster) -> dict[str, dict[str, float]]:
    """GC of the first network: all kept, then half gone."""
    pods, collected = cluster.of_first_network(), {}
    for what, keep in ((f"all {len(pods)} kept", pods), ("half of them gone", pods[::2])):
        before = cluster.cpu()
        took = cluster.node.host.run(cluster.gc, keep)
        if not collected:
            heads = "".join(f"{plugin:>10}" for plugin in took)
            print(f"\n{'GC (ms)':20}{heads}       all  processor")
        cells = "".join(f"{ms:10.1f}" for ms in took.values())
        print(f"{what:20}{cells}{sum(took.values()):10.1f}{cluster.cpu() - before:11.1f}")
        collected[what] = took
    return collected


def show_flows(document: Json, pods: Sequence[int]) -> None:
    """What new connections cost with both forms of masquerading."""
    rates = {count: packets.measure(count) for count in pods}
    print(f"\n{'new flows a second':20}" + "".join(f"{form:>9}" for form in packets.FORMS))
    for count, by_form in rates.items():
        print(f"{count:>16} pods" + "".join(f"{by_form[form]:9.0f}" for form in packets.FORMS))
    document["flows"] = rates


def plot(stages: Sequence[Stage], name: str) -> str:
    """The cost of each verb against pods, beside the floor of ADD and DEL."""
    series: dict[str, list[tuple[float, float]]] = {}
    for stage in stages:
        for verb in stage.verbs:
            series.setdefault(verb, []).append((stage.pods, stage.total(verb)))
            floor = stage.floor(verb)
            if floor is not None:
                series.setdefault(f"{verb}, floor", []).append((stage.pods, floor))
        series.setdefault("processor, all verbs", []).append((stage.pods, stage.cpu))
    title = f"One pod's list of plugins on a node with many pods: {name}"
    return chart.lines(series, title, "pods on the node", "milliseconds")


def measure_bursts(ours: Path, scratch: Path, options: argparse.Namespace) -> list[Json]:
    """Bursts through the server, by exec, and with the Go plugins, each on a node of its own."""
    ways = {"server": (ours, True), "exec with Python": (ours, False)}
    if (options.go_bin_dir / "bridge").exists():
        ways["go"] = (options.go_bin_dir, False)
    else:
        print(f"bench-node: no {options.go_bin_dir / 'bridge'}", file=sys.stderr)
    pods = burst.QUICK_PODS if options.quick else burst.PODS
    waits = burst.measure_all(ways, scratch, pods, burst.SIZES, 1)
    print(f"\nbursts (ms)\n{burst.markdown(waits)}")
    return [each._asdict() for each in waits]


def show(stage: Stage) -> None:
    for verb, took in stage.verbs.items():
        bridge, everything, floor = took["bridge"], stage.total(verb), stage.floor(verb)
        shown = f"{floor:9.2f}" if floor is not None else f"{'–':>9}"
        by_exec = sum(stage.by_exec[verb].values())
        cells = f"{bridge:9.2f} {everything - bridge:9.2f} {everything:9.2f} {shown} {by_exec:9.2f}"
        more = f" {stage.cpu:9.2f} {stage.memory:9.1f}" if verb == "ADD" else ""
        print(f"{stage.pods:5} {verb:6} {cells}{more}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
