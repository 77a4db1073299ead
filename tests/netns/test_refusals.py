"""What the kernel refuses is named: the change, and what is in its way."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from errno import EBUSY, EEXIST, ELOOP, EMLINK, ENFILE, ENOENT, EOPNOTSUPP, EPERM
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from cni.kernel import netlink as nl
from cni.kernel.errors import KernelError, NetlinkError, Refused
from cni.netfilter import elements, nft, uapi
from cni.netfilter import expressions as kernel
from cni.netfilter.elements import Element
from cni.netfilter.table import Table
from cni.owner import Owner
from cni.plugins.bridge import spoofcheck
from cni.plugins.firewall import backend_nft as firewall
from cni.plugins.firewall.want import Ingress
from cni.plugins.firewall.want import Want as FirewallWant
from cni.plugins.portmap import backend_nft as portmap
from cni.plugins.portmap.want import Port, Want
from cni.plugins.shared.masquerade import backend_nft as masquerade
from cni.protocol.address import Prefix
from cni.protocol.errors import CNIError
from tests.harness import Netns, requires_kernel
from tests.netns.test_lost_answers import Failing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni.kernel.netlink import Netlink
    from cni.netfilter.nft import Change

pytestmark = [requires_kernel("nft"), pytest.mark.each_kernel]

T, OTHER = Table("inet", "t"), Table("ip6", "other")
ONE = Element(b"\x0a\0\0\1", b"", "", "")
# table inet t: a set `s` with one element; chains: `base` (of a hook) jumps to `d`, that to `c`
THERE = [
    kernel.new_table(T),
    kernel.new_base_chain(T, "base", "input", "filter", 5),
    kernel.new_chain(T, "c"),
    kernel.new_chain(T, "d"),
    kernel.new_rule(T, "base", [kernel.jump("d")]),
    kernel.new_rule(T, "d", [kernel.jump("c")]),
    kernel.new_set(T, "s", 1, "ipv4_addr"),
    *elements.insert(T, "s", [ONE]),
]
UNKNOWN = kernel.masquerade().replace(b"masq\0", b"nope\0")
HAS = "there is one of type filter hook input priority 5, and this one is of "


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    nft.forget()


def refusal(changes: list[Change]) -> Refused:
    with pytest.raises(Refused) as caught:
        nft.transact(changes)
    return caught.value


CASES: dict[str, tuple[Callable[[], list[Change]], set[int], str]] = {
    "chain, other hook": (
        lambda: [kernel.new_base_chain(T, "base", "postrouting", "nat", 100)],
        {EEXIST, EOPNOTSUPP},
        f"making chain base in table inet t: {HAS}type nat hook postrouting priority 100",
    ),
    "chain, other priority": (
        lambda: [kernel.new_base_chain(T, "base", "input", "filter", -5)],
        {EEXIST, EOPNOTSUPP},
        f"making chain base in table inet t: {HAS}type filter hook input priority -5",
    ),
    "chain, has no hook": (
        lambda: [kernel.new_base_chain(T, "c", "input", "filter", 0)],
        {EEXIST, EOPNOTSUPP},
        "making chain c in table inet t: there is one of no hook, and this one is of "
        "type filter hook input priority 0",
    ),
    "chain, unknown type": (
        lambda: [kernel.new_base_chain(T, "n", "input", "nope", 0)],
        {ENOENT},
        "making chain n in table inet t: this kernel has no chains of type nope for the family "
        "inet",
    ),
    "chain without table": (
        lambda: [kernel.new_chain(OTHER, "c")],
        {ENOENT},
        "making chain c in table ip6 other: there is no such table",
    ),
    "chain in use": (
        lambda: [T.without_chain("c")],
        {EBUSY},
        "deleting chain c in table inet t: something still refers to it",
    ),
    "rule without chain": (
        lambda: [kernel.new_rule(T, "nope", [kernel.verdict(uapi.NF_ACCEPT)])],
        {ENOENT},
        "adding a rule to chain nope in table inet t: there is no such",
    ),
    "rule without set": (
        lambda: [kernel.new_rule(T, "c", [kernel.nfproto(True), kernel.lookup("nope")])],
        {ENOENT},
        "adding a rule to chain c in table inet t: there is no set nope",
    ),
    "jump to nowhere": (
        lambda: [kernel.new_rule(T, "c", [kernel.jump("nope")])],
        {ENOENT},
        "adding a rule to chain c in table inet t: there is no chain nope",
    ),
    "jump to a hook's chain": (
        lambda: [kernel.new_rule(T, "c", [kernel.goto("base")])],
        {EOPNOTSUPP},
        "adding a rule to chain c in table inet t: chain base cannot be jumped to: it is "
        "type filter hook input priority 5",
    ),
    "circle": (
        lambda: [kernel.new_rule(T, "c", [kernel.jump("d")])],
        {ELOOP, EMLINK},
        "adding a rule to chain c in table inet t: the chains would lead in a circle, or too deep",
    ),
    "unknown expression": (
        lambda: [kernel.new_rule(T, "c", [kernel.nfproto(True), UNKNOWN])],
        {ENOENT},
        "adding a rule to chain c in table inet t: this kernel does not have the expression nope",
    ),
    "rule that is gone": (
        lambda: [T.without_rule("c", 99)],
        {ENOENT},
        "deleting rules of chain c in table inet t: there is no such thing",
    ),
    "set of other types": (
        lambda: [kernel.new_set(T, "s", 1, "ipv6_addr")],
        {EEXIST},
        "making set s in table inet t: there is one with other types or flags",
    ),
    "element that is there": (
        lambda: [*elements.insert(T, "s", [ONE])],
        {EEXIST},
        "adding elements to set s in table inet t: one of them is there",
    ),
    "element that is gone": (
        lambda: [*elements.remove(T, "s", [ONE._replace(key=bytes(4))])],
        {ENOENT},
        "deleting elements of set s in table inet t: one of them, or what it leads to, is not",
    ),
    "elements without set": (
        lambda: [*elements.insert(T, "nope", [ONE])],
        {ENOENT},
        "adding elements to set nope in table inet t: there is no such set",
    ),
    "table that is gone": (
        lambda: [OTHER.without_table()],
        {ENOENT},
        "deleting table ip6 other: there is no such table",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_change_and_the_reason(host: Netns, name: str) -> None:
    """Also as the second of a transaction, whose first is undone."""
    changes, numbers, text = CASES[name]
    first = kernel.new_chain(T, "first")
    host.run(nft.transact, THERE)
    before = host.exec(["nft", "list", "ruleset"]).stdout
    for listed in (changes(), [first, *changes()]):
        error = host.run(refusal, listed)
        assert error.errno in numbers
        assert f"({text}" in error.msg, error.msg
        assert error.details.startswith("look at it: `nft list "), error.details
        assert host.exec(["nft", "list", "ruleset"]).stdout == before


@pytest.mark.parametrize("name", ["chain, other priority", "element that is there"])
def test_what_differs_is_there_also_where_that_is_called_busy(
    host: Netns, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Linux before 5.8: EBUSY for a chain of another form, and for a key with another value."""
    received = nft._answers

    def of_older_kernel(
        sock: Netlink, numbers: frozenset[int], echoes: list[bytes]
    ) -> list[tuple[int, int, bytes]]:
        answers = received(sock, numbers, echoes)
        assert {struct.unpack_from("=i", answer)[0] for *_, answer in answers} & {
            -EEXIST,
            -EOPNOTSUPP,
        }
        busy = struct.pack("=i", -EBUSY)
        return [(number, flags, busy + answer[4:]) for number, flags, answer in answers]

    host.run(nft.transact, THERE)
    monkeypatch.setattr(nft, "_answers", of_older_kernel)
    changes, _, text = CASES[name]
    error = host.run(refusal, changes())
    assert error.errno == EEXIST
    assert f"({text}" in error.msg, error.msg


