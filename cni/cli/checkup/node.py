"""The kernel: version, kinds of links, sysctls, connection tracking, neighbours."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from cni.cli.view import attachments, needs
from cni.cli.view.attached import Places
from cni.cli.view.namespaces import Live
from cni.describe import catalogue
from cni.kernel import kinds, sysctl
from cni.kernel.netlink import Netlink

from .finding import ERROR, NOTE, OK, UNKNOWN, WARNING, Finding, Situation, Unseen

# The kernel of RHEL 8: docs/design.md, "Kernels".
_OLDEST = (4, 18)
# Modules whose name is not that of the kind of link.
_MODULES = {"vlan": "8021q"}
_FULL, _NEARLY_FULL = 95, 80  # per cent
AREA = "kernel"


# Where the kernel tells, what of it is looked at, and how it gets there.
_PLACES = (
    ("/proc/sys/net", "/proc", "sysctls, namespaces, leftovers of dead containers"),
    ("/sys/class/net", "/sys", "devices"),
)


def sight(_situation: Situation) -> Iterator[Finding]:
    """Can the node be looked at from here?"""
    for path, mount, what in _PLACES:
        if not os.path.isdir(path):
            text = f"{mount} is not mounted here: {what} cannot be looked at"
            kind = mount.replace("/sys", "/sysfs").strip("/")
            yield Finding(UNKNOWN, AREA, text, f"mount -t {kind} {kind} {mount}")
    if os.geteuid() != 0:
        text = "not everything could be looked at: run it as root"
        yield Finding(UNKNOWN, AREA, text)


def version(_situation: Situation) -> Iterator[Finding]:
    """Linux 4.18 or later."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None:
        yield Finding(NOTE, AREA, f"Linux {release}: its version is not known")
    elif (int(numbers[1]), int(numbers[2])) < _OLDEST:
        yield Finding(ERROR, AREA, f"Linux {release} is older than 4.18")
    else:
        yield Finding(OK, AREA, f"Linux {release}")


def links(situation: Situation) -> Iterator[Finding]:
    """The kinds of links that the networks of this node need."""
    wanted: dict[str, str] = {}
    for name in sorted(situation.types() | {"bridge"}):
        described = catalogue.plugin(name)
        if described is not None and described.link_kind:
            wanted[described.link_kind] = name
    with Netlink() as host:
        for kind, name in wanted.items():
            supported = kinds.supported(host, kind)
            # None: without CAP_NET_ADMIN the kernel does not say.
            if supported is False:
                text = f"the kernel has no links of the kind {kind}, which {name} makes"
                yield Finding(ERROR, AREA, text, f"modprobe {_MODULES.get(kind, kind)}")
            elif supported:
                yield Finding(OK, AREA, f"links of the kind {kind}")


def _value(name: str) -> str | None:
    """The value of a sysctl; None if there is none. Raises Unseen."""
    try:
        return sysctl.read(name).strip()
    except FileNotFoundError:
        if os.path.isdir("/proc/sys/net"):
            return None
        raise Unseen("/proc is not mounted") from None
    except OSError as error:
        raise Unseen(f"{name}: {(error.strerror or '').lower()}") from None


def _number(name: str) -> int | None:
    value = _value(name)
    return int(value) if value is not None and value.lstrip("-").isdigit() else None


def forwarding(situation: Situation) -> Iterator[Finding]:
    """A node whose containers have a gateway has to forward."""
    if not situation.paired():
        return
    known = attachments.gather(Places.of(situation.cache_dir))
    living = needs.of_living(known, Live(), situation.networks)
    try:
        lacks = needs.forwarding(living)
    except OSError as error:
        raise Unseen(f"forwarding: {(error.strerror or '').lower()}") from None
    for mend, text in _by_mend(lacks).items():
        yield Finding(ERROR, AREA, text, mend)
    if _value(sysctl.FORWARDING_V4) != "0":
        yield Finding(OK, AREA, "net.ipv4.ip_forward is 1")
    elif not lacks:
        yield Finding(NOTE, AREA, "net.ipv4.ip_forward is 0: the first ADD switches it on")


