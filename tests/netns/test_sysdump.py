"""`cni sysdump` on a node with containers: what is in the file, what is not, what goes wrong."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Netns
from tests.harness.command_line import Node, Pod
from tests.harness.wait import wait_until

PORTS = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
SECRET = "hunter2-Zk9"
HOST = "node-7"


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path) -> Node:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    return Node(host, bin_dir, tmp_path)


@pytest.fixture
def pod(node: Node, container: Netns) -> Pod:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "backend": "nftables"}
    conf = node.network("shop", "10.81.7.0/24", portmap, password=SECRET)
    return node.start(conf, container, "acme-prod/web-7f9c", capabilities=PORTS)


def printed(node: Node, argv: list[str], env: dict[str, str] | None = None) -> bytes:
    child = node.host.popen(
        argv,
        env={**node.env, **(env or {})},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = child.communicate(timeout=900)
    assert child.returncode == 0, err
    return bytes(out)


def dump(node: Node, *args: str, env: dict[str, str] | None = None) -> dict[str, bytes]:
    return unpacked(printed(node, node.argv("sysdump", "-o", "-", *args), env))


def unpacked(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        read = {each.name: archive.extractfile(each) for each in archive}
        assert all(file is not None for file in read.values())
        return {name.removeprefix("cni-sysdump/"): file.read() for name, file in read.items()}  # type: ignore[union-attr]


def manifest(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {each["file"]: each for each in json.loads(files["manifest.json"])["files"]}


def test_what_is_in_it(node: Node, pod: Pod) -> None:
    files = dump(node)
    host_end = node.json("inspect", pod.cid)
    assert host_end  # the attachment is there
    # what the kernel has, by our own readers and by the tools
    for name in ("node/network/addresses", "tools/ip-address"):
        assert b"10.81.7.1/24" in files[name]
    inside = next(data for name, data in files.items() if name.startswith("attachments/0001"))
    assert f"eth0: {pod.address}/24".encode() in inside
    assert b"10.81.7.0/24 dev eth0" in inside
    for name in ("node/network/nftables", "tools/nft-ruleset"):
        assert re.search(rb"8080\b.*10\.81\.7\.2 \. 80\b", files[name])
    # state and configurations
    intent = next(name for name in files if name.startswith("state/run-cni/intent/"))
    assert json.loads(files[intent])["env"]["CNI_CONTAINERID"] == pod.cid
    held = next(data for name, data in files.items() if name.endswith("/reservations"))
    assert f"{pod.address}\t{pod.cid}".encode() in held
    assert "configurations/10-shop.conflist" in files
    cached = json.loads(files[f"state/results/shop-{pod.cid}-eth0"])
    assert cached["config"]["name"] == "shop"
    # what the commands say
    assert json.loads(files["commands/ps.json"])[0]["pod"] == "acme-prod/web-7f9c"
    assert json.loads(files["commands/ports.json"])[0]["state"] == "published"
    assert json.loads(files["commands/doctor.json"])["findings"]
    assert "ready" in files["commands/status-shop.json"].decode()
    assert json.loads(files["versions.json"])["version"]
    sysctls = files["node/sysctls"].decode()
    assert "net/ipv4/ip_forward = 1\n" in sysctls
    listed = manifest(files)
    assert set(listed) >= set(files) - {"manifest.json"}
    assert all({"how", "seconds", "bytes"} <= each.keys() for each in listed.values())
    ours = [name for name in listed if name.startswith(("commands/", "state/", "node/network"))]
    failed = {name: str(listed[name]["error"]) for name in ours if "error" in listed[name]}
    assert all(
        text in ("not there", "exit code 1") or "binary" in text for text in failed.values()
    ), failed


def test_secrets_are_masked_unless_told_otherwise(node: Node, pod: Pod) -> None:
    env = {"DB_PASSWORD": SECRET, "CNI_ARGS": f"IgnoreUnknown=1;LOGIN={SECRET}"}
    files = dump(node, env=env)
    assert [name for name, data in files.items() if SECRET.encode() in data] == []
    assert pod.address.encode() in files["commands/ps.json"]
    shown = dump(node, "--mask", "none", env=env)
    assert len([name for name, data in shown.items() if SECRET.encode() in data]) >= 2


def test_addresses_and_names_are_replaced_and_can_still_be_reasoned_with(
    node: Node, pod: Pod
) -> None:
    script = f'hostname {HOST}.example.com; exec "$@"'
    argv = node.argv("sysdump", "-o", "-", "--mask", "all")
    files = unpacked(printed(node, ["unshare", "--uts", "sh", "-c", script, "sh", *argv]))
    names = [HOST, "web-7f9c", "acme-prod", "example.com", pod.address, "10.81.7.", SECRET]
    names += [str(each["mac"]) for each in pod.result["interfaces"] if each.get("mac")]
    for name, data in files.items():
        text = data.decode(errors="replace")
        leaks = [each for each in names if each in text or each in name]
        assert not leaks, name
    attached = json.loads(files["commands/ps.json"])[0]
    address = attached["addresses"][0]
    assert attached["pod"].startswith("namespace-")
    gateway = next(
        line.split()[1]
        for line in files["node/network/addresses"].decode().splitlines()
        if line.startswith("br-shop: ") and "." in line.split()[1]
    )
    subnet = ip_network(address, strict=False)
    assert ip_address(gateway.partition("/")[0]) in subnet
    assert address.partition("/")[0] in files["node/network/nftables"].decode()
    assert address.partition("/")[0] in files["tools/nft-ruleset"].decode()
    conf = json.loads(files["configurations/10-shop.conflist"])
    assert conf["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] == str(subnet)
    assert json.loads(files["manifest.json"])["mask"] == "all"


def test_a_tool_that_hangs_costs_its_part(node: Node, pod: Pod, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("nft", "conntrack"):
        (tools / name).write_text("#!/bin/sh\nsleep 1000\n")
        (tools / name).chmod(0o755)
    (tools / "tc").write_text("#!/bin/sh\nexec cat /dev/zero\n")
    (tools / "tc").chmod(0o755)
    started = time.monotonic()
    files = dump(node, "--timeout", "2", env={"PATH": f"{tools}:{node.env['PATH']}"})
    took = time.monotonic() - started
    listed = manifest(files)
    assert took < 600  # and not the thousand seconds that the tools take
    for name in ("nft", "conntrack", "cni rules", "cni ports"):
        assert listed[name]["error"] == "given up: it took too long"
    assert re.match("cut|given up", listed.get("tools/tc-qdisc", listed.get("tc", {}))["error"])
    assert b"10.81.7.1/24" in files["tools/ip-address"]
    assert b"10.81.7.2 . 80" in files["node/network/nftables"]
    left = subprocess.run(["pgrep", "-f", f"{tools}/"], capture_output=True, text=True)
    assert left.stdout == ""


def test_odd_files_cost_nothing_but_themselves(node: Node, pod: Pod, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not for others")
    state = Path(node.env["CNI_STATE_DIR"])
    os.mkfifo(state / "intent" / "fifo")
    (state / "intent" / "link").symlink_to(outside)
    (state / "intent" / "torn.bridge").write_text('{"plugin": "bridge", "env": {"CNI_')
    (state / "there").symlink_to(tmp_path)
    os.mkfifo(node.net_d / "99-fifo.conflist")
    (node.net_d / "98-link.conflist").symlink_to(outside)
    os.mkfifo(node.cache / "results" / "shop-x-eth0")
    files = dump(node)
    assert [name for name, data in files.items() if b"not for others" in data] == []
    assert files["state/run-cni/intent/torn.bridge"].startswith(b'{"plugin"')
    assert b"fifo" in files["state/run-cni.listing"]
    assert json.loads(files["commands/ps.json"])[0]["containerID"] == pod.cid


def test_not_root(node: Node, pod: Pod) -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for parent in (node.bin_dir, *node.bin_dir.parents):
        if parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    files = unpacked(printed(node, [*command, *node.argv("sysdump", "-o", "-")]))
    said = json.loads(files["manifest.json"])
    assert said["root"] is False
    assert "not root" in said["missing"][0]
    assert b"10.81.7.1/24" in files["node/network/addresses"]
    assert json.loads(files["commands/rules.json"])["msg"] == "only root can read the packet filter"
    assert pod.cid.encode() not in files.get("attachments/overview.json", b"")


def test_the_file(node: Node, pod: Pod, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    said = node.json("sysdump", "-o", str(path))
    assert said["file"] == str(path)
    assert said["bytes"] == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    again = node.json("sysdump", "-o", str(path), code=5)
    assert again["msg"] == f"{path} is there already"
    node.ok("sysdump", "-o", str(path), "--force", "-o", "name")
    wrong = node.json("sysdump", "-o", "x.txt", code=2)
    assert "FILE.tar.gz" in wrong["msg"]
    assert node.json("sysdump", "-o", str(tmp_path / "no" / "x.tgz"), code=1)["msg"].endswith(
        "no such file or directory"
    )


@pytest.mark.parametrize("options", ["size=8k", "ro"])
def test_a_disk_that_is_full_or_read_only(
    node: Node, pod: Pod, tmp_path: Path, options: str
) -> None:
    where = tmp_path / "disk"
    where.mkdir()
    script = f'mount -t tmpfs -o {options} none {where} && "$@"; echo "code $?"; ls -A {where}'
    argv = node.argv("sysdump", "-o", str(where / "x.tar.gz"))
    done = node.host.exec(
        ["unshare", "--mount", "sh", "-c", script, "sh", *argv], env=node.env, cwd="/"
    )
    assert done.stdout == "code 1\n", done.stdout + done.stderr
    reason = "read-only file system" if options == "ro" else "no space left on device"
    assert f"cannot write {where}/x.tar.gz: {reason}" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_half_file(
    node: Node, pod: Pod, tmp_path: Path, number: signal.Signals
) -> None:
    out, tools = tmp_path / "out", tmp_path / "tools"
    out.mkdir()
    tools.mkdir()
    waits = tools / "nft"
    waits.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nsleep 1000\n")
    waits.chmod(0o755)
    child = node.host.popen(
        node.argv("sysdump", "-o", str(out / "x.tar.gz"), "--timeout", "600"),
        env={**node.env, "PATH": f"{tools}:{node.env['PATH']}"},
    )
    wait_until((tmp_path / "begun").exists, "the tool runs")
    child.send_signal(number)
    child.wait(120)
    assert child.returncode
    assert list(out.iterdir()) == []


def test_a_node_without_tools_and_proc(node: Node, pod: Pod, tmp_path: Path) -> None:
    """As in a small image: no program but the interpreter is to be found."""
    empty = tmp_path / "empty"
    empty.mkdir()
    path = tmp_path / "x.tar.gz"
    tools = (
        "ip",
        "nft",
        "iptables-save",
        "ip6tables-save",
        "iptables",
        "tc",
        "bridge",
        "conntrack",
    )
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    found = subprocess.run(["which", "-a", *tools], capture_output=True, text=True).stdout.split()
    script = "".join(f"mount --bind {nothing} {os.path.realpath(each)}\n" for each in found)
    argv = node.argv("sysdump", "-o", str(path))
    node.host.exec(
        ["unshare", "--mount", "sh", "-c", f'{script} exec "$@"', "sh", *argv],
        env=node.env,
        cwd="/",
    )
    files = unpacked(path.read_bytes())
    assert b"10.81.7.1/24" in files["node/network/addresses"]
    assert b"10.81.7.2 . 80" in files["node/network/nftables"]
    assert manifest(files)["tools/ip-link"]["error"] == "not there"


def test_on_a_terminal(node: Node, pod: Pod, tmp_path: Path) -> None:
    code, shown = node.person("sysdump", "-o", str(tmp_path / "x.tar.gz"))
    assert code == 0
    assert "collecting" in shown
    assert re.search(r"x\.tar\.gz: \d+ files, \d+\.\d [KM]iB", " ".join(shown.split()))
    code, shown = node.person("sysdump", "-o", "-")
    assert code == 2
    assert "stdout is a terminal" in shown


@pytest.mark.slow
def test_a_thousand_attachments(node: Node, pod: Pod) -> None:
    results = node.cache / "results"
    record = json.loads(next(results.iterdir()).read_text())
    networks = node.data_dir / "shop"
    for number in range(1000):
        cid = f"{number:064x}"
        text = json.dumps({**record, "containerId": cid})
        (results / f"shop-{cid}-eth0").write_text(text)
        (networks / f"10.82.{number // 250}.{number % 250 + 1}").write_text(f"{cid}\r\neth0")
    files = dump(node)
    overview = json.loads(files["attachments/overview.json"])
    assert len(overview) == 1001
    reservations = next(data for name, data in files.items() if name.endswith("/reservations"))
    assert len(reservations.splitlines()) == 1001
    assert sum(name.startswith("state/results/") for name in files) == 1001
