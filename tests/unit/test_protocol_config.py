"""Configurations: keys of any case, null, duplicates, types, and the texts of errors."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.plugins import ptp
from cni.plugins.bridge import plugin as bridge
from cni.protocol import config, gojson
from cni.protocol.errors import CNIError, DecodeFailure, InvalidConfig


def conf(**keys: Any) -> bridge.Conf:
    return config.convert(keys, bridge.Conf, "failed to load netconf: ")


@pytest.mark.parametrize("key", ["isGateway", "isgateway", "ISGATEWAY", "IsGateway", "iSgAtEwAy"])
def test_keys_match_whatever_their_case(key: str) -> None:
    assert conf(**{key: True}).is_gateway is True


def test_an_underscore_is_not_a_case() -> None:
    assert conf(is_gateway=True).is_gateway is False


def test_every_key_of_a_bridge() -> None:
    raw = json.loads("""{
        "CNIVersion": "1.0.0", "Name": "n", "TYPE": "bridge", "BRIDGE": "br0",
        "IsDefaultGateway": true, "ForceAddress": true, "IPMasq": true, "ipmasqbackend": "nftables",
        "MTU": 1400, "HairpinMode": true, "PromiscMode": true, "VLAN": 5,
        "VlanTrunk": [{"MinID": 1, "MAXID": 2, "ID": 3}], "PreserveDefaultVlan": true,
        "MacSpoofChk": true, "EnableDAD": true, "DisableContainerInterface": true,
        "PortIsolation": true, "IPAM": {"Type": "static"}, "DNS": {"NameServers": ["1.1.1.1"]},
        "Args": {"CNI": {"MAC": "a"}}, "RuntimeConfig": {"Mac": "b"}, "nosuch": {"a": [1]}
    }""")
    got = config.convert(raw, bridge.Conf)
    assert (got.cni_version, got.name, got.type, got.bridge) == ("1.0.0", "n", "bridge", "br0")
    assert (got.mtu, got.vlan, got.ip_masq_backend) == (1400, 5, "nftables")
    flags = (
        got.is_default_gateway, got.force_address, got.ip_masq, got.hairpin_mode, got.promisc_mode,
        got.preserve_default_vlan, got.macspoofchk, got.enabledad, got.disable_container_interface,
        got.port_isolation,
    )  # fmt: skip
    assert flags == (True,) * 10
    assert got.vlan_trunk is not None
    assert (got.vlan_trunk[0].min_id, got.vlan_trunk[0].max_id, got.vlan_trunk[0].id) == (1, 2, 3)
    assert (got.ipam.type, got.dns.nameservers) == ("static", ["1.1.1.1"])
    assert (got.args.cni.mac, got.runtime_config.mac) == ("a", "b")


def test_null_is_absent_and_the_last_of_several_wins() -> None:
    assert conf(mtu=5, MTU=6).mtu == 6
    assert conf(MTU=6, mtu=5).mtu == 5
    assert conf(mtu=None, ipam=None, dns=None, vlanTrunk=None) == conf()
    assert config.decode_object(b'{"a": 1, "a": 2}') == {"a": 2}
    assert config.lookup({"Name": 1, "name": 2, "NAME": 3}, "name") == 3
    assert config.lookup({"Name": 1}, "name") == 1
    assert config.lookup({}, "name") is None


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": "caf\xe9"}', "caf\ufffd"),
        (b'{"a": "\\ud800x"}', "\ufffdx"),
        (b'{"a": "\\ud83d\\ude00"}', "\U0001f600"),
        (b'{"a": 1e400}', float("inf")),
        (b'{"a": 123456789012345678901234567890}', 123456789012345678901234567890),
        (b'{"a": -9223372036854775808}', -(1 << 63)),
        (b'{"a": {"x": 1, "y": [1]}, "a": {"y": [2], "z": 3}}', {"x": 1, "y": [2], "z": 3}),
        (b'{"a": {"b": {"x": 1}}, "a": {"b": {"y": 1}}}', {"b": {"x": 1, "y": 1}}),
        (b'{"a": 1, "a": null}', 1),
        (b'{"a": [1], "a": null}', None),
        (b'{"a": {"x": 1}, "a": 2}', 2),
        (b'{"a": "\\u003c\\/"}', "</"),
    ],
)
def test_what_go_takes(data: bytes, value: Any) -> None:
    assert config.decode_object(data) == {"a": value}


def test_deep_nesting() -> None:
    """Go's limit; deeper than any key lies, nobody looks."""
    deep = b'{"a": 1, "b": ' + b"[" * 9_999 + b"]" * 9_999 + b"}"
    assert config.decode_object(deep)["a"] == 1
    config.convert(config.decode_object(deep), bridge.Conf)
    with pytest.raises(CNIError, match="exceeded max depth"):
        config.decode_object(b'{"b": ' + b"[" * 10_000 + b"]" * 10_000 + b"}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@given(JSON)
def test_gos_decoder_reads_ordinary_documents_as_msgspec_does(value: Any) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert gojson.decode(text.encode()) == value


@given(st.binary(max_size=60) | st.text('{}[]",:\\u0019-+.eE tfn', max_size=30).map(str.encode))
def test_gos_decoder_gives_a_value_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        gojson.decode(data)


def test_objects_of_one_key_in_two_spellings_are_merged() -> None:
    assert conf(IPAM={"type": "a"}, ipam={}).ipam.type == "a"
    assert conf(ipam={"type": "a"}, IPAM={"TYPE": "b"}).ipam.type == "b"


def test_null_in_a_list_or_map_is_left_out_or_the_zero_value() -> None:
    raw = {"a": [None, 1], "interfaces": [None, {"Name": "x"}], "sysctl": {"k": None}}
    assert config.fold_keys(raw, {}) == {
        "a": [1],
        "interfaces": [{}, {"name": "x"}],
        "sysctl": {"k": ""},
    }


# -- for DEL and GC -------------------------------------------------------------------------------


class Entry(config.Folded):
    dst: str = ""
    mtu: int = 0


class Inner(config.Folded):
    type: str = ""
    entries: list[Entry] = []
    sets: list[list[Entry]] = []
    route: config.Route | None = None


class Outer(config.PluginConf):
    mtu: int = 0
    inner: Inner = msgspec.field(default_factory=Inner)
    routes: list[config.Route] = []


def parts(**keys: Any) -> tuple[Any, list[str]]:
    errors: list[str] = []
    found = config.convert_parts(keys, Outer, "conf: ", lambda error: errors.append(error.msg))
    return found, errors


def test_a_key_that_nobody_reads_may_be_broken() -> None:
    found, errors = parts(name="net", mtu="big")
    assert found.name == "net"
    assert found.inner.type == ""
    assert not errors
    assert found.mtu == 0
    assert errors == ["conf: json: cannot unmarshal string into field mtu of type int"]


def test_what_is_right_beside_what_is_broken_is_there() -> None:
    good, bad = {"dst": "10.0.0.0/8"}, {"dst": "x", "gw": "10.0.0.1"}
    found, errors = parts(
        inner={"type": "host-local", "entries": [{"mtu": "x"}, {"dst": "y"}, 5], "route": bad},
        routes=[good, bad, good],
        mtu=1400,
    )
    assert (found.mtu, found.inner.type) == (1400, "host-local")
    assert not errors
    assert [entry.dst for entry in found.inner.entries] == ["y"]
    assert len(errors) == 1
    assert found.inner.route is None
    assert len(errors) == 2
    assert [route.dst for route in found.routes] == ["10.0.0.0/8"] * 2
    assert "invalid CIDR address: x" in errors[2]


def test_an_object_that_is_none() -> None:
    found, errors = parts(inner="host-local")
    assert found.inner.type == ""
    assert errors == ["conf: json: cannot unmarshal string into field inner of type object"]


@given(st.dictionaries(st.sampled_from(["mtu", "inner", "routes", "name", "x"]), JSON))
def test_anything_is_converted_in_parts(raw: dict[str, Any]) -> None:
    found, _ = parts(**raw)
    for value in (found.mtu, found.name, found.inner.type, found.inner.entries, found.routes):
        assert value is not None


def test_what_belongs_to_others_keeps_its_spelling() -> None:
    raw = {"Args": {"prevResult": {"A": 1}, "sysctl": {"net/ipv4/conf/ETH0/x": "1"}}}
    folded = config.fold_keys(raw, {})
    assert folded == {"args": {"prevresult": {"A": 1}, "sysctl": {"net/ipv4/conf/ETH0/x": "1"}}}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"mtu": "big"}, "cannot unmarshal string into field mtu of type int"),
        ({"MTU": "big"}, "cannot unmarshal string into field MTU of type int"),
        ({"mtu": 1.5}, "cannot unmarshal number into field mtu of type int"),
        ({"mtu": True}, "cannot unmarshal bool into field mtu of type int"),
        ({"isGateway": "yes"}, "cannot unmarshal string into field isGateway of type bool"),
        ({"isGateway": 1}, "cannot unmarshal number into field isGateway of type bool"),
        ({"bridge": ["a"]}, "cannot unmarshal array into field bridge of type string"),
        ({"ipam": "static"}, "cannot unmarshal string into field ipam of type object"),
        ({"ipam": {"type": 5}}, "cannot unmarshal number into field ipam.type of type string"),
        ({"vlanTrunk": {}}, "cannot unmarshal object into field vlanTrunk of type array"),
        (
            {"vlanTrunk": [{"id": "x"}]},
            "cannot unmarshal string into field vlanTrunk[0].id of type int",
        ),
        ({"dns": {"search": "a"}}, "cannot unmarshal string into field dns.search of type array"),
        (
            {"runtimeConfig": {"mac": 5}},
            "cannot unmarshal number into field runtimeConfig.mac of type string",
        ),
    ],
)
def test_wrong_types_name_the_field(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(CNIError) as caught:
        conf(**keys)
    assert caught.value.code == 999
    assert caught.value.msg.startswith("failed to load netconf: json: ")
    assert text in caught.value.msg.replace(" | null", "")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unexpected end of JSON input"),
        (b"  \n", "unexpected end of JSON input"),
        (b"{", ""),
        (b'{"a":1} x', ""),
        (b"{'a': 1}", ""),
        (b'{"a": NaN}', ""),
        (b'{"a": \xff}', "invalid character"),
        (b'{"a": "\n"}', "invalid character"),
        (b'{"a": 01}', "invalid character"),
        (b'{"a": "\\x"}', "invalid character"),
        (b"[" * 100_000, ""),
        (b'{"a":' * 100_000, ""),
        (b"[]", "cannot unmarshal array into an object"),
        (b"null", "cannot unmarshal null into an object"),
        (b'"x"', "cannot unmarshal string into an object"),
        (b"5", "cannot unmarshal number into an object"),
        (b"true", "cannot unmarshal bool into an object"),
    ],
)
def test_what_is_no_configuration(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeFailure) as caught:
        config.decode_object(data)
    assert caught.value.code == 6
    assert caught.value.msg.startswith("error unmarshall network config: ")
    assert reason in caught.value.msg
    assert caught.value.details == "the configuration on stdin must be one JSON object"


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        assert isinstance(config.decode_object(data), dict)
    except DecodeFailure:
        pass


