"""`cni validate`: what is right is taken, and each fault is found at its place."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cni import dispatch
from cni.cli import configurations, main, validate
from cni.cli import conflist as cli_conflist
from cni.describe import catalogue, network
from cni.describe.document import Document, Malformed
from cni.describe.findings import ERROR, Finding
from cni.describe.model import Flag, Key, Many, Number, Plugin, Record, Table, Text
from cni.protocol import gojson
from cni.protocol.errors import CNIError

ROOT = Path(__file__).parents[2]
NAMES = sorted(catalogue.NAMES)


def described(name: str) -> Plugin:
    plugin = catalogue.plugin(name)
    assert plugin is not None
    return plugin


def conflist(*plugins: Any, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "mynet", "plugins": list(plugins), **keys}


BRIDGE: dict[str, Any] = {
    "type": "bridge",
    "isGateway": True,
    "ipam": {"type": "host-local", "subnet": "10.22.0.0/24"},
}
STATIC: dict[str, Any] = {"type": "static", "addresses": [{"address": "10.0.0.5/24"}]}
CHAINED = [name for name in NAMES if described(name).place == "chained"]


def example(name: str) -> dict[str, Any]:
    """A list with the example of a plugin, valid as a whole."""
    plugin = described(name)
    own = copy.deepcopy(plugin.example)
    if plugin.place == "ipam":
        return conflist({"type": "dummy", "ipam": own})
    if plugin.place == "chained":
        return conflist(copy.deepcopy(BRIDGE), own)
    return conflist(own)


class Judge:
    """Judges texts in files of a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, value: Any) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
        return path

    def findings(self, *paths: Path, strict: bool = False) -> list[Finding]:
        names = [str(path) for path in paths] or [str(self.directory)]
        wanted = configurations.files_of(names)
        return validate.judge(wanted, strict=strict, offline=True).findings()

    def of(self, value: Any, name: str = "10-net.conflist") -> list[Finding]:
        """What is wrong with one file."""
        return self.findings(self.write(name, value))


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return Judge(tmp_path)


def codes(findings: list[Finding]) -> list[str]:
    return [each.code for each in findings]


def place_of(text: str, marked: str) -> tuple[int, int]:
    """Line and column of the first `marked` in a text."""
    before = text[: text.index(marked)]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


# --- what is right -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_valid(judge: Judge, name: str) -> None:
    assert judge.of(example(name)) == []


BLOCK = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documented() -> list[Any]:
    """Every configuration in the documentation: lists, and plugins' objects."""
    found = []
    pages = [each for each in (ROOT / "docs").rglob("*.md") if each.parent.name != "spec"]
    for page in sorted(pages):
        for at, text in enumerate(BLOCK.findall(page.read_text())):
            try:
                value = json.loads(text)
            except ValueError:
                continue
            if isinstance(value, dict) and ("plugins" in value or "type" in value):
                found.append(pytest.param(value, id=f"{page.stem}-{at}"))
    return found


@pytest.mark.parametrize("value", documented())
def test_what_the_documentation_shows_is_valid(judge: Judge, value: dict[str, Any]) -> None:
    if "plugins" not in value:
        value = {key: each for key, each in value.items() if key not in ("cniVersion", "name")}
        chained = value["type"] in CHAINED
        value = conflist(BRIDGE, value) if chained else conflist(value)
    assert judge.of(value) == []


def test_enough_is_documented() -> None:
    assert len(documented()) > 15


def test_a_single_plugin(judge: Judge) -> None:
    single = {"cniVersion": "0.4.0", "name": "mynet", **BRIDGE}
    assert judge.of(single, "10-net.conf") == []
    del single["name"]
    assert codes(judge.of(single, "10-net.conf")) == ["missing-key"]


def test_any_case_null_and_foreign_keys(judge: Judge) -> None:
    plugin = {
        "TYPE": "bridge",
        "ISGATEWAY": True,
        "MTU": None,
        "cni.dev/x": 1,
        "_comment": "why",
        "args": {"podman_labels": {"a": "b"}, "cni": {"labels": [], "mac": "02:00:00:00:00:05"}},
        "ipam": {"Type": "host-local", "Subnet": "10.1.0.0/16"},
    }
    assert judge.of(conflist(plugin, nerdctlID="12", nerdctlLabels={}, disableGC="True")) == []


@pytest.mark.parametrize("name", ["my-portmap", "my-host-device", "x-bridge"])
def test_a_prefix_is_no_misspelling(judge: Judge, name: str) -> None:
    """A link to the file, or another project's plugin."""
    assert judge.of(conflist({"type": name})) == []


