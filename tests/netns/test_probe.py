"""`cni test` tells networks that work from those that do not, and leaves nothing.

Networks are broken on purpose: before the command, or by a plugin at the end of the chain, which
runs commands after each ADD as another program of the node might.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import DUAL, V4, V6, Family, Netns, links, ping
from tests.harness.command_line import Node
from tests.harness.packets import connect
from tests.harness.wait import wait_until

Json = dict[str, Any]
PORTMAP: Json = {"type": "portmap", "capabilities": {"portMappings": True}}
COLUMNS = 80
BRIDGE_FRAMES_PASS_RULES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")

# Runs the shell commands of its key `run`, by verb; what it was given before is its result.
SABOTEUR = """#!/usr/bin/env python3
import json, os, subprocess, sys
conf = json.load(sys.stdin)
verb = os.environ["CNI_COMMAND"]
command = conf.get("run", {}).get(verb)
if command:
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True)
    if done.returncode:
        print(json.dumps({"code": 100, "msg": done.stderr.strip() or "it says nothing"}))
        sys.exit(1)
if verb == "ADD":
    print(json.dumps(conf["prevResult"]))
"""
INSIDE = "nsenter --net=$CNI_NETNS"
EACH_PORT = (
    "for p in $(ip -o link show master br-net | sed 's/.*: \\(veth[^@]*\\)@.*/\\1/'); do {}; done"
)


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    made = Node(host, bin_dir, tmp_path)
    more = tmp_path / "more"
    more.mkdir()
    (more / "saboteur").write_text(SABOTEUR)
    (more / "saboteur").chmod(0o755)
    made.env["CNI_PATH"] += f":{more}"
    made.env["STATE"] = str(tmp_path)
    return made


def versions(family: Family) -> list[int]:
    return [6 if ":" in each else 4 for each in family.subnets]


def saboteur(add: str = "", delete: str = "") -> Json:
    return {"type": "saboteur", "run": {"ADD": add, "DEL": delete}}


def checks(node: Node, *args: str, code: int | None = None) -> dict[str, Json]:
    """The rows of the table by check and family; of several of one name the worst."""
    done = node.run("test", "net", "--json", *args)
    assert done.stderr == "", done.stderr
    value = json.loads(done.stdout)
    assert done.returncode == (0 if value["ok"] else 1)
    wrong = [each for each in value["checks"] if each["state"] == "failed"]
    assert code in (None, done.returncode), wrong
    rows: dict[str, Json] = {}
    for each in value["checks"]:
        name = each["check"] + (f"/{each['family']}" if each["family"] else "")
        if name not in rows or each["state"] == "failed":
            rows[name] = each
    assert value["ok"] == all(each["state"] != "failed" for each in rows.values())
    return rows


def states(rows: dict[str, Json], state: str) -> set[str]:
    return {name for name, each in rows.items() if each["state"] == state}


def require_nothing_left(node: Node) -> None:
    """No attachment, reservation, rule or link of the test, but the bridge, which stays."""
    known = [each["containerID"] for each in node.json("ps")]
    assert not [each for each in known if each.startswith("cni-test-")]
    assert node.host.exec(["nft", "list", "ruleset"]).stdout.count("cni-test-") == 0
    assert not [name for name in links(node.host) if name.startswith(("veth", "cnitest"))]


# --- networks that work ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "backend"),
    [(V4, "nftables"), (V6, "nftables"), (DUAL, "nftables"), (DUAL, "iptables")],
    ids=str,
)
def test_a_bridge_that_works(node: Node, family: Family, backend: str) -> None:
    ipam = family.host_local(node.data_dir)
    bridge = {"type": "bridge", "isGateway": True, "ipMasq": True, "ipMasqBackend": backend}
    bridge |= {"hairpinMode": True, "ipam": ipam}
    portmap = {**PORTMAP, "backend": backend}
    node.write({"cniVersion": "1.1.0", "name": "net", "plugins": [bridge, portmap]})
    rows = checks(node, code=0)
    for version in versions(family):
        for check in ("gateway", "neighbour", "from node", "way out", "port: node", "reuse", "MTU"):
            assert rows[f"{check}/{version}"]["state"] == "ok", rows
        for check in ("port: neighbour", "port: itself", "port: outside"):
            assert rows[f"{check}/{version}"]["state"] == "ok", rows
        assert "masqueraded" in rows[f"way out/{version}"]["text"]
    if 4 in versions(family):
        assert rows["port: localhost/4"]["state"] == "ok"
    assert {"attach", "detach"} <= states(rows, "ok")
    require_nothing_left(node)


def test_what_a_person_sees(node: Node) -> None:
    node.network("net", "10.81.0.0/24", PORTMAP, ipMasq=True, hairpinMode=True)
    node.host.exec(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    code, text = node.person("test", "net")
    for line in text.splitlines():
        assert len(line) <= COLUMNS, line
    assert re.sub(r":\d{4,5} ", ":40000 ", text) == (
        "✓ attach                 bridge, portmap: 10.81.0.2 and 10.81.0.3\n"
        "✓ before           IPv4  net.ipv4.ip_forward was 0: the first ADD has set it,\n"
        "                         and it stays (sysctl -w net.ipv4.ip_forward=0 puts it\n"
        "                         back)\n"
        "✓ loopback         IPv4  127.0.0.1 answers\n"
        "✓ loopback         IPv6  ::1 answers\n"
        "✓ gateway          IPv4  10.81.0.1 answers\n"
        "✓ neighbour        IPv4  10.81.0.3 answers\n"
        "✓ from node        IPv4  10.81.0.2 answers\n"
        "– uplink           IPv4  the node has no default route with an address\n"
        "✓ way out          IPv4  forwarded, masqueraded\n"
        "✓ port: node       IPv4  10.81.0.1:40000 leads to the container, TCP and UDP\n"
        "✓ port: localhost  IPv4  127.0.0.1:40000 leads to the container, TCP and UDP\n"
        "✓ port: neighbour  IPv4  10.81.0.1:40000 leads to the container, TCP and UDP\n"
        "✓ port: itself     IPv4  10.81.0.1:40000 leads to the container, TCP and UDP\n"
        "✓ port: outside    IPv4  192.0.2.1:40000 leads to the container, TCP and UDP\n"
        "✓ MTU              IPv4  1500 bytes reach the neighbour, the gateway and a host\n"
        "                         outside; more is refused\n"
        "– DNS                    the result names no server\n"
        "✓ reuse            IPv4  10.81.0.3 of a new container answers: nothing lost\n"
        "✓ detach                 DEL has left nothing (links, reservations, files,\n"
        "                         rules)\n"
        "net: 16 passed, 0 failed, 2 not tested\n"
    )
    assert code == 0


def test_a_failure_that_a_person_sees(node: Node) -> None:
    node.network("net", "10.81.0.0/24", saboteur("ip link set br-net down"))
    code, text = node.person("test", "net")
    assert code == 1
    assert (
        "✗ gateway          IPv4  10.81.0.1 does not answer: br-net is down; nothing\n"
        "                         answers ARP for 10.81.0.1\n"
        "                       > ip link set br-net up; `ip address` shows whether\n"
        "                       > 10.81.0.1 is where it should be, `bridge link` whether\n"
        "                       > frames get there\n"
    ) in text
    assert "\nnet: " in text
    names = node.run("test", "net", "-o", "name").stdout.splitlines()
    assert "gateway/IPv4" in names
    assert "detach" not in names
    wide = node.run("test", "net", "-o", "wide").stdout.splitlines()
    assert wide[0].split() == ["CHECK", "FAMILY", "RESULT", "REMEDY"]
    assert any("ip link set br-net up" in line for line in wide)


@pytest.mark.parametrize("family", [V6, DUAL], ids=str)
def test_ptp_that_works(node: Node, family: Family) -> None:
    ptp = {"type": "ptp", "ipMasq": True, "ipam": family.host_local(node.data_dir)}
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [ptp, PORTMAP]})
    rows = checks(node, code=0)
    for version in versions(family):
        for check in ("gateway", "neighbour", "way out", "port: node", "port: itself", "MTU"):
            assert rows[f"{check}/{version}"]["state"] == "ok", rows
    require_nothing_left(node)


def test_macvlan_has_no_way_to_its_node(node: Node) -> None:
    """Where the kernel's design keeps packets apart, nothing has failed."""
    node.host.ip_batch(
        "link add m0 type veth peer m1", "link set m0 up", "link set m1 up",
        "address add 10.81.0.1/24 dev m0",
    )  # fmt: skip
    ipam = V4.host_local(node.data_dir) | {"ranges": [[{"subnet": "10.81.0.0/24"}]]}
    macvlan = {"type": "macvlan", "master": "m0", "ipam": ipam}
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [macvlan]})
    rows = checks(node, code=0)
    assert {"neighbour/4", "MTU/4", "reuse/4", "detach"} <= states(rows, "ok")
    for check in ("from node/4", "gateway/4", "uplink/4", "way out/4"):
        assert rows[check]["state"] == "skipped"
        assert "hands no packets to its own master" in rows[check]["text"]
    private = {**macvlan, "mode": "private"}
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [private]})
    assert "as mode private says" in checks(node, code=0)["neighbour/4"]["text"]
    shim = {**macvlan, "hostShim": True}
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [shim]})
    rows = checks(node)
    assert {"from node/4", "gateway/4"} <= states(rows, "ok")


