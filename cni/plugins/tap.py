"""tap: a persistent TAP device in the container, for virtual machines (docs/spec/tap.md)."""

from __future__ import annotations

from errno import EEXIST

import msgspec

from ..call import Call
from ..kernel import link, tun
from ..kernel.errors import NetlinkError
from ..netns import Namespace
from ..protocol import config
from ..protocol.errors import CNIError
from ..protocol.result import Interface, Result
from .shared import checks, configure, sublink


class Mac(config.Folded):
    mac: str = ""


class Conf(config.NetConf):
    mac: str = ""
    mtu: config.Mtu = config.Mtu(0)
    multi_queue: bool = False
    owner: int | None = None
    group: int | None = None
    selinux_context: str = ""
    bridge: str = ""
    runtime_config: Mac = msgspec.field(default_factory=Mac)


def add(call: Call[Conf]) -> Result:
    """Make the device, a port of `bridge` if that is given; the result lists it alone."""
    conf = call.conf
    mac = sublink.mac(call)
    _check_numbers(conf)
    mtu = _mtu(conf.mtu)
    netns = call.open_netns()
    master = _bridge(netns, conf.bridge)
    made, entry = sublink.create(call, netns, "tap", lambda: _create(call, netns), kind="tun")
    sock = netns.netlink()
    try:
        link.change(sock, made.index, mac=mac or None, mtu=mtu or None)
    except NetlinkError as error:
        raise CNIError(f"failed to create tap: {error}", "see `mac` and `mtu`") from None
    if master:
        try:
            link.change(sock, made.index, master=master)
        except NetlinkError as error:
            raise CNIError(
                f"failed to set tap {call.ifname} as a port of bridge {conf.bridge}: {error}"
            ) from None
    try:
        link.change(sock, made.index, up=True)
    except NetlinkError as error:
        raise CNIError(f"failed to set tap interface up: {error}") from None
    entry.mac = link.get(sock, made.index).mac
    return _configured(call, netns, entry, made)


def _configured(call: Call[Conf], netns: Namespace, entry: Interface, made: link.Link) -> Result:
    conf = call.conf
    result = Result(interfaces=[entry], dns=conf.dns)
    if conf.ipam.type:
        ipam = call.ipam_add(conf.ipam.type)
        result.ips, result.routes = ipam.ips, ipam.routes
        result.dns = configure.dns(conf.dns, ipam.dns)
        settings = [(f"net/ipv4/conf/{call.ifname}/arp_notify", "1")]
        # No program has opened the device yet, so duplicate address detection could get no answer.
        sublink.configure(call, netns, made, result, settings, nodad=True)
    return result


def _create(call: Call[Conf], netns: Namespace) -> None:
    conf = call.conf
    if link.find(netns.netlink(), call.ifname) is not None:
        raise NetlinkError(EEXIST)  # /dev/net/tun would open the existing device
    try:
        # in the executor: /dev/net/tun makes the device in the
        # namespace of the process that opens it
        common = (call.ifname, conf.multi_queue, conf.owner, conf.group)
        if conf.selinux_context:
            netns.run(tun.create_labelled_tap, *common, conf.selinux_context)
        else:
            netns.run(tun.create_tap, *common)
    except OSError as error:
        what = "failed set socket label" if conf.selinux_context else "failed to create tap"
        raise CNIError(
            f"{what}: {(error.strerror or str(error)).lower()}", "is /dev/net/tun available?"
        ) from None


def _check_numbers(conf: Conf) -> None:
    for name, value in (("mtu", conf.mtu), ("owner", conf.owner), ("group", conf.group)):
        if value is not None:
            sublink.check_unsigned(name, value)


def _mtu(wanted: config.Mtu) -> int:
    if wanted is not config.AUTO:
        return wanted
    from .shared import uplink  # few configurations have "auto"

    return uplink.mtu()


def _bridge(netns: Namespace, name: str) -> int:
    """The index of the bridge in the container; 0 when none is named."""
    if not name:
        return 0
    bridge = link.find(netns.netlink(), name)
    if bridge is None:
        raise CNIError(
            f"failed to get bridge {name}: Link not found", "it has to exist in the container"
        )
    return bridge.index


def delete(call: Call[Conf]) -> None:
    """Delete the device, then release the address; every step runs."""
    sublink.delete(call, "tun")


gc = sublink.gc
status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare addresses and routes with prevResult."""
    sublink.mac(call)
    netns = call.open_netns()
    if call.conf.ipam.type:
        call.delegate(call.conf.ipam.type)
    previous = checks.previous_result(call)
    checks.container_interface(call, previous)
    problems: list[str] = []
    if call.conf.mtu is config.AUTO:
        from .shared import uplink

        problems = uplink.too_large(netns, call.ifname)
    checks.compare(call, netns, previous, problems)