def _by_mend(lacks: list[needs.Lack]) -> dict[str, str]:
    """What is lacking, and in which networks, by what mends it."""
    texts = {each.mend: each.text for each in lacks}
    return {
        mend: f"{text} ({', '.join(each.network for each in lacks if each.mend == mend)})"
        for mend, text in texts.items()
    }


def bridge_frames(situation: Situation) -> Iterator[Finding]:
    """Do frames within a bridge pass the rules of IP?"""
    if not situation.paired(on_bridge=True):
        return
    value = _value("net/bridge/bridge-nf-call-iptables")
    if value == "1":
        text = "bridge-nf-call-iptables is 1: frames within a bridge pass the rules of IP"
        yield Finding(OK, AREA, text)
    elif os.path.isdir("/var/lib/kubelet"):
        text = "frames within a bridge pass no rules of IP, which services of Kubernetes need"
        mend = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1"
        yield Finding(WARNING, AREA, text, mend)
    else:
        yield Finding(OK, AREA, "frames within a bridge pass no rules of IP")


def reverse_path(situation: Situation) -> Iterator[Finding]:
    """With strict reverse path filtering answers that come by another link are dropped."""
    value = _value("net/ipv4/conf/all/rp_filter")
    several = situation.networks_with("sbr", "macvlan", "ipvlan", "host-device", "sriov")
    if value == "1" and several:
        text = (
            "net.ipv4.conf.all.rp_filter is 1 (strict): packets that come in by another link than "
            f"the one that leads back are dropped; {', '.join(several)} may need 2 (loose)"
        )
        yield Finding(WARNING, AREA, text, "sysctl -w net.ipv4.conf.all.rp_filter=2")
    elif value is not None:
        yield Finding(OK, AREA, f"net.ipv4.conf.all.rp_filter is {value}")


def conntrack(_situation: Situation) -> Iterator[Finding]:
    """When the table of connections is full, the kernel drops packets of new ones."""
    count = _number("net/netfilter/nf_conntrack_count")
    limit = _number("net/netfilter/nf_conntrack_max")
    if count is None or not limit:
        return
    # Above the limit nf_conntrack drops each packet that would begin a new connection.
    used = 100 * count // limit
    text = f"connection tracking: {count} of {limit} connections ({used} %)"
    mend = f"sysctl -w net.netfilter.nf_conntrack_max={2 * limit}"
    if used >= _NEARLY_FULL:
        yield Finding(ERROR if used >= _FULL else WARNING, AREA, text, mend)
    else:
        yield Finding(OK, AREA, text)


def neighbours(_situation: Situation) -> Iterator[Finding]:
    """Above gc_thresh3 neighbours the kernel finds no more."""
    for family, file in (("ipv4", "arp_cache"), ("ipv6", "ndisc_cache")):
        limit = _number(f"net/{family}/neigh/default/gc_thresh3")
        count = _entries(file)
        if limit is None or count is None or count * 100 < limit * _NEARLY_FULL:
            continue
        text = f"{count} of {limit} neighbours of {family}: above that none is found"
        mend = f"sysctl -w net.{family}.neigh.default.gc_thresh3={2 * limit}"
        yield Finding(WARNING, AREA, text, mend)


def _entries(file: str) -> int | None:
    """The entries of a neighbour table: the first column of /proc/net/stat, in hexadecimal.

    Raises Unseen.
    """
    if not os.path.isdir("/proc/sys/net"):
        raise Unseen("/proc is not mounted")
    try:
        with open(f"/proc/net/stat/{file}", encoding="ascii") as lines:
            # Below the heading there is a line for each processor; all have the same first column.
            return int(lines.read().splitlines()[1].split()[0], 16)
    except (OSError, IndexError, ValueError):
        return None


def writable(_situation: Situation) -> Iterator[Finding]:
    """Plugins write sysctls."""
    path = "/proc/sys/net/ipv4/ip_forward"
    # Container images often mount /proc/sys read-only.
    if os.path.exists(path) and not os.access(path, os.W_OK):
        text = "/proc/sys cannot be written here: plugins cannot switch on forwarding"
        yield Finding(ERROR if os.geteuid() == 0 else NOTE, AREA, text)


CHECKS = (
    sight,
    version,
    links,
    forwarding,
    bridge_frames,
    reverse_path,
    conntrack,
    neighbours,
    writable,
)
