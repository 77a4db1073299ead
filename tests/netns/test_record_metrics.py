"""Metrics of the server and of the node: docs/observability.md."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.record import recorded
from tests.harness.server import serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.own_server

ROOT = Path(__file__).parents[2]

CONF = {"cniVersion": "1.1.0", "name": "mynet"}
ADDRESS = "127.0.0.1:9464"
SAMPLE = re.compile(
    r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? ([0-9.e+-]+|\+Inf|NaN)'
)
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(page: str) -> Metrics:
    """A page of the text format, of which every line is as that demands; no sample is there twice.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    found: Metrics = {}
    kinds: dict[str, str] = {}
    assert page.endswith("\n")
    for line in page.splitlines():
        if line.startswith("# HELP "):
            assert len(line.split(" ", 3)) == 4
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        family = match[1]
        if family not in kinds:
            family = re.sub(r"_(bucket|sum|count)$", "", family)
            assert kinds[family] == "histogram", line
        key = (match[1], frozenset(LABEL.findall(match[2] or "")))
        assert key not in found, line
        found[key] = float(match[3])
    return found


def get(host: Netns, path: str = "/metrics", method: str = "GET") -> tuple[str, str]:
    """Status line and body of a scrape on the node."""
    with connected(host) as sock:
        sock.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        data = b""
        while more := sock.recv(65536):
            data += more
    head, _, body = data.decode().partition("\r\n\r\n")
    length = re.search(r"Content-Length: (\d+)", head)
    assert length is not None
    assert method == "HEAD" or len(body.encode()) == int(length[1])
    return head.partition("\r\n")[0], body


def connected(host: Netns) -> socket.socket:
    sock = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(60)
    try:
        sock.connect(("127.0.0.1", 9464))
    except OSError:
        sock.close()
        raise
    return sock


def scrape(host: Netns) -> Metrics:
    status, body = get(host)
    assert status == "HTTP/1.1 200 OK"
    return parse(body)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.get((name, frozenset(labels.items())), 0)


def bridge(data_dir: Path) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": str(data_dir)}
    return {**CONF, "ipam": ipam}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


def test_what_was_done_is_counted(
    runtime: Runtime, container: Netns, data_dir: Path, path: Path
) -> None:
    """Each verb, each code, on each worker; nothing else is."""
    with serving(runtime, path, "--workers", "3", "--metrics", ADDRESS):
        expected: Counter[tuple[str, str, str]] = Counter()
        for _ in range(3):
            runtime.add("bridge", bridge(data_dir), container).succeeded()
            runtime.delete("bridge", bridge(data_dir), container).succeeded()
            runtime.status("bridge", bridge(data_dir)).succeeded()
            expected.update([("bridge", verb, "0") for verb in ("ADD", "DEL", "STATUS")])
        for conf, code in (("{", "6"), ('{"name": "x", "cniVersion": "9.9.9"}', "1")):
            runtime.add("loopback", conf, container).failed(int(code))
            expected["loopback", "ADD", code] += 1
        runtime.call("CHAOS", "loopback", CONF, container).failed(4)
        expected["loopback", "other", "4"] += 1
        runtime.version("ptp").succeeded()
        expected["ptp", "VERSION", "0"] += 1
        metrics = counted(runtime.host, sum(expected.values()))
        found = {
            (labels["plugin"], labels["verb"], labels["code"]): count
            for (name, pairs), count in metrics.items()
            if name == "cni_requests_total" and (labels := dict(pairs))
        }
        assert found == expected
        of = {"plugin": "bridge", "verb": "ADD"}
        assert value(metrics, "cni_request_duration_seconds_count", **of) == 3
        assert value(metrics, "cni_request_duration_seconds_bucket", **of, le="+Inf") == 3
        assert 0 < value(metrics, "cni_request_duration_seconds_sum", **of) < 100
        assert value(metrics, "cni_server_workers", state="idle") == 3
        assert value(metrics, "cni_server_workers", state="busy") == 0
        assert sum(1 for name, _ in metrics if name == "cni_build_info") == 1


