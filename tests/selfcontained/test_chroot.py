"""The self-contained file where nothing else is: no Python, no C library, no /usr, no /dev."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cni import dispatch
from tests.harness import addresses, connect, has_route, link, links, ping, reach, tcp_server
from tests.harness.dhcp import Daemon, dnsmasq
from tests.harness.server import by_exec, served, serving

from .conftest import BIN_DIR, Chroot

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

Json = dict[str, Any]

# Newer than Linux 4.18, as strace knows them.
NEWER = "?clone3,?close_range,?openat2,?faccessat2,?pidfd_open,?epoll_pwait2,?statx,?rseq"
NETWORK: Json = {
    "cniVersion": "1.1.0",
    "name": "net",
    "bridge": "br0",
    "isGateway": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.44.0.0/24"}], [{"subnet": "fd44::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
}


@pytest.mark.parametrize("plugin", sorted(set(dispatch.TABLE) - {"win-bridge", "win-overlay"}))
def test_every_plugin_answers_version(installed: Runtime, plugin: str) -> None:
    assert "1.1.0" in installed.version(plugin).result["supportedVersions"]


@pytest.mark.parametrize("output", ["", "json"])
@pytest.mark.parametrize(("char", "escape"), [("\x1b", r"\x1b"), ("\U000e0001", r"\U000e0001")])
def test_codecs(chroot: Chroot, char: str, escape: str, output: str) -> None:
    """Characters are escaped by codecs that the interpreter itself does not load."""
    if output:
        escape = json.dumps(char).strip('"')
    done = chroot.run(f"{BIN_DIR}/cni", "explain", f"no{char}plugin", "-o", output or "name")
    assert escape in done.stdout + done.stderr
    assert done.returncode == 3, done.stderr


def test_loopback(installed: Runtime, container: Netns) -> None:
    conf = {"cniVersion": "1.1.0", "name": "lo"}
    result = installed.add("loopback", conf, container, ifname="lo").result
    assert addresses(container, "lo") == ["127.0.0.1/8", "::1/128"]
    installed.check("loopback", conf, container, ifname="lo", prev_result=result).succeeded()
    installed.delete("loopback", conf, container, ifname="lo").succeeded()
    assert "UP" not in link(container, "lo")["flags"]


def test_bridge_with_host_local(
    installed: Runtime, chroot: Chroot, host: Netns, container: Netns, container2: Netns
) -> None:
    result = installed.add("bridge", NETWORK, container).result
    other = installed.add("bridge", NETWORK, container2, container_id="c2").result
    assert has_route(container, "default")
    for ip in other["ips"]:
        ping(container, ip["address"].partition("/")[0])
    store = chroot.outside("/var/lib/cni/networks/net")
    assert (store / "10.44.0.2").exists()
    installed.check("bridge", NETWORK, container, prev_result=result).succeeded()
    installed.delete("bridge", NETWORK, container).succeeded()
    installed.delete("bridge", NETWORK, container2, container_id="c2").succeeded()
    assert not (store / "10.44.0.2").exists()
    assert [port["ifname"] for port in host.ip_json("link", "show", "type", "veth")] == []


def test_check_tells_what_differs(installed: Runtime, container: Netns) -> None:
    result = installed.add("bridge", NETWORK, container).result
    container.ip("address", "flush", "dev", "eth0")
    installed.check("bridge", NETWORK, container, prev_result=result).failed(None, "10.44.0.2")


def test_tuning(installed: Runtime, container: Netns) -> None:
    container.ip("link", "add", "eth0", "type", "veth", "peer", "other")
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": str(container)}]}
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "mtu": 1400,
        "sysctl": {"net.core.somaxconn": "500"},
        "dataDir": "/run/cni/tuning",
    }
    installed.add("tuning", conf, container, prev_result=previous).succeeded()
    assert link(container, "eth0")["mtu"] == 1400
    assert container.sysctl("net/core/somaxconn") == "500"
    installed.delete("tuning", conf, container, prev_result=previous).succeeded()
    assert link(container, "eth0")["mtu"] == 1500


def test_an_error_is_as_everywhere(installed: Runtime, container: Netns) -> None:
    installed.add(
        "bridge", {"cniVersion": "1.1.0", "name": "net", "vlan": 5000}, container
    ).failed()


def test_dhcp(installed: Runtime, chroot: Chroot, container: Netns, outside: Netns) -> None:
    outside.ip("link", "add", "lan0", "type", "veth", "peer", "eth0", "netns", container.name)
    outside.ip_batch("address add 10.55.0.1/24 dev lan0", "link set lan0 up")
    container.ip("link", "set", "eth0", "up")
    directory = chroot.root / "run/cni"
    pool = "--dhcp-range=10.55.0.50,10.55.0.99,255.255.255.0,2m"
    server = dnsmasq(outside, chroot.root.parent, "lan0", pool).start()
    daemon = Daemon(installed.bin_dir, installed.host, directory).start()
    ipam = {"type": "dhcp", "daemonSocketPath": str(daemon.socket)}
    conf = {"cniVersion": "1.1.0", "name": "net", "ipam": ipam}
    result = installed.add("dhcp", conf, container).result
    assert result["ips"][0]["address"].startswith("10.55.0.")
    assert daemon.lease()["state"] == "bound"
    installed.delete("dhcp", conf, container).succeeded()
    assert daemon.leases() == []
    assert daemon.stop() == 0
    server.stop()


def test_serve(installed: Runtime, chroot: Chroot, container: Netns) -> None:
    conf = {"cniVersion": "1.1.0", "name": "lo"}
    del installed.env["CNI_SERVER"]
    with serving(installed, chroot.root / "run/cni/s", "--workers", "1") as server:
        served(server, lambda: installed.add("loopback", conf, container, ifname="lo")).succeeded()
        served(server, lambda: installed.delete("loopback", conf, container, ifname="lo"))
        served(server, lambda: installed.add("bridge", NETWORK, container)).succeeded()
        served(server, lambda: installed.delete("bridge", NETWORK, container)).succeeded()
        version = served(server, lambda: installed.call("STATUS", "bridge", NETWORK))
        version.succeeded()
        # Another root directory's client is none of this server's: it goes on by exec.
        with_args = {"CNI_SERVER": "off"}
        by_exec(server, lambda: installed.call("STATUS", "bridge", NETWORK, env=with_args))
        assert server.end() == 0


def test_the_command_line(installed: Runtime, chroot: Chroot, container: Netns) -> None:
    cni = f"{BIN_DIR}/cni"
    assert "bridge" in chroot.run(cni, "plugins").stdout
    assert "Usage" in chroot.run(cni, "--help").stdout
    chroot.outside("/etc/cni/net.d").mkdir(parents=True)
    chroot.outside("/etc/cni/net.d/10-net.conf").write_text(
        json.dumps({"type": "bridge", **NETWORK})
    )
    done = chroot.run(cni, "add", "net", str(container))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ips"]
    assert chroot.run(cni, "check", "net", str(container)).returncode == 0
    assert "10.44.0.2" in chroot.run(cni, "ipam", "list", "net").stdout
    assert chroot.run(cni, "del", "net", str(container)).returncode == 0
    wrong = chroot.run(cni, "nonsense")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)


def test_stand_ins_that_are_not_enough(installed: Runtime, container: Netns) -> None:
    """Without them the same request is answered, by the real modules."""
    off = {"CNI_STANDINS": "off"}
    result = installed.add("bridge", NETWORK, container, env=off).result
    assert len(result["ips"]) == 2
    installed.delete("bridge", NETWORK, container, env=off).succeeded()


def test_another_plugin_is_executed(
    installed: Runtime, chroot: Chroot, container: Netns, tmp_path: Path
) -> None:
    """A delegate that is not ours runs as a child."""
    program = chroot.outside(BIN_DIR) / "theirs"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    conf = {**NETWORK, "ipam": {"type": "theirs"}}
    # There is no shell in here, so it cannot start: what matters is that it was tried.
    installed.add("bridge", conf, container).failed(None, "theirs")


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_without_newer_system_calls(
    installed: Runtime, container: Netns, tmp_path: Path, error: str
) -> None:
    """An older kernel has them not; a container's seccomp profile may refuse them."""
    log = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"inject={NEWER}:error={error}"]
    result: Json = {}
    for verb in ("ADD", "CHECK", "DEL"):
        conf = {**NETWORK, "type": "bridge", "prevResult": result or None}
        done = installed.host.exec(
            [*strace, installed.bin_dir / "bridge"],
            stdin=json.dumps(conf),
            env=installed.environment(verb, container),
            check=False,
        )
        assert done.returncode == 0, done
        result = result or json.loads(done.stdout)
    assert "INJECTED" in log.read_text()
    assert "eth0" not in links(container)


