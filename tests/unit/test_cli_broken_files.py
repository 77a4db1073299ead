"""What is told of a configuration that is none: in Go's words or ours, with the file's name.

Never in words of Python or of its libraries, which say nothing to an operator.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cni.cli import gojson, main
from cni.protocol import gojson as go
from cni.protocol.errors import CNIError

# Words of Python's exceptions, and of the JSON library's.
FOREIGN = re.compile(
    r"Traceback|codec|Errno|Expected `|JSON is malformed|truncated|[a-z]Error\b|NoneType"
    r"|no attribute"
)
BROKEN = {
    "empty.conflist": b"",
    "torn.conflist": b'{"cniVersion": "1.0.0",\n "name": "net"',
    "comma.conflist": b'{"cniVersion": "1.0.0",\n "name": "net", }',
    "words.conflist": b"name: net\n",
    "bytes.conflist": b"\xff\xfe{}",
    "list.conflist": b"[1, 2]",
    "number.conflist": b'{"name": 5, "cniVersion": "1.0.0", "plugins": []}',
    "no-plugins.conflist": b'{"cniVersion": "1.0.0", "name": "net"}',
    "plugin.conflist": b'{"cniVersion": "1.0.0", "name": "net", "plugins": [5]}',
    "type.conflist": b'{"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": {}}]}',
    "infinite.conflist": b'{"cniVersion": "1.0.0", "name": 1e999999, "plugins": []}',
    "deep.conflist": b'{"a":' * 20000,
    "single.conf": b'{"cniVersion": 1.0, "name": "net", "type": "bridge"}',
}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("NETCONFPATH", "CNI_STATE_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("CNI_SERVER_SOCKET", str(tmp_path / "cni.sock"))
    return tmp_path / "NETCONFPATH"


def run(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words])
    out, err = capfd.readouterr()
    assert not FOREIGN.search(out + err), (words, out, err)
    return code, out, err


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file(directory: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    """Each command names the file, or does without it where libcni would."""
    (directory / name).write_bytes(BROKEN[name])
    path = str(directory / name)
    code, out, err = run(capfd, "validate")
    assert code == 1, (out, err)
    assert path in out + err, (out, err)
    code, out, err = run(capfd, "plan", "net")
    assert code in (1, 3), (code, out, err)
    assert str(directory) in out + err, (code, out, err)
    cache = ("--cache-dir", str(directory.parent / "cache"))
    code, out, err = run(capfd, "ls", *cache)
    assert code == 0, (out, err)
    assert path in err, (out, err)
    code, out, err = run(capfd, "status", "net", *cache)
    assert code in (1, 3, 6), (code, out, err)
    assert path in err or "root" in err, (code, out, err)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", '{"a": }', "5", '{"a": 1e999}x'])
def test_capabilities_of_the_environment(
    directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (directory / "10-net.conflist").write_text(
        '{"cniVersion": "1.0.0", "name": "net", "plugins": []}'
    )
    monkeypatch.setenv("CAP_ARGS", text)
    code, out, err = run(capfd, "add", "net", "/proc/self/ns/net")
    assert code != 0
    assert out == ""
    assert err


def test_the_place_is_named() -> None:
    with pytest.raises(CNIError) as raised:
        gojson.decode(b'{"a": 1,\n "b": }')
    assert raised.value.msg == "invalid character '}' looking for beginning of value"
    assert raised.value.details == "line 2, column 7"


@example(b"9223372036854775808")
@example(b"18446744073709551616")
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_read_as_go_reads_them(data: bytes) -> None:
    """The same documents as by the plugins, and the same words for those that are none."""
    said = []
    for decode in (go.decode, gojson.decode):
        try:
            said.append(repr(decode(data)))
        except ValueError as error:
            said.append(str(error))
        except CNIError as error:
            said.append(error.msg)
    assert said[0] == said[1]
