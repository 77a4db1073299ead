"""The node's part of a cluster's addresses: its blocks, on disk, so that ADD needs no store.

    <dataDir>/
      <space>/                 host-local's directory of reservations: one for each address space;
                               the interface in a file is followed by CR LF and the network
      .cni/<space>.blocks      the node's blocks in that space (`Ledger`)
      .cni/<space>.freed       when addresses were released last (rest.py)
      .cni/<space>.pools       the networks that needed blocks, for claiming ahead
      .cni/<pool>.pool         the store's definition of a pool
      .cni/claims              the lock of the process that talks to the store
      .cni/node                the node's identity (node_files.py)
      .cni/registered          what each store was told of the node (`Registration`)
      .cni/wanting             the spaces in which it has asked for blocks

A block is in the ledger before it is requested from the store ("pending"), and until the store has
confirmed its removal ("releasing"). So the ledger knows every block that may be this node's,
however a process ends. The ledger is changed and read under the lock of the space's directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from ... import lockfile
from ...protocol.address import Prefix, parse_ip
from ...store import node_files
from ...store.node_files import SIDECARS, Identity, read, write
from ..host_local import reservation
from ..host_local.directory import Location
from .pool import NOT_SPACES

if TYPE_CHECKING:
    from ..host_local.store import Store

OWN, PENDING, RELEASING = "own", "pending", "releasing"


class Block(msgspec.Struct):
    """A block of the ledger. `seq` is the number of its claim among this node's in the space."""

    cidr: str
    seq: int
    state: str = OWN

    @property
    def prefix(self) -> Prefix:
        return Prefix.parse(self.cidr)


class Ledger(msgspec.Struct):
    """The node's blocks in one space, in the order of their claims.

    `store` is the identity of the store in which they were claimed; `layout` has the subnets that
    the space is known to have, with the prefix length of their blocks. Nothing is allocated while
    the node is `idle` (idle.py). `lost` has blocks that other nodes have by now, and these nodes:
    containers here had addresses of them.
    """

    seq: int = 0
    store: str = ""
    layout: dict[str, int] = {}
    blocks: list[Block] = []
    idle: bool = False
    lost: dict[str, str] = {}

    def find(self, block: Prefix) -> Block | None:
        """The entry of a block."""
        text = str(block)
        return next((each for each in self.blocks if each.cidr == text), None)

    def of_state(self, *states: str) -> list[Block]:
        """The blocks in one of these states."""
        return [each for each in self.blocks if each.state in states]

    def remove(self, block: Block) -> None:
        """Remove an entry; success if it is gone already."""
        self.blocks = [each for each in self.blocks if each != block]


class Registration(msgspec.Struct):
    """The last renewal of the node's record in a store, in the boot `boot` (hex).

    With a `timeout` (seconds) others may take the node for gone some time after `until`, a time of
    the boot's clock. `store` is the store's identity then; `idle`: the record may say so (idle.py).
    `looked` is when the record was read last, by the same clock; `made` tells the record from
    another one of the same node.
    """

    name: str
    boot: str
    store: str = ""
    timeout: int = 0
    until: float = 0.0
    cordoned: bool = False
    idle: bool = False
    looked: float = 0.0
    made: str = ""

    def is_due(self, now: float) -> bool:
        """Has half of the time passed, so that it is to be renewed? `now`: the boot's clock."""
        return self.timeout > 0 and self.until - now <= self.timeout / 2


