"""The snapshot of an interpreter that has started and imported what requests need.

The image that was just linked makes it of itself (src/snapshot.c): it is executed as a program of
its own, with nothing in its environment. docs/self-contained.md says what is in it, and why
that is sound.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.interpreter.cpython import Target
from tools.interpreter.modules import Module, is_below
from tools.interpreter.sources import BuildError, run

MAX_PARTS = 16  # of launcher/image.c
PROVED = ("x86_64",)  # what `make prove-snapshot` has been run on
_RANGES = 3
_HEAD = struct.Struct("<8sQ" + "QQQ" * _RANGES)  # struct head of src/snapshot.c
_HOLE = 1 << 16  # that many zeros are not worth their room in the file
_MAGIC = b"snapsht\0"
_RECORDING = "record the snapshot"
# Of the request path, what no request of a Linux node imports, or few do: a byte of a module's code
# takes four in the snapshot. A request that needs one of these imports it.
_NOT_THERE = """
    cni.netns.unsupported cni.ipam.host_local.store_windows
    cni.ipam.cluster cni.store cni.environment
    cni.ipam.dhcp cni.kernel.netlink_debug cni.kernel.syscalls cni.kernel.tc cni.kernel.tcfilter
    cni.kernel.tun cni.kernel.xfrm cni.plugins.bandwidth cni.plugins.dummy
    cni.plugins.firewall.backend_firewalld cni.plugins.firewall.dbus
    cni.plugins.firewall.migrate cni.plugins.flannel cni.plugins.host_device
    cni.plugins.portmap.migrate cni.plugins.tap cni.plugins.vrf cni.protocol.wrong_type cni.record
    cni.plugins.ipvlan cni.plugins.macvlan.host_shim cni.plugins.portmap.localhost
    cni.plugins.portmap.nft_conditions cni.plugins.portmap.nft_reference
    cni.rehearsal cni.ipam.host_local.usage cni.ipam.host_local.sticky
    cni.plugins.shared.device_notes cni.plugins.tuning.backup cni.plugins.tuning.features
    cni.kernel.bond cni.plugins.bond cni.plugins.shared.moved cni.plugins.shared.uplink
    cni.plugins.bridge.empty cni.plugins.portmap.listeners cni.kernel.sockets
    cni.kernel.vf cni.plugins.sriov
    cni.plugins.shared.device_master cni.sysctl_file cni.plugins.bridge.uplink_port
    cni.plugins.bridge.vxlan cni.plugins.bridge.vxlan_link cni.plugins.bridge.vxlan_settings
    cni.kernel.vxlan cni.kernel.fdb cni.plugins.bridge.vxlan_peers cni.plugins.shared.network_link
    cni.plugins.shared.peers cni.plugins.shared.peers_watch
    cni.plugins.wireguard cni.kernel.wireguard cni.kernel.genl
    cni.plugins.route_override cni.plugins.sample cni.netns.liveness cni.ipam.host_local.directory
    cni.ipam.slaac cni.kernel.router cni.ipam.conflict cni.ipam.host_local.conflicts
    cni.plugins.tc_redirect_tap cni.plugins.macvlan.macvtap
    cni.kernel.vrf cni.netfilter.refusal cni.plugins.firewall.isolation cni.damage cni.stopwatch
    cni.standins.click_ cni.netns.throwaway cni.plugins.shared.masquerade.migrate cni.authorities
    cni.startup_error cni.kernel.link_advice cni.plugins.portmap.nft_holders
"""


@dataclass(frozen=True)
class Part:
    """Pages for `address`; `size` bytes, of which those behind `content` are zeros."""

    address: int
    size: int
    content: bytes


@dataclass(frozen=True)
class Snapshot:
    """What a process begins with, on a system whose pages have `page` bytes.

    The first `replaced` parts take the place of the image's own data.
    """

    page: int
    replaced: int
    parts: tuple[Part, ...]


def is_made_for(target: Target) -> bool:
    """Whether files for `target` have a snapshot: where one has been proved, and can be written."""
    return target.is_native and target.arch in PROVED


def names(modules: dict[str, Module]) -> list[str]:
    """The modules to import, in this order."""
    left_out = frozenset(_NOT_THERE.split())
    ours = (name for name, module in modules.items() if module.is_for_requests)
    return [name for name in ours if name.startswith("cni") and not is_below(name, left_out)]


def record(folder: Path, modules: list[str]) -> Snapshot:
    """Have the image in `folder` write its snapshot. Raises BuildError."""
    output = folder / "snapshot"
    command: list[str | Path] = [_RECORDING, output, *modules]
    run(command, folder / "log", executable=str(folder / "image"), cwd=folder, env={})
    return parse(output.read_bytes())


def parse(data: bytes) -> Snapshot:
    """Read what the image has written. Raises BuildError."""
    magic, page, *numbers = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise BuildError("the interpreter has not written its snapshot")
    ranges, at = [], _HEAD.size
    for number in range(_RANGES):
        address, size, filled = numbers[3 * number : 3 * number + 3]
        ranges.append(list(_without_holes(Part(address, size, data[at : at + filled]))))
        at += filled
    if at != len(data):
        raise BuildError("the interpreter has not written all of its snapshot")
    parts = tuple(part for each in ranges for part in each)
    if len(parts) > MAX_PARTS:
        raise BuildError(f"the snapshot has {len(parts)} parts, of {MAX_PARTS} at most")
    return Snapshot(page, len(ranges[0]), parts)


def _without_holes(part: Part) -> Iterator[Part]:
    """The same as several parts, each with what lies between two holes, and the hole behind it."""
    start, content = 0, part.content
    for hole in re.finditer(rb"\0{%d,}" % (2 * _HOLE), content):
        first, last = -(-hole.start() // _HOLE) * _HOLE, hole.end() // _HOLE * _HOLE
        if first > start:
            yield Part(part.address + start, last - start, content[start:first])
            start = last
    yield Part(part.address + start, part.size - start, content[start:])
