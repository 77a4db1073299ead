"""portmap over a container's life: conflicts, repeats, failures, old flows, every verb, and Go."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    DUAL,
    V4,
    Family,
    Netns,
    Reply,
    Runtime,
    Server,
    connect,
    each_family,
    each_version,
    iptables_save,
    nft_rules,
    nft_tables,
    result_addresses,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness import nft as nft_list
from tests.harness.portmap import NET, NODE4, TABLE, Node, each_backend, tcp, udp
from tests.harness.wait import last_seen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]


@pytest.fixture
def node(runtime: Runtime, data_dir: Path, tmp_path: Path) -> Node:
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    return Node(runtime, data_dir)


# -- a port has one owner -------------------------------------------------------------------------


@each_backend
def test_a_taken_port_names_its_owner(
    node: Node, container: Netns, container2: Netns, backend: str
) -> None:
    node.publish(container, [tcp(8080), udp(8080)], backend=backend)
    result = node.attach(container2, "c2")

    def add(*ports: Json) -> Reply:
        conf = node.conf(list(ports), name="net2", backend=backend)
        return node.runtime.add("portmap", conf, container2, container_id="c2", prev_result=result)

    with unchanged(node.host):
        error = add(tcp(9090), tcp(8080)).failed(999)
    assert error["msg"].startswith("host port 8080/tcp is already published by container c1 (")
    assert "net1" in error["msg"]
    assert "8080/udp" in add(udp(8080)).failed()["msg"]
    add(tcp(9090)).succeeded()


@pytest.mark.parametrize("same_network", [True, False])
def test_a_dead_owner_is_replaced(
    node: Node, container: Netns, container2: Netns, same_network: bool
) -> None:
    """Dead is whose namespace, as its ADD was told, is no more."""
    node.publish(container, [tcp(8080), tcp(8081)])
    container.unname()
    result = node.attach(container2, "c2")
    conf = node.conf([tcp(8080)], name=NET if same_network else "net2")
    node.runtime.add("portmap", conf, container2, container_id="c2", prev_result=result).succeeded()
    assert node.elements() == ["tcp . 8080 : 10.22.0.3 . 80"]
    ours = {"container_id": "c2", "prev_result": result}
    node.runtime.check("portmap", conf, container2, **ours).succeeded()
    node.runtime.delete("portmap", node.conf(None)).succeeded()  # late, and of no harm
    assert node.elements() == ["tcp . 8080 : 10.22.0.3 . 80"]


def test_an_owner_nothing_is_known_of_is_alive(
    node: Node, container: Netns, container2: Netns, tmp_path: Path
) -> None:
    node.publish(container, [tcp(8080)])
    node.runtime.env["CNI_STATE_DIR"] = str(tmp_path / "elsewhere")
    container.unname()
    result = node.attach(container2, "c2")
    conf = node.conf([tcp(8080)])
    node.runtime.add("portmap", conf, container2, container_id="c2", prev_result=result).failed(
        999, "already published by container c1"
    )


@each_backend
def test_an_address_given_again(
    node: Node, container: Netns, container2: Netns, backend: str
) -> None:
    """Its former holder is gone: what that published must not come to the new one."""
    result = node.publish(container, [tcp(8080), tcp(8081)], family=V4, backend=backend)
    container.unname()
    conf = node.conf([tcp(8081, 81)], backend=backend)
    node.runtime.add("portmap", conf, container2, container_id="c2", prev_result=result).succeeded()
    if backend == "nftables":
        assert node.elements() == ["tcp . 8081 : 10.22.0.2 . 81"]
        assert "id: c1" not in node.host.exec(["nft", "list", "ruleset"]).stdout
    else:
        targets = [line for line in node.rules() if "DNAT --to" in line]
        assert [line.split()[-1] for line in targets] == ["10.22.0.2:81"]
        assert not any(r"\"c1\"" in line for line in node.rules())


@each_backend
def test_an_address_of_a_living_container(
    node: Node, container: Netns, container2: Netns, backend: str
) -> None:
    """An ADD that has another's address takes nothing of what that one has published."""
    result = node.publish(container, [tcp(8080), tcp(8081)], family=V4, backend=backend)
    before = served(node)
    add = {"container_id": "c2", "prev_result": result}
    conf = node.conf([tcp(8081, 81)], backend=backend)
    node.runtime.add("portmap", conf, container2, **add).failed(
        999, "host port 8081/tcp is already published by container c1"
    )
    assert len(before) == 2
    assert served(node) == before
    conf = node.conf([tcp(9090)], backend=backend)
    node.runtime.add("portmap", conf, container2, **add).succeeded()
    assert sorted(served(node)) == sorted([*before, "10.22.0.2:80"])
    node.runtime.check("portmap", conf, container2, **add).succeeded()
    node.runtime.delete("portmap", conf, container2, **add).succeeded()
    assert served(node) == before


# -- several networks ------------------------------------------------------------------------------


