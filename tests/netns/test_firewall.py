"""The firewall plugin's rules and verbs; what packets do is in test_firewall_packets.py."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    Netns,
    Runtime,
    each_version,
    iptables_save,
    nft_rules,
    nft_tables,
    unchanged,
)
from tests.harness import nft as nft_list
from tests.harness.firewalld import Bus

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]

V4, V6 = "10.0.0.2", "2001:db8:1:2::1"
OPEN_V4 = [
    '-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD',
    '-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN',
    "-A CNI-FORWARD -d 10.0.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A CNI-FORWARD -s 10.0.0.2/32 -j ACCEPT",
]
OPEN_V6 = [line.replace("10.0.0.2/32", f"{V6}/128") for line in OPEN_V4]
SHARED = OPEN_V4[:2]
DEFAULT = '--comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"'
BACKENDS = ("iptables", "nftables")


@pytest.fixture(autouse=True)
def _no_bus(runtime: Runtime, tmp_path: Path) -> None:
    """The machine's own bus is none of these tests'."""
    runtime.env["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={tmp_path}/none"
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")


def conf(cni_version: str = "1.1.0", **keys: Any) -> Json:
    return {"cniVersion": cni_version, "name": "net", **keys}


def previous(*addresses: str, version: str = "1.1.0", bridge: str = "br0") -> Json:
    addresses = addresses or (f"{V4}/24", f"{V6}/64")
    ips: list[Json] = [{"address": a, "interface": 1} for a in addresses]
    if version == "0.4.0":
        for ip in ips:
            ip["version"] = "6" if ":" in ip["address"] else "4"
    interfaces = [{"name": bridge}, {"name": "eth0", "sandbox": "/run/netns/x"}]
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips}


def rules(host: Netns, version: int = 4) -> list[str]:
    """The rules of the filter table; "" is not among them when there is no such table."""
    saved = iptables_save(host, version)
    return [line for line in saved if line.startswith("-A")]


def allowed(host: Netns) -> dict[str, str]:
    """Address -> comment, of both sets."""
    found = {}
    for item in nft_list(host):
        entry = item.get("set", {})
        if entry.get("table") == "cni_firewall" and entry["name"].startswith("allowed"):
            for element in entry.get("elem", []):
                found[element["elem"]["val"]] = element["elem"]["comment"]
    return found


def in_set(host: Netns, name: str) -> list[Any]:
    entries = [item["set"] for item in nft_list(host) if "set" in item]
    (entry,) = [entry for entry in entries if entry["name"] == name]
    return [element["elem"]["val"] for element in entry.get("elem", [])]


def has_address(host: Netns, backend: str, address: str = V4) -> bool:
    if backend == "nftables":
        return address in allowed(host)
    version = 6 if ":" in address else 4
    return len([line for line in rules(host, version) if f" {address}/" in line]) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_again_with_another_address(
    runtime: Runtime, host: Netns, container: Netns, backend: str
) -> None:
    """Without a DEL in between: what the earlier ADD made of this attachment goes."""
    network = conf(backend=backend)
    for prev in (previous(), previous("10.22.0.9/24")):
        runtime.add("firewall", network, container, prev_result=prev).succeeded()
    assert has_address(host, backend, "10.22.0.9")
    for address in (V4, V6):
        family = rules(host, 6 if ":" in address else 4)
        assert not any(f" {address}/" in line for line in family)
        assert address not in allowed(host)
    # as long as nobody else has it
    runtime.add("firewall", network, container, container_id="c2", prev_result=prev).succeeded()
    runtime.add("firewall", network, container, prev_result=previous()).succeeded()
    assert has_address(host, backend, "10.22.0.9")
    assert has_address(host, backend)


BROKEN: dict[str, Json] = {
    "version": {"prevResult": {"cniVersion": "0.3.1", "ips": []}},
    "address": {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "x"}]}},
    "no object": {"prevResult": 7},
    "key": {"ingressPolicy": 7},
    "zone": {"firewalldZone": []},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_configuration_leaves_no_rules(
    runtime: Runtime, host: Netns, container: Netns, backend: str, what: str
) -> None:
    """DEL removes what is the owner's, and says what was wrong then."""
    runtime.add("firewall", conf(backend=backend), container, prev_result=previous()).succeeded()
    broken = {**conf(backend=backend), **BROKEN[what]}
    deleted = runtime.delete("firewall", broken, container)
    assert deleted.rc or deleted.stderr
    for address in (V4, V6):
        assert not has_address(host, backend, address)


