"""portmap (docs/spec/portmap.md): real packets, rules read by independent tools, both backends."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    V4,
    Netns,
    Runtime,
    connect,
    iptables_save,
    nft_rules,
    nft_tables,
    ping,
    routes,
    tcp_exchange,
    tcp_server,
    udp_exchange,
    udp_server,
)
from tests.harness.portmap import (
    GATEWAYS,
    NODE4,
    NODE6,
    OUTSIDE4,
    OUTSIDE6,
    TABLE,
    Node,
    each_backend,
    tcp,
    udp,
)
from tests.harness.wait import last_seen, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Json = dict[str, Any]


@pytest.fixture
def node(runtime: Runtime, outside: Netns, data_dir: Path) -> Node:
    connect(runtime.host, outside)
    return Node(runtime, data_dir)


def gateway(address: str) -> str:
    return GATEWAYS["6" if ":" in address else "4"]


def without_br_netfilter(host: Netns) -> None:
    """With it, a bridge translates answers back to ::1, and IPv6 drops what comes with that."""
    with suppress(FileNotFoundError):  # the module is not loaded
        host.set_sysctl("net/bridge/bridge-nf-call-ip6tables", 0)


def refused(function: Callable[..., str], *args: Any) -> bool:
    """Does nobody answer?"""
    try:
        function(*args, timeout=0.4)
    except OSError:
        return True
    return False


# -- reaching it ----------------------------------------------------------------------------------


@each_backend
def test_published_everywhere(
    node: Node, container: Netns, container2: Netns, outside: Netns, backend: str
) -> None:
    """From the node, localhost, a neighbour, itself and beyond; stopped, nothing is left."""
    node.attach(container2, "c2")
    tables = nft_tables(node.host)
    ports = [tcp(8080), udp(8053)]
    result = node.publish(container, ports, backend=backend)
    with tcp_server(container, port=80), udp_server(container, port=53):
        for exchange, port in ((tcp_exchange, 8080), (udp_exchange, 8053)):
            for address in (NODE4, NODE6, *GATEWAYS.values()):
                assert exchange(node.host, address, port) in (address, gateway(address))
            # 127.0.0.1 could not be answered
            assert exchange(node.host, "127.0.0.1", port) == GATEWAYS["4"]
            for address, peer in ((NODE4, OUTSIDE4), (NODE6, OUTSIDE6)):
                assert exchange(outside, address, port) == peer
                # on one link with the server, which would answer directly
                assert exchange(container2, address, port) == gateway(address)
                assert exchange(container, address, port) == gateway(address)
                assert exchange(container2, gateway(address), port) == gateway(address)
        conf = node.conf(ports, backend=backend)
        node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
        node.runtime.delete("portmap", conf, container, prev_result=result).succeeded()
        assert node.rules() == []
        for address in (NODE4, NODE6):
            assert refused(tcp_exchange, outside, address, 8080)
            assert refused(udp_exchange, outside, address, 8053)
    if backend == "nftables":
        assert nft_tables(node.host) == tables
    node.runtime.delete("portmap", conf, container, prev_result=result).succeeded()


@each_backend
def test_only_what_is_for_the_node_is_captured(
    node: Node, container: Netns, container2: Netns, outside: Netns, netns: Any, backend: str
) -> None:
    """CVE-2025-67499: {container, node, peer} x {node, other, itself} x v4, v6 x tcp, udp."""
    beyond = netns("beyond")
    connect(
        node.host,
        beyond,
        name="uplink2",
        index=1002,
        host_addresses=("203.0.113.1/24", "2001:db8:eeee::1/64"),
        other_addresses=("203.0.113.2/24", "2001:db8:eeee::2/64"),
    )
    for ns, via4, via6 in (
        (outside, NODE4, NODE6),
        (beyond, "203.0.113.1", "2001:db8:eeee::1"),
    ):
        ns.ip_batch(f"route add default via {via4}", f"route add default via {via6}")
    node.attach(container2, "c2")
    node.publish(container, [tcp(8080), udp(8080, 80)], backend=backend)
    for source in (container2, outside):  # until the node's link-local addresses are settled
        for address in ("203.0.113.2", "2001:db8:eeee::2"):
            ping(source, address, timeout=10)
    exchanges = ((tcp_exchange, tcp_server), (udp_exchange, udp_server))
    for exchange, server in exchanges:
        with (
            server(container, port=80) as published,
            server(container2, port=8080) as own,
            server(beyond, port=8080) as other,
        ):
            for source in (container2, node.host, outside):
                for address in (NODE4, NODE6):  # the node's: captured
                    count = len(published.clients)
                    exchange(source, address, 8080)
                    assert len(published.clients) == count + 1
                for address in ("203.0.113.2", "2001:db8:eeee::2"):  # another host's: not
                    count = len(published.clients), len(other.clients)
                    exchange(source, address, 8080)
                    assert (len(published.clients), len(other.clients) - 1) == count
            for address in ("127.0.0.1", "::1"):  # a container's own localhost: not
                count = len(own.clients)
                exchange(container2, address, 8080)
                assert len(own.clients) == count + 1
            count = len(published.clients)
            exchange(node.host, "127.0.0.1", 8080)
            assert len(published.clients) == count + 1
            # nor what is for another container
            count = len(own.clients)
            exchange(outside, "10.22.0.2", 8080)
            assert len(own.clients) == count + 1


def test_a_neighbour_does_not_reach_localhost(node: Node, container: Netns) -> None:
    """route_localnet, which localhost needs, opens 127.0.0.0/8 to neighbours: we close it."""
    node.publish(container, [tcp(8080, hostIP="127.0.0.1")])
    assert node.host.sysctl("net/ipv4/conf/cni0/route_localnet") == "1"
    container.ip_batch(
        "route del table local local 127.0.0.1 dev lo",
        "route del table local local 127.0.0.0/8 dev lo",
        "link set lo down",
        f"route add 127.0.0.1 via {GATEWAYS['4']} dev eth0",
    )
    container.set_sysctl("net/ipv4/conf/eth0/route_localnet", 1)
    with (
        udp_server(node.host, "127.0.0.1", 9999) as local,
        container.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):

        def knock() -> bool:
            sender.sendto(b"x", ("127.0.0.1", 9999))
            return bool(local.clients)

        assert not last_seen(knock, timeout=0.5)
        node.host.exec(["nft", "flush", "chain", "ip", TABLE, "published_guard"])
        node.host.exec(["ip", "xfrm", "policy", "flush"])
        wait_until(knock, "the test's own way in works")


def test_localhost_of_ipv6(
    node: Node, container: Netns, container2: Netns, outside: Netns, netns: Any
) -> None:
    """Limited to it, and of containers on several links; the node's own ::1 is what it was."""
    without_br_netfilter(node.host)
    node.publish(container, [tcp(8080, hostIP="::1"), udp(8053, hostIP="::1")])
    node.publish(container2, [tcp(8082)], "c2")
    third = netns("third")
    ipam = {"type": "host-local", "ranges": [[{"subnet": "fd00:77::/64"}]]}
    ipam["dataDir"] = str(node.data_dir)
    on_other = node.attach(third, "c3", bridge="other0", name="net2", ipam=ipam)
    conf = node.conf([tcp(8081)], name="net2")
    node.runtime.add("portmap", conf, third, container_id="c3", prev_result=on_other).succeeded()
    with (
        tcp_server(container, port=80),
        udp_server(container, port=53),
        tcp_server(third, port=80),
        tcp_server(node.host, "::1") as own,
    ):
        assert tcp_exchange(node.host, "::1", 8080) == GATEWAYS["6"]
        assert udp_exchange(node.host, "::1", 8053) == GATEWAYS["6"]
        assert tcp_exchange(node.host, "::1", 8081) == "fd00:77::1"
        assert tcp_exchange(node.host, "::1", own.port) == "::1"
        for source in (container2, outside):
            assert refused(tcp_exchange, source, NODE6, 8080)
            assert refused(udp_exchange, source, NODE6, 8053)
    local = routes(node.host, 6, table="local")
    found = sorted(route["dev"] for route in local if route["dst"] == "::1")
    assert found == ["cni0", "lo", "other0"]


