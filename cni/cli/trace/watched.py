"""Runs plugins as a runtime does, and makes this project's plugins note their steps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from time import monotonic, sleep
from typing import Any

import msgspec

from cni import dispatch, stopwatch
from cni.protocol.errors import CNIError

from .. import output
from ..cache import Attachment, Cache
from ..conflist import PluginConf
from ..runtime import Runtime
from ..signals import Interrupts
from .steps import Step, joined, tree

_EXEC, _SERVER, _OTHER = "exec", "server", "unknown"
# bytes; a plugin writes a few kB
_MAX_SIZE = 64 << 20
_PATIENCE = 1.0  # seconds


class Run:
    """One plugin that was run; `steps` are empty for a plugin of another project."""

    def __init__(self, verb: str, plugin: PluginConf) -> None:
        self.verb, self.plugin = verb, plugin.type
        self.begin = self.end = monotonic()
        self.via = _OTHER
        self.error: CNIError | None = None
        self.steps: list[Step] = []

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        error = self.error
        return {
            "plugin": self.plugin,
            "verb": self.verb,
            "ms": round((self.end - self.begin) * 1000, 3),
            "via": self.via,
            "error": None if error is None else {"code": error.code, "msg": error.msg},
            "steps": [each.as_dict(self.begin) for each in tree(self.steps)],
        }

    def as_step(self) -> Step:
        """All of it as one step, with those of the plugin inside."""
        how = {_EXEC: "by exec", _SERVER: "by the server", _OTHER: "of another project"}[self.via]
        if self.error is not None:
            how += ", failed"
        inside = joined(tree([*self.steps, *self._beside()]))
        return Step(f"{self.plugin} {self.verb}", how, self.begin, self.end, inside=inside)

    def _beside(self) -> list[Step]:
        """The time before the plugin's first step, and after its last one, as steps."""
        if not self.steps:
            return []
        first = min(each.begin for each in self.steps)
        last = max(each.end for each in self.steps)
        return [
            Step("start", "the process, until the request is read", self.begin, first),
            Step("end", "the answer, and the end of the process", last, self.end),
        ]


class Watched(Runtime):
    """As its base; `runs` are the plugins that were run, in order.

    The file into which they write is one in memory, named by this process's descriptor: a kill
    leaves nothing.
    """

    def __init__(
        self, path: list[str], cache: Cache, env: Mapping[str, str], interrupts: Interrupts
    ) -> None:
        self._fd = os.memfd_create("cni-steps")
        own = {
            stopwatch.VARIABLE: stopwatch.VALUE,
            stopwatch.FILE_VARIABLE: f"/proc/{os.getpid()}/fd/{self._fd}",
        }
        super().__init__(
            path, cache, {**env, **own}, interrupts, output.waiting, output.plugin_stderr
        )
        self.runs: list[Run] = []

    def close(self) -> None:
        os.close(self._fd)

    def _run(self, verb: str, plugin: PluginConf, stdin: bytes, attachment: Attachment) -> bytes:
        run = Run(verb, plugin)
        # Plugins append, and each run has to read its own lines only.
        os.ftruncate(self._fd, 0)
        try:
            return super()._run(verb, plugin, stdin, attachment)
        except CNIError as error:
            run.error = error
            raise
        finally:
            run.end = monotonic()
            self._read(run)
            self.runs.append(run)

    def _written(self, plugin: str) -> bytes:
        """The lines of the plugin and its delegates; the plugin's own line is the last.

        A server writes them a moment after it has sent the result.
        """
        until = monotonic() + _PATIENCE
        mark = msgspec.json.encode({"plugin": dispatch.find(plugin) or ""})[:-1]
        while True:
            # pread, because the plugins' writes move no offset of this descriptor.
            data = os.pread(self._fd, min(os.fstat(self._fd).st_size, _MAX_SIZE), 0)
            is_complete = data.endswith(b"\n") and data.splitlines()[-1].startswith(mark)
            # A plugin of another project writes nothing, so there is nothing to wait for.
            if is_complete or dispatch.find(plugin) is None or monotonic() > until:
                return data
            sleep(0.002)

    def _read(self, run: Run) -> None:
        data = self._written(run.plugin)
        for line in data.splitlines():
            try:
                found = msgspec.json.decode(line)
                run.steps += [
                    Step(str(n), str(d), float(b), float(e)) for n, d, b, e in found["steps"]
                ]
                run.via = _SERVER if found["served"] else _EXEC
            except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
                continue  # a plugin of another version
        for each in run.steps:
            each.end = min(each.end, run.end)  # a server's verb ends when the result is sent
        # A server's late line may be about the request before.
        run.steps = [each for each in run.steps if run.begin <= each.begin <= each.end]
