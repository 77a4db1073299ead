"""What router advertisements say of DNS, as the kernel hands it on."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.kernel.router import Names

NEWNDUSEROPT = 68
RDNSS, DNSSL = 25, 31


def message(*options: bytes, index: int = 7, family: int = AF_INET6) -> bytes:
    """An nduseroptmsg (linux/rtnetlink.h) with options, and the attribute that follows them."""
    data = b"".join(options)
    source = struct.pack("=HH", 20, 1) + IPv6Address("fe80::1").packed
    return struct.pack("=BxHiBBHI", family, len(data), index, 134, 0, 0, 0) + data + source


def option(code: int, values: bytes, lifetime: int = 600) -> bytes:
    values += bytes(-len(values) % 8)
    return struct.pack("!BBHI", code, 1 + len(values) // 8, 0, lifetime) + values


def servers(*texts: str, lifetime: int = 600) -> bytes:
    return option(RDNSS, b"".join(IPv6Address(each).packed for each in texts), lifetime)


def search(*names: str) -> bytes:
    labels = [[part.encode() for part in name.split(".")] + [b""] for name in names]
    return option(DNSSL, b"".join(bytes((len(p),)) + p for each in labels for p in each))


def noted(*messages: bytes, kind: int = NEWNDUSEROPT) -> tuple[list[str], list[str]]:
    names = Names()
    for each in messages:
        names.note(kind, each, 7)
    return names.servers, names.search


def test_servers_and_domains() -> None:
    first = message(servers("fd55::3", "fd55::4"), search("lan.example", "corp.example"))
    assert noted(first) == (["fd55::3", "fd55::4"], ["lan.example", "corp.example"])
    assert noted(first, message(servers("fd55::4", "fd55::5")))[0] == [
        *("fd55::3", "fd55::4", "fd55::5")
    ]


def test_a_lifetime_of_zero_takes_back() -> None:
    given_then_taken = (message(servers("fd55::3")), message(servers("fd55::3", lifetime=0)))
    assert noted(*given_then_taken) == ([], [])
    assert noted(message(servers("fd55::3", lifetime=0))) == ([], [])


def test_of_others() -> None:
    wanted = servers("fd55::3")
    assert noted(message(wanted, index=8)) == ([], [])
    assert noted(message(wanted, family=AF_INET)) == ([], [])
    assert noted(message(wanted), kind=16) == ([], [])
    assert noted(message(option(38, bytes(16)), wanted)) == (["fd55::3"], [])


@pytest.mark.parametrize("name", [b"\x40" + 64 * b"a", b"\x05ab", b"\x03a b\0", b"\x02\xff\xfe\0"])
def test_names_that_are_none(name: bytes) -> None:
    assert noted(message(option(DNSSL, name)))[1] == []


@given(st.integers(0, 80), st.binary(max_size=60))
def test_whatever_arrives(cut: int, garbage: bytes) -> None:
    """A torn message raises nothing, and gives no name that was not said."""
    whole = message(servers("fd55::3", "fd55::4"), search("lan.example"))
    found, domains = noted(whole[:cut])
    assert set(found) <= {"fd55::3", "fd55::4"}
    assert set(domains) <= {"lan.example"}
    for each in noted(message(garbage), garbage):
        assert all(text.isprintable() for text in each)