def test_check_and_reload_know_localhost_of_ipv6(node: Node, container: Netns) -> None:
    result = node.publish(container, [tcp(8080)])
    conf = node.conf([tcp(8080)])
    lost = ("route", "delete", "table", "local", "local", "::1", "dev", "cni0")
    node.host.ip("-6", *lost)
    node.runtime.check("portmap", conf, container, prev_result=result).failed(
        999, "no local route to ::1 on cni0: run `cni reload`"
    )
    node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
    node.host.ip("-6", *lost)
    # Without it the reference's containers are complete, and those that do not want localhost.
    without = node.conf([tcp(8080)], snat=False)
    node.runtime.add("portmap", without, container, prev_result=result).succeeded()
    node.runtime.check("portmap", without, container, prev_result=result).succeeded()


@each_backend
def test_host_ip(node: Node, container: Netns, container2: Netns, backend: str) -> None:
    """Two containers share a port on different addresses; each is reached on its own only."""
    node.host.ip("address", "add", "192.0.2.7/32", "dev", "lo")
    first = [tcp(8080, hostIP=NODE4), tcp(8080, hostIP=NODE6), tcp(8081, hostIP="127.0.0.1")]
    node.publish(container, first, backend=backend)
    node.publish(container2, [tcp(8080, hostIP="192.0.2.7")], "c2", V4, backend=backend)
    with tcp_server(container, port=80) as one, tcp_server(container2, port=80) as two:
        tcp_exchange(node.host, NODE4, 8080)
        tcp_exchange(node.host, NODE6, 8080)
        tcp_exchange(node.host, "127.0.0.1", 8081)
        assert (len(one.clients), len(two.clients)) == (3, 0)
        tcp_exchange(node.host, "192.0.2.7", 8080)
        assert (len(one.clients), len(two.clients)) == (3, 1)
        for address in ("127.0.0.1", GATEWAYS["4"], GATEWAYS["6"]):
            assert refused(tcp_exchange, node.host, address, 8080)
        assert refused(tcp_exchange, node.host, NODE4, 8081)


