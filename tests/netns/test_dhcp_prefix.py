"""dhcp with `prefixDelegation`: a prefix of the container's own, from Kea; dnsmasq has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, addresses, capture, ping
from tests.harness.dhcp import (
    FAST,
    Daemon,
    FakeServer6,
    IdleRouter,
    answer6,
    dnsmasq,
    ia_na,
    ia_pd,
    kea6,
    link_local,
    messages6,
    no_server,
    radvd,
    refusal6,
    status6,
)
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

SWITCH = "br0"
ROUTER = "fe80::ff:fe00:5501"
POOL = {"pd-pools": [{"prefix": "fd77::", "prefix-len": 48, "delegated-len": 64}]}
# the last resort, and a mark of the daemon
DISCARD = {"dst": "fd77::/64", "protocol": "dhcp", "metric": 0x7FFFFFFF}
ADDRESS_OF_NOBODY = bytes.fromhex("fd77" + "0" * 27 + "2")
SHORT = {
    "preferred-lifetime": 5, "valid-lifetime": 6, "renew-timer": 1, "rebind-timer": 3,
}  # fmt: skip


@pytest.fixture
def daemon(bin_dir: Path, host: Netns, tmp_path: Path) -> Iterator[Daemon]:
    directory = tmp_path / "run"
    directory.mkdir()
    started = Daemon(bin_dir, host, directory, FAST).start()
    yield started
    log = started.log.read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def lan(container: Netns, outside: Netns) -> Netns:
    """A router's switch, and the container's eth0 connected to it."""
    for ns in (container, outside):
        ns.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    outside.set_sysctl("net/ipv6/conf/default/accept_ra", 0)
    outside.ip_batch(
        f"link add {SWITCH} address 02:00:00:00:55:01 type bridge mcast_snooping 0",
        "link add keep0 type veth peer name keep1",
        "link set keep1 up",
        f"link set keep0 master {SWITCH} up",
        f"address add fd55::1/64 dev {SWITCH} nodad",
        f"address add 10.55.0.1/24 dev {SWITCH}",
        f"link set {SWITCH} up",
    )
    cable(container, outside, "eth0")
    return outside


@pytest.fixture
def quiet_lan(lan: Netns) -> Iterator[Netns]:
    """The same with a router that has no routes, so that no ADD waits for one."""
    with IdleRouter(lan, SWITCH):
        yield lan


def cable(container: Netns, outside: Netns, ifname: str) -> None:
    port = f"p{ifname}"
    container.ip("link", "add", ifname, "type", "veth", "peer", port, "netns", outside.name)
    outside.ip("link", "set", port, "master", SWITCH, "up")


def conf(daemon: Daemon, **ipam: Any) -> Json:
    ipam = {"type": "dhcp", "daemonSocketPath": str(daemon.socket), "ipv4": False, **ipam}
    return {"cniVersion": "1.1.0", "name": "net", "ipam": ipam}


def put(container: Netns, result: Json) -> None:
    for ip in result["ips"]:
        container.ip("address", "add", ip["address"], "dev", "eth0", "nodad")
    for route in result.get("routes", []):
        container.ip("route", "add", route["dst"], "via", route["gw"], "dev", "eth0")


def discarded(ns: Netns) -> list[Json]:
    """The routes that discard, as `ip` shows them."""
    routes = ns.ip_json("-6", "route", "show", "type", "unreachable")
    return [{key: r[key] for key in DISCARD} for r in routes]


def test_a_prefix_beside_the_address(
    runtime: Runtime,
    container: Netns,
    quiet_lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
    bin_dir: Path,
) -> None:
    """One exchange for both; the container discards what nobody in it has, and DEL removes that."""
    kea6(quiet_lan, tmp_path / "kea", SWITCH, **POOL)
    network = conf(daemon, ipv6=True, prefixDelegation={})
    with capture(quiet_lan, SWITCH) as wire:
        result = runtime.add("dhcp", network, container).result
    assert result["ips"] == [{"address": "fd55::50/128"}]
    assert discarded(container) == [DISCARD]
    (request,) = messages6(wire, "DHCP6_Request")
    assert request["DHCP6OptIAPrefix"].prefix == "fd77::"
    assert request["DHCP6OptIAAddress"].addr == "fd55::50"
    row = daemon.lease()
    assert (row["address"], row["prefix"], row["state"]) == ("fd55::50/128", "fd77::/64", "bound")
    command = [bin_dir / "cni", "dhcp", "leases", "--socket", str(daemon.socket)]
    head, line = runtime.host.exec(command).stdout.splitlines()
    assert head.split()[:3] == ["ADDRESS", "PREFIX", "STATE"]
    assert line.split()[:3] == ["fd55::50/128", "fd77::/64", "bound"]
    runtime.check("dhcp", network, container, prev_result=result).succeeded()
    with capture(quiet_lan, SWITCH) as wire:
        for _ in range(2):
            runtime.delete("dhcp", network, container).succeeded()
    (release,) = messages6(wire, "DHCP6_Release")
    assert release["DHCP6OptIAPrefix"].prefix == "fd77::"
    assert release["DHCP6OptIAAddress"].addr == "fd55::50"
    assert discarded(container) == []
    assert (daemon.leases(), daemon.files) == ([], [])


def test_an_address_of_the_prefix(
    runtime: Runtime, container: Netns, lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """Only a prefix is leased, as on networks with one for each host (RFC 9663).

    The container forwards, and still sends nothing for the prefix back to the router.
    """
    kea6(lan, tmp_path / "kea", SWITCH, pools=[], **POOL)
    radvd(lan, tmp_path / "ra", SWITCH, "prefix fd55::/64 { AdvAutonomous off; };")
    network = conf(daemon, prefixDelegation={"assign": True})
    result = runtime.add("dhcp", network, container).result
    assert result["ips"] == [{"address": "fd77::1/128", "gateway": ROUTER}]
    assert result["routes"] == [{"dst": "::/0", "gw": ROUTER}]
    put(container, result)
    runtime.check("dhcp", network, container, prev_result=result).succeeded()
    container.set_sysctl("net/ipv6/conf/all/forwarding", 1)
    (eth0,) = container.ip_json("link", "show", "eth0")
    lan.ip("route", "add", "fd77::/64", "via", link_local(container, "eth0"), "dev", SWITCH)
    ping(lan, "fd77::1")
    ping(container, "fd55::1", source="fd77::1")
    with capture(lan, "peth0") as wire:
        ping(lan, "fd77::2", expect=False)
    to_nobody = [f for f in wire.frames if f.payload[24:40] == ADDRESS_OF_NOBODY]
    assert to_nobody
    assert [f for f in to_nobody if f.src == eth0["address"]] == []
    # what a program in the container does with the prefix has priority
    container.ip_batch(
        "link add inner type veth peer name inner1", "link set inner up",
        "route add fd77::/64 dev inner",
    )  # fmt: skip
    (way,) = container.ip_json("route", "get", "fd77::2")
    assert way["dev"] == "inner"
    runtime.delete("dhcp", network, container).succeeded()
    assert discarded(container) == []
    assert [r["dev"] for r in container.ip_json("-6", "route", "show", "fd77::/64")] == ["inner"]


def test_two_interfaces_have_two_prefixes(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    kea6(quiet_lan, tmp_path / "kea", SWITCH, **POOL)
    cable(container, quiet_lan, "eth1")
    network = conf(daemon, ipv6=True, prefixDelegation={"length": 64})
    for ifname in ("eth0", "eth1"):
        runtime.add("dhcp", network, container, ifname=ifname).succeeded()
    other = {**DISCARD, "dst": "fd77:0:0:1::/64"}
    assert sorted(r["dst"] for r in discarded(container)) == ["fd77:0:0:1::/64", "fd77::/64"]
    runtime.delete("dhcp", network, container, ifname="eth0").succeeded()
    assert discarded(container) == [other]
    runtime.status("dhcp", network).succeeded()
    runtime.gc("dhcp", network, []).succeeded()
    assert discarded(container) == []
    assert daemon.leases() == []


@pytest.mark.parametrize("server", ["dnsmasq", "kea"])
def test_no_server_has_a_prefix(
    runtime: Runtime,
    container: Netns,
    quiet_lan: Netns,
    bin_dir: Path,
    host: Netns,
    tmp_path: Path,
    server: str,
) -> None:
    """dnsmasq says nothing of prefixes, Kea says NoPrefixAvail; both offer an address."""
    if server == "kea":
        kea6(quiet_lan, tmp_path / "kea", SWITCH)
    else:
        dnsmasq(quiet_lan, tmp_path / "dns", SWITCH, "--dhcp-range=fd55::50,fd55::50,64,2m")
    (tmp_path / "run").mkdir()
    flags = ("-timeout", "300ms", "-resendtimeout", "2s")
    daemon = Daemon(bin_dir, host, tmp_path / "run", flags).start()
    network = conf(daemon, ipv6=True, prefixDelegation={})
    with capture(quiet_lan, SWITCH) as wire:
        error = runtime.add("dhcp", network, container).failed(999, "no more tries")
    assert "a server grants no prefix" in error["details"]
    assert ("NoPrefixAvail" in error["details"]) == (server == "kea")
    assert "set prefixDelegation.required to false" in error["details"]
    # so the server keeps no lease either
    assert messages6(wire, "DHCP6_Request") == []
    assert (daemon.leases(), daemon.files) == ([], [])
    network["ipam"]["prefixDelegation"] = {"required": False, "assign": True}
    result = runtime.add("dhcp", network, container).result
    (ip,) = result["ips"]
    assert ip["address"].startswith("fd55::")
    assert "prefix" not in daemon.lease()
    assert discarded(container) == []
    runtime.check("dhcp", network, container, prev_result=result).succeeded()
    runtime.delete("dhcp", network, container).succeeded()
    assert daemon.leases() == []


@pytest.mark.parametrize(
    ("ipam", "text"),
    [
        ({"ipv6": True, "prefixDelegation": {"length": 31}}, "invalid length 31"),
        ({"ipv6": True, "prefixDelegation": {"length": 129}}, "between 32 and 128"),
        ({"ipv6": True, "prefixDelegation": {"length": "64"}}, "length"),
        ({"ipv6": True, "prefixDelegation": 64}, "prefixDelegation"),
        ({"ipv6": True, "prefixDelegation": {"assign": "yes"}}, "assign"),
        ({"prefixDelegation": {}}, "nothing to lease"),
    ],
)
def test_bad_wishes(
    runtime: Runtime, container: Netns, daemon: Daemon, ipam: Json, text: str
) -> None:
    container.ip_batch("link add eth0 type veth peer name other")
    error = runtime.add("dhcp", conf(daemon, **ipam), container).failed()
    assert text.casefold() in error["msg"].casefold()
    assert daemon.leases() == []
    assert daemon.files == []


def test_the_prefix_survives_the_daemon(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """The next daemon renews it, and repairs the route. Without one, DEL leaves it to the next."""
    kea6(quiet_lan, tmp_path / "kea", SWITCH, **POOL)
    network = conf(daemon, ipv6=True, prefixDelegation={"assign": True})
    result = runtime.add("dhcp", network, container).result
    assert [ip["address"] for ip in result["ips"]] == ["fd55::50/128", "fd77::1/128"]
    put(container, result)
    daemon.kill()
    container.ip("-6", "route", "del", "unreachable", "fd77::/64")
    with capture(quiet_lan, SWITCH) as wire:
        daemon.start()
        wait_until(lambda: messages6(wire, "DHCP6_Renew"), "renews")
        daemon.await_state("bound")
    assert messages6(wire, "DHCP6_Renew")[0]["DHCP6OptIAPrefix"].prefix == "fd77::"
    assert daemon.lease()["prefix"] == "fd77::/64"
    wait_until(lambda: discarded(container) == [DISCARD], "the route is back")
    runtime.check("dhcp", network, container, prev_result=result).succeeded()
    container.ip("-6", "route", "del", "unreachable", "fd77::/64")
    failed = runtime.check("dhcp", network, container, prev_result=result).failed(999)
    assert "no unreachable route for the delegated prefix fd77::/64" in failed["msg"]
    assert runtime.add("dhcp", network, container).result == result
    daemon.kill()
    runtime.delete("dhcp", network, container).succeeded()
    container.ip("link", "delete", "eth0")
    daemon.start()
    wait_until(lambda: daemon.leases() == [], "the lease is dropped")
    assert (discarded(container), daemon.files) == ([], [])


def test_the_link_goes_before_the_lease(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """The route is the namespace's, and does not go with the link: DEL removes it all the same."""
    kea6(quiet_lan, tmp_path / "kea", SWITCH, **POOL)
    network = conf(daemon, ipv6=True, prefixDelegation={})
    runtime.add("dhcp", network, container).succeeded()
    container.ip("link", "delete", "eth0")
    assert discarded(container) == [DISCARD]
    runtime.delete("dhcp", network, container).succeeded()
    assert discarded(container) == []


