"""The MAC spoof check (docs/spec/common.md §7) on a real bridge with real frames."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from cni.kernel import link
from cni.kernel.errors import NetlinkError
from cni.netfilter import nft
from cni.netfilter.table import Rule, Table
from cni.plugins.bridge import plugin, spoofcheck
from cni.protocol.errors import CNIError
from tests.harness import Netns, nft_rules, nft_tables
from tests.harness import nft as nft_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.kernel.link import Link
    from cni.kernel.netlink import Netlink

MAC, OTHER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:99"
REF = f"{'c1' * 32}-eth0"  # as runtimes name containers: 64 hexadecimal digits
IFACE, MAC_CHAIN = f"cni-br-iface-{REF}", f"cni-br-iface-{REF}-mac"
ETHERTYPE = 0x88B5  # for experiments


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    nft.forget()


def rules(host: Netns, chain: str) -> list[dict]:
    return nft_rules(host, "bridge", "nat", chain)


def chains(host: Netns) -> list[str]:
    return [i["chain"]["name"] for i in nft_list(host, "table", "bridge", "nat") if "chain" in i]


def test_rules(host: Netns) -> None:
    host.run(spoofcheck.setup, REF, "vethx", MAC)
    [base] = [
        i["chain"]
        for i in nft_list(host, "table", "bridge", "nat")
        if "chain" in i and i["chain"]["name"] == "PREROUTING"
    ]
    assert (base["type"], base["hook"], base["prio"], base["policy"]) == (
        "filter",
        "prerouting",
        -300,
        "accept",
    )
    [jump] = rules(host, "PREROUTING")
    [to_mac] = rules(host, IFACE)
    true_mac, drop = rules(host, MAC_CHAIN)
    assert jump["expr"] == [
        {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "vethx"}},
        {"jump": {"target": IFACE}},
    ]
    assert to_mac["expr"] == [{"jump": {"target": MAC_CHAIN}}]
    source = {"payload": {"protocol": "ether", "field": "saddr"}}
    assert true_mac["expr"] == [
        {"match": {"op": "==", "left": source, "right": MAC}},
        {"return": None},
    ]
    assert drop["expr"] == [{"drop": None}]
    for rule in (jump, to_mac, true_mac, drop):
        assert rule["comment"] == f"macspoofchk-{REF}"


def test_another_owner_s_policy_stays(host: Netns) -> None:
    """The table and its chain have names that others use, too."""
    chain = "{ type filter hook prerouting priority -300; policy drop; }"
    host.exec(["nft", "add", "table", "bridge", "nat"])
    host.exec(["nft", "add", "chain", "bridge", "nat", "PREROUTING", chain])
    host.run(spoofcheck.setup, REF, "vethx", MAC)
    [policy] = [
        i["chain"]["policy"]
        for i in nft_list(host, "table", "bridge", "nat")
        if "chain" in i and i["chain"]["name"] == "PREROUTING"
    ]
    assert policy == "drop"
    assert rules(host, "PREROUTING")


def test_setup_and_teardown_repeat(host: Netns) -> None:
    for mac in (MAC, OTHER_MAC):
        host.run(spoofcheck.setup, REF, "vethx", mac)
        counts = [len(rules(host, chain)) for chain in ("PREROUTING", IFACE, MAC_CHAIN)]
        assert counts == [1, 1, 2]
        assert rules(host, MAC_CHAIN)[0]["expr"][0]["match"]["right"] == mac
    for _ in range(2):
        host.run(spoofcheck.teardown, REF)
        assert chains(host) == ["PREROUTING"]  # table and base chain remain
        assert rules(host, "PREROUTING") == []


def test_teardown_of_nothing(host: Netns) -> None:
    host.run(spoofcheck.teardown, REF)
    assert nft_tables(host) == set()


def test_teardown_takes_only_its_own(host: Netns) -> None:
    host.run(spoofcheck.setup, "c1-eth0", "veth1", MAC)
    host.run(spoofcheck.setup, "c1-eth01", "veth2", OTHER_MAC)
    host.run(spoofcheck.teardown, "c1-eth0")
    assert [rule["comment"] for rule in rules(host, "PREROUTING")] == ["macspoofchk-c1-eth01"]
    assert len(rules(host, "cni-br-iface-c1-eth01-mac")) == 2


@pytest.mark.parametrize("length", [110, 111, 128, 200, 500])
def test_long_references(host: Netns, length: int) -> None:
    first, second = "d" * (length - 1) + "1", "d" * (length - 1) + "2"
    for ref, name in ((first, "veth1"), (second, "veth2")):
        host.run(spoofcheck.setup, ref, name, MAC)
    assert len(rules(host, "PREROUTING")) == 2
    assert len(chains(host)) == 5
    host.run(spoofcheck.gc, lambda: {"veth1"})
    [rule] = rules(host, "PREROUTING")
    assert rule["expr"][0]["match"]["right"] == "veth1"
    host.run(spoofcheck.teardown, first)
    assert chains(host) == ["PREROUTING"]


def test_gc(host: Netns) -> None:
    for number in range(4):
        host.run(spoofcheck.setup, f"c{number}-eth0", f"veth{number}", MAC)
    host.exec(["nft", "add", "rule", "bridge", "nat", "PREROUTING", "counter"])
    host.exec(["nft", "add", "chain", "bridge", "nat", "mine"])
    host.run(spoofcheck.gc, lambda: {"lo", "veth1", "veth3"})
    refs = [rule.get("comment") for rule in rules(host, "PREROUTING")]
    assert refs == ["macspoofchk-c1-eth0", "macspoofchk-c3-eth0", None]
    host.run(spoofcheck.gc, set)
    assert sorted(chains(host)) == ["PREROUTING", "mine"]
    assert len(rules(host, "PREROUTING")) == 1


def test_gc_leaves_an_add_alone_that_comes_meanwhile(
    host: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that makes its link after all links were listed, and its rules at once."""
    list_all = link.list_all

    def listed_just_before(sock: Netlink) -> list[Link]:
        links = list_all(sock)
        host.ip("link", "add", "veth2", "type", "veth", "peer", "name", "peer2")
        spoofcheck.setup("c2-eth0", "veth2", MAC)
        return links

    host.run(spoofcheck.setup, "c1-eth0", "veth1", MAC)
    monkeypatch.setattr(link, "list_all", listed_just_before)
    host.run(plugin._collect_spoofchecks)
    second = "cni-br-iface-c2-eth0"
    assert sorted(chains(host)) == ["PREROUTING", second, f"{second}-mac"]


