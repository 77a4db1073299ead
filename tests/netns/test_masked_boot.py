"""A boot id that is not the kernel's: container managers lay a file of their own over it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

_ID = "/proc/sys/kernel/random/boot_id"


def call(
    runtime: Runtime, verb: str, conf: dict[str, Any], name: str, netns: Netns, mask: Path | None
) -> dict[str, Any]:
    """One request to host-local, in a container whose manager gave it the boot id in `mask`."""
    mount = f"mount --bind {mask} {_ID}; " if mask else ""
    done = runtime.host.run(
        subprocess.run,
        ["unshare", "-m", "sh", "-ec", f'{mount}exec "$0"', runtime.bin_dir / "host-local"],
        input=json.dumps(conf).encode(),
        env=runtime.environment(verb, netns, container_id=name, env={"CNI_SERVER": "off"}),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done
    return json.loads(done.stdout) if done.stdout else {}


@pytest.mark.parametrize("content", ["11111111-2222-3333-4444-555555555555\n", "", "x" * 100])
def test_nothing_is_taken_for_an_earlier_boots(
    runtime: Runtime, container: Netns, tmp_path: Path, content: str
) -> None:
    """The host and such a container use one data directory: each keeps the other's addresses."""
    mask = tmp_path / "boot_id"
    mask.write_text(content)
    ranges = [[{"subnet": "10.0.0.0/28"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path / "data")}
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "host-local", "ipam": ipam}
    got = []
    for number in range(13):  # all that the range has
        where = mask if number % 2 else None
        result = call(runtime, "ADD", conf, f"c{number}", container, where)
        got.append(result["ips"][0]["address"])
    assert len(set(got)) == 13, got
    files = {each.name for each in (tmp_path / "data/net").iterdir()}
    assert {each.split("/")[0] for each in got} <= files
    for number in range(13):
        where = None if number % 2 else mask
        call(runtime, "DEL", conf, f"c{number}", container, where)
    left = {each.name for each in (tmp_path / "data/net").iterdir()}
    assert left <= {"lock", "last_reserved_ip.0"}