# -- the reference's rules ------------------------------------------------------------------------


@each_version(CHECK_VERSIONS)
def test_iptables_rules(runtime: Runtime, host: Netns, container: Netns, cni_version: str) -> None:
    network = conf(cni_version, backend="iptables")
    prev = previous(version=cni_version)
    for _ in range(2):
        result = runtime.add("firewall", network, container, prev_result=prev).result
        assert {key: result[key] for key in ("ips", "interfaces")} == {
            key: prev[key] for key in ("ips", "interfaces")
        }
        assert rules(host, 4) == OPEN_V4
        assert rules(host, 6) == OPEN_V6
    assert nft_tables(host) == {("ip", "filter"), ("ip6", "filter")}
    runtime.check("firewall", network, container, prev_result=prev).succeeded()
    for _ in range(2):
        runtime.delete("firewall", network, container, prev_result=prev).succeeded()
        assert rules(host, 4) == rules(host, 6) == SHARED
    lines = runtime.check("firewall", network, container, prev_result=prev).failed(
        999, "expected rule [-s 10.0.0.2/32 -j ACCEPT] not found", "run `cni reload`"
    )
    assert "backend iptables" in lines["details"]


@pytest.mark.parametrize("cni_version", ["0.3.1", "0.1.0"])
def test_older_versions_are_refused(runtime: Runtime, container: Netns, cni_version: str) -> None:
    reply = runtime.add("firewall", conf(cni_version), container)
    reply.failed(1, "incompatible CNI versions")


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_addresses_and_one_family(
    runtime: Runtime, host: Netns, container: Netns, backend: str
) -> None:
    prev = previous(f"{V4}/24", "10.0.0.3/24")
    network = conf(backend=backend)
    runtime.add("firewall", network, container, prev_result=prev).succeeded()
    if backend == "iptables":
        # dst, src, dst, src; and ip6tables was not touched
        assert rules(host) == [*OPEN_V4, *(r.replace("0.2/", "0.3/") for r in OPEN_V4[2:])]
        assert nft_tables(host) == {("ip", "filter")}
    else:
        assert sorted(allowed(host)) == [V4, "10.0.0.3"]
    runtime.check("firewall", network, container, prev_result=prev).succeeded()


def test_the_admin_chain(runtime: Runtime, host: Netns, container: Netns) -> None:
    host.exec(["iptables", "-N", "CNI-foobar"])
    host.exec(["iptables", "-A", "CNI-foobar", "-s", "1.2.3.4", "-j", "DROP"])
    network = conf(backend="iptables", iptablesAdminChainName="CNI-foobar")
    prev = previous(f"{V4}/24")
    runtime.add("firewall", network, container, prev_result=prev).succeeded()
    assert "-A CNI-foobar -s 1.2.3.4/32 -j DROP" in rules(host)
    jumps = [line for line in rules(host) if line.endswith("-j CNI-foobar")]
    assert [line.split()[1] for line in jumps] == ["CNI-FORWARD"]
    runtime.delete("firewall", network, container, prev_result=prev).succeeded()
    assert "-A CNI-foobar -s 1.2.3.4/32 -j DROP" in rules(host)


def test_the_admin_chain_in_nftables(runtime: Runtime, host: Netns, container: Netns) -> None:
    """Each network may have its own; an administrator's rules in it survive."""
    for name in ("CNI-ADMIN", "CNI-foobar", "CNI-foobar"):
        network = conf(backend="nftables", iptablesAdminChainName=name)
        runtime.add("firewall", network, container, prev_result=previous()).succeeded()
        if name == "CNI-ADMIN":
            host.exec(["nft", "add rule inet cni_firewall CNI-ADMIN ip saddr 1.2.3.4 drop"])
    jumps = [
        r["expr"][-1]["jump"]["target"] for r in nft_rules(host, "inet", "cni_firewall", "admin")
    ]
    assert jumps == ["CNI-ADMIN", "CNI-foobar"]
    assert len(nft_rules(host, "inet", "cni_firewall", "CNI-ADMIN")) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["a b", "x" * 29, "a;b", "-j", "a\nCOMMIT", '"a', "é"])
