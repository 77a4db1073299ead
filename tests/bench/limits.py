"""The bench's limits: how long a run may take at most, as a multiple of the Go plugins' time.

A ratio of one bench depends little on the machine, an absolute time does. Where the limits lie:

- light plugins make few or no changes. Starting and ending the native client costs 0.2 to 0.4 ms,
  where Go's start costs 2: 0.4 is what remains possible with room for noise.
- links (veth, macvlan): most of an ADD is the kernel's own time, which is the same for both. A DEL
  does not wait for the kernel's grace period, but may meet that of the DEL before.
- masquerade and rules: the Go plugins start iptables or nft several times for each request, which
  here are transactions over netlink.
- the chain is their sum, as a runtime calls it for a container.

The self-contained file without a server has limits of its own: a node shall need no server to be
faster than the Go plugins. Where a DEL mostly waits for the kernel, processor time is compared, and
so it is for STATUS and CHECK, of which a runtime makes many.

A limit that is not met is printed and written, and fails nothing but `--check`.
"""

from __future__ import annotations

from typing import NamedTuple

from .measure import CPU, WALL, Row

# By case: through the server, the highest ratio to Go of ADD and of DEL.
_LIGHT, _LINKS, _MASQUERADE, _RULES, _CHAIN = (
    (0.4, 0.4), (0.5, 0.7), (0.25, 0.25), (0.12, 0.12), (0.15, 0.15),
)  # fmt: skip
_WARM = {
    "loopback": _LIGHT,
    "host-local": _LIGHT,
    "static": _LIGHT,
    "tuning": _LIGHT,
    "sbr": _LIGHT,
    "bridge": _LINKS,
    "ptp": _LINKS,
    "macvlan": _LINKS,
    "bridge, ipMasq (iptables)": _MASQUERADE,
    "bridge, ipMasq (nftables)": _MASQUERADE,
    "bridge, macspoofchk": _MASQUERADE,
    "portmap (iptables)": _RULES,
    "portmap (nftables)": _RULES,
    "firewall (iptables)": _RULES,
    "firewall (nftables)": _RULES,
    "chain": _CHAIN,
    "chain (nftables)": _CHAIN,
}
# By exec on the node's Python: four interpreters start for the chain, each in 14 ms (Go: in 2).
_EXEC = {"chain": (3.0, 1.5)}
_EXEC_LOOKS = 2.0  # as _ALONE_LOOKS

# By exec of the self-contained file: case and verb, to figure and highest ratio to Go.
_ALONE = {
    ("loopback", "VERSION"): (WALL, 0.7),
    **{
        (case, verb): (WALL, 1.0)
        for case in ("loopback", "host-local", "static", "tuning", "sbr")
        for verb in ("ADD", "DEL")
    },
    **{(case, "ADD"): (WALL, 0.4) for case in ("bridge", "ptp", "macvlan")},
    **{(case, "DEL"): (CPU, 0.4) for case in ("bridge", "ptp", "macvlan")},
    **{
        (f"{plugin} ({backend})", verb): (WALL, 0.2)
        for plugin in ("bridge, ipMasq", "firewall", "portmap")
        for backend in ("iptables", "nftables")
        for verb in ("ADD", "DEL")
    },
    **{
        (case, verb): limit
        for case in ("chain", "chain (nftables)")
        for verb, limit in {
            "ADD": (WALL, 0.25),
            "DEL": (WALL, 0.2),
        }.items()
    },
}
_ALONE_LOOKS = 1.0  # CHECK and STATUS, of the chain and of each plugin in it; processor time
ALONE_PODS = 4.0
ALONE_PEAK_MB, ALONE_FILE_MB = 20.0, 16.0  # 10^6 bytes
# Pods a second, to Go's. Go's are held up by iptables' lock, ours by two processors.
PODS = 5.0
# Much that a container or its clients have made (attack.py). Ending flows, to a tool in C that does
# the same. CHECK with many routes, to the Go plugin, which reads them several times. DEL of many
# addresses, to as many times that of one: they are read and changed together.
FLOWS, ROUTES, ADDRESSES = 4.0, 0.5, 0.25
# One more port with 1,000 published, to with 1: the same requests to the kernel, which follows a
# verdict map's jumps whenever an element is added (0.1 ms), and noise.
PUBLISHED = 1.2


class Verdict(NamedTuple):
    """A measured figure and what it should be at most (or at least)."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ("≥" if self.met else "<") if self.at_least else ("≤" if self.met else ">")
        mark = "met" if self.met else "NOT MET"
        return f"{self.what:64} {self.value:7.2f} {sign} {self.limit:<5g} {mark}"


def of_row(row: Row) -> list[Verdict]:
    """The row's figures that have a limit."""
    found = []
    for name, limits, how in (("warm", _WARM, "server"), ("ours", _EXEC, "exec")):
        ratio = row.ratio(name)
        if row.case in limits and ratio is not None and row.verb in ("ADD", "DEL"):
            limit = limits[row.case][row.verb == "DEL"]
            found.append(Verdict(f"{row.case} {row.verb}, {how} : Go", ratio, limit))
    return found + _of_alone(row) + _of_looks(row)


def _of_alone(row: Row) -> list[Verdict]:
    """By exec of the self-contained file."""
    if (row.case, row.verb) not in _ALONE:
        return []
    figure, limit = _ALONE[row.case, row.verb]
    ratio = row.ratio("alone", figure)
    unit = ", processor" if figure == CPU else ""
    what = f"{row.case} {row.verb}, self-contained : Go{unit}"
    return [] if ratio is None else [Verdict(what, ratio, limit)]


def _of_looks(row: Row) -> list[Verdict]:
    """CHECK and STATUS by exec."""
    found = []
    how = {"ours": ("exec", _EXEC_LOOKS), "alone": ("self-contained", _ALONE_LOOKS)}
    for name, (words, limit) in how.items():
        ratio = row.ratio(name, CPU)
        if row.verb in ("CHECK", "STATUS") and ratio is not None:
            what = f"{row.case} {row.verb}, {words} : Go, processor"
            found.append(Verdict(what, ratio, limit))
    return found


def mark(row: Row) -> str:
    """For the end of a line of the table."""
    verdicts = of_row(row)
    return " ".join(f"{'✓' if v.met else '✗'} {v.limit:g}" for v in verdicts)
