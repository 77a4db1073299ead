"""dhcp: parsing and encoding, and that nothing hostile gets through."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.ipam.dhcp import message4 as m
from cni.ipam.dhcp import message6 as m6
from cni.ipam.dhcp import result as results
from cni.ipam.dhcp.binding4 import Lease4 as Lease
from cni.ipam.dhcp.conf import IpamConf, Options, options, parse_code
from cni.ipam.dhcp.interface import Interface
from cni.ipam.dhcp.main import UsageError, parse
from cni.ipam.dhcp.state import Directory, Record
from cni.protocol.address import parse_ip
from cni.protocol.config import convert
from cni.protocol.errors import CNIError
from cni.protocol.result import Result

from .ipam_node import Ipam

Json = dict[str, Any]

MAC = b"\x02\0\0\0\0\x01"


def ipam(**keys: Any) -> IpamConf:
    return convert({"type": "dhcp", **keys}, IpamConf)


# -- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [("dhcp-client-identifier", 61), ("subnet-mask", 1), ("routers", 3), ("host-name", 12),
     ("user-class", 77), ("vendor-class-identifier", 60), ("121", 121), ("0", 0), ("255", 255)],
)  # fmt: skip
def test_option_names(text: str, code: int) -> None:
    assert parse_code(text) == code


@pytest.mark.parametrize("text", ["host_name", "-1", " 1", "١"])
def test_options_that_are_none(text: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_code(text)
    assert caught.value.msg == (
        f'Can not parse option "{text}": Can not parse option: '
        f'strconv.ParseUint: parsing "{text}": invalid syntax'
    )


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ([], [3, 1]),
        ([{"option": "121"}], [121, 3, 1]),
        ([{"option": "121", "skipDefault": True}], [121]),
        ([{"skipDefault": True}], [1, 3, 15, 6]),
        ([{"option": ""}, {"option": "3"}], [3, 1]),
    ],
)
def test_what_is_requested(request_: list[dict[str, Any]], wanted: list[int]) -> None:
    assert list(options(ipam(request=request_), "").requested) == wanted


def test_what_is_provided() -> None:
    provide = [
        {"option": "12", "value": "a", "fromArg": "NAME"},
        {"option": "60", "fromArg": "NONE"},
        {"option": "77", "value": "u"},
    ]
    assert options(ipam(provide=provide), "junk;NAME=b=c;X").provided == {12: b"b=c", 77: b"u"}
    long = "x" * 256
    with pytest.raises(CNIError, match='value too long for option "12": "x'):
        options(ipam(provide=[{"option": "12", "value": long}]), "")
    with pytest.raises(CNIError, match='value too long for option "12" from CNI_ARGS "A": "x'):
        options(ipam(provide=[{"option": "12", "fromArg": "A"}]), f"A={long}")
    with pytest.raises(CNIError, match="cannot be provided"):
        options(ipam(provide=[{"option": "53", "value": "x"}]), "")


def test_flags() -> None:
    flags = parse(
        ["-timeout", "1m30s", "--resendmax=1.5s", "-broadcast", "-pidfile=/p", "-hostprefix", "/h"]
    )
    assert (flags.timeout, flags.resendmax, flags.resendtimeout) == (90.0, 1.5, 208.0)
    assert (flags.broadcast, flags.pidfile, flags.hostprefix) == (True, "/p", "/h")
    assert parse(["-broadcast=false"]).broadcast is False
    for wrong in (["-x"], ["-timeout"], ["-timeout", "5"], ["-timeout=s"], ["-broadcast=2"]):
        with pytest.raises(UsageError):
            parse(wrong)


def test_the_plugin_is_light() -> None:
    """Whatever the daemon loads, the plugin's side loads no more than static does."""

    def loaded(module: str) -> set[str]:
        program = f"import sys, {module}; print(*sys.modules)"
        path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-S", "-c", program]
        done = subprocess.run(command, env=path, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    more = loaded("cni.ipam.dhcp.plugin") - loaded("cni.ipam.static")
    parts = {f"cni.ipam.dhcp.{name}" for name in ("conf", "plugin", "rpc")}
    assert more == {"cni.ipam.dhcp", *parts}


# -- messages -------------------------------------------------------------------------------------


def reply(fields: bytes = b"", *, sname: bytes = b"", file: bytes = b"") -> bytes:
    head = m._HEAD.pack(
        2, 1, 6, 0, 7, 0, 0, m.ANY, b"\x0a\0\0\x05", m.ANY, m.ANY, MAC, sname, file, m._COOKIE
    )
    return head + fields


def test_encoded_in_ascending_order() -> None:
    data = m.encode(m.REQUEST, 7, MAC, {61: b"\0id", 12: b"h", 50: b"\x0a\0\0\x05"})
    assert len(data) == 300
    assert data[240:].startswith(b"\x0c\x01h\x32\x04\x0a\0\0\x05\x35\x01\x03\x3d\x03\0id\xff")


def test_long_and_overloaded_options_are_put_together() -> None:
    """RFC 3396: parts in the options, in file, and in sname, in this order."""
    data = reply(
        b"\x79\x02ab\x34\x01\x03\x79\x01c\xff\x79\x01z", file=b"\x79\x01d\xff", sname=b"\x79\x01e"
    )
    assert m.decode(data).options[121] == b"abcde"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        reply()[:-1],
        b"\x01" + reply()[1:],
        reply()[:236] + b"\0\0\0\0",
        reply(b"\x35"),
        reply(b"\x35\x02\x05"),
        reply(b"\x34\x02\x01\x01"),
        reply(b"\x34\x01\x01", file=b"\x01\xff" * 64),
    ],
)
def test_malformed_messages(data: bytes) -> None:
    with pytest.raises(m.Malformed):
        m.decode(data)


