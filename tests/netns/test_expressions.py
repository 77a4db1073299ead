"""What we write into nftables ourselves is what libnftables would have written.

Both are made, each in a namespace of its own, and compared: as `nft` lists them, and as the kernel
dumps them, byte for byte, but for the handles, which count what was there before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from cni.kernel import netlink as nl
from cni.netfilter import elements as nft_elements
from cni.netfilter import nft, uapi
from cni.netfilter.table import Table
from cni.owner import Owner
from cni.plugins.bridge import spoofcheck
from cni.plugins.firewall import backend_nft
from cni.plugins.firewall.want import Ingress
from cni.plugins.firewall.want import Want as FirewallWant
from cni.plugins.portmap import nft_chains
from cni.plugins.portmap.want import Port, Want
from cni.plugins.shared.masquerade import backend_nft as masquerade
from cni.protocol.address import Prefix, parse_ip
from tests.harness import Netns, libnftables, requires_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [requires_kernel("nft"), pytest.mark.each_kernel]

OWNER, OTHER = Owner("net1", "c1", "eth0"), Owner("net1", "c2", "eth0")
# Message types, and in each the attributes that count: its own handle, a rule's neighbour.
NFT_MSG_GETSET = uapi.NFNL_SUBSYS_NFTABLES << 8 | 10
COUNTERS = {
    uapi.NFT_MSG_GETCHAIN: (2,),
    uapi.NFT_MSG_GETRULE: (3, 6),
    NFT_MSG_GETSET: (16,),
    uapi.NFT_MSG_GETTABLE: (4,),
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Sockets kept for the next call would keep the namespace alive."""
    yield
    nft.forget()


def dumped() -> list[object]:
    """All that the kernel says of tables, chains, sets, rules and elements."""
    found: list[object] = []
    for kind, counting in COUNTERS.items():
        for data in nft.socket().dump(kind, bytes(4)):
            parts = [part for part in nl.attrs(data, 4) if part[0] not in counting]
            found.append((kind, data[0], parts))
            if kind == NFT_MSG_GETSET:
                family = {number: name for name, number in nft.FAMILIES.items()}[data[0]]
                table, name = (nl.get_text(dict(parts)[n]) for n in (1, 2))
                elements = nft_elements.elements(Table(family, table), name)
                found.append(sorted(elements))
    return found


def assert_same(
    first: Netns, second: Netns, theirs: Callable[[], object], ours: Callable[[], object]
) -> None:
    first.run(theirs)
    second.run(ours)
    texts = [ns.exec(["nft", "-s", "list", "ruleset"]).stdout for ns in (first, second)]
    assert texts[0] == texts[1] != ""
    wanted, have = first.run(dumped), second.run(dumped)
    assert wanted == have


def want(cidr: str, **keys: object) -> Want:
    address = Prefix.parse(cidr)
    ports = [Port(b"", "tcp", 80, 8080), Port(parse_ip("192.0.2.1"), "udp", 53, 53)]
    ports.append(Port(parse_ip("2001:db8::1"), "sctp", 53, 53))
    base = Want(OWNER, [address], ports, True, False, 0x2000, "", ([], []))
    return base._replace(**keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wanted",
    [
        *(want(f"10.22.0.9/{length}") for length in (0, 1, 8, 12, 16, 23, 24, 31, 32)),
        *(want(f"fd00:22::9/{length}") for length in (0, 7, 48, 61, 64, 127, 128)),
        want("10.22.0.9/24", masq_all=True),
        want("fd00:22::9/64", masq_all=True),
        want("10.22.0.9/24", snat=False),
        want("10.22.0.9/24", mark=1 << 31),
        want("fd00:22::9/64", mark=1, ports=[Port(b"", "tcp", 80, 80)]),
    ],
    ids=lambda w: f"{w.addresses[0]}-{w.snat:d}{w.masq_all:d}-{w.mark:x}",
)
def test_portmap(host: Netns, container: Netns, wanted: Want) -> None:
    (address,) = wanted.addresses
    chains = nft_chains.chains(wanted, address)

    def ours() -> None:
        family = nft_chains.family_of(address)
        nft.transact(nft_chains.skeleton(family, chains, {}))

    assert_same(host, container, lambda: libnftables.apply(nft_chains.script(chains)), ours)
    before = container.exec(["nft", "list", "ruleset"]).stdout
    rules = {chain.name: len(chain.rules) for chain in chains}

    def again() -> None:
        family = nft_chains.family_of(address)
        nft.transact(nft_chains.skeleton(family, chains, rules))

    container.run(again)
    assert container.exec(["nft", "list", "ruleset"]).stdout == before


