"""host-device's configuration: which device of the host is meant (docs/spec/host-device.md)."""

from __future__ import annotations

import msgspec

from ...kernel import link, sysfs
from ...kernel.errors import DeviceError, LinkNotFound
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...protocol import config
from ...protocol.errors import CNIError

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
                # in place of pciBusID, as in the reference
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

    @property
    def pci_id(self) -> str:
        """The PCI address of the selected device; "" if another selector outranks it."""
        given = self._given()
        return self.pci if given[0] == _DEVICE_ID or "pciBusID" in given else ""

    def in_user_space(self) -> bool:
        """Is the device bound to a DPDK driver, so that it has no link to move? Raises CNIError."""
        if not self.pci:
            # sysfs tells the driver only by a PCI address
            return self.conf.dpdk_mode
        try:
            return sysfs.is_user_space(self.pci)
        except DeviceError as error:
            raise CNIError(str(error)) from None

    def find(self, host: Netlink) -> Link:
        """The link that the strongest selector names, in the reference's order. Raises CNIError.

        The runtime's deviceID may accompany another selector. But two selectors in the
        configuration must select one link: else one is a mistake, and might hit the node's uplink.
        """
        first, *others = self._given()
        device = self._find_by(host, first)
        for key in others:
            if key != _DEVICE_ID and not self._selects(host, key, device):
                raise _contradiction(first, key, f"{first} is the link {device.name}, {key} is not")
        return device

    def require_alone(self) -> None:
        """Refuse other selectors beside a user-space device, which has no link. Raises CNIError."""
        first, *others = self._given()
        if "pciBusID" in others:
            raise _contradiction(first, "pciBusID", f"{self.pci} is bound to a user space driver")

    def _selects(self, host: Netlink, key: str, device: Link) -> bool:
        if key == "hwaddr":  # several links may have one MAC
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
            raise CNIError(f"failed to find host device: {error}", self._named(key)) from None

    def _named(self, key: str) -> str:
        """The selector as an error text."""
        named = {
            "device": self.conf.device,
            "hwaddr": link.format_mac(self.mac) if self.mac else "",
            "kernelpath": self.conf.kernelpath,
        }
        name = named.get(key) or self.pci or self.auxiliary
        return f'the node has no link for {key} "{name}"; `ip link` shows those that there are'

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
