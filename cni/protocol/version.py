"""Spec versions: parsing, comparing, and the gates a verb has to pass
(docs/spec/protocol.md §1.3).
"""

from __future__ import annotations

from .config import VERSIONS
from .errors import DecodeFailure, IncompatibleVersion

ALL = VERSIONS
CURRENT = ALL[-1]
DEFAULT = ALL[0]

# The first version of the specification that has the verb.
_SINCE = {"CHECK": (0, 4, 0), "GC": (1, 1, 0), "STATUS": (1, 1, 0)}


def parse(text: str) -> tuple[int, int, int]:
    """``"1.1"`` -> ``(1, 1, 0)``; the empty string means 0.1.0.

    Raises DecodeFailure (code 6) for anything but one to three non-negative integers.
    """
    parts = (text or DEFAULT).split(".")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() for p in parts):
        raise DecodeFailure(
            f'failed to parse version "{text}"', "cniVersion has the form MAJOR.MINOR.PATCH"
        )
    numbers = [int(p) for p in parts] + [0, 0]
    return numbers[0], numbers[1], numbers[2]


def at_least(text: str, minimum: str) -> bool:
    """Is version `text` the same as or later than `minimum`?"""
    return parse(text) >= parse(minimum)


def gate(verb: str, version: str, supported: tuple[str, ...]) -> None:
    """Raise unless a plugin supporting `supported` may run `verb` for a config of `version`.

    The texts are the reference's: its suites compare them. The first two have no details there.
    Raises IncompatibleVersion (code 1) or, for a version that cannot be parsed, DecodeFailure (6).
    """
    since = _SINCE.get(verb)
    if since is not None:
        wanted = parse(version)
        if wanted < since:
            raise IncompatibleVersion(f"config version does not allow {verb}")
        if wanted > max(parse(v) for v in supported):
            raise IncompatibleVersion(f"plugin version does not allow {verb}")
    if version not in supported:
        raise IncompatibleVersion("incompatible CNI versions", _mismatch(version, supported))


def _mismatch(version: str, supported: tuple[str, ...]) -> str:
    quoted = " ".join(f'"{v}"' for v in supported)
    return f'config is "{version}", plugin supports [{quoted}]'
