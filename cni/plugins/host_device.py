"""host-device: moves a device of the host into the container and back (docs/spec/host-device.md).

One request to the kernel moves the device, renames it and notes its old name as its alias: it is
either on the host as it was, or in the container and known. There it has two alternative names: the
owner's key, by which DEL finds it whatever something in the container has called it; and its old
name, by which the host finds it when the kernel gives it back from a namespace that ended.
"""

from __future__ import annotations

import msgspec

from ..call import Call, Steps
from ..kernel import link, sysfs
from ..kernel.errors import DeviceError, LinkNotFound, NetlinkError
from ..kernel.link import Link
from ..kernel.netlink import Netlink
from ..netns import Namespace
from ..protocol import config
from ..protocol.errors import CNIError
from ..protocol.result import Interface, Result
from .shared import checks, sublink

_DEVICE_ID = "runtimeConfig.deviceID"


class Runtime(config.Folded):
    device_id: str = ""


class Conf(config.NetConf):
    device: str = ""
    hwaddr: str = ""
    kernelpath: str = ""
    pci_bus_id: str = ""
    dpdk_mode: bool = False
    runtime_config: Runtime = msgspec.field(default_factory=Runtime)


class Selector:
    """Which device is meant. Raises CNIError."""

    def __init__(self, conf: Conf) -> None:
        self.conf = conf
        self.pci, self.auxiliary = conf.pci_bus_id, ""
        wanted = conf.runtime_config.device_id
        if wanted:
            if sysfs.is_pci(wanted):
                self.pci = wanted
            elif sysfs.is_auxiliary(wanted):
                self.pci, self.auxiliary = "", wanted
            else:
                raise CNIError(
                    f"runtime config DeviceID {wanted} not found or unsupported",
                    "it is neither a PCI nor an auxiliary device of this node",
                )
        if not any((conf.device, conf.hwaddr, conf.kernelpath, self.pci, self.auxiliary)):
            raise CNIError('specify either "device", "hwaddr", "kernelpath" or "pciBusID"')
        try:
            self.mac = link.parse_mac(conf.hwaddr) if conf.hwaddr else b""
        except ValueError as error:
            raise CNIError(f'failed to parse MAC address "{conf.hwaddr}": {error}') from None

    def in_user_space(self) -> bool:
        """Bound to a DPDK driver: then there is no link to move. Raises CNIError."""
        if not self.pci:
            return self.conf.dpdk_mode
        try:
            return sysfs.is_user_space(self.pci)
        except DeviceError as error:
            raise CNIError(str(error)) from None

    def find(self, host: Netlink) -> Link:
        """The link that the strongest selector names, in the reference's order. Raises CNIError.

        The runtime's deviceID may stand beside another selector. But two in the configuration must
        mean the same link: one of them is a mistake, and the link might be the node's own.
        """
        first, *others = self._given()
        device = self._find_by(host, first)
        for key in others:
            if key != _DEVICE_ID and not self._selects(host, key, device):
                raise _contradiction(first, key, f"{first} is the link {device.name}, {key} is not")
        return device

    def require_alone(self) -> None:
        """A device of user space has no link that another selector could mean. Raises CNIError."""
        first, *others = self._given()
        if "pciBusID" in others:
            raise _contradiction(first, "pciBusID", f"{self.pci} is bound to a user space driver")

    def _selects(self, host: Netlink, key: str, device: Link) -> bool:
        if key == "hwaddr":  # which several links may have
            return device.mac == link.format_mac(self.mac)
        try:
            return self._find_by(host, key).index == device.index
        except CNIError:
            return False

    def _given(self) -> list[str]:
        """The selectors that are set, the strongest first."""
        by_id = bool(self.conf.runtime_config.device_id)
        given = {
            "device": self.conf.device,
            "hwaddr": self.mac,
            "kernelpath": self.conf.kernelpath,
            _DEVICE_ID if by_id else "pciBusID": self.pci or self.auxiliary,
        }
        return [key for key, value in given.items() if value]

    def _find_by(self, host: Netlink, key: str) -> Link:
        try:
            if key == "hwaddr":
                return self._by_mac(host)
            return link.get(host, self._name(key))
        except (DeviceError, LinkNotFound) as error:
            raise CNIError(f"failed to find host device: {error}") from None

    def _name(self, key: str) -> str:
        if key == "device":
            return self.conf.device
        if key == "kernelpath":
            return sysfs.link_of_path(self.conf.kernelpath)
        if self.pci:
            return sysfs.link_of_pci(self.pci)
        return sysfs.link_of_auxiliary(self.auxiliary)

    def _by_mac(self, host: Netlink) -> Link:
        wanted = link.format_mac(self.mac)
        for device in link.list_all(host):
            if device.mac == wanted:
                return device
        raise DeviceError("failed to find physical interface")


def _contradiction(first: str, second: str, why: str) -> CNIError:
    return CNIError(
        f'"{first}" and "{second}" select different devices', f"{why}: give one of them"
    )


# --- ADD ------------------------------------------------------------------------------------------


def add(call: Call[Conf]) -> Result:
    """Move the device; the result lists it alone."""
    conf = call.conf
    selector = Selector(conf)
    user_space = selector.in_user_space()
    if user_space:
        selector.require_alone()
    netns = call.open_netns()
    entry = Interface(name=call.ifname, sandbox=call.netns)
    moved = None
    if not user_space:
        with Netlink() as host:
            moved = _move_in(call, host, netns, selector.find(host))
        entry.mac = moved.mac
    result = Result(interfaces=[entry])
    if conf.ipam.type:
        ipam = call.ipam_add(conf.ipam.type)
        result.ips, result.routes, result.dns = ipam.ips, ipam.routes, conf.dns
        for ip in result.ips:
            ip.interface = 0
        if moved is not None:
            sublink.configure(call, netns, moved, result)
    return result


