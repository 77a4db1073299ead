"""The request log, by exec and through a server: docs/observability.md."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.record import PATHS, answering, journal_at, journal_entry, lines, recorded
from tests.harness.server import serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.own_server

CONF = {"cniVersion": "1.1.0", "name": "mynet"}
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture(params=PATHS)
def via(request: pytest.FixtureRequest, runtime: Runtime, tmp_path: Path) -> Iterator[str]:
    with answering(request.param, runtime, tmp_path):
        yield request.param


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "requests.log"


def last(path: Path, count: int) -> dict[str, Any]:
    """The last line, when there are so many: a worker writes it when the client has its reply."""
    wait_until(lambda: len(lines(path)) >= count, f"{count} lines")
    assert len(lines(path)) == count
    return lines(path)[-1]


def test_each_verb_has_a_line(via: str, runtime: Runtime, container: Netns, log_file: Path) -> None:
    env = recorded(log_file)
    for number, verb in enumerate(("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"), 1):
        conf = {**CONF, "cni.dev/valid-attachments": []} if verb == "GC" else CONF
        prev = {"cniVersion": "1.1.0", "interfaces": []} if verb == "CHECK" else None
        reply = runtime.call(verb, "loopback", conf, container, prev_result=prev, env=env)
        assert reply.rc == 0, str(reply)
        line = last(log_file, number)
        assert line["ms"] > 0
        assert len(line["build"]) == 12
        assert line["time"] < "9"
        told = {key: line.get(key) for key in ("plugin", "verb", "code", "via", "network")}
        network = None if verb == "VERSION" else "mynet"
        assert told == {
            "plugin": "loopback",
            "verb": verb,
            "code": 0,
            "via": via,
            "network": network,
        }
        if verb in ("ADD", "CHECK", "DEL"):
            named = (line["containerID"], line["ifname"], line["netns"])
            assert named == ("c1", "eth0", container.path)
        else:
            assert not {"containerID", "ifname", "netns"} & set(line)


@pytest.mark.parametrize(
    ("verb", "conf", "env"),
    [
        ("ADD", "{ torn", {}),
        ("ADD", "[]", {}),
        ("ADD", '{"cniVersion": "1.1.0"}', {}),
        ("ADD", json.dumps({**CONF, "cniVersion": "9.9.9"}), {}),
        ("ADD", json.dumps(CONF), {"CNI_NETNS": "/no/such/netns"}),
        ("ADD", json.dumps(CONF), {"CNI_NETNS": None}),
        ("ADD", json.dumps(CONF), {"CNI_CONTAINERID": "../etc\n\x1b[31m"}),
        ("ADD", json.dumps(CONF), {"CNI_NETNS": "/x\n\x1b\udcff" * 9000}),
        ("add", json.dumps(CONF), {}),
        ("CHECK", json.dumps(CONF), {"CNI_NETNS": "/no/such/netns"}),
        ("DEL", json.dumps({**CONF, "name": "no/name"}), {}),
    ],
)
def test_an_error_has_the_line_that_the_runtime_sees(
    verb: str,
    conf: str,
    env: dict[str, str | None],
    via: str,
    runtime: Runtime,
    container: Netns,
    log_file: Path,
) -> None:
    reply = runtime.call(verb, "loopback", conf, container, env=recorded(log_file, "errors", **env))
    line = last(log_file, 1)
    error = reply.error
    assert line["code"] == error["code"]
    assert line["msg"] == error["msg"][:8192] + ("…" if len(error["msg"]) > 8192 else "")
    assert line["via"] == via
    assert log_file.stat().st_size < 32768


def test_errors_only(via: str, runtime: Runtime, container: Netns, log_file: Path) -> None:
    env = recorded(log_file, "errors")
    runtime.add("loopback", CONF, container, env=env).succeeded()
    runtime.add("loopback", "{", container, env=env).failed()
    runtime.delete("loopback", CONF, container, env=env).succeeded()
    runtime.call("VERSION", "loopback", "", env=recorded(log_file)).succeeded()  # the last one
    last(log_file, 2)
    assert [line["code"] for line in lines(log_file)] == [6, 0]


def test_off(via: str, runtime: Runtime, container: Netns, log_file: Path) -> None:
    runtime.add("loopback", "{", container, env=recorded(log_file, "off")).failed()
    runtime.add("loopback", CONF, container, env=recorded(log_file)).succeeded()
    assert last(log_file, 1)["code"] == 0


def test_a_delegate_of_ours_has_no_line_of_its_own(
    via: str, runtime: Runtime, container: Netns, log_file: Path, data_dir: Path
) -> None:
    ipam = {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": str(data_dir)}
    env = recorded(log_file, TRACEPARENT=f"00-{TRACE}-b7ad6b7169203331-00")
    with runtime.attached("bridge", {**CONF, "ipam": ipam}, container, env=env):
        pass
    assert last(log_file, 2)["traceID"] == TRACE
    assert [(line["plugin"], line["verb"]) for line in lines(log_file)] == [
        ("bridge", "ADD"),
        ("bridge", "DEL"),
    ]


@pytest.mark.parametrize("kind", ["missing/log", "fifo", "link", "directory", "/dev/full", "log"])
def test_a_log_that_cannot_be_written_fails_nothing(
    kind: str, via: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """It is missing, or something that a writer could wait for."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    env = recorded(tmp_path / kind)
    if kind == "log":
        env["CNI_LOG_FILE"] = "log"  # no absolute path: it goes to the journal
    before = sorted(os.listdir(tmp_path))
    runtime.add("loopback", CONF, container, env=env).succeeded()
    runtime.add("loopback", "{", container, env=env).failed(6)
    runtime.delete("loopback", CONF, container, env=env).succeeded()
    assert sorted(os.listdir(tmp_path)) == before


