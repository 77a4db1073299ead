"""docs/howto/troubleshooting.md is true: each symptom is made, and commands say what it shows."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.harness.build import ROOT
from tests.harness.netns import PATH

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns
    from tests.harness.firewalld import Firewalld

pytestmark = pytest.mark.timeout(900)  # each command starts an interpreter, on a busy machine

PAGE = (ROOT / "docs/howto/troubleshooting.md").read_text()

# A node with the network `shop`, which has five addresses, and containers a to f.
PREPARE = """
for directory in /etc/cni /var/lib/cni /opt/cni /etc/systemd/system /usr/local/bin; do
    mkdir -p $directory && mount -t tmpfs -o mode=755 none $directory
done
mkdir -p /run/cni && mount -t tmpfs -o mode=755 none /run/cni
mkdir -p /run/netns && mount -t tmpfs none /run/netns
{bin_dir}/cni install --bin-dir /opt/cni/bin --link none >/dev/null
export PATH=$PATH:/opt/cni/bin
mkdir -p /etc/cni/net.d
cat >/etc/cni/net.d/10-shop.conflist <<EOF
{{"cniVersion": "1.0.0", "name": "shop", "plugins": [
  {{"type": "bridge", "bridge": "br-shop", "isDefaultGateway": true, "ipMasq": true,
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "10.81.0.0/29"}}]]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
EOF
for name in a b c d e f; do ip netns add $name; done
publish() {{
    CAP_ARGS='{{"portMappings": [{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}]}}' \
        cni add shop /run/netns/$1
}}
"""
# Symptom -> what is done, and what the page shows of it.
SYMPTOMS = {
    "no addresses": (
        "for name in a b c d e; do cni add shop /run/netns/$name; done; ip netns delete e\n"
        "cni add shop /run/netns/f; cni ipam; cni gc shop --dry-run",
        [
            "failed to allocate for range 0: no IP addresses available in range set: "
            "10.81.0.1-10.81.0.6",
            "NETWORK  RANGE                SIZE  USED  FREE  DEAD   USE",
            "shop     10.81.0.1-10.81.0.6     5     5     0     1  100%",
        ],
    ),
    "port": (
        "publish a; publish b; cni ports 8080",
        [
            "host port 8080/tcp is already published by container ",
            "8080/tcp  10.81.0.2:80  shop",
            "nftables  published",
        ],
    ),
    "rules": (
        "publish a; nft flush ruleset; cni doctor; cni ports; cni reload; cni ports",
        ["rules are gone", "no rule", "published"],
    ),
    "bridge down": (
        "cni add shop /run/netns/a; ip link set br-shop down; cni check shop /run/netns/a",
        ["Bridge interface br-shop is down (`ip link set br-shop up`)"],
    ),
    "missing plugin": (
        "rm /opt/cni/bin/portmap; cni add shop /run/netns/a",
        ['failed to find plugin "', '" in path [/opt/cni/bin'],
    ),
    "earlier attachment": (
        "publish a; publish b; publish b",
        ['container veth name ("eth0") peer provided ("veth', '") already exists'],
    ),
    "way out": (
        "cni add shop /run/netns/a; sysctl -qw net.ipv4.ip_forward=0; cni doctor; cni status shop\n"
        "cni test shop",
        [
            "✗ kernel: net.ipv4.ip_forward is 0: attached containers reach nothing beyond the node "
            "(shop)",
            "    sysctl -w net.ipv4.ip_forward=1",
            "✗ before           IPv4  1 container had lost this before the test, whose ADD has "
            "set it: net.ipv4.ip_forward is 0: ",
        ],
    ),
    "another firewall": (
        "nft add table inet other\n"
        "nft add chain inet other f '{ type filter hook forward priority 0; policy drop; }'\n"
        "cni add shop /run/netns/a; cni doctor; cni test shop",
        [
            "! packet filter: the chain inet other f drops what it does not accept itself: no rule",
            "✗ way out          IPv4  nothing is forwarded to a host behind the node: the chain f "
            "of the table inet other, ",
        ],
    ),
    "held lock": (
        "cni add shop /run/netns/a; lock=/var/lib/cni/networks/shop/lock\n"
        "flock --no-fork $lock sleep 600 & while flock -n $lock true; do sleep 0.1; done\n"
        "cni del shop /run/netns/a; kill $!; wait; cni del shop /run/netns/a && echo deleted",
        ["cannot lock /var/lib/cni/networks/shop/lock: held by pid "],
    ),
    "slow": (
        "cni trace shop",
        ["the process, until the request is read", "bridge ADD", "by exec"],
    ),
    "overwritten": (
        "cp -L /opt/cni/bin/cni /etc/cni/release; rm -rf /opt/cni/bin/.cni-*[0-9a-f]\n"
        "echo 'echo theirs' >/etc/cni/new; cp -f /etc/cni/new /opt/cni/bin/cni\n"
        "CNI_COMMAND=VERSION CNI_SERVER=off /opt/cni/bin/bridge; /etc/cni/release doctor",
        [
            "the file cni, to which this plugin belongs, cannot be used",
            "✗ software: /opt/cni/bin/cni, which all plugins need: it was overwritten by another ",
            "    ./cni install --bin-dir /opt/cni/bin",
        ],
    ),
}


@pytest.mark.parametrize("name", SYMPTOMS)
def test_symptom(host: Netns, bin_dir: Path, name: str) -> None:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    script, shown = SYMPTOMS[name]
    whole = f"{PREPARE.format(bin_dir=bin_dir)}\nexec 2>&1\n{script}\n"
    argv = ["unshare", "--mount", "bash", "-c", whole]
    output = host.exec(argv, env={"PATH": PATH}, check=False, timeout=600).stdout
    for text in shown:
        assert text in PAGE
        assert text in output, output


def test_firewalld_reloads(host: Netns, bin_dir: Path, firewalld: Firewalld) -> None:
    """A real firewalld, which forgets the containers when it reloads."""
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    script = """
sed -i 's/"portMappings": true}}/"portMappings": true}}, {"type": "firewall"}/' \\
    /etc/cni/net.d/10-shop.conflist
publish a; firewall-cmd --reload; cni doctor; cni check shop /run/netns/a
cni reload; cni check shop /run/netns/a && echo "check: right"
"""
    whole = f"{PREPARE.format(bin_dir=bin_dir)}\nexec 2>&1\n{script}\n"
    argv = ["unshare", "--mount", "bash", "-c", whole]
    env = {**firewalld.env, "PATH": PATH}
    output = host.exec(argv, env=env, check=False, timeout=600).stdout
    for text in ["rules are gone"]:
        assert text in PAGE
        assert text in output, output
    assert "check: right" in output, output


def test_each_section_is_in_the_table() -> None:
    sections = set(re.findall(r"^## (.+)$", PAGE, re.MULTILINE))
    linked = set(re.findall(r"\| \[([^\]]+)\]\(#", PAGE))
    assert sections == linked
