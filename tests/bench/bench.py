"""How long our plugins take, next to Debian's Go plugins, in the same run.

    make bench
    .venv/bin/python -m tests.bench --quick --only bridge

Every case runs alternately with both implementations, each on a node (a network namespace) of its
own; what is compared are medians. Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cni.install import build_of
from tests.bench import chart, dhcp
from tests.bench.measure import Json, Node, PluginFailedError, Row, Sample, Summary, alternate
from tests.harness.build import GO_BIN_DIR, ROOT, install_dist
from tests.harness.requires import missing

OUTPUT = ROOT / "build/bench"
PYTHON = "/usr/bin/python3"
BARE_PYTHON = [PYTHON, "-I", "-S", "-c", "pass"]
VERSION = "1.0.0"  # the newest that both implementations speak
ONLY_HELP = "only cases whose name has NAME in it (may be repeated)"


# Reservations that are there already, in a /16; the nearly full one has a free address every 997.
GROWTH: dict[str, Sequence[int]] = {
    "10 leases": range(2, 12),
    "1 000 leases": range(2, 1002),
    "60 000 leases": range(2, 60002),
    "nearly full /16": [n for n in range(2, 65535) if n % 997],
}
GROWTH_ROUNDS = 7  # Go takes seconds for some
PUBLISHED = (1, 1000)


# --- measuring ---------------------------------------------------------------------------------


def measure_case(case: Case, nodes: list[Node], rounds: int) -> list[Row]:
    """ADD and DEL, alternating between the nodes. A node on which it fails is left out."""
    samples: dict[str, dict[str, list[Sample]]] = {"ADD": {}, "DEL": {}}
    python: list[Sample] = []
    failed: set[str] = set()
    for number, node in enumerate(alternate(nodes, rounds + 1)):
        conf = case.conf(node)
        if node.name in failed or not (node.bin_dir / conf["type"]).exists():
            continue
        try:
            with case.around(node):
                added, deleted = add_and_delete(node, conf)
        except PluginFailedError as error:
            print(f"  {case.name}: {error}", file=sys.stderr)
            failed.add(node.name)
            continue
        if node is nodes[0]:
            python.append(node.command(BARE_PYTHON))
        if number >= len(nodes):  # the first round fills the caches and makes the bridge
            samples["ADD"].setdefault(node.name, []).append(added)
            samples["DEL"].setdefault(node.name, []).append(deleted)
    bare = Summary.of(python) if python else None
    return [
        Row(case.name, verb, summaries(taken, nodes, failed), bare)
        for verb, taken in samples.items()
    ]


def summaries(
    samples: dict[str, list[Sample]], nodes: list[Node], failed: set[str]
) -> dict[str, Summary]:
    order = sorted((node.name for node in nodes), key=list(chart.NAMES).index)
    kept = [name for name in order if name in samples and name not in failed]
    return {name: Summary.of(samples[name]) for name in kept}


def add_and_delete(node: Node, conf: Json, container_id: str = "c1") -> tuple[Sample, Sample]:
    added, result = node.plugin("ADD", conf, container_id)
    result["cniVersion"] = VERSION
    deleted, _ = node.plugin("DEL", {**conf, "prevResult": result}, container_id)
    return added, deleted


def measure_growth(nodes: list[Node], rounds: int) -> list[Row]:
    """host-local with that many addresses reserved already.

    Every round has all of them, so that they can be compared with each other, too.
    """
    samples: dict[str, dict[str, dict[str, list[Sample]]]] = {}
    for node in nodes:
        for label, taken in GROWTH.items():
            fill(node.data_dir / network_of(label), taken)
    for number, node in enumerate(alternate(nodes, min(rounds, GROWTH_ROUNDS) + 1)):
        for label in GROWTH:
            conf = {**simple("host-local")(node), "name": network_of(label)}
            times = zip(("ADD", "DEL"), add_and_delete(node, conf), strict=True)
            for verb, sample in times if number >= len(nodes) else ():  # see measure_case
                of_case = samples.setdefault(label, {}).setdefault(verb, {})
                of_case.setdefault(node.name, []).append(sample)
    return [
        Row(f"host-local, {label}", verb, summaries(taken, nodes, set()))
        for label, verbs in samples.items()
        for verb, taken in verbs.items()
    ]


def network_of(label: str) -> str:
    return "grow-" + "".join(filter(str.isalnum, label))


def measure_published(node: Node, rounds: int) -> list[Row]:
    """One more port with ours, on a node where that many are published already."""
    found = []
    for count in PUBLISHED:
        old = {**portmap(node), **ports(*range(10000, 10000 + count), address="10.66.1.1/16")}
        node.plugin("ADD", old, "old")
        case = Case(f"portmap, {count:,} published".replace(",", " ", 2), portmap)
        found += measure_case(case, [node], rounds)
        node.plugin("DEL", old, "old")
    return found


def measure_dhcp(nodes: list[Node], rounds: int) -> list[Row]:
    """The plugin with its daemon; prints what a lease takes of the daemon's memory."""
    if shutil.which("dnsmasq") is None:
        print("bench: no dnsmasq (package dnsmasq-base)", file=sys.stderr)
        return []
    rows, memory = dhcp.measure(nodes, rounds, VERSION)
    for row in rows:
        print_row(row)
    for name, kib in memory.items():
        print(f"dhcp daemon, {name}: {kib:.1f} KiB a lease")
    return rows


