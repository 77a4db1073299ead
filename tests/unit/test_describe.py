"""The descriptions of keys (cni/describe) agree with what plugins decode, and with docs/plugins."""

from __future__ import annotations

import importlib
import json
import types
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from cni import __version__
from cni.cli import main
from cni.describe import catalogue, forms, pairs, schema, tables
from cni.describe.common import COMMON, DNS, ROUTE
from cni.describe.model import (
    Anything,
    DelegateRecord,
    Flag,
    IpamRecord,
    Key,
    Kind,
    Many,
    Number,
    Plugin,
    Record,
    Table,
    Text,
)
from cni.dispatch import TABLE, WINDOWS
from cni.plugins.bridge import vxlan_settings
from cni.protocol import config, version
from cni.protocol.config import NetConf, PluginConf
from cni.store.config import DirectoryOptions, EtcdOptions
from cni.store.kubernetes import KubernetesOptions

ROOT = Path(__file__).parents[2]
ALL = {**TABLE, **WINDOWS}
NAMES = sorted(ALL)

# Plugins without IPAM, whose Conf has `ipam` and `dns` only because it is a NetConf.
NO_IPAM = {"bandwidth", "firewall", "loopback", "portmap", "route-override", "sbr", "tuning", "vrf"}
NO_DNS = NO_IPAM | {"flannel", "sample"}

# Where the plugin has a value that holds instead of an empty one.
EFFECTIVE = {
    ("bridge", "bridge"): '"cni0"',
    ("firewall", "iptablesAdminChainName"): '"CNI-ADMIN"',
    ("firewall", "firewalldZone"): "DEFAULT_ZONE",
    ("firewall", "ingressPolicy"): '"open"',
    ("macvlan", "mode"): '"bridge"',
    ("macvtap", "mode"): '"bridge"',
    ("ipvlan", "mode"): '"l2"',
    ("portmap", "markMasqBit"): "_MARK_BIT",
    ("bandwidth", "latency"): "LATENCY",
    ("host-local", "ipam.dataDir"): "DATA_DIR",
    ("dhcp", "ipam.daemonSocketPath"): "SOCKET",
    ("tuning", "dataDir"): "DIRECTORY",
    ("sriov", "vlanProto"): '"802.1q"',
    ("win-overlay", "endpointMacPrefix"): "_MAC_PREFIX",
}


def described(name: str) -> Plugin:
    plugin = catalogue.plugin(name)
    assert plugin is not None
    return plugin


def conf_of(name: str) -> type[PluginConf]:
    conf: type[PluginConf] = importlib.import_module(ALL[name].module).Conf
    return conf


def own_fields(struct: type[msgspec.Struct]) -> dict[str, tuple[Any, Any]]:
    """Folded key → (type, default), without what every configuration has."""
    hints = typing.get_type_hints(struct)
    base = PluginConf if issubclass(struct, PluginConf) else None
    common = {f.encode_name for f in msgspec.structs.fields(base)} if base else set()
    if issubclass(struct, NetConf) and struct.__name__ == "Keys":
        common = {f.encode_name for f in msgspec.structs.fields(NetConf)}
    found = {}
    for field in msgspec.structs.fields(struct):
        if field.encode_name not in common:
            default = field.default
            if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            found[field.encode_name] = (hints[field.name], default)
    return found


def store_fields() -> dict[str, tuple[Any, Any]]:
    """The keys of all engines; what `timeout` may be, no kind can say."""
    found: dict[str, tuple[Any, Any]] = {}
    for options in (DirectoryOptions, EtcdOptions, KubernetesOptions):
        hints = typing.get_type_hints(options)
        for field in msgspec.structs.fields(options):
            found[field.encode_name.lower()] = (hints[field.name], field.default)
    return {**found, "timeout": (Any, 10.0)}


def without_none(hint: Any) -> Any:
    if get_origin(hint) in (types.UnionType, typing.Union):
        rest = [each for each in get_args(hint) if each is not type(None)]
        assert len(rest) == 1
        return rest[0]
    return hint


