"""bond: links of the node or of the container that are joined to one."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    DUAL,
    V4,
    Netns,
    Runtime,
    addresses,
    kind,
    link,
    links,
    ping,
    requires_kernel,
    unchanged,
)
from tests.harness.contract import InterfaceContract, await_carrier, leases
from tests.harness.sysfs import Sysfs
from tests.harness.wait import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires_kernel("bond")

Json = dict[str, Any]

LINKS = ("la", "lb")
BACKUP: Json = {
    "mode": "active-backup",
    "miimon": "20",
    "links": [{"name": name} for name in LINKS],
}


def wire(ns: Netns, outside: Netns, mtu: int = 1500) -> None:
    """Give `ns` two links, up, whose other ends are `outside`."""
    for at, name in enumerate(LINKS):
        index = 1001 + at
        other = f"peer name p{name} index {index + 1000} netns {outside.name} mtu {mtu}"
        ns.ip_batch(
            f"link add {name} index {index} address 02:00:00:00:0{at}:01 mtu {mtu} "
            f"type veth {other}",
            f"link set {name} addrgenmode none up",
        )
        outside.ip_batch(f"link set p{name} addrgenmode none up")
        await_carrier(ns, name)


def gateway(outside: Netns, device: str) -> None:
    lines = []
    for subnet, address in zip(DUAL.subnets, DUAL.gateways, strict=True):
        flags = " nodad" if ":" in address else ""
        lines.append(f"address add {address}/{subnet.rpartition('/')[2]} dev {device}{flags}")
    outside.ip_batch(*lines)


def behind_a_switch(ns: Netns, outside: Netns) -> Json:
    wire(ns, outside)
    outside.ip_batch(
        "link add sw type bridge",
        "link set sw addrgenmode none up",
        *(f"link set p{name} master sw" for name in LINKS),
    )
    gateway(outside, "sw")
    return BACKUP


class TestContract(InterfaceContract):
    plugin = "bond"
    kind = "bond"

    def prepare(self, ns: Netns, outside: Netns) -> Json:
        return behind_a_switch(ns, outside)

    def place(self, where: str, host: Netns, container: Netns, outside: Netns) -> Json:
        inside = where == "container"
        keys = self.prepare(container if inside else host, outside)
        return {**keys, "linksInContainer": inside}

    # The node's links move into the container, and are down when they are back (as host-device's):
    # these take it for granted that they stay, or that two containers can have them.
    test_addresses_and_routes = None  # type: ignore[assignment]
    test_delete_leaves_another_containers_link = None  # type: ignore[assignment]
    test_delete_when_the_master_is_gone = None  # type: ignore[assignment]
    test_ipam_failure_leaves_nothing = None  # type: ignore[assignment]
    test_failed_configuration_leaves_nothing = None  # type: ignore[assignment]
    test_same_name_on_the_host = None  # type: ignore[assignment]
    test_gc_releases_the_leases_of_others = None  # type: ignore[assignment]
    # bond's STATUS wants the rest of the configuration, too
    test_status_is_that_of_ipam = None  # type: ignore[assignment]


def network(data_dir: Path, **keys: Any) -> Json:
    return {
        "cniVersion": "1.1.0",
        "name": "net",
        **BACKUP,
        "ipam": V4.host_local(data_dir),
        **keys,
    }


def settings(ns: Netns, name: str = "eth0") -> Json:
    return dict(link(ns, name)["linkinfo"]["info_data"])


def port_names(ns: Netns) -> list[str]:
    return sorted(name for name, one in links(ns).items() if one.get("master") == "eth0")


# -- ADD and DEL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        ({}, {"mode": "active-backup", "miimon": 20, "fail_over_mac": "none"}),
        ({"failOverMac": 1}, {"fail_over_mac": "active"}),
        ({"failOverMac": 2}, {"fail_over_mac": "follow"}),
        (
            {"mode": "802.3ad", "xmitHashPolicy": "layer3+4"},
            {"mode": "802.3ad", "xmit_hash_policy": "layer3+4"},
        ),
        (
            {"mode": "balance-xor", "xmitHashPolicy": "layer2+3", "allSlavesActive": 1},
            {"mode": "balance-xor", "xmit_hash_policy": "layer2+3", "all_slaves_active": 1},
        ),
        ({"mode": "balance-tlb", "tlbDynamicLb": 0}, {"tlb_dynamic_lb": 0}),
        ({"mode": "balance-rr", "miimon": "0"}, {"mode": "balance-rr"}),
        ({"mode": "broadcast"}, {"mode": "broadcast"}),
        ({"mode": "balance-alb"}, {"mode": "balance-alb"}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("inside", [False, True])
def test_keys(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    data_dir: Path,
    keys: Json,
    made: Json,
    inside: bool,
) -> None:
    behind_a_switch(container if inside else runtime.host, outside)
    conf = network(data_dir, linksInContainer=inside, **keys)
    result = runtime.add("bond", conf, container).result
    have = settings(container)
    assert {key: have.get(key, 0) for key in made} == made
    assert port_names(container) == list(LINKS)
    assert addresses(container, "eth0") == list(V4.first)
    assert result["interfaces"][0]["mac"] == link(container, "eth0")["address"]
    runtime.check("bond", conf, container, prev_result=result).succeeded()
    for _ in range(2):
        runtime.delete("bond", conf, container).succeeded()
    assert "eth0" not in links(container)
    assert not leases(data_dir)
    back = container if inside else runtime.host
    for at, name in enumerate(LINKS):
        one = link(back, name)
        assert (one["address"], one["mtu"]) == (f"02:00:00:00:0{at}:01", 1500)
        assert ("UP" in one["flags"]) == inside


@pytest.mark.parametrize(("asked", "mtu"), [(0, 1400), (1300, 1300), (1400, 1400), ("auto", 9000)])
def test_mtu(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, asked: int | str, mtu: int
) -> None:
    wire(runtime.host, outside, mtu=max(mtu, 1400))
    conf = network(data_dir, mtu=asked)
    runtime.add("bond", conf, container).succeeded()
    assert {link(container, name)["mtu"] for name in ("eth0", *LINKS)} == {mtu}
    runtime.delete("bond", conf, container).succeeded()
    assert {link(runtime.host, name)["mtu"] for name in LINKS} == {max(mtu, 1400)}


def test_links_come_back_under_their_names(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    """Whatever the container has done with them; and nothing else is taken for one of them."""
    behind_a_switch(runtime.host, outside)
    runtime.host.ip("link", "set", "la", "alias", "first-port")
    conf = network(data_dir)
    runtime.add("bond", conf, container).succeeded()
    container.ip_batch(
        "link set la down",
        "link set la name lx",
        "link set lx alias mine",
        "link add la type dummy",
    )
    runtime.delete("bond", conf, container).succeeded()
    one = link(runtime.host, "la")
    assert (kind(one), one["ifalias"]) == ("veth", "first-port")
    assert sorted(set(links(container)) - {"lo"}) == ["la"]
    assert "eth0" not in links(container)


def test_delete_without_the_configuration_s_links(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    behind_a_switch(runtime.host, outside)
    runtime.add("bond", network(data_dir), container).succeeded()
    runtime.delete("bond", network(data_dir, links=[], mode="?"), container).succeeded()
    assert {"la", "lb"} <= set(links(runtime.host))


def test_what_the_other_plugin_made_is_removed(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    """By hand, as that plugin does."""
    behind_a_switch(runtime.host, outside)
    for name in LINKS:
        runtime.host.ip("link", "set", name, "down", "netns", container.name)
    container.ip_batch("link add eth0 type bond mode active-backup miimon 100")
    for name in LINKS:
        container.ip_batch(f"link set {name} master eth0")
    runtime.delete("bond", network(data_dir), container).succeeded()
    assert {"la", "lb"} <= set(links(runtime.host))
    assert set(links(container)) == {"lo"}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"mode": "active"}, 'invalid bond mode "active"'),
        ({"mode": ""}, "invalid bond mode"),
        ({"miimon": "soon"}, "Failed to convert bondMiimon value (soon) to an int"),
        ({"miimon": ""}, "Failed to convert bondMiimon value"),
        ({"miimon": 100}, "cannot unmarshal number into field miimon of type string"),
        ({"failOverMac": 3}, "FailOverMac mode should be 0, 1 or 2 actual: 3"),
        ({"tlbDynamicLb": 2}, "tlbDynamicLb should be 0 or 1"),
        ({"xmitHashPolicy": "layer9"}, "invalid xmitHashPolicy"),
        ({"mtu": 67}, "should be 68 or bigger"),
        ({"mtu": 1501}, "bigger than that of the slave link (la), slave MTU (1500)"),
        ({"links": [{"name": "la"}]}, "Bonding requires at least two links, we have 1"),
        ({"links": [{"name": "la"}, {}]}, "failed to find link name"),
        ({"links": [{"name": "la"}, {"name": "la"}]}, "listed twice"),
        ({"links": [{"name": "la"}, {"name": "lz"}]}, "failed to lookup link interface lz"),
        ({"links": [{"name": "la"}, {"name": "lo"}]}, "loopback"),
        ({"ipam": {"type": "bond"}}, "Bond is not a suitable IPAM type"),
    ],
    ids=repr,
)
def test_failures_leave_nothing(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, keys: Json, text: str
) -> None:
    behind_a_switch(runtime.host, outside)
    with unchanged(runtime.host, container):
        reply = runtime.add("bond", network(data_dir, **keys), container)
        assert text in f"{reply.error['msg']} {reply.error.get('details')}"
    assert not leases(data_dir)


def test_a_port_of_another_master(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    behind_a_switch(runtime.host, outside)
    runtime.host.ip_batch("link add br9 type bridge", "link set lb master br9")
    with unchanged(runtime.host, container):
        reply = runtime.add("bond", network(data_dir), container)
        reply.failed(999, "link lb has already a master: br9")


def test_both_ends_of_a_pair(runtime: Runtime, container: Netns, data_dir: Path) -> None:
    runtime.host.ip("link", "add", "la", "type", "veth", "peer", "name", "lb")
    with unchanged(runtime.host, container):
        reply = runtime.add("bond", network(data_dir), container)
        reply.failed(999, "links la and lb cannot be ports of one bond")


def test_a_name_that_the_container_has(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    behind_a_switch(runtime.host, outside)
    container.ip("link", "add", "lb", "type", "dummy")
    with unchanged(runtime.host, container):
        reply = runtime.add("bond", network(data_dir), container)
        reply.failed(999, "failed to move link interface lb to container netns: file exists")


@pytest.mark.parametrize("inside", [False, True])
def test_a_failed_ipam_puts_links_back_up(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, inside: bool
) -> None:
    behind_a_switch(container if inside else runtime.host, outside)
    conf = network(data_dir, linksInContainer=inside)
    conf["ipam"] = {
        "type": "static",
        "addresses": [{"address": "10.1.2.3/24"}],
        "routes": [{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}],
    }
    runtime.add("bond", conf, container).failed(999, "failed to add route")
    assert "eth0" not in links(container)
    for at, name in enumerate(LINKS):
        one = link(container if inside else runtime.host, name)
        assert (one["address"], one.get("master")) == (f"02:00:00:00:0{at}:01", None)
        assert "UP" in one["flags"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("link set lb nomaster", "link lb is no port of the bond eth0"),
        ("link set eth0 type bond miimon 50", "bond eth0 has the miimon 50, want 20"),
        ("link set eth0 down", "Interface eth0 is down"),
        ("link set eth0 address 02:00:00:00:00:99", "Mac"),
    ],
)
def test_check_sees_differences(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, command: str, text: str
) -> None:
    behind_a_switch(runtime.host, outside)
    conf = network(data_dir)
    result = runtime.add("bond", conf, container).result
    runtime.check("bond", conf, container, prev_result=result).succeeded()
    container.ip_batch(command)
    error = runtime.check("bond", conf, container, prev_result=result).error
    assert text in f"{error['msg']} {error.get('details')}"


def test_status(runtime: Runtime, data_dir: Path) -> None:
    runtime.status("bond", network(data_dir)).succeeded()
    runtime.status("bond", network(data_dir, mode="x")).failed(999, "invalid bond mode")


@pytest.mark.parametrize("version", ["1.1.0"])
def test_gc_releases_addresses(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, version: str
) -> None:
    behind_a_switch(runtime.host, outside)
    conf = network(data_dir, cniVersion=version)
    runtime.add("bond", conf, container).succeeded()
    runtime.gc("bond", conf, [("c1", "eth0")]).succeeded()
    assert leases(data_dir)
    assert port_names(container) == list(LINKS)
    runtime.gc("bond", conf, []).succeeded()
    assert not leases(data_dir)


@pytest.mark.parametrize("family", [4, 6])
def test_packets_of_both_families(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, family: int
) -> None:
    behind_a_switch(runtime.host, outside)
    conf = network(data_dir, ipam=DUAL.host_local(data_dir))
    result = runtime.add("bond", conf, container).result
    ping(container, DUAL.gateways[0 if family == 4 else 1])
    runtime.check("bond", conf, container, prev_result=result).succeeded()


# -- failover -------------------------------------------------------------------------------------


class Pinging:
    """Echo requests every 10 ms; how many were not answered."""

    def __init__(self, ns: Netns, address: str) -> None:
        command = ["ping", "-n", "-i", "0.01", "-W", "1", address]
        self.process = ns.run(
            subprocess.Popen, command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def await_answers(self, count: int) -> None:
        """Read until so many more answers have come."""
        assert self.process.stdout is not None
        while count:
            line = self.process.stdout.readline()
            assert line, "ping has ended"
            count -= "bytes from" in line

    def stop(self) -> tuple[int, int]:
        """Sent and lost."""
        self.process.send_signal(2)
        text, _ = self.process.communicate(timeout=60)
        found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        assert found, text
        return int(found[1]), int(found[1]) - int(found[2])


def active(ns: Netns) -> str:
    shown = json.loads(ns.ip("-j", "-d", "link", "show", "eth0"))
    return str(shown[0]["linkinfo"]["info_data"].get("active_slave"))


@pytest.mark.parametrize("fail_over_mac", [0, 1])
def test_active_backup_outlives_a_link(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path, fail_over_mac: int
) -> None:
    """Each link fails and comes back; packets go on, and CHECK agrees throughout."""
    behind_a_switch(runtime.host, outside)
    conf = network(data_dir, failOverMac=fail_over_mac)
    result = runtime.add("bond", conf, container).result
    ping(container, V4.gateways[0])
    assert active(container) == "la"
    pinging = Pinging(container, V4.gateways[0])
    pinging.await_answers(20)
    for gone, other in (("la", "lb"), ("lb", "la")):
        outside.ip("link", "set", f"p{gone}", "down")
        pinging.await_answers(20)
        wait_until(lambda other=other: active(container) == other, f"{other} is active")
        pinging.await_answers(20)
        runtime.check("bond", conf, container, prev_result=result).succeeded()
        outside.ip("link", "set", f"p{gone}", "up")
        wait_until(
            lambda gone=gone: "LOWER_UP" in link(container, gone)["flags"], f"{gone} has a carrier"
        )
        pinging.await_answers(20)
    sent, lost = pinging.stop()
    print(f"active-backup, failOverMac {fail_over_mac}: {lost} of {sent} lost in two failures")
    assert lost < sent / 2


def test_802_3ad_with_a_partner(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    """Both links are in one aggregator, and one of them may fail."""
    wire(runtime.host, outside)
    outside.ip_batch(
        "link add ag type bond mode 802.3ad miimon 20 lacp_rate fast",
        *(f"link set p{name} down" for name in LINKS),
        *(f"link set p{name} master ag" for name in LINKS),
        "link set ag addrgenmode none up",
    )
    gateway(outside, "ag")
    conf = network(data_dir, mode="802.3ad", xmitHashPolicy="layer3+4")
    result = runtime.add("bond", conf, container).result

    def partner() -> tuple[int, str]:
        info = settings(container).get("ad_info", {})
        return info.get("num_ports", 0), info.get("partner_mac", "")

    wait_until(lambda: partner() == (2, link(outside, "ag")["address"]), "both links aggregated")
    ping(container, V4.gateways[0])
    pinging = Pinging(container, V4.gateways[0])
    pinging.await_answers(20)
    for gone in LINKS:
        outside.ip("link", "set", f"p{gone}", "down")
        pinging.await_answers(20)
        outside.ip("link", "set", f"p{gone}", "up")
        wait_until(lambda: partner()[0] == len(LINKS), f"p{gone} is aggregated again")
        pinging.await_answers(20)
    sent, lost = pinging.stop()
    print(f"802.3ad: {lost} of {sent} lost in two failures")
    assert lost < sent / 2
    runtime.check("bond", conf, container, prev_result=result).succeeded()
    runtime.delete("bond", conf, container).succeeded()


# -- the runtime's device --------------------------------------------------------------------------

PCI = "0000:3b:00.1"
ONE_LINK: Json = {**BACKUP, "links": [{"name": "la"}], "runtimeConfig": {"deviceID": PCI}}


@pytest.fixture
def sysfs(runtime: Runtime, tmp_path: Path) -> Sysfs:
    """lb is the link of a PCI device."""
    made = Sysfs(runtime, tmp_path / "sys")
    (made.pci / PCI / "net/lb").mkdir(parents=True)
    (made.pci / PCI / "driver").symlink_to("../../../bus/pci/drivers/mlx5_core")
    return made


def with_device(**keys: Any) -> Json:
    return {"cniVersion": "1.1.0", "name": "net", "ipam": V4.static(), **ONE_LINK, **keys}


def test_the_device_is_a_port(
    sysfs: Sysfs, runtime: Runtime, host: Netns, outside: Netns, container: Netns
) -> None:
    """Beside `links`; CHECK, DEL and GC know it by the note: sysfs does not show it any more."""
    behind_a_switch(host, outside)
    conf = with_device()
    for last in ("DEL", "GC"):
        result = sysfs.call("ADD", "bond", conf, container).result
        assert {link(container, name)["master"] for name in LINKS} == {"eth0"}
        assert not set(LINKS) & set(links(host))
        ping(container, V4.gateways[0])
        (sysfs.pci / PCI / "net/lb").rmdir()
        runtime.check("bond", conf, container, prev_result=result).succeeded()
        container.ip("link", "set", "lb", "nomaster")
        error = runtime.check("bond", conf, container, prev_result=result).failed(999)
        assert "link lb is no port of the bond" in error["msg"] + error.get("details", "")
        if last == "DEL":
            runtime.delete("bond", with_device(runtimeConfig={}), container).succeeded()
            assert set(LINKS) <= set(links(host))
        (sysfs.pci / PCI / "net/lb").mkdir()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"links": [{"name": "la"}, {"name": "lb"}]}, "link lb is listed twice"),
        ({"linksInContainer": True}, "cannot be the port: linksInContainer is set"),
        ({"runtimeConfig": {"deviceID": "0000:99:00.0"}}, "not found or unsupported"),
        ({"runtimeConfig": {}}, "requires at least two links, we have 1"),
        ({"links": []}, "requires at least two links, we have 1"),
    ],
)
def test_devices_that_cannot_be_a_port(
    sysfs: Sysfs, host: Netns, outside: Netns, container: Netns, keys: Json, text: str
) -> None:
    wire(host, outside)
    with unchanged(host, container):
        sysfs.call("ADD", "bond", with_device(**keys), container).failed(999, text)


def test_status_knows_that_a_device_will_come(runtime: Runtime) -> None:
    conf = with_device(runtimeConfig={})
    runtime.status("bond", {**conf, "capabilities": {"deviceID": True}}).succeeded()
    runtime.status("bond", conf).failed(999, "requires at least two links, we have 1")
