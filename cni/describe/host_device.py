"""Keys of host-device."""

from __future__ import annotations

from .common import IPAM, RESULT_DNS, runtime
from .model import Flag, Key, Plugin, Rule, Text

_SELECTORS = ("device", "hwaddr", "kernelpath", "pciBusID")

PLUGIN = Plugin(
    name="host-device",
    place="main",
    about="moves a device of the node into the container",
    keys=(
        Key("device", Text(), "name of the device", absent="another selector", example="ens5"),
        Key(
            "hwaddr",
            Text("mac"),
            "MAC address of the device",
            absent="another selector",
            example="0c:42:a1:00:00:01",
        ),
        Key(
            "kernelpath",
            Text(),
            "path of the device below `/sys/devices/`",
            absent="another selector",
            example="/sys/devices/pci0000:00/0000:00:1f.6",
        ),
        Key(
            "pciBusID",
            Text("pci"),
            "PCI address, also of a virtio device",
            absent="another selector",
            example="0000:3b:00.1",
        ),
        Key(
            "DPDKMode",
            Flag(),
            "the device has a user space driver; with `pciBusID` the plugin "
            "detects this by the driver",
            default=False,
            example=True,
        ),
        IPAM,
        RESULT_DNS,
        runtime(
            Key(
                "deviceID",
                Text(),
                "PCI address of a device, or name of an auxiliary device; replaces `pciBusID`",
                absent="none",
                example="0000:3b:00.1",
                capability="deviceID",
            )
        ),
    ),
    rules=(
        Rule(
            ("type",),
            lambda get: (
                not any(map(get, _SELECTORS))
                and not get("runtimeConfig.deviceID")
                and not get("capabilities.deviceID")
            ),
            'specify either "device", "hwaddr", "kernelpath" or "pciBusID"',
            "or declare the capability deviceID, so that the runtime says which device",
        ),
        Rule(
            _SELECTORS[1:],
            lambda get: sum(bool(get(each)) for each in _SELECTORS) > 1,
            "several selectors have to mean the same device",
            "give one of them",
            is_warning=True,
        ),
    ),
    example={"type": "host-device", "pciBusID": "0000:3b:00.1", "ipam": {"type": "dhcp"}},
)
