"""The directories of state of this node: the usual ones, and those that networks name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from cni.ipam.dhcp.rpc import DEFAULT_SOCKET
from cni.ipam.host_local import plugin as host_local
from cni.plugins.flannel.plugin import Conf as Flannel
from cni.plugins.tuning.backup import DIRECTORY as TUNING
from cni.protocol import config

from ..conflist import NetworkList

HOST_LOCAL, TUNED, FLANNEL, DHCP = "networks", "tuning", "flannel", "dhcp-leases"
_OF_PLUGINS = {"tuning": TUNED, "flannel": FLANNEL}


def named(networks: Iterable[NetworkList], state_dir: str) -> list[tuple[str, str]]:
    """What is in a directory (HOST_LOCAL, TUNED, FLANNEL, DHCP), and its path; each path once.

    Those of host-local have a directory for each network.
    """
    found = {
        host_local.DATA_DIR: HOST_LOCAL,
        TUNING: TUNED,
        Flannel().data_dir: FLANNEL,
        # The daemon keeps leases beside its socket.
        os.path.join(os.path.dirname(DEFAULT_SOCKET), DHCP): DHCP,
        os.path.join(state_dir, DHCP): DHCP,
    }
    for network in networks:
        for kind, path in _of_network(network):
            found.setdefault(os.path.normpath(path), kind)
    return [(kind, path) for path, kind in found.items()]


def _of_network(network: NetworkList) -> Iterator[tuple[str, str]]:
    for plugin in network.plugins:
        its_dir = config.lookup(plugin.raw, "dataDir")
        if plugin.type in _OF_PLUGINS and _is_path(its_dir):
            yield _OF_PLUGINS[plugin.type], str(its_dir)
        for holder in (plugin.raw, config.lookup(plugin.raw, "delegate")):
            ipam = config.lookup(holder, "ipam") if isinstance(holder, dict) else None
            if not isinstance(ipam, dict):
                continue
            kind = str(config.lookup(ipam, "type"))
            if config.means(kind, "host-local") and _is_path(config.lookup(ipam, "dataDir")):
                yield HOST_LOCAL, str(config.lookup(ipam, "dataDir"))
            socket = config.lookup(ipam, "daemonSocketPath")
            if config.means(kind, "dhcp") and _is_path(socket):
                yield DHCP, os.path.join(os.path.dirname(str(socket)), DHCP)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value
