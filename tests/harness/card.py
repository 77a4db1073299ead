"""A network card with virtual functions: QEMU's igb, in the guest of `tools/debian-lab --card`.

The node is the guest itself, where the card's links are. Functions are made anew for each test, so
none finds what another has set. At the other end of the card's cable is a plain link, `wire`.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .netns import JoinedNetns, Netns
from .wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

Json = dict[str, Any]
ADDRESSES = Path("/run/.lab/card")  # tools/debian-lab writes it
_PCI = Path("/sys/bus/pci")


@dataclass(frozen=True)
class Function:
    """A virtual function: its PCI address, its number on the card, and the name of its link."""

    address: str
    number: int
    name: str


class Card:
    """The card, with functions that have links on the node."""

    def __init__(self, node: Netns, functions: int) -> None:
        self.node = node
        card, wire = ADDRESSES.read_text().split()
        for module in ("igb", "virtio_net"):
            node.exec(["modprobe", module])
        self.directory = _PCI / "devices" / card
        self.name = _link_of(self.directory)
        self.wire = _link_of(next((_PCI / "devices" / wire).glob("virtio*")))
        node.ip_batch(f"link set {self.wire} up promisc on", f"link set {self.name} up")
        self.functions = self._make(functions)

    def _make(self, functions: int) -> list[Function]:
        # Their driver waits for seconds for an answer of the card's driver, which that cannot give
        # while it makes functions. So it gets them afterwards.
        self.node.exec(["modprobe", "igbvf"])
        self.write("sriov_numvfs", 0)
        self.write("sriov_drivers_autoprobe", 0)
        self.write("sriov_numvfs", functions)
        self.write("sriov_drivers_autoprobe", 1)
        carrier = Path("/sys/class/net", self.name, "carrier")
        wait_until(lambda: carrier.read_text() == "1\n", f"carrier of {self.name}")
        made = []
        for number in range(functions):
            directory = (self.directory / f"virtfn{number}").resolve()
            (_PCI / "drivers_probe").write_text(directory.name)
            made.append(Function(directory.name, number, _link_of(directory)))
        return made

    def write(self, attribute: str, value: object) -> None:
        """Write to a file of the card in sysfs."""
        (self.directory / attribute).write_text(str(value))

    def settings(self, function: Function) -> Json:
        """What the card has for a function, as `ip` shows it."""
        return dict(self.node.ip_json("link", "show", self.name)[0]["vfinfo_list"][function.number])

    def change(self, function: Function, *words: str) -> None:
        """Change a setting behind the plugin's back: `change(function, "spoofchk", "off")`."""
        self.node.ip("link", "set", self.name, "vf", str(function.number), *words)

    def links(self) -> Json:
        """The functions' links on the node: by name, what the plugin changes and restores."""
        names = [path.name for path in self.directory.glob("virtfn*/net/*")]
        return {
            link["ifname"]: {
                "address": link["address"],
                "mtu": link["mtu"],
                "altnames": link.get("altnames", []),
                "alias": link.get("ifalias", ""),
            }
            for link in self.node.ip_json("link")
            if link["ifname"] in names
        }

    def state(self) -> Json:
        """All of it, to compare what is after DEL with what was before ADD."""
        settings = [self.settings(function) for function in self.functions]
        return {"links": self.links(), "settings": settings}


@contextmanager
def card_with(functions: int) -> Iterator[Card]:
    """The card with so many functions; afterwards it has none."""
    node = JoinedNetns("/proc/1/ns/net", "node")
    try:
        card = Card(node, functions)
        yield card
        # wherever their links are
        card.write("sriov_numvfs", 0)
    finally:
        node.close()


def give_to_user_space(function: Function) -> None:
    """Bind a function to a driver of user space, as for DPDK; its link ceases to exist."""
    device = _PCI / "devices" / function.address
    driver = "uio_pci_generic"
    with suppress(FileNotFoundError):  # it has no driver
        (device / "driver" / "unbind").write_text(function.address)
    (device / "driver_override").write_text(driver)
    (_PCI / "drivers" / driver / "bind").write_text(function.address)


def _link_of(directory: Path) -> str:
    """The name of a device's link, once it has one."""
    net = directory / "net"
    return wait_until(
        lambda: next((path.name for path in net.glob("*")), ""), f"a link of {directory.name}"
    )
