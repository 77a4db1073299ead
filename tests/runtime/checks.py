"""Checks that several tests make."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from .node import NODE_ADDRESSES, OUTSIDE_ADDRESSES, Node, matching, mirror

if TYPE_CHECKING:
    from tests.harness import Family

    from .engines import Container, Engine
    from .plugins import Plugins


def leaks(engine: Engine, plugins: Plugins) -> tuple[str, ...]:
    """What the reference leaves behind, for `nothing_left`; ours must leave nothing.

    ctr asks for DEL without a namespace, and the reference then keeps the masquerade rules. It
    never ends UDP flows.
    """
    if plugins.ours:
        return ()
    return ("rule", "flow") if engine.name == "containerd" else ("flow",)


def in_subnets(container: Container, family: Family) -> list[str]:
    """The container's addresses, after checking that there is one in every subnet."""
    found = [ipaddress.ip_interface(one) for one in container.addresses()]
    assert [str(one.network) for one in found] == list(family.subnets), container.exec("ip", "addr")
    assert not {str(one.ip) for one in found} & set(family.gateways)
    return [str(one.ip) for one in found]


def check_own_network(container: Container, family: Family) -> None:
    """Loopback works, and a default route of each family leads to the gateway, which answers."""
    routes = container.exec("sh", "-c", "ip -4 route; ip -6 route").splitlines()
    defaults = [line for line in routes if line.startswith("default")]
    assert len(defaults) == len(family.gateways), routes
    for line, gateway in zip(defaults, family.gateways, strict=True):
        assert f"via {gateway} dev eth0" in line
    assert container.reaches("127.0.0.1", *family.gateways)


def check_talking(first: Container, second: Container, family: Family) -> None:
    """Each reaches every address of the other, by ping and by TCP."""
    for asking, asked in ((first, second), (second, first)):
        addresses = in_subnets(asked, family)
        assert asking.reaches(*addresses), f"{asked.name} does not answer {asking.name}"
        for address in addresses:
            assert asking.fetch(address) == asked.name


def check_seen_outside(node: Node, container: Container, family: Family, *, masked: bool) -> None:
    """A host elsewhere sees the node's address (`masked`) or the container's own."""
    with mirror(node.outside) as port:
        for address in in_subnets(container, family):
            version = ipaddress.ip_address(address).version
            seen = container.seen_as(matching(version, OUTSIDE_ADDRESSES), port)
            assert seen == (matching(version, NODE_ADDRESSES) if masked else address)
