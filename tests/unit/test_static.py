"""static: the intents of the reference's tests and the precedence of its sources."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .ipam_node import ALL_VERSIONS, Failure, Ipam, environment

GO = Path("/usr/lib/cni/static")

V4, V6 = "10.10.0.1/24", "3ffe:ffff:0:1ff::1/64"
ADDRESSES = [
    {"address": V4, "gateway": "10.10.0.254"},
    {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"},
]
ROUTES = [
    {"dst": "0.0.0.0/0"},
    {"dst": "192.168.0.0/16", "gw": "10.10.5.1"},
    {"dst": "3ffe:ffff:0:01ff::1/64"},
]
DNS = {"nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"]}


def static(version: str = "1.1.0", **ipam: Any) -> Ipam:
    return Ipam(
        "static",
        {
            "cniVersion": version,
            "name": "mynet",
            "type": "bridge",
            "ipam": {"type": "static", **ipam},
        },
    )


def gateways(ipam: Ipam, **more: Any) -> list[tuple[str, str | None]]:
    result = ipam.call("ADD", **more)
    return [(ip["address"], ip.get("gateway")) for ip in result.get("ips", [])]


def fails(ipam: Ipam, msg: str, **more: Any) -> None:
    for verb in ("ADD", "CHECK"):
        with pytest.raises(Failure) as caught:
            ipam.call(verb, **more)
        assert (caught.value.code, caught.value.msg) == (999, msg)
    ipam.delete(**more)


def test_text() -> None:
    code, output = static("1.0.0", addresses=ADDRESSES, routes=ROUTES[:2], dns=DNS).raw("ADD")
    assert code == 0
    assert (
        output.decode()
        == """{
    "cniVersion": "1.0.0",
    "dns": {
        "domain": "example.com",
        "nameservers": [
            "8.8.8.8"
        ],
        "search": [
            "example.com"
        ]
    },
    "ips": [
        {
            "address": "10.10.0.1/24",
            "gateway": "10.10.0.254"
        },
        {
            "address": "3ffe:ffff:0:1ff::1/64",
            "gateway": "3ffe:ffff::1"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0"
        },
        {
            "dst": "192.168.0.0/16",
            "gw": "10.10.5.1"
        }
    ]
}"""
    )


@pytest.mark.parametrize("version", ALL_VERSIONS)
def test_dual_stack(version: str) -> None:
    ipam = static(version, addresses=ADDRESSES, routes=ROUTES, dns=DNS)
    result = ipam.call("ADD")
    assert result["cniVersion"] == version
    assert result["dns"] == DNS
    routes = [*ROUTES[:2], {"dst": V6}]
    if version < "0.3.0":
        assert result["ip4"] == {"ip": V4, "gateway": "10.10.0.254", "routes": routes[:2]}
        assert result["ip6"] == {"ip": V6, "gateway": "3ffe:ffff::1", "routes": routes[2:]}
    else:
        ips = [
            {"version": "4", "address": V4, "gateway": "10.10.0.254"},
            {"version": "6", "address": V6, "gateway": "3ffe:ffff::1"},
        ]
        if version >= "1.0.0":
            for ip in ips:
                del ip["version"]
        assert (result["ips"], result["routes"]) == (ips, routes)
    if version >= "0.4.0":
        ipam.check(prevResult=result)
    ipam.delete()
    ipam.delete("unknown")


def test_routes_to_the_same_destination_are_kept() -> None:
    routes = [{"dst": "0.0.0.0/0", "gw": "10.10.0.1"}, {"dst": "0.0.0.0/0", "gw": "10.10.0.2"}]
    assert static(addresses=ADDRESSES, routes=routes).call("ADD")["routes"] == routes


def test_route_attributes() -> None:
    route = {
        "dst": "10.0.0.0/8",
        "mtu": 1400,
        "advmss": 1360,
        "priority": 5,
        "table": 0,
        "scope": 0,
    }
    assert static(addresses=ADDRESSES, routes=[route]).call("ADD")["routes"] == [route]


RUNTIME = {"RuntimeConfig": {"ips": ["10.1.1.1/24", "fd00::1/64"]}}
ARGS = {"args": {"cni": {"ips": ["10.2.2.2/24"]}}}
ENV = "IP=10.10.0.7/24,10.11.0.7/24;GATEWAY=10.10.0.254"
CONFIGURED = [(V4, "10.10.0.9")]
FROM_ENV = [("10.10.0.7/24", "10.10.0.254"), ("10.11.0.7/24", None)]
FROM_ARGS = [("10.2.2.2/24", None)]
FROM_RUNTIME = [("10.1.1.1/24", None), ("fd00::1/64", None)]


SOURCES: list[tuple[dict[str, Any], str, list[tuple[str, str | None]]]] = [
    ({}, "", CONFIGURED),
    ({}, ENV, CONFIGURED + FROM_ENV),
    (ARGS, "", FROM_ARGS),
    (ARGS, ENV, FROM_ARGS),
    (RUNTIME, "", FROM_RUNTIME),
    (RUNTIME, ENV, FROM_RUNTIME),
    ({**RUNTIME, **ARGS}, "", FROM_RUNTIME),
    ({**RUNTIME, **ARGS}, ENV, FROM_RUNTIME),
    ({"runtimeConfig": {"ips": []}, "args": {"cni": {"ips": []}}}, "", CONFIGURED),
    ({"runtimeConfig": None, "args": {"cni": None}}, "", CONFIGURED),
]


@pytest.mark.parametrize(("keys", "args", "want"), SOURCES)
def test_precedence(keys: dict[str, Any], args: str, want: list[tuple[str, str | None]]) -> None:
    ipam = static(addresses=[{"address": V4, "gateway": "10.10.0.9"}])
    assert gateways(ipam, env_args=args, **keys) == want


@pytest.mark.skipif(not GO.exists(), reason="needs Debian's containernetworking-plugins")
@pytest.mark.parametrize(("keys", "args", "_want"), SOURCES)
@pytest.mark.parametrize("version", ["0.2.0", "0.4.0", "1.0.0"])
def test_precedence_is_the_references(
    keys: dict[str, Any], args: str, _want: object, version: str
) -> None:
    ipam = static(
        version, addresses=[{"address": V4, "gateway": "10.10.0.9"}], routes=ROUTES, dns=DNS
    )
    done = subprocess.run(
        [GO],
        input=json.dumps({**ipam.conf, **keys}).encode(),
        env=environment("ADD", "c1", "eth0", args),
        stdout=subprocess.PIPE,
    )
    code, output = ipam.raw("ADD", env_args=args, **keys)
    assert code == done.returncode
    if code:
        assert json.loads(output)["msg"] == json.loads(done.stdout)["msg"]
    else:
        assert json.loads(output) == json.loads(done.stdout)


def test_cni_args() -> None:
    ipam = static()
    assert gateways(ipam, env_args="IP=10.10.0.1/24, 11.11.0.1/24 ;GATEWAY= 10.10.0.254") == [
        ("10.10.0.1/24", "10.10.0.254"),
        ("11.11.0.1/24", None),
    ]
    assert gateways(ipam, env_args="IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.0.0.1/8") == [
        ("10.0.0.1/8", None)
    ]
    # What is in the configuration has a gateway, or none, of its own.
    ipam = static(addresses=[{"address": V4}])
    assert gateways(ipam, env_args="GATEWAY=10.10.0.254") == [(V4, None)]


@pytest.mark.parametrize("version", ALL_VERSIONS[:2])
def test_one_address_a_family_in_old_versions(version: str) -> None:
    text = f"CNI version {version} does not support more than 1 address per family"
    fails_add = static(version)
    with pytest.raises(Failure, match=text):
        fails_add.add(env_args="IP=10.10.0.1/24,11.11.0.1/24")
    del fails_add.conf["cniVersion"]
    with pytest.raises(Failure, match="CNI version  does not support more than 1 address"):
        fails_add.add(env_args="IP=10.10.0.1/24,11.11.0.1/24")


def test_no_address() -> None:
    assert static("1.0.0").raw("ADD") == (0, b'{\n    "cniVersion": "1.0.0"\n}')
    with pytest.raises(Failure, match="cannot convert: no valid IP addresses"):
        static("0.2.0").add()


@pytest.mark.parametrize("more", [{}, {"env_args": "IP=10.10.0.1/24"}, RUNTIME])
def test_missing_ipam(more: dict[str, Any]) -> None:
    ipam = Ipam("static", {"cniVersion": "1.1.0", "name": "n"})
    fails(ipam, "IPAM config missing 'ipam' key", **more)


@pytest.mark.parametrize(
    ("addresses", "more", "msg"),
    [
        (
            [{"address": "10.10.0.1"}],
            {},
            "the 'address' field is expected to be in CIDR notation, got: '10.10.0.1'",
        ),
        ([{}], {}, "the 'address' field is expected to be in CIDR notation, got: ''"),
        (
            [],
            {"env_args": "IP= 10.10.0.1 "},
            "the 'ip' field is expected to be in CIDR notation, got: '10.10.0.1'",
        ),
        ([], {"env_args": "IP=10.10.0.1/24;GATEWAY= x "}, "invalid gateway address: x"),
        (
            [],
            {"env_args": "FOO=1"},
            'ARGS: unknown args ["FOO=1"]',
        ),
        (
            [],
            {"runtimeConfig": {"ips": ["10.10.0.1"]}},
            "an entry in the 'ips' field is NOT in CIDR notation, got: '10.10.0.1'",
        ),
        ([{"address": V4, "gateway": "x"}], {}, "invalid IP address: x"),
    ],
)
def test_bad_input(addresses: list[Any], more: dict[str, Any], msg: str) -> None:
    fails(static(addresses=addresses), msg, **more)


def test_bad_args_ips() -> None:
    msg = "an entry in the 'ips' field is NOT in CIDR notation, got: 'x'"
    ipam = static()
    ipam.conf["args"] = {"cni": {"ips": ["x"]}}
    fails(ipam, msg)
    # A bad source is an error also where another one counts.
    fails(ipam, msg, **RUNTIME)


def test_wrong_types() -> None:
    ipam = static(addresses="x")
    with pytest.raises(Failure, match=r"^json: cannot unmarshal string into field ipam.addresses"):
        ipam.add()
    ipam.delete()


def test_check() -> None:
    ipam = static(addresses=ADDRESSES)
    fails_check(ipam, "Required prevResult missing")
    previous = ipam.call("ADD")
    ipam.check(prevResult=previous)
    broken = json.loads(json.dumps(previous))
    broken["ips"][0]["gateway"] = "10.10.0.253"
    fails_check(ipam, "static: Failed to match addr 10.10.0.1 on interface eth0", broken)
    broken = {**previous, "ips": previous["ips"][1:]}
    fails_check(ipam, "static: Failed to match addr 10.10.0.1 on interface eth0", broken)
    more = {**previous, "ips": [*previous["ips"], {"address": "10.99.0.1/24"}]}
    ipam.check(prevResult=more)
    ungated = static(addresses=[{"address": V4}])
    ungated.check(prevResult=previous)
    fails_check(
        ipam,
        "could not parse prevResult: result type supports [1.0.0 1.1.0] but unmarshalled "
        'CNIVersion is "0.4.0"',
        {**previous, "cniVersion": "0.4.0"},
    )


def fails_check(ipam: Ipam, msg: str, previous: Any = None) -> None:
    with pytest.raises(Failure) as caught:
        ipam.check(**({} if previous is None else {"prevResult": previous}))
    assert caught.value.msg == msg


def test_gc_and_status() -> None:
    ipam = static(addresses=ADDRESSES)
    ipam.gc()
    assert ipam.call("STATUS") is None


SECOND = {"IP": "10.10.0.9", "Mask": "////AA=="}


@pytest.mark.parametrize("second", [SECOND, None, "10.10.0.9/24"])
@pytest.mark.parametrize("first", [True, False])
def test_the_exact_key_of_an_address_counts(second: Any, first: bool) -> None:
    """What a program prints that has marshalled the reference's own structure."""
    exact, other = {"address": V4, "gateway": "10.10.0.254"}, {"Address": second, "Version": ""}
    entry = {**exact, **other} if first else {**other, **exact}
    ipam = static(addresses=[entry, {"ADDRESS": V6}])
    want = [(V4, "10.10.0.254"), (V6, None)]
    assert gateways(ipam) == want
    previous = ipam.call("ADD")
    ipam.call("CHECK", prevResult=previous)
    ipam.delete()


def test_another_case_is_taken_where_it_is_alone() -> None:
    assert gateways(static(addresses=[{"Address": V4, "Gateway": "10.10.0.254"}])) == [
        (V4, "10.10.0.254")
    ]


@pytest.mark.parametrize("dns", [{"nameservers": "192.0.2.53"}, "x", 5, []])
def test_the_networks_dns_is_not_read(dns: Any) -> None:
    ipam = static(addresses=ADDRESSES)
    previous = ipam.call("ADD", dns=dns)
    ipam.call("CHECK", dns=dns, prevResult=previous)
    ipam.delete(dns=dns)


def test_addresses_below_the_v4_compatible_prefix_are_hexadecimal() -> None:
    ipam = static(addresses=[{"address": "::0.1.0.2/112", "gateway": "::0.1.0.1"}])
    assert gateways(ipam) == [("::1:2/112", "::1:1")]
    previous = {"cniVersion": "1.1.0", "ips": [{"address": "::0.1.0.2/112", "gateway": "::1:1"}]}
    ipam.call("CHECK", prevResult=previous)
