"""What the command line shows of a node: golden output at 80 columns, and that it is true."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness import Netns, links
from tests.harness.command_line import Node, Pod
from tests.harness.requires import requires_kernel

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
FIREWALL = {"type": "firewall"}
COLUMNS = 80


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


def mapping(host: int, container: int, protocol: str = "tcp", ip: str = "") -> dict[str, object]:
    one = {"hostPort": host, "containerPort": container, "protocol": protocol}
    return {"portMappings": [{**one, "hostIP": ip} if ip else one]}


@pytest.fixture
def pods(node: Node, go_bin_dir: Path, netns: Callable[..., Netns]) -> dict[str, Pod]:
    """One pod of our plugins, one of Go's, one that is dead, one by hand, and an empty network."""
    shop = node.network("shop", "10.81.0.0/24", PORTMAP, FIREWALL, ipMasq=True)
    node.network("spare", "10.99.0.0/28")
    made = {
        "ours": node.start(
            shop, netns("ours"), "shop/web-0", cid="5" * 64, capabilities=mapping(8080, 80)
        ),
        "go": node.start(
            shop,
            netns("go"),
            "shop/dns-0",
            cid="6" * 64,
            bin_dir=go_bin_dir,
            capabilities=mapping(53, 5353, "udp", "10.81.0.1"),
        ),
        "dead": node.start(shop, netns("dead"), "shop/old-0", cid="7" * 64),
    }
    made["dead"].netns.close()
    return made


def shown(node: Node, *args: str) -> str:
    """What a terminal of 80 columns shows, with ages and times made equal."""
    code, text = node.person(*args)
    assert code == 0, text
    for line in text.splitlines():
        assert len(line) <= COLUMNS, f"{len(line)} columns: {line}"
    text = re.sub(r" \d+[smhd](?=  )", lambda found: "0s".rjust(len(found[0])), text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "2026-11-29T12:00:00Z", text)


def test_ls(node: Node, pods: dict[str, Pod]) -> None:
    assert shown(node, "ls") == (
        "NAME   PLUGINS                  RANGE                   USED  ATTACHED\n"
        "shop   bridge,portmap,firewall  10.81.0.1-10.81.0.254  3/253         3\n"
        "spare  bridge                   10.99.0.1-10.99.0.14    0/13         0\n"
    )
    found = {each["name"]: each for each in node.json("ls")}
    assert found["shop"]["ranges"] == [
        {"range": "10.81.0.1-10.81.0.254", "size": 253, "used": 3, "free": 250, "dead": 1}
    ]
    assert node.ok("ls", "-o", "name") == "shop\nspare\n"
    (node.net_d / "10-shop.conflist").unlink()
    found = {each["name"]: each for each in node.json("ls")}
    assert (found["shop"]["file"], found["shop"]["attachments"]) == ("", 3)


def test_ls_says_which_file_is_broken(node: Node) -> None:
    node.network("net", "10.81.0.0/24")
    (node.net_d / "05-bad.conflist").write_text('{"name": 1}')
    done = node.run("ls")
    assert done.returncode == 0
    assert "05-bad.conflist" in done.stderr
    assert "net" in done.stdout


def test_ps(node: Node, pods: dict[str, Pod]) -> None:
    assert shown(node, "ps") == (
        "NETWORK  CONTAINER   IFNAME  ADDRESS       PORTS                   SINCE  NETNS\n"
        "shop     shop/web-0  eth0    10.81.0.2/24  8080->80/tcp               0s  alive\n"
        "shop     shop/dns-0  eth0    10.81.0.3/24  10.81.0.1:53->5353/udp     0s  alive\n"
        "shop     shop/old-0  eth0    10.81.0.4/24  -                          0s  gone\n"
    )
    found = {each["pod"]: each for each in node.json("ps", "shop")}
    web = found["shop/web-0"]
    assert (web["containerID"], web["ifname"]) == ("5" * 64, "eth0")
    assert web["netns"] == pods["ours"].netns.path
    assert [port["hostPort"] for port in web["ports"]] == [8080]
    assert {each["netnsState"] for each in found.values()} == {"alive", "gone"}
    assert yaml.safe_load(node.ok("ps", "-o", "yaml")) == node.json("ps")
    assert node.ok("ps", "-o", "name").splitlines()[0] == f"shop/{'5' * 64}/eth0"
    wide = node.ok("ps", "-o", "wide").splitlines()
    assert "5" * 64 in wide[1]
    assert "result cache,intent,reservation,link" in wide[1]
    assert node.json("ps", "spare") == []
    assert node.run("ps", "nothing").returncode == 3