def fill(directory: Path, taken: Sequence[int]) -> None:
    """Reservations as either implementation writes them."""
    directory.mkdir(parents=True)
    for number in taken:
        address = f"10.66.{number >> 8}.{number & 255}"
        (directory / address).write_text(f"old{number}\r\neth0")
    last = taken[-1]
    (directory / "last_reserved_ip.0").write_text(f"10.66.{last >> 8}.{last & 255}")


def growth(rows: list[Row]) -> dict[str, dict[str, float]]:
    """How many times as long as with the fewest leases, by case and verb, by implementation."""
    found = {}
    for verb in ("ADD", "DEL"):
        fewest, *more = [row for row in rows if row.verb == verb]
        for row in more:
            found[f"{row.case} {verb}"] = {
                name: row.times[name].median / fewest.times[name].median
                for name in row.times
                if name in fewest.times
            }
    return found


def measure_baseline(node: Node, rounds: int) -> list[Row]:
    """What no plugin can be faster than: the interpreter's start, and starting anything at all."""
    commands = {
        "python3 -I -S -c pass": BARE_PYTHON,
        "sh -c :": ["/bin/sh", "-c", ":"],
        "/bin/true (what measuring costs)": ["/bin/true"],
    }
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, argv in commands.items():
            samples[name].append(node.command(argv))
    return [Row(name, "", {"ours": Summary.of(taken)}) for name, taken in samples.items()]


def measure_parts(node: Node, rounds: int) -> dict[str, float]:
    """Executor and netlink, from inside a small process (inside.py)."""
    tree = node.bin_dir / f".cni-{build_of(node.bin_dir / 'cni')}"
    script = Path(__file__).with_name("inside.py")
    done = node.host.exec(
        [PYTHON, "-I", "-S", script, tree, node.container.path, str(rounds)], check=False
    )
    if done.returncode != 0:
        print(f"  parts: {done.stderr}", file=sys.stderr)
        return {}
    return dict(json.loads(done.stdout))


# --- the report --------------------------------------------------------------------------------


def environment(ours: Path) -> Json:
    """The machine and the versions that the figures belong to."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": output(PYTHON, "--version").removeprefix("Python "),
        "build": build_of(ours / "cni") if (ours / "cni").exists() else "",
        "load": os.getloadavg()[0],
        "packages": packages("containernetworking-plugins", "libnftables1", "iptables"),
    }


def packages(*names: str) -> dict[str, str]:
    text = output("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *names)
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


def output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


def print_header(facts: Json, rounds: int) -> None:
    print(
        f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, load {facts['load']:.1f}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    print(f"Python {facts['python']}, build {facts['build']}; {versions}")
    print(f"Medians of {rounds} rounds in ms: through the server, by exec, Debian's Go plugins;")
    print("×python: exec to `python3 -I -S -c pass` in the same rounds.\n")
    heads = [f"{head:>8}" for head in ("server", "exec", "Go", "server:Go", "exec:Go", "×python")]
    print(f"{'':36} {'':4} {' '.join(heads)}")


def print_row(row: Row) -> None:
    warm, ours, go = (row.times.get(name) for name in ("warm", "ours", "go"))
    cells = [
        number(warm and warm.median, 8, 2),
        number(ours and ours.median, 8),
        number(go and go.median, 8),
        number(row.ratio("warm"), 9, 2),
        number(row.ratio("ours"), 8, 2),
        number(row.to_python, 8),
    ]
    print(f"{row.case:36} {row.verb:4} {' '.join(cells)}", flush=True)


def number(value: float | None, width: int, digits: int = 1) -> str:
    return " " * (width - 1) + "–" if value is None else f"{value:{width}.{digits}f}"


def write(rows: list[Row], more: Json, facts: Json, path: Path) -> Path:
    """The JSON file, and the chart beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "case": row.case,
            "verb": row.verb,
            "ratio": {name: row.ratio(name) for name in ("warm", "ours")},
            "to_python": row.to_python,
            **{key: asdict(time) for key, time in row.times.items()},
        }
        for row in rows
    ]
    document = {"environment": facts, "rows": lines, **more}
    path.write_text(json.dumps(document, indent=2) + "\n")
    picture = path.with_suffix(".svg")
    subtitle = (
        f"medians; Linux {facts['kernel']}, Python {facts['python']}, "
        f"{facts['cpus']} CPUs; shorter is better; × = to Go"
    )
    picture.write_text(chart.draw([row for row in rows if row.verb], "One plugin run", subtitle))
    return picture


