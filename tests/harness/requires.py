"""What a test needs of the kernel, found out by trying it.

`@requires_kernel("vlan_filtering")` marks a test (and gives it the marker `lab`, or `debian` if the
lab's kernel lacks the feature, too). On a kernel without the feature the test is skipped, saying
what is missing; it fails in the guest whose kernel must have it: tools/kernel-lab (CNI_LAB=1), or
tools/debian-lab (CNI_LAB=debian).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

import pytest

from .netns import Netns

if TYPE_CHECKING:
    from collections.abc import Sequence

# feature -> commands that need it, run one after the other in a scratch namespace.
_VETH = "ip link add probe0 type veth peer name probe1"
PROBES: dict[str, Sequence[str]] = {
    "veth": [_VETH],
    "bridge": ["ip link add probe0 type bridge"],
    "vlan_filtering": [
        "ip link add probe0 type bridge vlan_filtering 1",
        "bridge vlan add dev probe0 vid 100 self",
    ],
    "vlan": [_VETH, "ip link add probe2 link probe0 type vlan id 100"],
    "macvlan": [_VETH, "ip link add probe2 link probe0 type macvlan mode bridge"],
    "macvtap": [_VETH, "ip link add probe2 link probe0 type macvtap mode bridge"],
    "ipvlan": [_VETH, "ip link add probe2 link probe0 type ipvlan mode l2"],
    "dummy": ["ip link add probe0 type dummy"],
    "vrf": ["ip link add probe0 type vrf table 1000"],
    "ifb": ["ip link add probe0 type ifb"],
    "bond": ["ip link add probe0 type bond"],
    "netkit": ["ip link add probe0 type netkit"],
    "vxlan": ["ip link add probe0 type vxlan id 1 dstport 4789"],
    "sctp": ["python3 -c __import__('socket').socket(2,1,132)"],
    "wireguard": ["ip link add probe0 type wireguard"],
    # A simulated card, whose virtual functions have settings, but no links.
    "netdevsim": ["ls /sys/bus/netdevsim/new_device"],
    # A card with virtual functions. Not any: tests must not change that of a machine. The file is
    # of `tools/debian-lab --card`.
    "card": ["ls /run/.lab/card"],
    "tap": ["ip tuntap add dev probe0 mode tap"],
    "nft": ["nft add table inet probe"],
    "nft_bridge": [
        "nft add table bridge probe",
        "nft add chain bridge probe pre { type filter hook prerouting priority -300 ; }",
        "nft add rule bridge probe pre iifname veth0 ether saddr 02:00:00:00:00:01 drop",
    ],
    "nft_masquerade": [
        "nft add table inet probe",
        "nft add chain inet probe post { type nat hook postrouting priority 100 ; }",
        "nft add rule inet probe post masquerade",
    ],
    "iptables": ["iptables -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE"],
    "ip6tables": ["ip6tables -w -t nat -A POSTROUTING -m comment --comment x -j MASQUERADE"],
    "tbf": [_VETH, "tc qdisc add dev probe0 root tbf rate 1mbit burst 10k latency 50ms"],
    "fq_codel": [_VETH, "tc qdisc add dev probe0 root fq_codel"],
    "netem": [_VETH, "tc qdisc add dev probe0 root netem delay 1ms"],
    # what tc-redirect-tap needs; under the plugin's name for the tables of tests/harness/world.py
    "tc-redirect-tap": [
        _VETH,
        "ip tuntap add dev probe2 mode tap",
        "tc qdisc add dev probe0 ingress",
        "tc filter add dev probe0 parent ffff: matchall action mirred egress redirect dev probe2",
    ],
    "matchall": [
        _VETH,
        "tc qdisc add dev probe0 ingress",
        "tc filter add dev probe0 parent ffff: matchall action drop",
    ],
}
# What the lab's kernel lacks, too, and Debian's has.
ONLY_DEBIAN = frozenset({"sctp", "wireguard", "card"})
_TARGETS = {"1": "test-lab", "debian": "test-debian"}  # by $CNI_LAB


def in_lab() -> bool:
    """Are we inside tools/kernel-lab or tools/debian-lab?"""
    return os.environ.get("CNI_LAB") in _TARGETS


def requires_kernel(*features: str) -> pytest.MarkDecorator:
    """Mark a test (class, module) that needs these kernel features."""
    unknown = sorted(set(features) - set(PROBES))
    if unknown:
        raise ValueError(f"no probe for {', '.join(unknown)}; see PROBES in {__name__}")
    return pytest.mark.requires_kernel(*features)


@functools.cache
def missing(feature: str) -> str | None:
    """None if the kernel has the feature, else the message of the command that failed."""
    with Netns("probe") as ns:
        for command in PROBES[feature]:
            try:
                done = ns.exec(command.split(), check=False)
            except FileNotFoundError as error:
                return f"{error.filename} is not installed"
            if done.returncode != 0:
                return (done.stderr.strip() or f"{command} failed").splitlines()[0]
    return None


def print_features() -> None:
    """Print which features the machine's kernel has: `make test-lab` leaves them to it."""
    if os.geteuid() == 0:
        print(*(feature for feature in PROBES if missing(feature) is None))


def ensure(features: Sequence[str]) -> None:
    """Skip the running test if a feature is missing; in the guest that is to have it, fail."""
    for feature in features:
        problem = missing(feature)
        if problem is None:
            continue
        text = f"this kernel has no {feature} ({problem})"
        target = "test-debian" if feature in ONLY_DEBIAN else "test-lab"
        if _TARGETS.get(os.environ.get("CNI_LAB", "")) == target:
            pytest.fail(f"{text}, but the lab's kernel must")
        pytest.skip(f"{text}; `make {target}` runs this test")
