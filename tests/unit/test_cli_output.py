"""What the command line prints is shown by a terminal, never obeyed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import cni.cli
from cni import startup_error
from cni.cli import added, formats, gojson, main, output
from cni.cli.cache import Attachment, Outcome
from cni.cli.group import cli
from cni.cli.table import Column, Table, cell_width
from cni.protocol.errors import CNIError
from cni.protocol.result import Result
from tests.harness.terminal import BAD, shown


@given(st.text(st.characters(), max_size=50))
def test_nothing_is_left_for_a_terminal(text: str) -> None:
    assert shown(output.printable(text))
    assert output.printable(text, keep="").isprintable()


@given(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=50))
def test_what_can_be_shown_stays(text: str) -> None:
    assert output.printable(text) == text


def test_escapes_say_what_was_there() -> None:
    assert output.printable("x\x1b]0;own\x07") == r"x\x1b]0;own\x07"
    assert output.printable("a\u202eb\tc\nd") == "a\\u202eb\tc\nd"
    assert output.printable("caf\udce9") == "caf\ufffd"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_means_the_same(value: Any) -> None:
    data = gojson.encode(value)
    escaped = output.printable_json(data)
    assert json.loads(escaped) == json.loads(data)
    assert shown(escaped.decode())


def printed(capfd: pytest.CaptureFixture[str]) -> str:
    captured = capfd.readouterr()
    return captured.out + captured.err


@pytest.fixture(params=[False, True], ids=["program", "person"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: request.param, raising=False)
    monkeypatch.setattr(output, "is_terminal", lambda: request.param)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_every_way_to_print(capfd: pytest.CaptureFixture[str], bad: str) -> None:
    raw = {"interfaces": [{"name": f"x{bad.encode(errors='replace').decode()}", "sandbox": "/n"}]}
    result = Outcome(Result.parse(raw, "1.0.0"), "1.0.0")
    for form in ("", *formats.FORMATS):
        added.present(result, Attachment("c", f"n{bad}", f"i{bad}", f"/n{bad}"), form)
        output.error(CNIError(f"msg {bad}", f"details {bad}"), f"hint {bad}", form)
        output.click_exception(click.UsageError(bad), form)
    output.done(f"done {bad}")
    output.table(Table([Column("A"), Column("B")], [(bad, f"x{bad}")]))
    for form in ("json", "yaml"):
        output.document({f"k{bad}": [bad]}, form)
    output.plugin_stderr(f"line {bad}\n".encode(errors="replace"))
    output.exception(ValueError(bad))
    text = printed(capfd)
    assert shown(text.replace("\x1b[0m", "")), ascii(text)


def test_a_line_break_in_a_message_begins_no_line_of_ours(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    output.error(CNIError("bad\nerror: worse", "why\nnext: rm -rf /"), "hint")
    lines = printed(capfd).splitlines()
    assert [line for line in lines if line.startswith(("error:", "  next"))] == [
        "error: bad",
        "  next     hint",
    ]


def test_a_table_has_a_line_a_row(capfd: pytest.CaptureFixture[str]) -> None:
    output.table(Table([Column("NAME"), Column("X")], [("a\nb\tc", "1")]))
    assert printed(capfd) == "NAME     X\na\\nb\\tc  1\n"


@pytest.mark.parametrize(("width", "note"), [(24, True), (80, False)])
def test_columns_that_have_no_room_are_named(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, note: bool
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setattr(output, "terminal_width", lambda: width)
    columns = [Column("ID", cut="end"), Column("ADDRESS"), Column("PORTS", drop=1)]
    output.table(
        Table([*columns, Column("PATH", wide=True)], [["a" * 20, "10.1.2.3", "8080", "/"]])
    )
    shown = capfd.readouterr().out
    assert ("8080" in shown) != note
    assert ("for lack of room: PORTS (-o wide)" in shown.replace("\n", " ")) == note
    assert "PATH" not in shown


@pytest.mark.parametrize("bad", BAD[:-1], ids=ascii)
@pytest.mark.parametrize("arguments", [["status", "{}"], ["ipam", "list", "{}"], ["{}"]])
def test_errors_of_commands(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
    arguments: list[str],
) -> None:
    monkeypatch.setenv("NETCONFPATH", str(tmp_path))
    (tmp_path / "1.conflist").write_text(json.dumps({"name": f"other{bad}", "plugins": [{}]}))
    assert main([each.format(f"net{bad}") for each in arguments]) in (1, 2)
    text = printed(capfd)
    assert text
    assert shown(text), ascii(text)


def test_a_defect_s_text(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_argv: list[str]) -> int:
        raise RuntimeError("\x1b[31m")

    monkeypatch.setattr(cni.cli, "_run", broken)
    assert main([]) == 1
    text = printed(capfd)
    assert "RuntimeError" in text
    assert shown(text)


@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_an_error_before_the_start(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    for command in ("", "ADD"):
        monkeypatch.setenv("CNI_COMMAND", command)
        assert startup_error.complain(f'no plugin is called "{bad}"', f"details {bad}") == 1
        assert shown(printed(capfd))


def test_completion_offers_no_such_name(tmp_path: Path) -> None:
    for number, name in enumerate(["good", "go\x1b[31m", "go\nod"]):
        (tmp_path / f"{number}.conf").write_text(json.dumps({"name": name, "type": "x"}))
    done = subprocess.run(
        [sys.executable, "-m", "cni"],
        env={
            "PATH": "/usr/bin:/bin",
            "NETCONFPATH": str(tmp_path),
            "_CNI_COMPLETE": "bash_complete",
            "COMP_WORDS": "cni add go",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["plain,good"], done


@given(st.text("ab 日\u0301", max_size=120), st.integers(20, 60))
def test_long_lines_are_broken(text: str, width: int) -> None:
    pieces = output.wrapped(text, width)
    assert max(map(cell_width, pieces)) <= width
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short\n"),
        ("✓ " + "word " * 5, "✓ word word word word\n  word\n"),
        ("  1. aaaa bbbb cccc dddd eeee", "  1. aaaa bbbb cccc dddd\n     eeee\n"),
        ("  key   aaaa bbbb cccc dddd ee", "  key   aaaa bbbb cccc\n        dddd ee\n"),
        ("x" * 30, "x" * 24 + "\n" + "x" * 6 + "\n"),
        (output.Whole("rm " + "x" * 30), "rm " + "x" * 30 + "\n"),
    ],
)
def test_a_paragraph_on_a_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, shown: str
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "24")
    output.paragraph(text)
    assert "".join(f"{each.rstrip()}\n" for each in printed(capfd).splitlines()) == shown
    monkeypatch.setattr(output, "is_terminal", lambda: False)
    output.paragraph(text)
    assert printed(capfd).rstrip() == text.rstrip()


@pytest.mark.parametrize(
    ("terminal", "term", "count", "shown"),
    [
        (True, "xterm", 40, "100%"),
        (True, "dumb", 40, "deleting: 40 …"),
        (True, "xterm", 5, ""),
        (False, "xterm", 40, ""),
    ],
)
def test_progress_is_for_a_terminal_and_long_work(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    term: str,
    count: int,
    shown: str,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("TERM", term)
    with output.progress(list(range(count)), "deleting") as steps:
        assert list(steps) == list(range(count))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert shown in captured.err
    assert bool(captured.err) is bool(shown)


def test_there_is_no_other_way_to_print() -> None:
    """Of the command line's modules only `output` writes to stdout and stderr."""
    ways = {"echo", "secho", "print", "show"}
    for path in Path(cni.cli.__file__).parent.rglob("*.py"):
        if path.name == "output.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if ast.unparse(node.func) in ("address.show", "route.show", "rule.show"):  # kernel
                continue
            assert name not in ways, f"{path.name}:{node.lineno}"


_WITH_NAMES = [
    *(["status"], ["del"], ["check"], ["inspect"], ["explain"], ["schema"], ["validate"]),
    *(["plan"], ["rules"], ["gc"], ["ipam", "list"], ["ipam", "release"], ["network", "rm"]),
    *(["network", "create"], ["graph"], ["ps"], ["ports"], ["add"]),
]


@pytest.mark.parametrize("command", _WITH_NAMES, ids=" ".join)
def test_an_empty_argument_is_wrong_usage(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A script's variable was not set: that must not stand for everything."""
    monkeypatch.setenv("NETCONFPATH", str(tmp_path))
    for more in ([], ["x"]):
        done = CliRunner().invoke(cli, [*command, "", *more])
        assert done.exit_code == 2, done.output


@pytest.mark.parametrize("command", ["add", "check", "del", "explain", "status", "trace"])
def test_an_argument_that_is_left_out_is_not_empty(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETCONFPATH", str(tmp_path))
    done = CliRunner().invoke(cli, [command] if command == "explain" else [command, "net"])
    assert "it is empty" not in done.output
