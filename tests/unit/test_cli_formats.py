"""Forms of output: data, tables that fit, and one table of exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml as judge
from hypothesis import given
from hypothesis import strategies as st

from cni.cli import COMMANDS, errors, formats, main, yaml
from cni.cli.group import LazyGroup, cli
from cni.cli.table import Column, Table, cell_width, shortened
from cni.protocol.errors import CNIError, NotAvailable

ROOT = Path(__file__).parents[2]

DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(DATA)
def test_yaml_means_what_json_means(value: Any) -> None:
    # The judge refuses what JSON allows in a text, and splits lines where YAML 1.2 does not.
    text = yaml.encode(value)
    if not re.search(r"[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]", text):
        assert judge.safe_load(text) == value


def test_yaml_as_people_read_it() -> None:
    value = {"name": "net", "on": "yes", "n": 1, "list": [{"a": "b c", "d": []}, ["x"]], "e": {}}
    assert yaml.encode(value) == (
        'name: net\n"on": "yes"\n"n": 1\nlist:\n  - a: "b c"\n    d: []\n  -\n    - x\ne: {}\n'
    )


ROWS = st.lists(st.tuples(st.text("abc", max_size=70), st.text("日本", max_size=30), st.just("x")))


@given(ROWS, st.integers(24, 120))
def test_tables_fit(rows: list[tuple[str, str, str]], width: int) -> None:
    columns = [Column("ID", cut="end"), Column("PATH", cut="middle", drop=1), Column("STATE")]
    fitted = Table(columns, rows).fitted(width)
    assert sum(fitted.widths()) + 2 * (len(fitted.columns) - 1) <= width
    assert fitted.columns[0].title == "ID"
    assert Table(columns, rows).fitted(None) == Table(columns, [list(row) for row in rows])


@given(st.text("ab日", min_size=1), st.integers(1, 12), st.sampled_from(["end", "middle"]))
def test_shortened(text: str, width: int, cut: str) -> None:
    short = shortened(text, width, cut)
    assert cell_width(short) <= width
    assert short == text or "…" in short


def test_the_documented_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", text.split("### Exit codes")[1], re.MULTILINE)
    assert {int(number): meaning for number, meaning in rows} == errors.EXIT_CODES


def test_exit_codes_of_errors() -> None:
    assert errors.exit_code(CNIError("x")) == 1
    assert errors.exit_code(NotAvailable("full")) == 50
    kinds = (errors.NotFound, errors.Ambiguous, errors.Refused, errors.NotPermitted)
    assert [errors.exit_code(kind("x")) for kind in kinds] == [3, 4, 5, 6]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


ALL = dict(commands(cli))


@pytest.mark.parametrize("name", [name for name in ALL if name != "dhcp daemon"])
def test_every_command_has_the_forms(name: str) -> None:
    options = [option for parameter in ALL[name].params for option in parameter.opts]
    assert {"-o", "--output", "--json"} <= set(options)


@pytest.mark.parametrize("name", ["", *ALL])
def test_help_has_no_control_characters(name: str) -> None:
    """Click takes its mark for lines that stay as they are only behind an empty line."""
    command = ALL[name] if name else cli
    help_text = command.get_help(click.Context(command, info_name="cni"))
    assert help_text.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", ALL)
def test_summaries_are_whole_at_80_columns(name: str) -> None:
    first = name.partition(" ")[0]
    assert len(COMMANDS[first][2]) <= 80 - 4 - max(map(len, COMMANDS))
    assert "..." not in COMMANDS[first][2]


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        (["ls", "--json"], "json"),
        (["ls", "-o", "yaml"], "yaml"),
        (["ls", "-oname"], "name"),
        (["ls", "--output=wide"], "wide"),
        (["ls", "-o", "xml"], ""),
        (["sysdump", "-o", "x.tar.gz", "--json"], "json"),
        (["ls", "--", "--json"], ""),
        (["ls", "-o"], ""),
    ],
)
def test_the_form_of_a_command_line(arguments: list[str], form: str) -> None:
    assert formats.asked_for(arguments) == form


@pytest.mark.parametrize("arguments", [["nothing"], ["add"], ["status", "a", "b", "c"]])
def test_wrong_usage_is_data_too(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main([*arguments, "--json"]) == 2
    captured = capfd.readouterr()
    assert json.loads(captured.out)["msg"]
    assert captured.err == ""


class _Opens(LazyGroup):
    """One command, which opens the file that is given."""

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        @click.command(name)
        @click.argument("path")
        @formats.options
        def command(path: str) -> None:
            Path(path).read_bytes()

        return command


def test_a_file_that_fails_is_an_error_as_others(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    group = _Opens("cni")
    path = str(tmp_path / "nosuch")
    assert group.main(["open", path, "-o", "json"], standalone_mode=False) == 1
    captured = capfd.readouterr()
    assert json.loads(captured.out)["msg"] == f"{path}: no such file or directory"
    assert captured.err == ""
    assert group.main(["open", str(tmp_path)], standalone_mode=False) == 1
    assert capfd.readouterr().err == f"{tmp_path}: is a directory\n"


def test_errors_of_the_system() -> None:
    denied = errors.of_system(PermissionError(13, "Permission denied", b"/x\xff"))
    assert errors.exit_code(denied) == 6
    assert denied.msg.startswith("/x")
    assert errors.exit_code(errors.of_system(OSError(28, "No space left on device", 5))) == 1