def test_plugins_of_others(judge: Judge) -> None:
    ipam = {"type": "spiderpool", "range": "10.0.0.0/8"}
    value = conflist({"type": "calico", "any": {"thing": 1}}, {"type": "sbr"})
    assert judge.of(value) == []
    assert judge.of(conflist({"type": "macvlan", "master": "eth0", "ipam": ipam})) == []


@pytest.mark.parametrize("kind", ["cluster", "whereabouts"])
@pytest.mark.parametrize(
    ("store", "found"),
    [
        ({"type": "etcd", "endpoints": ["https://e:2379"], "caFile": "/c", "timeout": 2.5}, []),
        ({"type": "kubernetes", "server": "https://a", "tokenFile": "/t", "namespace": "x"}, []),
        ({"type": "directory", "path": "/d"}, []),
        ({"type": "etcd", "kubeconfig": "/k"}, ["ERROR", "kubeconfig"]),
        ({"type": "kubernetes", "endpoints": ["https://e:2379"]}, ["ERROR", "endpoints"]),
        ({"type": "etcd", "endpoint": ["https://e:2379"]}, ["ERROR", "endpoint"]),
        ({"type": "zk"}, ["ERROR", "type"]),
        ({"path": "/d"}, ["ERROR", "store"]),
    ],
)
def test_keys_of_a_store(judge: Judge, kind: str, store: Any, found: list[str]) -> None:
    """Each kind of store has keys of its own; those of another one are errors, as for ADD."""
    ranges = {"subnet": "10.1.0.0/24"} if kind == "cluster" else {"range": "10.1.0.0/24"}
    ipam = {"type": kind, **ranges, "store": store}
    said = judge.of(conflist({"type": "macvlan", "master": "eth0", "ipam": ipam}))
    assert [each.severity.upper() for each in said] == found[:1]
    assert [each.path.rpartition(".")[2] for each in said] == found[1:]


