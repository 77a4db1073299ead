"""Delegation: finding and running another plugin. The other plugins are real shell scripts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import delegate
from cni.protocol.errors import CNIError, DelegateError
from cni.protocol.request import Request
from cni.protocol.result import Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONF = b'{"cniVersion": "0.4.0", "name": "n", "ipam": {"type": "other"}, "extra": [1, 2]}'


def nobody(_name: str, _program: str, _request: Request) -> tuple[bool, Result | None]:
    """No plugin is ours."""
    return False, None


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the plugin `other`, a shell script, and gives its path."""

    def write(body: str) -> Path:
        path = tmp_path / "other"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    return write


def request(tmp_path: Path, command: str = "ADD", **env: str) -> Request:
    variables = {"PATH": "/usr/bin:/bin", "CNI_COMMAND": "SOMETHING", "CNI_IFNAME": "eth0", **env}
    return Request(command, "c1", "/x", "eth0", "", [str(tmp_path)], CONF, variables)


def run(tmp_path: Path, command: str = "ADD", **env: str) -> Result | None:
    return delegate.run(request(tmp_path, command, **env), "other", nobody)


def failure(tmp_path: Path, command: str = "ADD") -> CNIError:
    with pytest.raises(CNIError) as caught:
        run(tmp_path, command)
    return caught.value


# -- finding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "msg"),
    [
        ("", "no plugin name provided"),
        ("a/b", "invalid plugin name: a/b"),
        ("../a", "invalid plugin name: ../a"),
        ("/bin/sh", "invalid plugin name: /bin/sh"),
        (".", "invalid plugin name: ."),
        ("..", "invalid plugin name: .."),
        ("a\0b", "invalid plugin name: a\0b"),
        ("nosuch", 'failed to find plugin "nosuch" in path [/bin /sbin]'),
        ("nosuch\n", 'failed to find plugin "nosuch\n" in path [/bin /sbin]'),
        ("x" * 5000, f'failed to find plugin "{"x" * 5000}" in path [/bin /sbin]'),
    ],
)
def test_not_found(name: str, msg: str) -> None:
    with pytest.raises(CNIError) as caught:
        delegate.find(name, ["/bin", "", "/sbin"])
    assert (caught.value.code, caught.value.msg) == (999, msg)


def test_no_paths() -> None:
    with pytest.raises(CNIError, match="no paths provided"):
        delegate.find("a", ["", ""])


def test_the_first_regular_file_wins(tmp_path: Path) -> None:
    dirs = [tmp_path / name for name in ("missing", "dir", "fifo", "link", "file", "later")]
    for directory in dirs[1:]:
        directory.mkdir()
    (dirs[1] / "p").mkdir()
    (dirs[3] / "p").symlink_to("nowhere")
    for directory in dirs[4:]:
        (directory / "p").touch()
    path = [str(directory) for directory in dirs]
    assert delegate.find("p", path) == str(dirs[4] / "p")  # not executable: found all the same
    (dirs[3] / "p").unlink()
    (dirs[3] / "p").symlink_to(dirs[5] / "p")
    assert delegate.find("p", path) == str(dirs[3] / "p")


# -- what the child gets --------------------------------------------------------------------------


def test_the_child_gets_our_environment_and_stdin(
    tmp_path: Path, script: Callable[[str], Path]
) -> None:
    script(f"cat >{tmp_path}/stdin; env >{tmp_path}/env; echo $# >{tmp_path}/args; echo null")
    assert run(tmp_path, "ADD", CNI_ARGS="A=B", OTHER="x y") == Result()
    assert (tmp_path / "stdin").read_bytes() == CONF
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert env["CNI_COMMAND"] == "ADD"  # the verb wins over the environment's
    assert (env["CNI_IFNAME"], env["CNI_ARGS"], env["OTHER"]) == ("eth0", "A=B", "x y")
    assert (tmp_path / "args").read_text() == "0\n"


def test_no_descriptor_is_inherited(tmp_path: Path, script: Callable[[str], Path]) -> None:
    with open(tmp_path / "held", "w"):
        script(f"ls /proc/$$/fd >{tmp_path}/fds; echo null")
        run(tmp_path)
    # a shell reading a script has that open as a high number
    low = {int(fd) for fd in (tmp_path / "fds").read_text().split() if int(fd) < 10}
    assert low == {0, 1, 2}


