"""What masquerading costs the first packet of a connection, in either form of nftables.

A container sends to a host outside through the node, each datagram from another port: so each is
the first of a flow, is looked up and gets its answer before the next one goes. The node masquerades
for that container and for as many others as there are pods; that container's rule is the last one.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from cni.netfilter import nft
from cni.owner import Owner
from cni.plugins.shared import masquerade
from cni.protocol.address import Prefix
from tests.harness import Netns, connect
from tests.harness.netns import stop

FORMS = {"none": None, "rules": "nftables", "set": masquerade.SET}
OUTSIDE = "192.0.2.1"
SUBNET = "10.77.0.0/16"
_ECHO = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("{OUTSIDE}", 4000))
print("ready", flush=True)
while True:
    sock.sendto(*sock.recvfrom(64))
"""
_ASK = f"""
import socket, sys, time
first, best, size = 20000, 0.0, 100
for start in range(first, first + int(sys.argv[1]), size):
  began = time.perf_counter()
  for port in range(start, start + size):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.bind(("", port))
    sock.sendto(b"x", ("{OUTSIDE}", 4000))
    sock.recv(64)
    sock.close()
  best = max(best, size / (time.perf_counter() - began))
print(best)
"""


def measure(pods: int, flows: int = 5000) -> dict[str, float]:
    """New flows a second that one container begins one after the other, by form.

    Of the fastest hundred, which other work on the machine has disturbed least.
    """
    rates: dict[str, float] = {}
    for form, backend in FORMS.items():
        with ExitStack() as stack:
            host, container, outside = (
                stack.enter_context(Netns(role)) for role in ("host", "container", "outside")
            )
            join(host, outside, "uplink", "192.0.2.254/24", f"{OUTSIDE}/24", 1001)
            join(host, container, "pod", "10.77.0.1/16", f"{_address(pods)}/16", 1101)
            container.ip("route", "add", "default", "via", "10.77.0.1")
            outside.ip("route", "add", SUBNET, "via", "192.0.2.254")
            host.set_sysctl("net/ipv4/ip_forward", "1")
            if backend is not None:
                host.run(_fill, backend, pods)
            echo = outside.popen(
                [sys.executable, "-I", "-S", "-c", _ECHO], stdout=subprocess.PIPE, text=True
            )
            stack.callback(stop, echo)
            assert echo.stdout is not None
            echo.stdout.readline()
            command = [sys.executable, "-I", "-S", "-c", _ASK, str(flows)]
            rates[form] = float(container.exec(command).stdout)
    return rates


def join(host: Netns, other: Netns, name: str, here: str, there: str, index: int) -> None:
    connect(host, other, name=name, host_addresses=(here,), other_addresses=(there,), index=index)


def _fill(backend: str, pods: int) -> None:
    for number in range(1, pods + 1):
        owner = Owner("bench", f"pod{number}", "eth0")
        masquerade.setup(owner, [Prefix.parse(f"{_address(number)}/16")], backend, first=True)
    nft.forget()


def _address(number: int) -> str:
    return f"10.77.{(number + 10) >> 8}.{(number + 10) & 255}"
