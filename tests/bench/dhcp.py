"""dhcp: how long ADD and DEL take with a server that answers at once, and memory for each lease.

Also with a delegated prefix, which the Go plugin does not know.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.measure import Json, Node, Row, Sample, Summary
from tests.harness.dhcp import IdleRouter, dnsmasq, kea6
from tests.harness.netns import Netns, stop
from tests.harness.wait import wait_until


def measure(
    nodes: list[Node], rounds: int, version: str, leases: int
) -> tuple[list[Row], dict[str, float]]:
    """The rows, and KiB a lease of each implementation's daemon."""
    samples: dict[str, dict[str, Summary]] = {"ADD": {}, "DEL": {}}
    prefixed: dict[str, dict[str, Summary]] = {"ADD": {}, "DEL": {}}
    memory = {}
    for node in nodes:
        if not (node.bin_dir / "dhcp").exists():
            continue
        with _daemon(node) as (child, sock, server):
            conf: Json = {"cniVersion": version, "name": "bench", "type": "dhcp",
                          "ipam": {"type": "dhcp", "daemonSocketPath": str(sock)}}  # fmt: skip
            _series(node, conf, rounds, samples)
            before = _resident(child)
            for number in range(leases):
                node.plugin("ADD", conf, f"many{number}")
            memory[node.name] = (_resident(child) - before) / leases
            if node.name != "go" and shutil.which("kea-dhcp6") is not None:
                pool = {"prefix": "fd67::", "prefix-len": 48, "delegated-len": 64}
                kea6(server, node.scratch / "kea", "srv0", **{"pd-pools": [pool]})
                wish = {"ipv4": False, "ipv6": True, "prefixDelegation": {}}
                with IdleRouter(server, "srv0"):
                    _series(node, {**conf, "ipam": {**conf["ipam"], **wish}}, rounds, prefixed)
    rows = [Row("dhcp", verb, taken) for verb, taken in samples.items()]
    rows += [Row("dhcp, prefix", verb, taken) for verb, taken in prefixed.items() if taken]
    return rows, memory


def _series(node: Node, conf: Json, rounds: int, samples: dict[str, dict[str, Summary]]) -> None:
    """Measure ADD and DEL; the first pair, for which the daemon loads modules, does not count."""
    pairs = [_add_and_delete(node, conf) for _ in range(rounds + 1)][1:]
    for verb, taken in zip(samples, zip(*pairs, strict=True), strict=True):
        samples[verb][node.name] = Summary.of(list(taken))


def _add_and_delete(node: Node, conf: Json) -> tuple[Sample, Sample]:
    added, _ = node.plugin("ADD", conf)
    deleted, _ = node.plugin("DEL", conf)
    return added, deleted


def _resident(child: subprocess.Popen[Any]) -> int:
    status = Path("/proc", str(child.pid), "status").read_text()
    return int(dict(line.split(":", 1) for line in status.splitlines())["VmRSS"].split()[0])


@contextmanager
def _daemon(node: Node) -> Iterator[tuple[subprocess.Popen[Any], Path, Netns]]:
    """The implementation's daemon, with a server at the other end of the container's eth0."""
    directory = node.scratch / "dhcp"
    directory.mkdir()
    sock = directory / "dhcp.sock"
    with Netns("server") as server:
        node.container.ip_batch(
            f"link add eth0 type veth peer name srv0 netns {server.name}", "link set eth0 up"
        )
        server.ip_batch("address add 10.66.0.1/16 dev srv0", "link set srv0 up")
        pool = "--dhcp-range=10.66.1.0,10.66.9.255,255.255.0.0,1h"
        dnsmasq(server, directory, "srv0", pool)
        with open(directory / "log", "wb") as log:
            argv = [node.bin_dir / "dhcp", "daemon", "-socketpath", sock]
            child = node.host.popen(argv, stdout=log, stderr=log)
        wait_until(sock.exists, "the daemon listens")
        try:
            yield child, sock, server
        finally:
            stop(child)
            node.container.ip("link", "delete", "eth0")
