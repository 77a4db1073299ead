"""Keys of bond."""

from __future__ import annotations

from dataclasses import replace

from cni.kernel.bond import HASH_POLICIES, MODES

from .common import DEVICE_MASTER, IPAM, RESULT_DNS, runtime
from .model import Flag, Get, Key, Many, Number, Plugin, Record, Rule, Text


def _gets_device(get: Get) -> bool:
    """Does the runtime give a device, or is it asked to?"""
    return bool(get("capabilities.deviceID") or get("runtimeConfig.deviceID"))


PLUGIN = Plugin(
    name="bond",
    place="main",
    about="joins several links to one that outlives the failure of some",
    keys=(
        Key(
            "mode",
            Text(values=MODES),
            "how packets are spread over the links",
            required=True,
            example="active-backup",
        ),
        Key(
            "miimon",
            Text(),
            "how often the links' carrier is looked at, in milliseconds, in quotation marks",
            required=True,
            example="100",
        ),
        Key(
            "links",
            Many(
                Record(
                    (
                        Key(
                            "name",
                            Text("interface"),
                            "name of a link",
                            required=True,
                            example="ens1f0",
                        ),
                    )
                )
            ),
            "the links that become ports of the bond, two or more; one, if the runtime gives a "
            "device",
            required=True,
            example=[{"name": "ens1f0"}, {"name": "ens2f0"}],
        ),
        Key(
            "linksInContainer",
            Flag(),
            "the links are in the container already, where plugins before have put them",
            default=False,
            example=True,
        ),
        Key(
            "mtu",
            Number(68, 65535, or_zero=True, word="auto"),
            "MTU of the bond and its links, at most the links' smallest; 0: 1500, or that; `auto`: "
            "that",
            default=0,
            example=1500,
        ),
        Key(
            "failOverMac",
            Number(0, 2),
            "0: all links have the bond's MAC; 1: the bond has the MAC of its active link; 2: the "
            "active link has the bond's MAC",
            default=0,
            example=1,
        ),
        Key(
            "xmitHashPolicy",
            Text(values=HASH_POLICIES),
            "by what a packet's link is chosen, in the modes that spread them by a hash",
            absent="layer2",
            example="layer3+4",
        ),
        Key(
            "allSlavesActive",
            Number(0, 1),
            "1: also take what comes in by links that are not active",
            absent="0",
            example=1,
        ),
        Key(
            "tlbDynamicLb",
            Number(0, 1),
            "0: of balance-tlb, do not shift flows by load",
            absent="1",
            example=0,
        ),
        IPAM,
        RESULT_DNS,
        runtime(
            replace(
                DEVICE_MASTER,
                text="PCI address, or name of an auxiliary device, whose link is a port, too",
            )
        ),
    ),
    rules=(
        Rule(
            ("links",),
            lambda get: (
                isinstance(get("links"), list) and len(get("links")) + _gets_device(get) < 2
            ),
            "Bonding requires at least two links",
            "list at least two",
        ),
        Rule(
            ("miimon",),
            lambda get: isinstance(get("miimon"), str) and not get("miimon").isdigit(),
            "miimon is no number of milliseconds",
            'write it in quotation marks: "100"',
        ),
        Rule(
            ("failOverMac", "mode"),
            lambda get: get("failOverMac") and get("mode") not in (None, "active-backup"),
            "failOverMac has no effect in this mode",
            "it is for active-backup",
            is_warning=True,
        ),
    ),
    example={
        "type": "bond",
        "mode": "active-backup",
        "miimon": "100",
        "links": [{"name": "ens1f0"}, {"name": "ens2f0"}],
        "ipam": {"type": "host-local", "subnet": "10.56.217.0/24"},
    },
    link_kind="bond",
)
