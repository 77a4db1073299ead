"""Plugins that lack a capability say what was not permitted, and which capability is missing."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, requires_kernel, unchanged

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.each_kernel

CONFS: dict[str, dict[str, Any]] = {
    "bridge": {"bridge": "br0"},
    "host-device": {"device": "lo"},
    "ptp": {},
    "tap": {},
}


def confined(runtime: Runtime, directory: Path, *capabilities: str) -> Runtime:
    """A runtime whose plugins run as root without these capabilities."""
    bounding = ",".join(f"-{each}" for each in capabilities)
    for plugin in CONFS:
        program = directory / plugin
        real = shlex.quote(str(runtime.bin_dir / plugin))
        program.write_text(f"#!/bin/sh\nexec setpriv --bounding-set={bounding} {real}\n")
        program.chmod(0o755)
    return Runtime(directory, runtime.host, cni_path=str(runtime.bin_dir), env=runtime.env)


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
@pytest.mark.parametrize("plugin", CONFS)
@requires_kernel("tap")
def test_without_sys_admin(
    runtime: Runtime, container: Netns, tmp_path: Path, plugin: str, verb: str
) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", **CONFS[plugin]}
    # for DEL to have something to do
    container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    with unchanged(runtime.host, container):
        reply = confined(runtime, tmp_path, "sys_admin").call(verb, plugin, conf, container)
        error = reply.failed(999, "this process lacks CAP_SYS_ADMIN: the plugins have to run as")
    assert "cannot enter the network namespace: operation not permitted" in error["msg"]
    assert "Errno" not in reply.stdout + reply.stderr


def test_without_any(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0"}
    reply = confined(runtime, tmp_path, "sys_admin", "net_admin").add("bridge", conf, container)
    reply.failed(999, "operation not permitted", "lacks CAP_NET_ADMIN and CAP_SYS_ADMIN: ")


def test_without_net_admin(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0"}
    reply = confined(runtime, tmp_path, "net_admin").add("bridge", conf, container)
    text = 'failed to create bridge "br0": operation not permitted'
    assert reply.failed(999, "this process lacks CAP_NET_ADMIN: ")["msg"] == text


def test_with_all_nothing_is_said_of_capabilities(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """What was not permitted had another reason, which another program knows."""
    conf = {"cniVersion": "1.1.0", "name": "net", "bridge": "br0", "ipam": {"type": "refusing"}}
    refusing = tmp_path / "refusing"
    refusing.write_text(
        '#!/bin/sh\necho \'{"code": 999, "msg": "operation not permitted"}\'\nexit 1\n'
    )
    refusing.chmod(0o755)
    runtime.cni_path = f"{runtime.bin_dir}:{tmp_path}"
    error = runtime.add("bridge", conf, container).failed(999, "operation not permitted")
    assert "CAP_" not in error.get("details", "")
