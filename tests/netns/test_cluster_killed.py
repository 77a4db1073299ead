"""SIGKILL at calls of an ADD that claims a block in etcd: nothing is lost, nothing is stranded.

tests/netns/test_crash.py does it with a store in a directory. Here the requests are on a wire: the
kill comes before, while or after etcd has made the change.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import rounds
from cni.ipam.cluster.node import Node, Space
from tests.harness.etcd import EtcdCluster
from tests.harness.world import EVERY, points_of
from tests.unit.ipam_node import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness.netns import Netns

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]
SAMPLE = 14  # calls; those that send something to etcd are among them


def test_killed_while_it_claims(bin_dir: Path, netns: Callable[..., Netns], tmp_path: Path) -> None:
    etcd = EtcdCluster(netns, tmp_path)
    trace = tmp_path / "trace"
    own = {"store": etcd.options(), "nodeName": "n1", "dataDir": str(tmp_path / "data")}
    settings = tmp_path / "cluster.json"
    settings.write_text(json.dumps(own))
    ranges = [[{"subnet": "10.88.0.0/24"}]]
    ipam = {"type": "cluster", "ranges": ranges, "blockSize": 28, **own}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "cluster", "ipam": ipam}
    space = Space(Node(own["dataDir"], "n1"), "default")

    def run(verb: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, **environment(verb, "c1", "eth0", ""), "CNI_SERVER": "off"}
        return etcd.node.run(
            subprocess.run,
            ["strace", "-qq", *options, str(bin_dir / "cluster")],
            input=json.dumps(conf).encode(),
            capture_output=True,
            env=env,
            timeout=120,
        )

    def give_back() -> None:
        """What the server does, also after a restart: lost answers are asked for again."""
        env: dict[str, Any] = {"CNI_CLUSTER_CONF": str(settings)}
        for options in ({}, {"give_back": True}):
            _, problems = etcd.node.run(rounds.once, env, print, **options)
            assert not problems, problems

    try:
        store = etcd.store()
        assert run("ADD", "-o", "/dev/null").returncode == 0
        assert run("DEL", "-o", "/dev/null").returncode == 0
        give_back()
        done = run("ADD", "-o", str(trace))
        assert done.returncode == 0, done.stdout
        points = list(points_of(trace.read_text(errors="replace"), every=False))
        sent = [each for each in points if "/v3/" in each.text]
        assert len(sent) > 1, "the trace shows no request"
        step = 1 if EVERY else max(len(points) // (SAMPLE - len(sent)), 1)
        kills = 0
        for point in dict.fromkeys([*sent, *points[::step]]):
            run("DEL", "-o", "/dev/null")
            give_back()
            killed = run(
                "ADD", "-o", "/dev/null", "-e", f"trace={point.name}",
                "-e", f"inject={point.name}:signal=KILL:when={point.ordinal}",
            )  # fmt: skip
            assert killed.returncode in (-9, 0), (point, killed)
            kills += killed.returncode == -9
            added = json.loads(run("ADD", "-o", "/dev/null").stdout)
            assert len(added["ips"]) == 1, (point, added)
            claimed = store.list("blocks/").items
            assert 1 <= len(claimed) <= 2, (point, claimed)
            assert run("DEL", "-o", "/dev/null").returncode == 0
            give_back()
            assert store.list("blocks/").items == [], point
            assert space.ledger().blocks == [], point
        assert kills > SAMPLE / 2
        store.close()
    finally:
        etcd.close()
