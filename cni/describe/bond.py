"""Keys of bond."""

from __future__ import annotations

from cni.kernel.bond import HASH_POLICIES, MODES

from .common import DEVICE_MASTER, IPAM, RESULT_DNS, runtime
from .model import Flag, Get, Key, Many, Number, Plugin, Record, Rule, Text, replace


def _gets_device(get: Get) -> bool:
    """Does the runtime give a device, or is it asked to?"""
    # Declared is enough: the runtime passes the device only at the ADD.
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
            "interval in milliseconds at which the carrier of the links is checked; a string",
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
            "the links that become ports of the bond: two or more, or one if "
            "the runtime passes a device",
            required=True,
            example=[{"name": "ens1f0"}, {"name": "ens2f0"}],
        ),
        Key(
            "linksInContainer",
            Flag(),
            "the links are already in the container, where earlier plugins of the list put them",
            default=False,
            example=True,
        ),
        Key(
            "mtu",
            Number(68, 65535, or_zero=True, word="auto"),
            "MTU of the bond and its links, at most the smallest MTU of the "
            "links; 0: 1500, if the links allow it; `auto`: the smallest MTU of "
            "the links",
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
            "fields of a packet from which the hash is computed that selects "
            "its link, in modes that use one",
            absent="layer2",
            example="layer3+4",
        ),
        Key(
            "allSlavesActive",
            Number(0, 1),
            "1: also accept packets that arrive on inactive links",
            absent="0",
            example=1,
        ),
        Key(
            "tlbDynamicLb",
            Number(0, 1),
            "0: in the mode balance-tlb, flows are not moved between links by their load",
            absent="1",
            example=0,
        ),
        IPAM,
        RESULT_DNS,
        runtime(
            replace(
                DEVICE_MASTER,
                text="PCI address of a device, or name of an auxiliary device; its link "
                "becomes a port as well",
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
