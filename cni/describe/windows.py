"""Keys that win-bridge and win-overlay have."""

from __future__ import annotations

from .common import PORT_MAPPINGS, runtime
from .model import Anything, Flag, Key, Many, Number, Record, Text

SHARED = (
    Key(
        "apiVersion",
        Number(None, None),
        "2: HCN, for containerd, where `CNI_NETNS` is the GUID of a namespace; else HNS",
        default=1,
        example=2,
    ),
    Key(
        "policies",
        Many(
            Record(
                (
                    Key(
                        "name",
                        Text(),
                        "`EndpointPolicy`",
                        required=True,
                        example="EndpointPolicy",
                    ),
                    Key(
                        "value",
                        Anything(),
                        "the policy, as HNS or HCN takes it",
                        absent="none",
                        example={"Type": "OutBoundNAT"},
                    ),
                )
            )
        ),
        "those named `EndpointPolicy` go to the endpoint: ACL, SDNRoute, OutBoundNAT …",
        default=[],
        example=[{"name": "EndpointPolicy", "value": {"Type": "OutBoundNAT"}}],
    ),
    Key(
        "loopbackDSR",
        Flag(),
        "the endpoint reaches itself through a service (HNS 9.3 to 9.x, 10.2 and newer)",
        default=False,
        example=True,
    ),
)

RUNTIME = runtime(
    Key(
        "dns",
        Record(
            (
                Key(
                    "servers",
                    Many(Text("address")),
                    "replace `dns.nameservers`",
                    default=[],
                    example=["10.96.0.10"],
                ),
                Key(
                    "searches",
                    Many(Text()),
                    "replace `dns.search`",
                    default=[],
                    example=["svc.cluster.local"],
                ),
            ),
            is_open=True,
        ),
        "name servers of the container",
        absent="those of `dns`",
        capability="dns",
    ),
    PORT_MAPPINGS,
)
