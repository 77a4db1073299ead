"""The netlink codec: what it writes it reads, and no bytes from outside make it fail or loop."""

from __future__ import annotations

import pickle
import socket
import struct
from errno import EBUSY, EEXIST, EINTR, ENODEV, ENOENT, EPERM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.kernel import address, bridge_vlan, link, route, rule
from cni.kernel import netlink as nl
from cni.kernel.errors import NetlinkError
from cni.kernel.netlink import Netlink
from cni.owner import ALIAS_MAX, COMMENT_MAX, IPTABLES_COMMENT_MAX, NAME_MAX, Owner, file_name
from cni.protocol.address import Prefix

ATTRS = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=6)


# -- attributes -----------------------------------------------------------------------------------


@given(ATTRS)
def test_attributes_round_trip(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(nl.attr(kind, payload) for kind, payload in pairs)
    assert len(data) % 4 == 0
    assert list(nl.attrs(data)) == pairs
    assert nl.attr_map(data) == dict(pairs)
    assert list(nl.attrs(b"head" + data, 4)) == pairs
    nested = nl.nest(5, data)
    assert list(nl.attrs(nested)) == [(5, data)]  # the flag is no part of the type


@given(ATTRS, st.data())
def test_truncated_attributes_end_the_walk(
    pairs: list[tuple[int, bytes]], draw: st.DataObject
) -> None:
    data = b"".join(nl.attr(kind, payload) for kind, payload in pairs)
    cut = draw.draw(st.integers(0, len(data)))
    found = list(nl.attrs(data[:cut]))
    assert found == pairs[: len(found)]


@given(st.binary(max_size=200), st.integers(0, 8))
def test_any_bytes_are_attributes(data: bytes, offset: int) -> None:
    found = list(nl.attrs(data, offset))
    assert sum(4 + len(payload) for _, payload in found) <= len(data)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 0xFFFF])
def test_a_wrong_length_ends_the_walk(size: int) -> None:
    assert list(nl.attrs(struct.pack("=HH", size, 1))) == []
    assert list(nl.attrs(nl.attr(1, b"x") + struct.pack("=HH", size, 1))) == [(1, b"x")]


@given(st.binary(max_size=12) | st.none())
def test_any_bytes_are_a_number_or_text(payload: bytes | None) -> None:
    assert 0 <= nl.get_u32(payload, 7) <= 0xFFFFFFFF
    assert "\0" not in nl.get_text(payload)


def test_numbers_and_text() -> None:
    assert nl.u8(1, 5) == struct.pack("=HHBxxx", 5, 1, 5)
    assert nl.u16(1, 5) == struct.pack("=HHHxx", 6, 1, 5)
    assert nl.u32(1, 5) == struct.pack("=HHI", 8, 1, 5)
    assert nl.get_text(next(nl.attrs(nl.text(1, "aé\udcff")))[1]) == "aé\udcff"
    assert nl.get_u32(b"\1\0", 9) == 9


# -- messages -------------------------------------------------------------------------------------


def message(kind: int, payload: bytes, *, flags: int = 0, sequence: int = 1) -> bytes:
    size = 16 + len(payload)
    return struct.pack("=IHHII", size, kind, flags, sequence, 0) + payload + b"\0" * (-size & 3)


def answer(code: int, text: str = "", *, capped: bool = True, sequence: int = 1) -> bytes:
    """An NLMSG_ERROR, with the kernel's explanation if there is one."""
    header = struct.pack("=IHHII", 20, 16, 5, sequence, 0)
    body = struct.pack("=i", -code) + header + (b"" if capped else b"body")
    flags = 0x100 if capped else 0
    if text:
        flags |= 0x200
        body += nl.text(1, text)
    return message(nl.NLMSG_ERROR, body, flags=flags, sequence=sequence)


@given(st.lists(st.binary(max_size=30), max_size=4))
def test_messages_round_trip(payloads: list[bytes]) -> None:
    data = b"".join(message(16, p, flags=2, sequence=n) for n, p in enumerate(payloads))
    assert list(nl.split(data)) == [(16, 2, n, p) for n, p in enumerate(payloads)]


@given(st.binary(max_size=300))
def test_any_bytes_are_messages(data: bytes) -> None:
    assert sum(16 + len(payload) for *_, payload in nl.split(data)) <= len(data)


class Kernel:
    """A Netlink whose kernel is this test: it answers each request with prepared datagrams."""

    def __init__(self, *replies: bytes) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.netlink = Netlink(sock=ours)
        ours.settimeout(2)
        for reply in replies:
            self.theirs.send(reply)

    def __enter__(self) -> Netlink:
        return self.netlink

    def __exit__(self, *exc: object) -> None:
        self.netlink.close()
        self.theirs.close()


