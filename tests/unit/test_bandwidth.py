"""bandwidth: its arithmetic, names and configuration (docs/spec/bandwidth.md)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.kernel import tc, tcfilter
from cni.plugins.bandwidth import ifb
from cni.plugins.bandwidth.settings import Conf, validated
from cni.plugins.bandwidth.shape import Limit
from cni.protocol.address import Prefix
from cni.protocol.config import convert
from cni.protocol.errors import CNIError

RATES = st.integers(1, 2**61)
BURSTS = st.integers(1, 2**32 - 2)


def read(**keys: Any) -> Any:
    return validated(convert(keys, Conf))


def test_names_of_the_specification() -> None:
    assert ifb.name_of("net1", "c1") == "bwpc2d892b58e87"
    assert ifb.name_of("cni-plugin-bandwidth-test", "dummy") == "bwpa8eda89404b7"


@given(st.text(), st.text(), st.text(min_size=1))
def test_names_fit(network: str, container_id: str, ifname: str) -> None:
    names = {ifb.name_of(network, container_id), ifb.name_of(network, container_id, ifname)}
    assert len(names) == 2
    assert {len(name) for name in names} == {15}


def test_example_of_the_specification() -> None:
    limit = read(ingressRate=8000, ingressBurst=80).ingress
    assert limit == Limit(rate=1000, burst=10, latency=25)
    assert limit.bucket(1500) == tc.Bucket(rate=1000, burst=10, limit=35)
    assert tc.buffer_ticks(1000, 10) == 156250


@given(RATES, BURSTS)
def test_ticks(rate: int, burst: int) -> None:
    """Never more than 32 bits; the reference's number is the same as long as that suffices."""
    ticks, wrapped = tc.buffer_ticks(rate, burst), tc.wrapped_ticks(rate, burst)
    assert 0 <= ticks <= 2**32 - 1
    assert 0 <= wrapped <= 2**32 - 1
    if burst / rate < 270:  # seconds
        assert ticks == wrapped
    if burst / rate > 275:
        assert ticks == 2**32 - 1


@given(RATES, st.integers(68, 65535), st.integers(1, 10_000))
def test_default_burst(rate: int, mtu: int, latency: int) -> None:
    """At least a packet with its headers, at least what 10 ms give, and the queue on top."""
    bucket = Limit(rate, 0, latency).bucket(mtu)
    assert bucket.burst >= mtu + 18
    assert bucket.burst >= rate // 100
    assert bucket.burst < mtu + 100 or bucket.burst == rate // 100
    queue = bucket.limit - bucket.burst
    assert queue == pytest.approx(rate * latency / 1000, abs=1)


@given(st.integers(8, 2**64 - 1), st.integers(8, 2**35 - 9))
def test_what_the_reference_accepts(rate: int, burst: int) -> None:
    want = read(egressRate=rate, egressBurst=burst)
    assert want.egress == Limit(rate // 8, burst // 8, 25)
    assert want.ingress is None
    runtime = {"bandwidth": {"egressRate": rate, "egressBurst": burst}}
    assert read(runtimeConfig=runtime) == want
    assert read(runtimeConfig=runtime, egressRate=0).egress is None


@pytest.mark.parametrize(
    ("rate", "burst", "valid"),
    [
        (5000, 4 * 2**30 * 8, False),
        (5000, 4 * 2**30 * 8 - 16, True),
        (0, 1, False),
        (1, 0, False),
        (0, 0, True),
    ],
)
def test_validation(rate: int, burst: int, valid: bool) -> None:
    if valid:
        read(ingressRate=rate, ingressBurst=burst)
    else:
        with pytest.raises(CNIError):
            read(ingressRate=rate, ingressBurst=burst)


def test_subnets() -> None:
    subnets = read(shapedSubnets=["10.1.2.3/8", "10.0.0.0/8", "fd00::1/8"]).subnets
    assert [str(prefix) for prefix in subnets.prefixes] == ["10.0.0.0/8", "fd00::/8"]
    assert (subnets.shaped, subnets.default, subnets.listed) == (True, 0x01, 0x30)
    runtime = {"bandwidth": {"unshapedSubnets": ["192.0.2.0/24"]}}
    subnets = read(runtimeConfig=runtime).subnets
    assert (subnets.shaped, subnets.default, subnets.listed) == (False, 0x30, 0x01)
    assert read(unshapedSubnets=[], runtimeConfig=runtime).subnets.prefixes == []


def test_selector() -> None:
    """The words and offsets of tc(8)'s `match ip6 dst` and `match ip src`."""
    wanted = "01000300 00000000 00000000 00000000"  # terminal, three keys
    wanted += "ffffffff fd000db8 18000000 00000000"
    wanted += "ffffffff abcd1234 1c000000 00000000"
    wanted += "f0000000 e0000000 20000000 00000000"
    prefix = Prefix.parse("fd00:db8:abcd:1234:e000::/68")
    assert tcfilter.matching("u32", prefix, source=False) == bytes.fromhex(wanted)
    wanted = "01000100 00000000 00000000 00000000 ff000000 0a000000 0c000000 00000000"
    found = tcfilter.matching("u32", Prefix.parse("10.1.1.1/8"), source=True)
    assert found == bytes.fromhex(wanted)
