"""DHCPv6: addresses and delegated prefixes in messages, and which answers count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.ipam.dhcp import answers6, lease6
from cni.ipam.dhcp import message6 as m
from cni.ipam.dhcp.conf import IpamConf, PrefixDelegation, delegation
from cni.ipam.dhcp.exchange import now
from cni.ipam.dhcp.message4 import Malformed
from cni.ipam.dhcp.placement import own_address
from cni.protocol.address import Prefix, is_global_unicast, parse_ip
from cni.protocol.config import convert
from cni.protocol.errors import CNIError
from tests.harness.dhcp import ia_na, ia_pd, option6, refusal6, status6

XID, CLIENT, SERVER = b"abc", b"\0\x04client", b"\0\x03server"
ADVERTISE, REPLY = m.ADVERTISE, m.REPLY
WISH = answers6.Wish(True, PrefixDelegation())
OPTIONAL = answers6.Wish(True, PrefixDelegation(required=False))
PREFIX_ONLY = answers6.Wish(False, PrefixDelegation(assign=True))
HELD, HELD_PREFIX = Prefix.parse("fd55::60/128"), Prefix.parse("fd77::/64")


def message(*options: bytes, kind: int = REPLY) -> m.Message:
    ids = option6(m.CLIENT_ID, CLIENT) + option6(m.SERVER_ID, SERVER)
    return m.decode(bytes((kind,)) + XID + ids + b"".join(options), 1)


def prefixes(*options: bytes) -> list[str]:
    """The delegated prefixes of a message."""
    association = message(*options).prefix
    return [str(Prefix(g.address, g.length)) for g in association.grants] if association else []


# -- the configuration ----------------------------------------------------------------------------


def test_the_wish_for_a_prefix() -> None:
    def wish(**keys: Any) -> PrefixDelegation | None:
        return delegation(convert({"type": "dhcp", "prefixDelegation": keys}, IpamConf))

    assert delegation(convert({"type": "dhcp"}, IpamConf)) is None
    assert wish() == PrefixDelegation(64, True, False)
    assert wish(length=32, required=False, assign=True) == PrefixDelegation(32, False, True)
    for length in (-1, 0, 31, 129):
        with pytest.raises(CNIError, match=f"invalid length {length} of prefixDelegation"):
            wish(length=length)


# -- messages -------------------------------------------------------------------------------------


def test_scapy_reads_what_is_sent() -> None:
    from scapy.layers.dhcp6 import DHCP6_Solicit

    data = m.encode(m.SOLICIT, XID, m.ia_na(1, HELD.ip), m.ia_pd(1, HELD_PREFIX))
    packet = DHCP6_Solicit(data)
    assert packet["DHCP6OptIAAddress"].addr == "fd55::60"
    assert packet["DHCP6OptIA_PD"].iaid == 1
    prefix = packet["DHCP6OptIAPrefix"]
    assert (prefix.prefix, prefix.plen, prefix.preflft, prefix.validlft) == ("fd77::", 64, 0, 0)
    anything = DHCP6_Solicit(m.encode(m.SOLICIT, XID, m.ia_pd(1, Prefix(bytes(16), 60))))
    assert (anything["DHCP6OptIAPrefix"].prefix, anything["DHCP6OptIAPrefix"].plen) == ("::", 60)


def test_address_and_prefix_are_kept_apart() -> None:
    both = message(ia_na("fd55::60", 10, 20), ia_pd("fd77::/64", 30, 40, t1=5, t2=6))
    assert both.address is not None
    assert both.prefix is not None
    assert both.address.grants == [m.Grant(HELD.ip, 128, 10, 20, 1000, 1500)]
    assert both.prefix.grants == [m.Grant(HELD_PREFIX.ip, 64, 30, 40, 5, 6)]
    # another IA's id, and a second option of the same id
    other = option6(25, (2).to_bytes(4, "big") + ia_pd("fd99::/64")[8:])
    assert prefixes(other, ia_pd("fd77::/64"), ia_pd("fd88::/64")) == ["fd77::/64"]


@pytest.mark.parametrize(
    ("prefix", "usable"),
    [
        ("2001:db8:1::/48", True), ("2001:db8::/32", True), ("fd77::/64", True),
        ("fd77::/128", True),
        # host bits are cleared
        ("fd77::1/64", True),
        ("2000::/31", False), ("::/0", False), ("fd77::/129", False), ("fd77::/255", False),
        ("fe80::/64", False), ("ff02::/64", False), ("::1/128", False), ("::/64", False),
        ("::ffff:10.0.0.0/120", False), ("64:ff9b::/96", False),
    ],
)  # fmt: skip
def test_prefixes_that_a_container_can_have(prefix: str, usable: bool) -> None:
    found = prefixes(ia_pd(prefix))
    assert bool(found) is usable
    assert all(Prefix.parse(each) == Prefix.parse(each).network for each in found)


@pytest.mark.parametrize(
    ("option", "granted"),
    [
        (ia_pd("fd77::/64", 100, 100), True),
        (ia_pd("fd77::/64", 101, 100), False),  # preferred longer than valid
        (ia_pd("fd77::/64", 0, 100), True),
        (ia_pd("fd77::/64", 0xFFFFFFFF, 0xFFFFFFFF), True),
        (ia_pd("fd77::/64", 0, 0), True),  # taken back
        (ia_pd("fd77::/64", t1=2, t2=1), False),
        (ia_pd("fd77::/64", t1=2, t2=0), True),
        (ia_pd("fd77::/64", t1=0, t2=0), True),
    ],
)
def test_lifetimes_that_contradict_each_other(option: bytes, granted: bool) -> None:
    assert prefixes(option) == (["fd77::/64"] if granted else [])
    assert bool(prefixes(option, ia_na("fd55::60"))) is granted


@pytest.mark.parametrize(
    "option",
    [
        option6(25, b"\0\0\0\1"),
        option6(25, (1).to_bytes(4, "big") + bytes(7)),
        option6(25, (1).to_bytes(4, "big") + bytes(8) + option6(26, bytes(24))),
        option6(25, (1).to_bytes(4, "big") + bytes(8) + b"\0\x1a\0\xff" + bytes(25)),
        option6(25, (1).to_bytes(4, "big") + bytes(8) + b"\0\x1a\0"),
        option6(25, (1).to_bytes(4, "big") + bytes(8) + option6(13, b"\0")),
        option6(3, (1).to_bytes(4, "big") + bytes(8) + option6(5, bytes(23))),
        option6(13, b"\0"),
        b"\0\x19\0",
    ],
)
def test_malformed_options(option: bytes) -> None:
    with pytest.raises(Malformed):
        message(option)


def test_nested_options_are_not_confused() -> None:
    """A prefix's own options, and an address option in an IA_PD, grant nothing."""
    packed = parse_ip("fd99::")
    inner = option6(26, bytes(8) + bytes((64,)) + packed) + status6(6, "none")
    times = (10).to_bytes(4, "big") * 2
    nested = option6(26, times + bytes((64,)) + HELD_PREFIX.ip + inner)
    ia = option6(25, (1).to_bytes(4, "big") + bytes(8) + nested)
    assert prefixes(ia) == ["fd77::/64"]
    wrong = option6(25, (1).to_bytes(4, "big") + bytes(8) + option6(5, packed + times))
    assert prefixes(wrong) == []
    assert message(option6(3, ia_pd("fd77::/64")[4:])).address == m.Association([])


