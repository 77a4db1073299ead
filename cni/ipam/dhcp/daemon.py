"""The daemon: answers the plugin's requests and maintains attachments, in one event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from ...kernel.errors import KernelError
from ...netns.executor import Executor
from ...protocol import config
from ...protocol.errors import CNIError, from_exception
from ...stderr import line as log
from ...stderr import lines
from . import interface as interfaces
from .attachment import Attachment, Environment
from .conf import Conf, delegation, options
from .exchange import Settings
from .state import Directory, Record

_READ_TIMEOUT = 10.0  # seconds for a request to arrive whole
# the Go plugin's first line: net/rpc over HTTP
_GO_CALLS = b"CONNECT /_goRPC_"
_TO_GO = (
    b"HTTP/1.0 501 this DHCP daemon is not the one of the Go plugins: install its own plugin "
    b"dhcp\r\n\r\n"
)


class _Request(msgspec.Struct):
    method: str
    params: dict[str, Any] = {}


class _Attachment(msgspec.Struct):
    """The parameters of ADD, CHECK and DEL."""

    container_id: str
    network: str
    ifname: str
    netns: str = ""
    args: str = ""
    config: dict[str, Any] = {}
    addresses: list[str] | None = None

    @property
    def key(self) -> str:
        return f"{self.container_id}/{self.network}/{self.ifname}"


class _Keep(msgspec.Struct):
    """The parameters of GC: a network, and the (container id, ifname) that remain."""

    network: str
    keep: list[tuple[str, str]]


class Daemon:
    """Answers requests. `host_prefix` is the path at which the host's file system is mounted."""

    def __init__(self, settings: Settings, directory: Directory, host_prefix: str = "") -> None:
        self._env = Environment(settings, directory)
        self._prefix = host_prefix
        self._held: dict[str, Attachment] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._methods: dict[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "DHCP.Allocate": self._allocate,
            "DHCP.Release": self._release,
            "DHCP.Check": self._check,
            "DHCP.GC": self._gc,
            "DHCP.Leases": self._leases,
            "DHCP.Status": self._status,
        }

    def restore(self) -> None:
        """Resume the leases on disk."""
        for record in self._env.directory.load():
            self._start(record, again=True)
        if self._held:
            log(f"{len(self._held)} leases taken up")

    async def finish(self) -> None:
        """Stop without releasing leases: the next daemon resumes them."""
        await asyncio.gather(*(held.stop(release=False) for held in self._held.values()))
        if self._ending:
            # releases that have begun; a server that is silent must not hold up the daemon's end
            await asyncio.wait(self._ending.values(), timeout=2)
        Executor.discard_idle()
        self._env.closer.finish()

    # --- requests ---

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, one answer."""
        try:
            if not _is_allowed(writer.get_extra_info("socket")):
                return
            line = await asyncio.wait_for(reader.readline(), _READ_TIMEOUT)
            if line.startswith(_GO_CALLS):
                writer.write(_TO_GO)
            elif line:
                answer = await self._answer_unless_gone(line, reader)
                writer.write(msgspec.json.encode(answer) + b"\n")
            await writer.drain()
        except (OSError, ValueError, TimeoutError) as error:
            log(f"a request failed: {error}")
        finally:
            writer.close()

    async def _answer_unless_gone(
        self, line: bytes, reader: asyncio.StreamReader
    ) -> dict[str, Any]:
        """The answer; abandoned if the plugin is killed, since nobody would use the lease."""
        work = asyncio.create_task(self._answer(line))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError("the plugin is gone")
            return work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait((work, gone))
            if not gone.cancelled():
                # looked at, else asyncio complains that nobody did
                gone.exception()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = msgspec.json.decode(line, type=_Request)
            method = self._methods.get(request.method)
            if method is None:
                raise CNIError(
                    f"can't find method {request.method}", "plugin and daemon differ in version"
                )
            return {"result": await method(request.params)}
        except (CNIError, KernelError) as error:
            answer = from_exception(error)
            return _error(answer.code, answer.msg, answer.details)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _error(999, f"request not understood: {error}")
        except Exception as error:  # noqa: BLE001 the daemon goes on, whatever one request does
            import traceback

            lines("".join(traceback.format_exception(error)))
            return _error(999, f"unexpected {type(error).__name__}: {error}", "see the log")

    async def _allocate(self, params: dict[str, Any]) -> dict[str, Any]:
        asked = msgspec.convert(params, _Attachment)
        record = self._record(asked)
        if asked.key in self._ending:
            await asyncio.wait((self._ending[asked.key],))
        # a loop: another request may start an attachment while this
        # one waits for the end of the old one
        while (held := self._held.get(asked.key)) and not held.serves(record.interface):
            del self._held[asked.key]
            await held.stop(release=False)
            held.forget()
        if held is None:
            held = self._start(record)
        held.waiters += 1
        try:
            # an abandoned request must not cancel the future for which others wait
            await asyncio.shield(held.ready)
        finally:
            held.waiters -= 1
            if not held.ready.done() and not held.waiters:
                self._end(held)
        return held.result().as_dict("1.1.0")

    async def _release(self, params: dict[str, Any]) -> None:
        asked = msgspec.convert(params, _Attachment)
        held = self._held.get(asked.key)
        if held is None and asked.key not in self._ending:
            held = self._unread(asked.key)
        if held is not None:
            self._end(held)
        if asked.key in self._ending:
            await asyncio.wait((self._ending[asked.key],))

    def _unread(self, key: str) -> Attachment | None:
        """An attachment that could not be read at the start. Raises CNIError if it still cannot."""
        try:
            record = self._env.directory.find(key)
        except OSError as error:
            raise CNIError(
                f"cannot read the lease of {key}: {error.filename}: {error.strerror}",
                "it is not released: repeat this when the file can be read",
            ) from None
        return None if record is None else self._start(record, again=True)

    async def _check(self, params: dict[str, Any]) -> None:
        asked = msgspec.convert(params, _Attachment)
        record = self._record(asked)
        held = self._held.get(asked.key)
        if held is None:
            raise CNIError(
                f"no lease is held for {asked.key}",
                "it ended, or the daemon lost it: recreate the container",
            )
        problems = held.problems() + held.missing()
        if held.record.interface != record.interface:
            problems.append(f"the lease is for {held.record.interface.path}, another interface")
        have = {ip.address for ip in held.result().ips}
        for address in sorted(have - set(asked.addresses or have)):
            problems.append(f"leased {address}, but prevResult does not have it")
        if problems:
            raise CNIError("; ".join(problems), "recreate the container")

    async def _gc(self, params: dict[str, Any]) -> int:
        asked = msgspec.convert(params, _Keep)
        keep = set(asked.keep)
        stale = [
            held
            for held in self._held.values()
            if held.record.network == asked.network
            and (held.record.container_id, held.record.ifname) not in keep
        ]
        tasks = [self._end(held) for held in stale]
        if tasks:
            await asyncio.wait(tasks)
        return len(tasks)

    async def _leases(self, _: dict[str, Any]) -> list[dict[str, object]]:
        return [row for held in self._held.values() for row in held.describe()]

    async def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"leases": len(self._held), "pid": os.getpid()}

    # --- attachments ---

    def _record(self, asked: _Attachment) -> Record:
        conf = config.convert(asked.config, Conf, "error parsing netconf: ")
        ipam = conf.ipam
        wish = delegation(ipam)
        if not (ipam.ipv4 or ipam.ipv6 or (wish is not None and wish.assign)):
            raise CNIError(
                "nothing to lease",
                "set `ipv4` or `ipv6` in ipam to true, or with a prefix "
                "`prefixDelegation.assign`: an interface needs an address",
            )
        if not os.path.isabs(asked.netns):
            raise CNIError(f'error opening netns: "{asked.netns}" is no absolute path')
        return Record(
            boot=self._env.directory.boot,
            container_id=asked.container_id,
            network=asked.network,
            ifname=asked.ifname,
            options=options(ipam, asked.args),
            interface=interfaces.find(self._prefix + asked.netns, asked.ifname),
            priority=ipam.priority,
            ipv4=ipam.ipv4,
            ipv6=ipam.ipv6,
            delegation=wish,
        )

    def _start(self, record: Record, *, again: bool = False) -> Attachment:
        held = Attachment(self._env, record)
        self._held[record.key] = held
        held.start(self._ended, again=again)
        return held

    def _ended(self, held: Attachment) -> None:
        if self._held.get(held.record.key) is held:
            del self._held[held.record.key]

    def _end(self, held: Attachment) -> asyncio.Task[None]:
        """Start a task that releases the leases; a second request for them waits for that task."""
        key = held.record.key
        if self._held.get(key) is held:
            del self._held[key]
        task = asyncio.create_task(held.stop(release=True))
        self._ending[key] = task
        task.add_done_callback(lambda _: self._ending.pop(key, None))
        return task


def _is_allowed(sock: socket.socket) -> bool:
    """Is the client root, or the daemon's user? The socket's mode also admits only those."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("3i", credentials)
    if uid in (0, os.geteuid()):
        return True
    log(f"refused a request of user {uid} (process {pid})")
    return False


def _error(code: int, msg: str, details: str = "") -> dict[str, Any]:
    return {"error": {"code": code, "msg": msg, "details": details}}
