"""`outboundAddr`: packets that are masqueraded leave under fixed addresses of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cni.netfilter import nft as kernel_nft
from cni.owner import Owner
from cni.plugins.shared import masquerade
from cni.protocol.address import Prefix, parse_ip
from tests.harness import (
    DUAL,
    Netns,
    Runtime,
    connect,
    iptables_save,
    nft,
    requires_kernel,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.contract import without_dad

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]

pytestmark = requires_kernel("nft", "iptables")

PAIRS: dict[str, Json] = {"bridge": {"bridge": "br0", "isGateway": True}, "ptp": {}}
BACKENDS: dict[str, Json] = {
    "iptables": {"ipMasqBackend": "iptables"},
    "nftables": {"ipMasqBackend": "nftables"},
    "set": {"ipMasqSet": True},
}
each_pair = pytest.mark.parametrize("plugin", PAIRS)
each_backend = pytest.mark.parametrize("backend", BACKENDS)

OUTSIDE = {"ipv4": "198.51.100.2", "ipv6": "2001:db8:ffff::2"}
NODE = {"ipv4": "198.51.100.1", "ipv6": "2001:db8:ffff::1"}
FIXED = {"ipv4": "198.51.100.77", "ipv6": "2001:db8:ffff::77"}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Sockets kept for the next call would keep the namespace alive."""
    yield
    kernel_nft.forget()


@pytest.fixture
def world(runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path) -> Netns:
    """A host outside, which knows the way to the containers; the node has the fixed addresses."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    outside = netns("outside")
    without_dad(runtime.host, outside)
    connect(runtime.host, outside)
    for subnet, family in zip(DUAL.subnets, OUTSIDE, strict=True):
        outside.ip("route", "add", subnet, "via", NODE[family])
        bits = 32 if family == "ipv4" else 128
        runtime.host.ip("address", "add", f"{FIXED[family]}/{bits}", "dev", "lo")
        outside.ip("route", "add", f"{FIXED[family]}/{bits}", "via", NODE[family])
    return outside


def network(plugin: str, data_dir: Path, **keys: Any) -> Json:
    ipam = DUAL.host_local(data_dir)
    base = {"cniVersion": "1.1.0", "name": "net", **PAIRS[plugin], "ipam": ipam, "ipMasq": True}
    return {**base, **keys}


def seen(outside: Netns, container: Netns) -> Json:
    """Under which address the container's packets of each family arrive outside."""
    with tcp_server(outside) as server:
        return {each: tcp_exchange(container, OUTSIDE[each], server.port) for each in OUTSIDE}


def state_of(host: Netns) -> str:
    return str(nft(host)) + str(iptables_save(host)) + str(iptables_save(host, 6))


@each_pair
@each_backend
def test_packets_leave_under_the_addresses(
    runtime: Runtime, container: Netns, world: Netns, data_dir: Path, plugin: str, backend: str
) -> None:
    """Every verb, and `cni reload`: CHECK sees another source, and rules that were flushed."""
    conf = network(plugin, data_dir, outboundAddr=list(FIXED.values()), **BACKENDS[backend])
    result = runtime.add(plugin, conf, container).result
    assert seen(world, container) == FIXED
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    for other in ({"outboundAddr": []}, {"outboundAddr": [NODE["ipv4"], FIXED["ipv6"]]}):
        error = runtime.check(plugin, {**conf, **other}, container, prev_result=result).failed(999)
        assert "masquerading of" in error["msg"] + error.get("details", "")
    runtime.host.exec(["nft", "flush", "ruleset"])
    reply = runtime.check(plugin, conf, container, prev_result=result)
    assert f"under {FIXED['ipv6']}" in str(reply.failed(999))
    runtime.host.exec([str(runtime.bin_dir / "cni"), "reload"], env=runtime.env)
    assert seen(world, container) == FIXED
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    runtime.delete(plugin, conf, container).succeeded()
    assert not [each for each in FIXED.values() if each in state_of(runtime.host)]


@each_backend
def test_one_family_alone(
    runtime: Runtime, container: Netns, world: Netns, data_dir: Path, backend: str
) -> None:
    """The other leaves under the address of the link."""
    conf = network("ptp", data_dir, outboundAddr=[FIXED["ipv6"]], **BACKENDS[backend])
    result = runtime.add("ptp", conf, container).result
    assert seen(world, container) == {"ipv4": NODE["ipv4"], "ipv6": FIXED["ipv6"]}
    runtime.check("ptp", conf, container, prev_result=result).succeeded()


@each_backend
def test_gc(runtime: Runtime, container: Netns, world: Netns, data_dir: Path, backend: str) -> None:
    conf = network("bridge", data_dir, outboundAddr=list(FIXED.values()), **BACKENDS[backend])
    runtime.add("bridge", conf, container).succeeded()
    runtime.gc("bridge", conf, [("c1", "eth0")]).succeeded()
    assert seen(world, container) == FIXED
    runtime.gc("bridge", conf, []).succeeded()
    assert not [each for each in FIXED.values() if each in state_of(runtime.host)]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["198.51.100.7", "198.51.100.8"], "two addresses of one family"),
        (["198.51.100.7/24"], 'invalid outboundAddr "198.51.100.7/24"'),
        (["127.0.0.1"], 'invalid outboundAddr "127.0.0.1"'),
        (["fe80::1"], 'invalid outboundAddr "fe80::1"'),
        (["224.0.0.1"], 'invalid outboundAddr "224.0.0.1"'),
        ([""], 'invalid outboundAddr ""'),
    ],
)
@each_pair
def test_addresses_that_cannot_be(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str, value: object, message: str
) -> None:
    with unchanged(runtime.host, container, data_dir):
        conf = network(plugin, data_dir, outboundAddr=value)
        runtime.add(plugin, conf, container).failed(999, message)
    runtime.delete(plugin, conf, container).succeeded()