@given(st.binary(max_size=200), st.sampled_from([3, 25]))
def test_no_bytes_break_the_decoder(data: bytes, code: int) -> None:
    """What is granted is always something that an interface can have."""
    for options in ((data,), (option6(code, (1).to_bytes(4, "big") + data[:180]),)):
        try:
            found = message(*options)
        except Malformed:
            continue
        for part in (found.address, found.prefix):
            for grant in part.grants if part else []:
                assert is_global_unicast(grant.address)
                assert 32 <= grant.length <= 128
                assert grant.preferred <= grant.valid


# -- answers --------------------------------------------------------------------------------------

AT_ONCE, LATER, NEVER = answers6.Worth.FULL, answers6.Worth.LESSER, answers6.Worth.NONE
ADDRESS, PREFIX = ia_na("fd55::60"), ia_pd("fd77::/64")
NO_ADDRESS, NO_PREFIX = refusal6(3, 2, "full"), refusal6(25, 6, "none")


@pytest.mark.parametrize(
    ("wish", "options", "counts"),
    [
        (WISH, (ADDRESS, PREFIX), AT_ONCE),
        (WISH, (ADDRESS,), NEVER),
        (WISH, (ADDRESS, NO_PREFIX), NEVER),
        (WISH, (NO_ADDRESS, PREFIX), NEVER),
        (WISH, (ADDRESS, ia_pd("fd77::/64", 0, 0)), NEVER),
        (OPTIONAL, (ADDRESS, PREFIX), AT_ONCE),
        (OPTIONAL, (ADDRESS, NO_PREFIX), LATER),
        (OPTIONAL, (NO_ADDRESS, PREFIX), NEVER),
        (OPTIONAL, (), NEVER),
        (PREFIX_ONLY, (PREFIX,), AT_ONCE),
        (PREFIX_ONLY, (ADDRESS,), NEVER),
        (answers6.Wish(False, PrefixDelegation(required=False)), (NO_PREFIX,), NEVER),
        (answers6.Wish(True, None), (ADDRESS,), AT_ONCE),
        (answers6.Wish(True, None), (status6(2),), NEVER),
    ],
)
def test_offers(wish: answers6.Wish, options: tuple[bytes, ...], counts: answers6.Worth) -> None:
    offer = message(*options, kind=ADVERTISE)
    assert answers6.worth_of_offer(offer, wish, rapid=False) == counts
    for kind, more, rapid in ((REPLY, (), True), (REPLY, (option6(14),), False)):
        reply = message(*options, *more, kind=kind)
        assert answers6.worth_of_offer(reply, wish, rapid) is NEVER
    committed = message(*options, option6(14))
    assert answers6.worth_of_offer(committed, wish, rapid=True) == counts


