"""`cni migrate`: what the Go plugins clean up afterwards, and the way back."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from cni.netfilter import nft
from tests.harness import (
    Netns,
    Runtime,
    iptables_save,
    nft_rules,
    nft_tables,
    requires_kernel,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.portmap import GATEWAYS, NET, TABLE, Node, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.portmap import Json

pytestmark = requires_kernel("nft", "iptables")

LIST, REFERENCE, OWN = (), ("--to", "reference"), ("--to", "own")


@pytest.fixture
def node(runtime: Runtime, data_dir: Path, tmp_path: Path) -> Node:
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    return Node(runtime, data_dir)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    nft.forget()


def migrate(node: Node, *arguments: str, code: int = 0, trace: tuple[str, ...] = ()) -> Json:
    """Run the command; what it prints as JSON."""
    command = [*trace, str(node.runtime.bin_dir / "cni"), "migrate", *arguments, "--json"]
    state = ["--state-dir", node.runtime.env["CNI_STATE_DIR"]]
    env = {"PATH": os.environ["PATH"]}
    done = node.host.exec([*command, *state], check=False, env=env)
    assert done.returncode == code, done
    return json.loads(done.stdout) if done.stdout else {}


def published(node: Node) -> str:
    """Everything that names a port or a container, of either form."""
    lines = [line for v in (4, 6) for line in iptables_save(node.host, v) if "CNI-DN-" in line]
    return "\n".join([*lines, node.host.exec(["nft", "list", "ruleset"]).stdout])


def go_delete(go: Runtime, conf: Json, ns: Netns | None, cid: str, previous: Json) -> None:
    """As a runtime does after the Go plugins have come back."""
    go.delete("portmap", conf, ns, container_id=cid, prev_result=previous).succeeded()


PORTS = [tcp(8080), udp(8053), tcp(8081, 81), *(tcp(9000 + n, 90) for n in range(20))]


@pytest.mark.parametrize(
    "keys", [{}, {"masqAll": True}, {"snat": False}, {"markMasqBit": 5}], ids=str
)
def test_the_go_plugin_cleans_up(
    node: Node, go_runtime: Runtime, container: Netns, container2: Netns, keys: Json
) -> None:
    """Ports answer before, between and after; then the last DEL leaves none of them."""
    ports = [*PORTS, tcp(8082, hostIP="127.0.0.1"), tcp(8083, hostIP="::1")]
    first = node.publish(container, ports, **keys)
    second = node.publish(container2, [tcp(7080)], "c2", **keys)
    assert {one["attachment"] for one in migrate(node, *LIST)["uncleanable"]} == {
        "c1/eth0",
        "c2/eth0",
    }
    done = migrate(node, *REFERENCE)
    assert [one["state"] for one in done["rewritten"]] == ["rewritten", "rewritten"]
    assert done["uncleanable"] == []
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)
    with tcp_server(container, port=80), tcp_server(container2, port=80):
        for port in (8080, 7080):
            assert tcp_exchange(node.host, GATEWAYS["4"], port)
            assert tcp_exchange(node.host, GATEWAYS["6"], port)
        if keys.get("snat", True):
            assert tcp_exchange(node.host, "127.0.0.1", 8082)
        go_delete(go_runtime, node.conf(ports, **keys), container, "c1", first)
        assert tcp_exchange(node.host, GATEWAYS["4"], 7080)
        assert '"c1' not in published(node).replace("\\", "")
    go_delete(go_runtime, node.conf([tcp(7080)], **keys), None, "c2", second)
    text = published(node)
    for word in ("CNI-DN-", "7080", "8080", "c2", "10.22.0.2", "10.22.0.3"):
        assert word not in text
    assert migrate(node, *LIST)["uncleanable"] == []


def test_the_names_of_what_is_left(node: Node, container: Netns) -> None:
    node.publish(container, PORTS)
    state = ["--state-dir", node.runtime.env["CNI_STATE_DIR"]]
    command = [str(node.runtime.bin_dir / "cni"), "migrate", "-o", "name", *state]
    done = node.host.exec(command, env={"PATH": os.environ["PATH"]})
    assert done.stdout == f"{NET}/c1/eth0\n"  # once, with all its ports


def test_again_changes_nothing(node: Node, container: Netns) -> None:
    node.publish(container, PORTS)
    migrate(node, *REFERENCE)
    with unchanged(node.host):
        migrate(node, *REFERENCE)
        migrate(node, *LIST)


@pytest.mark.parametrize("call", ["sendto", "execve", "rename"])
def test_killed_anywhere(
    node: Node, go_runtime: Runtime, container: Netns, container2: Netns, call: str
) -> None:
    """Repeated after a SIGKILL at each such call, it ends as if it had not been killed."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    first, _ = node.publish(container, PORTS), node.publish(container2, [tcp(7080)], "c2")
    numbers = range(1, 3) if call == "execve" else range(1, 80, 7)
    for number in numbers:
        migrate(node, *OWN)
        inject = f"inject={call}:signal=KILL:when={number}"
        trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        command = [*trace, str(node.runtime.bin_dir / "cni"), "migrate", *REFERENCE]
        state = ["--state-dir", node.runtime.env["CNI_STATE_DIR"]]
        node.host.exec([*command, *state], check=False, env={"PATH": os.environ["PATH"]})
        with tcp_server(container, port=80):
            assert tcp_exchange(node.host, GATEWAYS["4"], 8080)
        assert migrate(node, *REFERENCE)["uncleanable"] == []
        assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)
    go_delete(go_runtime, node.conf(PORTS), container, "c1", first)
    assert '"c1' not in published(node).replace("\\", "")


