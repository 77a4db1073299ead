"""A node's link of a network, which all containers of the network share: VXLAN, WireGuard.

The first ADD makes it. Its name is derived from the network; its alias names the network and the
configuration that has set it up. Until it has the alias it is in the network's link group.
"""

from __future__ import annotations

from typing import NamedTuple

from ...kernel import link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...owner import ALIAS_MAX, cut, digest, network_group, network_key
from ...protocol.errors import CNIError


class Sort(NamedTuple):
    """A sort of such links: the plugin, the kernel's kind of link, its name for people, and how
    links' names begin.
    """

    plugin: str
    kind: str
    label: str
    prefix: str

    def name(self, network: str) -> str:
        """The name of a network's link."""
        return f"{self.prefix}{digest(network)[:8]}"

    def alias(self, network: str, keys: object = None) -> str:
        """The alias of the link that was set up as `keys` say; None: the next ADD looks again."""
        settled = digest(repr(keys))[:16] if keys is not None else ""
        return cut(f"{self._mark(network)}{settled} {network}", ALIAS_MAX)

    def is_ours(self, made: Link, network: str) -> bool:
        """Was the link made by this plugin for the network?"""
        if made.kind != self.kind:
            return False
        is_unfinished = not made.alias and made.group == network_group(network)
        return made.alias.startswith(self._mark(network)) or is_unfinished

    def find_own(self, host: Netlink, network: str) -> Link | None:
        """The network's link, if it is ours."""
        made = link.find(host, self.name(network))
        return made if made is not None and self.is_ours(made, network) else None

    def find(self, host: Netlink, network: str) -> Link | None:
        """The network's link. Raises CNIError if something else has its name."""
        made = link.find(host, self.name(network))
        if made is not None and not self.is_ours(made, network):
            raise CNIError(
                f'failed to make the {self.label} link: "{made.name}" exists and is not of this '
                "network",
                f"its alias is {made.alias!r}: rename or delete it (`ip -d link show {made.name}`)",
            )
        return made

    def _mark(self, network: str) -> str:
        return f"cni-{self.plugin}:{network_key(network)}:"
