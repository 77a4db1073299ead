"""`cni doctor`: what it says of numbers that a test cannot have the kernel show."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cni.cli import doctor
from cni.cli.checkup import node, state
from cni.cli.checkup.finding import ERROR, NOTE, OK, UNKNOWN, WARNING, Finding, Situation


def file_system(space: int, inodes: int) -> os.statvfs_result:
    """A file system with so many per cent free."""
    return os.statvfs_result(
        (4096, 4096, 1000, space * 10, space * 10, 1000, 0, inodes * 10, 0, 255)
    )


@pytest.mark.parametrize(
    ("space", "inodes", "level", "mend"),
    [
        (50, 50, OK, ""),
        (10, 50, OK, ""),
        (9, 50, WARNING, "df -h /x"),
        (50, 9, WARNING, "df -i /x"),
        (2, 50, ERROR, "df -h /x"),
        (50, 0, ERROR, "df -i /x"),
    ],
)
def test_room(space: int, inodes: int, level: str, mend: str) -> None:
    (found,) = state._room_of("/x", file_system(space, inodes))
    assert (found.level, found.mend) == (level, mend)


def test_a_file_system_without_a_number_of_inodes() -> None:
    btrfs = os.statvfs_result((4096, 4096, 1000, 500, 500, 0, 0, 0, 0, 255))
    (found,) = state._room_of("/x", btrfs)
    assert found.level == OK


@pytest.mark.parametrize(
    ("count", "level"), [(10, OK), (79, OK), (80, WARNING), (94, WARNING), (95, ERROR)]
)
def test_connection_tracking(count: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"net/netfilter/nf_conntrack_count": count, "net/netfilter/nf_conntrack_max": 100}
    monkeypatch.setattr(node, "_number", numbers.get)
    (found,) = node.conntrack(Situation())
    assert found.level == level
    assert (found.mend == "sysctl -w net.netfilter.nf_conntrack_max=200") == (level != OK)


def test_a_kernel_without_connection_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "_number", lambda _: None)
    assert list(node.conntrack(Situation())) == []


@pytest.mark.parametrize(("release", "level"), [("4.17.0", ERROR), ("4.18.0-1", OK), ("x", NOTE)])
def test_kernels(release: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "n", release, "v", "m")))
    (found,) = node.version(Situation())
    assert found.level == level


def test_permissions(tmp_path: Path) -> None:
    open_to_all, own = tmp_path / "open", tmp_path / "own"
    open_to_all.mkdir()
    own.mkdir()
    open_to_all.chmod(0o777)
    own.chmod(0o755)
    situation = Situation(
        path=[str(own), str(open_to_all)],
        state_dir=str(own),
        cache_dir=str(own),
        net_d=str(tmp_path / "missing"),
    )
    (found,) = state.permissions(situation)
    assert found.mend == f"chmod o-w {open_to_all}"
    os.chmod(open_to_all, stat.S_IMODE(open_to_all.stat().st_mode) & ~stat.S_IWOTH)
    assert list(state.permissions(situation)) == []


def test_a_check_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others go on."""

    def broken(_: Situation) -> list[Finding]:
        """What it looks at."""
        raise RuntimeError("why")

    monkeypatch.setattr(node, "CHECKS", (broken, node.version))
    found = [each for each in doctor.examine(Situation()) if each.area == node.AREA]
    assert [each.level for each in found] == [UNKNOWN, OK]
    assert "What it looks at: why" in found[0].text
