"""Common code of the commands about attachments: options, network, runtime, and Ctrl-C."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from cni.protocol.errors import CNIError

from . import cache, conflist, errors, formats, gojson, output, target
from .completion import Namespace, Network
from .runtime import Runtime
from .signals import Interrupts
from .view.attached import Attached

F = TypeVar("F", bound=Callable[..., Any])
PLUGIN_DIRECTORY = "/opt/cni/bin"
CACHE_DIR = click.option(
    "--cache-dir",
    default=cache.DEFAULT_DIRECTORY,
    show_default=True,
    type=click.Path(file_okay=False),
    help="The result cache is DIRECTORY/results.",
)
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Say what would be removed, and change nothing."
)


def netns_given(_context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    if parameter.required and not value:
        raise click.BadParameter("is empty; give the path of a network namespace")
    return value or ""


def network_options(function: F) -> F:
    """NETWORK, and what cnitool takes beside it."""
    for option in (
        formats.options,
        CACHE_DIR,
        click.argument("netns", type=Namespace(), required=False, callback=netns_given),
        click.argument("network", type=Network()),
    ):
        function = option(function)
    return function


def given(what: Attached) -> cache.Attachment:
    """The attachment for the plugins; if its id was derived, with the environment's arguments."""
    given = what.attachment()
    # Only an attachment that `cni add` made takes arguments from this environment.
    if what.is_direct:
        args = parse_args(os.environ.get("CNI_ARGS", ""))
        given = given._replace(
            args=args or given.args, capability_args=capability_args() or given.capability_args
        )
    return given._replace(netns=target.path_for_plugins(what))


def configured(network: str) -> conflist.NetworkList:
    """The configuration of a network. Raises CNIError."""
    return conflist.load(os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY, network)


def configured_or_known(network: str, everything: list[Attached]) -> None:
    """Raise NetworkNotFound if neither a file nor an attachment has that network."""
    # A network may be removed from the configuration before its containers are detached.
    if all(each.network != network for each in everything):
        configured(network)


def network_of(network: str, known: list[Attached]) -> conflist.NetworkList:
    """The network's configuration; if it is not configured any more, that of an ADD.

    Raises CNIError.
    """
    try:
        return configured(network)
    except conflist.NetworkNotFound:
        for each in known:
            if each.config:
                try:
                    return conflist.from_bytes(each.config)
                except CNIError:
                    continue
        raise


def runtime(cache_dir: str, interrupts: Interrupts) -> Runtime:
    return Runtime(
        plugin_path(os.environ.get("CNI_PATH", "")),
        cache.Cache(os.path.abspath(cache_dir)),
        os.environ,
        interrupts,
        output.waiting,
        output.plugin_stderr,
    )


def chosen_ifname(option: str | None) -> str:
    return option or os.environ.get("CNI_IFNAME") or ""


def capability_args() -> dict[str, Any] | None:
    """CAP_ARGS. Raises CNIError."""
    text = os.environ.get("CAP_ARGS")
    if not text:
        return None
    try:
        # The bytes of the variable, which need not be UTF-8.
        value = gojson.decode(text.encode("utf-8", "surrogateescape"))
    except CNIError as problem:
        raise CNIError(f"CAP_ARGS: {problem.msg}", "CAP_ARGS is a JSON object") from None
    if value is not None and not isinstance(value, dict):
        example = 'for example {"mac": "02:00:00:00:00:01"}'
        raise CNIError("CAP_ARGS is not a JSON object", example)
    return value


@contextmanager
def interruptible(hint: str = "") -> Iterator[Interrupts]:
    """A signal lets the running plugin finish; then the exit code says which signal it was."""
    interrupts = Interrupts()
    try:
        with interrupts:
            yield interrupts
    except KeyboardInterrupt:
        output.line(f"interrupted; {hint}" if hint else "interrupted", err=True)
        # With click's own handling every signal would have the exit code of Ctrl-C.
        click.get_current_context().exit(interrupts.exit_code)


@contextmanager
def hinting(hint: str) -> Iterator[None]:
    """Adds a hint to a CNIError in the block."""
    try:
        yield
    except CNIError as problem:
        raise errors.Failed(problem, hint) from None


def hint_for_name(netns: str) -> str:
    """The hint for a bare name: the path of the namespace that the user seems to mean."""
    named = f"/run/netns/{netns}"
    if "/" not in netns and not os.path.exists(netns) and os.path.exists(named):
        return f"{netns} is taken for a path; is {named} meant?"
    return ""


def parse_args(text: str) -> tuple[tuple[str, str], ...]:
    """CNI_ARGS as pairs; neither side may be empty. Raises CNIError."""
    pairs = []
    for piece in text.split(";") if text else ():
        parts = piece.split("=")
        if len(parts) != 2 or not all(parts):
            raise CNIError(f'invalid CNI_ARGS pair "{piece}"', "CNI_ARGS has the form K=V;K2=V2")
        pairs.append((parts[0], parts[1]))
    return tuple(pairs)


def plugin_path(text: str) -> list[str]:
    """CNI_PATH as a list; by default the usual directory, and the one of this program."""
    if text:
        return text.split(os.pathsep)
    # A file that is not installed (a build, a download) finds the plugins beside it.
    own = os.path.dirname(os.path.realpath(sys.argv[0]))
    return [PLUGIN_DIRECTORY] if own == PLUGIN_DIRECTORY else [PLUGIN_DIRECTORY, own]
