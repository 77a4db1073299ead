"""The harness itself: what other tests rely on must be able to fail."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import (
    CommandError,
    Netns,
    Reply,
    Runtime,
    Snapshot,
    addresses,
    capture,
    connect,
    difference,
    find_routes,
    has_route,
    iptables_save,
    kind,
    link,
    links,
    nft_rules,
    nft_tables,
    ping,
    port,
    ports,
    routes,
    sysctls,
    tcp_exchange,
    tcp_server,
    tree,
    udp_exchange,
    udp_server,
    unchanged,
)
from tests.harness.build import ROOT
from tests.harness.netns import BARE_ENV, leftovers, own_inode, remove_stale
from tests.harness.requires import PROBES, missing, requires_kernel
from tests.harness.runtime import state_dir
from tests.harness.wait import wait_for_line, wait_until

MakeNetns = Callable[..., Netns]


# -- namespaces -----------------------------------------------------------------------------------


def test_namespace_is_a_new_one(host: Netns, container: Netns) -> None:
    assert len({own_inode(), host.inode, container.inode}) == 3
    assert os.stat(host.path).st_ino == host.inode
    inside = host.exec(["stat", "-Lc", "%i", "/proc/self/ns/net"]).stdout
    assert int(inside) == host.inode
    assert list(links(container)).count("lo") == 1
    assert "UP" not in link(container, "lo")["flags"]
    assert "UP" in link(host, "lo")["flags"]


def test_process_stays_where_it_is(host: Netns) -> None:
    before = own_inode()
    threads = threading.active_count()
    assert host.run(lambda: os.stat("/proc/thread-self/ns/net").st_ino) == host.inode
    with pytest.raises(ZeroDivisionError):
        host.run(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="main thread"):
        host.enter()
    assert own_inode() == before
    assert threading.active_count() == threads


def test_close_removes_everything(netns: MakeNetns) -> None:
    ns = netns()
    child = ns.popen(["sleep", "1000"])
    assert ns.name in leftovers()
    ns.close()
    ns.close()
    assert ns.name not in leftovers()
    assert not Path(ns.path).exists()
    assert child.returncode is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        ns.ip("link")


def test_unnamed_namespace_lives_on(container: Netns) -> None:
    container.unname()
    assert not Path(container.path).exists()
    assert "lo" in links(container)


def start_test_run(
    directory: Path, text: str, *options: str, **kwargs: Any
) -> subprocess.Popen[bytes]:
    """Start pytest on one test module, with this harness."""
    (directory / "test_inner.py").write_text(text)
    (directory / "pytest.ini").write_text("[pytest]")
    plugins = ["-p", "tests.harness.parallel", "-p", "no:cacheprovider"]
    # Else it would first remove what earlier test runs left in their temporary directory.
    options = (*options, f"--basetemp={directory / 'inner'}")
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *plugins, *options, f"--rootdir={directory}", directory],
        cwd=ROOT,
        env={**BARE_ENV, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **kwargs,
    )


ENDLESS = """
import time
from pathlib import Path
from tests.harness import Netns

def test_it():
    ns = Netns()
    ns.ip(*"link add inner type veth peer name outer netns {outer}".split())
    ns.popen(["sleep", "600"])
    Path("{ready}").write_text(f"{{ns.inode}}\\n")
    time.sleep(600)
"""


def test_what_a_killed_test_run_made_goes_with_it(netns: MakeNetns, tmp_path: Path) -> None:
    """Its worker has a namespace, a process and a mount; nobody is left to clear up."""
    ours, ready, outer = netns(), tmp_path / "ready", tmp_path / "outer"
    outer.touch()
    subprocess.run(["mount", "--bind", ours.path, outer], check=True)
    try:
        text = ENDLESS.format(outer=outer, ready=ready)
        with start_test_run(tmp_path, text, "-n", "1") as run:
            try:
                inode = wait_for_line(ready, run).strip()
                assert "outer" in links(ours)
                assert f"net:[{inode}]" not in Path("/proc/self/mountinfo").read_text()
            finally:
                run.kill()
            assert run.stdout is not None
            run.stdout.read()  # until nobody has it open any longer: all processes have ended
        wait_until(lambda: "outer" not in links(ours), "the namespace is gone")
    finally:
        subprocess.run(["umount", outer], check=True)


INTERRUPTED = """
import signal, subprocess

