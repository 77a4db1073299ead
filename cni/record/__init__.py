"""Records of requests: docs/observability.md.

The record of a request is a line of JSON in a file, or an entry of systemd's journal. A line is
appended by one write(2) to a file opened with O_APPEND, so lines of several processes do not mix.
Recording never waits for a reader: only regular files are written to, and a busy journal does not
get the entry. Values that containers and others have chosen are cut, and escaped by JSON.

Which requests are recorded, and where: the first source that sets a level counts, and likewise,
independently, the first that sets a file.

    CNI_LOG_LEVEL, CNI_LOG_FILE          of the runtime's environment
    logLevel, logFile                    keys of the plugin's configuration
    /etc/cni/record.json                 the same two keys, for all plugins of the node
                                         errors, in the journal

The author of a configuration may not be allowed to choose where root writes, as in Kubernetes the
author of a NetworkAttachmentDefinition. So its log file has to be in a certain directory.

    journal      the journal's protocol
    confined     the file of a configuration
    context      the trace that a request belongs to
    labels       the labels of a request
    tracing      the spans of a request
    exposition   the text format of Prometheus

A request that is not recorded loads none of this. Nothing here raises: a record that cannot be
written is dropped. By exec a further module takes longer than the line itself, so everything that
each line needs is in this module, and files are not opened by cni.files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from errno import EINVAL
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ..protocol.config import lookup

if TYPE_CHECKING:
    from .journal import Journal
    from .tracing import Trace

OFF, ERRORS, ALL = LEVELS = ("off", "errors", "all")
JOURNAL = "journal"  # in place of a file
NODE_FILE = "/etc/cni/record.json"
NODE_VARIABLE = "CNI_RECORD_CONF"  # names another file in place of that one
_LEVEL_VARIABLE, _FILE_VARIABLE = "CNI_LOG_LEVEL", "CNI_LOG_FILE"
_LEVEL_KEY, _FILE_KEY = "loglevel", "logfile"
_MAX_NODE_FILE = 1 << 16

_MODE = 0o640
_LONGEST = 1024  # characters of a value that others have chosen
_LONGEST_MESSAGE = 8192
# Windows has none of these; nothing is written there.
_FLAGS = ("O_APPEND", "O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC")
_APPEND = os.O_WRONLY | sum(getattr(os, name, 0) for name in _FLAGS)
_KIND, _REGULAR = 0o170000, 0o100000  # bits of st_mode (inode(7))
_CHECK_SECONDS = 1.0  # how often it is checked that the open file is still at its path


Settings = tuple[str, str, bool]  # level, file, whether a configuration has chosen the file


def of_request(
    env: Mapping[str, str], conf: Mapping[str, Any], node: Mapping[str, str]
) -> Settings:
    """The settings for a request; `node` is the value of `of_node`. Ignores values of a wrong type.

    If only a file is named, errors are written.
    """
    own = _chosen(conf)
    level = _level(env.get(_LEVEL_VARIABLE)) or own.get(_LEVEL_KEY) or node.get(_LEVEL_KEY)
    file = _file(env.get(_FILE_VARIABLE))
    confined = not file and _FILE_KEY in own
    file = file or own.get(_FILE_KEY) or node.get(_FILE_KEY) or JOURNAL
    return level or ERRORS, file, confined


def of_node(env: Mapping[str, str]) -> dict[str, str]:
    """The settings in the node's own file; {} if it cannot be read."""
    from .. import files

    try:
        raw = msgspec.json.decode(files.read(node_file(env), _MAX_NODE_FILE, follow=True))
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return {}
    return _chosen(raw) if isinstance(raw, dict) else {}


def node_file(env: Mapping[str, str]) -> str:
    """The path of the node's own file."""
    return env.get(NODE_VARIABLE) or NODE_FILE


def _chosen(raw: Mapping[str, Any]) -> dict[str, str]:
    """The usable values of the two keys, which may have any case."""
    found = {}
    for key, value in raw.items():
        folded = key.lower()
        usable = ""
        if folded == _LEVEL_KEY:
            usable = _level(value)
        elif folded == _FILE_KEY:
            usable = _file(value)
        if usable:
            found[folded] = usable
    return found


def _level(value: Any) -> str:
    return value if isinstance(value, str) and value in LEVELS else ""


