"""macvlan: interfaces with MACs of their own on a link of the node or of the container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import (
    ALL_VERSIONS,
    DUAL,
    FAMILIES,
    INTERFACE_VERSIONS,
    V4,
    Family,
    Netns,
    Runtime,
    addresses,
    capture,
    each_family,
    each_version,
    kind,
    link,
    links,
    ping,
    requires_kernel,
    routes,
    tcp_exchange,
    tcp_server,
    unchanged,
)
from tests.harness.contract import (
    MASTER,
    InterfaceContract,
    leases,
    plug,
    without_dad,
)

pytestmark = requires_kernel("macvlan")

Json = dict[str, Any]


class TestContract(InterfaceContract):
    plugin = "macvlan"
    kind = "macvlan"
    layer2 = True
    no_prev_result = "required prevResult missing"
    other_sandbox = "sandbox in prevResult"
    check_kind = "error: Container interface eth0 not of type macvlan"


def network(**keys: Any) -> Json:
    """A network on MASTER, without IPAM."""
    return {"cniVersion": "1.1.0", "name": "net", "master": MASTER, **keys}


def info(ns: Netns, name: str = "eth0") -> Json:
    return dict(link(ns, name)["linkinfo"]["info_data"])


# -- the interface --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bridge", "private", "vepa", "passthru", None])
def test_modes(runtime: Runtime, container: Netns, outside: Netns, mode: str | None) -> None:
    plug(runtime.host, outside)
    conf = network(mtu=1500, **({"mode": mode} if mode else {}))
    result = runtime.add("macvlan", conf, container).result
    assert set(result) == {"cniVersion", "interfaces"}
    assert info(container)["mode"] == (mode or "bridge")
    assert addresses(container, "eth0") == []
    assert "UP" in link(container, "eth0")["flags"]
    runtime.check("macvlan", conf, container, prev_result=result).succeeded()
    other = {**conf, "mode": "vepa" if mode == "private" else "private"}
    names = (mode or "bridge", other["mode"])
    runtime.check("macvlan", other, container, prev_result=result).failed(
        999, "container macvlan mode {} does not match expected value: {}".format(*names)
    )


def test_passthru_takes_one_container(
    runtime: Runtime, container: Netns, container2: Netns, outside: Netns
) -> None:
    plug(runtime.host, outside)
    conf = network(mode="passthru")
    runtime.add("macvlan", conf, container).succeeded()
    with unchanged(runtime.host, container, container2):
        reply = runtime.add("macvlan", conf, container2, container_id="c2")
        reply.failed(999, "failed to create macvlan: ")


@pytest.mark.parametrize(("mtu", "expected"), [(None, 1400), (0, 1400), (1300, 1300), (1400, 1400)])
def test_mtu(
    runtime: Runtime, container: Netns, outside: Netns, mtu: int | None, expected: int
) -> None:
    plug(runtime.host, outside, mtu=1400)
    conf = network() if mtu is None else network(mtu=mtu)
    runtime.add("macvlan", conf, container).succeeded()
    assert link(container, "eth0")["mtu"] == expected


def test_broadcast_queue(runtime: Runtime, container: Netns, outside: Netns) -> None:
    plug(runtime.host, outside)
    runtime.add("macvlan", network(bcqueuelen=2000), container).succeeded()
    assert info(container)["bcqueuelen"] == 2000


CONFIG, ARGS, RUNTIME = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"


@pytest.mark.parametrize("where", ["host", "container"])
@pytest.mark.parametrize(
    ("keys", "args", "expected"),
    [
        ({"mac": CONFIG}, "", CONFIG),
        ({"mac": "02:00:00:00:00:0A"}, "", "02:00:00:00:00:0a"),
        ({"mac": CONFIG}, f"IgnoreUnknown=true;MAC={ARGS}", ARGS),
        ({"RuntimeConfig": {"mac": RUNTIME}}, "", RUNTIME),
        ({"mac": CONFIG, "runtimeConfig": {"mac": RUNTIME}}, f"MAC={ARGS}", RUNTIME),
    ],
    ids=["config", "upper-case", "args", "runtime", "all"],
)
def test_mac(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    keys: Json,
    args: str,
    expected: str,
    where: str,
) -> None:
    plug(runtime.host if where == "host" else container, outside)
    conf = network(linkInContainer=where == "container", **keys)
    result = runtime.add("macvlan", conf, container, args=args).result
    assert result["interfaces"][0]["mac"] == expected == link(container, "eth0")["address"]
    runtime.check("macvlan", conf, container, prev_result=result, args=args).succeeded()


@pytest.mark.parametrize("where", ["host", "container"])
@pytest.mark.parametrize("family", FAMILIES[:2], ids=str)
def test_master_of_the_default_route(
    runtime: Runtime, container: Netns, outside: Netns, where: str, family: Family
) -> None:
    ns = runtime.host if where == "host" else container
    plug(ns, outside)
    cidr = family.first[0]
    ns.ip_batch(
        f"address add {cidr} dev {MASTER}" + (" nodad" if ":" in cidr else ""),
        f"route add default via {family.gateways[0]}",
    )
    conf = network(linkInContainer=where == "container")
    del conf["master"]
    result = runtime.add("macvlan", conf, container, ifname="net1").result
    assert link(container, "net1")["link_index" if where == "host" else "link"] in (1001, MASTER)
    runtime.check("macvlan", conf, container, prev_result=result, ifname="net1").succeeded()


@each_version()
@pytest.mark.parametrize("where", ["host", "container", None])
def test_layer_2(
    runtime: Runtime, container: Netns, outside: Netns, cni_version: str, where: str | None
) -> None:
    plug(container if where == "container" else runtime.host, outside)
    conf = network(cniVersion=cni_version)
    if where is not None:
        conf["linkInContainer"] = where == "container"
    reply = runtime.add("macvlan", conf, container)
    if cni_version in ALL_VERSIONS[:2]:
        # The link stays until DEL; the reference's own tests look for it.
        reply.failed(999, "cannot convert: no valid IP addresses")
    else:
        mac = link(container, "eth0")["address"]
        entry = {"name": "eth0", "mac": mac, "sandbox": container.path}
        assert reply.result["interfaces"] == [entry]
        assert "ips" not in reply.result
    assert kind(link(container, "eth0")) == "macvlan"
    assert addresses(container, "eth0") == []
    for _ in range(2):
        runtime.delete("macvlan", conf, container).succeeded()
        assert "eth0" not in links(container)


@each_version(INTERFACE_VERSIONS)
def test_only_the_configurations_dns(
    runtime: Runtime, container: Netns, outside: Netns, tmp_path: Path, cni_version: str
) -> None:
    plug(runtime.host, outside)
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.53\n")
    ipam = {**V4.host_local(tmp_path / "networks"), "resolvConf": str(resolv)}
    conf = network(cniVersion=cni_version, ipam=ipam)
    result = runtime.add("macvlan", conf, container).result
    assert not result.get("dns")
    runtime.delete("macvlan", conf, container).succeeded()
    conf["dns"] = {"nameservers": ["192.0.2.1"], "domain": "example.org"}
    assert runtime.add("macvlan", conf, container).result["dns"] == conf["dns"]


# -- packets --------------------------------------------------------------------------------------


@each_family()
@pytest.mark.parametrize(("mode", "talk"), [("bridge", True), ("private", False)])
def test_two_containers_and_a_peer(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    outside: Netns,
    data_dir: Path,
    family: Family,
    mode: str,
    talk: bool,
) -> None:
    without_dad(container, container2)
    plug(runtime.host, outside)
    conf = network(mode=mode, ipam=family.host_local(data_dir))
    runtime.add("macvlan", conf, container).succeeded()
    runtime.add("macvlan", conf, container2, container_id="c2").succeeded()
    for gateway in family.gateways:
        ping(container, gateway)
        ping(container2, gateway)
    for cidr in family.second:
        other = cidr.partition("/")[0]
        ping(container, other, expect=talk, timeout=3 if talk else 0.5)
        if talk:
            with tcp_server(container2) as server:
                first = family.first[family.second.index(cidr)].partition("/")[0]
                assert tcp_exchange(container, other, server.port) == first


def test_neighbours_are_told(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    without_dad(container)
    plug(runtime.host, outside)
    conf = network(ipam=DUAL.host_local(data_dir))
    with capture(outside) as seen:
        result = runtime.add("macvlan", conf, container).result
        ping(container, DUAL.gateways[0])
    mac = result["interfaces"][0]["mac"]
    assert {arp.sender_mac for arp in seen.gratuitous("10.22.0.2")} == {mac}
    assert mac in {one.mac for one in seen.advertisements("fd00:22::2")}


def test_duplicate_address_is_refused(runtime: Runtime, container: Netns, outside: Netns) -> None:
    plug(runtime.host, outside)
    outside.ip("address", "add", "fd00:22::2/64", "dev", "peer0", "nodad")
    conf = network(ipam=DUAL.static())
    with unchanged(runtime.host, container):
        reply = runtime.add("macvlan", conf, container)
        reply.failed(999, "link eth0 has address fd00:22::2", "in DADFAILED state")


# -- CHECK and bad input --------------------------------------------------------------------------


def test_check_sees_a_missing_master(runtime: Runtime, container: Netns, outside: Netns) -> None:
    plug(runtime.host, outside)
    conf = network(ipam=V4.static())
    result = runtime.add("macvlan", conf, container).result
    conf["master"] = "gone0"
    reply = runtime.check("macvlan", conf, container, prev_result=result)
    reply.failed(999, 'failed to lookup master "gone0": Link not found')
    conf |= {"master": MASTER, "linkInContainer": True}
    reply = runtime.check("macvlan", conf, container, prev_result=result)
    reply.failed(999, f'failed to lookup master "{MASTER}": Link not found')


BAD: list[tuple[Json, str, str]] = [
    ({"mode": "hairpin"}, "", 'unknown macvlan mode: "hairpin"'),
    ({"mode": "Bridge"}, "", 'unknown macvlan mode: "Bridge"'),
    ({"mtu": 1501}, "", "invalid MTU 1501, must be [0, master MTU(1500)]"),
    ({"mtu": -1}, "", "invalid MTU -1, must be [0, master MTU(1500)]"),
    ({"mtu": "big"}, "", "failed to load netConf: json: cannot unmarshal string into field mtu"),
    ({"mtu": 60}, "", "failed to create macvlan: "),
    ({"master": "gone0"}, "", "Link not found"),
    ({"master": "a-name-that-is-much-too-long"}, "", "Link not found"),
    ({"master": ""}, "", "no default route interface found"),
    ({"master": "lo"}, "", "failed to create macvlan: "),
    ({"linkInContainer": True}, "", "Link not found"),
    ({"mac": "02:00"}, "", "invalid args 02:00 for MAC addr: address 02:00: invalid MAC address"),
    ({"mac": "01:00:00:00:00:01"}, "", "failed to create macvlan: "),
    ({}, "MAC=xyz", "invalid args xyz for MAC addr: "),
    ({}, "FOO=bar", "ARGS: unknown args"),
    ({"bcqueuelen": -1}, "", "bcqueuelen"),
    ({"bcqueuelen": 1 << 32}, "", "bcqueuelen"),
    ({"hostShim": True, "mode": "private"}, "", "hostShim needs the mode bridge"),
    ({"hostShim": True, "linkInContainer": True}, "", "hostShim needs"),
]


@pytest.mark.parametrize(("keys", "args", "text"), BAD, ids=[repr(one[:2]) for one in BAD])
def test_bad_input_changes_nothing(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    data_dir: Path,
    keys: Json,
    args: str,
    text: str,
) -> None:
    plug(runtime.host, outside)
    conf = network(**{"ipam": V4.host_local(data_dir), **keys})
    with unchanged(runtime.host, container, data_dir):
        reply = runtime.add("macvlan", conf, container, args=args)
        reply.failed(999, text)
        assert reply.stderr == ""


# -- the host's shim ------------------------------------------------------------------------------


def shims(ns: Netns) -> list[str]:
    return [name for name in links(ns) if name.startswith("cnishim")]


def shim_routes(ns: Netns) -> list[str]:
    names = shims(ns)
    return [one["dst"] for one in routes(ns) if one.get("dev") in names] if names else []


@each_family()
def test_host_shim(
    runtime: Runtime,
    container: Netns,
    container2: Netns,
    outside: Netns,
    data_dir: Path,
    family: Family,
) -> None:
    host = runtime.host
    without_dad(container, container2, host)
    plug(host, outside)
    for subnet in family.subnets:
        cidr = subnet.replace(".0/", ".200/").replace("::/", "::200/")
        host.ip("address", "add", cidr, "dev", MASTER, *(["nodad"] if ":" in cidr else []))
    conf = network(hostShim=True, ipam=family.host_local(data_dir))
    plain = {**conf, "name": "plain", "hostShim": False}
    with runtime.attached("macvlan", plain, container):
        first = family.first[0].partition("/")[0]
        ping(host, first, expect=False, timeout=0.5)
        assert not shims(host)

    runtime.add("macvlan", conf, container).succeeded()
    runtime.add("macvlan", conf, container2, container_id="c2").succeeded()
    (shim,) = shims(host)
    firsts = [cidr.partition("/")[0] for cidr in family.first]
    seconds = [cidr.partition("/")[0] for cidr in family.second]
    both = firsts + seconds
    assert sorted(shim_routes(host)) == sorted(both)
    for address in both:
        ping(host, address)
    with tcp_server(container) as server:
        for address in firsts:
            tcp_exchange(host, address, server.port)
    for gateway in family.gateways:
        ping(host, gateway)  # the master's own traffic goes on as before

    runtime.delete("macvlan", conf, container2, container_id="c2").succeeded()
    assert sorted(shim_routes(host)) == sorted(firsts)
    runtime.gc("macvlan", conf, [("c1", "eth0")]).succeeded()
    assert sorted(shim_routes(host)) == sorted(firsts)
    assert shims(host) == [shim]
    runtime.gc("macvlan", conf, []).succeeded()
    assert not shims(host)
    assert not leases(data_dir)


def test_gc_of_another_network_leaves_the_shim(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    plug(runtime.host, outside)
    conf = network(hostShim=True, ipam=V4.host_local(data_dir))
    runtime.add("macvlan", conf, container).succeeded()
    runtime.gc("macvlan", {**conf, "name": "other"}, []).succeeded()
    assert shim_routes(runtime.host) == ["10.22.0.2"]


def test_failed_add_leaves_no_shim_route(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    plug(runtime.host, outside)
    ipam = {**V4.host_local(data_dir), "routes": [{"dst": "10.99.0.0/16", "gw": "192.0.2.1"}]}
    conf = network(hostShim=True, ipam=ipam)
    with unchanged(runtime.host, container):
        runtime.add("macvlan", conf, container).failed(999, "failed to add route")
    assert not leases(data_dir)


def test_shim_is_removed_by_hand(
    runtime: Runtime, container: Netns, outside: Netns, data_dir: Path
) -> None:
    """DEL and GC do not mind, and the next ADD makes it again."""
    plug(runtime.host, outside)
    conf = network(hostShim=True, ipam=V4.host_local(data_dir))
    runtime.add("macvlan", conf, container).succeeded()
    runtime.host.ip("link", "delete", shims(runtime.host)[0])
    runtime.gc("macvlan", conf, [("c1", "eth0")]).succeeded()
    runtime.delete("macvlan", conf, container).succeeded()
    runtime.add("macvlan", conf, container).succeeded()
    assert shim_routes(runtime.host)


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
def test_shim_routes_of_an_add_without_del(
    runtime: Runtime, container: Netns, container2: Netns, outside: Netns, noted: bool
) -> None:
    """DEL also removes those to addresses that the attachment had before; others' stay."""
    host = runtime.host
    without_dad(container, container2)
    plug(host, outside)

    def at(*addresses: str) -> dict[str, Any]:
        given = [{"address": f"{each}"} for each in addresses]
        return network(hostShim=True, ipam={"type": "static", "addresses": given})

    runtime.add("macvlan", at("10.22.0.9/24"), container2, container_id="c2").succeeded()
    runtime.add("macvlan", at("10.22.0.7/24", "fd00:22::7/64"), container).succeeded()
    container.ip("link", "delete", "eth0")
    if not noted:
        without_routes(runtime)
    runtime.add("macvlan", at("10.22.0.8/24"), container).succeeded()
    there = ["10.22.0.7", "10.22.0.8", "10.22.0.9", "fd00:22::7"]
    assert sorted(shim_routes(host)) == there
    runtime.delete("macvlan", at("10.22.0.8/24"), container).succeeded()
    assert shim_routes(host) == ["10.22.0.9"]