def test_to_the_reference_and_back(
    runtime: Runtime, container: Netns, world: Netns, data_dir: Path
) -> None:
    """`cni migrate` keeps the source, and the families that are masqueraded."""
    conf = network(
        "ptp", data_dir, outboundAddr=[FIXED["ipv4"]], ipMasqFamilies=["ipv4"], ipMasqSet=True
    )
    own = runtime.add("ptp", conf, container).result["ips"][1]["address"].partition("/")[0]
    wanted = {"ipv4": FIXED["ipv4"], "ipv6": own}
    assert seen(world, container) == wanted
    for side, table in (("reference", "cni_masquerade"), ("own", "cni_plugins_masquerade")):
        command = [str(runtime.bin_dir / "cni"), "migrate", "--to", side]
        state = ["--state-dir", runtime.env["CNI_STATE_DIR"]]
        runtime.host.exec([*command, *state], env=runtime.env)
        listed = runtime.host.exec(["nft", "list", "table", "inet", table], check=False).stdout
        assert FIXED["ipv4"] not in listed
        assert seen(world, container) == wanted


# --- the rules themselves -------------------------------------------------------------------------

ONE, TWO = Owner("net", "one", "eth0"), Owner("net", "two", "eth0")
ADDRESSES = [Prefix.parse("10.0.0.1/24"), Prefix.parse("fd00::1/64")]
SOURCES: dict[str, masquerade.Outbound] = {
    "any": {},
    "both": {True: parse_ip("192.0.2.7"), False: parse_ip("2001:db8::7")},
    "others": {True: parse_ip("192.0.2.8"), False: parse_ip("2001:db8::8")},
    "ipv6": {False: parse_ip("2001:db8::7")},
}
UNDER = {"any": [], "both": ["::7", ".7"], "others": ["::8", ".8"], "ipv6": ["::7"]}


def texts(host: Netns) -> list[str]:
    """The sources in any rule or element."""
    return [each for each in ("::7", ".7", "::8", ".8") if f"2{each}" in sources(host)]


def sources(host: Netns) -> str:
    return state_of(host).replace("192.0.2.", "2.").replace("2001:db8::", "2::")


@each_backend
@pytest.mark.parametrize("then", SOURCES)
@pytest.mark.parametrize("first", SOURCES)
def test_the_last_wins(host: Netns, backend: str, first: str, then: str) -> None:
    """A repeated ADD, or `reload`, with other addresses: nothing is left of those before."""
    for name in (first, then, then):
        host.run(lambda n=name: masquerade.setup(ONE, ADDRESSES, backend, outbound=SOURCES[n]))
        for other, wanted in SOURCES.items():
            missing = host.run(lambda w=wanted: masquerade.missing(ONE, ADDRESSES, outbound=w))
            assert (missing == []) == (other == name), (other, name)
        assert texts(host) == UNDER[name]
    if backend == "iptables":
        chain = [line for line in iptables_save(host) if line.startswith(f"-A {ONE.chain()}")]
        assert len(chain) == 2
    host.run(masquerade.teardown, ONE, ADDRESSES)
    assert texts(host) == []
    assert ONE.key not in state_of(host)


@each_backend
@pytest.mark.parametrize(("first", "then"), [("both", "any"), ("any", "both"), ("both", "others")])
def test_an_address_that_another_container_has_by_now(
    host: Netns, backend: str, first: str, then: str
) -> None:
    """The late DEL of the first takes nothing of the second away, and no source of it stays."""
    host.run(lambda: masquerade.setup(ONE, ADDRESSES, backend, outbound=SOURCES[first]))
    host.run(lambda: masquerade.setup(TWO, ADDRESSES, backend, outbound=SOURCES[then]))
    if backend == "set":
        assert texts(host) == UNDER[then]
    host.run(masquerade.teardown, ONE, ADDRESSES)
    assert host.run(lambda: masquerade.missing(TWO, ADDRESSES, outbound=SOURCES[then])) == []
    assert texts(host) == UNDER[then]
    host.run(masquerade.collect, "net", [])
    assert texts(host) == []


def test_sets_of_both_kinds(host: Netns) -> None:
    """As nft shows them; those without fixed addresses have the rules that they had."""
    host.run(masquerade.setup, ONE, ADDRESSES[:1], "set")
    host.run(lambda: masquerade.setup(TWO, ADDRESSES, "set", outbound=SOURCES["both"]))
    lines = host.exec(["nft", "list", "chain", "inet", "cni_masquerade", "postrouting"]).stdout
    assert [line.strip() for line in lines.splitlines()[3:-2]] == [
        'ip daddr 224.0.0.0/4 return comment "multicast"',
        'ip6 daddr ff00::/8 return comment "multicast"',
        'ip saddr . ip daddr & 255.255.255.0 @inside4_24 return comment "inside4_24"',
        'ip6 saddr . ip6 daddr & ffff:ffff:ffff:ffff:: @inside6_64 return comment "inside6_64"',
        'snat ip to ip saddr map @outbound4 comment "outbound4"',
        'snat ip6 to ip6 saddr map @outbound6 comment "outbound6"',
        'ip saddr @addresses4 masquerade comment "addresses4"',
        'ip6 saddr @addresses6 masquerade comment "addresses6"',
    ]
