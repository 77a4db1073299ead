"""What `make bench-cluster` measures, as counts: requests of a claim, and files of an ADD."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cni.ipam.cluster.blocks import block_of_key
from cni.store.directory import DirectoryStore
from cni.store.interface import Exists
from tests.bench.cluster import MOST_REQUESTS, competition
from tests.harness.etcd import EtcdCluster
from tests.unit.ipam_node import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.netns import Netns

_LINE = re.compile(r"^(\w+)\(.* = (-?\d+)")
FEW, MANY = 10, 10_000


@pytest.mark.slow
def test_nodes_compete_for_blocks_of_a_real_etcd(
    netns: Callable[..., Netns], tmp_path: Path
) -> None:
    """Each block is one node's, and three requests for each are enough.

    Who gets how many is up to the scheduler; tests/unit/test_cluster_claim.py decides the turns.
    """
    etcd = EtcdCluster(netns, tmp_path, 3)
    try:
        found = competition(etcd, nodes=16, blocks=128)
        store = etcd.store()
        claimed = [item.key for item in store.list("blocks/default/").items]
        store.close()
    finally:
        etcd.close()
    assert found["errors"] == []
    assert found["duplicates"] == 0
    assert found["blocks"] == len(claimed) == 128
    assert found["requests a claim"] <= MOST_REQUESTS, found


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_an_add_in_an_own_block_costs_the_same_with_any_number_of_blocks(
    bin_dir: Path, tmp_path: Path
) -> None:
    """It makes the same calls, reads as many bytes, and opens nothing of the store."""
    few, many = (Traced(bin_dir, tmp_path / name) for name in ("few", "all"))  # of one length
    few.fill(FEW)
    many.fill(MANY)
    assert few.add("c1") == many.add("c1")
    for number in (2, 3):
        assert few.add(f"c{number}") == many.add(f"c{number}")
    calls, _ = few.add("c4")
    assert calls["openat"], calls
    assert not {"connect", "socket", "sendto"} & set(calls), calls


class Traced:
    """A node with a block of its own, and a store in which other nodes have many."""

    def __init__(self, bin_dir: Path, directory: Path) -> None:
        directory.mkdir()
        self.program, self.directory = bin_dir / "cluster", directory
        store = {"type": "directory", "path": str(directory / "store")}
        ipam = {"type": "cluster", "ranges": [[{"subnet": "10.0.0.0/12"}]], "blockSize": 26,
                "store": store, "nodeName": "n1", "dataDir": str(directory / "data")}  # fmt: skip
        self.conf = {"cniVersion": "1.1.0", "name": "net", "type": "cluster", "ipam": ipam}
        self.add("c0")

    def fill(self, blocks: int) -> None:
        """Other nodes claim so many blocks."""
        store = DirectoryStore(str(self.directory / "store"), sync=False)
        for number in range(blocks):
            key = f"10.{1 + number // 1024}.{number // 4 % 256}.{number % 4 * 64}-26"
            block_of_key(key)  # raises for a key that no node would write
            try:
                store.create(f"blocks/default/{key}", {"node": "n2", "uid": "0" * 32})
            except Exists:
                pass  # this node's own

    def add(self, container: str) -> tuple[Counter[str], int]:
        """The calls of an ADD that concern files and sockets, and how many bytes they gave."""
        trace = self.directory / "trace"
        env = {**os.environ, **environment("ADD", container, "eth0", ""), "CNI_SERVER": "off"}
        done = subprocess.run(
            ["strace", "-qq", "-o", str(trace), "-e", "trace=%file,%desc,%network",
             str(self.program)],
            input=json.dumps(self.conf).encode(),
            capture_output=True,
            env=env,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        text = trace.read_text(errors="replace")
        assert container == "c0" or str(self.directory / "store") not in text
        lines = text.splitlines()
        begin = next(number for number, line in enumerate(lines) if line.startswith("read(0,"))
        calls: Counter[str] = Counter()
        read = 0
        for line in lines[begin:]:
            match = _LINE.match(line)
            if match is not None:
                calls[match[1]] += 1
                if match[1] in ("read", "pread64", "getdents64"):
                    read += max(int(match[2]), 0)
        return calls, read
