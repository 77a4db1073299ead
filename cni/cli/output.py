"""The output of commands: JSON for programs, lines for people, and errors for both.

A program (stdout is not a terminal) gets the output of cnitool: ADD's result and nothing else.

All output goes through this module (a test looks for other ways), because containers, the authors
of pods and other users have chosen many of the names in it: a terminal must not obey control
characters.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

import click

from cni import damage, stderr
from cni.protocol.errors import BadEnvironment, CNIError
from cni.protocol.result import encode_json

from . import gojson
from .table import COLOURS, Table, cell_width, padded, shortened, taken

T = TypeVar("T")
_MOST_DAMAGED = 10
# What further lines of a paragraph stand below: blanks, a mark or number, a name before two blanks.
_HEAD = re.compile(r" *(?:[^\w\s](?= )|\d+\.(?= )|\S+ (?= ))? *")
_MOST_INDENT = 24
_USUAL_WIDTH = 80  # columns
_MANY = 20  # items of work that are worth a progress bar


def is_terminal() -> bool:
    """Whether stdout is a terminal, so that a person reads it."""
    return _is_terminal(sys.stdout)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def printable(text: str, keep: str = "\n\t") -> str:
    """As stderr.printable, but bytes that are no UTF-8 become U+FFFD."""
    return stderr.printable(gojson.text(text), keep)


def printable_json(data: bytes) -> bytes:
    r"""JSON with the same meaning, in which control characters are written as ``\u009b``."""
    text = data.decode()
    if text.isprintable():
        return data
    pieces = [char if char.isprintable() or char == "\n" else _json_escape(char) for char in text]
    return "".join(pieces).encode()


def _json_escape(char: str) -> str:
    # JSON writes a character above U+FFFF as two escapes, its surrogates.
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def line(text: str, *, err: bool = False) -> None:
    """Write a line, or several, to stdout or stderr. Raises OSError for stdout only."""
    text = printable(text)
    if err:
        _to_stderr(text)
    else:
        click.echo(text)


def _to_stderr(text: str) -> None:
    """Write to stderr; ignore failures: exit code and stdout do not depend on it."""
    try:
        click.echo(text, err=True)
    except OSError:
        pass


def plugin_stderr(data: bytes) -> None:
    """Write a plugin's stderr to ours."""
    line(data.decode(errors="replace").removesuffix("\n"), err=True)


def exception(error: BaseException) -> None:
    """Write the traceback of a defect to stderr."""
    import traceback

    # A damaged file causes errors anywhere; then this ends with the error that says so.
    damage.suspect()

    line("".join(traceback.format_exception(error)).rstrip(), err=True)


