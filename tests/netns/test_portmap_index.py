"""portmap's index: ADD and DEL cost the same however much is published, and nothing is lost by it.

How much is asked of the kernel is counted, not timed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.netfilter import nft
from cni.netfilter.table import Table
from cni.plugins.portmap import nft_chains, nft_index
from cni.plugins.portmap.want import Port, Want
from cni.protocol.address import Prefix
from tests.harness import (
    DUAL,
    Netns,
    Reply,
    Runtime,
    libnftables,
    nft_tables,
    requires_kernel,
    unchanged,
)
from tests.harness import nft as nft_list
from tests.harness.portmap import NET, TABLE, Node, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

pytestmark = requires_kernel("nft")


@pytest.fixture
def node(runtime: Runtime, data_dir: Path, tmp_path: Path) -> Node:
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    return Node(runtime, data_dir)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    nft.forget()


def result(number: int, *, dual: bool = True) -> Json:
    """What an earlier plugin gave a container."""
    ips = [{"address": f"10.22.{number >> 8}.{number & 255}/16"}]
    ips += [{"address": f"fd00:22::{number:x}/64"}] if dual else []
    return {"cniVersion": "1.0.0", "ips": ips}


def add(node: Node, ns: Netns, number: int, ports: list[Json], **keys: Any) -> Reply:
    conf = node.conf(ports, **keys)
    cid = f"c{number}"
    return node.runtime.add("portmap", conf, ns, container_id=cid, prev_result=result(number))


def delete(node: Node, number: int, ports: list[Json] | None = None, **keys: Any) -> None:
    cid = f"c{number}"
    node.runtime.delete("portmap", node.conf(ports, **keys), container_id=cid).succeeded()


def elements(node: Node, family: str = "ip") -> dict[str, list[str]]:
    """Of each set and map: what its elements are and whose, in the words of nft."""
    found: dict[str, list[str]] = {}
    for item in nft_list(node.host, "table", family, TABLE):
        one = item.get("map") or item.get("set") or {}
        if one:
            found[one["name"]] = sorted(json.dumps(each) for each in one.get("elem", ()))
    return found


def index(node: Node, family: str = "ip") -> dict[str, list[str]]:
    have = elements(node, family) if (family, TABLE) in nft_tables(node.host) else {}
    return {name: have.get(name, []) for name in nft_chains.INDEX}


def assert_exact(node: Node) -> None:
    """The index is what it would be if it were made from the maps now."""

    def look(family: str) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        from cni.netfilter import elements as nft_elements

        maps = {n: nft_elements.elements(Table(family, TABLE), n) for n in nft_chains.NAMES}
        have = {n: nft_elements.elements(Table(family, TABLE), n) for n in nft_chains.INDEX}
        want = nft_index.of(family, maps)
        want[nft_chains.BY_OWNER].append(nft_index.complete(family))
        return {k: sorted(v) for k, v in have.items()}, {k: sorted(v) for k, v in want.items()}

    for family in ("ip", "ip6"):
        if (family, TABLE) in nft_tables(node.host):
            have, want = node.host.run(look, family)
            assert have == want


def old_table(node: Node) -> None:
    """What an earlier build left: the same table without an index."""
    for family in ("ip", "ip6"):
        node.host.exec(["nft", "delete", "map", family, TABLE, "by_owner"])
        node.host.exec(["nft", "delete", "set", family, TABLE, "by_address"])


# -- what it costs --------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_what_is_asked_does_not_depend_on_what_is_published(
    node: Node, container: Netns, tmp_path: Path
) -> None:
    """Messages to and bytes from the kernel, of ADD and DEL, with 1 port published and with 1000.

    The kernel numbers everything, and numbers grow: they are of one size, but a name in the trace
    may be longer. So bytes may differ, by little.
    """
    ports = [tcp(8080), udp(8053)]

    def traced(verb: str) -> tuple[int, int]:
        trace = tmp_path / "trace"
        conf = {**node.conf(ports), "prevResult": result(2)}
        calls = "trace=sendto,recvfrom,sendmsg,recvmsg"
        plugin = str(node.runtime.bin_dir / "portmap")
        done = node.host.run(
            subprocess.run,
            ["strace", "-f", "-o", str(trace), "-e", calls, plugin],
            input=json.dumps(conf),
            env=node.runtime.environment(
                verb, container, container_id="c2", env={"CNI_SERVER": "off"}
            ),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = trace.read_text().splitlines()
        received = [re.search(r"recv\w+\(.*= (\d+)$", line) for line in lines]
        sent = sum(bool(re.search(r" send\w+\(", line)) for line in lines)
        return sent, sum(int(found[1]) for found in received if found)

    seen = []
    for count in (1, 1000):
        add(node, container, 1, [tcp(10000 + n) for n in range(count)]).succeeded()
        seen.append((traced("ADD"), traced("DEL")))
        delete(node, 1)
    (few_add, few_del), (many_add, many_del) = seen
    assert many_add[0] == few_add[0]
    assert many_del[0] == few_del[0]
    assert abs(many_add[1] - few_add[1]) < 200, seen
    assert abs(many_del[1] - few_del[1]) < 200, seen


@pytest.mark.parametrize("count", [1, 14, 15, 16, 17, 47, 3000])
def test_many_ports_of_one_container(node: Node, container: Netns, count: int) -> None:
    """They are asked for in portions; each number of ports is found again as a whole."""
    add(node, container, 1, [tcp(7)]).succeeded()
    before = elements(node)
    add(node, container, 2, [tcp(20000 + n) for n in range(count)]).succeeded()
    assert len(index(node)["by_owner"]) == count + 2
    assert_exact(node)
    delete(node, 2)
    assert elements(node) == before
    add(node, container, 1, [tcp(20000 + n) for n in range(count)]).succeeded()
    assert_exact(node)
    delete(node, 1)
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)


# -- what is in it --------------------------------------------------------------------------------


def test_it_can_be_read(node: Node, container: Netns) -> None:
    """By an operator: the digits are those at the beginning of every comment."""
    add(node, container, 1, [tcp(8080), tcp(8081, hostIP="127.0.0.1")]).succeeded()
    text = node.host.exec(["nft", "list", "table", "ip", TABLE]).stdout
    (key,) = set(re.findall(r'comment "([0-9a-f]{16}-[0-9a-f]{16}), net: net1', text))
    words = [f"0x{key.replace('-', '')[at : at + 8]}" for at in (0, 8, 16, 24)]
    for number, port in enumerate(("0.0.0.0 . tcp . 8080", "127.0.0.1 . tcp . 8081")):
        line = f'{" . ".join(words)} . {number:#010x} comment "{key}, net: net1, if: eth0, id: c1"'
        assert f"{line} : {port}" in text
    assert f'{words[0]} . {words[1]} . 10.22.0.1 comment "{key}' in text


def test_it_follows(node: Node, container: Netns, container2: Netns) -> None:
    """Other ports, another address, another owner of an address, GC: always as the maps are."""
    add(node, container, 1, [tcp(8080), tcp(8081), udp(8080)]).succeeded()
    add(node, container, 2, [tcp(9090, hostIP="127.0.0.1")], name="net2").succeeded()
    assert_exact(node)
    add(node, container, 1, [tcp(8081, 81), tcp(8079, hostIP="127.0.0.1")]).succeeded()
    assert_exact(node)
    conf = node.conf([tcp(8081)])
    node.runtime.add("portmap", conf, container2, prev_result=result(7)).succeeded()
    assert_exact(node)
    assert "10.22.0.1" not in "".join(index(node)["by_address"])
    container2.unname()
    ours = {"container_id": "c3", "prev_result": result(7)}
    node.runtime.add("portmap", node.conf([tcp(8082)]), container, **ours).succeeded()
    assert_exact(node)
    assert "id: c1" not in json.dumps(elements(node))
    # in another network the address is another's
    node.runtime.add("portmap", node.conf([tcp(8083)], name="net2"), container, **ours).succeeded()
    assert_exact(node)
    assert sum("10.22.0.7" in one for one in index(node)["by_address"]) == 2
    node.runtime.gc("portmap", node.conf(None, "1.1.0"), []).succeeded()
    assert_exact(node)
    assert NET + "," not in json.dumps(elements(node))


def test_conditions(node: Node, container: Netns) -> None:
    """Chains that the program nft makes; the first ADD, and those beside others' chains."""
    keys = CONDITIONS
    add(node, container, 1, [tcp(8080)], **keys).succeeded()
    assert_exact(node)
    add(node, container, 2, [tcp(8081)]).succeeded()
    add(node, container, 3, [tcp(8082)], name="net2", **keys).succeeded()
    assert_exact(node)
    for number, name in ((1, NET), (2, NET), (3, "net2")):
        delete(node, number, name=name)
    assert ("ip", TABLE) not in nft_tables(node.host)