def test_the_more_specific_address_wins(node: Node, container: Netns, container2: Netns) -> None:
    node.publish(container, [tcp(8080)])
    node.publish(container2, [tcp(8080, hostIP=NODE4)], "c2")
    with tcp_server(container, port=80) as one, tcp_server(container2, port=80) as two:
        tcp_exchange(node.host, NODE4, 8080)
        assert (len(one.clients), len(two.clients)) == (0, 1)
        tcp_exchange(node.host, GATEWAYS["4"], 8080)
        tcp_exchange(node.host, NODE6, 8080)
        assert (len(one.clients), len(two.clients)) == (2, 1)


@each_backend
@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])
def test_an_unspecified_host_ip_is_of_its_family(
    node: Node, container: Netns, backend: str, ip: str
) -> None:
    node.publish(container, [tcp(8080, hostIP=ip)], backend=backend)
    with tcp_server(container, port=80):
        assert refused(tcp_exchange, node.host, NODE4, 8080) == (ip == "::")
        assert refused(tcp_exchange, node.host, NODE6, 8080) == (ip == "0.0.0.0")


def test_both_unspecified_host_ips(node: Node, container: Netns) -> None:
    """What some runtimes make of `-p 8080:80`; twice the same is once."""
    node.publish(container, [tcp(8080, hostIP=ip) for ip in ("0.0.0.0", "::", "")])
    assert node.elements() == ["tcp . 8080 : 10.22.0.2 . 80"]
    assert node.elements("ip6") == ["tcp . 8080 : fd00:22::2 . 80"]