def test_ps_knows_what_a_person_attached(node: Node, container: Netns) -> None:
    node.network("net", "10.81.0.0/24")
    node.ok("add", "net", container.path)
    (one,) = node.json("ps")
    assert one["containerID"].startswith("cnitool-")
    node.ok("del", "net", container.path)
    assert node.json("ps") == []


def test_ports(node: Node, pods: dict[str, Pod]) -> None:
    assert shown(node, "ports") == (
        "PORT              TO              NETWORK  CONTAINER   BACKEND   STATE\n"
        "10.81.0.1:53/udp  10.81.0.3:5353  shop     shop/dns-0  iptables  published\n"
        "8080/tcp          10.81.0.2:80    shop     shop/web-0  nftables  published\n"
    )
    (one,) = node.json("ports", "8080")
    assert (one["containerID"], one["containerPort"]) == ("5" * 64, 80)
    assert node.run("ports", "8081").returncode == 3
    assert node.run("ports", "8080/udp").returncode == 3
    assert node.run("ports", "http").returncode == 2


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_ports_without_rules_and_of_the_dead(
    node: Node, netns: Callable[..., Netns], container: Netns, backend: str
) -> None:
    conf = node.network("net", "10.81.0.0/24", {**PORTMAP, "backend": backend})
    gone = netns("gone")
    node.start(conf, gone, "a/gone", capabilities=mapping(81, 80))
    node.start(conf, container, "a/alive", capabilities=mapping(82, 80))
    gone.close()
    states = {each["pod"]: each["state"] for each in node.json("ports")}
    assert states == {"a/gone": "dead", "a/alive": "published"}
    node.host.exec(["nft", "flush", "ruleset"])
    states = {each["hostPort"]: each["state"] for each in node.json("ports")}
    assert states == {81: "dead", 82: "no rule"}
    node.ok("reload")
    states = {each["hostPort"]: each["state"] for each in node.json("ports")}
    assert states[82] == "published"


def test_ports_of_ipv6(node: Node, container: Netns) -> None:
    conf = node.network("net", "fd00:81::/64", PORTMAP)
    node.start(conf, container, capabilities=mapping(8080, 80))
    (one,) = node.json("ports")
    assert (one["containerIP"], one["state"]) == ("fd00:81::2", "published")
    assert "[fd00:81::2]:80" in shown(node, "ports")


def test_rules(node: Node, pods: dict[str, Pod]) -> None:
    """Exactly what the packet filter has for each: nothing of another container."""
    for name in ("ours", "go"):
        pod = pods[name]
        found = node.json("rules", pod.cid[:5])
        assert {each["containerID"] for each in found} == {pod.cid}
        texts = [each["text"] for each in found]
        assert any("MASQUERADE" in text for text in texts)
        assert any(pod.address in text for text in texts)
        others = [each for each in pods.values() if each is not pod]
        assert not [text for text in texts for other in others if other.cid in text]
        assert not [
            text
            for text in texts
            for other in others
            if re.search(rf"{re.escape(other.address)}(?!\d)", text)
        ]
    by = {each["foundBy"] for each in node.json("rules")}
    assert by == {"key", "container id", "chain", "address"}
    text = shown(node, "rules", "shop/dns-0")
    assert text.startswith("eth0 of shop/dns-0 in network shop\n  iptables filter\n")
    assert "--to-destination 10.81.0.3:5353\n" in text
    assert node.run("rules", "nobody").returncode == 3