@pytest.fixture
def without_nft(runtime: Runtime, data_dir: Path, tmp_path: Path) -> Node:
    """A node that has neither the program nft nor libnftables."""
    if (nft_program := shutil.which("nft")) is None:
        pytest.skip("needs nft, to look at the rules")
    hidden = [nft_program, *map(str, Path("/usr/lib").glob("*/libnftables.so.1"))]
    mounts = " && ".join(f"mount --bind /dev/null {path}" for path in hidden)
    wrappers = tmp_path / "without-nft"
    wrappers.mkdir()
    for plugin in ("bridge", "portmap", "firewall"):
        wrapper = wrappers / plugin
        command = f"{mounts} && exec {runtime.bin_dir}/{plugin}"
        wrapper.write_text(f"#!/bin/sh\nexec unshare -m sh -c '{command}'\n")
        wrapper.chmod(0o755)
    path = str(runtime.bin_dir)
    return Node(Runtime(wrappers, runtime.host, cni_path=path, env={"CNI_SERVER": "off"}), data_dir)


CONDITIONS = {"conditionsV4": ["ip", "ttl", "!=", "99"], "conditionsV6": ["ip6", "hoplimit", "1"]}


def test_conditions_without_the_program(
    node: Node, without_nft: Node, container: Netns, container2: Netns
) -> None:
    """An ADD that needs it names it and changes nothing; everything else does without."""
    bare = without_nft
    text = "conditionsV4 and conditionsV6 are in the language of nft, and the program nft is not"
    with unchanged(node.host):
        error = add(bare, container, 1, [tcp(8080)], **CONDITIONS).failed(999, text)
    assert "install the package nftables" in error["details"]
    conf = node.conf(None, "1.1.0", **CONDITIONS)
    bare.runtime.status("portmap", conf).failed(50, "nftables is not usable", text)
    node.runtime.status("portmap", conf).succeeded()
    add(node, container, 1, [tcp(8080)], **CONDITIONS).succeeded()
    # the network's chain is there now
    add(bare, container2, 2, [tcp(8081)], **CONDITIONS).succeeded()
    add(bare, container2, 3, [tcp(8082)], name="net2").succeeded()
    delete(bare, 1)
    assert_exact(node)
    bare.runtime.gc("portmap", node.conf(None, "1.1.0"), []).succeeded()
    delete(bare, 3, name="net2")
    assert ("ip", TABLE) not in nft_tables(node.host)


