"""Host devices in sysfs: from PCI address, kernel path or auxiliary device to a link's name."""

from __future__ import annotations

import os

from .errors import DeviceError

_PCI, _AUXILIARY, _DEVICES = "/sys/bus/pci/devices", "/sys/bus/auxiliary/devices", "/sys/devices/"
# Drivers that hand a device to user space, where it has no link (DPDK).
_USER_SPACE = frozenset({"vfio-pci", "uio_pci_generic", "igb_uio"})


def is_pci(identifier: str) -> bool:
    return _exists(_PCI, identifier)


def is_auxiliary(identifier: str) -> bool:
    return _exists(_AUXILIARY, identifier)


def is_user_space(address: str) -> bool:
    """Is the PCI device bound to a DPDK driver? Raises DeviceError when it has no driver at all."""
    path = f"{_PCI}/{address}/driver"
    try:
        return os.path.basename(os.readlink(path)) in _USER_SPACE
    except OSError as error:
        text = (error.strerror or "").lower()
        raise DeviceError(f"error with host device: lstat {path}: {text}") from None


def link_of_path(path: str) -> str:
    """The link of a device by its path below /sys/devices. Raises DeviceError."""
    clean = os.path.normpath(path)
    if not clean.startswith(_DEVICES):
        raise DeviceError(f'kernel device path "{path}" must be absolute and begin with {_DEVICES}')
    return _first(f"{clean}/net")


def link_of_pci(address: str) -> str:
    """The link of a PCI device, also behind virtio. Raises DeviceError."""
    base = f"{_PCI}/{address}"
    if os.path.isdir(f"{base}/net"):
        return _first(f"{base}/net")
    for name in _entries(base):
        if name.startswith("virtio") and os.path.isdir(f"{base}/{name}/net"):
            return _first(f"{base}/{name}/net")
    raise DeviceError(f"no net directory under pci device {address}")


def link_of_auxiliary(identifier: str) -> str:
    """The link of an auxiliary device (a scalable function). Raises DeviceError."""
    return _first(f"{_AUXILIARY}/{identifier}/net")


def physical_function(address: str) -> tuple[str, int]:
    """Of a virtual function: its card's PCI address, and its number there. Raises DeviceError.

    Source: Documentation/PCI/pci-iov-howto.rst and Documentation/ABI/testing/sysfs-bus-pci.
    """
    try:
        card = os.path.basename(os.readlink(f"{_PCI}/{address}/physfn"))
    except OSError:
        raise DeviceError(f"{address} is not a virtual function") from None
    for name in _entries(f"{_PCI}/{card}"):
        if name.startswith("virtfn"):
            path = os.path.realpath(f"{_PCI}/{card}/{name}")
            if os.path.basename(path) == address:
                return card, int(name.removeprefix("virtfn"))
    raise DeviceError(f"{card} does not list {address} among its virtual functions")


def _exists(base: str, identifier: str) -> bool:
    safe = "/" not in identifier and identifier not in ("", ".", "..")
    return safe and os.path.exists(f"{base}/{identifier}")


def _first(directory: str) -> str:
    entries = _entries(directory)
    if not entries:
        raise DeviceError(f"failed to find network device in path {directory}")
    return entries[0]


def _entries(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError as error:
        text = (error.strerror or "").lower()
        raise DeviceError(f"failed to read directory {directory}: {text}") from None
