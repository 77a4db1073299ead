"""macvtap: a macvlan whose packets a virtual machine reads and writes, by /dev/tap<index>
(docs/spec/macvtap.md).

The kernel names the device by the interface's index, which counts anew in each namespace, while the
node has one /dev. So the index is a hash of the owner, and two containers never share a device.
"""

from __future__ import annotations

import os
import stat
from errno import ENOENT
from typing import Any

import msgspec

from ...call import Call
from ...kernel import link
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError
from ...protocol.result import Interface, Result
from ..shared import checks, configure, sublink

_KIND = "macvtap"


class Mac(sublink.Runtime):
    mac: str = ""


class Conf(sublink.Conf):
    mode: str = ""
    mac: str = ""
    owner: int | None = None
    group: int | None = None
    runtime_config: Mac = msgspec.field(default_factory=Mac)


def add(call: Call[Conf]) -> Result:
    """Make the interface; the result lists it alone."""
    conf = call.conf
    mode = _mode(conf)
    mac = sublink.mac(call)
    for name, value in (("owner", conf.owner), ("group", conf.group)):
        if value is not None:
            sublink.check_unsigned(name, value)
    master_name = sublink.configured_master(conf)
    previous = None if master_name else call.prev_result()
    name = master_name or sublink.chained_master(call, previous)
    netns = call.open_netns()

    def make(sock: Netlink, master: Link) -> None:
        sublink.check_mtu(conf.mtu, master)
        link.create_macvlan(
            sock,
            call.ifname,
            master.index,
            mode=mode,
            mtu=conf.mtu,
            mac=mac,
            netns=netns.fd,
            kind=_KIND,
            index=call.owner.number,
        )

    made, entry, _ = sublink.create_on_master(call, netns, _KIND, name, make)
    _give(device_of(made), conf)
    result = Result(interfaces=[entry], dns=conf.dns)
    if conf.ipam.type or (name and previous is not None and previous.ips):
        ipam = sublink.addresses(call, previous, lambda: call.ipam_add(conf.ipam.type))
        result.ips, result.routes = ipam.ips, ipam.routes
        sublink.configure(call, netns, made, result, configure.announce_settings(call.ifname))
    else:
        configure.set_up(call, netns, made.index)
    return result


def _mode(conf: Conf) -> int:
    try:
        return link.MACVLAN_MODES[conf.mode or "bridge"]
    except KeyError:
        raise CNIError(
            f'unknown macvtap mode: "{conf.mode}"',
            f"mode is one of {', '.join(link.MACVLAN_MODES)}",
        ) from None


def device_of(made: Link) -> str:
    """The path of the interface's device on the node."""
    return f"/dev/tap{made.index}"


def _give(path: str, conf: Conf) -> None:
    """Let `owner` and `group` open the device. Raises CNIError."""
    if conf.owner is None and conf.group is None:
        return
    try:
        # -1 leaves the one that is there
        os.chown(
            path, -1 if conf.owner is None else conf.owner, -1 if conf.group is None else conf.group
        )
        if conf.group is not None:
            # devtmpfs has made it for its owner alone
            os.chmod(path, 0o660)
    except OSError as error:
        details = "is /dev the node's (devtmpfs)? there the kernel has made it"
        if error.errno != ENOENT:
            details = "`owner` and `group` are of the device"
        raise CNIError(
            f"cannot give away {path}: {(error.strerror or '').lower()}", details
        ) from None


def delete(call: Call[Any]) -> None:
    """Delete the interface, with its device, then release the address; every step runs."""
    sublink.delete(call, _KIND)


gc = sublink.gc
status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare interface and device with prevResult and configuration."""
    mode = _mode(call.conf)
    sublink.check(call, _KIND, lambda device, entry: _differences(call.conf, mode, device, entry))


def _differences(conf: Conf, mode: int, device: Link, entry: Interface) -> list[str]:
    problems = checks.mac_differs(entry, device)
    if device.mode != mode:
        names = {number: name for name, number in link.MACVLAN_MODES.items()}
        problems.append(
            f"{entry.name} has mode {names.get(device.mode, device.mode)}, not {names[mode]}"
        )
    return problems + _device_differs(conf, device_of(device))


def _device_differs(conf: Conf, path: str) -> list[str]:
    """Differences of the device: missing, or of another owner or group than configured (root)."""
    if conf.owner is None and conf.group is None:
        return []
    try:
        status = os.stat(path)
    except OSError as error:
        return [f"{path}: {(error.strerror or '').lower()}"]
    if not stat.S_ISCHR(status.st_mode):
        return [f"{path} is no device"]
    return [
        f"{path} is of {what} {have}, not {want}"
        for what, want, have in (
            ("owner", conf.owner, status.st_uid),
            ("group", conf.group, status.st_gid),
        )
        if want is not None and want != have
    ]
