"""Shell completion: the script that a shell sources, and the network names it offers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

from cni.protocol.errors import CNIError

from . import cache, conflist, formats, output

if TYPE_CHECKING:
    from .view.attached import Attached

VARIABLE = "_CNI_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
# Bash breaks words at the colons of IPv6 addresses and ports, and at =. Those that stand together
# on the line are put together again; of what is offered, readline replaces only the last part.
_BASH = r"""_cni_completion() {
    local IFS=$'\n' rest=$COMP_LINE word current index type value
    local -a words=()
    for ((index = 0; index <= COMP_CWORD; index++)); do
        word=${COMP_WORDS[index]}
        if ((index == 0)) || [[ $rest == [[:space:]]* ]]; then
            rest=${rest#"${rest%%[![:space:]]*}"}
            words+=("$word")
        else
            words[-1]+=$word
        fi
        rest=${rest#"$word"}
    done
    current=${words[-1]}
    [[ $current == --*=* ]] && current=${current#*=}
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        plain)
            [[ $COMP_WORDBREAKS == *:* ]] && value=${value#"${current%"${current##*:}"}"}
            COMPREPLY+=("$value")
            ;;
        esac
    done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
        _CNI_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _cni_completion cni
"""
# What is offered takes the place of the whole word, so behind `--option=` it begins with that.
_VALUES_OF_OPTIONS = {
    "zsh": (
        ("() {\n", "() {\n    local option=${(M)words[CURRENT]#--*=}\n"),
        ('completions+=("$key")', 'completions+=("$option$key")'),
    ),
    "fish": (
        (";\n", ";\n    set -l option (string match -r -- '^--[^=]*=' (commandline -t));\n"),
        ("echo $metadata[2]", 'echo "$option"$metadata[2]'),
    ),
}


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@formats.options
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: source <(cni completion bash)
    zsh:  source <(cni completion zsh)
    fish: cni completion fish | source
    """  # noqa: D301 - click wants the control character
    text = _BASH if shell == "bash" else _of_click(context, shell)
    if not formats.data({"shell": shell, "script": text}):
        output.line(text)


def _of_click(context: click.Context, shell: str) -> str:
    kind = get_completion_class(shell)
    # click knows these shells; a newer version may drop one.
    if kind is None:
        raise click.ClickException(f"this build of click does not know {shell}")
    script = kind(context.find_root().command, {}, "cni", VARIABLE)
    text = script.source_template % script.source_vars()
    for old, new in _VALUES_OF_OPTIONS[shell]:
        text = text.replace(old, new, 1)
    return text


class Network(click.ParamType[str]):
    """The name of a network; completes those that are configured."""

    name = "network"

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        directory = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
        return _items(conflist.known(directory), incomplete)


class Container(click.ParamType[str]):
    """A container id, or ID/IFNAME, or also a pod; completes what is attached, in the network if
    one is given.
    """

    name = "container"

    def __init__(self, *, with_ifname: bool = False, pods: bool = False) -> None:
        self._with_ifname = with_ifname
        self._pods = pods

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        known = _attached(ctx)
        names = [
            f"{each.container_id}/{each.ifname}" if self._with_ifname else each.container_id
            for each in known
        ]
        names += _pods(known) if self._pods else []
        return _items(sorted(set(names)), incomplete)


class Inspectable(Container):
    """A container id, a pod, or a network; completes all of them."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        known = _attached(ctx)
        names = {*_pods(known), *(each.container_id for each in known)}
        return Network().shell_complete(ctx, param, incomplete) + _items(sorted(names), incomplete)


class PortName(click.ParamType[str]):
    """A port of the node, ``8080`` or ``53/udp``; completes those that ADDs asked for."""

    name = "port"

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from .view import published

        found = [port for each in _attached(ctx) for port in published.wanted(each)]
        names = dict.fromkeys(f"{port.port}/{port.protocol}" for port in found)
        return _items(sorted(names), incomplete)


class Reserved(click.ParamType[str]):
    """An address that host-local has reserved, or a container or pod that holds one; completes all
    of them.
    """

    name = "address"

    def shell_complete(
        self, ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        holders = [each for each in _attached(ctx) if each.reserved]
        names = [one.address for each in holders for one in each.reserved]
        names += [each.container_id for each in holders] + _pods(holders)
        return _items(sorted(set(names)), incomplete)


def _attached(ctx: click.Context) -> list[Attached]:
    """What is attached, in the network on the command line; nothing if it cannot be read."""
    # Loaded here, since completing the name of a network does not need it.
    from .view.attached import Places
    from .view.attachments import gather

    try:
        places = Places.of(ctx.params.get("cache_dir") or cache.DEFAULT_DIRECTORY)
        return gather(places, ctx.params.get("network"))
    except (CNIError, OSError):
        return []


def _pods(known: list[Attached]) -> list[str]:
    return [each.pod for each in known if each.pod]


def _items(names: list[str], incomplete: str) -> list[CompletionItem]:
    """The names that begin so; none that a shell's line editor would have to show escaped."""
    wanted = [name for name in names if name.startswith(incomplete)]
    # A name that others chose may contain escape sequences, which a terminal would obey.
    return [CompletionItem(name) for name in wanted if name.isprintable()]


class Namespace(click.Path):
    """The path of a network namespace; completes those that have a name."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        items: list[CompletionItem] = []
        # Usually two names of one directory: the second is offered if the first has nothing.
        for directory in ("/run/netns", "/var/run/netns"):
            try:
                names = sorted(os.listdir(directory))
            except OSError:
                continue
            paths = [os.path.join(directory, name) for name in names]
            items += _items(paths, incomplete)
            if items:
                return items
        return super().shell_complete(ctx, param, incomplete)


class Where(Namespace):
    """A network namespace's path, or a pod that is attached; completes both."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        pods = _items(sorted(set(_pods(_attached(ctx)))), incomplete)
        return [*pods, *super().shell_complete(ctx, param, incomplete)]
