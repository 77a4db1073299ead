"""No plugin waits for the grace period after which the kernel frees netfilter's objects.

Closing a socket of netfilter waits for it, if a transaction has deleted something (cni/netfilter/
nft.py). So an ADD deletes nothing that is not there, and a DEL leaves its socket to the kernel.
Nothing is timed.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import nft, requires_kernel
from tests.harness.wait import last_seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Netns, Runtime

Json = dict[str, Any]

pytestmark = [pytest.mark.own_server, requires_kernel("nft")]

WATCHED = {"CNI_SERVER": "off", "CNI_DEBUG": "netlink"}
_NAMES = re.compile(r'> NFT_MSG_NEWCHAIN .*\n(?: .*\n)*? +NFTA_CHAIN_NAME "([^"]+)"')
_DELETED = re.compile(r"> (NFT_MSG_DEL\w+) ")

BRIDGE: Json = {"type": "bridge", "bridge": "br0", "isGateway": True}
CASES: dict[str, Json] = {
    "firewall": {"type": "firewall", "backend": "nftables"},
    "firewall, same-bridge": {
        "type": "firewall",
        "backend": "nftables",
        "ingressPolicy": "same-bridge",
    },
    "firewall, isolated": {"type": "firewall", "backend": "nftables", "ingressPolicy": "isolated"},
    "firewall, iptables": {"type": "firewall", "backend": "iptables"},
    "portmap": {"type": "portmap", "backend": "nftables"},
    "portmap, iptables": {"type": "portmap", "backend": "iptables"},
    "macspoofchk": {**BRIDGE, "macspoofchk": True},
    "ipMasq": {**BRIDGE, "ipMasq": True, "ipMasqBackend": "nftables"},
    "ipMasq, iptables": {**BRIDGE, "ipMasq": True, "ipMasqBackend": "iptables"},
    "ipMasqSet": {**BRIDGE, "ipMasq": True, "ipMasqBackend": "nftables", "ipMasqSet": True},
    "outboundAddr": {
        **BRIDGE,
        "ipMasq": True,
        "ipMasqBackend": "nftables",
        "ipMasqSet": True,
        "outboundAddr": ["192.0.2.7"],
    },
}


def configuration(case: str, number: int, tmp_path: Path) -> Json:
    """That of a network's container with this number."""
    conf = {"cniVersion": "1.1.0", "name": "net", **CASES[case]}
    if conf["type"] == "bridge":
        ranges = [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]]
        ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path)}
        return {**conf, "ipam": ipam}
    ips = [{"address": f"10.66.0.{9 + number}/24", "interface": 1}]
    ips.append({"address": f"fd66::{9 + number}/64", "interface": 1})
    interfaces = [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
    conf["prevResult"] = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips}
    port = {"hostPort": 8080 + number, "containerPort": 80, "protocol": "tcp"}
    return {**conf, "runtimeConfig": {"portMappings": [port]}}


@pytest.mark.parametrize("case", CASES)
def test_an_add_deletes_nothing(
    runtime: Runtime, netns: Callable[..., Netns], tmp_path: Path, case: str
) -> None:
    """The first ADD of a node, and the next; and none changes a chain that exists."""
    for number in range(2):
        conf = configuration(case, number, tmp_path)
        before = {item["chain"]["name"] for item in nft(runtime.host, "chains")}
        reply = runtime.add(
            conf["type"], conf, netns("pod"), container_id=f"pod{number}", env=WATCHED
        )
        assert reply.result
        assert "> NFNL_MSG_BATCH_BEGIN " in reply.stderr
        # the first one flushes chains that it makes in the same transaction
        assert set(_DELETED.findall(reply.stderr)) <= ({"NFT_MSG_DELRULE"} if not number else set())
        assert not before & set(_NAMES.findall(reply.stderr))


# --- the end of a DEL -----------------------------------------------------------------------------

_HANDED = re.compile(r"^(?:\d+ +)?sendmsg\(.*SCM_RIGHTS", re.MULTILINE)
_NETFILTER = "12"
LEAVING = ("socketpair", "sendmsg")  # the system calls by which a process leaves its sockets