def networks(node: Node, ns: Netns, backend: str, port: Json, **keys: Any) -> list[Any]:
    """Attach a container to three networks, and publish a port through each; a DEL for each."""
    ends = []
    for number, name in enumerate(("net1", "net2", "net1")):
        prev = {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": f"eth{number}", "sandbox": ns.path}],
            "ips": [{"interface": 0, "address": f"10.{number}.0.2/24"}],
        }
        conf = node.conf([port], name=name, backend=backend, **keys)
        args = {"ifname": f"eth{number}", "prev_result": prev}
        node.runtime.add("portmap", conf, ns, **args).succeeded()
        ends.append((conf, args))
    return ends


def served(node: Node) -> list[str]:
    """The addresses that the port leads to, the first one first."""
    lines = [line for line in iptables_save(node.host) if " -j DNAT --to-destination" in line]
    entries = [line for line in iptables_save(node.host) if "-A CNI-HOSTPORT-DNAT" in line]
    order = {line.split()[-1]: number for number, line in reversed([*enumerate(entries)])}
    lines.sort(key=lambda line: order[line.split()[1]])
    maps = node.elements() if ("ip", TABLE) in nft_tables(node.host) else []
    return [line.split()[-1] for line in lines] + [
        one.partition(" : ")[2].replace(" . ", ":") for one in maps
    ]


@each_backend
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_a_container_in_several_networks(
    node: Node, container: Netns, container2: Netns, backend: str, order: tuple[int, ...]
) -> None:
    """The first one that is left serves the port; nobody else gets it."""
    ends = networks(node, container, backend, tcp(8080))
    left = [0, 1, 2]
    for gone in order:
        for number in left:
            conf, args = ends[number]
            node.runtime.check("portmap", conf, container, **args).succeeded()
        assert served(node)[0] in [f"10.{number}.0.2:80" for number in left]
        other = {"container_id": "c2", "prev_result": {**ends[0][1]["prev_result"]}}
        other["prev_result"]["ips"] = [{"address": "10.9.0.9/24"}]
        node.runtime.add("portmap", ends[0][0], container2, **other).failed(
            999, "already published by container c1"
        )
        conf, args = ends[gone]
        node.runtime.delete("portmap", conf, container, **args).succeeded()
        left.remove(gone)
    assert served(node) == []
    assert node.rules() == []


@each_backend
def test_a_del_that_is_told_nothing(node: Node, container: Netns, backend: str) -> None:
    """No prevResult, no ports: the container's other attachment to the network keeps its own."""
    ends = networks(node, container, backend, tcp(8080))
    bare = node.conf(None, name="net1")
    node.runtime.delete("portmap", bare, container, ifname="eth2").succeeded()
    assert len(served(node)) == (1 if backend == "nftables" else 2)
    for conf, args in ends[:2]:
        node.runtime.check("portmap", conf, container, **args).succeeded()
    node.runtime.delete("portmap", bare, container, ifname="eth0").succeeded()
    assert served(node) == ["10.1.0.2:80"]


def test_gc_serves_through_what_is_kept(node: Node, container: Netns) -> None:
    networks(node, container, "nftables", tcp(8080))
    assert served(node) == ["10.0.0.2:80"]
    node.runtime.gc("portmap", node.conf(None, "1.1.0"), [("c1", "eth2")]).succeeded()
    assert served(node) in (["10.1.0.2:80"], ["10.2.0.2:80"])


@each_backend
def test_the_same_container_in_another_namespace(
    node: Node, container: Netns, container2: Netns, backend: str
) -> None:
    """Without a DEL in between: the earlier attachment's ports are this one's own."""
    networks(node, container, backend, tcp(8080))
    container.unname()
    networks(node, container2, backend, tcp(8080, 81))
    assert served(node)[0].endswith(":81")


# -- again, and what fails ------------------------------------------------------------------------


@each_backend
def test_again_is_the_same(node: Node, container: Netns, backend: str) -> None:
    ports = [tcp(8080), tcp(8443, 443, hostIP="127.0.0.1"), udp(8053)]
    result = node.publish(container, ports, backend=backend)
    conf = node.conf(ports, backend=backend)
    with unchanged(node.host):
        node.runtime.add("portmap", conf, container, prev_result=result).succeeded()


def test_again_with_other_ports_replaces(node: Node, container: Netns) -> None:
    result = node.publish(container, [tcp(8080), tcp(8081)])
    conf = node.conf([tcp(8081, 81), tcp(8082, hostIP="127.0.0.1")])
    node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert node.elements() == ["tcp . 8081 : 10.22.0.2 . 81"]
    assert node.elements(name="targets_at") == ["127.0.0.1 . tcp . 8082 : 10.22.0.2 . 80"]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"conditionsV4": ["nonsense", "here"]}, "unable to set up nftables rules"),
        ({"backend": "iptables", "conditionsV4": ["-m", "nosuch"]}, "unable to setup DNAT: "),
        ({"backend": "iptables", "externalSetMarkChain": "NOSUCH"}, "unable to setup DNAT: "),
    ],
    ids=["nftables", "iptables", "chain"],
)
def test_what_fails_leaves_nothing(node: Node, container: Netns, keys: Json, text: str) -> None:
    result = node.attach(container)
    node.host.exec(["iptables", "-w", "-t", "nat", "-L"])  # makes the tables it looks at
    node.host.exec(["ip6tables", "-w", "-t", "nat", "-L"])
    with unchanged(node.host):
        node.runtime.add(
            "portmap", node.conf([tcp(8080)], **keys), container, prev_result=result
        ).failed(999, text)


