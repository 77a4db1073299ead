"""Is a namespace that was noted earlier gone? By its identity, whatever paths name by now."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from cni.netns import identify, namespace
from cni.netns.liveness import is_gone
from cni.netns.namespace import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("_namespaces")


class Pinned:
    """A namespace that lives by a bind mount only, as those of most runtimes."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        path.touch()
        subprocess.run(["unshare", f"--net={path}", "true"], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.path], check=True)

    def bind(self, path: Path) -> None:
        path.touch()
        subprocess.run(["mount", "--bind", self.path, path], check=True)


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Pinned]:
    yield Pinned(tmp_path / "one")
    for name in os.listdir(tmp_path):
        subprocess.run(["umount", "-l", tmp_path / name], check=False, capture_output=True)


def noted(path: str) -> Identity:
    found = identify(path)
    assert found is not None
    assert Identity.parse(str(found)) == found
    return found


def test_it_lives_while_its_path_names_it(pinned: Pinned) -> None:
    assert not is_gone(noted(pinned.path), pinned.path)


def test_a_path_that_is_a_plain_file_names_nothing(pinned: Pinned) -> None:
    identity = noted(pinned.path)
    pinned.unmount()
    assert identify(pinned.path) is None
    assert is_gone(identity, pinned.path)
    assert is_gone(None, pinned.path)
    os.unlink(pinned.path)
    assert is_gone(identity, pinned.path)
    assert is_gone(None, pinned.path)


def test_a_path_that_names_another_one_now(pinned: Pinned, tmp_path: Path) -> None:
    identity = noted(pinned.path)
    pinned.unmount()
    Pinned(tmp_path / "one")
    assert is_gone(identity, pinned.path)
    assert not is_gone(None, pinned.path)


def test_it_lives_under_another_path(pinned: Pinned, tmp_path: Path) -> None:
    identity = noted(pinned.path)
    pinned.bind(tmp_path / "two")
    pinned.unmount()
    assert not is_gone(identity, pinned.path)
    subprocess.run(["umount", tmp_path / "two"], check=True)
    assert is_gone(identity, pinned.path)


def test_it_lives_while_a_process_is_in_it(pinned: Pinned) -> None:
    identity = noted(pinned.path)
    process = subprocess.Popen(
        ["nsenter", f"--net={pinned.path}", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"x\n"  # it has entered
        unpinned = noted(f"/proc/{process.pid}/ns/net")
        assert unpinned[:2] == identity[:2]
        pinned.unmount()
        assert not is_gone(identity, pinned.path)
        assert not is_gone(unpinned, f"/proc/{process.pid}/ns/net")
    finally:
        process.stdin.close()
        process.wait()
    process.stdout.close()
    assert is_gone(identity, pinned.path)
    assert is_gone(unpinned, f"/proc/{process.pid}/ns/net")


def test_a_number_that_was_used_again(pinned: Pinned) -> None:
    """Two namespaces of one number differ by when the path became a mount of them."""
    identity = noted(pinned.path)
    earlier = identity._replace(pinned=identity.pinned - 1)
    assert is_gone(earlier, pinned.path)
    assert is_gone(earlier, "/nosuch", seen_from=pinned.path)
    assert not is_gone(identity._replace(pinned=0), pinned.path)


def test_nothing_is_known_of_paths_that_are_other_files_here(pinned: Pinned) -> None:
    """A server in a container: what its client names is not what it sees."""
    identity = noted(pinned.path)
    fd = os.open(pinned.path, os.O_RDONLY)
    namespace.hand_over("/nosuch/netns", fd)
    try:
        now = noted("/nosuch/netns")
        assert now[:2] == identity[:2]
        assert not now.pinned
        dead = identity._replace(inode=1)
        assert is_gone(dead, "/nosuch", seen_from=pinned.path)
        assert not is_gone(dead, "/nosuch", seen_from="/nosuch/netns")
        assert not is_gone(None, "/nosuch", seen_from="/nosuch/netns")
    finally:
        namespace.hand_over("", None)
        os.close(fd)


@pytest.mark.parametrize("text", ["", "1", "1:2", "1:2:3:4", "a:b:c", "1:2:"])
def test_what_is_no_identity(text: str) -> None:
    assert Identity.parse(text) is None
