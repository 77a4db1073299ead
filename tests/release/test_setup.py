"""tools/setup.sh and the sets of packages: what is installed neither starts nor is enabled.

Each test has a machine of its own: an overlay over this one's files, in a mount namespace. dpkg is
the real one; apt-get is a stand-in that hands it packages which the test has built.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POLICY = "usr/sbin/policy-rc.d"
WANTS = "etc/systemd/system/multi-user.target.wants"

APT = """#!/bin/sh
echo "$*" >>/pool/apt.log
case " $* " in *" install "*) ;; *) exit 0 ;; esac
for word; do
    [ -f "/pool/$word.deb" ] || continue
    dpkg -i "/pool/$word.deb" || exit 100
done
"""
POSTINST = """#!/bin/sh
set -e
deb-systemd-helper enable {name}.service >/dev/null
update-rc.d {name} defaults
deb-systemd-invoke start {name}.service || true
invoke-rc.d {name} start || true
{more}
"""
WAITING = "touch /pool/here; while [ ! -e /pool/go ]; do sleep .1; done"
SLOWLY = "sh /pool/setup.sh cni-test-slow"
SYSTEMCTL = """#!/bin/sh
case " $* " in
    *" start "*) echo "systemctl $*" >>/pool/started ;;
    *) exec /usr/bin/systemctl "$@" ;;