def test_ipam_of_all_networks(node: Node, pods: dict[str, Pod]) -> None:
    assert shown(node, "ipam") == (
        "NETWORK  RANGE                  SIZE  USED  FREE  DEAD  USE\n"
        "shop     10.81.0.1-10.81.0.254   253     3   250     1   1%\n"
        "spare    10.99.0.1-10.99.0.14     13     0    13     0   0%\n"
    )
    assert shown(node, "ipam", "list") == (
        "NETWORK  ADDRESS    CONTAINER   IFNAME  SINCE                 NAMESPACE\n"
        "shop     10.81.0.2  shop/web-0  eth0    2026-11-29T12:00:00Z  alive\n"
        "shop     10.81.0.3  shop/dns-0  eth0    2026-11-29T12:00:00Z  alive\n"
        "shop     10.81.0.4  shop/old-0  eth0    2026-11-29T12:00:00Z  gone\n"
    )
    first = node.json("ipam", "list")[0]
    assert (first["network"], first["pod"], first["netns"]) == (
        "shop",
        "shop/web-0",
        pods["ours"].netns.path,
    )
    assert node.json("ipam", "release", "shop", "10.81.0.4", "--dry-run")[0]["pod"] == "shop/old-0"
    assert node.run("ipam", "release", "shop", "10.81.0.2").returncode == 5
    assert node.ok("ipam", "release", "shop", "10.81.0.4").startswith("released 10.81.0.4")
    assert set(node.leases("shop")) == {"10.81.0.2", "10.81.0.3"}


def test_inspect_a_container(node: Node, pods: dict[str, Pod]) -> None:
    for name, how in (("ours", "alias"), ("go", "other end of the pair")):
        pod = pods[name]
        (found,) = node.json("inspect", pod.cid[:4])
        kernel = {(each["kind"], each["where"]): each for each in found["kernel"]}
        assert kernel["link", "container"]["text"].startswith("eth0 veth ")
        addresses = [e["text"] for e in found["kernel"] if e["kind"] == "address"]
        assert pod.result["ips"][0]["address"] in addresses
        routes = [e["text"] for e in found["kernel"] if e["kind"] == "route"]
        assert "default via 10.81.0.1 dev eth0" in routes
        ends = [e for e in found["kernel"] if e["kind"] == "link" and e["where"] == "node"]
        assert [e["foundBy"] for e in ends] == [how, "master"]
        assert ends[0]["text"].split()[0] in links(node.host)
        assert ends[1]["text"].startswith("br-shop bridge")
        assert [e["address"] for e in found["reservations"]] == [pod.address]
        paths = [e["path"] for e in found["files"]]
        assert [path for path in paths if not os.path.lexists(path)] == []
        assert len(found["rules"]) == len(node.json("rules", pod.cid))
    text = shown(node, "inspect", "shop/web-0")
    assert text.startswith("eth0 of shop/web-0 in network shop\n")
    (dead,) = node.json("inspect", "shop/old-0")
    assert dead["netnsState"] == "gone"
    assert not [each for each in dead["kernel"] if each["where"] == "container"]


def test_inspect_what_tuning_and_sbr_made(node: Node, container: Netns) -> None:
    conf = node.network(
        "net",
        "10.81.0.0/24",
        {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}},
        {"type": "sbr"},
    )
    pod = node.start(conf, container)
    (found,) = node.json("inspect", pod.cid)
    assert found["sysctls"] == [
        {"name": "net/ipv4/conf/eth0/log_martians", "value": "1", "before": "0"}
    ] or found["sysctls"] == [
        {"name": "net.ipv4.conf.eth0.log_martians", "value": "1", "before": "0"}
    ]
    rules = [each["text"] for each in found["kernel"] if each["kind"] == "policy rule"]
    assert [text for text in rules if "from 10.81.0.2 lookup" in text]


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_inspect_says_of_the_kernel_what_ip_says(node: Node, container: Netns, family: str) -> None:
    """Links, addresses and routes of the container; a route of the node to it."""
    subnet = {"-4": "10.81.0.0/24", "-6": "fd00:81::/64"}[family]
    ipam = {"type": "host-local", "dataDir": str(node.data_dir), "ranges": [[{"subnet": subnet}]]}
    ipam["routes"] = [{"dst": "0.0.0.0/0" if family == "-4" else "::/0"}]
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "ipam": ipam}]}
    pod = node.start(node.write(conf), container)
    (found,) = node.json("inspect", pod.cid)

    def texts(kind: str, where: str) -> set[str]:
        things = [
            each for each in found["kernel"] if (each["kind"], each["where"]) == (kind, where)
        ]
        return {each["text"] for each in things}

    def said(what: str, *, ns: Netns = container, dev: str = "eth0") -> list[dict[str, Any]]:
        out = ns.exec(["ip", "-j", "-d", family, what, "show", "dev", dev]).stdout
        return list(json.loads(out))

    (eth0,) = said("link")
    text = f"eth0 veth {eth0['address']} mtu {eth0['mtu']} up"
    assert [each for each in texts("link", "container") if each.startswith(text)]
    of_family = {
        each for each in texts("address", "container") if (":" in each) == (family == "-6")
    }
    assert of_family == {
        f"{one['local']}/{one['prefixlen']}" for one in said("addr")[0]["addr_info"]
    }

    def destinations(where: str) -> set[str]:
        found = {text.split()[0] for text in texts("route", where)}
        ours = {each for each in found if (":" in each) == (family == "-6") or each == "default"}
        return {each.removesuffix("/32").removesuffix("/128") for each in ours}

    assert destinations("container") == {one["dst"] for one in said("route")}
    (outside,) = [name for name in links(node.host) if name.startswith("veth")]
    to_it = {one["dst"] for one in said("route", ns=node.host, dev=outside)}
    assert destinations("node") == to_it


