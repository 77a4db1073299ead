"""sriov: every setting of a virtual function, on a card that the kernel simulates (netdevsim).

netdevsim keeps all settings that Linux knows of a function, and is no hardware: a veth end plays
the function's link, and directories play its place in sysfs. Packets: tests/lab/test_sriov.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Netns, Runtime, link, links, requires_kernel
from tests.harness.sysfs import Sysfs
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires_kernel("netdevsim", "veth")

Json = dict[str, Any]

BUS = Path("/sys/bus/netdevsim")
FUNCTIONS = 2
CARD, FUNCTION = "0000:3b:00.0", "0000:3b:10.{}"
MAC = "02:00:00:00:00:01"

# Keys; what `ip` shows with them; what an administrator has set before; how `ip` sets that.
SETTINGS: dict[str, tuple[Json, Json, tuple[str, ...], Json]] = {
    "mac": (
        {"mac": MAC},
        {"address": MAC},
        ("mac", "02:00:00:00:00:09"),
        {"address": "02:00:00:00:00:09"},
    ),
    "vlan": (
        {"vlan": 100, "vlanQoS": 3},
        {"vlan_list": [{"vlan": 100, "qos": 3}]},
        ("vlan", "7", "qos", "1"),
        {"vlan_list": [{"vlan": 7, "qos": 1}]},
    ),
    "vlanProto": (
        {"vlan": 100, "vlanProto": "802.1ad"},
        {"vlan_list": [{"vlan": 100, "protocol": "802.1ad"}]},
        ("vlan", "7", "proto", "802.1ad"),
        {"vlan_list": [{"vlan": 7, "protocol": "802.1ad"}]},
    ),
    "rates": (
        {"min_tx_rate": 100, "max_tx_rate": 500},
        {"rate": {"min_tx": 100, "max_tx": 500}},
        ("min_tx_rate", "10", "max_tx_rate", "20"),
        {"rate": {"min_tx": 10, "max_tx": 20}},
    ),
    "spoofchk": (
        {"spoofchk": "on"},
        {"spoofchk": True},
        ("spoofchk", "off"),
        {"spoofchk": False},
    ),
    "trust": ({"trust": "on"}, {"trust": True}, ("trust", "off"), {"trust": False}),
    "link_state": (
        {"link_state": "enable"},
        {"link_state": "enable"},
        ("state", "disable"),
        {"link_state": "disable"},
    ),
}


class Card:
    """A simulated card of the node, whose functions' links are `vf0` and `vf1`."""

    def __init__(self, runtime: Runtime, directory: Path) -> None:
        self.host = runtime.host
        self.sysfs = Sysfs(runtime, directory)
        self.number = os.getpid()  # the kernel has one list for all namespaces
        before = set(links(self.host))
        self.write("new_device", f"{self.number} 1")
        wait_until(lambda: set(links(self.host)) - before, "the card's link")
        [self.name] = set(links(self.host)) - before
        self.write(f"devices/netdevsim{self.number}/sriov_numvfs", str(FUNCTIONS))
        self.host.ip_batch(
            *(f"link add vf{n} type veth peer name far{n}" for n in range(FUNCTIONS))
        )
        self._place()

    def write(self, file: str, text: str) -> None:
        """As somebody in the node's namespace, where the kernel then puts the link."""
        self.host.run((BUS / file).write_text, text)

    def _place(self) -> None:
        card = self.sysfs.pci / CARD
        (card / "net" / self.name).mkdir(parents=True)
        for number in range(FUNCTIONS):
            function = self.sysfs.pci / FUNCTION.format(number)
            (function / "net" / f"vf{number}").mkdir(parents=True)
            (function / "physfn").symlink_to(f"../{CARD}")
            (function / "driver").symlink_to("../../../bus/pci/drivers/iavf")
            (card / f"virtfn{number}").symlink_to(f"../{function.name}")

    def close(self) -> None:
        self.write("del_device", str(self.number))

    def settings(self, number: int = 0) -> Json:
        return dict(self.host.ip_json("link", "show", self.name)[0]["vfinfo_list"][number])

    def change(self, *words: str) -> None:
        self.host.ip("link", "set", self.name, "vf", "0", *words)


@pytest.fixture
def card(runtime: Runtime, tmp_path: Path) -> Iterator[Card]:
    made = Card(runtime, tmp_path / "sys")
    yield made
    made.close()


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "deviceID": FUNCTION.format(0), **keys}


