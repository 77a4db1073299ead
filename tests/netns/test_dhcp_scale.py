"""dhcp: 500 leases at once, what they cost the daemon, and that they survive its end."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns, capture, requires_kernel
from tests.harness.contract import without_ipv6
from tests.harness.dhcp import Daemon, dnsmasq, messages
from tests.harness.wait import wait_until

pytestmark = [requires_kernel("macvlan"), pytest.mark.slow]

Json = dict[str, Any]

COUNT = 500
KIB_PER_LEASE = 48  # at most: a thread's stack in the reference is more


def ask_all(daemon: Daemon, method: str, requests: list[Json]) -> list[Json]:
    """Send all the requests at once; the answers."""
    socks = []
    for params in requests:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(daemon.socket))
        sock.sendall(json.dumps({"method": method, "params": params}).encode() + b"\n")
        socks.append(sock)
    answers = []
    for sock in socks:
        with sock, sock.makefile("rb") as file:
            answers.append(json.loads(file.readline()))
    return answers


def resources(daemon: Daemon) -> tuple[int, int, int]:
    """The daemon's memory in KiB, open files and threads."""
    assert daemon.process is not None
    proc = Path("/proc", str(daemon.process.pid))
    fields = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    files = len(list((proc / "fd").iterdir()))
    return int(fields["VmRSS"].split()[0]), files, int(fields["Threads"])


@pytest.mark.timeout(300)
def test_many_leases(
    bin_dir: Path, host: Netns, container: Netns, outside: Netns, tmp_path: Path
) -> None:
    without_ipv6(container, outside)
    container.ip("link", "add", "lan0", "type", "veth", "peer", "lan1", "netns", outside.name)
    outside.ip_batch("address add 10.55.0.1/20 dev lan1", "link set lan1 up")
    container.ip_batch(
        "link set lan0 up",
        *(f"link add eth{n} link lan0 type macvlan mode bridge" for n in range(COUNT)),
    )
    pool = "--dhcp-range=10.55.1.0,10.55.9.255,255.255.240.0,1h"
    dnsmasq(outside, tmp_path / "dns", "lan1", pool, f"--dhcp-lease-max={2 * COUNT}")
    (tmp_path / "run").mkdir()
    flags = ("-timeout", "2s", "-resendmax", "4s", "-resendtimeout", "60s")
    daemon = Daemon(bin_dir, host, tmp_path / "run", flags).start()
    config = {"name": "net", "ipam": {"type": "dhcp"}}
    requests = [
        {"container_id": "c1", "network": "net", "ifname": f"eth{n}",
         "netns": container.path, "config": config}
        for n in range(COUNT)
    ]  # fmt: skip
    ask_all(daemon, "DHCP.Allocate", requests[:1])  # what is loaded once is not a lease's
    before = resources(daemon)
    answers = ask_all(daemon, "DHCP.Allocate", requests)
    assert [a["error"]["msg"] for a in answers if "error" in a] == []
    leased = {a["result"]["ips"][0]["address"] for a in answers}
    assert len(leased) == COUNT

    wait_until(lambda: resources(daemon)[1] < before[1] + 8, "sockets are closed")
    memory, _, threads = resources(daemon)
    per_lease = (memory - before[0]) / COUNT
    print(f"{COUNT} leases: {memory} KiB, {per_lease:.1f} KiB a lease, {threads} threads")
    assert per_lease < KIB_PER_LEASE
    assert threads < 10

    daemon.kill()
    with capture(outside, "lan1") as wire:
        daemon.start()
        wait_until(
            lambda: [row["state"] for row in daemon.leases()] == ["bound"] * COUNT,
            "all are confirmed", 60,
        )  # fmt: skip
    assert {row["address"] for row in daemon.leases()} == leased
    confirmed = messages(wire, "request")
    assert len({message["BOOTP"].chaddr for message in confirmed}) == COUNT
    for answer in ask_all(daemon, "DHCP.Release", requests):
        assert "error" not in answer
    assert daemon.leases() == []
    assert daemon.files == []