def click_exception(failure: click.ClickException, form: str = "") -> None:
    """A failure or a wrong usage, as `error` prints it; for the latter a person gets the usage."""
    message = failure.format_message()
    if isinstance(failure, click.exceptions.NoArgsIsHelpError):
        line(message, err=True)
        return
    if not isinstance(failure, click.UsageError):
        error(CNIError(message), "", form)
        return
    context = failure.ctx
    if context is not None and form not in ("json", "yaml") and _is_terminal(sys.stderr):
        line(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n", err=True)
    error(BadEnvironment(message), "", form)


def write(data: bytes) -> None:
    """All of the JSON document `data` to stdout. Raises OSError."""
    data = printable_json(data)
    if sys.stdout is not None:
        # What was printed through sys.stdout comes first; the rest bypasses it, so that a failed or
        # a short write is noticed here.
        sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def json(value: Any) -> None:
    """`value` as indented JSON and a newline."""
    write(encode_json(value) + b"\n")


def document(value: Any, form: str) -> None:
    """`value` as a document: `form` is json or yaml. Bytes that are no UTF-8 become U+FFFD."""
    value = _texts(value)
    if form == "json":
        json(value)
        return
    from . import yaml

    # Quoted in YAML means quoted in JSON: what a terminal would obey is escaped in the same way.
    write(yaml.encode(value).encode())


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {gojson.text(str(key)): _texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(item) for item in value]
    return gojson.text(value) if isinstance(value, str) else value


def done(text: str) -> None:
    """Print `text` on a terminal; a program has the exit code instead."""
    if is_terminal():
        line(text)


@contextmanager
def progress(items: Sequence[T], what: str) -> Iterator[Iterable[T]]:
    """`items`, with a progress bar on stderr if that is a terminal and they are many."""
    if sys.stderr is None or not sys.stderr.isatty() or len(items) < _MANY:
        yield items
        return
    # It cannot move its cursor, so each step of a bar would be a new line.
    if os.environ.get("TERM", "dumb") == "dumb":
        line(f"{what}: {len(items)} …", err=True)
        yield items
        return
    with click.progressbar(items, label=what, file=sys.stderr) as bar:
        yield bar


@contextmanager
def activity() -> Iterator[Callable[[str], None]]:
    """A function that shows the current activity on a line of a terminal's stderr.

    The line is removed at the end. Without a terminal, or on one that cannot move its cursor,
    nothing is written.
    """
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda _: None
        return

    def say(text: str) -> None:
        shown = shortened(printable(text, keep=""), terminal_width() - 1)
        click.echo(f"\r\x1b[2K{shown}", err=True, nl=False, color=True)

    try:
        yield say
    finally:
        say("")


def waiting() -> None:
    """Tell a person why the command waits."""
    if sys.stderr is not None and sys.stderr.isatty():
        line("waiting for another cni that works on the same container", err=True)


def table(content: Table, *, wide: bool = False) -> None:
    """A table: on a terminal in its width, and with colours; `wide`: with all columns."""
    cells = [[printable(cell, keep="") for cell in row] for row in content.rows]
    width = terminal_width() if is_terminal() else None
    columns, rows = fitted = Table(content.columns, cells).fitted(width, wide=wide)
    widths = fitted.widths()
    heading = [column.title for column in columns]
    styles = [_bold] + [_state_colour] * len(rows)
    for row, style in zip([heading, *rows], styles, strict=True):
        text = ""
        for cell, size, column in zip(row, widths, columns, strict=True):
            # Coloured after padding: escape sequences have no width.
            text += padded(cell, size, column.right).replace(cell, style(cell), 1) + "  "
        _echo(text)
    left_out = content.left_out(columns)
    # In 80 columns everything has room but what is meant for -o wide, as the help says.
    if left_out and width is not None and width < _USUAL_WIDTH:
        paragraph(f"not shown for lack of room: {', '.join(left_out)} (-o wide)")


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; on a terminal long values go on in further lines."""
    rows = [(printable(name, keep=""), printable(value, keep="")) for name, value in rows]
    indent = max((cell_width(name) for name, _ in rows), default=0) + 4
    for name, value in rows:
        head = f"  {padded(name, indent - 4, False)}  "
        for piece in wrapped(value, terminal_width() - indent) if is_terminal() else [value]:
            _echo(head + piece)
            head = " " * indent


def wrapped(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns (at least 8), broken at blanks where it can be.

    What has no blank and is too long (a path, an id) is broken anywhere.
    """
    width = max(width, 8)
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_width(longer) <= width:
            lines[-1] = longer
            continue
        rest = word
        while cell_width(rest) > width:
            room = width - cell_width(lines[-1]) - 1 if lines[-1] else width
            # A longer rest of the line is worth breaking the word; a shorter one is not.
            if room < width // 4:
                lines.append("")
                continue
            piece = taken(rest, room)
            lines[-1] = f"{lines[-1]} {piece}" if lines[-1] else piece
            rest = rest[len(piece) :]
            lines.append("")
        if rest:
            lines = lines if not lines[-1] else [*lines, ""]
            lines[-1] = rest
    return [each for each in lines if each] or [""]


class Whole(str):
    """A line that is never broken: a command that a person copies."""

    __slots__ = ()


def paragraph(text: str, *, err: bool = False) -> None:
    """A line, or several; a terminal gets further lines for what is too long for one.

    Those begin below the text behind a mark (``✓ ``) or a name in the first column.
    """
    has_width = _is_terminal(sys.stderr) if err else is_terminal()
    for each in printable(text).split("\n"):
        width = terminal_width()
        # A program that reads the output wants each text in one line.
        if isinstance(text, Whole) or not has_width or cell_width(each) <= width:
            line(each, err=err)
            continue
        head = _HEAD.match(each)
        start = head[0] if head and len(head[0]) <= _MOST_INDENT else ""
        pieces = wrapped(each[len(start) :], width - cell_width(start))
        line(start + pieces[0], err=err)
        for piece in pieces[1:]:
            line(" " * cell_width(start) + piece, err=err)


def damaged(found: Sequence[Any]) -> None:
    """List damaged files of state (view.damage.Damaged), which were skipped, on stderr."""
    for each in found[:_MOST_DAMAGED]:
        paragraph(f"{each.text}; `{each.mend}`", err=True)
    if len(found) > _MOST_DAMAGED:
        line(f"… and {len(found) - _MOST_DAMAGED} more: see `cni doctor`", err=True)


def fitted(text: str) -> None:
    """Write a line; on a terminal, cut to its width."""
    text = printable(text, keep="")
    _echo(shortened(text, terminal_width()) if is_terminal() else text)


def terminal_width() -> int:
    """Columns of the terminal; COLUMNS decides, if it is set."""
    return max(_given_width() or _width_of_stdout() or _USUAL_WIDTH, 20)


# As shutil.get_terminal_size; importing shutil loads two compression libraries.
def _given_width() -> int:
    try:
        return max(int(os.environ.get("COLUMNS", "0")), 0)
    except ValueError:
        return 0


def _width_of_stdout() -> int:
    try:
        return os.get_terminal_size(1).columns
    except OSError:  # it is not a terminal
        return 0


def _echo(text: str) -> None:
    """A line that was escaped already, without spaces at its end."""
    click.echo(text.rstrip(), color=True)


def error(problem: CNIError, hint: str = "", form: str = "") -> None:
    """Write an error to stderr; with `form` json or yaml its object to stdout instead.

    A person gets separate lines for the failure, its reason, and the advice; a program one line.
    """
    if form in ("json", "yaml"):
        body: dict[str, Any] = {"code": problem.code, "msg": gojson.text(problem.msg)}
        if problem.details:
            body["details"] = gojson.text(problem.details)
        document(body, form)
        return
    if sys.stderr is None or not sys.stderr.isatty():
        # Logs have a line for each error.
        line("; ".join(filter(None, str(problem).splitlines())), err=True)
        return
    _to_stderr(f"{_red('error:')} {_indented(problem.msg, 7)}")
    if problem.details:
        _to_stderr(f"  details  {_indented(problem.details, 11)}")
    if hint:  # in one line, since there is a command in it to be copied
        text = printable(hint).replace("\n", "\n" + " " * 11)
        _to_stderr(f"  next     {text}")


def _indented(text: str, indent: int) -> str:
    """`text` for a terminal; further lines are indented, so that they cannot imitate ours."""
    room = terminal_width() - indent
    lines = [piece for each in printable(text).split("\n") for piece in _broken(each, room)]
    return f"\n{' ' * indent}".join(lines)


def _broken(text: str, width: int) -> list[str]:
    """As `wrapped`, but blanks at the beginning stay, and what fits is left as it is."""
    return [text] if cell_width(text) <= width else wrapped(text, width)


def has_colour() -> bool:
    """Does stdout show colours, and are they wanted?"""
    return is_terminal() and not _is_plain()


def _is_plain() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM", "dumb") == "dumb"


def _red(text: str) -> str:
    return text if _is_plain() else click.style(text, fg="red", bold=True)


def _bold(text: str) -> str:
    return click.style(text, bold=True) if has_colour() else text


def _state_colour(text: str) -> str:
    """A cell that is a state, in the colour of that state."""
    colour = COLOURS.get(text)
    return click.style(text, fg=colour) if colour and has_colour() else text


def columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    """Lines of rows whose cells are below each other, without heading."""
    rows = [[printable(cell, keep="") for cell in row] for row in rows]
    widths = [max(cell_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [padded(cell, width, False) for cell, width in zip(row, widths, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