def test_a_table_that_is_dormant(host: Netns) -> None:
    """To wake it and to put a hook's chain into it takes two transactions."""
    host.exec(["nft", "add table inet t { flags dormant; }"])
    base = kernel.new_base_chain(T, "base", "input", "filter", 5)
    error = host.run(refusal, [kernel.new_table(T), base])
    assert "(making chain base in table inet t: somebody has made that table dormant)" in error.msg
    advice = error.details.split("`")[1]
    assert error.details == f"`{advice}` wakes it"
    host.exec(advice.split())
    host.run(nft.transact, [kernel.new_table(T), base])


def test_a_chain_that_no_kernel_has(host: Netns) -> None:
    """There is nothing to be looked at, and no other program to blame."""
    wrong = kernel.new_base_chain(T, "new", "forward", "nat", 5)
    error = host.run(refusal, [kernel.new_table(T), wrong])
    assert error.errno == EOPNOTSUPP
    assert "has no such hook or type for it: type nat hook forward priority 5" in error.msg
    assert error.details == nft.UNUSABLE


def test_a_full_set(host: Netns) -> None:
    host.exec(["nft", "add table inet t; add set inet t s { type ipv4_addr; size 1; }"])
    many = [ONE._replace(key=bytes((10, 0, 0, n))) for n in range(3)]
    error = host.run(refusal, [*elements.insert(T, "s", many)])
    assert error.errno == ENFILE
    assert "(adding elements to set s in table inet t: it is full)" in error.msg