def is_after(line: dict[str, Any]) -> bool:
    return line["containerID"] == "after" and line["code"] == 0


def test_a_full_disk_fails_nothing(
    via: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "disk", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(4096))
        for _ in range(3):
            runtime.add("loopback", CONF, container, env=recorded(disk / "log")).succeeded()
        assert (disk / "log").read_bytes() == b""
        (disk / "filler").unlink()
        env = recorded(disk / "log")
        runtime.add("loopback", CONF, container, env=env, container_id="after").succeeded()
        # the worker may have come to the line of the one before when the disk had room again
        wait_until(lambda: [line for line in lines(disk / "log") if is_after(line)], "its line")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_requests_at_the_same_time_have_whole_lines(
    via: str, runtime: Runtime, log_file: Path
) -> None:
    count = 64
    env = recorded(log_file)
    children = []
    for number in range(count):
        children.append(
            runtime.start("DEL", "loopback", CONF, env=env, container_id=f"c{number}-{'y' * 700}")
        )
    for child in children:
        child.communicate(timeout=120)
    last(log_file, count)
    found = {line["containerID"].partition("-")[0] for line in lines(log_file)}
    assert found == {f"c{number}" for number in range(count)}


def test_a_rotated_file_is_left(
    via: str, runtime: Runtime, container: Netns, log_file: Path
) -> None:
    def write() -> bool:
        runtime.add("loopback", CONF, container, env=recorded(log_file)).succeeded()
        return log_file.exists()

    write()
    last(log_file, 1)
    log_file.rename(f"{log_file}.1")
    wait_until(write, "lines are in the new file")
    assert lines(log_file)[-1]["code"] == 0


