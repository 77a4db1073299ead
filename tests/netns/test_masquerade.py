"""Masquerading (docs/spec/common.md §6), both backends, on a real kernel with real packets."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel.errors import IptablesError
from cni.netfilter import iptables, nft
from cni.netfilter.table import Rule, Table
from cni.owner import Owner
from cni.plugins.shared import masquerade
from cni.protocol.address import Prefix
from cni.protocol.errors import CNIError
from tests.harness import (
    Netns,
    Runtime,
    Snapshot,
    connect,
    iptables_save,
    nft_rules,
    nft_tables,
    tcp_exchange,
    tcp_server,
    udp_exchange,
    udp_server,
)
from tests.harness import nft as nft_list

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BACKENDS = ("iptables", "nftables", "set")
TABLE = "cni_plugins_masquerade"
COMMENT = "Masquerading for plugins from github.com/containernetworking/plugins"
CHECKS_COMMENT = (
    "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet"
)

NET1, NET2 = "unit-test", "other"
# Four containers in two networks: IPv4, dual stack, several addresses, IPv6.
PLAN = {
    Owner(NET1, "one", "eth0"): ["10.0.0.1/24"],
    Owner(NET1, "two", "eth0"): ["10.0.0.2/24", "fd00::2/64"],
    Owner(NET2, "three", "eth0"): ["10.1.0.3/24", "10.1.0.4/24", "fd01::3/64", "fd01::4/64"],
    Owner(NET2, "four", "net1"): ["fd01::5/64"],
}
ONE, TWO, THREE, FOUR = PLAN


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Sockets kept for the next call would keep the namespace alive."""
    yield
    nft.forget()


def prefixes(*texts: str) -> list[Prefix]:
    return [Prefix.parse(text) for text in texts]


def keys(backend: str) -> dict[str, Any]:
    """What a configuration has to say."""
    return {"ipMasqSet": True} if backend == "set" else {"ipMasqBackend": backend}


def setup_all(host: Netns, backend: str) -> None:
    for owner, cidrs in PLAN.items():
        host.run(masquerade.setup, owner, prefixes(*cidrs), backend)


def rules_of(host: Netns, owner: Owner) -> list[str]:
    """Every line of either backend that belongs to an owner, read by independent tools."""
    found = [str(r) for r in checks(host) if r["comment"].startswith(owner.key)]
    found += [str(each) for each in elements(host) if owner.key in str(each)]
    for version in (4, 6):
        found += [line for line in iptables_save(host, version) if owner.chain() in line]
    return found


def checks(host: Netns) -> list[dict]:
    return nft_rules(host, "inet", TABLE, "masq_checks")


def elements(host: Netns) -> list[tuple[str, Any]]:
    """All elements of the sets and maps of the set backend: (set, element)."""
    found = []
    if ("inet", "cni_masquerade") in nft_tables(host):
        for item in nft_list(host, "table", "inet", "cni_masquerade"):
            each = item.get("set") or item.get("map") or {}
            found += [(each["name"], element) for element in each.get("elem", ())]
    return found


def sources(host: Netns, owner: Owner) -> list[str]:
    """The masqueraded addresses of an owner, from any backend."""
    found = [
        rule["expr"][0]["match"]["right"]
        for rule in checks(host)
        if rule.get("comment") == owner.comment
    ]
    in_sets = [
        element["elem"]["val"]
        for name, element in elements(host)
        if name.startswith("addresses") and element["elem"]["comment"] == owner.comment
    ]
    # the kernel keeps them in no order
    found += sorted(in_sets, key=lambda address: (":" in address, address))
    for version in (4, 6):
        for line in iptables_save(host, version):
            if line.startswith("-A POSTROUTING ") and line.endswith(f" -j {owner.chain()}"):
                found.append(line.split()[3].partition("/")[0])
    return found


def addresses(owner: Owner) -> list[str]:
    return [cidr.partition("/")[0] for cidr in PLAN[owner]]


# --- the rules themselves -------------------------------------------------------------------------