@pytest.mark.parametrize("size", [0, 1, 65536, 1 << 20])
def test_a_child_that_reads_or_writes_much_does_not_block(
    tmp_path: Path, script: Callable[[str], Path], size: int
) -> None:
    script(f"head -c {size} /dev/zero | tr '\\0' ' '; head -c {size} /dev/zero >&2; echo null")
    big = request(tmp_path)._replace(stdin=CONF + b" " * size)  # which nobody reads
    assert delegate.run(big, "other", nobody) == Result()


# -- what the child says --------------------------------------------------------------------------


@pytest.mark.parametrize("version", ['"cniVersion": "0.4.0", ', '"cniVersion": "", ', ""])
def test_result(tmp_path: Path, script: Callable[[str], Path], version: str) -> None:
    """Without a version it is one of the configuration's."""
    script(f"""echo '{{{version}"ips": [{{"version": "4", "address": "10.0.0.2/8"}}]}}'""")
    result = run(tmp_path)
    assert result is not None
    assert result.as_dict("1.0.0") == {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/8"}]}


def test_a_result_of_another_version(tmp_path: Path, script: Callable[[str], Path]) -> None:
    script("""echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/8"}]}'""")
    result = run(tmp_path)
    assert result is not None
    assert result.ips[0].address == "10.0.0.2/8"


@pytest.mark.parametrize("command", ["DEL", "CHECK", "STATUS", "GC"])
def test_only_an_add_has_a_result(
    tmp_path: Path, script: Callable[[str], Path], command: str
) -> None:
    script(f'test "$CNI_COMMAND" = {command} && echo nonsense')
    assert run(tmp_path, command) is None


@pytest.mark.parametrize("output", ["", "nonsense", "{", "[]", "5", '"x"', '{"cniVersion": 5}'])
def test_an_add_that_prints_nonsense(
    tmp_path: Path, script: Callable[[str], Path], output: str
) -> None:
    script(f"printf %s '{output}'")
    assert failure(tmp_path).code == 999


def test_stderr_is_passed_on(
    tmp_path: Path, script: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    script("echo one >&2; echo null; echo two >&2")
    run(tmp_path)
    assert capfd.readouterr() == ("", "one\ntwo\n")


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_its_error_is_ours(tmp_path: Path, script: Callable[[str], Path], command: str) -> None:
    script("""echo '{"code": 11, "msg": "no <lease>", "details": "wait"}'; exit 3""")
    error = failure(tmp_path, command)
    assert isinstance(error, DelegateError)
    assert (error.code, error.msg, error.details) == (11, "no <lease>", "wait")


@pytest.mark.parametrize(
    ("body", "msg"),
    [
        ("exit 3", "netplugin failed with no error message: exit status 3"),
        ("kill -9 $$", "netplugin failed with no error message: signal 9"),
        ("echo oh no >&2; exit 1", 'netplugin failed: "oh no"'),
        ("printf '\\377' >&2; exit 1", 'netplugin failed: "\ufffd"'),
    ],
)
def test_a_silent_failure(
    tmp_path: Path, script: Callable[[str], Path], body: str, msg: str
) -> None:
    script(body)
    error = failure(tmp_path)
    assert (error.code, error.msg) == (0, msg)


@pytest.mark.parametrize("output", ["nonsense", "[]", "5", '{"code": "x"}', '{"code": []}', "{"])
def test_a_failure_that_prints_nonsense(
    tmp_path: Path, script: Callable[[str], Path], output: str
) -> None:
    script(f"printf %s '{output}'; exit 1")
    error = failure(tmp_path)
    assert error.code == 0
    start = f'netplugin failed but error parsing its diagnostic message "{output}": '
    assert error.msg.startswith(start)
    reason = error.msg.removeprefix(start)
    assert not re.search("no attribute|argument|invalid literal|malformed|truncated", reason)


@pytest.mark.parametrize("output", [b"nonsense", b"", b"{", b"\xff", b'{"ips": ]}'])
def test_a_result_that_is_no_json(output: bytes) -> None:
    with pytest.raises(CNIError, match=r"^failed to decode the plugin's result: ") as raised:
        delegate.parse_output(output, b'{"cniVersion": "1.0.0"}')
    reason = raised.value.msg.partition("result: ")[2]
    assert re.match("invalid character|unexpected end of JSON input", reason)


@given(st.binary(max_size=50) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(st.sampled_from(["code", "msg", "details", "x"]), inner),
    max_leaves=4,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_output_of_a_failure_is_an_error(output: bytes) -> None:
    error = delegate._failure(output, b"", "exit status 1")
    assert isinstance(error.code, int)
    assert isinstance(error.msg, str)
    assert isinstance(error.details, str)


@given(st.binary(max_size=50))
def test_any_output_of_an_add_is_a_result_or_refused(output: bytes) -> None:
    try:
        delegate.parse_output(output, CONF)
    except CNIError:
        pass


def test_what_cannot_be_run(tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    assert failure(tmp_path).msg == f"fork/exec {path}: permission denied"
    path.write_text("no program at all")
    path.chmod(0o755)
    assert failure(tmp_path).msg == f"fork/exec {path}: exec format error"
    path.write_text("#!/nowhere\n")
    assert failure(tmp_path).msg == f"fork/exec {path}: no such file or directory"


def test_a_program_that_is_being_written_is_tried_again(
    tmp_path: Path, script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = script("echo null")
    naps: list[float] = []
    writer: list[Any] = [open(path, "a")]  # noqa: SIM115 open for as long as the test wants

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            writer.pop().close()

    monkeypatch.setattr(delegate.time, "sleep", nap)
    assert run(tmp_path) == Result()
    assert naps == [1, 1, 1]

    writer.append(open(path, "a"))  # noqa: SIM115
    naps[:] = [0] * 3  # it never ends
    assert failure(tmp_path).msg == f"fork/exec {path}: text file busy"
    assert len(naps) == 3 + 5  # six runs
    writer.pop().close()


# -- in this process, or not ----------------------------------------------------------------------


def test_in_process(tmp_path: Path, script: Callable[[str], Path]) -> None:
    path = script(f"touch {tmp_path}/ran; echo null")
    seen: list[tuple[str, str, str]] = []
    own = Result(routes=[])

    def ours(name: str, program: str, req: Request) -> tuple[bool, Result | None]:
        seen.append((name, program, req.command))
        return True, own

    assert delegate.run(request(tmp_path), "other", ours) is own
    assert seen == [("other", str(path), "ADD")]
    assert not (tmp_path / "ran").exists()
    run(tmp_path)
    assert (tmp_path / "ran").exists()


def test_the_name_is_checked_before_anything_runs(tmp_path: Path) -> None:
    def ours(*_: object) -> tuple[bool, Result | None]:
        raise AssertionError("asked for a plugin that does not exist")

    for name in ("", "a/b", "nosuch"):
        with pytest.raises(CNIError):
            delegate.run(request(tmp_path), name, ours)


# --- whether a file is this program ---------------------------------------------------------------


OUR_BUILD = b"\ncni_build=0123456789ab\n"


@pytest.fixture
def our_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cni._build.ID", "0123456789ab")


@pytest.mark.usefixtures("our_build")
@pytest.mark.parametrize(
    ("content", "is_ours"),
    [
        (b"client" + OUR_BUILD + b"more" + OUR_BUILD, True),
        (b"another" + OUR_BUILD + b"more, without the end", True),
        (OUR_BUILD, True),
        (OUR_BUILD[1:], False),
        (b"client" + OUR_BUILD.replace(b"0", b"f"), False),
        (b"#!/bin/sh\n", False),
        (b"", False),
    ],
)
def test_a_small_file_is_ours_by_its_build_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, *, is_ours: bool
) -> None:
    (tmp_path / "plugin").write_bytes(content)
    (tmp_path / "own").write_bytes(b"client" + OUR_BUILD + b"more" + OUR_BUILD)
    for own in ("own", "missing", "plugin"):
        monkeypatch.setattr("sys.argv", [str(tmp_path / own)])
        expected = {"own": is_ours, "missing": False, "plugin": True}[own]
        assert delegate.is_ourselves(str(tmp_path / "plugin")) is expected


@pytest.mark.usefixtures("our_build")
def test_of_a_small_file_only_the_end_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of another build have other bytes there; ours need not be read."""
    for name, end in (("own", OUR_BUILD), ("same", OUR_BUILD), ("other", OUR_BUILD[:-2] + b"c\n")):
        (tmp_path / name).write_bytes(bytes(100_000) + end)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "own")])
    monkeypatch.setattr(delegate, "_is_our_build", lambda _: False)
    assert delegate.is_ourselves(str(tmp_path / "same"))
    assert not delegate.is_ourselves(str(tmp_path / "other"))


@pytest.mark.usefixtures("our_build")
def test_what_cannot_be_read_is_not_ours(tmp_path: Path) -> None:
    assert not delegate.is_ourselves(str(tmp_path))
    assert not delegate.is_ourselves(str(tmp_path / "missing"))
    assert not delegate.is_ourselves("with a \0")