def test_two_attachments_of_a_container(node: Node, container: Netns) -> None:
    """DEL of one interface's ports leaves the other's, also in the same network."""
    first = node.publish(container, [tcp(8080)])
    for backend, name in (("nftables", NET), ("nftables", "net2"), ("iptables", NET)):
        result = json.loads(json.dumps(first).replace("10.22.0.2/", "10.22.0.9/"))
        result["ips"] = result["ips"][:1]
        result["interfaces"][2]["name"] = "eth1"
        conf = node.conf([tcp(9090)], name=name, backend=backend)
        ours = {"ifname": "eth1", "prev_result": result}
        node.runtime.add("portmap", conf, container, **ours).succeeded()
        node.runtime.delete("portmap", conf, container, **ours).succeeded()
        assert node.elements() == ["tcp . 8080 : 10.22.0.2 . 80"]
        assert not any("9090" in line for line in node.rules())


def test_two_attachments_with_iptables(node: Node, container: Netns) -> None:
    """They share a chain; the address says whose rules are whose."""
    first = node.publish(container, [tcp(8080)], family=V4, backend="iptables")
    before = iptables_save(node.host)
    second = json.loads(json.dumps(first).replace("10.22.0.2/", "10.22.0.9/"))
    second["interfaces"][2]["name"] = "eth1"
    conf = node.conf([tcp(9090)], backend="iptables")
    ours = {"ifname": "eth1", "prev_result": second}
    node.runtime.add("portmap", conf, container, **ours).succeeded()
    assert sum("-j DNAT" in line for line in iptables_save(node.host)) == 2
    node.runtime.delete("portmap", conf, container, **ours).succeeded()
    assert iptables_save(node.host) == before
    conf = node.conf([tcp(8080)], backend="iptables")
    node.runtime.delete("portmap", conf, container, prev_result=first).succeeded()
    assert node.rules() == []


def test_many_at_once(node: Node, container: Netns) -> None:
    """Every ADD of a crowd succeeds, on a node without a table, and every DEL, to the last one."""
    result = node.attach(container)

    def run(number: int) -> tuple[str, Json, Json]:
        own = json.loads(json.dumps(result).replace("10.22.0.2/", f"10.22.0.{100 + number}/"))
        own["ips"] = own["ips"][: 1 + number % 2]
        if len(own["ips"]) == 2:
            own["ips"][1]["address"] = f"fd00:22::{100 + number}/64"
        return f"c{number}", node.conf([tcp(7000 + number)], name=f"n{number % 3}"), own

    def call(verb: str, number: int) -> Reply:
        cid, conf, own = run(number)
        return node.runtime.call(
            verb, "portmap", conf, container, container_id=cid, prev_result=own
        )

    with ThreadPoolExecutor(8) as pool:
        for reply in pool.map(lambda n: call("ADD", n), range(16)):
            assert reply.rc == 0, str(reply)
        assert len(node.elements()) == 16
        for reply in pool.map(lambda n: call("CHECK", n), range(16)):
            reply.succeeded()
        for reply in pool.map(lambda n: call("DEL", n), range(16)):
            reply.succeeded()
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)


@each_version(ALL_VERSIONS)
def test_each_version(node: Node, container: Netns, cni_version: str) -> None:
    """The result is prevResult in each of them; DEL needs neither that nor the namespace."""
    modern = node.attach(container)
    if cni_version < "0.3":
        result = {"ip4": {"ip": modern["ips"][0]["address"]}, "dns": {}}
    else:
        keys = ("address", "interface")
        ips = [{key: ip[key] for key in keys} for ip in modern["ips"][:1]]
        if cni_version < "1":
            ips[0]["version"] = "4"
        result = {"interfaces": modern["interfaces"], "ips": ips}
        if cni_version < "1":
            result["dns"] = {}
    result["cniVersion"] = cni_version
    conf = node.conf([tcp(8080)], cni_version)
    added = node.runtime.add("portmap", conf, container, prev_result=result).result
    assert added == result
    assert result_addresses(added) == ["10.22.0.2/24"]
    assert node.elements() == ["tcp . 8080 : 10.22.0.2 . 80"]
    node.runtime.delete("portmap", node.conf(None, cni_version)).succeeded()
    assert ("ip", TABLE) not in nft_tables(node.host)


# -- flows that outlive what made them ------------------------------------------------------------


