"""The output of other programs, where they are installed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from cni import files

from .collect import ABSENT, File, Part
from .mask import Mask

_FILE = 1 << 20  # bytes of a file of the kernel
_OUTPUT = 8 << 20  # bytes that a tool writes
_UNITS = ("cni.service", "cni.socket", "cni-reload.service", "cni-reload-watch.service")
_MORE_UNITS = ("cni-dhcp.service", "cni-dhcp.socket", "containerd.service", "crio.service")
# Name in the archive, and the command; a tool that is not installed is left out, and said.
_TOOLS = (
    ("ip-link", "ip -d -s link show"),
    ("ip-address", "ip -d address show"),
    ("ip-route", "ip -4 route show table all"),
    ("ip-route6", "ip -6 route show table all"),
    ("ip-rule", "ip -4 rule show"),
    ("ip-rule6", "ip -6 rule show"),
    ("ip-neigh", "ip neigh show"),
    ("ip-netns", "ip netns list-id"),
    ("bridge-vlan", "bridge vlan show"),
    ("tc-qdisc", "tc -s qdisc show"),
    ("nft-ruleset", "nft list ruleset"),
    ("iptables-version", "iptables --version"),
    ("iptables-save", "iptables-save"),
    ("ip6tables-save", "ip6tables-save"),
    ("conntrack-count", "conntrack -C"),
    ("conntrack-stats", "conntrack -S"),
    ("firewalld", "firewall-cmd --list-all-zones"),
    ("containerd-version", "containerd --version"),
    ("crio-version", "crio --version"),
    ("podman-version", "podman --version"),
    ("kubelet-version", "kubelet --version"),
)
_LEGACY = (("iptables-legacy-save", "ip_tables"), ("ip6tables-legacy-save", "ip6_tables"))


def parts() -> list[Part]:
    """One for each tool."""
    return [
        *(_tool(name, command.split()) for name, command in _TOOLS),
        *(_legacy(tool, names) for tool, names in _LEGACY),
        _tool("journal", _journal(*_UNITS, *_MORE_UNITS)),
        _tool("systemctl", ["systemctl", "--no-pager", "status", *_UNITS], may_fail=True),
    ]


def _tool(name: str, command: list[str], *, may_fail: bool = False) -> Part:
    def gather(_: Mask) -> Iterator[File]:
        yield _run(f"tools/{name}", command, may_fail=may_fail)

    return Part(command[0], gather)


def _legacy(tool: str, module: str) -> Part:
    """Asked only if the kernel has tables of it: the tool would load its module."""

    def gather(_: Mask) -> Iterator[File]:
        try:
            there = files.read(f"/proc/thread-self/net/{module}_names", _FILE).strip()
        except OSError:
            there = b""
        if there:
            yield _run(f"tools/{tool}", [tool])

    return Part(tool, gather)


def _run(name: str, command: list[str], *, may_fail: bool = False) -> File:
    how = " ".join(command)
    program = files.find_program(command[0])
    if program is None:
        return File(name, how, error=ABSENT)
    # A user's PATH often lacks the directories of root's tools.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"
    child = subprocess.Popen(
        [program, *command[1:]],
        # A tool that asks for a password would wait for ever.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Nothing of the caller's settings, such as a pager or a format.
        env={"PATH": path, "LC_ALL": "C", "HOME": "/"},
        cwd="/",
    )
    assert child.stdout is not None
    # One byte more tells whether anything was cut.
    data = child.stdout.read(_OUTPUT + 1)
    if len(data) > _OUTPUT:
        child.kill()
        return File(name, how, data[:_OUTPUT], "cut: it writes more")
    code = child.wait()
    return File(name, how, data, f"exit code {code}" if code and not may_fail else "")


def _journal(*units: str) -> list[str]:
    chosen = [word for unit in units for word in ("-u", unit)]
    return ["journalctl", "--no-pager", "--quiet", "-o", "short-iso", "-n", "1000", *chosen]
