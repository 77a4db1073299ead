"""Traces: spans of requests, sent to a collector: docs/observability.md."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.collector import ENDPOINT, Collector, collecting
from tests.harness.record import lines, recorded
from tests.harness.server import serving
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Netns, Runtime
    from tests.harness.server import Server

pytestmark = pytest.mark.own_server

CONF = {"cniVersion": "1.1.0", "name": "mynet"}
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


@contextmanager
def traced(runtime: Runtime, tmp_path: Path, *options: str, **env: str) -> Iterator[Server]:
    """A server that sends spans to ENDPOINT, with these variables besides."""
    wanted = {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, **SOON, **env}
    prefix = ["env", *(f"{key}={value}" for key, value in wanted.items())]
    with serving(runtime, tmp_path / "s", "--workers", "2", *options, prefix=prefix) as server:
        wait_until((tmp_path / "s.spans").exists, "spans are taken")
        yield server


def bridge(data_dir: Path) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": str(data_dir)}
    return {**CONF, "isGateway": True, "ipam": ipam}


def root_of(collector: Collector, name: str) -> dict[str, Any]:
    """The span of that name, which has come."""
    wait_until(lambda: collector.named(name), f"the span {name}")
    return collector.named(name)[0]


def test_a_request_is_a_span_and_its_steps_are(
    runtime: Runtime, container: Netns, data_dir: Path, tmp_path: Path
) -> None:
    """The caller's trace goes on: our span is below its, the steps are below ours."""
    env = recorded(tmp_path / "log", TRACEPARENT=PARENT, TRACESTATE="vendor=x")
    with collecting(runtime.host) as collector, traced(runtime, tmp_path):
        runtime.add("bridge", bridge(data_dir), container, env=env).succeeded()
        root = root_of(collector, "bridge ADD")
        assert (root["traceId"], root["parentSpanId"]) == (TRACE, SPAN)
        assert (root["kind"], root["traceState"]) == (2, "vendor=x")
        assert "status" not in root
        named = collector.attributes(root)
        assert named["cni.network"] == "mynet"
        assert named["cni.container_id"] == "c1"
        assert named["cni.via"] == "served"
        below = {span["spanId"]: span for span in collector.spans}
        steps = [span for span in collector.spans if span is not root]
        assert {span["traceId"] for span in steps} == {TRACE}
        assert all(span["parentSpanId"] in below for span in steps)
        assert len(below) == len(collector.spans)
        (delegate,) = collector.named("host-local ADD")
        assert delegate["parentSpanId"] == root["spanId"]
        assert [span for span in steps if span["name"].startswith("netlink ")]
        for span in steps:
            assert int(root["startTimeUnixNano"]) <= int(span["startTimeUnixNano"])
            assert int(span["endTimeUnixNano"]) <= int(root["endTimeUnixNano"])
        assert lines(tmp_path / "log")[0]["traceID"] == TRACE
        runtime.delete("bridge", bridge(data_dir), container).succeeded()


