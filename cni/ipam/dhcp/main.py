"""`dhcp daemon [flags]`: flags as Go's, the socket, the pidfile, signals (docs/spec/dhcp.md)."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import signal
import socket
import sys
from typing import Any, NamedTuple

from ... import systemd
from ...protocol.errors import CNIError
from ...stderr import line as log
from ...stderr import lines
from .daemon import Daemon
from .exchange import Settings
from .rpc import DEFAULT_SOCKET, MAX_MESSAGE
from .state import Directory

_BACKLOG = 1024  # waiting requests: a booting node starts all of its containers at once
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

USAGE = """Usage of dhcp daemon:
  -broadcast
    \thave the servers answer by broadcast
  -hostprefix string
    \tprefix of the socket's path and of every namespace's
  -pidfile string
    \tabsolute path of a file to write the process id to
  -resendmax duration
    \tlongest pause between two attempts (default 1m2s)
  -resendtimeout duration
    \ttime for acquiring a lease (default 3m28s)
  -socketpath string
    \tsocket to listen on (default "/run/cni/dhcp.sock")
  -statedir string
    \twhere leases are kept (default: the socket's directory, dhcp-leases)
  -timeout duration
    \ttime to wait for a server's reply (default 10s)
"""


class UsageError(Exception):
    """The command line is wrong."""


class Flags(NamedTuple):
    """The command line; durations in seconds."""

    pidfile: str = ""
    hostprefix: str = ""
    socketpath: str = DEFAULT_SOCKET
    statedir: str = ""
    broadcast: bool = False
    timeout: float = 10.0
    resendmax: float = 62.0
    resendtimeout: float = 208.0


def main(argv: list[str]) -> int:
    """Run the daemon until SIGTERM or SIGINT; the exit code."""
    try:
        flags = parse(argv)
    except UsageError as error:
        if str(error):
            log(str(error))
        lines(USAGE)
        return 2 if str(error) else 0
    try:
        return _run(flags)
    except CNIError as error:
        log(str(error))
    except OSError as error:
        log(f"Error: {error}")
    return 1


def parse(argv: list[str]) -> Flags:
    """Flags in Go's forms: -x v, -x=v, --x v; switches -x and -x=true. Raises UsageError."""
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        if name in ("h", "help"):
            raise UsageError
        if name not in Flags._fields:
            raise UsageError(f"flag provided but not defined: -{name}")
        if name == "broadcast":
            values[name] = _boolean(name, value) if equals else True
            continue
        if not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        is_duration = name in ("timeout", "resendmax", "resendtimeout")
        values[name] = _duration(name, value) if is_duration else value
    return Flags(**values)


def _boolean(name: str, value: str) -> bool:
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error')


def _duration(name: str, value: str) -> float:
    """Go's ``1m30s``, ``1.5h``, ``300ms``, ``0``. Raises UsageError."""
    number = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
    if value == "0":
        return 0.0
    if not re.fullmatch(rf"\+?({number}(ns|us|µs|ms|s|m|h))+", value):
        raise UsageError(f'invalid value "{value}" for flag -{name}: parse error')
    parts = re.findall(rf"({number})(ns|us|µs|ms|s|m|h)", value)
    return sum(float(amount) * _UNITS[unit] for amount, unit in parts)


# --- running --------------------------------------------------------------------------------------


def _run(flags: Flags) -> int:
    # open files limit how many exchanges go on at a time (Environment.gate)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if flags.pidfile and not os.path.isabs(flags.pidfile):
        raise CNIError(f'Error writing pidfile "{flags.pidfile}": path not absolute')
    path = flags.hostprefix + flags.socketpath
    default = os.path.join(os.path.dirname(path), "dhcp-leases")
    state = flags.hostprefix + flags.statedir if flags.statedir else default
    listener = _inherited()
    activated = listener is not None
    if listener is None:
        listener = _listen(path)
    try:
        directory = Directory(state)
        try:
            _write_pidfile(flags.pidfile)
            try:
                asyncio.run(_serve(flags, listener, directory))
            finally:
                _unlink(flags.pidfile)
        finally:
            directory.close()
    finally:
        listener.close()
        if not activated:
            _unlink(path)
    return 0


def _inherited() -> socket.socket | None:
    """The socket that systemd has made for this daemon, or None. Raises CNIError."""
    handed = systemd.listen_fds()
    if len(handed) > 1:
        raise CNIError(f"Too many ({len(handed)}) FDs passed through socket activation")
    if not handed:
        return None
    try:
        listener = socket.socket(fileno=handed[0].fd)
        if systemd.is_listening(listener):
            return listener
    except OSError:
        pass  # the descriptor is closed, or is no socket
    raise CNIError("LISTEN_FDS=1 but no FD found")


def _listen(path: str) -> socket.socket:
    """A listening socket that only root can reach. Raises CNIError."""
    try:
        return systemd.listen_unix(path, _BACKLOG, directory_mode=0o700)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CNIError(
            f"Error getting listener: listen unix {path}: bind: {reason}",
            "does another daemon run already?",
        ) from None


def _write_pidfile(path: str) -> None:
    if path:
        # the pidfile's mode is 0644, whatever umask the daemon was
        # started with (docs/spec/dhcp.md)
        mask = os.umask(0o022)
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        except OSError as error:
            raise CNIError(f'Error writing pidfile "{path}": {error.strerror}') from None
        finally:
            os.umask(mask)


def _unlink(path: str) -> None:
    try:
        if path:
            os.unlink(path)
    except OSError:
        pass


async def _serve(flags: Flags, listener: socket.socket, directory: Directory) -> None:
    """Serve until a signal."""
    settings = Settings(flags.timeout, flags.resendmax, flags.resendtimeout, flags.broadcast)
    daemon = Daemon(settings, directory, flags.hostprefix)
    end = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    # from Python 3.13 on, closing would unlink the socket, which may be systemd's
    keep: Any = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
    server = await asyncio.start_unix_server(
        daemon.serve, sock=listener, limit=MAX_MESSAGE, backlog=_BACKLOG, **keep
    )
    daemon.restore()
    await end.wait()
    server.close()
    await daemon.finish()
