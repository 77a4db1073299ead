"""What podman can do with networks, beyond starting and stopping a container."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.harness import DUAL, V4, V6, ports

from .checks import check_own_network, check_seen_outside, check_talking, in_subnets

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Family

    from .engines import Podman
    from .networks import Network
    from .node import Node

pytestmark = pytest.mark.runtime

# Networks beside those of tests.harness; the host outside knows the way back to these, too.
OTHER = replace(
    DUAL,
    name="other",
    subnets=("10.22.7.0/24", "fd00:22:7::/64"),
    gateways=("10.22.7.1", "fd00:22:7::1"),
)


@pytest.mark.parametrize("command", [["restart"], ["stop", "start"]], ids=" ".join)
def test_restart(
    network: Callable[..., Network], podman: Podman, node: Node, command: list[str]
) -> None:
    net = network(DUAL)
    neighbour, container = podman.run(net), podman.run(net)
    rules = len(node.traces(net)["rule"])
    for word in command:
        podman.podman(word, container.name)
    check_own_network(container, DUAL)
    check_talking(container, neighbour, DUAL)
    check_seen_outside(node, container, DUAL, masked=True)
    # Nothing of the first life is left.
    assert node.leases(net) == sorted([*in_subnets(container, DUAL), *in_subnets(neighbour, DUAL)])
    assert len(ports(node.netns, net.bridge)) == 2
    assert len(node.traces(net)["rule"]) == rules
    podman.remove(container)
    podman.remove(neighbour)
    node.nothing_left(net, container.id, neighbour.id)


@pytest.mark.parametrize(
    ("family", "options", "addresses"),
    [
        # One address comes in CNI_ARGS, several come as the capability "ips".
        (V4, "ip=10.22.0.77", ["10.22.0.77/24"]),
        (V6, "ip6=fd00:22::77", ["fd00:22::77/64"]),
        (DUAL, "ip=10.22.0.77,ip6=fd00:22::77", ["10.22.0.77/24", "fd00:22::77/64"]),
    ],
    ids=["v4", "v6", "dual"],
)
def test_chosen_addresses(
    network: Callable[..., Network],
    podman: Podman,
    node: Node,
    family: Family,
    options: str,
    addresses: list[str],
) -> None:
    net = network(family)
    container = podman.run(net, network_options=f"{options},mac=02:00:00:00:00:77")
    assert container.addresses() == addresses
    assert container.mac() == "02:00:00:00:00:77"
    check_own_network(container, family)

    with pytest.raises(AssertionError, match=r"10\.22\.0\.77|fd00:22::77"):
        podman.run(net, network_options=options)
    assert node.leases(net) == sorted(one.partition("/")[0] for one in addresses)
    assert len(ports(node.netns, net.bridge)) == 1

    podman.remove(container)
    again = podman.run(net, network_options=options)
    assert again.addresses() == addresses
    podman.remove(again)
    podman.remove_all()
    node.nothing_left(net, container.id, again.id)


def test_two_networks(network: Callable[..., Network], podman: Podman, node: Node) -> None:
    """One container on two bridges, with an interface on each; one is taken away and comes back."""
    one, other = network(DUAL), network(OTHER)
    container = podman.run(one, "--network", f"{other.name}:interface_name=data0")
    first, second = podman.run(one), podman.run(other)
    in_subnets(container, DUAL)
    on_other = container.addresses("data0")
    assert [address.startswith(("10.22.7.", "fd00:22:7:")) for address in on_other] == [True, True]
    neighbours = [*first.addresses(), *second.addresses()]
    assert container.reaches(*(address.partition("/")[0] for address in neighbours))

    podman.podman("network", "disconnect", other.name, container.name)
    assert container.addresses("data0") == []
    assert len(ports(node.netns, other.bridge)) == 1
    assert node.leases(other) == sorted(one.partition("/")[0] for one in second.addresses())
    check_talking(container, first, DUAL)

    podman.podman("network", "connect", other.name, container.name)
    assert len(container.addresses("eth1")) == 2
    assert container.reaches(*(address.partition("/")[0] for address in second.addresses()))

    for made in (container, first, second):
        podman.remove(made)
    for net in (one, other):
        node.nothing_left(net, container.id, first.id, second.id)


def test_inspect(network: Callable[..., Network], podman: Podman) -> None:
    """podman understands our result: it shows what is in the container."""
    container = podman.run(network(DUAL))
    settings = podman.inspect(container)["NetworkSettings"]["Networks"]["net1"]
    assert settings["MacAddress"] == container.mac()
    assert container.addresses() == [
        f"{settings['IPAddress']}/{settings['IPPrefixLen']}",
        f"{settings['GlobalIPv6Address']}/{settings['GlobalIPv6PrefixLen']}",
    ]
    assert [settings["Gateway"], settings["IPv6Gateway"]] == list(DUAL.gateways)
