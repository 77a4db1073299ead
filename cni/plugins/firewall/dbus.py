"""Is a service on the D-Bus system bus? A minimal client for this one question.

Most nodes have a bus, few have firewalld, and every run of the firewall plugin has to know.
Importing jeepney takes 7 ms. So this question (authenticate, Hello, NameHasOwner; D-Bus
specification, "Message Protocol") has code of its own; calls to the service itself use jeepney.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from .want import SYSTEM_BUS

FIREWALLD = "org.fedoraproject.FirewallD1"
DEFAULT_ADDRESS = f"unix:path={SYSTEM_BUS}"
TIMEOUT = 5.0  # seconds; a bus answers in less than one millisecond

_BUS, _BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
_PATH, _INTERFACE, _MEMBER, _REPLY_SERIAL, _DESTINATION, _SIGNATURE = 1, 2, 3, 5, 6, 8
_CALL, _RETURN, _ERROR = 1, 2, 3
_FIXED = struct.Struct("<4BII")  # byte order, type, flags, version, body's length, serial
_U32 = struct.Struct("<I")
_LITTLE = ord("l")
_MAX_MESSAGE = 1 << 20


class DBusError(OSError):
    """The bus cannot be reached, or does not answer; the text says why."""


def bus_address() -> str:
    """The address of the system bus: DBUS_SYSTEM_BUS_ADDRESS, or the default."""
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or DEFAULT_ADDRESS


def firewalld_runs() -> tuple[bool, str]:
    """Is firewalld on the system bus, and the reason for the answer, for the operator."""
    try:
        if name_has_owner(FIREWALLD):
            return True, "firewalld is running"
    except DBusError as error:
        return False, f"firewalld is not running: {error}"
    return False, "firewalld is not running"


def name_has_owner(name: str) -> bool:
    """Is there a service of that name on the system bus? Raises DBusError when there is no bus."""
    path = _socket_path(bus_address())
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        sock.settimeout(TIMEOUT)
        sock.connect(path)
        return _ask(sock, name)
    except TimeoutError:
        raise DBusError(f"the bus at {_shown(path)} does not answer") from None
    except DBusError:
        raise
    except OSError as error:
        raise DBusError(f"no bus at {_shown(path)}: {error.strerror}") from None
    finally:
        sock.close()


def _socket_path(address: str) -> bytes:
    for candidate in address.split(";"):
        transport, _, rest = candidate.partition(":")
        values = dict(part.partition("=")[::2] for part in rest.split(","))
        if transport == "unix" and "path" in values:
            return _unescape(values["path"])
        if transport == "unix" and "abstract" in values:
            return b"\0" + _unescape(values["abstract"])
    raise DBusError(f"no bus at {address}: only unix sockets are supported")


def _unescape(text: str) -> bytes:
    first, *rest = text.split("%")
    out = os.fsencode(first)
    for part in rest:
        try:
            out += bytes((int(part[:2], 16),)) + os.fsencode(part[2:])
        except ValueError:
            raise DBusError(f"a bad escape in the bus address: %{part[:2]}") from None
    return out


def _shown(path: bytes) -> str:
    return path.replace(b"\0", b"@").decode(errors="replace")


def _ask(sock: socket, name: str) -> bool:
    uid = str(os.geteuid()).encode().hex()
    # the specification wants a NUL before the first line: with it some systems send the credentials
    sock.sendall(f"\0AUTH EXTERNAL {uid}\r\n".encode())
    answer = b""
    while not answer.endswith(b"\r\n"):
        answer += _some(sock, 1024)
    if not answer.startswith(b"OK "):
        raise DBusError(f"the bus refuses us: {answer.decode(errors='replace').strip()}")
    # without waiting in between: the bus answers in order, and the answer to Hello is not needed
    question = _call(1, "Hello") + _call(2, "NameHasOwner", name)
    sock.sendall(b"BEGIN\r\n" + question)
    return _reply(sock, 2)


def _call(serial: int, member: str, argument: str | None = None) -> bytes:
    """A method call to the bus itself, with one string or nothing as its body."""
    fields = [
        (_PATH, b"o", _string(_BUS_PATH)),
        (_INTERFACE, b"s", _string(_BUS)),
        (_MEMBER, b"s", _string(member)),
        (_DESTINATION, b"s", _string(_BUS)),
    ]
    body = b""
    if argument is not None:
        body = _string(argument)
        fields.append((_SIGNATURE, b"g", b"\x01s\0"))
    header = b""
    for code, kind, value in fields:
        # a field is a struct, and those begin at multiples of 8 bytes
        header = _pad(header) + bytes((code, 1)) + kind + b"\0" + value
    fixed = _FIXED.pack(_LITTLE, _CALL, 0, 1, len(body), serial)
    return _pad(fixed + _U32.pack(len(header)) + header) + body


def _string(text: str) -> bytes:
    data = text.encode()
    return _U32.pack(len(data)) + data + b"\0"


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 8)


def _reply(sock: socket, serial: int) -> bool:
    """The boolean in the reply to the call `serial`; signals and other replies are skipped."""
    mark = bytes((_REPLY_SERIAL, 1)) + b"u\0" + _U32.pack(serial)
    while True:
        fixed = _exactly(sock, 16)
        order, kind, _, _, body, _ = _FIXED.unpack_from(fixed)
        fields = _U32.unpack_from(fixed, 12)[0]
        if order != _LITTLE or body > _MAX_MESSAGE or fields > _MAX_MESSAGE:
            raise DBusError("the bus answers in a form we do not know")
        header = _exactly(sock, fields + (-fields % 8))
        data = _exactly(sock, body)
        if kind in (_RETURN, _ERROR) and mark in header:
            if kind == _ERROR or len(data) < 4:
                raise DBusError(
                    f"the bus answers with an error: {data[4:].decode(errors='replace')}"
                )
            return bool(_U32.unpack_from(data)[0])


def _exactly(sock: socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += _some(sock, size - len(data))
    return data


def _some(sock: socket, size: int) -> bytes:
    data = sock.recv(size)
    if not data:
        raise DBusError("the bus hung up")
    return data
