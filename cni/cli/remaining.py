"""Attachments that the plugins of one directory have made, and still have to remove.

`cni uninstall` asks: without these plugins nothing removes such an attachment, or another
implementation does, which knows less of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cni import files
from cni.intent import Intent
from cni.netns.namespace import Identity
from cni.plugins.shared.device_notes import Note
from cni.protocol import config

from . import errors
from .view import attachments
from .view.attachments import Attached, Places
from .view.namespaces import GONE, Live

_LISTED = 10  # lines in an error message
_MAX_SIZE = 1 << 16  # bytes of a note


def refusal(texts: list[str]) -> errors.Refused:
    """The error that names attachments, by what `described` says of them."""
    count = "one attachment" if len(texts) == 1 else f"{len(texts)} attachments"
    lines = [*shortened(texts), "delete these containers first, or repeat it with --force"]
    return errors.Refused(
        f"{count} of these plugins would stay, which others cannot remove, or not completely",
        "\n".join(lines),
    )


def shortened(texts: list[str]) -> list[str]:
    """At most ten of the lines; the last one counts the others."""
    if len(texts) <= _LISTED:
        return texts
    return [*texts[: _LISTED - 1], f"and {len(texts) - _LISTED + 1} more"]


def described(bin_dir: Path) -> Iterator[str]:
    """A line for each attachment. Raises CNIError."""
    places, live = Places.of(), Live()
    notes = dict(_devices(places.state_dir, live))
    for each in attachments.gather(places):
        kind = notes.pop(each.owner.key, "")
        if kind or (_is_ours(each, bin_dir) and not each.is_dead(live)):
            yield _description(each)
    for key, where in sorted(notes.items()):
        yield f"the device that {where} is about ({key})"


def _is_ours(each: Attached, bin_dir: Path) -> bool:
    """Whether these plugins took part in it, as far as can be told: other implementations keep no
    intents, write no aliases, and note no namespace with a reservation.
    """
    if not (each.intents or each.links or each.identity is not None):
        return False
    # The plugins of another directory may be of this project, too.
    return not each.intents or any(_ran_in(kept, bin_dir) for kept in each.intents)


def _ran_in(kept: Intent, bin_dir: Path) -> bool:
    wanted = os.path.realpath(bin_dir)
    path = kept.env.get("CNI_PATH", "").split(os.pathsep)
    return wanted in [os.path.realpath(directory) for directory in path if directory]


def _description(each: Attached) -> str:
    name = f"{each.pod} ({each.container_id})" if each.pod else each.container_id
    text = f"{each.ifname} of {name} in {each.network}"
    ports = [port for kept in each.intents for port in _ports(kept)]
    if ports:
        text += f", which publishes {', '.join(ports)} in nftables"
    return text


def _ports(kept: Intent) -> Iterator[str]:
    """The published ports that the reference's portmap does not find: it reads iptables only."""
    if kept.plugin != "portmap" or config.lookup(kept.config, "backend") == "iptables":
        return
    given = config.lookup(kept.config, "runtimeConfig")
    mappings = config.lookup(given, "portMappings") if isinstance(given, dict) else None
    for one in mappings if isinstance(mappings, list) else ():
        if isinstance(one, dict) and config.lookup(one, "hostPort"):
            protocol = str(config.lookup(one, "protocol") or "tcp")
            yield f"{config.lookup(one, 'hostPort')}/{protocol.lower()}"


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
