"""Settings of the log and of traces that are broken: no request fails, waits, or says more.

By exec and through a server, which says at its start what has no effect. In `make test-all` by the
self-contained file, too.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.record import PATHS
from tests.harness.server import Server, serving

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.harness import Netns, Runtime

pytestmark = pytest.mark.own_server

CONF: dict[str, Any] = {"cniVersion": "1.1.0", "name": "mynet"}


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def loop(path: Path) -> None:
    path.symlink_to(path)


# What /etc/cni/record.json may be -> how it is made.
NODE_FILES: dict[str, Callable[[Path], object]] = {
    "torn": content(b'{"logLevel": "all", '),
    "empty": content(b""),
    "no object": content(b'["all"]'),
    "no UTF-8": content(b'{"logLevel": "\xff\xfe"}'),
    "nested": content(b"[" * 60_000),
    "large": content(b'{"logLevel": "' + b"x" * 100_000 + b'"}'),
    "wrong types": content(b'{"logLevel": ["all"], "logFile": {"a": 1}}'),
    "wrong values": content(b'{"logLevel": "debug", "logFile": "relative.log"}'),
    "path that is none": content(b'{"logLevel": "all", "logFile": "/\\u0000/\\ud800"}'),
    "file without directory": content(b'{"logLevel": "all", "logFile": "/nosuch/dir/x.log"}'),
    "a directory as log": content(b'{"logLevel": "all", "logFile": "/etc"}'),
    "directory": os.mkdir,
    "fifo": os.mkfifo,
    "dangling link": lambda path: path.symlink_to("/nosuch/record.json"),
    "link to itself": loop,
}
# These are right as settings: what cannot be written is lost.
WITHOUT_WARNING = {"file without directory", "a directory as log"}
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "no URL": {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"},
    "no port": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:port"},
    "no host": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://"},
    "half an address": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1"},
    "nothing right": {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # where nobody listens
        "OTEL_EXPORTER_OTLP_HEADERS": "=,a,b=c=d,\xe4",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "-1",
        "OTEL_RESOURCE_ATTRIBUTES": "=,%zz=%,a",
        "OTEL_SERVICE_NAME": "\x1b[31m",
        "OTEL_TRACES_SAMPLER": "sometimes",
        "OTEL_TRACES_SAMPLER_ARG": "two",
        "OTEL_BSP_SCHEDULE_DELAY": "soon",
        "OTEL_BSP_MAX_QUEUE_SIZE": "0",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1e9",
        "OTEL_SDK_DISABLED": "perhaps",
        "CNI_LOG_LEVEL": "debug",
        "CNI_LOG_FILE": "relative.log",
    },
}
CALLER = {"TRACEPARENT": "00-" + "0" * 32 + "-xx-01", "TRACESTATE": "=" * 600, "BAGGAGE": "%"}


def attached(runtime: Runtime, container: Netns, **env: str) -> None:
    """An ADD and its DEL succeed, with nothing on stderr; and an ADD that fails says why."""
    added = runtime.call("ADD", "loopback", CONF, container, env=env)
    assert (added.rc, added.stderr) == (0, ""), str(added)
    removed = runtime.call("DEL", "loopback", CONF, container, env=env)
    assert (removed.rc, removed.stdout, removed.stderr) == (0, "", ""), str(removed)
    wrong = runtime.call("ADD", "loopback", {**CONF, "cniVersion": "9.9.9"}, container, env=env)
    assert json.loads(wrong.stdout)["code"] == 1, str(wrong)
    assert wrong.stderr == ""


def told(server: Server) -> str:
    assert "Traceback" not in server.said, server.said
    return server.said


@pytest.mark.parametrize("state", NODE_FILES)
@pytest.mark.parametrize("via", PATHS)
def test_the_file_of_the_node(
    via: str, state: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    NODE_FILES[state](path)
    if via == "exec":
        attached(runtime, container, CNI_RECORD_CONF=str(path), CNI_SERVER="off")
        return
    with serving(runtime, tmp_path / "s", prefix=["env", f"CNI_RECORD_CONF={path}"]) as server:
        attached(runtime, container)
        assert server.status()["served"] == 3
        assert (str(path) in told(server)) == (state not in WITHOUT_WARNING)


@pytest.mark.parametrize("state", ENVIRONMENTS)
@pytest.mark.parametrize("via", PATHS)
def test_the_environment(
    via: str, state: str, runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    env = ENVIRONMENTS[state]
    if via == "exec":
        attached(runtime, container, CNI_SERVER="off", **CALLER, **env)
        return
    prefix = ["env", *(f"{name}={value}" for name, value in env.items())]
    with serving(runtime, tmp_path / "s", prefix=prefix) as server:
        attached(runtime, container, **CALLER)
        assert server.status()["served"] == 3
        said = told(server)
        wrong = {name for name in env if name not in said}
        # A name of the service, or a switch that is not "true", cannot be wrong.
        assert wrong <= {
            "OTEL_SERVICE_NAME",
            "OTEL_SDK_DISABLED",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            *(["OTEL_EXPORTER_OTLP_ENDPOINT"] if state == "nothing right" else []),
        }
