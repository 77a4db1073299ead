"""docs/reference.md lists what is on a node: networks are used, and what appears is looked up."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness.build import ROOT
from tests.harness.netns import PATH
from tests.harness.requires import missing

from .test_examples import FEATURES, FILES, NOT_HERE, content

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns

pytestmark = pytest.mark.timeout(900)  # each command starts an interpreter, on a busy machine

PAGE = (ROOT / "docs/reference.md").read_text()

# Directories of the node that the plugins write into, each empty and of this test.
PREPARE = """
set -e
for directory in /etc/cni /var/lib/cni /opt/cni /var/log /srv; do
    mkdir -p $directory && mount -t tmpfs -o mode=755 none $directory
done
mkdir -p /run/cni && mount -t tmpfs -o mode=755 none /run/cni
mkdir -p /run/netns && mount -t tmpfs none /run/netns
{bin_dir}/cni install --bin-dir /opt/cni/bin --link none >/dev/null
export PATH=$PATH:/opt/cni/bin NETCONFPATH={networks}
for name in eth1 eth2 eth3; do
    ip link add $name type veth peer name ${{name}}peer
    ip link set $name up && ip link set ${{name}}peer up
done
ip address add 10.140.0.2/24 dev eth1
look() {{
    mkdir {output}/$1
    find /run/cni /var/lib/cni /etc/cni /var/log /opt/cni ! -type d >{output}/$1/files
    nft -j list tables >{output}/$1/tables
    {{ iptables-save; ip6tables-save; }} | grep -o '^:CNI-[^ ]*' >{output}/$1/chains || true
    ip -j -d link >{output}/$1/links
}}
set +e
number=0
for file in {networks}/*.conflist; do
    number=$((number + 1))
    name=$(basename $file .conflist)
    ip netns add n$number
    CAP_ARGS='{{"portMappings": [{{"hostPort": '$((8000 + number))', "containerPort": 80}}],
        "bandwidth": {{"ingressRate": 8000000, "ingressBurst": 800000}}}}' \\
        cni add $name /run/netns/n$number >/dev/null || echo "ADD of $name failed" >>{output}/failed
done 2>>{output}/log
look attached
number=0
for file in {networks}/*.conflist; do
    number=$((number + 1))
    name=$(basename $file .conflist)
    cni del $name /run/netns/n$number || echo "DEL of $name failed" >>{output}/failed
done 2>>{output}/log
look detached
ip -all netns delete
"""


class Row(NamedTuple):
    """A row of the page's table of files: paths, and who removes them."""

    patterns: tuple[re.Pattern[str], ...]
    removed_by: str


def rows() -> list[Row]:
    section = PAGE.partition("## Files")[2].partition("\n## ")[0]
    found = []
    for line in re.findall(r"^\| (`/.*) \|$", section, re.MULTILINE):
        cells = line.split(" | ")
        paths = re.findall(r"`(/[^`]+)`", cells[0])
        found.append(Row(tuple(pattern(each) for each in paths), cells[-1]))
    return found


def pattern(path: str) -> re.Pattern[str]:
    """`<word>` and `*` stand for a part of a name; what ends in `/` has anything below it."""
    parts = re.split(r"(<[^>]+>|\*)", path)
    text = "".join("[^/]+" if each[:1] in ("<", "*") else re.escape(each) for each in parts if each)
    return re.compile(text + (".+" if path.endswith("/") else ""))


def listed(path: str) -> list[Row]:
    return [row for row in rows() if any(each.fullmatch(path) for each in row.patterns)]


def _masqueraded(bridge: str, **more: object) -> dict[str, object]:
    ranges = [[{"subnet": f"10.150.{len(bridge)}.0/24"}]]
    ipam = {"type": "host-local", "ranges": ranges}
    return {"type": "bridge", "bridge": bridge, "isGateway": True, "ipam": ipam, **more}


# What no example has, and the page lists.
MORE = {
    "ports-of-iptables": [
        _masqueraded("br-old"),
        {"type": "portmap", "backend": "iptables", "capabilities": {"portMappings": True}},
    ],
    "sets": [_masqueraded("br-sets", ipMasq=True, ipMasqSet=True)],
    "uplink": [_masqueraded("br-up", uplinkInterface="eth3", removeEmptyBridge=True)],
    "no-forged-macs": [_masqueraded("br-mac-check", macspoofchk=True)],
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples that can be used together on this kernel."""
    folder = tmp_path_factory.mktemp("networks")
    for path in FILES:
        network = content(path)
        types = [each["type"] for each in network["plugins"]]
        needed = {FEATURES[each] for each in types if each in FEATURES}
        if any("vlan" in each or "vlanTrunk" in each for each in network["plugins"]):
            needed.add("vlan_filtering")
        if path.stem in NOT_HERE or "bond" in types or any(missing(each) for each in needed):
            continue  # two examples want eth2; tests/netns/test_examples.py runs each by itself
        for plugin in network["plugins"]:
            if plugin.get("bridge") == "br-example":  # whose networks have different gateways
                plugin["bridge"] = f"br-{path.stem}"[:15]
        name = network["name"]
        (folder / f"{name}.conflist").write_text(json.dumps(network))
    for name, plugins in MORE.items():
        network = {"cniVersion": "1.1.0", "name": name, "plugins": plugins}
        (folder / f"{name}.conflist").write_text(json.dumps(network))
    return folder


@pytest.fixture
def node(host: Netns, bin_dir: Path, tmp_path: Path, networks: Path) -> Path:
    """Attach a container to each network and detach it: what was there then, and after that."""
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    script = PREPARE.format(bin_dir=bin_dir, networks=networks, output=tmp_path)
    argv = ["unshare", "--mount", "bash", "-c", script]
    host.exec(argv, env={"PATH": PATH}, timeout=800)
    log = (tmp_path / "log").read_text()
    assert not (tmp_path / "failed").exists(), (tmp_path / "failed").read_text() + log
    return tmp_path


def test_the_page_is_true(node: Path) -> None:
    """What containers have on a node is listed; what DEL shall remove is gone after it."""
    paths = (node / "attached/files").read_text().splitlines()
    assert len(paths) > 50
    assert sorted(each for each in paths if not listed(each)) == []
    kernel_is_listed(node / "attached")

    left = (node / "detached/files").read_text().splitlines()
    assert sorted(each for each in left if not listed(each)) == []
    assert sorted(each for each in left if is_dels(each)) == []
    links = json.loads((node / "detached/links").read_text())
    assert [e["ifname"] for e in links if str(e.get("ifalias", "")).startswith("cni:")] == []


def is_dels(path: str) -> bool:
    """Does the page say that DEL removes this file?"""
    return all("DEL" in row.removed_by for row in listed(path))


def kernel_is_listed(node: Path) -> None:
    text = PAGE.partition("## In the kernel")[2].partition("\n## ")[0]
    tables = json.loads((node / "tables").read_text())["nftables"]
    made = {f"{e['table']['family']} {e['table']['name']}" for e in tables if "table" in e}
    made -= {f"{family} {name}" for family in ("ip", "ip6") for name in ("nat", "filter")}
    assert len(made) > 6
    assert sorted(each for each in made if f"`{each}`" not in text) == []

    chains = set((node / "chains").read_text().replace(":", "").split())
    forms = [pattern(each) for each in re.findall(r"`(CNI-[^`]+)`", text)]
    assert len(chains) > 3
    assert sorted(each for each in chains if not any(form.fullmatch(each) for form in forms)) == []

    links = json.loads((node / "links").read_text())
    own = [each["ifname"] for each in links if str(each.get("ifalias", "")).startswith("cni:")]
    starts = ("veth", "cnishim", "bwp")
    assert {name[:3] for name in own} >= {"vet", "bwp"}
    assert [name for name in own if not name.startswith(starts)] == []
    assert [start for start in starts if f"`{start}" not in text] == []
