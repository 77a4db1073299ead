"""Rules that we write over netlink, beside those that the node's own iptables-nft writes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from errno import EEXIST, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Any

import pytest

from cni import files
from cni.kernel import netlink as nl
from cni.kernel.errors import NetlinkError, Unwritable
from cni.netfilter import iptables, iptables_netlink, nft
from cni.owner import Owner
from cni.plugins.firewall import backend_iptables
from cni.plugins.firewall.want import Ingress
from cni.plugins.portmap import iptables_rules as _portmap_iptables
from cni.plugins.portmap.want import Port
from cni.plugins.portmap.want import Want as PortmapWant
from cni.plugins.shared import masquerade
from cni.plugins.shared.masquerade import backend_iptables as masquerade_iptables
from cni.protocol.address import Prefix, format_ip, parse_ip
from tests.conftest import make_host
from tests.harness import Netns, Runtime, iptables_save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not iptables_netlink.is_the_tool(v6=False) or not iptables_netlink.is_the_tool(v6=True),
    reason="the node's iptables is not iptables-nft, or an older one",
)

# The chains of the hooks, and all others that a rule may lead to.
HOOKS = {"filter": ["FORWARD"], "nat": ["PREROUTING", "OUTPUT", "POSTROUTING"]}
OWNER = Owner("net", "container", "eth0")
FAMILIES = pytest.mark.parametrize("v6", [False, True], ids=["ipv4", "ipv6"])


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Sockets kept for the next call would keep the namespace alive."""
    yield
    nft.forget()


# --- every form -----------------------------------------------------------------------------------


def firewall_rules(v6: bool) -> list[str]:
    addresses = [Prefix.parse(a) for a in (("fd00::2/128",) if v6 else ("10.0.0.2/32",))]
    rules = [
        item.rule
        for policy in ("isolated", "same-bridge")
        for item in backend_iptables._isolation(Ingress(policy, "br-with-15-chrs"))
    ]
    shared = [backend_iptables._JUMP, "-A CNI-FORWARD -j CNI-ADMIN"]
    return [*shared, *rules, *backend_iptables._own_rules(addresses)]


def masquerade_rules(v6: bool) -> list[str]:
    texts = ("fd00::2/64", "fd00:1::2/61", "fd00::7/0", "fd00::1/128", "fd00::1/1", "fd00::1/127")
    if not v6:
        texts = ("10.0.0.2/24", "10.9.9.9/19", "10.0.0.7/0", "10.0.0.1/32", "10.0.0.1/1")
    prefixes = [Prefix.parse(text) for text in texts]
    fixed = {True: parse_ip("192.0.2.7"), False: parse_ip("2001:db8::7")}
    rules = [rule for each in prefixes for rule in masquerade_iptables.rules_of(OWNER, each)]
    return [*rules, masquerade_iptables.rules_of(OWNER, prefixes[0], fixed).masquerade]


def portmap_rules(v6: bool) -> list[str]:
    address = Prefix.parse("fd00::2/64" if v6 else "10.0.0.2/20")
    host_ip = parse_ip("fd00::9" if v6 else "192.0.2.9")
    ports = [
        *(Port(b"", "tcp", 8000 + n, 80) for n in range(17)),
        Port(b"", "udp", 53, 65535),
        Port(host_ip, "udp", 65535, 1),
        Port(b"", "sctp", 9, 9),
        Port(host_ip, "sctp", 9, 65535),
    ]
    rules = []
    for bit in (0, 13, 31):
        for masq_all in (False, True):
            want = PortmapWant(OWNER, [address], ports, True, masq_all, 1 << bit, "", ([], []))
            rules += _portmap_iptables.shared_rules(want)
            rules += _portmap_iptables.entry_rules(want)
            rules += _portmap_iptables.container_rules(want, address)
    long = want._replace(owner=Owner("n" * 200, "c" * 64, "eth0"))
    return [*rules, *_portmap_iptables.entry_rules(long)]


FORMS: dict[str, tuple[str, Callable[[bool], list[str]]]] = {
    "firewall": ("filter", firewall_rules),
    "masquerade": ("nat", masquerade_rules),
    "portmap": ("nat", portmap_rules),
}


