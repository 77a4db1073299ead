"""A real firewalld on a D-Bus of its own, in a namespace.

The bus is a dbus-daemon that allows root everything; firewalld's configuration is in a directory of
the test, its backend nftables. Programs find the bus by DBUS_SYSTEM_BUS_ADDRESS (`env`).
"""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from .netns import BARE_ENV, stop
from .wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from .netns import Netns

_BUS = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true"/>
    <allow receive_type="method_call"/>
    <allow receive_type="signal"/>
    <allow receive_requested_reply="true"/>
  </policy>
</busconfig>
"""
_CONFIG = """\
DefaultZone=public
CleanupOnExit=yes
IPv6_rpfilter=no
FirewallBackend=nftables
Lockdown=no
"""


class Bus:
    """A system bus for tests; `start` and `stop`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "bus.sock"
        self.env = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={self.socket}"}
        config = directory / "bus.conf"
        config.write_text(_BUS.format(socket=self.socket))
        command = [
            "dbus-daemon",
            f"--config-file={config}",
            "--nofork",
            "--nopidfile",
            "--nosyslog",
        ]
        with (directory / "bus.log").open("wb") as log:
            self._daemon: subprocess.Popen[Any] = subprocess.Popen(
                command, env=dict(BARE_ENV), stdin=subprocess.DEVNULL, stderr=log
            )
        wait_until(self.socket.exists, "dbus-daemon's socket", process=self._daemon)

    def stop(self) -> None:
        """End it; clients see that they are cut off."""
        stop(self._daemon)


class Firewalld:
    """firewalld in a node's namespace, reachable at `bus`."""

    def __init__(self, host: Netns, bus: Bus) -> None:
        self.host, self.bus = host, bus
        self.env = {**BARE_ENV, **bus.env}
        self._config = bus.directory / "firewalld"
        self._config.mkdir()
        (self._config / "firewalld.conf").write_text(_CONFIG)
        self._daemon: subprocess.Popen[Any] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = self.bus.directory / "firewalld.log"
        self._daemon = self.host.popen(
            [
                *("firewalld", "--nofork", "--nopid", "--log-target", "file", "--log-file", log),
                *("--system-config", self._config),
            ],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: self._cmd("--state").returncode == 0, "firewalld", process=self._daemon)

    def stop(self) -> None:
        """End it; its rules go with it."""
        assert self._daemon is not None
        stop(self._daemon, grace=20)

    def cmd(self, *arguments: str) -> str:
        """firewall-cmd; what it prints."""
        done = self._cmd(*arguments)
        assert done.returncode == 0, f"firewall-cmd {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def sources(self, zone: str = "trusted") -> list[str]:
        """The sources of a zone, now."""
        return sorted(self.cmd(f"--zone={zone}", "--list-sources").split())

    def _cmd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.host.exec(["firewall-cmd", *arguments], env=self.env, check=False)


def ensure_installed() -> None:
    """Skip the test where there is no firewalld."""
    for program in ("dbus-daemon", "firewalld", "firewall-cmd"):
        if shutil.which(program, path=BARE_ENV["PATH"]) is None:
            pytest.skip(f"needs {program}: apt-get install firewalld dbus-daemon")
