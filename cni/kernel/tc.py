"""Traffic control: queueing disciplines and their classes (tc(8), linux/pkt_sched.h).

A rate is in bytes a second and a size in bytes, except where the kernel wants ticks of its packet
scheduler. Filters are in tcfilter.py.
"""

from __future__ import annotations

import struct
from errno import EINVAL, ENOENT
from typing import NamedTuple

from . import netlink as nl
from . import uapi
from .errors import NetlinkError
from .netlink import Netlink

# Where a qdisc hangs on its device.
ROOT = uapi.TC_H_ROOT
INGRESS = uapi.TC_H_INGRESS
INGRESS_HANDLE = 0xFFFF0000

KIND = uapi.TCA_KIND
OPTIONS = uapi.TCA_OPTIONS

_U32_MAX = 0xFFFFFFFF
_MSG = struct.Struct("=BxxxiIII")  # family, index, handle, parent, info
_RATE = "BBHhHI"  # cell_log, linklayer, overhead, cell_align, mpu, rate
_TBF = struct.Struct(f"={_RATE}{_RATE}III")  # rate, peak rate, limit, buffer, mtu
_HTB = struct.Struct(f"={_RATE}{_RATE}IIIII")  # rate, ceil, buffer, cbuffer, quantum, level, prio
_HTB_GLOB = struct.Struct("=IIIII")  # version, rate2quantum, default class, debug, direct packets
_FIFO = struct.Struct("=I")
_U64 = struct.Struct("=Q")


class Bucket(NamedTuple):
    """A limit: bytes a second, bytes that may go at once (burst), and bytes that may wait or go."""

    rate: int
    burst: int
    limit: int


class Qdisc(NamedTuple):
    """A queueing discipline as the kernel describes it."""

    kind: str
    handle: int
    parent: int
    options: bytes


class Shape(NamedTuple):
    """A bucket in the kernel's form: `buffer` is the burst in ticks; HTB has no `limit`."""

    rate: int
    limit: int
    buffer: int


class HtbClass(NamedTuple):
    """A class of an HTB qdisc."""

    handle: int
    shape: Shape


def handle(major: int, minor: int = 0) -> int:
    """``1:30`` -> ``handle(1, 0x30)``."""
    return major << 16 | minor


def message(index: int, own: int, parent: int, info: int = 0) -> bytes:
    """The fixed part of every message of traffic control."""
    return _MSG.pack(0, index, own, parent, info)


def unpack(payload: bytes) -> tuple[int, int, int, int, dict[int, bytes]]:
    """(interface, handle, parent, info, attributes) of a message."""
    _, index, own, parent, info = nl.unpack(_MSG, payload)
    return index, own, parent, info, nl.attr_map(payload, _MSG.size)


def ticks_per_us() -> float:
    """Ticks of the packet scheduler in a microsecond (docs/spec/bandwidth.md, "TBF parameters")."""
    try:
        with open("/proc/net/psched", "rb", buffering=0) as file:
            a, b, c = (int(word, 16) for word in file.read(64).split()[:3])
    except (OSError, ValueError):
        return 15.625  # a tick of 64 ns: every kernel since 2.6.31
    return (b if c == 10**9 else a) / b * (c / 10**6)


def buffer_ticks(rate: int, burst: int) -> int:
    """How long `burst` bytes take at `rate`, in ticks; at most 2³² - 1 (4.5 minutes)."""
    return min(int(_microseconds(rate, burst) * ticks_per_us()), _U32_MAX)


def wrapped_ticks(rate: int, burst: int) -> int:
    """As buffer_ticks(), but a larger number loses its upper bits, as in the reference."""
    return int((_microseconds(rate, burst) & _U32_MAX) * ticks_per_us()) & _U32_MAX


def _microseconds(rate: int, burst: int) -> int:
    return int(10**6 * (burst / rate))


# --- making ---------------------------------------------------------------------------------------