def test_a_table_of_another_program(host: Netns) -> None:
    """`flags owner`: only the socket that made it changes it."""

    def owned() -> Refused:
        name = nl.text(uapi.NFTA_TABLE_NAME, "t")
        flags = nl.attr(uapi.NFTA_TABLE_FLAGS, (2).to_bytes(4, "big"))  # NFT_TABLE_F_OWNER
        nft.transact([(uapi.NFT_MSG_NEWTABLE, T.message(name, flags), nl.NLM_F_CREATE)])
        owner = nft.socket()
        nft._kept.clear()
        try:
            return refusal([kernel.new_chain(T, "c")])
        finally:
            owner.close()

    error = host.run(owned)
    assert error.errno in (EPERM, EOPNOTSUPP)
    assert "making chain c in table inet t: another program owns that table" in error.msg


def test_without_the_right(host: Netns) -> None:
    """The kernel refuses the whole transaction, and does not say more."""
    script = """if True:
        from cni.netfilter import nft
        from cni.netfilter.expressions import new_table
        from cni.netfilter.table import Table
        try:
            nft.transact([new_table(Table("inet", "t"))])
        except OSError as error:
            print(error.msg, error.details, sep="; ")
    """
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]
    root = str(Path(__file__).resolve().parents[2])
    done = host.run(
        lambda: subprocess.run(
            [*drop, sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": root},
            check=False,
        )
    )
    assert done.stdout == (
        "operation not permitted; is nftables in this kernel, and are we root?\n"
    ), done.stderr


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urn", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs user namespaces",
)
def test_many_changes_of_root_of_another_user_namespace() -> None:
    """It may not raise the limit of a datagram, but go up to it; beyond, the error says so."""
    script = """if True:
        from cni.netfilter import nft
        from cni.netfilter.expressions import new_chain, new_table
        from cni.netfilter.table import Table
        table = Table("inet", "t")
        with open("/proc/sys/net/core/wmem_max") as limit:
            too_many = int(limit.read()) // 32
        for size in (1_500, too_many):
            chains = [new_chain(table, f"c{number:040}") for number in range(size)]
            try:
                nft.transact([new_table(table), *chains])
                print(table.has_chain(f"c{size - 1:040}"))
            except OSError as error:
                print(error.msg)
    """
    done = subprocess.run(
        ["unshare", "-Urn", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        check=False,
    )
    first, second = done.stdout.splitlines()
    assert first == "True", done.stderr
    assert second.startswith("message too long (sending "), done.stderr


def test_what_changes_all_the_time_is_tried_without_a_guard(
    host: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`settle` does not give up: at last it makes the changes on whatever there is."""
    plans: list[int] = []

    def restless() -> list[Change]:
        """Something else changes each time between the look and the change."""
        plans.append(1)
        nft.transact([kernel.new_table(OTHER), kernel.new_chain(OTHER, f"c{len(plans)}")])
        return THERE

    host.run(nft.settle, restless)
    assert len(plans) == nft._GUARDED + 1
    assert "elements = { 10.0.0.1 }" in host.exec(["nft", "list", "table", "inet", "t"]).stdout

    def hopeless() -> list[Change]:
        plans.append(1)
        return [kernel.new_rule(T, "nope", [])]

    plans.clear()
    with pytest.raises(NetlinkError, match="there is no such"):
        host.run(nft.settle, hopeless)
    assert len(plans) == 1


# --- what every user of it does -------------------------------------------------------------------

OWNER = Owner("net1", "c1", "eth0")
ADDRESSES = [Prefix.parse("10.0.0.9/24"), Prefix.parse("fd00::9/64")]


class User(NamedTuple):
    """A plugin's way to make and remove its rules, for the container of that number."""

    setup: Callable[[int], None]
    teardown: Callable[[int], object]


def _owner(number: int) -> Owner:
    return OWNER._replace(container_id=f"c{number}")


def _addresses(number: int) -> list[Prefix]:
    return [Prefix.parse(f"10.0.0.{number}/24"), Prefix.parse(f"fd00::{number:x}/64")]


def _firewall(number: int) -> FirewallWant:
    hosts = [address.host for address in _addresses(number)]
    ingress = Ingress("same-bridge", f"br{number % 2}")
    return FirewallWant(_owner(number), hosts, "CNI-ADMIN", "trusted", ingress)


def _portmap(number: int) -> Want:
    ports = [Port(b"", "tcp", 8000 + number, 80)]
    return Want(_owner(number), _addresses(number), ports, True, False, 0x2000, "", ([], []))


NOBODY: Any = None  # judges no holder of a port, since there is none
USERS = {
    "masquerade": User(
        lambda number: masquerade.setup(_owner(number), _addresses(number)),
        lambda number: masquerade.teardown(_owner(number), [], list),
    ),
    "firewall": User(
        lambda number: firewall.setup(_firewall(number)),
        lambda number: firewall.teardown(_owner(number), [], ""),
    ),
    "spoofcheck": User(
        lambda number: spoofcheck.setup(f"c{number}-eth0", f"v{number}", "02:00:00:00:00:01"),
        lambda number: spoofcheck.teardown(f"c{number}-eth0"),
    ),
    "portmap": User(
        lambda number: portmap.setup(_portmap(number), lambda: NOBODY, None),
        lambda number: portmap.teardown(_portmap(number), noted=True),
    ),
}


@pytest.mark.parametrize("name", USERS)
def test_a_removal_that_cannot_look_says_so(host: Netns, name: str) -> None:
    """An answer that is lost does not say that there are no rules: DEL has to be repeated."""
    user = USERS[name]

    def lossy() -> None:
        sock = nft.socket()
        whole, sock.sock = sock.sock, Failing(sock.sock, 1 << 20)  # type: ignore[assignment]
        try:
            with pytest.raises((CNIError, KernelError)):
                user.teardown(1)
        finally:
            sock.sock = whole

    host.run(user.setup, 1)
    host.run(lossy)
    assert "c1" in host.exec(["nft", "list", "ruleset"]).stdout
    host.run(user.teardown, 1)
    assert "c1" not in host.exec(["nft", "list", "ruleset"]).stdout


@pytest.mark.parametrize("name", USERS)
def test_all_at_once_while_somebody_flushes(host: Netns, name: str) -> None:
    """Eight containers come and go, and the ruleset is flushed all the time: no error, and in the
    end everything is as if they had come one after another.
    """
    user, failures, ended = USERS[name], [], threading.Event()

    def container(number: int) -> None:
        try:
            for _ in range(6):
                host.run(user.setup, number)
                host.run(user.setup, number)
                host.run(user.teardown, number)
        except BaseException as error:
            failures.append(error)

    def flush() -> None:
        while not ended.is_set():
            host.exec(["nft", "flush", "ruleset"])

    flusher = threading.Thread(target=flush)
    threads = [threading.Thread(target=container, args=(number,)) for number in range(1, 9)]
    for thread in (flusher, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    flusher.join()
    assert failures == []
    for number in range(1, 9):
        host.run(user.setup, number)
    together = host.exec(["nft", "-s", "list", "ruleset"]).stdout
    host.exec(["nft", "flush", "ruleset"])
    for number in range(1, 9):
        host.run(user.setup, number)
    assert together == host.exec(["nft", "-s", "list", "ruleset"]).stdout
