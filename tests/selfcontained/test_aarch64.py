"""The file for aarch64 under qemu-user, one program at a time: `make test-aarch64`."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from cni import dispatch
from tests.harness.build import ROOT
from tests.harness.certificates import Authority
from tests.harness.http_faults import FaultyServer, answer, saying
from tests.harness.netns import PATH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.netns import Netns

QEMU = "qemu-aarch64-static"
FILE = ROOT / "dist/cni-linux-aarch64"

pytestmark = pytest.mark.skipif(
    os.uname().machine == "aarch64" or not FILE.exists() or shutil.which(QEMU) is None,
    reason=f"needs {FILE.name} and {QEMU}: make test-aarch64",
)


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in ("cni", *dispatch.TABLE):
        (directory / name).symlink_to(FILE)
    return directory


def run(program: Path, *words: str, stdin: str = "", **env: str) -> str:
    done = subprocess.run(
        [QEMU, program, *words],
        env={"PATH": PATH, "CNI_SERVER": "off", **env},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done
    return done.stdout


def verb(bin_dir: Path, command: str, ipam: dict[str, Any], **more: Any) -> str:
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam, **more}
    env = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    env |= {"CNI_NETNS": "/nonexistent", "CNI_PATH": str(bin_dir)}
    return run(bin_dir / ipam["type"], stdin=json.dumps(conf), **env)


def test_version(bin_dir: Path) -> None:
    answer = json.loads(run(bin_dir / "bridge", CNI_COMMAND="VERSION"))
    assert "1.1.0" in answer["supportedVersions"]


def test_host_local(bin_dir: Path, tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.1.2.0/24"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "store"), "ranges": ranges}
    result = json.loads(verb(bin_dir, "ADD", ipam))
    assert result["ips"][0]["address"] == "10.1.2.2/24"
    verb(bin_dir, "CHECK", ipam, prevResult=result)
    verb(bin_dir, "DEL", ipam)
    assert not (tmp_path / "store/net/10.1.2.2").exists()


def test_static(bin_dir: Path) -> None:
    ipam = {"type": "static", "addresses": [{"address": "10.1.2.9/24"}]}
    assert json.loads(verb(bin_dir, "ADD", ipam))["ips"] == [{"address": "10.1.2.9/24"}]


def test_the_command_line(bin_dir: Path) -> None:
    assert "Usage: cni" in run(bin_dir / "cni", "--help")
    assert "aarch64" in run(bin_dir / "cni", "--version")
    assert "host-local" in run(bin_dir / "cni", "plugins")


def test_tls(bin_dir: Path, host: Netns, tmp_path: Path) -> None:
    """A server whose certificate is accepted is asked, and is no etcd; another is not asked."""
    authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    pair = authority.issue("server", "IP:127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    server = FaultyServer(host, saying(answer(b"{}")), context=context)

    def problem(trusted: Authority) -> str:
        store = {"type": "etcd", "endpoints": [server.url], "stateDir": "", "timeout": 60}
        ipam = {"type": "cluster", "ranges": [[{"subnet": "10.1.2.0/24"}]], "nodeName": "n1"}
        ipam |= {"store": {**store, "caFile": trusted.cert}, "dataDir": str(tmp_path / "data")}
        conf = {"cniVersion": "1.1.0", "name": "net", "type": "cluster", "ipam": ipam}
        env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
        env |= {"CNI_NETNS": "/nonexistent", "CNI_PATH": str(bin_dir)}
        done = host.exec(
            [QEMU, str(bin_dir / "cluster")],
            env={"PATH": PATH, "CNI_SERVER": "off", **env},
            stdin=json.dumps(conf),
            check=False,
        )
        return str(json.loads(done.stdout))

    try:
        assert "no answer of etcd" in problem(authority)
        assert f"not signed by store.caFile {other.cert}" in problem(other)
        assert len(server.requests) >= 1
    finally:
        server.close()
