"""An error of reading the kernel's answer to a change does not hide that the change was made.

strace lets one recvfrom(2) after the other fail, once, as ADD and DEL run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import link
from cni.kernel.errors import NetlinkError
from cni.kernel.netlink import Netlink
from cni.netfilter import nft
from cni.netfilter.expressions import new_chain, new_table
from cni.netfilter.table import Table
from tests.harness import links
from tests.harness import nft as list_rules

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

Json = dict[str, Any]


def run(
    runtime: Runtime,
    verb: str,
    conf: Json,
    ns: Netns,
    trace: Path,
    inject: str,
    syscall: str = "recvfrom",
) -> tuple[int, Json, bool]:
    """Exit status, what was printed, and whether a call failed."""
    done = runtime.host.run(
        subprocess.run,
        [
            *("strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={syscall}"),
            *("-e", f"inject={syscall}:{inject}", str(runtime.bin_dir / conf["type"])),
        ],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=runtime.environment(verb, ns, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout or "{}"), "INJECTED" in trace.read_text()


def state(*spaces: Netns) -> list[Any]:
    """The links and rules. (A bridge's carrier comes and goes by itself.)"""
    return [(sorted(links(ns)), list_rules(ns)) for ns in spaces]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("error", ["EIO", "ENOMEM"])
def test_a_question_that_fails_is_not_answered_no(
    error: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    """DEL says that it worked only if the masquerading rules are gone."""
    ipam = {"type": "host-local", "subnet": "10.20.0.0/24", "dataDir": str(tmp_path / "leases")}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "ipam": ipam, "ipMasq": True}
    conf |= {"ipMasqBackend": "iptables", "bridge": "br0"}
    number, injected, trace = 0, True, tmp_path / "trace"
    while injected:
        number += 1
        runtime.add("bridge", conf, container).succeeded()
        inject = f"error={error}:when={number}"
        code, reply, injected = run(runtime, "DEL", conf, container, trace, inject, "sendto")
        rules = str(list_rules(host))
        assert code or "10.20.0" not in rules, f"request {number}: {reply} {rules}"
        runtime.delete("bridge", conf, container).succeeded()
        assert "10.20.0" not in str(list_rules(host)), f"request {number}, repeated"
    assert number > 5


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("error", ["ENOBUFS", "ENOMEM"])
@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_every_answer_lost_once(
    plugin: str, error: str, runtime: Runtime, host: Netns, container: Netns, tmp_path: Path
) -> None:
    ranges = [[{"subnet": "10.20.0.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(tmp_path / "leases")}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": plugin, "ipam": ipam, "ipMasq": True}
    conf |= {"ipMasqBackend": "nftables", "bridge": "br0", "isGateway": True}
    if plugin == "ptp":
        del conf["bridge"], conf["isGateway"]
    runtime.add(plugin, conf, container).succeeded()  # makes what stays
    runtime.delete(plugin, conf, container).succeeded()
    before, number, injected = state(host, container), 0, True
    trace = tmp_path / "trace"
    while injected:
        number += 1
        inject = f"error={error}:when={number}"
        code, printed, injected = run(runtime, "ADD", conf, container, trace, inject)
        assert code == 0, (number, printed)
        assert "eth0" in links(container)
        code, printed, _ = run(runtime, "DEL", conf, container, trace, inject)
        assert code == 0, (number, printed)
        assert state(host, container) == before, number
    assert number > 8


class Failing:
    """A socket whose reads fail so many times, as the kernel's may."""

    def __init__(self, sock: Any, times: int) -> None:
        self._sock, self.left = sock, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, *args: int) -> bytes:
        if self.left:
            self.left -= 1
            raise OSError(105, "No buffer space available")
        return bytes(self._sock.recv(*args))


@pytest.mark.parametrize("times", [1, 3, 9])
def test_what_is_lost_for_good_is_told(host: Netns, times: int) -> None:
    """The change was made, and the error does not say that it was not."""

    def change() -> None:
        with Netlink() as sock:
            sock.sock = Failing(sock.sock, times)  # type: ignore[assignment]
            if times < 9:
                link.create_bridge(sock, "br7")
                return
            with pytest.raises(NetlinkError, match="may be done"):
                link.create_bridge(sock, "br7")

    host.run(change)
    assert "br7" in links(host)


@pytest.mark.parametrize("times", [0, 2, 9])
def test_a_transaction(host: Netns, times: int) -> None:
    table = Table("inet", "lost")

    def change() -> None:
        try:
            nft.transact([new_table(table, "first")])
            sock = nft.socket()
            whole = sock.sock
            sock.sock = Failing(whole, times)  # type: ignore[assignment]
            lost = pytest.raises(NetlinkError, match="may be made") if times == 9 else nullcontext()
            with lost:
                nft.transact([new_chain(table, "made")])
            sock.sock = whole
            # an answer that comes late is none to the next transaction
            with pytest.raises(NetlinkError, match="no such file"):
                nft.transact([table.without_chain("other")])
            nft.transact([table.without_chain("made")])
            nft.transact([table.without_table()])
        finally:
            nft.forget()

    host.run(change)
