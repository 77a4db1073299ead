"""Attachments of the plugins of one directory that nobody could delete without these plugins.

For `cni uninstall`. Plugins that it restores, such as the reference's, take over an attachment if
that needs no other plugin, and has nothing that only this project's plugins know (docs/cli.md,
"Installing, and going back").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cni import files
from cni.intent import Intent
from cni.netns.namespace import Identity
from cni.plugins.shared.device_notes import Note
from cni.protocol import config
from cni.protocol.errors import CNIError

from . import errors, gojson, migrate
from .migrate import Uncleanable
from .view import attachments
from .view.attached import Attached, Places
from .view.namespaces import GONE, Live

_LISTED = 10  # lines in an error message
_MAX_SIZE = 1 << 16  # bytes of a note


class Staying(NamedTuple):
    """An attachment that would stay, and whether `cni migrate` can rewrite everything in it that
    only this project's plugins know.
    """

    text: str
    rewritable: bool = False


def refusal(found: list[Staying]) -> errors.Refused:
    """The error that lists the attachments that would stay."""
    count = "one attachment" if len(found) == 1 else f"{len(found)} attachments"
    lines = shortened([each.text for each in found])
    advice = "delete these containers first, or repeat it with --force"
    if any(each.rewritable for each in found):
        advice += "; before a change to the Go plugins run `cni migrate --to reference`"
    return errors.Refused(
        f"{count} of these plugins would stay, which others cannot remove, or not completely",
        "\n".join([*lines, advice]),
    )


def shortened(texts: list[str]) -> list[str]:
    """At most ten of the lines; the last one counts the others."""
    if len(texts) <= _LISTED:
        return texts
    return [*texts[: _LISTED - 1], f"and {len(texts) - _LISTED + 1} more"]


def staying(bin_dir: Path, cache_dir: str, successors: frozenset[str]) -> Iterator[Staying]:
    """The attachments that would stay. `successors` are the names of the restored plugins.

    Raises CNIError.
    """
    places, live = Places.of(cache_dir), Live()
    devices = dict(_devices(places.state_dir, live))
    only_here: dict[str, list[Uncleanable]] = {}
    for one in migrate.uncleanable(places.state_dir):
        only_here.setdefault(one.key, []).append(one)
    for each in attachments.gather(places):
        # pop: what is left in the end belongs to no attachment that is known.
        device = devices.pop(each.owner.key, "")
        known_here = only_here.pop(each.owner.key, [])
        attached = device or (_is_ours(each, bin_dir) and not each.is_dead(live))
        if known_here or (attached and not _plugins(each) <= successors):
            yield Staying(_description(each, known_here), bool(known_here))
    for key, ones in sorted(only_here.items()):
        yield Staying(f"{_what(ones)} of {ones[0].attachment} ({key})", rewritable=True)
    for key, where in sorted(devices.items()):
        yield Staying(f"the device that {where} is about ({key})")


def _is_ours(each: Attached, bin_dir: Path) -> bool:
    """Did these plugins make it, as far as is known? Other implementations keep no intents, write
    no aliases, and note no namespace with a reservation.
    """
    if not (each.intents or each.links or each.identity is not None):
        return False
    # The plugins of another directory may be of this project, too.
    return not each.intents or any(_ran_in(kept, bin_dir) for kept in each.intents)


def _ran_in(kept: Intent, bin_dir: Path) -> bool:
    wanted = os.path.realpath(bin_dir)
    path = kept.env.get("CNI_PATH", "").split(os.pathsep)
    return wanted in [os.path.realpath(directory) for directory in path if directory]


def _description(each: Attached, known_here: list[Uncleanable]) -> str:
    name = f"{each.shown} ({each.container_id})" if each.pod else each.shown
    text = f"{each.ifname} of {name} in {each.network}"
    return f"{text}, with {_what(known_here)}" if known_here else text


def _what(ones: list[Uncleanable]) -> str:
    return ", ".join(one.what for one in ones)


def _plugins(each: Attached) -> set[str]:
    """The types of the attachment's plugins; a type that no plugin has, if they are not known."""
    try:
        conf = gojson.decode(each.config)
    except CNIError:
        return {""}
    found = {""} if not isinstance(conf, dict) else set(_types(conf))
    return found or {""}


def _types(conf: dict[str, Any]) -> Iterator[str]:
    """The plugin types in a network, in a plugin's object, or in a delegate's configuration."""
    kind = config.lookup(conf, "type")
    if isinstance(kind, str):
        yield kind
    for key in ("ipam", "delegate"):
        inner = config.lookup(conf, key)
        if isinstance(inner, dict):
            yield from _types(inner)
    plugins = config.lookup(conf, "plugins")
    for plugin in plugins if isinstance(plugins, list) else ():
        if isinstance(plugin, dict):
            yield from _types(plugin)


def _devices(state_dir: str, live: Live) -> Iterator[tuple[str, str]]:
    """Owner's key and file of each note about a device in a namespace that may exist."""
    directory = os.path.join(state_dir, "devices")
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    except OSError as error:
        raise errors.unreadable(directory, error) from None
    for name in names:
        key, dot, _ = name.partition(".")
        path = os.path.join(directory, name)
        # The temporary file of files.replace, left by a process that was killed.
        if not dot or name.endswith("~"):
            continue
        try:
            note = msgspec.json.decode(files.read(path, _MAX_SIZE), type=Note)
        except (msgspec.MsgspecError, UnicodeDecodeError, files.Unusable):
            continue  # no note of ours
        except OSError as error:
            raise errors.unreadable(path, error) from None
        if live.state(Identity.parse(note.netns), "") != GONE:
            yield key, path
