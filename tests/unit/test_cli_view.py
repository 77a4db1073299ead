"""What the command line makes of the sources: rules, ports, and files that anybody has written."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.cli import errors, target
from cni.cli.cache import Cache
from cni.cli.view import attachments, published, ruleset
from cni.cli.view.attached import Attached, Places
from cni.cli.view.namespaces import Live

ONE = Attached("net", "1" * 64, "eth0", result={"ips": [{"address": "10.0.0.2/24"}]})
TWO = Attached("net", "2" * 64, "eth0", result={"ips": [{"address": "10.0.0.22/24"}]})

RULESET = f"""table ip cni_hostport {{
\tcomment "CNI portmap plugin"
\tmap targets {{
\t\ttype inet_proto . inet_service : ipv4_addr . inet_service
\t\telements = {{ tcp . 8080 comment "{ONE.owner.comment}" : 10.0.0.2 . 80,
\t\t\t     udp . 53 comment "{TWO.owner.comment}" : 10.0.0.22 . 53 }}
\t}}
\tmap targets_at {{
\t\ttype ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
\t\telements = {{ 192.0.2.1 . tcp . 81 comment "{ONE.owner.comment}" : 10.0.0.2 . 80 }}
\t}}
\tchain published_lookup {{
\t\ttype nat hook prerouting priority dstnat + 1; policy accept;
\t\tmeta l4proto . th dport vmap @published
\t}}
}}
"""

COMMENT = f'name: \\"net\\" id: \\"{"1" * 64}\\"'
IPTABLES = f"""*nat
:CNI-DN-x - [0:0]
-A POSTROUTING -s 10.0.0.2/32 -m comment --comment "{COMMENT}" -j {ONE.owner.chain()}
-A {TWO.owner.chain("DN-")} -p tcp -m tcp --dport 82 -j DNAT --to-destination 10.0.0.22:80
-A CNI-FORWARD -d 10.0.0.22/32 -j ACCEPT
-A INPUT -s 10.0.0.2/32 -j ACCEPT
COMMIT
"""


def entries() -> list[ruleset.Entry]:
    return [
        *ruleset.nft_entries(RULESET),
        *ruleset.iptables_entries("iptables", IPTABLES),
    ]


def test_rules_and_elements_are_told_apart() -> None:
    texts = [entry.text for entry in ruleset.nft_entries(RULESET)]
    assert len(texts) == 4
    assert texts[0].startswith("tcp . 8080 comment ")
    assert texts[1].startswith("udp . 53 comment ")
    assert texts[3] == "meta l4proto . th dport vmap @published"
    assert (
        next(entry.short for entry in ruleset.nft_entries(RULESET)) == "tcp . 8080 : 10.0.0.2 . 80"
    )


def test_each_rule_belongs_to_its_container() -> None:
    index = ruleset.Index(entries())
    assert [match.why for match in index.belonging(ONE)] == ["key", "key", "container id"]
    assert [match.why for match in index.belonging(TWO)] == ["key", "chain", "address"]


def test_ports() -> None:
    found = {port.name: port for port in published.find(entries(), [ONE, TWO])}
    assert set(found) == {"8080/tcp", "53/udp", "192.0.2.1:81/tcp", "82/tcp"}
    assert {port.owner.container_id[0] for port in found.values() if port.owner} == {"1", "2"}
    assert (found["82/tcp"].by, found["82/tcp"].target) == ("iptables", 80)


def test_ports_of_nobody() -> None:
    assert {port.owner for port in published.find(entries(), [])} == {None}


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["address", "sandbox", "name", "hostPort", "portMappings", "ip"]), inner
        )
    ),
)
RESULTS = st.dictionaries(st.sampled_from(["ips", "interfaces", "ip4", "ip6", "x"]), JUNK)


@given(RESULTS, st.dictionaries(st.sampled_from(["portMappings"]), JUNK))
def test_a_result_may_be_anything(result: dict[str, Any], capabilities: dict[str, Any]) -> None:
    what = Attached("net", "c", "eth0", result=result, capability_args=capabilities)
    assert all(isinstance(address, str) for address in what.addresses)
    list(published.wanted(what))
    what.as_dict(Live())
    ruleset.Index(entries()).belonging(what)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"kind": "cniCacheV1"}',
        b'{"kind": "cniCacheV1", "containerId": 5, "config": "", "ifName": [], "networkName": {}}',
    ],
)
def test_a_cache_may_have_anything_in_it(tmp_path: Path, text: bytes) -> None:
    results = tmp_path / "results"
    results.mkdir()
    (results / "net-x-eth0").write_bytes(text)
    config = base64.b64encode(b"{}").decode()
    good = {"kind": "cniCacheV1", "containerId": "c", "ifName": "eth0", "networkName": "net"}
    for name, more in (("good", {}), ("odd", {"capabilityArgs": [1], "result": 5, "cniArgs": 7})):
        record = {**good, "containerId": name, "config": config, **more}
        (results / name).write_text(json.dumps(record))
    places = Places(Cache(str(tmp_path)), str(tmp_path / "state"), str(tmp_path / "net.d"))
    names = [each.container_id for each in attachments.gather(places, "net")]
    assert "good" in names
    assert set(names) <= {"good", "odd"}


@pytest.mark.parametrize(
    ("name", "wanted"), [("1", ["1"]), ("1" * 64, ["1"]), ("", None), ("3", None)]
)
def test_a_container_by_its_beginning(name: str, wanted: list[str] | None) -> None:
    if wanted is None:
        with pytest.raises(errors.NotFound):
            target.of_container(name, [ONE, TWO])
        return
    assert [each.container_id[0] for each in target.of_container(name, [ONE, TWO])] == wanted


def test_an_ambiguous_beginning() -> None:
    other = Attached("net", "1" * 63 + "2", "eth0")
    with pytest.raises(errors.Ambiguous):
        target.of_container("1", [ONE, other])
    assert target.of_container("1" * 64, [ONE, other]) == [ONE]
