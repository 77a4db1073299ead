"""sriov: virtual functions of a card, which is QEMU's igb: settings, packets, and the way back.

Their drivers are Debian's: igb of the card, igbvf of the functions. This card has no `link_state`,
no 802.1ad and no `min_tx_rate`: tests/lab/test_sriov_simulated.py has those.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    Netns,
    Runtime,
    addresses,
    link,
    links,
    ping,
    requires_kernel,
)
from tests.harness.card import Card, card_with, give_to_user_space
from tests.harness.packets import ETH_P_ALL
from tests.harness.wait import wait_until
from tests.harness.world import EVERY, Point, points_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [requires_kernel("card"), pytest.mark.own_server]

Json = dict[str, Any]

MAC = "02:00:00:00:00:01"
OTHER_MAC = "02:00:00:00:00:02"
FRAME_TYPE = 0x88B5  # IEEE 802, for experiments

# Each key with a value that the card does not have by itself, and what `ip` shows then.
SETTINGS: dict[str, tuple[Json, Json]] = {
    "mac": ({"mac": MAC}, {"address": MAC}),
    "vlan": ({"vlan": 100, "vlanQoS": 3}, {"vlan_list": [{"vlan": 100, "qos": 3}]}),
    "rate": ({"max_tx_rate": 500}, {"rate": {"max_tx": 500, "min_tx": 0}, "tx_rate": 500}),
    "spoofchk": ({"spoofchk": "off"}, {"spoofchk": False}),
    "trust": ({"trust": "on"}, {"trust": True}),
}
EVERY_KEY: Json = {key: value for keys, _ in SETTINGS.values() for key, value in keys.items()}
EVERY_SETTING: Json = {key: value for _, shown in SETTINGS.values() for key, value in shown.items()}


@pytest.fixture
def card() -> Iterator[Card]:
    with card_with(2) as made:
        yield made


@pytest.fixture
def runtime(bin_dir: Path, card: Card, tmp_path: Path) -> Runtime:
    """Plugins run where the card's links are."""
    return Runtime(bin_dir, card.node, env={"CNI_STATE_DIR": str(tmp_path / "state")})


def network(card: Card, number: int = 0, **keys: Any) -> Json:
    address = card.functions[number].address
    return {"cniVersion": "1.1.0", "name": "net", "deviceID": address, **keys}


def static(host_part: int) -> Json:
    address = f"10.91.0.{host_part}/24"
    return {"ipam": {"type": "static", "addresses": [{"address": address}]}}


def notes(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "state" / "devices").glob("*")]


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["configuration", "runtime"])
def test_there_and_back(
    runtime: Runtime, card: Card, container: Netns, tmp_path: Path, given: str
) -> None:
    """Each setting is the card's before the container has the link, and DEL restores them all."""
    function = card.functions[0]
    conf = {**network(card), **EVERY_KEY, **static(1)}
    if given == "runtime":
        del conf["deviceID"], conf["mac"]
        conf["runtimeConfig"] = {"deviceID": function.address, "mac": MAC}
    before = card.state()
    result = runtime.add("sriov", conf, container).result
    [interface] = result["interfaces"]
    assert interface == {
        "name": "eth0", "mac": MAC, "sandbox": container.path, "pciID": function.address
    }  # fmt: skip
    assert EVERY_SETTING.items() <= card.settings(function).items()
    assert card.settings(card.functions[1]) == before["settings"][1]
    assert list(card.links()) == [card.functions[1].name]
    inner = link(container, "eth0")
    assert (inner["address"], inner["parentdev"]) == (MAC, function.address)
    assert addresses(container, "eth0") == ["10.91.0.1/24"]
    runtime.check("sriov", conf, container, prev_result=result).succeeded()
    for _ in range(2):
        runtime.delete("sriov", conf, container).succeeded()
        assert card.state() == before
        assert not notes(tmp_path)


def test_what_is_not_named_stays(runtime: Runtime, card: Card, container: Netns) -> None:
    """As an administrator has set it, during ADD and after DEL."""
    function = card.functions[0]
    card.change(function, "vlan", "7", "qos", "2")
    card.change(function, "spoofchk", "off")
    before = card.state()
    conf = network(card, trust="on")
    runtime.add("sriov", conf, container).succeeded()
    assert card.settings(function) == {**before["settings"][0], "trust": True}
    runtime.delete("sriov", conf, container).succeeded()
    assert card.state() == before


CHANGED_BY_OTHERS = {
    "mac": (("mac", OTHER_MAC), f"mac of virtual function 0 of .* is {OTHER_MAC}, want {MAC}"),
    "vlan": (("vlan", "200"), r"vlan of .* is 200 \(vlanQoS 0, .*\), want 100 \(vlanQoS 3, "),
    "rate": (("max_tx_rate", "300"), "max_tx_rate of .* is 0 and 300 Mbit/s, want 0 and 500"),
    "spoofchk": (("spoofchk", "on"), "spoofchk of .* is on, want off"),
    "trust": (("trust", "off"), "trust of .* is off, want on"),
}