def differences(hint: Any, kind: Kind, path: str) -> list[str]:  # noqa: C901, PLR0911
    """Where a description says another type than the Struct."""
    hint = without_none(hint)
    number = config.Mtu if getattr(kind, "word", "") else int
    simple = {Flag: bool, Number: number, Text: str}
    for described_kind, python in simple.items():
        if isinstance(kind, described_kind):
            return [] if hint is python else [f"{path}: {hint} is described as {kind}"]
    if isinstance(kind, Anything):
        return [] if hint is Any else [f"{path}: {hint} is described as {kind}"]
    if isinstance(kind, Many):
        if get_origin(hint) is not list:
            return [f"{path}: {hint} is described as {kind}"]
        return differences(get_args(hint)[0], kind.of, f"{path}[]")
    if isinstance(kind, Table):
        if get_origin(hint) is not dict:
            return [f"{path}: {hint} is described as {kind}"]
        return differences(get_args(hint)[1], kind.of, f"{path}{{}}")
    if get_origin(hint) is dict:  # flannel decodes nothing: its delegate does
        if path.endswith(".store") and isinstance(kind, Record):
            return of_keys(store_fields(), kind.keys, path)
        free = isinstance(kind, DelegateRecord) or (isinstance(kind, Record) and kind.is_open)
        return [] if free else [f"{path}: {hint} is described as {kind}"]
    if isinstance(kind, IpamRecord):
        return [] if hint is config.IPAM else [f"{path}: {hint} is described as {kind}"]
    assert isinstance(kind, Record)
    fields = own_fields(hint)
    fields.pop("type", None)
    return of_keys(fields, kind.keys, path)


def of_keys(fields: dict[str, tuple[Any, Any]], keys: tuple[Key, ...], path: str = "") -> list[str]:
    by_fold = {key.name.lower(): key for key in keys if not key.text.startswith("is ignored")}
    wrong = [f"{path}.{name}: not described" for name in fields.keys() - by_fold.keys()]
    wrong += [f"{path}.{name}: not read" for name in by_fold.keys() - fields.keys()]
    for name in fields.keys() & by_fold.keys():
        wrong += differences(fields[name][0], by_fold[name].kind, f"{path}.{by_fold[name].name}")
    return wrong


def test_every_plugin_is_described() -> None:
    assert set(catalogue.NAMES) == set(ALL)
    assert {each.name for each in catalogue.plugins()} == set(ALL)
    assert {each.name for each in catalogue.plugins() if each.place == "ipam"} == set(
        catalogue.IPAM_NAMES
    )


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_types(name: str) -> None:
    """Every key that the plugin decodes is described with its type, and no other."""
    fields = own_fields(conf_of(name))
    if name in NO_IPAM:
        fields.pop("ipam")
    if name in NO_DNS:
        fields.pop("dns")
    assert of_keys(fields, described(name).keys, name) == []


def test_shared_records() -> None:
    assert differences(config.DNS, DNS, "dns") == []
    assert differences(config.Route, ROUTE, "route") == []


def defaults(struct: type[msgspec.Struct], keys: tuple[Key, ...], path: str = "") -> Any:
    """(path, key, the Struct's default) of each key whose value is no object."""
    fields = own_fields(struct)
    for key in keys:
        found = fields.get(key.name.lower())
        if found is None:
            continue
        hint = without_none(found[0])
        if isinstance(key.kind, Record):
            if isinstance(hint, type):
                yield from defaults(hint, key.kind.keys, f"{path}{key.name}.")
        elif not isinstance(key.kind, IpamRecord):
            yield f"{path}{key.name}", key, found[1]


@pytest.mark.parametrize("name", NAMES)
def test_defaults(name: str) -> None:
    """A described default is the Struct's; where the Struct's is empty, the code has the value."""
    wrong = []
    for path, key, default in defaults(conf_of(name), described(name).keys):
        empty = default in (None, "", 0, [], {}) and default is not True
        if key.default == default or (empty and key.default in (None, "", 0, False, [], {})):
            continue
        place = EFFECTIVE.get((name, path))
        if place is None:
            wrong.append(f"{path}: {default!r} is described as {key.default!r}")
            continue
        source = source_of(name)
        assert place in source
        if place[0] == '"':
            assert place == f'"{key.default}"'
        else:
            assert f"{place} = {key.default!r}".replace("'", '"') in source.replace("'", '"')
    assert wrong == []


def source_of(name: str) -> str:
    """The text of the plugin's modules."""
    module = importlib.import_module(ALL[name].module)
    path = Path(str(module.__file__))
    files = path.parent.glob("*.py") if path.stem == "plugin" else [path]
    return "\n".join(each.read_text() for each in files)