def test_inspect_a_network(node: Node, pods: dict[str, Pod]) -> None:
    found = node.json("inspect", "shop")
    assert [plugin["type"] for plugin in found["configuration"]] == [
        "bridge",
        "portmap",
        "firewall",
    ]
    assert len(found["attachments"]) == 3
    assert found["links"][0] == {
        "name": "br-shop",
        "kind": "bridge",
        "addresses": ["10.81.0.1/24"],
    }
    shown(node, "inspect", "shop")
    assert node.run("inspect", "nothing").returncode == 3


def test_graph(node: Node, pods: dict[str, Pod], container: Netns) -> None:
    ends = {
        pod.cid: node.json("graph")["segments"][0]["attachments"][at]["hostInterface"]
        for at, pod in enumerate((pods["ours"], pods["go"]))
    }
    text = shown(node, "graph").partition("\n")[2]
    assert text == (
        "├─ br-shop  bridge  10.81.0.1/24\n"
        f"│  ├─ {ends['5' * 64]} ── eth0  shop/web-0  10.81.0.2/24  shop  8080->80/tcp\n"
        f"│  └─ {ends['6' * 64]} ── eth0  shop/dns-0  10.81.0.3/24  shop  10.81.0.1:53->5353/…\n"
        "└─ not there any more\n"
        "   └─ eth0  shop/old-0  10.81.0.4/24  shop  (gone)\n"
    )
    dot = node.ok("graph", "-o", "dot")
    assert dot.startswith("graph cni {\n")
    assert dot.count(" -- ") == 5
    path = node.net_d / "node.svg"
    node.ok("graph", "shop", "-o", "svg", "--to", str(path))
    drawing = ET.parse(path).getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    labels = [each.text or "" for each in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert any("shop/web-0" in label for label in labels)
    assert node.run("graph", "-o", "png").returncode == 2


def test_graph_of_a_routed_container(node: Node, container: Netns) -> None:
    ipam = {"type": "host-local", "dataDir": str(node.data_dir), "subnet": "10.83.0.0/24"}
    conf = {"cniVersion": "1.0.0", "name": "p2p", "plugins": [{"type": "ptp", "ipam": ipam}]}
    pod = node.start(node.write(conf), container)
    (segment,) = node.json("graph")["segments"]
    assert segment["name"] == "routed by the node"
    (found,) = node.json("inspect", pod.cid)
    routes = [each for each in found["kernel"] if each["kind"] == "route"]
    assert [each["foundBy"] for each in routes if each["where"] == "node"][:1] == ["its address"]


@requires_kernel("macvlan")
def test_graph_of_a_macvlan(node: Node, container: Netns) -> None:
    node.host.ip_batch("link add up0 type veth peer name up1", "link set up0 up")
    ipam = {"type": "host-local", "dataDir": str(node.data_dir), "subnet": "10.84.0.0/24"}
    plugin = {"type": "macvlan", "master": "up0", "ipam": ipam}
    conf = {"cniVersion": "1.0.0", "name": "lan", "plugins": [plugin]}
    node.start(node.write(conf), container)
    (segment,) = node.json("graph")["segments"]
    assert (segment["name"], segment["kind"]) == ("up0", "veth")
    assert segment["attachments"][0]["kind"] == "macvlan"


def test_names_that_a_terminal_would_obey(node: Node, container: Netns) -> None:
    """CNI_ARGS are the pod's author's: shown, never obeyed, also as data."""
    conf = node.network("net", "10.81.0.0/24")
    node.start(conf, container, "a\x1b]0own\x07/b\u202ec")
    for command in (["ps"], ["graph"], ["inspect", "net"], ["ipam", "list"], ["rules"]):
        for form in ([], ["-o", "json"], ["-o", "yaml"], ["-o", "wide"], ["-o", "name"]):
            text = node.person(*command, *form)[1]
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text), ascii(text)
    assert json.loads(node.ok("ps", "--json"))[0]["pod"] == "a\x1b]0own\x07/b\u202ec"


