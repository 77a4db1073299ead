"""The store in a real etcd: the contract, and everything that happens to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import making_netns
from tests.harness.etcd import EtcdCluster
from tests.harness.store_contract import StoreContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cni.ipam.cluster.store.interface import Store


@pytest.fixture(scope="module")
def single(_namespaces: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One member, for all tests that do it no harm."""
    with making_netns() as netns:
        cluster = EtcdCluster(netns, tmp_path_factory.mktemp("etcd"))
        yield cluster
        cluster.close()


class TestContract(StoreContract):
    cluster: EtcdCluster

    @pytest.fixture
    def opened(self, single: EtcdCluster, tmp_path: Path) -> Iterator[Callable[[], Store]]:
        self.cluster = single
        stores: list[Store] = []

        def opened() -> Store:
            stores.append(single.store(prefix=f"/test/{tmp_path.name}"))
            return stores[-1]

        yield opened
        for store in stores:
            store.close()

    def forget(self, store: Store) -> None:
        store.delete(store.create("long", {}))
        self.cluster.members[0].ctl("compact", store.list("").revision)
