"""tuning in real namespaces: sysctls, the link's attributes, features, and putting them back."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import (
    CHECK_VERSIONS,
    GC_VERSIONS,
    INTERFACE_VERSIONS,
    Netns,
    Reply,
    Runtime,
    addresses,
    each_version,
    link,
    ping,
    tree,
    unchanged,
)
from tests.harness.faults import STRACE
from tests.netns.test_bridge import await_link_local, await_up

if TYPE_CHECKING:
    from collections.abc import Callable

Json = dict[str, Any]

MAC = "c2:11:22:33:44:55"
OTHER_MAC = "c2:11:22:33:44:66"
ARP_FILTER = "net/ipv4/conf/eth0/arp_filter"


def wire(ns: Netns, outside: Netns, name: str = "eth0") -> None:
    """An interface as an earlier plugin leaves it, with a neighbour."""
    for each in (ns, outside):
        each.set_sysctl("net/ipv6/conf/default/accept_dad", 0)
    ns.ip_batch(
        f"link add {name} index 77 type veth peer name peer0 netns {outside.name}",
        f"address add 10.22.0.2/24 dev {name}",
        f"address add fd00:22::2/64 dev {name} nodad",
        f"link set {name} up",
    )
    outside.ip_batch("address add 10.22.0.1/24 dev peer0", "link set peer0 up")
    await_up(ns, name)  # the carrier comes a moment later, and with it addresses and routes
    await_link_local(ns, name)


@pytest.fixture
def eth0(container: Netns, outside: Netns) -> str:
    wire(container, outside)
    return "eth0"


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "tuning"


class Tuned:
    """Runs tuning for one container, as a runtime does after the plugins before it."""

    def __init__(self, runtime: Runtime, container: Netns, backups: Path) -> None:
        self.runtime, self.container, self.backups = runtime, container, backups
        self.version = "1.1.0"
        self.ifname = "eth0"

    def conf(self, **keys: Any) -> Json:
        return {
            "cniVersion": self.version,
            "name": "net",
            "dataDir": str(self.backups),
            **keys,
        }

    def previous(self) -> Json:
        if self.version < "0.3":
            return {"cniVersion": self.version, "ip4": {"ip": "10.22.0.2/24"}, "dns": {}}
        ip: Json = {"address": "10.22.0.2/24", "interface": 1}
        here = link(self.container, self.ifname)["address"]
        result = {
            "cniVersion": self.version,
            "interfaces": [
                {"name": "veth1234", "mac": "c2:00:00:00:00:01"},
                {"name": self.ifname, "mac": here, "sandbox": self.container.path},
            ],
            "ips": [ip],
        }
        if self.version < "1":
            ip["version"] = "4"
            result["dns"] = {}
        return result

    def add(self, cni_args: str = "", **keys: Any) -> Reply:
        return self.runtime.add(
            "tuning",
            self.conf(**keys),
            self.container,
            args=cni_args,
            ifname=self.ifname,
            prev_result=self.previous(),
        )

    def check(self, cni_args: str = "", **keys: Any) -> Reply:
        return self.runtime.check(
            "tuning",
            self.conf(**keys),
            self.container,
            args=cni_args,
            ifname=self.ifname,
            prev_result=self.previous(),
        )

    def delete(self, netns: Any = "the container's", cni_args: str = "", **keys: Any) -> Reply:
        where = self.container if netns == "the container's" else netns
        reply = self.runtime.delete(
            "tuning", self.conf(**keys), where, args=cni_args, ifname=self.ifname
        )
        return reply.succeeded()

    def backup(self) -> Json:
        found: Json = json.loads((self.backups / f"c1_{self.ifname}.json").read_text())
        return found


@pytest.fixture
def tuned(runtime: Runtime, container: Netns, eth0: str, backups: Path) -> Tuned:
    return Tuned(runtime, container, backups)


def attributes(ns: Netns, name: str = "eth0") -> Json:
    one = link(ns, name)
    return {
        "mac": one["address"],
        "mtu": one["mtu"],
        "txqlen": one.get("txqlen", 0),
        "promisc": "PROMISC" in one["flags"],
        "allmulti": "ALLMULTI" in one["flags"],
    }


def features(ns: Netns, name: str = "eth0") -> dict[str, bool]:
    """As ethtool shows them."""
    lines = ns.exec(["ethtool", "-k", name]).stdout.splitlines()[1:]
    pairs = (line.strip().split(": ") for line in lines)
    return {name: value.startswith("on") for name, value in pairs}


EVERYTHING: Json = {
    "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net/core/somaxconn": "500"},
    "mac": MAC,
    "mtu": 1400,
    "promisc": True,
    "allmulti": True,
    "txQLen": 20000,
}
TUNED = {"mac": MAC, "mtu": 1400, "promisc": True, "allmulti": True, "txqlen": 20000}


# -- the whole life -------------------------------------------------------------------------------


@each_version()
def test_life(tuned: Tuned, container: Netns, cni_version: str) -> None:
    tuned.version = cni_version
    before, somaxconn = attributes(container), container.sysctl("net/core/somaxconn")
    previous = tuned.previous()
    result = tuned.add(**EVERYTHING).result
    if cni_version in INTERFACE_VERSIONS:
        previous["interfaces"][1]["mac"] = MAC
    assert result == previous
    assert attributes(container) == TUNED
    assert container.sysctl(ARP_FILTER) == "1"
    assert container.sysctl("net/core/somaxconn") == "500"
    # addresses and routes live through the change of the MAC
    assert sorted(addresses(container, "eth0")) == ["10.22.0.2/24", "fd00:22::2/64"]
    ping(container, "10.22.0.1")
    checked = tuned.check(**EVERYTHING)
    if cni_version in CHECK_VERSIONS:
        checked.succeeded()
    else:
        checked.failed(1, "config version does not allow CHECK")
    status = tuned.runtime.status("tuning", tuned.conf(**EVERYTHING))
    status.succeeded() if cni_version in GC_VERSIONS else status.failed(1)
    for _ in range(2):
        tuned.delete(**EVERYTHING)
        assert attributes(container) == before
        assert container.sysctl(ARP_FILTER) == "0"
        assert container.sysctl("net/core/somaxconn") == somaxconn
        assert tree(tuned.backups) == {}
    ping(container, "10.22.0.1")


def test_backup_file(tuned: Tuned, container: Netns) -> None:
    """The reference's keys, order and indentation; ours behind them."""
    mac = attributes(container)["mac"]
    tuned.add(**EVERYTHING).succeeded()
    path = tuned.backups / "c1_eth0.json"
    text = path.read_text()
    assert text.startswith(
        f'{{\n "mac": "{mac}",\n "promisc": false,\n "mtu": 1500,\n "allmulti": false,\n'
        ' "txQLen": 1000,\n'
    )
    users, found = sorted(path.parent.iterdir())
    assert found == path
    assert {p.stat().st_mode & 0o777 for p in (users, path)} == {0o600}
    assert tuned.backup()["sysctl"] == {ARP_FILTER: ["0", "1"]}
    assert tuned.backup()["shared"] == ["net/core/somaxconn"]
    (use,) = json.loads(users.read_text()).values()
    assert list(use["users"].values()) == ["500"]


