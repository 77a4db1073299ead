"""`make bench-cluster`: what claiming blocks costs in a real etcd of three members.

    python -m tests.bench.cluster [--nodes 64] [--blocks 1000] [--listed 10000] [--simulate 5000]
                                  [--json FILE]

Members and nodes are in namespaces. Counts (requests a claim, duplicates) hold on any machine;
times are of this one, and of whatever else it does. Exits with 1 if a block was claimed twice, a
node got none, a claim took more than three requests, or an ADD in a block that the node has takes
0.2 ms of processor time more than host-local's. `--simulate`: so many nodes with 100 pods each,
which takes 3 minutes for 1,000 nodes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni.ipam.cluster.claim import Claims, Full
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.pool import Pool, PoolConf
from cni.ipam.host_local.ranges import RangeConf
from cni.store.config import open_store
from cni.store.http import Client
from cni.store.settings import Settings
from tests.bench import cluster_adds
from tests.conftest import making_netns
from tests.harness.etcd import EtcdCluster

if TYPE_CHECKING:
    from tests.harness.netns import Netns

MOST_REQUESTS = 3.0  # for a claim, on average


def count_requests() -> list[int]:
    """Have this process count its requests, in the list's only element."""
    counted = [0]
    original = Client.request

    def request(self: Client, *args: Any, **more: Any) -> Any:
        counted[0] += 1
        return original(self, *args, **more)

    Client.request = request  # type: ignore[method-assign]
    return counted


def compete(
    name: str,
    options: dict[str, Any],
    ns: Netns,
    blocks: int,
    directory: Path,
    start: Any,
    out: Any,
) -> None:
    """A node, in a process of its own: claims until nothing is free."""

    def run() -> dict[str, Any]:
        counted = count_requests()
        node = Node(str(directory / name), name)
        settings = Settings(node.data_dir, name, options, 0)
        bits = 26 - (blocks - 1).bit_length()
        ranges = [[RangeConf(subnet=f"10.0.0.0/{bits}")]]
        pool = Pool.of(PoolConf(ranges=ranges, block_size=26), "", "1.1.0")
        store = open_store(options)
        claims = Claims(store, settings, node, lambda _: None)
        start.wait(600)  # until every node is ready
        began = time.monotonic()
        won = []
        try:
            while True:
                won.append(str(claims.claim(Space(node, pool.space), pool, 0)))
        except Full:
            pass
        store.close()
        return {"won": won, "requests": counted[0], "seconds": time.monotonic() - began}

    try:
        out.put((name, ns.run(run)))
    except BaseException as error:
        out.put((name, {"error": repr(error)}))


def competition(cluster: EtcdCluster, nodes: int, blocks: int) -> dict[str, Any]:
    """All nodes claim all blocks at the same time."""
    context = multiprocessing.get_context("fork")
    start, out = context.Barrier(nodes + 1), context.Queue()
    directory = Path(tempfile.mkdtemp(prefix="bench-cluster-"))
    children = [
        context.Process(
            target=compete,
            args=(f"n{number}", cluster.options(), cluster.node, blocks, directory, start, out),
        )
        for number in range(nodes)
    ]
    for child in children:
        child.start()
    start.wait(600)
    began = time.monotonic()
    results = dict(out.get(timeout=1800) for _ in children)
    seconds = time.monotonic() - began
    for child in children:
        child.join()
    shutil.rmtree(directory)
    errors = [result["error"] for result in results.values() if "error" in result]
    won = [block for result in results.values() for block in result.get("won", ())]
    requests = sum(result.get("requests", 0) for result in results.values())
    shares = [len(result.get("won", ())) for result in results.values()]
    return {
        "nodes": nodes,
        "blocks": len(set(won)),
        "duplicates": len(won) - len(set(won)),
        "starved": shares.count(0),
        "fewest": min(shares),
        "most": max(shares),
        "requests": requests,
        "requests a claim": round(requests / max(1, len(won)), 2),
        "claims a second": round(len(won) / seconds, 1),
        "errors": errors,
    }


