"""What issue 6 asks for: at most so many times what the Go plugins take, and pods at a time.

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
    "portmap (iptables)": _RULES,
    "portmap (nftables)": _RULES,
    "firewall (iptables)": _RULES,
    "firewall (nftables)": _RULES,
    "chain": _CHAIN,
    "chain (nftables)": _CHAIN,
}
_EXEC = {"chain": (3.0, 1.5)}
PODS = 5.0  # times as many pods a second as with Go
PUBLISHED = 1.2  # "as fast": what one more port takes with 1,000 published, to with 1; and noise


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
