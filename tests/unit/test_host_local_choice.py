"""host-local beyond the reference: addresses that are never handed out, and those of a pod."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cni.ipam.host_local import sticky

from .ipam_node import Failure, Ipam


def network(data_dir: Path, *sets: list[dict[str, Any]], **ipam: Any) -> Ipam:
    conf = {"type": "host-local", "dataDir": str(data_dir), "ranges": list(sets), **ipam}
    return Ipam("host-local", {"cniVersion": "1.1.0", "name": "net", "ipam": conf})


def pod(name: str, namespace: str = "default") -> dict[str, str]:
    """CNI_ARGS as a Kubernetes runtime gives them."""
    return {
        "env_args": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};"
        "K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=y"
    }


# --- exclude ---

RANGE = {"subnet": "10.0.0.0/28"}


@pytest.mark.parametrize(
    ("entries", "left"),
    [
        (["10.0.0.2"], [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]),
        (["10.0.0.0/29"], [8, 9, 10, 11, 12, 13, 14]),
        (["10.0.0.5/29"], [8, 9, 10, 11, 12, 13, 14]),
        (["10.0.0.4-10.0.0.13", "10.0.0.2 - 10.0.0.2"], [3, 14]),
        (["10.0.0.3-10.0.0.9", "10.0.0.5", "10.0.0.6-10.0.0.12", "fd00::/64"], [2, 13, 14]),
        (["192.0.2.0/24", "10.0.0.14-10.0.3.0"], [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
    ],
)
@pytest.mark.parametrize("place", ["range", "ipam", "subnet"])
def test_excluded(tmp_path: Path, entries: list[str], left: list[int], place: str) -> None:
    if place == "range":
        ipam = network(tmp_path, [{**RANGE, "exclude": entries}])
    elif place == "ipam":
        ipam = network(tmp_path, [RANGE], exclude=entries)
    else:
        ipam = network(tmp_path, **RANGE, exclude=entries)
    got = [ipam.add(f"c{n}")[0] for n in range(len(left))]
    assert got == [f"10.0.0.{n}/28" for n in left]
    with pytest.raises(Failure, match="no IP addresses available in range set: "):
        ipam.add("more")
    with pytest.raises(Failure, match="no IP addresses available"):
        ipam.call("STATUS")
    ipam.delete("c0")
    assert ipam.call("STATUS") is None


def test_all_excluded(tmp_path: Path) -> None:
    ipam = network(tmp_path, [RANGE], exclude=["10.0.0.0/8"])
    with pytest.raises(Failure, match="no IP addresses available") as caught:
        ipam.add()
    assert "no address to hand out" in caught.value.details


def test_excluded_ones_cannot_be_requested(tmp_path: Path) -> None:
    ipam = network(tmp_path, [RANGE], exclude=["10.0.0.5"])
    with pytest.raises(Failure) as caught:
        ipam.add(env_args="IP=10.0.0.5")
    assert caught.value.msg == (
        "failed to allocate for range 0: requested IP address 10.0.0.5 is not available in range "
        "set 10.0.0.1-10.0.0.14"
    )
    assert "`exclude`" in caught.value.details
    assert ipam.add(env_args="IP=10.0.0.6") == ["10.0.0.6/28"]


def test_one_that_was_handed_out_before_stays(tmp_path: Path) -> None:
    ipam = network(tmp_path, [RANGE])
    ipam.add()
    ipam.conf["ipam"]["exclude"] = ["10.0.0.0/28"]
    ipam.check()
    ipam.delete()
    assert set(os.listdir(tmp_path / "net")) == {"lock", "last_reserved_ip.0"}


@pytest.mark.parametrize(
    ("entry", "msg"),
    [
        ("x", "invalid IP address: x"),
        ("", "invalid IP address: "),
        ("10.0.0.0/33", "invalid CIDR address: 10.0.0.0/33"),
        ("10.0.0.9-10.0.0.8", "invalid IP range: 10.0.0.9-10.0.0.8"),
        ("10.0.0.9-fd00::1", "invalid IP range: 10.0.0.9-fd00::1"),
        ("10.0.0.9-", "invalid IP address: "),
    ],
)
def test_wrong_entries(tmp_path: Path, entry: str, msg: str) -> None:
    for ipam in (
        network(tmp_path, [RANGE], exclude=[entry]),
        network(tmp_path, [{**RANGE, "exclude": [entry]}]),
    ):
        with pytest.raises(Failure) as caught:
            ipam.add()
        assert caught.value.msg == msg
        assert "`exclude`" in caught.value.details


# --- sticky ---

DUAL = ([{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}])


def test_a_pod_gets_its_addresses_back(tmp_path: Path) -> None:
    ipam = network(tmp_path, *DUAL, sticky=True)
    assert ipam.add("a1", **pod("db-0")) == ["10.0.0.2/24", "fd00::2/64"]
    assert ipam.add("b1", **pod("db-1")) == ["10.0.0.3/24", "fd00::3/64"]
    ipam.delete("a1", **pod("db-0"))
    ipam.delete("b1", **pod("db-1"))
    assert ipam.add("c1", **pod("other")) == ["10.0.0.4/24", "fd00::4/64"]
    assert ipam.add("a2", **pod("db-0")) == ["10.0.0.2/24", "fd00::2/64"]
    # Round robin went on, and another namespace or interface is another pod.
    assert ipam.add("d1", **pod("db-1", "test")) == ["10.0.0.5/24", "fd00::5/64"]
    assert ipam.add("b2", "eth1", **pod("db-1")) == ["10.0.0.6/24", "fd00::6/64"]
    assert ipam.add("b2", **pod("db-1")) == ["10.0.0.3/24", "fd00::3/64"]


def test_one_that_is_taken_is_replaced(tmp_path: Path) -> None:
    ipam = network(tmp_path, *DUAL[:1], sticky=True)
    ipam.add("a1", **pod("db-0"))
    # The old container is still there.
    assert ipam.add("a2", **pod("db-0")) == ["10.0.0.3/24"]
    ipam.delete("a1")
    ipam.delete("a2")
    assert ipam.add("a3", **pod("db-0")) == ["10.0.0.3/24"]


def test_one_that_may_not_be_handed_out_any_more(tmp_path: Path) -> None:
    ipam = network(tmp_path, *DUAL[:1], sticky=True)
    ipam.add("a1", **pod("db-0"))
    ipam.delete("a1")
    ipam.conf["ipam"]["exclude"] = ["10.0.0.2"]
    assert ipam.add("a2", **pod("db-0")) == ["10.0.0.3/24"]
    ipam.delete("a2")
    ipam.conf["ipam"]["ranges"] = [[{"subnet": "10.9.0.0/24"}]]
    assert ipam.add("a3", **pod("db-0")) == ["10.9.0.2/24"]


def test_a_requested_address_comes_first(tmp_path: Path) -> None:
    ipam = network(tmp_path, *DUAL[:1], sticky=True)
    ipam.add("a1", **pod("db-0"))
    ipam.delete("a1")
    args = pod("db-0")["env_args"]
    assert ipam.add("a2", env_args=f"{args};IP=10.0.0.9") == ["10.0.0.9/24"]


def test_only_when_asked_for(tmp_path: Path) -> None:
    ipam = network(tmp_path, *DUAL[:1])
    ipam.add("a1", **pod("db-0"))
    ipam.delete("a1")
    assert ipam.add("a2", **pod("db-0")) == ["10.0.0.3/24"]
    with pytest.raises(Failure, match="unknown args"):
        ipam.add("a3", env_args="K8S_POD_NAME=x")
    ipam.conf["ipam"]["sticky"] = True
    assert ipam.add("a3", env_args="K8S_POD_NAME=x") == ["10.0.0.4/24"]
    assert ipam.add("a4") == ["10.0.0.5/24"]  # no pod is named


def test_the_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used least recently is forgotten."""
    monkeypatch.setattr(sticky, "_BUCKETS", 1)

    def memory(n: int) -> sticky.Memory:
        return sticky.Memory(str(tmp_path), "net", ("ns", f"p{n}", "eth0"))

    for n in range(16):
        memory(n).keep(0, bytes([10, 0, 0, n]))
    memory(0).keep(0, bytes([10, 0, 0, 0]))
    memory(16).keep(0, bytes([10, 0, 0, 16]))
    assert [memory(n).recall(0) for n in (0, 1, 2, 16)] == [
        bytes([10, 0, 0, 0]), None, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 16]),
    ]  # fmt: skip
    assert memory(0).recall(1) is None
    assert (tmp_path / ".cni" / "net.sticky").stat().st_size == 16 * 29


def test_a_damaged_memory(tmp_path: Path) -> None:
    ipam = network(tmp_path, *DUAL[:1], sticky=True)
    ipam.add("a1", **pod("db-0"))
    ipam.delete("a1")
    file = tmp_path / ".cni" / "net.sticky"
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert ipam.add("a2", **pod("db-0")) == ["10.0.0.3/24"]
    file.write_bytes(file.read_bytes()[:40])
    assert ipam.add("a3", **pod("db-1")) == ["10.0.0.4/24"]
