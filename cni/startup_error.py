"""Errors that come before the plugin can start, in the form that the caller expects.

Imports nothing that a damaged or old Python may lack. Python 3.6 has to be able to read this.
"""

import os
import sys

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def complain(msg, details):
    # type: (str, str) -> int
    """Write the error and return the exit code, 1.

    A container runtime (CNI_COMMAND is set) gets the specification's error object on stdout, a
    person gets a line on stderr.
    """
    if os.environ.get("CNI_COMMAND"):
        text = '{{\n    "code": 999,\n    "msg": "{}",\n    "details": "{}"\n}}\n'
        _write(1, text.format(_quoted(msg), _quoted(details)))
    else:
        _write(2, "cni: {}: {}\n".format(_printable(msg), _printable(details)))
    return 1


def too_old():
    # type: () -> int
    """Report that this interpreter is too old; returns the exit code."""
    found = ".".join(str(n) for n in sys.version_info[:3])
    return complain(
        "python3 (3.11 or newer) not found",
        "{} is Python {}; install the package python3.11 or newer, or name another "
        "interpreter with: cni install --python PATH".format(sys.executable or "python3", found),
    )


def _quoted(text):
    # type: (str) -> str
    return "".join(
        _ESCAPES.get(c) or (c if " " <= c <= "~" else "\\u%04x" % min(ord(c), 0xFFFD)) for c in text
    )


def _printable(text):
    # type: (str) -> str
    """Text for a terminal, which must not obey what a file is called."""
    return "".join(c if c.isprintable() else "\\x%02x" % ord(c) for c in text)


def _write(fd, text):
    # type: (int, str) -> None
    data = text.encode("utf-8", "backslashreplace")
    while data:
        data = data[os.write(fd, data) :]
