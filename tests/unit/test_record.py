"""What is written down of requests: settings, lines, files (cni/record)."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import record as log
from cni.record import confined, context, journal, tracing
from cni.server import wrong_settings
from tests.harness.record import journal_at, journal_entry, lines

if TYPE_CHECKING:
    from pathlib import Path

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/c1",
}


def entry(
    conf: dict[str, Any] | bytes = b"{}", code: int = 0, output: bytes = b"", **env: str
) -> log.Entry:
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return log.Entry("bridge", {**ENV, **env}, stdin, 1700000000.25, 0.0125, code, output, "exec")


def written(entry: log.Entry, path: Path) -> dict[str, Any]:
    """The line that the entry becomes."""
    wanted = {"CNI_LOG_LEVEL": "all", "CNI_LOG_FILE": str(path)}
    log.Log().write(entry._replace(env={**entry.env, **wanted}), {})
    return lines(path)[-1]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "conf", "node", "expected"),
    [
        ({}, {}, {}, ("errors", "journal", False)),
        ({}, {}, {"loglevel": "off"}, ("off", "journal", False)),
        ({}, {"logLevel": "all"}, {"loglevel": "off"}, ("all", "journal", False)),
        ({"CNI_LOG_LEVEL": "off"}, {"logLevel": "all"}, {}, ("off", "journal", False)),
        ({}, {"LOGLEVEL": "all", "LogFile": "/a/b"}, {}, ("all", "/a/b", True)),
        ({}, {"logFile": "/a/b"}, {"logfile": "/c"}, ("errors", "/a/b", True)),
        ({}, {}, {"logfile": "/c"}, ("errors", "/c", False)),
        ({"CNI_LOG_FILE": "/e"}, {"logFile": "/a/b"}, {"logfile": "/c"}, ("errors", "/e", False)),
        ({"CNI_LOG_FILE": "journal"}, {"logFile": "/a/b"}, {}, ("errors", "journal", False)),
        ({}, {"logLevel": "debug", "logFile": "relative"}, {}, ("errors", "journal", False)),
        ({}, {"logLevel": 5, "logFile": ["/a"]}, {}, ("errors", "journal", False)),
        ({"CNI_LOG_LEVEL": "", "CNI_LOG_FILE": ""}, {}, {}, ("errors", "journal", False)),
        ({"CNI_LOG_LEVEL": "loud"}, {"logLevel": "all"}, {}, ("all", "journal", False)),
    ],
)
def test_the_first_that_is_set_counts(
    env: dict[str, str], conf: dict[str, Any], node: dict[str, str], expected: tuple[Any, ...]
) -> None:
    assert tuple(log.of_request(env, conf, node)) == expected


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"null", b'{"logLevel": 1, "logFile": "x"}', b"\xff", b"[" * 9999]
)
def test_a_wrong_file_of_the_node_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert log.of_node({"CNI_RECORD_CONF": str(tmp_path / "record.json")}) == {}


def test_the_file_of_the_node(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    env = {"CNI_RECORD_CONF": str(path)}
    assert log.of_node(env) == {}
    os.mkfifo(path)
    assert log.of_node(env) == {}
    path.unlink()
    path.write_text('{"logLevel": "all", "logFile": "/var/log/x", "more": 1}')
    assert log.of_node(env) == {"loglevel": "all", "logfile": "/var/log/x"}


# --- a line -------------------------------------------------------------------------------------


def test_a_line_has_the_fields(tmp_path: Path) -> None:
    line = written(entry({"name": "mynet", "type": "bridge"}), tmp_path / "log")
    build = line.pop("build", "")
    assert isinstance(build, str)
    assert line == {
        "time": "2023-11-14T22:13:20.250000Z",
        "plugin": "bridge",
        "verb": "ADD",
        "network": "mynet",
        "containerID": "c1",
        "ifname": "eth0",
        "netns": "/run/netns/c1",
        "ms": 12.5,
        "code": 0,
        "via": "exec",
    }


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"cni": {"labels": [{"key": "app", "value": "web"}]}}, "app=web"),
        (
            {"cni": {"Labels": [{"key": "a", "value": "b"}, {"key": "c", "value": ""}], "ips": []}},
            "a=b,c=",
        ),
        ({"cni": {"labels": [{"key": 1, "value": "b"}, "x", None, {"key": "k"}]}}, None),
        ({"cni": {"labels": {"app": "web"}}}, None),
        ({"cni": []}, None),
        ({}, None),
        ("text", None),
    ],
)
def test_labels(tmp_path: Path, args: Any, expected: str | None) -> None:
    line = written(entry({"name": "mynet", "args": args}), tmp_path / "log")
    assert line.get("labels") == expected
    fields = log.fields_of(entry({"args": args}), {"args": args})
    assert journal_entry(journal.message(fields)).get("CNI_LABELS") == expected


@pytest.mark.parametrize("key", ["name", "Name", "NAME"])
def test_keys_match_in_any_case_as_in_plugins(tmp_path: Path, key: str) -> None:
    """Of several spellings the last one counts, for the plugin too."""
    labels = {"cni": {"labels": [{"key": "app", "value": "web"}]}}
    line = written(entry({"name": "first", key: "mynet", "ARGS": labels}), tmp_path / "log")
    assert (line["network"], line["labels"]) == ("mynet", "app=web")


def test_labels_forge_nothing_and_have_an_end() -> None:
    args = {"cni": {"labels": [{"key": "a\nPRIORITY=0", "value": "x" * 9999}] * 500}}
    parsed = journal_entry(journal.message(log.fields_of(entry(), {"args": args})))
    assert parsed["PRIORITY"] != "0"
    assert len(parsed["CNI_LABELS"]) < 2000


def test_an_error_has_its_texts(tmp_path: Path) -> None:
    output = b'{"code": 7, "msg": "no \\u001b[31mname", "details": "say\\nso"}'
    line = written(entry(code=1, output=output), tmp_path / "log")
    assert (line["code"], line["msg"], line["details"]) == (7, "no \x1b[31mname", "say\nso")
    raw = (tmp_path / "log").read_bytes()
    assert raw.count(b"\n") == 1
    assert b"\x1b" not in raw


def test_an_error_that_is_no_json(tmp_path: Path) -> None:
    assert written(entry(code=1, output=b"torn {"), tmp_path / "log")["code"] == 1


@given(st.binary(max_size=3000), st.binary(max_size=200), st.text(max_size=200))
def test_any_value_becomes_one_line(stdin: bytes, variable: bytes, text: str) -> None:
    """Whatever others have chosen, a line is one object, and of bounded length."""
    value = os.fsdecode(variable.replace(b"\0", b""))
    odd = entry(stdin, 1, text.encode(errors="replace"), CNI_NETNS=value, CNI_IFNAME=value * 50)
    fields = log.fields_of(odd, log.decoded(odd.stdin))
    raw = log.msgspec.json.encode(fields)
    assert b"\n" not in raw
    assert json.loads(raw)["plugin"] == "bridge"
    parsed = journal_entry(journal.message(fields))
    assert parsed["CNI_PLUGIN"] == "bridge"
    assert set(parsed) <= {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", *journal.NAMES.values()}


def test_a_line_is_not_longer_than_that(tmp_path: Path) -> None:
    huge = "x" * 1_000_000
    output = json.dumps({"code": 999, "msg": huge, "details": huge}).encode()
    written(entry({"name": huge}, 1, output, CNI_NETNS=huge), tmp_path / "log")
    assert (tmp_path / "log").stat().st_size < 20_000


def test_a_value_cannot_forge_a_field_of_the_journal() -> None:
    output = json.dumps({"code": 7, "msg": "a\nPRIORITY=0\nCNI_CODE=0"}).encode()
    fields = log.fields_of(entry(code=1, output=output), {})
    parsed = journal_entry(journal.message(fields))
    assert (parsed["PRIORITY"], parsed["CNI_CODE"]) == ("3", "7")
    assert parsed["CNI_MSG"] == "a\nPRIORITY=0\nCNI_CODE=0"


# --- files --------------------------------------------------------------------------------------


def test_the_mode_is_0640_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        written(entry(), tmp_path / "log")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


def test_what_is_no_file_of_ours_is_left_alone(tmp_path: Path) -> None:
    """Nothing is written through a link, to a FIFO, a socket, a device, a directory."""
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    writer = log.Log()
    places = [tmp_path / name for name in ("link", "fifo", "directory", "missing/log")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "sock"))
        for place in (*places, tmp_path / "sock", "/dev/full", "/dev/null/x"):
            wanted = {"CNI_LOG_LEVEL": "all", "CNI_LOG_FILE": str(place)}
            writer.write(entry(**wanted), {})
    assert writer.dropped == 7
    assert target.read_bytes() == b""
    assert not (tmp_path / "missing").exists()


def test_a_file_that_is_kept_open_is_left_when_it_was_rotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    env = {"CNI_LOG_LEVEL": "all", "CNI_LOG_FILE": str(path)}
    monkeypatch.setattr(log, "_CHECK_SECONDS", 0.0)
    writer = log.Log(keep_open=True)
    writer.write(entry(**env), {})
    fds = len(os.listdir("/proc/self/fd"))
    writer.write(entry(**env), {})
    path.rename(tmp_path / "log.1")
    writer.write(entry(**env), {})
    assert (len(lines(tmp_path / "log.1")), len(lines(path))) == (2, 1)
    path.unlink()
    writer.write(entry(**env), {})
    assert len(lines(path)) == 1
    assert len(os.listdir("/proc/self/fd")) == fds
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == fds - 1


class TestAConfigurationsFile:
    """A configuration names a file in one directory only."""

    @pytest.fixture
    def directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(confined, "DIRECTORY", str(tmp_path / "cni"))
        return tmp_path / "cni"

    def write(self, file: object) -> int:
        """How many entries were not written."""
        writer = log.Log()
        writer.write(entry({"logLevel": "all", "logFile": str(file)}), {})
        return writer.dropped

    def test_is_written_and_the_directory_made(self, directory: Path) -> None:
        assert self.write(directory / "log") == 0
        assert self.write(directory / "log") == 0
        assert len(lines(directory / "log")) == 2
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750

    def test_is_nowhere_else(self, directory: Path, tmp_path: Path) -> None:
        directory.mkdir(mode=0o755)
        (directory / "below").mkdir()
        names = ("../log", "below/log", "..", ".", "", "below", "./log", "/log")
        for file in (tmp_path / "log", *(f"{directory}/{name}" for name in names)):
            assert self.write(file) == 1, file
        assert not (tmp_path / "log").exists()
        assert os.listdir(directory / "below") == []

    def test_is_not_in_a_directory_of_others(self, directory: Path, tmp_path: Path) -> None:
        directory.mkdir()
        directory.chmod(0o777)
        assert self.write(directory / "log") == 1
        directory.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(directory, 1234, 1234)
            assert self.write(directory / "log") == 1
        directory.rmdir()
        (tmp_path / "other").mkdir()
        directory.symlink_to(tmp_path / "other")
        assert self.write(directory / "log") == 1
        assert os.listdir(tmp_path / "other") == []


# --- the journal --------------------------------------------------------------------------------


def test_errors_go_to_the_journal_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "socket"))
    writer = log.Log(keep_open=True)
    failed = entry({"name": "mynet"}, 1, b'{"code": 11, "msg": "no"}')
    writer.write(failed, {})  # there is no journal
    with journal_at(tmp_path / "socket") as receiver:
        writer.write(entry(), {})
        writer.write(failed, {})
        parsed = journal_entry(receiver.recv(65536))
    assert parsed["MESSAGE"] == "bridge ADD mynet failed with 11: no (12.5 ms)"
    assert parsed["SYSLOG_IDENTIFIER"] == "cni"
    assert parsed["CNI_CONTAINERID"] == "c1"
    writer.write(failed, {})  # nobody listens any more
    (tmp_path / "socket").unlink()
    with journal_at(tmp_path / "socket") as receiver:  # it was started anew
        writer.write(failed, {})
        assert journal_entry(receiver.recv(65536))["CNI_CODE"] == "11"
    writer.close()
    assert writer.dropped == 0


def test_a_busy_journal_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "socket"))
    writer = log.Log()
    with journal_at(tmp_path / "socket"):
        while not writer.dropped:
            writer.write(entry(CNI_LOG_LEVEL="all"), {})


def test_a_disk_that_is_full_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    writer = log.Log()
    monkeypatch.setattr(log.os, "write", full)
    writer.write(entry(CNI_LOG_LEVEL="all", CNI_LOG_FILE=str(tmp_path / "log")), {})
    assert writer.dropped == 1


# --- trace context ------------------------------------------------------------------------------

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", (TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01", (TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-is-to-come", (TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"cc-{TRACE}-{SPAN}-01.more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"00-{TRACE}-{SPAN}-0g", None),
        (f"0-{TRACE}-{SPAN}-01", None),
        (f" 00-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        ("", None),
        ("-" * 100, None),
        ("٠٠-" + TRACE + f"-{SPAN}-01", None),
        (f"cc-{TRACE}-{SPAN}-01-{'x' * 1000}", None),
    ],
)
def test_traceparent(text: str, expected: tuple[str, str, bool] | None) -> None:
    found = context.parse(text)
    assert (None if found is None else tuple(found)) == expected


def test_the_trace_is_in_the_line(tmp_path: Path) -> None:
    good = entry(TRACEPARENT=f"00-{TRACE}-{SPAN}-01")
    assert written(good, tmp_path / "log")["traceID"] == TRACE
    assert "traceID" not in written(entry(TRACEPARENT="00-bad"), tmp_path / "log")


# --- spans --------------------------------------------------------------------------------------


def test_steps_are_counted_when_there_are_too_many() -> None:
    """And each keeps what the work gives and raises, whatever is deep in whatever."""
    trace = tracing.Trace(None, TRACE, "ignored=1")

    def nested(depth: int) -> int:
        return depth if not depth else trace.step("deeper", 1, nested, depth - 1)

    def failing() -> None:
        raise ValueError("no \udcff")

    assert trace.step("first", 1, nested, 3) == 0
    with pytest.raises(ValueError, match="no"):
        trace.step("failing", 1, failing)
    for _ in range(200):
        trace.step("more", 1, int)
    spans = trace.finish(entry({"name": "mynet"}))
    assert len(spans) == 129
    root = spans[-1]
    assert root["name"] == "bridge ADD"
    assert "parentSpanId" not in root
    assert "traceState" not in root
    values = {each["key"]: each["value"] for each in root["attributes"]}
    assert values["cni.spans_left_out"] == {"intValue": str(5 + 200 - 128)}
    ids = {span["spanId"] for span in spans}
    assert len(ids) == len(spans)
    assert all(span["parentSpanId"] in ids for span in spans[:-1])
    (failed,) = [span for span in spans if span["name"] == "failing"]
    assert failed["status"] == {"code": 2, "message": "no \ufffd"}
    assert log.msgspec.json.encode(spans)


def test_a_step_that_is_called_in_another_way_still_runs() -> None:
    def work(*, kind: int) -> int:
        return kind

    def label(_kind: int) -> str:
        raise AssertionError("unreachable")

    assert tracing._labelled(label, work, ()).endswith("work")


def test_every_traced_function_is_there() -> None:
    """What spans are put around is looked up by name: a fresh process does it."""
    code = (
        "from cni import dispatch; from cni.record import tracing;"
        "t = tracing.begin({}, lambda *_: True); assert t is not None;"
        "assert tracing.begin({'TRACEPARENT': 'x'}, tracing.parents_choice) is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- settings without effect ---------------------------------------------------------------------


def _broken_file(path: Path, content: str | None) -> None:
    path.mkdir() if content is None else path.write_text(content)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is no JSON"),
        ("[" * 60_000, "is no JSON"),
        ("[]", "is no JSON object"),
        ('{"logLevl": "all"}', "unknown key logLevl; did you mean logLevel?"),
        ('{"logLevel": "debug"}', 'logLevel is "debug", and must be one of off, errors, all'),
        ('{"logLevel": ["all"]}', 'logLevel is ["all"]'),
        ('{"LOGFILE": "x"}', 'logFile is "x", and must be journal or an absolute path'),
        ('{"logFile": 1}', "logFile is 1"),
        (None, "cannot be read"),
        ("x" * 70_000, "cannot be read: is larger than"),
    ],
)
def test_what_is_wrong_with_the_nodes_file_is_said_and_no_request_fails_for_it(
    tmp_path: Path, content: str | None, text: str
) -> None:
    path = tmp_path / "record.json"
    _broken_file(path, content)
    env = {"CNI_RECORD_CONF": str(path)}
    (one,) = wrong_settings.all_of(env)
    assert one.where == str(path)
    assert text in one.text
    assert log.of_request({}, {}, log.of_node(env))[0] == "errors"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("CNI_LOG_LEVEL", "debug", "must be one of off, errors, all"),
        ("CNI_LOG_FILE", "x.log", "must be journal or an absolute path"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318", "no spans are sent"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:port", "no spans are sent"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "a whole number above 0"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "a whole number above 0"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "must be one of always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "a number from 0 to 1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,hidden", "1 of its parts"),
        ("CNI_RECORD_CONF", "/nosuch/record.json", "it is not there"),
    ],
)
def test_what_is_wrong_with_the_environment_is_said(name: str, value: str, text: str) -> None:
    (one,) = wrong_settings.all_of({"CNI_RECORD_CONF": "", name: value})
    assert text in str(one)
    assert "hidden" not in str(one)


def test_settings_that_are_right_are_not_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"logLevel": "all", "LogFile": "/var/log/cni/requests.log"}')
    env = {
        "CNI_RECORD_CONF": str(path),
        "CNI_LOG_LEVEL": "off",
        "CNI_LOG_FILE": "journal",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=b,c=d",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
    }
    assert wrong_settings.all_of(env) == []