def test_the_way_back(node: Node, container: Netns, container2: Netns) -> None:
    result = node.publish(container, PORTS)
    migrate(node, *REFERENCE)
    assert migrate(node, *OWN)["rewritten"][0]["state"] == "rewritten"
    assert not any("CNI-DN-" in line for v in (4, 6) for line in iptables_save(node.host, v))
    assert "tcp . 8080 : 10.22.0.2 . 80" in node.elements()
    conf = node.conf(PORTS)
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
    second = node.attach(container2, "c2")
    node.runtime.add(
        "portmap", node.conf([tcp(8080)]), container2, container_id="c2", prev_result=second
    ).failed(999, "already published by container c1")
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, "127.0.0.1", 8080)
    node.runtime.delete("portmap", conf, container).succeeded()
    assert "8080" not in published(node)


@pytest.mark.parametrize("form", [REFERENCE, OWN])
def test_our_del_needs_no_way_back(node: Node, container: Netns, form: tuple[str, ...]) -> None:
    node.publish(container, PORTS)
    migrate(node, *REFERENCE)
    migrate(node, *form)
    node.runtime.delete("portmap", node.conf(None), container).succeeded()
    text = published(node)
    assert "8080" not in text
    assert "CNI-DN-" not in text


def test_a_container_that_is_gone(node: Node, container: Netns, container2: Netns) -> None:
    """Its ports go: the DEL that comes for it is the Go plugin's, and nothing may answer for it."""
    node.publish(container, PORTS)
    node.publish(container2, [tcp(7080)], "c2")
    container.unname()
    states = {one["containerID"]: one["state"] for one in migrate(node, *REFERENCE)["rewritten"]}
    assert states == {"c1": "removed", "c2": "rewritten"}
    assert "8080" not in published(node)
    assert "7080" in published(node)


def test_what_nobody_noted_is_listed(node: Node, container: Netns, container2: Netns) -> None:
    node.publish(container, [tcp(8080)])
    node.publish(container2, [tcp(7080)], "c2")
    notes = os.path.join(node.runtime.env["CNI_STATE_DIR"], "intent")
    for name in os.listdir(notes):
        with open(f"{notes}/{name}") as note:
            if '"CNI_CONTAINERID":"c1"' in note.read():
                os.unlink(f"{notes}/{name}")
    left = migrate(node, *REFERENCE, code=1)["uncleanable"]
    assert {(one["attachment"], one["what"], one["noted"]) for one in left} == {
        ("c1/eth0", "host port 8080/tcp to 10.22.0.2 port 80", False),
        ("c1/eth0", "host port 8080/tcp to fd00:22::2 port 80", False),
    }
    with tcp_server(container, port=80), tcp_server(container2, port=80):
        assert tcp_exchange(node.host, GATEWAYS["4"], 8080)
        assert tcp_exchange(node.host, GATEWAYS["4"], 7080)


