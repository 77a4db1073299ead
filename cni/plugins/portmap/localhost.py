"""Sysctls, routes and guards with which the node reaches published ports at 127.0.0.1 and ::1.

The rules send such packets to the container and masquerade them. The kernel lets packets from
127.0.0.1 leave, and the answers in, if the link has `route_localnet`. That alone would let the
containers on the link reach everything that listens on the node's 127.0.0.1. So there are guards,
from before the sysctl is set until after it is put back:

- The packet filter drops packets to 127.0.0.0/8 before any translation (nft_chains.py). Flushing
  the ruleset removes this guard.
- IPsec policies (kernel/xfrm.py) block packets to 127.0.0.0/8 after all translation, where only a
  genuine answer has the source 127.0.0.1. They are limited to the containers' subnets: others may
  translate their own traffic to 127.0.0.1. The kernel applies no policy to packets on `lo`.

The owners that need the sysctl of a link, or the policy of a subnet, are noted in files; the last
owner's DEL restores both:

    <state>/localhost/link/<ifindex>@<node's namespace>/<owner's key>
    <state>/localhost/subnet/<address>-<length>/<owner's key>
    <state>/localhost/of/<owner's key>   a symbolic link whose target is the first two, with a blank

IPv6: packets from ::1 may leave. The kernel translates the answer's destination back to ::1, and
then needs a route to ::1 on the link on which the answer came in. Nobody else can use that route,
since packets that arrive with ::1 are dropped before any rule. The route stays until the link goes.
(With br_netfilter, answers through a bridge are dropped, too: they are translated too early.)
"""

from __future__ import annotations

import os
from _socket import AF_INET6, if_indextoname
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EEXIST, ENODEV, ENOENT, ENOTEMPTY, ENXIO
from typing import TYPE_CHECKING, Any

from ... import intent, lockfile
from ...call import Call
from ...kernel import route, sysctl
from ...kernel.errors import TRANSIENT, KernelError, NetlinkError
from ...kernel.netlink import Netlink
from ...owner import Owner, network_key
from ...protocol.address import Prefix, format_ip
from ...protocol.errors import CNIError

if TYPE_CHECKING:
    from ...kernel import xfrm

_LOOPBACK6 = Prefix.parse("::1/128")
_METRIC = 4096  # lo's own route to ::1 has metric 0, and is preferred
_LOOPBACK4 = Prefix.parse("127.0.0.0/8")
_FILTER_TABLE = ("ip", "cni_localhost")  # for the iptables backend, which has no table of its own


def enable(call: Call[Any], owner: Owner, address: Prefix, *, filtered: bool) -> None:
    """Make a container with this address reachable: the guards first, then the sysctl or route.

    `filtered`: the packet filter's guard exists already. Raises CNIError.
    """
    with Netlink() as host:
        index = _link_to(host, address)
        if not index:
            return None  # no route to the container, so no packets
        if not address.is_v4:
            return _add_route(host, index, call.log)
    try:
        with _locked(_state(call)):
            # in this order: a kill leaves nothing that is not noted, and
            # never the sysctl without a guard
            _note(_state(call), owner.key, index, address)
            if _guard(address, filtered=filtered):
                name = _route_localnet(index)
                if sysctl.read(name) != "1":
                    sysctl.write(name, "1")
                return None
    except OSError as error:
        raise CNIError(
            f"unable to enable route_localnet: {(error.strerror or str(error)).lower()}",
            f"{_route_localnet(index)}; without localhost: snat=false",
        ) from None
    call.log(
        "cni: portmap: ports are not published on 127.0.0.1: this kernel has neither nf_tables nor "
        "IPsec policies, so nothing could keep containers from what listens there"
    )
    return None


def release(call: Call[Any], keys: list[str] | None = None) -> None:
    """Undo what only these owners needed (default: the request's owner). Raises OSError."""
    state = _state(call)
    present = [key for key in keys or [call.owner.key] if _target(state, key)]
    if not present:
        return
    with _locked(state):
        for key in present:
            _leave(state, key)


def gc(call: Call[Any], keep: list[Owner]) -> None:
    """`release` for the network's owners that are not in `keep`."""
    kept, start = {owner.key for owner in keep}, f"{network_key(call.network)}-"
    try:
        keys = os.listdir(f"{_state(call)}/of")
    except FileNotFoundError:
        return
    stale = [key for key in keys if key.startswith(start) and key not in kept]
    if stale:
        release(call, stale)


def missing(address: Prefix) -> list[str]:
    """The problems that CHECK reports."""
    with Netlink() as host:
        try:
            index = _link_to(host, address)
            if not index:
                return []
            if not address.is_v4:
                routes = route.show(host, AF_INET6, index, route.TABLE_LOCAL, route.LOCAL)
                there = any(entry.dst == _LOOPBACK6 for entry in routes)
                name = if_indextoname(index)
                return [] if there else [f"no local route to ::1 on {name}: run `cni reload`"]
            key = _route_localnet(index)
            value = sysctl.read(key)
        except (OSError, KernelError):
            return []
    return [] if value == "1" else [f"{key}: want 1, have {value}: run `cni reload`"]


def _link_to(host: Netlink, address: Prefix) -> int:
    """The index of the link that leads to the container; 0 if there is none.

    0 also for a route via a gateway: while a bridge is down, that is the default route, and the
    uplink must not be changed.
    """
    try:
        way = route.lookup(host, address.ip)
    except KernelError:
        return 0
    return way.link if way.is_direct else 0


