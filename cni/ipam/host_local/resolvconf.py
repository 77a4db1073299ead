"""Reading a resolv.conf(5) into a result's DNS (docs/spec/host-local.md, "resolv.conf parsing")."""

from __future__ import annotations

from ... import files
from ...protocol.config import DNS
from ...protocol.errors import CNIError

_MAX_SIZE = 1 << 20  # bytes


def read(path: str) -> DNS:
    """The settings of a file. Raises CNIError ``open <path>: no such file or directory``."""
    try:
        data = files.read(path, _MAX_SIZE, follow=True)  # a link on nodes with systemd-resolved
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        operation = "read" if isinstance(error, files.Unusable) else "open"
        raise CNIError(
            f"{operation} {path}: {reason.lower()}",
            "ipam.resolvConf names the file to take the DNS from",
        ) from None
    return parse(data.decode(errors="replace"))


def parse(text: str) -> DNS:
    """The settings in a text. Unknown words and lines without a value are skipped.

    The lists of several lines are joined; of several domains the last one counts.
    """
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
