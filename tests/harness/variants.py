"""What tests are repeated for: spec versions and address families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from .combinations import every_day

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The versions whose results list interfaces.
INTERFACE_VERSIONS = ALL_VERSIONS[2:]
CHECK_VERSIONS = ALL_VERSIONS[4:]
GC_VERSIONS = STATUS_VERSIONS = ALL_VERSIONS[6:]
NEWEST = ALL_VERSIONS[-1]


def version_tuple(version: str) -> tuple[int, ...]:
    """For comparing versions."""
    return tuple(int(part) for part in version.split("."))


def as_version(result: dict[str, Any], version: str) -> dict[str, Any]:
    """The result with what the 0.3 and 0.4 layouts have beside the newest one's keys."""
    if version.startswith("0."):
        result["dns"] = {}
        for ip in result["ips"]:
            ip["version"] = "6" if ":" in ip["address"] else "4"
    return result


@dataclass(frozen=True)
class Family:
    """IPv4, IPv6 or both: the subnets a test uses and what host-local makes of them."""

    name: str
    subnets: tuple[str, ...]
    gateways: tuple[str, ...]
    # What host-local gives the first, second, … container of an empty network; one tuple each.
    first: tuple[str, ...]
    second: tuple[str, ...]
    defaults: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def host_local(self, data_dir: object, *, routes: bool = True) -> dict[str, Any]:
        """An `ipam` section for host-local with one range set a family, and default routes."""
        ipam: dict[str, Any] = {
            "type": "host-local",
            "dataDir": str(data_dir),
            "ranges": [[{"subnet": subnet}] for subnet in self.subnets],
        }
        if routes:
            ipam["routes"] = [{"dst": dst} for dst in self.defaults]
        return ipam

    def static(self, number: int = 2, *, routes: bool = True) -> dict[str, Any]:
        """An `ipam` section for static with host `number` of each subnet, and default routes."""
        addresses = []
        for subnet, gateway in zip(self.subnets, self.gateways, strict=True):
            prefix = subnet.rpartition("/")[2]
            base = gateway[:-1]
            addresses.append({"address": f"{base}{number}/{prefix}", "gateway": gateway})
        ipam: dict[str, Any] = {"type": "static", "addresses": addresses}
        if routes:
            ipam["routes"] = [{"dst": dst} for dst in self.defaults]
        return ipam


V4 = Family(
    "v4",
    ("10.22.0.0/24",),
    ("10.22.0.1",),
    ("10.22.0.2/24",),
    ("10.22.0.3/24",),
    ("0.0.0.0/0",),
)
V6 = Family(
    "v6",
    ("fd00:22::/64",),
    ("fd00:22::1",),
    ("fd00:22::2/64",),
    ("fd00:22::3/64",),
    ("::/0",),
)
DUAL = Family(
    "dual",
    V4.subnets + V6.subnets,
    V4.gateways + V6.gateways,
    V4.first + V6.first,
    V4.second + V6.second,
    V4.defaults + V6.defaults,
)
FAMILIES = (V4, V6, DUAL)


def each_version(versions: Sequence[str] = ALL_VERSIONS) -> pytest.MarkDecorator:
    """Run a test for every spec version, as its parameter `cni_version`.

    Every day for one of each layout that results have: the first, the last, and 0.4.0.
    """
    layouts = {versions[0], "0.4.0", versions[-1]} & set(versions)
    return pytest.mark.parametrize("cni_version", every_day(layouts, versions))


def each_family(families: Sequence[Family] = FAMILIES) -> pytest.MarkDecorator:
    """Run a test for IPv4, IPv6 and both, as its parameter `family`."""
    return pytest.mark.parametrize("family", families, ids=str)


def result_addresses(result: dict[str, Any]) -> list[str]:
    """The addresses in a result of any spec version, IPv4 first in the old ones."""
    if "ip4" in result or "ip6" in result:
        return [result[key]["ip"] for key in ("ip4", "ip6") if key in result]
    return [ip["address"] for ip in result.get("ips", [])]