@pytest.mark.parametrize("name", SETTINGS)
def test_set_checked_and_restored(card: Card, container: Netns, name: str) -> None:
    """CHECK sees that another has changed it; DEL restores what the administrator had set."""
    keys, shown, admins, before = SETTINGS[name]
    card.change(*admins)
    noted, other = card.settings(), card.settings(1)
    assert before.items() <= noted.items()
    conf = network(**keys)
    result = card.sysfs.call("ADD", "sriov", conf, container).result
    now = card.settings()
    assert shown.items() <= now.items()
    assert _but(now, shown) == _but(noted, shown)
    assert card.settings(1) == other
    assert link(container, "eth0")["address"] == result["interfaces"][0]["mac"]
    card.sysfs.call("CHECK", "sriov", conf, container, prev_result=result).succeeded()
    card.sysfs.call("DEL", "sriov", conf, container).succeeded()
    assert card.settings() == noted

    result = card.sysfs.call("ADD", "sriov", conf, container).result
    card.change(*admins)
    wrong = card.sysfs.call("CHECK", "sriov", conf, container, prev_result=result).failed()
    key = {"vlanProto": "vlan", "rates": "min_tx_rate and max_tx_rate"}.get(name, name)
    assert wrong["msg"].startswith(f"{key} of virtual function 0 of {card.name} is ")
    card.sysfs.call("DEL", "sriov", conf, container).succeeded()
    assert card.settings() == noted
    assert list(links(container)) == ["lo"]
    assert "vf0" in links(card.host)


def _but(settings: Json, shown: Json) -> Json:
    """Without what the keys change; `tx_rate` is an older name of the highest rate."""
    return {key: value for key, value in settings.items() if key not in {*shown, "tx_rate"}}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vlan": 4095}, "invalid vlan 4095, must be [0, 4094]"),
        ({"vlan": 1, "vlanQoS": 8}, "invalid vlanQoS 8, must be [0, 7]"),
        ({"vlanQoS": 1}, "vlanQoS needs a vlan"),
        ({"vlan": 1, "vlanProto": "802.1x"}, 'invalid vlanProto "802.1x"'),
        ({"min_tx_rate": 2, "max_tx_rate": 1}, "min_tx_rate 2 is larger than max_tx_rate 1"),
        ({"spoofchk": "yes"}, 'invalid spoofchk "yes"'),
        ({"trust": "yes"}, 'invalid trust "yes"'),
        ({"link_state": "up"}, 'invalid link_state "up"'),
        ({"mac": "02:00"}, "invalid args 02:00 for MAC addr"),
        ({"deviceID": CARD}, f"{CARD} is not a virtual function"),
        ({"deviceID": ""}, "deviceID is required"),
    ],
)
def test_refused_before_anything_changes(
    card: Card, container: Netns, keys: Json, message: str
) -> None:
    before = card.settings(), links(card.host)
    card.sysfs.call("ADD", "sriov", network(**keys), container).failed(None, message)
    assert (card.settings(), links(card.host)) == before
    assert list(links(container)) == ["lo"]


def test_the_card_has_fewer_functions_by_now(card: Card, container: Netns) -> None:
    """sysfs names a function that the card has no longer: ADD refuses, DEL ends all the same."""
    conf = network(vlan=100)
    card.sysfs.call("ADD", "sriov", conf, container).succeeded()
    card.write(f"devices/netdevsim{card.number}/sriov_numvfs", "0")
    card.sysfs.call("DEL", "sriov", conf, container).succeeded()
    assert "vf0" in links(card.host)
    refused = card.sysfs.call("ADD", "sriov", conf, container).failed()
    assert refused["msg"] == f"{card.name} has no virtual function 0"
    assert list(links(container)) == ["lo"]


def test_what_a_kill_left_of_the_note_goes(card: Card, container: Netns, tmp_path: Path) -> None:
    """The note is written beside its place first: DEL removes that, too, without a note."""
    state = tmp_path / "state"
    conf, variables = network(vlan=100), {"CNI_STATE_DIR": str(state)}
    card.sysfs.call("ADD", "sriov", conf, container, env=variables).succeeded()
    [note] = (state / "devices").iterdir()
    card.sysfs.call("DEL", "sriov", conf, container, env=variables).succeeded()
    unfinished = note.with_name(f"{note.name}~")
    unfinished.touch()
    card.sysfs.call("DEL", "sriov", conf, container, env=variables).succeeded()
    assert not unfinished.exists()
