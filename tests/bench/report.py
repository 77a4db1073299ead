"""What the bench prints and writes: table, JSON, chart."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cni.artifact import build_of

from . import chart, limits
from .attack import Attack
from .chain import AT_A_TIME, Rates
from .limits import Verdict
from .measure import Json, Row
from .series import PYTHON, growth
from .split import PARTS, Split


def environment(ours: Path) -> Json:
    """The machine and the versions that the figures belong to."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": _output(PYTHON, "--version").removeprefix("Python "),
        "build": build_of(ours / "cni") if (ours / "cni").exists() else "",
        "load": os.getloadavg()[0],
        "packages": _packages("containernetworking-plugins", "libnftables1", "iptables"),
    }


def _packages(*names: str) -> dict[str, str]:
    text = _output("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *names)
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


def _output(*argv: str) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


@dataclass
class Report:
    """Everything measured so far; each thing is printed when it is added."""

    facts: Json
    rounds: int
    rows: list[Row] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    more: Json = field(default_factory=dict)

    def begin(self) -> None:
        facts = self.facts
        print(
            f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, "
            f"load {facts['load']:.1f}"
        )
        versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
        print(f"Python {facts['python']}, build {facts['build']}; {versions}")
        print(
            f"Medians of {self.rounds} rounds in ms: through the server, by exec (every other "
            "round),\nDebian's Go plugins; ×python: exec to `python3 -I -S -c pass` in the same "
            "rounds;\n✓ or ✗: server:Go and its limit (tests/bench/limits.py), met or not.\n"
        )
        heads = ("server", "exec", "Go", "server:Go", "exec:Go", "×python")
        print(f"{'':36} {'':4} {' '.join(f'{head:>8}' for head in heads)}")

    def add(self, rows: Sequence[Row]) -> None:
        """Lines of the main table."""
        for row in rows:
            warm, ours, go = (row.times.get(name) for name in ("warm", "ours", "go"))
            cells = [
                number(warm and warm.median, 8, 2),
                number(ours and ours.median, 8),
                number(go and go.median, 8),
                number(row.ratio("warm"), 9, 2),
                number(row.ratio("ours"), 8, 2),
                number(row.to_python, 8),
            ]
            line = f"{row.case:36} {row.verb:4} {' '.join(cells)}  {limits.mark(row)}"
            print(line.rstrip(), flush=True)
            self.rows.append(row)
            self.verdicts += limits.of_row(row)

    def add_growth(self, rows: Sequence[Row]) -> None:
        self.add(rows)
        self.more["growth"] = growth(list(rows))
        print("\nGrowth: times as long as with 10 leases      server     exec       Go")
        for name, each in self.more["growth"].items():
            cells = [number(each.get(key), 8, 2) for key in ("warm", "ours", "go")]
            print(f"{name:42} {' '.join(cells)}")

    def add_published(self, rows: Sequence[Row]) -> None:
        self.add(rows)
        self.more["published"] = growth(list(rows))
        for name, each in self.more["published"].items():
            if name.endswith("ADD"):
                what = f"{name}, server : with 1"
                self.verdicts.append(Verdict(what, each["warm"], limits.PUBLISHED))

    def add_attacks(self, attacks: Sequence[Attack]) -> None:
        print(f"\n{'Under attack (ms)':52} {'server':>8} {'other':>9}  ratio")
        for each in attacks:
            cells = f"{number(each.ours, 8)} {number(each.theirs, 9)} {number(each.ratio, 6, 2)}"
            print(f"{each.what:52} {cells}  {each.reference}")
            what = f"{each.what}, server : {each.reference}"
            self.verdicts.append(Verdict(what, each.ratio, each.limit))
        self.more["attack"] = [{**asdict(each), "ratio": each.ratio} for each in attacks]

    def add_rates(self, rates: Sequence[Rates]) -> None:
        print(f"\nPods a second, the chain, {AT_A_TIME} at a time      server       Go  ratio")
        for each in rates:
            warm, go = (each.a_second.get(name) for name in ("warm", "go"))
            cells = f"{number(warm, 8)} {number(go, 8)} {number(each.ratio, 6, 2)}"
            print(f"{each.pods} pods {each.verb:34} {cells}")
            self.rates.append(each)
            if each.ratio is not None:
                what = f"{each.pods} pods {each.verb}, pods a second, server : Go"
                self.verdicts.append(Verdict(what, each.ratio, limits.PODS, at_least=True))

    def add_splits(self, splits: Sequence[Split]) -> None:
        heads = " ".join(f"{head:>9}" for head in (*PARTS, "total", "floor"))
        print(f"\nWhere a run through the server spends its time (ms)\n{'':36} {heads}")
        for each in splits:
            cells = [number(each.parts[name], 9, 2) for name in PARTS]
            cells += [number(each.total, 9, 2), number(each.floor, 9, 2)]
            print(f"{each.case:31} {each.verb:4} {' '.join(cells)}")
            self.splits.append(each)

    def add_parts(self, parts: dict[str, float]) -> None:
        print("\nThe parts of a run of ours (ms)")
        for name, value in parts.items():
            print(f"{name:54} {value:8.3f}")
        self.more["parts_ms"] = parts

    def end(self, path: Path) -> tuple[Path, bool]:
        """Print the limits, write the JSON file and the chart beside it: its path; all met?"""
        print("\nLimits (tests/bench/limits.py)")
        for verdict in self.verdicts:
            print(verdict)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._document(), indent=2) + "\n")
        picture = path.with_suffix(".svg")
        facts = self.facts
        subtitle = (
            f"medians; Linux {facts['kernel']}, Python {facts['python']}, "
            f"{facts['cpus']} CPUs; shorter is better; × = to Go"
        )
        # only rows with a limit: one that takes Go half a second would make all others invisible
        rows = [row for row in self.rows if limits.of_row(row)] or self.rows
        picture.write_text(chart.draw(rows, "One plugin run", subtitle))
        return picture, all(verdict.met for verdict in self.verdicts)

    def _document(self) -> Json:
        return {
            "environment": self.facts,
            "rows": [
                {
                    "case": row.case,
                    "verb": row.verb,
                    "ratio": {name: row.ratio(name) for name in ("warm", "ours")},
                    "to_python": row.to_python,
                    **{key: asdict(time) for key, time in row.times.items()},
                }
                for row in self.rows
            ],
            "pods": [{**asdict(each), "ratio": each.ratio} for each in self.rates],
            "split_ms": [each.as_dict() for each in self.splits],
            "limits": [{**each._asdict(), "met": each.met} for each in self.verdicts],
            **self.more,
        }


def number(value: float | None, width: int, digits: int = 1) -> str:
    return " " * (width - 1) + "–" if value is None else f"{value:{width}.{digits}f}"