def test_nothing_else_needs_the_program_or_the_library(
    node: Node, without_nft: Node, container: Netns
) -> None:
    """bridge with masquerading and the MAC check, portmap and firewall, on a bare node."""
    keys = {"ipMasq": True, "ipMasqBackend": "nftables", "macspoofchk": True}
    result = without_nft.attach(container, **keys)
    runtime = without_nft.runtime
    firewall = {"cniVersion": "1.0.0", "name": NET, "backend": "nftables"}
    for plugin, conf in (("portmap", node.conf([tcp(8080)])), ("firewall", firewall)):
        runtime.add(plugin, conf, container, prev_result=result).succeeded()
        runtime.check(plugin, conf, container, prev_result=result).succeeded()
    runtime.status("firewall", {**firewall, "cniVersion": "1.1.0"}).succeeded()
    text = node.host.exec(["nft", "list", "ruleset"]).stdout
    for expected in ("masquerade comment", "macspoofchk-c1-eth0", "tcp . 8080", "@allowed4 accept"):
        assert expected in text
    for plugin, conf in (("portmap", node.conf([tcp(8080)])), ("firewall", firewall)):
        runtime.delete(plugin, conf, container, prev_result=result).succeeded()
    conf = {"cniVersion": "1.0.0", "name": NET, "ipam": DUAL.host_local(node.data_dir), **keys}
    runtime.delete("bridge", conf, container, prev_result=result).succeeded()
    assert " id: c1" not in node.host.exec(["nft", "list", "ruleset"]).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nonsense", "here"], "nonsense here"),
        (["ip", "saddr", "1.2.3.4", "drop", "}"], "}"),
        (["ip6", "saddr", "::1"], "conflicting"),
        (["jump", "nowhere"], "Statement after terminal statement"),
        (["iifname", '"a#b"', "#"], "a condition cannot have a comment"),
        (["log", "prefix", '"'], "a condition has a quote without its end"),
        (["tcp", "dport", "70000"], "70000"),
        (["@nowhere"], "@nowhere"),
        (["include", '"/etc/passwd"'], "include"),
    ],
)
def test_conditions_that_are_none(
    node: Node, container: Netns, words: list[str], said: str
) -> None:
    with unchanged(node.host):
        add(node, container, 1, [tcp(8080)], conditionsV4=words).failed(
            999, "unable to set up nftables rules for port mappings: ", said
        )