def test_a_first_add_lists_no_rules_of_others(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as many as the node has containers."""
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "nftables")
    listed: list[str] = []
    find_rules_with = Table.find_rules_with

    def listing(table: Table, chain: str, mark: bytes) -> list[Any]:
        listed.append(chain)
        return find_rules_with(table, chain, mark)

    monkeypatch.setattr(Table, "find_rules_with", listing)
    new = prefixes("10.0.0.2/24", "fd00::2/64")
    host.run(lambda: masquerade.setup(TWO, new, "nftables", first=True))
    assert listed == ["postrouting"]
    assert host.run(masquerade.missing, TWO, new) == []
    host.run(masquerade.teardown, TWO, new)
    assert host.run(masquerade.missing, ONE, prefixes("10.0.0.1/24")) == []
    assert len(host.run(masquerade.missing, TWO, new)) == len(new)


def test_nftables_rules(host: Netns) -> None:
    owner = Owner("unit-test", "one", "eth0")
    host.run(masquerade.setup, owner, prefixes("192.168.1.5/24", "fd12:3456::5/120"), "nftables")
    text = host.exec(["nft", "list", "table", "inet", TABLE]).stdout
    comment = 'comment "6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one"'
    wanted = [
        f'comment "{COMMENT}"',
        f'comment "{CHECKS_COMMENT}"',
        f"ip saddr 192.168.1.5 ip daddr != 192.168.1.0/24 masquerade {comment}",
        f"ip6 saddr fd12:3456::5 ip6 daddr != fd12:3456::/120 masquerade {comment}",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip daddr 224.0.0.0/4 return",
        "ip6 daddr ff00::/8 return",
        "goto masq_checks",
    ]
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line in wanted] == wanted
    assert len([line for line in lines if line and line[-1] not in "{}"]) == len(wanted)


def test_iptables_rules(host: Netns) -> None:
    owner = Owner("net1", "c1", "eth0")
    host.run(masquerade.setup, owner, prefixes("10.0.0.5/24", "fd00::5/64"), "iptables")
    chain, comment = "CNI-c2d892b58e87e28a12fe6479", r'"name: \"net1\" id: \"c1\""'
    for version, source, subnet, multicast in (
        (4, "10.0.0.5/32", "10.0.0.0/24", "224.0.0.0/4"),
        (6, "fd00::5/128", "fd00::/64", "ff00::/8"),
    ):
        assert [line for line in iptables_save(host, version) if line.startswith("-A")] == [
            f"-A POSTROUTING -s {source} -m comment --comment {comment} -j {chain}",
            f"-A {chain} -d {subnet} -m comment --comment {comment} -j ACCEPT",
            f"-A {chain} ! -d {multicast} -m comment --comment {comment} -j MASQUERADE",
        ]


@pytest.mark.parametrize("cidr", ["10.0.0.5/32", "10.0.0.5/31", "10.0.0.5/0", "fd00::5/128"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_unusual_prefixes(host: Netns, backend: str, cidr: str) -> None:
    for _ in range(2):
        host.run(masquerade.setup, ONE, prefixes(cidr), backend)
    assert sources(host, ONE) == [cidr.partition("/")[0]]
    assert host.run(masquerade.missing, ONE, prefixes(cidr)) == []
    host.run(masquerade.teardown, ONE, prefixes(cidr))
    assert rules_of(host, ONE) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_addresses_of_a_subnet(host: Netns, backend: str) -> None:
    """What stays in the subnet is accepted before the rest is masqueraded, for each address."""
    wanted = prefixes("10.1.0.3/24", "10.1.0.4/24", "10.2.0.4/16")
    host.run(masquerade.setup, THREE, wanted, backend)
    assert sources(host, THREE) == ["10.1.0.3", "10.1.0.4", "10.2.0.4"]
    if backend == "iptables":
        chain = [i for i in iptables_save(host) if i.startswith(f"-A {THREE.chain()}")]
        assert [line.rpartition(" ")[2] for line in chain] == ["ACCEPT", "ACCEPT", "MASQUERADE"]


# --- life cycle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("known", [True, False], ids=["addresses", "no-addresses"])
def test_four_containers(host: Netns, backend: str, known: bool) -> None:
    setup_all(host, backend)
    left = dict(PLAN)
    for gone in PLAN:
        for owner, cidrs in left.items():
            assert sources(host, owner) == addresses(owner)
            assert host.run(masquerade.missing, owner, prefixes(*cidrs)) == []
        cidrs = left.pop(gone)
        for _ in range(2):  # a DEL may come again
            host.run(masquerade.teardown, gone, prefixes(*cidrs) if known else [])
        assert rules_of(host, gone) == []
        assert len(host.run(masquerade.missing, gone, prefixes(*cidrs))) == len(cidrs)
    assert checks(host) == []
    assert elements(host) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_again_is_the_same(host: Netns, backend: str) -> None:
    setup_all(host, backend)
    before, rules = Snapshot.take(host), sorted(map(str, checks(host)))
    setup_all(host, backend)
    assert sorted(map(str, checks(host))) == rules  # a repeated ADD's go to the end
    if backend == "iptables":
        assert Snapshot.take(host) == before
    for owner in PLAN:
        assert sources(host, owner) == addresses(owner)


@pytest.mark.parametrize("backend", BACKENDS)
def test_address_reuse(host: Netns, backend: str) -> None:
    """The first owner's late DEL does not take the address's new owner out."""
    address = prefixes("10.0.0.1/24")
    host.run(masquerade.setup, ONE, address, backend)
    host.run(masquerade.setup, TWO, address, backend)
    host.run(masquerade.teardown, ONE, address)
    assert rules_of(host, ONE) == []
    assert sources(host, TWO) == ["10.0.0.1"]
    assert host.run(masquerade.missing, TWO, address) == []


def test_nftables_drops_stale_rules_of_the_same_instance(host: Netns) -> None:
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24", "fd00::1/64"), "nftables")
    host.run(masquerade.setup, ONE, prefixes("10.0.0.9/24"), "nftables")
    assert sources(host, ONE) == ["10.0.0.9"]


def test_nftables_repairs_its_postrouting_chain(host: Netns) -> None:
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "nftables")
    wanted = nft_rules(host, "inet", TABLE, "postrouting")
    host.exec(["nft", "flush", "chain", "inet", TABLE, "postrouting"])
    host.exec(["nft", "add", "rule", "inet", TABLE, "postrouting", "accept"])
    host.run(masquerade.setup, TWO, prefixes("10.0.0.2/24"), "nftables")
    assert nft_rules(host, "inet", TABLE, "postrouting") == wanted


def test_iptables_two_interfaces_share_a_chain(host: Netns) -> None:
    first, second = Owner(NET1, "one", "eth0"), Owner(NET1, "one", "eth1")
    host.run(masquerade.setup, first, prefixes("10.0.0.1/24"), "iptables")
    host.run(masquerade.setup, second, prefixes("10.5.0.1/24"), "iptables")
    chain = [i for i in iptables_save(host) if i.startswith(f"-A {first.chain()}")]
    assert [line.rpartition(" ")[2] for line in chain] == ["ACCEPT", "ACCEPT", "MASQUERADE"]
    host.run(masquerade.teardown, first, prefixes("10.0.0.1/24"), lambda: prefixes("10.5.0.1/24"))
    assert sources(host, second) == ["10.5.0.1"]
    assert host.run(masquerade.missing, second, prefixes("10.5.0.1/24")) == []
    host.run(masquerade.teardown, second, prefixes("10.5.0.1/24"))
    assert rules_of(host, first) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_owner_decides_not_the_addresses(host: Netns, backend: str) -> None:
    """A container may have replaced its addresses: its rules go all the same."""
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24", "fd00::1/64"), backend)
    host.run(masquerade.setup, TWO, prefixes("10.0.0.2/24"), backend)
    host.run(masquerade.teardown, ONE, prefixes("198.51.100.7/32"))
    assert rules_of(host, ONE) == []
    assert sources(host, TWO) == ["10.0.0.2"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gc(host: Netns, backend: str) -> None:
    setup_all(host, backend)
    host.run(masquerade.collect, NET1, [TWO])
    assert rules_of(host, ONE) == []
    for owner in (TWO, THREE, FOUR):
        assert sources(host, owner) == addresses(owner)
    host.run(masquerade.collect, NET2, [])
    host.run(masquerade.collect, NET1, [])
    for owner in PLAN:
        assert rules_of(host, owner) == []
    if backend == "nftables":  # the skeleton stays
        names = [i["chain"]["name"] for i in nft_list(host, "table", "inet", TABLE) if "chain" in i]
        assert names == ["masq_checks", "postrouting"]
        assert len(nft_rules(host, "inet", TABLE, "postrouting")) == 3
    assert elements(host) == []


# --- handles, sets --------------------------------------------------------------------------------


def listings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chains of which all rules are listed from now on."""
    listed: list[str] = []
    find_rules_with = Table.find_rules_with

    def listing(table: Table, chain: str, mark: bytes) -> list[Any]:
        listed.append(chain)
        return find_rules_with(table, chain, mark)

    monkeypatch.setattr(Table, "find_rules_with", listing)
    return listed


def test_rules_are_found_by_their_handles(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    setup_all(host, "nftables")
    wanted = prefixes("10.9.0.1/24", "fd09::1/64")
    new = Owner(NET1, "new", "eth0")
    handles = host.run(lambda: masquerade.setup(new, wanted, "nftables", first=True))
    assert len(handles) == len(wanted)
    listed = listings(monkeypatch)
    assert host.run(masquerade.missing, new, wanted, lambda: handles) == []
    host.run(masquerade.teardown, new, wanted, list, handles)
    assert listed == []
    assert rules_of(host, new) == []
    for owner in PLAN:
        assert sources(host, owner) == addresses(owner)


@pytest.mark.parametrize("others", [True, False], ids=["another's", "gone"])
def test_a_handle_is_only_a_hint(host: Netns, others: bool) -> None:
    """The rule may have been made again since, and the handle be another's by now."""
    setup_all(host, "nftables")
    theirs = host.run(lambda: Table("inet", TABLE).find_rules("masq_checks", TWO.key)[0].handle)
    handles = [theirs if others else 4711]
    assert host.run(masquerade.missing, ONE, prefixes("10.0.0.1/24"), lambda: handles) == []
    host.run(masquerade.teardown, ONE, prefixes("10.0.0.1/24"), list, handles)
    assert rules_of(host, ONE) == []
    for owner in (TWO, THREE, FOUR):
        assert sources(host, owner) == addresses(owner)


def test_a_set_has_few_rules(host: Netns) -> None:
    for number in range(50):
        owner = Owner(NET1, f"c{number}", "eth0")
        wanted = prefixes(f"10.0.0.{number + 1}/24", f"fd00::{number + 1}/64")
        host.run(masquerade.setup, owner, wanted, "set")
    lines = host.exec(["nft", "list", "chain", "inet", "cni_masquerade", "postrouting"]).stdout
    assert [line.strip() for line in lines.splitlines()[3:-2]] == [
        'ip daddr 224.0.0.0/4 return comment "multicast"',
        'ip6 daddr ff00::/8 return comment "multicast"',
        'ip saddr . ip daddr & 255.255.255.0 @inside4_24 return comment "inside4_24"',
        'ip6 saddr . ip6 daddr & ffff:ffff:ffff:ffff:: @inside6_64 return comment "inside6_64"',
        'ip saddr @addresses4 masquerade comment "addresses4"',
        'ip6 saddr @addresses6 masquerade comment "addresses6"',
    ]
    assert host.run(masquerade.missing, owner, wanted) == []


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain {}postrouting",
        "flush table {}",
        "delete table {}",
        "flush set {}addresses4",
        "delete element {}inside4_24 {{ 10.0.0.1 . 10.0.0.0 }}",
        "flush ruleset",
    ],
)
def test_a_damaged_set_is_seen_and_mended(host: Netns, damage: str) -> None:
    wanted = prefixes("10.0.0.1/24")
    host.run(masquerade.setup, ONE, wanted, "set")
    words = damage.format("inet cni_masquerade ").split()
    host.exec(["nft", *words])
    assert len(host.run(masquerade.missing, ONE, wanted)) == 1
    host.run(masquerade.setup, ONE, wanted, "set")
    assert host.run(masquerade.missing, ONE, wanted) == []
    host.run(masquerade.teardown, ONE, [])
    assert elements(host) == []


