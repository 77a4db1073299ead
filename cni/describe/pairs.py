"""Plugins that connect a container to its node by a pair of links: where the node's end of it is.

What judges, plans, shows or tests networks asks here, so that a new plugin of this kind is known to
all of them. tests/unit/test_describe.py compares it with what the plugins do.
"""

from __future__ import annotations

from typing import Any

# The node's end is a port of a bridge, and the gateway, if there is one, is on the bridge.
ON_BRIDGE = frozenset({"bridge", "vxlan"})
# The node's end is a link of its own, with the gateway on it.
ALONE = frozenset({"ptp", "wireguard"})
ALL = ON_BRIDGE | ALONE


def bridge_name(plugin: str, bridge: Any, vni: Any) -> str:
    """The bridge of a `plugin` of ON_BRIDGE whose keys `bridge` and `vni` are these."""
    if isinstance(bridge, str) and bridge:
        return bridge
    return f"cni-vx{vni}" if plugin == "vxlan" else "cni0"


def is_gateway(plugin: str, is_gateway: Any, is_default_gateway: Any) -> bool:
    """Is the node the gateway of containers of a `plugin` of ALL with these keys?"""
    return plugin in ALONE or (plugin in ON_BRIDGE and True in (is_gateway, is_default_gateway))
