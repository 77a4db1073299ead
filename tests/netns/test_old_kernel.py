"""Every verb works where system calls that are newer than Linux 4.18 are missing or refused.

An older kernel answers ENOSYS; a container's seccomp profile may answer EPERM instead.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import addresses, iptables_save, links

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

# What glibc, Python or we might call; strace has to know the name.
NEWER = (
    "clone3,close_range,openat2,faccessat2,pidfd_open,pidfd_getfd,pidfd_send_signal,process_madvise,"
    "epoll_pwait2,mount_setattr,fsopen,open_tree,move_mount,landlock_create_ruleset,statx,rseq"
)


# What ends a process, or has it end with another.
ENDING = ("kill", "tgkill", "prctl", "close_range", "kill,tgkill,prctl,close_range")


def run(
    runtime: Runtime,
    verb: str,
    conf: dict[str, Any],
    ns: Netns,
    error: str,
    log: Path,
    calls: str = NEWER,
) -> str:
    """One verb of bridge without these calls: what it printed; the test fails if it failed."""
    named = ",".join(f"?{call}" for call in calls.split(","))
    done = runtime.host.run(
        subprocess.run,
        [
            *("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={named}"),
            *("-e", f"inject={named}:error={error}", str(runtime.bin_dir / "bridge")),
        ],
        input=json.dumps(conf),
        text=True,
        capture_output=True,
        env=runtime.environment(verb, ns, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=60,
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    return str(done.stdout)


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_bridge(
    error: str, backend: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    ranges = [[{"subnet": "10.20.0.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path / "leases")}
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam}
    conf |= {"bridge": "br0", "isGateway": True, "ipMasq": True, "ipMasqBackend": backend}
    log = tmp_path / "trace"
    conf["prevResult"] = json.loads(run(runtime, "ADD", conf, container, error, log))
    assert addresses(container, "eth0") == ["10.20.0.2/24"]
    run(runtime, "CHECK", conf, container, error, log)
    run(runtime, "DEL", conf, container, error, log)
    assert "eth0" not in links(container)
    assert "10.20.0" not in "".join(iptables_save(host))


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
@pytest.mark.parametrize("calls", ENDING)
def test_the_end_of_a_process(
    calls: str, error: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """What was done is answered for; and no process is left, since strace waits for all of them."""
    ipam = {"type": "static", "addresses": [{"address": "10.20.0.2/24"}]}
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam}
    conf["bridge"] = "br0"
    log = tmp_path / "trace"
    conf["prevResult"] = json.loads(run(runtime, "ADD", conf, container, error, log, calls))
    assert addresses(container, "eth0") == ["10.20.0.2/24"]
    run(runtime, "CHECK", conf, container, error, log, calls)
    run(runtime, "DEL", conf, container, error, log, calls)
    assert "eth0" not in links(container)


def test_a_program_is_run(tmp_path: Path) -> None:
    """Also when the C library cannot start one; what fails in the program is told as before."""
    code = """
from cni import process
print(process.run("/bin/sh", ["sh", "-c", "cat; echo two >&2; exit 3"], b"one"))
for program in ("/nosuch", "/etc/passwd"):
    try:
        process.run(program, ["x"])
    except OSError as error:
        print(type(error).__name__, error.filename)
"""
    command = [sys.executable, "-c", code]
    trace = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=?clone3"]
    inject = ["-e", "inject=?clone3:error=EPERM"]
    for prefix in ([], [*trace, *inject]):
        done = subprocess.run(
            [*prefix, *command], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.splitlines() == [
            "Finished(code=3, stdout=b'one', stderr=b'two\\n')",
            "FileNotFoundError /nosuch",
            "PermissionError /etc/passwd",
        ]