# --- the command -------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="runs of each case (30)")
    parser.add_argument("--only", action="append", metavar="NAME", help=ONLY_HELP)
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    parser.add_argument(
        "--json", type=Path, default=OUTPUT / "bench.json", metavar="FILE", help="where to write"
    )
    parser.add_argument("--bin-dir", type=Path, help="our plugins, installed (instead of a build)")
    parser.add_argument("--go-bin-dir", type=Path, default=GO_BIN_DIR, help="the Go plugins")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    if os.geteuid() != 0:
        print("bench: needs root, to make network namespaces", file=sys.stderr)
        return 1
    rounds = 5 if options.quick else max(options.rounds, 1)
    scratch = Path(tempfile.mkdtemp(prefix="cni-bench-"))
    nodes: list[Node] = []
    try:
        ours = options.bin_dir or install_dist(scratch / "bin")
        nodes.append(Node("ours", ours, scratch))
        nodes.append(Node("warm", ours, scratch, server=True))
        if (options.go_bin_dir / "bridge").exists():
            nodes.append(Node("go", options.go_bin_dir, scratch))
        else:
            print("bench: no Go plugins (package containernetworking-plugins)", file=sys.stderr)
        run(nodes, rounds, options)
    finally:
        for node in nodes:
            node.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


def possible(case: Case) -> bool:
    """Has the kernel what the case needs? Says what is missing."""
    problem = missing(case.needs) if case.needs else None
    if problem is not None:
        print(f"{case.name:36} this kernel has no {case.needs} ({problem})")
    return problem is None


def run(nodes: list[Node], rounds: int, options: argparse.Namespace) -> None:
    facts = environment(nodes[0].bin_dir)
    print_header(facts, rounds)

    def wanted(name: str) -> bool:
        return not options.only or any(text in name for text in options.only)

    found = measure_baseline(nodes[0], rounds)
    for row in found:
        print_row(row)
    for case in CASES:
        if wanted(case.name) and possible(case):
            for row in measure_case(case, nodes, rounds):
                print_row(row)
                found.append(row)
    ratios = run_growth(nodes, rounds, found) if wanted("growth") else {}
    if wanted("growth"):
        for row in measure_published(nodes[0], rounds):
            print_row(row)
            found.append(row)
    found += measure_dhcp(nodes, rounds) if wanted("dhcp") else []
    parts = measure_parts(nodes[0], rounds) if wanted("parts") else {}
    if parts:
        print("\nThe parts of a run of ours")
    for name, value in parts.items():
        print(f"{name:54} {value:8.3f}")
    picture = write(found, {"parts_ms": parts, "growth": ratios}, facts, options.json)
    print(f"\n{shown(options.json)}, {shown(picture)}")


def run_growth(nodes: list[Node], rounds: int, found: list[Row]) -> dict[str, dict[str, float]]:
    """Measure it, print it, and add the rows to `found`; the ratios."""
    rows = measure_growth(nodes, rounds)
    for row in rows:
        print_row(row)
    found += rows
    ratios = growth(rows)
    print("\nGrowth: times as long as with 10 leases")
    for name, each in ratios.items():
        print(f"{name:42} {number(each.get('ours'), 8, 2)} {number(each.get('go'), 8, 2)}")
    return ratios


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