def test_an_owner_with_more_addresses_than_are_asked_for_at_once(host: Netns) -> None:
    wanted = prefixes(*(f"10.0.0.{number}/24" for number in range(1, 41)))
    host.run(masquerade.setup, ONE, wanted, "set")
    assert len(sources(host, ONE)) == len(wanted)
    host.run(masquerade.setup, ONE, wanted[:3], "set")
    assert sources(host, ONE) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    host.run(masquerade.teardown, ONE, [])
    assert elements(host) == []


@pytest.mark.parametrize("forms", [("set", "nftables"), ("nftables", "set"), ("iptables", "set")])
def test_one_form_after_the_other(host: Netns, forms: tuple[str, str]) -> None:
    """The key was changed while a container ran: CHECK takes either, DEL removes both."""
    wanted = prefixes("10.0.0.1/24", "fd00::1/64")
    for form in forms:
        host.run(masquerade.setup, ONE, wanted, form)
        assert host.run(masquerade.missing, ONE, wanted) == []
    host.run(masquerade.teardown, ONE, wanted)
    assert rules_of(host, ONE) == []


def test_gc_of_a_set_is_one_transaction(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(250):
        owner = Owner(NET1, f"c{number}", "eth0")
        host.run(masquerade.setup, owner, prefixes(f"10.0.{number}.1/16"), "set")
    transactions: list[int] = []
    transact = nft.transact

    def counting(changes: Any, *args: Any, **options: Any) -> list[bytes]:
        transactions.append(len(changes))
        return transact(changes, *args, **options)

    monkeypatch.setattr(nft, "transact", counting)
    host.run(masquerade.collect, NET1, [owner])
    assert len(transactions) == 1
    assert sources(host, owner) == ["10.0.249.1"]


def test_gc_finds_a_chain_nobody_jumps_to(host: Netns) -> None:
    """What a DEL that was killed between its steps leaves."""
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "iptables")
    host.exec(["iptables", "-w", "-t", "nat", "-F", "POSTROUTING"])
    host.run(masquerade.collect, NET1, [])
    assert rules_of(host, ONE) == []