def everything(name: str) -> list[tuple[str, Key]]:
    plugin = described(name)
    own = list(catalogue.entries(plugin))
    return own + [(f"CNI_ARGS.{key.name}", key) for key in plugin.args]


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_are_whole(name: str) -> None:
    """Each key says what it means and what holds without it; examples are of its kind."""
    wrong = []
    for path, key in everything(name):
        if not key.text or key.text.endswith("."):
            wrong.append(f"{path}: its text is {key.text!r}")
        said = key.required or key.default is not None or bool(key.absent)
        if not said and ".bandwidth." not in f".{path}.":
            wrong.append(f"{path}: nothing says what holds without it")
        if version.parse(key.since) > version.parse(__version__):
            wrong.append(f"{path}: since {key.since}, which is not out")
        if isinstance(key.kind, Text) and key.kind.form and key.kind.form not in forms.FORMS:
            wrong.append(f"{path}: no form {key.kind.form}")
    assert wrong == []


def test_forms_take_their_examples() -> None:
    for name, form in forms.FORMS.items():
        assert forms.problem(name, form.example) == ""
        assert forms.problem(name, "") == ""
        assert forms.problem(name, "\0 no such thing;") != ""


def test_common_keys_have_words() -> None:
    assert all(key.text for key in COMMON)


def test_plugins_that_make_a_pair() -> None:
    """Those of describe.pairs are those whose node's end can be named; some are on a bridge."""

    def with_key(name: str) -> set[str]:
        return {each.name for each in catalogue.plugins() if catalogue.own_key(each, name)}

    assert with_key("hostInterfaceName") == pairs.ALL
    assert with_key("bridge") & pairs.ALL == pairs.ON_BRIDGE  # tap has no end on the node
    key = catalogue.own_key(described("bridge"), "bridge")
    assert key is not None
    assert pairs.bridge_name("bridge", None, None) == key.default
    conf = config.convert({"type": "vxlan", "vni": 7}, vxlan_settings.Conf)
    assert pairs.bridge_name("vxlan", "", 7) == vxlan_settings.bridge_name(conf)
    for name in pairs.ON_BRIDGE:
        assert pairs.bridge_name(name, "br0", 7) == "br0"
        assert pairs.is_gateway(name, None, True)
        assert pairs.is_gateway(name, True, None)
        assert not pairs.is_gateway(name, None, False)
    assert pairs.is_gateway("ptp", None, None)
    assert not pairs.is_gateway("macvlan", True, True)


# --- what is made of the descriptions --------------------------------------------------------


def plugin_object(plugin: Plugin) -> dict[str, Any]:
    """The example as an object of a list; an IPAM plugin's is named by a dummy."""
    return {"type": "dummy", "ipam": plugin.example} if plugin.place == "ipam" else plugin.example


def conflist(*plugins: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "mynet", "plugins": list(plugins)}


def validator() -> Any:
    import jsonschema  # takes more than a second, in every worker that collects

    return jsonschema.Draft202012Validator


def errors_of(value: Any, schema_: dict[str, Any]) -> list[str]:
    checked = validator()(schema_)
    return [f"{error.json_path}: {error.message}" for error in checked.iter_errors(value)]


@pytest.mark.parametrize("name", ["", *NAMES])
def test_schemas_are_schemas(name: str) -> None:
    made = schema.of_plugin(described(name)) if name else schema.of_list()
    validator().check_schema(made)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_take_examples(name: str) -> None:
    plugin = described(name)
    assert errors_of(plugin.example, schema.of_plugin(plugin)) == []
    assert errors_of(conflist(plugin_object(plugin)), schema.of_list()) == []


def places(name: str) -> list[tuple[str, Key]]:
    """Keys with an example that stand directly in the plugin's object, or in `ipam`."""
    plugin = described(name)
    prefix = "ipam." if plugin.place == "ipam" else ""
    return [
        (path, key)
        for path, key in catalogue.entries(plugin)
        if path.startswith(prefix)
        and "." not in path.removeprefix(prefix)
        and key.example is not None
    ]


WRONG: dict[type[Kind], Any] = {
    Flag: "true",
    Number: "12",
    Text: 12,
    Many: {"no": "list"},
    Table: ["no object"],
    Record: "no object",
    IpamRecord: "no object",
    DelegateRecord: "no object",
}


@pytest.mark.parametrize("name", NAMES)
def test_schemas_refuse_what_is_wrong(name: str) -> None:
    """Each key takes its own example, and no value of another type; unknown keys are refused."""
    plugin = described(name)
    made = schema.of_plugin(plugin)
    for path, key in places(name):
        last = path.rpartition(".")[2]
        assert errors_of({**plugin.example, last: key.example}, made) == []
        wrong = {**plugin.example, last: WRONG[type(key.kind)]}
        assert errors_of(wrong, made), f"{path} = {wrong[last]!r} is taken"
        assert errors_of({**plugin.example, f"{last}x": key.example}, made)