def single_claims(cluster: EtcdCluster, count: int) -> dict[str, Any]:
    """One client creates items one after the other."""

    def run() -> float:
        with closing(open_store(cluster.options(prefix="/bench/single"))) as store:
            store.identity()
            began = time.monotonic()
            for number in range(count):
                store.create(f"blocks/default/10.0.{number >> 8}.{number & 255}-32", {"node": "n"})
            return time.monotonic() - began

    seconds = cluster.node.run(run)
    return {"creates": count, "ms a create": round(seconds / count * 1000, 2)}


def listing(cluster: EtcdCluster, count: int) -> dict[str, Any]:
    """List so many blocks."""

    def run() -> dict[str, Any]:
        counted = count_requests()
        with closing(open_store(cluster.options(prefix="/bench/list"))) as store:
            for number in range(count):
                key = f"blocks/default/10.{number >> 8}.{number & 255}.0-24"
                store.create(key, {"node": f"n{number % 64}", "uid": "0" * 32, "boot": "0" * 32,
                                   "seq": number})  # fmt: skip
            counted[0] = 0
            began = time.monotonic()
            items = store.list("blocks/").items
            assert len(items) == count
            return {"blocks": count, "requests": counted[0],
                    "ms": round((time.monotonic() - began) * 1000)}  # fmt: skip

    before = size_of(cluster)
    found = cluster.node.run(run)
    return {**found, "bytes a block": round((size_of(cluster) - before) / count)}


def size_of(cluster: EtcdCluster) -> int:
    """Bytes that the members keep, without what could be defragmented."""
    member = cluster.leader
    revision = str(member.status()["header"]["revision"])
    member.ctl("compact", "--physical", revision, check=False)
    return int(member.status()["dbSizeInUse"])


def simulation(cluster: EtcdCluster, nodes: int) -> dict[str, Any]:
    """Many nodes in one process, over the etcd."""
    if not nodes:
        return {}

    def run() -> dict[str, Any]:
        counted = count_requests()
        # in memory: all nodes write what they have seen of the store into one directory
        memory = str(cluster.data / "state")
        options = cluster.options(prefix="/bench/simulation", stateDir=memory)
        with closing(open_store(options)) as store:
            return cluster_adds.simulate(store, nodes, 100, lambda: counted[0])

    before = size_of(cluster)
    found = cluster.node.run(run)
    return {**found, "bytes in the store": size_of(cluster) - before}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench-cluster")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=1000, help="rounded up to a power of two")
    parser.add_argument("--listed", type=int, default=10_000)
    parser.add_argument("--simulate", type=int, default=0, metavar="NODES")
    parser.add_argument("--json", type=Path, help="write the results there, too")
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="bench-etcd-"))
    with making_netns() as netns:
        cluster = EtcdCluster(netns, directory, 3)
        try:
            results: dict[str, Any] = {}
            for name, part in (
                ("competition", lambda: competition(cluster, options.nodes, options.blocks)),
                ("one client", lambda: single_claims(cluster, 500)),
                ("listing", lambda: listing(cluster, options.listed)),
                ("own block, few", lambda: cluster_adds.own_block(10)),
                ("own block, many", lambda: cluster_adds.own_block(10_000)),
                ("1,000 pods", lambda: cluster_adds.many_pods(cluster, 10, 100)),
                ("simulation", lambda: simulation(cluster, options.simulate)),
            ):
                results[name] = part()
                print(json.dumps({name: results[name]}, indent=2), flush=True)
        finally:
            cluster.close()
            shutil.rmtree(directory)
    if options.json:
        options.json.write_text(json.dumps(results))
    found = results["competition"]
    failed = (
        found["errors"]
        or found["duplicates"]
        or found["starved"]
        or found["requests a claim"] > MOST_REQUESTS
        or any(
            results[name]["an ADD takes more processor time by, ms"] > cluster_adds.MOST_MORE_MS
            for name in ("own block, few", "own block, many")
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