def _add_route(host: Netlink, index: int, log: Callable[[str], None]) -> None:
    there = route.Route(
        _LOOPBACK6, index, priority=_METRIC, table=route.TABLE_LOCAL, scope=route.SCOPE_HOST
    )
    try:
        route.add(host, there, kind=route.LOCAL, exist_ok=True)
    except NetlinkError as error:
        log(
            "cni: portmap: ports are not published on ::1: no local route to it on link "
            f"{index}: {error}"
        )


def _route_localnet(index: int) -> str:
    return f"net/ipv4/conf/{if_indextoname(index)}/route_localnet"


# --- the guards -----------------------------------------------------------------------------------


def _guard(address: Prefix, *, filtered: bool) -> bool:
    """Make the guards; False if this kernel can have none."""
    from ...kernel import xfrm

    try:
        with xfrm.open_socket() as sock:
            for policy in _policies(address.network if address.length else address.host):
                policy.have(sock)
        guarded = True
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        guarded = False  # no IPsec in this kernel
    return filtered or _filter() or guarded


def _policies(subnet: Prefix) -> list[xfrm.Policy]:
    """The policies for a subnet: one lets answers (from 127.0.0.1) through, the last one blocks."""
    from ...kernel import xfrm

    return [
        xfrm.Policy(_LOOPBACK4, _LOOPBACK4, block=False, priority=1),
        xfrm.Policy(subnet, _LOOPBACK4, block=True, priority=2),
    ]


def _filter() -> bool:
    """Make the packet filter's guard in a table of its own; False without nf_tables."""
    from ...netfilter import nft
    from ...netfilter.table import Table

    table = Table(*_FILTER_TABLE)
    try:
        if not table.rule_counts():
            from .nft_chains import guard

            nft.transact(guard(table))
    except OSError:
        return False
    return True


# --- which owner needs what -----------------------------------------------------------------------


def _state(call: Call[Any]) -> str:
    return f"{os.path.dirname(intent.directory(call.request.env))}/localhost"


@contextmanager
def _locked(state: str) -> Iterator[None]:
    os.makedirs(state, 0o755, exist_ok=True)
    fd = lockfile.take(f"{state}/lock")
    try:
        yield
    finally:
        lockfile.release(fd)


def _note(state: str, key: str, index: int, address: Prefix) -> None:
    """Note that this owner needs the link's sysctl and the guards, before they are changed.

    A sysctl or policy that others had set before stays in the end.
    """
    subnet = address.network if address.length else address.host
    target = f"{index}@{_own_namespace()} {format_ip(subnet.ip)}-{subnet.length}"
    if _target(state, key) not in ("", target):
        _leave(state, key)  # that of an earlier ADD of this owner, on another link
    link, named = target.split()
    if sysctl.read(_route_localnet(index)) == "1" and not os.path.isdir(f"{state}/link/{link}"):
        return
    os.makedirs(f"{state}/of", 0o755, exist_ok=True)
    try:
        os.symlink(target, f"{state}/of/{key}")
    except FileExistsError:
        pass
    for thing in (f"link/{link}", f"subnet/{named}"):
        os.makedirs(f"{state}/{thing}", 0o755, exist_ok=True)
        os.close(os.open(f"{state}/{thing}/{key}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))


def _own_namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def _leave(state: str, key: str) -> None:
    """Remove an owner; after the last one of a link or subnet, undo what was done for it."""
    link, _, named = _target(state, key).partition(" ")
    index, _, namespace = link.partition("@")
    here = namespace == str(_own_namespace())
    if named and _is_last(f"{state}/link/{link}", key) and here:
        _reset(int(index))
    if named and _is_last(f"{state}/subnet/{named}", key) and here:
        _remove_policy(Prefix.parse(named.replace("-", "/")))
    if named and _is_last(f"{state}/link", "") and here:
        _remove_filter()
    os.unlink(f"{state}/of/{key}")  # last: after a kill the next DEL finds everything by it


def _reset(index: int) -> None:
    try:
        sysctl.write(_route_localnet(index), "0")
    except OSError as error:
        if error.errno not in (ENOENT, ENXIO, ENODEV):  # the link is gone
            raise


def _target(state: str, key: str) -> str:
    """The owner's needs, as _note() wrote them; "" if it has none. Raises OSError."""
    try:
        return os.readlink(f"{state}/of/{key}")
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        return ""


def _is_last(directory: str, key: str) -> bool:
    """Remove the owner from a directory; True if no owner is left in it."""
    try:
        if key:
            os.unlink(f"{directory}/{key}")
    except FileNotFoundError:
        pass
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True  # an earlier attempt was killed here
    except OSError as error:
        if error.errno in (ENOTEMPTY, EEXIST):
            return False
        raise
    return True


def _remove_policy(subnet: Prefix) -> None:
    """Remove the subnet's blocking policy; does nothing without IPsec. Raises OSError."""
    try:
        from ...kernel import xfrm

        with xfrm.open_socket() as sock:
            _policies(subnet)[-1].delete(sock)  # the first one only allows what passes anyway
    except OSError as error:
        if error.errno in TRANSIENT:
            raise


def _remove_filter() -> None:
    from ...netfilter import nft
    from ...netfilter.table import Table

    table = Table(*_FILTER_TABLE)
    if not table.exists():  # the usual case; a transaction that fails waits 13 ms for RCU
        return
    try:
        nft.transact([table.without_table()])
    except OSError as error:
        if error.errno != ENOENT and table.exists():
            raise
