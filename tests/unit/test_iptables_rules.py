"""iptables rules as nf_tables expressions (the kernel: netns/test_iptables_netlink.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.kernel import netlink as nl
from cni.kernel.errors import Unwritable
from cni.netfilter import iptables, iptables_netlink
from cni.netfilter import iptables_rules as xt

WORDS = st.sampled_from(
    [
        *("-A", "-I", "-s", "-d", "-i", "-o", "-p", "-m", "-j", "!", "1", "A", "10.0.0.0/8"),
        *("fd00::/9", "tcp", "sctp", "comment", "--comment", "multiport", "--dports", "1,2"),
        *("--dport", "70000", "DNAT", "--to-destination", "1.2.3.4:5", "mark", "--mark", "0x1/0x1"),
        *("ACCEPT", "conntrack", "--ctstate", "RELATED", "addrtype", "LOCAL", "-1", '"', '"x"'),
    ]
)


def dumped(rule: xt.Encoded, packets: int, *, after: bytes = b"") -> bytes:
    """The rule in the kernel's words, with these packets counted."""
    counter = nl.attr(1, nl.text(1, "counter") + nl.attr(2, nl.attr(2, packets.to_bytes(8, "big"))))
    expressions = nl.attr(4, rule.head + counter + after + rule.tail)
    return bytes(4) + nl.text(1, "nat") + nl.text(2, rule.chain) + expressions


@given(st.booleans(), st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=60))
def test_unknown_is_said_so(v6: bool, rule: str) -> None:
    """Any text is a rule or Unwritable, and nothing else."""
    try:
        encoded = xt.encode(v6, rule)
    except Unwritable:
        return
    assert encoded.tail
    assert encoded.is_in(dumped(encoded, 0))


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=80))
def test_any_comment(text: str) -> None:
    (word,) = xt._words(iptables.comment(text).partition("--comment ")[2])
    assert word == text


@given(st.text(max_size=9), st.characters(max_codepoint=31), st.text(max_size=9))
def test_a_control_character_is_no_part_of_a_rule(before: str, control: str, after: str) -> None:
    with pytest.raises(Unwritable):
        xt.encode(False, f"-A A {before}{control}{after} -j B")


def test_a_rule_whatever_it_counted() -> None:
    rule = xt.encode(False, "-A A -s 10.0.0.0/24 -j B")
    for packets in (0, 7, 2**64 - 1):
        assert rule.is_in(dumped(rule, packets))
    more = nl.attr(1, nl.text(1, "counter"))
    assert not rule.is_in(dumped(rule, 0, after=more))
    for other in ("-A A -s 10.0.1.0/24 -j B", "-A A -s 10.0.0.0/24 -j C", "-A A -j B"):
        assert not rule.is_in(dumped(xt.encode(False, other), 0))
        assert not xt.encode(False, other).is_in(dumped(rule, 0))
    assert not rule.is_in(b"")


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "-A A",
        "-A A -j",
        "-A A -j ACCEPT -s 10.0.0.1/32",
        "-A A -j X --with options",
        "-A A -j MARK",
        "-A A -j MARK --set-xmark 0x1/0x3",
        "-A A -j DNAT --to-destination 10.0.0.1",
        "-A A -j DNAT --to-destination [fd00::1]:80",
        "-A A -s fd00::1/128 -j ACCEPT",
        "-A A -s 0.0.0.0/0 -j ACCEPT",
        "-A A -i eth+ -j ACCEPT",
        "-A A -i sixteencharacter -j ACCEPT",
        "-A A ! -p tcp -j ACCEPT",
        "-A A -m tcp --dport 80 -j ACCEPT",
        "-A A -p udp -m tcp --dport 80 -j ACCEPT",
        "-A A -p tcp -m tcp --sport 80 -j ACCEPT",
        "-A A -p tcp -m tcp --dport 80:90 -j ACCEPT",
        "-A A -p tcp -m tcp --dport 65536 -j ACCEPT",
        f"-A A -p tcp -m multiport --dports {','.join('1' * 16)} -j ACCEPT",
        "-A A -m conntrack --ctstate NEW -j ACCEPT",
        "-A A -m owner --uid-owner 0 -j ACCEPT",
        f"-A A {iptables.comment('x' * 256)} -j ACCEPT",
        '-A A -m comment --comment "x -j ACCEPT',
    ],
)
def test_unwritable(rule: str) -> None:
    with pytest.raises(Unwritable):
        xt.encode(False, rule)


def test_ports_of_an_entry() -> None:
    rule = xt.encode(False, "-A A -p tcp -m multiport --dports 80,443 -j B")
    data = dumped(rule, 1)
    assert xt.ports_of(data) == [80, 443]
    start = data.index(b"multiport\0")
    assert xt.ports_of(data[: start + 40]) is None
    assert xt.ports_of(dumped(xt.encode(False, "-A A -p tcp -m tcp --dport 80 -j B"), 1)) is None
    inverted = data.replace(xt._PORTS.pack(1, 2, 80, 443, *[0] * 13, b"", 0), bytes(47) + b"\1")
    assert xt.ports_of(inverted) is None


@pytest.mark.parametrize(
    ("program", "version"),
    [
        (b"\x7fELF\0..\x001.8.9 (nf_tables)\0", (1, 8, 9)),
        (b"\0001.4.x\0\0001.8.10\0", (1, 8, 10)),
        (b"\x001.", ()),
        (b"", ()),
        (b"\x001.8.9-rc1\0", ()),
    ],
)
def test_version(program: bytes, version: tuple[int, ...]) -> None:
    assert iptables_netlink.version(program) == version