# --- a mutated key is found at its place --------------------------------------------------------


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each key in a value."""
    found = []
    if isinstance(value, dict):
        for key, item in value.items():
            found += [(*path, key), *paths_of(item, (*path, key))]
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += paths_of(item, (*path, index))
    return found


def mutable(name: str) -> list[tuple[Any, ...]]:
    """Keys of an example that have a fixed name, and say no type."""
    tables = {"sysctl", "ethtool", "capabilities", "args", "value"}
    return [
        path
        for path in paths_of(example(name)["plugins"])
        if path[-1] != "type" and not tables & {*path[:-1]} and path[-1] not in ("args", "dst")
    ]


def holder(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        value = value[step]
    return value


@given(st.sampled_from(NAMES), st.data())
def test_a_misspelled_key_is_found(name: str, data: st.DataObject) -> None:
    value = example(name)
    keys = mutable(name)
    assume(keys)
    path = data.draw(st.sampled_from(keys))
    key: str = path[-1]
    at = data.draw(st.integers(0, len(key) - 1))
    wrong = key[:at] + data.draw(st.sampled_from("qxz")) + key[at:]
    inner = holder(value["plugins"], path)
    items = [(wrong if each == key else each, item) for each, item in inner.items()]
    inner.clear()
    inner.update(items)
    text = json.dumps(value, indent=1)
    found = network.read("x", text.encode())
    where = place_of(text, f'"{wrong}"')
    assert any(
        (each.line, each.column) == where and each.code == "unknown-key" for each in found.findings
    )


WRONG: dict[type, Any] = {
    Flag: "true",
    Number: "12",
    Text: 12,
    Many: {"no": "list"},
    Table: ["no object"],
    Record: "no object",
}


def simple_keys(name: str) -> list[tuple[str, Key]]:
    """Keys directly in a plugin's object, or in `ipam`, of a kind that WRONG has."""
    plugin = described(name)
    prefix = "ipam." if plugin.place == "ipam" else ""
    return [
        (path.removeprefix(prefix), key)
        for path, key in catalogue.entries(plugin)
        if path.startswith(prefix)
        and "." not in path.removeprefix(prefix)
        and type(key.kind) in WRONG
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_type_is_found(judge: Judge, name: str) -> None:
    for key, about in simple_keys(name):
        value = example(name)
        target = value["plugins"][-1]
        if described(name).place == "ipam":
            target = target["ipam"]
        target[key] = WRONG[type(about.kind)]
        text = json.dumps(value)
        found = [each for each in judge.of(text) if each.code == "type"]
        assert [each.path.rpartition(".")[2] for each in found] == [key]
        marked = f'"{key}": '
        line, column = place_of(text, f"{marked}{json.dumps(target[key])}")
        assert (found[0].line, found[0].column) == (line, column + len(marked))
        assert found[0].severity == ERROR


@given(st.sampled_from(NAMES), st.data())
def test_a_repeated_key_is_found(name: str, data: st.DataObject) -> None:
    value = example(name)
    keys = paths_of(value["plugins"])
    path = data.draw(st.sampled_from([each for each in keys if isinstance(each[-1], str)]))
    inner = holder(value["plugins"], path)
    inner["HERE"] = inner[path[-1]]
    text = json.dumps(value, indent=1).replace('"HERE"', f'"{path[-1]}" ')
    found = network.read("x", text.encode())
    where = place_of(text, f'"{path[-1]}" :')
    assert (
        any(
            (each.line, each.column) == where and each.code == "duplicate-key"
            for each in found.findings
        )
        or "capabilities" in path[:-1]
        or "value" in path[:-1]
    )


# --- kinds of faults ----------------------------------------------------------------------------


def host_local(**keys: Any) -> dict[str, Any]:
    return {**BRIDGE, "ipam": {"type": "host-local", **keys}}


FAULTS = [
    # (plugins, code, the key where it is found, words of the message or advice)
    ([{**BRIDGE, "isGatway": True}], "unknown-key", "isGatway", "did you mean isGateway?"),
    ([{**BRIDGE, "subnet": "10.0.0.0/8"}], "unknown-key", "subnet", "belongs into ipam"),
    ([host_local(subnet="10.0.0.0/8", ipMasq=True)], "unknown-key", "ipMasq", "beside ipam"),
    ([{**BRIDGE, "mtu": 67}], "range", "mtu", "68 to 65535"),
    ([{**BRIDGE, "mtu": 1450.5}], "type", "mtu", "must be an integer"),
    ([{**BRIDGE, "mtu": "1500"}], "type", "mtu", "write 1500 without quotes"),
    ([{**BRIDGE, "isGateway": "true"}], "type", "isGateway", "write true without quotes"),
    ([{**BRIDGE, "bridge": 5}], "type", "bridge", 'write "5", with quotes'),
    ([{**BRIDGE, "bridge": "a-name-too-long-for-it"}], "form", "bridge", "15"),
    ([{**BRIDGE, "vlan": 4095}], "range", "vlan", "0 to 4094"),
    ([{**BRIDGE, "vlanTrunk": [{"minID": 0}]}], "range", "minID", "1 to 4094"),
    ([{**BRIDGE, "ipMasqBackend": "nftable"}], "value", "ipMasqBackend", "did you mean nftables"),
    (
        [{**BRIDGE, "hairpinMode": True, "promiscMode": True}],
        "combination",
        "promiscMode",
        "cannot be used together",
    ),
    (
        [{**BRIDGE, "disableContainerInterface": True}],
        "combination",
        "disableContainerInterface",
        "ipam",
    ),
    ([host_local(rangeStrat="10.0.0.5", subnet="10.0.0.0/8")], "unknown-key", "rangeStrat", ""),
    ([host_local(subnet="10.0.0.0")], "form", "subnet", "prefix length"),
    ([host_local(subnet="10.0.0.1/24")], "range", "subnet", "10.0.0.0/24"),
    ([host_local(subnet="10.0.0.0/31")], "range", "subnet", "too small"),
    ([host_local(subnet="10.0.0.0/24", gateway="10.0.1.1")], "gateway", "gateway", "not in"),
    ([host_local(subnet="10.0.0.0/24", gateway="10.0.0.255")], "gateway", "gateway", "broadcast"),
    ([host_local(subnet="10.0.0.0/24", gateway="fd00::1")], "gateway", "gateway", "not in"),
    (
        [host_local(subnet="10.0.0.0/24", rangeStart="10.0.1.5")],
        "range",
        "rangeStart",
        "not in network",
    ),
    ([host_local(subnet="10.0.0.0/24", rangeEnd="10.9.0.5")], "range", "rangeEnd", "not in"),
    (
        [host_local(ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]])],
        "overlap",
        "10.0.0.0/16",
        "line",
    ),
    (
        [host_local(ranges=[[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]])],
        "range",
        "fd00::/64",
        "mixed",
    ),
    ([host_local(exclude=["10.0.0.9-10.0.0.1"], subnet="10.0.0.0/8")], "form", "10.0.0.9", ""),
    ([host_local()], "combination", "host-local", "no IP ranges"),
    ([{**BRIDGE, "ipam": {"subnet": "10.0.0.0/8"}}], "missing-key", "subnet", "no type"),
    ([{**BRIDGE, "ipam": {"type": "bridge"}}], "type-of-plugin", "bridge", "no IPAM plugin"),
    ([{"type": "host-local", "subnet": "10.0.0.0/8"}], "type-of-plugin", "host-local", "IPAM"),
    ([{"type": "brigde"}], "unknown-plugin", "brigde", "did you mean bridge?"),
    ([{"type": "myportmap"}], "unknown-plugin", "myportmap", "did you mean portmap?"),
    ([{"tpye": "bridge"}], "missing-key", "tpye", "type is missing"),
    ([{"type": "vlan", "ipam": {"type": "dhcp"}}], "missing-key", "vlan", "master"),
    (
        [{"type": "static-x", "type ": 1}, {"type": "portmap", "markMasqBit": 32}],
        "range",
        "markMasqBit",
        "0 to 31",
    ),
    ([{"type": "firewall"}, BRIDGE], "order", "firewall", "move it behind"),
    ([{"type": "portmap", "capabilities": {"portMappings": True}}], "order", "portmap", ""),
    ([BRIDGE, {"type": "macvlan"}], "order", "macvlan", "bridge has made"),
    (
        [{"type": "macvlan"}, {"type": "firewall", "ingressPolicy": "isolated"}],
        "order",
        "ingressPolicy",
        "bridge",
    ),
    (
        [BRIDGE, {"type": "firewall", "backend": "nftable"}],
        "ignored-value",
        "backend",
        "did you mean nftables?",
    ),
    ([BRIDGE, {"type": "portmap"}], "combination", "portmap", "capability portMappings"),
    ([BRIDGE, {"type": "bandwidth", "ingressRate": 800}], "combination", "ingressRate", "burst"),
    (
        [{**BRIDGE, "capabilities": {"portMappings": True}}],
        "capability",
        "portMappings",
        "portmap",
    ),
    ([{**BRIDGE, "capabilities": {"ipRange": True}}], "capability", "ipRange", "ipRanges"),
    (
        [BRIDGE, {"type": "tuning", "sysctl": {"net.core.somaxconn": 500}}],
        "type",
        "somaxconn",
        'write "500", with quotes',
    ),
    ([BRIDGE, {"type": "tuning", "sysctl": {"kernel.x": "1"}}], "form", "kernel.x", "net"),
    (
        [
            BRIDGE,
            {"type": "tuning", "sysctl": {"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}},
        ],
        "duplicate-key",
        "net/ipv4",
        "same parameter",
    ),
    ([{"type": "flannel", "delegate": {"isGatway": True}}], "unknown-key", "isGatway", ""),
    ([{"type": "flannel", "delegate": {"name": "x"}}], "combination", "name", "flannel sets"),
    (
        [{"type": "dummy", "ipam": {"type": "static", "addresses": [{"address": "10.0.0.1"}]}}],
        "form",
        "10.0.0.1",
        "prefix length",
    ),
    (
        [
            {
                "type": "dummy",
                "ipam": {
                    "type": "static",
                    "addresses": [{"address": "10.0.0.5/24", "gateway": "10.0.9.1"}],
                },
            }
        ],
        "gateway",
        "gateway",
        "not in",
    ),
    (
        [{"type": "dummy", "ipam": {"type": "static", "routes": [{"dst": "10.0.0.0"}]}}],
        "form",
        "dst",
        "",
    ),
    ([{"type": "macvlan", "hostShim": True}], "combination", "hostShim", "ipam"),
    # What an ADD can never do.
    ([host_local(subnet="10.0.0.0/30", exclude=["10.0.0.2"])], "range", "subnet", "no address"),
    (
        [host_local(ranges=[[{"subnet": "fd00::/126", "exclude": ["fd00::2-fd00::3"]}]])],
        "range",
        "subnet",
        "no address",
    ),
    (
        [host_local(ranges=[[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.0.1"}]])],
        "range",
        "subnet",
        "no address",
    ),
    (
        [host_local(subnet="10.0.0.0/24", routes=[{"dst": "0.0.0.0/0", "gw": "fd00::1"}])],
        "value",
        "gw",
        "not of the family",
    ),
    (
        [{"type": "dummy", "ipam": STATIC | {"routes": [{"dst": "::/0", "gw": "10.0.0.1"}]}}],
        "value",
        "gw",
        "not of the family",
    ),
    ([{"type": "ptp", "ipam": STATIC}], "missing-key", "{", '"gateway": "10.0.0.1"'),
    ([BRIDGE, {"type": "tuning", "mac": "01:00:5e:00:00:01"}], "form", "mac", "of a group"),
    ([{"type": "macvlan", "mac": "00:00:00:00:00:00"}], "form", "mac", "or zero"),
    ([{"type": "host-device"}], "combination", "host-device", "specify"),
    ([{"type": "ipvlan", "mode": "L2"}], "value", "mode", "did you mean l2?"),
    ([BRIDGE, {"type": "sbr", "gateways": ["10.0.0.1", "10.0.0.2"]}], "combination", "", "family"),
    ([{**BRIDGE, "args": {"cni": {"ipss": []}}}], "unknown-key", "ipss", "did you mean ips?"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: f"{each[1]}-{each[2] or 'any'}")
def test_faults(judge: Judge, fault: tuple[list[Any], str, str, str]) -> None:
    plugins, code, where, words = fault
    text = json.dumps(conflist(*plugins), indent=1)
    found = [each for each in judge.of(text) if each.code == code]
    assert found, judge.of(text)
    line = text.splitlines()[found[0].line - 1]
    assert where in line or where in text.splitlines()[found[0].line]
    assert any(words in f"{each.message} {each.advice}" for each in found)


@pytest.mark.parametrize(
    "plugin",
    [
        host_local(
            ranges=[[{"subnet": "10.0.0.0/30", "exclude": ["10.0.0.2"]}, {"subnet": "10.1.0.0/30"}]]
        ),
        host_local(subnet="10.0.0.0/24", exclude=["fd00::/8"]),
        host_local(
            ranges=[[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
            routes=[{"dst": "0.0.0.0/0", "gw": "10.0.0.9"}, {"dst": "::/0", "gw": "fe80::1"}],
        ),
        {"type": "dummy", "ipam": STATIC},
        {"type": "ptp", "capabilities": {"ips": True}, "ipam": STATIC},
        {"type": "host-device", "hwaddr": "00:00:00:00:00:00"},
    ],
    ids=str,
)
def test_what_is_near_to_a_fault(judge: Judge, plugin: dict[str, Any]) -> None:
    assert judge.of(conflist(plugin)) == []


@pytest.mark.parametrize(
    ("keys", "code", "words"),
    [
        ({"cniVersion": "1.2.3"}, "value", "1.1.0"),
        ({"cniVersion": 1}, "type", "with quotes"),
        ({"disablegc": True}, "unknown-key", "case"),
        ({"disableCheck": "yes"}, "type", "true or false"),
        ({"plugin": []}, "unknown-key", "did you mean plugins?"),
        ({"name": ""}, "empty", "empty"),
        ({"name": "a/b"}, "form", "letters"),
        ({"plugins": []}, "empty", "needs one"),
        ({"plugins": {}}, "type", "a list"),
        ({"plugins": ["bridge"]}, "type", "an object"),
        ({"name": None}, "missing-key", "name is missing"),
    ],
)
def test_faults_of_a_list(judge: Judge, keys: dict[str, Any], code: str, words: str) -> None:
    found = judge.of({**conflist(BRIDGE), **keys})
    assert code in codes(found)
    assert any(words in f"{each.message} {each.advice}" for each in found)


def test_a_list_without_plugins_is_one_fault(judge: Judge) -> None:
    conf = {"cniVersion": "1.0.0", "name": "mynet"}
    assert codes(judge.of(conf)) == ["missing-key"]
    judge.write("mynet/10-lo.conf", {"type": "loopback"})  # where libcni finds it
    assert judge.of(conf) == []
    assert codes(judge.of({**conf, "loadOnlyInlinedPlugins": True})) == ["missing-key"]


def test_versions_of_plugins(judge: Judge) -> None:
    firewall = {"type": "firewall"}
    found = judge.of(conflist(BRIDGE, firewall, cniVersion="0.3.1"))
    assert codes(found) == ["version"]
    assert "0.4.0" in found[0].advice
    several = conflist(BRIDGE, firewall, cniVersion="0.3.1", cniVersions=["0.3.1", "1.0.0"])
    assert judge.of(several) == []


# --- several files ------------------------------------------------------------------------------


def net(name: str, subnet: str, bridge: str = "cni0", **keys: Any) -> dict[str, Any]:
    plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipam": {"type": "host-local", "subnet": subnet},
        **keys,
    }
    return {"cniVersion": "1.0.0", "name": name, "plugins": [plugin]}


def test_subnets_of_two_networks(judge: Judge) -> None:
    first = judge.write("1.conflist", net("one", "10.22.0.0/16", "br1"))
    second = judge.write("2.conflist", net("two", "10.22.3.0/24", "br2"))
    found = judge.findings()
    assert [(each.file, each.code, each.severity) for each in found] == [
        (str(second), "overlap", "error")
    ]
    assert str(first) in found[0].message
    # Whichever is asked for, the other counts.
    assert [each.file for each in judge.findings(first)] == [str(first)]


def vxlan(vni: int, **keys: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "subnet": "10.22.0.0/16"}
    return {"type": "vxlan", "vni": vni, "peers": ["192.0.2.1"], "ipam": ipam, **keys}


def test_subnets_of_vxlan(judge: Judge) -> None:
    """Its node's end is a port of a bridge, as that of the plugin bridge."""
    judge.write("1.conflist", {**conflist(vxlan(7, isGateway=True)), "name": "one"})
    judge.write("2.conflist", net("two", "10.22.3.0/24", "br2"))
    assert [(each.code, each.severity) for each in judge.findings()] == [("overlap", "error")]
    judge.write("2.conflist", net("two", "10.22.3.0/24", "cni-vx7"))
    [found] = judge.findings()
    assert "both are on cni-vx7" in found.advice


def test_what_needs_a_bridge_has_one(judge: Judge) -> None:
    isolating = {"type": "firewall", "ingressPolicy": "isolated"}
    judge.write("1.conflist", conflist(vxlan(7), isolating))
    assert judge.findings() == []


def test_subnets_that_may_be_apart(judge: Judge) -> None:
    for at in (1, 2):
        plugin = {
            "type": "macvlan",
            "master": f"eth{at}",
            "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"},
        }
        judge.write(f"{at}.conflist", {**conflist(plugin), "name": f"net{at}"})
    assert [(each.code, each.severity) for each in judge.findings()] == [("overlap", "warning")]
    assert [each.severity for each in judge.findings(strict=True)] == ["error"]


def test_ranges_on_one_bridge(judge: Judge) -> None:
    judge.write(
        "1.conflist",
        net(
            "one",
            "10.22.0.0/24",
            ipam={"type": "host-local", "subnet": "10.22.0.0/24", "rangeEnd": "10.22.0.99"},
        ),
    )
    judge.write(
        "2.conflist",
        net(
            "two",
            "10.22.0.0/24",
            ipam={"type": "host-local", "subnet": "10.22.0.0/24", "rangeStart": "10.22.0.100"},
        ),
    )
    assert judge.findings() == []
    judge.write(
        "2.conflist",
        net(
            "two",
            "10.22.0.0/24",
            ipam={"type": "host-local", "subnet": "10.22.0.0/24", "rangeStart": "10.22.0.99"},
        ),
    )
    assert codes(judge.findings()) == ["overlap"]


def test_two_files_of_one_name(judge: Judge) -> None:
    judge.write("1.conflist", net("one", "10.1.0.0/24", "br1"))
    second = judge.write("2.conflist", net("one", "10.2.0.0/24", "br2"))
    found = judge.findings()
    assert [(each.file, each.code, each.path) for each in found] == [
        (str(second), "duplicate-name", "name")
    ]
    assert "1.conflist counts" in found[0].message


def test_plugins_beside_a_list(judge: Judge) -> None:
    """`<network>/*.conf` are a part of the list, and judged at their own place."""
    judge.write("1.conflist", net("one", "10.1.0.0/24"))
    assert judge.findings() == []
    part = judge.write("one/10-portmap.conf", {"type": "portmap", "snatt": True})
    found = judge.findings()
    assert {(each.file, each.code) for each in found} == {
        (str(part), "unknown-key"),
    }
    judge.write("1.conflist", {**net("one", "10.1.0.0/24"), "loadOnlyInlinedPlugins": True})
    assert judge.findings() == []


def test_a_file_that_cannot_be_read(judge: Judge) -> None:
    """The others are judged all the same."""
    os.mkfifo(judge.directory / "1.conflist")
    judge.write("2.conflist", net("two", "10.2.0.0/24", isGatway=True))
    assert codes(judge.findings()) == ["unreadable", "unknown-key"]


def test_names_of_files(judge: Judge) -> None:
    assert codes(judge.of(conflist(BRIDGE), "a.conf")) == ["file-name"]
    single = {"cniVersion": "1.0.0", "name": "n", **BRIDGE}
    assert codes(judge.of(single, "elsewhere/a.conflist")) == ["file-name"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", (1, 1)),
        ('{"name": "x",\n  "plugins" [', (2, 13)),
        ('{"name": "x"}}', (1, 14)),
        ("[]", (1, 1)),
        ("\ufeff{}", (1, 1)),
    ],
)
def test_no_json(judge: Judge, text: str, place: tuple[int, int]) -> None:
    found = judge.of(text)
    assert [(each.line, each.column) for each in found] == [place]


# --- the reader of positions --------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
)


def spliced(text: str, at: int, junk: str) -> str:
    return text[:at] + junk + text[at:]


SPLICED = st.builds(
    spliced,
    JSON.map(json.dumps),
    st.integers(0, 30),
    st.text('{}[]",:0-.eE\\u \n', max_size=3),
)


@given(SPLICED | JSON.map(json.dumps))
def test_reads_what_go_reads(text: str) -> None:
    """The same documents as cni/protocol/gojson.py, with the same values, and no others."""
    try:
        expected: Any = gojson.decode(text.encode("utf-8", "replace"))
    except ValueError as error:
        with pytest.raises(Malformed, match=re.escape(str(error))):
            Document(text.encode("utf-8", "replace"))
        return
    document = Document(text.encode("utf-8", "replace"))
    assert json.dumps(document.root.plain()) == json.dumps(expected)


@given(JSON, st.sampled_from([None, 1, "\t"]))
def test_positions(value: Any, indent: int | str | None) -> None:
    """Each value stands where its position says."""
    text = json.dumps(value, indent=indent)
    document = Document(text.encode())
    lines = text.split("\n")
    nodes = [document.root]
    while nodes:
        node = nodes.pop()
        line, column = document.position(node.start)
        rest = lines[line - 1][column - 1 :]
        opening = {"object": "{", "array": "["}.get(node.kind)
        assert rest.startswith(opening or json.dumps(node.scalar)[:1])
        for member in node.members:
            line, column = document.position(member.start)
            assert lines[line - 1][column - 1 :].startswith(json.dumps(member.key))
        nodes += [*node.items, *(member.node for member in node.members)]


# --- the verb VALIDATE --------------------------------------------------------------------------


def asked(plugin: str, conf: dict[str, Any], **env: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the error of CNI_COMMAND=VALIDATE."""
    stdin = json.dumps({"cniVersion": "1.0.0", "name": "mynet", **conf}).encode()
    code, out = dispatch.answer(plugin, {"CNI_COMMAND": "VALIDATE", **env}, lambda: stdin)
    return code, json.loads(out) if out else {}


@pytest.mark.parametrize("name", sorted(set(NAMES) & set(dispatch.TABLE)))
def test_the_verb_takes_examples(name: str) -> None:
    assert asked(name, example(name)["plugins"][-1]) == (0, {})


@pytest.mark.parametrize(
    ("plugin", "conf", "code", "words"),
    [
        ("bridge", {**BRIDGE, "isGatway": True}, 7, "did you mean isGateway?"),
        ("bridge", {**BRIDGE, "mtu": "1500"}, 7, "without quotes"),
        ("bridge", {**BRIDGE, "vlan": 5000}, 7, "0 to 4094"),
        ("bridge", {"type": "bridge", "ipam": {"type": "host-local"}}, 7, "no IP ranges"),
        ("host-local", {"type": "bridge", "ipam": {"type": "host-local"}}, 7, "no IP ranges"),
        ("host-local", {"type": "bridge"}, 7, "ipam is missing"),
        ("host-local", {**BRIDGE, "isGatway": True}, 0, ""),
        ("firewall", {"type": "firewall", "cniVersion": "0.3.1"}, 1, "incompatible"),
        ("vlan", {"type": "vlan", "ipam": {"type": "dhcp"}}, 7, "master is missing"),
    ],
)
def test_the_verb(plugin: str, conf: dict[str, Any], code: int, words: str) -> None:
    exit_code, error = asked(plugin, conf)
    assert exit_code == bool(code)
    assert error.get("code", 0) == code
    assert words in f"{error.get('msg', '')} {error.get('details', '')}"


def test_the_verb_judges_variables() -> None:
    assert asked("bridge", BRIDGE, CNI_IFNAME="a/b")[1]["code"] == 4
    assert asked("bridge", BRIDGE, CNI_CONTAINERID="a/b")[1]["code"] == 4
    assert "unknown args" in asked("bridge", BRIDGE, CNI_ARGS="IP=10.0.0.7")[1]["msg"]
    assert asked("bridge", BRIDGE, CNI_ARGS="IgnoreUnknown=1;IP=10.0.0.7") == (0, {})


# --- the command --------------------------------------------------------------------------------


def test_exit_codes(judge: Judge, capfd: pytest.CaptureFixture[str]) -> None:
    good = str(judge.write("good/1.conflist", conflist(BRIDGE)))
    warned = str(judge.write("warned/1.conflist", conflist(BRIDGE, {"type": "portmap"})))
    wrong = str(judge.write("wrong/1.conflist", conflist({**BRIDGE, "isGatway": True})))
    assert main(["validate", "--offline", good]) == 0
    assert "1 file: nothing is wrong" in capfd.readouterr().out
    assert main(["validate", "--offline", warned]) == 0
    assert "0 errors, 1 warning" in capfd.readouterr().out
    assert main(["validate", "--offline", "--strict", warned]) == 1
    assert main(["validate", "--offline", wrong, good]) == 1
    out = capfd.readouterr().out
    assert f"{wrong}:1:" not in out  # it is not in the first line
    assert re.search(
        rf"^{re.escape(wrong)}:\d+:\d+: error: unknown key isGatway", out, re.MULTILINE
    )
    assert main(["validate", "--offline", "/nonexistent/x.conflist"]) == 3


def test_data(judge: Judge, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = str(judge.write("1.conflist", conflist({**BRIDGE, "isGatway": True})))
    assert main(["validate", "--offline", "--json", wrong]) == 1
    value = json.loads(capfd.readouterr().out)
    assert (value["files"], value["errors"], value["warnings"]) == (1, 1, 0)
    assert value["findings"][0]["path"] == "plugins[0].isGatway"
    assert value["findings"][0]["code"] == "unknown-key"


def test_networks_by_name(
    judge: Judge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.write("1.conflist", net("one", "10.1.0.0/24"))
    judge.write("2.conflist", net("two", "10.2.0.0/24", isGatway=True))
    monkeypatch.setenv("NETCONFPATH", str(judge.directory))
    assert main(["validate", "--offline", "one"]) == 0
    assert main(["validate", "--offline", "two"]) == 1
    assert main(["validate", "--offline"]) == 1
    assert main(["validate", "--offline", "three"]) == 3
    assert "networks there: one, two" in capfd.readouterr().err


# --- whatever is written ------------------------------------------------------------------------


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of the value in which something else stands at the path."""
    value = copy.deepcopy(value)
    holder(value, path)[path[-1]] = new
    return value


def all_paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of each key and of each item."""
    if not isinstance(value, dict | list):
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for step, item in inner:
        found += [(*path, step), *all_paths(item, (*path, step))]
    return found


ODD = JSON | st.sampled_from(["10.0.0.0/8", "::/0", "fe80::1", "0.0.0.0/0", -1, 2**63, 1e300, ""])


@given(st.sampled_from(NAMES), st.data())
def test_nothing_makes_it_fail(name: str, data: st.DataObject) -> None:
    """Any value at any place gives findings, and no traceback; what a decoder refuses is found."""
    value = example(name)
    path = data.draw(st.sampled_from(all_paths(value)))
    value = replaced(value, path, data.draw(ODD))
    text = json.dumps(value).encode()
    found = validate.judge(configurations.Files(["-"], []), offline=True, contents={"-": text})
    wrong = any(each.severity == ERROR for each in found.findings())
    try:
        network_list = cli_conflist.from_bytes(text)
    except CNIError:
        assert wrong
        return
    for plugin in network_list.plugins:
        own = catalogue.known_as(plugin.type)
        if own is not None:
            refused = validate._conversion(own, plugin.raw)
            assert wrong or not refused


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    found = validate.judge(configurations.Files(["-"], []), offline=True, contents={"-": data})
    assert found.findings()


def test_a_parameter_without_a_name() -> None:
    tuning = {"type": "tuning", "sysctl": {"": "0"}}
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [tuning]}
    found = network.read("x", json.dumps(conf).encode())
    assert [each.code for each in found.findings if "parameter" in each.message] == ["form"]


def test_a_line_break_in_a_name_begins_no_line_of_ours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Somebody may have written a finding into a name."""
    conf = {"cniVersion": "1.0.0", "name": "a\n1 file: nothing is wrong", "plugins": []}
    (tmp_path / "10-a.conflist").write_text(json.dumps(conf))
    assert main(["validate", "--offline", str(tmp_path)]) == 1
    shown = capfd.readouterr().out
    assert "\n1 file: nothing is wrong" not in shown
    assert r"a\n1 file: nothing is wrong" in shown


@pytest.mark.parametrize("name", dispatch.WINDOWS)
def test_a_plugin_of_windows_is_not_taken_for_another(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Its keys are known here, too; that it does not work here is said."""
    described = catalogue.plugin(name)
    assert described is not None
    conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [described.example]}
    (tmp_path / "10-net.conflist").write_text(json.dumps(conf))
    assert main(["validate", "--strict", "--offline", str(tmp_path)]) == 0
    assert main(["validate", str(tmp_path)]) == 1
    shown = capfd.readouterr().out
    assert f"{name} is a plugin of another system than linux" in shown
    assert "did you mean" not in shown