def prepare(host: Netns, v6: bool, table: str, rules: list[str]) -> None:
    """The chains that the rules need, by the tool."""
    hooks = HOOKS[table]
    targets = ("ACCEPT", "DROP", "RETURN", "MASQUERADE", "MARK", "DNAT", "SNAT")
    names = dict.fromkeys(rule.split()[1] for rule in rules)
    names |= dict.fromkeys(rule.split(" -j ")[1].split()[0] for rule in rules)
    chains = [name for name in names if name not in (*hooks, *targets)]
    # iptables-nft makes the hooks' chains when it first needs them
    used = [line for hook in hooks for line in (f"-A {hook} -j ACCEPT", f"-D {hook} -j ACCEPT")]
    host.run(iptables.restore, v6, table, [*(f"-N {name}" for name in chains), *used])


def expressions(host: Netns, v6: bool, table: str) -> list[tuple[str, str]]:
    """(chain, expressions) of each rule, in hexadecimal, in order."""

    def dump() -> list[tuple[str, str]]:
        found = []
        for data in iptables_netlink.Rules(v6, table).of():
            rule = nl.attr_map(data, nft.GENMSG_SIZE)
            assert rule.keys() <= {1, 2, 3, 4, 6}  # no more than the tool's: no user data
            found.append((nl.get_text(rule[2]), rule[4].hex()))
        return sorted(found, key=lambda item: item[0])

    return host.run(dump)


def write(host: Netns, v6: bool, table: str, lines: list[str]) -> None:
    """By us, in as many transactions as it takes."""
    for start in range(0, len(lines), 100):
        host.run(iptables_netlink.Rules(v6, table).add, lines[start : start + 100])


def listing(host: Netns) -> str:
    """What nft shows; it names chains in the order in which they were made."""
    return host.exec(["nft", "list", "ruleset"]).stdout


def alike(ours: Netns, theirs: Netns, v6: bool, table: str) -> None:
    assert iptables_save(ours, 6 if v6 else 4) == iptables_save(theirs, 6 if v6 else 4)
    assert listing(ours) == listing(theirs)
    assert expressions(ours, v6, table) == expressions(theirs, v6, table)


@FAMILIES
@pytest.mark.parametrize("form", FORMS)
def test_as_the_tool_writes_it(form: str, v6: bool, host: Netns) -> None:
    table, make = FORMS[form]
    rules = list(dict.fromkeys(make(v6)))
    with Netns("theirs") as theirs:
        for node in (host, theirs):
            prepare(node, v6, table, rules)
        assert not any(host.run(iptables_netlink.Rules(v6, table).have, rule) for rule in rules)
        write(host, v6, table, rules)
        theirs.run(iptables.restore, v6, table, rules)
        alike(host, theirs, v6, table)
        saved = iptables_save(host, 6 if v6 else 4)
        for rule in rules:
            assert rule in saved
            for node in (host, theirs):
                assert node.run(iptables_netlink.Rules(v6, table).have, rule), rule
        # the tool finds all of them again, and removes them
        lines = [f"{command}{rule[2:]}" for command in ("-C", "-D") for rule in rules]
        host.run(iptables.restore, v6, table, lines)
        assert not [line for line in iptables_save(host, 6 if v6 else 4) if line[:2] == "-A"]
    nft.forget()


@FAMILIES
def test_at_the_front(v6: bool, host: Netns) -> None:
    rules = masquerade_rules(v6)
    lines = [f"-I POSTROUTING 1 {rules[1].split(' ', 2)[2]}", f"-I{rules[3][2:]}", rules[0]]
    with Netns("theirs") as theirs:
        for node in (host, theirs):
            prepare(node, v6, "nat", rules)
            node.run(iptables.restore, v6, "nat", rules[:3])
        write(host, v6, "nat", lines)
        theirs.run(iptables.restore, v6, "nat", lines)
        alike(host, theirs, v6, "nat")
    nft.forget()


