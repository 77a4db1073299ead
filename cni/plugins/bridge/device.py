"""The bridge itself: made by the first ADD that needs it, removed by the undo of that ADD, and with
`removeEmptyBridge` after its last port.

The kernel has no request "delete it if it has no port". So an ADD holds a lock from the moment it
has looked for the bridge until its own port is there, shared with other ADDs; who removes a bridge
holds it alone, from the look at the ports to the deletion. It is a lock on the node's network
namespace, which every process sees that can see the bridge, and which leaves no file.
"""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

from ... import lockfile
from ...call import Call
from ...kernel import link, sysctl
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError
from ..shared import veth

NAMESPACE = "/proc/self/ns/net"


class Lock:
    """Held within a `with`: shared by ADDs that use bridges, `alone` by who removes one.

    Raises TryAgainLater after ten seconds.
    """

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone
        self._fd = -1

    def __enter__(self) -> None:
        fd = os.open(NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            deadline = monotonic() + lockfile.TIMEOUT
            lockfile.acquire(fd, NAMESPACE, deadline, shared=not self._alone)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def __exit__(self, *_: object) -> None:
        lockfile.release(self._fd)


def ensure(
    call: Call[Any], host: Netlink, name: str, *, mtu: int, filtering: bool, promisc: bool
) -> Link:
    """Make the bridge if it is missing; one that exists keeps its settings. Raises CNIError.

    The caller holds the lock until its port is there.
    """
    try:
        bridge = link.find(host, name)
        if bridge is None:
            _create(call, host, name, mtu, filtering)
            bridge = link.get(host, name)
        if bridge.kind != "bridge":
            raise CNIError(
                f'failed to create bridge "{name}": "{name}" already exists but is not a bridge',
                f"it is a {bridge.kind or 'device'}: choose another name for `bridge`",
            )
        sysctl.write_each([(f"net/ipv6/conf/{name}/accept_ra", "0")])
        if promisc or not bridge.up:
            link.change(host, bridge.index, up=True, promisc=True if promisc else None)
        return bridge
    except NetlinkError as error:
        from ...kernel import link_advice

        advice = link_advice.of(error, "bridge", name)
        raise CNIError(f'failed to create bridge "{name}": {error}', advice) from None


def _create(call: Call[Any], host: Netlink, name: str, mtu: int, filtering: bool) -> None:
    """Make the bridge, unless another ADD has made it by now. Raises NetlinkError."""
    mac = _new_mac()
    call.undo.callback(_remove_made, name, link.format_mac(mac))
    group = 0
    if call.conf.remove_empty_bridge:
        from . import empty  # few configurations have the bridge removed

        group = empty.group(call.network)
    try:
        link.create_bridge(host, name, mtu=mtu, mac=mac, vlan_filtering=filtering, group=group)
        veth.prepare_host_end(name)
    except NetlinkError as error:
        if not link.is_name_taken(error):
            raise
        call.undo.withdraw()
        return
    if group:
        empty.mark(host, name)


def _remove_made(name: str, mac: str) -> None:
    """Undo the creation of a bridge, known by its random MAC, unless another ADD uses it by now."""
    with Netlink() as host, Lock(alone=True):  # the verb's own socket is closed by now
        bridge = link.find(host, name)
        if bridge is None or bridge.kind != "bridge" or bridge.mac != mac:
            return
        if not any(device.master == bridge.index for device in link.list_all(host)):
            link.delete(host, bridge.index)


def _new_mac() -> bytes:
    """A random unicast, locally administered MAC.

    A bridge that was given none has the lowest MAC of its ports, which changes as ports come and
    go. The hosts behind it then lose packets until their neighbour caches are corrected.
    """
    raw = os.urandom(6)
    return bytes((raw[0] & 0xFC | 0x02,)) + raw[1:]
