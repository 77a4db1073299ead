"""Keys of loopback: none of its own."""

from __future__ import annotations

from .model import Plugin

PLUGIN = Plugin(
    name="loopback",
    place="main",
    about="sets `lo` up in the container",
    keys=(),
    example={"type": "loopback"},
)