def _move_in(call: Call[Conf], host: Netlink, netns: Namespace, device: Link) -> Link:
    """Move the link into the container, renamed, marked and up."""
    if link.find(netns.netlink(), call.ifname) is not None:
        raise CNIError(
            f"failed to move link {device.name}: file exists",
            f"{call.netns} has an interface {call.ifname}",
        )
    # the kernel gave it back from a namespace that ended: then it has another name, and our mark
    strayed = device.alias and device.alias == call.conf.device
    original = device.alias if strayed else device.name
    call.undo.callback(_put_back, call, device.up)
    try:
        link.change(host, device.index, netns=netns.fd, name=call.ifname, alias=original)
        inner = link.get(netns.netlink(), call.ifname)
        link.add_altname(netns.netlink(), inner.index, call.owner.alias_key)
        link.add_altname(netns.netlink(), inner.index, original)
        link.change(netns.netlink(), inner.index, up=True)
    except (NetlinkError, LinkNotFound) as error:
        raise CNIError(f"failed to move link {device.name}: {error}") from None
    return inner


def _put_back(call: Call[Conf], up: bool) -> None:
    with Namespace.open(call.netns) as netns:
        inner = _find_ours(call, netns)
        if inner is not None and inner.alias:  # else the move itself failed
            _move_out(call, netns, up=up)


# --- DEL ------------------------------------------------------------------------------------------


def delete(call: Call[Conf]) -> None:
    """Release the address, and put the device back, down and under its old name."""
    conf = call.conf
    netns = call.find_netns()
    steps = Steps()
    if conf.ipam.type:
        steps.run(call.delegate, conf.ipam.type)
    if netns is not None and not _in_user_space(conf):
        steps.run(_move_out, call, netns)
    steps.finish()


def _in_user_space(conf: Conf) -> bool:
    """As far as sysfs still tells: the device may be gone."""
    try:
        return Selector(conf).in_user_space()
    except CNIError:
        return False


def _move_out(call: Call[Conf], netns: Namespace, up: bool = False) -> None:
    """Move the device to the host; success when the container does not have it (any more)."""
    inner = _find_ours(call, netns)
    if inner is None:
        return
    original = inner.alias
    if not original:
        raise CNIError(
            f'failed to find original ifname for "{inner.name}" (alias is not set)',
            "it was not moved here by this plugin, or somebody changed its alias",
        )
    with Netlink() as host, Namespace.current() as home:
        if link.find(host, original) is not None:
            raise CNIError(
                f"failed to move link {inner.name} to the host: file exists",
                f"the host has an interface {original} by now: rename it and repeat the DEL",
            )
        sock = netns.netlink()
        try:
            _give_old_name(call, sock, inner)
            link.change(sock, inner.index, netns=home.fd, name=original, alias="")
        except NetlinkError as error:
            _restore(call, netns, inner)
            raise CNIError(f"failed to move link {inner.name} to the host: {error}") from None
        if up:
            link.change(host, link.get(host, original).index, up=True)


def _give_old_name(call: Call[Conf], sock: Netlink, inner: Link) -> None:
    """Rename the device before it moves, so that the host never sees the container's name.

    udev and the like act on the first name they see. Only where something else in the container
    has the old name, the kernel renames the device as it arrives.
    """
    original = inner.alias
    link.remove_altname(sock, inner.index, original)
    link.change(sock, inner.index, up=False)  # what is up cannot be renamed before Linux 6.2
    if link.find(sock, original) is None:
        link.change(sock, inner.index, name=original)
    link.remove_altname(sock, inner.index, call.owner.alias_key)


def _restore(call: Call[Conf], netns: Namespace, inner: Link) -> None:
    """Leave the device in the container as it was, so that DEL can be repeated."""
    sock = netns.netlink()
    if link.find(sock, inner.index) is not None:
        link.change(sock, inner.index, name=inner.name, alias=inner.alias)
        link.change(sock, inner.index, up=inner.up)
        for name in (call.owner.alias_key, inner.alias):
            link.add_altname(sock, inner.index, name)


def _find_ours(call: Call[Conf], netns: Namespace) -> Link | None:
    """The device by its mark, whatever its name is by now, or by its name in the container."""
    sock = netns.netlink()
    marked = link.find_altname(sock, call.owner.alias_key)
    named = None if marked else link.find(sock, call.ifname)
    if marked or (named and named.alias):
        return marked or named
    return _half_way(sock) or named


def _half_way(sock: Netlink) -> Link | None:
    """A device that a DEL had given its old name when it was killed: down, without our mark."""
    for one in link.list_all(sock):
        if one.alias == one.name and not one.up and not one.altnames:
            return one
    return None


# --- the other verbs ------------------------------------------------------------------------------


gc = sublink.gc  # the kernel gives devices back when their namespace ends
status = sublink.status


def check(call: Call[Conf]) -> None:
    """Compare the device with prevResult."""
    conf = call.conf
    user_space = Selector(conf).in_user_space()
    netns = call.open_netns()
    if conf.ipam.type:
        call.delegate(conf.ipam.type)
    previous = checks.previous_result(call)
    if user_space:
        return
    entry = checks.container_interface(call, previous)
    inner = link.find(netns.netlink(), entry.name)
    if inner is None:
        raise CNIError(f"Container Interface name in prevResult: {entry.name} not found")
    problems = []
    if entry.mac and entry.mac != inner.mac:
        problems.append(
            f"Interface {entry.name} Mac {entry.mac} doesn't match container Mac: {inner.mac}"
        )
    checks.compare(call, netns, previous, problems)