def test_check_notices_each_change(runtime: Runtime, card: Card, container: Netns) -> None:
    function = card.functions[0]
    conf = {**network(card), **EVERY_KEY}
    result = runtime.add("sriov", conf, container).result
    undo = {
        "mac": ("mac", MAC),
        "vlan": ("vlan", "100", "qos", "3"),
        "rate": ("max_tx_rate", "500"),
        "spoofchk": ("spoofchk", "off"),
        "trust": ("trust", "on"),
    }
    for name, (words, expected) in CHANGED_BY_OTHERS.items():
        card.change(function, *words)
        error = runtime.check("sriov", conf, container, prev_result=result).failed()
        text = f"{error['msg']} {error.get('details', '')}"
        assert re.search(expected, text), text
        card.change(function, *undo[name])
        runtime.check("sriov", conf, container, prev_result=result).succeeded()


REFUSED_BY_DRIVER: dict[str, Json] = {
    "link_state": {"link_state": "enable"},
    "vlan": {"vlan": 5, "vlanProto": "802.1ad"},
    "min_tx_rate and max_tx_rate": {"min_tx_rate": 100},
    # faster than the card
    "max_tx_rate": {"max_tx_rate": 100_000},
}


def test_a_refused_setting_is_named_and_nothing_stays(
    runtime: Runtime, card: Card, container: Netns, tmp_path: Path
) -> None:
    """The settings before the refused one are undone."""
    before = card.state()
    for key, keys in REFUSED_BY_DRIVER.items():
        conf = {**network(card), "mac": MAC, "spoofchk": "off", "trust": "on", **keys}
        error = runtime.add("sriov", conf, container).failed()
        assert error["msg"].startswith("failed to set "), error
        assert f"{key} of virtual function 0 of {card.name}: " in error["msg"]
        assert error["details"]
        assert card.state() == before
        assert list(links(container)) == ["lo"]
        assert not notes(tmp_path)


def test_what_is_no_free_function(
    runtime: Runtime, card: Card, container: Netns, container2: Netns
) -> None:
    conf = network(card, vlan=100)
    runtime.add("sriov", conf, container).succeeded()
    taken = card.state()
    other = runtime.add("sriov", {**conf, "vlan": 5}, container2, container_id="c2")
    assert "in use by another attachment" in other.failed()["msg"]
    for address in (card.directory.name, "0000:00:1f.0"):
        wrong = runtime.add("sriov", {**conf, "deviceID": address}, container2, container_id="c2")
        assert f"{address} is not a virtual function" in wrong.failed()["msg"]
    absent = runtime.add("sriov", {**conf, "deviceID": "0000:77:0.0"}, container2)
    assert absent.failed()["msg"] == "deviceID 0000:77:0.0 not found"
    assert card.state() == taken
    assert "eth0" in links(container)
    assert list(links(container2)) == ["lo"]
    runtime.delete("sriov", conf, container).succeeded()


# -- packets --------------------------------------------------------------------------------------


def test_containers_of_a_vlan_reach_each_other_alone(
    runtime: Runtime, card: Card, container: Netns, container2: Netns
) -> None:
    """The card keeps the VLANs apart, and tags what leaves it by the cable, with the priority."""
    one = {**network(card, 0), "vlan": 100, "vlanQoS": 3, **static(1)}
    two = {**network(card, 1), **static(2)}
    runtime.add("sriov", one, container).succeeded()
    for vlan, reached in ((200, False), (100, True)):
        conf = {**two, "vlan": vlan}
        runtime.add("sriov", conf, container2, container_id="c2").succeeded()
        _await_carrier(container, container2)
        ping(container, "10.91.0.2", expect=reached)
        runtime.delete("sriov", conf, container2, container_id="c2").succeeded()
    assert _tags_of(card, container) == {(0x8100, 100, 3)}
    runtime.delete("sriov", one, container).succeeded()


def _await_carrier(*containers: Netns) -> None:
    def is_up() -> bool:
        return all(link(ns, "eth0")["operstate"] == "UP" for ns in containers)

    wait_until(is_up, "the card's carrier in the containers")


