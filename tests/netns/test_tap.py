"""tap: persistent TAP devices in the container."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    CHECK_VERSIONS,
    INTERFACE_VERSIONS,
    V4,
    Netns,
    Runtime,
    addresses,
    capture,
    each_version,
    kind,
    link,
    links,
    requires_kernel,
    unchanged,
)
from tests.harness.contract import InterfaceContract
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("tap")

Json = dict[str, Any]


class TestContract(InterfaceContract):
    plugin = "tap"
    kind = "tun"
    places = ()
    check_mac = check_kind = None


def network(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", **keys}


def info(ns: Netns, name: str = "eth0") -> Json:
    return dict(link(ns, name)["linkinfo"]["info_data"])


@pytest.mark.parametrize("verb", ["DEL", "GC"])
@pytest.mark.parametrize("what", ["fifo", "directory", "link", "large", "torn"])
def test_what_is_no_note_is_told_and_ignored(
    runtime: Runtime, container: Netns, tmp_path: Path, what: str, verb: str
) -> None:
    runtime.env["CNI_STATE_DIR"] = str(tmp_path)
    runtime.add("tap", network(), container).succeeded()
    (note,) = (tmp_path / "devices").iterdir()
    note.unlink()
    if what == "fifo":
        os.mkfifo(note)
    elif what == "directory":
        note.mkdir()
    elif what == "link":
        note.symlink_to("/etc/passwd")
    else:
        note.write_text("{}" if what == "torn" else " " * 100_000)
    if verb == "DEL":
        reply = runtime.delete("tap", network(), container).succeeded()
        assert "eth0" not in links(container)
    else:
        reply = runtime.gc("tap", network(), []).succeeded()
    assert f"ignoring {note}, which is not ours: " in reply.stderr
    assert note.exists() == (what == "directory")


@each_version()
@pytest.mark.parametrize("bridged", [False, True], ids=["alone", "bridged"])
def test_owner_and_group_0(
    runtime: Runtime, container: Netns, data_dir: Path, cni_version: str, bridged: bool
) -> None:
    keys: Json = {"owner": 0, "group": 0}
    if bridged:
        container.ip_batch("link add br1 type bridge", "link set br1 up")
        keys["bridge"] = "br1"
    conf = network(cniVersion=cni_version, ipam=V4.host_local(data_dir), **keys)
    result = runtime.add("tap", conf, container).result
    made = link(container, "eth0")
    assert kind(made) == "tun"
    assert (info(container)["user"], info(container)["group"]) == ("root", "root")
    assert made.get("master") == ("br1" if bridged else None)
    assert addresses(container, "eth0") == list(V4.first)
    if cni_version in INTERFACE_VERSIONS:
        assert result["interfaces"][0]["mac"] == made["address"]
    if cni_version in CHECK_VERSIONS:
        runtime.check("tap", conf, container, prev_result=result).succeeded()
    for _ in range(2):
        runtime.delete("tap", conf, container).succeeded()
        assert "eth0" not in links(container)
    assert ("br1" in links(container)) == bridged


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"multi_queue": False, "vnet_hdr": True, "persist": True, "pi": True}),
        ({"multiQueue": True}, {"multi_queue": True, "vnet_hdr": True, "pi": False}),
        ({"owner": 54321, "group": 54322}, {"user": "54321", "group": "54322"}),
        ({"owner": 4294967294}, {"user": "4294967294"}),
        ({"group": 54322, "multiQueue": True}, {"group": "54322", "multi_queue": True}),
    ],
    ids=repr,
)
def test_device(runtime: Runtime, container: Netns, keys: Json, expected: Json) -> None:
    runtime.add("tap", network(args={"cni": {"ips": 1}}, **keys), container).succeeded()
    found = info(container)
    assert found["type"] == "tap"
    for key, value in expected.items():
        assert str(found[key]) == str(value), found
    for key in ("user", "group"):
        assert key in expected or key not in found


@pytest.mark.parametrize("keys", [{}, {"owner": 0, "group": 0}], ids=["plain", "owned"])
def test_mac_and_mtu(runtime: Runtime, container: Netns, keys: Json) -> None:
    """Also with owner and group, where the reference forgets both."""
    conf = network(mac="02:00:00:00:00:0A", mtu=1400, **keys)
    result = runtime.add("tap", conf, container).result
    made = link(container, "eth0")
    assert (made["address"], made["mtu"]) == ("02:00:00:00:00:0a", 1400)
    assert result["interfaces"][0]["mac"] == made["address"]


@pytest.mark.parametrize(
    ("keys", "args", "last"),
    [({}, "MAC=02:00:00:00:00:02", 2), ({"runtimeConfig": {"mac": "02:00:00:00:00:03"}}, "", 3)],
    ids=["args", "runtime"],
)
def test_who_says_the_mac(
    runtime: Runtime, container: Netns, keys: Json, args: str, last: int
) -> None:
    conf = network(mac="02:00:00:00:00:01", **keys)
    result = runtime.add("tap", conf, container, args=args).result
    assert result["interfaces"][0]["mac"] == f"02:00:00:00:00:0{last}"


@each_version()
def test_layer_2(runtime: Runtime, container: Netns, cni_version: str) -> None:
    conf = network(cniVersion=cni_version)
    reply = runtime.add("tap", conf, container)
    if cni_version in ALL_VERSIONS[:2]:
        reply.failed(999, "cannot convert: no valid IP addresses")
    else:
        assert "ips" not in reply.result
    assert "UP" in link(container, "eth0")["flags"]
    runtime.delete("tap", conf, container).succeeded()
    assert "eth0" not in links(container)


@each_version(INTERFACE_VERSIONS)
def test_dns(runtime: Runtime, container: Netns, cni_version: str) -> None:
    ipam = {**V4.static(), "dns": {"domain": "ipam.example"}}
    conf = network(cniVersion=cni_version, ipam=ipam, dns={"domain": "example.org"})
    assert runtime.add("tap", conf, container).result["dns"] == {"domain": "example.org"}


def test_frames_through_the_device(runtime: Runtime, container: Netns, container2: Netns) -> None:
    """What a virtual machine would do: open it by name, and be on the container's bridge."""
    container.ip_batch("link add br1 type bridge", "link set br1 up")
    runtime.add("tap", network(bridge="br1"), container).succeeded()

    container.ip_batch(
        f"link add v0 type veth peer name v1 netns {container2.name}",
        "link set v0 master br1 up",
    )
    container2.ip("link", "set", "v1", "up")

    def machine() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        flags = 0x2 | 0x4000  # IFF_TAP | IFF_VNET_HDR
        fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"eth0", flags))
        return fd

    frame = bytes.fromhex("ffffffffffff02000000009988b5") + bytes(50)
    fd = container.run(machine)
    try:
        with capture(container2) as seen:

            def sent_is_seen() -> bool:
                os.write(fd, bytes(4 + 10) + frame)  # packet information and vnet header
                return any(one.src == "02:00:00:00:00:99" for one in seen.frames)

            wait_until(sent_is_seen, "a frame comes through")
    finally:
        os.close(fd)