# -- the reference's nftables ----------------------------------------------------------------------


def references_rules(node: Node, family: str, chain: str) -> list[str]:
    text = node.host.exec(["nft", "list", "chain", family, TABLE, chain]).stdout
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line not in ("}", "") and not line.endswith("{")]


def test_a_network_that_asks_for_nftables(node: Node, container: Netns) -> None:
    """The rules of docs/spec/portmap.md, with the container's id as comment."""
    ports = [tcp(8080), udp(8053, hostIP="127.0.0.1"), tcp(8081, hostIP="::1")]
    keys: dict[str, Any] = {"backend": "nftables"}
    result = node.publish(container, ports, **keys)
    migrate(node, *REFERENCE)
    migrate(node, *REFERENCE)
    assert references_rules(node, "ip", "hostports") == [
        'tcp dport 8080 dnat to 10.22.0.2:80 comment "c1"',
        'ip daddr 127.0.0.1 udp dport 8053 dnat to 10.22.0.2:53 comment "c1"',
    ]
    assert references_rules(node, "ip6", "hostports") == [
        'tcp dport 8080 dnat to [fd00:22::2]:80 comment "c1"',
        'ip6 daddr ::1 tcp dport 8081 dnat to [fd00:22::2]:80 comment "c1"',
    ]
    assert references_rules(node, "ip", "masquerading")[1:] == [
        'ip saddr 10.22.0.2 ip daddr 10.22.0.2 masquerade comment "c1"',
        'ip saddr 127.0.0.1 ip daddr 10.22.0.2 masquerade comment "c1"',
    ]
    assert references_rules(node, "ip", "prerouting") == [
        "type nat hook prerouting priority dstnat; policy accept;",
        "fib daddr type local jump hostports_all",
    ]
    for family in ("ip", "ip6"):
        text = node.host.exec(["nft", "list", "table", family, TABLE]).stdout
        assert not re.search(r"\t(chain (published|net-|masquerade_)|map |set )", text)
    with unchanged(node.host):
        migrate(node, *REFERENCE)
    with tcp_server(container, port=80):
        assert tcp_exchange(node.host, GATEWAYS["4"], 8080)
        assert tcp_exchange(node.host, "127.0.0.1", 8080)
    migrate(node, *OWN)
    assert references_rules(node, "ip", "hostports") == []
    conf = node.conf(ports, **keys)
    node.runtime.check("portmap", conf, container, prev_result=result).succeeded()
    node.runtime.delete("portmap", conf, container).succeeded()
    assert '"c1"' not in published(node)


def test_conditions_stay_those_of_the_network(node: Node, container: Netns) -> None:
    conditions = {"conditionsV4": ["ip", "ttl", "!=", "99"]}
    node.publish(container, [tcp(8080)], **conditions)
    migrate(node, *REFERENCE)
    assert references_rules(node, "ip", "hostports") == [
        'ip ttl != 99 tcp dport 8080 dnat to 10.22.0.2:80 comment "c1"'
    ]


