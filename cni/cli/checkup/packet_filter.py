"""The packet filter: variants of iptables, chains that drop, rules that were flushed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from shlex import quote

from cni import files, process
from cni.cli import status
from cni.cli.view import attachments, published, ruleset
from cni.cli.view.attached import Attached, Places
from cni.cli.view.namespaces import Live
from cni.kernel.errors import NetlinkError
from cni.netfilter.table import drop_policies
from cni.plugins.firewall.want import SYSTEM_BUS

from .finding import ERROR, OK, WARNING, Finding, Situation, Unseen

AREA = "packet filter"
# The tables in which the plugin firewall decides: a chain there that drops is where it accepts.
_OWN_TABLES = ("cni_firewall",)
_BY_IPTABLES = "filter"


def variants(_situation: Situation) -> Iterator[Finding]:
    """Rules of iptables-legacy and of iptables-nft both count, and neither shows the other's."""
    tool = _variant()
    legacy = _legacy_rules()
    if tool == "nf_tables" and legacy:
        text = (
            f"iptables is that of nftables, but iptables-legacy has rules, too ({legacy}): both "
            "count, and neither tool shows the other's"
        )
        yield Finding(WARNING, AREA, text, "iptables-legacy-save")
    elif tool == "legacy" and _nft_tables_of_iptables():
        text = (
            "iptables is the legacy one, but iptables-nft has rules, too: both count, and neither "
            "tool shows the other's"
        )
        yield Finding(WARNING, AREA, text, "iptables-nft-save")
    elif tool:
        yield Finding(OK, AREA, f"iptables is the variant {tool}")
    else:
        yield Finding(OK, AREA, "iptables is not installed: plugins use nftables")


def _variant() -> str:
    """``nf_tables`` or ``legacy``; empty if there is no iptables."""
    program = files.find_program("iptables")
    if program is None:
        return ""
    text = _output([program, "--version"])
    return "nf_tables" if "nf_tables" in text else "legacy"


def _output(argv: list[str]) -> str:
    """What a program prints; empty if it fails."""
    # The output is parsed, so it must not be translated.
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        code, stdout, _ = process.run(argv[0], argv, b"", env)
    except OSError:
        return ""
    return stdout.decode(errors="replace") if code == 0 else ""


def _legacy_rules() -> str:
    """The tables of iptables-legacy that have rules, in this namespace; empty without any.

    Raises Unseen.
    """
    try:
        # Reading a file loads no module; iptables-legacy would load ip_tables and make empty
        # tables.
        with open("/proc/thread-self/net/ip_tables_names", encoding="ascii") as names:
            tables = names.read().split()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and os.path.isdir("/proc/thread-self/net"):
            return ""
        raise Unseen("/proc is not mounted, or may not be read") from None
    program = files.find_program("iptables-legacy-save")
    # Without the tool the tables' names are all that can be known.
    if program is None or not tables:
        return ", ".join(tables)
    rules = [line for line in _output([program]).splitlines() if line.startswith("-A")]
    return ", ".join(tables) if rules else ""


def _nft_tables_of_iptables() -> bool:
    program = files.find_program("iptables-nft-save")
    return program is not None and any(
        line.startswith("-A") for line in _output([program]).splitlines()
    )


def drops(situation: Situation) -> Iterator[Finding]:
    """A forward chain that drops by default decides over containers' packets, too."""
    try:
        chains = drop_policies()
    except NetlinkError:
        return
    routed = set(situation.paired())
    guarded = set(situation.networks_with("firewall"))
    for family, table, name in chains:
        chain = f"{family} {table} {name}"
        # The plugin firewall adds its accept rules to this table, so its chains accept containers.
        if table in _OWN_TABLES:
            continue
        show = f"nft list chain {chain}"
        if table == _BY_IPTABLES:
            bare = sorted(routed - guarded)
            if bare:
                text = (
                    f"the chain {chain} drops what it does not accept, and nothing makes it accept "
                    f"the packets of {', '.join(bare)}: add the plugin firewall to these networks"
                )
                yield Finding(WARNING, AREA, text, show)
        elif routed:
            text = (
                f"the chain {chain} drops what it does not accept itself: no rule of a plugin can "
                "change that, so it has to accept the containers' packets"
            )
            yield Finding(WARNING, AREA, text, show)
    if not chains:
        yield Finding(OK, AREA, "no chain drops forwarded packets by default")


def firewalld(situation: Situation) -> Iterator[Finding]:
    """firewalld rejects what no zone allows."""
    if "DBUS_SYSTEM_BUS_ADDRESS" not in os.environ and not os.path.exists(SYSTEM_BUS):
        return
    # Only on a node that has a bus.
    from cni.plugins.firewall import dbus

    runs, _ = dbus.firewalld_runs()
    routed = set(situation.paired())
    bare = sorted(routed - set(situation.networks_with("firewall")))
    if runs and bare:
        text = f"firewalld runs, and {', '.join(bare)} lack the plugin firewall"
        yield Finding(WARNING, AREA, text, "firewall-cmd --get-active-zones")


def flushed(situation: Situation) -> Iterator[Finding]:
    """Rules of attached containers that are gone."""
    missing = [text for network in situation.networks for text in status.flushed(network)]
    for text in missing:
        yield Finding(ERROR, AREA, f"rules are gone: {text}", "cni reload")
    lost = _lost_ports(situation) if os.geteuid() == 0 else {}
    for name, (attached, ports) in lost.items():
        text = (
            f"ports are not published any more: {', '.join(ports)} of {attached.shown} in "
            f"{attached.network}; the plugins that attached it noted nothing for `cni reload`: "
            "create the container anew"
        )
        yield Finding(ERROR, AREA, text, f"cni inspect {quote(name)}")
    if situation.networks and not missing and not lost:
        yield Finding(OK, AREA, "the rules of attached containers are there")


def _lost_ports(situation: Situation) -> dict[str, tuple[Attached, list[str]]]:
    """By container: what the Go plugins published for those that live, and has no rule now."""
    live = Live()
    with_portmap = situation.networks_with("portmap")
    alive = [
        each
        for each in attachments.gather(Places.of(situation.cache_dir))
        if each.network in with_portmap and not each.intents and not each.is_dead(live)
    ]
    lost: dict[str, tuple[Attached, list[str]]] = {}
    # Reading the whole ruleset is slow on a large node.
    if not any(port for each in alive for port in published.wanted(each)):
        return lost
    for port in published.find(ruleset.read(), alive):
        if port.state == published.MISSING and port.owner is not None:
            _, names = lost.setdefault(port.owner.container_id, (port.owner, []))
            if port.name not in names:
                names.append(port.name)
    return lost


CHECKS = (variants, drops, firewalld, flushed)
