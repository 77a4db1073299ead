"""`cni reload`: rules come back after something flushed them (docs/cli.md)."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, connect, iptables_save, tcp_exchange, tcp_server
from tests.harness import nft as nft_list
from tests.harness.faults import STRACE

if TYPE_CHECKING:
    from pathlib import Path

NET = "net1"


@pytest.fixture
def state(tmp_path: Path, runtime: Runtime) -> Path:
    """This test's own state directory."""
    runtime.env["CNI_STATE_DIR"] = str(tmp_path / "state")
    return tmp_path / "state"


def bridge(data_dir: Path, backend: str = "nftables", **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": "1.1.0",
        "name": NET,
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "ipMasqBackend": backend,
        "ipam": {
            "type": "host-local",
            "subnet": "10.30.0.0/24",
            "dataDir": str(data_dir),
            "routes": [{"dst": "0.0.0.0/0"}],
        },
        **keys,
    }


def ptp(data_dir: Path, backend: str = "nftables") -> dict[str, Any]:
    conf = bridge(data_dir, backend)
    return {key: conf[key] for key in ("cniVersion", "name", "ipMasq", "ipMasqBackend", "ipam")}


def reload(runtime: Runtime, *, code: int = 0) -> list[dict[str, Any]]:
    done = runtime.host.run(
        subprocess.run,
        [str(runtime.bin_dir / "cni"), "reload", "--json"],
        env=runtime.env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def flush(host: Netns) -> None:
    """What a restarted nftables.service or iptables.service does."""
    host.exec(["nft", "flush", "ruleset"])


def rules(host: Netns) -> list[str]:
    """All that decides, without handles and counters."""
    kinds = [(next(iter(item)), next(iter(item.values()))) for item in nft_list(host)]
    return sorted(
        json.dumps({key: value for key, value in body.items() if key != "handle"}, sort_keys=True)
        for kind, body in kinds
        if kind != "metainfo"
    )


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
@pytest.mark.parametrize("plugin", ["bridge", "ptp"])
def test_masquerading_comes_back(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    data_dir: Path,
    state: Path,
    plugin: str,
    backend: str,
) -> None:
    conf = {"bridge": bridge, "ptp": ptp}[plugin](data_dir, backend)
    connect(runtime.host, outside)
    result = runtime.add(plugin, conf, container).result
    before = rules(runtime.host)
    with tcp_server(outside) as server:
        assert tcp_exchange(container, "198.51.100.2", server.port) == "198.51.100.1"
    flush(runtime.host)
    runtime.check(plugin, conf, container, prev_result=result).failed(999, "run `cni reload`")
    outcomes = reload(runtime)
    assert [(o["plugin"], o["state"]) for o in outcomes] == [(plugin, "restored")]
    assert rules(runtime.host) == before
    runtime.check(plugin, conf, container, prev_result=result).succeeded()
    with tcp_server(outside) as server:
        assert tcp_exchange(container, "198.51.100.2", server.port) == "198.51.100.1"
    # Again: what is there stays as it is.
    reload(runtime)
    assert rules(runtime.host) == before
    runtime.delete(plugin, conf, container).succeeded()
    flush(runtime.host)
    assert reload(runtime) == []
    assert rules(runtime.host) == []


def test_the_mac_check_comes_back(
    runtime: Runtime, container: Netns, data_dir: Path, state: Path
) -> None:
    conf = bridge(data_dir, macspoofchk=True, ipMasq=False)
    runtime.add("bridge", conf, container).succeeded()
    before = rules(runtime.host)
    assert before
    flush(runtime.host)
    reload(runtime)
    assert rules(runtime.host) == before


def test_nothing_is_kept_without_rules(
    runtime: Runtime, container: Netns, data_dir: Path, state: Path
) -> None:
    runtime.add("bridge", bridge(data_dir, ipMasq=False), container).succeeded()
    assert list(state.rglob("*")) == [state / "bridge.lock"]  # which stays


def test_a_dead_container_gets_no_rules(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, state: Path
) -> None:
    conf = bridge(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    before = rules(runtime.host)
    container2.unname()
    flush(runtime.host)
    outcomes = {o["containerID"]: o["state"] for o in reload(runtime)}
    assert outcomes == {"c1": "restored", "c2": "skipped"}
    assert len(rules(runtime.host)) == len(before) - 1


def test_gc_forgets(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, state: Path
) -> None:
    conf = bridge(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    runtime.gc("bridge", conf, [("c2", "eth0")]).succeeded()
    assert [o["containerID"] for o in reload(runtime)] == ["c2"]


def test_a_failure_is_told_and_the_others_go_on(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, state: Path
) -> None:
    conf = bridge(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    runtime.add("bridge", conf, container2, container_id="c2").succeeded()
    kept = sorted((state / "intent").iterdir())
    document = json.loads(kept[0].read_text())
    document["config"]["ipMasqBackend"] = "pigeon"
    kept[0].write_text(json.dumps(document))
    flush(runtime.host)
    outcomes = reload(runtime, code=1)
    assert sorted(o["state"] for o in outcomes) == ["failed", "restored"]
    failed = next(o for o in outcomes if o["state"] == "failed")
    assert 'unknown ipmasq backend "pigeon"' in failed["text"]
    assert not iptables_save(runtime.host, 4)


def test_a_state_directory_that_cannot_be_written_is_told(
    runtime: Runtime, container: Netns, data_dir: Path
) -> None:
    runtime.env["CNI_STATE_DIR"] = "/proc/none"
    reply = runtime.add("bridge", bridge(data_dir), container).succeeded()
    assert "cannot keep the rules in /proc/none/intent" in reply.stderr
    runtime.delete("bridge", bridge(data_dir), container).succeeded()


PORTS = [{"hostPort": 9000 + i, "containerPort": 80, "protocol": "tcp"} for i in range(120)]


@pytest.mark.parametrize("before", ["nothing", "an ADD"])
def test_a_disk_that_gets_full_fails_the_add(
    runtime: Runtime, container: Netns, state: Path, before: str
) -> None:
    """What was kept is never replaced by a part of the new one; and nothing of the ADD is left."""
    previous = {"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.9/24"}]}
    conf = {
        "cniVersion": "1.0.0",
        "name": NET,
        "backend": "nftables",
        "prevResult": previous,
        "runtimeConfig": {"portMappings": PORTS},
    }
    where = state / "intent"
    where.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "small", where], check=True)
    try:
        if before == "an ADD":
            few = {**conf, "runtimeConfig": {"portMappings": PORTS[:1]}}
            runtime.add("portmap", few, container).succeeded()
        (where / "fill").write_bytes(bytes(12288 if before == "nothing" else 8192))
        runtime.add("portmap", conf, container).failed(999, "No space left on device")
        assert not [r for r in rules(runtime.host) if " 9000" in r or "10.77.0.9" in r]
        assert os.listdir(where) == ["fill"]
        (where / "fill").unlink()
        runtime.add("portmap", conf, container).succeeded()
        made = rules(runtime.host)
        flush(runtime.host)
        assert [o["state"] for o in reload(runtime)] == ["restored"]
        assert rules(runtime.host) == made
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.parametrize(
    "fault",  # musl's open(3) is open(2), glibc's is openat(2)
    ["open,openat:error=EIO", "read:error=EIO", "open,openat:error=EMFILE"],
)
def test_a_del_that_cannot_read_what_was_kept_says_so(
    runtime: Runtime, container: Netns, data_dir: Path, state: Path, fault: str
) -> None:
    """Its other steps are done, `cni reload` brings nothing back, and it can be repeated."""
    conf = bridge(data_dir)
    runtime.add("bridge", conf, container).succeeded()
    (kept,) = (state / "intent").iterdir()
    paths = ["-P", str(kept), "-P", f"{kept}-"]
    done = runtime.host.run(
        subprocess.run,
        [*STRACE, f"inject={fault}", *paths, str(runtime.bin_dir / "bridge")],
        input=json.dumps({"type": "bridge", **conf}).encode(),
        capture_output=True,
        # strace sees this process only: the work has to be done in it
        env=runtime.environment("DEL", container, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 1, done
    assert f"cannot read or remove {state}/intent/" in json.loads(done.stdout)["msg"]
    assert not [name for name in os.listdir(data_dir / NET) if name.startswith("10.")]
    assert not [rule for rule in rules(runtime.host) if "10.30.0" in rule]
    container.unname()
    assert [o["state"] for o in reload(runtime)] in ([], ["skipped"])
    runtime.delete("bridge", conf, container).succeeded()
    assert not list((state / "intent").iterdir())
