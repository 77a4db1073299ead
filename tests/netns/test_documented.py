"""What README and docs tell people to type works: each command line and configuration is run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from cni.cli import COMMANDS
from cni.cli.group import cli
from tests.harness import Netns, Runtime
from tests.harness.build import build_dist, install_dist
from tests.harness.documented import cni_words, commands, configurations, is_syntax
from tests.harness.netns import PATH
from tests.harness.requires import ensure

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(
        str(each.relative_to(ROOT))
        for each in sorted(
            path
            for folder in ("docs", "docs/howto", "docs/plugins", "examples")
            for path in (ROOT / folder).glob("*.md")
        )
    ),
]
# What cannot run here, and why. Everything else in a block for a shell is run.
ELSEWHERE = {
    r"make\b": "tests/release and CI run make's targets",
    r"\.venv/bin/python -m|CNI_\w+=|CNI_LAB": "runs tests or the bench",
    r"systemctl\b": "needs systemd as PID 1: tests/runtime",
    r"(apt|tar|\./cni\S*|skopeo|sed)\b": "needs the files of a release: tests/release",
    r"\S+/cni install\b": "is run before everything else",
    r"(export|source|cni completion fish)\b": "needs a shell of its own: tests/netns/test_cli.py",
    r"etcdctl\b": "needs users in an etcd: tests/netns/test_cluster_etcd.py",
    r"(\$ )?kubectl\b|default--": "needs a Kubernetes API: tests/unit/test_deploy_cluster.py",
    r"cni ipam (im|ex)port whereabouts\b": "has its own: tests/unit/test_cluster_takeover.py",
    r"cni conform\b": "takes half a minute: tests/netns/test_cli_conform.py",
    r"cni ipam reconcile\b": "needs a cluster's store: tests/unit/test_cluster_reconcile.py",
    r"cni serve$|cni serve --(metrics|socket)\b": "goes on until it is ended: test_server.py",
}
# Not for a shell, although their blocks are indented as if they were.
OTHER_BLOCKS = ("docs/writing-a-plugin.md", "docs/windows.md")
NEEDS_SERVER = ("docs/server.md",)

# The node of the pages: networks, containers and links that they speak of. Everything that the
# default paths name is a directory of this mount namespace.
PREPARE = """
set -e
for directory in /etc/cni /var/lib/cni /opt/cni /etc/systemd/system /usr/local/bin; do
    mkdir -p $directory && mount -t tmpfs none $directory
done
mkdir -p /run/cni && mount -t tmpfs none /run/cni
mkdir -p /run/netns && mount -t tmpfs none /run/netns
cp -a {installed} /opt/cni/bin
ip link add eth1 type veth peer name eth1peer
ip link set eth1 up
mkdir -p /etc/cni/net.d
for network in mynet:10.80 shop:10.81; do
    cat >/etc/cni/net.d/20-${{network%:*}}.conflist <<EOF
{{"cniVersion": "1.1.0", "name": "${{network%:*}}", "plugins": [
  {{"type": "bridge", "bridge": "br-${{network%:*}}", "isGateway": true,
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "${{network#*:}}.0.0/24"}}]]}}}}]}}
EOF
done
ip netns add test
mkdir -p /var/lib/cni/networks/shop
printf 'c1\\r\\neth0' >/var/lib/cni/networks/shop/10.81.0.4
export PATH=$PATH:/opt/cni/bin
set +e
"""


SERVE = """
cni serve >/dev/null 2>&1 &
server=$!
trap "kill $server; wait $server" EXIT
for try in $(seq 600); do cni serve --status >/dev/null 2>&1 && break; sleep 0.1; done
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/cni as it is installed, which each page's node gets a copy of."""
    directory = tmp_path_factory.mktemp("pages") / "bin"
    directory.mkdir()
    return install_dist(directory, build_dist())


@pytest.mark.timeout(900)  # each command starts an interpreter, on a busy machine
@pytest.mark.parametrize("page", PAGES)
def test_command_lines(
    host: Netns, bin_dir: Path, installed: Path, tmp_path: Path, page: str
) -> None:
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    wanted = [each for each in commands(page) if each.strip() and not is_syntax(each)]
    wanted = [each for each in wanted if not why_not(each)]
    if page in OTHER_BLOCKS:
        wanted = [each for each in wanted if each.startswith("cni ")]
    if not wanted:
        return
    here = tmp_path / "here"  # for files that commands write
    here.mkdir()
    script = PREPARE.format(installed=installed)
    script += "cp /etc/cni/net.d/20-mynet.conflist 10-mynet.conflist\n"
    if page in NEEDS_SERVER:
        script += SERVE
    for number, command in enumerate(wanted):
        script += f"( {command}\n) >{tmp_path}/{number} 2>&1 </dev/null\n"
        script += f"echo $? >{tmp_path}/{number}.code\n"
    script += "ip -all netns delete 2>/dev/null; true\n"
    host.exec(
        ["unshare", "--mount", "bash", "-c", script], env={"PATH": PATH}, cwd=here, timeout=600
    )
    failures = [
        f"{command}\n{(tmp_path / str(number)).read_text()}"
        for number, command in enumerate(wanted)
        if (tmp_path / f"{number}.code").read_text() not in _expected(command)
    ]
    assert not failures, "\n".join(failures)


