"""Counters of the workers' requests, in memory shared with the supervisor's other processes.

Each worker writes its own numbers, with one instruction each; a reader takes the sum over all
workers. The numbers outlive the worker: its slot goes to the next one. There is one number for each
possible plugin, verb and code, so memory and time series are bounded, whatever clients request.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence

from .. import dispatch
from ..record.exposition import Family, Sample, histogram, labels

PLUGINS = tuple(sorted(dispatch.TABLE))
VERBS = ("ADD", "CHECK", "DEL", "GC", "STATUS", "VALIDATE", "VERSION", "other")
CODES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 50, 51, 999)  # and one number for all other codes
BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
REMOVED = ("link", "reservation", "intent")  # kinds of objects that GCs remove
LOST = ("log line", "span")  # kinds of records that could not be written

_PLUGIN = {name: number for number, name in enumerate(PLUGINS)}
_VERB = {name: number for number, name in enumerate(VERBS)}
_CODE = {code: number for number, code in enumerate(CODES)}
_OTHER_VERB, _OTHER_CODE = len(VERBS) - 1, len(CODES)
_WIDTH = len(CODES) + 1
_BUCKETS = len(BOUNDS) + 1
_PAIRS = len(PLUGINS) * len(VERBS)
# The numbers of a worker, of eight bytes each, in this order.
_REQUESTS = 0
_DURATIONS = _REQUESTS + _PAIRS * _WIDTH
_REMOVED = _DURATIONS + _PAIRS * _BUCKETS
_LOST = _REMOVED + len(REMOVED)
_SUMS = _LOST + len(LOST)
_SIZE = _SUMS + _PAIRS


class Counts:
    """The numbers of one worker."""

    def __init__(self, memory: mmap.mmap, number: int) -> None:
        start = number * _SIZE * 8
        whole = memoryview(memory)[start : start + _SIZE * 8]
        self._counts = whole[: _SUMS * 8].cast("Q")
        self._sums = whole[_SUMS * 8 :].cast("d")

    def request(self, plugin: str, verb: str, code: int, seconds: float) -> None:
        """Count a request of one of PLUGINS."""
        pair = _PLUGIN[plugin] * len(VERBS) + _VERB.get(verb, _OTHER_VERB)
        self._counts[_REQUESTS + pair * _WIDTH + _CODE.get(code, _OTHER_CODE)] += 1
        self._counts[_DURATIONS + pair * _BUCKETS + bisect_left(BOUNDS, seconds)] += 1
        self._sums[pair] += seconds

    def removed(self, kind: str, count: int) -> None:
        """Count objects that a GC has removed; `kind` is one of REMOVED."""
        self._counts[_REMOVED + REMOVED.index(kind)] += count

    def lost(self, what: str) -> None:
        """Count a record that could not be written; `what` is one of LOST."""
        self._counts[_LOST + LOST.index(what)] += 1

    def read(self) -> tuple[list[int], list[float]]:
        """All numbers: the counts, and the sums of seconds."""
        return self._counts.tolist(), [float(each) for each in self._sums]


def allocate(count: int) -> list[Counts]:
    """The numbers of `count` workers, in memory that children forked from now on share."""
    # an anonymous mapping is shared with children (MAP_SHARED is the default of this function)
    memory = mmap.mmap(-1, count * _SIZE * 8)
    return [Counts(memory, number) for number in range(count)]


def families(every: Sequence[Counts]) -> list[Family]:
    """All workers' numbers as metrics. Requests that never happened are left out."""
    reads = [each.read() for each in every]
    counts = [sum(column) for column in zip(*(each[0] for each in reads), strict=True)]
    sums = [sum(column) for column in zip(*(each[1] for each in reads), strict=True)]
    return [
        Family(
            "cni_requests_total",
            "counter",
            "Requests answered by the server; code 0 is success.",
            _requests(counts),
        ),
        Family(
            "cni_request_duration_seconds",
            "histogram",
            "How long requests took the server.",
            _durations(counts, sums),
        ),
        Family(
            "cni_gc_removed_total",
            "counter",
            "What GC removed because no valid attachment has it.",
            [
                Sample(counts[_REMOVED + number], labels({"kind": kind}))
                for number, kind in enumerate(REMOVED)
            ],
        ),
        Family(
            "cni_record_lost_total",
            "counter",
            "Log lines and spans that workers could not hand on.",
            [
                Sample(counts[_LOST + number], labels({"what": what}))
                for number, what in enumerate(LOST)
            ],
        ),
    ]


def _requests(counts: list[int]) -> list[Sample]:
    out = []
    for pair in range(_PAIRS):
        plugin, verb = PLUGINS[pair // len(VERBS)], VERBS[pair % len(VERBS)]
        for number, code in enumerate((*CODES, "other")):
            value = counts[_REQUESTS + pair * _WIDTH + number]
            if value:
                named = labels({"plugin": plugin, "verb": verb, "code": code})
                out.append(Sample(value, named))
    return out


def _durations(counts: list[int], sums: list[float]) -> list[Sample]:
    out = []
    for pair in range(_PAIRS):
        start = _DURATIONS + pair * _BUCKETS
        mine = counts[start : start + _BUCKETS]
        if any(mine):
            plugin, verb = PLUGINS[pair // len(VERBS)], VERBS[pair % len(VERBS)]
            named = labels({"plugin": plugin, "verb": verb})
            out += histogram(mine, BOUNDS, sums[pair], named)
    return out
