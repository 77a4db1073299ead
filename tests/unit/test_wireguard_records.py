"""Which records of the store wireguard accepts, and which parts of them."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.plugins.wireguard.records import Own, Peers, accept
from cni.protocol.address import Prefix

Json = dict[str, Any]

ALLOWED = ["10.40.0.0/16", "fd40::/64"]


def key(number: int) -> str:
    return base64.b64encode(bytes((number,)) * 32).decode()


def record(number: int, *subnets: Any, **more: Any) -> Json:
    """What node n<number> says of itself."""
    return {
        "node": f"n{number}",
        "uid": "x",
        "port": 51820,
        "addresses": [f"192.0.2.{number}", f"2001:db8::{number}"],
        "publicKey": key(number),
        "subnets": list(subnets),
        **more,
    }


def own(*subnets: str, v6: bool = False) -> Own:
    """This node, n1."""
    parsed = [Prefix.parse(each) for each in subnets]
    return Own(key(1), parsed, [Prefix.parse(each) for each in ALLOWED], v6)


def accepted(
    *records: Json, before: Peers | None = None, this: Own | None = None
) -> tuple[dict[str, list[str]], list[str]]:
    """The accepted subnets by node, and what is refused."""
    said = {each["node"]: each for each in records}
    peers, refused = accept("over", this or own("10.40.1.0/24"), said, before or {})
    return {node: each["subnets"] for node, each in peers.items()}, refused


def test_a_record_as_it_should_be() -> None:
    peers, refused = accept("over", own("10.40.1.0/24"), {"n2": record(2, "10.40.2.0/24")}, {})
    assert not refused
    assert peers == {
        "n2": {
            "publicKey": key(2),
            "addresses": ["192.0.2.2"],
            "port": 51820,
            "subnets": ["10.40.2.0/24"],
        }
    }
    peers, _ = accept("over", own(v6=True), {"n2": record(2)}, {})
    assert peers["n2"]["addresses"] == ["2001:db8::2"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"node": "n3"}, "names another node"),
        ({"publicKey": None}, "no publicKey"),
        ({"publicKey": key(0)}, "no publicKey"),
        ({"publicKey": "short"}, "invalid publicKey"),
        ({"publicKey": key(1)}, "another node has its publicKey"),
        ({"port": 0}, "its port is none"),
        ({"port": True}, "its port is none"),
        ({"port": "51820"}, "its port is none"),
        ({"addresses": []}, "no IPv4 address"),
        ({"addresses": ["127.0.0.1", "224.0.0.1", "x", 7, "2001:db8::2"]}, "no IPv4 address"),
        ({"addresses": ["10.40.9.9"]}, "its address 10.40.9.9 is in the subnets"),
        ({"subnets": "10.40.2.0/24"}, "its subnets are no list"),
        ({"subnets": ["10.40.2.0/24"] * 1001}, "more than 1000"),
    ],
    ids=str,
)
def test_a_record_that_is_none(wrong: Json, why: str) -> None:
    """It is refused as a whole, and named; the others stay."""
    found, refused = accepted(record(4, "10.40.4.0/24"), {**record(2), **wrong, "node": "n2"})
    if "node" not in wrong:
        assert found == {"n4": ["10.40.4.0/24"]}
        (sentence,) = refused
        assert sentence.startswith("endpoints/over/n2 is refused: ")
        assert why in sentence
    said = {"n2": {**record(2), **wrong}}
    assert accept("over", own(), said, {})[0] == {}


def test_only_what_is_of_the_network() -> None:
    """Neither the default route, in whatever pieces, nor a service's address."""
    outside = ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0", "8.8.8.8/32", "10.0.0.0/8"]
    found, refused = accepted(record(2, "10.40.2.0/24", *outside))
    assert found == {"n2": ["10.40.2.0/24"]}
    (sentence,) = refused
    assert "0.0.0.0/0 is not in the subnets of this network" in sentence
    assert "and 3 more" in sentence


@pytest.mark.parametrize("text", ["10.40.3.1/24", "10.40.03.0/24", None, 7, "x", "x" * 1000])
def test_what_is_no_subnet(text: Any) -> None:
    found, refused = accepted(record(2, "10.40.2.0/24", text))
    assert found == {"n2": ["10.40.2.0/24"]}
    assert "is no subnet" in refused[0]
    assert len(refused[0]) < 150


def test_subnets_in_subnets() -> None:
    """Of one node: the wide one covers the others, unless it is refused."""
    narrow = ("10.40.2.0/26", "10.40.2.64/26")
    assert accepted(record(2, *narrow, "10.40.2.0/24"))[0] == {"n2": ["10.40.2.0/24"]}
    before, _ = accept("over", own(), {"n2": record(2, *narrow)}, {})
    found, _ = accepted(record(2, *narrow, "10.40.2.0/24"), before=before)
    assert found == {"n2": ["10.40.2.0/24", *narrow]}
    assert accepted(record(2, *narrow, "10.40.0.0/16"))[0] == {"n2": [*narrow]}


