"""The store in a directory: the contract, kills at every system call, a full disk, odd files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.store import history
from cni.store.directory import DirectoryStore, name_of
from cni.store.interface import (
    Conflict,
    Exists,
    Expired,
    Refused,
    Store,
    Unavailable,
)
from tests.harness.store_contract import ODD_KEYS, StoreContract, changes

if TYPE_CHECKING:
    from collections.abc import Callable


class TestContract(StoreContract):
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Callable[[], Store]:
        # Whether a change is on the disk before it is answered makes no difference to these tests.
        return lambda: DirectoryStore(str(tmp_path / "store"), timeout=60, sync=False)

    def forget(self, store: Store) -> None:
        store.delete(store.create("long", {}))
        with open(f"{store.name.removeprefix('directory ')}/history", "r+b") as file:
            file.truncate(history.LIMIT + 1)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(str(tmp_path / "store"), timeout=60)


def test_no_two_keys_have_the_same_file() -> None:
    names = [name_of(key) for key in ODD_KEYS]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 255 and "/" not in name for name in names)


# --- kills, failures of system calls, a full disk ---

CHANGES = """
import os, sys
from cni.store.directory import DirectoryStore
store = DirectoryStore(sys.argv[1], timeout=60)
made = store.create("k/made", {"n": 1})
item = store.read("k/there")
if item.value == {"n": 0}:
    item = store.update(item, {"n": 1})
