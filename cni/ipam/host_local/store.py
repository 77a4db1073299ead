"""The reservations of a network: reading, reserving and releasing under the directory's lock.

The files are the truth (reservation.py). The index (index.py) only saves reading all of them:
everything works without it, and in any doubt about it the files are read.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from ... import files
from ...protocol.address import InvalidAddress, format_ip, parse_ip
from . import reservation
from .index import BROKEN, Index, Many, is_indexable, is_same_hash
from .reservation import (
    IN_MAKING,
    LAST_RESERVED,
    UNREADABLE,
    content_of,
    is_address,
    may_be_reservation,
)

INDEX_SUFFIX = ".index"


class Owned(NamedTuple):
    """The names of an attachment's files, and the errors of files that may be its files, too.

    `content` is the content of the files.
    """

    content: bytes
    names: list[str]
    errors: list[OSError]

    def or_raise(self) -> list[str]:
        """The names. Raises OSError if a file could not be read, so that names may be missing."""
        for error in self.errors:
            raise error
        return self.names


class Store:
    """An open, locked directory. Methods raise OSError; `Location.open` converts it to CNIError.

    With `reclaim`, reservations of an earlier boot are removed whenever all files are read, which
    happens at least once a boot.
    """

    def __init__(self, path: str, fd: int, index_path: str, reclaim: bool) -> None:
        self.path = path
        self._fd = fd
        self._index_path = index_path
        self._spare = f"{index_path.removesuffix(INDEX_SUFFIX)}.spare"
        self._reclaim = reclaim
        self._boot, self._told_boot = reservation.this_boot(), reservation.told_boot()
        self._leases: dict[str, bytes] | None = None
        self._errors: dict[str, OSError] = {}  # name → error, of files that could not be read
        self._index: Index | None = None
        self._looked = False
        self._changed = False  # has the directory changed since the index was sealed?
        self._halfway = False  # is the directory changed, and the index not yet?

    def close(self) -> None:
        """Seal the index if it is right, so that the next user of the directory can use it."""
        if self._index is None:
            return
        with suppress(*BROKEN):
            if self._changed and not self._halfway:
                self._index.seal(self._fd)
        self._index.close()
        self._index = None

    # --- reading ---

    @property
    def has_read_all(self) -> bool:
        """Were all files read, so that the index is not needed?"""
        return self._leases is not None

    @property
    def file_count(self) -> int:
        """The number of reservations, including empty files."""
        index = self._ready()
        return index.files if index is not None else len(self.leases())

    def leases(self) -> dict[str, bytes]:
        """Name -> content without surrounding white space, of all reservations; b"" if torn.

        Reads every file, once. UNREADABLE stands for anything but a small regular file, and for
        files that cannot be read now.
        """
        if self._leases is None:
            leases: dict[str, bytes] = {}
            self._errors = {}
            for name in os.listdir(self._fd):
                if name == IN_MAKING:
                    self._changed = True
                    os.unlink(name, dir_fd=self._fd)
                elif may_be_reservation(name):
                    try:
                        content = self._examine(name)
                    except OSError as error:
                        self._errors[name] = error
                        content = UNREADABLE
                    if content is not None:
                        leases[name] = content
            self._leases = leases
        return self._leases

    def owned_by(self, container_id: str, ifname: str) -> list[str]:
        """Names of the attachment's files, with those of old versions (ID only) after them.

        Raises OSError if one that may be the attachment's cannot be read.
        """
        full = self._holding(content_of(container_id, ifname)).or_raise()
        return full + self._holding(content_of(container_id)).or_raise()

    def releasable(self, container_id: str, ifname: str) -> Owned:
        """The files that a DEL releases; files with the ID alone only if there are no others."""
        full = self._holding(content_of(container_id, ifname))
        if full.names or full.errors:  # an unreadable file may be one with the interface
            return full
        return self._holding(content_of(container_id))

    def first_free(self, width: int, low: int, high: int) -> int | None:
        """The first free address of `width` bytes (4 or 16) from `low` to `high`, or None."""
        index = self._ready()
        if index is not None:
            try:
                return index.first_free(width, low, high)
            except BROKEN:
                self.distrust()
        taken = self._taken()
        for number in range(low, high + 1):
            if number.to_bytes(width, "big") not in taken:
                return number
        return None

    def content(self, name: str) -> bytes | None:
        """The value of one name in `leases`, without reading other files; None without the file."""
        return reservation.content(self._fd, name)

    def name_of(self, packed: bytes) -> str | None:
        """The file name under which an address, in any spelling, is taken; None if it is free."""
        return self._taken().get(packed)

    def is_of_gone_namespace(self, name: str, seen_from: str) -> bool:
        """Has the namespace for which a reservation was made certainly ceased to exist?

        False in any doubt. `seen_from` is the CNI_NETNS of the request that asks, as in
        liveness.exists.
        """
        noted = reservation.namespace_of(self._fd, name)
        if noted is None:
            return False
        from ...netns import liveness

        return liveness.is_gone(noted, "", seen_from)

    def last_reserved(self, range_id: int) -> bytes | None:
        """The address (packed) that the range set gave out last; None if that is unknown."""
        try:
            text = files.read(f"{LAST_RESERVED}{range_id}", 128, dir_fd=self._fd)
            return parse_ip(text.decode("ascii", "replace"))
        except (FileNotFoundError, InvalidAddress):
            return None

    def _taken(self) -> dict[bytes, str]:
        """Packed address -> file name, of all addresses that are taken."""
        taken = ((name, content) for name, content in self.leases().items() if content)
        return {parse_ip(name): name for name, _ in taken if is_address(name)}

    def _holding(self, content: bytes) -> Owned:
        """The files with this content."""
        index = self._ready()
        if index is not None:
            try:
                return self._holding_by_index(index, content)
            except Many:
                pass
            except BROKEN:
                self.distrust()
        names = [name for name, text in self.leases().items() if text == content]
        return Owned(content, names, list(self._errors.values()))

    def _holding_by_index(self, index: Index, content: bytes) -> Owned:
        """As `_holding`, by the index. Raises one of BROKEN if a file contradicts it, Many."""
        names: list[str] = []
        errors: list[OSError] = []
        for name in map(format_ip, index.addresses(content)):
            try:
                text = self.content(name)
            except OSError as error:
                errors.append(error)
                continue
            if text is None or not is_same_hash(text, content):
                raise IndexError(name)  # removed, or rewritten in place, by another program
            if text == content:
                names.append(name)
        return Owned(content, names, errors)

    def _examine(self, name: str) -> bytes | None:
        """A file's content; None if the file was an earlier boot's, and is removed."""
        try:
            fd = files.open_regular(name, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except files.Unusable:
            return UNREADABLE
        try:
            content = reservation.content_of_open(fd, name)
            if not (content and self._boot and is_address(name)):
                return content
            noted = reservation.boot_of(fd)
            if noted is None:
                reservation.note_boot(fd, self._boot)
            if noted in (None, self._boot) or not self._reclaim:
                return content
        finally:
            os.close(fd)
        self._changed = self._halfway = True
        os.unlink(name, dir_fd=self._fd)
        self._end(name, content, b"", -1)
        return None

    # --- the index ---

    def _ready(self) -> Index | None:
        """The index, built anew unless it is valid; None if no index is possible.

        Open it before the directory is changed: afterwards it would not match.
        """
        if not self._looked:
            self._looked = True
            if self._told_boot:
                self._index = Index.open(self._index_path, self._fd, self._told_boot, writable=True)
            if self._index is None:
                self._index = self._build()
        return self._index

    def _build(self) -> Index | None:
        leases = self.leases()
        if not self._told_boot or self._errors or not is_indexable(leases):
            return None
        self._changed = True
        with suppress(OSError):
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(self._index_path), 0o700)
            return Index.build(self._index_path, self._told_boot, leases)
        return None

    def distrust(self) -> None:
        """Use the files, and remove the index; the next process builds a new one.

        The index is wrong if another program has changed the directory without the lock.
        """
        self._looked = True
        if self._index is not None:
            self._index.close()
            self._index = None
        with suppress(OSError):
            os.unlink(self._index_path)
        self._leases = None

    def recount(self) -> None:
        """Stop using the index if its number of files differs from the directory's."""
        index = self._ready()
        if index is not None and sum(map(may_be_reservation, os.listdir(self._fd))) != index.files:
            self.distrust()

    def index_differences(self) -> list[str] | None:
        """How the index differs from the files; None if there is no valid index."""
        index = Index.open(self._index_path, self._fd, self._told_boot, writable=False)
        if index is None:
            return None
        try:
            return index.differences(self.leases())
        except BROKEN:
            return ["the index is broken"]
        finally:
            index.close()

    # --- changing ---

    def reserve(self, name: str, content: bytes, namespace: bytes = b"") -> bool:
        """Reserve an address, by its canonical name; False if it is taken.

        `namespace` is the reservation.namespace_note of the container's namespace.
        """
        if self._ready() is None and self.name_of(parse_ip(name)) not in (None, name):
            return False  # taken under another spelling, which an index never has
        self._begin()
        notes = ((reservation.BOOT, self._boot), (reservation.NAMESPACE, namespace))
        attributes = {key: value for key, value in notes if value}
        more = 1
        try:
            reservation.create(self._fd, name, content, attributes, self._spare)
        except FileExistsError:
            # an empty file is a free address: the reference was killed after it had made the file
            if self.content(name) != b"":
                self._halfway = False
                return False
            os.unlink(name, dir_fd=self._fd)
            reservation.create(self._fd, name, content, attributes)
            more = 0
        self._end(name, b"", content, more)
        return True

    def release(self, name: str, content: bytes | None = None) -> None:
        """Remove a reservation; a missing one is no error. `content` is its content, if known."""
        if content is None:
            content = self.content(name)
        if content is not None:
            self._begin()
            with suppress(FileNotFoundError):
                reservation.remove(self._fd, name, self._spare)
            self._end(name, content, b"", -1)

    def set_last_reserved(self, range_id: int, name: str) -> None:
        """Note the address that the range set has given out last."""
        self._ready()
        self._changed = True
        reservation.overwrite(self._fd, f"{LAST_RESERVED}{range_id}", name.encode())

    def _begin(self) -> None:
        """Note that the directory is about to change: until `_end`, the index does not match."""
        if self._halfway:
            self.distrust()
        self._ready()
        self._changed = self._halfway = True

    def _end(self, name: str, before: bytes, after: bytes, more: int) -> None:
        """Update the index: a file's content `before` and `after`, and the number of new files."""
        if self._leases is not None:
            self._leases.pop(name, None)
            if after:
                self._leases[name] = after
        if self._index is not None:
            try:
                self._index.files += more
                if before:
                    self._index.remove(parse_ip(name), before)
                if after:
                    self._index.add(parse_ip(name), after)
            except BROKEN:
                self.distrust()
        self._halfway = False
