"""Times of the parts of each request, for developers.

The server's environment variable CNI_SERVER_TRACE names a file, which gets a line a request: its
verb and plugin, and the times of

    accepted   a client has connected
    decoded    its request has come and is decoded
    received   its descriptors have come
    ready      the worker has taken on the client's environment, and the verb begins
    done       the verb has ended
    encoded    the output is ready
    replied    the reply is sent

in seconds of CLOCK_MONOTONIC. Switched off, it costs only the calls of `mark`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Any

VARIABLE = "CNI_SERVER_TRACE"


class Trace:
    """Collects the times of a request, and writes them at its end."""

    def __init__(self, path: str) -> None:
        from .. import dispatch

        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._times: dict[str, float] = {}
        self._depth = 0
        dispatch._perform = self._around(dispatch._perform)

    def _around(self, verb: Callable[..., Any]) -> Callable[..., Any]:
        def traced(*args: Any) -> Any:
            # a delegate's verb is part of its caller's
            self._depth += 1
            try:
                return verb(*args)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.mark("done")

        return traced

    def mark(self, name: str) -> None:
        """Note that this part begins or ends now."""
        self._times[name] = monotonic()

    def end(self, what: str) -> None:
        """Write the request's line."""
        times = " ".join(f"{name}={time:.6f}" for name, time in self._times.items())
        self._times.clear()
        os.write(self._fd, f"{what} {times}\n".encode())


class _Off:
    def mark(self, name: str) -> None:
        pass

    def end(self, what: str) -> None:
        pass


def make() -> Trace | _Off:
    """A trace if CNI_SERVER_TRACE is set, else one that does nothing."""
    path = os.environ.get(VARIABLE)
    return Trace(path) if path else _Off()
