"""The holder of a port that an ADD wants: another living container, a dead one, or the same one.

A holder lives if the namespace of its ADD still exists (cni.intent). A container may publish the
same ports through several networks, as with podman and compose. Then its first attachment has the
ports, and the others stand by: the last step of the first one's DEL publishes the ports through
them.

    <state>/portmap-standby/<holder's key>+<key of the one that stands by>
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ... import intent
from ...owner import Owner
from .want import ALIVE, DEAD, SAME, UNKNOWN, Holder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...call import Call
    from ...intent import Intent


class Holders:
    """Judges holders for the attachment `mine`."""

    def __init__(self, call: Call[Any], mine: Owner) -> None:
        self._call, self._mine = call, mine
        self._directory = standby_directory(call)

    def by_key(self, key: str, named: Owner | None) -> Holder:
        """The holder with this Owner.key; `named` is the owner in its comment, unless cut."""
        try:
            kept = intent.find_by_key("portmap", key, self._call.request.env)
        except OSError:
            return Holder(named, ALIVE)  # in doubt
        return self._judge(named or (kept.owner if kept else None), [kept] if kept else [])

    def by_chain(self, chain: str, named: Owner | None) -> Holder:
        """The holder of an iptables chain (Owner.chain); `named` is the owner in its comment.

        Reads the notes of the network, or of all networks if the comment was cut.
        """
        network = named.network if named is not None else None
        try:
            everybody = intent.all_of("portmap", self._call.request.env, network)
        except OSError:
            return Holder(named, ALIVE)  # in doubt
        kept = [one for one in everybody if one.owner.chain("DN-") == chain]
        return self._judge(named or (kept[0].owner if kept else None), kept)

    def _judge(self, owner: Owner | None, kept: list[Intent]) -> Holder:
        if kept and all(one.is_of_gone_namespace(self._call.netns) for one in kept):
            return Holder(owner, DEAD)
        if owner is not None and owner.container_id == self._mine.container_id:
            return Holder(owner, SAME)
        return Holder(owner, ALIVE if kept else UNKNOWN)

    def stand_by(self, key: str) -> None:
        """Note that this attachment stands by the holder with that key. Raises OSError.

        Call it before the last look at the holder: the holder's DEL first removes the ports, and
        then looks for attachments that stand by.
        """
        os.makedirs(self._directory, 0o755, exist_ok=True)
        path = f"{self._directory}/{key}+{self._mine.key}"
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def standby_directory(call: Call[Any]) -> str:
    """The directory of the notes about attachments that stand by."""
    return f"{os.path.dirname(intent.directory(call.request.env))}/portmap-standby"


def standing_by(call: Call[Any], key: str) -> Iterator[str]:
    """The keys of attachments that stand by this holder; each note is removed after its turn.

    Notes that the holder itself stands by another are removed, too.
    """
    directory = standby_directory(call)
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in names:
        holder, _, other = name.partition("+")
        if holder == key:
            yield other
        if key in (holder, other):
            _forget(f"{directory}/{name}")


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