def test_a_name_does_not_begin_a_line(node: Node, container: Netns) -> None:
    """What stands on a line of its own would be taken for what `cni` says."""
    conf = node.network("net", "10.81.0.0/24")
    pod = node.start(conf, container, "a/b\ncni: all is well")
    texts = [node.person(*command)[1] for command in (["ps"], ["inspect", pod.cid], ["graph"])]
    refused = [node.run("del", "net", pod.pod), node.run("gc", "net", "--all")]
    texts += [done.stderr for done in refused]
    assert [done.returncode for done in refused] == [5, 5]
    for text in texts:
        assert "all is well" in text
        assert not re.search("^ *cni: all", text, re.MULTILINE), text


def test_colour_only_where_it_is_wanted(node: Node, pods: dict[str, Pod]) -> None:
    assert "\x1b[32malive\x1b[0m" in node.person("ps", TERM="xterm")[1]
    assert "\x1b[31mgone\x1b[0m" in node.person("ps", TERM="xterm")[1]
    assert "\x1b" not in node.person("ps", TERM="xterm", NO_COLOR="1")[1]
    assert "\x1b" not in node.ok("ps", TERM="xterm")


@pytest.mark.parametrize("command", ["ls", "ps", "ports", "rules", "ipam", "graph"])
def test_a_node_without_anything(node: Node, command: str) -> None:
    assert node.person(command)[0] == 0
    found = node.json(command)
    assert found in ([], {"node": found["node"] if isinstance(found, dict) else "", "segments": []})


@pytest.mark.parametrize("command", ["ls", "ps", "ports", "rules", "ipam", "graph"])
def test_not_root(node: Node, pods: dict[str, Pod], command: str) -> None:
    (node.cache / "results").chmod(0o700)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    argv = [*user, *node.argv(command)]
    for parent in (node.bin_dir, node.cache, *node.bin_dir.parents, *node.cache.parents):
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = node.host.exec(argv, check=False, env=node.env, cwd="/")
    assert done.returncode == 6, done.stderr


COMPLETIONS = {
    "add s": ["shop", "spare"],
    "inspect shop/": ["shop/dns-0", "shop/old-0", "shop/web-0"],
    "del shop --id 55": ["5" * 64],
    "gc shop --keep 66": [f"{'6' * 64}/eth0"],
    "ipam release shop 10.81.0.2": ["10.81.0.2"],
    "ports 80": ["8080/tcp"],
    "rules 77": ["7" * 64],
    "graph -o s": ["svg"],
    "ls -o y": ["yaml"],
    "in": ["inspect", "install"],
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion(node: Node, pods: dict[str, Pod], line: str) -> None:
    first, *rest = line.split(" ")
    words = ["cni", first, *rest]
    if rest:
        words[-1:-1] = ["--cache-dir", str(node.cache)]
    if line == "ipam release shop 10.81.0.2":
        words = ["cni", "ipam", "release", "--cache-dir", str(node.cache), "shop", "10.81.0.2"]
    if "--id" in words or "--keep" in words or "-o" in words:
        words = ["cni", first, "--cache-dir", str(node.cache), *rest]
    env = {
        **node.env,
        "_CNI_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    done = node.host.exec([str(node.bin_dir / "cni")], env=env)
    assert [each.partition(",")[2] for each in done.stdout.splitlines()] == COMPLETIONS[line]