def _file(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        return ""
    return value if value == JOURNAL or value.startswith("/") else ""


# --- by exec --------------------------------------------------------------------------------------


def by_exec(
    plugin: str,
    stdin: bytes,
    seconds: float,
    code: int,
    output: bytes,
    traced: Trace | None,
    has_node_file: bool,
) -> None:
    """Record the request that this process has answered. May raise anything."""
    env = dict(os.environ)
    entry = Entry(plugin, env, stdin, time.time() - seconds, seconds, code, output, "exec")
    Log().write(entry, of_node(env) if has_node_file else {})
    if traced is not None:
        from .tracing import Sender

        Sender(_spans_path(env)).send(traced.finish(entry))


def begin_by_exec(env: Mapping[str, str]) -> Trace | None:
    """Begin the trace of this process's request, if the caller's trace is recorded and a server
    takes spans. May raise anything.
    """
    if not os.access(_spans_path(env), os.F_OK):
        return None
    from . import tracing

    return tracing.begin(env, tracing.parents_choice)


def _spans_path(env: Mapping[str, str]) -> str:
    """The path of the socket on which the server's observer takes spans (cni.server.observing)."""
    return f"{env.get('CNI_SERVER_SOCKET') or '/run/cni/cni.sock'}.spans"


# --- writing --------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """The record of an answered request.

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
    """Writes entries; keeps its file and its socket open for later ones.

    `dropped` counts the entries that could not be written.
    """

    def __init__(self, *, keep_open: bool = False) -> None:
        self._keep_open = keep_open
        self._fd = -1
        self._wanted: Settings = (OFF, "", False)
        self._identity = (0, 0)
        self._checked = 0.0
        self._journal: Journal | None = None
        self.dropped = 0

    def write(self, entry: Entry, node: Mapping[str, str]) -> None:
        """Write the entry if the settings want it; `node` is that of of_node. Raises nothing."""
        conf = decoded(entry.stdin)
        wanted = of_request(entry.env, conf, node)
        if wanted[0] == OFF or (wanted[0] == ERRORS and not entry.code):
            return
        fields = fields_of(entry, conf)
        try:
            if wanted[1] == JOURNAL:
                self._send(fields)
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
                self.dropped += 1  # the disk is full; a second write could mix with other lines
        finally:
            if not self._keep_open:
                self._close_file()

    def _opened(self, wanted: Settings) -> int:
        now = time.monotonic()
        if self._fd >= 0 and self._wanted[1:] == wanted[1:]:
            if now - self._checked < _CHECK_SECONDS:
                return self._fd
            # A configuration's file is opened again: only that checks its directory.
            if not wanted[2] and self._is_in_place():
                self._checked = now
                return self._fd
        self._close_file()
        _, file, is_confined = wanted
        self._fd = _open_confined(file) if is_confined else _open(file)
        status = os.fstat(self._fd)
        self._wanted, self._identity = wanted, (status.st_dev, status.st_ino)
        self._checked = now
        return self._fd

    def _is_in_place(self) -> bool:
        """Is the open file still the one at its path? It may have been rotated."""
        try:
            status = os.lstat(self._wanted[1])
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def close(self) -> None:
        """Close file and socket; may be repeated."""
        self._close_file()
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _send(self, fields: Mapping[str, Any]) -> None:
        """Send an entry to the journal. Raises OSError."""
        if self._journal is None:
            from .journal import Journal

            self._journal = Journal()
        try:
            self._journal.send(fields)
        finally:
            if not self._keep_open:
                self._journal.close()
                self._journal = None


def _open_confined(path: str) -> int:
    from . import confined

    return confined.opened(path, _open)


def _open(path: str, dir_fd: int | None = None) -> int:
    """The regular file, made with mode 0640 if it is missing. Raises OSError."""
    try:
        fd = os.open(path, _APPEND, dir_fd=dir_fd)
    except FileNotFoundError:
        return _make(path, dir_fd)
    # A FIFO or a terminal could make a request wait for its reader.
    if os.fstat(fd).st_mode & _KIND != _REGULAR:
        os.close(fd)
        raise OSError(EINVAL, "is no regular file", path)
    return fd


def _make(path: str, dir_fd: int | None) -> int:
    try:
        fd = os.open(path, _APPEND | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=dir_fd)
    except FileExistsError:  # another request has made it, or there is a dangling link
        return os.open(path, _APPEND, dir_fd=dir_fd)
    os.fchmod(fd, _MODE)  # independent of the umask
    return fd


# --- what is written ------------------------------------------------------------------------------


def fields_of(entry: Entry, conf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an entry in their order, without those that are not known."""
    env = entry.env
    out: dict[str, Any] = {
        "time": timestamp(entry.began),
        "plugin": entry.plugin,
        "verb": _text(env.get("CNI_COMMAND")),
        "network": _text(lookup(conf, "name")),
        "containerID": _text(env.get("CNI_CONTAINERID")),
        "ifname": _text(env.get("CNI_IFNAME")),
        "netns": _text(env.get("CNI_NETNS")),
        "labels": _labels(conf),
        "ms": round(entry.seconds * 1000, 3),
        "code": 0,
    }
    if entry.code:
        error = decoded(entry.output)
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
    """time.time() in the form of RFC 3339, in UTC with microseconds."""
    whole = int(seconds)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{text}.{int((seconds - whole) * 1e6):06d}Z"


def _text(value: object, longest: int = _LONGEST) -> str:
    """A value that others have chosen, as text: cut, with bytes that are no UTF-8 replaced."""
    if not isinstance(value, str):
        return ""
    if len(value) > longest:
        value = f"{value[:longest]}…"
    try:
        value.encode()
    except UnicodeEncodeError:
        value = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return value


def _labels(conf: Mapping[str, Any]) -> str:
    args = lookup(conf, "args")
    if not args:
        return ""
    from . import labels

    return _text(labels.of(args))


def decoded(data: bytes) -> dict[str, Any]:
    """The JSON object; {} for anything else."""
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
