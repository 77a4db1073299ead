"""Fixtures shared by all tests; the helpers themselves are in tests/harness."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import Netns, Runtime, in_lab
from tests.harness.build import GO_BIN_DIR, file_under_test, install_dist
from tests.harness.combinations import more_combinations
from tests.harness.everyday import long_ones, many_rows
from tests.harness.firewalld import Bus, Firewalld, ensure_installed
from tests.harness.netns import leftovers, own_inode, remove_stale
from tests.harness.requires import ONLY_DEBIAN, ensure, missing
from tests.harness.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest_plugins = ["tests.harness.parallel"]

# A busy machine is not a defect; and CI tries the same examples each time, people new ones.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.register_profile("everyday", settings.get_profile("patient"), max_examples=40)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr == "not slow":
        settings.load_profile("everyday")
    config.addinivalue_line("markers", "netns: makes network namespaces (root)")
    config.addinivalue_line("markers", "lab: needs a kernel that `make test-lab` provides")
    config.addinivalue_line("markers", "debian: runs on Debian's kernel in `make test-debian`")
    config.addinivalue_line("markers", "each_kernel: shows more on the lab's kernel, an older one")
    config.addinivalue_line("markers", "own_server: starts the servers that it needs, or has none")
    config.addinivalue_line("markers", "requires_kernel(*features): see tests.harness.requires")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        needed = {name for mark in item.iter_markers("requires_kernel") for name in mark.args}
        if needed:
            item.add_marker(pytest.mark.debian if needed & ONLY_DEBIAN else pytest.mark.lab)
        if "_namespaces" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.netns)
    for item in more_combinations(items):
        item.add_marker(pytest.mark.slow)
    # `make test-warm` is no everyday run: it has the long ones, too. So has `make test-debian`,
    # without which nothing else would run them.
    if not os.environ.get("CNI_TEST_SERVER"):
        here = [item for item in items if not item.get_closest_marker("debian")]
        for item in long_ones(here):
            item.add_marker(pytest.mark.slow)
        rest = [item for item in here if not item.get_closest_marker("slow")]
        # The last row is taken: not one that this kernel has to skip, if there is another.
        rest.sort(key=lambda item: not lacks_something(item))
        for item in many_rows(rest):
            item.add_marker(pytest.mark.slow)
    if repeated := [item for item in items if is_shown_elsewhere(item)]:
        there = set(repeated)
        items[:] = [item for item in items if item not in there]
        config.hook.pytest_deselected(items=repeated)


def lacks_something(item: pytest.Item) -> bool:
    """Whether this kernel has not all that the test needs; False if that cannot be found out."""
    needed = {name for mark in item.iter_markers("requires_kernel") for name in mark.args}
    return os.geteuid() == 0 and any(missing(name) is not None for name in needed)


def is_shown_elsewhere(item: pytest.Item) -> bool:
    """Whether `make test-netns` has the test do the very same as this run.

    In the lab: where the machine itself has what the test needs ($CNI_HOST_FEATURES). Through a
    server: where no request goes through one, or the test starts those that it needs.
    """
    if item.nodeid.startswith("tests/netns/") and "CNI_HOST_FEATURES" in os.environ and in_lab():
        if item.get_closest_marker("each_kernel"):
            return False
        needed = {name for mark in item.iter_markers("requires_kernel") for name in mark.args}
        return needed <= set(os.environ["CNI_HOST_FEATURES"].split())
    if os.environ.get("CNI_TEST_SERVER") == "1":
        names = getattr(item, "fixturenames", ())
        its_own = "server" in names or item.get_closest_marker("own_server") is not None
        return its_own or "through_a_server" not in names
    return False


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("requires_kernel"):
        ensure(marker.args)


@pytest.fixture(scope="session")
def _namespaces() -> Iterator[None]:
    """Namespaces can be made; at the end none is left, and the process is where it was."""
    if os.geteuid() != 0:
        if in_lab():
            pytest.fail("the lab's tests run as root")
        pytest.skip("needs root, to make network namespaces")
    remove_stale()
    before = own_inode()
    yield
    assert own_inode() == before, "the test process has left its network namespace"
    assert not leftovers(), f"network namespaces left behind: {', '.join(leftovers())}"


@pytest.fixture
def netns(_namespaces: None) -> Iterator[Callable[..., Netns]]:
    """Makes further namespaces: `netns()` or `netns("role")`; removed after the test."""
    with making_netns() as make:
        yield make


@contextmanager
def making_netns() -> Iterator[Callable[..., Netns]]:
    """What the fixture `netns` is."""
    made: list[Netns] = []

    def make(role: str = "") -> Netns:
        made.append(Netns(role))
        return made[-1]

    yield make
    for ns in reversed(made):
        ns.close()


@pytest.fixture
def host(netns: Callable[..., Netns]) -> Netns:
    """The node: plugins run in this namespace, so that the machine's own is never touched."""
    return make_host(netns)


