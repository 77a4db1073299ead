r"""Text for people on stderr: a terminal, or a log that is read on one.

Containers, the authors of pods and other users have chosen many of the names in it. A terminal must
not obey control characters in them, and no name may look like a line of its own.
"""

from __future__ import annotations

import os


def printable(text: str, keep: str = "\n\t") -> str:
    r"""`text` with an escape (``\x1b``) for each character that is not plainly visible.

    These are control characters but for those in `keep`, marks that change the direction of
    writing, line separators, what Unicode has not assigned, and bytes that are no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def line(text: str) -> None:
    """Write one line; escapes characters that would begin another one."""
    _write(f"{printable(text, keep='')}\n")


def lines(text: str) -> None:
    """Write several lines, such as a traceback; each ends with a line break."""
    _write(printable(text))


def passed_on(data: bytes) -> None:
    r"""Write another program's output; a byte that is no UTF-8 becomes ``\xff``."""
    _write(printable(data.decode(errors="backslashreplace")))


def _write(text: str) -> None:
    """Write to stderr; ignore failures: a closed stderr, or one on a full disk, has no reader."""
    try:
        os.write(2, text.encode(errors="replace"))
    except OSError:
        pass