def why_not(command: str) -> str:
    """Why a command line cannot run here; "" if it can."""
    return next((why for form, why in ELSEWHERE.items() if re.match(form, command)), "")


def test_most_command_lines_are_run() -> None:
    shown = [each for page in PAGES for each in commands(page) if each.startswith("cni ")]
    run = [each for each in shown if not why_not(each) and not is_syntax(each)]
    assert len(run) > 35
    assert len([each for each in shown if why_not(each)]) < 8


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences(page: str) -> None:
    """`cni …` in the middle of a sentence names commands and options that exist."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(cni [^`\n]+)`", text):
        words = cni_words(span)
        for name in words[0].split("|") if words else ():
            if not name.startswith(("-", "…", "COMMAND")):
                check_options(name, words[1:], f"{page}: {span}")


def _expected(command: str) -> tuple[str, ...]:
    """`cni doctor`, `validate` and `test` have exit code 1 when they find something."""
    is_judge = command.startswith(("cni doctor", "cni validate", "cni test"))
    return ("0\n", "1\n") if is_judge else ("0\n",)


@pytest.mark.parametrize("page", PAGES)
def test_syntax(page: str) -> None:
    """Commands and options in lines of syntax exist; and all commands are in the overview."""
    seen = set()
    lines = [each for each in commands(page) if is_syntax(each)]
    if page == "docs/cli.md":
        lines += overview()
    for line in lines:
        for part in re.split(r"\s{2,}(?=cni )|; *(?=cni )", line):
            if not part.startswith("cni "):
                continue
            words = cni_words(part)
            for name in words[0].split("|"):
                if not name.startswith("-"):
                    seen.add(name)
                    check_options(name, words[1:], part)
    if page == "docs/cli.md":
        assert seen >= set(COMMANDS)


def overview() -> list[str]:
    text = (ROOT / "docs/cli.md").read_text()
    block = re.search(r"^```\n(cni add.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return [part for line in block[1].splitlines() for part in re.split(r"\s{2,}(?=cni )", line)]


def check_options(name: str, words: list[str], line: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, line
    while isinstance(command, click.Group) and words:
        for sub in words[0].split("|"):
            inner = command.get_command(click.Context(command), sub)
            if inner is not None:
                command, words = inner, words[1:]
                break
        else:
            break
    known = {option for parameter in command.params for option in parameter.opts}
    for word in words:
        for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", word):
            assert option in known or command.name == "daemon", f"{option} in: {line}"


EXAMPLES = [
    (name, line.strip().removeprefix("Examples:").removeprefix("Example:").strip())
    for name in COMMANDS
    for line in (getattr(cli.get_command(click.Context(cli), name), "help", "") or "").splitlines()
    if re.match(r"\s*(Examples?:)?\s*cni \S", line)
]


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_examples_of_the_help(name: str, line: str) -> None:
    words = shlex.split(line.partition(" | ")[0].partition(" >")[0])[1:]
    if words[0] == name:
        check_options(name, words[1:], line)


EVERYWHERE = [
    (page, number, conf)
    for page in PAGES
    for number, conf in enumerate(configurations(page))
    if ("type" in conf or "plugins" in conf) and "/win-" not in page  # whose plugins need Windows
]


def test_configurations_are_valid(host: Netns, bin_dir: Path, tmp_path: Path) -> None:
    """`cni validate` knows every key and value of every configuration that the pages show."""
    if not (bin_dir / "cni").exists():
        pytest.skip("these are not our plugins")
    assert len(EVERYWHERE) > 20
    shown = {}
    for page, number, conf in EVERYWHERE:
        name = f"{Path(page).stem}-{number}"
        path = tmp_path / f"{name}.conflist"
        path.write_text(json.dumps({**chain(name, conf, tmp_path), "name": name}))
        shown[str(path)] = page
    env = {"PATH": PATH, "NETCONFPATH": str(tmp_path / "none"), "CNI_PATH": str(bin_dir)}
    argv = [str(bin_dir / "cni"), "validate", "-o", "json", *shown]
    done = host.exec(argv, check=False, env=env, cwd="/")
    wrong = [
        f"{shown[each['file']]}: {each['message']}"
        for each in json.loads(done.stdout)["findings"]
        if each["severity"] == "error" and not OF_THE_NODE.search(each["message"])
    ]
    assert not wrong, "\n".join(wrong)


# What is wrong with this node, not with the configuration; and ranges that pages use twice.
OF_THE_NODE = re.compile(r"no link|not there|overlap|kernel|missing|no such|does not exist")

META = ("portmap", "firewall", "tuning", "bandwidth", "sbr", "vrf", "route-override", "sample")
META += ("tc-redirect-tap",)
FEATURES = {
    "vlan": "vlan",
    "ipvlan": "ipvlan",
    "dummy": "dummy",
    "vrf": "vrf",
    "tc-redirect-tap": "tc-redirect-tap",
    "macvlan": "macvlan",
    "macvtap": "macvtap",
    "vxlan": "vxlan",
    "wireguard": "wireguard",
}
# Why a page's configuration is not run here.
NOT_HERE = {
    "dhcp": "needs a DHCP server: tests/netns/test_dhcp.py",
    "whereabouts": "needs a cluster's store: tests/unit/test_cluster_as_whereabouts.py",
    "slaac": "needs a router: tests/netns/test_slaac.py",
    "flannel": "needs flanneld's file: tests/netns/test_flannel.py",
    "bond": "names devices of a certain node: tests/lab/test_bond.py",
    "host-device": "names a device of a certain node",
    "sriov": "needs a card with virtual functions: tests/unit/test_sriov.py",
    "win-bridge": "needs Windows",
    "win-overlay": "needs Windows",
    "tuning": "sets offloads of a certain driver",
    "macvlan": "needs a DHCP server: tests/netns/test_macvlan.py",
}
SHOWN = [
    (path.stem, number, conf)
    for path in sorted((ROOT / "docs/plugins").glob("*.md"))
    for number, conf in enumerate(configurations(f"docs/plugins/{path.name}"))
]


def chain(name: str, conf: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    """The configuration as a list that can run: a plugin alone has one that makes an interface."""
    plugins = conf.get("plugins") or [conf]
    first = plugins[0]
    if "type" not in first:
        plugins = [{"type": "bridge", "bridge": "br0", **first}]
    elif first["type"] in META:
        ipam = {"type": "host-local", "subnet": "10.90.0.0/24"}
        plugins = [{"type": "bridge", "bridge": "br0", "isGateway": True, "ipam": ipam}, *plugins]
    elif first["type"] in ("host-local", "static"):
        plugins = [{"type": "bridge", "bridge": "br0", "ipam": first}]
    text = json.dumps({"cniVersion": "1.0.0", "name": f"doc-{name}", **conf, "plugins": plugins})
    made: dict[str, Any] = json.loads(text)
    for plugin in made["plugins"]:
        ipam = plugin.get("ipam", {})
        if ipam.get("type") in ("host-local", "cluster"):
            ipam["dataDir"] = str(data_dir)
        if ipam.get("type") == "cluster":  # with etcd: tests/netns/test_cluster_etcd.py
            ipam["store"] = {"type": "directory", "path": str(data_dir / "shared")}
        if plugin.get("peersFrom"):  # with etcd: tests/netns/test_vxlan_peers.py
            plugin["store"] = {"type": "directory", "path": str(data_dir / "shared")}
        if plugin["type"] == "wireguard":
            plugin["privateKeyFile"] = str(data_dir / "key")
    return made


@pytest.mark.parametrize(("name", "number", "conf"), SHOWN, ids=lambda each: str(each)[:20])
def test_configurations(
    runtime: Runtime,
    host: Netns,
    container: Netns,
    tmp_path: Path,
    name: str,
    number: int,
    conf: dict[str, Any],
) -> None:
    if name in NOT_HERE:
        pytest.skip(NOT_HERE[name])
    if name in FEATURES:
        ensure([FEATURES[name]])
    if name == "tap":  # its page says that the container has to have the bridge
        container.ip("link", "add", "br0", "type", "bridge")
    masters = {str(plugin.get("master") or "") for plugin in conf.get("plugins") or [conf]} | {
        "eth0"
    }
    for master in masters - {""}:
        host.ip_batch(f"link add {master} type veth peer name p-{master}", f"link set {master} up")
    if conf.get("peersFrom"):  # the others learn the address of this link
        host.ip("address", "add", "192.0.2.11/24", "dev", conf["dev"])
    network = chain(name, conf, tmp_path)
    result = runtime.add_list(network, container)
    if name != "sample":  # whose CHECK says that it is not implemented
        runtime.check_list(network, container, result)
    runtime.delete_list(network, container, result)


def test_there_is_enough(request: pytest.FixtureRequest) -> None:
    assert len(SHOWN) > 15
    assert len(EXAMPLES) > 15
