"""Many pods at once: what each of them waits for, not only how many there are a second.

    .venv/bin/python -m tests.bench.burst                  # 200 pods, 16 and 64 at a time, 3 rounds
    .venv/bin/python -m tests.bench.burst --quick          # 24 pods, once
    .venv/bin/python -m tests.bench.burst --print FILE     # the table of an earlier run

All pods get the list of plugins of chain.py, then all lose it: through a server, by exec (the
self-contained file, if there is one), and with the Go plugins, alternately, each on a node of its
own. Prints the table of docs/performance.md ("Bursts"), and writes build/bench/bursts.json.
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
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.harness import Netns
from tests.harness.build import GO_BIN_DIR, ROOT, install_dist

from . import chain
from .measure import Attachment, Json, Node, PluginFailedError

SIZES = (16, 64)
PODS, QUICK_PODS = 200, 24
ROUNDS = 3
SELF_CONTAINED = ROOT / f"dist/cni-linux-{os.uname().machine}"
_VERBS = {"ADD": "up", "DEL": "down"}
_COLUMNS = ("at a time", "pods a second", "p50", "p95", "p99", "slowest", "longest request")


class Burst(NamedTuple):
    """A burst: what each pod waited for its list of plugins (ms), how long all took (s), and the
    longest request of a single plugin (ms).
    """

    node: str
    verb: str
    at_a_time: int
    taken: list[float]
    seconds: float
    longest: float


class Waits(NamedTuple):
    """What the pods of some bursts waited for (ms); `a_second`: pods, the median of the bursts."""

    node: str
    verb: str
    at_a_time: int
    a_second: float
    p50: float
    p95: float
    p99: float
    slowest: float
    longest: float

    @classmethod
    def of(cls, bursts: Sequence[Burst]) -> Waits:
        """Those of the same node, verb and size."""
        node, verb, at_a_time, *_ = bursts[0]
        rate = statistics.median(len(each.taken) / each.seconds for each in bursts)
        taken = sorted(ms for each in bursts for ms in each.taken)
        quantiles = (_quantile(taken, q) for q in (0.5, 0.95, 0.99, 1))
        return cls(node, verb, at_a_time, rate, *quantiles, max(each.longest for each in bursts))


def _quantile(taken: Sequence[float], part: float) -> float:
    """Of sorted values."""
    return taken[min(int(part * len(taken)), len(taken) - 1)]


def measure(node: Node, pods: int, at_a_time: int, *, nftables: bool = False) -> list[Burst]:
    """All pods up, so many at a time, then all down. Raises PluginFailedError."""
    plugins = chain.conflist(node, nftables=nftables)
    with ExitStack() as stack:
        netns = [stack.enter_context(Netns(f"pod{number}")) for number in range(pods)]
        wheres = [Attachment(f"pod{number}", each.path) for number, each in enumerate(netns)]
        results: list[Json] = [{}] * pods
        longest: dict[str, float] = dict.fromkeys(_VERBS, 0.0)

        def run(verb: str, number: int) -> float:
            total = 0.0
            for plugin in plugins if verb == "ADD" else reversed(plugins):
                conf = chain.completed(plugin, 20000 + number, results[number])
                sample, result = node.plugin_here(verb, conf, wheres[number])
                results[number] = result or results[number]
                total += sample.wall
                longest[verb] = max(longest[verb], sample.wall)
            return total

        bursts = []
        with ThreadPoolExecutor(at_a_time, initializer=node.host.enter) as pool:
            for verb in _VERBS:
                began = time.perf_counter()
                taken = list(pool.map(run, [verb] * pods, range(pods)))
                seconds = time.perf_counter() - began
                bursts.append(Burst(node.name, verb, at_a_time, taken, seconds, longest[verb]))
        return bursts


def measure_all(
    ways: dict[str, tuple[Path, bool]],
    scratch: Path,
    pods: int,
    sizes: Iterable[int],
    rounds: int,
    *,
    nftables: bool = False,
) -> list[Waits]:
    """Bursts of each size on each node; `ways`: name -> where its plugins are, has it a server?

    The nodes alternate, so that other work on the machine concerns all. Raises PluginFailedError.
    """
    bursts: dict[tuple[str, str, int], list[Burst]] = {}
    with ExitStack() as stack:
        nodes = []
        for name, (bin_dir, server) in ways.items():
            nodes.append(Node(f"burst-{name}", bin_dir, scratch, server=server))
            stack.callback(nodes[-1].close)
            nodes[-1].name = name  # by which chain.py knows the Go plugins
        for size in sizes:
            for number in range(rounds):
                for node in nodes:
                    for each in measure(node, pods, size, nftables=nftables):
                        bursts.setdefault((each.verb, each.node, size), []).append(each)
                    said = f"{node.name}, {size} at a time: {number + 1} of {rounds}"
                    print(f"  {said}", file=sys.stderr, flush=True)
    return sorted((Waits.of(each) for each in bursts.values()), key=lambda w: (w.at_a_time, w.verb))


def markdown(waits: Iterable[Waits]) -> str:
    """The table of docs/performance.md."""
    lines = [f"| | {' | '.join(_COLUMNS)} |", "|---" + "|--:" * len(_COLUMNS) + "|"]
    for each in waits:
        rate = f"{each.a_second:.{0 if each.a_second >= 20 else 1}f}"
        cells = [str(each.at_a_time), rate, *(f"{ms:.0f}" for ms in each[4:])]
        node = "Go" if each.node == "go" else each.node
        lines.append(f"| {_VERBS[each.verb]}, {node} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    if options.print:
        document = json.loads(options.print.read_text())
        print(markdown(Waits(**each) for each in document["bursts"]))
        return 0
    if os.geteuid() != 0:
        print("bench: needs root, to make network namespaces", file=sys.stderr)
        return 1
    scratch = Path(tempfile.mkdtemp(prefix="cni-burst-"))
    try:
        waits = measure_all(
            _ways(options, scratch),
            scratch,
            options.pods or (QUICK_PODS if options.quick else PODS),
            options.at_a_time or SIZES,
            options.rounds or (1 if options.quick else ROUNDS),
            nftables=options.nftables,
        )
    except PluginFailedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        json.dumps({"bursts": [each._asdict() for each in waits]}, indent=2) + "\n"
    )
    print(markdown(waits))
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench.burst", description=__doc__.split("\n")[0])
    parser.add_argument("--pods", type=int, help=f"in each burst ({PODS})")
    parser.add_argument(
        "--at-a-time", type=int, action="append", metavar="N", help=f"(repeatable) {SIZES}"
    )
    parser.add_argument("--rounds", type=int, help=f"bursts of each kind ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PODS} pods, one round")
    parser.add_argument("--nftables", action="store_true", help="(not for the Go plugins)")
    parser.add_argument("--bin-dir", type=Path, help="our plugins, installed (for the server)")
    parser.add_argument(
        "--self-contained", type=Path, default=SELF_CONTAINED, metavar="FILE", help="(by exec)"
    )
    parser.add_argument("--go-bin-dir", type=Path, default=GO_BIN_DIR, metavar="DIR")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench/bursts.json")
    parser.add_argument("--print", type=Path, metavar="FILE", help="print the table in this JSON")
    return parser.parse_args(arguments)


def _ways(options: argparse.Namespace, scratch: Path) -> dict[str, tuple[Path, bool]]:
    """The implementations that are there, as `measure_all` takes them."""
    ours = options.bin_dir or install_dist(scratch / "bin")
    ways = {"server": (ours, True)}
    if options.self_contained.exists():
        ways["exec"] = (install_dist(scratch / "alone-bin", options.self_contained), False)
    else:
        print(f"bench: no {options.self_contained} (make build-selfcontained)", file=sys.stderr)
        ways["exec with Python"] = (ours, False)
    if (options.go_bin_dir / "bridge").exists():
        ways["go"] = (options.go_bin_dir, False)
    else:
        print(f"bench: no {options.go_bin_dir / 'bridge'}", file=sys.stderr)
    return ways


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
