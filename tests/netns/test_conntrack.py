"""Ending flows in one request: of a port, answered by a container, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni.kernel.netlink import NETLINK_NETFILTER, Netlink
from cni.netfilter import conntrack, uapi
from cni.protocol.address import parse_ip

if TYPE_CHECKING:
    from tests.harness import Netns

FAMILIES = {
    "4": {"node": "10.0.0.1", "other": "10.0.0.9", "ours": "10.22.0.2", "theirs": "10.22.0.3"},
    "6": {"node": "fd00::1", "other": "fd00::9", "ours": "fd22::2", "theirs": "fd22::3"},
}
# What is tracked: protocol, the node's address, its port, and who answers.
FLOWS = [
    ("udp", "node", 53, "ours"),
    ("udp", "other", 53, "ours"),
    ("udp", "node", 53, "theirs"),
    ("udp", "node", 54, "ours"),
    ("tcp", "node", 53, "ours"),
]


def track(host: Netns, names: dict[str, str]) -> None:
    client = "192.0.2.7" if "." in names["node"] else "2001:db8::7"
    for number, (protocol, dst, port, by) in enumerate(FLOWS):
        words = ["conntrack", "-I", "-p", protocol, "-t", "600", "-u", "ASSURED"]
        words += ["-s", client, "-d", names[dst], "--sport", str(1000 + number), "--dport"]
        words += [str(port), "-r", names[by], "-q", client, "--reply-port-src", str(port)]
        words += ["--reply-port-dst", str(1000 + number)]
        words += ["--state", "ESTABLISHED"] if protocol == "tcp" else []
        host.exec(words)


def tracked(host: Netns, family: str, names: dict[str, str]) -> list[int]:
    """Which of FLOWS are tracked."""
    kind = "ipv4" if family == "4" else "ipv6"
    listed = host.exec(["conntrack", "-L", "-f", kind]).stdout
    assert names["node"] in listed or not listed
    return [number for number in range(len(FLOWS)) if f"sport={1000 + number} " in listed]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dst", "left"), [("", [2, 3, 4]), ("node", [1, 2, 3, 4])])
def test_one_request_ends_the_flows_of_a_port(
    host: Netns, family: str, dst: str, left: list[int]
) -> None:
    names = FAMILIES[family]
    track(host, names)
    everything = list(range(len(FLOWS)))
    assert tracked(host, family, names) == everything

    def end() -> bool:
        with Netlink(NETLINK_NETFILTER) as sock:
            address = parse_ip(names[dst]) if dst else b""
            ours = parse_ip(names["ours"])
            return conntrack.forget_all(sock, uapi.IPPROTO_UDP, 53, address, ours)

    could = host.run(end)
    # a kernel that cannot says so, and has ended nothing
    assert tracked(host, family, names) == (left if could else everything)
    assert host.run(end) is could
    assert family == "4" or not could
