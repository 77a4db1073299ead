"""Results: printing and parsing in every version, conversion both ways, prevResult."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.protocol.config import DNS, Route
from cni.protocol.errors import CNIError
from cni.protocol.result import Interface, IPConfig, Result, encode_json
from cni.protocol.version import ALL

Json = dict[str, Any]
LEGACY, MIDDLE, MODERN = ALL[:2], ALL[2:5], ALL[5:]


def full() -> Result:
    """A result that uses every field."""
    return Result(
        interfaces=[
            Interface(name="br0", mac="02:00:00:00:00:01"),
            Interface(
                name="eth0",
                mac="02:00:00:00:00:02",
                mtu=1400,
                sandbox="/run/netns/x",
                socket_path="/run/s",
                pci_id="0000:00:01.0",
            ),
        ],
        ips=[
            IPConfig(address="10.0.0.2/24", interface=0, gateway="10.0.0.1"),
            IPConfig(address="FD00::2/64"),
            IPConfig(address="10.0.1.2/24"),
        ],
        routes=[
            Route(dst="0.0.0.0/0", gw="10.0.0.1"),
            Route(dst="::/0"),
            Route(dst="10.9.0.1/8", mtu=1400, advmss=1300, priority=5, table=0, scope=0),
        ],
        dns=DNS(nameservers=["10.0.0.1"], domain="d", search=["s"], options=["o"]),
    )


DNS_OBJECT = {"nameservers": ["10.0.0.1"], "domain": "d", "search": ["s"], "options": ["o"]}
FULL_ROUTES = [
    {"dst": "0.0.0.0/0", "gw": "10.0.0.1"},
    {"dst": "::/0"},
    {"dst": "10.9.0.1/8", "mtu": 1400, "advmss": 1300, "priority": 5, "table": 0, "scope": 0},
]
GOLDEN: dict[str, Json] = {
    "legacy": {
        "ip4": {
            "ip": "10.0.0.2/24",
            "gateway": "10.0.0.1",
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "10.9.0.1/8"}],
        },
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]},
        "dns": DNS_OBJECT,
    },
    "middle": {
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/x"},
        ],
        "ips": [
            {"version": "4", "interface": 0, "address": "10.0.0.2/24", "gateway": "10.0.0.1"},
            {"version": "6", "address": "fd00::2/64"},
            {"version": "4", "address": "10.0.1.2/24"},
        ],
        "routes": FULL_ROUTES,
        "dns": DNS_OBJECT,
    },
    "modern": {
        "dns": DNS_OBJECT,
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"},
            {
                "name": "eth0",
                "mac": "02:00:00:00:00:02",
                "mtu": 1400,
                "sandbox": "/run/netns/x",
                "socketPath": "/run/s",
                "pciID": "0000:00:01.0",
            },
        ],
        "ips": [
            {"address": "10.0.0.2/24", "interface": 0, "gateway": "10.0.0.1"},
            {"address": "fd00::2/64"},
            {"address": "10.0.1.2/24"},
        ],
        "routes": FULL_ROUTES,
    },
}


def kind_of(version: str) -> str:
    return "legacy" if version in LEGACY else "middle" if version in MIDDLE else "modern"


@pytest.mark.parametrize("version", ALL)
def test_a_full_result_in_every_version(version: str) -> None:
    assert full().as_dict(version) == {"cniVersion": version, **GOLDEN[kind_of(version)]}
    assert json.loads(full().encode(version)) == full().as_dict(version)


@pytest.mark.parametrize("version", ALL)
def test_what_was_printed_is_read_again(version: str) -> None:
    printed = full().as_dict(version)
    again = Result.parse(printed, version)
    assert again.as_dict(version) == printed
    assert full().through(version).as_dict(version) == printed


@pytest.mark.parametrize("source", ALL)
@pytest.mark.parametrize("target", ALL)
def test_every_conversion(source: str, target: str) -> None:
    """What neither version can say is lost, all else arrives."""
    got = Result.parse(full().as_dict(source), source).as_dict(target)
    kinds = {kind_of(source), kind_of(target)}
    assert got["cniVersion"] == target
    assert got["dns"] == DNS_OBJECT
    if kind_of(target) == "legacy":
        assert got == {"cniVersion": target, **GOLDEN["legacy"]}
    elif "legacy" in kinds:
        assert "interfaces" not in got
        assert [ip["address"] for ip in got["ips"]] == ["10.0.0.2/24", "fd00::2/64"]
        assert [r["dst"] for r in got["routes"]] == ["0.0.0.0/0", "10.9.0.1/8", "::/0"]
        assert got["ips"][0].get("version") == ("4" if target in MIDDLE else None)
    elif "middle" in kinds:
        assert got["routes"] == FULL_ROUTES
        for link in got["interfaces"]:
            assert set(link) <= {"name", "mac", "sandbox"}
    else:
        assert got == {"cniVersion": target, **GOLDEN["modern"]}


def test_no_version_means_the_oldest() -> None:
    assert full().as_dict("") == full().as_dict("0.1.0")
    assert Result.parse({"ip4": {"ip": "1.2.3.4/8"}}, "").ips[0].address == "1.2.3.4/8"


def test_bytes_as_the_reference_prints_them() -> None:
    small = Result(
        interfaces=[Interface(name="eth0", sandbox="/x")],
        ips=[IPConfig(address="10.0.0.2/24", interface=0)],
    )
    # 1.x: keys sorted at every level, no empty dns
    assert small.encode("1.1.0").decode() == (
        '{\n    "cniVersion": "1.1.0",\n    "interfaces": [\n        {\n'
        '            "name": "eth0",\n            "sandbox": "/x"\n        }\n    ],\n'
        '    "ips": [\n        {\n            "address": "10.0.0.2/24",\n'
        '            "interface": 0\n        }\n    ]\n}'
    )
    # before: the order of declaration, dns always there
    assert small.encode("0.4.0").decode() == (
        '{\n    "cniVersion": "0.4.0",\n    "interfaces": [\n        {\n'
        '            "name": "eth0",\n            "sandbox": "/x"\n        }\n    ],\n'
        '    "ips": [\n        {\n            "version": "4",\n            "interface": 0,\n'
        '            "address": "10.0.0.2/24"\n        }\n    ],\n    "dns": {}\n}'
    )
    assert small.encode("0.2.0").decode() == (
        '{\n    "cniVersion": "0.2.0",\n    "ip4": {\n        "ip": "10.0.0.2/24"\n    },\n'
        '    "dns": {}\n}'
    )


@pytest.mark.parametrize("version", MODERN)
def test_keys_are_sorted_at_every_level(version: str) -> None:
    def ordered(value: Any) -> bool:
        if isinstance(value, dict):
            return list(value) == sorted(value) and all(map(ordered, value.values()))
        return not isinstance(value, list) or all(map(ordered, value))

    assert ordered(full().as_dict(version))
    assert not ordered(full().as_dict("0.4.0"))


def test_go_escapes() -> None:
    text = encode_json({"a": '<b>&\u2028\u2029é"\\\n'}).decode()
    assert text == '{\n    "a": "\\u003cb\\u003e\\u0026\\u2028\\u2029é\\"\\\\\\n"\n}'
    assert json.loads(text) == {"a": '<b>&\u2028\u2029é"\\\n'}


@pytest.mark.parametrize("version", LEGACY)
def test_old_versions_need_an_address(version: str) -> None:
    with pytest.raises(CNIError, match="cannot convert: no valid IP addresses") as caught:
        Result(interfaces=[Interface(name="eth0")]).as_dict(version)
    assert caught.value.code == 999


@pytest.mark.parametrize("version", ["0.5.0", "1.2.0", "x", "1.0"])
def test_unknown_version(version: str) -> None:
    for function in (lambda: full().as_dict(version), lambda: Result.parse({}, version)):
        with pytest.raises(CNIError) as caught:
            function()
        assert caught.value.msg == f'unsupported CNI result version "{version}"'


# -- families of versions -------------------------------------------------------------------------

LISTS = {
    "legacy": "[ 0.1.0 0.2.0]",
    "middle": "[0.3.0 0.3.1 0.4.0]",
    "modern": "[1.0.0 1.1.0]",
}


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("own", ALL)
def test_a_result_must_be_of_the_configurations_family(config: str, own: str) -> None:
    raw = full().as_dict(own)
    if kind_of(config) == kind_of(own):
        assert Result.parse(raw, config).as_dict(own) == raw
        return
    with pytest.raises(CNIError) as caught:
        Result.parse(raw, config)
    assert caught.value.msg == (
        f'result type supports {LISTS[kind_of(config)]} but unmarshalled CNIVersion is "{own}"'
    )


@pytest.mark.parametrize("own", [None, ""])
def test_a_result_without_version_is_of_the_configurations(own: str | None) -> None:
    raw = {**GOLDEN["middle"], "cniVersion": own}
    assert Result.parse(raw, "0.4.0").as_dict("0.4.0") == full().as_dict("0.4.0")


@pytest.mark.parametrize("own", [5, ["1.0.0"], {"a": 1}, True])
def test_a_result_whose_version_is_no_string(own: object) -> None:
    with pytest.raises(CNIError):
        Result.parse({"cniVersion": own}, "1.0.0")


def test_null_is_the_empty_result() -> None:
    assert Result.parse(None, "1.0.0") == Result()


@pytest.mark.parametrize("raw", [[], "x", 5, True])
def test_a_result_is_an_object(raw: object) -> None:
    with pytest.raises(CNIError):
        Result.parse(raw, "1.0.0")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"ips": [{"address": "10.0.0.1"}]}, "invalid CIDR address: 10.0.0.1"),
        ({"ips": [{"address": 5}]}, "ips"),
        ({"ips": {}}, "ips"),
        ({"ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}, "invalid IP address: x"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": "0"}]}, "interface"),
        ({"routes": [{"dst": "10.0.0.0"}]}, "invalid CIDR address: 10.0.0.0"),
        ({"routes": [{}]}, "invalid CIDR address: "),
        ({"interfaces": [1]}, "interfaces"),
        ({"dns": []}, "dns"),
    ],
)
def test_bad_results(raw: Json, text: str) -> None:
    with pytest.raises(CNIError) as caught:
        Result.parse(raw, "1.0.0")
    assert text in caught.value.msg
    assert caught.value.code == 999


def test_what_the_runtime_left_out_or_nulled() -> None:
    raw = {"interfaces": None, "ips": [{"address": "10.0.0.1/8", "gateway": None}], "dns": None}
    assert Result.parse(raw, "1.0.0").as_dict("1.0.0") == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.0.0.1/8"}],
    }


def test_index_zero_and_no_index() -> None:
    for index in (0, 1, None, -1):
        result = Result(ips=[IPConfig(address="10.0.0.1/8", interface=index)])
        for version in ALL[2:]:
            again = Result.parse(result.as_dict(version), version)
            assert again.ips[0].interface == index


# -- any result -----------------------------------------------------------------------------------

ADDRESSES = st.ip_addresses().map(str)
PREFIXES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)),
    st.tuples(st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None), st.integers(0, 128)),
).map(lambda pair: f"{pair[0]}/{pair[1]}")
TEXT = st.text(max_size=8)
SMALL = st.integers(0, 5000)
RESULTS = st.builds(
    Result,
    interfaces=st.lists(
        st.builds(
            Interface,
            name=TEXT,
            mac=TEXT,
            mtu=SMALL,
            sandbox=TEXT,
            socket_path=TEXT,
            pci_id=TEXT,
        ),
        max_size=3,
    ),
    ips=st.lists(
        st.builds(
            IPConfig,
            address=PREFIXES,
            interface=st.none() | SMALL,
            gateway=st.none() | ADDRESSES,
        ),
        max_size=3,
    ),
    routes=st.lists(
        st.builds(
            Route,
            dst=PREFIXES,
            gw=st.none() | ADDRESSES,
            mtu=SMALL,
            advmss=SMALL,
            priority=SMALL,
            table=st.none() | SMALL,
            scope=st.none() | SMALL,
        ),
        max_size=3,
    ),
    dns=st.builds(DNS, nameservers=st.none() | st.lists(TEXT, max_size=2), domain=TEXT),
)


@given(RESULTS)
def test_modern_versions_lose_nothing(result: Result) -> None:
    for version in MODERN:
        printed = json.loads(result.encode(version))
        again = Result.parse(printed, version)
        assert again.as_dict(version) == printed
        assert (again.interfaces, again.ips, again.routes) == (
            result.interfaces,
            result.ips,
            result.routes,
        )


@given(RESULTS)
def test_a_trip_through_an_older_version_is_stable(result: Result) -> None:
    """What a version cannot say is lost once; a second trip loses nothing more."""
    for version in ALL[:5]:
        try:
            once = result.as_dict(version)
        except CNIError:
            assert version in LEGACY
            assert not result.ips
            continue
        assert Result.parse(once, version).as_dict(version) == once
        assert result.through(version).as_dict(version) == once


# --- a prevResult in DEL --------------------------------------------------------------------------

RESULT_KEYS = st.sampled_from(
    """
    ip4 ip6 ip gateway routes dst gw dns nameservers
    interfaces ips address interface name mac mtu sandbox
    """.split()  # noqa: SIM905
)
LEAVES = st.sampled_from(
    [None, True, 5, -1, 10**30, 1e99, "", "x", "a/b", "10.0.0.1", "10.0.0.1/24", "::1/64", "1/200"]
)
SOUP = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(RESULT_KEYS, inner, max_size=4),
)
OWN_VERSIONS = st.sampled_from([*ALL, "", "7.0.0", 5, None])


@given(st.dictionaries(RESULT_KEYS, SOUP, max_size=5), OWN_VERSIONS, st.sampled_from(ALL))
def test_salvage_raises_nothing(raw: dict[str, Any], own: Any, version: str) -> None:
    assert isinstance(Result.salvage({**raw, "cniVersion": own}, version), Result)


@pytest.mark.parametrize(
    "bad",
    [{"ip": "nowhere"}, {}, {"gateway": "10.0.0.1"}, {"ip": "10.0.0.1/99"}, 5, [], {"ip": []}],
)
def test_salvage_of_an_old_result_keeps_the_other_family(bad: Any) -> None:
    raw = {"cniVersion": "0.2.0", "ip4": bad, "ip6": {"ip": "fd00::2/64"}}
    assert [ip.address for ip in Result.salvage(raw, "0.2.0").ips] == ["fd00::2/64"]


def test_salvage_of_an_old_result_keeps_the_address_of_a_bad_gateway() -> None:
    raw = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24", "gateway": "nowhere"}}
    assert [ip.address for ip in Result.salvage(raw, "0.2.0").ips] == ["10.0.0.2/24"]
