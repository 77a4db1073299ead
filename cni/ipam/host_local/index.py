"""An index of a directory of reservations; a look-up reads a few hundred bytes.

    <dataDir>/.cni/<network>.index
      header    boot, identity and times of the directory, sizes
      buckets   entries (hash, address) for "which addresses has this owner?", and
                entries (hash, page) for "where is the bitmap of these 4096 addresses?"
      pages     bitmaps of the addresses that are taken

It lies outside of the network's directory, because the reference takes all files there for
reservations.

**When it is valid.** Adding or removing a file changes the directory's mtime. After our own changes
we set that mtime to a chosen time, the seal, and note it in the index. While the directory has this
mtime, no file was added or removed; otherwise the index is built anew from the files. (Rewriting a
file in place does not change the mtime: so `addresses` returns candidates, and the store compares
their contents.)

The kernel's clock ticks every few milliseconds, so an mtime set by the kernel does not reveal a
second change in the same tick. The seal lies in the past and ends in random digits, so no clock
repeats it. Each change of the directory breaks the seal before the index is changed; so a process
that dies halfway leaves an invalid index. An index of an earlier boot is invalid, too: a power
failure may have lost a part of it.
"""

from __future__ import annotations

import os
import struct
import time
from binascii import crc32
from contextlib import suppress

from ... import files
from ...protocol.address import InvalidAddress, format_ip, parse_ip

# magic and version, boot, device, inode, mtime, ctime, buckets, pages, files in the directory
_HEADER = struct.Struct("<16s16sQQqqIIQ")
_MAGIC = b"cni host-local 1"
_BUCKETS_AT = 512

# hash, address or first address of a page, number of the page
_ENTRY = struct.Struct("<I16sI")
_OWNER, _MANY = 0xFFFFFFFF, 0xFFFFFFFE  # in place of a page's number
_MOST = 8  # addresses of one owner; an administrator may have blocked hundreds by equal files
_EMPTY = bytes(_ENTRY.size)
_BUCKET = _ENTRY.size * 20
_SPARSE = 4  # entries per bucket of a new index, which may grow threefold
_FEWEST_BUCKETS = 16

_PAGE_BITS = 12
_PAGE_SIZE = 1 << _PAGE_BITS
_PAGE_BYTES = _PAGE_SIZE // 8
_MAPPED = b"\0" * 10 + b"\xff\xff"
_V4 = 0xFFFF << 32

_BEGINNING = 1 << 14  # bytes that are read at once: all of a small network's index


class Full(OSError):
    """A bucket has no room: a larger index has to be built."""


# The errors of a torn or wrong index, which must not be used any more.
BROKEN = (OSError, struct.error, IndexError, ZeroDivisionError)


class Many(Exception):
    """Too many addresses have this content for the index: the files have to be read."""


# A directory and its state: device, inode, mtime, ctime (ns).
Stamp = tuple[int, int, int, int]


