"""The bridge itself: made by the first ADD that needs it, removed by the undo of that ADD, and with
`removeEmptyBridge` after its last port.

The kernel has no request "delete the bridge if it has no port". So an ADD holds a lock, shared with
other ADDs, from its look for the bridge until its own port is there. A process that removes a
bridge holds the lock alone, from its look at the ports to the deletion. Only root may open the
lock's file, because a process that holds the lock stops every ADD.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from ... import lockfile
from ...call import Call
from ...kernel import link, sysctl
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError, TryAgainLater
from ..shared import veth

STATE_DIR = "/run/cni"


class Lock:
    """A lock for a `with` statement: shared by ADDs that use bridges, `alone` for removing one.

    `env` is the request's. On a node without a place for state nothing is locked. Raises
    TryAgainLater after ten seconds.
    """

    def __init__(self, env: Mapping[str, str], *, alone: bool = False) -> None:
        self._directory = env.get("CNI_STATE_DIR") or STATE_DIR
        self._alone = alone
        self._fd = -1

    def __enter__(self) -> None:
        path = f"{self._directory}/bridge.lock"
        try:
            fd = self._open(path)
        except OSError:
            return  # no place for state, as on a read-only system
        try:
            lockfile.acquire(fd, path, monotonic() + lockfile.TIMEOUT, shared=not self._alone)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _open(self, path: str) -> int:
        # a symbolic link is not followed, and a FIFO is not waited for
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(self._directory, 0o755, exist_ok=True)
            return os.open(path, flags, 0o600)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            lockfile.release(self._fd)


def remove_unused(
    call: Call[Any], what: str, unused: Callable[[], list[int]], remove: Callable[[int], None]
) -> None:
    """Remove the links that `unused` lists (their indexes), unless an ADD uses them by then.

    It is asked first without the lock, because in most cases the links are in use. If ADDs hold the
    lock for too long, the links stay until the next DEL or GC, which is logged as about `what`.
    """
    if not unused():
        return
    try:
        with Lock(call.request.env, alone=True):
            for index in unused():
                remove(index)
    except TryAgainLater as error:
        call.log(f"{what} stays for the next DEL or GC: {error}")


def ensure(
    call: Call[Any],
    host: Netlink,
    name: str,
    *,
    mtu: int,
    filtering: bool,
    promisc: bool,
    mac: bytes = b"",
) -> Link:
    """Make the bridge if it is missing; one that exists keeps its settings. Raises CNIError.

    A new bridge gets a random MAC unless one is given. The caller holds the lock until its port
    is there.
    """
    try:
        bridge = link.find(host, name)
        if bridge is None:
            _create(call, host, name, mtu, filtering, mac or _new_mac())
            bridge = link.get(host, name)
        if bridge.kind != "bridge":
            raise CNIError(
                f'failed to create bridge "{name}": "{name}" already exists but is not a bridge',
                f"it is a {bridge.kind or 'device'}: choose another name for `bridge`",
            )
        # a container could send rogue advertisements (CVE-2020-10749)
        sysctl.write_each([(f"net/ipv6/conf/{name}/accept_ra", "0")])
        # promiscuous mode is never switched off: others may have set it on a bridge that they use
        if promisc or not bridge.up:
            link.change(host, bridge.index, up=True, promisc=True if promisc else None)
        return bridge
    except NetlinkError as error:
        from ...kernel import link_advice

        advice = link_advice.of(error, "bridge", name)
        raise CNIError(f'failed to create bridge "{name}": {error}', advice) from None


def _create(
    call: Call[Any], host: Netlink, name: str, mtu: int, filtering: bool, mac: bytes
) -> None:
    """Make the bridge, unless another ADD has made it by now. Raises NetlinkError."""
    call.undo.callback(_remove_made, call.request.env, name, link.format_mac(mac))
    group = 0
    if call.conf.remove_empty_bridge:
        from . import empty  # few configurations have `removeEmptyBridge`

        group = empty.group(call.network)
    try:
        link.create_bridge(host, name, mtu=mtu, mac=mac, vlan_filtering=filtering, group=group)
        veth.prepare_host_end(name)
    except NetlinkError as error:
        if not link.is_name_taken(error):
            raise
        # another ADD has made it in the meantime, and undoes it if that ADD fails
        call.undo.withdraw()
        return
    if group:
        empty.mark(host, name)


def _remove_made(env: Mapping[str, str], name: str, mac: str) -> None:
    """Undo the creation of the bridge with this MAC, unless another ADD uses it by now."""
    with Netlink() as host, Lock(env, alone=True):  # the verb's own socket is closed by now
        bridge = link.find(host, name)
        # the MAC is random, so it tells the bridge of this ADD from a later one of that name
        if bridge is None or bridge.kind != "bridge" or bridge.mac != mac:
            return
        if not any(device.master == bridge.index for device in link.list_all(host)):
            link.delete(host, bridge.index)


def _new_mac() -> bytes:
    """A random unicast, locally administered MAC.

    A bridge without a MAC of its own has the lowest MAC of its ports, which changes as ports come
    and go. Then the hosts on it lose packets until their neighbour caches are corrected.
    """
    raw = os.urandom(6)
    return bytes((raw[0] & 0xFC | 0x02,)) + raw[1:]
