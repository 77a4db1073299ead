"""sriov: its settings from a configuration, functions in sysfs, notes, and the kernel's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from cni.kernel import sysfs, vf
from cni.kernel.errors import DeviceError
from cni.plugins.shared.device_notes import Note
from cni.plugins.sriov import function, settings
from cni.plugins.sriov.settings import Conf
from cni.protocol import config
from cni.protocol.errors import CNIError

if TYPE_CHECKING:
    from pathlib import Path

CARD, ADDRESS = "0000:3b:00.0", "0000:3b:10.2"
MAC = "02:00:00:00:00:01"
NONE = vf.Settings()


def wanted(**keys: Any) -> vf.Settings:
    conf = config.fold_keys({"name": "net", "type": "sriov", **keys}, {})
    return settings.wanted(msgspec.convert(conf, Conf), "")


# -- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {}),
        ({"vlan": 0}, {"vlan": (0, 0, 0x8100)}),
        ({"vlan": 4094}, {"vlan": (4094, 0, 0x8100)}),
        ({"vlan": 5, "vlanQoS": 7}, {"vlan": (5, 7, 0x8100)}),
        ({"vlan": 5, "vlanProto": "802.1ad"}, {"vlan": (5, 0, 0x88A8)}),
        ({"vlan": 5, "vlanProto": "802.1AD"}, {"vlan": (5, 0, 0x88A8)}),
        ({"vlan": 5, "vlanProto": "802.1q"}, {"vlan": (5, 0, 0x8100)}),
        ({"vlan": 0, "vlanQoS": 0}, {"vlan": (0, 0, 0x8100)}),
        ({"max_tx_rate": 100}, {"rates": (0, 100)}),
        ({"min_tx_rate": 100}, {"rates": (100, 0)}),
        ({"min_tx_rate": 100, "max_tx_rate": 100}, {"rates": (100, 100)}),
        ({"max_tx_rate": 0}, {"rates": (0, 0)}),
        ({"spoofchk": "on", "trust": "off"}, {"spoofchk": True, "trust": False}),
        ({"spoofchk": "off", "trust": "on"}, {"spoofchk": False, "trust": True}),
        ({"link_state": "auto"}, {"link_state": 0}),
        ({"link_state": "enable"}, {"link_state": 1}),
        ({"link_state": "disable"}, {"link_state": 2}),
    ],
)
def test_what_is_wanted(keys: dict[str, Any], expected: dict[str, Any]) -> None:
    """What the configuration does not name is None, and stays as the card has it."""
    assert wanted(**keys) == NONE._replace(**expected)


def test_the_mac_is_the_callers() -> None:
    """sublink.mac has chosen among its sources."""
    assert settings.wanted(Conf(name="net", type="sriov"), MAC) == NONE._replace(mac=MAC)


RANGES = {
    "vlan": 4094,
    "vlanQoS": 7,
    "min_tx_rate": (1 << 31) - 1,
    "max_tx_rate": (1 << 31) - 1,
}


@pytest.mark.parametrize("key", RANGES)
def test_out_of_range(key: str) -> None:
    most = RANGES[key]
    other = {} if key == "vlan" else {"vlan": 5}
    wanted(**{**other, key: most})
    for value in (-1, most + 1, 1 << 40):
        with pytest.raises(CNIError, match=rf"^invalid {key} {value}, must be \[0, {most}\]$"):
            wanted(**{**other, key: value})


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"vlan": 5, "vlanProto": "802.1x"}, 'invalid vlanProto "802.1x"'),
        ({"spoofchk": "yes"}, 'invalid spoofchk "yes"'),
        ({"spoofchk": "On"}, 'invalid spoofchk "On"'),
        ({"trust": "true"}, 'invalid trust "true"'),
        ({"link_state": "up"}, 'invalid link_state "up"'),
        ({"vlanQoS": 1}, "vlanQoS needs a vlan"),
        ({"vlan": 0, "vlanQoS": 1}, "vlanQoS needs a vlan"),
        ({"vlanProto": "802.1ad"}, "vlanProto needs a vlan"),
        ({"vlan": 0, "vlanProto": "802.1q"}, "vlanProto needs a vlan"),
        (
            {"min_tx_rate": 2, "max_tx_rate": 1},
            "min_tx_rate 2 is larger than max_tx_rate 1",
        ),
    ],
)
def test_bad_input_is_named(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(CNIError) as caught:
        wanted(**keys)
    assert caught.value.msg == text
    assert caught.value.details


# -- what differs, and the note -------------------------------------------------------------------

known = st.builds(
    vf.Settings,
    mac=st.just(MAC),
    vlan=st.tuples(st.integers(0, 4094), st.integers(0, 7), st.sampled_from([0x8100, 0x88A8])),
    rates=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    spoofchk=st.booleans() | st.none(),
    trust=st.booleans() | st.none(),
    link_state=st.integers(0, 2) | st.none(),
)


@given(known, known)
def test_restoring_needs_only_the_differences(before: vf.Settings, now: vf.Settings) -> None:
    todo = before.differences(now)
    after = now._asdict() | {
        key: value for key, value in todo._asdict().items() if value is not None
    }
    for key, value in before._asdict().items():
        if value is not None and getattr(now, key) is not None:
            assert after[key] == value
    assert before.differences(before) == NONE


@given(known)
def test_the_note_keeps_the_settings(now: vf.Settings) -> None:
    note = Note("", 7, "")
    function.note_settings(note, function.Function(ADDRESS, 1, 2, "ens1f0"), now)
    read = msgspec.json.decode(msgspec.json.encode(note), type=Note)
    assert read.function == ADDRESS
    assert function.noted(read) == now


# -- sysfs ----------------------------------------------------------------------------------------


@pytest.fixture
def pci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cards with functions, of which one has eleven: virtfn10 comes before virtfn2."""
    monkeypatch.setattr(sysfs, "_PCI", str(tmp_path))
    for card, slot, number in ((CARD, "0000:3b:10", 11), ("0000:5e:00.0", "0000:5e:10", 3)):
        (tmp_path / card / "net" / "ens").mkdir(parents=True)
        for index in range(number):
            function_dir = tmp_path / f"{slot}.{index:x}"
            function_dir.mkdir()
            (function_dir / "physfn").symlink_to(f"../{card}")
            (tmp_path / card / f"virtfn{index}").symlink_to(f"../{function_dir.name}")
    return tmp_path


