"""Is a namespace that was noted earlier gone? By its identity, whatever paths name by now."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cni.kernel import syscalls
from cni.netns import Namespace, handle, identify, namespace
from cni.netns.liveness import exists, is_gone, reopen
from cni.netns.namespace import Identity
from tests.harness import links
from tests.harness.pinned import Pinned, unmount_all
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Runtime

pytestmark = pytest.mark.usefixtures("_namespaces")


@pytest.fixture(params=["by number", "by what holds it"])
def _look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to find a namespace: the kernel's, since Linux 6.18, and the one before."""
    if request.param == "by number":
        has_numbers()
        return

    def reopen(_: Identity) -> None:
        raise handle.Unknown

    monkeypatch.setattr(handle, "reopen", reopen)


def has_numbers() -> None:
    if not noted("/proc/self/ns/net").number:
        pytest.skip("needs Linux 6.18 (NS_GET_ID)")


both_ways = pytest.mark.usefixtures("_look")


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Pinned]:
    yield Pinned(tmp_path / "one")
    unmount_all(tmp_path)


def noted(path: str) -> Identity:
    found = identify(path)
    assert found is not None
    assert Identity.parse(str(found)) == found
    return found


@both_ways
def test_it_lives_while_its_path_names_it(pinned: Pinned) -> None:
    assert not is_gone(noted(pinned.path), pinned.path)


@both_ways
def test_a_path_that_is_a_plain_file_names_nothing(pinned: Pinned) -> None:
    identity = noted(pinned.path)
    pinned.unmount()
    assert identify(pinned.path) is None
    assert is_gone(identity, pinned.path)
    assert is_gone(None, pinned.path)
    os.unlink(pinned.path)
    assert is_gone(identity, pinned.path)
    assert is_gone(None, pinned.path)


@both_ways
def test_a_path_that_names_another_one_now(pinned: Pinned, tmp_path: Path) -> None:
    identity = noted(pinned.path)
    pinned.unmount()
    Pinned(tmp_path / "one")
    assert is_gone(identity, pinned.path)
    assert not is_gone(None, pinned.path)


@both_ways
def test_it_lives_under_another_path(pinned: Pinned, tmp_path: Path) -> None:
    identity = noted(pinned.path)
    pinned.bind(tmp_path / "two")
    pinned.unmount()
    assert not is_gone(identity, pinned.path)
    subprocess.run(["umount", tmp_path / "two"], check=True)
    assert is_gone(identity, pinned.path)


@both_ways
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


