"""The program nft(8): compiles rules that users write in its language, and nothing else."""

from __future__ import annotations

import os
from errno import ENOENT

from .. import files, process
from ..kernel.errors import NftError, NftMissing

_PROGRAM = "nft"
# The environment that the program gets besides PATH; its messages are in English.
_ENVIRONMENT = {"LC_ALL": "C"}
_PASSED_ON = ("PATH",)


def require() -> str:
    """The program's path; runs nothing. Raises NftMissing."""
    program = files.find_program(_PROGRAM)
    if program is None:
        raise NftMissing(f"the program {_PROGRAM} is not installed", "install the package nftables")
    return program


def run(script: str) -> None:
    """Apply commands, a line each, as one transaction: all or none. Raises NftError."""
    program = require()
    env = {key: value for key in _PASSED_ON if (value := os.environ.get(key))} | _ENVIRONMENT
    try:
        done = process.run(program, [_PROGRAM, "-f", "-"], script.encode(), env)
    except OSError as error:
        reason = os.strerror(error.errno or ENOENT).lower()
        raise NftError(f"fork/exec {program}: {reason}") from None
    if done.code != 0:
        text = clean(done.stderr.decode(errors="replace"))
        raise NftError(text or f"{_PROGRAM} failed with {done.code}")


def clean(text: str) -> str:
    """The program's error on one line: without line numbers and carets, which mean its input."""
    lines = [line.rpartition("Error: ")[2].strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line and line.strip("^~ "))
