"""Runs an IPAM plugin in this process, or in others, as a runtime would."""

from __future__ import annotations

import json
import os
import signal
import traceback
from typing import TYPE_CHECKING, Any

from cni.dispatch import answer

if TYPE_CHECKING:
    from collections.abc import Callable

ALL_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


class Failure(Exception):
    """The plugin's error object."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body["msg"])
        self.code: int = body["code"]
        self.msg: str = body["msg"]
        self.details: str = body.get("details", "")


def environment(verb: str, cid: str, ifname: str, args: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": cid,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": "/run/netns/nosuch",
        "CNI_ARGS": args,
        "CNI_PATH": "/opt/cni/bin",
    }


class Ipam:
    """Calls one plugin with one configuration; `conf` may be changed between calls."""

    def __init__(self, plugin: str, conf: dict[str, Any]) -> None:
        self.plugin = plugin
        self.conf = conf

    def raw(
        self, verb: str, cid: str = "c1", ifname: str = "eth0", env_args: str = "", **keys: Any
    ) -> tuple[int, bytes]:
        """Exit code and stdout; `keys` are added to the configuration."""
        stdin = json.dumps({**self.conf, **keys}).encode()
        return answer(self.plugin, environment(verb, cid, ifname, env_args), lambda: stdin)

    def call(self, verb: str, cid: str = "c1", ifname: str = "eth0", **more: Any) -> Any:
        """The decoded output, None without one. Raises Failure."""
        code, output = self.raw(verb, cid, ifname, **more)
        if code:
            raise Failure(json.loads(output))
        return json.loads(output) if output else None

    def add(self, cid: str = "c1", ifname: str = "eth0", **more: Any) -> list[str]:
        """The addresses, with prefix."""
        result = self.call("ADD", cid, ifname, **more)
        return [ip["address"] for ip in result.get("ips", [])]

    def delete(self, cid: str = "c1", ifname: str = "eth0", **more: Any) -> None:
        assert self.call("DEL", cid, ifname, **more) is None

    def check(self, cid: str = "c1", ifname: str = "eth0", **more: Any) -> None:
        assert self.call("CHECK", cid, ifname, **more) is None

    def gc(self, *keep: tuple[str, str]) -> None:
        entries = [{"containerID": cid, "ifname": ifname} for cid, ifname in keep]
        assert self.call("GC", **{"cni.dev/valid-attachments": entries}) is None


class Child:
    """A forked process that runs a function; its value comes back as JSON."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._result, result = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.write(result, json.dumps(function(*args)).encode())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(result)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, or the negative number of the signal."""
        os.close(self._result)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def value(self) -> Any:
        """What the function returned. Asserts that it did."""
        with os.fdopen(os.dup(self._result), "rb") as pipe:
            output = pipe.read()
        assert self.wait() == 0
        return json.loads(output)
