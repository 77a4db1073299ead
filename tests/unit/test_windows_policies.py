"""Merging endpoint policies: what is added, what is there already, in both spellings."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.windows.policies import Policies, PortMapping, protocol_number

Json = dict[str, Any]


def entry(value: Any, name: str = "EndpointPolicy") -> Json:
    return {"name": name, "value": value}


V1_NAT = {"Type": "OutBoundNAT", "ExceptionList": ["10.0.0.0/8"]}
V2_NAT = {"Type": "OutBoundNAT", "Settings": {"Exceptions": ["10.0.0.0/8"]}}
ACL = {"Type": "ACL", "Settings": {"Action": "Allow", "Direction": "In", "Protocols": "6"}}
SDN = {"Type": "SDNRoute", "Settings": {"DestinationPrefix": "10.9.0.0/16", "NeedEncap": True}}


@pytest.mark.parametrize(("v2", "nat"), [(False, V1_NAT), (True, V2_NAT)])
def test_nat_exceptions(v2: bool, nat: Json) -> None:
    policies = Policies([entry(nat)], v2)
    policies.except_from_nat("10.0.0.0/8")
    policies.except_from_nat("")
    assert policies.document() == [nat]
    policies.except_from_nat("172.16.0.0/12")
    policies.except_from_nat("172.16.0.0/12")
    key = {"Settings": {"Exceptions": ["172.16.0.0/12"]}}
    added = key if v2 else {"ExceptionList": ["172.16.0.0/12"]}
    assert policies.document() == [nat, {"Type": "OutBoundNAT", **added}]


@pytest.mark.parametrize("v2", [False, True])
def test_a_nat_policy_without_list_is_passed_over(v2: bool) -> None:
    other = {"Type": "OutBoundNAT", "Settings": {"VirtualIP": "10.1.1.1"}, "VIP": "10.1.1.1"}
    policies = Policies([entry(other)], v2)
    policies.except_from_nat("10.0.0.0/8")
    assert len(policies.document()) == 2


@pytest.mark.parametrize("v2", [False, True])
def test_loopback(v2: bool) -> None:
    policies = Policies([], v2)
    for address in ("10.0.0.5", "10.0.0.5", "10.0.0.6"):
        policies.loop_back(address)
    lists = [{"Destinations": ["10.0.0.5"]}, {"Destinations": ["10.0.0.6"]}]
    assert policies.document() == [
        {"Type": "OutBoundNAT", "Settings": each} if v2 else {"Type": "OutBoundNAT", **each}
        for each in lists
    ]


def test_provider_address() -> None:
    one = Policies([entry({"Type": "PA", "PA": "1.1.1.1"})], v2=False)
    for address in ("1.1.1.1", "", "2.2.2.2"):
        one.provider_address(address)
    assert one.document() == [{"Type": "PA", "PA": a} for a in ("1.1.1.1", "2.2.2.2")]
    configured = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "1.1.1.1"}}
    two = Policies([entry(configured)], v2=True)
    for address in ("1.1.1.1", "", "2.2.2.2"):
        two.provider_address(address)
    added = {"Type": "ProviderAddress", "Settings": {"ProviderAddress": "2.2.2.2"}}
    assert two.document() == [configured, added]


def test_ports() -> None:
    one, two = Policies([], v2=False), Policies([], v2=True)
    for policies in (one, two):
        assert policies.publish(PortMapping(8080, 80, "tcp", "192.168.0.7"))
        assert policies.publish(PortMapping(53, 53, "UDP"))
        assert not policies.publish(PortMapping(1, 1, "nosuch"))
    assert one.document() == [
        {"Type": "NAT", "InternalPort": 80, "ExternalPort": 8080, "Protocol": "tcp"},
        {"Type": "NAT", "InternalPort": 53, "ExternalPort": 53, "Protocol": "UDP"},
    ]
    settings = {"InternalPort": 80, "ExternalPort": 8080, "Protocol": 6, "VIP": "192.168.0.7"}
    assert two.document() == [
        {"Type": "PortMapping", "Settings": settings},
        {
            "Type": "PortMapping",
            "Settings": {"InternalPort": 53, "ExternalPort": 53, "Protocol": 17},
        },
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("tcp", 6), ("TCP", 6), ("udp", 17), ("icmpv4", 1), ("igmp", 2), ("ICMPv6", 58)],
        *[("6", 6), ("0x11", 17), ("021", 17), ("1023", 1023), ("0", 0)],
        *[("1024", None), ("-6", None), ("+6", None), (" 6", None), ("6 ", None), ("", None)],
        *[("sctp", None), ("08", None), ("0x", None), ("٦", None)],
    ],
)
def test_protocols(text: str, number: int | None) -> None:
    assert protocol_number(text) == number


def test_what_reaches_the_endpoint() -> None:
    listed = [
        entry(V1_NAT, "endpointpolicy"),
        entry(ACL, "ENDPOINTPOLICY"),
        entry(SDN, "Other"),
        {"Name": "EndpointPolicy", "VALUE": SDN},
        entry({"type": "ACL", "Settings": {"a": 1}, "more": 2}),
        entry("text"),
        entry({"Type": 5}),
        entry(None),
    ]
    v1 = [V1_NAT, ACL, SDN, {"type": "ACL", "Settings": {"a": 1}, "more": 2}, "text", {"Type": 5}]
    assert Policies(listed, v2=False).document() == v1
    v2 = [{"Type": "OutBoundNAT"}, ACL, SDN, {"Type": "ACL", "Settings": {"a": 1}}]
    assert Policies(listed, v2=True).document() == v2


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Type", "Settings", "ExceptionList", "Exceptions", "Destinations", "PA", "x"]
            ),
            inner | st.sampled_from(["OutBoundNAT", "PA", "ProviderAddress"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)
_entries = st.lists(
    st.builds(entry, _json, st.sampled_from(["EndpointPolicy", "endpointpolicy", "Other"])),
    max_size=5,
)
_addresses = st.lists(st.sampled_from(["10.0.0.0/8", "10.0.0.1", ""]), max_size=6)


@given(_entries, st.booleans(), _addresses, _addresses, _addresses)
def test_merging(
    entries: list[Json], v2: bool, nat: list[str], loop: list[str], pa: list[str]
) -> None:
    """What was there stays, in front and as it was; nothing comes twice, nothing is forgotten."""
    given_ = deepcopy(entries)
    before = Policies(entries, v2).document()
    policies = Policies(entries, v2)

    def merge() -> None:
        for each in nat:
            policies.except_from_nat(each)
        for each in loop:
            policies.loop_back(each)
        for each in pa:
            policies.provider_address(each)

    merge()
    once = policies.document()
    assert once[: len(before)] == before
    assert entries == given_
    added = once[len(before) :]
    assert len(added) <= len({*nat} - {""}) + len({*loop} - {""}) + len({*pa} - {""})
    merge()
    assert policies.document() == once
    lists = [value.get("Settings") if v2 else value for value in once if isinstance(value, dict)]
    known = [each for each in lists if isinstance(each, dict)]
    key = "Exceptions" if v2 else "ExceptionList"
    for wanted in {*nat} - {""}:
        assert any(wanted in e[key] for e in known if isinstance(e.get(key), list))