@pytest.mark.parametrize(
    ("wish", "offered", "options", "counts"),
    [
        (WISH, (ADDRESS, PREFIX), (ADDRESS, PREFIX), AT_ONCE),
        (WISH, (ADDRESS, PREFIX), (ADDRESS, NO_PREFIX), LATER),
        (WISH, (ADDRESS, PREFIX), (status6(1),), LATER),
        (WISH, (ADDRESS, PREFIX), (), NEVER),
        (OPTIONAL, (ADDRESS,), (ADDRESS,), AT_ONCE),
        (OPTIONAL, (ADDRESS, PREFIX), (ADDRESS,), LATER),
        (OPTIONAL, (ADDRESS,), (NO_ADDRESS,), LATER),
    ],
)
def test_replies(
    wish: answers6.Wish,
    offered: tuple[bytes, ...],
    options: tuple[bytes, ...],
    counts: answers6.Worth,
) -> None:
    offer = message(*offered, kind=ADVERTISE)
    assert answers6.worth_of_reply(message(*options), wish, offer) == counts
    assert answers6.worth_of_reply(message(*options, kind=ADVERTISE), wish, offer) is NEVER


BACK = ia_pd("fd77::/64", 0, 0)
ELSEWHERE = ia_pd("fd77::/64", 0, 0, inner=ia_pd("fd88::/64")[16:])


@pytest.mark.parametrize(
    ("options", "granted", "lost", "counts"),
    [
        ((ADDRESS, PREFIX), ["fd55::60/128", "fd77::/64"], "", AT_ONCE),
        # nothing is said of the prefix: it continues
        ((ADDRESS,), ["fd55::60/128"], "", AT_ONCE),
        ((PREFIX,), ["fd77::/64"], "", AT_ONCE),
        ((ADDRESS, NO_PREFIX), ["fd55::60/128"], "", AT_ONCE),
        # another address beside ours, or a prefix of another length, is not ours
        (
            (ia_na("fd55::66", inner=ADDRESS[16:]), PREFIX),
            ["fd55::60/128", "fd77::/64"],
            "",
            AT_ONCE,
        ),
        ((ia_na("fd55::66"),), [], "", NEVER),
        ((ia_pd("fd77::/60"),), [], "", NEVER),
        ((ADDRESS, BACK), ["fd55::60/128"], "", LATER),
        ((ADDRESS, ELSEWHERE), ["fd55::60/128", "fd88::/64"], "", LATER),
        ((ADDRESS, refusal6(25, 3)), ["fd55::60/128"], "", LATER),
        ((refusal6(3, 3, "who?"), PREFIX), ["fd77::/64"], "NoBinding: 'who?'", LATER),
        ((ia_na("fd55::60", 0, 0),), [], "the server takes fd55::60/128 back", LATER),
        ((status6(3),), [], "NoBinding", LATER),
        # the server cannot answer now: a repetition may be answered
        ((status6(1, "busy"),), [], "", NEVER),
        ((refusal6(3, 2),), [], "", NEVER),
        ((), [], "", NEVER),
        ((BACK,), [], "", NEVER),
    ],
)
def test_renewals(
    options: tuple[bytes, ...], granted: list[str], lost: str, counts: answers6.Worth
) -> None:
    reply = message(*options)
    news = answers6.renewals(reply, WISH, HELD, HELD_PREFIX)
    assert [str(Prefix(g.address, g.length)) for g in news.grants] == granted
    assert news.lost == lost
    assert answers6.worth_of_renewal(reply, news) == counts
    assert answers6.worth_of_renewal(message(*options, kind=ADVERTISE), news) is NEVER


def test_a_prefix_alone_is_lost_or_replaced() -> None:
    def news(*options: bytes) -> answers6.Renewals:
        return answers6.renewals(message(*options), PREFIX_ONLY, None, HELD_PREFIX)

    assert news(BACK).lost == "the server takes fd77::/64 back"
    assert news(refusal6(25, 3)).lost == "NoBinding"
    assert news(ELSEWHERE).lost == ""
    assert [g.address for g in news(ELSEWHERE).grants] == [parse_ip("fd88::")]
    # one that was missing is taken when it comes
    later = answers6.renewals(message(ADDRESS, PREFIX), OPTIONAL, HELD, None)
    assert [g.length for g in later.grants] == [128, 64]