def test_an_admin_chain_that_would_be_something_else(
    runtime: Runtime, host: Netns, container: Netns, backend: str, name: str
) -> None:
    network = conf(backend=backend, iptablesAdminChainName=name)
    with unchanged(host):
        reply = runtime.add("firewall", network, container, prev_result=previous())
        reply.failed(999, "invalid iptablesAdminChainName")


# -- ingress policies -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["same-bridge", "isolated"])
def test_isolation_rules(runtime: Runtime, host: Netns, container: Netns, policy: str) -> None:
    network = conf(backend="iptables", ingressPolicy=policy)
    prev = previous(f"{V4}/24")
    comment = f'--comment "CNI firewall plugin rules (ingressPolicy: {policy})"'
    drop = [f"-A CNI-ISOLATION-STAGE-1 -i br0 -o br0 -m comment {comment} -j DROP"]
    for _ in range(2):
        runtime.add("firewall", network, container, prev_result=prev).succeeded()
        assert rules(host) == [
            f"-A FORWARD -m comment {DEFAULT} -j CNI-ISOLATION-STAGE-1",
            *OPEN_V4,
            *(drop if policy == "isolated" else []),
            f"-A CNI-ISOLATION-STAGE-1 -i br0 ! -o br0 -m comment {comment} "
            "-j CNI-ISOLATION-STAGE-2",
            f"-A CNI-ISOLATION-STAGE-1 -m comment {DEFAULT} -j RETURN",
            f"-A CNI-ISOLATION-STAGE-2 -o br0 -m comment {DEFAULT} -j DROP",
            f"-A CNI-ISOLATION-STAGE-2 -m comment {DEFAULT} -j RETURN",
        ]
    runtime.check("firewall", network, container, prev_result=prev).succeeded()
    runtime.delete("firewall", network, container, prev_result=prev).succeeded()
    assert len(rules(host)) == 7 + (policy == "isolated")  # isolation outlives a container