def test_conditions_whose_quotes_would_join_rules(node: Node, container: Netns) -> None:
    """With `masqAll` a network has two rules, so that there is an even number of quotes."""
    keys = {"masqAll": True, "conditionsV4": ["log", "prefix", '"#']}
    with unchanged(node.host):
        add(node, container, 1, [tcp(8080)], **keys).failed(
            999, "a condition has a quote without its end"
        )


def test_a_failed_add_leaves_no_chain_of_its_network(
    node: Node, container: Netns, container2: Netns
) -> None:
    """nft has made it, and then the port is another's."""
    add(node, container, 1, [tcp(8080)]).succeeded()
    with unchanged(node.host):
        add(node, container2, 2, [tcp(8080)], name="net2", **CONDITIONS).failed(
            999, "already published by container c1"
        )


def test_the_last_del_leaves_the_rules_of_an_administrator(node: Node, container: Netns) -> None:
    """Those in a chain of their own: the table stays for them."""
    add(node, container, 1, [tcp(8080)]).succeeded()
    node.host.exec(["nft", f"add chain ip {TABLE} mine; add rule ip {TABLE} mine counter"])
    delete(node, 1)
    assert "chain mine" in node.host.exec(["nft", "list", "table", "ip", TABLE]).stdout
    add(node, container, 1, [tcp(8080)]).succeeded()
    assert_exact(node)
    node.host.exec(["nft", "delete", "chain", "ip", TABLE, "mine"])
    delete(node, 1)
    assert TABLE not in node.host.exec(["nft", "list", "ruleset"]).stdout


def test_of_two_who_want_a_port_with_conditions_one_gets_it(node: Node, container: Netns) -> None:
    """The losers take back the chain that nft made for them, unless the winner uses it."""
    keys = {"name": "net2", **CONDITIONS}
    add(node, container, 9, [tcp(9999)]).succeeded()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            replies = list(pool.map(lambda n: add(node, container, n, [tcp(8080)], **keys), (1, 2)))
            assert sorted(reply.rc for reply in replies) == [0, 1]
            assert_exact(node)
            chains = node.host.exec(["nft", "list", "table", "ip", TABLE]).stdout
            assert chains.count("chain net-") == 2
            list(pool.map(lambda n: delete(node, n, name="net2"), (1, 2)))
            chains = node.host.exec(["nft", "list", "table", "ip", TABLE]).stdout
            assert chains.count("chain net-") == 1


# -- tables of an earlier build -------------------------------------------------------------------


def test_an_old_table_gets_an_index(node: Node, container: Netns) -> None:
    for number in range(1, 5):
        ports = [tcp(8000 + number), udp(9000 + number, hostIP="127.0.0.1")]
        add(node, container, number, ports, name=f"net{number % 2}").succeeded()
    old_table(node)
    add(node, container, 5, [tcp(8005)], name="net1").succeeded()
    assert len(index(node)["by_owner"]) == 4 * 2 + 1 + 1
    assert_exact(node)
    for number in range(1, 6):
        delete(node, number, name=f"net{number % 2}")
        assert_exact(node)
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)


def test_an_old_table_keeps_its_promises(
    node: Node, container: Netns, container2: Netns, netns: Any
) -> None:
    """One owner, repeated ADDs, a dead owner, an address given again; DEL and GC to the end."""
    add(node, container, 1, [tcp(8001), tcp(8011)]).succeeded()
    add(node, container2, 2, [tcp(8002)]).succeeded()
    old_table(node)
    with unchanged(node.host):
        add(node, container, 3, [tcp(8002)]).failed(999, "already published by container c2 (")
    delete(node, 3, [tcp(8002)])
    assert index(node) == {"by_owner": [], "by_address": []}
    third = netns("third")
    add(node, third, 1, [tcp(8011)]).succeeded()
    assert_exact(node)
    assert "8001" not in json.dumps(elements(node))
    old_table(node)
    container2.unname()
    add(node, container, 3, [tcp(8002)]).succeeded()
    assert_exact(node)
    assert "id: c2" not in json.dumps(elements(node))
    old_table(node)
    third.unname()
    ours = {"container_id": "c4", "prev_result": result(1)}
    node.runtime.add("portmap", node.conf([tcp(8004)]), container, **ours).succeeded()
    assert "id: c1" not in json.dumps(elements(node))
    assert_exact(node)
    old_table(node)
    delete(node, 4)
    node.runtime.gc("portmap", node.conf(None, "1.1.0"), []).succeeded()
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)