# -- firewall --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["", "same-bridge"])
def test_firewall(
    node: Node, go_runtime: Runtime, container: Netns, container2: Netns, policy: str
) -> None:
    conf = {"cniVersion": "1.0.0", "name": NET, "backend": "nftables"}
    if policy:
        conf["ingressPolicy"] = policy
    results = {}
    for cid, ns in (("c1", container), ("c2", container2)):
        results[cid] = node.attach(ns, cid)
        node.runtime.add(
            "firewall", conf, ns, container_id=cid, prev_result=results[cid]
        ).succeeded()
    left = migrate(node, *LIST)["uncleanable"]
    assert {(one["plugin"], one["what"]) for one in left} == {
        ("firewall", f"traffic of {address}")
        for address in ("10.22.0.2", "10.22.0.3", "fd00:22::2", "fd00:22::3")
    }
    assert migrate(node, *REFERENCE)["uncleanable"] == []
    with unchanged(node.host):
        migrate(node, *REFERENCE)
    text = node.host.exec(["nft", "list", "table", "inet", "cni_firewall"]).stdout
    assert "elements" not in text
    assert any("-s 10.22.0.2/32 -j ACCEPT" in line for line in iptables_save(node.host))
    for cid, ns in (("c1", container), ("c2", container2)):
        go = {key: value for key, value in conf.items() if key != "backend"}
        go_runtime.delete(
            "firewall", go, ns, container_id=cid, prev_result=results[cid]
        ).succeeded()
    assert not any("10.22.0." in line for line in iptables_save(node.host))
    assert nft_rules(node.host, "inet", "cni_firewall", "forward")


# --- masquerading by sets -------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_masquerading_by_sets(
    node: Node, container: Netns, container2: Netns, data_dir: Path, plugin: str
) -> None:
    """There and back: one form or the other, and a gone container's element goes."""
    conf = {
        "cniVersion": "1.0.0",
        "name": "sets",
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "ipMasqSet": True,
        "isGateway": True,
        "ipam": {"type": "host-local", "subnet": "10.31.0.0/24", "dataDir": str(data_dir)},
    }
    go_table, our_table = "cni_plugins_masquerade", "cni_masquerade"

    def forms(address: str) -> list[str]:
        tables = [table for _, table in nft_tables(node.host) if "masquerade" in table]
        text = {t: node.host.exec(["nft", "list", "table", "inet", t]).stdout for t in tables}
        return [table for table in sorted(text) if f"{address} " in text[table]]

    result = node.runtime.add(plugin, conf, container, container_id="c1").result
    node.runtime.add(plugin, conf, container2, container_id="c2").succeeded()
    listed = migrate(node, *LIST)["uncleanable"]
    assert {(one["plugin"], one["attachment"]) for one in listed} == {
        (plugin, "c1/eth0"),
        (plugin, "c2/eth0"),
    }
    container2.close()
    assert forms("10.31.0.2") == forms("10.31.0.3") == [our_table]
    done = migrate(node, *REFERENCE)
    assert sorted(one["state"] for one in done["rewritten"]) == ["removed", "rewritten"]
    assert done["uncleanable"] == []
    assert (forms("10.31.0.2"), forms("10.31.0.3")) == ([go_table], [])
    node.runtime.check(plugin, conf, container, container_id="c1", prev_result=result).succeeded()
    migrate(node, *OWN)
    assert forms("10.31.0.2") == [our_table]
    node.runtime.check(plugin, conf, container, container_id="c1", prev_result=result).succeeded()
    migrate(node, *REFERENCE)
    node.runtime.delete(plugin, conf, container, container_id="c1").succeeded()
    assert forms("10.31.0.2") == []


@requires_kernel("vxlan")
def test_a_plugin_that_go_has_not(node: Node, container: Netns, data_dir: Path) -> None:
    """Nothing says that another start of the container would help: it would be the same again."""
    conf = {
        "cniVersion": "1.0.0",
        "name": "over",
        "vni": 7,
        "peers": ["192.0.2.2"],
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "ipMasqSet": True,
        "ipam": {"type": "host-local", "subnet": "10.32.0.0/24", "dataDir": str(data_dir)},
    }
    node.host.ip_batch("link add up0 type veth", "link set up0 up")
    node.host.ip("address", "add", "192.0.2.1/24", "dev", "up0")
    node.host.ip("route", "add", "default", "via", "192.0.2.2")
    node.runtime.add("vxlan", conf, container, container_id="c1").succeeded()
    state = ["--state-dir", node.runtime.env["CNI_STATE_DIR"]]
    shown = node.host.exec([str(node.runtime.bin_dir / "cni"), "migrate", *state]).stdout
    assert "there is no Go plugin vxlan" in shown
    assert "restart" not in shown
    node.runtime.delete("vxlan", conf, container, container_id="c1").succeeded()
