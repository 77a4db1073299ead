"""Configurations: keys of any case, null, duplicates, types, and the texts of errors."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.plugins import ptp
from cni.plugins.bridge import plugin as bridge
from cni.protocol import config
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


def test_what_belongs_to_others_keeps_its_spelling() -> None:
    raw = {"Args": {"prevResult": {"A": 1}, "sysctl": {"net/ipv4/conf/ETH0/x": "1"}}}
    folded = config._fold_keys(raw, {})
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
        ({"bridge": ["a"]}, "cannot unmarshal array into field bridge of type str"),
        ({"ipam": "static"}, "cannot unmarshal string into field ipam of type object"),
        ({"ipam": {"type": 5}}, "cannot unmarshal number into field ipam.type of type str"),
        ({"vlanTrunk": {}}, "cannot unmarshal object into field vlanTrunk of type array"),
        (
            {"vlanTrunk": [{"id": "x"}]},
            "cannot unmarshal string into field vlanTrunk[0].id of type int",
        ),
        ({"dns": {"search": "a"}}, "cannot unmarshal string into field dns.search of type array"),
        (
            {"runtimeConfig": {"mac": 5}},
            "cannot unmarshal number into field runtimeConfig.mac of type str",
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
        (b'{"a": "\xff"}', ""),
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
