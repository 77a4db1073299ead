"""What one plugin run imports and how much memory it takes.

Every container start pays for each module, once for each plugin and verb. So a run goes through the
installed tree with `python -I -S`, as the launcher starts it, and reports what it has loaded at the
moment it exits.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from cni.artifact import build_of
from cni.netfilter.iptables import has_legacy_table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness import Netns, Runtime

# Each costs a millisecond or more; the first line costs tens.
COSTLY = """
    asyncio click jeepney logging multiprocessing pyroute2 shiv
    argparse concurrent contextvars dataclasses email hashlib http importlib.metadata inspect
    ipaddress pathlib pickle random selectors shutil site socket ssl subprocess tempfile threading
    traceback unittest urllib zipfile
    contextlib datetime decimal enum functools json msgspec._utils re reprlib typing uuid weakref
"""
FORBIDDEN = frozenset(COSTLY.split())
# Wanted by the binding of libnftables only.
ONLY_WITH_NFTABLES = frozenset({"ctypes", "nftables", "types"})

ALL_MODULES = 112  # of everything, the interpreter's included, at most
PEAK_KIB = 20 * 1024

# Stands in for the launcher's last line: exec python -I -S run.py LINK
REPORTER = """
import os, sys
tree, link, report = sys.argv[1:]

def leave(code, leave=os._exit):
    # without the stand-ins of cni.standins that nobody has made load the real module
    modules = sorted(n for n, m in sys.modules.items() if vars(m).get("_real", m) is not None)
    with open("/proc/self/status") as status:
        peak = [line.split()[1] for line in status if line.startswith("VmHWM")][0]
    with open(report, "w") as out:
        out.write("\\n".join([peak, *modules]))
    leave(code)