def test_of_two_mappings_of_a_port_the_first_counts(node: Node, container: Netns) -> None:
    result = node.attach(container)
    conf = node.conf([tcp(8080, 80), tcp(8080, 81)])
    added = node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert "container port 80; the mapping to 81 has no effect" in added.stderr
    assert node.elements() == ["tcp . 8080 : 10.22.0.2 . 80"]
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()


def test_sctp(node: Node, container: Netns) -> None:
    node.publish(container, [{**tcp(9000, 90), "protocol": "SCTP"}])
    assert node.elements() == ["sctp . 9000 : 10.22.0.2 . 90"]  # packets: test_portmap_sctp.py


# -- source addresses -----------------------------------------------------------------------------


@each_backend
def test_masq_all(node: Node, container: Netns, outside: Netns, backend: str) -> None:
    node.publish(container, [tcp(8080)], masqAll=True, backend=backend)
    with tcp_server(container, port=80):
        assert tcp_exchange(outside, NODE4, 8080) == GATEWAYS["4"]
        assert tcp_exchange(outside, NODE6, 8080) == GATEWAYS["6"]


@each_backend
def test_without_snat(node: Node, container: Netns, outside: Netns, backend: str) -> None:
    node.publish(container, [tcp(8080)], snat=False, backend=backend)
    assert node.host.sysctl("net/ipv4/conf/cni0/route_localnet") == "0"
    with tcp_server(container, port=80):
        assert tcp_exchange(outside, NODE4, 8080) == OUTSIDE4
        assert refused(tcp_exchange, node.host, "127.0.0.1", 8080)
        assert refused(tcp_exchange, container, NODE4, 8080)


@each_backend
def test_mark_bit(node: Node, container: Netns, backend: str) -> None:
    node.publish(container, [tcp(8080)], markMasqBit=5, backend=backend)
    text = node.host.exec(["nft", "list", "ruleset"]).stdout + "\n".join(iptables_save(node.host))
    assert "0x20/0x20" in text or "& 0x00000020 == 0x00000020 masquerade" in text
    assert "0x2000" not in text.replace("0x00000020", "")
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, "127.0.0.1", 8080) == GATEWAYS["4"]


def test_two_networks_have_their_own_options(
    node: Node, container: Netns, container2: Netns, outside: Netns
) -> None:
    """masqAll, conditions and marks are of a network's containers, not of everybody's."""
    node.publish(container, [tcp(8080)], masqAll=True, markMasqBit=7)
    result = node.attach(container2, "c2")
    conf = node.conf(
        [tcp(8081)],
        name="net2",
        conditionsV4=["ip", "saddr", "!=", OUTSIDE4],
        conditionsV6=["ip6", "saddr", "!=", OUTSIDE6],
    )
    node.runtime.add("portmap", conf, container2, container_id="c2", prev_result=result).succeeded()
    with tcp_server(container, port=80), tcp_server(container2, port=80):
        assert tcp_exchange(outside, NODE4, 8080) == GATEWAYS["4"]
        assert tcp_exchange(node.host, NODE4, 8081) == NODE4
        assert refused(tcp_exchange, outside, NODE4, 8081)
        assert refused(tcp_exchange, outside, NODE6, 8081)
        node.runtime.check(
            "portmap", conf, container2, container_id="c2", prev_result=result
        ).succeeded()
        node.runtime.delete("portmap", conf, container2, container_id="c2").succeeded()
        assert tcp_exchange(outside, NODE6, 8080) == GATEWAYS["6"]
    assert "saddr !=" not in node.host.exec(["nft", "list", "ruleset"]).stdout