BAD: list[tuple[Json, str, str]] = [
    ({"mac": "02:00"}, "", "invalid args 02:00 for MAC addr: "),
    ({"mac": "01:00:00:00:00:01"}, "", "failed to create tap: "),
    ({}, "MAC=xyz", "invalid args xyz for MAC addr: "),
    ({}, "FOO=bar", "ARGS: unknown args"),
    ({"mtu": -1}, "", "invalid mtu -1"),
    ({"mtu": 60}, "", "failed to create tap: "),
    ({"mtu": 1 << 20}, "", "failed to create tap: "),
    ({"owner": -1}, "", "invalid owner -1"),
    ({"group": 1 << 32}, "", "invalid group 4294967296"),
    ({"owner": "root"}, "", "json: cannot unmarshal string into field owner"),
    ({"bridge": "gone0"}, "", "failed to get bridge gone0: Link not found"),
    ({"bridge": "lo"}, "", "failed to set tap eth0 as a port of bridge lo: "),
    ({"selinuxContext": "system_u:system_r:x_t:s0"}, "", "failed set socket label: "),
]


@pytest.mark.parametrize(("keys", "args", "text"), BAD, ids=[repr(one[:2]) for one in BAD])
def test_bad_input_changes_nothing(
    runtime: Runtime,
    container: Netns,
    data_dir: Path,
    keys: Json,
    args: str,
    text: str,
) -> None:
    if "selinuxContext" in keys and os.path.exists("/sys/fs/selinux/enforce"):
        pytest.skip("this kernel has SELinux, and may take the label")
    conf = network(ipam=V4.host_local(data_dir), **keys)
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add("tap", conf, container, args=args)
        reply.failed(999, text)
        assert reply.stderr == ""