def test_only_what_is_asked_for(tuned: Tuned, container: Netns) -> None:
    before = attributes(container)
    tuned.add(mtu=1454).succeeded()
    assert attributes(container) == {**before, "mtu": 1454}
    assert set(tuned.backup()) == {"mtu", "owner"}


def test_nothing_asked_for(tuned: Tuned, container: Netns) -> None:
    with unchanged(container):
        previous = tuned.previous()
        for keys in ({}, {"promisc": False, "mtu": 0, "mac": "", "sysctl": {}}):
            assert tuned.add(**keys).result == previous
    assert tree(tuned.backups) == {}
    tuned.check(promisc=False).succeeded()


def test_what_is_as_wanted_already_leaves_no_backup(tuned: Tuned, container: Netns) -> None:
    keys = {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "0"}}
    tuned.add(**keys).succeeded()
    assert tree(tuned.backups) == {}
    tuned.delete(**keys)


@pytest.mark.parametrize("off", [True, False])
def test_allmulti_is_switched_off_as_well(tuned: Tuned, container: Netns, off: bool) -> None:
    container.ip("link", "set", "eth0", "allmulticast", "on")
    tuned.add(allmulti=not off).succeeded()
    assert attributes(container)["allmulti"] is not off
    tuned.delete()
    assert attributes(container)["allmulti"] is True


def test_txqlen_of_zero(tuned: Tuned, container: Netns) -> None:
    tuned.add(txQLen=0).succeeded()
    assert attributes(container)["txqlen"] == 0
    assert tuned.backup()["txQLen"] == 1000
    tuned.delete()
    assert attributes(container)["txqlen"] == 1000


# -- where values come from -----------------------------------------------------------------------

SOURCES = [
    ({"mac": MAC}, ""),
    ({"mac": OTHER_MAC}, f"MAC={MAC}"),
    ({}, f"IgnoreUnknown=true;K8S_POD_NAME=x;MAC={MAC}"),
    ({"mac": OTHER_MAC, "runtimeConfig": {"mac": MAC}}, f"MAC={OTHER_MAC}"),
    ({"runtimeConfig": {"mac": OTHER_MAC}, "args": {"cni": {"mac": MAC}}}, f"MAC={OTHER_MAC}"),
    ({"MAC": MAC.upper()}, ""),
    ({"mac": MAC.replace(":", "-")}, ""),
]


@pytest.mark.parametrize(("keys", "args"), SOURCES, ids=[str(n) for n in range(len(SOURCES))])
def test_sources_of_the_mac(tuned: Tuned, container: Netns, keys: Json, args: str) -> None:
    before = attributes(container)
    result = tuned.add(args, **keys).result
    assert attributes(container)["mac"] == MAC
    assert [entry["mac"] for entry in result["interfaces"]] == ["c2:00:00:00:00:01", MAC]
    tuned.check(args, **keys).succeeded()
    tuned.delete(cni_args=args, **keys)
    assert attributes(container) == before


def test_args_win(tuned: Tuned, container: Netns) -> None:
    over = {
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1", "net.core.somaxconn": "700"},
        "promisc": True,
        "mtu": 1454,
        "allmulti": True,
        "txQLen": 50,
    }
    keys = {
        "sysctl": {"net/core/somaxconn": "600"},  # another spelling of the same
        "mtu": 1300,
        "allmulti": False,
        "txQLen": 60,
        "args": {"cni": over},
    }
    tuned.add(**keys).succeeded()
    found = attributes(container)
    assert (found["promisc"], found["mtu"], found["allmulti"], found["txqlen"]) == (
        True, 1454, True, 50,
    )  # fmt: skip
    assert container.sysctl(ARP_FILTER) == "1"
    assert container.sysctl("net/core/somaxconn") == "700"
    tuned.check(**keys).succeeded()


