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
from .measure import CPU, WALL, Json, Row
from .series import PYTHON, growth
from .split import PARTS, Split
from .weight import Weight

# Verbs whose processor time is shown. That of a server is not its client's, so it is not.
OF_PROCESSOR = ("DEL", "CHECK", "STATUS")
OURS = ("warm", "alone", "ours")

_LEGEND = """\
Medians of {rounds} rounds in ms: through the server; the self-contained file by exec (alone); by
exec on the node's Python (every other round); the Go plugins. ×python: exec to `python3 -I -S -c
pass` in the same rounds. Lines with `cpu` are of processor time. ✓ or ✗: limits
(tests/bench/limits.py) of server:Go, exec:Go and alone:Go, in this order, met or not.
"""


def environment(ours: Path, go: Path) -> Json:
    """The machine and the versions that the figures belong to."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": _output(PYTHON, "--version").removeprefix("Python "),
        "build": build_of(ours / "cni") if (ours / "cni").exists() else "",
        "go": _output(str(go / "bridge")).partition("\n")[0],
        "load": os.getloadavg()[0],
        "packages": _packages("containernetworking-plugins", "libnftables1", "iptables"),
    }


def _packages(*names: str) -> dict[str, str]:
    text = _output("dpkg-query", "-W", "-f", "${Package} ${Version}\n", *names)
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return (done.stdout or done.stderr).strip()
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
        print(f"Go plugins: {facts['go'] or 'none'}")
        print(_LEGEND.format(rounds=self.rounds))
        heads = ("server", "alone", "exec", "Go", "server:Go", "alone:Go", "exec:Go", "×python")
        print(f"{'':36} {'':7} {' '.join(f'{head:>8}' for head in heads)}")

    def add(self, rows: Sequence[Row]) -> None:
        """Lines of the main table."""
        for row in rows:
            line = f"{row.case:36} {row.verb:7} {_cells(row, WALL)} {number(row.to_python, 8)}"
            print(f"{line}  {limits.mark(row)}".rstrip(), flush=True)
            if row.verb in OF_PROCESSOR:
                print(f"{'':36} {'  cpu':7} {_cells(row, CPU)}".rstrip(), flush=True)
            self.rows.append(row)
            self.verdicts += limits.of_row(row)

    def add_weight(self, weight: Weight) -> None:
        """Memory and size of the self-contained file."""
        peak = max(weight.peaks.values())
        print("\nPeak memory of the self-contained file by exec (MB): ", end="")
        print(", ".join(f"{name} {value:.1f}" for name, value in weight.peaks.items()))
        print(f"Its size: {weight.size:.1f} MB")
        what = "peak memory, self-contained, MB"
        self.verdicts.append(Verdict(what, peak, limits.ALONE_PEAK_MB))
        self.verdicts.append(Verdict("file, self-contained, MB", weight.size, limits.ALONE_FILE_MB))
        self.more["weight_mb"] = asdict(weight)

    def add_growth(self, rows: Sequence[Row]) -> None:
        self.add(rows)
        self.more["growth"] = growth(list(rows))
        print("\nGrowth: times as long as with 10 leases      server    alone     exec       Go")
        for name, each in self.more["growth"].items():
            cells = [number(each.get(key), 8, 2) for key in ("warm", "alone", "ours", "go")]
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
        heads = " ".join(
            f"{head:>9}" for head in ("server", "alone", "Go", "server:Go", "alone:Go")
        )
        print(f"\n{f'Pods a second, the chain, {AT_A_TIME} at a time':43} {heads}")
        named = {"warm": ("server", limits.PODS), "alone": ("self-contained", limits.ALONE_PODS)}
        for each in rates:
            cells = [number(each.a_second.get(name), 9) for name in ("warm", "alone", "go")]
            cells += [number(each.ratio(name), 9, 2) for name in named]
            print(f"{f'{each.pods} pods {each.verb}':43} {' '.join(cells)}")
            self.rates.append(each)
            for name, (how, limit) in named.items():
                ratio = each.ratio(name)
                if ratio is not None:
                    what = f"{each.pods} pods {each.verb}, pods a second, {how} : Go"
                    self.verdicts.append(Verdict(what, ratio, limit, at_least=True))

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
                    "ratio": {name: row.ratio(name) for name in OURS},
                    "cpu_ratio": {name: row.ratio(name, CPU) for name in ("alone", "ours")},
                    "to_python": row.to_python,
                    **{key: asdict(time) for key, time in row.times.items()},
                }
                for row in self.rows
            ],
            "pods": [
                {**asdict(each), "ratio": {name: each.ratio(name) for name in OURS}}
                for each in self.rates
            ],
            "split_ms": [each.as_dict() for each in self.splits],
            "limits": [{**each._asdict(), "met": each.met} for each in self.verdicts],
            **self.more,
        }


def _cells(row: Row, figure: str) -> str:
    """Times, then ratios to Go."""
    names = OURS if figure == WALL else OURS[1:]
    times = [row.times.get(name) if name in (*names, "go") else None for name in (*OURS, "go")]
    digits = (2, 2, 1, 1)
    cells = [
        number(each and getattr(each, figure), 8, digit)
        for each, digit in zip(times, digits, strict=True)
    ]
    ratios = [row.ratio(name, figure) if name in names else None for name in OURS]
    return " ".join([*cells, *(number(ratio, 9, 2) for ratio in ratios)])


def number(value: float | None, width: int, digits: int = 1) -> str:
    return " " * (width - 1) + "–" if value is None else f"{value:{width}.{digits}f}"
