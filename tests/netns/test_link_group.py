"""Many links are deleted in one request, and nobody else's with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni.kernel import link, link_group, uapi
from cni.kernel.netlink import Netlink
from cni.owner import Owner
from cni.plugins.shared import veth

if TYPE_CHECKING:
    from tests.harness import Netns

NET = "many"
OTHERS_GROUP = 4711


class Killed(BaseException):
    """The process ends here."""


class Watched(Netlink):
    """Counts the requests that delete links; `dies` before the first."""

    deletions = 0
    dies = False

    def request(self, kind: int, payload: bytes, flags: int = 0) -> list[tuple[int, bytes]]:
        if kind == uapi.RTM_DELLINK:
            self.deletions += 1
            if self.dies:
                raise Killed
        return super().request(kind, payload, flags)


def owner(number: int, network: str = NET) -> Owner:
    return Owner(network, f"c{number}", "eth0")


def attach(host: Netns, owners: list[Owner]) -> None:
    """What bridge makes on the host for each owner; the other ends are on the host, too."""
    host.ip_batch(
        *(
            line
            for each in owners
            for line in (
                f"link add {each.veth()} type veth peer name p{each.veth()[4:]}",
                f'link set {each.veth()} alias "{each.alias}"',
            )
        )
    )


def names(host: Netns) -> set[str]:
    return {each["ifname"] for each in host.ip_json("link", "show", "type", "veth")}


def both(owners: list[Owner]) -> set[str]:
    return {name for each in owners for name in (each.veth(), f"p{each.veth()[4:]}")}


def collect(host: Netns, keep: list[Owner], *, dies: bool = False) -> int:
    """GC of NET: how many requests deleted links."""

    def inside() -> int:
        with Watched() as sock:
            sock.dies = dies
            veth.collect(sock, NET, frozenset(each.alias_key for each in keep))
            return sock.deletions

    return host.run(inside)


@pytest.mark.parametrize("count", [2, 70, 130])
def test_gc_deletes_many_in_one_request(host: Netns, count: int) -> None:
    going = [owner(n) for n in range(count)]
    staying = [owner(n) for n in range(1000, 1003)]
    others = [owner(n, "other") for n in range(3)]
    attach(host, [*going, *staying, *others])
    host.ip("link", "add", "stranger", "type", "veth", "peer", "name", "strangerp")
    host.ip("link", "set", "stranger", "group", str(OTHERS_GROUP))
    assert collect(host, staying) == 1
    assert names(host) == both([*staying, *others]) | {"stranger", "strangerp"}
    assert collect(host, staying) == 0


def test_what_a_killed_gc_leaves_the_next_one_deletes(host: Netns) -> None:
    going, staying = [owner(n) for n in range(5)], [owner(9)]
    attach(host, [*going, *staying])
    with pytest.raises(Killed):
        collect(host, staying, dies=True)
    assert names(host) == both([*going, *staying])
    assert collect(host, staying) == 1
    assert names(host) == both(staying)


def test_a_killed_add_s_pair_is_found_until_it_is_deleted(host: Netns) -> None:
    """It bears no alias, so it must stay in the network's group."""
    going = [owner(n) for n in range(3)]
    attach(host, going)
    host.ip("link", "set", going[0].veth(), "alias", "")

    def put_into_the_network_s_group() -> None:
        with Netlink() as sock:
            index = link.get(sock, going[0].veth()).index
            link.change(sock, index, group=veth.network_group(NET))

    host.run(put_into_the_network_s_group)
    with pytest.raises(Killed):
        collect(host, [], dies=True)
    collect(host, [])
    assert names(host) == set()


def test_links_that_are_gone_are_no_error(host: Netns) -> None:
    going = [owner(n) for n in range(3)]
    attach(host, going)

    def inside() -> None:
        with Netlink() as sock:
            listed = [link.get(sock, each.veth()) for each in going]
            link.delete(sock, listed[1].index)
            link_group.delete(sock, listed, [])
            link_group.delete(sock, listed, [])

    host.run(inside)
    assert names(host) == set()


def test_a_group_that_is_taken_is_not_used(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    going = [owner(n) for n in range(3)]
    attach(host, going)
    host.ip("link", "add", "stranger", "type", "veth", "peer", "name", "strangerp")
    host.ip("link", "set", "stranger", "group", str(OTHERS_GROUP))
    drawn = iter([0, OTHERS_GROUP, 5])
    monkeypatch.setattr(
        link_group.os, "urandom", lambda size: next(drawn).to_bytes(size, link_group.sys.byteorder)
    )
    collect(host, [])
    assert names(host) == {"stranger", "strangerp"}
    assert next(drawn, None) is None


@pytest.mark.parametrize("count", [1, 3])
def test_an_index_that_is_another_link_s_by_now(host: Netns, count: int) -> None:
    """Between the list and the deletion a link goes, and a new one gets its index."""
    going = [owner(n) for n in range(count)]
    attach(host, going)

    def inside() -> None:
        with Netlink() as sock:
            listed = [link.get(sock, each.veth()) for each in going]
            link.delete(sock, listed[0].index)
            host.ip("link", "add", "eth7", "index", str(listed[0].index), "type", "bridge")
            link_group.delete(sock, listed, [])

    host.run(inside)
    assert names(host) == set()
    [stranger] = host.ip_json("link", "show", "dev", "eth7")
    assert stranger["group"] == "default"
