"""Names of objects: each key has one of its own, which a server takes, and which leads back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.store.kubernetes_names import (
    TYPES,
    block_of,
    key_of,
    name_of,
    type_of,
    types_of,
)
from tests.harness.apiobjects import SUBDOMAIN

WORDS = st.text("abczx0147-._AZ", min_size=1, max_size=12)
WORDS |= st.lists(WORDS, min_size=2, max_size=3).map("--".join)
KEYS = st.lists(
    st.sampled_from(["blocks", "pools", "nodes", "wanted", "endpoints"]) | WORDS, min_size=1
).map("/".join)


def named(name: str, key: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "key": key}


@pytest.mark.parametrize(
    ("key", "kind", "name"),
    [
        ("pools/storage", "IPPool", "storage"),
        ("blocks/default/10.64.3.0-26", "IPBlock", "default--10.64.3.0-26"),
        (
            "blocks/a.b/fd00-0022-0000-0000-0000-0000-0000-0040-122",
            "IPBlock",
            "a.b--fd00-0022-0000-0000-0000-0000-0000-0040-122",
        ),
        ("nodes/ip-10-0-0-1.ec2.internal", "IPRecord", "nodes--ip-10-0-0-1.ec2.internal"),
        ("nodes/gke-a--pool-x86", "IPRecord", "nodes--gke-a--pool-x86"),
        ("wanted/default/gke-a--pool", "IPRecord", "wanted--default--gke-a--pool"),
        ("endpoints/web/gke-a--pool", "IPRecord", "endpoints--web--gke-a--pool"),
        ("wanted/my--space/n1", "IPRecord", "wanted--myzx2dzx2dspace--n1"),
        ("spaces/Blue_1", "IPRecord", "spaces--zx42luezx5f1"),
        ("pools/zx41", "IPPool", "zx7ax41"),
        ("reconcile", "IPRecord", "reconcile"),
        ("nodes--n1", "IPRecord", "nodeszx2dzx2dn1"),
    ],
)
def test_names(key: str, kind: str, name: str) -> None:
    assert type_of(key).kind == kind
    assert name_of(key) == name
    assert key_of(type_of(key), named(name, "")) == key


@given(KEYS)
def test_each_name_is_valid_and_leads_back(key: str) -> None:
    name = name_of(key)
    assert SUBDOMAIN.fullmatch(name)
    assert len(name) <= 253
    assert key_of(type_of(key), named(name, key)) == key
    assert type_of(key) in types_of("")
    prefix = key.rpartition("/")[0]
    if prefix:
        assert types_of(f"{prefix}/") == (type_of(key),)


@given(KEYS, KEYS)
def test_two_keys_have_two_names(one: str, other: str) -> None:
    if one != other and type_of(one) is type_of(other):
        assert name_of(one) != name_of(other)


@pytest.mark.parametrize("name", ["", "nodes--zx61", "zx00abc", "Upper", "a--b--zx2d"])
def test_objects_with_other_names_are_not_ours(name: str) -> None:
    for of in TYPES:
        key = key_of(of, named(name, "nodes/a"))
        assert key is None or name_of(key) == name


def test_a_long_key_is_known_by_what_the_object_says() -> None:
    key = "nodes/" + "n" * 300
    name = name_of(key)
    assert re.fullmatch(r"zx00[0-9a-f]{64}", name)
    assert key_of(type_of(key), named(name, key)) == key
    assert key_of(type_of(key), named(name, key[:-1])) is None


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("blocks/default/10.64.3.0-26", {"space": "default", "cidr": "10.64.3.0/26"}),
        (
            "blocks/x/fd00-0022-0000-0000-0000-0000-0000-0040-122",
            {"space": "x", "cidr": "fd00:22::40/122"},
        ),
        ("blocks/a", None),
        ("blocks/a/b", None),
    ],
)
def test_what_a_block_says_of_itself(key: str, block: object) -> None:
    assert block_of(key) == block