# --- what libnftables would be told ---------------------------------------------------------------

MASQUERADE = """\
add table inet cni_plugins_masquerade { \
comment "Masquerading for plugins from github.com/containernetworking/plugins"; }
add chain inet cni_plugins_masquerade masq_checks { \
comment "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"; }
add chain inet cni_plugins_masquerade postrouting { type nat hook postrouting priority 100; }
flush chain inet cni_plugins_masquerade postrouting
add rule inet cni_plugins_masquerade postrouting ip daddr == 224.0.0.0/4 return
add rule inet cni_plugins_masquerade postrouting ip6 daddr == ff00::/8 return
add rule inet cni_plugins_masquerade postrouting goto masq_checks
"""
FIREWALL_COMMENT = "CNI firewall plugin rules"
FIREWALL = f"""\
add table inet cni_firewall {{ comment "{FIREWALL_COMMENT}"; }}
add set inet cni_firewall allowed4 {{ type ipv4_addr; }}
add set inet cni_firewall allowed6 {{ type ipv6_addr; }}
add set inet cni_firewall bridges {{ type ifname; }}
add set inet cni_firewall within {{ type ifname . ifname; }}
add chain inet cni_firewall admin
add chain inet cni_firewall forward {{ type filter hook forward priority filter; }}
flush chain inet cni_firewall forward
""" + "".join(
    f'add rule inet cni_firewall forward {rule} comment "{FIREWALL_COMMENT}"\n'
    for rule in (
        "iifname @bridges oifname @bridges iifname . oifname != @within drop",
        "jump admin",
        "ct state established,related ip daddr @allowed4 accept",
        "ct state established,related ip6 daddr @allowed6 accept",
        "ip saddr @allowed4 accept",
        "ip6 saddr @allowed6 accept",
    )
)


def masquerading_rule(owner: Owner, cidr: str, fixed: str = "") -> str:
    prefix = Prefix.parse(cidr)
    family, address = "ip" if prefix.is_v4 else "ip6", cidr.partition("/")[0]
    target = f"snat {family} to {fixed}" if fixed else "masquerade"
    return (
        f"add rule inet cni_plugins_masquerade masq_checks {family} saddr == {address} "
        f'{family} daddr != {prefix.network} {target} comment "{owner.comment}"\n'
    )


def firewall_script(owner: Owner, policy: str) -> str:
    """For one container with two addresses, on the bridge cni0 if there is a policy."""
    script = "".join(
        f'add element inet cni_firewall {name} {{ {address} comment "{owner.comment}" }}\n'
        for name, address in (("allowed4", "10.0.0.9"), ("allowed6", "fd00::9"))
    )
    comment = f"{owner.key[:16]}, net: {owner.network}"
    if policy:
        script += f'add element inet cni_firewall bridges {{ "cni0" comment "{comment}" }}\n'
    if policy == "same-bridge":
        script += (
            f'add element inet cni_firewall within {{ "cni0" . "cni0" comment "{comment}" }}\n'
        )
    admin = "add chain inet cni_firewall CNI-ADMIN\n"
    return script + admin + "add rule inet cni_firewall admin jump CNI-ADMIN\n"


