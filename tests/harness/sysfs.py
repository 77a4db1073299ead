"""A part of /sys that a test has made: devices that the machine does not have."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from .runtime import Runtime

if TYPE_CHECKING:
    from pathlib import Path

    from .netns import Netns
    from .runtime import Reply

Json = dict[str, Any]


class Sysfs:
    """Runs plugins with directories of a test in place of parts of /sys."""

    def __init__(self, runtime: Runtime, directory: Path) -> None:
        self.runtime = runtime
        self.pci = directory / "pci"
        self.auxiliary = directory / "auxiliary"
        self.devices = directory / "devices"
        for one in (self.pci, self.auxiliary, self.devices):
            one.mkdir(parents=True)

    def call(self, verb: str, plugin: str, conf: Json, container: Netns, **kwargs: Any) -> Reply:
        """As Runtime.call, in a mount namespace with a /sys of its own."""
        runtime = self.runtime
        real = runtime.bin_dir / plugin
        script = " && ".join(
            [
                "mount --make-rprivate /",
                # The plugin must not find the machine's own devices.
                "mount -t tmpfs none /sys",
                "mkdir -p /sys/bus/pci/devices /sys/bus/auxiliary/devices /sys/devices",
                f"mount --bind {shlex.quote(str(self.pci))} /sys/bus/pci/devices",
                f"mount --bind {shlex.quote(str(self.auxiliary))} /sys/bus/auxiliary/devices",
                f"mount --bind {shlex.quote(str(self.devices))} /sys/devices",
                f"exec {shlex.quote(str(real))}",
            ]
        )
        wrapper = self.pci.parent / "bin"
        wrapper.mkdir(exist_ok=True)
        program = wrapper / plugin
        program.write_text(f"#!/bin/sh\nexec unshare -m sh -c {shlex.quote(script)}\n")
        program.chmod(0o755)
        inner = Runtime(wrapper, runtime.host, cni_path=runtime.cni_path)
        return inner.call(verb, plugin, conf, container, **kwargs)