os._exit = leave
sys.argv[:] = [link]
sys.path[0:0] = [tree]
import run
run.start()
"""


@dataclass(frozen=True)
class Case:
    plugin: str
    conf: dict[str, Any] = field(default_factory=dict)
    ipam: dict[str, Any] = field(default_factory=dict)
    nftables: bool = False
    pair: bool = False  # needs a veth pair: vethbudget on the host, eth0 in the container
    before: bool = False  # an ADD and a DEL come before: what they made for the node is there


HOST_LOCAL = {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]]}
DUAL = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
}
STATIC = {"type": "static", "addresses": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}
CLUSTER = {
    "type": "cluster",
    "nodeName": "n1",
    "ranges": DUAL["ranges"],
    "blockSize": 28,
    "store": {"type": "directory"},
}
CHAINED = {"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24", "gateway": "10.77.0.1"}]}
# For plugins that come after another: what that one returned.
AFTER_BRIDGE: dict[str, Any] = {
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "br77"}],
        "ips": [{"address": "10.77.0.9/24"}, {"address": "fd77::9/64"}],
    }
}
GATEWAY = {"bridge": "br77", "isGateway": True}

PAIR = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "vethbudget"}, {"name": "eth0", "sandbox": "/run/netns/pod"}],
}
RATES = {"ingressRate": 8_000_000, "egressRate": 8_000_000, "latency": 25, "prevResult": PAIR}
PORTS = {
    "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.9/24"}]},
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]},
}

CASES = {
    "bandwidth": Case("bandwidth", {**RATES, "shapedSubnets": ["10.0.0.0/8"]}, pair=True),
    "loopback": Case("loopback"),
    "host-local": Case("host-local", ipam=HOST_LOCAL),
    "static": Case("static", ipam=STATIC),
    "cluster": Case("cluster", ipam=CLUSTER, before=True),
    "cluster-claiming": Case("cluster", ipam=CLUSTER),
    "bridge": Case("bridge", {"bridge": "br77"}, HOST_LOCAL),
    "bridge-static": Case("bridge", {"bridge": "br77"}, STATIC),
    "bridge-gateway": Case("bridge", GATEWAY, DUAL),
    "bridge-masquerade": Case(
        "bridge", {**GATEWAY, "ipMasq": True, "ipMasqBackend": "nftables"}, DUAL, nftables=True
    ),
    "bridge-iptables": Case(
        "bridge", {**GATEWAY, "ipMasq": True, "ipMasqBackend": "iptables"}, DUAL
    ),
    "bridge-spoofcheck": Case("bridge", {**GATEWAY, "macspoofchk": True}, DUAL, nftables=True),
    "ptp": Case("ptp", {}, DUAL),
    "vxlan": Case("vxlan", {"vni": 77, "peers": ["192.0.2.7"]}, HOST_LOCAL),
    "tuning": Case(
        "tuning",
        {
            "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": "eth0"}]},
            "sysctl": {"net.core.somaxconn": "500", "net.ipv4.ip_forward": "1"},
        },
    ),
    "sbr": Case("sbr", {"table": 777, "prevResult": CHAINED}, pair=True),
    "route-override": Case("route-override", {"prevResult": CHAINED}, pair=True),
    "portmap": Case("portmap", PORTS, nftables=True),
    "portmap-iptables": Case("portmap", {**PORTS, "backend": "iptables"}),
    "firewall": Case("firewall", AFTER_BRIDGE),
    "firewall-isolated": Case(
        "firewall", {"ingressPolicy": "isolated", "backend": "iptables", **AFTER_BRIDGE}
    ),
    "firewall-nftables": Case("firewall", {"backend": "nftables", **AFTER_BRIDGE}, nftables=True),
}


# How many modules of cni.* each case loads: a ratchet. More is a failure, and so is fewer.
OWN_MODULES: dict[str, dict[str, int]] = {
    "bandwidth": {"ADD": 39, "CHECK": 40, "DEL": 39, "STATUS": 38, "GC": 38},
    "loopback": {"ADD": 27, "CHECK": 28, "DEL": 27, "STATUS": 26, "GC": 26, "VERSION": 19},
    "host-local": {"ADD": 31, "CHECK": 31, "DEL": 30, "STATUS": 31, "GC": 31},
    "cluster": {"ADD": 41, "CHECK": 40, "DEL": 39, "STATUS": 42, "GC": 40},
    "cluster-claiming": {"ADD": 52, "CHECK": 40, "DEL": 39, "STATUS": 55, "GC": 40},
    "static": {"ADD": 22, "CHECK": 23, "DEL": 22, "STATUS": 23, "GC": 23},
    "bridge": {"ADD": 50, "CHECK": 52, "DEL": 50, "STATUS": 48, "GC": 49},
    "bridge-static": {"ADD": 42, "CHECK": 45, "DEL": 44, "STATUS": 41, "GC": 43},
    "bridge-gateway": {"ADD": 50, "CHECK": 52, "DEL": 50, "STATUS": 48, "GC": 49},
    "bridge-masquerade": {"ADD": 57, "CHECK": 58, "DEL": 56, "STATUS": 48, "GC": 54},
    "bridge-iptables": {"ADD": 59, "CHECK": 61, "DEL": 56, "STATUS": 48, "GC": 54},
    "bridge-spoofcheck": {"ADD": 58, "CHECK": 52, "DEL": 56, "STATUS": 48, "GC": 55},
    "ptp": {"ADD": 48, "CHECK": 48, "DEL": 48, "STATUS": 46, "GC": 47},
    "vxlan": {"ADD": 58, "CHECK": 58, "DEL": 58, "STATUS": 54, "GC": 57},
    "tuning": {"ADD": 33, "CHECK": 38, "DEL": 33, "STATUS": 32, "GC": 32},
    "sbr": {"ADD": 34, "CHECK": 35, "DEL": 34, "STATUS": 33, "GC": 33},
    "route-override": {"ADD": 30, "CHECK": 31, "DEL": 28, "STATUS": 29, "GC": 29},
    "portmap": {"ADD": 44, "CHECK": 50, "DEL": 47, "STATUS": 43, "GC": 39},
    "portmap-iptables": {"ADD": 44, "CHECK": 47, "DEL": 43, "STATUS": 42, "GC": 39},
    "firewall": {"ADD": 35, "CHECK": 37, "DEL": 34, "STATUS": 35, "GC": 33},
    "firewall-isolated": {"ADD": 39, "CHECK": 40, "DEL": 34, "STATUS": 36, "GC": 33},
    "firewall-nftables": {"ADD": 36, "CHECK": 35, "DEL": 35, "STATUS": 36, "GC": 33},
}


@dataclass(frozen=True)
class Footprint:
    """What a run had loaded at its end."""

    modules: frozenset[str]
    peak_kib: int

    @property
    def own(self) -> set[str]:
        return {name for name in self.modules if name.partition(".")[0] == "cni"}

    def of(self, names: frozenset[str]) -> set[str]:
        """The loaded ones of these modules, or of modules below them."""
        return {
            module
            for module in self.modules
            if any(module == name or module.startswith(f"{name}.") for name in names)
        }


@pytest.fixture(scope="module")
def installed_tree(module_bin_dir: Path) -> Path:
    bin_dir = module_bin_dir
    build = build_of(bin_dir / "cni") if (bin_dir / "cni").exists() else None
    if build is None:
        pytest.skip("the plugins in $CNI_TEST_BIN_DIR are not ours")
    return bin_dir / f".cni-{build}"


@pytest.fixture
def case_conf(request: pytest.FixtureRequest, data_dir: Path) -> dict[str, Any]:
    case = CASES[request.node.callspec.params["name"]]
    ipam = dict(case.ipam)
    if ipam.get("type") in ("host-local", "cluster"):
        ipam["dataDir"] = str(data_dir)
    if ipam.get("type") == "cluster":
        ipam["store"] = {**ipam["store"], "path": str(data_dir / "store")}
    conf = {"cniVersion": "1.1.0", "name": "budget", "type": case.plugin, **case.conf}
    if case.plugin == "tuning":
        conf["dataDir"] = str(data_dir)
    return {**conf, "ipam": ipam} if ipam else conf


class Recorder:
    """Runs verbs and records their footprints."""

    def __init__(self, runtime: Runtime, tree: Path, report: Path) -> None:
        self.runtime, self.tree, self.report = runtime, tree, report

    def run(
        self, verb: str, conf: dict[str, Any], container: Netns | None = None
    ) -> tuple[Footprint, str]:
        """One verb: its footprint and what it printed."""
        self.report.unlink(missing_ok=True)
        link = self.runtime.bin_dir / conf["type"]
        done = self.runtime.host.run(
            subprocess.run,
            [sys.executable, "-I", "-S", "-c", REPORTER, self.tree, link, self.report],
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            env=self.runtime.environment(verb, container),
            cwd="/",
        )
        assert done.returncode == 0, f"{verb}: {done.stdout}{done.stderr}"
        peak, *modules = self.report.read_text().split()
        return Footprint(frozenset(modules), int(peak)), done.stdout


@pytest.fixture
def recorder(runtime: Runtime, installed_tree: Path, tmp_path: Path) -> Recorder:
    return Recorder(runtime, installed_tree, tmp_path / "report")


def verify(footprint: Footprint, name: str, verb: str, nftables: bool) -> None:
    what = f"{name} {verb}"
    forbidden = FORBIDDEN if nftables else FORBIDDEN | ONLY_WITH_NFTABLES
    found = footprint.of(forbidden)
    assert not found, f"{what} imports {', '.join(sorted(found))}"
    backends = {module for module in footprint.own if ".backend_" in module}
    assert verb != "ADD" or len(backends) <= 1, f"{what}: {sorted(backends)}"
    count, wanted = len(footprint.own), OWN_MODULES[name].get(verb, OWN_MODULES[name]["ADD"])
    assert count <= wanted, f"{what} loads {count}, not {wanted}: {sorted(footprint.own)}"
    assert count == wanted, f"{what} loads only {count}: lower the table, where it says {wanted}"
    assert len(footprint.modules) <= ALL_MODULES, f"{what}: {sorted(footprint.modules)}"
    assert footprint.peak_kib <= PEAK_KIB, f"{what}: {footprint.peak_kib} KiB"


def legacy_iptables(host: Netns) -> bool:
    """May the kernel have rules of iptables-legacy? Then DEL has to ask that backend, too."""
    return any(
        host.run(has_legacy_table, v6, table) for v6 in (False, True) for table in ("nat", "filter")
    )


@pytest.mark.parametrize("name", CASES)
def test_add_check_delete(
    name: str, case_conf: dict[str, Any], recorder: Recorder, container: Netns
) -> None:
    """Each verb stays inside the budget."""
    if CASES[name].pair:
        peer = ["peer", "name", "eth0", "netns", container.name]
        recorder.runtime.host.ip("link", "add", "vethbudget", "type", "veth", *peer)
    if CASES[name].before:
        recorder.run("ADD", case_conf, container)
        recorder.run("DEL", case_conf, container)
    result: dict[str, Any] | None = None
    used: set[str] = set()
    for verb in ("ADD", "CHECK", "DEL"):
        conf = case_conf if result is None else {**case_conf, "prevResult": result}
        footprint, stdout = recorder.run(verb, conf, container)
        verify(footprint, name, verb, CASES[name].nftables)
        backends = {module for module in footprint.own if ".backend_" in module}
        if verb == "ADD":
            used = backends
            assert len(used) <= 1, f"{name} ADD loads {used}"
        elif not legacy_iptables(recorder.runtime.host):
            assert backends <= used, f"{name} {verb} loads {backends}"
        if verb == "ADD":
            result = json.loads(stdout)
            result.pop("cniVersion")
            result["cniVersion"] = case_conf["cniVersion"]


@pytest.mark.parametrize("name", CASES)
def test_status_and_gc(
    name: str, case_conf: dict[str, Any], recorder: Recorder, container: Netns
) -> None:
    """Nothing is there, and nothing is valid: both find nothing to do."""
    if CASES[name].before:
        recorder.run("ADD", case_conf, container)
        recorder.run("DEL", case_conf, container)
    for verb in ("STATUS", "GC"):
        conf = {**case_conf, "cni.dev/valid-attachments": []} if verb == "GC" else case_conf
        footprint, _ = recorder.run(verb, conf)
        verify(footprint, name, verb, CASES[name].nftables)


@pytest.mark.parametrize("name", ["loopback"])
def test_version_loads_no_plugin(name: str, case_conf: dict[str, Any], recorder: Recorder) -> None:
    footprint, _ = recorder.run("VERSION", case_conf)
    verify(footprint, name, "VERSION", nftables=False)
    assert not {module for module in footprint.own if module.startswith("cni.plugins.")}
    assert len(footprint.modules) <= 78, sorted(footprint.modules)


@pytest.mark.parametrize("name", ["loopback", "host-local", "static"])
def test_only_the_plugin_that_is_asked(
    name: str, case_conf: dict[str, Any], recorder: Recorder
) -> None:
    footprint, _ = recorder.run("STATUS", case_conf)
    wanted = {"loopback": "loopback", "host-local": "host_local", "static": "static"}[name]
    plugins = {
        module.rpartition(".")[2]
        for module in footprint.own
        if module.startswith(("cni.plugins.", "cni.ipam."))
    }
    others = plugins & {"bridge", "ptp", "loopback", "host_local", "static"} - {wanted}
    assert not others