@given(st.binary(max_size=700))
def test_no_bytes_break_the_decoders(data: bytes) -> None:
    for decode in (
        m.decode, m.unwrap, m.classless_routes, m.static_routes, m.addresses, m.mask_length,
        m.domains, m.text, m6.addresses, m6.domains, m6.advertisement,
        lambda d: m6.decode(d, 1),
        lambda d: m.decode(reply(d)),
        lambda d: m6.decode(b"\x07abc\0\x03" + len(d).to_bytes(2, "big") + d, 1),
        lambda d: m6.advertisement(b"\x86" + bytes(15) + d),
    ):  # fmt: skip
        with contextlib.suppress(m.Malformed):
            decode(data)


@given(
    st.dictionaries(
        st.sampled_from([1, 3, 6, 15, 26, 33, 119, 121]), st.binary(max_size=40), max_size=8
    )
)
def test_no_options_break_a_result(values: dict[int, bytes]) -> None:
    lease = Lease(b"\x0a\0\0\x05", 24, b"\x0a\0\0\x01", 1.0, 2.0, 3.0, values, MAC)
    result = Result()
    results.add4(result, lease, 0)
    for version in ("0.2.0", "0.4.0", "1.1.0"):
        result.as_dict(version)


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_packets_survive_the_wrapping(payload: bytes, address: bytes) -> None:
    packet = bytearray(m.wrap(payload, address, m.BROADCAST))
    head = packet[20:24]
    packet[20:24] = head[2:] + head[:2]  # from the server's port to ours
    assert m.unwrap(bytes(packet)) == payload
    assert m.unwrap(bytes(packet) + b"padding") == payload


def test_scapy_agrees_on_checksums() -> None:
    from scapy.layers.inet import IP, UDP

    packet = m.wrap(b"odd", b"\x0a\0\0\x05", b"\x0a\0\0\x01")
    read = IP(packet)
    sums = (read.chksum, read[UDP].chksum)
    del read.chksum, read[UDP].chksum
    again = IP(bytes(read))
    assert (again.chksum, again[UDP].chksum) == sums


# -- results --------------------------------------------------------------------------------------


def lease(**values: bytes) -> Lease:
    codes = {int(name[1:]): value for name, value in values.items()}
    return Lease(b"\x0a\0\0\x05", 24, b"\x0a\0\0\x01", 1.0, 2.0, 3.0, codes, MAC)


@pytest.mark.parametrize(
    ("router", "gateway"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("0.0.0.0", None),
        ("127.0.0.1", None),
        ("224.0.0.1", None),
        ("255.255.255.255", None),
        ("10.0.0.5", None),  # the leased address
        ("10.0.0.0", None),
        ("10.0.0.255", None),
        ("10.0.1.1", None),  # outside of the subnet
    ],
)
def test_only_a_router_becomes_the_gateway(router: str, gateway: str | None) -> None:
    """On a bridge it becomes an address of the node; anybody on the wire may have sent it."""
    packed = parse_ip(router)
    assert results.gateway4(lease(_3=packed)) == gateway
    assert results.gateway4(lease(_3=packed + b"\x0a\0\0\x09")) == (gateway or "10.0.0.9")
    routes = [route.gw for route in results.routes4(lease(_3=packed), 0)]
    assert routes == ([] if gateway is None and router != "10.0.1.1" else [router])


def test_a_router_outside_is_reached_by_a_route() -> None:
    """As clouds have it: an address alone, and a route on the link to the router."""
    alone = lease(_3=b"\x0a\0\x01\x01")
    alone.length = 32
    assert results.gateway4(alone) == "10.0.1.1"
    on_link = b"\x20\x0a\0\x01\x01" + bytes(4) + b"\0\x0a\0\x01\x01"
    assert results.gateway4(lease(_3=b"\x0a\0\x01\x01", _121=on_link)) == "10.0.1.1"


def test_routes_through_no_router_are_left_out() -> None:
    classless = b"\x08\x0a\x7f\0\0\x01" + b"\x10\xc0\xa8\x0a\0\0\x09"
    routes = results.routes4(lease(_121=classless), 0)
    assert [(r.dst, r.gw) for r in routes] == [("192.168.0.0/16", "10.0.0.9")]


