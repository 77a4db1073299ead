"""How long our plugins take, next to the Go plugins, in the same run.

    make bench
    .venv/bin/python -m tests.bench --quick --only bridge

Every case runs alternately with both implementations, each on a node (a network namespace) of its
own; what is compared are medians. Nothing here fails because something is slow, unless --check
asks for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import attack, chain, series, split, weight
from tests.bench.cases import CASES, Case
from tests.bench.measure import Node, PluginFailedError
from tests.bench.report import Report, environment
from tests.harness.build import GO_BIN_DIR, ROOT, install_dist
from tests.harness.requires import missing

OUTPUT = ROOT / "build/bench"
SELF_CONTAINED = ROOT / f"dist/cni-linux-{os.uname().machine}"
QUICK_ROUNDS = 5
PODS, QUICK_PODS = 200, 32
DHCP_LEASES, QUICK_DHCP_LEASES = 100, 10
ONLY_HELP = (
    "only cases whose name has NAME in it (may be repeated); also growth, published, attack, pods, "
    "dhcp, split, parts, memory"
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="runs of each case (20)")
    parser.add_argument("--only", action="append", metavar="NAME", help=ONLY_HELP)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, and less")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is not met")
    parser.add_argument(
        "--json", type=Path, default=OUTPUT / "bench.json", metavar="FILE", help="where to write"
    )
    parser.add_argument("--bin-dir", type=Path, help="our plugins, installed (instead of a build)")
    parser.add_argument(
        "--go-bin-dir",
        type=Path,
        default=GO_BIN_DIR,
        metavar="DIR",
        help=f"the Go plugins, such as a newer build than Debian's ({GO_BIN_DIR})",
    )
    parser.add_argument(
        "--self-contained",
        type=Path,
        default=SELF_CONTAINED,
        metavar="FILE",
        help=f"the self-contained file, measured by exec without a server ({SELF_CONTAINED.name})",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if os.geteuid() != 0:
        print("bench: needs root, to make network namespaces", file=sys.stderr)
        return 1
    scratch = Path(tempfile.mkdtemp(prefix="cni-bench-"))
    nodes: list[Node] = []
    try:
        ours = options.bin_dir or install_dist(scratch / "bin")
        nodes.append(Node("ours", ours, scratch))
        nodes.append(Node("warm", ours, scratch, server=True))
        if options.self_contained.exists():
            alone = install_dist(scratch / "alone-bin", options.self_contained)
            nodes.append(Node("alone", alone, scratch))
        else:
            print(f"bench: no {options.self_contained} (make build-selfcontained)", file=sys.stderr)
        if (options.go_bin_dir / "bridge").exists():
            nodes.append(Node("go", options.go_bin_dir, scratch))
        else:
            print("bench: no Go plugins (package containernetworking-plugins)", file=sys.stderr)
        met = Run(nodes, options, scratch).everything()
    finally:
        for node in nodes:
            node.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return 1 if options.check and not met else 0


class Run:
    """One run of the bench; what `--only` leaves out is left out."""

    def __init__(self, nodes: list[Node], options: argparse.Namespace, scratch: Path) -> None:
        self.nodes = nodes
        self.options = options
        self.scratch = scratch
        self.quick: bool = options.quick
        self.rounds = QUICK_ROUNDS if self.quick else max(options.rounds, 1)
        facts = environment(nodes[0].bin_dir, options.go_bin_dir)
        self.report = Report(facts, self.rounds)

    def everything(self) -> bool:
        """Were all limits kept?"""
        report, nodes, rounds = self.report, self.nodes, self.rounds
        report.begin()
        report.add(series.measure_baseline(nodes[0], rounds))
        if self._wants("loopback"):
            report.add(series.measure_version(nodes, rounds))
        for case in CASES:
            if self._wants(case.name) and _is_possible(case):
                report.add(series.measure_case(case, nodes, rounds))
        self._chains()
        if self._wants("dhcp"):
            leases = QUICK_DHCP_LEASES if self.quick else DHCP_LEASES
            rows, memory = series.measure_dhcp(nodes, rounds, leases)
            report.add(rows)
            for name, kib in memory.items():
                print(f"dhcp daemon, {name}: {kib:.1f} KiB a lease")
        if self._wants("growth"):
            few = series.FEW_LEASES if self.quick else series.LEASES
            report.add_growth(series.measure_growth(nodes, rounds, few))
        if self._wants("published"):
            report.add_published(series.measure_published(nodes, rounds))
        if self._wants("attack"):
            report.add_attacks(attack.measure(nodes, quick=self.quick))
        alone = [node for node in nodes if node.name == "alone"]
        if alone and self._wants("memory"):
            report.add_weight(weight.measure(alone[0]))
        self._inside()
        picture, met = report.end(self.options.json)
        print(f"\n{_shown(self.options.json)}, {_shown(picture)}")
        return met

    def _wants(self, name: str) -> bool:
        return not self.options.only or any(text in name for text in self.options.only)

    def _chains(self) -> None:
        for name, nftables in (("chain", False), ("chain (nftables)", True)):
            if self._wants(name):
                try:
                    rows = chain.measure(self.nodes, self.rounds, nftables=nftables)
                    self.report.add(rows)
                except PluginFailedError as error:
                    print(f"  {name}: {error}", file=sys.stderr)
        if self._wants("pods"):
            pods = QUICK_PODS if self.quick else PODS
            self.report.add_rates(chain.measure_pods(self.nodes, pods))

    def _inside(self) -> None:
        """The floor, the split and the parts, which need no comparison."""
        if self._wants("split"):
            trace = self.scratch / "trace"
            node = Node("traced", self.nodes[0].bin_dir, self.scratch, server=True, trace=trace)
            try:
                floor = split.run_inside("floor.py", node, self.rounds)
                cases = [case for case in CASES if case.name in split.CASES and _is_possible(case)]
                splits = split.measure(cases, node, trace, self.rounds, floor)
                self.report.add_splits(splits)
            finally:
                node.close()
        if self._wants("parts"):
            self.report.add_parts(split.run_inside("inside.py", self.nodes[0], self.rounds))


def _is_possible(case: Case) -> bool:
    """Has the machine what the case needs? Says what is missing."""
    problem = missing(case.needs) if case.needs else None
    if problem is not None:
        print(f"{case.name:36} this kernel has no {case.needs} ({problem})")
    elif case.program and shutil.which(case.program) is None:
        problem = f"{case.program} is not installed"
        print(f"{case.name:36} {problem}")
    return problem is None


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
