"""Keys of tuning."""

from __future__ import annotations

from .common import ARG_MAC, RUNTIME_MAC, args, runtime
from .model import Flag, Key, Number, Plugin, Table, Text

_U31 = 2147483647

_SYSCTL = Key(
    "sysctl",
    Table(Text(), "sysctl", "sysctl"),
    "parameters below `net`; `IFNAME` stands for the interface; white space around a value does "
    "not count, and `null` sets nothing",
    default={},
    example={"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
)
_MAC = Key("mac", Text("ownmac"), "MAC address", absent="left alone", example="02:00:00:00:00:05")
_PROMISC = Key(
    "promisc",
    Flag(),
    "true: promiscuous mode on; false: leave alone",
    default=False,
    example=True,
)
_MTU = Key("mtu", Number(0, _U31), "MTU; 0: leave alone", default=0, example=1400)
_ALLMULTI = Key(
    "allmulti",
    Flag(),
    "receive all multicast: on, off",
    absent="left alone",
    example=True,
)
_TXQLEN = Key(
    "txQLen",
    Number(0, _U31),
    "length of the transmit queue",
    absent="left alone",
    example=2000,
)

PLUGIN = Plugin(
    name="tuning",
    place="chained",
    about="sets kernel parameters of the container, and attributes and features of the interface",
    keys=(
        _SYSCTL,
        _MAC,
        _PROMISC,
        _MTU,
        _ALLMULTI,
        _TXQLEN,
        Key(
            "ethtool",
            Table(Flag(), "feature"),
            "features (offloads): names as `ethtool -k` indents them (`tx-tcp-segmentation`), or "
            "short: `rx tx sg tso gso gro lro rxvlan txvlan ntuple rxhash`, all of that kind that "
            "can be changed",
            default={},
            example={"tso": False, "tx-checksum-ip-generic": False},
            beyond=True,
        ),
        Key(
            "dataDir",
            Text("path"),
            "directory in which ADD saves the previous values",
            default="/run/cni/tuning",
            example="/run/cni/tuning",
        ),
        args(_SYSCTL, _MAC, _PROMISC, _MTU, _ALLMULTI, _TXQLEN),
        runtime(RUNTIME_MAC),
    ),
    args=(ARG_MAC,),
    example={
        "type": "tuning",
        "capabilities": {"mac": True},
        "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mtu": 1400,
        "promisc": True,
        "allmulti": False,
        "txQLen": 2000,
        "ethtool": {"tso": False, "tx-checksum-ip-generic": False},
    },
)