def test_iptables_conditions_choose_iptables(node: Node, container: Netns, outside: Netns) -> None:
    conditions = {"conditionsV4": ["!", "-s", OUTSIDE4], "conditionsV6": ["!", "-s", OUTSIDE6]}
    result = node.publish(container, [tcp(8080)], **conditions)
    assert ("ip", TABLE) not in nft_tables(node.host)
    conf = node.conf([tcp(8080)], **conditions)
    for _ in range(2):
        node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    entries = [i for i in iptables_save(node.host) if i.startswith("-A CNI-HOSTPORT-DNAT ")]
    assert len(entries) == 1
    assert f"! -s {OUTSIDE4}/32" in entries[0]
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, NODE4, 8080) == NODE4
        assert refused(tcp_exchange, outside, NODE4, 8080)
        assert refused(tcp_exchange, outside, NODE6, 8080)
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()


def test_external_mark_chain(node: Node, container: Netns) -> None:
    for tool in ("iptables", "ip6tables"):
        for args in (["-N", "MARKS"], ["-A", "MARKS", "-j", "MARK", "--set-mark", "7"]):
            node.host.exec([tool, "-w", "-t", "nat", *args])
        rule = ["POSTROUTING", "-m", "mark", "--mark", "7", "-j", "MASQUERADE"]
        node.host.exec([tool, "-w", "-t", "nat", "-A", *rule])
    node.publish(container, [tcp(8080)], externalSetMarkChain="MARKS")
    assert not any("CNI-HOSTPORT-MASQ" in line for line in iptables_save(node.host))
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, "127.0.0.1", 8080) == GATEWAYS["4"]


# -- the rules themselves -------------------------------------------------------------------------


def test_iptables_rules_are_those_of_the_reference(node: Node, container: Netns) -> None:
    ports = [
        tcp(8080),
        tcp(8081, 81, hostIP=NODE4),
        udp(8053, hostIP="::"),
        *map(tcp, range(1, 15)),
    ]
    node.publish(container, ports[:3], backend="iptables")
    c = "CNI-DN-c2d892b58e87e28a12fe6"
    name = r'-m comment --comment "dnat name: \"net1\" id: \"c1\""'
    local = "-m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT"
    tcp80, tcp81 = "-p tcp -m tcp --dport 8080", "-p tcp -m tcp --dport 8081"
    udp53 = "-p udp -m udp --dport 8053"
    masq = '-m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ'
    mark = '-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000'
    shared = {
        f"-A PREROUTING {local}",
        f"-A OUTPUT {local}",
        f"-A POSTROUTING {masq}",
        f"-A CNI-HOSTPORT-SETMARK {mark}",
        "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
        f"-A CNI-HOSTPORT-DNAT -p tcp {name} -m multiport --dports 8080,8081 -j {c}",
        f"-A CNI-HOSTPORT-DNAT -p udp {name} -m multiport --dports 8053 -j {c}",
    }
    to = "-j DNAT --to-destination"
    wanted4 = [
        f"-A {c} -s 10.22.0.0/24 {tcp80} -j CNI-HOSTPORT-SETMARK",
        f"-A {c} -s 127.0.0.1/32 {tcp80} -j CNI-HOSTPORT-SETMARK",
        f"-A {c} {tcp80} {to} 10.22.0.2:80",
        f"-A {c} -s 10.22.0.0/24 -d {NODE4}/32 {tcp81} -j CNI-HOSTPORT-SETMARK",
        f"-A {c} -s 127.0.0.1/32 -d {NODE4}/32 {tcp81} -j CNI-HOSTPORT-SETMARK",
        f"-A {c} -d {NODE4}/32 {tcp81} {to} 10.22.0.2:81",
    ]
    wanted6 = [
        f"-A {c} -s fd00:22::/64 {tcp80} -j CNI-HOSTPORT-SETMARK",
        f"-A {c} {tcp80} {to} [fd00:22::2]:80",
        f"-A {c} -s fd00:22::/64 {udp53} -j CNI-HOSTPORT-SETMARK",
        f"-A {c} {udp53} {to} [fd00:22::2]:53",
    ]
    for version, wanted in ((4, wanted4), (6, wanted6)):
        lines = [line for line in iptables_save(node.host, version) if line.startswith("-A")]
        assert [line for line in lines if line.startswith(f"-A {c} ")] == wanted
        assert {line for line in lines if not line.startswith(f"-A {c} ")} == shared