@pytest.mark.parametrize("order", ["lost", "late"])
def test_isolation_stays_before_what_is_accepted(
    runtime: Runtime, host: Netns, container: Netns, order: str
) -> None:
    network = conf(backend="iptables", ingressPolicy="isolated")
    prev = previous(f"{V4}/24")
    runtime.add("firewall", network, container, prev_result=prev).succeeded()
    before = rules(host)
    jump = ["-m", "comment", "--comment", "CNI firewall plugin rules", "-j", "CNI-FORWARD"]
    host.exec(["iptables", "-D", "FORWARD", *jump])
    if order == "late":
        host.exec(["iptables", "-I", "FORWARD", *jump])
        reply = runtime.check("firewall", network, container, prev_result=prev)
        reply.failed(999, "comes after")
        host.exec(["iptables", "-D", "CNI-FORWARD", "-s", V4, "-j", "ACCEPT"])
        host.exec(["iptables", "-F", "CNI-ISOLATION-STAGE-2"])
    runtime.add("firewall", network, container, prev_result=prev).succeeded()
    assert rules(host)[:2] == before[:2]
    assert sorted(rules(host)) == sorted(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_policy_replaces_the_bridges_old_one(
    runtime: Runtime, host: Netns, container: Netns, backend: str
) -> None:
    prev = previous(f"{V4}/24")
    states = []
    for policy in ("same-bridge", "isolated", "same-bridge"):
        network = conf(backend=backend, ingressPolicy=policy)
        runtime.add("firewall", network, container, prev_result=prev).succeeded()
        runtime.check("firewall", network, container, prev_result=prev).succeeded()
        state = rules(host) if backend == "iptables" else in_set(host, "within")
        states.append(state)
    assert states[0] == states[2] != states[1]
    reply = runtime.check(
        "firewall", conf(backend=backend, ingressPolicy="isolated"), container, prev_result=prev
    )
    reply.failed(999)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_policy(runtime: Runtime, host: Netns, container: Netns, backend: str) -> None:
    bad = conf(backend=backend, ingressPolicy="bogus")
    with unchanged(host):
        reply = runtime.add("firewall", bad, container, prev_result=previous())
        reply.failed(999, 'unknown ingress policy: "bogus"')
    runtime.add("firewall", conf(backend=backend), container, prev_result=previous()).succeeded()
    reply = runtime.delete("firewall", bad, container, prev_result=previous())
    reply.failed(999, 'unknown ingress policy: "bogus"')
    assert not has_address(host, backend)


@pytest.mark.parametrize(
    ("interfaces", "text"),
    [
        ([], 'interface needs to be set for ingress policy "isolated", make sure to chain'),
        ([{"name": ""}], "got empty bridge name"),
        ([{"name": "br+"}], "cannot write rules for a bridge named"),
    ],
)
def test_a_policy_needs_a_bridge(
    runtime: Runtime, host: Netns, container: Netns, interfaces: list[Json], text: str
) -> None:
    prev = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": [{"address": f"{V4}/24"}]}
    network = conf(backend="iptables", ingressPolicy="isolated")
    with unchanged(host):
        runtime.add("firewall", network, container, prev_result=prev).failed(999, text)


# -- nftables -------------------------------------------------------------------------------------


def test_nftables_rules(runtime: Runtime, host: Netns, container: Netns) -> None:
    network = conf(backend="nftables", ingressPolicy="same-bridge")
    runtime.add("firewall", network, container, prev_result=previous()).succeeded()
    assert nft_tables(host) == {("inet", "cni_firewall")}
    comments = set(allowed(host).values())
    assert sorted(allowed(host)) == [V4, V6]
    assert len(comments) == 1
    assert "net: net, if: eth0, id: c1" in comments.pop()
    before = host.exec(["nft", "-s", "list", "ruleset"]).stdout
    runtime.add("firewall", network, container, prev_result=previous()).succeeded()
    assert host.exec(["nft", "-s", "list", "ruleset"]).stdout == before
    runtime.check("firewall", network, container, prev_result=previous()).succeeded()
    runtime.delete("firewall", network, container).succeeded()
    assert allowed(host) == {}
    runtime.check("firewall", network, container, prev_result=previous()).failed(
        999, f"{V4} is not in it", f"{V6} is not in it", "run `cni reload`", "backend nftables"
    )


def test_the_administrators_policy_of_our_chain_stays(
    runtime: Runtime, host: Netns, container: Netns
) -> None:
    hook = "{ type filter hook forward priority filter; policy drop; }"
    host.exec(["nft", "add table inet cni_firewall"])
    host.exec(["nft", f"add chain inet cni_firewall forward {hook}"])
    runtime.add("firewall", conf(backend="nftables"), container, prev_result=previous()).succeeded()
    assert (
        "policy drop"
        in host.exec(["nft", "list", "chain", "inet", "cni_firewall", "forward"]).stdout
    )


def test_a_late_del_leaves_the_new_owner_alone(
    runtime: Runtime, host: Netns, container: Netns
) -> None:
    for backend in BACKENDS:
        network, prev = conf(backend=backend), previous(f"{V4}/24")
        runtime.add("firewall", network, container, prev_result=prev).succeeded()
        runtime.delete("firewall", network, container, prev_result=prev).succeeded()
        runtime.add("firewall", network, container, prev_result=prev, container_id="c2").succeeded()
        runtime.delete("firewall", network, container, prev_result=prev).succeeded()
        assert has_address(host, backend)
        runtime.delete("firewall", network, prev_result=prev, container_id="c2").succeeded()
        assert not has_address(host, backend)


def test_a_del_that_never_came_leaves_the_new_owner_alone(
    runtime: Runtime, host: Netns, container: Netns
) -> None:
    """The address was given to another container meanwhile."""
    for backend in BACKENDS:
        network, prev = conf(backend=backend), previous(f"{V4}/24")
        for cid in ("c1", "c2"):
            runtime.add("firewall", network, container, prev_result=prev, container_id=cid)
        runtime.delete("firewall", network, prev_result=prev, container_id="c1").succeeded()
        assert has_address(host, backend)
        runtime.check("firewall", network, container, prev_result=prev, container_id="c2")
        runtime.delete("firewall", network, prev_result=prev, container_id="c2").succeeded()
        assert not has_address(host, backend)


# -- which backend --------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["", "pigeon", None])
def test_iptables_unless_firewalld_runs(
    runtime: Runtime, host: Netns, container: Netns, backend: str | None
) -> None:
    network = conf() if backend is None else conf(backend=backend)
    runtime.add("firewall", network, container, prev_result=previous()).succeeded()
    assert rules(host) == OPEN_V4
    reply = runtime.status("firewall", network).succeeded()
    assert "backend iptables: firewalld is not running: no bus at" in reply.stderr


@pytest.mark.skipif(
    os.path.exists("/run/dbus/system_bus_socket"), reason="this machine has a system bus"
)
def test_status_is_silent_without_a_bus(runtime: Runtime) -> None:
    """Runtimes ask often, and there is nothing to do about a node that has no D-Bus."""
    runtime.env.pop("DBUS_SYSTEM_BUS_ADDRESS")
    reply = runtime.status("firewall", conf()).succeeded()
    assert reply.stderr == ""


def test_a_bus_without_firewalld(runtime: Runtime, host: Netns, container: Netns, bus: Bus) -> None:
    runtime.env.update(bus.env)
    reply = runtime.status("firewall", conf()).succeeded()
    assert "backend iptables: firewalld is not running\n" in reply.stderr
    reply = runtime.status("firewall", conf(backend="firewalld"))
    reply.failed(50, "firewalld is not running")
    reply = runtime.add("firewall", conf(backend="firewalld"), container, prev_result=previous())
    reply.failed(999, f"failed to add the address {V4}/32 to trusted zone")
    runtime.delete(
        "firewall", conf(backend="firewalld"), container, prev_result=previous()
    ).succeeded()


def without_iptables(runtime: Runtime, monkey: Path) -> None:
    """Every tool of iptables fails."""
    monkey.mkdir()
    for name in ("iptables", "ip6tables"):
        for tool in (name, f"{name}-restore", f"{name}-save"):
            (monkey / tool).write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
            (monkey / tool).chmod(0o755)
    runtime.env["PATH"] = f"{monkey}:{runtime.env['PATH']}"


def test_nftables_when_iptables_is_unusable(
    runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    without_iptables(runtime, tmp_path / "bin")
    network, prev = conf(ingressPolicy="isolated"), previous()
    runtime.add("firewall", network, container, prev_result=prev).succeeded()
    assert sorted(allowed(host)) == [V4, V6]
    runtime.check("firewall", network, container, prev_result=prev).succeeded()
    reply = runtime.status("firewall", network).succeeded()
    assert "backend nftables: firewalld is not running" in reply.stderr
    assert "and iptables is unusable" in reply.stderr
    runtime.delete("firewall", network, container, prev_result=prev).succeeded()
    assert allowed(host) == {}
    asked_for = conf(backend="iptables")
    runtime.status("firewall", asked_for).failed(50, "iptables is unusable")
    with unchanged(host):
        reply = runtime.add("firewall", asked_for, container, prev_result=prev)
        reply.failed(999, "broken", "backend iptables: the configuration says so")
    runtime.delete("firewall", asked_for, container, prev_result=prev).succeeded()


def test_status_tells_of_foreign_drops(runtime: Runtime, host: Netns) -> None:
    hook = "{ type filter hook forward priority 0; policy drop; }"
    host.exec(["nft", "add table inet mine"])
    host.exec(["nft", f"add chain inet mine gate {hook}"])
    host.exec(["iptables", "-P", "FORWARD", "DROP"])
    for backend, told in (
        ("iptables", ["inet mine gate"]),
        ("nftables", ["inet mine gate", "ip filter FORWARD"]),
    ):
        reply = runtime.status("firewall", conf(backend=backend)).succeeded()
        lines = [line for line in reply.stderr.splitlines() if "warning" in line]
        assert [line.split("`")[1] for line in lines] == told
    host.exec(["nft", "delete table inet mine"])
    reply = runtime.status("firewall", conf(backend="iptables")).succeeded()
    assert "warning" not in reply.stderr


# -- life cycle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_prev_result_is_needed(runtime: Runtime, host: Netns, container: Netns, verb: str) -> None:
    with unchanged(host):
        reply = runtime.call(verb, "firewall", conf(), container)
        reply.failed(999, "missing prevResult from earlier plugin")


@pytest.mark.parametrize("backend", BACKENDS)
def test_del_without_anything(runtime: Runtime, host: Netns, backend: str) -> None:
    with unchanged(host):
        runtime.delete("firewall", conf(backend=backend)).succeeded()
        runtime.delete("firewall", conf(backend=backend), prev_result=previous()).succeeded()


@pytest.mark.parametrize("backend", BACKENDS)
def test_del_without_prev_result(
    runtime: Runtime, host: Netns, container: Netns, backend: str
) -> None:
    network = conf(backend=backend)
    for cid, address in (("c1", V4), ("c2", "10.0.0.3")):
        prev = previous(f"{address}/24")
        reply = runtime.add("firewall", network, container, prev_result=prev, container_id=cid)
        reply.succeeded()
    runtime.delete("firewall", network).succeeded()
    assert not has_address(host, backend)
    assert has_address(host, backend, "10.0.0.3")


@pytest.mark.parametrize("backend", BACKENDS)
def test_gc(runtime: Runtime, host: Netns, container: Netns, backend: str) -> None:
    network = conf(backend=backend, ingressPolicy="same-bridge")
    other = {**network, "name": "other"}
    plan = (("c1", V4, network), ("c2", "10.0.0.3", network), ("c3", "10.0.0.4", other))
    for cid, address, one in plan:
        prev = previous(f"{address}/24", f"2001:db8::{address[-1]}/64")
        reply = runtime.add("firewall", one, container, prev_result=prev, container_id=cid)
        reply.succeeded()
    runtime.gc("firewall", network, [("c2", "eth0")]).succeeded()
    for _, address, _ in plan:
        for each in (address, f"2001:db8::{address[-1]}"):
            assert has_address(host, backend, each) == (address != V4)
    runtime.gc("firewall", network, []).succeeded()
    assert not has_address(host, backend, "10.0.0.3")
    assert has_address(host, backend, "10.0.0.4")
    if backend == "nftables":
        # the bridge is the other network's now, which still is there
        assert in_set(host, "bridges") == ["br0"]
        runtime.gc("firewall", other, []).succeeded()
        assert in_set(host, "bridges") == in_set(host, "within") == []


def test_a_failed_add_leaves_nothing(
    runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    """ip6tables fails after iptables has done its part."""
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "ip6tables-restore").write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    (broken / "ip6tables-restore").chmod(0o755)
    runtime.env["PATH"] = f"{broken}:{runtime.env['PATH']}"
    reply = runtime.add("firewall", conf(backend="iptables"), container, prev_result=previous())
    reply.failed(999, "failed to set up firewall rules with iptables", "broken")
    assert rules(host) == SHARED
    assert list((tmp_path / "state" / "intent").iterdir()) == []


def test_missing_ip6tables_only_matters_with_ipv6(
    runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    broken = tmp_path / "bin"
    broken.mkdir()
    for tool in ("ip6tables", "ip6tables-restore", "ip6tables-save"):
        (broken / tool).write_text("#!/bin/sh\nexit 3\n")
        (broken / tool).chmod(0o755)
    runtime.env["PATH"] = f"{broken}:{runtime.env['PATH']}"
    prev = previous(f"{V4}/24")
    runtime.add("firewall", conf(backend="iptables"), container, prev_result=prev).succeeded()
    runtime.delete("firewall", conf(backend="iptables"), container, prev_result=prev).succeeded()
    assert rules(host) == SHARED


def test_iptables_legacy(runtime: Runtime, host: Netns, container: Netns, tmp_path: Path) -> None:
    legacy = Path("/usr/sbin/iptables-legacy")
    done = host.exec([legacy, "-S"], check=False) if legacy.exists() else None
    if done is None or done.returncode != 0:
        pytest.skip("this kernel or machine has no iptables-legacy")
    (tmp_path / "bin").mkdir()
    for name in ("iptables", "iptables-restore", "iptables-save"):
        target = name.replace("iptables", "iptables-legacy", 1)
        (tmp_path / "bin" / name).symlink_to(f"/usr/sbin/{target}")
    runtime.env["PATH"] = f"{tmp_path}/bin:{runtime.env['PATH']}"
    network, prev = conf(backend="iptables", ingressPolicy="isolated"), previous(f"{V4}/24")

    def own() -> list[str]:
        saved = host.exec(["iptables-legacy-save", "-t", "filter"]).stdout.splitlines()
        return [line for line in saved if f"{V4}/32" in line]

    for _ in range(2):
        runtime.add("firewall", network, container, prev_result=prev).succeeded()
        assert own() == OPEN_V4[2:]
    runtime.check("firewall", network, container, prev_result=prev).succeeded()
    runtime.delete("firewall", network, container, prev_result=prev).succeeded()
    assert own() == []


def test_many_at_once(runtime: Runtime, host: Netns, container: Netns) -> None:
    """The first containers of a node start together: everything is there once."""
    network = conf(backend="iptables", ingressPolicy="same-bridge")
    addresses = [f"10.0.0.{n}" for n in range(2, 10)]

    def start(address: str) -> None:
        prev = previous(f"{address}/24")
        replies.append(
            runtime.add("firewall", network, container, prev_result=prev, container_id=address)
        )

    replies: list[Any] = []
    threads = [threading.Thread(target=start, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.rc for reply in replies] == [0] * len(addresses), "\n".join(map(str, replies))
    found = rules(host)
    assert len(found) == len(set(found)), json.dumps(found, indent=1)
    assert all(has_address(host, "iptables", address) for address in addresses)


# -- switching over -------------------------------------------------------------------------------


@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-go", "go-ours"])
def test_switching_over(
    runtime: Runtime,
    go_runtime: Runtime,
    host: Netns,
    container: Netns,
    ours_first: bool,
) -> None:
    """What one implementation made, the other checks and removes."""
    go_runtime.env.update(runtime.env)
    network = conf("1.0.0", backend="iptables")
    isolating = {**network, "ingressPolicy": "same-bridge"}
    prev = previous(version="1.0.0")
    first, second = (runtime, go_runtime) if ours_first else (go_runtime, runtime)
    first.add("firewall", network, container, prev_result=prev).succeeded()
    made = (rules(host, 4), rules(host, 6))
    second.check("firewall", network, container, prev_result=prev).succeeded()
    second.add("firewall", network, container, prev_result=prev).succeeded()
    assert (rules(host, 4), rules(host, 6)) == made
    # Version 1.1.1 has other comments in the rules of isolation.
    first.add("firewall", isolating, container, prev_result=prev).succeeded()
    second.check("firewall", isolating, container, prev_result=prev).succeeded()
    second.delete("firewall", isolating, container, prev_result=prev).succeeded()
    for version, address in ((4, V4), (6, V6)):
        assert not [line for line in rules(host, version) if address in line]


# -- reload ---------------------------------------------------------------------------------------


def reload(runtime: Runtime) -> None:
    done = runtime.host.exec([runtime.bin_dir / "cni", "reload"], env=runtime.env)
    assert done.stdout == "1 of 1 restored\n"


FLUSHES: dict[str, Callable[[Netns], None]] = {
    "nft": lambda host: host.exec(["nft", "flush", "ruleset"]) and None,
    "iptables": lambda host: (
        [
            host.exec([tool, "-t", "filter", flag])
            for tool in ("iptables", "ip6tables")
            for flag in ("-F", "-X")
        ]
        and None
    ),
}


@pytest.mark.parametrize(
    ("backend", "flush"), [("iptables", "nft"), ("iptables", "iptables"), ("nftables", "nft")]
)
def test_rules_come_back(
    runtime: Runtime, host: Netns, container: Netns, backend: str, flush: str
) -> None:
    network = conf(backend=backend, ingressPolicy="isolated")
    prev = previous()
    prev["interfaces"][1]["sandbox"] = container.path

    def state() -> Any:
        if backend == "iptables":
            return rules(host, 4), rules(host, 6)
        return host.exec(["nft", "-s", "list", "ruleset"]).stdout

    runtime.add("firewall", network, container, prev_result=prev).succeeded()
    before = state()
    FLUSHES[flush](host)
    assert state() != before
    runtime.check("firewall", network, container, prev_result=prev).failed(999, "run `cni reload`")
    for _ in range(2):
        reload(runtime)
        assert state() == before
    runtime.check("firewall", network, container, prev_result=prev).succeeded()
    runtime.delete("firewall", network, container, prev_result=prev).succeeded()
    assert not has_address(host, backend)
