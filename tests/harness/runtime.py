"""Running plugins exactly as a container runtime does.

One process a plugin and verb; the environment holds the CNI variables and PATH, nothing else; the
configuration is JSON on stdin; the process is in the node's network namespace. What is kept for
`cni reload` goes to a directory of this test run, for all its nodes share /run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from atexit import register
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from .netns import PATH, Netns

Json = dict[str, Any]
NetnsLike = Netns | str | PathLike[str] | None


@cache
def state_dir() -> str:
    """CNI_STATE_DIR of this test run."""
    path = tempfile.mkdtemp(prefix="cni-state-")
    register(shutil.rmtree, path, ignore_errors=True)
    return path


@dataclass(frozen=True)
class Reply:
    """What one plugin run gave back."""

    plugin: str
    command: str
    rc: int
    stdout: str
    stderr: str
    seconds: float = field(compare=False)

    def __str__(self) -> str:
        return (
            f"{self.plugin} {self.command}: exit status {self.rc}\n"
            f"stdout: {self.stdout or '(empty)'}\nstderr: {self.stderr or '(empty)'}"
        )

    @property
    def json(self) -> Json:
        """The one JSON object on stdout; anything else there is a failure."""
        try:
            value = json.loads(self.stdout)
        except json.JSONDecodeError as error:
            raise AssertionError(f"stdout is not one JSON document ({error})\n{self}") from None
        assert isinstance(value, dict), f"stdout is not a JSON object\n{self}"
        return value

    @property
    def result(self) -> Json:
        """The result object; fails the test unless the plugin succeeded."""
        assert self.rc == 0, str(self)
        return self.json

    @property
    def error(self) -> Json:
        """The error object; fails the test unless there is one as the protocol says."""
        assert self.rc != 0, f"the plugin succeeded\n{self}"
        error = self.json
        assert isinstance(error.get("code"), int), f"no numeric error code\n{self}"
        assert isinstance(error.get("msg"), str), f"no error message\n{self}"
        assert error["msg"], f"empty error message\n{self}"
        return error

    def succeeded(self) -> Reply:
        """Assert exit 0, and for every verb without a result an empty stdout."""
        assert self.rc == 0, str(self)
        if self.command not in ("ADD", "VERSION"):
            assert self.stdout == "", f"{self.command} must print nothing\n{self}"
        return self

    def failed(self, code: int | None = None, *texts: str) -> Json:
        """Assert failure, with this code and with these texts in msg or details."""
        error = self.error
        if code is not None:
            assert error["code"] == code, f"error code is not {code}\n{self}"
        whole = f"{error['msg']}\n{error.get('details', '')}"
        for text in texts:
            assert text in whole, f"{text!r} is not in the error\n{self}"
        return error


class Runtime:
    """Executes the plugins of one directory in one node namespace."""

    def __init__(
        self,
        bin_dir: str | PathLike[str],
        host: Netns,
        *,
        cni_path: str | None = None,
        container_id: str = "c1",
        ifname: str = "eth0",
        env: Mapping[str, str] | None = None,
        cwd: str | PathLike[str] = "/",
        timeout: float = 120,
    ) -> None:
        self.bin_dir = Path(bin_dir)
        self.host = host
        self.cni_path = cni_path if cni_path is not None else str(self.bin_dir)
        self.container_id = container_id
        self.ifname = ifname
        self.env = {"PATH": PATH, "CNI_STATE_DIR": state_dir(), **(env or {})}
        self.cwd = cwd
        self.timeout = timeout

    # -- one plugin ---------------------------------------------------------------------------

    def environment(
        self,
        command: str,
        netns: NetnsLike = None,
        *,
        container_id: str | None = None,
        ifname: str | None = None,
        args: str = "",
        env: Mapping[str, str | None] | None = None,
    ) -> dict[str, str]:
        """The environment of one run. In `env`, None takes a variable away."""
        variables = dict(self.env)
        variables["CNI_COMMAND"] = command
        variables["CNI_PATH"] = self.cni_path
        # The specification names a container for these verbs only.
        if command in ("ADD", "CHECK", "DEL"):
            variables["CNI_CONTAINERID"] = (
                self.container_id if container_id is None else container_id
            )
            variables["CNI_IFNAME"] = self.ifname if ifname is None else ifname
            variables["CNI_NETNS"] = _path(netns)
            if args:
                variables["CNI_ARGS"] = args
        for key, value in (env or {}).items():
            if value is None:
                variables.pop(key, None)
            else:
                variables[key] = value
        return variables

    def call(
        self,
        command: str,
        plugin: str,
        conf: Mapping[str, Any] | str | bytes,
        netns: NetnsLike = None,
        *,
        container_id: str | None = None,
        ifname: str | None = None,
        args: str = "",
        prev_result: Mapping[str, Any] | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Reply:
        """Run one verb of one plugin.

        A mapping becomes JSON, with `type` filled in and `prevResult` added; text and bytes go to
        stdin as they are.
        """
        if isinstance(conf, Mapping):
            document = {"type": plugin, **conf}
            if prev_result is not None:
                document["prevResult"] = prev_result
            stdin = json.dumps(document).encode()
        else:
            assert prev_result is None, "prev_result needs a mapping as configuration"
            stdin = conf if isinstance(conf, bytes) else conf.encode()
        variables = self.environment(
            command, netns, container_id=container_id, ifname=ifname, args=args, env=env
        )

        def run() -> tuple[subprocess.CompletedProcess[bytes], float]:
            start = time.perf_counter()
            done = subprocess.run(
                [str(self.bin_dir / plugin)],
                input=stdin,
                capture_output=True,
                env=variables,
                cwd=self.cwd,
                timeout=self.timeout,
            )
            return done, time.perf_counter() - start

        done, seconds = self.host.run(run)
        return Reply(
            plugin,
            command,
            done.returncode,
            done.stdout.decode(errors="backslashreplace"),
            done.stderr.decode(errors="backslashreplace"),
            seconds,
        )

    def add(
        self, plugin: str, conf: Mapping[str, Any] | str | bytes, netns: NetnsLike, **kwargs: Any
    ) -> Reply:
        """ADD; keywords as for `call`."""
        return self.call("ADD", plugin, conf, netns, **kwargs)

    def delete(
        self,
        plugin: str,
        conf: Mapping[str, Any] | str | bytes,
        netns: NetnsLike = None,
        **kwargs: Any,
    ) -> Reply:
        """DEL; without a namespace CNI_NETNS is empty, as after the container is gone."""
        return self.call("DEL", plugin, conf, netns, **kwargs)

    def check(
        self, plugin: str, conf: Mapping[str, Any] | str | bytes, netns: NetnsLike, **kwargs: Any
    ) -> Reply:
        """CHECK; give it the result of ADD as `prev_result`."""
        return self.call("CHECK", plugin, conf, netns, **kwargs)

    def status(self, plugin: str, conf: Mapping[str, Any] | str | bytes, **kwargs: Any) -> Reply:
        """STATUS."""
        return self.call("STATUS", plugin, conf, **kwargs)

    def gc(
        self,
        plugin: str,
        conf: Mapping[str, Any],
        valid: Sequence[tuple[str, str]] | None,
        **kwargs: Any,
    ) -> Reply:
        """GC, with (container id, ifname) of the attachments still valid (None: no key)."""
        document = dict(conf)
        if valid is not None:
            attachments = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
            # libcni sends the list under both names.
            document["cni.dev/valid-attachments"] = attachments
            document["cni.dev/attachments"] = attachments
        return self.call("GC", plugin, document, **kwargs)

    def version(self, plugin: str, stdin: str = "") -> Reply:
        """VERSION."""
        return self.call("VERSION", plugin, stdin)

    def start(
        self,
        command: str,
        plugin: str,
        conf: Mapping[str, Any],
        netns: NetnsLike = None,
        **kwargs: Any,
    ) -> subprocess.Popen[bytes]:
        """Start a run without waiting for it, for tests of concurrency, timeouts and crashes.

        The child is ended with the node's namespace at the latest. Collect it with `communicate`.
        """
        prev = kwargs.pop("prev_result", None)
        document = {"type": plugin, **conf} | ({"prevResult": prev} if prev is not None else {})
        child = self.host.popen(
            [str(self.bin_dir / plugin)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(command, netns, **kwargs),
            cwd=self.cwd,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(document).encode())
        child.stdin.close()
        # communicate() would flush it, which a closed file refuses with ValueError.
        child.stdin = None
        return child

    # -- a chain of plugins -------------------------------------------------------------------

    def add_list(
        self,
        conflist: Mapping[str, Any],
        netns: NetnsLike,
        *,
        capabilities: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Json:
        """ADD a network configuration list as libcni does; the final result."""
        result: Json | None = None
        for conf in _chain(conflist, capabilities):
            result = self.add(conf["type"], conf, netns, prev_result=result, **kwargs).result
        assert result is not None, "the list has no plugins"
        return result

    def check_list(
        self,
        conflist: Mapping[str, Any],
        netns: NetnsLike,
        result: Mapping[str, Any],
        *,
        capabilities: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """CHECK every plugin of a list, each with the final result."""
        for conf in _chain(conflist, capabilities):
            self.check(conf["type"], conf, netns, prev_result=result, **kwargs).succeeded()

    def delete_list(
        self,
        conflist: Mapping[str, Any],
        netns: NetnsLike,
        result: Mapping[str, Any] | None = None,
        *,
        capabilities: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """DEL every plugin of a list, last first."""
        if conflist["cniVersion"] in ("0.1.0", "0.2.0", "0.3.0", "0.3.1"):
            result = None  # as libcni: those versions know no prevResult on DEL
        for conf in reversed(_chain(conflist, capabilities)):
            self.delete(conf["type"], conf, netns, prev_result=result, **kwargs).succeeded()

    @contextmanager
    def attached(
        self, plugin: str, conf: Mapping[str, Any], netns: NetnsLike, **kwargs: Any
    ) -> Iterator[Json]:
        """ADD, the body of the `with` with the result, DEL."""
        result = self.add(plugin, conf, netns, **kwargs).result
        try:
            yield result
        finally:
            deleted = self.delete(plugin, conf, netns, **kwargs)
        deleted.succeeded()


def _path(netns: NetnsLike) -> str:
    if netns is None:
        return ""
    return netns.path if isinstance(netns, Netns) else fspath(netns)


def _chain(
    conflist: Mapping[str, Any], capabilities: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The plugin configurations as libcni hands them out."""
    confs = []
    for plugin in conflist["plugins"]:
        conf = {**plugin, "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
        wanted = conf.pop("capabilities", {})
        chosen = {k: v for k, v in (capabilities or {}).items() if wanted.get(k)}
        if chosen:
            conf["runtimeConfig"] = chosen
        confs.append(conf)
    return confs