def test_args_alone(tuned: Tuned, container: Netns) -> None:
    """Where the reference crashes: it has no map to put the sysctls into."""
    tuned.add(args={"cni": {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}}}).succeeded()
    assert container.sysctl(ARP_FILTER) == "1"


def test_args_can_switch_off(tuned: Tuned, container: Netns) -> None:
    before = attributes(container)
    tuned.add(promisc=True, mtu=1300, args={"cni": {"promisc": False, "mtu": 0}}).succeeded()
    assert attributes(container) == before


def test_mtu_in_the_result(tuned: Tuned, container: Netns) -> None:
    """An earlier plugin's word on the MTU is not left standing."""
    previous = tuned.previous()
    previous["interfaces"][1]["mtu"] = 1500
    reply = tuned.runtime.add("tuning", tuned.conf(mtu=1400), container, prev_result=previous)
    assert [one.get("mtu") for one in reply.result["interfaces"]] == [None, 1400]


# -- sysctl names ---------------------------------------------------------------------------------

NAMES = [
    "net.ipv4.conf.IFNAME.arp_filter",
    "net/ipv4/conf/IFNAME/arp_filter",
    "net.ipv4.conf.eth0.100.arp_filter",
    "net/ipv4/conf/eth0.100/arp_filter",
]


@pytest.mark.parametrize("key", NAMES)
def test_interface_names_with_dots(
    runtime: Runtime, container: Netns, outside: Netns, backups: Path, key: str
) -> None:
    wire(container, outside, "eth0.100")
    tuned = Tuned(runtime, container, backups)
    tuned.ifname = "eth0.100"
    tuned.add(sysctl={key: "1"}).succeeded()
    assert container.sysctl("net/ipv4/conf/eth0.100/arp_filter") == "1"
    tuned.check(sysctl={key: "1"}).succeeded()
    tuned.delete()
    assert container.sysctl("net/ipv4/conf/eth0.100/arp_filter") == "0"


