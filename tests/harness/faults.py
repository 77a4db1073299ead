"""A plugin run in which one system call fails, to see whether a failed ADD undoes what it did."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from .kernel import Snapshot, difference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .netns import Netns
    from .runtime import Runtime


STRACE = ("strace", "-qq", "-o", "/dev/null", "-e")


def undoes_whatever_fails(
    runtime: Runtime,
    plugin: str,
    conf: Mapping[str, Any],
    netns: Netns,
    *,
    ifname: str = "eth0",
    least: int = 11,
) -> None:
    """One ADD for each of its netlink requests, which fails: the namespace is as it was before.

    There must be at least so many.
    """
    before, number = Snapshot.take(netns), 1
    while _add_failing_at(runtime, plugin, conf, netns, number, ifname=ifname):
        found = difference(before, Snapshot.take(netns))
        assert not found, f"request {number} failed:\n" + "\n".join(found)
        number += 1
    assert number >= least


def _add_failing_at(
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
    # A plugin says so only if a step of the undo has failed.
    assert b"undoing the failed ADD" not in done.stderr, done.stderr
    return True
