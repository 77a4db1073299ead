"""The client's process, which does small jobs in the container's namespace (launcher/client.c).

It is there anyway, waiting for our reply, and small: waking it takes a third of what waking an
executor does. One packet is a job, one its answer; what they look like the client says.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ..kernel import sysctl
from ..kernel.sysctl import Outcome, Step

# As launcher/client.c has it.
_MAX_PACKET = 1 << 16
_OUTCOME = struct.Struct("=iI")  # errno, size of what was read
_NOTHING = 0xFFFFFFFF
_DONE = b"s"
_MOST = 15  # steps: their answers fit into a packet, whatever was read


class Envoy:
    """Our end of the connection, which is closed once anything goes wrong."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._asked: tuple[int, bool] | None = None  # how many steps, and may there be fewer

    def close(self) -> None:
        """No more jobs; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def ask(self, steps: Sequence[Step], *, stop: bool) -> bool:
        """Send a job of kernel.sysctl; False if that is not for it. `answer` comes next.

        Raises ValueError for what is no parameter.
        """
        if self._asked is not None:
            self.answer()  # nobody waited for it
        if self._fd < 0 or len(steps) > _MOST:
            return False
        for _, name, _ in steps:
            sysctl.check(name)
        texts = [f"{kind}{name}\0{value}\0" for kind, name, value in steps]
        data = "".join(("S" if stop else "s", *texts)).encode()
        if len(data) > _MAX_PACKET or data.count(0) != 2 * len(steps):
            return False
        try:
            os.write(self._fd, data)
        except OSError:
            self.close()
            return False
        self._asked = len(steps), stop
        return True

    def answer(self) -> list[Outcome] | None:
        """What came of the job; None if it was not done, or not all of it."""
        assert self._asked is not None
        (count, stop), self._asked = self._asked, None
        found: list[Outcome] | None = None
        try:
            found = _outcomes(os.read(self._fd, _MAX_PACKET))
            if found is not None and len(found) != count and not (stop and found and found[-1][1]):
                found = None
        except OSError:
            pass
        finally:
            if found is None:  # also when a signal's exception passes here
                self.close()
        return found


def _outcomes(data: bytes) -> list[Outcome] | None:
    if not data.startswith(_DONE):
        return None
    found: list[Outcome] = []
    at = len(_DONE)
    while at + _OUTCOME.size <= len(data):
        errno, size = _OUTCOME.unpack_from(data, at)
        at += _OUTCOME.size
        value = None
        if size != _NOTHING:
            value = data[at : at + size].decode().rstrip("\n")
            at += size
        found.append((value, errno))
    return found