@contextlib.contextmanager
def never_stopping(ns: Netns, address: str, port: int) -> Iterator[None]:
    """A UDP sender of one flow."""
    stop = threading.Event()
    with ns.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.connect((address, port))

        def send() -> None:
            while not stop.wait(0.01):
                with contextlib.suppress(OSError):
                    sock.send(b"x")

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def silent_server(ns: Netns, port: int) -> Iterator[Server]:
    """Counts what comes. An answer that crosses the change would begin a flow of its own."""
    server = Server("::", port)
    with ns.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.1)
        sock.bind(("::", port))
        stop = threading.Event()

        def receive() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    server.clients.append(sock.recvfrom(100)[1][:2])

        thread = threading.Thread(target=receive, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()


@each_backend
@pytest.mark.parametrize("address", [NODE4, "2001:db8:ffff::1"])
def test_a_sender_that_never_stops(
    node: Node, container: Netns, container2: Netns, outside: Netns, backend: str, address: str
) -> None:
    """It reaches the node before, the container from ADD to DEL, and then the next container."""
    connect(node.host, outside)
    first, second = node.attach(container), node.attach(container2, "c2")
    conf = node.conf([udp(9053, 53)], backend=backend)
    with (
        silent_server(node.host, 9053) as nobody,
        silent_server(container, 53) as one,
        silent_server(container2, 53) as two,
        never_stopping(outside, address, 9053),
    ):

        def talks_to(server: Server) -> bool:
            count = len(server.clients)
            return last_seen(lambda: len(server.clients) > count + 3)

        def is_left_by_others(server: Server) -> bool:
            others = [s for s in (nobody, one, two) if s is not server]
            counts = [len(s.clients) for s in others]
            return talks_to(server) and counts == [len(s.clients) for s in others]

        assert talks_to(nobody)
        node.runtime.add("portmap", conf, container, prev_result=first).succeeded()
        assert talks_to(one)
        assert is_left_by_others(one)
        node.runtime.delete("portmap", conf, container, prev_result=first).succeeded()
        assert talks_to(nobody)
        assert is_left_by_others(nobody)
        ours = {"container_id": "c2", "prev_result": second}
        node.runtime.add("portmap", conf, container2, **ours).succeeded()
        assert talks_to(two)
        node.runtime.delete("portmap", node.conf(None), container2, container_id="c2").succeeded()
        # which ports these were, the ADD has noted
        assert talks_to(nobody)


def test_only_flows_of_the_port_are_forgotten(node: Node, container: Netns, outside: Netns) -> None:
    """Not those to the same port of another host, nor to another port or address of the node."""
    connect(node.host, outside)
    # somebody who tracks connections, as on any node with a stateful firewall
    chain = "add table ip x; add chain ip x y { type filter hook output priority 0; }"
    node.host.exec(["nft", f"{chain}; add rule ip x y ct state new"])
    flows = [("198.51.100.2", 53), ("127.0.0.1", 54), (NODE4, 53), ("127.0.0.1", 53)]
    with contextlib.ExitStack() as stack:
        for address, port in flows:
            sock = stack.enter_context(node.host.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.sendto(b"x", (address, port))
        result = node.attach(container)
        conf = node.conf([udp(53, hostIP="127.0.0.1")])
        node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    listed = node.host.exec(["conntrack", "-L", "-p", "udp"]).stdout
    lines = listed.splitlines()
    kept = [any(f"dst={a} " in i and f"dport={p} " in i for i in lines) for a, p in flows]
    assert kept == [True, True, True, False], listed


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("published", [1, 3, 20])
def test_many_flows_are_forgotten_together(
    node: Node, container: Netns, outside: Netns, tmp_path: Path, published: int
) -> None:
    """No request for each flow, and no question for each address that repeats."""
    connect(node.host, outside)
    result = node.attach(container)
    conf = node.conf([udp(9000 + number, 53) for number in range(published)])
    node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    for number in range(400):
        with outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", 20000 + number))  # or the kernel might give a port twice
            sock.sendto(b"x", (NODE4, 9000 + number % published))
    listing = ["conntrack", "-L", "-p", "udp"]
    assert node.host.exec(listing).stdout.count(f"dst={NODE4} ") == 400
    trace = tmp_path / "trace"
    done = node.host.run(
        subprocess.run,
        [
            *("strace", "-qq", "-o", str(trace), "-e", "trace=sendto"),
            str(node.runtime.bin_dir / "portmap"),
        ],
        input=json.dumps({**conf, "type": "portmap", "prevResult": result}).encode(),
        capture_output=True,
        env=node.runtime.environment("DEL", container, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 0, done
    assert f"dst={NODE4} " not in node.host.exec(listing).stdout
    assert trace.read_text().count("sendto(") < 100


# -- CHECK, GC, STATUS, reload --------------------------------------------------------------------

BREAKS = {
    "flushed": (["flush", "ruleset"], "missing hostport rules"),
    "element": (
        ["delete", "element", "ip", TABLE, "published", "{ 6 . 8080 }"],
        "8080/tcp -> net-",
    ),
    "target": (
        ["delete", "element", "ip6", TABLE, "targets", "{ 6 . 8080 }"],
        "fd00:22::2 port 80",
    ),
    "lookup": (["flush", "chain", "ip", TABLE, "published_lookup"], '"published_lookup" chain'),
    "hook": (["flush", "chain", "ip6", TABLE, "published_output"], '"published_output" chain'),
    "masquerade": (["flush", "chain", "ip", TABLE, "masquerade_0x2000"], '"masquerade_0x2000"'),
}


@pytest.mark.parametrize(("command", "text"), BREAKS.values(), ids=BREAKS)
def test_check_and_reload(node: Node, container: Netns, command: list[str], text: str) -> None:
    ports = [tcp(8080), udp(8053, hostIP="127.0.0.1")]
    result = node.publish(container, ports)
    conf = node.conf(ports)

    def check() -> Reply:
        return node.runtime.check("portmap", conf, container, prev_result=result)

    check().succeeded()
    node.host.exec(["nft", *command])
    check().failed(999, text, "run `cni reload`")
    reload(node)
    check().succeeded()
    with tcp_server(container, port=80):
        tcp_exchange(node.host, "127.0.0.1", 8080)
    node.runtime.delete("portmap", conf, container, prev_result=result).succeeded()
    reload(node)
    assert ("ip", TABLE) not in nft_tables(node.host)


def reload(node: Node) -> None:
    done = node.host.run(
        subprocess.run,
        [str(node.runtime.bin_dir / "cni"), "reload"],
        env=node.runtime.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_and_reload_with_iptables(node: Node, container: Netns) -> None:
    ports = [tcp(8080), udp(8053)]
    result = node.publish(container, ports, backend="iptables")
    conf = node.conf(ports, backend="iptables")
    chain = "CNI-DN-c2d892b58e87e28a12fe6"
    before = [iptables_save(node.host, version) for version in (4, 6)]
    for command, text in (
        (["-F", chain], f"in chain {chain} not found in table nat"),
        (["-F", "CNI-HOSTPORT-DNAT"], "--dports 8053 "),
        (["-F", "OUTPUT"], "--dst-type LOCAL -j CNI-HOSTPORT-DNAT in chain OUTPUT"),
    ):
        node.host.exec(["iptables", "-w", "-t", "nat", *command])
        node.runtime.check("portmap", conf, container, prev_result=result).failed(
            999, "could not check ipv4 dnat: rule ", text, "run `cni reload`"
        )
        reload(node)
        assert [sorted(iptables_save(node.host, v)) for v in (4, 6)] == list(map(sorted, before))
    node.host.exec(["nft", "flush", "ruleset"])
    node.runtime.check("portmap", conf, container, prev_result=result).failed(
        999, f"could not check ipv4 dnat: chain {chain} not found in iptables table nat"
    )


def test_check_sees_route_localnet(node: Node, container: Netns) -> None:
    result = node.publish(container, [tcp(8080)])
    node.host.set_sysctl("net/ipv4/conf/cni0/route_localnet", 0)
    node.runtime.check("portmap", node.conf([tcp(8080)]), container, prev_result=result).failed(
        999, "route_localnet: want 1, have 0"
    )


@each_backend
def test_gc(node: Node, container: Netns, container2: Netns, backend: str) -> None:
    node.publish(container, [tcp(8080), udp(53)], backend=backend)
    result = node.publish(container2, [tcp(8081)], "c2", backend=backend)
    other = node.conf([tcp(8082)], name="other", backend=backend)
    node.runtime.add(
        "portmap", other, container2, container_id="c3", prev_result=result
    ).succeeded()
    conf = node.conf(None, "1.1.0", backend=backend)
    node.runtime.gc("portmap", conf, None).succeeded()
    assert "8080" in "".join(published(node))
    node.runtime.gc("portmap", conf, [("c2", "eth0"), ("x", "eth0")]).succeeded()
    assert sorted(published(node)) == ["8081", "8082"]
    node.runtime.gc("portmap", conf, []).succeeded()
    assert published(node) == ["8082"]
    node.runtime.gc("portmap", {**conf, "name": "other"}, []).succeeded()
    assert node.rules() == []
    assert ("ip", TABLE) not in nft_tables(node.host)


def published(node: Node) -> list[str]:
    """The host ports for which there is a rule or an element."""
    nft = [line.split()[2] for line in (node.elements() if has_table(node) else [])]
    lines = [line for line in iptables_save(node.host) if " -j DNAT " in line]
    return nft + [line.split("--dport ")[1].split()[0] for line in lines]


def has_table(node: Node) -> bool:
    return ("ip", TABLE) in nft_tables(node.host)


@pytest.mark.parametrize("backend", [None, "nftables", "iptables"])
def test_status(node: Node, backend: str | None) -> None:
    keys = {} if backend is None else {"backend": backend}
    conf = node.conf(None, "1.1.0", **keys)
    with unchanged(node.host):
        node.runtime.status("portmap", conf).succeeded()


def test_status_without_a_backend(node: Node) -> None:
    """Without the right to change rules, nothing can be published."""

    def status(**keys: Any) -> Json:
        conf = node.conf(None, "1.1.0", **keys)
        done = node.host.run(
            subprocess.run,
            [
                "setpriv",
                "--bounding-set=-all",
                "--inh-caps=-all",
                str(node.runtime.bin_dir / "portmap"),
            ],
            input=json.dumps(conf),
            # a server has all rights, and asks nobody for theirs
            env=node.runtime.environment("STATUS", env={"CNI_SERVER": "off"}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, done.stdout
        return json.loads(done.stdout)

    for keys in ({}, {"backend": "nftables"}, {"backend": "iptables"}):
        error = status(**keys)
        assert error["code"] == 50, error
    assert status(backend="x")["code"] == 999


# -- beside the Go plugins ------------------------------------------------------------------------


def test_go_starts_we_stop(
    node: Node, go_runtime: Runtime, container: Netns, container2: Netns
) -> None:
    """Debian's plugin (iptables): CHECK and DEL, with everything or with nothing known, and GC."""
    ports = [tcp(8080), udp(8053), tcp(8081, hostIP="127.0.0.1")]
    result = node.attach(container)
    conf = node.conf(ports)

    def start(cid: str) -> None:
        go_runtime.add("portmap", conf, container, container_id=cid, prev_result=result).succeeded()

    def clean() -> list[str]:
        return [line for v in (4, 6) for line in iptables_save(node.host, v)]

    start("c0")
    go_runtime.delete("portmap", conf, container, container_id="c0").succeeded()
    skeleton = clean()
    start("c1")
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
    node.runtime.delete("portmap", conf, container, prev_result=result).succeeded()
    assert clean() == skeleton
    start("c1")
    node.runtime.delete("portmap", node.conf(None)).succeeded()
    assert clean() == skeleton
    start("c1")
    node.runtime.gc("portmap", node.conf(None, "1.1.0"), [("c1", "eth0")]).succeeded()
    assert node.rules()
    node.runtime.gc("portmap", node.conf(None, "1.1.0"), []).succeeded()
    assert clean() == skeleton


@each_family((V4, DUAL))
def test_we_start_go_stops(
    node: Node, go_runtime: Runtime, container: Netns, family: Family
) -> None:
    """The iptables backend: Go's DEL understands our rules.

    Its CHECK, in Debian's version, looks for IPv6 rules whatever the addresses are.
    """
    ports = [tcp(8080), udp(8053), tcp(8081, hostIP="127.0.0.1"), *map(tcp, range(2000, 2020))]
    result = node.publish(container, ports, family=family, backend="iptables")
    go = node.conf(ports)
    go_runtime.delete("portmap", go, container, prev_result=result).succeeded()
    assert node.rules() == []


GO_TABLE = """
add table {f} cni_hostport {{ comment "CNI portmap plugin"; }}
add chain {f} cni_hostport hostports
add chain {f} cni_hostport hostip_hostports
add chain {f} cni_hostport hostports_all
flush chain {f} cni_hostport hostports_all
add rule {f} cni_hostport hostports_all jump hostip_hostports
add rule {f} cni_hostport hostports_all jump hostports
add chain {f} cni_hostport prerouting {{ type nat hook prerouting priority -100; }}
flush chain {f} cni_hostport prerouting
add rule {f} cni_hostport prerouting fib daddr type local jump hostports_all
add chain {f} cni_hostport output {{ type nat hook output priority -100; }}
flush chain {f} cni_hostport output
add rule {f} cni_hostport output fib daddr type local jump hostports_all
add chain {f} cni_hostport masquerading {{ type nat hook postrouting priority 100; }}
"""


def go_nft(host: Netns, cid: str, port: int, number: int) -> None:
    """As the reference's nftables backend, which Debian's version does not have yet."""
    script = ""
    for family, ip in (("ip", f"10.22.0.{number}"), ("ip6", f"fd00:22::{number}")):
        target = ip if family == "ip" else f"[{ip}]"
        place = f"{family} cni_hostport"
        script += GO_TABLE.format(f=family)
        script += (
            f'add rule {place} hostports tcp dport {port} dnat to {target}:80 comment "{cid}"\n'
        )
        saddr = f"{family} saddr {ip} {family} daddr {ip}"
        script += f'add rule {place} masquerading {saddr} masquerade comment "{cid}"\n'
    host.exec(["nft", "-f", "-"], stdin=script)


def test_beside_the_nftables_of_go(node: Node, container: Netns, container2: Netns) -> None:
    """In one table; a later ADD of either does not hurt the other, and we remove what Go made."""
    node.attach(container, "go")
    go_nft(node.host, "go", 8090, 2)
    result = node.publish(container2, [tcp(8080)], "c2")
    go_nft(node.host, "go", 8091, 2)
    go_nft(node.host, "go", 8092, 77)  # another attachment's
    with tcp_server(container, port=80) as theirs, tcp_server(container2, port=80) as ours:
        for address in ("10.22.0.1", "fd00:22::1"):
            for port in (8080, 8090, 8091):
                tcp_exchange(node.host, address, port)
        assert (len(theirs.clients), len(ours.clients)) == (4, 2)
    node.runtime.delete("portmap", node.conf([tcp(8080)]), container_id="c2").succeeded()
    chains = [
        item["chain"]["name"]
        for item in nft_list(node.host, "table", "ip", TABLE)
        if "chain" in item
    ]
    assert "hostports" in chains
    assert not any(chain.startswith("net-") for chain in chains)
    first = json.loads(
        json.dumps(result).replace("10.22.0.3/", "10.22.0.2/").replace("22::3/", "22::2/")
    )
    conf = node.conf([tcp(8090)])
    node.runtime.delete("portmap", conf, container_id="go", prev_result=first).succeeded()
    for family in ("ip", "ip6"):
        for chain in ("hostports", "masquerading"):
            assert len(nft_rules(node.host, family, TABLE, chain)) == 1
    node.runtime.delete("portmap", node.conf(None), container_id="go").succeeded()
    for family in ("ip", "ip6"):
        for chain in ("hostports", "masquerading"):
            assert nft_rules(node.host, family, TABLE, chain) == []


# -- bad input ------------------------------------------------------------------------------------

PARSE = "failed to parse config: "
BOTH = (
    "nftables backend was requested but configuration contains iptables-specific options "
    "[externalSetMarkChain conditionsV4]"
)
BAD: dict[str, tuple[Json, Json, str]] = {
    "container port 0": (tcp(80, 0), {}, PARSE + "Invalid container port number: 0"),
    "host port 0": (tcp(0), {}, PARSE + "Invalid host port number: 0"),
    "negative": (tcp(-1), {}, PARSE + "Invalid host port number: -1"),
    "host port 65536": (tcp(65536), {}, PARSE + "Invalid host port number: 65536"),
    "container port 65536": (tcp(80, 65536), {}, PARSE + "Invalid container port number: 65536"),
    "text": (
        {**tcp(80), "hostPort": "80"},
        {},
        PARSE + "failed to parse network configuration: json: cannot unmarshal string into field "
        "runtimeConfig.portMappings[1].hostPort of type int",
    ),
    "protocol": (
        {**tcp(80), "protocol": "icmp"},
        {},
        PARSE + 'unknown protocol "icmp" of host port 80',
    ),
    "no host IP": (
        tcp(80, hostIP="localhost"),
        {},
        PARSE + 'invalid hostIP "localhost" of host port 80',
    ),
    "backend": (tcp(80), {"backend": "ebtables"}, PARSE + 'unrecognized backend "ebtables"'),
    "mark bit": (
        tcp(80),
        {"markMasqBit": 32},
        PARSE + "MasqMarkBit must be between 0 and 31",
    ),
    "mark bit and chain": (
        tcp(80),
        {"markMasqBit": 1, "externalSetMarkChain": "X"},
        PARSE + "Cannot specify externalSetMarkChain and markMasqBit",
    ),
    "iptables options for nftables": (
        tcp(80),
        {"backend": "nftables", "externalSetMarkChain": "X", "conditionsV4": ["-s", "1.1.1.1"]},
        PARSE + BOTH,
    ),
    "nftables options for iptables": (
        tcp(80),
        {"backend": "iptables", "conditionsV6": ["ip6", "saddr", "::1"]},
        PARSE + "iptables backend was requested but configuration contains nftables-specific "
        "options [conditionsV6]",
    ),
    "options of both": (
        tcp(80),
        {"conditionsV4": ["!", "-s", "1.1.1.1"], "conditionsV6": ["ip6", "saddr", "::1"]},
        PARSE + "iptables backend was requested but configuration contains nftables-specific "
        "options [conditionsV6]",
    ),
    "smuggled command": (
        tcp(80),
        {"conditionsV4": ["accept\nflush ruleset\n"]},
        PARSE + "conditionsV4: a condition cannot have a control character or semicolon",
    ),
    "prevResult": (
        tcp(80),
        {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "x"}]}},
        PARSE + "could not parse prevResult: ",
    ),
}


@pytest.fixture
def v4_result(node: Node, container: Netns) -> Json:
    return node.attach(container, family=V4)


@pytest.mark.parametrize(("port", "keys", "text"), BAD.values(), ids=BAD)
def test_bad_input(
    node: Node, container: Netns, v4_result: Json, port: Json, keys: Json, text: str
) -> None:
    conf = node.conf([tcp(443), port], **keys)
    given = {} if "prevResult" in keys else {"prev_result": v4_result}
    with unchanged(node.host):
        error = node.runtime.add("portmap", conf, container, **given).failed(999)
    assert error["msg"].startswith(text), error


def test_order_and_absence(node: Node, container: Netns, v4_result: Json) -> None:
    with unchanged(node.host):
        add, check = node.runtime.add, node.runtime.check
        bare = node.conf([tcp(80)])
        add("portmap", bare, container).failed(999, "must be called as chained plugin")
        check("portmap", bare, container).failed(999, "Required prevResult missing")
        none = node.conf(None)
        assert add("portmap", none, container, prev_result=v4_result).result == v4_result
        check("portmap", none, container, prev_result=v4_result).succeeded()
        bad = node.conf([tcp(0)])
        error = check("portmap", bad, container, prev_result=v4_result).failed(999)
        assert error["msg"] == "Invalid host port number: 0"
        error = node.runtime.delete("portmap", bad).failed(999)
        assert error["msg"] == PARSE + "Invalid host port number: 0"


@each_backend
def test_a_host_ip_that_is_elsewhere(
    node: Node, container: Netns, container2: Netns, outside: Netns, backend: str
) -> None:
    """A virtual IP: its traffic is left alone until the address comes to this node."""
    connect(node.host, outside)
    conf = node.conf([tcp(8080, hostIP="198.51.100.77")], backend=backend)
    result = node.attach(container, family=V4)
    added = node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert "hostIP 198.51.100.77 of host port 8080/tcp is no address of this node" in added.stderr
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
    node.attach(container2, "c2", family=V4)
    # the neighbour that has the address now; without masquerading it needs the way back
    outside.ip("address", "add", "198.51.100.77/32", "dev", "node")
    outside.ip("route", "add", "10.22.0.0/24", "via", "198.51.100.1")
    with tcp_server(container, port=80), tcp_server(outside, "198.51.100.77", 8080) as elsewhere:
        assert tcp_exchange(node.host, "198.51.100.77", 8080) == "198.51.100.1"
        assert tcp_exchange(container2, "198.51.100.77", 8080) == "10.22.0.3"
        assert len(elsewhere.clients) == 2
    outside.ip("address", "del", "198.51.100.77/32", "dev", "node")
    node.host.ip("address", "add", "198.51.100.77/24", "dev", "uplink")
    with tcp_server(container, port=80):
        assert tcp_exchange(outside, "198.51.100.77", 8080) == "198.51.100.2"
        assert tcp_exchange(node.host, "198.51.100.77", 8080)


@each_backend
@pytest.mark.parametrize("host_ip", ["::1", "2001:db8::9"])
def test_a_host_ip_of_a_family_that_the_container_lacks(
    node: Node, container: Netns, backend: str, host_ip: str
) -> None:
    result = node.attach(container, family=V4)
    conf = node.conf([tcp(8080, hostIP=host_ip), tcp(8081)], backend=backend)
    added = node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert f"hostIP {host_ip} of host port 8080/tcp has no effect" in added.stderr
    assert served(node) == ["10.22.0.2:80"]
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
    node.runtime.delete("portmap", conf, container, prev_result=result).succeeded()
    assert served(node) == []


BROKEN: dict[str, tuple[Json, str]] = {
    "another version": ({"prevResult": {"cniVersion": "0.3.1", "ips": []}}, "prevResult"),
    "no address": (
        {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "x"}]}},
        "prevResult",
    ),
    "no object": ({"prevResult": 7}, "prevResult"),
    "a port": ({"runtimeConfig": {"portMappings": [{"hostPort": -1, "containerPort": 1}]}}, "port"),
    "ports": ({"runtimeConfig": {"portMappings": "x"}}, "portMappings"),
    "backend": ({"backend": "x"}, "backend"),
    "mark": ({"markMasqBit": 99}, "MasqMarkBit"),
    "snat": ({"snat": "x"}, ""),  # DEL does not need it
}


@each_backend
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_configuration_leaves_no_rules(
    node: Node, container: Netns, backend: str, what: str
) -> None:
    """DEL removes what is the owner's, and says what was wrong then."""
    node.publish(container, [tcp(8080), tcp(8081, hostIP=NODE4)], backend=backend)
    keys, text = BROKEN[what]
    conf = {**node.conf([tcp(8080)], backend=backend), **keys}
    deleted = node.runtime.delete("portmap", conf, container)
    assert text in deleted.stdout + deleted.stderr
    assert node.rules() == []


def test_which_address(node: Node, container: Netns, v4_result: Json) -> None:
    """The first one of this interface in the container; one without an interface counts, too."""
    host_side = {"address": "10.99.0.1/24", "interface": 0}
    other = {"address": "10.99.0.2/24", "interface": 99}
    result = {**v4_result, "ips": [host_side, *v4_result["ips"], other]}
    conf = node.conf([tcp(8080)])
    node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert node.elements() == ["tcp . 8080 : 10.22.0.2 . 80"]
    result = {**v4_result, "ips": [host_side, other]}
    node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert node.elements() == ["tcp . 8080 : 10.99.0.2 . 80"]
    result = {**v4_result, "ips": [host_side]}
    done = node.runtime.add("portmap", conf, container, prev_result=result).succeeded()
    assert "has no address: no port is published" in done.stderr
