"""wireguard's messages and configuration, without a kernel that has it.

The messages are decoded by pyroute2; the others are tested in tests/netns/test_wireguard.py.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

import pytest
from pyroute2.netlink.generic.wireguard import wgmsg

from cni.kernel import netlink as nl
from cni.kernel import netlink_debug, uapi, wireguard
from cni.kernel.wireguard import Control, Endpoint, Peer
from cni.plugins.wireguard import keys, settings
from cni.protocol.address import Prefix
from cni.protocol.errors import CNIError

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE, PUBLIC, OTHER, SHARED = (bytes((each,)) * 32 for each in (7, 8, 9, 10))
PEERS = [
    Peer(
        PUBLIC,
        Endpoint(bytes((192, 0, 2, 1)), 51820),
        (Prefix.parse("10.40.1.0/24"), Prefix.parse("fd40::/112")),
        25,
        SHARED,
    ),
    Peer(OTHER, Endpoint(bytes.fromhex("20010db8") + bytes(11) + b"\1", 1), ()),
]


class Kernel:
    """What is sent, and answers; in place of a socket."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []

    def get(self, _kind: int, _payload: bytes) -> bytes:
        return bytes(4) + nl.u16(uapi.CTRL_ATTR_FAMILY_ID, 33)

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        assert kind == 33
        self.sent.append(payload)
        return self.answers

    def request(self, kind: int, payload: bytes) -> None:
        assert kind == 33
        self.sent.append(payload)

    def batch(self, requests: list[nl.Message]) -> list[None]:
        assert {kind for kind, _, _ in requests} == {33}
        self.sent += [payload for _, payload, _ in requests]
        return [None] * len(requests)


def decoded(payload: bytes) -> Any:
    """A message as pyroute2 reads it."""
    size = 16 + len(payload)
    message = wgmsg(size.to_bytes(4, "little") + bytes(12) + payload)
    message.decode()
    return message


def text(key: bytes) -> bytes:
    return base64.b64encode(key)


def test_the_device() -> None:
    kernel = Kernel()
    Control(kernel).set_device(5, PRIVATE, 51821)  # type: ignore[arg-type]
    message = decoded(kernel.sent[0])
    assert message["cmd"] == uapi.WG_CMD_SET_DEVICE
    assert message.get_attr("WGDEVICE_A_IFINDEX") == 5
    assert message.get_attr("WGDEVICE_A_PRIVATE_KEY") == text(PRIVATE)
    assert message.get_attr("WGDEVICE_A_LISTEN_PORT") == 51821


def test_peers() -> None:
    kernel = Kernel()
    Control(kernel).set_peers(5, PEERS, [PRIVATE])  # type: ignore[arg-type]
    removed, first, second = (decoded(each).get_attr("WGDEVICE_A_PEERS")[0] for each in kernel.sent)
    assert removed.get_attr("WGPEER_A_PUBLIC_KEY") == text(PRIVATE)
    assert removed.get_attr("WGPEER_A_FLAGS") == uapi.WGPEER_F_REMOVE_ME
    assert first.get_attr("WGPEER_A_PUBLIC_KEY") == text(PUBLIC)
    assert first.get_attr("WGPEER_A_PRESHARED_KEY") == text(SHARED)
    assert first.get_attr("WGPEER_A_FLAGS") == uapi.WGPEER_F_REPLACE_ALLOWEDIPS
    assert first.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    endpoint = first.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("192.0.2.1", 51820)
    allowed = [each["addr"] for each in first.get_attr("WGPEER_A_ALLOWEDIPS")]
    assert allowed == ["10.40.1.0/24", "fd40::/112"]
    endpoint = second.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("2001:db8::1", 1)
    assert second.get_attr("WGPEER_A_PRESHARED_KEY") == text(bytes(32))


def test_only_differences_are_sent() -> None:
    """Addresses are replaced, for a moment none, only if one of them has to go."""
    present = {each.public: each for each in PEERS}
    first, second = PEERS
    more = (*first.allowed, Prefix.parse("10.41.0.0/16"))
    for wanted, sent in (
        (PEERS, []),
        ([second, first._replace(endpoint=None)], []),
        ([first], [(OTHER, uapi.WGPEER_F_REMOVE_ME)]),
        ([first._replace(allowed=more), second], [(PUBLIC, 0)]),
        (
            [first._replace(allowed=first.allowed[:1]), second],
            [(PUBLIC, uapi.WGPEER_F_REPLACE_ALLOWEDIPS)],
        ),
        ([first, second._replace(endpoint=first.endpoint)], [(OTHER, 0)]),
        ([first, second._replace(keepalive=5)], [(OTHER, 0)]),
        ([first._replace(preshared=b""), second], [(PUBLIC, 0)]),
        ([*PEERS, Peer(PRIVATE)], [(PRIVATE, uapi.WGPEER_F_REPLACE_ALLOWEDIPS)]),
    ):
        kernel = Kernel()
        Control(kernel).agree(5, present, wanted)  # type: ignore[arg-type]
        peers = [decoded(each).get_attr("WGDEVICE_A_PEERS")[0] for each in kernel.sent]
        found = [(p.get_attr("WGPEER_A_PUBLIC_KEY"), p.get_attr("WGPEER_A_FLAGS")) for p in peers]
        assert found == [(text(key), flags) for key, flags in sent]