@pytest.mark.usefixtures("pci")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0000:3b:10.0", (CARD, 0)),
        ("0000:3b:10.2", (CARD, 2)),
        ("0000:3b:10.a", (CARD, 10)),
        ("0000:5e:10.2", ("0000:5e:00.0", 2)),
    ],
)
def test_the_card_of_a_function(address: str, expected: tuple[str, int]) -> None:
    assert sysfs.physical_function(address) == expected


@pytest.mark.parametrize("address", [CARD, "0000:00:00.0"])
@pytest.mark.usefixtures("pci")
def test_what_is_no_function(address: str) -> None:
    with pytest.raises(DeviceError, match=f"{address} is not a virtual function"):
        sysfs.physical_function(address)


def test_a_function_that_its_card_does_not_list(pci: Path) -> None:
    (pci / CARD / "virtfn2").unlink()
    with pytest.raises(DeviceError, match=f"{CARD} does not list {ADDRESS}"):
        sysfs.physical_function(ADDRESS)


# -- the kernel's answer --------------------------------------------------------------------------


class Answer:
    """In a socket's place: answers with a message that pyroute2 has encoded."""

    def __init__(self, functions: list[dict[str, Any]]) -> None:
        entries = [["IFLA_VF_INFO", {"attrs": [*one.items()]}] for one in functions]
        message = ifinfmsg()
        message["index"] = 2
        message["attrs"] = [
            ("IFLA_IFNAME", "ens1f0"),
            ("IFLA_VFINFO_LIST", {"attrs": entries}),
        ]
        message.encode()
        self.payload = bytes(message.data)[16:]

    def get(self, _kind: int, _payload: bytes) -> bytes:
        return self.payload


def told(number: int, spoofchk: int = 1, trust: int = 0, link_state: int = 0) -> dict[str, Any]:
    return {
        "IFLA_VF_MAC": {"vf": number, "mac": f"02:00:00:00:00:0{number}"},
        "IFLA_VF_VLAN_LIST": {
            "attrs": [
                (
                    "IFLA_VF_VLAN_INFO",
                    {"vf": number, "vlan": 100 + number, "qos": 3, "proto": 0x88A8},
                )
            ]
        },
        "IFLA_VF_TX_RATE": {"vf": number, "tx_rate": 500},
        "IFLA_VF_RATE": {"vf": number, "min_tx_rate": 10, "max_tx_rate": 500},
        "IFLA_VF_SPOOFCHK": {"vf": number, "spoofchk": spoofchk},
        "IFLA_VF_TRUST": {"vf": number, "trust": trust},
        "IFLA_VF_LINK_STATE": {"vf": number, "link_state": link_state},
    }


@pytest.mark.parametrize("number", [0, 1])
def test_settings_of_the_right_function(number: int) -> None:
    answer: Any = Answer([told(0), told(1)])
    assert vf.get(answer, 2, number) == vf.Settings(
        mac=f"02:00:00:00:00:0{number}",
        vlan=(100 + number, 3, 0x88A8),
        rates=(10, 500),
        spoofchk=True,
        trust=False,
        link_state=0,
    )


def test_what_the_driver_does_not_tell() -> None:
    """The kernel puts -1 where a driver says nothing."""
    unknown = 0xFFFFFFFF
    answer: Any = Answer([told(0, spoofchk=unknown, trust=unknown)])
    now = vf.get(answer, 2, 0)
    assert now is not None
    assert (now.spoofchk, now.trust, now.link_state) == (None, None, 0)


def test_a_card_without_this_function() -> None:
    answer: Any = Answer([told(0)])
    assert vf.get(answer, 2, 1) is None
    assert vf.get(Answer([]), 2, 0) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("vlan", (200, 3, 0x88A8), "200 (vlanQoS 3, vlanProto 802.1ad)"),
        ("vlan", (0, 0, 0x9100), "0 (vlanQoS 0, vlanProto 0x9100)"),
        ("rates", (0, 100), "0 and 100 Mbit/s"),
        ("spoofchk", True, "on"),
        ("trust", False, "off"),
        ("link_state", 2, "disable"),
        ("mac", "02:00:00:00:00:01", "02:00:00:00:00:01"),
    ],
)
def test_values_are_written_as_in_configurations(name: str, value: Any, text: str) -> None:
    assert function.as_text(name, value) == text