def make_host(netns: Callable[..., Netns]) -> Netns:
    """A namespace that plays a node, freshly booted: lo is up and forwarding is off."""
    ns = netns("host")
    # A node has had links before the first container's. Without these, the two ends of a veth pair
    # could both be number 2, each in its namespace; the kernel then takes the carrier's coming up
    # for unimportant and delays it (and IPv6 with it) for up to a second.
    ns.ip_batch("link set lo up", "link add type veth", "link delete veth0")
    # A new namespace takes these over from the machine, where they may be on.
    ns.set_sysctl("net/ipv4/ip_forward", 0)
    ns.set_sysctl("net/ipv6/conf/all/forwarding", 0)
    return ns


@pytest.fixture
def container(netns: Callable[..., Netns]) -> Netns:
    """A container's namespace, as a runtime hands it to the first plugin: lo is down."""
    return netns("container")


@pytest.fixture
def container2(netns: Callable[..., Netns]) -> Netns:
    """Another container."""
    return netns("container2")


@pytest.fixture
def outside(netns: Callable[..., Netns]) -> Netns:
    """A host in the world outside; join it to the node by `connect(host, outside)`."""
    return netns("outside")


@pytest.fixture(scope="session")
def installed_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The plugins of the file that the test of this id is about; each file is installed once."""
    directories: dict[Path, Path] = {}

    def install(test: str) -> Path:
        given = os.environ.get("CNI_TEST_BIN_DIR")
        if given:
            return Path(given)
        program = file_under_test(test)
        if program not in directories:
            directories[program] = install_dist(tmp_path_factory.mktemp("cni") / "bin", program)
        return directories[program]

    return install


@pytest.fixture
def bin_dir(request: pytest.FixtureRequest, installed_once: Callable[[str], Path]) -> Path:
    """The plugins under test: our own, freshly installed, or those in $CNI_TEST_BIN_DIR."""
    return installed_once(request.node.nodeid)


@pytest.fixture(scope="module")
def module_bin_dir(request: pytest.FixtureRequest, installed_once: Callable[[str], Path]) -> Path:
    """The same for what all tests of a module share."""
    return installed_once(request.node.nodeid)


@pytest.fixture(scope="session")
def go_bin_dir() -> Path:
    """Debian's Go plugins (package containernetworking-plugins), to compare with."""
    if not (GO_BIN_DIR / "bridge").exists():
        pytest.skip("needs Debian's plugins: apt-get install containernetworking-plugins")
    return GO_BIN_DIR


@pytest.fixture(scope="session")
def through_a_server() -> bool:
    """Whether `runtime` has a server on its node, for tests that do not start one of their own."""
    return os.environ.get("CNI_TEST_SERVER") == "1"


@pytest.fixture
def runtime(
    bin_dir: Path, host: Netns, tmp_path_factory: pytest.TempPathFactory, through_a_server: bool
) -> Iterator[Runtime]:
    """Runs the plugins under test on the node; with CNI_TEST_SERVER=1 through a server."""
    with make_runtime(bin_dir, host, tmp_path_factory, through_a_server) as made:
        yield made


@contextmanager
def make_runtime(
    bin_dir: Path, host: Netns, tmp_path_factory: pytest.TempPathFactory, through_a_server: bool
) -> Iterator[Runtime]:
    """What the fixture `runtime` is."""
    made = Runtime(bin_dir, host)
    if not through_a_server:
        yield made
        return
    path = tmp_path_factory.mktemp("s", numbered=True) / "s"
    with serving(made, path, "--workers", "2"):
        yield made


@pytest.fixture
def socket_path(tmp_path: Path) -> Path:
    """Where `server` listens."""
    return tmp_path / "s"


@pytest.fixture
def server(runtime: Runtime, socket_path: Path) -> Iterator[Server]:
    """A server with two workers on the node, which `runtime`'s plugins find."""
    with serving(runtime, socket_path, "--workers", "2") as running:
        yield running


@pytest.fixture
def go_runtime(go_bin_dir: Path, host: Netns) -> Runtime:
    """Runs Debian's Go plugins on the node."""
    return Runtime(go_bin_dir, host)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """For host-local's `dataDir`; does not exist yet."""
    return tmp_path / "networks"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    """A D-Bus system bus of this test's own; `runtime` does not know it, see `firewalld`."""
    ensure_installed()
    (tmp_path / "bus").mkdir()
    bus = Bus(tmp_path / "bus")
    yield bus
    bus.stop()


@pytest.fixture
def firewalld(host: Netns, runtime: Runtime, bus: Bus) -> Iterator[Firewalld]:
    """A real firewalld on the node, which `runtime`'s plugins find on `bus`."""
    runtime.env.update(bus.env)
    running = Firewalld(host, bus)
    yield running
    running.stop()