@pytest.mark.parametrize("raw", [{}, {"cniVersion": ""}, {"cniVersion": None}])
def test_no_version_means_the_oldest(raw: dict[str, Any]) -> None:
    assert config.version_of(raw) == "0.1.0"


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1, "number"), (1.0, "number"), ([], "array"), ({}, "object"), (False, "bool")],
)
def test_a_version_that_is_no_string(value: object, kind: str) -> None:
    with pytest.raises(DecodeFailure) as caught:
        config.version_of({"cniVersion": value})
    assert caught.value.code == 6
    assert caught.value.msg.startswith(
        f"decoding version from network config: json: cannot unmarshal {kind} into"
    )


def test_the_network_name() -> None:
    assert config.require_name({"Name": "n"}) == "n"
    for raw in ({}, {"name": ""}, {"name": None}):
        with pytest.raises(InvalidConfig, match="missing network name"):
            config.require_name(raw)
    for value in (5, [], {}, False):
        with pytest.raises(DecodeFailure, match="field name of type string"):
            config.require_name({"name": value})


@pytest.mark.parametrize("value", ["", "x"])
@pytest.mark.parametrize("key", ["nameservers", "search", "options", "domain"])
def test_which_dns_settings_count_as_given(key: str, value: str) -> None:
    given_value: Any = value if key == "domain" else [value][: len(value)]
    dns = config.convert({key: given_value}, config.DNS)
    # an empty list says something, an empty domain does not
    assert dns.given() is (key != "domain" or bool(value))
    assert dns.as_dict() == ({key: given_value} if value else {})
    assert not config.DNS().given()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["mtu", "MTU", "ipam", "type", "dns", "search", "vlanTrunk", "id", "args", "cni", "mac",
             "isGateway", "runtimeConfig", "ipMasqBackend", "x"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["mtu", "ipam", "dns", "args", "vlanTrunk", "x"]), JSON))
def test_any_object_is_a_configuration_or_refused(raw: dict[str, Any]) -> None:
    for kind in (bridge.Conf, ptp.Conf):
        with contextlib.suppress(CNIError):
            config.convert(raw, kind)