def test_masquerading(installed: Runtime, host: Netns, container: Netns, outside: Netns) -> None:
    connect(host, outside)
    conf = {**NETWORK, "ipMasq": True, "ipMasqBackend": "nftables"}
    result = installed.add("bridge", conf, container).result
    with tcp_server(outside) as server:
        assert reach(container, "198.51.100.2", server.port) == "198.51.100.1"
        assert reach(container, "2001:db8:ffff::2", server.port) == "2001:db8:ffff::1"
    installed.check("bridge", conf, container, prev_result=result).succeeded()
    installed.delete("bridge", conf, container).succeeded()
    assert "10.44.0." not in ruleset(host)


def test_portmap_and_firewall(
    installed: Runtime, host: Netns, container: Netns, outside: Netns
) -> None:
    connect(host, outside)
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    chain = [
        {"type": "bridge", **NETWORK},
        {"type": "portmap", "backend": "nftables", "runtimeConfig": {"portMappings": ports}},
        {"type": "firewall", "backend": "nftables"},
    ]
    lists = {"cniVersion": "1.1.0", "name": "net", "plugins": chain}
    result = installed.add_list(lists, container)
    with tcp_server(container, port=80):
        assert reach(outside, "198.51.100.1", 8080) == "198.51.100.2"
    installed.check_list(lists, container, result)
    installed.delete_list(lists, container, result)
    assert "10.44.0." not in ruleset(host)
    for each in chain:
        installed.status(each["type"], {"cniVersion": "1.1.0", "name": "net", **each}).succeeded()


def ruleset(host: Netns) -> str:
    """The node's packet filter, as nft(8) shows it."""
    return host.exec(["nft", "list", "ruleset"]).stdout


def test_showing_the_node(installed: Runtime, chroot: Chroot, container: Netns) -> None:
    """What people look at, also where a module that reads it is missing: no traceback."""
    cni = f"{BIN_DIR}/cni"
    chroot.outside("/etc/cni/net.d").mkdir(parents=True)
    conf = json.dumps({"type": "bridge", **NETWORK})
    chroot.outside("/etc/cni/net.d/10-net.conf").write_text(conf)
    env = {"CNI_STATE_DIR": "/run/cni/intent"}
    done = chroot.run(cni, "add", "net", str(container), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (["ls"], ["ps"], ["inspect", "net"], ["ports"], ["rules"], ["graph"], ["doctor"]):
        done = chroot.run(cni, *words, env=env)
        assert "Traceback" not in done.stdout + done.stderr, (words, done)
        assert "eth0" in done.stdout or words[0] not in ("ps", "inspect"), (words, done)
    assert chroot.run(cni, "del", "net", str(container), env=env).returncode == 0