@pytest.mark.parametrize("verb", ["DEL", "DEL without ports", "ADD", "GC"])
def test_what_an_older_build_adds_beside_the_index(node: Node, container: Netns, verb: str) -> None:
    """After a return to it, and back: an owner's elements are there, and not in the index."""
    add(node, container, 1, [tcp(8001)]).succeeded()
    add(node, container, 2, [tcp(8002), tcp(8012)]).succeeded()
    for family in ("ip", "ip6"):
        text = node.host.exec(["nft", "list", "map", family, TABLE, "by_owner"]).stdout
        keys = re.findall(r'(0x\S+(?: \. 0x\S+)+) comment "[^"]*id: c2"', text)
        assert len(keys) == 2
        element = f"{{ {', '.join(keys)} }}"
        node.host.exec(["nft", "delete", "element", family, TABLE, "by_owner", element])
    if verb == "ADD":
        add(node, container, 2, [tcp(8002)]).succeeded()
        assert_exact(node)
        assert "8012" not in json.dumps(elements(node))
    elif verb == "GC":
        conf = node.conf(None, "1.1.0")
        node.runtime.gc("portmap", conf, [("c1", "eth0")]).succeeded()
    else:
        delete(node, 2, [tcp(8002), tcp(8012)] if verb == "DEL" else None)
    if verb != "ADD":
        assert "id: c2" not in json.dumps(elements(node))
        assert_exact(node)


def test_a_dead_owner_who_is_not_in_the_index(
    node: Node, container: Netns, container2: Netns
) -> None:
    add(node, container, 1, [tcp(8001)]).succeeded()
    add(node, container2, 2, [tcp(8002), tcp(8012)]).succeeded()
    for family in ("ip", "ip6"):
        node.host.exec(["nft", "flush", "map", family, TABLE, "by_owner"])
    container2.unname()
    add(node, container, 3, [tcp(8012)]).succeeded()
    assert_exact(node)
    assert "id: c2" not in json.dumps(elements(node))


# -- killed, and at once --------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["ADD", "DEL", "GC"])
@pytest.mark.parametrize("written", ["script", "skeleton"])
def test_killed_between_the_chains_and_the_elements(
    node: Node, container: Netns, written: str, after: str
) -> None:
    """What a kill leaves of the one case in which these are two transactions: conditions."""
    address = Prefix.parse("10.22.0.1/16")
    want = Want(
        node_owner(1), [address], [Port(b"", "tcp", 1, 1)], True, False, 0x2000, "", ([], [])
    )

    def make() -> None:
        chains = nft_chains.chains(want, address)
        if written == "script":
            libnftables.apply(nft_chains.script(chains))
        else:
            nft.transact(nft_chains.skeleton("ip", chains, {}))

    node.host.run(make)
    if after == "ADD":
        add(node, container, 1, [tcp(8001)]).succeeded()
        assert_exact(node)
        delete(node, 1)
    elif after == "DEL":
        delete(node, 1)
    else:
        node.runtime.gc("portmap", node.conf(None, "1.1.0"), []).succeeded()
    assert ("ip", TABLE) not in nft_tables(node.host)


@pytest.mark.parametrize("after", ["DEL", "GC", "another network's GC"])
def test_killed_after_nft_has_made_the_chains(node: Node, container: Netns, after: str) -> None:
    """The DEL of that ADD takes them back, or a GC, also where other networks keep the table."""
    add(node, container, 2, [tcp(8002)], name="net2").succeeded()
    words = (CONDITIONS["conditionsV4"], CONDITIONS["conditionsV6"])
    ports, addresses = [Port(b"", "tcp", 1, 1)], [Prefix.parse("10.22.0.1/16")]
    want = Want(node_owner(1), addresses, ports, True, False, 0x2000, "", words)
    conf = node.conf([tcp(1, 1)], **CONDITIONS)
    with unchanged(node.host):
        chains = nft_chains.chains(want, addresses[0])
        node.host.run(lambda: libnftables.apply(nft_chains.script(chains)))
        if after == "DEL":
            node.runtime.delete(
                "portmap", conf, container_id="c1", prev_result=result(1)
            ).succeeded()
        else:
            name = NET if after == "GC" else "net3"
            document = {**node.conf(None, "1.1.0"), "name": name}
            node.runtime.gc("portmap", document, []).succeeded()