def test_an_error_is_in_the_span(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    env: dict[str, str | None] = {"TRACEPARENT": PARENT}
    with collecting(runtime.host) as collector, traced(runtime, tmp_path):
        conf = {**CONF, "cniVersion": "9.9.9"}
        error = runtime.add("loopback", conf, container, env=env).failed(1)
        root = root_of(collector, "loopback ADD")
        assert root["status"] == {"code": 2, "message": error["msg"]}
        assert collector.attributes(root)["cni.code"] == "1"
        runtime.call("X" * 5000, "loopback", CONF, container, env=env).failed(4)
        root_of(collector, "loopback other")


@pytest.mark.parametrize(
    ("parent", "sampled"),
    [
        (None, True),  # a trace of its own
        ("", True),
        ("00-bad", True),
        (f"00-{TRACE.upper()}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"cc-{TRACE}-{SPAN}-01-more", True),
    ],
)
def test_what_the_caller_says(
    parent: str | None, sampled: bool, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """A header that is malformed is ignored, and TRACESTATE with it."""
    env: dict[str, str | None] = {"TRACEPARENT": parent, "TRACESTATE": "a=b"}
    is_valid = parent is not None and parent.startswith("cc-")
    with collecting(runtime.host) as collector, traced(runtime, tmp_path):
        runtime.add("loopback", CONF, container, env=env).succeeded()
        runtime.delete("loopback", CONF, container, env={"TRACEPARENT": PARENT}).succeeded()
        root_of(collector, "loopback DEL")
        found = collector.named("loopback ADD")
        assert len(found) == int(sampled)
        for span in found:
            assert (span["traceId"] == TRACE) == is_valid
            assert span.get("parentSpanId") == (SPAN if is_valid else None)
            assert span.get("traceState") == ("a=b" if is_valid else None)


@pytest.mark.parametrize(
    ("sampler", "argument", "with_parent", "without"),
    [
        ("always_off", "", 0, 0),
        ("always_on", "", 2, 2),
        ("parentbased_always_off", "", 1, 0),
        ("parentbased_traceidratio", "0", 1, 0),
        ("traceidratio", "1.0", 2, 2),
        ("no-such", "", 1, 2),
    ],
)
def test_samplers(
    sampler: str,
    argument: str,
    with_parent: int,
    without: int,
    runtime: Runtime,
    container: Netns,
    tmp_path: Path,
) -> None:
    """With a parent that is sampled and one that is not; twice without a parent."""
    chosen = {"OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    with collecting(runtime.host) as collector:
        with traced(runtime, tmp_path, **chosen) as server:
            for flags in ("01", "00"):
                env: dict[str, str | None] = {"TRACEPARENT": f"00-{TRACE}-{SPAN}-{flags}"}
                runtime.add("loopback", CONF, container, env=env).succeeded()
            for _ in range(2):
                runtime.add("loopback", CONF, container).succeeded()
            server.end()
        found = [span["traceId"] == TRACE for span in collector.named("loopback ADD")]
        assert (found.count(True), found.count(False)) == (with_parent, without)


def test_a_foreign_delegate_gets_the_context(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """A plugin that is another program: its parent is our span, baggage goes through."""
    directory = tmp_path / "bin"
    directory.mkdir()
    foreign = directory / "foreign-ipam"
    foreign.write_text(
        "#!/bin/sh\n"
        f'echo "$CNI_COMMAND|$TRACEPARENT|$TRACESTATE|$BAGGAGE" >>{tmp_path}/seen\n'
        'test "$CNI_COMMAND" = ADD || exit 0\n'
        """echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.7/24"}]}'\n"""
    )
    foreign.chmod(0o755)
    runtime.cni_path = f"{runtime.bin_dir}:{directory}"
    conf = {**CONF, "ipam": {"type": "foreign-ipam"}}
    more = {"TRACESTATE": "a=b", "BAGGAGE": "user=alice"}
    env: dict[str, str | None] = {"TRACEPARENT": PARENT, **more}
    with collecting(runtime.host) as collector, traced(runtime, tmp_path):
        runtime.add("bridge", conf, container, env=env).succeeded()
        root_of(collector, "bridge ADD")
        (call,) = collector.named(f"call {foreign} ADD")
        assert call["kind"] == 3
        seen = (tmp_path / "seen").read_text().splitlines()
        assert seen == [f"ADD|00-{TRACE}-{call['spanId']}-01|a=b|user=alice"]
        # without a valid parent the trace is new, and another's state is not handed on
        runtime.delete("bridge", conf, container, env={**more, "TRACEPARENT": "bad"}).succeeded()
        new = root_of(collector, "bridge DEL")
        (call,) = collector.named(f"call {foreign} DEL")
        last = (tmp_path / "seen").read_text().splitlines()[-1]
        assert last == f"DEL|00-{new['traceId']}-{call['spanId']}-01||user=alice"


def test_without_an_exporter_the_context_goes_through(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    directory = tmp_path / "bin"
    directory.mkdir()
    (directory / "foreign-ipam").write_text(
        f'#!/bin/sh\necho "$TRACEPARENT|$TRACESTATE" >>{tmp_path}/seen\n'
    )
    (directory / "foreign-ipam").chmod(0o755)
    runtime.cni_path = f"{runtime.bin_dir}:{directory}"
    conf = {**CONF, "ipam": {"type": "foreign-ipam"}}
    env: dict[str, str | None] = {"TRACEPARENT": PARENT, "TRACESTATE": "a=b"}
    runtime.delete("bridge", conf, container, env=env).succeeded()
    with serving(runtime, tmp_path / "s"):
        runtime.delete("bridge", conf, container, env=env).succeeded()
    assert (tmp_path / "seen").read_text() == f"{PARENT}|a=b\n" * 2


def test_a_request_by_exec_hands_its_spans_to_the_server(
    runtime: Runtime, container: Netns, data_dir: Path, tmp_path: Path
) -> None:
    """Where the caller's trace is sampled; without a server there is nobody to take them."""
    env: dict[str, str | None] = {"TRACEPARENT": PARENT, "CNI_SERVER": "off"}
    with collecting(runtime.host) as collector:
        with traced(runtime, tmp_path):
            runtime.add("bridge", bridge(data_dir), container, env=env).succeeded()
            root = root_of(collector, "bridge ADD")
            assert collector.attributes(root)["cni.via"] == "exec"
            assert (root["traceId"], root["parentSpanId"]) == (TRACE, SPAN)
            assert collector.named("host-local ADD")
        count = len(collector.spans)
        runtime.delete("bridge", bridge(data_dir), container, env=env).succeeded()
        assert len(collector.spans) == count


def test_the_environment_of_the_exporter(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    with collecting(runtime.host) as collector:
        with traced(
            runtime,
            tmp_path,
            OTEL_SERVICE_NAME="my cni",
            OTEL_RESOURCE_ATTRIBUTES="zone=eu%2C1,service.name=no",
            OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20x,bad=a%0d%0aEvil: 1,=",
        ) as server:
            runtime.add("loopback", CONF, container).succeeded()
            root_of(collector, "loopback ADD")
            server.end()
        resource = collector.resources[0]
        assert resource["service.name"] == "my cni"
        assert resource["zone"] == "eu,1"
        assert "authorization: Bearer x" in collector.heads[0].split("\r\n")
        assert "Evil" not in collector.heads[0]


def dropped(tmp_path: Path) -> float:
    from tests.netns.test_record_metrics import parse, value

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(tmp_path / "m"))
        sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        data = b""
        while more := sock.recv(65536):
            data += more
    page = parse(data.decode().partition("\r\n\r\n")[2])
    return value(page, "cni_spans_total", result="dropped")


def test_a_collector_that_is_not_well_delays_nobody(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """Away, final errors, errors that pass: spans are sent again, or dropped and counted."""
    metrics = f"unix:{tmp_path}/m"
    with traced(runtime, tmp_path, "--metrics", metrics, OTEL_BSP_MAX_QUEUE_SIZE="4"):
        runtime.add("loopback", CONF, container).succeeded()  # nobody listens
        for _ in range(4):
            runtime.add("loopback", CONF, container).succeeded()
        wait_until(lambda: dropped(tmp_path) > 0, "the queue has an end")
        with collecting(runtime.host) as collector:
            wait_until(lambda: collector.spans, "spans are sent once it is there")
            before = dropped(tmp_path)
            collector.answer = lambda _: (500, "", b"no")
            runtime.delete("loopback", CONF, container).succeeded()
            wait_until(lambda: dropped(tmp_path) > before, "a final error drops them")
            told = collector.requests
            statuses = iter([429, 503])
            collector.answer = lambda _: (
                next(statuses, 200),
                "Retry-After: 1\r\n",
                b'{"partialSuccess": {}}',
            )
            runtime.call("VERSION", "loopback", "").succeeded()
            wait_until(lambda: collector.named("loopback VERSION"), "errors that pass")
            assert collector.requests >= told + 3


def test_a_collector_that_hangs_delays_nobody(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """Neither requests nor the server's end, which waits two seconds at most."""
    with collecting(runtime.host) as collector:
        collector.delay = 5
        with traced(runtime, tmp_path, OTEL_EXPORTER_OTLP_TIMEOUT="500") as server:
            for _ in range(20):
                runtime.add("loopback", CONF, container).succeeded()
            assert server.status()["served"] == 20
            assert server.end(timeout=60) == 0
        collector.delay = 0


def test_spans_of_nobody(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    """What is sent to the socket and is no span of ours; and only our user may send."""
    with collecting(runtime.host) as collector, traced(runtime, tmp_path):
        path = tmp_path / "s.spans"
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for data in (b"", b"{", b"[]", b"{}", b'["x"]', b"\xff" * 1000, b"[1]"):
                sender.sendto(data, str(path))
        runtime.add("loopback", CONF, container).succeeded()
        root_of(collector, "loopback ADD")


def test_an_observer_that_is_killed(runtime: Runtime, container: Netns, tmp_path: Path) -> None:
    """Spans wait in the socket for the next one; requests do not wait."""
    with collecting(runtime.host) as collector, traced(runtime, tmp_path) as server:
        (observer,) = server.observers()
        os.kill(observer, signal.SIGKILL)
        for number in range(200):
            env: dict[str, str | None] = {"CNI_CONTAINERID": f"c{number}"}
            runtime.call("VERSION", "loopback", "", env=env).succeeded()
        root_of(collector, "loopback VERSION")


def test_an_endpoint_that_is_none_is_told(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    prefix = ["env", "OTEL_EXPORTER_OTLP_ENDPOINT=ftp://x"]
    with serving(runtime, tmp_path / "s", prefix=prefix) as server:
        assert "no spans are sent: ftp://x/v1/traces is no http:// or https://" in server.said
        runtime.add("loopback", CONF, container).succeeded()
        assert server.status()["served"] == 1
        assert json.dumps(server.observers()) == "[]"
