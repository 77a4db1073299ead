"""The firewall plugin with a real firewalld, and rules that survive its reloads."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, iptables_save
from tests.harness.netns import stop
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.firewalld import Bus, Firewalld

Json = dict[str, Any]
V4, V6 = "10.0.0.2", "2001:db8:1:2::1"
SOURCES = [f"{V4}/32", f"{V6}/128"]


@pytest.fixture(autouse=True)
def _state(runtime: Runtime, tmp_path: Path) -> None:
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")


def conf(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", **keys}


def previous(container: Netns, *addresses: str) -> Json:
    interfaces = [{"name": "br0"}, {"name": "eth0", "sandbox": container.path}]
    ips = [{"address": a, "interface": 1} for a in addresses or (f"{V4}/24", f"{V6}/64")]
    return {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": ips}


def test_addresses_become_sources(
    runtime: Runtime, host: Netns, container: Netns, firewalld: Firewalld
) -> None:
    """Without being asked for: it runs, so it is the one."""
    prev = previous(container)
    for _ in range(2):
        result = runtime.add("firewall", conf(), container, prev_result=prev).result
        assert result["ips"] == prev["ips"]
        assert firewalld.sources() == SOURCES
    assert iptables_save(host) == []
    runtime.check("firewall", conf(), container, prev_result=prev).succeeded()
    reply = runtime.status("firewall", conf()).succeeded()
    assert "backend firewalld: firewalld is running" in reply.stderr
    assert "warning" not in reply.stderr
    for _ in range(2):
        runtime.delete("firewall", conf(), container, prev_result=prev).succeeded()
        assert firewalld.sources() == []
    reply = runtime.check("firewall", conf(), container, prev_result=prev)
    reply.failed(
        999,
        f"failed to find the address {V4}/32 in trusted zone",
        f"failed to find the address {V6}/128 in trusted zone",
        "run `cni reload`",
        "backend firewalld: firewalld is running",
    )
    # A DEL that has only the owner to go by, and GC.
    for verb in ("DEL", "GC"):
        runtime.add("firewall", conf(), container, prev_result=prev).succeeded()
        if verb == "DEL":
            runtime.delete("firewall", conf()).succeeded()
        else:
            runtime.gc("firewall", conf(), []).succeeded()
        assert firewalld.sources() == []


def test_zones(runtime: Runtime, container: Netns, firewalld: Firewalld) -> None:
    prev = previous(container, f"{V4}/24")
    internal = conf(backend="firewalld", firewalldZone="internal")
    runtime.add("firewall", internal, container, prev_result=prev).succeeded()
    assert firewalld.sources("internal") == [f"{V4}/32"]
    # What is in another zone was somebody's choice.
    reply = runtime.add("firewall", conf(), container, prev_result=prev)
    reply.failed(999, f"{V4}/32 to trusted zone: ZONE_CONFLICT", "--get-zone-of-source=")
    assert firewalld.sources() == []
    assert firewalld.sources("internal") == [f"{V4}/32"]
    runtime.check("firewall", conf(), container, prev_result=prev).failed(999, "trusted zone")
    runtime.delete("firewall", internal, container, prev_result=prev).succeeded()
    assert firewalld.sources("internal") == []
    # A zone that is not there.
    nowhere = conf(firewalldZone="nowhere")
    reply = runtime.add("firewall", nowhere, container, prev_result=prev)
    reply.failed(999, f"failed to add the address {V4}/32 to nowhere zone", "INVALID_ZONE")
    runtime.delete("firewall", nowhere, container, prev_result=prev).succeeded()


def test_isolation_is_iptables(
    runtime: Runtime, host: Netns, container: Netns, firewalld: Firewalld
) -> None:
    prev = previous(container)
    isolated = conf(ingressPolicy="isolated")
    runtime.add("firewall", isolated, container, prev_result=prev).succeeded()
    assert firewalld.sources() == SOURCES
    for version in (4, 6):
        saved = iptables_save(host, version)
        assert len([line for line in saved if "-i br0 -o br0" in line]) == 1
        assert not [line for line in saved if "CNI-FORWARD" in line]
    runtime.check("firewall", isolated, container, prev_result=prev).succeeded()
    host.exec(["iptables", "-F", "CNI-ISOLATION-STAGE-1"])
    runtime.check("firewall", isolated, container, prev_result=prev).failed(999, "not found")


def test_switching_over(
    runtime: Runtime, go_runtime: Runtime, container: Netns, firewalld: Firewalld
) -> None:
    go_runtime.env.update(runtime.env)
    prev = {**previous(container), "cniVersion": "1.0.0"}
    network = {**conf(), "cniVersion": "1.0.0"}
    for first, second in ((runtime, go_runtime), (go_runtime, runtime)):
        first.add("firewall", network, container, prev_result=prev).succeeded()
        assert firewalld.sources() == SOURCES
        second.check("firewall", network, container, prev_result=prev).succeeded()
        second.delete("firewall", network, container, prev_result=prev).succeeded()
        assert firewalld.sources() == []


def test_reload_by_hand(runtime: Runtime, container: Netns, firewalld: Firewalld) -> None:
    runtime.add("firewall", conf(), container, prev_result=previous(container)).succeeded()
    firewalld.cmd("--reload")
    assert firewalld.sources() == []
    for _ in range(2):
        done = runtime.host.exec([runtime.bin_dir / "cni", "reload"], env=runtime.env)
        assert done.stdout == "1 of 1 restored\n"
        assert firewalld.sources() == SOURCES


class Watcher:
    """`cni reload --watch` and what it has said."""

    def __init__(self, runtime: Runtime, log: Path) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = runtime.host.popen(
                [runtime.bin_dir / "cni", "reload", "--watch"],
                env=runtime.env,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until it has said that so often."""
        wait_until(lambda: self.log.read_text().count(text) >= times, text, process=self.process)


