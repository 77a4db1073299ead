"""What a request through the server asks of the kernel, counted with strace; nothing is timed.

A request lives for half a millisecond, most of it with cold caches: each call, signal and page is
noticeable. A higher number needs a reason (docs/design.md, "The warm path").
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.server import Server, serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Netns, Runtime

    Json = dict[str, Any]

pytestmark = pytest.mark.own_server

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\(", re.MULTILINE)
CONF: Json = {"cniVersion": "1.0.0", "name": "cost"}
PREVIOUS = {"cniVersion": "1.0.0", "interfaces": [{"name": "lo"}]}
TUNING: Json = {**CONF, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "prevResult": PREVIOUS}
# Plugin, verb; calls of the client from exec to exit, and of the worker for it: four more than
# usual, since it waits twice where the client is slow.
COSTS = [
    ("loopback", CONF, "ADD", 40, 50),
    ("loopback", CONF, "DEL", 39, 44),
    ("tuning", TUNING, "ADD", 52, 56),
    ("tuning", TUNING, "DEL", 51, 55),
]


@pytest.fixture
def server(runtime: Runtime, tmp_path: Path) -> Iterator[Server]:
    with serving(runtime, tmp_path / "socket", "--workers", "1") as server:
        yield server


def request(
    runtime: Runtime, container: Netns, plugin: str, conf: Json, verb: str, *prefix: str
) -> None:
    """A request for `lo`, by a client that is started by the words `prefix`."""
    conf = {**conf, "type": plugin}
    if plugin == "tuning":
        conf["dataDir"] = str(Path(runtime.env["CNI_STATE_DIR"]) / "tuning")
    done = runtime.host.run(
        subprocess.run,
        [*prefix, str(runtime.bin_dir / plugin)],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=runtime.environment(verb, container, ifname="lo"),
        timeout=120,
    )
    assert done.returncode == 0, done


@pytest.mark.parametrize(("plugin", "conf", "verb", "of_client", "of_worker"), COSTS)
def test_system_calls_of_a_request(
    server: Server,
    runtime: Runtime,
    container: Netns,
    tmp_path: Path,
    plugin: str,
    conf: Json,
    verb: str,
    of_client: int,
    of_worker: int,
) -> None:
    runtime.env["CNI_SERVER_SOCKET"] = str(server.socket)

    def ask(verb: str, *prefix: str) -> None:
        request(runtime, container, plugin, conf, verb, *prefix)

    # the first requests fill caches
    for each in ("ADD", "DEL", "ADD") if verb == "DEL" else ("ADD", "DEL"):
        ask(each)
    log = tmp_path / "client"
    ask(verb, "strace", "-qq", "-o", str(log))
    calls = Counter(_CALL.findall(log.read_text()))
    assert calls.total() <= of_client, calls

    ask("DEL" if verb == "ADD" else "ADD")
    text = traced(server, tmp_path / "worker", lambda: ask(verb))
    calls = Counter(_CALL.findall(text))
    assert calls.total() <= of_worker, calls
    assert not calls.keys() & {"mmap", "munmap", "mremap", "brk"}, calls
    assert "--- SIG" not in text
    if verb == "ADD":
        ask("DEL")


def traced(server: Server, log: Path, work: Any) -> str:
    """What strace writes of the worker while `work` is done, until it waits again."""
    (worker,) = server.workers()
    tracer = subprocess.Popen(
        ["strace", "-o", str(log), "-p", str(worker)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        work()
        # the line of a call that waits has no end yet
        waits = re.compile(r"\nepoll_wait\([^\n]*$")
        wait_until(lambda: waits.search(log.read_text()), "the worker waits again")
    finally:
        tracer.terminate()
        tracer.communicate(timeout=20)
    return log.read_text()