def test_a_peer_that_goes_on_in_the_next_message() -> None:
    sender = Kernel()
    rest = PEERS[0]._replace(allowed=(Prefix.parse("10.41.0.0/16"),))
    Control(sender).set_peers(5, [*PEERS, rest])  # type: ignore[arg-type]
    head = nl.attr(uapi.WGDEVICE_A_PUBLIC_KEY, OTHER) + nl.attr(
        uapi.WGDEVICE_A_PRIVATE_KEY, wireguard.clamped(PRIVATE)
    )
    first = sender.sent[0] + head + nl.u16(uapi.WGDEVICE_A_LISTEN_PORT, 9)
    device = Control(Kernel(first, *sender.sent[1:])).get(5)  # type: ignore[arg-type]
    assert (device.public, device.port) == (OTHER, 9)
    assert device.has_key(PRIVATE)
    assert not device.has_key(PUBLIC)
    assert set(device.peers) == {PUBLIC, OTHER}
    assert device.peers[PUBLIC] == PEERS[0]._replace(
        allowed=(*PEERS[0].allowed, Prefix.parse("10.41.0.0/16"))
    )
    assert SHARED.hex() not in repr(device.peers)
    assert repr(SHARED) not in repr(device.peers)


def test_no_key_is_shown_by_debugging() -> None:
    kernel = Kernel()
    Control(kernel).set_device(5, PRIVATE, 1)  # type: ignore[arg-type]
    payload = kernel.sent[0]
    whole = (16 + len(payload)).to_bytes(4, "little") + bytes((33, 0, 5, 0)) + bytes(8) + payload
    shown = "\n".join(netlink_debug.describe(uapi.NETLINK_GENERIC, ">", whole))
    assert "message 33" in shown
    assert PRIVATE.hex() not in shown


def test_the_key_is_made_once(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "key")
    assert keys.existing(path) == b""
    made = keys.private(path)
    assert keys.private(path) == made == keys.existing(path) == wireguard.clamped(made)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(tmp_path / "new").st_mode & 0o777 == 0o700
    assert keys.private(str(tmp_path / "other")) != made
    os.chmod(path, 0o640)
    with pytest.raises(CNIError, match="can be read by others"):
        keys.existing(path)


@pytest.mark.parametrize("content", ["", "x", "A" * 43, "A" * 44, "Ä" * 44, "A" * 5000])
def test_a_file_that_is_no_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(CNIError) as raised:
        keys.private(str(path))
    assert str(path) in raised.value.msg
    assert path.read_text() == content, "a key is never replaced"
    assert not content or content not in raised.value.details


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("192.0.2.1:51820", Endpoint(bytes((192, 0, 2, 1)), 51820)),
        ("[2001:db8::1]:9", Endpoint(bytes.fromhex("20010db8") + bytes(11) + b"\1", 9)),
        *(
            (each, None)
            for each in (
                *("192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x", ":51820"),
                *("2001:db8::1:9", "[192.0.2.1]:9", "host:9", "127.0.0.1:9", "[fe80::1]:9"),
                *("0.0.0.0:9", "224.0.0.1:9", "[2001:db8::1]", "192.0.2.1:٣"),
            )
        ),
    ],
)
def test_endpoints(given: str, meant: Endpoint | None) -> None:
    if meant is not None:
        assert settings.parse_endpoint(given, "endpoint") == meant
        return
    with pytest.raises(CNIError, match="endpoint"):
        settings.parse_endpoint(given, "endpoint")


def test_long_names_of_networks_have_files() -> None:
    conf = settings.Conf(name="n", type="wireguard")
    for size in (1, 200, 246, 247, 255, 300):
        name = os.path.basename(settings.key_file(conf, "n" * size))
        assert len(f"{name}.lock~") <= 255
        assert name.endswith(".key")
    assert settings.key_file(conf, "net") == "/var/lib/cni/wireguard/net.key"
