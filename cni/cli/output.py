"""What the commands print: JSON for programs, lines for people, and errors for both.

A program (stdout is not a terminal) gets what cnitool prints: ADD's result and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from cni.protocol.errors import CNIError
from cni.protocol.result import IPConfig, Result, encode_json

from . import gojson
from .cache import Attachment, Outcome


def is_terminal() -> bool:
    """Whether stdout is a terminal, so that a person reads it."""
    return sys.stdout is not None and sys.stdout.isatty()


def write(data: bytes) -> None:
    """All of `data` to stdout. Raises OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def json(value: Any) -> None:
    """`value` as indented JSON, with a newline for a person's prompt."""
    write(encode_json(value) + b"\n")


def added(outcome: Outcome, attachment: Attachment, as_json: bool) -> None:
    """ADD's result: exactly the JSON object a plugin prints, or lines for a person."""
    if as_json or not is_terminal():
        write(encode_json(outcome.as_dict()))
        return
    done(f"{attachment.ifname} in {attachment.netns} is attached to {attachment.network}")
    click.echo(_columns([*_summary(outcome.result), ("container", attachment.container_id)]))


def done(text: str) -> None:
    """Print `text` on a terminal; a program has the exit code instead."""
    if is_terminal():
        click.echo(gojson.text(text))


def waiting() -> None:
    """Tell a person why the command waits."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo("waiting for another cni that works on the same container", err=True)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows in columns; the first row is the heading."""
    click.echo(_columns(rows, indent=""))


def error(problem: CNIError, hint: str = "", as_json: bool = False) -> None:
    """An error on stderr; with `as_json` its object on stdout as well.

    A person gets what failed, why, and what to do next on lines of their own.
    """
    if as_json:
        body: dict[str, Any] = {"code": problem.code, "msg": gojson.text(problem.msg)}
        if problem.details:
            body["details"] = gojson.text(problem.details)
        json(body)
    if sys.stderr is None or not sys.stderr.isatty():
        click.echo(str(problem), err=True)
        return
    click.echo(f"{_red('error:')} {problem.msg}", err=True)
    rows = [("details", problem.details), ("next", hint)]
    if any(value for _, value in rows):
        click.echo(_columns([row for row in rows if row[1]]), err=True)


def decode_map(text: str, name: str) -> dict[str, Any] | None:
    """The JSON object in an environment variable. Raises CNIError."""
    try:
        value = msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as problem:
        raise CNIError(f"{name}: {problem}", f"{name} is a JSON object") from None
    if value is not None and not isinstance(value, dict):
        raise CNIError(f"{name} is not a JSON object", 'for example {"mac": "02:00:00:00:00:01"}')
    return value


def _summary(result: Result) -> list[tuple[str, str]]:
    rows = [("address", _address(ip, result)) for ip in result.ips]
    for link in result.interfaces:
        facts = [link.name, link.mac, f"mtu {link.mtu}" if link.mtu else "", link.sandbox or "host"]
        rows.append(("interface", "  ".join(fact for fact in facts if fact)))
    for route in result.routes:
        rows.append(("route", f"{route.dst} via {route.gw}" if route.gw else route.dst))
    dns = result.dns
    for name, values in (
        ("nameserver", dns.nameservers),
        ("domain", [dns.domain] if dns.domain else None),
        ("search", dns.search),
        ("options", dns.options),
    ):
        if values:
            rows.append((name, " ".join(values)))
    return rows


def _address(ip: IPConfig, result: Result) -> str:
    text = ip.address
    if ip.interface is not None and 0 <= ip.interface < len(result.interfaces):
        text += f" on {result.interfaces[ip.interface].name}"
    return f"{text}, gateway {ip.gateway}" if ip.gateway else text


def _red(text: str) -> str:
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain else click.style(text, fg="red", bold=True)


def _columns(rows: Sequence[Sequence[str]], indent: str = "  ") -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