def node_owner(number: int) -> Any:
    from cni.owner import Owner

    return Owner(NET, f"c{number}", "eth0")


def test_of_two_who_want_a_port_one_gets_it(node: Node, container: Netns) -> None:
    """At the same moment, again and again, also on a node without a table."""
    ports = [tcp(8080), udp(8053)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            replies = list(pool.map(lambda n: add(node, container, n, ports), range(1, 5)))
            won = [number for number, reply in enumerate(replies, 1) if reply.rc == 0]
            assert len(won) == 1, [str(reply) for reply in replies]
            for number, reply in enumerate(replies, 1):
                if number not in won:
                    reply.failed(999, f"is already published by container c{won[0]} (")
            assert_exact(node)
            assert len(index(node)["by_owner"]) == 3
            list(pool.map(lambda n: delete(node, n, ports), range(1, 5)))
            assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)


def test_old_tables_and_crowds(node: Node, container: Netns) -> None:
    """Everybody wants to make the index at once, while others go."""
    for number in range(1, 9):
        add(node, container, number, [tcp(8000 + number)]).succeeded()
    old_table(node)
    with ThreadPoolExecutor(8) as pool:
        added = pool.map(lambda n: add(node, container, n, [tcp(8000 + n)]), range(9, 17))
        deleted = pool.map(lambda n: delete(node, n), range(1, 9))
        assert all(reply.rc == 0 for reply in added)
        list(deleted)
        assert_exact(node)
        assert len(index(node)["by_owner"]) == 9
        list(pool.map(lambda n: delete(node, n), range(9, 17)))
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)


def test_check_knows_the_index(node: Node, container: Netns) -> None:
    result_of = node.publish(container, [tcp(8080)], family=DUAL)
    conf = node.conf([tcp(8080)])
    text = node.host.exec(["nft", "list", "map", "ip", TABLE, "by_owner"]).stdout
    (key,) = re.findall(r'(0x\S+(?: \. 0x\S+)+) comment "[^"]*id: c1"', text)
    node.host.exec(["nft", "delete", "element", "ip", TABLE, "by_owner", f"{{ {key} }}"])
    node.runtime.check("portmap", conf, container, prev_result=result_of).failed(
        999, "map by_owner of ip cni_hostport does not list", "run `cni reload`"
    )
    node.runtime.add("portmap", conf, container, prev_result=result_of).succeeded()
    node.runtime.check("portmap", conf, container, prev_result=result_of).succeeded()
    assert_exact(node)


def test_chains_that_cannot_be_as_they_should(node: Node, container: Netns) -> None:
    """The error says what is in the way; nothing of ours is left."""
    place = f"ip {TABLE}"
    chain = "published_prerouting { type nat hook prerouting priority -50; }"
    node.host.exec(["nft", f"add table {place}; add chain {place} {chain}"])
    with unchanged(node.host):
        add(node, container, 1, [tcp(8080)], backend="nftables").failed(
            999,
            "unable to set up nftables rules for port mappings: ",
            f"(making chain published_prerouting in table ip {TABLE}: there is one of type nat "
            "hook prerouting priority -50, and this one is of type nat hook prerouting priority "
            "-99)",
            f"nft list chain ip {TABLE} published_prerouting",
        )


def test_an_index_of_what_is_gone(node: Node, container: Netns, container2: Netns) -> None:
    """As an earlier build leaves it: it removes elements, and knows no index."""
    add(node, container2, 1, [tcp(8001)]).succeeded()
    add(node, container, 2, [tcp(8002)]).succeeded()
    for family in ("ip", "ip6"):
        for name in ("published", "targets"):
            element = ["element", family, TABLE, name, "{ tcp . 8001 }"]
            node.host.exec(["nft", "delete", *element])
    container2.unname()
    ours = {"container_id": "c3", "prev_result": result(1)}
    node.runtime.add("portmap", node.conf([tcp(8001)]), container, **ours).succeeded()
    assert_exact(node)
    delete(node, 1, [tcp(8001)])
    assert_exact(node)
    delete(node, 3)
    delete(node, 2)
    assert not {("ip", TABLE), ("ip6", TABLE)} & nft_tables(node.host)