def strace(runtime: Runtime, verb: str, conf: Json, netns: Netns, log: Path, *inject: str) -> str:
    """One verb below strace, without a server: what it printed, and its status."""
    options = [word for each in inject for word in ("-e", f"inject={each}")]
    done = runtime.host.run(
        subprocess.run,
        [
            *("strace", "-qq", "-o", str(log), "-e", f"trace={','.join(LEAVING)},close"),
            *options,
            str(runtime.bin_dir / conf["type"]),
        ],
        input=json.dumps(conf),
        text=True,
        capture_output=True,
        env=runtime.environment(verb, netns, container_id="pod0", env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=60,
    )
    return f"{done.returncode}: {done.stdout}{done.stderr}"


def sockets(host: Netns) -> list[str]:
    """The netfilter sockets of a namespace's processes; number 0 is the kernel's own."""
    lines = host.run(Path("/proc/thread-self/net/netlink").read_text).splitlines()[1:]
    return [line for line in lines if line.split()[1] == _NETFILTER and line.split()[2] != "0"]


@pytest.mark.parametrize("case", ["firewall", "portmap", "portmap, iptables", "firewall, iptables"])
def test_a_del_leaves_its_socket(
    runtime: Runtime, container: Netns, tmp_path: Path, case: str
) -> None:
    """The kernel closes the socket after the process has ended; a request that reads does not."""
    conf, log = configuration(case, 0, tmp_path), tmp_path / "log"
    # the first ADD of the node flushes chains that it makes
    first = configuration(case, 1, tmp_path)
    runtime.add(conf["type"], first, container, container_id="pod1").succeeded()
    assert strace(runtime, "ADD", conf, container, log).startswith("0: ")
    assert not _HANDED.search(log.read_text())
    assert strace(runtime, "DEL", conf, container, log) == "0: "
    assert _HANDED.search(log.read_text())
    assert last_seen(lambda: sockets(runtime.host), wanted=lambda seen: not seen) == []
    assert "pod0" not in json.dumps(nft(runtime.host))
    assert strace(runtime, "DEL", conf, container, log) == "0: "
    assert not _HANDED.search(log.read_text()), "it deleted nothing"


@pytest.mark.parametrize("error", ["EMFILE", "EPERM", "ENOSYS", "ETOOMANYREFS"])
@pytest.mark.parametrize("call", LEAVING)
def test_where_it_cannot_be_left(
    runtime: Runtime, container: Netns, tmp_path: Path, call: str, error: str
) -> None:
    """The process closes its socket itself, and the DEL succeeds."""
    conf, log = configuration("firewall", 0, tmp_path), tmp_path / "log"
    for number in (1, 3, 5):
        runtime.add("firewall", conf, container, container_id="pod0").succeeded()
        fault = f"{call}:error={error}:when={number}+"
        assert strace(runtime, "DEL", conf, container, log, fault) == "0: "
        assert "(INJECTED)" in log.read_text()
        assert last_seen(lambda: sockets(runtime.host), wanted=lambda seen: not seen) == []
        assert "pod0" not in json.dumps(nft(runtime.host))


def test_killed_while_it_leaves_its_socket(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """Whatever is sent already, no socket stays."""
    conf, log = configuration("firewall", 0, tmp_path), tmp_path / "log"
    for call in (*LEAVING, "close"):
        number = killed = 0
        while True:
            number += 1
            runtime.add("firewall", conf, container, container_id="pod0").succeeded()
            status = strace(
                runtime, "DEL", conf, container, log, f"{call}:signal=KILL:when={number}"
            )
            if "killed by SIGKILL" not in log.read_text() and not status.startswith("-9"):
                break
            killed += _HANDED.search(log.read_text()) is not None
            assert last_seen(lambda: sockets(runtime.host), wanted=lambda seen: not seen) == []
            runtime.delete("firewall", conf, container, container_id="pod0").succeeded()
        assert number > 1, "that call was never made"
        assert call == "socketpair" or killed
