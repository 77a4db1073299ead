"""A server that is stopped, with a real etcd: its containers' addresses stay theirs."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.ipam.cluster import rounds
from cni.ipam.cluster.reconciling import Reconciling
from cni.store.config import open_store
from tests.harness.etcd import EtcdCluster
from tests.harness.wait import wait_until
from tests.unit.ipam_node import Failure, Ipam

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Netns

TIMEOUT = 2  # seconds
TRY_AGAIN = 11


class Server:
    """What `cni serve` does for a node's blocks, in a process that can be stopped."""

    def __init__(self, etcd: EtcdCluster, directory: Path, name: str) -> None:
        path = directory / f"{name}.json"
        its = {"store": etcd.options(), "nodeName": name, "dataDir": str(directory / name)}
        path.write_text(json.dumps({**its, "nodeTimeout": TIMEOUT}))
        self.pid = os.fork()
        if not self.pid:
            try:
                wanted: list[int] = []
                signal.signal(signal.SIGUSR1, lambda number, _: wanted.append(number))
                etcd.node.run(self._work, {"CNI_CLUSTER_CONF": str(path)}, wanted)
            finally:
                os._exit(1)

    @staticmethod
    def _work(env: dict[str, str], wanted: list[int]) -> None:
        while True:
            if wanted:
                wanted.clear()
                os.kill(os.getpid(), signal.SIGSTOP)  # between rounds: it holds no lock
            rounds.once(env, lambda _: None, pace=rounds.Pace(), compare=False)
            time.sleep(TIMEOUT / 10)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)
        wait_until(self._is_stopped, "the server is stopped", timeout=60)

    def _is_stopped(self) -> bool:
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def etcd(netns: Callable[..., Netns], tmp_path: Path) -> Iterator[EtcdCluster]:
    cluster = EtcdCluster(netns, tmp_path)
    yield cluster
    cluster.close()


def test_a_server_that_is_stopped(etcd: EtcdCluster, tmp_path: Path) -> None:
    """While containers run, its blocks stay; when none does, others get them after a time."""

    def node(name: str) -> Ipam:
        ipam = {
            "type": "cluster", "ranges": [[{"subnet": "10.64.0.0/24"}]], "blockSize": 29,
            "store": etcd.options(), "nodeName": name, "dataDir": str(tmp_path / name),
            "nodeTimeout": TIMEOUT,
        }  # fmt: skip
        return Ipam("cluster", {"cniVersion": "1.1.0", "name": "net", "ipam": ipam})

    def reconcile() -> Any:
        def run() -> Any:
            with closing(open_store(etcd.options())) as store:
                return Reconciling().round(store, settle=0).report

        return etcd.node.run(run)

    def add(plugin: Ipam, cid: str, wanted: str = "") -> str:
        args = f"IP={wanted}" if wanted else ""
        for left in reversed(range(20)):
            try:
                (got,) = etcd.node.run(lambda: plugin.add(cid, env_args=args))
                return got.partition("/")[0]
            except Failure as failure:
                if failure.code != TRY_AGAIN or not left:  # the machine may be busy
                    raise
        raise AssertionError

    def record() -> dict[str, Any]:
        item = store.read("nodes/n1")
        return item.value if item is not None else {}

    one, two = node("n1"), node("n2")
    store = etcd.store()
    its = add(one, "c")
    server = Server(etcd, tmp_path, "n1")
    try:
        wait_until(lambda: record().get("timeout") == TIMEOUT, "the server renews", timeout=60)
        server.stop()
        wait_until(lambda: reconcile().silent == ("n1",), "n1 is silent for long", timeout=60)
        with pytest.raises(Failure, match="belongs to node n1"):
            add(two, "d", its)
        assert add(one, "c2") != its  # it goes on
        etcd.node.run(one.check, "c")
        # It comes back; its containers end, and it is stopped again.
        server.go_on()
        beat = record()["beat"]
        wait_until(lambda: record()["beat"] > beat, "the server goes on", timeout=60)
        for cid in ("c", "c2"):
            one.delete(cid)
        wait_until(lambda: record()["idle"], "it is idle", timeout=60)
        server.stop()
        wait_until(lambda: reconcile().gone == ["n1"], "n1 is gone", timeout=60)
        assert add(two, "d", its) == its
        server.go_on()
        new = add(one, "e")
        assert new != its
        etcd.node.run(one.check, "e")
    finally:
        server.end()
        store.close()
