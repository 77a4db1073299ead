"""Many pods at once: what each of them waits for, not only how many there are a second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

from tests.harness import Netns

from . import chain
from .measure import Attachment, Json, Node

SIZES = (16, 64)
PODS, QUICK_PODS = 200, 40


class Waits(NamedTuple):
    """What pods waited for their list of plugins (ms), and the longest request of one plugin."""

    node: str
    verb: str
    at_a_time: int
    a_second: float
    p50: float
    p95: float
    p99: float
    slowest: float
    longest: float


def measure(node: Node, pods: int, at_a_time: int, *, nftables: bool = False) -> list[Waits]:
    """All pods up, so many at a time, then all down."""
    plugins = chain.conflist(node, nftables=nftables)
    with ExitStack() as stack:
        netns = [stack.enter_context(Netns(f"pod{number}")) for number in range(pods)]
        wheres = [Attachment(f"pod{number}", each.path) for number, each in enumerate(netns)]
        results: list[Json] = [{}] * pods
        longest: dict[str, float] = {"ADD": 0.0, "DEL": 0.0}

        def run(verb: str, number: int) -> float:
            total = 0.0
            for plugin in plugins if verb == "ADD" else reversed(plugins):
                conf = chain.completed(plugin, 20000 + number, results[number])
                sample, result = node.plugin_here(verb, conf, wheres[number])
                results[number] = result or results[number]
                total += sample.wall
                longest[verb] = max(longest[verb], sample.wall)
            return total

        waits = []
        with ThreadPoolExecutor(at_a_time, initializer=node.host.enter) as pool:
            for verb in ("ADD", "DEL"):
                began = time.perf_counter()
                taken = sorted(pool.map(run, [verb] * pods, range(pods)))
                rate = pods / (time.perf_counter() - began)
                quantiles = (_quantile(taken, q) for q in (0.5, 0.95, 0.99, 1))
                waits.append(Waits(node.name, verb, at_a_time, rate, *quantiles, longest[verb]))
        return waits


def _quantile(taken: Sequence[float], part: float) -> float:
    """Of sorted values."""
    return taken[min(int(part * len(taken)), len(taken) - 1)]


def show(waits: Sequence[Waits]) -> None:
    """A line for each."""
    heads = ("pods/s", "p50", "p95", "p99", "slowest", "longest")
    print(f"\n{'burst':16}" + "".join(f"{head:>9}" for head in heads) + "   (ms)")
    for each in waits:
        what = f"{each.node} {each.verb} {each.at_a_time}"
        print(f"{what:16}" + "".join(f"{value:9.1f}" for value in each[3:]), flush=True)