@pytest.mark.parametrize(
    "value",
    [
        {"cniVersion": "1.0.0", "plugins": [{"type": "ptp"}]},
        conflist(),
        conflist({"typ": "bridge"}),
        conflist({"type": "bridge", "ipam": {"type": "host-local", "rangess": []}}),
        conflist({"type": "bridge", "mtu": 67}),
        conflist({"type": "vlan", "vlanId": 4095, "master": "eth0", "ipam": {"type": "dhcp"}}),
        conflist({"type": "firewall", "backend": "nftable"}),
        {**conflist({"type": "bridge"}), "disableGC": "maybe"},
        {**conflist({"type": "bridge"}), "plugin": []},
    ],
)
def test_the_schema_of_lists_refuses(value: Any) -> None:
    assert errors_of(value, schema.of_list())


@pytest.mark.parametrize(
    "value",
    [
        conflist({"type": "calico", "anything": {"goes": 1}}),
        conflist({"type": "macvlan", "ipam": {"type": "calico-ipam", "range": "10.0.0.0/8"}}),
        conflist({"type": "macvlan", "ipam": {"type": "whereabouts", "range": "10.0.0.0/8"}}),
        conflist({"type": "bridge", "mtu": 0, "args": {"cni": {"ips": ["10.0.0.7"]}}}),
        conflist({"type": "bridge", "args": {"podman_labels": {"a": "b"}}, "cni.dev/x": 1}),
        {**conflist({"type": "bridge"}), "disableGC": "True", "nerdctlID": "12"},
    ],
)
def test_the_schema_of_lists_takes(value: Any) -> None:
    assert errors_of(value, schema.of_list()) == []


PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_tables_are_the_descriptions(page: Path) -> None:
    """`python -m cni.describe.tables docs` writes them."""
    text = page.read_text()
    assert tables.written(text) == text


def test_every_page_has_its_table() -> None:
    for name in NAMES:
        text = (ROOT / "docs/plugins" / f"{name}.md").read_text()
        assert (f"<!-- keys of {name} -->" in text) is bool(described(name).keys)


def test_explain(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "bridge.VLANTRUNK.minid"]) == 0
    out = capfd.readouterr().out
    assert "bridge: vlanTrunk.minID" in out
    assert "integer, 1 to 4094" in out
    assert '"minID": 10' in out


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_explained(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 0
    everything_said = capfd.readouterr().out
    for path, key in everything(name):
        assert f"\n{path}: " in everything_said or not tables.is_row(path, key)
        assert main(["explain", f"{name}.{path}", "-o", "json"]) == 0
        assert json.loads(capfd.readouterr().out)["meaning"] == key.text


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("brigde", 3, "did you mean bridge?"),
        ("bridge.isGatway", 3, "did you mean isGateway?"),
        ("host-local.subnet", 0, ""),
        ("host-local.ipam.rangess", 3, "did you mean ipam.ranges?"),
        ("buildkit-cni-bridge.mtu", 0, ""),
        ("nothing", 3, "there are"),
        ("bridge.ipam.ranges.subnet", 3, "write host-local.ipam.ranges.subnet"),
        ("bridge.ipam.qwertz", 3, "its keys are"),
        ("tuning.qwertz", 3, "its keys are sysctl"),
    ],
)
def test_explain_finds(path: str, code: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", path]) == code
    assert said in capfd.readouterr().err


def test_schema_command(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "portmap"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["properties"]["markMasqBit"]["maximum"] == 31
    assert main(["schema"]) == 0
    validator().check_schema(json.loads(capfd.readouterr().out))
    assert main(["schema", "brige"]) == 3
    assert "did you mean bridge?" in capfd.readouterr().err
    assert main(["schema", "bridge.mtu"]) == 3
    capfd.readouterr()
    assert main(["schema", "-o", "name"]) == 0
    assert {"bridge", "portmap"} <= set(capfd.readouterr().out.splitlines())


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("bridge", "bridge"),
        ("buildkit-cni-bridge", "bridge"),
        ("buildkit-cni-host-local", "host-local"),
        ("cni-static", "static"),
        ("win-bridge", "win-bridge"),
        ("ecs-bridge", None),
        ("tc-redirect-tap", "tc-redirect-tap"),
        ("my-tap", None),
        ("mycni-bridge", None),
        ("buildkit-cni-", None),
        ("-bridge", None),
        ("", None),
    ],
)
def test_which_plugin_a_type_means(name: str, known: str | None) -> None:
    assert catalogue.known_as(name) == known
