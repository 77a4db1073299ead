"""flanneld's subnet.env: every line that it may have, and any other text."""

from __future__ import annotations

import ipaddress
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.plugins.flannel.subnet_env import SubnetEnv, load, parse
from cni.protocol.errors import CNIError

if TYPE_CHECKING:
    from pathlib import Path

V4 = {"FLANNEL_NETWORK": "10.1.0.0/16", "FLANNEL_SUBNET": "10.1.17.1/24"}
V6 = {"FLANNEL_IPV6_NETWORK": "fd01::/48", "FLANNEL_IPV6_SUBNET": "fd01:0:0:11::1/64"}
REST = {"FLANNEL_MTU": "1472", "FLANNEL_IPMASQ": "true"}


def env(values: dict[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in values.items())


def texts(found: SubnetEnv) -> tuple[list[str], list[str]]:
    return [str(one) for one in found.networks], [str(one) for one in found.subnets]


def failure(text: str) -> str:
    with pytest.raises(CNIError) as caught:
        parse(text, "/run/x.env")
    return caught.value.msg


@pytest.mark.parametrize(
    ("values", "networks", "subnets"),
    [
        (V4, ["10.1.0.0/16"], ["10.1.17.0/24"]),
        (V6, ["fd01::/48"], ["fd01:0:0:11::/64"]),
        ({**V6, **V4}, ["10.1.0.0/16", "fd01::/48"], ["10.1.17.0/24", "fd01:0:0:11::/64"]),
        (
            {**V4, "FLANNEL_NETWORK": "10.1.2.3/16,10.9.0.0/16,10.1.0.0/16"},
            ["10.1.0.0/16", "10.9.0.0/16"],
            ["10.1.17.0/24"],
        ),
    ],
    ids=["v4", "v6", "dual", "two-networks"],
)
def test_complete(values: dict[str, str], networks: list[str], subnets: list[str]) -> None:
    found = parse(env({**values, **REST}), "/x")
    assert texts(found) == (networks, subnets)
    assert (found.mtu, found.ip_masq) == (1472, True)


@pytest.mark.parametrize(
    "text",
    [
        env({**REST, **V4}),
        env({**V4, **REST}).replace("\n", "\r\n"),
        env({**V4, **REST}).rstrip("\n"),
        "# a comment\n\nOTHER=1\nFLANNEL_NETWORKS\nexport FLANNEL_MTU=9\n" + env({**V4, **REST}),
        "FLANNEL_MTU=9000\nFLANNEL_NETWORK=rubbish\n" + env({**V4, **REST}),
        env({**V4, **REST, "FLANNEL_MTU": "00001472"}),
        env({**V4, **REST, "FLANNEL_MTU": "0" * 5000 + "1472"}),
    ],
    ids=["order", "crlf", "no-newline", "unknown", "last-wins", "zeros", "many-zeros"],
)
def test_lines(text: str) -> None:
    found = parse(text, "/x")
    assert texts(found) == (["10.1.0.0/16"], ["10.1.17.0/24"])
    assert found.mtu == 1472


@pytest.mark.parametrize("value", ["false", "True", "1", "", " true", "true ", '"true"'])
def test_only_true_is_true(value: str) -> None:
    assert parse(env({**V4, **REST, "FLANNEL_IPMASQ": value}), "/x").ip_masq is False


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (
            {},
            "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, "
            "FLANNEL_MTU, FLANNEL_IPMASQ",
        ),
        (V4, "FLANNEL_MTU, FLANNEL_IPMASQ"),
        (REST, "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
        ({**REST, "FLANNEL_IPV6_NETWORK": "fd01::/48"}, "FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET"),
        ({**REST, "FLANNEL_SUBNET": "10.1.17.1/24"}, "FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK"),
        ({**V6, "FLANNEL_MTU": "1"}, "FLANNEL_IPMASQ"),
    ],
)
def test_missing(values: dict[str, str], missing: str) -> None:
    assert failure(env(values)) == f"/run/x.env is missing {missing}"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("FLANNEL_NETWORK", "", "FLANNEL_NETWORK: invalid CIDR address: "),
        ("FLANNEL_NETWORK", "10.1.0.0/16,", "FLANNEL_NETWORK: invalid CIDR address: "),
        ("FLANNEL_NETWORK", "10.1.0.0", "FLANNEL_NETWORK: invalid CIDR address: 10.1.0.0"),
        ("FLANNEL_SUBNET", " 10.1.0.1/24", "FLANNEL_SUBNET: invalid CIDR address:  10.1.0.1/24"),
        ("FLANNEL_SUBNET", "10.1.0.1/24,10.2.0.1/24", "FLANNEL_SUBNET: invalid CIDR address: "),
        ("FLANNEL_IPV6_SUBNET", "fd01::1/129", "FLANNEL_IPV6_SUBNET: invalid CIDR address: "),
        ("FLANNEL_MTU", "", 'FLANNEL_MTU: parsing "": invalid syntax'),
        ("FLANNEL_MTU", "-1", 'FLANNEL_MTU: parsing "-1": invalid syntax'),
        ("FLANNEL_MTU", "1_0", 'FLANNEL_MTU: parsing "1_0": invalid syntax'),
        ("FLANNEL_MTU", "\u0663", 'FLANNEL_MTU: parsing "\u0663": invalid syntax'),
        ("FLANNEL_MTU", "4294967296", "value out of range"),
        ("FLANNEL_MTU", "9" * 5000, "value out of range"),
    ],
)
def test_invalid(key: str, value: str, text: str) -> None:
    assert text in failure(env({**V4, **V6, **REST, key: value}))


