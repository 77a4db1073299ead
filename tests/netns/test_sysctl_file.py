"""What plugins set on the node is in /run/sysctl.d, too (cni/sysctl_file.py)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime
from tests.harness.build import install_dist

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

NAME = "99-zz-cni.conf"
# A machine of its own, but for its network: mounts, processes, and /run, which "$0" becomes.
MACHINE = """
set -e
mount --make-rprivate /
mkdir -p "$0/netns"
mount --rbind /run/netns "$0/netns"
mount --rbind "$0" /run
exec "$@"
"""
ALONE = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")
BESIDE_OTHERS = ("unshare", "--mount")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What is /run/sysctl.d for `attach`, and does not exist yet."""
    return tmp_path / "run/sysctl.d"


def attach(
    runtime: Runtime,
    container: Netns,
    place: Path,
    subnets: tuple[str, ...] = ("10.66.0.0/24",),
    unshare: tuple[str, ...] = ALONE,
) -> str:
    """ADD of a ptp; what it writes to stderr."""
    ranges = [[{"subnet": each}] for each in subnets]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(place.parent.parent / "data")}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "ptp", "ipam": ipam}
    env = {
        **runtime.env,
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c" + "".join(filter(str.isalnum, "".join(subnets))),
        "CNI_NETNS": str(container.path),
        "CNI_IFNAME": f"eth{len(subnets)}" + subnets[0][:2].replace("fd", "6"),
        "CNI_PATH": str(runtime.bin_dir),
    }
    place.parent.mkdir(exist_ok=True)
    command = [*unshare, "sh", "-c", MACHINE, str(place.parent), str(runtime.bin_dir / "ptp")]
    done = runtime.host.exec(command, stdin=json.dumps(conf), env=env)
    return done.stderr


def settings(place: Path) -> list[str]:
    lines = (place / NAME).read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_forwarding_is_noted(runtime: Runtime, container: Netns, place: Path) -> None:
    """What sysctl(8) reads switches it on again; a later family comes in addition."""
    place.mkdir(parents=True)
    assert attach(runtime, container, place) == ""
    assert settings(place) == ["net/ipv4/ip_forward = 1"]
    assert (place / NAME).stat().st_mode & 0o777 == 0o644
    attach(runtime, container, place, ("fd66::/64",))
    assert settings(place) == ["net/ipv4/ip_forward = 1", "net/ipv6/conf/all/forwarding = 1"]
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        runtime.host.set_sysctl(name, 0)
    runtime.host.exec(["sysctl", "-p", str(place / NAME)])
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        assert runtime.host.sysctl(name) == "1"


def test_what_was_on_already_is_not_noted(runtime: Runtime, container: Netns, place: Path) -> None:
    runtime.host.set_sysctl("net/ipv4/ip_forward", 1)
    place.mkdir(parents=True)
    attach(runtime, container, place, ("10.66.0.0/24", "fd66::/64"))
    assert settings(place) == ["net/ipv6/conf/all/forwarding = 1"]


def test_systemd_reads_it(runtime: Runtime, container: Netns, place: Path) -> None:
    """The directory is made where systemd has started the machine."""
    (place.parent / "systemd/system").mkdir(parents=True)
    attach(runtime, container, place)
    assert settings(place) == ["net/ipv4/ip_forward = 1"]


def test_without_a_place(runtime: Runtime, container: Netns, place: Path) -> None:
    assert attach(runtime, container, place) == ""
    assert runtime.host.sysctl("net/ipv4/ip_forward") == "1"
    assert not place.exists()


def test_in_a_namespace_of_its_own(runtime: Runtime, container: Netns, place: Path) -> None:
    """`sysctl --system` sets what is of the machine's namespace, and this is another one."""
    place.mkdir(parents=True)
    assert attach(runtime, container, place, unshare=BESIDE_OTHERS) == ""
    assert runtime.host.sysctl("net/ipv4/ip_forward") == "1"
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_is_in_the_way_stays(
    runtime: Runtime, container: Netns, place: Path, what: str
) -> None:
    """The ADD succeeds, and says what may come of it."""
    place.mkdir(parents=True)
    if what == "file":
        (place / NAME).write_text("net.ipv4.ip_forward = 0\n")
    else:
        (place / NAME).mkdir()
    stderr = attach(runtime, container, place)
    assert "`sysctl --system` may undo net.ipv4.ip_forward = 1" in stderr
    assert what == "directory" or settings(place) == ["net.ipv4.ip_forward = 0"]


def uninstall(runtime: Runtime, place: Path, bin_dir: Path, *more: str) -> str:
    words = [str(bin_dir / "cni"), "uninstall", "--force", "--bin-dir", str(bin_dir), *more]
    command = [*ALONE, "sh", "-c", MACHINE, str(place.parent), *words]
    return runtime.host.exec(command, env=runtime.env).stdout


@pytest.mark.parametrize("ours", [True, False])
def test_uninstall_removes_it(
    host: Netns, container: Netns, place: Path, tmp_path: Path, ours: bool
) -> None:
    runtime = Runtime(install_dist(tmp_path / "bin"), host)
    place.mkdir(parents=True)
    attach(runtime, container, place)
    if not ours:
        (place / NAME).write_text("net.ipv4.ip_forward = 0\n")
    for more in (["--dry-run"], []):
        told = uninstall(runtime, place, runtime.bin_dir, *more)
        assert (f"/run/sysctl.d/{NAME}" in told) == ours
    left = sorted(each.name for each in place.iterdir())
    assert left == ([] if ours else [".99-zz-cni.lock", NAME])


def test_another_installation_keeps_it(
    host: Netns, container: Netns, place: Path, tmp_path: Path
) -> None:
    """It goes with the last directory whose plugins have written to it, and with no other."""
    one, two, idle = (Runtime(install_dist(tmp_path / name), host) for name in ("a", "b", "c"))
    place.mkdir(parents=True)
    attach(one, container, place)
    host.set_sysctl("net/ipv4/ip_forward", 0)
    attach(two, container, place, ("192.168.66.0/24",))
    for runtime in (idle, one):
        assert NAME not in uninstall(runtime, place, runtime.bin_dir)
        assert settings(place) == ["net/ipv4/ip_forward = 1"]
    assert NAME in uninstall(two, place, two.bin_dir)
    assert list(place.iterdir()) == []
