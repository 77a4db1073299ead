"""How long an ADD waits for duplicate address detection: as long as the kernel goes on with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cni.kernel import link
from cni.kernel.errors import LinkNotFound
from cni.netns import Namespace
from cni.plugins.shared import configure
from cni.protocol.errors import CNIError
from tests.harness.kernel import address_info

if TYPE_CHECKING:
    from tests.harness import Netns

pytestmark = pytest.mark.netns

CIDR = "fd00::1/64"


def probing(container: Netns, probes: int, milliseconds: int) -> None:
    """A link that is up. For its address the kernel sends so many probes, so far apart."""
    container.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
    container.set_sysctl("net/ipv6/conf/eth0/dad_transmits", probes)
    container.set_sysctl("net/ipv6/conf/eth0/addr_gen_mode", 1)
    container.set_sysctl("net/ipv6/neigh/eth0/retrans_time_ms", milliseconds)
    container.ip("address", "add", CIDR, "dev", "eth0")
    container.ip("link", "set", "other", "up")
    container.ip("link", "set", "eth0", "up")


def settle(container: Netns) -> None:
    """Wait as an ADD does."""
    with Namespace.open(container.path) as netns:
        found = link.find(netns.netlink(), "eth0")
        if found is None:
            raise LinkNotFound("eth0")
        configure._settle(netns, found.index, "eth0")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has three seconds to go on, instead of sixty."""
    monkeypatch.setattr(configure, "DAD_TIMEOUT", 3)
    monkeypatch.setattr(configure, "_DAD_STEP", 1)


@pytest.mark.usefixtures("short")
def test_many_probes_take_longer_than_the_limit(container: Netns) -> None:
    probing(container, probes=35, milliseconds=200)
    settle(container)
    assert "tentative" not in address_info(container, "eth0", CIDR)


@pytest.mark.usefixtures("short")
def test_a_kernel_that_does_not_go_on_is_an_error(container: Netns) -> None:
    probing(container, probes=2, milliseconds=3_600_000)
    with pytest.raises(CNIError, match="link eth0 still has tentative addresses after") as caught:
        settle(container)
    assert "no probe" in caught.value.details
    assert address_info(container, "eth0", CIDR).get("tentative")
