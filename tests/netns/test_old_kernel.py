"""Every verb works where system calls that are newer than Linux 4.18 are missing or refused.

An older kernel answers ENOSYS; a container's seccomp profile may answer EPERM instead.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import addresses, links

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

# What glibc, Python or we might call; strace has to know the name.
NEWER = (
    "close_range,openat2,faccessat2,pidfd_open,pidfd_getfd,pidfd_send_signal,process_madvise,"
    "epoll_pwait2,mount_setattr,fsopen,open_tree,move_mount,landlock_create_ruleset,statx,rseq"
)
KNOWN_TO_GLIBC = "clone3"  # which falls back at ENOSYS only


def run(runtime: Runtime, verb: str, conf: dict[str, Any], ns: Netns, error: str, log: Path) -> str:
    """One verb of bridge without the newer calls: what it printed; the test fails if it failed."""
    calls = f"{NEWER},{KNOWN_TO_GLIBC}" if error == "ENOSYS" else NEWER
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


@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_bridge(error: str, runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    ranges = [[{"subnet": "10.20.0.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path / "leases")}
    conf: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam}
    conf |= {"bridge": "br0", "isGateway": True, "ipMasq": True}
    log = tmp_path / "trace"
    conf["prevResult"] = json.loads(run(runtime, "ADD", conf, container, error, log))
    assert addresses(container, "eth0") == ["10.20.0.2/24"]
    run(runtime, "CHECK", conf, container, error, log)
    run(runtime, "DEL", conf, container, error, log)
    assert "eth0" not in links(container)
