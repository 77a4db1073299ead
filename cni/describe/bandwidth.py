"""Keys of bandwidth."""

from __future__ import annotations

from .common import runtime
from .model import Get, Key, Many, Number, Plugin, Record, Rule, Text, replace

_RATES = ("ingressRate", "egressRate")
_MOST = (1 << 63) - 1
_MOST_BURST = 8 * 0xFFFFFFFF - 1  # bits: less than 4 GiB

_KEYS = (
    Key(
        "ingressRate",
        Number(8, _MOST, "bit/s", or_zero=True),
        "how fast the container may receive; 0: unlimited",
        default=0,
        example=100_000_000,
    ),
    Key(
        "ingressBurst",
        Number(8, _MOST_BURST, "bits", or_zero=True),
        "how much it may receive at once after a pause",
        absent="with `latency`: 10 ms of the rate",
        example=10_000_000,
    ),
    Key(
        "egressRate",
        Number(8, _MOST, "bit/s", or_zero=True),
        "how fast the container may send; 0: unlimited",
        default=0,
        example=100_000_000,
    ),
    Key(
        "egressBurst",
        Number(8, _MOST_BURST, "bits", or_zero=True),
        "how much it may send at once after a pause",
        absent="with `latency`: 10 ms of the rate",
        example=10_000_000,
    ),
    Key(
        "latency",
        Number(1, 10_000, "ms"),
        "how long a packet may wait in a full queue, beyond the time that the burst takes; with "
        "this key a rate needs no burst",
        default=25,
        example=25,
        beyond=True,
    ),
    Key(
        "unshapedSubnets",
        Many(Text("prefix")),
        "traffic with these subnets is not limited",
        absent="none",
        example=["10.22.0.0/24"],
    ),
    Key(
        "shapedSubnets",
        Many(Text("prefix")),
        "only traffic with these subnets is limited; not both lists",
        absent="all traffic",
        example=["198.51.100.0/24"],
    ),
)


def _lacks_burst(get: Get) -> bool:
    rates = (each for each in _RATES if get(each))
    return get("latency") is None and any(not get(each.replace("Rate", "Burst")) for each in rates)


def _lacks_rate(get: Get) -> bool:
    return any(get(each.replace("Rate", "Burst")) and not get(each) for each in _RATES)


PLUGIN = Plugin(
    name="bandwidth",
    place="chained",
    about="limits how fast the container may receive and send",
    keys=(
        *_KEYS,
        runtime(
            Key(
                "bandwidth",
                Record(tuple(replace(key, default=None, absent="") for key in _KEYS)),
                "the container's limits; the configuration's own win",
                absent="no limit",
                example={"ingressRate": 100_000_000, "ingressBurst": 10_000_000},
                capability="bandwidth",
            )
        ),
    ),
    rules=(
        Rule(
            _RATES,
            _lacks_burst,
            "if rate is set, burst must also be set",
            "give the burst in bits, or `latency` in ms",
        ),
        Rule(
            ("ingressBurst", "egressBurst"),
            _lacks_rate,
            "if burst is set, rate must also be set",
            "give the rate in bit/s",
        ),
        Rule(
            ("shapedSubnets", "unshapedSubnets"),
            lambda get: get("shapedSubnets") and get("unshapedSubnets"),
            "unshapedSubnets and shapedSubnets cannot be both specified",
            "remove one of them",
        ),
        Rule(
            ("type",),
            lambda get: (
                not any(map(get, _RATES))
                and not get("capabilities.bandwidth")
                and not get("runtimeConfig.bandwidth")
            ),
            "nothing will be limited: there is no rate, and the capability bandwidth is not "
            "declared",
            'add "capabilities": {"bandwidth": true}',
            is_warning=True,
        ),
    ),
    example={
        "type": "bandwidth",
        "capabilities": {"bandwidth": True},
        "latency": 25,
        "unshapedSubnets": ["10.22.0.0/24"],
    },
)
