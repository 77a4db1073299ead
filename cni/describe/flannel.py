"""Keys of flannel."""

from __future__ import annotations

from .common import runtime
from .model import DelegateRecord, IpamRecord, Key, Plugin, Rule, Text

PLUGIN = Plugin(
    name="flannel",
    place="main",
    about="calls another plugin with the subnet that flanneld gave the node",
    keys=(
        Key(
            "subnetFile",
            Text("path"),
            "file that flanneld writes",
            default="/run/flannel/subnet.env",
            example="/run/flannel/subnet.env",
        ),
        Key(
            "dataDir",
            Text("path"),
            "directory for the configurations that delegates were called with",
            default="/var/lib/cni/flannel",
            example="/var/lib/cni/flannel",
        ),
        Key(
            "delegate",
            DelegateRecord("bridge"),
            "keys for the delegate; not `name` and `ipam`",
            default={},
            example={"hairpinMode": True, "isDefaultGateway": True},
        ),
        Key(
            "ipam",
            IpamRecord("host-local"),
            "keys for the `ipam` of the delegate; `ranges` are replaced, routes complemented",
            default={},
            example={"dataDir": "/var/lib/cni/networks"},
        ),
        runtime(),
    ),
    rules=(
        Rule(
            ("delegate.name", "delegate.ipam"),
            lambda get: get("delegate.name") is not None or get("delegate.ipam") is not None,
            "delegate must not have this key, which flannel sets itself",
            "keys for the delegate's ipam belong into `ipam` beside `delegate`",
        ),
    ),
    example={"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
)
