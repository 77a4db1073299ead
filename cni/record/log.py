"""The request log: a line of JSON a request in a file, or an entry of systemd's journal.

A line is appended by one write(2) to a file opened with O_APPEND, so lines of several processes do
not mix. Nothing waits for a reader: what is no regular file is refused, and a journal that is busy
goes without the entry. What containers and others have chosen is cut to a length, and escaped by
JSON. The journal's protocol: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .. import files
from . import settings
from .settings import Settings

JOURNAL_SOCKET = "/run/systemd/journal/socket"
_MODE = 0o640
_LONGEST = 1024  # characters of a value that others have chosen
_LONGEST_MESSAGE = 8192
_APPEND = os.O_WRONLY | getattr(os, "O_APPEND", 0)
_CHECK_SECONDS = 1.0  # how long an open file is taken for the one at its path
_PRIORITY_ERROR, _PRIORITY_INFO = 3, 6  # syslog(3)


class Entry(NamedTuple):
    """A request that has been answered.

    `output` is the error object if `code` is not 0. `began` is time.time(). `via` is ``served`` or
    ``exec``.
    """

    plugin: str
    env: Mapping[str, str]
    stdin: bytes
    began: float
    seconds: float
    code: int
    output: bytes
    via: str


class Log:
    """Writes entries; a process that lives on keeps its file and its socket open.

    `dropped` counts the entries that could not be written.
    """

    def __init__(self, *, keep_open: bool = False) -> None:
        self._keep_open = keep_open
        self._fd = -1
        self._wanted = Settings(settings.OFF, "")
        self._identity = (0, 0)
        self._checked = 0.0
        self._journal: Any = None
        self.dropped = 0

    def write(self, entry: Entry, node: Mapping[str, str]) -> None:
        """Write the entry down, if that is wanted; `node` is settings.of_node. Raises nothing."""
        conf = _decode(entry.stdin)
        wanted = settings.of_request(entry.env, conf, node)
        if not wanted.want(entry.code):
            return
        fields = fields_of(entry, conf)
        try:
            if wanted.file == settings.JOURNAL:
                self._send(journal_message(fields))
            else:
                self._append(wanted, msgspec.json.encode(fields) + b"\n")
        except (OSError, ValueError):
            self.dropped += 1

    # --- a file ---

    def _append(self, wanted: Settings, line: bytes) -> None:
        """Append a line. Raises OSError."""
        fd = self._opened(wanted)
        try:
            if os.write(fd, line) < len(line):
                self.dropped += 1  # the disk has got full; a second write could mix with others
        finally:
            if not self._keep_open:
                self._close_file()

    def _opened(self, wanted: Settings) -> int:
        now = time.monotonic()
        if self._fd >= 0 and self._wanted[1:] == wanted[1:]:
            if now - self._checked < _CHECK_SECONDS:
                return self._fd
            if not wanted.is_confined and self._is_in_place():
                self._checked = now
                return self._fd
        self._close_file()
        self._fd = _open_confined(wanted.file) if wanted.is_confined else _open(wanted.file)
        status = os.fstat(self._fd)
        self._wanted, self._identity = wanted, (status.st_dev, status.st_ino)
        self._checked = now
        return self._fd

    def _is_in_place(self) -> bool:
        """Whether the open file is still the one at its path: it may have been rotated."""
        try:
            status = os.lstat(self._wanted.file)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        """Close what is kept open; harmless when repeated."""
        self._close_file()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    # --- the journal ---

    def _send(self, message: bytes) -> None:
        """Send an entry to the journal. Raises OSError; without a journal there is nobody to tell.

        A journal that was started anew has another socket at the same path.
        """
        from _socket import AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_DGRAM, socket

        if self._journal is None:
            self._journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        try:
            self._journal.sendto(message, MSG_DONTWAIT | MSG_NOSIGNAL, JOURNAL_SOCKET)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            pass  # no journal on this node
        finally:
            if not self._keep_open:
                self._journal.close()
                self._journal = None


def _open(path: str, *, dir_fd: int | None = None) -> int:
    """The regular file, made with mode 0640 if it is missing. Raises OSError."""
    try:
        return files.open_regular(path, _APPEND, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    try:
        fd = files.open_regular(path, _APPEND | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=dir_fd)
    except FileExistsError:  # another request was quicker
        return files.open_regular(path, _APPEND, dir_fd=dir_fd)
    os.fchmod(fd, _MODE)  # whatever the umask is
    return fd


def _open_confined(path: str) -> int:
    """A file that a configuration names: one in settings.DIRECTORY only. Raises OSError.

    The directory is made if need be, and must be one that nobody but root, or our user, may change.
    """
    directory, _, name = path.rpartition("/")
    if directory != settings.DIRECTORY or name in ("", ".", ".."):
        raise PermissionError(path)
    try:
        fd = _open_directory(directory)
    except FileNotFoundError:
        os.mkdir(directory, 0o750)
        fd = _open_directory(directory)
    try:
        status = os.fstat(fd)
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if writable or status.st_uid not in (0, os.geteuid()):
            raise PermissionError(directory)
        return _open(name, dir_fd=fd)
    finally:
        os.close(fd)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


# --- what is written ------------------------------------------------------------------------------


def fields_of(entry: Entry, conf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry in their order; what is not known of a request is left out."""
    env = entry.env
    out: dict[str, Any] = {
        "time": timestamp(entry.began),
        "plugin": entry.plugin,
        "verb": _text(env.get("CNI_COMMAND")),
        "network": _text(_network(conf)),
        "containerID": _text(env.get("CNI_CONTAINERID")),
        "ifname": _text(env.get("CNI_IFNAME")),
        "netns": _text(env.get("CNI_NETNS")),
        "ms": round(entry.seconds * 1000, 3),
        "code": 0,
    }
    if entry.code:
        error = _decode(entry.output)
        code = error.get("code")
        out["code"] = code if isinstance(code, int) else entry.code
        out["msg"] = _text(error.get("msg"), _LONGEST_MESSAGE)
        out["details"] = _text(error.get("details"), _LONGEST_MESSAGE)
    if "TRACEPARENT" in env:
        from .context import parse

        parent = parse(env["TRACEPARENT"])
        out["traceID"] = parent.trace_id if parent is not None else ""
    out["via"] = entry.via
    out["build"] = _build()
    return {key: value for key, value in out.items() if value != ""}


