"""A virtual function: where it is, and its settings on the card (physical function)."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...call import Call
from ...kernel import link, sysfs, vf
from ...kernel.errors import DeviceError, LinkNotFound, NetlinkError
from ...kernel.netlink import Netlink
from ...protocol.errors import CNIError
from ..shared.device_notes import Note
from . import settings


class Function(NamedTuple):
    """A function by its PCI address: `number` of the card's link, whose index is `card`."""

    address: str
    number: int
    card: int
    card_name: str

    def settings(self, host: Netlink) -> vf.Settings:
        """What the card has for it now. Raises CNIError, NetlinkError."""
        now = vf.get(host, self.card, self.number)
        if now is None:
            raise CNIError(
                f"{self.card_name} has no virtual function {self.number}",
                f"{self.address} may just have been removed: see sriov_numvfs of the card",
            )
        return now

    def change(self, host: Netlink, wanted: vf.Settings) -> None:
        """Set what is not None. Raises CNIError, which names the key."""
        for name, value in wanted._asdict().items():
            if value is None:
                continue
            try:
                vf.change(host, self.card, self.number, name, value)
            except NetlinkError as error:
                raise CNIError(
                    f"failed to set {KEYS[name]} of virtual function {self.number} of "
                    f"{self.card_name}: {error}",
                    f"the card's driver has refused {as_text(name, value)}: `dmesg` may say why",
                ) from None


# The keys behind the settings, for errors.
KEYS = {
    "mac": "mac",
    "vlan": "vlan",
    "rates": "min_tx_rate and max_tx_rate",
    "spoofchk": "spoofchk",
    "trust": "trust",
    "link_state": "link_state",
}


def as_text(name: str, value: Any) -> str:
    """A setting's value as people write it in a configuration."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if name == "vlan" and value:
        vlan, priority, protocol = value
        word = next((k for k, v in settings.VLAN_PROTOCOLS.items() if v == protocol), hex(protocol))
        return f"{vlan} (vlanQoS {priority}, vlanProto {word})"
    if name == "rates" and value:
        return f"{value[0]} and {value[1]} Mbit/s"
    if name == "link_state":
        return next((k for k, v in settings.LINK_STATES.items() if v == value), str(value))
    return str(value)


def find(host: Netlink, address: str) -> Function:
    """The function of a PCI address, whose card has a link on the host. Raises CNIError."""
    try:
        card, number = sysfs.physical_function(address)
        name = sysfs.link_of_pci(card)
        return Function(address, number, link.get(host, name).index, name)
    except (DeviceError, LinkNotFound) as error:
        raise CNIError(
            f"failed to find virtual function {address}: {error}",
            "deviceID is the PCI address of a virtual function, whose card has a link on the node: "
            f"see /sys/bus/pci/devices/{address}/physfn/net",
        ) from None


def restore(call: Call[Any], host: Netlink, note: Note) -> None:
    """Give the function the settings that the card had for it before ADD.

    What the driver refuses, and a function or card that is gone, are only logged: a DEL that fails
    for ever would help nobody.
    """
    try:
        function = find(host, note.function)
        now = function.settings(host)
    except (CNIError, NetlinkError) as error:
        call.log(f"{call.plugin}: cannot restore settings of {note.function}: {error}")
        return
    before = noted(note)
    for name, value in before.differences(now)._asdict().items():
        if value is not None:
            try:
                vf.change(host, function.card, function.number, name, value)
            except NetlinkError as error:
                call.log(f"{call.plugin}: cannot restore {name} of {note.function}: {error}")


def set_own_mac(host: Netlink, note: Note, index: int, mac: bytes) -> None:
    """Set the MAC of the function's own link, whose index is `index`. Raises NetlinkError.

    igb refuses each MAC of a function that it does not trust and whose MAC it has set itself, even
    if it is the same (igb_set_vf_mac_addr). Then the card trusts the function for that moment.
    """
    try:
        link.change(host, index, mac=mac)
    except NetlinkError as refused:
        try:
            function = find(host, note.function)
            trusted = function.settings(host).trust
        except CNIError:
            raise refused from None
        if trusted is not False:
            raise
        vf.change(host, function.card, function.number, "trust", True)
        try:
            link.change(host, index, mac=mac)
        finally:
            vf.change(host, function.card, function.number, "trust", False)


def noted(note: Note) -> vf.Settings:
    """The settings in a note, where JSON has lists for tuples."""
    before: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in note.before.items()
    }
    return vf.Settings(**before)


def note_settings(note: Note, function: Function, now: vf.Settings) -> None:
    """Put the function and its present settings into a note."""
    note.function = function.address
    note.before = {key: value for key, value in now._asdict().items() if value is not None}
