"""bandwidth's limit on what a device sends, by queueing disciplines (docs/spec/bandwidth.md).

without subnets                    with shapedSubnets or unshapedSubnets
device                             device
└─ tbf 1: the limit                └─ htb 1: default class: unshapedSubnets 30, shapedSubnets 1
   └─ fq_codel, if there is one       ├─ class 1:1, as good as unlimited
                                      ├─ class 1:30, the limit
                                      │  └─ fq_codel, or a queue of `latency`
                                      └─ u32 filters: from or to a subnet -> the other class
"""

from __future__ import annotations

from typing import NamedTuple

from ...kernel import tc, tcfilter
from ...kernel.link import Link
from ...kernel.netlink import Netlink
from ...kernel.tc import Bucket
from ...protocol.address import Prefix

ROOT = tc.handle(1)
OPEN, SHAPED = 0x01, 0x30  # minors of the classes: the reference's of version 1.5

LATENCY = 25  # ms; the reference's
# The class without a limit: bytes a second, a burst of 10 ms, and below the length of its queue.
_OPEN = Bucket(100_000_000_000, 1_000_000_000, 0)
_OPEN_QUEUE = 10_000_000
_HEADERS = 32  # bytes: the link layer's header, and what rounding to ticks may lose
_TARGET = 5000  # µs; the default of fq_codel


class Limit(NamedTuple):
    """A configured limit.

    `rate` is in bytes a second, `burst` in bytes (0: the default), `latency` in ms.
    """

    rate: int
    burst: int
    latency: int

    def bucket(self, mtu: int) -> Bucket:
        """The token bucket on a device with that MTU.

        The default burst is what the rate gives in 10 ms, and at least one packet.
        """
        burst = self.burst or max(self.rate // 100, mtu + _HEADERS)
        return Bucket(self.rate, burst, int(self.rate * self.latency / 1000) + burst)


class Subnets(NamedTuple):
    """The packets that a limit is for: those of these subnets (`shaped`), or all others."""

    prefixes: list[Prefix]
    shaped: bool

    @property
    def default(self) -> int:
        """The minor number of the class for packets of no listed subnet."""
        return OPEN if self.shaped else SHAPED

    @property
    def listed(self) -> int:
        """The minor number of the class for packets of the listed subnets."""
        return SHAPED if self.shaped else OPEN


def apply(sock: Netlink, device: Link, limit: Limit, subnets: Subnets, *, source: bool) -> None:
    """Limit what the device sends.

    `source` compares subnets with the packets' source, else with their destination. If it fails
    half way, deleting the root qdisc removes everything. Raises NetlinkError (EEXIST when the
    device has a qdisc already).
    """
    bucket = limit.bucket(device.mtu)
    if not subnets.prefixes:
        tc.add_tbf(sock, device.index, bucket, own=ROOT)
        _add_fq_codel(sock, device, limit, tc.handle(1, 1))
        return
    tc.add_htb(sock, device.index, subnets.default, own=ROOT)
    for minor, shape, queue in ((OPEN, _OPEN, _OPEN_QUEUE), (SHAPED, bucket, bucket.limit)):
        own = tc.handle(1, minor)
        quantum = min(max(shape.rate // 10, device.mtu + _HEADERS), 60000)
        tc.add_htb_class(sock, device.index, shape, quantum, own=own, parent=ROOT)
        if minor == OPEN or not _add_fq_codel(sock, device, limit, own):
            tc.add_fifo(sock, device.index, queue, parent=own)
    target = tc.handle(1, subnets.listed)
    for prefix in subnets.prefixes:
        tcfilter.classify(sock, device.index, ROOT, prefix, source=source, target=target)


def _add_fq_codel(sock: Netlink, device: Link, limit: Limit, parent: int) -> bool:
    """Add fq_codel below the limit, so that one flow cannot fill the queue; False without it.

    Its memory limit counts about twice the bytes on the wire. The target is at least the time of
    1.5 packets, or a packet that is being sent would count as late.
    """
    packet = 1_500_000 * (device.mtu + _HEADERS) // limit.rate
    target = max(min(_TARGET, limit.latency * 1000), packet)
    memory = max(2 * limit.bucket(device.mtu).limit, 1 << 18)
    return tc.add_fq_codel(sock, device.index, target, memory, parent=parent)


# --- CHECK ----------------------------------------------------------------------------------------


def differences(
    sock: Netlink, device: Link, limit: Limit, subnets: Subnets, *, source: bool
) -> list[str]:
    """Compare the device's qdiscs with the configuration, a sentence each. Raises NetlinkError."""
    root = tc.qdisc(sock, device.index)
    wanted = "htb" if subnets.prefixes else "tbf"
    if root is None or root.kind != wanted:
        have = root.kind if root else "none"
        return [f"Failed to find qdisc ({device.name}: want {wanted}, have {have})"]
    bucket = limit.bucket(device.mtu)
    if not subnets.prefixes:
        return _compare(device, tc.tbf_shape(root), bucket, with_limit=True)
    return _compare_classes(sock, device, root, bucket, subnets) + _missing_filters(
        sock, device, subnets, source=source
    )


def _compare(device: Link, have: tc.Shape, want: Bucket, *, with_limit: bool) -> list[str]:
    """Compare a token bucket.

    The reference cuts a burst or limit beyond 32 bits off; such a value is accepted as well.
    """
    rate, burst = want.rate, want.burst
    limits = (min(want.limit, 0xFFFFFFFF), want.limit & 0xFFFFFFFF)
    buffers = (tc.buffer_ticks(rate, burst), tc.wrapped_ticks(rate, burst))
    problems = []
    if have.rate != rate:
        problems.append(_mismatch("Rate", device, f"{rate} B/s", f"{have.rate} B/s"))
    if with_limit and have.limit not in limits:
        problems.append(_mismatch("Limit", device, f"{limits[0]} bytes", f"{have.limit} bytes"))
    if have.buffer not in buffers:
        problems.append(_mismatch("Buffer", device, f"{buffers[0]} ticks", f"{have.buffer} ticks"))
    return problems


def _mismatch(what: str, device: Link, want: str, have: str) -> str:
    return f"{what} doesn't match ({device.name}: want {want}, have {have})"


def _compare_classes(
    sock: Netlink, device: Link, root: tc.Qdisc, bucket: Bucket, subnets: Subnets
) -> list[str]:
    problems = []
    default = tc.htb_default(root)
    if default != subnets.default:
        want = f"{subnets.default:x}"
        problems.append(_mismatch("Default class", device, want, f"{default:x}"))
    classes = {one.handle: one.shape for one in tc.htb_classes(sock, device.index)}
    for minor, shape in ((OPEN, _OPEN), (SHAPED, bucket)):
        have = classes.get(tc.handle(1, minor))
        if have is None:
            problems.append(f"Failed to find class 1:{minor:x} ({device.name})")
        else:
            problems += _compare(device, have, shape, with_limit=False)
    return problems


def _missing_filters(sock: Netlink, device: Link, subnets: Subnets, *, source: bool) -> list[str]:
    target = tc.handle(1, subnets.listed)
    have = {
        (one.kind, one.match)
        for one in tcfilter.show(sock, device.index, ROOT)
        if one.target == target
    }
    return [
        f"Failed to find filter for {prefix} ({device.name})"
        for prefix in subnets.prefixes
        if not any(
            (kind, tcfilter.matching(kind, prefix, source=source)) in have
            for kind in ("u32", "flower")
        )
    ]