store.delete(item)
history = sys.argv[1] + "/history"  # as a kill leaves it
os.truncate(history, max(0, os.path.getsize(history) - 1))
store.create("k/last", {})
"""

# What is in the store, after each of the changes above: a kill leaves one of these.
STATES = [
    {"k/there": {"n": 0}},
    {"k/there": {"n": 0}, "k/made": {"n": 1}},
    {"k/there": {"n": 1}, "k/made": {"n": 1}},
    {"k/made": {"n": 1}},
    {"k/made": {"n": 1}, "k/last": {}},
]

CALLS = ("openat", "write", "fsync", "rename", "link", "unlink", "ftruncate", "flock", "pread64")


def run_changes(path: Path, *strace: str) -> subprocess.CompletedProcess[str]:
    """CHANGES in a process of its own, under strace, which sees only calls on the store's files."""
    options = ["-f", "-qq", *strace]
    items = [f"/items/{name_of(f'k/{name}')}" for name in ("made", "there", "last")]
    for name in ("", "/items", "/lock", "/history", "/making", "/making~", *items):
        options += ["-P", f"{path}{name}"]
    return subprocess.run(
        ["strace", *options, sys.executable, "-c", CHANGES, str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def prepared(path: Path) -> tuple[DirectoryStore, str]:
    """A store with one item, and where a watch begins that knows it."""
    store = DirectoryStore(str(path), timeout=60)
    store.create("k/there", {"n": 0})
    return store, store.list("").revision


def contents(store: DirectoryStore) -> dict[str, object]:
    return {item.key: item.value for item in store.list("").items}


def follow(store: DirectoryStore, revision: str) -> dict[str, object]:
    """What somebody knows who has seen the first state and watches since then."""
    known: dict[str, object] = dict(STATES[0])
    try:
        for change in store.watch("", revision, 0):
            if change.item is not None:
                known[change.key] = change.item.value
            else:
                known.pop(change.key, None)
    except Expired:
        known = contents(store)
    return known


def check_after_fault(store: DirectoryStore, revision: str) -> dict[str, object]:
    present = contents(store)
    assert present in STATES
    assert follow(store, revision) == present
    store.create("k/after", {"works": True})
    assert contents(store) == {**present, "k/after": {"works": True}}
    assert follow(store, revision) == contents(store)
    return present


@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC"])
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_at_any_call_leaves_each_change_whole_or_not_made(
    tmp_path: Path, call: str, fault: str
) -> None:
    prepared(tmp_path / "count")
    trace = tmp_path / "trace"
    counted = run_changes(tmp_path / "count", "-o", str(trace), "-e", f"trace={call}")
    assert counted.returncode == 0, counted.stderr
    count = trace.read_text().count(f"{call}(")
    assert count > 0, "the store does not use this call any more"
    for number in range(1, count + 1):
        store, revision = prepared(tmp_path / str(number))
        inject = f"inject={call}:{fault}:when={number}"
        done = run_changes(
            tmp_path / str(number), "-o", "/dev/null", "-e", f"trace={call}", "-e", inject
        )
        present = check_after_fault(store, revision)
        if done.returncode == 0:
            assert present == STATES[-1], "it said that all changes were made"
        elif fault != "signal=KILL":
            assert "store.interface.Unavailable" in done.stderr, done.stderr


FULL = """
import os, sys
from cni.store.directory import DirectoryStore
from cni.store.interface import Unavailable
store = DirectoryStore(sys.argv[1] + "/store", timeout=60)
items = [store.create(f"k/{n}", {"n": n}) for n in range(8)]
revision = store.list("").revision
with open(sys.argv[1] + "/fill", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
for attempt in (lambda: store.create("k/new", {}), lambda: store.update(items[0], {"n": 9})):
    try:
        attempt()
    except Unavailable as error:
        assert "no space left" in str(error), error
        assert "free space" in error.remedy, error.remedy
    else:
        raise SystemExit("it was not full")
assert store.list("").items == items
store.delete(items[1])
assert store.list("").items == items[:1] + items[2:]
os.unlink(sys.argv[1] + "/fill")
store.create("k/new", {})
assert len(store.list("").items) == 8
"""


def test_a_full_disk_loses_nothing_and_items_can_be_deleted(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root, to mount a small file system")
    script = tmp_path / "full.py"
    script.write_text(FULL)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=128k none {disk} && exec {sys.executable} {script} {disk}"
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr


# --- files of others ---


def test_a_damaged_item_is_named_and_stands_in_nobodys_way(
    store: DirectoryStore, tmp_path: Path
) -> None:
    store.create("k/a", {})
    path = tmp_path / "store/items" / name_of("k/a")
    path.write_text('{"key": "k/a", "vers')
    for verb in (lambda: store.read("k/a"), lambda: store.list("")):
        with pytest.raises(Refused, match=r"k,a\.json is damaged") as raised:
            verb()
        assert "backup" in raised.value.remedy
    with pytest.raises(Exists):
        store.create("k/a", {})
    store.create("k/b", {})


def test_a_copy_of_an_item_is_not_another_item(store: DirectoryStore, tmp_path: Path) -> None:
    store.create("k/a", {})
    items = tmp_path / "store/items"
    (items / name_of("k/b")).write_bytes((items / name_of("k/a")).read_bytes())
    with pytest.raises(Refused, match="it holds the item k/a"):
        store.read("k/b")


def test_other_files_are_no_items(store: DirectoryStore, tmp_path: Path) -> None:
    item = store.create("k/a", {})
    items = tmp_path / "store/items"
    (items / "k,a.json~").write_text("an editor's")
    (items / "lost+found").mkdir()
    assert store.list("").items == [item]


def test_an_item_put_back_by_hand_has_not_the_version_of_a_later_one(
    store: DirectoryStore, tmp_path: Path
) -> None:
    first = store.create("k/a", {"n": 1})
    path = tmp_path / "store/items" / name_of("k/a")
    saved = path.read_bytes()
    second = store.update(first, {"n": 2})
    path.write_bytes(saved)
    with pytest.raises(Conflict):
        store.delete(second)
    assert store.update(first, {"n": 3}).version not in (first.version, second.version)


def test_a_directory_copied_back_has_another_identity(
    store: DirectoryStore, tmp_path: Path
) -> None:
    before = store.identity()
    subprocess.run(["cp", "-a", tmp_path / "store", tmp_path / "backup"], check=True)
    subprocess.run(["rm", "-r", tmp_path / "store"], check=True)
    subprocess.run(["cp", "-a", tmp_path / "backup", tmp_path / "store"], check=True)
    assert store.identity() != before


def test_a_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = DirectoryStore(str(tmp_path / "file/store"))
    for verb in (lambda: store.create("a", {}), lambda: store.list("")):
        with pytest.raises(Unavailable, match="file/store") as raised:
            verb()
        assert "directory" in raised.value.remedy


def test_who_holds_the_lock_is_named(store: DirectoryStore, tmp_path: Path) -> None:
    item = store.create("a", {})
    impatient = DirectoryStore(str(tmp_path / "store"), timeout=0)
    with store._locked(), pytest.raises(Unavailable, match=f"held by pid {os.getpid()}"):
        impatient.delete(item)
    assert impatient.read("a") == item


def test_a_long_history_is_begun_anew(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LIMIT", 10_000)
    for number in range(200):
        store.delete(store.create(f"k/{number}", {}))
        assert os.stat(tmp_path / "store/history").st_size < 10_300
    assert store.read("k/1") is None


def test_a_history_of_another_boot_is_not_believed(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = store.list("").revision
    monkeypatch.setattr(history, "this_boot", lambda: "another")
    store.create("a", {})
    with pytest.raises(Expired):
        changes(store, "", revision, 1)