def test_loopback_only(node: Node) -> None:
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "loopback"}]})
    rows = checks(node, code=0)
    assert set(rows) == {"attach", "loopback/4", "loopback/6", "detach"}
    node.write(
        {
            "cniVersion": "1.0.0",
            "name": "net",
            "plugins": [{"type": "loopback"}, saboteur(f"{INSIDE} ip link set lo down")],
        }
    )
    assert "loopback/4" in states(checks(node, code=1), "failed")


def test_host_device_is_given_back_as_it_was(node: Node) -> None:
    node.host.ip_batch("link add d0 type veth peer d1", "link set d0 up", "link set d1 up")
    ipam = V4.host_local(node.data_dir)
    device = {"type": "host-device", "device": "d0", "ipam": ipam}
    node.write({"cniVersion": "1.0.0", "name": "net", "plugins": [device]})
    rows = checks(node, code=0)
    assert rows["neighbour/4"]["text"] == "there is one device"
    assert "UP" in links(node.host)["d0"]["flags"]
    node.host.ip("address", "add", "10.5.0.1/24", "dev", "d0")
    done = node.run("test", "net", "--json")
    assert done.returncode == 5
    assert "10.5.0.1/24" in json.loads(done.stdout)["details"]
    assert "10.5.0.1" in node.host.ip("address", "show", "dev", "d0")


