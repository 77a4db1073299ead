"""Each block of the how-tos is tried, or it is said here why not and what else shows that it works.

Blocks for a shell are run by tests/netns/test_documented.py, which also validates those of JSON;
tests/netns/test_troubleshooting.py makes each symptom, and compares what is printed.
"""

from __future__ import annotations

import configparser
import json
import tomllib
from pathlib import Path

import pytest

from cni.cli import configurations, validate
from tests.harness.documented import blocks
from tests.netns.test_troubleshooting import SYMPTOMS

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(each.relative_to(ROOT)) for each in (ROOT / "docs/howto").glob("*.md"))
RUN = ("sh", "json")
# First line of a block -> the file that does the same.
ELSEWHERE = {
    "cni migrate                    # what the Go plugins could not clean up": (
        "tests/runtime/test_switch.py"
    ),
    "ip link set eth1 master br-trunk": "tests/lab/test_bridge_vlan.py",
    "cni install --units /etc/systemd/system": "tests/runtime/test_systemd.py",
}
# First line -> why it cannot be tried.
NOWHERE = {
    "kubectl get nodes -o custom-columns=NODE:.metadata.name,SUBNET:.spec.podCIDR": "a cluster",
    "containerd config dump | grep -A8 '\\.cni\\]'": "the CRI plugin and crictl",
    "client {": "Nomad, whose language nothing here reads",
    "[crio.network]": "CRI-O; the keys are read as TOML",
    "apiVersion: k8s.cni.cncf.io/v1": "Multus; the configuration in it is judged",
}
ALL = [(page, language, text) for page in PAGES for language, text in blocks(page)]


def is_shown(text: str) -> bool:
    """Is one of the texts that a symptom's commands print in the block?"""
    parts = [part for _, shown in SYMPTOMS.values() for part in shown if len(part) > 12]
    return any(part.strip() in text for part in parts)


@pytest.mark.parametrize("page", PAGES)
def test_each_block_is_accounted_for(page: str) -> None:
    left = [
        first
        for language, text in blocks(page)
        if language not in (*RUN, "ini")
        and (first := text.strip().splitlines()[0].strip()) not in ELSEWHERE.keys() | NOWHERE.keys()
        and not (page.endswith("troubleshooting.md") and is_shown(text))
    ]
    assert left == []


def test_no_reason_is_left_over() -> None:
    firsts = {text.strip().splitlines()[0].strip() for _, _, text in ALL}
    text = "".join((ROOT / each).read_text() for each in PAGES)
    assert [each for each in ELSEWHERE if each not in firsts] == []
    assert [each for each in NOWHERE if each not in firsts and each not in text] == []
    assert [each for each in ELSEWHERE.values() if not (ROOT / each).exists()] == []


def test_settings_of_podman_are_those_of_the_tests() -> None:
    (text,) = [text for _, language, text in ALL if language == "ini"]
    parser = configparser.ConfigParser()
    parser.read_string(text)
    started_with = (ROOT / "tests/runtime/engines.py").read_text()
    for key in parser["network"]:
        assert key in started_with


def test_settings_of_cri_o_are_toml() -> None:
    (text,) = [text for _, language, text in ALL if language == "toml"]
    assert tomllib.loads(text)["crio"]["network"]["plugin_dirs"] == ["/opt/cni/bin/"]


def test_the_network_for_multus_is_right(tmp_path: Path) -> None:
    (text,) = [text for _, language, text in ALL if language == "yaml"]
    network = text.partition("config: |\n")[2]
    assert json.loads(network)["plugins"][0]["type"] == "macvlan"
    path = tmp_path / "storage.conflist"
    path.write_text(network)
    judged = validate.judge(configurations.Files([str(path)], []), offline=True)
    assert judged.findings() == []
    path.write_text(network.replace('"rangeEnd"', '"rangeend2"'))
    judged = validate.judge(configurations.Files([str(path)], []), offline=True)
    assert [each.code for each in judged.findings()] == ["unknown-key"]
