"""`runtimeConfig.deviceID`: the link of a device that a device plugin has allocated, as the master
of another link, or as the port of a bond.

Loaded only for a request with a deviceID. A `master` in the configuration outranks it: the
reference ignores deviceID here, and the runtime may mean it for another plugin of the list.
"""

from __future__ import annotations

from ...kernel import sysfs
from ...kernel.errors import DeviceError
from ...protocol.errors import CNIError


def name_of(device: str, *, in_container: bool, role: str = "master") -> str:
    """The name of the link of a PCI or auxiliary device of the node. Raises CNIError.

    `role` is what the link is to be. With `in_container` it has to be in the container, where no
    such device is: an error.
    """
    if in_container:
        key, other = ("linksInContainer", "list the link in the container in `links`")
        if role == "master":
            key, other = ("linkInContainer", "name the link in the container as `master`")
        raise CNIError(
            f"device {device} cannot be the {role}: {key} is set",
            f"a device that the runtime gives is on the node: remove {key}, or {other}",
        )
    try:
        if sysfs.is_pci(device):
            return sysfs.link_of_pci(device)
        if sysfs.is_auxiliary(device):
            return sysfs.link_of_auxiliary(device)
    except DeviceError as error:
        raise CNIError(
            f"device {device} has no link that could be the {role}: {error}", _why(device)
        ) from None
    raise CNIError(
        f"runtime config DeviceID {device} not found or unsupported",
        "it is neither a PCI nor an auxiliary device of this node",
    )


def _why(device: str) -> str:
    try:
        if sysfs.is_pci(device) and sysfs.is_user_space(device):
            return "it is bound to a driver of user space (DPDK): bind it to the kernel's"
    except DeviceError:
        return "it is bound to no driver"
    return "it may be in a container already, or its driver makes no link"
