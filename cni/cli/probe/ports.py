"""Checks of a published port: from the node, from localhost, from containers, from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from cni.describe import pairs
from cni.netns.namespace import Namespace

from . import addresses, causes
from .causes import Cause
from .containers import declared
from .packets import Answer, Server, why
from .row import FAILED, Row, failed, passed, skipped
from .situation import Situation

_PROTOCOLS = ("tcp", "udp")
_LOCALHOST = {4: "127.0.0.1", 6: "::1"}
_NOT_ASKED = "portmap is not in the network, or does not declare portMappings"


def published(situation: Situation) -> Iterator[Row]:
    """Each way to the port, with TCP and UDP."""
    for family in situation.families:
        if not situation.port:
            is_given = declared(situation.network, "portMappings")
            text = "CAP_ARGS names ports, so none was published to be asked"
            yield skipped("port", family, text if is_given else _NOT_ASKED)
        elif situation.beside_the_node:
            yield skipped("port", family, situation.beside_the_node)
        else:
            yield from _Port(situation, family).rows()


class _Port:
    def __init__(self, situation: Situation, family: int) -> None:
        self.situation, self.family = situation, family
        self.address = situation.node_address(family)
        self.snat = situation.key("snat", "portmap") is not False

    @property
    def _is_on_bridge(self) -> bool:
        return self.situation.kind in pairs.ON_BRIDGE

    def rows(self) -> Iterator[Row]:
        with ExitStack() as stack:
            first = self.situation.first.namespace
            # One pair of servers for all ways to the port: each exchange has a token of its own.
            servers = [
                stack.enter_context(Server(first, self.family, each, self.situation.target))
                for each in _PROTOCOLS
            ]
            yield self._from_node(servers)
            yield self._from_localhost(servers)
            yield self._from_neighbour(servers)
            yield self._from_itself(servers)
            yield self._from_outside(servers)

    def _from_node(self, servers: list[Server]) -> Row:
        if not self.address:
            return skipped("port: node", self.family, "the node has no address to ask")
        return self._asked("port: node", servers, None, self.address)

    def _from_localhost(self, servers: list[Server]) -> Row:
        check, address = "port: localhost", _LOCALHOST[self.family]
        if not self.snat:
            return skipped(check, self.family, "snat is false, and localhost needs it")
        if self.family == 6:
            if self.situation.key("backend", "portmap") == "iptables":
                return skipped(check, 6, "with the backend iptables nothing is published on ::1")
            if self._is_on_bridge and causes.bridge_frames_pass_rules(6):
                return skipped(check, 6, "net.bridge.bridge-nf-call-ip6tables is 1: no way to ::1")
        return self._asked(check, servers, None, address)

    def _from_neighbour(self, servers: list[Server]) -> Row:
        check, second = "port: neighbour", self.situation.second
        if second is None:
            return skipped(check, self.family, self.situation.alone)
        return self._by_the_node(check, servers, second.namespace)

    def _from_itself(self, servers: list[Server]) -> Row:
        return self._by_the_node("port: itself", servers, self.situation.first.namespace)

    def _by_the_node(self, check: str, servers: list[Server], client: Namespace) -> Row:
        if not self.address:
            return skipped(check, self.family, "the container has no way to an address of the node")
        apart = addresses.isolation(self.situation)
        asked = self._asked(check, servers, client, self.address)
        # Asked in any case: that the port works is good, also where it need not.
        if asked.state != FAILED:
            return asked
        if not self.snat:
            return skipped(check, self.family, "not published to containers: snat is false")
        if apart:
            return skipped(check, self.family, f"not published to containers: {apart}")
        return self._unless_forwarding(asked)

    def _from_outside(self, servers: list[Server]) -> Row:
        check, outside = "port: outside", self.situation.outside
        address = outside.node.get(self.family, "") if outside is not None else ""
        if outside is None or not address:
            text = "there is no room for a throw-away host outside"
            return skipped(check, self.family, text)
        if not self.situation.stays_here(outside.host[self.family]):
            text = "the container's default route does not lead through this node"
            return skipped(check, self.family, text)
        return self._unless_forwarding(self._asked(check, servers, outside.namespace, address))

    def _unless_forwarding(self, asked: Row) -> Row:
        """A row that failed says nothing of ports where the node forwards nothing at all."""
        if asked.state != FAILED or self.family not in self.situation.not_forwarded:
            return asked
        text = "not tested, as the node forwards nothing: see way out"
        return skipped(asked.check, self.family, text)

    def _asked(
        self, check: str, servers: list[Server], client: Namespace | None, address: str
    ) -> Row:
        missed: dict[str, Answer] = {}
        for server in servers:
            found = self._answer(server, client, address)
            if not found.arrived:
                missed[server.protocol] = found
        name = (
            f"{address}:{self.situation.port}"
            if self.family == 4
            else (f"[{address}]:{self.situation.port}")
        )
        if not missed:
            return passed(check, self.family, f"{name} leads to the container, TCP and UDP")
        protocols = " and ".join(each.upper() for each in missed)
        reason = next(iter(missed.values())).reason
        if self._has_conditions():
            text = f"{name}: {reason} ({protocols}); the network's conditions may say so"
            return skipped(check, self.family, text)
        cause = self._cause(check, missed)
        text = f"{name} does not lead to the container ({protocols}: {reason}): {cause.text}"
        return failed(check, self.family, text, cause.remedy)

    def _answer(self, server: Server, client: Namespace | None, address: str) -> Answer:
        try:
            with self.situation.waiting():
                return server.asked(client, address, self.situation.port)
        except OSError as error:
            return Answer(False, why(error))

    def _has_conditions(self) -> bool:
        name = "conditionsV4" if self.family == 4 else "conditionsV6"
        return bool(self.situation.key(name, "portmap"))

    def _cause(self, check: str, missed: dict[str, Answer]) -> Cause:
        # The server saw the request, so only the way back can be wrong.
        past = any(each.source for each in missed.values())
        if check == "port: itself" and self._needs_hairpin():
            return Cause(
                "the bridge sends no frame back where it came from, and passes frames through "
                "IP rules (net.bridge.bridge-nf-call-iptables is 1)",
                f'"hairpinMode": true in the configuration of {self.situation.main.type}',
            )

        def found() -> Iterator[Cause]:
            yield from causes.of_rules(self.situation.first, "the published port")
            if check not in ("port: node", "port: localhost"):
                yield from causes.of_forwarding(self.situation, self.family)

        if past:
            otherwise = Cause(
                "the container gets the packets, and its answer takes another way: the rules that "
                "masquerade them are not there, or another rule comes before",
                "cni reload; `cni rules` shows what there is for other containers",
            )
        else:
            otherwise = Cause(
                "another rule comes before, or drops it",
                f"cni ports {self.situation.port}; `nft list ruleset` shows the order of chains",
            )
        return causes.best(found(), otherwise)

    def _needs_hairpin(self) -> bool:
        """Does the bridge have to send frames back where they came from?"""
        if not self._is_on_bridge or self.situation.key("hairpinMode") is True:
            return False
        return causes.bridge_frames_pass_rules(self.family)