class Some:
    """Rules for the chain A, with any values."""

    def __init__(self, v6: bool) -> None:
        self.v6 = v6
        self.choose = random.Random(f"{v6}")

    def maybe(self, word: str, chance: float = 0.3) -> list[str]:
        return [word] if self.choose.random() < chance else []

    def some(self, most: int, letters: str) -> str:
        return "".join(self.choose.choices(letters, k=self.choose.randint(1, most)))

    def network(self) -> Prefix:
        bits = 128 if self.v6 else 32
        return Prefix(self.choose.randbytes(bits // 8), self.choose.randint(1, bits)).network

    def mark(self) -> str:
        value = f"{self.choose.randint(1, 2**32 - 2):#x}"
        return f"{value}/{value}"

    def header(self) -> list[str]:
        words = [f"{option} {self.network()}" for option in ("-s", "-d")]
        words += [f"{option} {self.some(7, 'abz019.-_@:é')}" for option in ("-i", "-o")]
        return [
            found for word in words for found in self.maybe(self.choose.choice(("", "! ")) + word)
        ]

    def matches(self, protocol: str) -> list[str]:
        comment = self.some(self.choose.choice((1, 7, 120)), "abc \"\\'$`#;!é,")
        words = self.maybe(iptables.comment(f"x{comment}x"))
        ports = [str(port) for port in self.choose.sample(range(65536), self.choose.randint(1, 15))]
        if protocol:
            words.append(
                self.choose.choice(
                    (
                        f"-m multiport --dports {','.join(ports)}",
                        f"-m {protocol} --dport {ports[0]}",
                    )
                )
            )
        words += self.maybe("-m conntrack --ctstate RELATED,ESTABLISHED")
        words += self.maybe("-m addrtype --dst-type LOCAL")
        return words + self.maybe(f"-m mark --mark {self.mark()}")

    def target(self, protocol: str) -> str:
        ip = format_ip(self.network().ip)
        port = self.choose.randint(1, 65535)
        to = f"DNAT --to-destination {f'[{ip}]' if self.v6 else ip}:{port}"
        targets = ["ACCEPT", "RETURN", "B", f"MARK --set-xmark {self.mark()}"]
        return self.choose.choice([*targets, to] if protocol else targets)

    def rule(self) -> str:
        protocol = self.choose.choice(("", "tcp", "udp", "sctp"))
        words = ["-A A", *self.header(), *([f"-p {protocol}"] if protocol else [])]
        return " ".join((*words, *self.matches(protocol), "-j", self.target(protocol)))


@FAMILIES
def test_any_values(v6: bool, host: Netns) -> None:
    some = Some(v6)
    rules = [some.rule() for _ in range(400)]
    with Netns("theirs") as theirs:
        for node in (host, theirs):
            # a base chain that leads there, for what only the hooks of NAT may do
            lines = ["-N A", "-N B", "-A PREROUTING -j A"]
            node.run(iptables.restore, v6, "nat", lines)
        theirs.run(iptables.restore, v6, "nat", rules)
        write(host, v6, "nat", rules)
        alike(host, theirs, v6, "nat")
        for rule in rules[:50]:
            assert theirs.run(iptables_netlink.Rules(v6, "nat").have, rule), rule
    nft.forget()


# --- when it is not for us ------------------------------------------------------------------------


ADDRESSES = [Prefix.parse("10.0.0.2/24"), Prefix.parse("fd00::2/64")]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What iptables-restore is given."""
    calls: list[list[str]] = []
    real = iptables.restore

    def spy(v6: bool, table: str, lines: list[str]) -> None:
        calls.append(lines)
        real(v6, table, lines)

    monkeypatch.setattr(iptables, "restore", spy)
    return calls


def masquerading(host: Netns, owner: Owner = OWNER) -> list[str]:
    return [line for v in (4, 6) for line in iptables_save(host, v) if owner.chain() in line]


@pytest.mark.parametrize("code", [ENOENT, EOPNOTSUPP, EINVAL, EPERM])
def test_a_refusal_is_the_tools(
    host: Netns, restored: list[list[str]], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    host.run(masquerade.setup, OWNER, ADDRESSES, "iptables")
    there = masquerading(host)
    host.run(masquerade.teardown, OWNER, ADDRESSES)
    restored.clear()

    def refuse(*_: object, **__: object) -> None:
        raise NetlinkError(code)

    monkeypatch.setattr(nft, "transact", refuse)
    host.run(masquerade.setup, OWNER, ADDRESSES, "iptables")
    assert len(restored) == 2
    assert masquerading(host) == there


def test_without_nftables(
    host: Netns, restored: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(EOPNOTSUPP, "no such protocol")

    monkeypatch.setattr(nft, "socket", refuse)
    assert not host.run(iptables_netlink.change, False, "nat", lambda rules: rules.of() and [])
    assert restored == []


@FAMILIES
def test_legacy_is_not_for_us(v6: bool, host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.find_program
    if real("iptables-legacy-restore") is None:
        pytest.skip("needs iptables-legacy")
    monkeypatch.setattr(files, "find_program", lambda n: real(n.replace("tables", "tables-legacy")))
    assert not iptables_netlink.is_the_tool(v6)
    assert not host.run(iptables_netlink.change, v6, "nat", lambda _: ["-N CNI-X"])
    assert iptables_save(host, 6 if v6 else 4) == []


@pytest.mark.parametrize(
    ("real", "content"),
    [
        ("wrapper", "#!/bin/sh\nexec iptables-nft-restore\n"),
        ("xtables-nft-multi", "#!/bin/sh\nexit 1\n"),
        ("xtables-nft-multi", "\0001.8.8\0"),
        ("xtables-nft-multi", "\0001.8.7 (nf_tables)\0"),
        ("xtables-legacy-multi", "\0001.8.9\0"),
        (None, ""),
    ],
)
def test_another_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: str | None, content: str
) -> None:
    tool = tmp_path / "iptables-restore"
    tool.symlink_to(tmp_path / (real or "nothing"))
    if real:
        tool.write_text(content)
    monkeypatch.setattr(files, "find_program", lambda _: str(tool))
    assert not iptables_netlink.is_the_tool(v6=False)
    monkeypatch.setattr(files, "find_program", lambda _: None)
    assert not iptables_netlink.is_the_tool(v6=False)


def test_a_known_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is replaced while we run."""
    program = tmp_path / "xtables-nft-multi"
    monkeypatch.setattr(files, "find_program", lambda _: str(program))
    for content, known in (("1.8.10", True), ("1.8.9", True), ("1.8.7", False), ("1.10.0", True)):
        program.unlink(missing_ok=True)
        program.write_text(f"\0001.4.x\0{content} (nf_tables)\0\0{content}\0")
        assert iptables_netlink.is_the_tool(v6=False) == known


# --- all or none, and once ------------------------------------------------------------------------


def test_all_or_none(host: Netns) -> None:
    host.run(iptables.restore, False, "nat", ["-N A", "-A POSTROUTING -j A"])
    before = iptables_save(host)
    for lines, code in (
        (["-N B", "-A A -j B", "-A A -j NOWHERE"], ENOENT),
        (["-A A -j ACCEPT", "-N A"], EEXIST),
    ):
        with pytest.raises(NetlinkError) as caught:
            host.run(iptables_netlink.Rules(False, "nat").add, lines)
        assert caught.value.errno == code
        assert iptables_save(host) == before
    for line in ("-A A -m owner --uid-owner 1 -j ACCEPT", "-D A -j ACCEPT", "-A A"):
        with pytest.raises(Unwritable):
            host.run(iptables_netlink.Rules(False, "nat").add, ["-A A -j ACCEPT", line])
    with pytest.raises(Unwritable):
        host.run(iptables_netlink.Rules(False, "nat").add, ["-A A -j ACCEPT"] * 101)
    assert iptables_save(host) == before


def test_a_lost_race_is_run_again(host: Netns) -> None:
    """What was looked at must still be so when the rules are made."""
    host.run(iptables.restore, False, "nat", ["-N A", "-N B", "-A POSTROUTING -j A"])
    seen: list[bool] = []

    def plan(rules: iptables_netlink.Rules) -> list[str]:
        seen.append(rules.have("-A A -j B"))
        if len(seen) == 1:  # somebody else is faster
            iptables.restore(False, "nat", ["-A A -j B"])
        return [] if seen[-1] else ["-A A -j B"]

    assert host.run(iptables_netlink.change, False, "nat", plan)
    assert seen == [False, True]
    assert iptables_save(host).count("-A A -j B") == 1


def test_one_race_after_the_other(host: Netns) -> None:
    host.run(iptables.restore, False, "nat", ["-N A", "-A POSTROUTING -j A"])

    def plan(rules: iptables_netlink.Rules) -> list[str]:
        rules.have("-A A -j ACCEPT")
        iptables.restore(False, "nat", ["-A A -j RETURN"])
        return ["-A A -j ACCEPT"]

    assert not host.run(iptables_netlink.change, False, "nat", plan)
    assert "-A A -j ACCEPT" not in iptables_save(host)


# --- the plugins ----------------------------------------------------------------------------------


CHAINED = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "br9"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
    "ips": [
        {"address": "10.9.0.2/24", "interface": 1},
        {"address": "fd09::2/64", "interface": 1},
    ],
}
PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
    {"hostPort": 5354, "containerPort": 53, "protocol": "sctp"},
]