def test_gc_leaves_what_is_not_ours(host: Netns) -> None:
    comment = ("-m", "comment", "--comment", f'name: "{NET1}" id: "x"')
    for command in (
        ("-N", "CNI-DN-0123456789abcdef"),
        ("-A", "CNI-DN-0123456789abcdef", *comment, "-j", "ACCEPT"),
        ("-A", "POSTROUTING", *comment, "-j", "CNI-DN-0123456789abcdef"),
        ("-A", "POSTROUTING", *comment, "-j", "MASQUERADE"),
    ):
        host.exec(["iptables", "-w", "-t", "nat", *command])
    before = iptables_save(host)
    host.run(masquerade.collect, NET1, [])
    assert iptables_save(host) == before


def test_nothing_to_remove_changes_nothing(host: Netns) -> None:
    host.run(masquerade.teardown, ONE, [])
    host.run(masquerade.teardown, ONE, prefixes("10.0.0.1/24", "fd00::1/64"))
    host.run(masquerade.collect, NET1, [])
    host.run(masquerade.setup, ONE, [], None)
    assert nft_tables(host) == set()


@pytest.mark.parametrize("backend", [None, "", *BACKENDS])
def test_backend(host: Netns, backend: str | None) -> None:
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), backend)
    assert (("inet", TABLE) in nft_tables(host)) == (backend == "nftables")
    assert (("inet", "cni_masquerade") in nft_tables(host)) == (backend == "set")
    assert any(ONE.chain() in i for i in iptables_save(host)) == (
        backend not in ("nftables", "set")
    )