def test_what_a_server_does_not_grant_is_explained() -> None:
    text = WISH.explain(message(ADDRESS, NO_PREFIX))
    assert text.startswith("a server grants no prefix (NoPrefixAvail: 'none'): configure prefixes")
    text = WISH.explain(message(NO_ADDRESS, NO_PREFIX, status6(77)))
    assert text == (
        "a server grants no address and no prefix "
        "(NoAddrsAvail: 'full', NoPrefixAvail: 'none', status 77)"
    )
    assert WISH.explain(message(ADDRESS, PREFIX)) == ""


# -- leases ---------------------------------------------------------------------------------------


def lease(*grants: m.Grant, **more: Any) -> lease6.Lease6:
    more = {"before": None, **more}
    wish = PrefixDelegation(assign=True)
    return lease6.of_grants(message(), wish, HELD.ip, HELD_PREFIX, list(grants), **more)


def grant(preferred: int, valid: int, t1: int = 0, t2: int = 0) -> m.Grant:
    return m.Grant(HELD.ip, 128, preferred, valid, t1, t2)


@pytest.mark.parametrize(
    ("grants", "times"),
    [
        ([grant(100, 200, 10, 20)], (10, 20, 200)),
        ([grant(100, 200)], (50, 80, 200)),
        ([grant(0, 200)], (100, 160, 200)),
        ([grant(100, 200, 300, 400)], (50, 80, 200)),
        # the first of both decides
        ([grant(100, 200, 10, 90), grant(100, 150, 60, 80)], (10, 80, 150)),
        ([grant(1000, 2000, 500, 800), grant(10, 20, 5, 8)], (5, 8, 20)),
        ([grant(m.INFINITE, m.INFINITE), grant(100, 200, 10, 20)], (10, 20, 200)),
    ],
)
def test_times(grants: list[m.Grant], times: tuple[int, int, int]) -> None:
    begun = now()
    t1, t2, expires = lease(*grants).times
    assert [round(each - begun) for each in (t1, t2, expires)] == list(times)


def test_times_that_never_come() -> None:
    endless = lease(grant(m.INFINITE, m.INFINITE))
    assert (endless.t1, endless.t2, endless.expires) == (None, None, None)
    # what the server was silent about ends when it would have ended
    bound = lease(grant(1000, 2000, 500, 800), bound=now() + 5)
    assert bound.expires is not None
    assert bound.t1 is not None
    assert bound.t1 <= bound.expires <= now() + 5


@given(
    st.lists(
        st.builds(
            grant, *(st.sampled_from([0, 1, 50, 100, m.INFINITE - 1, m.INFINITE]),) * 4
        ).filter(lambda g: g.preferred <= g.valid and g.valid),
        min_size=1,
        max_size=2,
    )
)
def test_a_lease_is_renewed_before_it_ends(grants: list[m.Grant]) -> None:
    t1, t2, expires = lease(*grants).times
    assert t1 <= t2 <= expires


def test_a_required_prefix_is_asked_for_again_soon() -> None:
    long = grant(100_000, 200_000, 50_000, 80_000)
    wish = PrefixDelegation()
    lacking = lease6.of_grants(message(), wish, HELD.ip, None, [long], before=None)
    assert lacking.t1 is not None
    assert lacking.t1 - now() <= 60
    wish = PrefixDelegation(required=False)
    content = lease6.of_grants(message(), wish, HELD.ip, None, [long], before=None)
    assert content.t1 is not None
    assert content.t1 - now() > 1000


@pytest.mark.parametrize(
    ("prefix", "own"),
    [("fd77::/64", "fd77::1/128"), ("fd77::/127", "fd77::1/128"), ("fd77::5/128", "fd77::5/128")],
)
def test_the_address_of_a_prefix(prefix: str, own: str) -> None:
    assert str(own_address(Prefix.parse(prefix))) == own


def test_addresses_of_a_lease() -> None:
    both = lease(grant(100, 200))
    assert [str(each) for each in both.prefixes] == ["fd55::60/128", "fd77::1/128"]
    both.assigned = False
    assert both.prefixes == [HELD]
    assert both.leased == [HELD, HELD_PREFIX]
    both.assigned, both.delegated = True, Prefix.parse("fd55::60/128")
    assert both.prefixes == [HELD]
    alone = lease6.of_grants(
        message(), PrefixDelegation(assign=True), b"", HELD_PREFIX, [grant(1, 2)], before=None
    )
    assert [str(each) for each in alone.prefixes] == ["fd77::1/128"]