@pytest.fixture
def watcher(runtime: Runtime, firewalld: Firewalld, tmp_path: Path) -> Iterator[Watcher]:
    watcher = Watcher(runtime, tmp_path / "watch.log")
    yield watcher
    stop(watcher.process)


@pytest.mark.slow
def test_the_watcher_restores(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    bus: Bus,
    firewalld: Firewalld,
    watcher: Watcher,
) -> None:
    watcher.wait_for("started: 0 of 0 restored")
    runtime.add("firewall", conf(), container, prev_result=previous(container)).succeeded()
    firewalld.cmd("--reload")
    wait_until(lambda: firewalld.sources() == SOURCES, "the sources", process=watcher.process)
    watcher.wait_for("firewalld has reloaded: 1 of 1 restored")
    # Again, with one that came later; `--complete-reload` also drops what conntrack knew.
    prev = previous(container2, "10.0.0.3/24")
    runtime.add("firewall", conf(), container2, prev_result=prev, container_id="c2").succeeded()
    firewalld.cmd("--complete-reload")
    wait_until(lambda: len(firewalld.sources()) == 3, "all sources", process=watcher.process)
    watcher.wait_for("firewalld has reloaded: 2 of 2 restored")
    # It ends: iptables takes over, as in an ADD. It is back: so are the sources.
    firewalld.stop()
    watcher.wait_for("firewalld has ended: 2 of 2 restored")
    assert [line for line in iptables_save(runtime.host) if f"-s {V4}/32" in line]
    firewalld.start()
    watcher.wait_for("firewalld has started: 2 of 2 restored")
    assert len(firewalld.sources()) == 3
    # DEL leaves nothing of either.
    prev = previous(container)
    runtime.delete("firewall", conf(), container, prev_result=prev).succeeded()
    assert firewalld.sources() == ["10.0.0.3/32"]
    assert not [line for line in iptables_save(runtime.host) if V4 in line]
    # Without a bus there is nothing to listen to: systemd starts it again.
    bus.stop()
    assert watcher.process.wait(30) == 1
    assert "cannot listen on the system bus" in watcher.log.read_text()


def test_the_watcher_ends_when_told(watcher: Watcher) -> None:
    watcher.wait_for("started: 0 of 0 restored")
    watcher.process.send_signal(signal.SIGTERM)
    assert watcher.process.wait(30) in (0, -signal.SIGTERM, 143)


def test_no_bus_to_watch(runtime: Runtime, host: Netns, tmp_path: Path) -> None:
    env = {**runtime.env, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"}
    done = host.exec([runtime.bin_dir / "cni", "reload", "--watch"], env=env, check=False)
    assert done.returncode == 1
    assert "cannot listen on the system bus" in done.stderr