def counted(host: Netns, requests: int) -> Metrics:
    """A scrape once so many requests are counted: a worker counts when it has replied."""
    seen: list[Metrics] = []

    def look() -> bool:
        seen.append(scrape(host))
        total = sum(v for (name, _), v in seen[-1].items() if name == "cni_requests_total")
        assert total <= requests
        return total == requests

    wait_until(look, f"{requests} requests are counted")
    return seen[-1]


def test_buckets_grow(runtime: Runtime, path: Path) -> None:
    with serving(runtime, path, "--metrics", ADDRESS):
        for _ in range(5):
            runtime.version("ptp").succeeded()
        metrics = counted(runtime.host, 5)
    buckets = [
        (float(dict(labels)["le"]), count)
        for (name, labels), count in metrics.items()
        if name == "cni_request_duration_seconds_bucket"
    ]
    counts = [count for _, count in sorted(buckets)]
    assert counts == sorted(counts)
    assert counts[-1] == 5
    assert len(counts) == 17


def test_what_gc_removes_is_counted(
    runtime: Runtime, container: Netns, container2: Netns, data_dir: Path, path: Path
) -> None:
    conf = bridge(data_dir)
    with serving(runtime, path, "--metrics", ADDRESS):
        runtime.add("bridge", conf, container).succeeded()
        runtime.add("bridge", conf, container2, container_id="c2").succeeded()
        runtime.gc("bridge", conf, [("c1", "eth0")]).succeeded()
        runtime.gc("bridge", conf, [("c1", "eth0")]).succeeded()
        metrics = counted(runtime.host, 4)
        for kind in ("link", "reservation"):
            assert value(metrics, "cni_gc_removed_total", kind=kind) == 1
        runtime.delete("bridge", conf, container).succeeded()


def test_no_container_is_in_a_label(
    runtime: Runtime, container: Netns, data_dir: Path, path: Path
) -> None:
    """Nor what a container's runtime chose: verbs, codes and plugins are of a fixed number."""
    with serving(runtime, path, "--metrics", ADDRESS):
        for number in range(20):
            env: dict[str, str | None] = {"CNI_COMMAND": f"VERB{number}"}
            name = f"secret{number}"
            runtime.call("ADD", "loopback", CONF, container, container_id=name, env=env).failed()
        runtime.add("bridge", bridge(data_dir), container, container_id="secret").succeeded()
        counted(runtime.host, 21)
        _, body = get(runtime.host)
        assert "secret" not in body
        assert "VERB" not in body
        runtime.delete("bridge", bridge(data_dir), container, container_id="secret").succeeded()