# --- networks that are broken ---------------------------------------------------------------------

# name: keys of the bridge, the saboteur, and rows that fail, with words of their text and remedy
BROKEN: dict[str, tuple[Json, Json, list[tuple[str, str, str]]]] = {
    "the bridge is down": (
        {}, saboteur("ip link set br-net down"),
        [
            ("gateway/4", "br-net is down", "ip link set br-net up"),
            ("neighbour/4", "br-net is down", "ip link set br-net up"),
        ],
    ),
    "the ports of the bridge are down": (
        {}, saboteur(EACH_PORT.format("ip link set $p down")),
        [("from node/4", "its end on the node, is down", "ip link set veth")],
    ),
    "the gateway's address is gone": (
        {}, saboteur("ip address flush dev br-net"),
        [("gateway/4", "of no link of this node", "ip address show")],
    ),
    "frames of full size are lost": (
        {}, saboteur(EACH_PORT.format("ip link set $p mtu 1000")),
        [("MTU/4", "1500 bytes to the neighbour are lost", "smaller mtu")],
    ),
    "forwarding is off": (
        {}, saboteur("sysctl -qw net.ipv4.ip_forward=0"),
        [("way out/4", "ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1")],
    ),
    "the packet filter was flushed": (
        {"ipMasq": True}, saboteur("nft flush ruleset"),
        [
            ("way out/4", "though ipMasq is set", "cni reload"),
            ("port: node/4", "are not there", "cni reload"),
            ("port: localhost/4", "are not there", "cni reload"),
            ("port: outside/4", "are not there", "cni reload"),
        ],
    ),
    "ports are not masqueraded for containers": (
        {}, saboteur("nft flush chain ip cni_hostport masquerade_0x2000"),
        [
            ("port: neighbour/4", "another way", "cni reload"),
            ("port: itself/4", "does not lead to the container", "cni"),
        ],
    ),
    "isolation was lost": (
        {"portIsolation": True}, saboteur(EACH_PORT.format("bridge link set dev $p isolated off")),
        [("neighbour/4", "though the network has portIsolation", "bridge -d link")],
    ),
    "a neighbour keeps the old MAC": (
        {},
        saboteur(
            "echo $CNI_NETNS >> $STATE/seen; [ $(wc -l < $STATE/seen) -lt 3 ] || "
            "nsenter --net=$(head -1 $STATE/seen) ip neigh replace 10.81.0.3 "
            "lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
        ),
        [("reuse/4", "still has 02:00:00:00:00:99", "announce")],
    ),
    "DEL leaves a link": (
        {}, saboteur(f"{INSIDE} ip link add stays type veth peer stays2"),
        [("detach", "the link stays in the container", "DEL")],
    ),
    "DEL fails": (
        {}, saboteur("", "echo no way >&2; exit 1"),
        [("detach", "no way", "cni gc net")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_found(node: Node, case: str) -> None:
    keys, sabotage, wanted = BROKEN[case]
    if BRIDGE_FRAMES_PASS_RULES.exists():  # which would also bring answers back to neighbours
        node.host.set_sysctl("net/bridge/bridge-nf-call-iptables", 0)
    node.network("net", "10.81.0.0/24", PORTMAP, sabotage, **keys)
    rows = checks(node, code=1)
    for name, text, remedy in wanted:
        row = rows[name]
        assert row["state"] == "failed", row
        assert text in row["text"]
        assert remedy in row["remedy"]


def test_each_case_is_broken_by_its_sabotage(node: Node) -> None:
    """What the cases above have in common works."""
    node.network("net", "10.81.0.0/24", PORTMAP, saboteur(), ipMasq=True, hairpinMode=True)
    assert states(checks(node, code=0), "failed") == set()


@pytest.mark.parametrize("frames_pass_rules", [True, False])
def test_a_forward_chain_that_drops(node: Node, frames_pass_rules: bool) -> None:
    node.host.exec(["nft", "add table inet own; add chain inet own forwarding "
                    "{ type filter hook forward priority 0; policy drop; }"])  # fmt: skip
    if BRIDGE_FRAMES_PASS_RULES.exists():
        node.host.set_sysctl("net/bridge/bridge-nf-call-iptables", int(frames_pass_rules))
    elif frames_pass_rules:
        pytest.skip("needs br_netfilter: modprobe br_netfilter")
    node.network("net", "10.81.0.0/24", PORTMAP, {"type": "firewall"}, hairpinMode=True)
    rows = checks(node, code=1)
    wrong = {"way out/4", "neighbour/4"} if frames_pass_rules else {"way out/4"}
    assert states(rows, "failed") == wrong
    for each in wrong:
        assert "the chain forwarding of the table inet own, which is of an" in rows[each]["text"]
        assert "add the plugin firewall" not in rows[each]["remedy"]
        assert "nft list chain inet own forwarding" in rows[each]["remedy"]
    # What depends on it was not measured.
    assert rows["port: outside/4"]["state"] == "skipped"
    assert rows["port: node/4"]["state"] == "ok"
    assert (rows["reuse/4"]["state"] == "skipped") == frames_pass_rules


def test_iptables_that_drops(node: Node) -> None:
    """There the plugin firewall helps."""
    node.host.exec(["iptables", "-P", "FORWARD", "DROP"])
    node.network("net", "10.81.0.0/24")
    row = checks(node, code=1)["way out/4"]
    assert "the chain FORWARD of the table ip filter drops what nothing accepts" in row["text"]
    assert "add the plugin firewall" in row["remedy"]
    node.network("net", "10.81.0.0/24", {"type": "firewall"})
    checks(node, code=0)


def test_a_packet_filter_before_the_uplink(node: Node, outside: Netns) -> None:
    connect(node.host, outside)
    node.host.ip("route", "add", "default", "via", "198.51.100.2")
    node.network("net", "10.81.0.0/24")
    rows = checks(node, code=0)
    assert rows["uplink/4"]["text"] == "198.51.100.1 of uplink answers"
    node.host.exec(["nft", "add table ip own; add chain ip own incoming "
                    "{ type filter hook input priority 0; }; add rule ip own incoming "
                    "ip daddr 198.51.100.1 drop"])  # fmt: skip
    assert "198.51.100.1 of uplink" in checks(node, code=1)["uplink/4"]["text"]


def test_an_mtu_above_that_of_the_way_out(node: Node, outside: Netns) -> None:
    connect(node.host, outside)
    node.host.ip_batch("link set uplink mtu 1400", "route add default via 198.51.100.2")
    node.network("net", "10.81.0.0/24")
    row = checks(node, code=1)["MTU/4"]
    assert "uplink takes 1400" in row["text"]
    assert '"mtu": 1400' in row["remedy"]
    node.network("net", "10.81.0.0/24", mtu=1400)
    node.host.ip("link", "delete", "br-net")
    assert checks(node, code=0)["MTU/4"]["state"] == "ok"


def test_hairpin_mode_that_is_off(node: Node) -> None:
    if not BRIDGE_FRAMES_PASS_RULES.exists():
        pytest.skip("needs br_netfilter; CI's kernel has it")
    node.network("net", "10.81.0.0/24", PORTMAP)
    node.host.set_sysctl("net/bridge/bridge-nf-call-iptables", 1)
    row = checks(node, code=1)["port: itself/4"]
    assert "sends no frame back" in row["text"]
    assert "hairpinMode" in row["remedy"]
    node.network("net", "10.81.0.0/24", PORTMAP, hairpinMode=True)
    assert checks(node, code=0)["port: itself/4"]["state"] == "ok"


def test_ports_that_are_not_for_containers(node: Node) -> None:
    """snat is false because somebody wanted that."""
    node.network("net", "10.81.0.0/24", {**PORTMAP, "snat": False})
    rows = checks(node, code=0)
    for check in ("port: localhost/4", "port: itself/4"):
        assert rows[check]["state"] == "skipped"
        assert "snat is false" in rows[check]["text"]
    assert rows["port: outside/4"]["state"] == "ok"


def test_isolated_containers(node: Node) -> None:
    node.network("net", "10.81.0.0/24", portIsolation=True)
    row = checks(node, code=0)["neighbour/4"]
    assert (row["state"], "as portIsolation says" in row["text"]) == ("ok", True)
    node.network("net", "10.81.0.0/24", {"type": "firewall", "ingressPolicy": "isolated"})
    row = checks(node, code=0)["neighbour/4"]
    assert (row["state"], "as ingressPolicy isolated says" in row["text"]) == ("ok", True)


def test_dns_servers(node: Node) -> None:
    dns = {"nameservers": ["10.81.0.1", "192.168.77.77"]}
    node.network("net", "10.81.0.0/24", dns=dns)
    done = node.run("test", "net", "--json")
    rows = [each for each in json.loads(done.stdout)["checks"] if each["check"] == "DNS"]
    assert [each["state"] for each in rows] == ["failed", "skipped"]
    assert "refused" in rows[0]["text"]
    assert "--to 192.168.77.77" in rows[1]["text"]
    server = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind(('', 53)); print(flush=True)\n"
        "while True:\n"
        "    data, peer = s.recvfrom(512); s.sendto(data, peer)\n"
    )
    node.host.popen(["python3", "-c", server])
    wait_until(lambda: ":53 " in node.host.exec(["ss", "-lun"]).stdout, "the server listens")
    rows = [each for each in checks(node, code=0).values() if each["check"] == "DNS"]
    assert {each["state"] for each in rows} == {"ok"}


# --- what cannot be attached ----------------------------------------------------------------------


def test_an_add_that_fails(node: Node) -> None:
    node.network("net", "10.81.0.0/24", saboteur("echo the disk is on fire >&2; exit 1"))
    rows = checks(node, code=1)
    assert set(rows) - {"before/4"} == {"attach", "detach"}
    assert 'plugin type="saboteur" failed (add): the disk is on fire' in rows["attach"]["text"]
    assert rows["detach"]["state"] == "ok"
    require_nothing_left(node)
    assert node.leases("net") == {}


@pytest.mark.parametrize("taken", [0, 1])
def test_a_range_that_is_full(node: Node, netns: Callable[..., Netns], taken: int) -> None:
    """Of two addresses that it needs there is one, or none."""
    conf = node.network("net", "10.81.0.0/30", PORTMAP, ipMasq=True)
    pods = [node.start(conf, netns("pod"), f"default/web-{number}") for number in range(taken)]
    rows = checks(node, code=1)
    assert rows["attach"]["state"] == "failed"
    assert "no IP addresses available" in rows["attach"]["text"]
    if not taken:
        assert rows["neighbour/4"]["text"] == "no second container could be attached"
        assert rows["gateway/4"]["state"] == "ok"
    assert sorted(node.leases("net").values()) == sorted(pod.cid for pod in pods)


# --- what the test mends by itself ----------------------------------------------------------------

# What is done to the node, and what the test says of it. `BRIDGE` is the network's.
TAKEN = {
    "forwarding": (4, "sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward is 0"),
    "IPv6 forwarding": (
        6, "sysctl -qw net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding is 0",
    ),
    "bridge": (4, "ip link set BRIDGE down", "the bridge BRIDGE is down"),
    "gateway": (4, "ip address del 10.81.0.1/24 dev BRIDGE", "lacks the address 10.81.0.1/24"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKEN)
def test_what_its_own_add_mends_is_said(node: Node, container: Netns, what: str) -> None:
    """Containers were cut off; since the ADD of the test they are not, and somebody should know."""
    family, done, words = TAKEN[what]
    done, words = done.replace("BRIDGE", "br-net"), words.replace("BRIDGE", "br-net")
    conf = node.network("net", "10.81.0.0/24", ipMasq=True)
    conf["plugins"][0]["ipam"]["ranges"].append([{"subnet": "fd00:81::/64"}])
    node.start(node.write(conf), container)
    assert not [each for each in checks(node, code=0) if each.startswith("before")]
    node.host.exec(done.split())
    rows = checks(node, code=1)
    (row,) = [each for name, each in rows.items() if name == f"before/{family}"]
    assert row["state"] == "failed"
    assert words in row["text"]
    assert "before the test, whose ADD has set it" in row["text"]
    assert {name.partition("/")[0] for name in states(rows, "failed")} == {"before"}
    assert not [each for each in checks(node, code=0) if each.startswith("before")]


@pytest.mark.parametrize("what", ["forwarding", "bridge"])
def test_what_its_own_add_sets_where_nobody_is_attached(node: Node, what: str) -> None:
    """A first ADD switches on what was never on; later nothing should be off."""
    node.network("net", "10.81.0.0/24", ipMasq=True)
    node.host.exec(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    row = checks(node, code=0)["before/4"]
    assert row["state"] == "ok"
    assert "net.ipv4.ip_forward was 0: the first ADD has set it, and it stays" in row["text"]
    _, done, _ = TAKEN[what]
    node.host.exec(done.replace("BRIDGE", "br-net").split())
    rows = checks(node, code=1)
    (name,) = states(rows, "failed")
    assert name.startswith("before")
    expected = "net.ipv4.ip_forward was 0" if what == "forwarding" else "the bridge br-net was down"
    assert rows[name]["text"] == f"{expected} before the test, whose ADD has set it"


# --- harmless -------------------------------------------------------------------------------------


def test_what_is_attached_is_not_disturbed(node: Node, container: Netns) -> None:
    conf = node.network("net", "10.81.0.0/24", PORTMAP, ipMasq=True, hairpinMode=True)
    ports = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    pod = node.start(conf, container, capabilities=ports)

    def state() -> list[str]:
        rules = node.host.exec(["nft", "list", "ruleset"]).stdout
        rules = re.sub(r"packets \d+ bytes \d+", "", rules)
        return [
            rules,
            node.host.ip("-o", "link", "show"),
            # which it ceases to be by itself, a moment after the ADD
            container.ip("-o", "address").replace(" tentative", ""),
            str(node.leases("net")),
            node.host.ip("route"),
            node.host.ip("rule"),
        ]

    before = state()
    checks(node, code=0)
    assert state() == before
    node.ok("check", "net", "--id", pod.cid)
    ping(container, "10.81.0.1")


def test_nothing_is_sent_beyond_the_node(node: Node, outside: Netns) -> None:
    """But to what the operator names."""
    connect(node.host, outside)
    node.host.ip("route", "add", "default", "via", "198.51.100.2")
    node.network("net", "10.81.0.0/24", PORTMAP, ipMasq=True, dns={"nameservers": ["8.8.8.8"]})
    # fmt: off
    node.host.exec(["nft", "add table inet seen; add counter inet seen out; "
                    "add chain inet seen post { type filter hook postrouting priority 300; }; "
                    "add rule inet seen post oifname uplink ip version 4 counter name out"])
    # fmt: on

    def sent() -> int:
        found = re.search(r"packets (\d+)", node.host.exec(["nft", "list", "counters"]).stdout)
        assert found
        return int(found[1])

    checks(node)
    assert sent() == 0
    rows = checks(node, "--to", "198.51.100.2")
    assert rows["--to/4"]["state"] == "ok"
    assert sent() > 0
    outside.ip("link", "set", "lo", "down")
    outside.ip("link", "set", "node", "down")
    assert checks(node, "--to", "198.51.100.2")["--to/4"]["state"] == "failed"


def test_what_the_runtime_would_give_is_given_to_one(node: Node) -> None:
    """Ports, addresses and a MAC are of the first container: two cannot have the same."""
    capabilities = {"portMappings": True, "mac": True, "ips": True}
    node.network("net", "10.81.0.0/24", PORTMAP, capabilities=capabilities, hairpinMode=True)
    ports = [{"hostPort": 8099, "containerPort": 80, "protocol": "tcp"}]
    given = {"portMappings": ports, "mac": "02:00:00:00:00:07", "ips": ["10.81.0.77/24"]}
    done = node.run("test", "net", "--json", CAP_ARGS=json.dumps(given))
    value = json.loads(done.stdout)
    assert value["ok"], value
    rows = {each["check"]: each for each in value["checks"]}
    assert rows["attach"]["text"].endswith("10.81.0.77 and 10.81.0.78")
    assert (rows["port"]["state"], "CAP_ARGS" in rows["port"]["text"]) == ("skipped", True)
    done = node.run("test", "net", "--json", CNI_ARGS="IgnoreUnknown=1;IP=10.81.0.88")
    assert json.loads(done.stdout)["ok"], done.stdout


def start(node: Node, ready: Path) -> Any:
    """The command, once the saboteur of its first container has written the file."""
    # Whoever runs the tests may have had signals ignored, and children inherit that.
    argv = ["env", "--default-signal", *node.argv("test", "net")]
    child = node.host.popen(argv, env=node.env, cwd="/")
    wait_until(ready.exists, "the plugin runs")
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("while_it", ["attaches", "waits for packets", "detaches"])
def test_a_signal_ends_it_and_everything_goes(
    node: Node, tmp_path: Path, number: signal.Signals, while_it: str
) -> None:
    """The exit code says which signal it was, as for any program that it ends."""
    ready = tmp_path / "ready"
    slow = f"touch {ready}; sleep 0.5"
    if while_it == "waits for packets":  # the gateway answers nothing
        lost = f"test -e {ready} || nft add table ip lost; touch {ready}"
        lost += "; nft 'add chain ip lost in { type filter hook input priority 0; policy drop; }'"
        plugin = saboteur(lost)
    else:
        plugin = saboteur(slow) if while_it == "attaches" else saboteur(delete=slow)
    node.network("net", "10.81.0.0/24", PORTMAP, plugin)
    child = start(node, ready)
    child.send_signal(number)
    assert child.wait(60) == 128 + number
    node.host.exec(["nft", "delete", "table", "ip", "lost"], check=False)
    require_nothing_left(node)
    assert node.leases("net") == {}
    assert node.results == []


def test_a_hangup_that_the_caller_ignores_ends_nothing(node: Node, tmp_path: Path) -> None:
    """As under nohup(1)."""
    ready = tmp_path / "ready"
    node.network("net", "10.81.0.0/24", saboteur(f"touch {ready}; sleep 0.5"))
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *node.argv("test", "net")]
    child = node.host.popen(ignoring, env=node.env, cwd="/")
    wait_until(ready.exists, "the plugin runs")
    child.send_signal(signal.SIGHUP)
    assert child.wait(60) == 0


def test_after_a_kill_the_next_one_sweeps(node: Node, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    node.network("net", "10.81.0.0/24", PORTMAP, saboteur(f"touch {ready}; sleep 1"), ipMasq=True)
    child = start(node, ready)
    child.kill()
    child.wait(60)
    # The plugin that ran was not killed; the namespaces go when it has ended, with their links.
    wait_until(
        lambda: not [name for name in links(node.host) if name.startswith("veth")],
        "no link is left",
    )
    assert [cid for cid in node.leases("net").values() if cid.startswith("cni-test-")]
    node.network("net", "10.81.0.0/24", PORTMAP, ipMasq=True, hairpinMode=True)
    assert states(checks(node, code=0), "failed") == set()
    require_nothing_left(node)
    assert node.leases("net") == {}
    assert node.results == []


def test_after_a_kill_gc_sweeps(node: Node, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    node.network("net", "10.81.0.0/24", PORTMAP, saboteur(f"touch {ready}; sleep 1"))
    child = start(node, ready)
    child.kill()
    child.wait(60)
    wait_until(
        lambda: not [name for name in links(node.host) if name.startswith("veth")],
        "no link is left",
    )
    said = node.run("doctor", "--json", CNI_SERVER_SOCKET=str(tmp_path / "none")).stdout
    dead = [each for each in json.loads(said)["findings"] if each["mend"] == "cni gc net"]
    assert ["of dead containers" in each["text"] for each in dead] == [True]
    node.ok("gc", "net")
    require_nothing_left(node)
    assert node.leases("net") == {}
    assert node.results == []


def test_another_test_that_runs_is_left_alone(node: Node, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    done = tmp_path / "done"
    wait = f"touch {ready}; while [ ! -e {done} ]; do sleep 0.05; done"
    node.network("net", "10.81.0.0/24", saboteur(wait))
    first = start(node, ready)
    node.network("net", "10.81.0.0/24", saboteur())
    second = checks(node, code=0)
    assert second["attach"]["text"].endswith("10.81.0.3 and 10.81.0.4")
    done.touch()
    assert first.wait(60) == 0
    require_nothing_left(node)


def test_who_may_and_what_there_is(node: Node) -> None:
    node.network("net", "10.81.0.0/24")
    with tempfile.TemporaryDirectory() as where:  # other users may look into it
        Path(where).chmod(0o755)
        shutil.copy(node.bin_dir / "cni", where)
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        argv += [f"{where}/cni", "test", "net", "--json"]
        done = node.host.exec(argv, check=False, env=node.env, cwd="/")
    assert done.returncode == 6, done
    assert "as root" in json.loads(done.stdout)["details"]
    assert node.run("test", "other").returncode == 3
    assert node.run("test", "net", "--to", "nowhere").returncode == 2
    assert node.run("test", "net", "-i", "a/b").returncode == 2
    elsewhere = node.net_d.parent / "elsewhere"
    os.rename(node.net_d, elsewhere)
    assert node.run("test", "net").returncode == 3
    assert node.run("test", "net", "--conf-dir", str(elsewhere)).returncode == 0
