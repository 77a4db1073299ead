"""Small jobs that the client of a request does in the container's namespace (launcher/client.c).

The client waits for the reply anyway, and it is small: waking it takes a third of the time that
waking an executor takes. A job is one packet, and so is its answer:

    job     "s" or "S" (stop at the first failure), then for each step of kernel.sysctl
            its kind, its name, NUL, the value, NUL
    answer  "s", then for each step that was taken an errno (int), the size of the value
            that was read (unsigned; 0xFFFFFFFF: none was) and the value
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ..kernel import sysctl
from ..kernel.sysctl import Outcome, Step

# The same values as in launcher/client.c.
_MAX_PACKET = 1 << 16
_OUTCOME = struct.Struct("=iI")  # errno, size of what was read
_NOTHING = 0xFFFFFFFF
_DONE = b"s"
_MOST_STEPS = 15  # so the answer fits into a packet, whatever was read


class ClientJobs:
    """The worker's end of the connection to a client that does jobs.

    After any failure it is closed, and an executor does the work.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._asked: tuple[int, bool] | None = None  # steps of the job, and: stop early?

    def close(self) -> None:
        """Ask for no more jobs; may be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def ask(self, steps: Sequence[Step], *, stop: bool) -> bool:
        """Send steps of kernel.sysctl as a job; False if the client cannot do them.

        `answer` has to be called next. Raises ValueError for a name that is no parameter.
        """
        if self._asked is not None:
            self.answer()  # that of an earlier job, which its caller gave up
        data = packed(steps, stop) if self._fd >= 0 else None
        if data is None:
            return False
        try:
            os.write(self._fd, data)
        except OSError:
            self.close()
            return False
        self._asked = len(steps), stop
        return True

    def answer(self) -> list[Outcome] | None:
        """The outcome of each step; None if the job was not done, or not all of it."""
        assert self._asked is not None
        (count, stop), self._asked = self._asked, None
        done: list[Outcome] | None = None
        try:
            done = outcomes(os.read(self._fd, _MAX_PACKET), count, stop)
        except OSError:
            pass
        finally:
            if done is None:  # also after an interrupt: the next job must not get this answer
                self.close()
        return done


def packed(steps: Sequence[Step], stop: bool) -> bytes | None:
    """The packet of a job with these steps; None if it, or its answer, is too large for one.

    Raises ValueError for a name that is no parameter.
    """
    if len(steps) > _MOST_STEPS:
        return None
    for _, name, _ in steps:
        # the client writes below /proc/sys whatever it is told
        sysctl.check(name)
    texts = [f"{kind}{name}\0{value}\0" for kind, name, value in steps]
    data = "".join(("S" if stop else "s", *texts)).encode()
    return None if len(data) > _MAX_PACKET or data.count(0) != 2 * len(steps) else data


def outcomes(answer: bytes, count: int, stop: bool) -> list[Outcome] | None:
    """The outcome of each of `count` steps; None if the job was not done, or not all of it."""
    done = _outcomes(answer)
    stopped = stop and done and done[-1][1] != 0
    return None if done is not None and len(done) != count and not stopped else done


def _outcomes(data: bytes) -> list[Outcome] | None:
    if not data.startswith(_DONE):
        return None
    outcomes: list[Outcome] = []
    at = len(_DONE)
    while at + _OUTCOME.size <= len(data):
        errno, size = _OUTCOME.unpack_from(data, at)
        at += _OUTCOME.size
        value = None
        if size != _NOTHING:
            value = data[at : at + size].decode().rstrip("\n")
            at += size
        outcomes.append((value, errno))
    return outcomes