def spoofcheck_commands(ref: str, ifname: str, mac: str) -> list[dict[str, object]]:
    """As the reference tells it to `nft -j` (docs/spec/common.md §7)."""
    place: dict[str, object] = {"family": "bridge", "table": "nat"}
    comment = f"macspoofchk-{ref}"
    chains = f"cni-br-iface-{ref}", f"cni-br-iface-{ref}-mac"
    base = {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}

    def match(left: object, right: str) -> dict[str, object]:
        return {"match": {"op": "==", "left": left, "right": right}}

    source = {"payload": {"protocol": "ether", "field": "saddr"}}
    rules: list[tuple[str, list[object]]] = [
        (
            "PREROUTING",
            [match({"meta": {"key": "iifname"}}, ifname), {"jump": {"target": chains[0]}}],
        ),
        (chains[0], [{"jump": {"target": chains[1]}}]),
        (chains[1], [match(source, mac), {"return": None}]),
        (chains[1], [{"drop": None}]),
    ]
    return [
        {"add": {"table": {"family": "bridge", "name": "nat"}}},
        {"add": {"chain": {**place, "name": "PREROUTING", **base}}},
        *({"add": {"chain": {**place, "name": name}}} for name in chains),
        *(
            {"add": {"rule": {**place, "chain": chain, "expr": list(rule), "comment": comment}}}
            for chain, rule in rules
        ),
    ]


@pytest.mark.parametrize(
    "cidr",
    [
        *(f"10.0.0.9/{length}" for length in (0, 1, 8, 12, 23, 24, 31, 32)),
        *(f"fd00::9/{length}" for length in (0, 7, 48, 61, 64, 127, 128)),
    ],
)
def test_masquerade(host: Netns, container: Netns, cidr: str) -> None:
    script = masquerading_rule(OTHER, "10.9.9.9/8") + masquerading_rule(OWNER, cidr)

    def ours() -> None:
        masquerade.setup(OTHER, [Prefix.parse("10.9.9.9/8")])
        masquerade.setup(OWNER, [Prefix.parse(cidr)])

    assert_same(host, container, lambda: libnftables.apply(MASQUERADE + script), ours)


@pytest.mark.parametrize(
    ("cidr", "fixed"), [("10.0.0.9/24", "192.0.2.7"), ("fd00::9/64", "2001:db8::7")]
)
def test_masquerade_under_a_fixed_address(
    host: Netns, container: Netns, cidr: str, fixed: str
) -> None:
    prefix, address = Prefix.parse(cidr), parse_ip(fixed)
    script = MASQUERADE + masquerading_rule(OWNER, cidr, fixed)

    def ours() -> None:
        masquerade.setup(OWNER, [prefix], outbound={prefix.is_v4: address})

    assert_same(host, container, lambda: libnftables.apply(script), ours)


def firewall_want(owner: Owner, policy: str) -> FirewallWant:
    ingress = Ingress(policy, "cni0") if policy else None
    addresses = [Prefix.parse("10.0.0.9/32"), Prefix.parse("fd00::9/128")]
    return FirewallWant(owner, addresses, "CNI-ADMIN", "trusted", ingress)


@pytest.mark.parametrize("policy", ["", "same-bridge", "isolated"])
def test_firewall(host: Netns, container: Netns, policy: str) -> None:
    def ours() -> None:
        backend_nft.setup(firewall_want(OTHER, ""))  # whose addresses OWNER gets
        backend_nft.setup(firewall_want(OWNER, policy))

    script = FIREWALL + firewall_script(OWNER, policy)
    assert_same(host, container, lambda: libnftables.apply(script), ours)


@pytest.mark.parametrize("ifname", ["v", "vethx", "veth0123456789a", "veth*", "véth"])
def test_spoofcheck(host: Netns, container: Netns, ifname: str) -> None:
    mac, ref = "02:00:00:00:00:1f", f"{'c1' * 32}-eth0"
    quoted = ifname.replace("*", "\\*")  # or it would be a wildcard
    commands = spoofcheck_commands(ref, quoted, mac)

    def ours() -> None:
        spoofcheck.setup(ref, ifname, mac)

    assert_same(host, container, lambda: libnftables.apply_json(commands), ours)


