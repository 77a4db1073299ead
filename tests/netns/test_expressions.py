"""What we write into nftables ourselves is what libnftables would have written.

Both are made, each in a namespace of its own, and compared: as `nft` lists them, and as the kernel
dumps them, byte for byte, but for the handles, which count what was there before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni.kernel import netlink as nl
from cni.netfilter import elements as nft_elements
from cni.netfilter import nft, uapi
from cni.netfilter.table import Table
from cni.owner import Owner
from cni.plugins.firewall import backend_nft
from cni.plugins.firewall.want import Ingress
from cni.plugins.firewall.want import Want as FirewallWant
from cni.plugins.portmap import nft_chains
from cni.plugins.portmap.want import Port, Want
from cni.plugins.shared.masquerade import backend_nft as masquerade
from cni.protocol.address import Prefix, parse_ip
from tests.harness import Netns, requires_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = requires_kernel("nft")

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
                family = {1: "inet", 2: "ip", 10: "ip6"}[data[0]]
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

    assert_same(host, container, lambda: nft.shared().run_text(nft_chains.script(chains)), ours)
    before = container.exec(["nft", "list", "ruleset"]).stdout
    rules = {chain.name: len(chain.rules) for chain in chains}

    def again() -> None:
        family = nft_chains.family_of(address)
        nft.transact(nft_chains.skeleton(family, chains, rules))

    container.run(again)
    assert container.exec(["nft", "list", "ruleset"]).stdout == before


@pytest.mark.parametrize(
    "cidr",
    [
        *(f"10.0.0.9/{length}" for length in (0, 1, 8, 12, 23, 24, 31, 32)),
        *(f"fd00::9/{length}" for length in (0, 7, 48, 61, 64, 127, 128)),
    ],
)
def test_masquerade(host: Netns, container: Netns, cidr: str) -> None:
    prefix = Prefix.parse(cidr)

    def theirs() -> None:
        masquerade._render(OTHER, [Prefix.parse("10.9.9.9/8")])
        masquerade._render(OWNER, [prefix])

    def ours() -> None:
        masquerade._render(OTHER, [Prefix.parse("10.9.9.9/8")])
        assert masquerade._add(OWNER, [prefix])

    assert_same(host, container, theirs, ours)


@pytest.mark.parametrize("policy", ["", "same-bridge", "isolated"])
def test_firewall(host: Netns, container: Netns, policy: str) -> None:
    ingress = Ingress(policy, "cni0") if policy else None
    addresses = [Prefix.parse("10.0.0.9/32"), Prefix.parse("fd00::9/128")]

    def by(owner: Owner) -> FirewallWant:
        return FirewallWant(owner, addresses, "CNI-ADMIN", "trusted", ingress)

    def theirs() -> None:
        backend_nft._render(by(OTHER), True)
        backend_nft._render(by(OWNER), True)

    def ours() -> None:
        backend_nft._render(by(OTHER), True)
        assert backend_nft._add_elements(by(OWNER), True)

    assert_same(host, container, theirs, ours)


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "flush chain inet cni_firewall forward",
        "insert rule inet cni_firewall forward accept",
        "add rule inet cni_firewall forward accept",
        "flush chain inet cni_firewall admin",
    ],
)
def test_a_firewall_that_is_not_as_it_should_be_is_made_anew(host: Netns, command: str) -> None:
    wanted = FirewallWant(OWNER, [Prefix.parse("10.0.0.9/32")], "CNI-ADMIN", "trusted", None)

    def text() -> str:
        return host.exec(["nft", "list", "ruleset"]).stdout

    host.run(backend_nft.setup, wanted)
    before = text()
    host.exec(["nft", *command.split()])
    assert text() != before
    host.run(backend_nft.setup, wanted)
    assert text() == before


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "flush chain inet cni_plugins_masquerade postrouting",
        "add rule inet cni_plugins_masquerade postrouting accept",
        "insert rule inet cni_plugins_masquerade postrouting ip daddr 10.0.0.0/8 return",
    ],
)
def test_masquerading_that_is_not_as_it_should_be_is_made_anew(host: Netns, command: str) -> None:
    prefixes = [Prefix.parse("10.0.0.9/24")]

    def text() -> str:
        return host.exec(["nft", "list", "ruleset"]).stdout

    host.run(masquerade.setup, OWNER, prefixes)
    before = text()
    host.exec(["nft", *command.split()])
    host.run(masquerade.setup, OWNER, prefixes)
    assert text() == before