def test_unknown_backend(host: Netns) -> None:
    with pytest.raises(CNIError, match=r'^unknown ipmasq backend "ebtables"'):
        host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "ebtables")
    with pytest.raises(CNIError, match=r'^unknown ipmasq backend "x"'):
        masquerade.backend_of("x", in_set=False)
    for backend in (None, "", "iptables", "nftables"):
        assert masquerade.backend_of(backend, in_set=False) == backend
    for backend in (None, "", "nftables"):
        assert masquerade.backend_of(backend, in_set=True) == masquerade.SET
    with pytest.raises(CNIError, match=r"^ipMasqSet cannot be used with ipMasqBackend iptables"):
        masquerade.backend_of("iptables", in_set=True)


# --- an unusable backend --------------------------------------------------------------------------


@pytest.fixture
def no_iptables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cni.files.find_program", lambda _: None)


OTHERS_CHAIN = "postrouting { type filter hook input priority 5; }"


@pytest.fixture
def others_chain(host: Netns) -> None:
    """A chain of somebody else, of the name of ours."""
    host.exec(["nft", f"add table inet {TABLE}; add chain inet {TABLE} {OTHERS_CHAIN}"])


def test_without_iptables_auto_takes_nftables(host: Netns, no_iptables: None) -> None:
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24", "fd00::1/64"), None)
    assert sources(host, ONE) == ["10.0.0.1", "fd00::1"]
    assert host.run(masquerade.missing, ONE, prefixes("10.0.0.1/24", "fd00::1/64")) == []
    assert len(host.run(masquerade.missing, TWO, prefixes("10.0.0.2/24"))) == 1
    host.run(masquerade.teardown, ONE, [])
    assert checks(host) == []


def test_asked_for_iptables_without_it(host: Netns, no_iptables: None) -> None:
    with pytest.raises(IptablesError, match="iptables-restore not found") as caught:
        host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "iptables")
    assert "package iptables" in caught.value.details
    assert nft_tables(host) == set()


@pytest.mark.parametrize(
    ("tool", "text"), [("false", "iptables-restore failed"), ("nosuch", "fork/exec")]
)
def test_broken_iptables(
    host: Netns, monkeypatch: pytest.MonkeyPatch, tool: str, text: str
) -> None:
    monkeypatch.setattr("cni.files.find_program", lambda _: f"/bin/{tool}")
    with pytest.raises(IptablesError, match=text):
        host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "iptables")
    assert not iptables.usable(v6=False)
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), None)
    assert sources(host, ONE) == ["10.0.0.1"]


def test_a_chain_in_the_way_is_named(host: Netns, others_chain: None) -> None:
    before = host.exec(["nft", "list", "ruleset"]).stdout
    with pytest.raises(CNIError, match=r"^failed to set up masquerading with nftables: ") as caught:
        host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "nftables")
    assert caught.value.msg.endswith(
        f"(making chain postrouting in table inet {TABLE}: there is one of type filter hook input "
        "priority 5, and this one is of type nat hook postrouting priority 100)"
    )
    assert f"`nft list chain inet {TABLE} postrouting`" in caught.value.details
    assert host.exec(["nft", "list", "ruleset"]).stdout == before


