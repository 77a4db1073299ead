"""The environment that this process began with.

A server's worker has its client's environment for the length of a request. What says where the
server itself runs (the pod, and the pod's node) is not in that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping


def with_own(env: Mapping[str, str]) -> dict[str, str]:
    """`env`, and what this process began with where `env` says nothing. Source: proc(5)."""
    values: dict[str, str] = {}
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = os.fsdecode(file.read()).split("\0")
    except OSError:
        entries = []
    for entry in entries:
        name, _, value = entry.partition("=")
        if name:
            values[name] = value
    return {**values, **env}