def test_several_numbers(tuned: Tuned, container: Netns) -> None:
    """The kernel prints tabs where people write blanks."""
    before = container.sysctl("net/ipv4/ip_local_port_range")
    keys = {"sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}}
    tuned.add(**keys).succeeded()
    assert container.sysctl("net/ipv4/ip_local_port_range").split() == ["20000", "30000"]
    tuned.check(**keys).succeeded()
    tuned.delete()
    assert container.sysctl("net/ipv4/ip_local_port_range") == before


def test_a_sysctl_that_can_only_be_written(tuned: Tuned) -> None:
    keys = {"sysctl": {"net.ipv4.route.flush": "1"}}
    tuned.add(**keys).succeeded()
    tuned.check(**keys).succeeded()
    tuned.delete(**keys)


def test_a_sysctl_that_somebody_else_has_changed_since_is_left_alone(
    tuned: Tuned, container: Netns
) -> None:
    tuned.add(sysctl={"net.core.somaxconn": "500"}).succeeded()
    container.set_sysctl("net/core/somaxconn", 600)
    tuned.delete()
    assert container.sysctl("net/core/somaxconn") == "600"


# -- features -------------------------------------------------------------------------------------


def test_features(tuned: Tuned, container: Netns) -> None:
    before = features(container)
    assert before["tx-tcp-segmentation"]
    keys = {"ethtool": {"tso": False, "tx-checksum-ip-generic": False, "rx-gro-list": True}}
    tuned.add(**keys).succeeded()
    after = features(container)
    assert not after["tx-tcp-segmentation"]
    assert not after["tx-tcp6-segmentation"]
    assert not after["tx-checksum-ip-generic"]
    assert after["rx-gro-list"]
    ping(container, "10.22.0.1")
    tuned.check(**keys).succeeded()
    container.exec(["ethtool", "-K", "eth0", "rx-gro-list", "off"])
    tuned.check(**keys).failed(
        999, "Error: Tuning configured feature rx-gro-list of eth0 is on, current value is off"
    )
    container.exec(["ethtool", "-K", "eth0", "rx-gro-list", "on"])
    tuned.delete(**keys)
    assert features(container) == before


BAD_FEATURES = [
    ({"nosuch": True}, "unknown feature nosuch"),
    ({"rx-vlan-filter": True}, "feature rx-vlan-filter cannot be turned on"),
    ({"tso": "off"}, "json: cannot unmarshal string into field ethtool"),
    # depends on tx-checksum-*
    ({"tx": False, "tx-tcp-segmentation": True}, "failed to set features"),
]


@pytest.mark.parametrize(("wanted", "text"), BAD_FEATURES)
def test_bad_features(tuned: Tuned, container: Netns, wanted: Json, text: str) -> None:
    if "tx" in wanted:
        container.exec(["ethtool", "-K", "eth0", "tso", "off"])
    before = features(container)
    with unchanged(container):
        tuned.add(mtu=1400, ethtool=wanted).failed(999, text)
    assert features(container) == before
    assert tree(tuned.backups) == {}


# -- two in a chain, and ADD again ----------------------------------------------------------------


def test_two_in_a_chain(tuned: Tuned, container: Netns) -> None:
    """In the reference the second overwrites the first one's backup."""
    before = attributes(container)
    first = {"mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}}
    second = {"mtu": 1300, "mac": MAC, "sysctl": {"net.core.somaxconn": "501"}}
    somaxconn = container.sysctl("net/core/somaxconn")
    tuned.add(**first).succeeded()
    tuned.add(**second).succeeded()
    assert attributes(container) == {**before, "mtu": 1300, "mac": MAC}
    tuned.delete(**second)
    tuned.delete(**first)
    assert attributes(container) == before
    assert container.sysctl("net/core/somaxconn") == somaxconn
    assert tree(tuned.backups) == {}


def test_an_add_that_is_repeated_keeps_the_first_backup(tuned: Tuned, container: Netns) -> None:
    before = attributes(container)
    for _ in range(2):
        tuned.add(**EVERYTHING).succeeded()
    tuned.delete(**EVERYTHING)
    assert attributes(container) == before
    assert container.sysctl(ARP_FILTER) == "0"


def test_a_backup_of_another_namespace_is_not_used(
    tuned: Tuned, container: Netns, netns: Callable[..., Netns], outside: Netns
) -> None:
    """Same container, same path even, but the DEL never came and the namespace is a new one."""
    tuned.add(mtu=1400, mac=MAC).succeeded()
    fresh, elsewhere = netns("fresh"), netns("elsewhere")
    wire(fresh, elsewhere)
    again = Tuned(tuned.runtime, fresh, tuned.backups)
    before = attributes(fresh)
    again.delete()
    assert attributes(fresh) == before
    assert tree(tuned.backups) == {}
    tuned.add(mtu=1450, mac=MAC).succeeded()
    again.add(promisc=True).succeeded()
    assert set(again.backup()) == {"promisc", "owner"}


@pytest.mark.parametrize(
    "fault",  # musl's open(3) is open(2), glibc's is openat(2)
    ["open,openat:error=EIO", "read:error=EIO", "open,openat:error=EMFILE"],
)
def test_a_backup_that_cannot_be_read_is_not_none(
    tuned: Tuned, container: Netns, fault: str
) -> None:
    """DEL fails and keeps the file, and what was before is put back when it is repeated."""
    tuned.add(sysctl={ARP_FILTER.replace("/", "."): "1"}).succeeded()
    path = tuned.backups / "c1_eth0.json"
    done = tuned.runtime.host.run(
        subprocess.run,
        [*STRACE, f"inject={fault}", "-P", str(path), str(tuned.runtime.bin_dir / "tuning")],
        input=json.dumps({"type": "tuning", **tuned.conf()}).encode(),
        capture_output=True,
        # strace sees this process only: the work has to be done in it
        env=tuned.runtime.environment("DEL", container, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    assert done.returncode == 1, done
    assert str(path) in json.loads(done.stdout)["msg"]
    assert container.sysctl(ARP_FILTER) == "1"
    tuned.delete()
    assert container.sysctl(ARP_FILTER) == "0"
    assert tree(tuned.backups) == {}


def test_a_torn_backup_is_replaced(tuned: Tuned, container: Netns) -> None:
    """The reference was killed while it wrote: nothing had been changed then."""
    tuned.backups.mkdir()
    path = tuned.backups / "c1_eth0.json"
    for torn in ("", '{\n "mac": "c2:', "[]", "null"):
        path.write_text(torn)
        tuned.delete()
        assert tree(tuned.backups) == {}
        path.write_text(torn)
        tuned.add(mtu=1400).succeeded()
        assert tuned.backup()["mtu"] == 1500
        tuned.delete()
        assert attributes(container)["mtu"] == 1500


# -- DEL without much -----------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["interface", "namespace", "path", "plain file"])
def test_delete_afterwards(tuned: Tuned, container: Netns, tmp_path: Path, gone: str) -> None:
    somaxconn = container.sysctl("net/core/somaxconn")
    tuned.add(**EVERYTHING).succeeded()
    where: Any = container
    if gone == "interface":
        container.ip("link", "delete", "eth0")
    elif gone == "namespace":
        where = None
    elif gone == "path":
        where = "/run/netns/nosuch"
    else:
        where = tmp_path / "plain"
        where.touch()
    tuned.delete(where, **EVERYTHING)
    assert tree(tuned.backups) == {}
    if gone == "interface":
        assert container.sysctl("net/core/somaxconn") == somaxconn
    tuned.delete(where, **EVERYTHING)


def test_what_cannot_be_put_back_does_not_stop_a_delete(tuned: Tuned, container: Netns) -> None:
    tuned.add(mtu=1400, txQLen=500).succeeded()
    path = tuned.backups / "c1_eth0.json"
    path.write_text(path.read_text().replace("1500", "7"))
    reply = tuned.delete()
    assert 'tuning: failed to set mtu of "eth0" to 7: ' in reply.stderr
    assert attributes(container)["txqlen"] == 1000
    assert path.exists()


@pytest.mark.parametrize("key", ["mtu", "sysctl", "ethtool", "args", "prevResult"])
def test_delete_needs_nothing_of_the_configuration(
    tuned: Tuned, container: Netns, key: str
) -> None:
    before = attributes(container)
    tuned.add(**EVERYTHING).succeeded()
    broken = {**tuned.conf(), key: "x"}
    tuned.runtime.delete("tuning", broken, container, args="x").succeeded()
    assert attributes(container) == before
    assert tree(tuned.backups) == {}


# -- sysctls of the namespace ---------------------------------------------------------------------

SHARED = "net.ipv4.conf.all.arp_announce"
SHARED_NAME = SHARED.replace(".", "/")


def attach(tuned: Tuned, container: Netns, name: str, value: str) -> None:
    container.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    act(tuned, container, "ADD", name, value)


def act(tuned: Tuned, container: Netns, verb: str, name: str, value: str, code: int = 0) -> None:
    previous = {"cniVersion": "1.1.0", "interfaces": [{"name": name, "sandbox": container.path}]}
    conf = {**tuned.conf(), "name": f"net-{name}", "sysctl": {SHARED: value}}
    conf["cniVersion"] = "1.1.0"
    reply = tuned.runtime.call(verb, "tuning", conf, container, ifname=name, prev_result=previous)
    assert (reply.rc != 0) == code, str(reply)


@pytest.mark.parametrize("order", ["net1 net2 net3", "net3 net2 net1", "net2 net1 net3"])
def test_a_shared_sysctl_is_put_back_by_the_last_attachment(
    tuned: Tuned, container: Netns, order: str
) -> None:
    before = container.sysctl(SHARED_NAME)
    for name in sorted(order.split()):
        attach(tuned, container, name, "2")
    for name in order.split():
        assert container.sysctl(SHARED_NAME) == "2"
        act(tuned, container, "CHECK", name, "2")
        act(tuned, container, "DEL", name, "2")
    assert container.sysctl(SHARED_NAME) == before
    assert tree(tuned.backups) == {}


def test_the_attachments_that_stay_get_their_value_back(tuned: Tuned, container: Netns) -> None:
    before = container.sysctl(SHARED_NAME)
    attach(tuned, container, "net1", "1")
    attach(tuned, container, "net2", "2")
    assert container.sysctl(SHARED_NAME) == "2"
    act(tuned, container, "DEL", "net2", "2")
    assert container.sysctl(SHARED_NAME) == "1"
    act(tuned, container, "DEL", "net1", "1")
    assert container.sysctl(SHARED_NAME) == before


def test_a_failed_add_does_not_put_back_what_another_has_set(
    tuned: Tuned, container: Netns
) -> None:
    attach(tuned, container, "net1", "2")
    files = tree(tuned.backups)
    tuned.add(sysctl={SHARED: "2"}, mtu=7).failed(999, "mtu")
    assert container.sysctl(SHARED_NAME) == "2"
    assert tree(tuned.backups) == files
    act(tuned, container, "DEL", "net1", "2")
    assert container.sysctl(SHARED_NAME) == "0"


def test_users_of_a_namespace_that_is_gone_are_forgotten(tuned: Tuned, container: Netns) -> None:
    attach(tuned, container, "net1", "2")
    path = container.path
    container.close()
    conf = {**tuned.conf(), "name": "net-net1"}
    tuned.runtime.delete("tuning", conf, path, ifname="net1").succeeded()
    assert tree(tuned.backups) == {}


def test_gc_removes_the_users_that_are_gone(tuned: Tuned, container: Netns) -> None:
    attach(tuned, container, "net1", "2")
    conf = {**tuned.conf(), "name": "net-net1", "cniVersion": "1.1.0"}
    tuned.runtime.gc("tuning", conf, [("c1", "net1")]).succeeded()
    assert len(tree(tuned.backups)) == 2
    tuned.runtime.gc("tuning", conf, []).succeeded()
    assert tree(tuned.backups) == {}


@pytest.mark.parametrize("last", ["DEL", "GC", "GC without the path"])
def test_gc_takes_out_the_users_that_are_gone(tuned: Tuned, container: Netns, last: str) -> None:
    """The last user to go puts the value back, whether DEL or GC takes it out."""
    before = container.sysctl(SHARED_NAME)
    attach(tuned, container, "net1", "2")
    attach(tuned, container, "net2", "1")
    attach(tuned, container, "net3", "2")
    collect(tuned, "net1")
    assert container.sysctl(SHARED_NAME) == "2"
    collect(tuned, "net3")
    assert container.sysctl(SHARED_NAME) == "1"
    if last == "DEL":
        act(tuned, container, "DEL", "net2", "1")
    else:
        if last != "GC":
            container.popen(["sleep", "600"])
            container.unname()
        collect(tuned, "net2")
    assert container.sysctl(SHARED_NAME) == before
    assert tree(tuned.backups) == {}


def test_gc_leaves_what_another_program_has_set(tuned: Tuned, container: Netns) -> None:
    attach(tuned, container, "net1", "2")
    container.set_sysctl(SHARED_NAME, 1)
    collect(tuned, "net1")
    assert container.sysctl(SHARED_NAME) == "1"
    assert tree(tuned.backups) == {}


def test_gc_when_the_namespace_is_gone(tuned: Tuned, container: Netns) -> None:
    attach(tuned, container, "net1", "2")
    attach(tuned, container, "net2", "2")
    container.close()
    collect(tuned, "net1")
    assert len(tree(tuned.backups)) == 2  # net2's, and who has set the sysctl
    collect(tuned, "net2")
    assert tree(tuned.backups) == {}


@pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
def test_gc_waits_for_the_lock_of_add_and_del(tuned: Tuned, container: Netns) -> None:
    """While another request holds the namespace, GC changes nothing; it gives up in the end."""
    attach(tuned, container, "net1", "2")
    files = tree(tuned.backups)
    holder = subprocess.Popen(
        ["flock", container.path, "sh", "-c", "echo; read _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        conf = {**tuned.conf(), "name": "net-net1", "cniVersion": "1.1.0"}
        tuned.runtime.gc("tuning", conf, []).failed(11, "cannot lock ")
        assert container.sysctl(SHARED_NAME) == "2"
        shared = {name: text for name, text in files.items() if name.startswith(":")}
        assert shared == tree(tuned.backups)
    collect(tuned, "net1")
    assert container.sysctl(SHARED_NAME) == "0"
    assert tree(tuned.backups) == {}


def collect(tuned: Tuned, name: str) -> None:
    conf = {**tuned.conf(), "name": f"net-{name}", "cniVersion": "1.1.0"}
    tuned.runtime.gc("tuning", conf, []).succeeded()


@pytest.mark.parametrize("value", ["1024\n", " 1024 ", "\t1024"])
def test_white_space_around_a_value_does_not_belong_to_it(
    tuned: Tuned, container: Netns, value: str
) -> None:
    tuned.add(sysctl={"net.core.somaxconn": value}).succeeded()
    assert container.sysctl("net/core/somaxconn") == "1024"
    tuned.check(sysctl={"net.core.somaxconn": value}).succeeded()


def test_a_null_sets_nothing(tuned: Tuned, container: Netns) -> None:
    with unchanged(container):
        tuned.add(sysctl={"net.core.somaxconn": None}).succeeded()
    assert tree(tuned.backups) == {}
    tuned.delete(sysctl={"net.core.somaxconn": None})


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("what", ["failed to open netns", "read "])
def test_a_delete_that_could_not_look_keeps_the_backup(
    tuned: Tuned, container: Netns, tmp_path: Path, what: str
) -> None:
    before = container.sysctl(SHARED_NAME)
    conf = {**tuned.conf(), "mtu": 1400, "sysctl": {SHARED: "2"}}
    tuned.add(mtu=1400, sysctl={SHARED: "2"}).succeeded()
    files = tree(tuned.backups)
    path = next(map(str, tuned.backups.glob(":*"))) if what == "read " else container.path
    strace = ["strace", "-qq", "-o", str(tmp_path / "trace"), "-P", path]
    done = tuned.runtime.host.run(
        subprocess.run,
        [*strace, "-e", "inject=open,openat:error=EMFILE", str(tuned.runtime.bin_dir / "tuning")],
        input=json.dumps(conf).encode(),
        capture_output=True,
        env=tuned.runtime.environment("DEL", container, env={"CNI_SERVER": "off"}),
        cwd="/",
        timeout=120,
    )
    assert json.loads(done.stdout)["msg"].startswith(what)
    assert tree(tuned.backups) == files
    tuned.delete(mtu=1400, sysctl={SHARED: "2"})
    assert container.sysctl(SHARED_NAME) == before
    assert tree(tuned.backups) == {}


# -- GC -------------------------------------------------------------------------------------------


def test_gc(tuned: Tuned, container: Netns) -> None:
    tuned.add(mtu=1400).succeeded()
    others = {
        "c9_eth0.json": '{"mtu": 1500}',  # the reference's: nobody knows of which network
        "x9_eth0.json": json.dumps({"owner": {**tuned.backup()["owner"], "network": "other"}}),
        "note.json": "[]",
        "README": "",
    }
    for name, text in others.items():
        (tuned.backups / name).write_text(text)
    conf = tuned.conf()
    tuned.runtime.gc("tuning", conf, None).succeeded()
    tuned.runtime.gc("tuning", conf, [("c1", "eth0")]).succeeded()
    tuned.runtime.gc("tuning", {**conf, "name": "third"}, []).succeeded()
    assert set(tree(tuned.backups)) == {*others, "c1_eth0.json"}
    tuned.runtime.gc("tuning", conf, [("c1", "eth1"), ("c2", "eth0")]).succeeded()
    assert set(tree(tuned.backups)) == set(others)
    tuned.runtime.gc("tuning", {**conf, "dataDir": "/nosuch/dir"}, []).succeeded()


# -- CHECK and STATUS -----------------------------------------------------------------------------


def test_check_reports_every_difference(tuned: Tuned, container: Netns) -> None:
    tuned.add(**EVERYTHING).succeeded()
    container.ip_batch(
        f"link set eth0 address {OTHER_MAC} mtu 1300 promisc off allmulticast off txqueuelen 7"
    )
    container.set_sysctl(ARP_FILTER, 0)
    error = tuned.check(**EVERYTHING).failed(999)
    assert error["msg"] == (
        f"Error: Tuning configured value of /proc/sys/{ARP_FILTER} is 1, current value is 0"
    )
    for text in (
        f"Error: Tuning configured Ethernet of eth0 is {MAC}, current value is {OTHER_MAC}",
        "Error: Tuning link eth0 configured promisc is true, current value is false",
        "Error: Tuning configured MTU of eth0 is 1400, current value is 1300",
        "Error: Tuning configured all-multicast mode of eth0 is true, current value is false",
        "Error: Tuning configured Transmit Queue Length of eth0 is 20000, current value is 7",
    ):
        assert text in error["details"]


def test_check_of_what_is_gone(tuned: Tuned, container: Netns) -> None:
    conf = tuned.conf(**EVERYTHING)
    previous = tuned.previous()
    tuned.runtime.check("tuning", conf, container).failed(999, "Required prevResult missing")
    container.ip("link", "delete", "eth0")
    tuned.runtime.check("tuning", conf, container, prev_result=previous).failed(
        999,
        f"open /proc/sys/{ARP_FILTER}: no such file or directory",
        "Cannot find container link eth0",
    )


def test_status(tuned: Tuned, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status = tuned.runtime.status
    status("tuning", tuned.conf(**EVERYTHING)).succeeded()
    assert tree(tuned.backups) == {}
    status("tuning", tuned.conf(dataDir="/proc/sys/net/x")).failed(50, "cannot write to /proc")
    status("tuning", tuned.conf(dataDir=str(tmp_path / "file"))).failed(50, "cannot write to")
    status("tuning", tuned.conf(sysctl={"kernel.x": "1"})).failed(999, "invalid net sysctl key")


# -- the allow-list -------------------------------------------------------------------------------


def with_allowlist(tuned: Tuned, tmp_path: Path, text: str, verb: str, conf: Json) -> Reply:
    """Run a verb where /etc/cni holds nothing but tuning's list."""
    listed = tmp_path / "etc" / "tuning"
    listed.mkdir(parents=True, exist_ok=True)
    (listed / "allowlist.conf").write_text(text)
    script = f'mount --bind {listed.parent} /etc/cni && exec "$0"'
    environment = tuned.runtime.environment(verb, tuned.container)
    plugin = str(tuned.runtime.bin_dir / "tuning")
    if not Path("/etc/cni").is_dir():
        pytest.skip("there is no /etc/cni to mount the list on")
    done = tuned.runtime.host.run(
        subprocess.run,
        ["unshare", "--mount", "sh", "-c", script, plugin],
        input=json.dumps({**conf, "prevResult": tuned.previous()}),
        capture_output=True,
        text=True,
        env=environment,
    )
    return Reply("tuning", verb, done.returncode, done.stdout, done.stderr, 0)


def test_allowlist(tuned: Tuned, container: Netns, tmp_path: Path) -> None:
    conf = tuned.conf(sysctl={"net.ipv4.conf.IFNAME.arp_filter": "1"})

    def run(text: str, verb: str = "ADD") -> Reply:
        return with_allowlist(tuned, tmp_path, text, verb, conf)

    with unchanged(container):
        for text in ("", "\n", "net.ipv4.conf.IFNAME.arp\n", "ipv4.conf.IFNAME.arp_filter"):
            run(text).failed(
                999,
                "Sysctl net.ipv4.conf.IFNAME.arp_filter is not allowed. "
                f"Only the following sysctls are allowed: [{text.strip()}]",
            )
        run("(").failed(999, "error parsing regexp: ")
        run("x\n", "STATUS").failed(50, "is not allowed")
    run("nonsense\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$  \n\n").succeeded()
    assert container.sysctl(ARP_FILTER) == "1"
    # what is there already is not asked again
    run("", "CHECK").succeeded()
    run("", "DEL").succeeded()
    assert container.sysctl(ARP_FILTER) == "0"


# -- bad input ------------------------------------------------------------------------------------

BAD: list[tuple[Json, str, str]] = [
    ({"sysctl": {"kernel.foo": "1"}}, "", 'invalid net sysctl key: "kernel/foo"'),
    ({"sysctl": {"net/../kernel/core_pattern": "x"}}, "", "invalid net sysctl key"),
    ({"sysctl": {"/proc/sys/net/ipv4/ip_forward": "1"}}, "", "invalid net sysctl key"),
    ({"sysctl": {"net.ipv4.ip_forward": "1\n2"}}, "", 'invalid value of sysctl "net.ipv4.ip_f'),
    ({"sysctl": {"net.ipv4.ip_forward": "1\0"}}, "", "invalid value of sysctl"),
    ({"sysctl": {"net.ipv4": "1"}}, "", "open /proc/sys/net/ipv4: is a directory"),
    ({"sysctl": {"net.ipv4.nosuch": "1"}}, "", "open /proc/sys/net/ipv4/nosuch: no such file"),
    ({"sysctl": {"net.ipv4.conf.gone0.arp_filter": "1"}}, "", "no such file or directory"),
    ({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "x"}}, "", ": invalid argument"),
    ({"sysctl": {"net.ipv4.ip_forward": 1}}, "", "json: cannot unmarshal number into field sysctl"),
    ({"sysctl": ["net.ipv4.ip_forward"]}, "", "json: cannot unmarshal array into field sysctl"),
    (
        {"sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}},
        "",
        "duplicated sysctl keys are not allowed",
    ),
    ({"mac": "x"}, "", "invalid args x for MAC addr: address x: invalid MAC address"),
    ({"mac": "01:00:00:00:00:01"}, "", 'failed to set mac of "eth0" to 01:00:00:00:00:01: '),
    ({}, "MAC=x", "invalid args x for MAC addr"),
    ({}, "FOO=x", "ARGS: unknown args"),
    ({"runtimeConfig": {"mac": "x"}}, "", "invalid args x for MAC addr"),
    ({"args": {"cni": {"mac": "x"}}}, "", "invalid args x for MAC addr"),
    ({"mtu": -1}, "", "invalid mtu -1"),
    ({"mtu": 1 << 32}, "", "invalid mtu 4294967296"),
    ({"mtu": 20}, "", 'failed to set mtu of "eth0" to 20: '),
    ({"mtu": "1500"}, "", "failed to load netconf: json: cannot unmarshal string into field mtu"),
    ({"txQLen": -1}, "", "invalid txQLen -1"),
    ({"promisc": "yes"}, "", "json: cannot unmarshal string into field promisc"),
    ({"dataDir": "/tmp/\0"}, "", "invalid dataDir"),
    ({"dataDir": "/proc/nosuch"}, "", "write /proc/nosuch/c1_eth0.json: "),
]


@pytest.mark.parametrize(("keys", "args", "text"), BAD, ids=[repr(one[:2]) for one in BAD])
def test_bad_input_changes_nothing(
    tuned: Tuned, container: Netns, keys: Json, args: str, text: str
) -> None:
    """Also when it is found late: what came before it is put back."""
    good: Json = {"sysctl": {"net.core.somaxconn": "500"}, "promisc": True}
    if isinstance(keys.get("sysctl", {}), dict):
        keys = {**keys, "sysctl": {**good["sysctl"], **keys.get("sysctl", {})}}
    somaxconn = container.sysctl("net/core/somaxconn")
    with unchanged(tuned.runtime.host, container):
        reply = tuned.add(args, **{**good, **keys})
        reply.failed(999, text)
        assert reply.stderr == ""
    assert container.sysctl("net/core/somaxconn") == somaxconn
    assert tree(tuned.backups) == {}


@pytest.mark.parametrize(
    "text",
    [
        '{"net.core.somaxconn": "1", "net.core.somaxconn": "2"}',
        '{"net.core.somaxconn": "1", "net.core.somaxco\\u006en": "2"}',
        '{"net.core.somaxconn": "\\"1", "a": "}", "net.core.somaxconn" : "\\\\"}',
    ],
)
def test_duplicate_keys(tuned: Tuned, container: Netns, text: str) -> None:
    conf = json.dumps({**tuned.conf(), "prevResult": tuned.previous()})
    conf = f'{conf[:-1]}, "sysctl": {text}}}'
    for verb in ("ADD", "CHECK"):
        reply = tuned.runtime.call(verb, "tuning", conf, container)
        reply.failed(999, "duplicated sysctl keys are not allowed", "twice: net.core.somaxconn")
    tuned.runtime.call("DEL", "tuning", conf, container).succeeded()


def test_without_prev_result(tuned: Tuned, container: Netns) -> None:
    with unchanged(container):
        reply = tuned.runtime.add("tuning", tuned.conf(mtu=1400), container)
        reply.failed(999, "Required prevResult missing")


def test_without_the_interface(tuned: Tuned, container: Netns) -> None:
    previous = tuned.previous()
    container.ip("link", "delete", "eth0")
    conf = tuned.conf(mtu=1400)
    reply = tuned.runtime.add("tuning", conf, container, prev_result=previous)
    reply.failed(999, 'failed to get "eth0": Link not found')
    # sysctls need none
    conf = tuned.conf(sysctl={"net.core.somaxconn": "500"})
    tuned.runtime.add("tuning", conf, container, prev_result=previous).succeeded()


def test_a_failure_late_in_a_chain_undoes_only_its_own(tuned: Tuned, container: Netns) -> None:
    tuned.add(mtu=1400, sysctl={"net.core.somaxconn": "500"}).succeeded()
    kept = tree(tuned.backups)
    tuned.add(mtu=1300, ethtool={"tso": False}, mac="01:00:00:00:00:01").failed(999, "set mac")
    assert attributes(container)["mtu"] == 1400
    assert tree(tuned.backups) == kept


# -- beside the reference -------------------------------------------------------------------------

# Debian's version does not know txQLen yet.
KNOWN_TO_BOTH = {key: value for key, value in EVERYTHING.items() if key != "txQLen"}


def test_the_reference_puts_back_what_we_changed(
    tuned: Tuned, go_runtime: Runtime, container: Netns
) -> None:
    before = attributes(container)
    tuned.version = "1.0.0"
    tuned.add(**{**KNOWN_TO_BOTH, "ethtool": {"tso": False}}).succeeded()
    go_runtime.delete("tuning", tuned.conf(**KNOWN_TO_BOTH), container).succeeded()
    assert attributes(container) == before
    assert not [name for name in tree(tuned.backups) if name.endswith(".json")]


def test_we_put_back_what_the_reference_changed(
    tuned: Tuned, go_runtime: Runtime, container: Netns
) -> None:
    before = attributes(container)
    tuned.version = "1.0.0"
    conf, previous = tuned.conf(**KNOWN_TO_BOTH), tuned.previous()
    go_runtime.add("tuning", conf, container, prev_result=previous).succeeded()
    assert attributes(container) == {**TUNED, "txqlen": before["txqlen"]}
    tuned.check(**KNOWN_TO_BOTH).succeeded()
    tuned.delete(**KNOWN_TO_BOTH)
    assert attributes(container) == before
    assert tree(tuned.backups) == {}


def test_nothing_is_left_on_the_host(tuned: Tuned) -> None:
    with unchanged(tuned.runtime.host):
        tuned.add(**EVERYTHING).succeeded()
        tuned.delete(**EVERYTHING)
