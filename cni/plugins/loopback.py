"""loopback: brings `lo` up inside the container (docs/spec/loopback.md)."""

from __future__ import annotations

from ..call import Call
from ..kernel import address, link
from ..kernel.netlink import Netlink
from ..protocol.address import format_ip, is_loopback
from ..protocol.config import NetConf
from ..protocol.errors import CNIError
from ..protocol.result import Interface, IPConfig, Result

Conf = NetConf

LO = "lo"
_INDEX = 1  # the kernel makes it with the namespace, and never deletes it


def add(call: Call[Conf]) -> Result:
    """Set `lo` up; the result has its first address of each family, or is the prevResult."""
    _ = call.conf
    previous = call.prev_result()
    sock = call.open_netns().netlink()
    index, was_up = link.index_of(sock, LO)
    if not was_up:
        call.undo.callback(link.change, sock, index, up=False)
    link.change(sock, index, up=True)
    ips = _addresses(sock, index)
    if previous is not None:
        return previous
    interface = Interface(name=LO, mac="00:00:00:00:00:00", sandbox=call.netns)
    return Result(interfaces=[interface], ips=ips)


def _addresses(sock: Netlink, index: int) -> list[IPConfig]:
    first: dict[int, IPConfig] = {}  # by family; the kernel lists IPv4 addresses first
    for entry in address.show(sock, index):
        prefix = entry.prefix
        if not is_loopback(prefix.ip):
            text = format_ip(prefix.ip)
            raise CNIError(f'loopback interface found with non-loopback address "{text}"')
        if prefix.family not in first:
            first[prefix.family] = IPConfig(address=str(prefix), interface=0)
    return list(first.values())


def delete(call: Call[Conf]) -> None:
    """Set `lo` down; success if the namespace is gone."""
    namespace = call.find_netns()
    if namespace is not None:
        with namespace.netlink() as sock:
            link.change(sock, _INDEX, up=False)  # by index: the container may change the name


def check(call: Call[Conf]) -> None:
    """Require that `lo` is up."""
    with call.open_netns().netlink() as sock:
        if not link.get(sock, LO).up:
            raise CNIError(
                "loopback interface is down", f"in {call.netns}: run `ip link set lo up` there"
            )