def test_made_anew_in_another_namespace(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    quiet_lan: Netns,
    daemon: Daemon,
    tmp_path: Path,
) -> None:
    kea6(quiet_lan, tmp_path / "kea", SWITCH, **POOL)
    container2.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    network = conf(daemon, ipv6=True, prefixDelegation={})
    first = runtime.add("dhcp", network, container).result
    container.ip("link", "set", "eth0", "netns", container2.name)
    assert runtime.add("dhcp", network, container2).result == first
    assert (discarded(container), discarded(container2)) == ([], [DISCARD])


@pytest.mark.slow
def test_renewed_rebound_expired_and_leased_again(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    server = kea6(quiet_lan, tmp_path / "kea", SWITCH, **POOL, **SHORT)
    result = runtime.add(
        "dhcp", conf(daemon, ipv6=True, prefixDelegation={"assign": True}), container
    ).result
    put(container, result)
    with capture(quiet_lan, SWITCH) as wire:
        wait_until(lambda: len(messages6(wire, "DHCP6_Renew")) >= 2, "renewed twice")
        with no_server(server):
            wait_until(lambda: messages6(wire, "DHCP6_Rebind"), "rebinds")
        daemon.await_state("bound")
        assert discarded(container) == [DISCARD]
        server.stop()
        daemon.await_state("lost")
    rebind = messages6(wire, "DHCP6_Rebind")[0]
    assert rebind["DHCP6OptIAPrefix"].prefix == "fd77::"
    assert (addresses(container, "eth0"), discarded(container)) == ([], [])
    server.start()
    daemon.await_state("bound")
    wait_until(lambda: discarded(container), "the prefix is back")
    assert discarded(container) == [DISCARD]
    assert sorted(addresses(container, "eth0")) == [ip["address"] for ip in result["ips"]]


def test_end_to_end(
    runtime: Runtime, container: Netns, outside: Netns, daemon: Daemon, tmp_path: Path
) -> None:
    """A bridge's container with a prefix: every verb, and DEL leaves nothing in its namespace."""
    host = runtime.host
    for ns in (container, outside, host):
        ns.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    outside.set_sysctl("net/ipv6/conf/default/accept_ra", 0)
    host.ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1", "netns", outside.name)
    outside.ip_batch(
        "link set lan1 address 02:00:00:00:55:01",
        "address add fd55::1/64 dev lan1 nodad",
        "link set lan1 up",
    )
    host.ip_batch(
        "link add br0 type bridge mcast_snooping 0", "link set br0 up",
        "link set lan0 master br0 up",
    )  # fmt: skip
    kea6(outside, tmp_path / "kea", "lan1", **POOL)
    radvd(outside, tmp_path / "ra", "lan1", "prefix fd55::/64 { AdvAutonomous off; };")
    network = conf(daemon, ipv6=True, prefixDelegation={"assign": True})
    network["bridge"] = "br0"
    runtime.status("bridge", network).succeeded()
    result = runtime.add("bridge", network, container).result
    assert [ip["address"] for ip in result["ips"]] == ["fd55::50/64", "fd77::1/128"]
    assert set(addresses(container, "eth0")) == {"fd55::50/64", "fd77::1/128"}
    ping(container, "fd55::1")
    assert discarded(container) == [DISCARD]
    runtime.check("bridge", network, container, prev_result=result).succeeded()
    with capture(outside, "lan1") as wire:
        for _ in range(2):
            runtime.delete("bridge", network, container, prev_result=result).succeeded()
    assert len({m["DHCP6OptIAPrefix"].prefix for m in messages6(wire, "DHCP6_Release")}) == 1
    assert discarded(container) == []
    assert daemon.files == []


# -- a server is not trusted further than necessary -----------------------------------------------

OTHER = b"\0\x03\0\x01\x02\0\0\0\x55\x02"
ADDRESS, PREFIX = ia_na("fd55::60"), ia_pd("fd77:0:0:60::/64")
SOLICIT, ADVERTISE, REQUEST, RENEW, REBIND, REPLY, RELEASE = 1, 2, 3, 5, 6, 7, 8
BOTH: Json = {"ipv6": True, "prefixDelegation": {"assign": True}}


def spoiled(request: Any, kind: int) -> list[bytes]:
    """Messages that are none for this client, or that grant nothing that can be used."""
    good = answer6(request, kind, ADDRESS, PREFIX)
    bad_pairs = [
        (ADDRESS, ia_pd("::/0")),
        (ADDRESS, ia_pd("2000::/3")),
        (ADDRESS, ia_pd("fe80::/64")),
        (ADDRESS, ia_pd("ff02::/64")),
        (ADDRESS, ia_pd("::ffff:0:0/96")),
        (ADDRESS, ia_pd("fd66::/129")),
        (ADDRESS, ia_pd("fd66::/64", 200, 100)),
        (ADDRESS, ia_pd("fd66::/64", 0, 0)),
        (ADDRESS, ia_pd("fd66::/64", t1=2000, t2=1000)),
        (ia_na("ff02::1"), PREFIX),
        (ia_na("::1"), PREFIX),
        (ia_na("::ffff:10.0.0.1"), PREFIX),
        (ia_na("fd66::1", 200, 100), PREFIX),
    ]
    return [
        answer6(request, kind, ADDRESS, PREFIX, xid=request.trid ^ 1),
        answer6(request, kind, ADDRESS, PREFIX, server=b""),
        answer6(request, kind, ADDRESS, PREFIX, server=b"x" * 131),
        answer6(request, 9 - kind, ADDRESS, PREFIX),
        *(answer6(request, kind, *pair) for pair in bad_pairs),
        *(good[:size] for size in (0, 3, 10, len(good) - 1)),
    ]


def test_hostile_answers(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon
) -> None:
    """Junk around the right answers changes nothing, and only the chosen server is believed."""

    def answers(kind: int, request: Any) -> list[bytes]:
        if kind == RELEASE:
            return [answer6(request, REPLY, status6(0))]
        reply = ADVERTISE if kind == SOLICIT else REPLY
        bad = spoiled(request, reply)
        if kind == REQUEST:
            stranger = answer6(request, REPLY, ia_na("fd66::1"), ia_pd("fd66::/64"), server=OTHER)
            bad.append(stranger)
        else:
            bad.append(answer6(request, reply, refusal6(3, 2, "full"), server=OTHER))
        return [*bad, answer6(request, reply, ADDRESS, PREFIX)]

    network = conf(daemon, **BOTH)
    with FakeServer6(quiet_lan, SWITCH, answers):
        result = runtime.add("dhcp", network, container).result
        assert [ip["address"] for ip in result["ips"]] == ["fd55::60/128", "fd77:0:0:60::1/128"]
        assert daemon.lease()["prefix"] == "fd77:0:0:60::/64"
        runtime.delete("dhcp", network, container).succeeded()
    assert daemon.leases() == []


def test_the_fuller_of_two_offers(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon
) -> None:
    """A server without prefixes answers first; the other one has both."""

    def answers(kind: int, request: Any) -> list[bytes]:
        if kind == SOLICIT:
            return [
                answer6(request, ADVERTISE, ia_na("fd55::66"), refusal6(25, 6), server=OTHER),
                answer6(request, ADVERTISE, ADDRESS, PREFIX),
            ]
        return [answer6(request, REPLY, ADDRESS, PREFIX)]

    wish = {"required": False, "assign": True}
    network = conf(daemon, ipv6=True, prefixDelegation=wish)
    with FakeServer6(quiet_lan, SWITCH, answers):
        runtime.add("dhcp", network, container).succeeded()
        row = daemon.lease()
        assert (row["address"], row["prefix"]) == ("fd55::60/128", "fd77:0:0:60::/64")
        runtime.delete("dhcp", network, container).succeeded()


def test_lost_answers(runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon) -> None:
    """Each message is repeated within its transaction until it is answered."""
    seen: dict[int, list[int]] = {}

    def answers(kind: int, request: Any) -> list[bytes]:
        seen.setdefault(kind, []).append(request.trid)
        if len(seen[kind]) < 2:
            return []
        return [answer6(request, ADVERTISE if kind == SOLICIT else REPLY, ADDRESS, PREFIX)]

    network = conf(daemon, **BOTH)
    with FakeServer6(quiet_lan, SWITCH, answers):
        runtime.add("dhcp", network, container).succeeded()
        assert daemon.lease()["prefix"] == "fd77:0:0:60::/64"
        runtime.delete("dhcp", network, container).succeeded()
    for kind in (SOLICIT, REQUEST):
        assert len(seen[kind]) == 2
        assert len(set(seen[kind])) == 1
    assert len({trids[0] for trids in seen.values()}) == 3


def test_the_prefix_is_refused_at_the_end(
    runtime: Runtime, bin_dir: Path, host: Netns, container: Netns, quiet_lan: Netns, tmp_path: Path
) -> None:
    """Offered, but then granted to another client: the address goes back, and ADD fails."""
    released: set[str] = set()

    def answers(kind: int, request: Any) -> list[bytes]:
        if kind == RELEASE:
            released.add(request["DHCP6OptIAAddress"].addr)
        if kind == SOLICIT:
            return [answer6(request, ADVERTISE, ADDRESS, PREFIX)]
        return [answer6(request, REPLY, ADDRESS, refusal6(25, 6, "all leased"))]

    (tmp_path / "run").mkdir()
    flags = ("-timeout", "500ms", "-resendtimeout", "3s")
    daemon = Daemon(bin_dir, host, tmp_path / "run", flags).start()
    with FakeServer6(quiet_lan, SWITCH, answers):
        error = runtime.add("dhcp", conf(daemon, **BOTH), container).failed(999, "no more tries")
    assert "a server grants no prefix (NoPrefixAvail: 'all leased')" in error["details"]
    assert released == {"fd55::60"}
    assert discarded(container) == []
    assert daemon.files == []


@pytest.mark.parametrize("how", ["fails", "is killed"])
def test_an_unanswered_request_is_released(
    runtime: Runtime,
    bin_dir: Path,
    host: Netns,
    container: Netns,
    quiet_lan: Netns,
    tmp_path: Path,
    how: str,
) -> None:
    """The answer may be lost although the server has leased: nobody else would give it back."""
    seen: dict[int, Any] = {}

    def answers(kind: int, request: Any) -> list[bytes]:
        seen[kind] = request
        return [answer6(request, ADVERTISE, ADDRESS, PREFIX)] if kind == SOLICIT else []

    (tmp_path / "run").mkdir()
    flags = ("-timeout", "200ms", "-resendtimeout", "1s") if how == "fails" else ()
    daemon = Daemon(bin_dir, host, tmp_path / "run", flags).start()
    with FakeServer6(quiet_lan, SWITCH, answers):
        if how == "fails":
            runtime.add("dhcp", conf(daemon, **BOTH), container).failed(999, "no more tries")
        else:
            child = runtime.start("ADD", "dhcp", conf(daemon, **BOTH), container)
            wait_until(lambda: REQUEST in seen, "requests")
            child.kill()
        wait_until(lambda: RELEASE in seen, "the lease is released")
    assert seen[RELEASE]["DHCP6OptIAAddress"].addr == "fd55::60"
    assert seen[RELEASE]["DHCP6OptIAPrefix"].prefix == "fd77:0:0:60::"


def test_another_prefix_on_renewal(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon
) -> None:
    """The network is renumbered: the container has the new prefix, and CHECK tells the runtime."""
    soon = {"t1": 1, "t2": 100}

    def answers(kind: int, request: Any) -> list[bytes]:
        old, new = ia_pd("fd77:0:0:60::/64", **soon), ia_pd("fd88:0:0:60::/64")
        address = ia_na("fd55::60", **soon)
        if kind in (SOLICIT, REQUEST):
            return [answer6(request, ADVERTISE if kind == SOLICIT else REPLY, address, old)]
        if kind == RENEW and request["DHCP6OptIAPrefix"].prefix == "fd77:0:0:60::":
            back = ia_pd("fd77:0:0:60::/64", 0, 0, inner=new[4 + 12 :])
            return [
                answer6(request, REPLY, ia_na("fd55::66"), new, server=OTHER),
                answer6(request, REPLY, ia_na("fd55::66", inner=ADDRESS[4 + 12 :]), back),
            ]
        return [answer6(request, REPLY, ADDRESS, new)]

    network = conf(daemon, **BOTH)
    with FakeServer6(quiet_lan, SWITCH, answers):
        result = runtime.add("dhcp", network, container).result
        put(container, result)
        daemon.logged(
            "address changed from fd55::60/128, fd77:0:0:60::/64 to fd55::60/128, fd88:0:0:60::/64"
        )
        assert discarded(container) == [{**DISCARD, "dst": "fd88:0:0:60::/64"}]
        assert set(addresses(container, "eth0")) == {"fd55::60/128", "fd88:0:0:60::1/128"}
        failed = runtime.check("dhcp", network, container, prev_result=result).failed(999)
        assert "leased fd88:0:0:60::1/128, but prevResult does not have it" in failed["msg"]
        runtime.delete("dhcp", network, container).succeeded()
    assert discarded(container) == []


@pytest.mark.parametrize("required", [True, False])
def test_taken_back_on_renewal(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon, required: bool
) -> None:
    """The address stays; a prefix that is not required comes back with a later renewal."""
    renewals: dict[int, Any] = {}
    soon = {"t1": 1, "t2": 100}

    def answers(kind: int, request: Any) -> list[bytes]:
        if kind == RENEW:
            renewals[request.trid] = request
        address, prefix = ia_na("fd55::60", **soon), ia_pd("fd77:0:0:60::/64", **soon)
        if len(renewals) == 1:
            return [answer6(request, REPLY, address, refusal6(25, 3, "who are you?"))]
        reply = ADVERTISE if kind == SOLICIT else REPLY
        return [answer6(request, reply, address, prefix)]

    wish = {"assign": True, "required": required}
    network = conf(daemon, ipv6=True, prefixDelegation=wish)
    with FakeServer6(quiet_lan, SWITCH, answers):
        result = runtime.add("dhcp", network, container).result
        put(container, result)
        daemon.logged("from fd55::60/128, fd77:0:0:60::/64 to fd55::60/128: the runtime")
        if not required:
            daemon.logged("from fd55::60/128 to fd55::60/128, fd77:0:0:60::/64: the runtime")
            again = list(renewals.values())[1]
            assert again["DHCP6OptIAPrefix"].prefix == "::"
            assert again["DHCP6OptIAPrefix"].plen == 64
            # the last step of a renewal is the route
            wait_until(lambda: discarded(container), "the route is back")
            assert set(addresses(container, "eth0")) == {"fd55::60/128", "fd77:0:0:60::1/128"}
        else:
            assert discarded(container) == []
            assert addresses(container, "eth0") == ["fd55::60/128"]
            failed = runtime.check("dhcp", network, container, prev_result=result).failed(999)
            assert "the server has taken the delegated prefix back" in failed["msg"]
        runtime.delete("dhcp", network, container).succeeded()


def test_a_stranger_does_not_end_a_lease(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon
) -> None:
    """The server is silent; another one knows nothing of the lease, a third one extends it."""
    rebinds: set[int] = set()

    def answers(kind: int, request: Any) -> list[bytes]:
        address = ia_na("fd55::60", 5, 600, t1=1, t2=2)
        prefix = ia_pd("fd77:0:0:60::/64", 5, 600, t1=1, t2=2)
        if kind == REBIND:
            rebinds.add(request.trid)
            return [
                answer6(request, REPLY, refusal6(3, 3), refusal6(25, 3), server=OTHER),
                answer6(request, REPLY, ADDRESS, PREFIX, server=OTHER + b"3"),
            ]
        if kind == RENEW:
            return []
        return [answer6(request, ADVERTISE if kind == SOLICIT else REPLY, address, prefix)]

    with FakeServer6(quiet_lan, SWITCH, answers):
        result = runtime.add("dhcp", conf(daemon, **BOTH), container).result
        put(container, result)
        wait_until(lambda: daemon.lease()["expires"] > 1000, "extended by another server")
        assert len(rebinds) == 1
        assert discarded(container) == [{**DISCARD, "dst": "fd77:0:0:60::/64"}]
        assert len(addresses(container, "eth0")) == 2
        assert "lease lost" not in daemon.log.read_text()


def test_killed_while_it_releases(
    runtime: Runtime, container: Netns, quiet_lan: Netns, daemon: Daemon
) -> None:
    """The runtime repeats the DEL, as after each failure, and the next daemon releases again."""
    released: dict[int, Any] = {}

    def answers(kind: int, request: Any) -> list[bytes]:
        if kind == RELEASE:
            released[request.trid] = request
            return []
        return [answer6(request, ADVERTISE if kind == SOLICIT else REPLY, ADDRESS, PREFIX)]

    network = conf(daemon, **BOTH)
    with FakeServer6(quiet_lan, SWITCH, answers):
        runtime.add("dhcp", network, container).succeeded()
        child = runtime.start("DEL", "dhcp", network, container)
        wait_until(lambda: released, "releases")
        daemon.kill()
        assert child.wait(20) != 0
        daemon.start()
        runtime.delete("dhcp", network, container).succeeded()
    assert len(released) == 2
    assert {r["DHCP6OptIAPrefix"].prefix for r in released.values()} == {"fd77:0:0:60::"}
    assert (discarded(container), daemon.files) == ([], [])