def _tags_of(card: Card, container: Netns) -> set[tuple[int, int, int]]:
    """Send a frame to all: (protocol, VLAN, priority) as on the cable; empty without a tag."""
    frame = b"\xff" * 6 + bytes.fromhex(link(container, "eth0")["address"].replace(":", ""))
    frame += struct.pack("!H", FRAME_TYPE) + bytes(46)
    with (
        card.node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire,
        container.socket(socket.AF_PACKET, socket.SOCK_RAW) as inside,
    ):
        wire.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: the kernel takes tags out
        wire.bind((card.wire, ETH_P_ALL))
        wire.settimeout(60)
        inside.bind(("eth0", 0))
        inside.send(frame)
        while True:
            data, ancillary, _, _ = wire.recvmsg(2000, 256)
            if data[12:14] == frame[12:14]:
                return {_tag(auxiliary) for _, _, auxiliary in ancillary}


def _tag(auxiliary: bytes) -> tuple[int, int, int]:
    """struct tpacket_auxdata, linux/if_packet.h."""
    _, _, _, _, _, tci, protocol = struct.unpack("=IIIHHHH", auxiliary[:20])
    return protocol, tci & 0xFFF, tci >> 13


# -- ways to end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["DEL", "GC", "ADD of another"])
def test_the_namespace_ends_first(
    runtime: Runtime, card: Card, netns: Any, container: Netns, how: str, tmp_path: Path
) -> None:
    """The kernel returns the link to the node, under any name; the card still has the settings."""
    before = card.state()
    conf = {**network(card), **EVERY_KEY}
    gone = netns("gone")
    runtime.add("sriov", conf, gone).succeeded()
    gone.ip("link", "set", "eth0", "down")
    gone.ip("link", "set", "eth0", "name", "mine")
    gone.close()
    wait_until(lambda: len(card.links()) == 2, "the link is on the node")
    if how == "GC":
        runtime.gc("sriov", conf, []).succeeded()
    elif how == "DEL":
        runtime.delete("sriov", conf, "/run/netns/gone").succeeded()
    else:
        other = network(card)
        runtime.add("sriov", other, container, container_id="c2").succeeded()
        assert card.settings(card.functions[0]) == before["settings"][0]
        runtime.delete("sriov", conf, "/run/netns/gone").succeeded()
        assert "eth0" in links(container)
        runtime.delete("sriov", other, container, container_id="c2").succeeded()
    assert card.state() == before
    assert not notes(tmp_path)


def test_a_function_of_user_space(runtime: Runtime, card: Card, container: Netns) -> None:
    """It has no link: only the card changes."""
    card.node.exec(["modprobe", "uio_pci_generic"])
    give_to_user_space(card.functions[0])
    before = card.state()
    conf = {**network(card), **EVERY_KEY}
    result = runtime.add("sriov", conf, container).result
    [interface] = result["interfaces"]
    assert (interface["mac"], interface["pciID"]) == (MAC, card.functions[0].address)
    assert list(links(container)) == ["lo"]
    assert EVERY_SETTING.items() <= card.settings(card.functions[0]).items()
    runtime.check("sriov", conf, container, prev_result=result).succeeded()
    runtime.delete("sriov", conf, container).succeeded()
    assert card.state() == before


# -- kills ----------------------------------------------------------------------------------------

SAMPLE = 5  # points of a verb, in an everyday run


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_killed(runtime: Runtime, card: Card, container: Netns, verb: str, tmp_path: Path) -> None:
    """SIGKILL at requests to the kernel and changes of files; then DEL restores all.

    Also after another ADD, which is refused once the link is in the container.
    """
    before = card.state()
    conf = {**network(card), **EVERY_KEY}

    def strace(*options: str) -> int:
        done = card.node.run(
            subprocess.run,
            ["strace", "-qq", *options, str(runtime.bin_dir / "sriov")],
            input=json.dumps({"type": "sriov", **conf}).encode(),
            capture_output=True,
            env=runtime.environment(verb, container, env={"CNI_SERVER": "off"}),
            cwd="/",
            timeout=300,
        )
        return int(done.returncode)

    def prepare() -> None:
        if verb == "DEL":
            runtime.add("sriov", conf, container).succeeded()

    prepare()
    trace = tmp_path / "trace"
    assert strace("-o", str(trace)) == 0
    points = list(points_of(trace.read_text(errors="replace"), every=EVERY == "every"))
    runtime.delete("sriov", conf, container).succeeded()
    assert card.state() == before
    assert len(points) > SAMPLE
    for number, point in enumerate(points if EVERY else _spread(points)):
        prepare()
        inject = f"inject={point.name}:signal=KILL:when={point.ordinal}"
        status = strace("-o", "/dev/null", "-e", f"trace={point.name}", "-e", inject)
        assert status in (-9, 0), point
        if number % 2 and verb == "ADD":
            runtime.add("sriov", conf, container)
        runtime.delete("sriov", conf, container).succeeded()
        assert card.state() == before, f"killed at {point}"
        assert not notes(tmp_path), f"killed at {point}"


def _spread(points: list[Point]) -> list[Point]:
    """Some, spread evenly."""
    return [points[number * len(points) // SAMPLE] for number in range(SAMPLE)]