def test_neither_backend(host: Netns, no_iptables: None, others_chain: None) -> None:
    with pytest.raises(CNIError, match="iptables-restore not found") as caught:
        host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), None)
    assert "there is one of type filter hook input" in caught.value.details
    host.run(masquerade.teardown, ONE, prefixes("10.0.0.1/24"))
    host.run(masquerade.collect, NET1, [])


def test_removal_needs_neither_tool(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24", "fd00::1/64"), "iptables")
    if "nf_tables" not in host.exec(["iptables", "--version"]).stdout:
        pytest.skip("iptables is the legacy variant here")
    monkeypatch.setattr("cni.files.find_program", lambda _: None)
    host.run(masquerade.teardown, ONE, [])
    assert rules_of(host, ONE) == []


def test_half_an_iptables_setup_is_taken_back(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    from cni import files

    real = files.find_program
    monkeypatch.setattr(
        "cni.files.find_program", lambda name: None if name[:3] == "ip6" else real(name)
    )
    with pytest.raises(IptablesError, match="ip6tables-restore not found"):
        host.run(masquerade.setup, TWO, prefixes("10.0.0.2/24", "fd00::2/64"), None)
    assert rules_of(host, TWO) == []


def test_legacy_iptables(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older variant keeps its rules elsewhere in the kernel."""
    from cni import files

    if files.find_program("iptables-legacy-restore") is None:
        pytest.skip("needs iptables-legacy")
    if host.exec(["iptables-legacy", "-w", "-t", "nat", "-S"], check=False).returncode != 0:
        pytest.skip("this kernel has no legacy iptables")
    real = files.find_program
    monkeypatch.setattr(
        "cni.files.find_program", lambda name: real(name.replace("tables", "tables-legacy"))
    )
    setup_all(host, "iptables")
    setup_all(host, "iptables")
    for owner, cidrs in PLAN.items():
        assert host.run(masquerade.missing, owner, prefixes(*cidrs)) == []
    host.run(masquerade.teardown, ONE, [])
    host.run(masquerade.teardown, TWO, prefixes(*PLAN[TWO]))
    host.run(masquerade.collect, NET2, [FOUR])
    assert nft_tables(host) == set()
    for version, chains in (("", set()), ("6", {FOUR.chain()})):
        saved = host.exec([f"ip{version}tables-legacy-save", "-t", "nat"]).stdout.splitlines()
        assert {i.split()[0][1:] for i in saved if i.startswith(":CNI-")} == chains
    host.run(masquerade.collect, NET2, [])


# --- several at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_concurrent(host: Netns, backend: str) -> None:
    """ADDs, repeated ADDs and DELs of eight containers at once."""
    failures: list[BaseException] = []

    def one(number: int) -> None:
        owner = Owner(NET1, f"c{number}", "eth0")
        address = prefixes(f"10.0.0.{number}/24", f"fd00::{number}/64")
        try:
            for _ in range(4):
                host.run(masquerade.setup, owner, address, backend)
                host.run(masquerade.setup, owner, address, backend)
                host.run(masquerade.teardown, owner, [] if number % 2 else address)
            if number % 2:
                host.run(masquerade.setup, owner, address, backend)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for number in range(1, 9):
        owner = Owner(NET1, f"c{number}", "eth0")
        wanted = [f"10.0.0.{number}", f"fd00::{number}"] if number % 2 else []
        assert sources(host, owner) == wanted


def test_same_stale_rules_deleted_by_two(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between look and change, another deletes the same rules: looked at again, no error."""
    calls: list[list[Rule]] = []

    def racing(real: Callable[..., list[Rule]]) -> Callable[..., list[Rule]]:
        def look(table: Table, *args: Any) -> list[Rule]:
            found = real(table, *args)
            calls.append(found)
            if found and len(calls) == 1:
                Table("inet", TABLE).delete([("masq_checks", rule.handle) for rule in found])
            return found

        return look

    operations: list[Callable[[], None]] = [
        lambda: masquerade.setup(ONE, prefixes("10.0.0.1/24"), "nftables"),
        lambda: masquerade.teardown(ONE, []),
        lambda: masquerade.collect(NET1, []),
    ]
    for operation in operations:
        host.run(masquerade.setup, ONE, prefixes("10.0.0.1/24"), "nftables")
        calls.clear()
        for name in ("find_rules", "_unwanted"):
            monkeypatch.setattr(Table, name, racing(getattr(Table, name)))
        host.run(operation)
        monkeypatch.undo()
        assert len(calls) > 1
    assert checks(host) == []


# --- the kept socket -----------------------------------------------------------------------------


def test_each_namespace_has_its_own(host: Netns, container: Netns) -> None:
    """Kept sockets are never used in another namespace, also not by the same thread."""

    def both() -> tuple[list[Rule], list[Rule]]:
        host.enter()
        masquerade.setup(ONE, prefixes("10.0.0.1/24"), "nftables")
        mine = Table("inet", TABLE).find_rules("masq_checks", ONE.key)
        container.enter()
        theirs = Table("inet", TABLE).find_rules("masq_checks", ONE.key)
        masquerade.setup(TWO, prefixes("10.0.0.2/24"), "nftables")
        return mine, theirs

    mine, theirs = host.run(both)
    assert (len(mine), len(theirs)) == (1, 0)
    assert sources(container, TWO) == ["10.0.0.2"]
    assert sources(host, TWO) == []


def test_many_rules_are_deleted_in_batches(host: Netns) -> None:
    for number in range(300):
        owner = Owner(NET1, f"c{number}", "eth0")
        host.run(masquerade.setup, owner, prefixes("10.0.0.1/24"), "nftables")
    host.run(masquerade.collect, NET1, [Owner(NET1, "c7", "eth0")])
    assert [rule["comment"] for rule in checks(host)] == [Owner(NET1, "c7", "eth0").comment]


# --- packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("inside", "neighbour", "beyond", "node"),
    [
        ("10.7.0.2/24", "10.7.0.3/24", "198.51.100.2", "198.51.100.1"),
        ("fd07::2/64", "fd07::3/64", "2001:db8:ffff::2", "2001:db8:ffff::1"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_packets(
    host: Netns,
    container: Netns,
    container2: Netns,
    outside: Netns,
    backend: str,
    inside: str,
    neighbour: str,
    beyond: str,
    node: str,
) -> None:
    connect(host, outside)
    gateway = "10.7.0.1" if "." in inside else "fd07::1"
    for ns, name, cidr in ((container, "c1", inside), (container2, "c2", neighbour)):
        attach(host, ns, name, cidr, gateway)
    host.set_sysctl("net/ipv4/ip_forward", 1)
    host.set_sysctl("net/ipv6/conf/all/forwarding", 1)
    source, peer = inside.partition("/")[0], neighbour.partition("/")[0]
    with tcp_server(outside) as server, tcp_server(container2) as near, udp_server(outside) as udp:
        with pytest.raises(
            OSError, match=r"timed out|unreachable|No route"
        ):  # outside knows no way back
            tcp_exchange(container, beyond, server.port, timeout=0.5)
        host.run(masquerade.setup, ONE, prefixes(inside), backend)
        assert tcp_exchange(container, beyond, server.port) == node
        assert udp_exchange(container, beyond, udp.port) == node
        assert tcp_exchange(container, peer, near.port) == source, "masqueraded in its own subnet"
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):  # another's address
            tcp_exchange(container2, beyond, server.port, timeout=0.5)
        host.run(masquerade.teardown, ONE, prefixes(inside))
        with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
            tcp_exchange(container, beyond, server.port, timeout=0.5)


def attach(host: Netns, ns: Netns, name: str, cidr: str, gateway: str) -> None:
    """A container with a way to everything through the node, its own subnet too."""
    address, _, _ = cidr.partition("/")
    bits = 128 if ":" in cidr else 32
    nodad = "nodad" if ":" in cidr else ""
    host.ip_batch(
        f"link add {name} type veth peer name eth0 netns {ns.name}",
        f"address add {gateway}/{bits} dev {name} {nodad}",
        f"link set {name} up",
        f"route add {address}/{bits} dev {name}",
    )
    ns.ip_batch(
        "link set lo up",
        f"address add {address}/{bits} dev eth0 {nodad}",
        "link set eth0 up",
        f"route add {gateway}/{bits} dev eth0",
        f"route add default via {gateway} dev eth0",
    )


# --- through the plugins --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
@pytest.mark.parametrize("gone", [False, True], ids=["there", "netns-gone"])
def test_plugins(
    runtime: Runtime,
    container: Netns,
    data_dir: Path,
    plugin: str,
    backend: str | None,
    gone: bool,
) -> None:
    """The rules are there after ADD, and not after DEL, with or without the container's netns."""
    conf = go_conf(data_dir) | {"macspoofchk": plugin == "bridge"}
    if backend:
        conf.update(keys(backend))
    result = runtime.add(plugin, conf, container).result
    owner = Owner("masq", container_id(runtime, container), "eth0")
    assert sources(runtime.host, owner) == [i["address"].partition("/")[0] for i in result["ips"]]
    assert bool(checks(runtime.host)) == (backend == "nftables")
    runtime.delete(plugin, conf, None if gone else container).succeeded()
    assert rules_of(runtime.host, owner) == []
    assert nft_rules(runtime.host, "bridge", "nat", "PREROUTING") == []


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_interfaces_that_replace_their_addresses(
    runtime: Runtime, container: Netns, data_dir: Path, plugin: str, backend: str
) -> None:
    """What was noted on the node says which rules are whose, not what the container has."""
    conf = {**go_conf(data_dir), **keys(backend)}
    results = {}
    for ifname in ("eth0", "eth1"):
        results[ifname] = runtime.add(plugin, conf, container, ifname=ifname).result
        container.ip("address", "flush", "dev", ifname)
        container.ip("address", "add", "198.51.100.7/32", "dev", ifname)
    cid = container_id(runtime, container)
    addresses = [ip["address"].partition("/")[0] for ip in results["eth1"]["ips"]]
    runtime.delete(plugin, conf, container, ifname="eth0").succeeded()
    assert sources(runtime.host, Owner("masq", cid, "eth1")) == addresses
    runtime.delete(plugin, conf, container, ifname="eth0").succeeded()
    assert sources(runtime.host, Owner("masq", cid, "eth1")) == addresses
    runtime.delete(plugin, conf, container, ifname="eth1").succeeded()
    for ifname in ("eth0", "eth1"):
        assert rules_of(runtime.host, Owner("masq", cid, ifname)) == []


def test_a_jump_that_nobody_noted_goes_with_the_chain(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    """The noted handles are not all that leads to the chain, as the kernel's count says."""
    conf = {**go_conf(data_dir), **keys("iptables")}
    runtime.add("bridge", conf, container).succeeded()
    chain = Owner("masq", container_id(runtime, container), "eth0").chain()
    more = f"-t nat -A POSTROUTING -s 198.51.100.9 -j {chain}"
    runtime.host.exec(["iptables", "-w", *more.split()])
    assert sum(chain in line for line in iptables_save(runtime.host)) > 3
    runtime.delete("bridge", conf, container).succeeded()
    assert not any(chain in line for line in iptables_save(runtime.host))


# --- the reference's rules ------------------------------------------------------------------------


def go_conf(data_dir: Path) -> dict:
    ranges = [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]
    return {
        "cniVersion": "1.0.0",
        "name": "masq",
        "type": "bridge",
        "bridge": "masq0",
        "ipMasq": True,
        "ipam": {"type": "host-local", "dataDir": str(data_dir), "ranges": ranges},
    }


@pytest.mark.parametrize("known", [True, False], ids=["addresses", "no-addresses"])
def test_ours_removes_what_go_made(
    go_runtime: Runtime, container: Netns, data_dir: Path, known: bool
) -> None:
    host, conf = go_runtime.host, go_conf(data_dir)
    result = go_runtime.add("bridge", conf, container).result
    owner = Owner("masq", container_id(go_runtime, container), "eth0")
    cidrs = [ip["address"] for ip in result["ips"]]
    assert len(cidrs) == 2
    assert host.run(masquerade.missing, owner, prefixes(*cidrs)) == []
    host.run(masquerade.setup, owner, prefixes(*cidrs), None)  # adds nothing to it
    assert sources(host, owner) == [c.partition("/")[0] for c in cidrs]
    host.run(masquerade.teardown, owner, prefixes(*cidrs) if known else [])
    assert rules_of(host, owner) == []


def test_gc_removes_what_go_made(go_runtime: Runtime, container: Netns, data_dir: Path) -> None:
    host, conf = go_runtime.host, go_conf(data_dir)
    go_runtime.add("bridge", conf, container).succeeded()
    owner = Owner("masq", container_id(go_runtime, container), "eth0")
    host.run(masquerade.collect, "masq", [owner])
    assert len(sources(host, owner)) == 2
    host.run(masquerade.collect, "masq", [])
    assert rules_of(host, owner) == []


def test_go_removes_what_ours_made(go_runtime: Runtime, container: Netns, data_dir: Path) -> None:
    host, conf = go_runtime.host, go_conf(data_dir)
    result = go_runtime.add("bridge", conf, container).result
    owner = Owner("masq", container_id(go_runtime, container), "eth0")
    cidrs = [ip["address"] for ip in result["ips"]]
    host.run(masquerade.teardown, owner, prefixes(*cidrs))
    host.run(masquerade.setup, owner, prefixes(*cidrs), "iptables")
    go_runtime.delete("bridge", conf, container).succeeded()
    assert rules_of(host, owner) == []


def container_id(runtime: Runtime, container: Netns) -> str:
    return runtime.environment("ADD", container)["CNI_CONTAINERID"]
