"""Keys of dhcp."""

from __future__ import annotations

from .model import Flag, Key, Many, Number, Plugin, Record, Rule, Text

PLUGIN = Plugin(
    name="dhcp",
    place="ipam",
    about="leases addresses from the DHCP servers of the network, by a daemon",
    keys=(
        Key(
            "ipam",
            Record(
                (
                    Key(
                        "daemonSocketPath",
                        Text("path"),
                        "where the daemon listens",
                        default="/run/cni/dhcp.sock",
                        example="/run/cni/dhcp.sock",
                    ),
                    Key(
                        "request",
                        Many(
                            Record(
                                (
                                    Key(
                                        "option",
                                        Text("option"),
                                        "name or number of the option",
                                        absent="none",
                                        example="121",
                                    ),
                                    Key(
                                        "skipDefault",
                                        Flag(),
                                        "do not request routers and subnet mask",
                                        default=False,
                                        example=True,
                                    ),
                                )
                            )
                        ),
                        "options to request from the server, in addition to routers and "
                        "subnet mask",
                        default=[],
                        example=[{"option": "121"}],
                    ),
                    Key(
                        "provide",
                        Many(
                            Record(
                                (
                                    Key(
                                        "option",
                                        Text("option"),
                                        "name or number of the option",
                                        required=True,
                                        example="host-name",
                                    ),
                                    Key(
                                        "value",
                                        Text(),
                                        "what to send",
                                        absent="that of `fromArg`",
                                        example="web",
                                    ),
                                    Key(
                                        "fromArg",
                                        Text(),
                                        "send the value that this key has in CNI_ARGS; wins over "
                                        "`value`",
                                        absent="`value`",
                                        example="K8S_POD_NAME",
                                    ),
                                )
                            )
                        ),
                        "options to send",
                        default=[],
                        example=[{"option": "host-name", "fromArg": "K8S_POD_NAME"}],
                    ),
                    Key(
                        "priority",
                        Number(),
                        "metric of every route; 0: the kernel's default",
                        default=0,
                        example=100,
                    ),
                    Key(
                        "ipv4",
                        Flag(),
                        "lease an IPv4 address",
                        default=True,
                        example=False,
                        beyond=True,
                    ),
                    Key(
                        "ipv6",
                        Flag(),
                        "lease an IPv6 address by DHCPv6, with routes from router advertisements",
                        default=False,
                        example=True,
                        beyond=True,
                    ),
                    Key(
                        "prefixDelegation",
                        Record(
                            (
                                Key(
                                    "length",
                                    Number(32, 128, unit="bits"),
                                    "length to ask for; a server may delegate another",
                                    default=64,
                                    example=60,
                                ),
                                Key(
                                    "required",
                                    Flag(),
                                    "ADD fails if no server delegates a prefix",
                                    default=True,
                                    example=False,
                                ),
                                Key(
                                    "assign",
                                    Flag(),
                                    "the interface gets the prefix's address ::1",
                                    default=False,
                                    example=True,
                                ),
                            )
                        ),
                        "also ask by DHCPv6 for a prefix that is the container's own",
                        absent="none",
                        example={"length": 60},
                        beyond=True,
                    ),
                )
            ),
            "",
            required=True,
        ),
    ),
    rules=(
        Rule(
            ("ipam.ipv4",),
            lambda get: (
                get("ipam.ipv4") is False
                and not get("ipam.ipv6")
                and not get("ipam.prefixDelegation.assign")
            ),
            "neither ipv4 nor ipv6 is asked for",
            "set one of them to true, or with a prefix prefixDelegation.assign",
        ),
    ),
    example={
        "type": "dhcp",
        "provide": [{"option": "host-name", "fromArg": "K8S_POD_NAME"}],
        "request": [{"option": "121"}],
    },
)
