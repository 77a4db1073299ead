"""`cni serve`: the server of the warm path (cni.server)."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from . import errors, formats, output

if TYPE_CHECKING:
    from cni.record.exposition import Family
    from cni.server.observing import Address
    from cni.server.otlp import Settings

SOCKET = "/run/cni/cni.sock"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def default_workers() -> int:
    """The default number of workers: more than cores, since requests mostly wait for the kernel."""
    return max(4, min(32, 2 * (os.cpu_count() or 1)))


@click.command()
@click.option(
    "--socket",
    "path",
    metavar="PATH",
    envvar="CNI_SERVER_SOCKET",
    default=SOCKET,
    show_default=True,
    help="Where clients connect; ignored if systemd passes a socket.",
)
@click.option("--status", is_flag=True, help="Print the running server's state, and exit.")
@click.option(
    "--workers", type=click.IntRange(1, 256), metavar="N", help="Requests at a time [2 per core]."
)
@click.option("--metrics", metavar="ADDR:PORT|unix:PATH", help="Where Prometheus reads metrics.")
@click.option(
    "--metrics-file", metavar="FILE", help="Write metrics to a file, with or without --metrics."
)
@click.option(
    "--idle-exit",
    type=float,
    default=0,
    metavar="SECONDS",
    help="End after this time without a request [never].",
)
@click.option(
    "--timeout",
    type=float,
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="A request that takes longer is ended.",
)
@click.option(
    "--max-requests",
    type=int,
    default=2000,
    show_default=True,
    metavar="N",
    help="Replace a worker after this many requests.",
)
@click.option(
    "--max-memory",
    type=int,
    default=256,
    show_default=True,
    metavar="MIB",
    help="Replace a worker that uses more memory.",
)
@click.option(
    "--any-mounts",
    is_flag=True,
    help="Also serve clients in other mount namespaces.",
)
@formats.options
def serve(
    path: str,
    status: bool,
    workers: int | None,
    idle_exit: float,
    timeout: float,
    max_requests: int,
    max_memory: int,
    any_mounts: bool,
    metrics: str | None,
    metrics_file: str | None,
) -> None:
    """Answer plugin requests with processes that are already running, until SIGTERM.

    The installed plugins connect to the server by themselves. Without a server they do the same,
    but more slowly.
    """
    if status:
        text = _status(path)
        if not formats.data(json.loads(text)):
            output.line(text)
        return
    errors.require_root("serve: the plugins change the node's network")
    # Imported here: --help, --status and completion need no server.
    from cni.server import wrong_settings
    from cni.server.observing import Wanted
    from cni.server.status import describe
    from cni.server.supervisor import Options, Supervisor
    from cni.server.worker import Limits
    from cni.systemd import AddressInUse

    try:
        from cni._build import ID
    except ImportError:
        ID = ""  # noqa: N806 the build's own name
    if not ID:
        raise click.ClickException("only the built file can serve: run `make build`")
    # Warnings only: a wrong setting of the log must not keep containers from starting.
    for each in wrong_settings.all_of(os.environ):
        output.line(f"cni serve: {each}", err=True)
    limits = Limits(max_requests, max_memory << 20, any_mounts)
    observe = Wanted(_address(metrics), metrics_file or "", _collect, _otlp())
    options = Options(path, workers or default_workers(), idle_exit, timeout, limits, observe)
    supervisor = Supervisor(options, ID, lambda text: output.line(f"cni serve: {text}", err=True))
    try:
        code = supervisor.run()
    except AddressInUse:
        raise click.ClickException(
            f"cannot listen on {path}: there is {describe(path)}; end it first, or use --socket"
        ) from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {path}: {error.strerror or error}") from error
    raise SystemExit(code)


def _address(text: str | None) -> Address | None:
    """The address for scrapes, or None. Raises UsageError."""
    from cni.server.observing import parse_address

    try:
        return parse_address(text) if text else None
    except ValueError as error:
        raise click.BadParameter(f"{text}: {error}", param_hint="--metrics") from None


def _otlp() -> Settings | None:
    """The settings of spans in the environment; None if they are wrong, as reported before."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    from cni.server.otlp import read_settings

    try:
        return read_settings(os.environ)
    except ValueError:
        return None


def _collect() -> list[Family]:
    from .metrics import of_node_or_nothing

    return of_node_or_nothing()


def _status(path: str) -> str:
    """The server's status, a JSON object. Raises ClickException, NotPermitted."""
    from cni.server.status import ask

    try:
        # A busy server answers late; one that hangs must not hang this command, too.
        return ask(path, timeout=10)
    except PermissionError as error:
        refusal = (error.strerror or str(error)).lower()
        raise errors.NotPermitted(
            f"cannot ask the server on {path}: {refusal}", "this needs root"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise errors.CommandError(
            f"no server answers on {path}: {str(reason).lower()}",
            "plugins run by exec then; `systemctl start cni.socket` or `cni serve` starts a server",
        ) from error
