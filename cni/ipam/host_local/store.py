"""The reservations of one network: looking, reserving and releasing under the directory's lock.

The files are the truth (reservation.py). The index (index.py) only spares reading them all: without
one everything works, and every doubt about it ends with reading the files.
"""

from __future__ import annotations

import os
from contextlib import suppress

from ...protocol.address import InvalidAddress, format_ip, parse_ip
from . import reservation
from .index import BROKEN, Index, Many, is_indexable
from .reservation import IN_MAKING, LAST_RESERVED, content_of, is_address, is_ours

INDEX_SUFFIX = ".index"


class Store:
    """An open, locked directory. Methods raise OSError; `open_store` makes CNIErrors of them.

    `reclaim` removes reservations of an earlier boot when all files are read, which is the case
    once a boot at least.
    """

    def __init__(self, path: str, fd: int, index_path: str, reclaim: bool) -> None:
        self.path = path
        self._fd = fd
        self._index_path = index_path
        self._spare = f"{index_path.removesuffix(INDEX_SUFFIX)}.spare"
        self._reclaim = reclaim
        self._boot = reservation.this_boot()
        self._leases: dict[str, bytes] | None = None
        self._index: Index | None = None
        self._looked = False
        self._changed = False  # the directory, since the index was sealed
        self._halfway = False  # the directory has been changed, and the index not yet

    def close(self) -> None:
        """Let the next one believe the index, if it is right."""
        if self._index is None:
            return
        with suppress(*BROKEN):
            if self._changed and not self._halfway:
                self._index.seal(self._fd)
        self._index.close()
        self._index = None

    # --- looking ---

    def leases(self) -> dict[str, bytes]:
        """Name -> content without surrounding white space, of all reservations; b"" if torn.

        Reads every file, once.
        """
        if self._leases is None:
            self._leases = {}
            for name in os.listdir(self._fd):
                if name == IN_MAKING:
                    self._changed = True
                    os.unlink(name, dir_fd=self._fd)
                elif is_ours(name):
                    content = self._examine(name)
                    if content is not None:
                        self._leases[name] = content
        return self._leases

    def owned_by(self, container_id: str, ifname: str) -> list[str]:
        """Names of the attachment's files, with those of old versions (ID only) after them."""
        return self._holding(content_of(container_id, ifname)) + self._holding(
            content_of(container_id, "").strip()
        )

    def releasable(self, container_id: str, ifname: str) -> list[str]:
        """What a DEL releases: files with an ID only count if there are no others."""
        return self._holding(content_of(container_id, ifname)) or self._holding(
            content_of(container_id, "").strip()
        )

    def first_free(self, width: int, low: int, high: int) -> int | None:
        """The first address of `width` bytes (4 or 16) from `low` to `high` that nobody has."""
        index = self._ready()
        if index is not None:
            try:
                return index.first_free(width, low, high)
            except BROKEN:
                self.distrust()
        leases = self.leases()
        for number in range(low, high + 1):
            if not leases.get(format_ip(number.to_bytes(width, "big"))):
                return number
        return None

    def content(self, name: str) -> bytes | None:
        """What `leases` says of one name, without reading the others; None if there is no file."""
        return reservation.content(self._fd, name)

    def last_reserved(self, range_id: int) -> bytes | None:
        """What the range set handed out last; None if that is unknown."""
        fd = -1
        try:
            fd = os.open(f"{LAST_RESERVED}{range_id}", reservation.READ, dir_fd=self._fd)
            return parse_ip(os.read(fd, 128).decode("ascii", "replace"))
        except (FileNotFoundError, InvalidAddress):
            return None
        finally:
            if fd >= 0:
                os.close(fd)

    def _holding(self, content: bytes) -> list[str]:
        index = self._ready()
        if index is not None:
            try:
                names = [format_ip(packed) for packed in index.addresses(content)]
                found = {name: self.content(name) for name in names}
                if None not in found.values():
                    return [name for name, text in found.items() if text == content]
                self.distrust()
            except Many:
                pass
            except BROKEN:
                self.distrust()
        return [name for name, found in self.leases().items() if found == content]

    def _examine(self, name: str) -> bytes | None:
        """A file's content; None if it is gone, because it was of an earlier boot."""
        try:
            fd = os.open(name, reservation.READ, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except OSError:
            return reservation.UNREADABLE
        try:
            content = os.read(fd, 4096).strip()
            if not (content and self._boot and is_address(name)):
                return content
            noted = reservation.boot_of(fd)
            if noted is None:
                reservation.note_boot(fd, self._boot)
            if noted in (None, self._boot) or not self._reclaim:
                return content
        except OSError:
            return reservation.UNREADABLE
        finally:
            os.close(fd)
        self._changed = self._halfway = True
        os.unlink(name, dir_fd=self._fd)
        self._end(name, content, b"", -1)
        return None

    # --- the index ---

    def _ready(self) -> Index | None:
        """The index, built anew if nobody can believe it; None where there can be none.

        Asked for before the directory is changed: afterwards it would not match.
        """
        if not self._looked:
            self._looked = True
            if self._boot:
                self._index = Index.open(self._index_path, self._fd, self._boot, writable=True)
            if self._index is None:
                self._index = self._build()
        return self._index

    def _build(self) -> Index | None:
        leases = self.leases()
        if not self._boot or not is_indexable(leases):
            return None
        self._changed = True
        with suppress(OSError):
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(self._index_path), 0o700)
            return Index.build(self._index_path, self._boot, leases)
        return None

    def distrust(self) -> None:
        """The index is wrong, or its file is broken: go by the files, and build it anew next time.

        Somebody changed the directory without the lock while one of us held it.
        """
        self._looked = True
        if self._index is not None:
            self._index.close()
            self._index = None
        with suppress(OSError):
            os.unlink(self._index_path)
        self._leases = None

    def recount(self) -> None:
        """Do not use the index any more if it knows of more or fewer files than there are."""
        index = self._ready()
        if index is not None and sum(map(is_ours, os.listdir(self._fd))) != index.files:
            self.distrust()

    def index_differences(self) -> list[str] | None:
        """How the index disagrees with the files; None if there is no index to believe."""
        index = Index.open(self._index_path, self._fd, self._boot, writable=False)
        if index is None:
            return None
        try:
            return index.differences(self.leases())
        except BROKEN:
            return ["the index is broken"]
        finally:
            index.close()

    # --- changing ---

    def reserve(self, name: str, content: bytes) -> bool:
        """Reserve an address; False if it is somebody's."""
        self._begin()
        more = 1
        try:
            reservation.create(self._fd, name, content, self._boot, self._spare)
        except FileExistsError:
            if self.content(name) != b"":
                self._halfway = False
                return False
            os.unlink(name, dir_fd=self._fd)
            reservation.create(self._fd, name, content, self._boot)
            more = 0
        self._end(name, b"", content, more)
        return True

    def release(self, name: str) -> None:
        """Remove a reservation; none is no error."""
        content = self.content(name)
        if content is not None:
            self._begin()
            with suppress(FileNotFoundError):
                reservation.remove(self._fd, name, self._spare)
            self._end(name, content, b"", -1)

    def set_last_reserved(self, range_id: int, name: str) -> None:
        self._ready()
        self._changed = True
        reservation.overwrite(self._fd, f"{LAST_RESERVED}{range_id}", name.encode())

    def _begin(self) -> None:
        """The directory is about to change; if it never comes to `_end`, the index is wrong."""
        if self._halfway:
            self.distrust()
        self._ready()
        self._changed = self._halfway = True

    def _end(self, name: str, before: bytes, after: bytes, more: int) -> None:
        """A file had one content and has another now; that many files have come."""
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
