"""whereabouts' keys, read as a pool of `cluster`: what they mean, and what is said of them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cni.ipam.cluster.plugin import IpamConf
from cni.ipam.cluster.pool import Pool
from cni.ipam.cluster.whereabouts import FLAT_FILES, convert, flat_file
from cni.protocol import config
from cni.protocol.address import parse_ip
from cni.protocol.errors import CNIError

Json = dict[str, Any]
KUBECONFIG = "/etc/cni/net.d/whereabouts.d/whereabouts.kubeconfig"


SINGLE = {"blockSize": 32, "blockSizeV6": 128, "reserve": 0}
ALWAYS = {"type": "cluster", "noGateway": True}


def converted(**ipam: Any) -> Json:
    return convert({"type": "whereabouts", **ipam}).ipam


def number(address: str) -> int:
    return int.from_bytes(parse_ip(address), "big")


def pool_of(ipam: Json) -> Pool:
    return Pool.of(config.convert(ipam, IpamConf), "", "1.1.0")


@pytest.mark.parametrize(
    ("given", "ranges"),
    [
        ({"range": "10.1.2.3/24"}, [{"subnet": "10.1.2.0/24"}]),
        (
            {"range": "10.1.2.225-10.1.2.230/28"},
            [{"subnet": "10.1.2.224/28", "rangeStart": "10.1.2.225", "rangeEnd": "10.1.2.230"}],
        ),
        (
            {"range": "10.1.2.0/24", "range_start": "10.1.2.9", "range_end": "10.1.2.19"},
            [{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.19"}],
        ),
        (
            {"Range": "fd00:1::/64", "exclude": ["fd00:1::/120", "fd00:1::5"]},
            [{"subnet": "fd00:1::/64", "exclude": ["fd00:1::/120", "fd00:1::5"]}],
        ),
        (
            {
                "range": "10.1.0.0/24",
                "exclude": ["10.1.0.0/28"],
                "ipRanges": [
                    {"range": "10.2.0.0/24", "exclude": ["10.2.0.9"]},
                    {"range": "fd00::/64"},
                ],
            },
            [
                {"subnet": "10.1.0.0/24", "exclude": ["10.1.0.0/28"]},
                {"subnet": "10.2.0.0/24", "exclude": ["10.2.0.9"]},
                {"subnet": "fd00::/64"},
            ],
        ),
    ],
)
def test_ranges(given: Json, ranges: list[Json]) -> None:
    """`range` comes first; a container gets an address of each."""
    ipam = converted(**given)
    assert ipam == {**ALWAYS, **SINGLE, "ranges": [[each] for each in ranges]}
    assert len(pool_of(ipam).sets) == len(ranges)


def test_limits_hold_in_the_pool() -> None:
    pool = pool_of(
        converted(range="10.1.2.225-10.1.2.230/28", exclude=["10.1.2.226/32"], gateway="10.1.2.225")
    )
    [(_, low, high)] = pool.sets[0].spans()
    assert (low, high) == (number("10.1.2.227"), number("10.1.2.230"))


def test_a_gateway_goes_where_it_belongs() -> None:
    ipam = converted(range="10.1.0.0/24", ipRanges=[{"range": "fd00::/64"}], gateway="10.1.0.254")
    assert ipam["ranges"] == [
        [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.254"}],
        [{"subnet": "fd00::/64"}],
    ]
    outside = convert({"range": "10.1.0.0/24", "gateway": "192.0.2.1"})
    assert outside.ipam["ranges"] == [[{"subnet": "10.1.0.0/24"}]]
    assert ["192.0.2.1" in note for note in outside.notes] == [True]


def test_names_slices_and_the_store() -> None:
    ipam = converted(
        range="10.1.0.0/16",
        network_name="blue",
        node_slice_size="26",
        kubernetes={"kubeconfig": KUBECONFIG},
        routes=[{"dst": "0.0.0.0/0"}],
        cooldown=5,
    )
    assert ipam == {
        **ALWAYS,
        "ranges": [[{"subnet": "10.1.0.0/16"}]],
        "space": "blue",
        "blockSize": 26,
        "store": {"type": "kubernetes", "kubeconfig": KUBECONFIG},
        "routes": [{"dst": "0.0.0.0/0"}],
        "cooldown": 5,
    }
    pool = pool_of(ipam)
    assert (pool.space, pool.layout) == ("blue", {"10.1.0.0/16": 26})
    assert converted(range="fd00::/64", node_slice_size="/122")["blockSizeV6"] == 122
    own = {"type": "etcd", "endpoints": ["https://e:2379"]}
    assert converted(store=own, kubernetes={"kubeconfig": "/k"})["store"] == own


def test_what_has_no_meaning_is_said_once() -> None:
    silly = {
        "range": "10.1.0.0/24",
        "log_file": "/tmp/w.log",
        "log_level": "debug",
        "Leader_Lease_Duration": 1500,
        "reconciler_cron_expression": "30 4 * * *",
        "sleep_for_race": 0,
        "datastore": "kubernetes",
        "etcd_host": "e",
        "enable_overlapping_ranges": False,
        "kubernetes": {"kubeconfig": "/k", "k8s_api_root": "https://a"},
    }
    found = convert(silly)
    assert found.ipam == {
        **ALWAYS,
        **SINGLE,
        "ranges": [[{"subnet": "10.1.0.0/24"}]],
        "store": {"type": "kubernetes", "kubeconfig": "/k"},
    }
    assert len(found.notes) == 9
    for key in ("log_file", "Leader_Lease_Duration", "k8s_api_root", "enable_overlapping_ranges"):
        assert sum(key in note for note in found.notes) == 1
    assert convert({"range": "10.1.0.0/24", "enable_overlapping_ranges": True}).notes == []
    unused = convert({"ipRanges": [{"range": "fd00::/64"}], "exclude": ["10.0.0.1"]})
    assert ["exclude" in note for note in unused.notes] == [True]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"range": "10.1.0.0"}, "range: "),
        ({"range": "10.1.0.9-10.1.0.20"}, "range: "),
        ({"range": "x-10.1.0.20/24"}, "range: "),
        ({"range": 5}, "range is not a string"),
        ({"range": "10.1.0.0/24", "range_start": "10.2.0.1"}, "range_start: 10.2.0.1 is not in"),
        ({"range": "10.1.0.0/24", "range_end": "a"}, "range_end"),
        ({"range": "10.1.0.0/24", "exclude": "10.1.0.1"}, "exclude is not a list"),
        ({"ipRanges": {}, "range": "10.1.0.0/24"}, None),
        ({"ipRanges": {"a": 1}}, "ipRanges is not a list"),
        ({"ipRanges": ["10.1.0.0/24"]}, r"ipRanges\[0\] is not an object"),
        ({"ipRanges": [{"range": "a/b"}]}, r"ipRanges\[0\]\.range"),
        ({"range": "10.1.0.0/24", "gateway": "here"}, "gateway"),
        ({"range": "10.1.0.0/24", "node_slice_size": "/x"}, "node_slice_size /x"),
        ({"range": "10.1.0.0/24", "node_slice_size": "/64"}, "too long for IPv4"),
        ({"range": "10.1.0.0/24", "network_name": "a/b"}, "network_name"),
        ({"range": "10.1.0.0/24", "kubernetes": "k"}, "kubernetes is not an object"),
    ],
)
def test_what_is_wrong_is_named(given: Json, why: str | None) -> None:
    if why is None:
        convert(given)  # an empty value is none
        return
    with pytest.raises(CNIError, match=why) as raised:
        convert(given)
    assert raised.value.details


def test_the_flat_file_says_what_the_network_does_not() -> None:
    files = {FLAT_FILES[1]: {"kubernetes": {"kubeconfig": "/flat"}, "Network_Name": "flat"}}

    def read(path: str) -> bytes | None:
        return json.dumps(files[path]).encode() if path in files else None

    own = {"range": "10.1.0.0/24", "network_name": "own"}
    path, flat = flat_file(own, read)
    assert path == FLAT_FILES[1]
    made = convert(own, flat).ipam
    assert made["space"] == "own"
    assert made["store"]["kubeconfig"] == "/flat"
    files[FLAT_FILES[0]] = {"ipam": {"network_name": "first"}}
    assert flat_file(own, read) == (FLAT_FILES[0], {"network_name": "first"})
    files["/mine"] = {}
    assert flat_file({**own, "configuration_path": "/mine"}, read) == ("/mine", {})
    with pytest.raises(CNIError, match="/gone does not exist"):
        flat_file({**own, "configuration_path": "/gone"}, read)
    with pytest.raises(CNIError, match=FLAT_FILES[0]):
        flat_file(own, lambda _: b"{")
    assert flat_file(own, lambda _: None) == ("", {})


def test_nothing_is_lost_of_what_is_told() -> None:
    """Whatever is not read is handed on, so that a wrong key is an error of `cluster`."""
    assert msgspec.json.encode(converted(range="10.1.0.0/24", nonsense=1)).count(b"nonsense") == 1