# --- on what is there already ---------------------------------------------------------------------

RULES = {
    "masquerade": lambda: masquerade.setup(
        OWNER, [Prefix.parse("10.0.0.9/24"), Prefix.parse("fd00::9/64")]
    ),
    "firewall": lambda: backend_nft.setup(firewall_want(OWNER, "same-bridge")),
    "spoofcheck": lambda: spoofcheck.setup("c1-eth0", "vethx", "02:00:00:00:00:01"),
}
SCRIPTS = {
    "masquerade": lambda: libnftables.apply(
        MASQUERADE
        + masquerading_rule(OWNER, "10.0.0.9/24")
        + masquerading_rule(OWNER, "fd00::9/64")
    ),
    "firewall": lambda: libnftables.apply(FIREWALL + firewall_script(OWNER, "same-bridge")),
    "spoofcheck": lambda: libnftables.apply_json(
        spoofcheck_commands("c1-eth0", "vethx", "02:00:00:00:00:01")
    ),
}
DAMAGE = {
    "masquerade": [
        "delete table inet cni_plugins_masquerade",
        "flush table inet cni_plugins_masquerade",
        "flush chain inet cni_plugins_masquerade postrouting",
        "flush chain inet cni_plugins_masquerade masq_checks",
        "flush chain inet cni_plugins_masquerade postrouting; "
        "delete chain inet cni_plugins_masquerade postrouting",
        "add rule inet cni_plugins_masquerade postrouting accept",
        "insert rule inet cni_plugins_masquerade postrouting ip daddr 10.0.0.0/8 return",
    ],
    "firewall": [
        "delete table inet cni_firewall",
        "flush table inet cni_firewall",
        "flush chain inet cni_firewall forward; delete chain inet cni_firewall forward",
        "flush chain inet cni_firewall forward; delete set inet cni_firewall allowed6; "
        "delete set inet cni_firewall within",
        "insert rule inet cni_firewall forward accept",
        "add rule inet cni_firewall forward accept",
        "flush chain inet cni_firewall admin",
        "flush chain inet cni_firewall admin; delete chain inet cni_firewall CNI-ADMIN",
        "flush set inet cni_firewall allowed4; flush set inet cni_firewall bridges",
    ],
    "spoofcheck": [
        "delete table bridge nat",
        "flush table bridge nat",
        "flush chain bridge nat PREROUTING",
        "flush chain bridge nat PREROUTING; delete chain bridge nat PREROUTING",
        "flush chain bridge nat cni-br-iface-c1-eth0",
        "add rule bridge nat cni-br-iface-c1-eth0-mac accept",
    ],
}


@pytest.mark.parametrize("maker", ["ours", "libnftables"])
@pytest.mark.parametrize(
    ("plugin", "command"),
    [(plugin, command) for plugin, commands in DAMAGE.items() for command in commands],
)
def test_what_is_damaged_is_made_anew(
    host: Netns, container: Netns, plugin: str, command: str, maker: str
) -> None:
    """Whoever made it: in the end all is as libnftables makes it, but for the order of chains."""
    container.run(SCRIPTS[plugin])
    host.run(RULES[plugin] if maker == "ours" else SCRIPTS[plugin])
    before = host.exec(["nft", "-s", "list", "ruleset"]).stdout
    assert before == container.exec(["nft", "-s", "list", "ruleset"]).stdout
    host.exec(["nft", command])
    assert host.exec(["nft", "-s", "list", "ruleset"]).stdout != before
    host.run(RULES[plugin])
    assert listed(host) == listed(container)
    host.run(RULES[plugin])
    assert listed(host) == listed(container)


def listed(ns: Netns) -> list[str]:
    """The chains, sets and the table's head, as nft lists them, each as one text, sorted."""
    text = ns.exec(["nft", "-s", "list", "ruleset"]).stdout.replace("\n\n", "\n")
    return sorted(re.split(r"\n(?=\t\S)", text.removesuffix("}\n")))
