"""Bad input: the documented code, a text that names the field and the remedy, and no change.

For every plugin that attaches a container, with the node and the disk watched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import make_host, make_runtime, making_netns
from tests.harness import (
    DUAL,
    V4,
    Netns,
    Runtime,
    Snapshot,
    difference,
    links,
    ports,
    unchanged,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]
MAIN = ("bridge", "ptp")
ALL = (*MAIN, "loopback")
NAMES = pytest.mark.parametrize("plugin", ALL)


@pytest.fixture(scope="module")
def host(_namespaces: None) -> Iterator[Netns]:
    """One node for all tests, as nothing changes on it."""
    with making_netns() as netns:
        yield make_host(netns)


@pytest.fixture(scope="module")
def container(_namespaces: None) -> Iterator[Netns]:
    with making_netns() as netns:
        yield netns("container")


@pytest.fixture(scope="module")
def runtime(
    module_bin_dir: Path,
    host: Netns,
    tmp_path_factory: pytest.TempPathFactory,
    through_a_server: bool,
) -> Iterator[Runtime]:
    with make_runtime(module_bin_dir, host, tmp_path_factory, through_a_server) as made:
        yield made


@pytest.fixture(scope="module")
def before(host: Netns, container: Netns) -> dict[Netns, Snapshot]:
    return {ns: Snapshot.take(ns) for ns in (host, container)}


@pytest.fixture(autouse=True)
def nothing_changes(before: dict[Netns, Snapshot], tmp_path: Path) -> Iterator[None]:
    """Whatever the test asks for: node, container and disk stay as they were."""
    with unchanged(tmp_path):
        yield
    found = []
    for ns, was in before.items():
        before[ns] = Snapshot.take(ns)  # if it has changed, that is not the next test's fault
        found += [f"{ns.role}: {line}" for line in difference(was, before[ns])]
    assert not found, "something changed:\n" + "\n".join(found)


def good(plugin: str, **keys: Any) -> Json:
    """A configuration that works, with these changes."""
    conf: Json = {"cniVersion": "1.1.0", "name": "net", "type": plugin}
    if plugin == "bridge":
        conf |= {"bridge": "br0", "isGateway": True}
    if plugin in MAIN:
        conf["ipam"] = V4.static()
    return {**conf, **keys}


# -- what is no configuration ---------------------------------------------------------------------


@NAMES
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_malformed_json(runtime: Runtime, container: Netns, plugin: str, verb: str) -> None:
    for text in ("", "{", '{"name": "x",}', "[]", "null", '{"a": 1} {"b": 2}', b"\xff\xfe"):
        error = runtime.call(verb, plugin, text, container).failed(6)
        assert error["msg"].startswith("error unmarshall network config: ")
        assert error["details"] == "the configuration on stdin must be one JSON object"


@NAMES
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_versions(runtime: Runtime, container: Netns, plugin: str, verb: str) -> None:
    for version in ("1.2.0", "2.0.0"):
        error = runtime.call(verb, plugin, good(plugin, cniVersion=version), container).failed(1)
        if verb not in ("ADD", "DEL"):  # the reference says no more
            assert (error["msg"], "details" in error) == (
                f"plugin version does not allow {verb}",
                False,
            )
            continue
        assert error["details"] == (
            f'config is "{version}", plugin supports '
            '["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'
        )
    conf = good(plugin, cniVersion=5)
    runtime.call(verb, plugin, conf, container).failed(6, "cniVersion", "string")


@NAMES
@pytest.mark.parametrize("name", ["", None, "a b", "-a", "a/../b", "net\n", "é"])
def test_network_names(runtime: Runtime, container: Netns, plugin: str, name: str | None) -> None:
    for verb in ("ADD", "DEL"):
        error = runtime.call(verb, plugin, good(plugin, name=name), container).failed(7)
        assert "network name" in error["msg"]
        assert error["details"] == (name or "the configuration needs a key `name`")


# -- the environment ------------------------------------------------------------------------------


@NAMES
@pytest.mark.parametrize(
    ("env", "texts"),
    [
        ({"CNI_CONTAINERID": "../x"}, ["invalid characters in containerID", "../x"]),
        ({"CNI_CONTAINERID": "c1\n"}, ["invalid characters in containerID"]),
        ({"CNI_IFNAME": "a/b"}, ["interface name contains / or : or whitespace characters"]),
        ({"CNI_IFNAME": "a" * 16}, ["interface name is too long", "less than 16"]),
        ({"CNI_IFNAME": ".."}, ["interface name is . or .."]),
        ({"CNI_IFNAME": "eth0\n"}, ["whitespace"]),
        ({"CNI_PATH": None}, ["required env variables [CNI_PATH] missing"]),
        (
            {"CNI_CONTAINERID": None, "CNI_IFNAME": ""},
            ["required env variables [CNI_CONTAINERID,CNI_IFNAME] missing"],
        ),
    ],
)
def test_environment(
    runtime: Runtime, container: Netns, plugin: str, env: dict[str, Any], texts: list[str]
) -> None:
    for verb in ("ADD", "DEL"):
        runtime.call(verb, plugin, good(plugin), container, env=env).failed(4, *texts)


@NAMES
def test_bytes_that_are_no_text(runtime: Runtime, container: Netns, plugin: str) -> None:
    env = {"CNI_CONTAINERID": "c\udcff"}
    runtime.add(plugin, good(plugin), container, env=env).failed(4, "c\ufffd")


@NAMES
def test_namespaces(runtime: Runtime, plugin: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, text in (
        (tmp_path, "unknown FS magic on"),
        (tmp_path / "file", "unknown FS magic on"),
        ("/dev/null", "unknown FS magic on"),
        ("/proc/self/ns/uts", "not of the network"),
        ("/run/netns/nosuch", "no such file or directory"),
        ("/run/netns/" + "x" * 300, "file name too long"),
    ):
        for verb in ("ADD", "CHECK"):
            error = runtime.call(verb, plugin, good(plugin), path).failed(999, text)
            assert str(path) in error["msg"]
            assert error["details"]
    (tmp_path / "file").unlink()
    for verb in ("ADD", "CHECK"):
        runtime.call(verb, plugin, good(plugin), None).failed(4, "CNI_NETNS")


# -- keys -----------------------------------------------------------------------------------------

TYPES: dict[str, list[tuple[Json, str]]] = {
    "bridge": [
        ({"mtu": "big"}, "mtu"),
        ({"isGateway": "yes"}, "isGateway"),
        ({"bridge": 5}, "bridge"),
        ({"ipam": []}, "ipam"),
        ({"ipam": {"type": 5}}, "ipam.type"),
        ({"vlan": "5"}, "vlan"),
        ({"vlanTrunk": [{"minID": "x"}]}, "vlanTrunk[0].minID"),
        ({"runtimeConfig": {"mac": 5}}, "runtimeConfig.mac"),
        ({"dns": {"search": "x"}}, "dns.search"),
    ],
    "ptp": [
        ({"mtu": 1.5}, "mtu"),
        ({"ipMasq": 1}, "ipMasq"),
        ({"ipam": "static"}, "ipam"),
        ({"dns": []}, "dns"),
    ],
    "loopback": [({"ipam": 5}, "ipam"), ({"dns": 5}, "dns")],
}


@pytest.mark.parametrize(
    ("plugin", "keys", "field"),
    [(plugin, keys, field) for plugin, cases in TYPES.items() for keys, field in cases],
)
def test_wrong_types(
    runtime: Runtime, container: Netns, plugin: str, keys: Json, field: str
) -> None:
    error = runtime.add(plugin, good(plugin, **keys), container).failed(999)
    assert "json: cannot unmarshal " in error["msg"]
    assert f"into field {field} of type " in error["msg"]


@pytest.mark.parametrize(
    ("keys", "texts"),
    [
        ({"vlan": -100}, ["invalid VLAN ID -100 (must be between 0 and 4094)"]),
        ({"vlan": 5000}, ["invalid VLAN ID 5000 (must be between 0 and 4094)"]),
        ({"vlanTrunk": [{"minID": 1}]}, ["minID and maxID", "maxID is missing"]),
        ({"vlanTrunk": [{"maxID": 1}]}, ["minID and maxID", "minID is missing"]),
        ({"vlanTrunk": [{"minID": -1, "maxID": 5}]}, ["incorrect trunk minID parameter"]),
        ({"vlanTrunk": [{"minID": 4095, "maxID": 4096}]}, ["incorrect trunk minID parameter"]),
        ({"vlanTrunk": [{"minID": 1, "maxID": 4095}]}, ["incorrect trunk maxID parameter"]),
        ({"vlanTrunk": [{"minID": 5, "maxID": 4}]}, ["minID is greater than maxID"]),
        ({"vlanTrunk": [{"id": 0}]}, ["incorrect trunk id parameter"]),
        ({"vlanTrunk": [{"id": 4095}]}, ["incorrect trunk id parameter"]),
        (
            {"hairpinMode": True, "promiscMode": True},
            ["cannot set hairpin mode and promiscuous mode at the same time"],
        ),
        (
            {"disableContainerInterface": True},
            ["cannot use IPAM when DisableContainerInterface flag is set"],
        ),
        ({"ipMasq": True, "ipMasqBackend": "ufw"}, ['unknown ipmasq backend "ufw"', "nftables"]),
        ({"mtu": 70000}, ["mtu 70000", "65535"]),
        ({"mtu": -5}, ["mtu -5"]),
        ({"mtu": 10**12}, ["mtu"]),
        ({"runtimeConfig": {"mac": "x"}}, ["address x: invalid MAC address", "02:00:00"]),
        (
            {"args": {"cni": {"mac": "01:00:00:00:00:01"}}},
            ["01:00:00:00:00:01", "not a unicast MAC address"],
        ),
        ({"bridge": "x" * 16}, ["x" * 16]),
        ({"bridge": "a/b"}, ["a/b"]),
        ({"bridge": "lo"}, ['"lo" already exists but is not a bridge']),
    ],
)
def test_bridge_keys(runtime: Runtime, container: Netns, keys: Json, texts: list[str]) -> None:
    conf = good("bridge", **keys)
    error = runtime.add("bridge", conf, container).failed(999, *texts)
    assert "unexpected" not in error.get("details", "")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("MAC", 'ARGS: invalid pair "MAC"'),
        ("A=1;B=2", 'ARGS: unknown args ["A=1" "B=2"]'),
        ("IgnoreUnknown=x", "boolean unmarshal error: invalid input x"),
        ("MAC=x", "address x: invalid MAC address"),
    ],
)
def test_bridge_args(runtime: Runtime, container: Netns, args: str, text: str) -> None:
    runtime.add("bridge", good("bridge"), container, args=args).failed(999, text)


@pytest.mark.parametrize(
    ("keys", "texts"),
    [
        ({"ipMasq": True, "ipMasqBackend": "ufw"}, ['unknown ipmasq backend "ufw"', "nftables"]),
        ({"mtu": 70000}, ["mtu 70000", "65535"]),
        ({"mtu": -5}, ["mtu -5"]),
    ],
)
def test_ptp_keys(runtime: Runtime, container: Netns, keys: Json, texts: list[str]) -> None:
    runtime.add("ptp", good("ptp", **keys), container).failed(999, *texts)


# -- IPAM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", MAIN)
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("nosuch", 'failed to find plugin "nosuch" in path ['),
        ("../static", "invalid plugin name: ../static"),
        ("/bin/true", "invalid plugin name: /bin/true"),
        ("..", "invalid plugin name: .."),
        ("static\n", 'failed to find plugin "static\n"'),
        ("st\0atic", "invalid plugin name: "),
    ],
)
def test_ipam_types(runtime: Runtime, container: Netns, plugin: str, kind: str, text: str) -> None:
    error = runtime.add(plugin, good(plugin, ipam={"type": kind}), container).failed(999, text)
    assert error["details"]


def test_a_missing_ipam_names_the_remedy(
    runtime: Runtime, container: Netns, tmp_path: Path
) -> None:
    """`cni install` for a plugin of this project only; else perhaps the name that was meant."""
    empty = Runtime(runtime.bin_dir, runtime.host, cni_path=str(tmp_path), env=runtime.env)
    conf = good("bridge", ipam={"type": "host-local"})
    error = empty.add("bridge", conf, container).failed(999)
    assert error["details"] == f"run `cni install --bin-dir {tmp_path}`, which installs it"
    for kind, text in {
        "another": "install the plugin there, or name another directory in CNI_PATH",
        "host-locla": 'did you mean "host-local"? Else install the plugin there',
        "x" * 10000: "install the plugin there",
    }.items():
        conf = good("bridge", ipam={"type": kind})
        error = runtime.add("bridge", conf, container).failed(999)
        assert error["details"].startswith(text)
        assert "cni install" not in error["details"]


@pytest.mark.parametrize("plugin", MAIN)
@pytest.mark.parametrize(
    ("ipam", "text"),
    [
        ({"addresses": [{"address": "10.0.0.1"}]}, "10.0.0.1"),
        ({"addresses": [{"address": "10.0.0.300/8"}]}, "10.0.0.300/8"),
        ({"addresses": [{"address": "10.0.0.2/8", "gateway": "x"}]}, "invalid IP address: x"),
        (
            {"addresses": [{"address": "10.0.0.2/8"}], "routes": [{"dst": "10.0.0.0"}]},
            "invalid CIDR address: 10.0.0.0",
        ),
        ({"addresses": []}, "IPAM plugin returned missing IP config"),
    ],
)
def test_static_addresses(
    runtime: Runtime, container: Netns, plugin: str, ipam: Json, text: str
) -> None:
    conf = good(plugin, ipam={"type": "static", **ipam})
    error = runtime.add(plugin, conf, container).failed(None, text)
    assert "unexpected" not in error.get("details", "")


@pytest.mark.parametrize("plugin", MAIN)
def test_an_existing_interface(runtime: Runtime, container: Netns, plugin: str) -> None:
    """The loopback interface is in every container."""
    runtime.add(plugin, good(plugin), container, ifname="lo").failed(
        999, 'container veth name ("lo") peer provided ("veth', "already exists"
    )


@pytest.mark.parametrize("plugin", MAIN)
@pytest.mark.parametrize(
    "route",
    [
        {"dst": "10.99.0.0/16", "priority": -1},
        {"dst": "10.99.0.0/16", "priority": 2**40},
        {"dst": "10.99.0.0/16", "table": 2**40},
        {"dst": "10.99.0.0/16", "scope": 300},
        {"dst": "10.99.0.0/16", "gw": "192.0.2.1"},
        {"dst": "10.99.0.0/16", "gw": "fd00::1"},
    ],
    ids=str,
)
def test_routes(runtime: Runtime, container: Netns, plugin: str, route: Json) -> None:
    # the node forwards and has the bridge already: both stay
    runtime.host.set_sysctl("net/ipv4/ip_forward", 1)
    conf = good(plugin)
    conf["ipam"]["routes"] = [route]
    if plugin == "bridge":
        runtime.host.ip_batch("link add br0 type bridge", "link set br0 up")
    error = runtime.add(plugin, conf, container).failed(999, "10.99.0.0/16")
    assert "unexpected" not in error.get("details", "")
    assert "eth0" not in links(container)
    if plugin == "bridge":
        assert ports(runtime.host, "br0") == {}
        runtime.host.ip("link", "delete", "br0")
    runtime.host.set_sysctl("net/ipv4/ip_forward", 0)


# -- prevResult and GC's list ---------------------------------------------------------------------


@NAMES
def test_prev_results(runtime: Runtime, container: Netns, plugin: str) -> None:
    verb = "ADD" if plugin == "loopback" else "CHECK"
    for prev, text in (
        ({"cniVersion": "0.4.0"}, "result type supports [1.0.0 1.1.0]"),
        ({"ips": [{"address": "x"}]}, "invalid CIDR address: x"),
        ({"ips": 5}, "ips"),
        ({"cniVersion": "7.0.0"}, '"7.0.0"'),
    ):
        conf = good(plugin, prevResult=prev)
        if plugin == "bridge":
            conf.pop("ipam")  # ptp cannot do without: there it is IPAM that looks first
        runtime.call(verb, plugin, conf, container).failed(999, "prevResult", text)


@pytest.mark.parametrize("plugin", MAIN)
@pytest.mark.parametrize("value", [5, {}, ["x"], [{"containerID": "c1"}]])
def test_gc_lists(runtime: Runtime, plugin: str, value: object) -> None:
    conf = {**good(plugin), "cni.dev/valid-attachments": value}
    runtime.call("GC", plugin, conf).failed(
        999, "cni.dev/valid-attachments", "nothing was collected"
    )


def test_an_exhausted_range(
    runtime: Runtime, netns: Callable[..., Netns], container: Netns, tmp_path: Path
) -> None:
    data_dir = tmp_path / "leases"
    ranges = [[{"subnet": "10.22.0.0/29", "rangeStart": "10.22.0.2", "rangeEnd": "10.22.0.2"}]]
    ipam = {"type": "host-local", "dataDir": str(data_dir), "ranges": ranges}
    first = netns("first")
    # another bridge, so that a new one would be seen
    taken = good("bridge", bridge="br1", ipam=ipam)
    runtime.add("bridge", taken, first, container_id="c0").succeeded()
    for plugin in MAIN:
        with unchanged(runtime.host, container, data_dir):
            error = runtime.add(plugin, good(plugin, ipam=ipam), container).failed(None)
        assert "no IP addresses available in range set: 10.22.0.2-10.22.0.2" in error["msg"]
    # put back what the fixture watches
    runtime.delete("bridge", taken, first, container_id="c0").succeeded()
    runtime.host.ip("link", "delete", "br1")
    runtime.host.set_sysctl("net/ipv4/ip_forward", 0)
    for path in sorted(data_dir.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    data_dir.rmdir()


def test_dual_stack_for_a_plugin_that_cannot_say_so(runtime: Runtime, container: Netns) -> None:
    """One address of a family is all that 0.1.0 and 0.2.0 have room for."""
    ipam = DUAL.static()
    ipam["addresses"].append({"address": "fd00:99::2/64", "gateway": "fd00:99::1"})
    for version in ("0.1.0", "0.2.0"):
        conf = good("bridge", cniVersion=version, ipam=ipam)
        runtime.add("bridge", conf, container).failed(
            999, f"CNI version {version} does not support more than 1 address per family"
        )


@pytest.mark.parametrize("ipam", MAIN)
@pytest.mark.parametrize("plugin", MAIN)
def test_main_plugin_as_ipam(plugin: str, ipam: str, runtime: Runtime, container: Netns) -> None:
    """It would call itself with the same configuration, for ever."""
    conf = good(plugin, ipam={"type": ipam})
    for run in (runtime.add, runtime.delete):
        run(plugin, conf, container).failed(999, "plugins call each other without end")
