"""Plugins under other names, and as copies, with and without a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, ping
from tests.harness.build import file_under_test
from tests.harness.server import Watch, serving

if TYPE_CHECKING:
    from pathlib import Path

NET = "net1"
PREFIX = "buildkit-cni-"
CHAIN = ("bridge", "host-local", "firewall", "portmap", "loopback")


def as_links(installed: Path, target: Path) -> None:
    for name in CHAIN:
        (target / f"{PREFIX}{name}").symlink_to(installed / name)


def as_copies(installed: Path, target: Path) -> None:
    for name in CHAIN:
        shutil.copy(installed / name, target / f"{PREFIX}{name}")
    shutil.copy(installed / "cni", target)  # which the small files need


def as_copies_of_the_built_file(_installed: Path, target: Path) -> None:
    for name in CHAIN:
        shutil.copy(file_under_test(), target / f"{PREFIX}{name}")


def as_hard_links(_installed: Path, target: Path) -> None:
    first = shutil.copy(file_under_test(), target / f"{PREFIX}{CHAIN[0]}")
    for name in CHAIN[1:]:
        os.link(first, target / f"{PREFIX}{name}")


WAYS = (as_links, as_copies, as_copies_of_the_built_file, as_hard_links)


@pytest.fixture
def installed(bin_dir: Path) -> Path:
    """The plugins under test: copies speak to a server of the same build only."""
    return bin_dir


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def directory(request: pytest.FixtureRequest, installed: Path, tmp_path: Path) -> Path:
    """A directory with the plugins as BuildKit wants them, and nothing else."""
    target = tmp_path / "bin"
    target.mkdir()
    request.param(installed, target)
    return target


@pytest.fixture
def renamed(directory: Path, host: Netns) -> Runtime:
    return Runtime(directory, host, env={"CNI_SERVER": "off"})


def bridge(data_dir: Path, **keys: Any) -> dict[str, Any]:
    ipam = {
        "type": f"{PREFIX}host-local",
        "subnet": "10.41.0.0/24",
        "dataDir": str(data_dir),
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {"cniVersion": "1.1.0", "name": NET, "isGateway": True, "ipam": ipam, **keys}


def life(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    """ADD, packets, CHECK, DEL; afterwards the address is free."""
    conf, plugin = bridge(data_dir, ipMasq=True), f"{PREFIX}bridge"
    result = runtime.add(plugin, conf, container).result
    assert result["ips"][0]["address"] == "10.41.0.2/24"
    ping(container, "10.41.0.1")
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    runtime.delete(plugin, conf, container, prev_result=result).succeeded()
    assert not list((data_dir / NET).glob("10.*"))


def test_by_exec(renamed: Runtime, container: Netns, data_dir: Path) -> None:
    life(renamed, container, data_dir)


def test_through_a_server(
    runtime: Runtime, renamed: Runtime, container: Netns, data_dir: Path, tmp_path: Path
) -> None:
    """The delegate runs in the worker: with one worker, another request would have to wait."""
    with serving(runtime, tmp_path / "s", "--workers", "1") as server:
        renamed.env.pop("CNI_SERVER")
        renamed.env["CNI_SERVER_SOCKET"] = str(server.socket)
        with Watch(server) as watch:
            life(renamed, container, data_dir)
        assert watch.handled == 3


def test_a_copy_of_another_build_is_a_program_of_its_own(
    directory: Path, renamed: Runtime, container: Netns, data_dir: Path
) -> None:
    """A delegate that is not this very build runs as a child, as any other plugin."""
    path = directory / f"{PREFIX}host-local"
    path.unlink()
    path.write_text(
        '#!/bin/sh\necho \'{"cniVersion":"1.1.0","ips":[{"address":"10.9.9.9/24"}]}\'\n'
    )
    path.chmod(0o755)
    result = renamed.add(f"{PREFIX}bridge", bridge(data_dir), container).result
    assert result["ips"][0]["address"] == "10.9.9.9/24"
    renamed.delete(f"{PREFIX}bridge", bridge(data_dir), container).succeeded()


def test_a_delegate_is_recognised_by_its_last_bytes(
    runtime: Runtime, container: Netns, data_dir: Path, tmp_path: Path
) -> None:
    """To read the plugin's file, and our own, took a tenth of a bridge's ADD."""
    log = tmp_path / "log"
    strace = ["strace", "-f", "-qq", "-yy", "-s", "0", "-e", "trace=read,pread64", "-o", str(log)]
    conf = bridge(data_dir, type="bridge")
    conf["ipam"]["type"] = "host-local"
    done = runtime.host.run(
        subprocess.run,
        [*strace, str(runtime.bin_dir / "bridge")],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=runtime.environment("ADD", container, env={"CNI_SERVER": "off"}),
        timeout=120,
    )
    assert done.returncode == 0, done
    of_plugins = re.compile(rf"(?:read|pread64)\(\d+<{runtime.bin_dir}/(\w[^>]*)>.* = (\d+)")
    found = [(name, int(size)) for name, size in of_plugins.findall(log.read_text())]
    # the self-contained file is read to start
    found = [(name, size) for name, size in found if name != "cni"]
    assert sorted(found) == [("bridge", 24), ("host-local", 24)]
    runtime.delete("bridge", conf, container).succeeded()