class Index:
    """An open index. Every method may raise one of BROKEN.

    Addresses are packed: 4 or 16 bytes. Only an index opened with `writable` may be changed.
    """

    def __init__(
        self,
        fd: int,
        boot: bytes,
        stamp: Stamp,
        sizes: tuple[int, int, int],
        beginning: bytes = b"",
    ) -> None:
        self._fd = fd
        self._beginning = bytearray(beginning)  # of the file; no other process writes it
        self._boot = boot
        self._stamp = stamp
        self._buckets, self._pages, self.files = sizes  # `files`: names in the directory

    # --- opening ---

    @classmethod
    def open(cls, path: str, directory: int, boot: bytes, writable: bool) -> Index | None:
        """The index of the open directory; None if there is no valid one."""
        try:
            fd, status = files.open_and_stat(path, os.O_RDWR if writable else os.O_RDONLY)
        except OSError:
            return None
        try:
            beginning = os.pread(fd, _BEGINNING, 0)
            fields = _HEADER.unpack_from(beginning)
            stamp = fields[2:6]
            if fields[:2] == (_MAGIC, boot) and stamp == _stamp(directory):
                index = cls(fd, boot, stamp, fields[6:], beginning)
                if index._page_at(index._pages) == status.st_size:
                    return index
        except (OSError, struct.error):
            pass
        os.close(fd)
        return None

    @classmethod
    def build(cls, path: str, boot: bytes, leases: dict[str, bytes]) -> Index:
        """A new index of name -> content, which replaces the old one; not yet sealed.

        Names are canonical addresses; those with the content b"" are free. Raises OSError.
        """
        owners: dict[int, list[bytes]] = {}
        pages: dict[int, bytearray] = {}
        for name, content in leases.items():
            if content:
                packed = parse_ip(name)
                hashed = crc32(content)
                entry = _ENTRY.pack(hashed, _wide(packed), _OWNER)
                owners.setdefault(hashed, []).append(entry)
                page, bit = divmod(_number(packed), _PAGE_SIZE)
                bitmap = pages.setdefault(page, bytearray(_PAGE_BYTES))
                bitmap[bit >> 3] |= 1 << (bit & 7)
        entries = [_page_entry(page, number) for number, page in enumerate(pages)]
        for hashed, same in owners.items():
            many = [_ENTRY.pack(hashed, bytes(16), _MANY)]
            entries += same if len(same) <= _MOST else many
        table = _distribute(entries)
        temporary = f"{path}.new"  # one name suffices: the caller holds the directory's lock
        fd = files.open_regular(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            sizes = len(table), len(pages), len(leases)
            _write(fd, b"".join((*table, *pages.values())), _BUCKETS_AT)
            os.rename(temporary, path)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, boot, (0, 0, 0, 0), sizes)

    def close(self) -> None:
        """Close the file. Without `seal` the index becomes invalid if the directory has changed."""
        os.close(self._fd)

    def seal(self, directory: int) -> None:
        """Note that the index matches the present content of the open directory."""
        past = time.time_ns() - 1_000_000_000 - int.from_bytes(os.urandom(4), "big") % 1_000_000_000
        os.utime(directory, ns=(os.fstat(directory).st_atime_ns, past))
        stamp = _stamp(directory)
        if stamp[2] == past:  # else the file system keeps no nanoseconds: never valid
            sizes = self._buckets, self._pages, self.files
            header = _HEADER.pack(_MAGIC, self._boot, *stamp, *sizes)
            self._write(header, 0)
            self._stamp = stamp

    def is_current(self, directory: int) -> bool:
        """Is the directory still as it was at `open` or `seal`? For readers without the lock."""
        return _stamp(directory) == self._stamp

    # --- looking ---

    def addresses(self, content: bytes) -> list[bytes]:
        """Candidates: all addresses whose files have this content, and perhaps others.

        The caller has to compare their contents. Raises Many.
        """
        entries = self._find(crc32(content))
        if any(number == _MANY for _, number in entries):
            raise Many
        return [_narrow(wide) for wide, number in entries if number == _OWNER]

    def first_free(self, width: int, low: int, high: int) -> int | None:
        """The first address of `width` bytes (4, 16) from `low` to `high` that is not taken."""
        base = _V4 if width == 4 else 0
        at, end = base + low, base + high
        while at <= end:
            page, bit = divmod(at, _PAGE_SIZE)
            number = self._page(page)
            if number is None:
                return at - base
            bitmap = self._read(_PAGE_BYTES, self._page_at(number))
            free = ~int.from_bytes(bitmap, "little") >> bit  # ~ sets all higher bits
            step = (free & -free).bit_length() - 1
            if bit + step < _PAGE_SIZE:
                at += step
                return at - base if at <= end else None
            at = (page + 1) * _PAGE_SIZE
        return None

    def differences(self, leases: dict[str, bytes]) -> list[str]:
        """How the index disagrees with `leases` (name -> content), a line each."""
        problems = []
        taken = {name: content for name, content in leases.items() if content}
        for name, content in taken.items():
            packed = parse_ip(name)
            number = int.from_bytes(packed, "big")
            if self.first_free(len(packed), number, number) is not None:
                problems.append(f"{name} is free in the index")
            with suppress(Many):
                if packed not in self.addresses(content):
                    problems.append(f"{name} is not its owner's in the index")
        marked = 0
        for number in range(self._pages):
            bitmap = self._read(_PAGE_BYTES, self._page_at(number))
            marked += int.from_bytes(bitmap, "little").bit_count()
        if marked != len(taken):
            problems.append(f"{marked} addresses are taken in the index, {len(taken)} on disk")
        if self.files != len(leases):
            problems.append(f"{self.files} files in the index, {len(leases)} on disk")
        return problems

    # --- changing ---

    def add(self, packed: bytes, content: bytes) -> None:
        """Note that an address, free before, has an owner. The caller updates `files`."""
        self._mark(packed, taken=True)
        same = [number for _, number in self._find(crc32(content)) if number >= _MANY]
        if _MANY not in same:
            if len(same) == _MOST:
                raise Full
            self._insert(_ENTRY.pack(crc32(content), _wide(packed), _OWNER))

    def remove(self, packed: bytes, content: bytes) -> None:
        """Note that an address, whose file had this content, is free again."""
        self._mark(packed, taken=False)
        entry = _ENTRY.pack(crc32(content), _wide(packed), _OWNER)
        at, entries = self._bucket(crc32(content))
        if entry in entries:
            entries.remove(entry)
            self._write(b"".join(entries).ljust(_BUCKET, b"\0"), at)

    # --- the file ---

    def _read(self, size: int, at: int) -> bytes:
        if at + size <= len(self._beginning):
            return bytes(self._beginning[at : at + size])
        return os.pread(self._fd, size, at)

    def _write(self, data: bytes, at: int) -> None:
        _write(self._fd, data, at)
        room = len(self._beginning) - at
        if room > 0:
            self._beginning[at : at + min(len(data), room)] = data[:room]

    def _mark(self, packed: bytes, taken: bool) -> None:
        page, bit = divmod(_number(packed), _PAGE_SIZE)
        number = self._page(page)
        if number is None:
            number = self._pages
            self._write(bytes(_PAGE_BYTES), self._page_at(number))
            self._insert(_page_entry(page, number))
            self._pages += 1
        at = self._page_at(number) + (bit >> 3)
        old = self._read(1, at)[0]
        mask = 1 << (bit & 7)
        self._write(bytes([old | mask if taken else old & ~mask]), at)

    def _page(self, page: int) -> int | None:
        """The number of the page with these 4096 addresses."""
        wide = _page_key(page)
        for key, number in self._find(crc32(wide)):
            if key == wide and number < _MANY:
                if number >= self._pages:
                    raise IndexError(number)
                return number
        return None

    def _page_at(self, number: int) -> int:
        return _BUCKETS_AT + self._buckets * _BUCKET + number * _PAGE_BYTES

    def _find(self, hashed: int) -> list[tuple[bytes, int]]:
        """The keys and numbers of the entries with this hash."""
        _, entries = self._bucket(hashed)
        unpacked = map(_ENTRY.unpack, entries)
        return [(key, number) for each, key, number in unpacked if each == hashed]

    def _insert(self, entry: bytes) -> None:
        at, entries = self._bucket(_ENTRY.unpack(entry)[0])
        if (len(entries) + 1) * _ENTRY.size > _BUCKET:
            raise Full
        self._write(entry, at + len(entries) * _ENTRY.size)

    def _bucket(self, hashed: int) -> tuple[int, list[bytes]]:
        """Where the bucket of a hash begins, and its entries."""
        at = _BUCKETS_AT + hashed % self._buckets * _BUCKET
        data = self._read(_BUCKET, at)
        entries = []
        for start in range(0, len(data), _ENTRY.size):
            entry = data[start : start + _ENTRY.size]
            if entry == _EMPTY:
                break
            entries.append(entry)
        return at, entries


