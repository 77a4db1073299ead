"""TAP devices (linux/if_tun.h). Functions here run in the namespace that gets the device."""

from __future__ import annotations

import os
import struct
from errno import ENOENT
from fcntl import ioctl

from . import link, uapi

_DEVICE = "/dev/net/tun"
_IFREQ = struct.Struct("16sH22x")


def create_tap(name: str, multi_queue: bool, owner: int | None, group: int | None) -> None:
    """Make a persistent TAP device with vnet headers; `owner` and `group` may open it.

    Raises OSError: EBUSY when the name is taken, EINVAL when it has a ``%``. A process that is
    killed before the end leaves nothing.
    """
    link.check_literal(name)
    flags = uapi.IFF_TAP | uapi.IFF_VNET_HDR | uapi.IFF_TUN_EXCL
    if multi_queue:
        flags |= uapi.IFF_MULTI_QUEUE | uapi.IFF_NO_PI
    fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        ioctl(fd, uapi.TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        if owner is not None:
            ioctl(fd, uapi.TUNSETOWNER, _signed(owner))
        if group is not None:
            ioctl(fd, uapi.TUNSETGROUP, _signed(group))
        try:
            ioctl(fd, uapi.TUNSETPERSIST, 1)
        except OSError:
            ioctl(fd, uapi.TUNSETPERSIST, 0)  # the failed call may have set it all the same
            raise
    finally:
        os.close(fd)


def _signed(number: int) -> int:
    """An unsigned 32 bit number as ioctl() takes it."""
    return number - (1 << 32) if number >> 31 else number


def create_labelled_tap(
    name: str, multi_queue: bool, owner: int | None, group: int | None, context: str
) -> None:
    """As create_tap, by the program `ip` under an SELinux context, which the device inherits.

    A context takes effect on exec, so this process cannot make the device. Raises OSError.
    """
    from .. import files, process  # other devices are made without a program

    link.check_literal(name)
    argv = ["ip", "tuntap", "add", "mode", "tap", "name", name, "vnet_hdr"]
    argv += ["multi_queue"] if multi_queue else []
    argv += ["user", str(owner)] if owner is not None else []
    argv += ["group", str(group)] if group is not None else []
    program = files.find_program("ip")
    if program is None:
        raise FileNotFoundError(ENOENT, "no such program", "ip")
    fd = os.open("/proc/thread-self/attr/exec", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, context.encode() + b"\0")
    finally:
        os.close(fd)
    done = process.run(program, argv)
    if done.code:
        reason = " ".join(done.stderr.decode(errors="replace").split())
        raise OSError(None, f"`{' '.join(argv)}` failed with status {done.code}: {reason}")
