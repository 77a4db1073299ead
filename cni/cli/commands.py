"""The commands: `cni add|check|del|gc|status NETWORK NETNS` as cnitool has them, and the rest."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from cni.protocol.errors import CNIError

from . import cache, conflist, errors, formats, output
from .completion import Namespace, Network
from .runtime import Interrupts, Runtime

F = TypeVar("F", bound=Callable[..., Any])
PLUGIN_DIRECTORY = "/opt/cni/bin"


class Job(NamedTuple):
    """What a command works on. `environment` is the process's."""

    network: conflist.NetworkList
    attachment: cache.Attachment
    runtime: Runtime


def _netns(_context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    if parameter.required and not value:
        raise click.BadParameter("is empty; give the path of a network namespace")
    return value or ""


def _attachment_options(needs_netns: bool) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in (
            formats.options,
            click.option(
                "--cache-dir",
                default=cache.DEFAULT_DIRECTORY,
                show_default=True,
                type=click.Path(file_okay=False),
                help="Results are kept in its directory results.",
            ),
            click.option("-i", "--ifname", help="The interface's name (CNI_IFNAME, else eth0)."),
            click.argument("netns", type=Namespace(), required=needs_netns, callback=_netns),
            click.argument("network", type=Network()),
        ):
            function = option(function)
        return function

    return decorate


@click.command()
@_attachment_options(needs_netns=True)
def add(network: str, netns: str, **options: Any) -> None:
    """Attach the namespace to the network, and print the result."""

    def work(job: Job) -> None:
        outcome = job.runtime.add(job.network, job.attachment)
        output.added(outcome, job.attachment, formats.current())

    _run(work, network, netns, f"to take away what is there: cni del {network} {netns}", **options)


@click.command()
@_attachment_options(needs_netns=True)
def check(network: str, netns: str, **options: Any) -> None:
    """Check that the attachment is as `add` left it."""

    def work(job: Job) -> None:
        job.runtime.check(job.network, job.attachment)
        switched_off = " (disableCheck: nothing was checked)" if job.network.disable_check else ""
        what = job.attachment
        output.done(f"{what.ifname} in {what.netns}: as it should be{switched_off}")

    _run(work, network, netns, f"make it anew: cni del, then cni add {network} {netns}", **options)


@click.command("del")
@_attachment_options(needs_netns=True)
def delete(network: str, netns: str, **options: Any) -> None:
    """Detach the namespace from the network; the namespace may be gone."""

    def work(job: Job) -> None:
        job.runtime.delete(job.network, job.attachment)
        what = job.attachment
        output.done(f"{what.ifname} in {what.netns} is detached from {what.network}")

    _run(work, network, netns, "the result is kept: put the cause right and try again", **options)


@click.command()
@_attachment_options(needs_netns=False)
@click.option(
    "--keep",
    metavar="ID/IFNAME",
    multiple=True,
    help="An attachment that is still in use; may be repeated. Without it, as with cnitool, every "
    "attachment of the network in the cache is deleted.",
)
def gc(network: str, netns: str, keep: tuple[str, ...], **options: Any) -> None:
    """Delete the network's attachments that are not in use any more."""
    pairs = [_pair(text) for text in keep] if keep else None

    def work(job: Job) -> None:
        deleted = job.runtime.collect(job.network, pairs)
        lines = [f"  {one.container_id} {one.ifname}" for one in deleted]
        output.done("\n".join([f"{network}: {len(deleted)} attachments deleted", *lines]))

    _run(work, network, netns, "the rest was collected; put the cause right, try again", **options)


@click.command()
@_attachment_options(needs_netns=False)
def status(network: str, netns: str, **options: Any) -> None:
    """Ask the network's plugins whether they could attach a container now."""

    def work(job: Job) -> None:
        job.runtime.status(job.network)
        output.done(f"{network}: ready")

    _run(work, network, netns, "", **options)


def _pair(text: str) -> tuple[str, str]:
    container_id, slash, ifname = text.partition("/")
    if not (container_id and slash and ifname):
        raise click.BadParameter(f"{text!r} is not of the form ID/IFNAME", param_hint="--keep")
    return container_id, ifname


def _run(
    work: Callable[[Job], None],
    network: str,
    netns: str,
    hint: str,
    *,
    ifname: str | None,
    cache_dir: str,
) -> None:
    """Load the network and call `work`; a failure becomes a message and the exit code.

    `hint` says what to do next.
    """
    context = click.get_current_context()
    interrupts = Interrupts()
    loaded = False
    try:
        with interrupts:
            job = _job(network, netns, ifname, cache_dir, interrupts)
            loaded = True
            work(job)
    except CNIError as problem:
        raise errors.Failed(problem, _hint(hint, netns) if loaded else "") from None
    except KeyboardInterrupt:
        output.line(f"interrupted; {hint}" if loaded and hint else "interrupted", err=True)
        context.exit(130)


def _hint(hint: str, netns: str) -> str:
    """`hint`; or, for a bare name, the path of the namespace that the user seems to mean."""
    named = f"/run/netns/{netns}"
    if netns and "/" not in netns and not os.path.exists(netns) and os.path.exists(named):
        return f"{netns} is taken for a path; is {named} meant?"
    return hint


def _job(
    network: str, netns: str, ifname: str | None, cache_dir: str, interrupts: Interrupts
) -> Job:
    """The job that the command line and the environment describe. Raises CNIError."""
    env = os.environ
    network_list = conflist.load(env.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY, network)
    capability_args = None
    if env.get("CAP_ARGS"):
        capability_args = output.decode_map(env["CAP_ARGS"], "CAP_ARGS")
    path = absolute(netns) if netns else ""
    attachment = cache.Attachment(
        container_id=container_id(path),
        network=network_list.name,
        ifname=ifname or env.get("CNI_IFNAME") or "eth0",
        netns=path,
        args=parse_args(env.get("CNI_ARGS", "")),
        capability_args=capability_args,
    )
    runtime = Runtime(
        plugin_path(env.get("CNI_PATH", "")),
        cache.Cache(os.path.abspath(cache_dir)),
        env,
        interrupts,
        output.waiting,
        output.plugin_stderr,
    )
    return Job(network_list, attachment, runtime)


def absolute(path: str) -> str:
    """`path` made absolute and clean, as Go's filepath.Abs does it."""
    absolute_path = os.path.abspath(path)
    # POSIX lets two slashes at the beginning mean something, and Python keeps them.
    return absolute_path[1:] if absolute_path.startswith("//") else absolute_path


def container_id(netns: str) -> str:
    """The container id that cnitool derives from a namespace's path."""
    digest = hashlib.sha512(netns.encode("utf-8", "surrogateescape")).digest()
    return f"cnitool-{digest[:10].hex()}"


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
    """CNI_PATH as a list; by default the usual directory and the one that our own file is in."""
    if text:
        return text.split(os.pathsep)
    own = os.path.dirname(os.path.realpath(sys.argv[0]))
    return [PLUGIN_DIRECTORY] if own == PLUGIN_DIRECTORY else [PLUGIN_DIRECTORY, own]
