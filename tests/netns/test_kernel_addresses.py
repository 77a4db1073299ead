"""Addresses whose other end is another address (`ip address add … peer …`)."""

from __future__ import annotations

import pytest

from cni.kernel import address, link
from cni.kernel.netlink import Netlink
from cni.protocol.address import Prefix
from tests.harness import Netns
from tests.harness.kernel import addresses

pytestmark = pytest.mark.netns


@pytest.mark.parametrize(
    ("local", "peer"),
    [
        ("10.1.0.1/32", "10.9.0.1/32"),
        ("10.1.0.1/24", "10.9.0.1/24"),
        ("fd00::1/128", "fd00:9::1/128"),
    ],
)
def test_an_address_with_a_peer(host: Netns, local: str, peer: str) -> None:
    """It is deleted, and another one on the link stays; put back, it has its peer again."""
    host.ip("link", "add", "wire", "type", "veth", "peer", "name", "other")
    host.ip("link", "set", "wire", "up")
    host.ip("address", "add", local.split("/", maxsplit=1)[0], "peer", peer, "dev", "wire")
    host.ip("address", "add", "192.0.2.1/24", "dev", "wire")
    prefix = Prefix.parse(f"{local.split('/', maxsplit=1)[0]}/{peer.split('/')[1]}")

    def work() -> list[str]:
        with Netlink() as sock:
            index = link.find(sock, "wire").index  # type: ignore[union-attr]
            (entry,) = [each for each in address.show(sock, index) if each.prefix == prefix]
            address.delete(sock, index, prefix)
            left = [str(each.prefix) for each in address.show(sock, index) if each.scope == 0]
            address.delete(sock, index, prefix)  # gone already
            if not prefix.is_v4:
                address.put_back(sock, entry)
                assert entry._replace(lifetimes=b"", flags=0) in [
                    each._replace(lifetimes=b"", flags=0) for each in address.show(sock, index)
                ]
            return left

    assert host.run(work) == ["192.0.2.1/24"]
    assert "192.0.2.1/24" in addresses(host, "wire")
