"""Where a run through the server spends its time, and how far it is from the floor (floor.py)."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cni.artifact import build_of

from .cases import Case
from .measure import Node, PluginFailedError, Sample
from .series import PYTHON, add_and_delete

# What of a run lies between which of the server's marks (cni/server/trace.py).
PARTS = {
    "client": ("start", "accepted"),  # its start, reading stdin; the queue: nobody else is in it
    "decode": ("accepted", "decoded"),
    "hand over": ("decoded", "ready"),  # waiting for the client's descriptors
    "plugin": ("ready", "done"),
    "encode": ("done", "encoded"),
    "reply": ("encoded", "replied"),
    "end": ("replied", "end"),
}
CASES = (
    "loopback", "host-local", "bridge", "bridge, ipMasq (iptables)", "bridge, ipMasq (nftables)",
    "firewall (iptables)", "firewall (nftables)", "portmap (nftables)", "tuning", "sbr",
)  # fmt: skip


@dataclass
class Split:
    """Medians in ms; `floor` is None where there is none."""

    case: str
    verb: str
    parts: dict[str, float]
    total: float
    floor: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def measure(
    cases: Sequence[Case], node: Node, trace: Path, rounds: int, floor: dict[str, float]
) -> list[Split]:
    """Each case on a node whose server writes `trace`."""
    found = []
    for case in cases:
        samples: dict[str, list[Sample]] = {"ADD": [], "DEL": []}
        try:
            for number in range(rounds + 1):
                with case.around(node):
                    times = zip(samples, add_and_delete(node, case.conf(node)), strict=True)
                for verb, sample in times if number else ():
                    samples[verb].append(sample)
        except PluginFailedError as error:
            print(f"  {case.name}: {error}", file=sys.stderr)
            continue
        marks = _read(trace)
        for verb, taken in samples.items():
            of_verb = [marked for sample in taken if (marked := _matching(marks, sample))]
            if of_verb:
                total = statistics.median(sample.wall for sample in taken)
                limit = floor.get(f"{case.name} {verb}")
                found.append(Split(case.name, verb, _parts(of_verb), total, limit))
    return found


def _parts(marks: list[dict[str, float]]) -> dict[str, float]:
    return {
        name: statistics.median(each[end] - each[begin] for each in marks) * 1000
        for name, (begin, end) in PARTS.items()
    }


def _read(trace: Path) -> list[dict[str, float]]:
    found = []
    for line in trace.read_text().splitlines():
        pairs = (word.partition("=") for word in line.split() if "=" in word)
        found.append({name: float(value) for name, _, value in pairs})
    return found


def _matching(marks: list[dict[str, float]], sample: Sample) -> dict[str, float] | None:
    """The server's marks of a run, with its start and end."""
    end = sample.start + sample.wall / 1000
    for each in marks:
        if sample.start <= each.get("accepted", 0.0) <= end and "done" in each:
            return {**each, "start": sample.start, "end": end}
    return None


def run_inside(script: str, node: Node, rounds: int, *more: str) -> dict[str, float]:
    """What inside.py or floor.py measures in a process of the node's; empty if it fails.

    `more` are further arguments of the script.
    """
    tree = node.bin_dir / f".cni-{build_of(node.bin_dir / 'cni')}"
    path = Path(__file__).with_name(script)
    argv = [PYTHON, "-I", "-S", path, tree, node.container.path, str(rounds), *more]
    done = node.host.exec(argv, check=False)
    if done.returncode != 0:
        print(f"  {script}: {done.stderr}", file=sys.stderr)
        return {}
    return dict(json.loads(done.stdout))
