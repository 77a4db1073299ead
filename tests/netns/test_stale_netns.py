"""DEL with a CNI_NETNS that is no namespace of a container: every step outside it runs.

Whatever the path is by now: a plain file (what a bind mount leaves), a directory, a socket, a FIFO,
another kind of namespace, a path that nobody may read, the node's own namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.netns import handle, identify
from tests.harness import (
    Snapshot,
    difference,
    iptables_save,
    links,
    nft,
    requires_kernel,
    tree,
)
from tests.harness.pinned import Pinned, unmount_all
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.each_kernel

Json = dict[str, Any]

OWN = "the node's own"


def plain_file(path: Path) -> None:
    path.touch()


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def other_namespace(path: Path) -> None:
    path.symlink_to("/proc/self/ns/uts")


def dangling(path: Path) -> None:
    path.symlink_to("/proc/self/ns/nothing")


def loop(path: Path) -> None:
    path.symlink_to(path)


def below_a_file(path: Path) -> None:
    path.symlink_to("/etc/passwd/ns")


STALE: dict[str, Callable[[Path], object]] = {
    "plain file": plain_file,
    "directory": os.mkdir,
    "socket": unix_socket,
    "FIFO": os.mkfifo,
    "other namespace": other_namespace,
    "dangling": dangling,
    "loop": loop,
    "below a file": below_a_file,
}

PLUGINS: dict[str, Json] = {
    "bridge": {"bridge": "br0", "isGateway": True, "ipMasq": True},
    "ptp": {"ipMasq": True},
    "macvlan": {"master": "lo"},
    "ipvlan": {"master": "lo"},
    "vlan": {"master": "lo", "vlanId": 5},
    "dummy": {},
    "tap": {},
    "host-device": {"device": "dev0"},
}


# Those whose link is in the container only.
INSIDE = [
    pytest.param("macvlan", marks=requires_kernel("macvlan")),
    pytest.param("ipvlan", marks=requires_kernel("ipvlan")),
    pytest.param("vlan", marks=requires_kernel("vlan")),
    pytest.param("dummy", marks=requires_kernel("dummy")),
    "tap",
    "host-device",
]


def network(plugin: str, leases: Path) -> Json:
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.20.0.0/24"}]], "dataDir": str(leases)}
    rest = {"ipMasqBackend": "nftables", **PLUGINS[plugin]}
    return {"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": ipam, **rest}


def reserved(leases: Path) -> list[str]:
    return [name for name in tree(leases / "net") if name.startswith("10.20")]


@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_address_and_rules_go(plugin: str, stale: str, runtime: Runtime, tmp_path: Path) -> None:
    leases, path = tmp_path / "leases", tmp_path / "netns"
    STALE[stale](path)
    conf = network(plugin, leases)
    runtime.add("host-local", conf, "/nowhere").succeeded()
    assert reserved(leases)
    runtime.delete(plugin, conf, path).succeeded()
    assert not reserved(leases)
    runtime.delete(plugin, conf, path).succeeded()
    runtime.add(plugin, conf, path).failed(999, "failed to open netns")


@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_the_link_on_the_host_goes_too(
    plugin: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    leases, path = tmp_path / "leases", tmp_path / "netns"
    conf = network(plugin, leases)
    runtime.add(plugin, conf, container).succeeded()
    path.touch()
    runtime.delete(plugin, conf, path).succeeded()
    assert not reserved(leases)
    assert "id: c1" not in str(nft(host))
    assert "eth0" not in links(container)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("error", ["EMFILE", "ENOMEM", "EIO"])
@pytest.mark.parametrize("plugin", ["bridge", "ptp", *INSIDE])
def test_a_path_that_could_not_be_looked_at(
    plugin: str, error: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """A link in the container may be connected still: nothing is released, and DEL is repeated.

    The pairs of bridge and ptp go by their host ends, so nobody looks at the path.
    """
    leases = tmp_path / "leases"
    conf = attach(plugin, runtime, container, leases)
    notes = tree(state(runtime))
    done = delete_with_fault(plugin, conf, runtime, container.path, container.path, error, tmp_path)
    if plugin not in ("bridge", "ptp"):
        assert "failed to open netns" in json.loads(done.stdout)["msg"]
        assert reserved(leases)
        assert tree(state(runtime)) == notes
        assert "eth0" in links(container)
        runtime.delete(plugin, conf, container).succeeded()
    else:
        assert done.returncode == 0
    assert_nothing_left(plugin, runtime, container, leases)


def delete_with_fault(
    plugin: str,
    conf: Json,
    runtime: Runtime,
    netns: str,
    file: str,
    error: str,
    tmp_path: Path,
) -> subprocess.CompletedProcess[bytes]:
    """DEL by a process for which opening `file` fails; without one, finding it by its number."""
    call = "open,openat" if file else "open_by_handle_at"
    only = ["-P", file] if file else []
    strace = ["strace", "-qq", "-o", str(tmp_path / "trace"), *only]
    done: subprocess.CompletedProcess[bytes] = runtime.host.run(
        subprocess.run,
        [*strace, "-e", f"inject={call}:error={error}", str(runtime.bin_dir / plugin)],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=runtime.environment("DEL", netns, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    return done


# -- the path is gone, the namespace is not -------------------------------------------------------


def state(runtime: Runtime) -> Path:
    return Path(runtime.env["CNI_STATE_DIR"] or "") / "devices"


def attach(plugin: str, runtime: Runtime, netns: Any, leases: Path) -> Json:
    """ADD with an address, on one end of a pair if it needs a device; the configuration."""
    runtime.env["CNI_STATE_DIR"] = str(leases.parent / "state")
    conf = network(plugin, leases)
    if "device" in conf or "master" in conf:
        runtime.host.ip_batch(
            "link add dev0 type veth peer name dev1", "link set dev0 up", "link set dev1 up"
        )
    if "master" in conf:
        conf["master"] = "dev0"
    runtime.add(plugin, conf, netns).succeeded()
    assert reserved(leases)
    return conf


def assert_nothing_left(plugin: str, runtime: Runtime, container: Netns, leases: Path) -> None:
    assert "eth0" not in links(container)
    assert not reserved(leases)
    assert not state(runtime).exists() or not tree(state(runtime))
    assert plugin != "host-device" or "dev0" in links(runtime.host)


LOST = ["missing", "empty", "plain file", "another namespace", "another mount", "descriptor"]


def opens_by_number(ns: Netns) -> bool:
    """Does the kernel open a namespace by its number for this process?"""
    noted = identify(ns.path)
    try:
        fd = handle.reopen(noted) if noted else None
    except handle.Unknown:
        return False
    if fd is None:
        return False
    os.close(fd)
    return True


BY_NUMBER = "needs NS_GET_ID (Linux 6.18), and from 6.19 on the first PID namespace"


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("plugin", INSIDE)
def test_a_namespace_that_is_held_otherwise(
    plugin: str, lost: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """By a process, or by another mount: its link goes, or comes home, before the address.

    By nothing but a descriptor (of this test), too, where the kernel numbers namespaces.
    """
    leases, path = tmp_path / "leases", container.path
    conf = attach(plugin, runtime, container, leases)
    if lost == "another mount":
        Pinned.bind(container, tmp_path / "held")  # type: ignore[arg-type]
    elif lost == "descriptor":
        if not opens_by_number(container):
            pytest.skip(BY_NUMBER)
    else:
        container.popen(["sleep", "600"])
    container.unname()
    try:
        if lost == "plain file":
            Path(path).touch()
        elif lost == "another namespace":
            Pinned(Path(path))
        runtime.delete(plugin, conf, "" if lost == "empty" else path).succeeded()
        assert_nothing_left(plugin, runtime, container, leases)
        runtime.delete(plugin, conf, "" if lost == "empty" else path).succeeded()
        assert_nothing_left(plugin, runtime, container, leases)
    finally:
        container.unname()
        unmount_all(tmp_path)


@pytest.mark.parametrize("plugin", [each for each in INSIDE if each != "host-device"])
def test_an_add_while_the_link_of_an_earlier_one_is_elsewhere(
    plugin: str, runtime: Runtime, container: Netns, container2: Netns, tmp_path: Path
) -> None:
    """It fails and changes nothing; after a DEL it works."""
    leases = tmp_path / "leases"
    conf = attach(plugin, runtime, container, leases)
    notes = tree(state(runtime))
    container.popen(["sleep", "600"])
    container.unname()
    runtime.add(plugin, conf, container2).failed(999, "an earlier ADD of eth0 made eth0")
    assert (tree(state(runtime)), "eth0" in links(container)) == (notes, True)
    assert "eth0" not in links(container2)
    runtime.delete(plugin, conf, container2).succeeded()
    assert_nothing_left(plugin, runtime, container, leases)
    runtime.add(plugin, conf, container2).succeeded()


@pytest.mark.parametrize("plugin", [each for each in INSIDE if each != "host-device"])
def test_an_add_after_a_namespace_that_only_a_descriptor_holds(
    plugin: str, runtime: Runtime, container: Netns, container2: Netns, tmp_path: Path
) -> None:
    """Nobody is in it: its link makes way."""
    if not opens_by_number(container):
        pytest.skip(BY_NUMBER)
    leases = tmp_path / "leases"
    conf = attach(plugin, runtime, container, leases)
    container.unname()
    wait_until(lambda: not held(container), "nobody is in the namespace")
    runtime.add(plugin, conf, container2).succeeded()
    assert "eth0" not in links(container)
    runtime.delete(plugin, conf, container2).succeeded()
    assert_nothing_left(plugin, runtime, container2, leases)


def held(ns: Netns) -> bool:
    """Is any process in the namespace?"""
    here = f"net:[{ns.inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(process / "ns/net") == here:
                return True
    return False


@pytest.mark.parametrize("plugin", [each for each in INSIDE if each != "host-device"])
def test_an_add_after_the_namespace_of_an_earlier_one_ended(
    plugin: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    leases = tmp_path / "leases"
    pinned = Pinned(tmp_path / "netns")
    conf = attach(plugin, runtime, pinned.path, leases)
    pinned.unmount()
    runtime.add(plugin, conf, container).succeeded()
    runtime.delete(plugin, conf, container).succeeded()
    assert_nothing_left(plugin, runtime, container, leases)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("plugin", INSIDE)
def test_a_process_that_could_not_be_looked_at(
    plugin: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    leases, path = tmp_path / "leases", container.path
    conf = attach(plugin, runtime, container, leases)
    holder = f"/proc/{container.popen(['sleep', '600']).pid}/ns/net"
    where = "" if opens_by_number(container) else holder
    container.unname()
    done = delete_with_fault(plugin, conf, runtime, path, where, "EMFILE", tmp_path)
    assert done.returncode
    assert reserved(leases)
    assert "eth0" in links(container)
    runtime.delete(plugin, conf, path).succeeded()
    assert_nothing_left(plugin, runtime, container, leases)


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("plugin", INSIDE)
def test_a_namespace_that_is_gone(
    plugin: str, empty: bool, runtime: Runtime, tmp_path: Path
) -> None:
    """The link went with it, so the address is released."""
    leases = tmp_path / "leases"
    pinned = Pinned(tmp_path / "netns")
    conf = attach(plugin, runtime, pinned.path, leases)
    pinned.unmount()
    runtime.delete(plugin, conf, "" if empty else pinned.path).succeeded()
    assert not reserved(leases)
    assert not tree(state(runtime))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_nothing_is_done_in_the_nodes_own_namespace(
    plugin: str, runtime: Runtime, host: Netns, tmp_path: Path
) -> None:
    """A link of the node that has the container's name stays; the address is released."""
    leases = tmp_path / "leases"
    host.ip_batch(
        "link add eth0 type veth peer name dev0",
        *(f"link set {name} addrgenmode none" for name in ("eth0", "dev0")),  # comes when it likes
        *(f"link set {name} up" for name in ("eth0", "dev0")),
    )
    conf = network(plugin, leases)
    runtime.add("host-local", conf, "/nowhere").succeeded()
    before = Snapshot.take(host)
    runtime.delete(plugin, conf, host).failed(
        8, "plugin's netns and netns from CNI_NETNS should not be the same"
    )
    assert not reserved(leases)
    assert not difference(before, Snapshot.take(host))


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
@pytest.mark.parametrize("stale", ["plain file", "other namespace", OWN])
def test_chained_plugins(
    stale: str, backend: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    path: Any = tmp_path / "netns"
    previous = {"cniVersion": "1.1.0", "ips": [{"address": "10.20.0.2/24"}]}
    base = {"cniVersion": "1.1.0", "name": "net", "prevResult": previous}
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    portmap = {**base, "backend": backend, "capabilities": {"portMappings": True}}
    portmap["runtimeConfig"] = {"portMappings": ports}
    confs = {"portmap": portmap, "firewall": {**base, "backend": backend}}
    for plugin, conf in confs.items():
        runtime.add(plugin, {**conf, "type": plugin}, container).succeeded()
    if stale == OWN:
        path = host
    else:
        STALE[stale](path)
    for plugin, conf in confs.items():
        reply = runtime.delete(plugin, {**conf, "type": plugin}, path)
        assert reply.rc == (stale == OWN), str(reply)
    rules = "\n".join(iptables_save(host)) + str(nft(host))
    assert "10.20.0.2" not in rules
    assert "c1" not in rules.replace("veth", "")
