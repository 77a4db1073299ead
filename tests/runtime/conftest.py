"""The node, the plugins on it, and the runtimes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import DUAL
from tests.harness.build import build_dist

from .engines import BUSYBOX, Containerd, Engine, Podman, make_image
from .networks import CONF_DIR, Network
from .node import Node, left_of, remove_stale_nodes
from .plugins import Plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Family

# program -> Debian package
PROGRAMS = {
    "podman": "podman",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "conmon": "conmon",
    str(BUSYBOX): "busybox-static",
    "nft": "nftables",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}


@pytest.fixture(scope="session")
def _runtimes_installed() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces and start containers")
    missing = {name: package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        pytest.fail(f"{', '.join(missing)} not found: apt-get install {packages}")
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.fail("the kernel knows no overlay file system: modprobe overlay")


@pytest.fixture(scope="session")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    given = os.environ.get("CNI_TEST_BIN_DIR")
    if given:
        return Plugins(Path(given), None)
    # A copy, as somebody may build anew while the tests run.
    return Plugins(None, Path(shutil.copy(build_dist(), tmp_path_factory.mktemp("dist"))))


@pytest.fixture(scope="session")
def node(_namespaces: None, _runtimes_installed: None, plugins: Plugins) -> Iterator[Node]:
    """One node for all tests, with the plugins installed and nothing else.

    At the end it goes away, and nothing of it is left on the machine.
    """
    remove_stale_nodes()
    node = Node()
    try:
        plugins.install(node)
        yield node
    finally:
        node.stop()
    assert left_of(node) == []


@pytest.fixture(scope="session")
def _image(node: Node, _podman: Podman) -> None:
    make_image(node)


@pytest.fixture(scope="session")
def _podman(node: Node) -> Podman:
    return Podman(node)


@pytest.fixture(scope="session")
def _containerd(node: Node, _image: None) -> Containerd:
    return Containerd(node)


@pytest.fixture
def podman(_podman: Podman, _image: None) -> Iterator[Podman]:
    """podman, with nothing running before and after the test."""
    yield _podman
    _podman.remove_all()


@pytest.fixture
def containerd(_containerd: Containerd) -> Iterator[Containerd]:
    """containerd, with nothing running before and after the test."""
    yield _containerd
    _containerd.remove_all()


@pytest.fixture(params=["podman", "containerd"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both runtimes, one after the other."""
    engine: Engine = request.getfixturevalue(request.param)
    return engine


@pytest.fixture
def network(node: Node) -> Iterator[Callable[..., Network]]:
    """Configures networks: `network(family, **fields of Network)`; a clean node before and after.

    Ask for it before a runtime, so that containers go before their network does.
    """
    made: list[Network] = []

    def make(family: Family, **fields: Any) -> Network:
        new = Network(f"net{len(made) + 1}", family)
        new = replace(new, **fields)
        node.path(new.file).write_text(new.conflist())
        made.append(new)
        return new

    yield make
    for one in made:
        node.path(one.file).unlink(missing_ok=True)
        shutil.rmtree(node.path(one.data_dir), ignore_errors=True)
        if one.bridge:
            node.run(["ip", "link", "delete", one.bridge], check=False)
    for directory in ("/var/lib/cni/results", "/run/cni"):
        shutil.rmtree(node.path(directory), ignore_errors=True)
    node.run(["nft", "flush", "ruleset"])
    node.run(["conntrack", "--flush"])
    assert not list(node.path(CONF_DIR).glob("*conf*")), "another network is configured"


@pytest.fixture
def made(network: Callable[..., Network], podman: Podman, node: Node) -> Iterator[Network]:
    """A network with both families as `podman network create` writes it, and nothing changed."""
    subnets = [word for subnet in DUAL.subnets for word in ("--subnet", subnet)]
    podman.podman("network", "create", *subnets, "made")
    yield Network("made", DUAL)
    podman.remove_all()
    # Also takes its bridge away, but does nothing when it does not find the plugins.
    podman.podman("network", "rm", "made", check=False)
    node.path(f"{CONF_DIR}/made.conflist").unlink(missing_ok=True)
