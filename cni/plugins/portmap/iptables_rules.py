"""portmap's rules in iptables-save's words: written, and read back (docs/spec/portmap.md).

PREROUTING, OUTPUT   for an address of the node: to CNI-HOSTPORT-DNAT
CNI-HOSTPORT-DNAT    by protocol and ports (15 a rule): to the container's chain
CNI-DN-<hash>        marks what has to be masqueraded, DNAT
POSTROUTING          CNI-HOSTPORT-MASQ masquerades what is marked
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ...netfilter import iptables
from ...owner import Owner
from ...protocol.address import Prefix, format_ip
from .want import Want

DNAT = "CNI-HOSTPORT-DNAT"
_SETMARK, _MASQ = "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
_LOCAL = "-m addrtype --dst-type LOCAL"
_PORTS_A_RULE = 15  # more does not fit the match `multiport`
_COMMENT_MAX = 255


class Forward(NamedTuple):
    """A container's DNAT rule: the packets it matches (host IP, protocol, port), and its target."""

    chain: str
    key: tuple[str, str, str]
    target: str


# --- written --------------------------------------------------------------------------------------


def shared_rules(want: Want) -> list[str]:
    """The rules that all containers need."""
    mark = f"{want.mark:#x}"
    rules = [f"-A {chain} {_LOCAL} -j {DNAT}" for chain in ("PREROUTING", "OUTPUT")]
    if want.snat and not want.mark_chain:
        set_mark = iptables.comment("CNI portfwd masquerade mark")
        requiring = iptables.comment("CNI portfwd requiring masquerade")
        rules += [
            f"-A {_SETMARK} {set_mark} -j MARK --set-xmark {mark}/{mark}",
            f"-A {_MASQ} -m mark --mark {mark}/{mark} -j MASQUERADE",
            f"-A POSTROUTING {requiring} -j {_MASQ}",
        ]
    return rules


def entry_rules(want: Want) -> list[str]:
    """The jumps to the container's chain, without conditions, which have no fixed form."""
    chain = want.owner.chain("DN-")
    opening = _comment(want.owner)
    rules = []
    for protocol in sorted({port.protocol for port in want.ports}):
        ports = [str(port.host_port) for port in want.ports if port.protocol == protocol]
        for start in range(0, len(ports), _PORTS_A_RULE):
            group = ",".join(ports[start : start + _PORTS_A_RULE])
            rules.append(
                f"-A {DNAT} -p {protocol} {opening} -m multiport --dports {group} -j {chain}"
            )
    return rules


def _comment(owner: Owner) -> str:
    text = f"dnat {owner.iptables_comment}"
    if len(text) > _COMMENT_MAX:
        # cut as the reference cuts it (docs/spec/portmap.md)
        text = f"{text[:253]}..."[:_COMMENT_MAX]
    return iptables.comment(text)


def container_rules(want: Want, address: Prefix) -> list[str]:
    """The rules of the container's chain."""
    chain, mark = want.owner.chain("DN-"), want.mark_chain or _SETMARK
    ip = format_ip(address.ip)
    target = ip if address.is_v4 else f"[{ip}]"
    sources = [] if not want.snat else [""] if want.masq_all else _sources(address)
    rules = []
    for port in want.ports_of(address):
        where = f"-d {Prefix(port.host_ip, address.bits)} " if port.host_ip else ""
        what = f"{where}-p {port.protocol} -m {port.protocol} --dport {port.host_port}"
        rules += [f"-A {chain} {source}{what} -j {mark}" for source in sources]
        rules.append(f"-A {chain} {what} -j DNAT --to-destination {target}:{port.container_port}")
    return rules


def _sources(address: Prefix) -> list[str]:
    # iptables-save leaves a source of length 0 out
    subnet = f"-s {address.network} " if address.length else ""
    return [subnet, "-s 127.0.0.1/32 "] if address.is_v4 else [subnet]


def with_conditions(rule: str, conditions: list[str]) -> str:
    """An entry rule with the network's conditions before its jump."""
    if not conditions:
        return rule
    head, jump, chain = rule.rpartition(" -j ")
    return f"{head} {' '.join(_quoted(word) for word in conditions)}{jump}{chain}"


def _quoted(word: str) -> str:
    plain = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"' if plain != word or " " in word or not word else word


def delete(rule: str) -> str:
    """The line that deletes a rule (`-A …`)."""
    return f"-D{rule[2:]}"


# --- read back ------------------------------------------------------------------------------------


def entries(saved: list[str], chain: str) -> list[str]:
    """The rules that lead to a container's chain."""
    return [i for i in saved if i.startswith(f"-A {DNAT} ") and i.endswith(f" -j {chain}")]


def same_ports(entry: str, wanted: Iterable[str]) -> bool:
    """Is the entry for the protocol and ports of one of the wanted entries?"""
    return ports_of(entry) in {ports_of(rule) for rule in wanted}


def ports_of(entry: str) -> tuple[str, str]:
    """Protocol and ports of an entry, as written."""
    return word_after(entry, "-p"), word_after(entry, "--dports")


def word_after(rule: str, option: str) -> str:
    """The word behind an option in a rule; empty without the option. Not for comments."""
    words = rule.split()
    return words[words.index(option) + 1] if option in words[:-1] else ""


def forwards(saved: list[str]) -> list[Forward]:
    """All DNAT rules of containers, of this plugin and of the reference."""
    return [
        Forward(
            line.split()[1],
            (
                word_after(line, "-d").partition("/")[0],
                word_after(line, "-p"),
                word_after(line, "--dport"),
            ),
            word_after(line, "--to-destination").rpartition(":")[0].strip("[]"),
        )
        for line in saved
        if line.startswith("-A CNI-DN-") and " -j DNAT " in line
    ]


def is_plain(entry: str) -> bool:
    """Has an entry rule no conditions?"""
    head, _, rest = entry.partition(" -m comment --comment ")
    tail = rest.rpartition('" ')[2]
    return len(head.split()) == 4 and tail.startswith("-m multiport ") and len(tail.split()) == 6


def names_port(entry: str, port: str) -> bool:
    """Is the entry for this port, among others?"""
    return port in word_after(entry, "--dports").split(",")


def owner_of(entry: str) -> Owner | None:
    """The network and container that an entry rule's comment names."""
    _, opening, rest = entry.partition('"dnat name: \\"')
    network, _, rest = rest.partition('\\" id: \\"')
    container_id, end, _ = rest.partition('\\"')
    return Owner(network, container_id, "") if opening and end else None


def removal(saved: list[str], chain: str, parent: str = DNAT) -> list[str]:
    """The lines that remove a chain and the jumps to it; [] without the chain."""
    if not any(line.startswith(f":{chain} ") for line in saved):
        return []
    jumps = [i for i in saved if i.startswith(f"-A {parent} ") and i.endswith(f" -j {chain}")]
    return [*(delete(line) for line in jumps), f"-F {chain}", f"-X {chain}"]