@pytest.mark.parametrize("subnet", ["10.40.1.0/24", "10.40.0.0/16", "10.40.1.128/25"])
def test_this_nodes_subnets_are_its_own(subnet: str) -> None:
    before: Peers = {"n2": {"publicKey": key(2), "subnets": [subnet]}}
    for known in ({}, before):
        found, refused = accepted(record(2, subnet, "10.40.2.0/24"), before=known)
        assert found == {"n2": ["10.40.2.0/24"]}
        assert f"{subnet} overlaps a subnet of this node" in refused[0]


@pytest.mark.parametrize("subnet", ["10.40.2.0/24", "10.40.2.0/23", "10.40.2.64/26"])
def test_a_newcomer_takes_nothing_from_another_node(subnet: str) -> None:
    honest = record(2, "10.40.2.0/24")
    before, _ = accept("over", own(), {"n2": honest}, {})
    for number in (0, 3):  # in whichever order they are read
        found, refused = accepted(
            honest, record(number, subnet, "10.40.9.0/24") | {"publicKey": key(7)}, before=before
        )
        assert found == {"n2": ["10.40.2.0/24"], f"n{number}": ["10.40.9.0/24"]}
        assert refused == [f"endpoints/over/n{number} is refused: {subnet} overlaps a subnet of n2"]


def test_of_two_newcomers_neither_is_believed() -> None:
    found, refused = accepted(record(2, "10.40.2.0/24"), record(3, "10.40.2.0/25", "10.40.3.0/24"))
    assert found == {"n2": [], "n3": ["10.40.3.0/24"]}
    assert len(refused) == 2
    assert "overlaps a subnet of n3" in refused[0]
    assert "overlaps a subnet of n2" in refused[1]


def test_a_subnet_goes_from_one_node_to_the_next() -> None:
    before, _ = accept("over", own(), {"n2": record(2, "10.40.2.0/24")}, {})
    found, _ = accepted(record(2), record(3, "10.40.2.0/24"), before=before)
    assert found == {"n2": [], "n3": ["10.40.2.0/24"]}


def test_a_public_key_is_of_one_node() -> None:
    thief = record(3, "10.40.3.0/24", publicKey=key(2))
    before, _ = accept("over", own(), {"n2": record(2)}, {})
    found, refused = accepted(record(2), thief, before=before)
    assert found == {"n2": []}
    assert "endpoints/over/n3 is refused: another node has its publicKey" in refused[0]
    assert accepted(record(2), thief)[0] == {}, "nothing tells which of both is honest"


def test_another_key_and_endpoint_of_a_known_node() -> None:
    before, _ = accept("over", own(), {"n2": record(2, "10.40.2.0/24")}, {})
    again = record(2, "10.40.2.0/24", publicKey=key(9), addresses=["192.0.2.22"], port=7)
    peers, refused = accept("over", own(), {"n2": again}, before)
    assert not refused
    assert peers["n2"]["publicKey"] == key(9)
    assert peers["n2"]["addresses"] == ["192.0.2.22"]


SUBNETS = st.builds(
    lambda network, length: str(Prefix(bytes((10, 40, network, 0)), length).network),
    st.integers(0, 15),
    st.integers(20, 26),
)
RECORDS = st.lists(st.lists(SUBNETS, max_size=4), min_size=1, max_size=5)


@given(RECORDS, RECORDS, st.lists(SUBNETS, max_size=2))
def test_no_address_leads_to_two_nodes(
    first: list[list[str]], second: list[list[str]], mine: list[str]
) -> None:
    """Whatever is said, and was before; and who had a subnet keeps it as long as it says so."""
    this = own(*mine)

    def said(every: list[list[str]]) -> dict[str, Json]:
        return {f"n{n}": record(n, *each) for n, each in enumerate(every, start=2)}

    before, _ = accept("over", own(), said(first), {})
    after, _ = accept("over", this, said(second), before)
    assert after.keys() == said(second).keys()
    owned = [(node, Prefix.parse(each)) for node, peer in after.items() for each in peer["subnets"]]
    for (node, one), (other, two) in itertools.combinations(owned, 2):
        assert node == other or not one.overlaps(two)
    for _, one in owned:
        assert not any(one.overlaps(each) for each in this.subnets)
    for node, peer in before.items():
        for each in peer["subnets"]:
            wide = [Prefix.parse(text) for text in said(second).get(node, {}).get("subnets", ())]
            kept = Prefix.parse(each)
            if any(other != kept and other.overlaps(kept) for other in wide):
                continue  # it says something else by now
            if kept in wide and not any(kept.overlaps(own) for own in this.subnets):
                assert each in after[node]["subnets"]