def test_the_nodes_addresses_and_ports(
    runtime: Runtime, container: Netns, data_dir: Path, tmp_path: Path, path: Path
) -> None:
    """By a scrape and by `cni metrics`: the same numbers, of the same range."""
    net_d = tmp_path / "net.d"
    net_d.mkdir()
    state, kept = tmp_path / "state", tmp_path / "cache"
    plugins = [
        {"type": "bridge", "ipam": bridge(data_dir)["ipam"]},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    conflist = {**CONF, "plugins": plugins}
    (net_d / "10.conflist").write_text(json.dumps(conflist))
    env = {"NETCONFPATH": str(net_d), "CNI_STATE_DIR": str(state)}
    runtime.env.update(env)
    ports = [{"hostPort": port, "containerPort": 80, "protocol": "tcp"} for port in (8080, 8081)]
    runtime.add_list(conflist, container, capabilities={"portMappings": ports})
    prefix = ["env", *(f"{key}={each}" for key, each in env.items())]
    with serving(runtime, path, "--metrics", ADDRESS, prefix=prefix):
        of_range = {"network": "mynet", "range": "10.9.0.1-10.9.0.254"}
        printed = runtime.host.exec(
            [runtime.bin_dir / "cni", "metrics", "--cache-dir", str(kept)],
            env={**runtime.env, **env},
        ).stdout
        for metrics in (parse(printed), scrape(runtime.host)):
            assert value(metrics, "cni_ipam_addresses", **of_range, state="used") == 1
            assert value(metrics, "cni_ipam_addresses", **of_range, state="free") == 252
            assert value(metrics, "cni_portmap_ports") == 2
            assert value(metrics, "cni_attachments", state="alive") == 1
            assert value(metrics, "cni_state_unreadable") == 0
    runtime.delete_list(conflist, container, capabilities={"portMappings": ports})


DOCUMENTED = re.compile(r"^\| `(cni_\w+)` \|(.*?)\| (.*) \|$", re.MULTILINE)


def test_every_metric_is_as_documented(
    runtime: Runtime, container: Netns, tmp_path: Path, path: Path
) -> None:
    """Each of the table, none besides, with its labels; the table names each value of a state."""
    page = (ROOT / "docs/observability.md").read_text()
    rows = {name: (labels, text) for name, labels, text in DOCUMENTED.findall(page)}
    store = {"type": "directory", "path": str(tmp_path / "store")}
    node = {"store": store, "nodeName": "n1", "dataDir": str(tmp_path / "blocks")}
    (tmp_path / "cluster.json").write_text(json.dumps(node))
    (tmp_path / "net.d").mkdir()
    ipam = {"type": "cluster", "ranges": [[{"subnet": "10.9.0.0/24"}]], "blockSize": 28}
    here = {"type": "host-local", "subnet": "10.8.0.0/24", "dataDir": str(tmp_path / "data")}
    own = {**CONF, "name": "own", "plugins": [{"type": "bridge", "ipam": here}]}
    (tmp_path / "net.d/10.conflist").write_text(json.dumps(own))
    env = {
        "CNI_CLUSTER_CONF": str(tmp_path / "cluster.json"),
        "NETCONFPATH": str(tmp_path / "net.d"),
        "CNI_STATE_DIR": str(tmp_path / "state"),
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # where nobody listens
    }
    runtime.env.update(env)
    prefix = ["env", *(f"{key}={each}" for key, each in env.items())]
    conf = {**CONF, "name": "shared", "ipam": ipam}
    with serving(runtime, path, "--metrics", ADDRESS, prefix=prefix):
        runtime.add("bridge", conf, container).succeeded()
        metrics = counted(runtime.host, 1)
        _, text = get(runtime.host)
        runtime.delete("bridge", conf, container).succeeded()
    assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == set(rows)
    seen = set()
    for name, pairs in metrics:
        family = name if name in rows else re.sub(r"_(bucket|sum|count)$", "", name)
        labels, meaning = rows[family]
        assert {key for key, _ in pairs} - {"le"} == set(re.findall(r"`(\w+)`", labels)), name
        for key, each in pairs:
            assert key not in ("state", "kind", "what", "result") or each in meaning, (name, each)
        seen.add(family)
    assert {"cni_cluster_addresses", "cni_cluster_blocks", "cni_ipam_addresses"} <= seen


def test_scrapes_during_load(runtime: Runtime, container: Netns, path: Path) -> None:
    """Numbers only grow, and in the end they are right."""
    with serving(runtime, path, "--workers", "4", "--metrics", ADDRESS):
        children_ = [
            runtime.start("DEL", "loopback", CONF, container, container_id=f"c{number}")
            for number in range(60)
        ]
        last: Metrics = {}
        while any(child.poll() is None for child in children_):
            now = scrape(runtime.host)
            for key, count in last.items():
                if key[0].endswith(("_total", "_count", "_bucket")):
                    assert now[key] >= count
            last = now
        assert [child.communicate()[0] for child in children_] == [b""] * 60
        served = value(
            scrape(runtime.host), "cni_requests_total", plugin="loopback", verb="DEL", code="0"
        )
        assert served > 0


def test_hostile_scrapers_hold_up_nobody(runtime: Runtime, container: Netns, path: Path) -> None:
    """Connections that say nothing, say too much, or do not read; requests do not notice."""
    with serving(runtime, path, "--metrics", ADDRESS) as server, ExitStack() as stack:
        for _ in range(40):
            stack.enter_context(connected(runtime.host))
        for _ in range(3):
            flood = stack.enter_context(connected(runtime.host))
            try:
                flood.sendall(b"GET /metrics HTTP/1.1\r\n" + b"x" * 100_000)
            except OSError:
                pass  # it was closed
        runtime.add("loopback", CONF, container).succeeded()
        assert server.status()["served"] == 1
        wait_until(lambda: answers(runtime.host), "the silent ones were sent away")


def answers(host: Netns) -> bool:
    try:
        return get(host)[0] == "HTTP/1.1 200 OK"
    except (OSError, AssertionError):
        return False


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/metrics?x=1", "200"),
        ("HEAD", "/metrics", "200"),
        ("POST", "/metrics", "405"),
        ("GET", "/", "404"),
        ("GET", "/metrics/../etc", "404"),
        ("", "", "405"),
    ],
)
def test_only_metrics_are_there(
    method: str, target: str, status: str, runtime: Runtime, path: Path
) -> None:
    with serving(runtime, path, "--workers", "1", "--metrics", ADDRESS):
        wait_until(lambda: answers(runtime.host), "it answers")
        line, body = get(runtime.host, target, method)
        assert line.split(" ")[1] == status
        assert (body == "") == (method == "HEAD")