def timestamp(seconds: float) -> str:
    """time.time() as RFC 3339 has it, in UTC with microseconds."""
    whole = int(seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{text}.{int((seconds - whole) * 1e6):06d}Z"


_JOURNAL_NAMES = {
    "plugin": "CNI_PLUGIN",
    "verb": "CNI_VERB",
    "network": "CNI_NETWORK",
    "containerID": "CNI_CONTAINERID",
    "ifname": "CNI_IFNAME",
    "netns": "CNI_NETNS",
    "ms": "CNI_MS",
    "code": "CNI_CODE",
    "msg": "CNI_MSG",
    "details": "CNI_DETAILS",
    "traceID": "CNI_TRACE_ID",
    "via": "CNI_VIA",
    "build": "CNI_BUILD",
}


def journal_message(fields: Mapping[str, Any]) -> bytes:
    """The datagram for an entry with these fields."""
    what = f"{fields['plugin']} {fields.get('verb', '?')} {fields.get('network', '')}".rstrip()
    code = fields["code"]
    said = f"failed with {code}: {fields.get('msg', '')}" if code else "ok"
    out = [
        _journal_field("MESSAGE", f"{what} {said} ({fields['ms']} ms)"),
        _journal_field("PRIORITY", _PRIORITY_ERROR if code else _PRIORITY_INFO),
        _journal_field("SYSLOG_IDENTIFIER", "cni"),
    ]
    for key, name in _JOURNAL_NAMES.items():
        if key in fields:
            out.append(_journal_field(name, fields[key]))
    return b"".join(out)


def _journal_field(name: str, value: object) -> bytes:
    data = str(value).encode(errors="replace")
    if b"\n" in data:  # then its length goes before it
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return f"{name}=".encode() + data + b"\n"


def _text(value: object, longest: int = _LONGEST) -> str:
    """A value that others have chosen, as text of bounded length; what is no UTF-8 is replaced."""
    if not isinstance(value, str):
        return ""
    if len(value) > longest:
        value = f"{value[:longest]}…"
    try:
        value.encode()
    except UnicodeEncodeError:
        value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def _network(conf: Mapping[str, Any]) -> object:
    found = conf.get("name")
    if found is None:
        for key, value in conf.items():
            if key.lower() == "name":
                found = value
    return found


def _decode(data: bytes) -> dict[str, Any]:
    """The JSON object; an empty one where there is none."""
    try:
        value = msgspec.json.decode(data)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _build() -> str:
    try:
        from .._build import ID
    except ImportError:
        return ""
    return ID