def network(plugin: str, number: int, tmp_path: Path) -> Json:
    """A configuration, for the first or second container of a network."""
    conf: Json = {"cniVersion": "1.1.0", "name": "net", "type": plugin}
    if plugin == "bridge":
        subnets = ["10.9.0.0/24", "fd09::/64"]
        ipam = {
            "type": "host-local",
            "dataDir": str(tmp_path),
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
        }
        backend = {"ipMasq": True, "ipMasqBackend": "iptables"}
        return {**conf, "bridge": "br9", "isGateway": True, **backend, "ipam": ipam}
    text = json.dumps(CHAINED).replace("10.9.0.2", f"10.9.0.{number}")
    conf["prevResult"] = json.loads(text.replace("fd09::2", f"fd09::{number}"))
    if plugin == "portmap":
        ports = [{**port, "hostPort": port["hostPort"] + 10 * number} for port in PORTS]
        return {**conf, "backend": "iptables", "runtimeConfig": {"portMappings": ports}}
    return {**conf, "backend": "iptables", "ingressPolicy": "isolated"}


@pytest.fixture
def their_runtime(bin_dir: Path, netns: Callable[[str], Netns], tmp_path: Path) -> Runtime:
    """Our plugins on a node whose tools are not known to be iptables-nft: scripts that call it."""
    node = make_host(netns)
    runtime = Runtime(bin_dir, node)
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name in ("iptables-restore", "ip6tables-restore"):
        (scripts / name).write_text(f'#!/bin/sh\nexec {files.find_program(name)} "$@"\n')
        (scripts / name).chmod(0o755)
    runtime.env["PATH"] = f"{scripts}:{runtime.env['PATH']}"
    return runtime


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("plugin", ["bridge", "firewall", "portmap"])
def test_without_a_fork(
    plugin: str,
    runtime: Runtime,
    their_runtime: Runtime,
    netns: Callable[[str], Netns],
    tmp_path: Path,
) -> None:
    """On a fresh node and later; what nft and iptables-save show is what the tool leads to."""
    both = {"ours": runtime, "theirs": their_runtime}
    for number in (2, 3):
        for world, one in both.items():
            one.container_id = f"c{number}"
            one.env["CNI_STATE_DIR"] = str(tmp_path / world / "state")
            trace = tmp_path / f"{world}{number}"
            done = one.host.run(
                subprocess.run,
                ["strace", "-f", "-qq", "-o", trace, "-e", "trace=execve", one.bin_dir / plugin],
                input=json.dumps(network(plugin, number, tmp_path / world / "ipam")).encode(),
                capture_output=True,
                env=one.environment("ADD", netns("container"), env={"CNI_SERVER": "off"}),
            )
            assert done.returncode == 0, done.stdout
            assert ("tables-restore" in trace.read_text()) == (world == "theirs")
        for v6 in (False, True):
            table = "filter" if plugin == "firewall" else "nat"
            alike(runtime.host, their_runtime.host, v6, table)
            assert any("-A " in line for line in iptables_save(runtime.host, 6 if v6 else 4))


@pytest.mark.parametrize("plugin", ["firewall", "portmap"])
def test_the_first_of_a_node_come_together(
    plugin: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    """iptables-restore 1.8.9 that loses a race makes chains that are there by then once more."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    confs = [network(plugin, number, tmp_path) for number in range(2, 10)]
    with ThreadPoolExecutor(len(confs)) as pool:
        replies = list(
            pool.map(
                lambda conf: runtime.add(
                    plugin,
                    conf,
                    container,
                    container_id=f"c-{conf['prevResult']['ips'][0]['address'][7]}",
                ),
                confs,
            )
        )
    for reply in replies:
        reply.succeeded()
    for version in (4, 6):
        rules = [line for line in iptables_save(host, version) if "-A " in line]
        assert len(rules) == len(set(rules)) > 16
