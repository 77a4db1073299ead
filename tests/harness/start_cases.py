"""What holds for every way of starting: imported by the tests of both files."""

from __future__ import annotations

import json
import os
import resource
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import ways

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ENV = {"CNI_SERVER": "off", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_CONF = b'{"cniVersion":"1.1.0","name":"net","type":"loopback"}'
# A test's argv -> the plugin that it names.
_NAMED = [["bridge"], ["/opt/cni/bin/bridge"], ["./bridge"], ["buildkit-cni-bridge"]]
_NAMELESS: list[list[str] | None] = [["nosuch"], ["cni"], [""], [], None]


def assert_no_traceback(done: ways.Ended) -> None:
    assert not any(word in done.stderr for word in ("Traceback", "Fatal")), done


def error_of(done: ways.Ended) -> dict[str, object]:
    """The error on stdout, the only output but for lines of ours on stderr."""
    assert done.code == 1, done
    assert_no_traceback(done)
    error = json.loads(done.stdout)
    assert error["code"]
    assert error["msg"]
    return dict(error)


class ByDescriptor:
    """The name is in argv[0] where a file is executed by its descriptor."""

    @pytest.mark.parametrize("way", ["fexecve", "memfd", "path"])
    @pytest.mark.parametrize("argv", _NAMED, ids=lambda argv: argv[0])
    def test_argv_0_is_the_name(self, started: Path, argv: list[str], way: str) -> None:
        env = {**_ENV, "CNI_COMMAND": "VERSION"}
        done = ways.by_descriptor(started, argv, env, way=way)
        assert (done.code, done.stderr) == (0, "")
        assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]

    @pytest.mark.parametrize("way", ["fexecve", "memfd", "path"])
    @pytest.mark.parametrize("argv", _NAMELESS, ids=repr)
    def test_no_name_is_an_error(self, started: Path, argv: list[str] | None, way: str) -> None:
        env = {**_ENV, "CNI_COMMAND": "VERSION"}
        error = error_of(ways.by_descriptor(started, argv, env, way=way))
        assert "no plugin is called" in str(error["msg"])
        assert ("by a descriptor" in str(error["details"])) == (not argv or not argv[0])

    @pytest.mark.parametrize("way", ["fexecve", "memfd", "path"])
    def test_the_command_line(self, started: Path, way: str) -> None:
        done = ways.by_descriptor(started, ["cni", "plugins", "-o", "name"], _ENV, way=way)
        assert (done.code, done.stderr) == (0, "")
        assert "bridge" in done.stdout.split()

    def test_a_descriptor_s_name_does_not_rule_a_file_s(self, started: Path) -> None:
        """A runtime may write into argv[0] what it likes."""
        env = {**_ENV, "CNI_COMMAND": "VERSION", "CNI_NETNS": ""}
        program = started.with_name("loopback")
        done = ways.run(lambda: os.execve(program, ["nosuch"], env))
        assert done.code == 0, done


class Streams:
    """Whatever the streams are: the right behaviour, or one error."""

    @pytest.mark.parametrize("verb", ["VERSION", "STATUS"])
    @pytest.mark.parametrize(
        "kind", ["closed", "directory", "path", "write-only", "unconnected socket", "read-only"]
    )
    def test_a_stdin_without_a_configuration(self, started: Path, kind: str, verb: str) -> None:
        done = _status(started, verb, stdin=ways.stream(kind))
        if verb == "VERSION":  # reads nothing
            assert (done.code, done.stderr) == (0, "")
        else:
            assert error_of(done)["code"] in (5, 6)
            assert done.stderr == ""

    @pytest.mark.parametrize("kind", ["socket", "terminal", "late", "pipe"])
    def test_a_stdin_with_a_configuration(self, started: Path, kind: str) -> None:
        done = _status(started, "STATUS", stdin=ways.stream(kind, _CONF))
        assert done == (0, "", "")

    @pytest.mark.parametrize("stderr", ["pipe", "closed", "full", "broken pipe"])
    @pytest.mark.parametrize("stdout", ["closed", "full", "read-only", "broken pipe"])
    def test_a_stdout_that_takes_nothing(self, started: Path, stdout: str, stderr: str) -> None:
        """Exit code 1, also where there is no stderr either to say why."""
        stdin = "directory" if stderr == "pipe" else "pipe"
        streams = {"stdin": ways.stream(stdin, b"{}"), "stdout": ways.stream(stdout)}
        if stderr != "pipe":
            streams["stderr"] = ways.stream(stderr)
        done = _status(started, "STATUS", **streams)
        assert done.code == 1
        assert_no_traceback(done)
        assert done.stderr.count("\n") <= 1

    @pytest.mark.parametrize("stderr", ["closed", "full", "read-only", "broken pipe"])
    def test_a_stderr_that_takes_nothing(self, started: Path, stderr: str) -> None:
        done = _status(
            started, "STATUS", stdin=ways.stream("pipe", b"{"), stderr=ways.stream(stderr)
        )
        assert error_of(done)["code"] == 6
        done = _run(started.with_name("loopback"), {}, stderr=ways.stream(stderr))
        assert done.code == 0  # what it says of itself belongs there

    @pytest.mark.parametrize("closed", [("stdout",), ("stdin", "stdout"), ("stdout", "stderr")])
    def test_no_file_becomes_stdout(
        self, started: Path, tmp_path: Path, closed: tuple[str, ...]
    ) -> None:
        """The first file that a plugin opens would, and the result be written into it."""
        data = tmp_path / "leases"
        done = _host_local(started, data, "ADD", dict.fromkeys(closed))
        assert done.code == 1, done
        left = {file.name: file.read_bytes() for file in data.rglob("*") if file.is_file()}
        assert not [text for text in left.values() if b"cniVersion" in text], left
        assert "10.1.0.2" not in left  # undone