class Node:
    """This node's files below a data directory. Methods raise CNIError for wrong files."""

    def __init__(self, data_dir: str, name: str) -> None:
        self.data_dir = data_dir
        self.name = name

    def path(self, name: str) -> str:
        """A file beside the directories of reservations."""
        return os.path.join(self.data_dir, SIDECARS, name)

    @property
    def boot(self) -> str:
        """This boot's id, in hex; empty if the kernel does not tell."""
        return reservation.this_boot().hex()

    def identity(self) -> Identity:
        """The node's identity; chooses an id if there is none. Call it under `claiming`.

        Raises CNIError if the node had another name before, which its blocks have.
        """
        return node_files.identity(self.data_dir, self.name)

    def renew_identity(self) -> None:
        """Give the node another random id. Under `claiming`."""
        write(self.path("node"), Identity(self.name, os.urandom(16).hex()), sync=True)

    def registration(self, store: str) -> Registration | None:
        """The last registration, of any boot; None if there was none.

        `store` is a digest of the settings that select the store.
        """
        return self._registrations().get(store)

    def set_registration(self, store: str, registration: Registration) -> None:
        """Note a renewal. Under `claiming`."""
        write(self.path("registered"), {**self._registrations(), store: registration})

    def _registrations(self) -> dict[str, Registration]:
        return read(self.path("registered"), dict[str, Registration]) or {}

    def wanting(self) -> list[str]:
        """The spaces in which this node has asked others for empty blocks."""
        return read(self.path("wanting"), list[str]) or []

    def set_wanting(self, spaces: list[str]) -> None:
        """Set those spaces. Call it under `claiming`."""
        if spaces != self.wanting():
            write(self.path("wanting"), spaces)

    def pool_definition(self, name: str) -> dict[str, Any] | None:
        """The store's definition of a pool when it was read last; None if it never was."""
        found: dict[str, Any] | None = read(self.path(f"{name}.pool"), dict[str, Any])
        return found

    def set_pool_definition(self, name: str, value: dict[str, Any]) -> None:
        """Set that definition. Call it under `claiming`."""
        write(self.path(f"{name}.pool"), value)

    def claiming(self, timeout: float = lockfile.TIMEOUT) -> AbstractContextManager[None]:
        """Hold the lock of the one process of the node that may talk to a store.

        Raises TryAgainLater.
        """
        return node_files.claiming(self.data_dir, timeout)

    def spaces(self) -> list[str]:
        """The spaces in which this node has, or had, addresses or blocks."""
        names: set[str] = set()
        with suppress(OSError):
            for name in os.listdir(os.path.join(self.data_dir, SIDECARS)):
                if name.endswith(".blocks"):
                    names.add(name.removesuffix(".blocks"))
        with suppress(OSError):
            for entry in os.scandir(self.data_dir):
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                    names.add(entry.name)
        return sorted(names - NOT_SPACES)


class Space:
    """One address space on this node."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.location = Location.of(node.data_dir, name, reclaim=True)

    def ledger(self) -> Ledger:
        """The node's blocks. To change them, hold the directory's lock."""
        return read(self.node.path(f"{self.name}.blocks"), Ledger) or Ledger()

    @contextmanager
    def changing(self) -> Iterator[tuple[Ledger, Store]]:
        """The ledger and the reservations, under the directory's lock.

        The ledger is written at the end, if it was changed, unless an exception ends the `with`
        block. It is on the disk before the store is told: after a power failure the store must not
        know of a release that the node has forgotten.
        """
        with self.location.open() as store:
            ledger = self.ledger()
            before = msgspec.json.encode(ledger)
            yield ledger, store
            if msgspec.json.encode(ledger) != before:
                write(self.node.path(f"{self.name}.blocks"), ledger, sync=True)

    @property
    def freed(self) -> str:
        """The file of releases (rest.py)."""
        return self.node.path(f"{self.name}.freed")

    def own(self) -> list[Prefix]:
        """The blocks from which this node allocates: none while it is idle."""
        ledger = self.ledger()
        return [] if ledger.idle else [each.prefix for each in ledger.of_state(OWN)]

    def reserved(self, store: Store) -> list[bytes]:
        """The addresses (packed) that have a file in the open directory."""
        _ = store.file_count  # reads the directory if needed, and removes files of an earlier boot
        names = filter(reservation.is_address, os.listdir(self.location.path))
        return [parse_ip(name) for name in names]

    def note_pool(self, network: str, entry: dict[str, Any]) -> None:
        """Note a network that needed a block, so that blocks can be claimed ahead for it.

        Under `claiming`.
        """
        pools = self.pools()
        if pools.get(network) != entry:
            write(self.node.path(f"{self.name}.pools"), {**pools, network: entry})

    def pools(self) -> dict[str, dict[str, Any]]:
        """The noted networks: by network, its `ipam` object and cniVersion."""
        return read(self.node.path(f"{self.name}.pools"), dict[str, dict[str, Any]]) or {}
