"""Each network of this node: could a container be attached now?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from shlex import quote

from cni.cli import conflist, errors, status
from cni.cli.cache import Cache
from cni.cli.runtime import Runtime
from cni.cli.signals import Interrupts
from cni.protocol.errors import CNIError

from .finding import ERROR, NOTE, OK, UNKNOWN, WARNING, Finding, Situation

AREA = "networks"


def readable(situation: Situation) -> Iterator[Finding]:
    """Runtimes stop at the first file that they cannot read."""
    try:
        configured = conflist.survey(situation.net_d)
    except CNIError as error:
        level = UNKNOWN if isinstance(error, errors.NotPermitted) else ERROR
        text = f"no network can be read: {error.msg}"
        yield Finding(level, AREA, text, f"ls -ld {quote(situation.net_d)}")
        return
    for each in configured:
        if each.problem is not None:
            yield Finding(ERROR, AREA, str(each.problem), f"cni validate {quote(each.path)}")
    if not situation.networks:
        text = f"there is no network in {situation.net_d}"
        yield Finding(NOTE, AREA, text, "cni network create mynet --dry-run")


def ready(situation: Situation) -> Iterator[Finding]:
    """STATUS, and what an ADD would meet."""
    if situation.networks and os.geteuid() != 0:
        # Plugins would answer for this user, who cannot write to their directories.
        yield Finding(NOTE, AREA, "plugins were not asked: only root can attach containers")
        return
    for network in situation.networks:
        # What plugins write to stderr, the other checks find on their own.
        asked = Runtime(
            situation.path,
            Cache(situation.cache_dir),
            os.environ,
            Interrupts(),
            show_stderr=lambda _: None,
        )
        try:
            found = status.require_ready(network, asked, with_rules=False)
        except CNIError as error:
            text = f"{network.name}: {error.msg}"
            yield Finding(ERROR, AREA, text, f"cni status {quote(network.name)}")
        else:
            yield Finding(OK, AREA, f"{network.name}: ready")
            if found.warnings:
                count = len(found.warnings)
                what = "1 thing looks" if count == 1 else f"{count} things look"
                text = f"{network.name}: {what} wrong in its configuration"
                yield Finding(WARNING, AREA, text, f"cni validate {quote(network.name)}")


CHECKS = (readable, ready)
