"""Faults of the node before the test that the test's own ADDs have mended.

An ADD sets its bridge up, puts the gateway on it and switches on forwarding. So it may mend a
network whose containers were all cut off: a test that did not report that would hide the fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from cni.kernel import address, link, sysctl
from cni.kernel.netlink import Netlink

from ..conflist import NetworkList
from ..view import attachments, bridges, needs
from ..view.attached import Places
from ..view.namespaces import Live
from .row import Row, failed, passed

_FIND = "it was there, and something takes it away from running containers; `cni status {}` sees it"


class Before:
    """The node before the first ADD of a test of a network. Raises NetlinkError."""

    def __init__(self, network: NetworkList, places: Places, node: Netlink) -> None:
        self._network, self._places, self._node = network, places, node
        self._conf = bridges.conf_in(plugin.raw for plugin in network.plugins)
        self._lacks = self._present_lacks()
        self._was_used = self._is_used()
        self._off = self._switched_off()

    def rows(self) -> Iterator[Row]:
        """The changes by the ADDs since then; none if nothing was wrong."""
        now = {(each.network, each.mend) for each in self._present_lacks()}
        repaired = [each for each in self._lacks if (each.network, each.mend) not in now]
        # Faults of running containers are told first; a switch that mends the same is not told
        # again.
        told = set()
        for each in repaired:
            told.add(each.mend)
            family = 6 if "ipv6" in each.text or "::" in each.text else 4
            who = "1 container" if each.containers == 1 else f"{each.containers} containers"
            where = "" if each.network == self._network.name else f" of {each.network}"
            text = f"{who}{where} had lost this before the test, whose ADD has set it: {each.text}"
            yield failed("before", family, text, _FIND.format(each.network))
        still_off = self._switched_off()
        for mend, (family, text, back) in self._off.items():
            if mend in told or mend in still_off:
                continue
            # An earlier ADD has set it, so something has changed it since; else it is the usual
            # first ADD.
            if self._was_used:
                remedy = f"find what has set it so; `{back}` puts it back"
                said = f"{text} before the test, whose ADD has set it"
                yield failed("before", family, said, remedy)
            else:
                said = f"{text}: the first ADD has set it, and it stays ({back} puts it back)"
                yield passed("before", family, said)

    def _present_lacks(self) -> list[needs.Lack]:
        known = attachments.gather(self._places)
        living = needs.of_living(known, Live(), [self._network])
        lacks = needs.links(living)
        try:
            return lacks + needs.forwarding(living)
        except OSError:
            return lacks  # this process cannot see it, so it is not known

    def _bridge(self) -> link.Link | None:
        if not bridges.is_on_bridge(self._conf):
            return None
        found = link.find(self._node, bridges.name_in(self._conf))
        return found if found is not None and found.kind == "bridge" else None

    def _is_used(self) -> bool:
        """Was there an earlier ADD, so that nothing should be wrong?"""
        bridge = self._bridge()
        if bridge is None:
            return False
        ports = [each for each in link.list_all(self._node) if each.master == bridge.index]
        found = address.show(self._node, bridge.index)
        return bool(ports) or any(each.scope == address.SCOPE_UNIVERSE for each in found)

    def _switched_off(self) -> dict[str, tuple[int, str, str]]:
        """Remedy → (family, the fault, the command that would restore it)."""
        found: dict[str, tuple[int, str, str]] = {}
        bridge = self._bridge()
        if bridge is not None and not bridge.up:
            switch = f"ip link set {quote(bridge.name)}"
            found[f"{switch} up"] = (0, f"the bridge {bridge.name} was down", f"{switch} down")
        if not needs.is_routed(self._conf):
            return found
        for family in (4, 6):
            for name, _ in sysctl.forwarding(family == 6, bridge.name if bridge else ""):
                try:
                    is_off = sysctl.read(name) == "0"
                except OSError:
                    continue
                if is_off:
                    key = sysctl.shown(name)
                    switch = f"sysctl -w {quote(key)}="
                    found[f"{switch}1"] = (family, f"{key} was 0", f"{switch}0")
                    break  # that of the node sets those of its links
        return found