def test_setup_fails(host: Netns) -> None:
    """A base chain of another type is in the way: an error, and nothing half done."""
    base = "PREROUTING { type filter hook input priority 0; }"
    host.exec(["nft", f"add table bridge nat; add chain bridge nat {base}"])
    with pytest.raises(CNIError, match=r"^failed to setup spoof-check: ") as caught:
        host.run(spoofcheck.setup, REF, "vethx", MAC)
    assert caught.value.msg.endswith(
        "(making chain PREROUTING in table bridge nat: there is one of type filter hook input "
        "priority 0, and this one is of type filter hook prerouting priority -300)"
    )
    assert "`nft list chain bridge nat PREROUTING`" in caught.value.details
    assert chains(host) == ["PREROUTING"]


def test_teardown_collects_errors(host: Netns) -> None:
    """One chain in use by others, another deletion refused: the rest goes, both are told."""
    host.run(spoofcheck.setup, REF, "vethx", MAC)
    host.exec(["nft", "add chain bridge nat other"])
    host.exec(["nft", f"add rule bridge nat other jump {IFACE}"])
    host.exec(["nft", f"add rule bridge nat other jump {MAC_CHAIN}"])
    with pytest.raises(CNIError) as caught:
        host.run(spoofcheck.teardown, REF)
    message = caught.value.msg
    assert message.startswith("failed to teardown spoof-check: ")
    assert f"chain {IFACE}: " in message
    assert f", failed to delete chain {MAC_CHAIN}: " in message
    assert rules(host, "PREROUTING") == []
    host.exec(["nft", "flush chain bridge nat other"])
    host.run(spoofcheck.teardown, REF)
    assert sorted(chains(host)) == ["PREROUTING", "other"]


