"""Names that mean something else to the kernel or to a tool never reach them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cni.kernel import link, tun
from cni.kernel.errors import IptablesError, Unwritable
from cni.kernel.netlink import Netlink
from cni.netfilter import iptables
from cni.netfilter.iptables_rules import encode
from tests.harness import Snapshot, difference, iptables_save, links

if TYPE_CHECKING:
    from tests.harness import Netns, Runtime

CONTROL = ["\n", "\r", "\0", "\x1b", "\t", "\v", "\x7f"]


@pytest.mark.parametrize("name", ["eth%d", "%d", "%", "a%s", "100%"])
def test_no_pattern_for_a_name(host: Netns, name: str) -> None:
    def attempts() -> None:
        with Netlink() as sock:
            lo = link.get(sock, "lo").index
            for make in (
                lambda: link.create(sock, "dummy", name),
                lambda: link.create_bridge(sock, name),
                lambda: link.create_veth(sock, "v0", name),
                lambda: link.create_veth(sock, name, "v0"),
                lambda: link.change(sock, lo, name=name),
                lambda: tun.create_tap(name, False, None, None),
                lambda: tun.create_labelled_tap(name, False, None, None, ""),
            ):
                with pytest.raises(OSError, match="pattern"):
                    make()

    before = links(host).keys()
    host.run(attempts)
    assert links(host).keys() == before


def test_no_name_ends_at_a_nul(host: Netns) -> None:
    """The kernel would make a link called `a` of it."""

    def attempts() -> None:
        with Netlink() as sock:
            for make in (link.create_bridge, lambda sock, name: link.create_veth(sock, "v0", name)):
                with pytest.raises(OSError, match="NUL"):
                    make(sock, "a\0b")

    before = links(host).keys()
    host.run(attempts)
    assert links(host).keys() == before


@pytest.mark.parametrize("control", CONTROL)
def test_no_control_character_reaches_iptables_restore(host: Netns, control: str) -> None:
    host.exec(["iptables", "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "DROP"])
    before = iptables_save(host)
    for line in (
        f"-A FORWARD -i x{control}:INPUT DROP -j ACCEPT",
        f"-A FORWARD{control}-F FORWARD",
    ):
        with pytest.raises(IptablesError, match="control characters"):
            host.run(iptables.restore, False, "filter", [line])
        if control != "\x7f":
            with pytest.raises(Unwritable):
                encode(False, line)
    assert iptables_save(host) == before


NAMES = [
    *("x\n:INPUT DROP", "x\n-F FORWARD\n#", "x\n-X\n#", "x\0y", "x y", "x -j ACCEPT", "x\x1b[2J"),
    *("x\x0b", "x\u2028y", "+", "x+", 'x" -j', "a/b", "-j", "x" * 16, "\n"),
]


@pytest.mark.parametrize("backend", ["iptables", "nftables"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_an_interface_name_of_prev_result(
    runtime: Runtime, host: Netns, container: Netns, name: str, backend: str
) -> None:
    host.exec(["iptables", "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "DROP"])
    before = Snapshot.take(host)
    previous: dict[str, Any] = {"cniVersion": "1.0.0", "interfaces": [{"name": name}]}
    previous["ips"] = [{"address": "10.1.1.2/24"}]
    conf = {"cniVersion": "1.0.0", "name": "net", "type": "firewall", "prevResult": previous}
    conf |= {"backend": backend, "ingressPolicy": "isolated"}
    runtime.add("firewall", conf, container).failed()
    runtime.delete("firewall", conf, container).succeeded()
    assert not difference(before, Snapshot.take(host))