class Dispositions:
    """What a caller does with signals is not what its plugins do."""

    def test_a_caller_that_ignores_its_children(self, started: Path, tmp_path: Path) -> None:
        """Else nobody learns how a delegate has ended."""
        refusal = '{"code": 50, "msg": "nothing is free"}'
        for name, script in (("good", "exit 0"), ("full", f"echo '{refusal}'; exit 1")):
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        program = started.with_name("bridge")
        if not program.exists():
            program.symlink_to("cni")
        env = {**_ENV, "CNI_COMMAND": "STATUS", "CNI_PATH": str(tmp_path)}

        def execute() -> None:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            os.execve(program, [str(program)], env)

        for name in ("good", "full"):
            conf = {"cniVersion": "1.1.0", "name": "n", "type": "bridge", "ipam": {"type": name}}
            done = ways.run(execute, stdin=ways.stream("file", json.dumps(conf).encode()))
            if name == "good":
                assert done == (0, "", "")
            else:
                assert error_of(done)["code"] == 50


_KB, _MB = 1 << 10, 1 << 20
_LIMITS = {
    "ulimit -n": (resource.RLIMIT_NOFILE, [3, 5, 7, 8, 9, 10, 12, 16]),
    "ulimit -v": (resource.RLIMIT_AS, [n * _MB for n in (8, 24, 32, 36, 48)]),
    "ulimit -d": (resource.RLIMIT_DATA, [n * _MB for n in (1, 6, 12, 16, 20)]),
    "ulimit -s": (resource.RLIMIT_STACK, [n * _KB for n in (16, 64, 128, 256)]),
    "ulimit -f": (resource.RLIMIT_FSIZE, [0, 1, 4096]),
    "ulimit -c": (resource.RLIMIT_CORE, [0]),
    "ulimit -u": (resource.RLIMIT_NPROC, [0, 1]),
}


class Limits:
    """Below any limit of its process a request succeeds, or ends with one error in JSON."""

    @pytest.mark.parametrize("verb", ["VERSION", "ADD"])
    @pytest.mark.parametrize("name", _LIMITS)
    def test_limits(self, started: Path, tmp_path: Path, name: str, verb: str) -> None:
        kind, values = _LIMITS[name]
        data = tmp_path / "leases"
        for value in values:
            done = _host_local(started, data, verb, limits={kind: value})
            left = {file.name for file in data.rglob("*.*") if file.is_file()}
            if done.code:
                error_of(done)
                assert "10.1.0.2" not in left, (value, done)
            else:
                json.loads(done.stdout)
            assert done.stderr == "", (value, done)
            assert _host_local(started, data, "DEL").code == 0

    def test_a_configuration_that_takes_more_memory_than_there_is(
        self, started: Path, tmp_path: Path
    ) -> None:
        filler = [[]] * 3_000_000  # type: list[list[object]]
        done = _host_local(
            started, tmp_path, "ADD", limits={resource.RLIMIT_AS: 64 * _MB}, filler=filler
        )
        error = error_of(done)
        assert (error["code"], error["msg"]) == (11, "out of memory")
        assert done.stderr == ""


def _host_local(
    started: Path,
    data: Path,
    verb: str,
    streams: Mapping[str, int | None] | None = None,
    limits: Mapping[int, int] | None = None,
    filler: object = None,
) -> ways.Ended:
    """A request of host-local, with its reservations in `data`."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]], "dataDir": str(data)}
    conf = {"cniVersion": "1.1.0", "name": "net", "type": "host-local", "ipam": ipam}
    text = json.dumps({**conf, "filler": filler}, separators=(",", ":")).encode()
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}
    env |= {"CNI_NETNS": "/nosuch", "CNI_PATH": "/nosuch"}
    given = dict(streams or {})
    if "stdin" not in given:
        given["stdin"] = ways.stream("file", text)
    return _run(started.with_name("host-local"), env, limits, **given)


def _status(started: Path, verb: str, **streams: int | None) -> ways.Ended:
    return _run(
        started.with_name("loopback"), {"CNI_COMMAND": verb, "CNI_PATH": "/nosuch"}, **streams
    )


def _run(
    program: Path,
    env: Mapping[str, str],
    limits: Mapping[int, int] | None = None,
    **streams: int | None,
) -> ways.Ended:
    variables = {**_ENV, **env}
    return ways.run(lambda: os.execve(program, [str(program)], variables), limits=limits, **streams)