def without_routes(runtime: Runtime) -> None:
    """Make the notes such as versions before 0.2.0 have written."""
    for path in Path(runtime.env["CNI_STATE_DIR"], "devices").glob("*.macvlan"):
        note = json.loads(path.read_text())
        assert note.pop("routes")
        path.write_text(json.dumps(note))


IP = {"address": "10.22.0.7/24", "gateway": "10.22.0.1", "interface": 0}


@pytest.mark.parametrize("where", ["host", "container"])
@pytest.mark.parametrize("own", [False, True])
def test_chained(
    runtime: Runtime,
    container: Netns,
    outside: Netns,
    data_dir: Path,
    where: str,
    own: bool,
) -> None:
    """The master is the interface of the plugin before, where that is; so are the addresses."""
    without_dad(container)
    plug(runtime.host if where == "host" else container, outside)
    conf = network(ipam=V4.host_local(data_dir)) if own else network()
    del conf["master"]
    sandbox = {"sandbox": container.path} if where == "container" else {}
    before = {"cniVersion": "1.1.0", "interfaces": [{"name": MASTER, **sandbox}], "ips": [IP]}
    result = runtime.add("macvlan", conf, container, prev_result=before).result
    wanted = "10.22.0.2/24" if own else "10.22.0.7/24"
    assert [each["name"] for each in result["interfaces"]] == ["eth0"]
    assert [each["address"] for each in result["ips"]] == [wanted]
    assert addresses(container, "eth0") == [wanted]
    ping(container, "10.22.0.1")
    runtime.check("macvlan", conf, container, prev_result=result).succeeded()
    for _ in range(2):
        runtime.delete("macvlan", conf, container, prev_result=result).succeeded()
    assert "eth0" not in links(container)
    assert not leases(data_dir)


def test_a_master_that_is_named_wins(runtime: Runtime, container: Netns, outside: Netns) -> None:
    """As in the reference: prevResult gives neither master nor addresses then."""
    plug(runtime.host, outside)
    before = {"cniVersion": "1.1.0", "interfaces": [{"name": "gone0"}], "ips": [IP]}
    result = runtime.add("macvlan", network(), container, prev_result=before).result
    assert "ips" not in result
    assert addresses(container, "eth0") == []


def test_chained_on_itself(runtime: Runtime, container: Netns) -> None:
    container.ip("link", "add", "eth0", "type", "veth", "peer", "eth0p")
    conf = network()
    del conf["master"]
    interfaces = [{"name": "eth0", "sandbox": container.path}]
    before = {"cniVersion": "1.1.0", "interfaces": interfaces}
    with unchanged(runtime.host, container):
        reply = runtime.add("macvlan", conf, container, prev_result=before)
        reply.failed(999, "chained master failure. The prevResult's interface is eth0 itself")