def test_the_configuration_names_the_file(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """By exec and through a server, in /var/log/cni, and nowhere else."""
    mounts = f"mkdir -p {tmp_path}/logs; mount --bind {tmp_path}/logs /var/log"
    path = tmp_path / "logs/cni/requests.log"
    conf = {**CONF, "logLevel": "all", "logFile": "/var/log/cni/requests.log"}
    elsewhere = {**CONF, "LOGLEVEL": "all", "logFile": str(tmp_path / "elsewhere.log")}
    for number, via in enumerate(PATHS, 1):
        with ExitStack() as stack:
            if via == "served":
                stack.enter_context(serving(runtime, tmp_path / "s", "--any-mounts", mounts=mounts))
            for each in (elsewhere, conf):
                add_in_mounts(runtime, each, container, mounts)
            assert last(path, number)["via"] == via
    assert not (tmp_path / "elsewhere.log").exists()


def add_in_mounts(
    runtime: Runtime, conf: dict[str, Any], container: Netns, mounts: str
) -> subprocess.CompletedProcess[bytes]:
    """ADD of loopback in a mount namespace that a shell command prepares."""
    done: subprocess.CompletedProcess[bytes] = runtime.host.run(
        subprocess.run,
        ["unshare", "-m", "sh", "-ec", f'{mounts}; exec "$0"', runtime.bin_dir / "loopback"],
        input=json.dumps({"type": "loopback", **conf}).encode(),
        env=runtime.environment("ADD", container),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0 or b'"code"' in done.stdout, done
    return done


def test_the_node_has_settings_of_its_own(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """For both ways; a server notices a change. A request's environment goes before them."""
    conf, log = tmp_path / "record.json", tmp_path / "node.log"
    runtime.env["CNI_RECORD_CONF"] = str(conf)
    conf.write_text(json.dumps({"logLevel": "all", "logFile": str(log)}))
    with answering("exec", runtime, tmp_path):
        runtime.add("loopback", CONF, container).succeeded()
        assert last(log, 1)["via"] == "exec"
        runtime.add("loopback", CONF, container, env={"CNI_LOG_LEVEL": "off"}).succeeded()
    with serving(runtime, tmp_path / "s", prefix=["env", f"CNI_RECORD_CONF={conf}"]):
        runtime.add("loopback", CONF, container).succeeded()
        assert last(log, 2)["via"] == "served"
        other = tmp_path / "other.log"
        conf.write_text(json.dumps({"logLevel": "all", "logFile": str(other)}))

        def write() -> bool:
            runtime.add("loopback", CONF, container).succeeded()
            return other.exists() and bool(lines(other))  # made, and then written to

        wait_until(write, "the server has read the file again")
        assert lines(other)[-1]["via"] == "served"


def test_errors_are_in_the_journal(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    """Without any setting; a request that succeeds leaves nothing there."""
    (tmp_path / "j").mkdir()
    mounts = f"mkdir -p /run/systemd/journal; mount --bind {tmp_path}/j /run/systemd/journal"
    wrong = {**CONF, "cniVersion": "9.9.9"}
    with journal_at(tmp_path / "j" / "socket") as journal:
        for via in PATHS:
            with ExitStack() as stack:
                if via == "served":
                    stack.enter_context(
                        serving(runtime, tmp_path / "s", "--any-mounts", mounts=mounts)
                    )
                for conf in (CONF, wrong):
                    add_in_mounts(runtime, conf, container, mounts)
                entry = journal_entry(journal.recv(65536))
                assert entry["CNI_VIA"] == via
                assert entry["MESSAGE"].startswith("loopback ADD mynet failed with 1: incompatible")
                assert entry["PRIORITY"] == "3"


def test_a_worker_that_is_killed_tears_no_line(
    runtime: Runtime, container: Netns, tmp_path: Path, log_file: Path
) -> None:
    """Its own request may be without a line: the client has the reply before that is written."""
    with serving(runtime, tmp_path / "s", "--workers", "4") as server:
        children = [
            runtime.start("DEL", "loopback", CONF, env=recorded(log_file), container_id=f"c{n}")
            for n in range(24)
        ]
        for pid in server.workers()[:2]:
            os.kill(pid, 9)
        for child in children:
            child.communicate(timeout=120)
        wait_until(lambda: len(lines(log_file)) >= len(children) - 2, "the others have a line")
