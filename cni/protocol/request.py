"""The request: environment and stdin -> Request (docs/spec/protocol.md §1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .config import MAX_STDIN, lookup
from .errors import BadEnvironment, CNIError, InvalidConfig, IOFailure, UnknownContainer

_PUNCTUATION = str.maketrans("_.-", "xxx")

IFNAME_MAX = 15  # bytes; IFNAMSIZ less the terminating NUL


def check_container_id(value: str) -> None:
    """Raise UnknownContainer (3) if it is empty, BadEnvironment (4) for wrong characters."""
    if not value:
        raise UnknownContainer("missing containerID")
    if not _is_name(value):
        raise BadEnvironment("invalid characters in containerID", value)


def check_network_name(value: str) -> None:
    """Raises InvalidConfig (code 7)."""
    if not value:
        raise InvalidConfig("missing network name:")
    if not _is_name(value):
        raise InvalidConfig("invalid characters found in network name", value)


def check_ifname(value: str) -> None:
    """Raises BadEnvironment (code 4)."""
    if not value:
        raise BadEnvironment("interface name is empty")
    if len(value.encode("utf-8", "surrogateescape")) > IFNAME_MAX:
        raise BadEnvironment(
            "interface name is too long", "interface name should be less than 16 characters"
        )
    check_ifname_characters(value)


def check_ifname_characters(value: str) -> None:
    """As check_ifname, but of any length, for alternative names. Raises BadEnvironment."""
    if value.isalnum():
        return  # nearly all names: what follows takes a call for each character
    if value in (".", ".."):
        raise BadEnvironment("interface name is . or ..")
    if any(c in "/:" or c.isspace() for c in value):
        raise BadEnvironment("interface name contains / or : or whitespace characters")
    if any("\udc80" <= c <= "\udcff" for c in value):
        raise BadEnvironment("interface name is not UTF-8", "no result could name it: it is JSON")
    if "%" in value:
        raise BadEnvironment("interface name contains %", "the kernel makes a pattern of it: eth%d")


def _is_name(value: str) -> bool:
    """[a-zA-Z0-9][a-zA-Z0-9_.-]*, without importing `re` for it."""
    return value.isascii() and value[0].isalnum() and value.translate(_PUNCTUATION).isalnum()


_ATTACHMENT_VERBS = frozenset({"ADD", "CHECK", "DEL"})
# In the order in which they are checked and named in errors: the verbs that need it, its check.
_VARIABLES: tuple[tuple[str, frozenset[str], Callable[[str], None] | None], ...] = (
    ("CNI_CONTAINERID", _ATTACHMENT_VERBS, check_container_id),
    ("CNI_NETNS", frozenset({"ADD", "CHECK"}), None),
    ("CNI_IFNAME", _ATTACHMENT_VERBS, check_ifname),
    ("CNI_PATH", _ATTACHMENT_VERBS | {"GC", "STATUS"}, None),
)


class Attachment(NamedTuple):
    """One entry of GC's ``cni.dev/valid-attachments``."""

    container_id: str
    ifname: str


class Request(NamedTuple):
    """One CNI request. After `read` nothing of it is taken from the process's environment.

    `path` is CNI_PATH split; `stdin` the configuration's bytes; `env` the whole environment, which
    delegated plugins inherit.
    """

    command: str
    container_id: str
    netns: str
    ifname: str
    args: str
    path: list[str]
    stdin: bytes
    env: Mapping[str, str]

    @property
    def netns_override(self) -> bool:
        """May the container's namespace be this process's own?"""
        value = self.env.get("CNI_NETNS_OVERRIDE", "")
        return value == "1" or value.upper() == "TRUE"

    def of(self, container_id: str, ifname: str) -> Request:
        """This request for another attachment, whose namespace is not known."""
        env = {**self.env, "CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname, "CNI_NETNS": ""}
        return self._replace(container_id=container_id, ifname=ifname, netns="", env=env)


def read(env: Mapping[str, str], stdin: Callable[[], bytes]) -> Request:
    """Read and validate the environment, then stdin (never for VERSION).

    Raises BadEnvironment, UnknownContainer (codes 4 and 3) or IOFailure (5).
    """
    command = env.get("CNI_COMMAND", "")
    _check_environment(command, env)
    return Request(
        command=command,
        container_id=env.get("CNI_CONTAINERID", ""),
        netns=env.get("CNI_NETNS", ""),
        ifname=env.get("CNI_IFNAME", ""),
        args=env.get("CNI_ARGS", ""),
        path=env.get("CNI_PATH", "").split(os.pathsep),
        stdin=b"" if command == "VERSION" else stdin(),
        env=env,
    )


def _check_environment(command: str, env: Mapping[str, str]) -> None:
    missing = [] if command else ["CNI_COMMAND"]
    for name, verbs, validate in _VARIABLES:
        value = env.get(name, "")
        if command in verbs:
            if not value:
                missing.append(name)
            elif validate is not None:
                validate(value)
    if missing:
        raise BadEnvironment(
            f"required env variables [{','.join(missing)}] missing",
            "a container runtime sets them; to run a plugin by hand use the command `cni`",
        )


def read_stdin() -> bytes:
    """All of stdin, at most 16 MiB. Raises IOFailure (code 5)."""
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := _read_some():
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_STDIN:
                raise IOFailure(
                    "error reading from stdin: configuration too large",
                    f"more than {MAX_STDIN} bytes",
                )
    except OSError as error:
        raise IOFailure(f"error reading from stdin: {error.strerror}") from None
    return b"".join(chunks)


def _read_some() -> bytes:
    while True:
        try:
            return os.read(0, 1 << 16)
        except BlockingIOError:
            _await_ready(0)


def write_some(data: bytes | memoryview) -> int:
    """Write the beginning of `data` to stdout; return the number of bytes. Raises OSError."""
    while True:
        try:
            return os.write(1, data)
        except BlockingIOError:
            _await_ready(1, writing=True)


def _await_ready(fd: int, *, writing: bool = False) -> None:
    """Wait until a descriptor that the caller made non-blocking can be read or written."""
    import select  # rarely needed

    ready = select.poll()
    ready.register(fd, select.POLLOUT if writing else select.POLLIN)
    ready.poll()


def valid_attachments(raw: dict[str, Any]) -> frozenset[Attachment] | None:
    """The attachments GC must keep; None if the runtime gave no list: then nothing is collected."""
    entries = None
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):
        entries = lookup(raw, key)
        if entries is not None:
            break
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise CNIError("cni.dev/valid-attachments is not a list", "nothing was collected")
    keep = set()
    for entry in entries:
        pair = _attachment(entry)
        if pair is None:
            raise CNIError(
                "cni.dev/valid-attachments has an entry without containerID or ifname",
                "nothing was collected",
            )
        keep.add(pair)
    return frozenset(keep)


def _attachment(entry: Any) -> Attachment | None:
    if not isinstance(entry, dict):
        return None
    container_id, ifname = entry.get("containerID"), entry.get("ifname")
    if container_id is None or ifname is None or len(entry) > 2:  # keys in another case
        container_id, ifname = lookup(entry, "containerID"), lookup(entry, "ifname")
    if isinstance(container_id, str) and isinstance(ifname, str) and container_id and ifname:
        return Attachment(container_id, ifname)
    return None
