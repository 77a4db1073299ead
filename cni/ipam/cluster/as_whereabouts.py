"""whereabouts: cluster, by the keys of the whereabouts plugin (whereabouts.py translates them).

    request ─► the flat file is read ─► keys of cluster ─► the verbs of plugin.py

Objects of whereabouts itself are read in one case only: no address is given out in a space that is
new to the store, while whereabouts has allocations that were not taken over.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from ... import files
from ...protocol import config
from ...protocol.address import InvalidAddress, Prefix, canonical_ip
from ...protocol.config import DNS, Folded, PluginConf, Route
from ...protocol.errors import CNIError
from ...protocol.result import IPConfig, Result
from ...store import settings
from ..host_local.directory import make_directories
from ..host_local.plugin import Args, Requested
from ..host_local.ranges import ConflictCheck
from . import plugin, whereabouts
from .node import Node
from .pool import DEFAULT_SPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...call import Call
    from ...protocol.request import Attachment

_MOST = 1 << 20
_SAID = "whereabouts.said"  # beside the ledger: the notes that were logged already


class RangeConf(Folded):
    """An entry of `ipRanges`."""

    range: str = ""
    range_start: str = msgspec.field(default="", name="range_start")
    range_end: str = msgspec.field(default="", name="range_end")
    exclude: list[str] = []


class Address(Folded):
    """An address that is only added to the result, without a reservation."""

    address: str = ""
    gateway: str | None = None

    def __post_init__(self) -> None:
        try:
            self.address = str(Prefix.parse(self.address))
            self.gateway = canonical_ip(self.gateway) if self.gateway else None
        except InvalidAddress as error:
            example = '{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}'
            raise InvalidAddress(error.msg, f"an entry of `addresses` is like {example}") from None


class Kubernetes(Folded):
    kubeconfig: str = ""
    k8s_api_root: str = msgspec.field(default="", name="k8s_api_root")


class IpamConf(RangeConf):
    """The `ipam` object, or the flat file: whereabouts' keys, and some of cluster's.

    Keys without a meaning here are not decoded: a wrong type there is no error.
    """

    type: str = ""
    ip_ranges: list[RangeConf] = []
    gateway: str = ""
    routes: list[Route] = []
    dns: DNS | None = None
    addresses: list[Address] = []
    network_name: str = msgspec.field(default="", name="network_name")
    enable_overlapping_ranges: bool = msgspec.field(default=True, name="enable_overlapping_ranges")
    node_slice_size: str = msgspec.field(default="", name="node_slice_size")
    kubernetes: Kubernetes | None = None
    configuration_path: str = msgspec.field(default="", name="configuration_path")
    block_size: int = 0
    block_size_v6: int = 0
    reserve: int = 0
    cooldown: int = 0
    no_gateway: bool = True
    conflict_check: ConflictCheck | None = None
    sticky: bool = False
    store: dict[str, Any] | None = None
    data_dir: str = ""
    node_name: str = ""
    node_timeout: int = 0


class Conf(PluginConf):
    ipam: IpamConf | None = None
    args: Args | None = None
    runtime_config: Requested | None = None


def add(call: Call[Conf]) -> Result:
    """As cluster's ADD; adds the configured `addresses` to the result. Raises CNIError."""
    # decodes whereabouts' own keys, and so raises for those of a wrong type
    _ = call.conf
    itself, notes = _as_cluster(call)
    its = settings.read(plugin.raw_ipam(itself), call.request.env)
    node = Node(its.data_dir, its.node)
    _tell(call, node, notes)
    ipam = itself.conf.ipam
    assert ipam is not None
    space = ipam.space or DEFAULT_SPACE
    if not os.path.lexists(node.path(f"{space}.blocks")):
        from . import takeover  # only the first ADD in a space

        takeover.check_taken_over(itself, node, its, space)
    result = plugin.add(itself)
    extra = call.conf.ipam.addresses if call.conf.ipam is not None else []
    result.ips += [IPConfig(address=each.address, gateway=each.gateway) for each in extra]
    return result


def delete(call: Call[Conf]) -> None:
    """As cluster's DEL; needs only the data directory of the configuration."""
    plugin.delete(_for_release(call))


def check(call: Call[Conf]) -> None:
    """As cluster's."""
    plugin.check(_as_cluster(call)[0])


def gc(call: Call[Conf], keep: frozenset[Attachment]) -> None:
    """As cluster's."""
    plugin.gc(_for_release(call), keep)


def status(call: Call[Conf]) -> None:
    """As cluster's."""
    _ = call.conf
    plugin.status(_as_cluster(call)[0])


# --- translating ---


def _as_cluster(call: Call[Conf]) -> tuple[Call[plugin.Conf], list[str]]:
    """The request with cluster's keys, and notes about its configuration. Raises CNIError."""
    made, notes = translated(plugin.raw_ipam(call), call.request.env)
    return _with(call, made), notes


def translated(ipam: dict[str, Any], env: Mapping[str, str]) -> whereabouts.Converted:
    """The `ipam` object with cluster's keys, completed by the node's files. Raises CNIError."""
    path, flat = whereabouts.flat_file(ipam, _read)
    made, notes = whereabouts.convert(ipam, flat)
    made.pop("addresses", None)
    own = settings.of_node(env)
    if config.lookup(own, "store") and not any(config.lookup(x, "store") for x in (ipam, flat)):
        made.pop("store", None)  # says nothing: whereabouts always needs a kubeconfig
    if not any(config.lookup(each, "nodeName") for each in (made, own)):
        name = _node_name(path, env)
        made |= {"nodeName": name} if name else {}
    return whereabouts.Converted(made, notes)


def _for_release(call: Call[Conf]) -> Call[plugin.Conf]:
    """The request with only those keys that DEL and GC need, even if others are wrong."""
    ipam = plugin.raw_ipam(call)
    try:
        _, flat = whereabouts.flat_file(ipam, _read)
    except CNIError as error:
        call.note_problem(error)
        flat = {}
    own = next((v for each in (ipam, flat) if (v := config.lookup(each, "dataDir"))), None)
    return _with(call, {"type": "cluster", **({"dataDir": own} if own else {})})


def _with(call: Call[Conf], ipam: dict[str, Any]) -> Call[plugin.Conf]:
    others = {key: value for key, value in call.raw.items() if key.lower() != "ipam"}
    return call.reread({**others, "ipam": ipam}, plugin.Conf)


def _read(path: str) -> bytes | None:
    try:
        return files.read(path, _MOST, follow=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CNIError(
            f"cannot read {path}: {(error.strerror or '').lower()}",
            "it is whereabouts' configuration for this node: make it readable, or remove it",
        ) from None


def _node_name(flat_path: str, env: Mapping[str, str]) -> str:
    """The name in whereabouts' file `nodename`, beside the flat file; "" without one."""
    if not flat_path or settings.named(env):
        return ""
    data = _read(os.path.join(os.path.dirname(flat_path), "nodename"))
    return (data or b"").decode("utf-8", "replace").strip()


def _tell(call: Call[Conf], node: Node, notes: list[str]) -> None:
    """Log the notes about the configuration, each line once on this node."""
    if not notes:
        return
    path = node.path(_SAID)
    try:
        said = files.read(path, _MOST).decode("utf-8", "replace").splitlines()
    except OSError:
        said = []
    new = [line for each in notes if (line := f"{call.network}: {each}") not in said]
    if not new:
        return
    for line in new:
        call.log(f"whereabouts: {line}")
    try:
        make_directories(os.path.dirname(path))
        files.replace(path, "\n".join([*said, *new, ""]).encode())
    except (OSError, CNIError):
        pass  # then it is logged again
