"""The bench's limits: how long a run may take at most, as a multiple of the Go plugins' time.

A ratio of one bench depends little on the machine, an absolute time does. Where the limits lie:

- light plugins make few or no changes. Starting and ending the native client costs 0.2 to 0.4 ms,
  where Go's start costs 2: 0.4 is what remains possible with room for noise.
- links (veth, macvlan): most of an ADD is the kernel's own time, which is the same for both. A DEL
  does not wait for the kernel's grace period, but may meet that of the DEL before.
- masquerade and rules: the Go plugins start iptables or nft several times for each request, which
  here are transactions over netlink.
- the chain is their sum, as a runtime calls it for a container.

A limit that is not met is printed and written, and fails nothing but `--check`.
"""

from __future__ import annotations

from typing import NamedTuple

from .measure import Row

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
# By exec: four interpreters start for the chain, each in 14 ms where Go takes 2.
_EXEC = {"chain": (3.0, 1.5)}
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
        return f"{self.what:50} {self.value:7.2f} {sign} {self.limit:<5g} {mark}"


def of_row(row: Row) -> list[Verdict]:
    """The row's figures that have a limit."""
    found = []
    for name, limits, how in (("warm", _WARM, "server"), ("ours", _EXEC, "exec")):
        ratio = row.ratio(name)
        if row.case in limits and ratio is not None and row.verb in ("ADD", "DEL"):
            limit = limits[row.case][row.verb == "DEL"]
            found.append(Verdict(f"{row.case} {row.verb}, {how} : Go", ratio, limit))
    return found


def mark(row: Row) -> str:
    """For the end of a line of the table."""
    verdicts = of_row(row)
    return " ".join(f"{'✓' if v.met else '✗'} {v.limit:g}" for v in verdicts)
