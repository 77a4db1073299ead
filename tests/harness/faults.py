"""A plugin run in which one system call fails, to see whether a failed ADD undoes what it did."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .netns import Netns
    from .runtime import Runtime


STRACE = ("strace", "-qq", "-o", "/dev/null", "-e")


def add_failing_at(
    runtime: Runtime,
    plugin: str,
    conf: Mapping[str, Any],
    netns: Netns,
    ordinal: int,
    *,
    ifname: str = "eth0",
    syscall: str = "sendto",
) -> bool:
    """ADD, with the `ordinal`-th call of `syscall` failing (ENOBUFS); False if it succeeded.

    Netlink requests are `sendto` calls. Needs strace.
    """
    inject = f"inject={syscall}:error=ENOBUFS:when={ordinal}"
    done = runtime.host.run(
        subprocess.run,
        [*STRACE, f"trace={syscall}", "-e", inject, str(runtime.bin_dir / plugin)],
        input=json.dumps({"type": plugin, **conf}).encode(),
        capture_output=True,
        # strace sees this process only: the work has to be done in it
        env=runtime.environment("ADD", netns, ifname=ifname, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    if done.returncode == 0:
        return False
    assert b'"msg"' in done.stdout, (done.stdout, done.stderr)
    assert b"undoing the failed ADD" not in done.stderr, done.stderr
    return True
