"""The process in the container's namespace is killed in the middle of a DEL: every step still runs.

strace kills it as it enters the namespace, in every plugin run that needs one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import links, nft, tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")

Json = dict[str, Any]
CASES: dict[str, Json] = {
    "bridge": {"bridge": "br0", "isGateway": True, "ipMasq": True},
    "ptp": {"ipMasq": True},
}


def delete_with_executors_killed(
    runtime: Runtime, plugin: str, conf: Json, netns: Netns, trace: Path
) -> tuple[int, Json]:
    """Exit status and error of a DEL; at least one process was killed."""
    done = runtime.host.run(
        subprocess.run,
        [
            *("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=setns"),
            *("-e", "inject=setns:signal=KILL", str(runtime.bin_dir / plugin)),
        ],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=runtime.environment("DEL", netns, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    assert "killed by SIGKILL" in trace.read_text()
    return done.returncode, json.loads(done.stdout or "{}")


@pytest.mark.parametrize("plugin", CASES)
def test_del_runs_the_other_steps(
    plugin: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    leases = tmp_path / "leases"
    ranges = [[{"subnet": "10.20.0.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(leases)}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": ipam, **CASES[plugin]}
    conf["ipMasqBackend"] = "nftables"
    runtime.add(plugin, conf, container).succeeded()
    assert [name for name in tree(leases / "net") if name.startswith("10.20")]
    assert "id: c1" in json.dumps(nft(host))

    code, error = delete_with_executors_killed(runtime, plugin, conf, container, tmp_path / "trace")

    assert not [name for name in tree(leases / "net") if name.startswith("10.20")]
    assert "id: c1" not in json.dumps(nft(host))
    stays = "eth0" in links(container)
    assert (code != 0) == stays, "an error is told, unless all is done"
    if code != 0:
        assert "was lost" in error["msg"]
    runtime.delete(plugin, conf, container).succeeded()
