"""What an ADD of `cluster` costs beside host-local's: parts of `make bench-cluster`.

Verbs run in this process, as in a worker of the server, in pairs: of cluster, and of host-local.
System calls are those of a start by exec, counted by strace.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni.ipam.cluster.pool import Pool, PoolConf
from cni.ipam.host_local.ranges import RangeConf
from cni.store.directory import DirectoryStore
from tests.harness.cluster_simulation import Simulation
from tests.unit.ipam_node import Ipam, environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.etcd import EtcdCluster

MOST_MORE_MS = 0.2  # than an ADD of host-local
SUBNET = "10.0.0.0/12"


def conf(kind: str, directory: Path, node: str, store: dict[str, Any]) -> dict[str, Any]:
    ipam: dict[str, Any] = {"type": kind, "ranges": [[{"subnet": SUBNET}]]}
    ipam["dataDir"] = str(directory / kind / node)
    if kind == "cluster":
        ipam |= {"nodeName": node, "store": store, "blockSize": 26}
    return {"cniVersion": "1.1.0", "name": "net", "type": kind, "ipam": ipam}


def filled(path: Path, blocks: int) -> dict[str, Any]:
    """A store in which other nodes have so many blocks."""
    store = DirectoryStore(str(path), sync=False)
    for number in range(blocks):
        key = f"blocks/default/10.{1 + number // 1024}.{number // 4 % 256}.{number % 4 * 64}-26"
        store.create(key, {"node": "other", "uid": "0" * 32, "boot": "0" * 32, "seq": number})
    return {"type": "directory", "path": str(path)}


def own_block(blocks: int, rounds: int = 300) -> dict[str, Any]:
    """ADD and DEL in a block that the node has, in turns with host-local's."""
    directory = Path(tempfile.mkdtemp(prefix="bench-own-", dir=_memory()))
    try:
        store = filled(directory / "store", blocks)
        plugins = {
            kind: Ipam(kind, conf(kind, directory, "n1", store))
            for kind in ("host-local", "cluster")
        }
        seconds: dict[str, list[float]] = {f"{kind} {v}": [] for kind in plugins for v in "ADP"}
        for plugin in plugins.values():
            plugin.add("first")
        for number in range(rounds):
            for kind, plugin in plugins.items():
                processor, began = time.process_time(), time.perf_counter()
                plugin.add(f"c{number}")
                middle = time.perf_counter()
                seconds[f"{kind} P"].append(time.process_time() - processor)
                plugin.delete(f"c{number}")
                seconds[f"{kind} A"].append(middle - began)
                seconds[f"{kind} D"].append(time.perf_counter() - middle)
        ms = {key: statistics.median(values) * 1000 for key, values in seconds.items()}
        return {
            "blocks in the store": blocks,
            "ADD, ms": {kind: round(ms[f"{kind} A"], 3) for kind in plugins},
            "ADD, ms of processor time": {kind: round(ms[f"{kind} P"], 3) for kind in plugins},
            "DEL, ms": {kind: round(ms[f"{kind} D"], 3) for kind in plugins},
            "an ADD takes longer by, ms": _more(seconds, "A"),
            "an ADD takes more processor time by, ms": _more(seconds, "P"),
            "system calls of an ADD by exec": {
                kind: system_calls(plugin.conf) for kind, plugin in plugins.items()
            },
        }
    finally:
        shutil.rmtree(directory)


def _more(seconds: dict[str, list[float]], which: str) -> float:
    """How many milliseconds cluster takes longer than host-local: the median of the pairs."""
    pairs = zip(seconds[f"cluster {which}"], seconds[f"host-local {which}"], strict=True)
    return round(statistics.median(one - other for one, other in pairs) * 1000, 3)


def system_calls(document: dict[str, Any]) -> int:
    """From the moment when the request is read to the end."""
    binary = Path(__file__).parents[2] / "dist" / "cni"
    with tempfile.TemporaryDirectory() as directory:
        link, trace = Path(directory) / document["type"], Path(directory) / "trace"
        link.symlink_to(binary)
        env = {**environment("ADD", "traced", "eth0", ""), "CNI_SERVER": "off"}
        subprocess.run(
            ["strace", "-qq", "-o", str(trace), str(link)],
            input=json.dumps(document).encode(),
            env={**os.environ, **env},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        lines = trace.read_text(errors="replace").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("read(0,"))
    return len(lines) - begin


def many_pods(cluster: EtcdCluster, nodes: int, pods: int) -> dict[str, Any]:
    """`pods` of each of `nodes`, made and deleted at the same time on all of them."""
    found: dict[str, Any] = {"nodes": nodes, "pods": nodes * pods}
    for kind in ("host-local", "cluster"):
        directory = Path(tempfile.mkdtemp(prefix="bench-pods-", dir=_memory()))
        context = multiprocessing.get_context("fork")
        barrier, out = context.Barrier(nodes), context.Queue()

        def work(
            name: str,
            kind: str = kind,
            directory: Path = directory,
            barrier: Any = barrier,
            out: Any = out,
        ) -> None:
            def run() -> list[float]:
                store = cluster.options(prefix="/bench/pods")
                plugin = Ipam(kind, conf(kind, directory, name, store))
                times = []
                for verb in (plugin.add, plugin.delete):
                    barrier.wait(600)
                    began = time.monotonic()
                    for number in range(pods):
                        verb(f"{name}-{number}")
                    times.append(time.monotonic() - began)
                return times

            out.put(cluster.node.run(run))

        children = [context.Process(target=work, args=(f"n{number}",)) for number in range(nodes)]
        for child in children:
            child.start()
        times = [out.get(timeout=900) for _ in children]
        for child in children:
            child.join()
        shutil.rmtree(directory)
        made, deleted = (max(each) for each in zip(*times, strict=True))
        found[kind] = {"seconds to make": round(made, 2), "to delete": round(deleted, 2)}
    return found


def simulate(
    store: Any, nodes: int, pods: int, meter: Callable[[], int] = lambda: 0
) -> dict[str, Any]:
    """Fill so many nodes, let them change, and be lost; ends with the oracle.

    `meter` counts the requests that were sent so far. Raises AssertionError.
    """
    directory = Path(tempfile.mkdtemp(prefix="bench-simulation-", dir=_memory()))
    pool = Pool.of(
        PoolConf(ranges=[[RangeConf(subnet="10.0.0.0/8")]], block_size=26, reserve=8), "", "1.1.0"
    )
    simulation = Simulation(
        store, pool, directory, nodes=nodes, pods=pods, seed=1, losses=0.001,
        timeout=1800, step=1800 / (2 * nodes) * 4, meter=meter,
    )  # fmt: skip
    began, processor = time.monotonic(), time.process_time()
    try:
        simulation.run(nodes * 2, fill=True)
    finally:
        simulation.close()
    return {
        "nodes": nodes,
        "addresses at the end": len(simulation.held),
        **dict(sorted(simulation.counts.items())),
        "requests": dict(simulation.requests),
        "requests a claim": round(
            simulation.requests["claims"] / max(1, simulation.counts["claims"]), 2
        ),
        "seconds": round(time.monotonic() - began),
        "seconds of processor time, without etcd": round(time.process_time() - processor),
    }


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


if __name__ == "__main__":
    from tests.harness.cluster_store import Memory

    # Without etcd: what the machine at hand can do.
    print(json.dumps([own_block(10), own_block(10_000)], indent=2))
    if len(sys.argv) > 1:
        print(json.dumps(simulate(Memory(), int(sys.argv[1]), 100), indent=2))