def test_request() -> None:
    with Kernel(message(16, b"data") + answer(0)) as sock:
        assert sock.request(16, b"") == [(16, b"data")]


@pytest.mark.parametrize("capped", [True, False])
def test_a_refused_request(capped: bool) -> None:
    reply = answer(EPERM, "not you", capped=capped)
    with Kernel(reply) as sock, pytest.raises(NetlinkError) as caught:
        sock.request(16, b"")
    error = caught.value
    assert (error.errno, error.explanation) == (EPERM, "not you")
    assert str(error) == "operation not permitted (not you)"
    again = pickle.loads(pickle.dumps(error))  # it crosses from the executor
    assert (again.errno, str(again), type(again)) == (EPERM, str(error), NetlinkError)


def test_a_batch() -> None:
    """One datagram; each request has its own outcome, of whatever length it is.

    Errors are told in any case; only the last asks for an acknowledgement.
    """
    kernel = Kernel(answer(EPERM, sequence=99), answer(EPERM, sequence=2), answer(0, sequence=3))
    with kernel as sock:
        outcomes = sock.batch([(24, b"a", 0), (25, b"bcde", 0x400), (24, b"", 0)])
        assert [outcome and outcome.errno for outcome in outcomes] == [None, EPERM, None]
        sent = list(nl.split(kernel.theirs.recv(4096)))
    assert sent == [
        (24, nl.NLM_F_REQUEST, 1, b"a"),
        (25, nl.NLM_F_REQUEST | 0x400, 2, b"bcde"),
        (24, nl.NLM_F_REQUEST | nl.NLM_F_ACK, 3, b""),
    ]


def test_a_batch_whose_last_fails() -> None:
    with Kernel(answer(EPERM, sequence=1) + answer(ENOENT, sequence=2)) as sock:
        outcomes = sock.batch([(24, b"a", 0), (24, b"b", 0)])
    assert [outcome and outcome.errno for outcome in outcomes] == [EPERM, ENOENT]


def test_a_batch_of_none() -> None:
    with Kernel() as sock:
        assert sock.batch([]) == []


def test_answers_to_an_earlier_request_are_skipped() -> None:
    stale = answer(EPERM, sequence=99)
    with Kernel(stale, stale + message(16, b"data"), stale, answer(0)) as sock:
        assert sock.request(16, b"") == [(16, b"data")]


def test_dump() -> None:
    with Kernel(message(16, b"one") + message(16, b"two"), message(16, b"3"), DONE) as sock:
        assert sock.dump(18, b"") == [b"one", b"two", b"3"]


DONE = message(nl.NLMSG_DONE, struct.pack("=i", 0))


@pytest.mark.parametrize("how", ["flag", "error", "eintr"])
def test_an_interrupted_dump_is_repeated(how: str) -> None:
    broken = {
        "flag": message(16, b"old", flags=nl.NLM_F_DUMP_INTR)
        + message(nl.NLMSG_DONE, struct.pack("=i", 0)),
        "error": answer(EBUSY),
        "eintr": message(nl.NLMSG_DONE, struct.pack("=i", -EINTR)),
    }[how]
    good = message(16, b"new", sequence=2) + message(
        nl.NLMSG_DONE, struct.pack("=i", 0), sequence=2
    )
    with Kernel(broken, good) as sock:
        assert sock.dump(18, b"") == [b"new"]


def test_a_dump_that_is_always_interrupted_ends() -> None:
    replies = [
        message(16, b"x", flags=nl.NLM_F_DUMP_INTR, sequence=n)
        + message(nl.NLMSG_DONE, struct.pack("=i", 0), sequence=n)
        for n in range(1, 6)
    ]
    with Kernel(*replies) as sock:
        assert sock.dump(18, b"") == [b"x"]  # what there was, after five times


def test_a_failed_dump() -> None:
    reply = message(nl.NLMSG_DONE, struct.pack("=i", -ENODEV))
    with Kernel(reply) as sock, pytest.raises(NetlinkError) as caught:
        sock.dump(18, b"")
    assert caught.value.errno == ENODEV


@given(st.binary(max_size=60), st.integers(0, 0xFFFF))
def test_any_error_message_is_an_error(data: bytes, flags: int) -> None:
    try:
        nl._raise_if_error(flags, data)
    except NetlinkError:
        failed = True
    else:
        failed = False
    assert failed == (data[:4] != bytes(4))


# -- what the modules read ------------------------------------------------------------------------


