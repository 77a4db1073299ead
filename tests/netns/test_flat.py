"""What a request costs does not grow with the number of containers on the node.

Nothing is timed: strace counts what a plugin asks of the kernel, and how many bytes it is answered,
with few attachments on the node and with many. Both have to be equal.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import in_lab, requires_kernel
from tests.harness.combinations import every_day
from tests.harness.contract import MASTER, plug, without_dad
from tests.harness.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.harness import Netns, Runtime

    Json = dict[str, Any]

pytestmark = pytest.mark.own_server

# The lab has one processor, and is slow; but host-local reads a directory of up to 128 files whole.
FEW, MANY = 10, 150 if in_lab() else 300
AT_A_TIME = 4
VERSION = "1.1.0"
# Calls that ask the kernel for something that may grow: netlink in and out, and directories.
CALLS = "sendto,sendmsg,recvfrom,recvmsg,getdents64,openat,open,statx,newfstatat"
# A file a process (-ff), so that no line is split; sockets with their protocols (-yy).
STRACE = ("strace", "-ff", "-qq", "-yy", "-s", "0", "-e", f"trace={CALLS}")
KILLING = ("strace", "-qq", "-o", "/dev/null", "-e")
_LINE = re.compile(r"^(\w+)\((.*)\) += (-?\d+)")
_NUMBERS = re.compile(r"\d+")
_POD = re.compile(r"pod\d{5}")


class Chain:
    """A list of plugins on one node, and the attachments that it has made."""

    def __init__(self, runtime: Runtime, make: Callable[..., Netns], plugins: list[Json]) -> None:
        self.runtime = runtime
        self.make = make
        self.plugins = plugins
        self.attached = 0

    def conf(self, plugin: Json, number: int, result: Json | None) -> Json:
        conf = {"cniVersion": VERSION, "name": "flat", **plugin}
        if plugin["type"] == "portmap":
            ports = [
                {"hostPort": 20000 + number, "containerPort": 80, "protocol": protocol}
                for protocol in ("tcp", "udp")
            ]
            conf["runtimeConfig"] = {"portMappings": ports}
        if result is not None:
            conf["prevResult"] = result
        return conf

    def grow(self, count: int) -> None:
        """Attach more containers, until there are so many."""
        pods = [(number, self.make("pod")) for number in range(self.attached, count)]
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            list(pool.map(lambda pod: self.attach(*pod), pods))
        self.attached = count

    def attach(self, number: int, container: Netns) -> None:
        result: Json | None = None
        for plugin in self.plugins:
            conf, name = self.conf(plugin, number, result), f"pod{number:05}"
            reply = self.runtime.add(plugin["type"], conf, container, container_id=name)
            result = reply.result

    def visit(self, log: Path) -> dict[str, Counter[str]]:
        """One more container comes and goes: what each verb of each plugin costs."""
        container = self.make("pod")
        costs: dict[str, Counter[str]] = {}
        result: Json | None = None
        for plugin in self.plugins:
            name = plugin["type"]
            costs[f"{name} ADD"], result = self.traced(log, "ADD", plugin, container, result)
        for verb, order in (("CHECK", 1), ("STATUS", 1), ("DEL", -1), ("DEL again", -1)):
            for plugin in self.plugins[::order]:
                given = None if verb == "STATUS" else result
                cost, _ = self.traced(log, verb.split()[0], plugin, container, given)
                costs[f"{plugin['type']} {verb}"] = cost
        container.close()
        return costs

    def gc(self, log: Path, keep: Sequence[int]) -> dict[str, Counter[str]]:
        """GC of the list that keeps these; what it costs each plugin."""
        costs = {}
        for plugin in self.plugins:
            known = {**plugin, "cni.dev/valid-attachments": valid(keep)}
            costs[plugin["type"]], _ = self.traced(log, "GC", known, None, None)
        return costs

    def killed_gc(self, plugin: str, keep: Sequence[int], call: str, number: int) -> bool:
        """GC of one plugin, killed when it enters that call for the `number`-th time; was it?"""
        conf = self.conf(next(each for each in self.plugins if each["type"] == plugin), 0, None)
        conf["cni.dev/valid-attachments"] = valid(keep)
        program = str(self.runtime.bin_dir / plugin)
        done = self.runtime.host.run(
            subprocess.run,
            [*KILLING, f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}", program],
            input=json.dumps(conf).encode(),
            capture_output=True,
            env=self.runtime.environment("GC", None, env={"CNI_SERVER": "off"}),
            cwd="/",
            timeout=120,
        )
        assert done.returncode in (0, -9, 137), done
        return done.returncode != 0

    def traced(
        self, log: Path, verb: str, plugin: Json, container: Netns | None, result: Json | None
    ) -> tuple[Counter[str], Json | None]:
        env = self.runtime.environment(
            verb, container, container_id="pod99999", env={"CNI_SERVER": "off"}
        )
        done = self.runtime.host.run(
            subprocess.run,
            [*STRACE, "-o", str(log), str(self.runtime.bin_dir / plugin["type"])],
            input=json.dumps(self.conf(plugin, 9999, result)).encode(),
            capture_output=True,
            env=env,
            cwd="/",
            timeout=120,
        )
        assert done.returncode == 0, (plugin["type"], verb, done.stdout, done.stderr)
        traces = sorted(log.parent.glob(f"{log.name}.*"))
        cost = cost_of("\n".join(trace.read_text() for trace in traces))
        for trace in traces:
            trace.unlink()
        return cost, json.loads(done.stdout) if verb == "ADD" else None


def valid(keep: Sequence[int]) -> list[Json]:
    """What a runtime says of the attachments that stay."""
    return [{"containerID": f"pod{number:05}", "ifname": "eth0"} for number in keep]


def cost_of(trace: str) -> Counter[str]:
    """How often each call was made, on what, and how many bytes came of it."""
    cost: Counter[str] = Counter()
    for line in trace.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        call, arguments, returned = match[1], match[2], int(match[3])
        if "NETLINK" in arguments:
            way = "asked" if call.startswith("send") else "answered"
            cost[f"netlink {way}"] += 1
            cost[f"netlink bytes {way}"] += max(returned, 0)
        elif call == "getdents64":
            path = _NUMBERS.sub("N", arguments.partition("<")[2].partition(">")[0])
            cost[f"entries of {path}"] += max(returned, 0)
        elif call not in ("recvmsg", "sendmsg", "recvfrom", "sendto"):
            cost["files"] += 1
    return cost


def least(*visits: dict[str, Counter[str]]) -> dict[str, Counter[str]]:
    """The least of what each verb has cost.

    It depends on what came before (host-local keeps a released file for the next reservation), and
    on a busy machine on whether an executor still takes a link down when the next one is needed.
    """
    return {
        verb: Counter({what: min(visit[verb][what] for visit in visits) for what in cost})
        for verb, cost in visits[0].items()
    }


def growth(
    few: dict[str, Counter[str]], many: dict[str, Counter[str]], attached: int = MANY - FEW
) -> list[str]:
    """What a verb has cost more of when there were so many more attachments, a line each.

    What grows with the node costs at least one call, or four bytes, for each attachment. A request
    that was repeated, because the kernel was busy, is far below that.
    """
    return [
        f"{verb}: {what}: {few[verb][what]} with few, {count} with {attached} more"
        for verb, cost in many.items()
        for what, count in sorted(cost.items())
        if count - few[verb][what]
        > (attached if "bytes" in what or "entries" in what else attached // 10)
    ]


def host_local(tmp_path: Path) -> Json:
    ranges = [[{"subnet": "10.99.0.0/16"}], [{"subnet": "fd99::/64"}]]
    return {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": ranges}


# Without an intent of the attachment nothing says that its rules are gone: a DEL that is repeated
# lists them. Rules of the reference's form have no index; nor have firewall's sets.
LISTING = {
    "rules": ("bridge DEL again: netlink", "firewall DEL again: netlink"),
    "set": ("firewall DEL again: netlink",),
}


def with_iptables(tmp_path: Path) -> list[Json]:
    bridge = {"type": "bridge", "bridge": "brflat", "isDefaultGateway": True, "ipMasq": True}
    return [
        {**bridge, "ipMasqBackend": "iptables", "ipam": host_local(tmp_path)},
        {"type": "portmap", "backend": "iptables"},
        {"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"},
    ]


# Here iptables' rules can be found by nothing but a list of all in their chain: an address or a
# port that another container may have, a rule whose handle nobody has noted. DEL and CHECK of
# masquerading and DEL of ports are not among them.
READING = (
    *("portmap ADD", "portmap CHECK", "portmap DEL again", "bridge DEL again"),
    *("firewall ADD", "firewall CHECK", "firewall STATUS", "firewall DEL"),
)
# A DEL of what host-local's index does not know reads all files, if they are 128 at most.
SMALL_DIRECTORY = ("bridge DEL again: files", "bridge DEL again: entries of")


def plugins_of(form: str, tmp_path: Path) -> list[Json]:
    bridge = {"type": "bridge", "bridge": "brflat", "isDefaultGateway": True, "ipMasq": True}
    masquerading = {"ipMasqSet": True} if form == "set" else {"ipMasqBackend": "nftables"}
    return [
        {**bridge, **masquerading, "ipam": host_local(tmp_path)},
        {"type": "portmap", "backend": "nftables"},
        {"type": "firewall", "backend": "nftables"},
        {"type": "bandwidth", "ingressRate": 10**9, "ingressBurst": 10**8}
        | {"egressRate": 10**9, "egressBurst": 10**8},
        {"type": "tuning", "dataDir": str(tmp_path / "tuning"), "mtu": 1400},
        {"type": "sbr"},
    ]


@pytest.mark.timeout(600)  # 300 pods on a busy machine
@pytest.mark.parametrize("form", every_day(["rules"], ["rules", "set"]))
def test_no_verb_costs_more_with_many_containers(
    runtime: Runtime,
    netns: Callable[..., Netns],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
) -> None:
    chain = Chain(runtime, netns, plugins_of(form, tmp_path))
    log = tmp_path / "trace"
    with serving(runtime, tmp_path_factory.mktemp("s") / "s", "--workers", "2"):
        chain.grow(FEW)
        chain.visit(log)  # what the first one makes of its own
        few = least(chain.visit(log), chain.visit(log))
        chain.grow(MANY)
        many = least(chain.visit(log), chain.visit(log))
    grown = [line for line in growth(few, many) if not line.startswith(LISTING[form])]
    assert grown == [], "\n".join(grown)


class Interfaces(Chain):
    """One plugin that makes an interface; of some, each attachment needs something of its own."""

    def __init__(
        self, runtime: Runtime, make: Callable[..., Netns], plugin: Json, tmp_path: Path
    ) -> None:
        def without_dad_in(name: str) -> Netns:
            container = make(name)
            without_dad(container)
            # nor with a link-local address, which comes when it wants, and its route with it
            container.set_sysctl("net/ipv6/conf/default/addr_gen_mode", 1)
            return container

        super().__init__(runtime, without_dad_in, [{**plugin, "ipam": host_local(tmp_path)}])
        self.prepare(9999)

    def conf(self, plugin: Json, number: int, result: Json | None) -> Json:
        own = {"vlan": {"vlanId": 1 + number % 4000}, "host-device": {"device": f"dev{number}"}}
        return super().conf({**plugin, **own.get(plugin["type"], {})}, number, result)

    def prepare(self, number: int) -> None:
        if self.plugins[0]["type"] == "host-device":
            peer = f"type veth peer name peer{number}"
            self.runtime.host.ip("link", "add", f"dev{number}", *peer.split())

    def attach(self, number: int, container: Netns) -> None:
        self.prepare(number)
        super().attach(number, container)


INTERFACES = [
    {"type": "ptp"},
    {"type": "macvlan", "master": MASTER},
    {"type": "tap"},
    {"type": "host-device"},
    {"type": "ipvlan", "master": MASTER},
    {"type": "vlan", "master": MASTER},
    {"type": "dummy"},
    {"type": "vxlan", "vni": 99, "peers": ["192.0.2.1", "192.0.2.2"], "isGateway": True},
]
OF_LAB = ("ipvlan", "vlan", "dummy", "vxlan")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "plugin",
    [
        pytest.param(
            each,
            id=each["type"],
            marks=[
                *([requires_kernel(each["type"])] if each["type"] in OF_LAB else []),
                *([pytest.mark.slow] if each["type"] != "ptp" else []),
            ],
        )
        for each in INTERFACES
    ],
)
def test_an_interface_costs_no_more_with_many_containers(
    runtime: Runtime,
    netns: Callable[..., Netns],
    outside: Netns,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    plugin: Json,
) -> None:
    plug(runtime.host, outside)
    chain = Interfaces(runtime, netns, plugin, tmp_path)
    log = tmp_path / "trace"
    with serving(runtime, tmp_path_factory.mktemp("s") / "s", "--workers", "2"):
        chain.grow(FEW)
        chain.visit(log)
        few = least(chain.visit(log), chain.visit(log))
        chain.grow(MANY)
        many = least(chain.visit(log), chain.visit(log))
    assert few[f"{plugin['type']} ADD"]["netlink bytes answered"] > 0
    assert growth(few, many) == []


@pytest.mark.timeout(600)
def test_iptables_is_asked_as_often_with_many_containers(
    runtime: Runtime,
    netns: Callable[..., Netns],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """iptables has no index, so some chains have to be read, and get longer; but each once.

    What ADD has noted is asked for alone (see READING for the rest). No file or directory of
    another attachment is looked at.
    """
    chain = Chain(runtime, netns, with_iptables(tmp_path))
    log = tmp_path / "trace"
    with serving(runtime, tmp_path_factory.mktemp("s") / "s", "--workers", "2"):
        chain.grow(FEW)
        chain.visit(log)
        few = least(chain.visit(log), chain.visit(log))
        chain.grow(3 * FEW)
        many = least(chain.visit(log), chain.visit(log))
    grown = [
        f"{verb}: {what}: {few[verb][what]} with {FEW}, {count} with {3 * FEW}"
        for verb, cost in many.items()
        for what, count in sorted(cost.items())
        if count > few[verb][what]
        and not (verb.startswith(READING) and what.endswith("answered"))
        and not f"{verb}: {what}".startswith(SMALL_DIRECTORY)
    ]
    assert grown == [], "\n".join(grown)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["rules", "set"])
def test_gc_deletes_all_in_one_request(
    runtime: Runtime,
    netns: Callable[..., Netns],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    form: str,
) -> None:
    """Few or many, what goes takes as many requests: one for links, one a table for rules.

    A request that moves many links into the group may be cut; so is a list of elements.
    """
    chain = Chain(runtime, netns, plugins_of(form, tmp_path))
    log = tmp_path / "trace"
    with serving(runtime, tmp_path_factory.mktemp("s") / "s", "--workers", "2"):
        chain.grow(44)
        few = chain.gc(log, range(9, 44))
        many = chain.gc(log, range(42, 44))
        nothing = chain.gc(log, range(42, 44))
    asked = {
        name: tuple(cost[name]["netlink asked"] for cost in (nothing, few, many)) for name in many
    }
    assert all(a_lot <= a_few for _, a_few, a_lot in asked.values()), asked
    assert all(cost["netlink bytes asked"] < 64 << 10 for cost in many.values())
    assert pods_in(chain, tmp_path) == {"pod00042", "pod00043"}


def pods_in(chain: Chain, tmp_path: Path) -> set[str]:
    """The pods that something on the node belongs to: links, rules, elements, files."""
    host, state = chain.runtime.host, Path(chain.runtime.env["CNI_STATE_DIR"])
    aliases = [each.get("ifalias", "") for each in host.ip_json("link", "show")]
    rules = host.exec(["nft", "list", "ruleset"]).stdout
    files = [path for top in (tmp_path, state) for path in top.rglob("*") if path.is_file()]
    texts = [
        path.read_text(errors="replace")
        for path in files
        if path.suffix not in (".index", ".spare")
    ]
    return set(_POD.findall("\n".join([*aliases, rules, *texts, *map(str, files)])))


GOING = ("sendto", "unlink", "unlinkat", "rename")  # calls by which a GC changes something


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "plugin",
    every_day(["bridge", "portmap"], ["bridge", "portmap", "firewall", "bandwidth", "tuning"]),
)
def test_what_a_killed_gc_leaves_the_next_one_removes(
    runtime: Runtime,
    netns: Callable[..., Netns],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    plugin: str,
) -> None:
    """Killed as it enters one of its calls: of each kind the first ones, and some later ones."""
    form = "set" if plugin == "bridge" else "rules"
    chain = Chain(runtime, netns, plugins_of(form, tmp_path))
    log, killed = tmp_path / "trace", 0
    with serving(runtime, tmp_path_factory.mktemp("s") / "s", "--workers", "2"):
        for call in GOING:
            for number in (1, 2, 3, 5, 8, 13, 21):
                first = chain.attached
                chain.grow(first + 3)
                if not chain.killed_gc(plugin, [first], call, number):
                    break
                killed += 1
                chain.gc(log, [first])
                assert pods_in(chain, tmp_path) == {f"pod{first:05}"}, (call, number)
    assert killed >= 2


def test_gc_of_ports_asks_as_often_with_many_networks(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """A network's options are a chain of the maps' table; whether one is used is asked once."""
    published = 0

    def publish_up_to(count: int) -> None:
        nonlocal published
        for number in range(published, count):
            address = f"10.{number}.0.2"
            conf = chain.conf(portmap, number, result_with(f"{address}/24")) | {
                "name": f"n{number}"
            }
            runtime.add("portmap", conf, container, container_id=f"pod{number:05}")
        published = count

    portmap: Json = {"type": "portmap", "backend": "nftables", "snat": True}
    chain = Chain(runtime, lambda *_: container, [portmap])
    log = tmp_path / "trace"
    publish_up_to(3)
    few = chain.gc(log, [])["portmap"]
    publish_up_to(30)
    many = chain.gc(log, [])["portmap"]
    assert len(nets_of(runtime.host)) >= 30
    assert many["netlink asked"] == few["netlink asked"]


def result_with(address: str) -> Json:
    """What a plugin in front of portmap gave."""
    interfaces = [{"name": "eth0", "sandbox": "/run/netns/x"}]
    return {
        "cniVersion": VERSION,
        "interfaces": interfaces,
        "ips": [{"address": address, "interface": 0}],
    }


def nets_of(host: Netns) -> set[str]:
    """portmap's chains, of which each network's options have one."""
    return set(
        re.findall(
            r"chain (net-\w+)", host.exec(["nft", "list", "table", "ip", "cni_hostport"]).stdout
        )
    )