def add_qdisc(
    sock: Netlink, index: int, kind: str, *, own: int = 0, parent: int = ROOT, options: bytes = b""
) -> None:
    """Add a qdisc where there is none but the kernel's default one.

    Raises NetlinkError (EEXIST when there is another, ENOENT when the kernel lacks the kind).
    """
    payload = message(index, own, parent) + nl.text(KIND, kind)
    if options:
        payload += nl.attr(OPTIONS, options)
    sock.request(uapi.RTM_NEWQDISC, payload, nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def add_tbf(sock: Netlink, index: int, bucket: Bucket, *, own: int = 0, parent: int = ROOT) -> None:
    """Add a token bucket filter. Raises NetlinkError."""
    rate = min(bucket.rate, _U32_MAX)
    limit, buffer = min(bucket.limit, _U32_MAX), buffer_ticks(bucket.rate, bucket.burst)
    options = nl.attr(uapi.TCA_TBF_PARMS, _TBF.pack(*_rate(rate), *_rate(0), limit, buffer, 0))
    if bucket.rate > rate:
        options += nl.attr(uapi.TCA_TBF_RATE64, _U64.pack(bucket.rate))
    add_qdisc(sock, index, "tbf", own=own, parent=parent, options=options)


def add_htb(sock: Netlink, index: int, default: int, *, own: int) -> None:
    """Add a root HTB; what no filter classifies goes to the class with the minor `default`."""
    options = nl.attr(uapi.TCA_HTB_INIT, _HTB_GLOB.pack(3, 10, default, 0, 0))
    add_qdisc(sock, index, "htb", own=own, options=options)


def add_htb_class(
    sock: Netlink, index: int, bucket: Bucket, quantum: int, *, own: int, parent: int
) -> None:
    """Add a class that may not borrow; `quantum` bytes are its turn among its siblings."""
    rate, ticks = min(bucket.rate, _U32_MAX), buffer_ticks(bucket.rate, bucket.burst)
    parms = _HTB.pack(*_rate(rate), *_rate(rate), ticks, ticks, quantum, 0, 0)
    options = nl.attr(uapi.TCA_HTB_PARMS, parms)
    if bucket.rate > rate:
        wide = _U64.pack(bucket.rate)
        options += nl.attr(uapi.TCA_HTB_RATE64, wide) + nl.attr(uapi.TCA_HTB_CEIL64, wide)
    payload = message(index, own, parent) + nl.text(KIND, "htb") + nl.attr(OPTIONS, options)
    sock.request(uapi.RTM_NEWTCLASS, payload, nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def add_fifo(sock: Netlink, index: int, limit: int, *, parent: int) -> None:
    """Add a queue of at most `limit` bytes."""
    options = _FIFO.pack(min(limit, _U32_MAX))
    add_qdisc(sock, index, "bfifo", parent=parent, options=options)


def add_fq_codel(sock: Netlink, index: int, target: int, memory: int, *, parent: int) -> bool:
    """Add fq_codel, a short queue for each flow; False when the kernel lacks it.

    A packet should wait `target` microseconds at most; the queues take `memory` bytes at most.
    """
    options = nl.u32(uapi.TCA_FQ_CODEL_TARGET, target)
    options += nl.u32(uapi.TCA_FQ_CODEL_MEMORY_LIMIT, min(memory, _U32_MAX))
    try:
        add_qdisc(sock, index, "fq_codel", parent=parent, options=options)
    except NetlinkError as error:
        if error.errno != ENOENT:
            raise
        return False
    return True


def add_ingress(sock: Netlink, index: int) -> None:
    """Add the ingress qdisc, which holds filters for received packets. Raises NetlinkError."""
    add_qdisc(sock, index, "ingress", own=INGRESS_HANDLE, parent=INGRESS)


def delete_qdisc(sock: Netlink, index: int, parent: int = ROOT) -> None:
    """Delete a qdisc with its classes and filters; one that is gone already is success."""
    try:
        sock.request(uapi.RTM_DELQDISC, message(index, 0, parent))
    except NetlinkError as error:
        if error.errno not in (ENOENT, EINVAL):
            raise


def _rate(rate: int) -> tuple[int, int, int, int, int, int]:
    return 0, 0, 0, 0, 0, rate


# --- reading --------------------------------------------------------------------------------------


def qdisc(sock: Netlink, index: int, parent: int = ROOT) -> Qdisc | None:
    """The qdisc of an interface at ROOT or INGRESS; None when there is none. Raises NetlinkError.

    A dump would give the qdiscs of all interfaces. The answer to a request for one is a
    notification, which the kernel sends to the asking socket with NLM_F_ECHO only; for some qdiscs
    it sends none.
    """
    try:
        replies = sock.request(uapi.RTM_GETQDISC, message(index, 0, parent), nl.NLM_F_ECHO)
    except NetlinkError as error:
        if error.errno not in (ENOENT, EINVAL):
            raise
        return None
    if not replies:
        return None
    _, own, above, _, attributes = unpack(replies[0][1])
    return Qdisc(nl.get_text(attributes.get(KIND)), own, above, attributes.get(OPTIONS, b""))


def qdiscs(sock: Netlink, index: int) -> list[Qdisc]:
    """All qdiscs of an interface; the kernel lists every interface's. Raises NetlinkError."""
    entries = []
    for payload in sock.dump(uapi.RTM_GETQDISC, message(index, 0, 0)):
        its_link, own, above, _, attributes = unpack(payload)
        if its_link == index:
            kind, options = nl.get_text(attributes.get(KIND)), attributes.get(OPTIONS, b"")
            entries.append(Qdisc(kind, own, above, options))
    return entries


def tbf_shape(entry: Qdisc) -> Shape:
    """The rates and the burst of a TBF qdisc."""
    options = nl.attr_map(entry.options)
    fields = nl.unpack(_TBF, options.get(uapi.TCA_TBF_PARMS, b""))
    return Shape(_wide(options.get(uapi.TCA_TBF_RATE64), fields[5]), fields[12], fields[13])


def htb_default(entry: Qdisc) -> int:
    """The minor of an HTB qdisc's default class."""
    return int(nl.unpack(_HTB_GLOB, nl.attr_map(entry.options).get(uapi.TCA_HTB_INIT, b""))[2])


def htb_classes(sock: Netlink, index: int) -> list[HtbClass]:
    """The classes of an interface's HTB qdisc. Raises NetlinkError."""
    classes = []
    for payload in sock.dump(uapi.RTM_GETTCLASS, message(index, 0, 0)):
        _, own, _, _, attributes = unpack(payload)
        if nl.get_text(attributes.get(KIND)) == "htb":
            options = nl.attr_map(attributes.get(OPTIONS, b""))
            fields = nl.unpack(_HTB, options.get(uapi.TCA_HTB_PARMS, b""))
            rate = _wide(options.get(uapi.TCA_HTB_RATE64), fields[5])
            classes.append(HtbClass(own, Shape(rate, 0, fields[12])))
    return classes


def _wide(wide: bytes | None, narrow: int) -> int:
    return int(nl.unpack(_U64, wide)[0]) if wide else narrow


def has_qdisc(sock: Netlink, kind: str) -> bool:
    """Does the kernel have this kind of qdisc? Loads the kind's module, as adding one would.

    Only for kinds that need options, such as tbf and htb: the kernel looks the kind up, and then
    refuses the request, which has none.
    """
    loopback = 1
    try:
        add_qdisc(sock, loopback, kind, own=handle(1))
    except NetlinkError as error:
        return error.errno != ENOENT
    delete_qdisc(sock, loopback)
    return True
