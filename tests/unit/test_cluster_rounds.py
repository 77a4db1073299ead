"""What a node's server does again and again must not cost the store more in a larger cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni import files
from cni.ipam.cluster import rounds
from cni.ipam.cluster.claim import Claims
from cni.ipam.cluster.node import Node, Space
from cni.ipam.cluster.rounds import Pace
from cni.store import engines, settings
from tests.harness.cluster_store import Memory

from .ipam_node import Ipam

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(rounds.time, "monotonic", lambda: now[0])

    def let_pass(seconds: float) -> None:
        now[0] += seconds

    return let_pass


@pytest.mark.parametrize(
    ("nodes", "blocks", "least", "most"),
    [(1, 1, 480, 720), (64, 1000, 480, 720), (5000, 10_000, 4000, 6000)],
)
def test_comparisons_are_more_seldom_in_a_larger_cluster(
    nodes: int, blocks: int, least: float, most: float, passing: Callable[[float], None]
) -> None:
    pace = Pace()
    passing(600)
    assert pace.is_due()
    pace.note(nodes * blocks)
    passing(least - 1)
    assert not pace.is_due()
    passing(most - least + 2)
    assert pace.is_due()


def test_nodes_do_not_compare_at_the_same_time(passing: Callable[[float], None]) -> None:
    """Not when all of them were started at the same time, and not later."""
    paces = [Pace() for _ in range(200)]
    for _ in range(6):
        assert sum(each.is_due() for each in paces) < 70
        passing(100)
    paces = [Pace() for _ in range(200)]
    passing(600)
    assert all(each.is_due() for each in paces)
    passing(600)
    assert 60 < sum(each.is_due() for each in paces) < 140


def test_a_comparison_that_fails_is_not_repeated_at_once(passing: Callable[[float], None]) -> None:
    pace = Pace()
    passing(600)
    assert pace.is_due()
    passing(60)
    assert not pace.is_due()


def test_a_comparison_says_what_it_costs_all_nodes(tmp_path: Path) -> None:
    store = Memory()
    for number in range(30):
        store.create(f"blocks/default/10.64.{number}.0-26", {"node": f"n{number % 3}", "uid": "u"})
    node = Node(str(tmp_path), "n9")
    claims = Claims(store, settings.Settings(str(tmp_path), "n9", {}, 0), node, print)
    claims.sync(Space(node, "default"))
    assert claims.listed == 30 * 3


def test_a_comparison_reads_as_many_files_with_any_number_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = files.read

    def counted(path: str, *args: Any, **more: Any) -> bytes:
        opened.append(path)
        return read(path, *args, **more)

    monkeypatch.setattr(files, "read", counted)
    store, counts = Memory(), []
    node = Node(str(tmp_path), "n9")
    for number in range(300):
        store.create(f"blocks/default/10.64.{number % 256}.{number // 256 * 64}-26",
                     {"node": f"n{number % 3}", "uid": "u"})  # fmt: skip
        if number in (1, 10, 299):
            claims = Claims(store, settings.Settings(str(tmp_path), "n9", {}, 0), node, print)
            claims.sync(Space(node, "default"))
            opened.clear()
            claims.sync(Space(node, "default"))
            claims.taken(Space(node, "default"))
            counts.append(len(opened))
    assert counts[0] == counts[1] == counts[2] > 0


def test_the_server_says_on_which_node_it_is() -> None:
    """A request has its client's environment; that of the pod's container is the server's."""
    code = (
        "import os; from cni.store import settings; "
        "own = {'dataDir': '/x'}; client = {'CNI_CLUSTER_CONF': '/none'}; "
        "print(settings.read(own, client).node, "
        "settings.read(own, {**client, 'NODENAME': 'theirs'}).node, "
        "settings.read({**own, 'nodeName': 'said'}, client).node)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"NODENAME": "node-1.example"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["node-1.example", "theirs", "said"]


@pytest.mark.parametrize("timeout", [0, 60])
def test_a_round_in_which_nothing_is_to_do_asks_little(
    timeout: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every node makes one a minute: its record, and whether another one wants blocks.

    It changes the store only when it is time to renew.
    """
    store = Memory()
    monkeypatch.setattr(engines, "connect", lambda _: store)
    file = tmp_path / "cluster.json"
    own = {"store": {"type": "memory"}, "nodeName": "n1", "dataDir": str(tmp_path / "data")}
    file.write_text(json.dumps({**own, "nodeTimeout": timeout}))
    env = {"CNI_CLUSTER_CONF": str(file)}
    ipam = {"type": "cluster", "ranges": [[{"subnet": "10.64.0.0/16"}]], **own}
    Ipam("cluster", {"cniVersion": "1.1.0", "name": "net", "ipam": ipam}).add()
    pace = Pace()
    for compare in (True, False):
        store.requests.clear()
        _, problems = rounds.once(env, print, compare=compare, pace=pace)
        assert not problems
    assert [each.partition(" ")[0] for each in store.requests] == ["read", "list"]