def is_indexable(leases: dict[str, bytes]) -> bool:
    """Are all files with content named by canonical addresses? An index can have no others."""
    try:
        return all(format_ip(parse_ip(name)) == name for name, text in leases.items() if text)
    except InvalidAddress:
        return False


def is_same_hash(one: bytes, other: bytes) -> bool:
    """Does `addresses` return the addresses of both contents for either of them?"""
    return crc32(one) == crc32(other)


def _stamp(directory: int) -> Stamp:
    stat = os.fstat(directory)
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def _distribute(entries: list[bytes]) -> list[bytes]:
    """The entries in buckets: a power of two, enough that no bucket overflows."""
    count = _FEWEST_BUCKETS
    while count * _SPARSE < len(entries):
        count *= 2
    while True:
        table = [b""] * count
        for entry in entries:
            table[int.from_bytes(entry[:4], "little") % count] += entry
        if max(map(len, table)) <= _BUCKET:
            return [bucket.ljust(_BUCKET, b"\0") for bucket in table]
        count *= 2


def _write(fd: int, data: bytes, at: int) -> None:
    if os.pwrite(fd, data, at) != len(data):
        raise OSError(28, os.strerror(28))  # ENOSPC


def _page_entry(page: int, number: int) -> bytes:
    wide = _page_key(page)
    return _ENTRY.pack(crc32(wide), wide, number)


def _page_key(page: int) -> bytes:
    return (page * _PAGE_SIZE).to_bytes(16, "big")


def _wide(packed: bytes) -> bytes:
    return _MAPPED + packed if len(packed) == 4 else packed


def _narrow(wide: bytes) -> bytes:
    return wide[12:] if wide.startswith(_MAPPED) else wide


def _number(packed: bytes) -> int:
    return int.from_bytes(_wide(packed), "big")