def test_an_inode_that_was_used_again_before_the_kernel_numbered_namespaces(
    pinned: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two namespaces of one inode differ by when the path became a mount of them."""
    monkeypatch.setattr(namespace, "_number", lambda _: 0)
    identity = noted(pinned.path)
    assert identity.pinned
    earlier = identity._replace(pinned=identity.pinned - 1)
    assert is_gone(earlier, pinned.path)
    assert is_gone(earlier, "/nosuch", seen_from=pinned.path)
    assert is_gone(earlier, "/nosuch")
    assert not is_gone(identity, pinned.path)
    assert not is_gone(identity._replace(pinned=0), pinned.path)


@both_ways
@pytest.mark.skipif(not noted("/proc/self/ns/net").number, reason="needs Linux 6.18 (NS_GET_ID)")
def test_an_inode_that_was_used_again(pinned: Pinned) -> None:
    identity = noted(pinned.path)
    earlier = identity._replace(number=identity.number - 1)
    assert is_gone(earlier, pinned.path)
    assert is_gone(earlier, "/nosuch", seen_from=pinned.path)
    assert is_gone(earlier, "/nosuch")
    assert not is_gone(identity._replace(number=0), pinned.path)
    assert not is_gone(identity._replace(pinned=1), pinned.path)


@both_ways
@pytest.mark.skipif(not noted("/proc/self/ns/net").number, reason="needs Linux 6.18 (NS_GET_ID)")
def test_a_process_in_another_namespace_of_that_number() -> None:
    """The kernel has given the inode's number to a stranger's namespace: ours is gone."""
    here = noted("/proc/self/ns/net")
    assert not is_gone(here._replace(pinned=0), "/nosuch")
    assert is_gone(here._replace(pinned=0, number=here.number + 1_000_000_000), "/nosuch")


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


@both_ways
def test_reopening_a_namespace(pinned: Pinned, tmp_path: Path) -> None:
    identity = noted(pinned.path)
    with Namespace.open(pinned.path) as before:
        number = namespace.cookie(before.netlink().sock)
    pinned.bind(tmp_path / "two")
    pinned.unmount()
    for each in (number, 0):
        found = reopen(identity, each)
        assert found is not None
        with found:
            assert found.identity == identity[:2]
    assert reopen(noted("/proc/self/ns/net"), 0) is None  # never the node's own
    subprocess.run(["umount", tmp_path / "two"], check=True)

    def has_ended() -> bool:
        found = reopen(identity, number)
        if found is not None:
            found.close()
        return found is None

    # a helper process may hold a socket of it for a moment
    wait_until(has_ended, "the end of the namespace")
    assert is_gone(identity, "")


def test_a_stranger_s_namespace_that_has_the_inode_is_not_reopened(
    pinned: Pinned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the kernel numbered namespaces, the cookie tells."""
    monkeypatch.setattr(namespace, "_number", lambda _: 0)
    identity = noted(pinned.path)
    with Namespace.open(pinned.path) as opened:
        number = namespace.cookie(opened.netlink().sock)
    found = reopen(identity, number)
    assert found is not None
    found.close()
    assert reopen(identity, number + 1_000_000_000) is None


def test_what_only_a_descriptor_holds_has_nobody_in_it_but_is_found(pinned: Pinned) -> None:
    """Others may have its ports; a DEL has to remove the links in it."""
    has_numbers()
    identity = noted(pinned.path)
    fd = handle.reopen(identity)  # not through the mount, which would be busy
    assert fd is not None
    pinned.unmount()
    assert is_gone(identity, pinned.path)
    found = reopen(identity, 0)
    assert found is not None
    with found:
        assert found.identity == identity[:2]
    os.close(fd)
    assert reopen(identity, 0) is None


@contextmanager
def mounts_of_its_own(script: str = "") -> Iterator[None]:
    """A process with a copy of all mounts, in which it has run a script."""
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", f"{script}\nexec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"x\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"x\n"
        yield
        holder.stdin.close()


@both_ways
@pytest.mark.parametrize("name", ["one", "a b\tc\\040d"])
def test_it_lives_while_a_mount_of_another_mount_namespace_holds_it(
    tmp_path: Path, name: str
) -> None:
    """mountinfo has blanks and backslashes of a path as octal numbers."""
    pinned = Pinned(tmp_path / name)
    identity = noted(pinned.path)
    with mounts_of_its_own():
        pinned.unmount()
        assert not is_gone(identity, pinned.path)
        found = reopen(identity, 0)
        assert found is not None
        with found:
            assert found.identity == identity[:2]
    wait_until(lambda: is_gone(identity, pinned.path), "the end of its mounts")


@both_ways
def test_it_lives_while_a_mount_that_another_one_hides_holds_it(
    pinned: Pinned, tmp_path: Path
) -> None:
    identity = noted(pinned.path)
    with mounts_of_its_own(f"mount -t tmpfs none {tmp_path}"):
        pinned.unmount()
        assert not is_gone(identity, pinned.path)
    wait_until(lambda: is_gone(identity, pinned.path), "the end of its mounts")


@pytest.mark.parametrize("error", ["EMFILE", "ENOMEM"])
def test_a_namespace_that_cannot_be_opened_now_is_not_gone(
    pinned: Pinned, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    has_numbers()
    identity = noted(pinned.path)
    pinned.unmount()

    def fail(*_: object) -> int:
        raise OSError(getattr(errno, error), error)

    monkeypatch.setattr(syscalls, "open_by_handle", fail)
    assert exists(identity, pinned.path) is None
    with pytest.raises(OSError, match=error):
        reopen(identity, 0)


WITHOUT_THE_RIGHT = {
    "capability": ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"],
    "user namespace": ["unshare", "-Ur"],
}


@pytest.mark.parametrize("lacking", WITHOUT_THE_RIGHT)
def test_one_that_must_not_be_opened_is_not_gone(pinned: Pinned, lacking: str) -> None:
    """To open_by_handle_at(2) that is the same."""
    has_numbers()
    prefix = WITHOUT_THE_RIGHT[lacking]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{prefix[0]} is not to be had")
    script = """if True:
        import sys
        from cni.netns import handle
        from cni.netns.liveness import exists
        from cni.netns.namespace import Identity
        noted = Identity.parse(sys.argv[1])
        try:
            print(handle.reopen(noted))
        except handle.Unknown:
            print("unknown", exists(noted, "/nowhere"))
    """
    with subprocess.Popen(["nsenter", f"--net={pinned.path}", "cat"], stdin=subprocess.PIPE) as one:
        wait_until(lambda: noted(f"/proc/{one.pid}/ns/net") == noted(pinned.path), "it is in it")
        said = subprocess.run(
            [*prefix, sys.executable, "-c", script, str(noted(pinned.path))],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            check=True,
        ).stdout.split()
        assert one.stdin is not None
        one.stdin.close()
    assert said[0] == "unknown"
    if lacking == "capability":  # the process in it can be seen
        assert said[1] == "True"


@pytest.mark.parametrize("text", ["", "1", "1:2:3", "1:2:3:4:5", "a:b:c:d", "1:2:3:"])
def test_what_is_no_identity(text: str) -> None:
    assert Identity.parse(text) is None


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_an_add_without_a_del_before_takes_the_place_of_the_dead_one(
    runtime: Runtime, pinned: Pinned, tmp_path: Path, plugin: str
) -> None:
    """A runtime that makes its pause container anew under the same id."""
    data_dir = tmp_path / "leases"
    chain = {
        "cniVersion": "1.0.0",
        "name": "net",
        "plugins": [
            {
                "type": plugin,
                "bridge": "br0",
                "isGateway": True,
                "ipMasq": True,
                "ipam": {
                    "type": "host-local",
                    "subnet": "10.45.0.0/24",
                    "dataDir": str(data_dir),
                },
            },
            {
                "type": "portmap",
                "capabilities": {"portMappings": True},
                "backend": "nftables",
            },
        ],
    }
    ports = {"portMappings": [{"hostPort": 8045, "containerPort": 80, "protocol": "tcp"}]}
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    first = runtime.add_list(chain, pinned.path, capabilities=ports)
    main = {**chain["plugins"][0], "cniVersion": "1.0.0", "name": "net"}  # type: ignore[index]
    runtime.add(plugin, main, pinned.path).failed(999)  # the first still exists
    identity = noted(pinned.path)
    pinned.unmount()
    # A helper process of the failed ADD may still be ending, and then the kernel takes its time.
    wait_until(lambda: is_gone(identity, pinned.path), "the end of the namespace")
    wait_until(
        lambda: not [name for name in links(runtime.host) if name.startswith("veth")],
        "the end of the link",
    )
    Pinned(tmp_path / "one")
    second = runtime.add_list(chain, pinned.path, capabilities=ports)
    assert [ip["address"] for ip in second["ips"]] == [ip["address"] for ip in first["ips"]]
    assert {path.name for path in (data_dir / "net").iterdir() if path.name[0] == "1"} == {
        "10.45.0.2"
    }
    runtime.delete_list(chain, pinned.path, second, capabilities=ports)
    assert not [path for path in (data_dir / "net").iterdir() if path.name[0] == "1"]