esac
"""
INIT = """#!/bin/sh
### BEGIN INIT INFO
# Provides: {name}
# Required-Start:
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
### END INIT INFO
echo "init {name} $*" >>/pool/started
"""


class Machine:
    """A root directory with this machine's files, in which a test may change everything."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.pool = self.root / "pool"
        self.keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", self._mounts(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == "ready\n"

    def _mounts(self, base: Path) -> str:
        overlay = "lowerdir=/,upperdir=upper,workdir=work"
        return f"""
            mount -t tmpfs none {base}; cd {base}; mkdir upper work root
            mount -t overlay overlay -o {overlay} root
            mount --rbind /proc root/proc; mount --rbind /dev root/dev
            mkdir root/pool root/bin-first; cp {ROOT}/tools/setup.sh root/pool
            echo ready; read _"""

    def command(self, *words: str) -> list[str]:
        enter = ["nsenter", "-t", str(self.keeper.pid), "-m", "chroot", str(self.root)]
        return [*enter, "env", "PATH=/bin-first:/usr/sbin:/usr/bin:/sbin:/bin", *words]

    def run(self, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = self.command(*words)
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=100)

    def sh(self, script: str) -> str:
        done = self.run("sh", "-ec", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        script = 'mkdir -p "$(dirname "/$1")"; rm -f "/$1"; cat >"/$1"; chmod "$2" "/$1"'
        done = self.run("sh", "-ec", script, "sh", path, f"{mode:o}", text=text)
        assert done.returncode == 0, done.stderr

    def setup(self, *packages: str) -> subprocess.CompletedProcess[str]:
        return self.run("sh", "/pool/setup.sh", *packages)

    def daemon(self, name: str, more: str = "", version: str = "1") -> None:
        """Put a package into the pool whose service starts and is enabled when it is installed."""
        tree = f"pool/tree-{name}"
        self.write(
            f"{tree}/DEBIAN/control",
            f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
            "Maintainer: nobody <nobody@example.org>\nDescription: a service\n",
        )
        self.write(f"{tree}/DEBIAN/postinst", POSTINST.format(name=name, more=more), 0o755)
        unit = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
        self.write(
            f"{tree}/lib/systemd/system/{name}.service", f"{unit}Alias=dbus-{name}.service\n"
        )
        self.write(f"{tree}/etc/init.d/{name}", INIT.format(name=name), 0o755)
        self.sh(f"dpkg-deb --build /{tree} /pool/{name}.deb; rm -r /{tree}")

    def enabled(self) -> set[str]:
        out = self.sh("find /etc/systemd /etc/rc?.d -type l")
        return {each for each in out.splitlines() if "/K" not in each}

    def reads(self, path: str) -> str | None:
        done = self.run("cat", f"/{path}")
        return done.stdout if done.returncode == 0 else None

    def end(self) -> None:
        self.keeper.communicate("\n", timeout=10)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid():
        pytest.skip("needs root, for a mount namespace")
    made = Machine(tmp_path)
    try:
        made.write("bin-first/apt-get", APT, 0o755)
        made.write("bin-first/systemctl", SYSTEMCTL, 0o755)
        made.sh(f"rm -f /{POLICY}")
        yield made
    finally:
        made.end()


def test_a_service_is_neither_started_nor_enabled(machine: Machine) -> None:
    machine.daemon("cni-test-a")
    machine.daemon("cni-test-b")
    before = machine.enabled()
    done = machine.setup("cni-test-a", "cni-test-b")
    assert done.returncode == 0, done.stderr
    assert machine.sh("dpkg-query -W -f '${Status}' cni-test-b") == "install ok installed"
    assert machine.enabled() == before
    assert "start" not in (machine.reads("pool/started") or "")
    assert machine.reads(POLICY) is None
    assert "cni-test-a.service is not enabled" in done.stdout


def test_the_stand_in_package_does_start_and_is_enabled_otherwise(machine: Machine) -> None:
    machine.daemon("cni-test-a")
    machine.sh("dpkg -i /pool/cni-test-a.deb")
    assert f"/{WANTS}/cni-test-a.service" in machine.enabled()
    assert "start cni-test-a.service" in (machine.reads("pool/started") or "")


def test_a_later_upgrade_does_not_enable_it(machine: Machine) -> None:
    machine.daemon("cni-test-a")
    before = machine.enabled()
    machine.setup("cni-test-a")
    helper = "if deb-systemd-helper --quiet was-enabled cni-test-a.service; then echo yes; fi"
    assert machine.sh(helper) == ""
    assert machine.enabled() == before


def test_what_was_enabled_stays(machine: Machine) -> None:
    """Also a unit that its package enables only now, when it is upgraded on the way."""
    machine.daemon("cni-test-old")
    machine.sh("dpkg -i /pool/cni-test-old.deb")
    alias = f"ln -s /lib/systemd/system/cni-test-old.service /{WANTS}/cni-test-new-link.service"
    before = machine.enabled()
    machine.daemon("cni-test-a", more=alias)
    done = machine.setup("cni-test-a")
    assert done.returncode == 0, done.stderr
    assert machine.enabled() == before | {f"/{WANTS}/cni-test-new-link.service"}


@pytest.mark.parametrize("code", [101, 0])
def test_a_policy_that_was_there_comes_back(machine: Machine, code: int) -> None:
    policy = f"#!/bin/sh\n# mine\nexit {code}\n"
    machine.write(POLICY, policy, 0o751)
    machine.daemon("cni-test-a")
    assert machine.setup("cni-test-a").returncode == 0
    assert machine.reads(POLICY) == policy
    assert machine.sh(f"stat -c %a /{POLICY}; ls /{POLICY}*") == f"751\n/{POLICY}\n"
    assert "start" not in (machine.reads("pool/started") or "")


def test_a_failed_installation_leaves_nothing_enabled(machine: Machine) -> None:
    machine.daemon("cni-test-a", more="exit 1")
    before = machine.enabled()
    done = machine.setup("cni-test-a")
    assert done.returncode == 100
    assert machine.enabled() == before
    assert machine.reads(POLICY) is None


def await_file(machine: Machine, path: str) -> None:
    for _ in range(1000):
        if machine.reads(path) is not None:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not come")


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_run(machine: Machine, by: signal.Signals) -> None:
    """A signal undoes what is done; what SIGKILL leaves, the next run puts right."""
    policy = "#!/bin/sh\n# mine\nexit 0\n"
    machine.write(POLICY, policy, 0o755)
    machine.daemon("cni-test-slow", more=WAITING)
    before = machine.enabled()
    command = machine.command("sh", "-c", f"echo $$ >/pool/pid; exec {SLOWLY}")
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    await_file(machine, "pool/here")
    os.kill(int(machine.reads("pool/pid") or ""), by)
    machine.write("pool/go", "")
    assert run.wait(60) != 0
    if by == signal.SIGKILL:
        assert machine.reads(POLICY) != policy
        machine.sh("while pgrep -f '[d]pkg -i /pool' >/dev/null; do sleep 0.1; done")
        machine.daemon("cni-test-b")
        assert machine.setup("cni-test-b").returncode == 0
    else:
        assert machine.enabled() == before
    assert machine.reads(POLICY) == policy


def test_nothing_is_asked_when_all_is_there(machine: Machine) -> None:
    done = machine.setup("dpkg", "coreutils")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.reads("pool/apt.log") is None


# --- the sets ------------------------------------------------------------------------------------

SERVICES = re.compile(
    r"firewalld|dbus|kea|radvd|dnsmasq|containerd|podman|runc|conmon|containernetworking|systemd"
    r"|wine|iperf|tcpdump|conntrack|ipset"
)


def packages(target: str, tree: Path) -> set[str]:
    """What `make target` would hand to tools/setup.sh in a fresh checkout."""
    done = subprocess.run(
        ["make", "-n", target, "IMAGE=x"], cwd=tree, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^tools/setup\.sh (.*)$", done.stdout, re.MULTILINE)
    assert lines, done.stdout
    return {word for line in lines for word in line.split()}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("fresh") / "tree"
    leave = shutil.ignore_patterns(".git", ".cache", ".venv", "dist", ".*_cache", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=leave, symlinks=True)
    return tree


@pytest.mark.parametrize("target", ["build", "demo", "release", "venv", "lint", "build-windows"])
def test_building_installs_no_service(fresh: Path, target: str) -> None:
    assert not {name for name in packages(target, fresh) if SERVICES.match(name)}


def test_each_target_installs_its_own(fresh: Path) -> None:
    build, demo = packages("build", fresh), packages("demo", fresh)
    assert "python3-venv" in build
    assert demo - build == {"iproute2", "iputils-ping", "nftables"}
    test = packages("test", fresh)
    assert {"firewalld", "kea-dhcp4-server", "containernetworking-plugins"} <= test
    assert "podman" not in test
    assert {"podman", "containerd"} <= packages("test-runtime", fresh)
    emulated = packages("test-aarch64", fresh)
    assert "qemu-system-arm" in emulated - test
    debian = packages("test-debian", fresh)
    assert "qemu-system-x86" in debian - test
    others = packages("test-runtime", fresh) | packages("release", fresh) | emulated | debian
    assert packages("setup", fresh) == test | others