def test_fifteen_ports_a_rule(node: Node, container: Netns) -> None:
    node.publish(container, [tcp(port) for port in range(1000, 1032)], backend="iptables")
    entries = [i for i in iptables_save(node.host) if i.startswith("-A CNI-HOSTPORT-DNAT ")]
    counts = [len(entry.split("--dports ")[1].split()[0].split(",")) for entry in entries]
    assert counts == [15, 15, 2]


def fill(host: Netns, count: int) -> None:
    """Ports of others, in the maps of both families."""
    comment = "0123456789abcdef-0123456789abcdef, net: x, if: eth0, id: x"
    lines = []
    for family, target in (("ip", "10.99.0.9"), ("ip6", "fd99::9")):
        chain = next(
            line.rpartition("jump ")[2].split()[0]
            for line in host.exec(["nft", "list", "map", family, TABLE, "published"]).stdout.split(
                "\n"
            )
            if "jump" in line
        )
        for port in range(10000, 10000 + count):
            key = f'6 . {port} comment "{comment}"'
            for name, value in (("published", f"jump {chain}"), ("targets", f"{target} . 80")):
                lines.append(f"add element {family} {TABLE} {name} {{ {key} : {value} }}")
    host.exec(["nft", "-f", "-"], stdin="\n".join(lines))


def test_a_thousand_ports_are_no_more_rules(
    node: Node, container: Netns, container2: Netns, outside: Netns
) -> None:
    """What a packet passes is the same, and so is what an ADD sends to the kernel."""

    def path() -> list[tuple[str, int]]:
        chains = ["published_prerouting", "published_output", "published_lookup"]
        text = node.host.exec(["nft", "list", "table", "ip", TABLE]).stdout
        chains += [line.split()[1] for line in text.splitlines() if "chain net-" in line]
        return [(chain, len(nft_rules(node.host, "ip", TABLE, chain))) for chain in chains]

    node.publish(container, [tcp(8080)])
    before = path()
    assert [count for _, count in before] == [1, 1, 2, 3]
    fill(node.host, 1000)
    many = [tcp(port, port) for port in range(20000, 21000)]
    result = node.publish(container2, many, "c2")
    assert path() == before
    with tcp_server(container2, port=20999), tcp_server(container, port=80):
        assert tcp_exchange(outside, NODE4, 20999) == OUTSIDE4
        assert tcp_exchange(outside, NODE6, 8080) == OUTSIDE6
    conf = node.conf(many)
    ours = {"container_id": "c2", "prev_result": result}
    node.runtime.check("portmap", conf, container2, **ours).succeeded()
    node.runtime.delete("portmap", conf, container2, **ours).succeeded()
    assert len(node.elements()) == 1001
    assert path() == before


def test_priorities(node: Node, container: Netns, outside: Netns) -> None:
    """What iptables translates (kube-proxy's NodePorts, say) comes first, firewalld's last."""
    rule = ("-p", "tcp", "--dport", "8080", "-j", "REDIRECT", "--to-ports", "7001")
    node.host.exec(["iptables", "-w", "-t", "nat", "-A", "PREROUTING", *rule])
    node.host.exec(
        ["nft", "-f", "-"],
        stdin="add table ip fw\n"
        "add chain ip fw pre { type nat hook prerouting priority -90; }\n"
        "add rule ip fw pre tcp dport { 8080, 8081 } redirect to :7002\n",
    )
    node.publish(container, [tcp(8080), tcp(8081)])
    with (
        tcp_server(container, port=80) as published,
        tcp_server(node.host, port=7001) as first,
        tcp_server(node.host, port=7002) as last,
    ):
        tcp_exchange(outside, NODE4, 8080)
        tcp_exchange(outside, NODE4, 8081)
        assert (len(first.clients), len(published.clients), len(last.clients)) == (1, 1, 0)