def test_a_unix_socket(runtime: Runtime, path: Path, tmp_path: Path) -> None:
    with serving(runtime, path, "--metrics", f"unix:{tmp_path}/m") as server:
        wait_until((tmp_path / "m").exists, "the socket is there")
        assert (tmp_path / "m").stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(tmp_path / "m"))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            data = b""
            while more := sock.recv(65536):
                data += more
        assert parse(data.decode().partition("\r\n\r\n")[2])
        server.end()
        assert not (tmp_path / "m").exists()


def test_a_file_for_node_exporter(runtime: Runtime, path: Path, tmp_path: Path) -> None:
    """It is whole whenever it is read, readable by all, and gone with the server."""
    file = tmp_path / "cni.prom"
    with serving(runtime, path, "--metrics-file", str(file)) as server:
        wait_until(file.exists, "the file is written")
        assert parse(file.read_text())
        assert file.stat().st_mode & 0o777 == 0o644
        assert server.end() == 0
        assert not file.exists()


def test_an_address_in_use_is_told_and_tried_again(
    runtime: Runtime, container: Netns, path: Path
) -> None:
    """The server serves; once the address is free, scrapes are answered."""
    taken = runtime.host.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.bind(("127.0.0.1", 9464))
    taken.listen()
    with serving(runtime, path, "--metrics", ADDRESS) as server:
        assert "no metrics on 127.0.0.1:9464: address already in use" in server.said
        runtime.add("loopback", CONF, container).succeeded()
        assert server.status()["served"] == 1
        taken.close()
        wait_until(lambda: answers(runtime.host), "it has the address now")


@pytest.mark.parametrize(
    "address", ["x", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:99999", "::1:9464", "unix:m", "h:1"]
)
def test_an_address_that_is_none(address: str, runtime: Runtime, path: Path) -> None:
    done = runtime.host.run(
        subprocess.run,
        [runtime.bin_dir / "cni", "serve", "--socket", str(path), "--metrics", address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert "--metrics" in done.stderr
    assert not path.exists()


def test_an_observer_that_is_killed_comes_again(
    runtime: Runtime, container: Netns, path: Path
) -> None:
    """With the numbers that there were; workers and requests go on."""
    with serving(runtime, path, "--workers", "2", "--metrics", ADDRESS) as server:
        runtime.add("loopback", CONF, container).succeeded()
        counted(runtime.host, 1)
        (observer,) = server.observers()
        os.kill(observer, signal.SIGKILL)
        runtime.add("loopback", CONF, container).succeeded()
        assert server.status()["served"] == 2
        wait_until(lambda: answers(runtime.host), "there is another")
        counted(runtime.host, 2)


def test_a_log_that_cannot_be_written_is_counted(
    runtime: Runtime, container: Netns, path: Path, tmp_path: Path
) -> None:
    with serving(runtime, path, "--metrics", ADDRESS):
        env = recorded(tmp_path / "missing" / "log")
        runtime.add("loopback", CONF, container, env=env).succeeded()
        lost = {"what": "log line"}
        wait_until(
            lambda: value(scrape(runtime.host), "cni_record_lost_total", **lost) == 1, "counted"
        )