def test_teardown_rule_that_cannot_be_deleted(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run(spoofcheck.setup, REF, "vethx", MAC)

    def refuse(*args: object) -> None:
        raise NetlinkError(1)

    monkeypatch.setattr(Table, "delete", refuse)
    with pytest.raises(CNIError, match=r"rule in PREROUTING: .*, failed to delete chain"):
        host.run(spoofcheck.teardown, REF)


# --- handles --------------------------------------------------------------------------------------


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The chains of which all rules have been listed."""
    chains: list[str] = []
    find_rules_with = Table.find_rules_with

    def listing(table: Table, chain: str, mark: bytes) -> list[Rule]:
        chains.append(chain)
        return find_rules_with(table, chain, mark)

    monkeypatch.setattr(Table, "find_rules_with", listing)
    return chains


def test_the_noted_rule_is_found_without_a_list(host: Netns, listed: list[str]) -> None:
    host.run(spoofcheck.setup, "c2-eth0", "veth2", OTHER_MAC)
    handle = host.run(spoofcheck.setup, REF, "veth1", MAC)
    assert handle > 0
    host.run(spoofcheck.teardown, REF, handle)
    host.run(spoofcheck.teardown, REF, handle)  # which finds nothing, and lists nothing either
    assert listed == []
    assert [rule["comment"] for rule in rules(host, "PREROUTING")] == ["macspoofchk-c2-eth0"]
    assert sorted(chains(host)) == ["PREROUTING", *spoofcheck._chains("c2-eth0")]


@pytest.mark.parametrize("hint", ["another's", "gone", "of two"])
def test_a_handle_is_only_a_hint(host: Netns, hint: str) -> None:
    """The rules may have been made again since, by `cni reload` or by the reference."""
    theirs = host.run(spoofcheck.setup, "c2-eth0", "veth2", OTHER_MAC)
    handle = host.run(spoofcheck.setup, REF, "veth1", MAC)
    if hint == "of two":
        twin = f'iifname veth9 jump {IFACE} comment "macspoofchk-{REF}"'
        host.exec(["nft", f"add rule bridge nat PREROUTING {twin}"])
    wrong = {"another's": theirs, "gone": handle + 1000, "of two": handle}
    host.run(spoofcheck.teardown, REF, wrong[hint])
    assert [rule["comment"] for rule in rules(host, "PREROUTING")] == ["macspoofchk-c2-eth0"]
    assert sorted(chains(host)) == ["PREROUTING", *spoofcheck._chains("c2-eth0")]


def test_a_rule_of_others_stays_whatever_is_noted(host: Netns) -> None:
    """Somebody's own rule that leads to the chain is not removed by its handle."""
    host.run(spoofcheck.setup, REF, "veth1", MAC)
    host.exec(["nft", f"add rule bridge nat PREROUTING iifname veth9 jump {IFACE}"])
    mine = host.run(
        lambda: max(r.handle for r in Table("bridge", "nat").find_rules_with("PREROUTING", b""))
    )
    with pytest.raises(CNIError, match=f"failed to delete chain {IFACE}"):
        host.run(spoofcheck.teardown, REF, mine)
    [rule] = rules(host, "PREROUTING")
    assert "comment" not in rule


@pytest.mark.parametrize("disturbed", [False, True], ids=["alone", "one is held"])
def test_gc_lists_the_base_chain_once(host: Netns, listed: list[str], disturbed: bool) -> None:
    for number in range(5):
        host.run(spoofcheck.setup, f"c{number}-eth0", f"veth{number}", MAC)
    held = "cni-br-iface-c3-eth0"
    if disturbed:
        host.exec(["nft", f"add chain bridge nat other; add rule bridge nat other jump {held}"])
        with pytest.raises(CNIError, match=f"failed to delete chain {held}"):
            host.run(spoofcheck.gc, lambda: {"veth0"})
        host.exec(["nft", "delete chain bridge nat other"])
        there = spoofcheck._chains("c0-eth0") + spoofcheck._chains("c3-eth0")
        assert sorted(chains(host)) == ["PREROUTING", *there]
    else:
        host.run(spoofcheck.gc, lambda: {"veth0"})
        assert listed == ["PREROUTING"]
        assert sorted(chains(host)) == ["PREROUTING", *spoofcheck._chains("c0-eth0")]
    assert [rule["comment"] for rule in rules(host, "PREROUTING")] == ["macspoofchk-c0-eth0"]


# --- frames ---------------------------------------------------------------------------------------


@pytest.fixture
def bridge(host: Netns, container: Netns, container2: Netns) -> Netns:
    """A bridge with two containers; the first one's host link is veth1."""
    host.ip("link", "add", "br0", "type", "bridge", "forward_delay", "0")
    host.ip("link", "set", "br0", "up")
    for number, ns in ((1, container), (2, container2)):
        peer = ("peer", "name", "eth0", "address", f"02:00:00:00:00:0{number}", "netns", ns.name)
        host.ip("link", "add", f"veth{number}", "type", "veth", *peer)
        host.ip_batch(f"link set veth{number} master br0", f"link set veth{number} up")
        ns.ip_batch("link set lo up", "link set eth0 up")
    return host


def passes(sender: Netns, receiver: Netns, source: str) -> bool:
    """Does a broadcast frame with this source address get from one container to the other?"""
    packet = socket.AF_PACKET
    with (
        receiver.socket(packet, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as listener,
        sender.socket(packet, socket.SOCK_RAW) as out,
    ):
        listener.settimeout(0.3)
        out.bind(("eth0", 0))
        mac = bytes.fromhex(source.replace(":", ""))
        frame = b"\xff" * 6 + mac + struct.pack("!H", ETHERTYPE) + b"test".ljust(50, b"\0")
        for _ in range(3):
            out.send(frame)
        try:
            return listener.recv(2048)[6:12] == mac
        except TimeoutError:
            return False


def wait_until_forwarding(sender: Netns, receiver: Netns) -> None:
    assert any(passes(sender, receiver, MAC) for _ in range(20)), "the bridge forwards nothing"


def test_frames(bridge: Netns, container: Netns, container2: Netns) -> None:
    wait_until_forwarding(container, container2)
    assert passes(container, container2, OTHER_MAC)
    bridge.run(spoofcheck.setup, REF, "veth1", MAC)
    assert passes(container, container2, MAC)
    assert not passes(container, container2, OTHER_MAC)
    assert passes(container2, container, OTHER_MAC), "another container is affected"
    bridge.run(spoofcheck.teardown, REF)
    assert passes(container, container2, OTHER_MAC)