@pytest.mark.parametrize("key", [*V4, *V6, *REST])
def test_known_key_without_a_value(key: str) -> None:
    """The reference crashes."""
    assert failure(f"{env({**V4, **V6, **REST})}{key}\n") == f'invalid line "{key}": it has no "="'


KEYS = st.sampled_from([*V4, *V6, *REST, "OTHER", ""])
VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["10.1.0.0/16", "10.1.17.1/24", "fd01::/48", "1472", "true", "10.0.0.0/8,"]),
)
LINES = st.lists(
    st.one_of(st.tuples(KEYS, VALUES).map("=".join), st.text(max_size=20), KEYS), max_size=12
)


@given(LINES.map("\n".join))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        found = parse(text, "/x")
    except CNIError:
        return
    assert found.networks
    assert found.subnets
    assert 0 <= found.mtu < 1 << 32


networks_v4 = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(ipaddress.IPv4Interface),
    min_size=1,
    max_size=4,
)


@given(networks_v4, st.integers(0, 2**32 - 1), st.booleans())
def test_what_flanneld_writes(
    networks: list[ipaddress.IPv4Interface], mtu: int, masq: bool
) -> None:
    """Masked, without duplicates and in order, as the standard library says."""
    text = env(
        {
            "FLANNEL_NETWORK": ",".join(map(str, networks)),
            "FLANNEL_SUBNET": str(networks[0]),
            "FLANNEL_MTU": str(mtu),
            "FLANNEL_IPMASQ": str(masq).lower(),
        }
    )
    found = parse(text, "/x")
    expected = list(dict.fromkeys(str(one.network) for one in networks))
    assert texts(found) == (expected, [str(networks[0].network)])
    assert (found.mtu, found.ip_masq) == (mtu, masq)


def test_files(tmp_path: Path) -> None:
    good = tmp_path / "subnet.env"
    good.write_text(env({**V4, **REST}))
    assert load(str(good)).mtu == 1472
    os.mkfifo(tmp_path / "fifo")
    for path, text in (
        ("none", "open {}: no such file or directory"),
        ("", "read {}: is a directory"),
        ("fifo", "{} is missing FLANNEL_NETWORK"),
    ):
        where = str(tmp_path / path) if path else str(tmp_path)
        with pytest.raises(CNIError) as caught:
            load(where)
        assert caught.value.msg.startswith(text.format(where))
    with pytest.raises(CNIError):
        load("a\0b")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(b"\xff\xfe\n" + env({**V4, **REST}).encode())
    assert load(str(path)).mtu == 1472
