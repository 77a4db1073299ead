"""Ranges of host-local: canonical form, every error in the reference's words, and iteration.

Where Debian's Go plugin is installed, the table is checked against it as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.host_local.ranges import RangeConf, RangeSet, canonical, canonical_sets
from cni.protocol.address import format_ip, parse_ip

from .ipam_node import Failure, Ipam, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

GO = Path("/usr/lib/cni/host-local")


def conf(subnet: str, start: str | None = None, end: str | None = None) -> RangeConf:
    return RangeConf(subnet=subnet, range_start=start, range_end=end)


def range_set(*ranges: RangeConf) -> RangeSet:
    return RangeSet(tuple(map(canonical, ranges)))


def candidates(each: RangeSet, last: bytes | None = None) -> Iterator[str]:
    """Every address of the set, in the order in which it is tried."""
    for found, low, high in each.spans(last):
        for number in range(low, high + 1):
            yield format_ip(found.packed(number))


def texts(each: RangeSet, last: bytes | None = None) -> list[str]:
    return list(candidates(each, last))


def canonical_ipam(**keys: Any) -> dict[str, Any]:
    return {"type": "host-local", **keys}


# --- canonical form ---


@pytest.mark.parametrize(
    ("subnet", "start", "end", "gateway"),
    [
        ("192.0.2.0/24", "192.0.2.1", "192.0.2.254", "192.0.2.1"),
        ("192.0.2.0/25", "192.0.2.1", "192.0.2.126", "192.0.2.1"),
        ("192.0.2.4/30", "192.0.2.5", "192.0.2.6", "192.0.2.5"),
        ("0.0.0.0/0", "0.0.0.1", "255.255.255.254", "0.0.0.1"),
        ("2001:DB8:1::/64", "2001:db8:1::1", "2001:db8:1:0:ffff:ffff:ffff:ffff", "2001:db8:1::1"),
        ("2001:db8:1::/126", "2001:db8:1::1", "2001:db8:1::3", "2001:db8:1::1"),
        ("::/0", "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::1"),
    ],
)
def test_defaults(subnet: str, start: str, end: str, gateway: str) -> None:
    found = canonical(conf(subnet))
    assert str(found) == f"{start}-{end}"
    assert format_ip(found.gateway) == gateway


def test_explicit_values() -> None:
    found = canonical(
        RangeConf(
            "192.0.2.0/24", range_start="192.0.2.40", range_end="192.0.2.255", gateway="fd00::1"
        )
    )
    assert str(found) == "192.0.2.40-192.0.2.255"
    assert found.gateway == parse_ip("fd00::1")


@pytest.mark.parametrize(
    ("subnet", "start", "end", "inside", "outside"),
    [
        (
            "192.0.2.0/24",
            "192.0.2.40",
            "192.0.2.50",
            ["192.0.2.40", "192.0.2.45", "192.0.2.50", "::ffff:192.0.2.45"],
            ["192.0.2.39", "192.0.2.51", "192.0.3.45", "fd00::1", "::c000:22d"],
        ),
        (
            "2001:db8:1::/64",
            "2001:db8:1::40",
            "2001:db8:1::50",
            ["2001:db8:1::40", "2001:DB8:1::4f"],
            ["2001:db8:1::3f", "2001:db8:1::51", "2001:db8:2::45", "192.0.2.45"],
        ),
    ],
)
def test_contains(subnet: str, start: str, end: str, inside: list[str], outside: list[str]) -> None:
    found = canonical(conf(subnet, start, end))
    assert all(found.contains(parse_ip(ip)) for ip in inside)
    assert not any(found.contains(parse_ip(ip)) for ip in outside)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        (conf("10.0.0.0/20"), conf("10.0.2.0/24"), True),
        (conf("10.0.0.0/24"), conf("10.0.1.0/24"), False),
        (conf("10.0.0.0/24", end="10.0.0.9"), conf("10.0.0.0/24", "10.0.0.10"), False),
        (conf("10.0.0.0/24", end="10.0.0.10"), conf("10.0.0.0/24", "10.0.0.10"), True),
        (conf("10.0.0.0/24", "10.0.0.5", "10.0.0.6"), conf("10.0.0.0/16"), True),
        (conf("fd00::/64"), conf("fd00::/96"), True),
        (conf("0.0.0.0/0"), conf("::/0"), False),
    ],
)
def test_overlaps(one: RangeConf, other: RangeConf, overlap: bool) -> None:
    for a, b in ((one, other), (other, one)):
        assert canonical(a).overlaps(canonical(b)) == overlap
        assert range_set(a).overlaps(range_set(b)) == overlap


# --- order of the sets ---


def test_runtime_ranges_come_first(tmp_path: Path) -> None:
    ipam = Ipam(
        "host-local",
        {
            "cniVersion": "1.0.0",
            "name": "n",
            "ipam": canonical_ipam(
                dataDir=str(tmp_path),
                subnet="10.1.0.0/24",
                rangeStart="10.1.0.9",
                rangeEnd="10.1.0.20",
                gateway="10.1.0.30",
                ranges=[[{"subnet": "10.2.0.0/24"}], [{"subnet": "fd00::/64"}]],
            ),
            "runtimeConfig": {
                "ipRanges": [[{"subnet": "10.3.0.0/24"}], [{"subnet": "fd01::/64"}]],
            },
        },
    )
    assert ipam.call("ADD")["ips"] == [
        {"address": "10.3.0.2/24", "gateway": "10.3.0.1"},
        {"address": "fd01::2/64", "gateway": "fd01::1"},
        {"address": "10.1.0.9/24", "gateway": "10.1.0.30"},
        {"address": "10.2.0.2/24", "gateway": "10.2.0.1"},
        {"address": "fd00::2/64", "gateway": "fd00::1"},
    ]


def test_one_set_a_family_in_old_versions() -> None:
    v4, v6, more = ([conf(s)] for s in ("10.0.0.0/24", "fd00::/64", "10.1.0.0/24"))
    assert len(canonical_sets([v4, v6], "0.2.0", multiple=False)) == 2
    with pytest.raises(Exception, match=r"CNI version 0.2.0 does not support more than 1 address"):
        canonical_sets([v4, v6, more], "0.2.0", multiple=False)


# --- errors ---

R = "ranges"
ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, "no IP ranges specified"),
    ({R: []}, "no IP ranges specified"),
    ({"rangeStart": "10.0.0.9"}, "no IP ranges specified"),
    ({R: [[]]}, "invalid range set 0: empty range set"),
    ({R: [[{"subnet": "10.0.0.0/24"}], []]}, "invalid range set 1: empty range set"),
    ({R: [[{"rangeStart": "10.0.0.1"}]]}, "invalid range set 0: IP <nil> not v4 nor v6"),
    ({"subnet": "10.0.0.0"}, "invalid CIDR address: 10.0.0.0"),
    ({"subnet": ""}, "invalid CIDR address: "),
    ({"subnet": "10.0.0.0/33"}, "invalid CIDR address: 10.0.0.0/33"),
    ({R: [[{"subnet": "x"}]]}, "invalid CIDR address: x"),
    ({"subnet": "10.0.0.0/24", "rangeStart": "x"}, "invalid IP address: x"),
    ({"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.1/24"}, "invalid IP address: 10.0.0.1/24"),
    ({"subnet": "10.0.0.0/24", "gateway": "x"}, "invalid IP address: x"),
    (
        {"subnet": "10.0.0.0/31"},
        "invalid range set 0: Network 10.0.0.0/31 too small to allocate from",
    ),
    (
        {"subnet": "10.0.0.1/32"},
        "invalid range set 0: Network 10.0.0.1/32 too small to allocate from",
    ),
    (
        {"subnet": "fd00::/127"},
        "invalid range set 0: Network fd00::/127 too small to allocate from",
    ),
    (
        {"subnet": "fd00::/128"},
        "invalid range set 0: Network fd00::/128 too small to allocate from",
    ),
    ({"subnet": "::ffff:10.0.0.0/120"}, "invalid range set 0: IPNet IP and Mask version mismatch"),
    (
        {"subnet": "192.0.2.1/24"},
        "invalid range set 0: Network has host bits set. For a subnet mask of length 24 the "
        "network address is 192.0.2.0",
    ),
    (
        {"subnet": "fd00::1/64"},
        "invalid range set 0: Network has host bits set. For a subnet mask of length 64 the "
        "network address is fd00::",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.1.1"},
        "invalid range set 0: RangeStart 10.0.1.1 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeStart": "fd00::1"},
        "invalid range set 0: RangeStart fd00::1 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.50", "rangeEnd": "10.0.0.40"},
        "invalid range set 0: RangeStart 10.0.0.50 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.50", "rangeEnd": "9.0.0.1"},
        "invalid range set 0: RangeStart 10.0.0.50 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.50", "rangeEnd": "10.0.1.1"},
        "invalid range set 0: RangeEnd 10.0.1.1 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.1"},
        "invalid range set 0: RangeEnd 10.0.1.1 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.0"},
        "invalid range set 0: RangeEnd 10.0.0.0 not in network 10.0.0.0/24",
    ),
    (
        {"subnet": "fd00::/64", "rangeEnd": "10.0.0.1"},
        "invalid range set 0: RangeEnd 10.0.0.1 not in network fd00::/64",
    ),
    (
        {R: [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]},
        "invalid range set 0: mixed address families",
    ),
    (
        {R: [[{"subnet": "10.0.0.0/20"}, {"subnet": "10.0.2.0/24"}]]},
        "invalid range set 0: subnets 10.0.0.1-10.0.15.254 and 10.0.2.1-10.0.2.254 overlap",
    ),
    (
        {R: [[{"subnet": "10.0.0.0/20"}], [{"subnet": "10.0.2.0/24"}]]},
        "range set 0 overlaps with 1",
    ),
    (
        {
            R: [
                [{"subnet": "10.0.0.0/24"}],
                [{"subnet": "10.1.0.0/24"}],
                [{"subnet": "10.2.0.0/24"}, {"subnet": "10.1.0.0/16", "rangeStart": "10.1.0.9"}],
            ]
        },
        "range set 1 overlaps with 2",
    ),
    (
        {"subnet": "10.0.0.0/24", R: [[{"subnet": "10.0.0.0/25"}]]},
        "range set 0 overlaps with 1",
    ),
    (
        {"subnet": "10.0.0.0/24", "routes": [{"dst": "x"}]},
        "invalid CIDR address: x",
    ),
    (
        {"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0", "gw": "x"}]},
        "invalid IP address: x",
    ),
]


@pytest.mark.parametrize(("keys", "msg"), ERRORS)
def test_errors(
    tmp_path: Path, keys: dict[str, Any], msg: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """On every verb, and nothing is made on disk; but DEL releases, and only logs it."""
    ipam = Ipam(
        "host-local",
        {
            "cniVersion": "1.0.0",
            "name": "n",
            "ipam": canonical_ipam(dataDir=str(tmp_path / "data"), **keys),
        },
    )
    for verb in ("ADD", "CHECK"):
        with pytest.raises(Failure) as caught:
            ipam.call(verb)
        assert (caught.value.code, caught.value.msg) == (999, msg)
    ipam.delete()
    assert msg in capfd.readouterr().err
    assert not (tmp_path / "data").exists()
    held = tmp_path / "data" / "n" / "10.0.0.9"
    held.parent.mkdir(parents=True)
    held.write_text("c1\r\neth0")
    ipam.delete()
    assert not held.exists()
    if GO.exists():
        assert go_error(ipam.conf) == msg


def go_error(config: dict[str, Any]) -> str:
    done = subprocess.run(
        [GO],
        input=json.dumps(config).encode(),
        env={**os.environ, **environment("ADD", "c1", "eth0", "")},
        stdout=subprocess.PIPE,
    )
    return str(json.loads(done.stdout)["msg"])


def test_old_version_error(tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.1.0.0/24"}]]
    ipam = Ipam(
        "host-local",
        {
            "cniVersion": "0.2.0",
            "name": "n",
            "ipam": canonical_ipam(dataDir=str(tmp_path), ranges=ranges),
        },
    )
    with pytest.raises(Failure, match=r"^CNI version 0.2.0 does not support more than 1 address"):
        ipam.add()
    del ipam.conf["cniVersion"]
    with pytest.raises(Failure, match=r"^CNI version  does not support more than 1 address"):
        ipam.delete()


@pytest.mark.parametrize("more", [{}, {"runtimeConfig": {"ipRanges": []}}, {"ipam": None}])
def test_missing_ipam(more: dict[str, Any]) -> None:
    ipam = Ipam("host-local", {"cniVersion": "1.1.0", "name": "n", **more})
    for verb in ("ADD", "DEL", "CHECK", "STATUS"):
        with pytest.raises(Failure, match=r"^IPAM config missing 'ipam' key$"):
            ipam.call(verb, env_args="IP=10.0.0.1")


@pytest.mark.parametrize(
    ("ipam", "path"),
    [
        ("x", "ipam"),
        ({"ranges": [{}]}, "ipam.ranges"),
        ({"subnet": 5}, "ipam.subnet"),
        ({"dataDir": 5}, "ipam.dataDir"),
        ({"routes": "x"}, "ipam.routes"),
    ],
)
def test_wrong_types(ipam: Any, path: str) -> None:
    node = Ipam("host-local", {"cniVersion": "1.1.0", "name": "n", "ipam": ipam})
    with pytest.raises(Failure, match=rf"^json: cannot unmarshal \w+ into field {path}"):
        node.add()


def test_a_start_at_the_broadcast_address_is_refused() -> None:
    """The reference hands it out."""
    with pytest.raises(Exception, match=r"RangeStart 10.0.0.255 not in network 10.0.0.0/24"):
        canonical(conf("10.0.0.0/24", "10.0.0.255"))


def test_keys_of_any_case(tmp_path: Path) -> None:
    ipam = {"TYPE": "host-local", "DataDir": str(tmp_path), "SUBNET": "10.0.0.0/24"}
    node = Ipam("host-local", {"cniVersion": "1.1.0", "name": "n", "IPAM": ipam})
    node.conf["IPAM"]["RANGESTART"] = "10.0.0.7"
    assert node.add() == ["10.0.0.7/24"]


# --- iteration ---


def test_iteration() -> None:
    one = range_set(conf("192.168.1.0/29"))
    assert texts(one) == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]
    assert texts(one, parse_ip("192.168.1.3")) == [f"192.168.1.{n}" for n in (4, 5, 6, 2, 3)]
    assert texts(one, parse_ip("192.168.1.6")) == [f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)]
    assert texts(one, parse_ip("10.0.0.1")) == texts(one)
    assert one.size == 5


def test_iteration_over_several_ranges() -> None:
    several = range_set(
        conf("192.168.1.0/29"),
        conf("192.168.2.0/28", "192.168.2.3", "192.168.2.4"),
        conf("192.168.3.0/30"),
    )
    fresh = [
        *(f"192.168.1.{n}" for n in (2, 3, 4, 5, 6)),
        "192.168.2.3",
        "192.168.2.4",
        "192.168.3.2",
    ]
    assert texts(several) == fresh
    assert several.size == len(fresh)
    for index, last in enumerate(fresh):
        rotated = fresh[index + 1 :] + fresh[: index + 1]
        assert texts(several, parse_ip(last)) == rotated
    assert str(several) == "192.168.1.1-192.168.1.6,192.168.2.3-192.168.2.4,192.168.3.1-192.168.3.2"


def test_no_range_hands_out_the_gateway_of_another() -> None:
    shared = RangeSet(
        (
            canonical(RangeConf("10.0.0.0/24", "10.0.0.2", "10.0.0.4", gateway="10.0.0.6")),
            canonical(RangeConf("10.0.0.0/24", "10.0.0.5", "10.0.0.6", gateway="10.0.0.3")),
        )
    )
    assert texts(shared) == ["10.0.0.2", "10.0.0.4", "10.0.0.5"]
    assert shared.size == 3


def test_large_ranges_are_not_enumerated() -> None:
    large = range_set(conf("fd00::/8"))
    last = parse_ip("fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffe")
    assert list(islice(candidates(large, last), 3)) == [
        "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "fd00::2",
        "fd00::3",
    ]
    assert large.size == 2**120 - 2


def test_membership() -> None:
    members = range_set(conf("192.168.0.0/20"), conf("172.16.3.0/24"))
    found = members.range_for(parse_ip("172.16.3.9"))
    assert found is not None
    assert str(found.subnet) == "172.16.3.0/24"
    assert members.range_for(parse_ip("192.168.99.99")) is None
