"""Reading a resolv.conf(5) into a result's DNS (docs/spec/host-local.md, "resolv.conf parsing")."""

from __future__ import annotations

import os

from ...protocol.config import DNS
from ...protocol.errors import CNIError

_MAX_SIZE = 1 << 20


def read(path: str) -> DNS:
    """The file's settings. Raises CNIError ``open <path>: no such file or directory``."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise _failed("open", path, error) from None
    try:
        text = b""
        while chunk := os.read(fd, 1 << 16):
            text += chunk
            if len(text) > _MAX_SIZE:
                raise CNIError(f"read {path}: file too large", "ipam.resolvConf is a resolv.conf")
    except OSError as error:
        raise _failed("read", path, error) from None
    finally:
        os.close(fd)
    return parse(text.decode(errors="replace"))


def parse(text: str) -> DNS:
    """Unknown words and lines without a value are skipped; lists grow over lines."""
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    for line in text.split("\n"):
        word, *values = line.split() or [""]
        if not values or word.startswith(("#", ";")):
            continue
        if word == "nameserver":
            nameservers.append(values[0])
        elif word == "domain":
            domain = values[0]
        elif word == "search":
            search.extend(values)
        elif word == "options":
            options.extend(values)
    return DNS(nameservers=nameservers, domain=domain, search=search, options=options)


def _failed(operation: str, path: str, error: Exception) -> CNIError:
    reason = str(error)
    if isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno).lower()
    return CNIError(
        f"{operation} {path}: {reason}", "ipam.resolvConf names the file to take the DNS from"
    )