class Answers(Netlink):
    """Answers each dump with one message."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def dump(self, _kind: int, _payload: bytes) -> list[bytes]:
        return [self._data]


PARSERS = [
    link.parse,
    address._parse,
    lambda data: route._parse(data, socket.AF_INET),
    lambda data: route._parse(data, socket.AF_INET6),
    rule._parse,
    lambda data: bridge_vlan.show(Answers(data), 0),
]


@given(st.binary(max_size=120), ATTRS)
def test_any_payload_is_parsed_or_refused(head: bytes, pairs: list[tuple[int, bytes]]) -> None:
    tail = b"".join(nl.attr(kind & 63, payload) for kind, payload in pairs)
    for parse in PARSERS:
        for data in (head, bytes(16) + tail, head + tail):
            try:
                parse(data)
            except NetlinkError:
                pass


# -- names ----------------------------------------------------------------------------------------


def test_known_names() -> None:
    """The vectors of the reference (docs/spec/common.md §2, §6)."""
    assert Owner("net1", "c1", "eth0").chain() == "CNI-c2d892b58e87e28a12fe6479"
    assert Owner("net1", "c1", "eth0").chain("DN-") == "CNI-DN-c2d892b58e87e28a12fe6"
    assert Owner("test", "1234", "x").chain() == "CNI-2bbe0c48b91a7d1b8a6753a8"
    assert Owner("net1", "c1", "eth0").comment == (
        "8e48f37d5de60467-f4d01f2ef4b92245, net: net1, if: eth0, id: c1"
    )
    assert Owner("unit-test", "one", "eth0").key == "6fd94d501e58f0aa-287fc69eff0574a2"


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1, max_size=15))
def test_names_fit(network: str, container_id: str, ifname: str) -> None:
    owner = Owner(network, container_id, ifname)
    assert len(owner.alias.encode()) <= ALIAS_MAX
    assert owner.alias.startswith(f"cni:{owner.key}")
    assert len(owner.chain("DN-")) == 28
    assert len(owner.comment.encode()) <= COMMENT_MAX
    assert len(owner.iptables_comment.encode()) <= IPTABLES_COMMENT_MAX
    assert len(owner.veth()) == 12
    assert owner.veth() != owner.veth(1)


@pytest.mark.parametrize("size", [1, NAME_MAX - 6, NAME_MAX - 5, NAME_MAX - 4, 1000])
def test_file_names_fit(size: int) -> None:
    name, other = file_name("x" * size, ".json"), file_name("x" * (size - 1) + "y", ".json")
    assert len(name) <= NAME_MAX
    assert name.endswith(".json")
    assert name != other
    assert (name == "x" * size + ".json") == (size + 5 <= NAME_MAX)


@given(st.tuples(*[st.text(max_size=4)] * 3), st.tuples(*[st.text(max_size=4)] * 3))
def test_two_attachments_have_two_names(
    one: tuple[str, str, str], two: tuple[str, str, str]
) -> None:
    if one != two:
        assert Owner(*one).veth() != Owner(*two).veth()


@pytest.mark.parametrize(
    "text",
    ["02:00:00:AB:cd:56", "02-00-00-ab-cd-56", "0200.00ab.cd56", "0200.00AB.CD56", "020000abCD56"],
)
def test_macs(text: str) -> None:
    assert link.parse_mac(text) == bytes.fromhex("020000abcd56")
    assert link.format_mac(link.parse_mac(text)) == "02:00:00:ab:cd:56"


@pytest.mark.parametrize(
    "text",
    ["", "x", "02:00:00:00:00", "02:00:00:00:00:00:01", "02:00:00:00:00:0g", "02000000000g",
     "02000000000", "0200000000000", "0x0200000000",
     "2:0:0:0:0:1", "02:00:00-00:00:01", "02:00:00:00:00: 1", "02:00:00:00:00:01\n",
     "0200:0000:0001", " 2:00:00:00:00:01"],
)  # fmt: skip
def test_what_is_no_mac(text: str) -> None:
    with pytest.raises(ValueError, match="invalid MAC address") as caught:
        link.parse_mac(text)
    assert str(caught.value) == f"address {text}: invalid MAC address"


def test_errors_that_say_it_is_there_already() -> None:
    nl.ignoring_exists(NetlinkError(EEXIST))
    with pytest.raises(NetlinkError):
        nl.ignoring_exists(NetlinkError(EPERM))


def test_a_route_in_words() -> None:
    entry = route.Route(Prefix.parse("10.0.0.0/8"), 1, b"\x0a\0\0\1", b"\x0a\0\0\2")
    assert str(entry) == "10.0.0.0/8 via 10.0.0.1 src 10.0.0.2"