def test_it():
    assert subprocess.run(["sh", "-c", "kill -INT $$; echo goes on"]).returncode == -signal.SIGINT
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_children_hear_sigint_though_the_test_run_was_to_ignore_it(
    tmp_path: Path, workers: str
) -> None:
    """As what a shell starts in the background ignores it."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with start_test_run(tmp_path, INTERRUPTED, "-n", workers, preexec_fn=ignore) as run:
        assert run.wait(60) == 0, run.stdout.read().decode() if run.stdout else ""


@pytest.mark.usefixtures("_namespaces")
def test_stale_namespaces_of_dead_processes_are_removed() -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    name = f"cnitest-{dead.pid}-1"
    subprocess.run(["ip", "netns", "add", name], check=True)
    assert remove_stale() == [name]
    assert leftovers(dead.pid) == []


def test_failing_command_shows_what_it_printed(host: Netns) -> None:
    with pytest.raises(CommandError, match="does not exist"):
        host.ip("link", "show", "nosuch")
    with pytest.raises(CommandError, match="Cannot find device"):
        host.ip_batch("link set lo up", "link set nosuch up")


def test_environment_is_bare(host: Netns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    assert "PYTHONPATH" not in host.exec(["env"]).stdout


# -- readers --------------------------------------------------------------------------------------


def test_links_and_ports(host: Netns) -> None:
    host.ip_batch(
        "link add br0 type bridge",
        "link add v0 type veth peer name v1",
        "link set v0 master br0",
        "link set v0 type bridge_slave hairpin on isolated on",
    )
    assert kind(link(host, "br0")) == "bridge"
    assert kind(link(host, "v0")) == "veth"
    assert kind(link(host, "lo")) == ""
    assert list(ports(host, "br0")) == ["v0"]
    assert port(link(host, "v0"))["hairpin"] is True
    assert port(link(host, "v0"))["isolated"] is True
    with pytest.raises(AssertionError, match="no link nosuch"):
        link(host, "nosuch")


def test_addresses_and_routes(host: Netns) -> None:
    host.ip_batch(
        "link add v0 type veth peer name v1",
        "link set v0 up",
        "link set v1 up",
        "address add 10.0.0.1/24 dev v0",
        "address add fd00::1/64 dev v0 nodad",
        "route add default via 10.0.0.2 dev v0",
        "route add 10.9.0.1/32 dev v0 scope link src 10.0.0.1 metric 7",
        "route add 10.8.0.0/16 nexthop via 10.0.0.3 dev v0 nexthop via 10.0.0.4 dev v0",
        "route add 10.7.0.0/16 via 10.0.0.5 table 77",
        "route add default via fd00::2 dev v0",
    )
    assert addresses(host, "v0") == ["10.0.0.1/24", "fd00::1/64"]
    assert len(addresses(host, "v0", link_local=True)) == 3
    assert has_route(host, "default", via="10.0.0.2", dev="v0")
    assert has_route(host, "0.0.0.0/0", via="10.0.0.2")
    assert has_route(host, "::/0", via="fd00::2")
    assert not has_route(host, "::/0", via="fd00::3")
    assert has_route(host, "10.9.0.1/32", dev="v0", scope="link", prefsrc="10.0.0.1", metric=7)
    assert not has_route(host, "10.9.0.1/32", metric=8)
    assert [hop["gateway"] for hop in find_routes(host, "10.8.0.0/16")] == ["10.0.0.3", "10.0.0.4"]
    assert not has_route(host, "10.7.0.0/16")
    assert has_route(host, "10.7.0.0/16", table="77")
    assert {route["dst"] for route in routes(host, 6)} == {"default", "fd00::/64"}


def test_packet_filter_readers(host: Netns) -> None:
    assert nft_tables(host) == set()
    assert nft_rules(host, "inet", "t", "c") == []
    host.exec(
        ["nft", "-f", "-"],
        stdin='table inet t {\n chain c {\n ip saddr 10.0.0.1 counter accept comment "mine"\n }\n}',
    )
    assert nft_tables(host) == {("inet", "t")}
    (rule,) = nft_rules(host, "inet", "t", "c")
    assert rule["comment"] == "mine"
    assert "handle" not in rule
    assert iptables_save(host) == []
    host.exec(["iptables", "-w", "-t", "nat", "-N", "MINE"])
    assert ":MINE -" in iptables_save(host)


def test_sysctls(host: Netns) -> None:
    assert host.sysctl("net/ipv4/ip_forward") == "0"
    assert host.sysctl("net/ipv6/conf/all/forwarding") == "0"
    host.set_sysctl("net/ipv4/ip_forward", 1)
    assert host.sysctl("net/ipv4/ip_forward") == "1"
    assert sysctls(host, "net/ipv4/conf/lo")["net/ipv4/conf/lo/forwarding"] == "1"


# -- snapshots ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (["ip", "link", "set", "v0", "mtu", "1400"], "link.v0.mtu"),
        (["ip", "link", "add", "w0", "type", "veth", "peer", "w1"], "link.w0"),
        (["ip", "link", "del", "v0"], "link.v0"),
        (["ip", "address", "add", "10.1.0.1/24", "dev", "v0"], "address.v0.10.1.0.1 24"),
        (["ip", "route", "add", "10.2.0.0/24", "dev", "v0"], "route4."),
        (["ip", "-6", "route", "add", "fd02::/64", "dev", "v0", "table", "9"], "route6."),
        (["ip", "rule", "add", "from", "10.0.0.1", "table", "9"], "rule."),
        (["nft", "add", "table", "inet", "x"], "nft."),
        (["iptables", "-w", "-N", "X"], "iptables4"),
        (["sysctl", "-qw", "net.ipv4.ip_forward=1"], "forwarding4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_snapshot_sees_a_change(host: Netns, change: list[str], where: str) -> None:
    host.ip_batch("link add v0 type veth peer name v1", "link set v0 up", "link set v1 up")
    before = Snapshot.take(host)
    host.exec(change)
    found = difference(before, Snapshot.take(host))
    assert any(line.startswith(where) for line in found), found


def test_snapshot_of_an_idle_namespace_is_stable(host: Netns) -> None:
    host.ip_batch(
        "link add br0 type bridge",
        "link add v0 type veth peer name v1",
        "link set v0 up master br0",
        "link set v1 up",
        "link set br0 up",
        "address add fd00::1/64 dev br0 nodad",
    )
    host.exec(["nft", "add", "table", "inet", "x"])
    with unchanged(host):
        ping(host, "fd00::1")


def test_unchanged_fails(host: Netns, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    with pytest.raises(AssertionError, match=r"a: .*1.* -> .*2"), unchanged(tmp_path):
        (tmp_path / "a").write_text("2")
    with pytest.raises(AssertionError, match="b: new"), unchanged(host, tmp_path):
        (tmp_path / "b").mkdir()
    with pytest.raises(AssertionError, match="v0: new"), unchanged(host, tmp_path):
        host.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")


def test_tree(tmp_path: Path) -> None:
    assert tree(tmp_path / "nosuch") == {}
    (tmp_path / "d").mkdir(mode=0o755)
    (tmp_path / "d" / "f").write_bytes(b"x\r\n")
    (tmp_path / "d" / "f").chmod(0o600)
    (tmp_path / "l").symlink_to("d/f")
    assert tree(tmp_path) == {
        "d": "drwxr-xr-x",
        "d/f": r"-rw------- b'x\r\n'",
        "l": "lrwxrwxrwx -> d/f",
    }


# -- packets --------------------------------------------------------------------------------------


@pytest.fixture
def pair(host: Netns, outside: Netns) -> tuple[Netns, Netns]:
    connect(host, outside)
    return host, outside


def test_ping(pair: tuple[Netns, Netns]) -> None:
    host, outside = pair
    for address in ("198.51.100.2", "2001:db8:ffff::2"):
        ping(host, address)
        ping(host, address, count=3, size=1000)
        with pytest.raises(AssertionError, match="answers"):
            ping(host, address, expect=False, wait=0.2)
    ping(host, "198.51.100.77", expect=False, wait=0.2)
    ping(outside, "192.0.2.1", expect=False)
    with pytest.raises(AssertionError, match="does not answer"):
        ping(host, "198.51.100.77", timeout=0.2, wait=0.1)


@pytest.mark.parametrize("address", ["198.51.100.2", "2001:db8:ffff::2"])
def test_tcp_and_udp(pair: tuple[Netns, Netns], address: str) -> None:
    host, outside = pair
    own = address[:-1] + "1"
    with tcp_server(outside) as server:
        assert tcp_exchange(host, address, server.port) == own
        assert tcp_exchange(host, address, server.port, b"x" * 300_000) == own
        assert [client for client, _ in server.clients] == [own, own]
    with pytest.raises(ConnectionRefusedError):
        tcp_exchange(host, address, server.port)
    with udp_server(outside, address) as server:
        assert udp_exchange(host, address, server.port) == own
    with pytest.raises(ConnectionRefusedError):
        udp_exchange(host, address, server.port, timeout=1)
    assert threading.active_count() < 5


def test_udp_exchange_times_out(pair: tuple[Netns, Netns]) -> None:
    host, outside = pair
    with outside.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("", 7))
        with pytest.raises(TimeoutError, match="no answer"):
            udp_exchange(host, "198.51.100.2", 7, timeout=0.1)


def test_capture_of_arp_and_advertisements(pair: tuple[Netns, Netns]) -> None:
    host, outside = pair
    mac = link(outside, "node")["address"]
    with capture(host) as seen:
        ping(host, "198.51.100.2")
        ping(host, "2001:db8:ffff::2")
        outside.set_sysctl("net/ipv4/conf/node/arp_notify", 1)
        outside.ip_batch("link set node down", "link set node up")
    reply = [arp for arp in seen.arps("198.51.100.2") if arp.operation == 2]
    assert reply[0].sender_mac == mac
    assert reply[0].target_ip == "198.51.100.1"
    announcement = seen.gratuitous("198.51.100.2")
    assert announcement
    assert announcement[0].sender_mac == mac
    advertisement = seen.advertisements("2001:db8:ffff::2")[0]
    assert (advertisement.mac, advertisement.solicited) == (mac, True)
    assert all(frame.ifname == "uplink" for frame in seen.frames if frame.arp)
    assert {frame.outgoing for frame in seen.frames if frame.ifname == "uplink"} == {True, False}


def test_capture_on_one_interface(pair: tuple[Netns, Netns]) -> None:
    host, _ = pair
    with capture(host, "lo") as seen:
        ping(host, "198.51.100.2")
        ping(host, "127.0.0.1")
    assert {frame.ifname for frame in seen.frames} == {"lo"}


def test_capture_shows_the_vlan_tag(pair: tuple[Netns, Netns]) -> None:
    host, outside = pair
    frame = bytes.fromhex("ffffffffffff 020000000001 8100 0064 88b5") + bytes(50)
    with (
        capture(host, "uplink") as seen,
        outside.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock,
    ):
        sock.bind(("node", 0))
        sock.send(frame)
    (got,) = [one for one in seen.frames if one.src == "02:00:00:00:00:01"]
    assert got.vlan == 100
    assert got.ethertype == 0x88B5


# -- replies --------------------------------------------------------------------------------------


@pytest.fixture
def shell_runtime(tmp_path: Path, host: Netns) -> Runtime:
    """A runtime whose only plugin is a shell script that does what its configuration says."""
    plugin = tmp_path / "script"
    plugin.write_text('#!/bin/sh\nread -r code\neval "$code"\n')
    plugin.chmod(0o755)
    return Runtime(tmp_path, host)


def test_environment_of_a_plugin(shell_runtime: Runtime, container: Netns) -> None:
    reply = shell_runtime.add("script", "env >&2; pwd >&2", container, args="A=B")
    names = dict(line.partition("=")[::2] for line in reply.stderr.splitlines() if "=" in line)
    assert names.pop("PWD") == "/"  # set by the shell
    assert names == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": container.path,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "A=B",
        "CNI_PATH": str(shell_runtime.bin_dir),
        "CNI_STATE_DIR": state_dir(),
    }
    without = shell_runtime.call("ADD", "script", "env >&2", env={"CNI_IFNAME": None, "X": "1"})
    assert "CNI_IFNAME" not in without.stderr
    assert "X=1" in without.stderr
    inode = "stat -Lc %i /proc/self/ns/net >&2"
    assert int(shell_runtime.status("script", inode).stderr) == shell_runtime.host.inode


def test_configuration_on_stdin(shell_runtime: Runtime) -> None:
    (shell_runtime.bin_dir / "cat").symlink_to("/bin/cat")
    conf = {"cniVersion": "1.1.0", "name": "n"}
    echoed = shell_runtime.add("cat", conf, None, prev_result={"ips": []}).json
    assert echoed == {**conf, "type": "cat", "prevResult": {"ips": []}}
    echoed = shell_runtime.gc("cat", conf, [("c1", "eth0")]).json
    assert echoed["cni.dev/valid-attachments"] == [{"containerID": "c1", "ifname": "eth0"}]


def test_reply_assertions() -> None:
    def reply(rc: int, stdout: str, command: str = "ADD") -> Reply:
        return Reply("p", command, rc, stdout, "", 0)

    assert reply(0, '{"a": 1}').succeeded().result == {"a": 1}
    error = reply(1, '{"code": 7, "msg": "bad name", "details": "x y"}')
    assert error.failed(7, "bad", "x y")["code"] == 7
    for wrong in (
        lambda: error.result,
        error.succeeded,
        lambda: error.failed(4),
        lambda: error.failed(7, "good"),
        lambda: reply(0, "{}").failed(),
        lambda: reply(1, "").failed(),
        lambda: reply(1, "{}{}").failed(),
        lambda: reply(1, "[]").failed(),
        lambda: reply(1, '{"code": "7", "msg": "x"}').failed(),
        lambda: reply(1, '{"code": 7, "msg": ""}').failed(),
        lambda: reply(0, "{}", "DEL").succeeded(),
    ):
        with pytest.raises(AssertionError):
            wrong()


def test_lists_of_plugins(shell_runtime: Runtime, container: Netns) -> None:
    (shell_runtime.bin_dir / "cat").symlink_to("/bin/cat")
    conflist = {
        "cniVersion": "1.0.0",
        "name": "n",
        "plugins": [
            {"type": "cat", "one": 1},
            {"type": "cat", "two": 2, "capabilities": {"mac": True, "bandwidth": False}},
        ],
    }
    capabilities = {"mac": "02:00:00:00:00:01", "bandwidth": {}, "ips": []}
    result = shell_runtime.add_list(conflist, container, capabilities=capabilities)
    common = {"cniVersion": "1.0.0", "name": "n", "type": "cat"}
    assert result == {
        **common,
        "two": 2,
        "runtimeConfig": {"mac": "02:00:00:00:00:01"},
        "prevResult": {**common, "one": 1},
    }


# -- requirements ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_namespaces")
def test_probes_tell_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing("veth") is None
    monkeypatch.setitem(PROBES, "nosuch", ["ip link add x type nosuch"])
    monkeypatch.setitem(PROBES, "notool", ["no-such-tool x"])
    assert missing("nosuch")
    assert missing("notool") == "no-such-tool is not installed"
    with pytest.raises(ValueError, match="no probe for gibberish"):
        requires_kernel("gibberish")
