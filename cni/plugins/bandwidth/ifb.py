"""bandwidth's ifb, the device that limits what a container sends (docs/spec/bandwidth.md).

Its name is derived from network and container as in the reference; its alias names the owner. So
DEL and GC find it without prevResult and without the container's namespace.
"""

from __future__ import annotations

import sys
from errno import EEXIST
from typing import TYPE_CHECKING, Any

from ...call import Call, Steps
from ...kernel import link, tc, tcfilter, uapi
from ...kernel.errors import NetlinkError
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...netns import Namespace
from ...owner import ALIAS_KEY_SIZE, Owner, digest, network_group, network_key
from ...protocol.errors import CNIError
from ..shared import unlink, veth

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "bwp"
_NAME = uapi.IFLA_IFNAME.to_bytes(2, sys.byteorder) + _PREFIX.encode()  # in a link's message
_LENGTH = 15


def name_of(network: str, container_id: str, ifname: str = "") -> str:
    """The ifb's name as in the reference; with `ifname`, that for a container's other interfaces.

    The reference's name does not depend on the interface, so in each network only one interface of
    a container can have it (docs/spec/bandwidth.md, "IFB name").
    """
    seed = f"{network}{container_id}" + (f"\0{ifname}" if ifname else "")
    return (_PREFIX + digest(seed))[:_LENGTH]


def names(owner: Owner) -> tuple[str, str]:
    """The names that the owner's ifb may have, the reference's first."""
    network, container_id, ifname = owner
    return name_of(network, container_id), name_of(network, container_id, ifname)


def create(call: Call[Any], host: Netlink, outer: Link, path: str) -> Link:
    """Make the attachment's ifb, marked with its owner; it is deleted if the ADD fails.

    `host` is a socket in the namespace of `outer`, `path` that namespace's path, "" for the node's.

    An ifb with our mark was left by an ADD that was killed, unless `outer` has an ingress qdisc,
    which redirects to it. Raises CNIError ``adding link: …``.
    """
    problem = NetlinkError(EEXIST)
    for name in names(call.owner):
        stale = link.find(host, name)
        if stale is not None and stale.alias == call.owner.alias:
            if tc.qdisc(host, outer.index, tc.INGRESS) is not None:
                break
            link.delete(host, stale.index)
        call.undo.callback(_undo, call.owner, name, path)
        try:
            # until the alias is set, the group marks it: after a kill GC finds it by that
            link.create_ifb(host, name, mtu=outer.mtu, group=network_group(call.network))
        except NetlinkError as error:
            problem = error
            if error.errno == EEXIST:
                # it is another interface's, and must not be deleted by an undo
                call.undo.withdraw()
                continue
            break
        made = link.get(host, name)
        link.change(host, made.index, alias=call.owner.alias, group=0)
        return made
    raise CNIError(
        f"adding link: {problem}",
        f"{call.ifname} has an ifb already: a DEL removes it"
        if problem.errno == EEXIST
        else "does the kernel have ifb (CONFIG_IFB)?",
    )


def _undo(owner: Owner, name: str, path: str) -> None:
    if path:  # the verb's own sockets are closed by now
        with Namespace.open(path) as netns:
            _take_away(netns.netlink(), owner, name)
        return
    with Netlink() as host:
        _take_away(host, owner, name)


def _take_away(sock: Netlink, owner: Owner, name: str) -> None:
    device = link.find(sock, name)
    if device is not None and device.kind == "ifb" and device.alias in ("", owner.alias):
        link.delete(sock, device.index)


def of(host: Netlink, owner: Owner) -> list[Link]:
    """The owner's ifbs under its two names; the one with its alias comes first.

    An ifb without an alias is the reference's, or was left by an ADD that was killed. It is the
    owner's, unless the owner has an ifb with its alias: then the one without belongs to another
    interface of the container, since both interfaces share a name.
    """
    ifbs = [device for name in names(owner) if (device := link.find(host, name)) is not None]
    marked = [device for device in ifbs if device.alias == owner.alias]
    return marked or [device for device in ifbs if device.kind == "ifb" and not device.alias]


def delete(host: Netlink, owner: Owner) -> None:
    """Delete the owner's ifb; none is success. Raises NetlinkError."""
    for device in of(host, owner):
        unlink.delete_here(device.index)


def collect(host: Netlink, network: str, owners: list[Owner], steps: Steps) -> None:
    """Delete the ifbs of a network whose owner is not in `owners`, and the reference's dead ones.

    Those that bear an owner's alias go in one request. Each deletion is a step of `steps`.
    """
    kept = {owner.alias_key.encode() for owner in owners}
    prefix, group = f"cni:{network_key(network)}-", network_group(network)
    listed = link.dump(host)
    kept_names: set[str] = set()
    stale: list[Link] = []
    for device in _suspects(listed, prefix.encode(), kept):
        if device.alias:
            if device.alias.startswith(prefix):
                stale.append(device)
            continue
        kept_names = kept_names or {name for owner in owners for name in names(owner)}
        if device.name in kept_names:
            continue
        if device.group == group:  # an ADD was killed before it could set the alias
            steps.run(link.delete, host, device.index)
        elif not device.group:
            steps.run(_delete_if_dead, host, device, listed)
    if stale:
        from ...kernel import link_group

        steps.run(link_group.delete, host, stale, listed)


def _suspects(listed: list[bytes], mark: bytes, kept: set[bytes]) -> Iterator[Link]:
    """The ifbs of bandwidth that have none of these alias keys, each of which begins with `mark`.

    Most links are recognised by searching their bytes, without parsing them.
    """
    for data in listed:
        if _NAME not in data:
            continue
        at = data.find(mark)
        if at >= 0 and data[at : at + ALIAS_KEY_SIZE] in kept:
            continue
        device = link.parse(data)
        if device.kind == "ifb" and device.name.startswith(_PREFIX):
            yield device


def _delete_if_dead(host: Netlink, ifb: Link, listed: list[bytes]) -> None:
    """Delete an ifb of the reference, of any network, if the veth that fed it is gone.

    Its name does not tell the network. But if it has sent packets, its ADD was complete; and if no
    link redirects packets to it, its container's interface is gone. Then nothing can use it again.
    """
    if len(ifb.name) != _LENGTH or not link.packets_sent(host, ifb.index):
        return
    for device in map(link.parse, listed):
        if device.kind in veth.KINDS:
            filters = tcfilter.show(host, device.index, tc.INGRESS_HANDLE)
            if any(each.redirect == ifb.index for each in filters):
                return
    link.delete(host, ifb.index)