def test_static_routes_have_the_masks_of_their_classes() -> None:
    value = (
        b"\x0a\0\0\0\x0a\x01\x02\x03\xc0\xa8\x01\x00\xc0\xa8\x02\x03\xac\x10\0\0\x01\x02\x03\x04"
    )
    routes = results.routes4(lease(_33=value, _3=b"\x0a\0\0\x01\x0a\0\0\x02"), 5)
    assert [(r.dst, r.gw, r.priority, r.scope) for r in routes] == [
        ("10.0.0.0/8", "10.1.2.3", 5, None),
        ("192.168.1.0/24", "192.168.2.3", 5, None),
        ("172.16.0.0/16", "1.2.3.4", 5, None),
        ("0.0.0.0/0", "10.0.0.1", 5, None),
    ]


def test_classless_routes_replace_all_others() -> None:
    value = b"\x00\x0a\0\0\x01\x18\xc0\xa8\x09\0\0\0\0"
    routes = results.routes4(lease(_121=value, _3=b"\x0a\0\0\x09"), 0)
    assert [r.as_dict() for r in routes] == [
        {"dst": "0.0.0.0/0", "gw": "10.0.0.1"},
        {"dst": "192.168.9.0/24", "gw": "0.0.0.0", "scope": 253},
    ]


def test_search_domains() -> None:
    value = b"\x03eng\x05apple\x03com\0\x09marketing\xc0\x04"
    assert m.domains(value) == ["eng.apple.com", "marketing.apple.com"]
    with pytest.raises(m.Malformed):
        m.domains(b"\xc0\x00")
    assert m6.domains(b"\x03eng\x04test\0\x01a\0") == ["eng.test", "a"]


def test_a_router_advertisement() -> None:
    prefix = b"\x03\x04\x40\xc0" + b"\0\0\x0e\x10" * 2 + bytes(4) + b"\xfd\x55" + bytes(14)
    route = b"\x18\x02\x30\x00\0\0\x0e\x10\xfd\x77\0\0\0\0\0\0"
    found = m6.advertisement(b"\x86\0\0\0\x40\x80\x07\x08" + bytes(8) + prefix + route)
    assert found.is_default
    assert [str(p) for p in found.on_link] == ["fd55::/64"]
    assert [str(p) for p in found.routes] == ["fd77::/48"]
    for cut in (17, 20, 40):
        with pytest.raises(m.Malformed):
            m6.advertisement((b"\x86" + bytes(15) + prefix)[:cut])


# -- leases on disk -------------------------------------------------------------------------------


def record(directory: Directory, container_id: str = "c1", **more: Any) -> Record:
    interface = Interface("/run/netns/x", 4, 4026532000, "eth0", "02:00:00:00:00:01")
    return Record(
        directory.boot, container_id, "net", "eth0", interface, Options(b"\3\1", {12: b"h\xff"}),
        lease4=lease(_3=b"\x0a\0\0\x01"), **more,
    )  # fmt: skip


def test_records_are_kept(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path / "state"))
    first, second = record(directory), record(directory, "c2", ipv6=True, priority=3)
    for each in (first, second, first):
        directory.save(each)
    directory.close()
    directory = Directory(str(tmp_path / "state"))
    assert sorted(directory.load(), key=lambda r: r.key) == [first, second]
    directory.remove(first.key)
    directory.remove(first.key)
    assert directory.load() == [second]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "state").iterdir())
    directory.close()


def test_what_is_no_lease_of_this_boot_is_removed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = Directory(str(tmp_path))
    good = record(directory)
    directory.save(good)
    (name,) = [path.name for path in tmp_path.glob("*.json")]
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "torn.json").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / f"{name}.new").write_bytes(whole)
    old = record(directory, "c3")
    old.boot = "another boot"
    directory.save(old)
    assert directory.load() == [good]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "lock"])
    assert capfd.readouterr().err.count("is removed") == 4
    directory.close()


def test_a_lease_that_cannot_be_read_is_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = Directory(str(tmp_path))
    good, other = record(directory), record(directory, "c2")
    directory.save(good)
    (name,) = [path.name for path in tmp_path.glob("*.json")]
    directory.save(other)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert directory.load() == [other]
    assert "is left alone" in capfd.readouterr().err
    with pytest.raises(OSError, match="is a FIFO"):
        directory.find(good.key)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(data)
    assert directory.find(good.key) == good
    assert directory.find("nobody") is None
    directory.close()


def test_one_daemon_for_a_directory(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    with pytest.raises(CNIError, match=f"cannot lock .* held by pid {os.getpid()}"):
        Directory(str(tmp_path))
    directory.close()
    Directory(str(tmp_path)).close()


@pytest.mark.parametrize(
    "keys",
    [{"request": "x"}, {"provide": [{"option": 5}]}, {"ipv4": "yes"}, {"priority": "x"}, {}],
)
def test_delete_needs_no_more_than_the_socket(
    tmp_path: Path, keys: Json, capfd: pytest.CaptureFixture[str]
) -> None:
    socket = str(tmp_path / "nobody.sock")
    ipam = Ipam(
        "dhcp",
        {
            "cniVersion": "1.1.0",
            "name": "net",
            "dns": 5,
            "ipam": {"type": "dhcp", "daemonSocketPath": socket, **keys},
        },
    )
    ipam.delete(env_args="rubbish")
    assert f"dial unix {socket}" in capfd.readouterr().err
