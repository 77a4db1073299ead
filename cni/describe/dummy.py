"""Keys of dummy."""

from __future__ import annotations

from .common import IPAM, RESULT_DNS
from .model import Plugin, replace

PLUGIN = Plugin(
    name="dummy",
    place="main",
    about="makes an interface that only holds addresses",
    keys=(replace(IPAM, required=True, absent="", text="also gives the DNS settings"), RESULT_DNS),
    example={
        "type": "dummy",
        "ipam": {"type": "static", "addresses": [{"address": "10.1.2.3/32"}]},
    },
    link_kind="dummy",
)
