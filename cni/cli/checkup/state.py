"""Disks and directories with state, and what dead containers have left."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from shlex import quote

from cni.cli.cache import Cache
from cni.cli.view import attachments, bridges, damage, needs
from cni.cli.view.attached import Places
from cni.cli.view.namespaces import Live

from .finding import ERROR, OK, WARNING, Finding, Situation

AREA = "state"
_LOW, _LOWEST = 10, 3  # per cent
_MOST_FILES = 50  # damaged ones that are named
_MOST_LACKS = 20  # findings about links that are named


def room(situation: Situation) -> Iterator[Finding]:
    """Free space and inodes, once for each file system."""
    seen: set[int] = set()
    for path in _directories(situation):
        place = _existing(path)
        device = os.stat(place).st_dev
        # Several directories are usually on one file system.
        if device in seen:
            continue
        seen.add(device)
        yield from _room_of(path, os.statvfs(place))


def _room_of(path: str, found: os.statvfs_result) -> Iterator[Finding]:
    space = 100 * found.f_bavail // found.f_blocks if found.f_blocks else 100
    # Btrfs and some others report no number of inodes, because they make them as needed.
    inodes = 100 * found.f_favail // found.f_files if found.f_files else 100
    least = min(space, inodes)
    text = f"{path}: {space} % of the space and {inodes} % of the inodes are free"
    if least < _LOW:
        mend = f"df -{'h' if space <= inodes else 'i'} {quote(path)}"
        yield Finding(ERROR if least < _LOWEST else WARNING, AREA, text, mend)
    else:
        yield Finding(OK, AREA, text)


def _existing(path: str) -> str:
    """The directory, or the nearest one above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return path


def _directories(situation: Situation) -> list[str]:
    """Where state is: the usual places, and those that networks name."""
    named = [
        value
        for network in situation.networks
        for plugin in network.plugins
        for holder in (plugin.raw, plugin.raw.get("ipam"))
        if isinstance(holder, dict)
        for key, value in holder.items()
        if key.lower() == "datadir" and isinstance(value, str) and value.startswith("/")
    ]
    return list(dict.fromkeys([situation.cache_dir, situation.state_dir, *named]))


def permissions(situation: Situation) -> Iterator[Finding]:
    """State that others may write would let them detach containers."""
    for path in [*_directories(situation), situation.net_d, *situation.path]:
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        # Only the directories here: `damaged` looks at each file in them.
        if mode & stat.S_IWOTH:
            yield Finding(
                ERROR, AREA, f"{path} can be written by anybody", f"chmod o-w {quote(path)}"
            )


def leftovers(situation: Situation) -> Iterator[Finding]:
    """Attachments whose namespace is gone."""
    live = Live()
    places = Places.of(situation.cache_dir)
    dead: Counter[str] = Counter()
    alive = 0
    for each in attachments.gather(places):
        if each.is_dead(live):
            dead[each.network] += 1
        else:
            alive += 1
    for network, count in sorted(dead.items()):
        what = "1 attachment" if count == 1 else f"{count} attachments"
        text = f"{network}: {what} of dead containers"
        yield Finding(WARNING, AREA, text, f"cni gc {quote(network)}")
    if not dead:
        yield Finding(OK, AREA, f"{alive} attached, none of a dead container")


def damaged(situation: Situation) -> Iterator[Finding]:
    """State files that are torn, foreign, or open to others."""
    places = Places(Cache(situation.cache_dir), situation.state_dir, situation.net_d)
    found = list(dict.fromkeys(damage.everywhere(places, situation.networks)))
    for each in found[:_MOST_FILES]:
        yield Finding(ERROR if each.harms else WARNING, AREA, each.text, each.mend)
    if len(found) > _MOST_FILES:
        text = f"{len(found) - _MOST_FILES} more files of state are damaged"
        yield Finding(WARNING, AREA, text, "cni sysdump")
    if not found:
        yield Finding(OK, AREA, "all files of state can be read")


def connected(situation: Situation) -> Iterator[Finding]:
    """Containers whose bridge was deleted or carries nothing, or lost its gateway address."""
    live = Live()
    known = attachments.gather(Places.of(situation.cache_dir))
    found = list(bridges.cut_off(known, live))
    for text in bridges.in_words(found):
        network = text.partition(":")[0]
        yield Finding(ERROR, AREA, f"{text}; {bridges.MEND}", f"cni ps {quote(network)}")
    lacks = needs.links(needs.of_living(known, live, situation.networks))
    for each in lacks[:_MOST_LACKS]:
        yield Finding(ERROR, AREA, each.in_words(), each.mend)
    if len(lacks) > _MOST_LACKS:
        text = f"{len(lacks) - _MOST_LACKS} more links of containers carry nothing"
        yield Finding(ERROR, AREA, text, "cni ps")


CHECKS = (room, permissions, damaged, leftovers, connected)
