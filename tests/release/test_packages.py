"""The archive and the packages: what they put where, and that nothing remains of them."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.artifact import is_stub
from tools.release import layout
from tools.release.debian import deb as write_deb
from tools.release.rpm import rpm as write_rpm
from tools.release.source import Source

ROOT = Path(__file__).parents[2]

BIN = "opt/cni/bin"
UNITS = {
    "cni.service",
    "cni.socket",
    "cni-reload.service",
    "cni-reload-watch.service",
    "cni-dhcp.service",
    "cni-dhcp.socket",
}


def version_of(program: Path) -> dict[str, object]:
    """What the plugin at this path answers to VERSION."""
    env = {"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin", "CNI_SERVER": "off"}
    done = subprocess.run(
        [program], input="{}", env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


# --- the archive ---------------------------------------------------------------------------------


@pytest.fixture
def unpacked(released: Path, tmp_path: Path) -> Path:
    (archive,) = released.glob("*-amd64-*.tgz")
    target = tmp_path / "unpacked"
    target.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", target], check=True)
    return target


def test_the_archive_is_flat_as_the_reference_s(released: Path) -> None:
    for archive in released.glob("*.tgz"):
        with tarfile.open(archive) as opened:
            members = opened.getmembers()
            program = opened.extractfile(members[1])
            assert program is not None
            is_native = program.read(4) == b"\x7fELF"  # else a stand-in: see the fixture
        assert [members[0].name, members[1].name] == [".", "./cni"]
        names = [each.name.removeprefix("./") for each in members[1:]]
        assert all("/" not in name for name in names)
        plugins = set(names) - {"cni", *layout.DOCUMENTS, "LICENSES"}
        assert {"bridge", "ptp", "host-local", "dhcp", "portmap", "loopback"} <= plugins
        assert "whereabouts" not in plugins, "unpacking would replace a plugin that gives addresses"
        files = [each for each in members if each.name.removeprefix("./") in plugins]
        assert {(each.uid, each.gid) for each in members} == {(0, 0)}
        if not is_native:
            assert {each.linkname for each in files} == {"cni"}
            continue
        assert all(each.isreg() and each.size < 200_000 for each in files), "not for each by itself"
        assert {each.mode for each in [members[1], *files]} == {0o755}


@pytest.mark.parametrize(
    "command",
    [
        "cp $from/cni $from/bridge .",
        "cp $from/bridge .",
        "cp -L $from/bridge .",
        "cp -r $from/* .",
        "cp -a $from/. .",
        "cp -rL $from/. .",
        "mv $from/* .",
        "install -m 755 $from/bridge .",
        "install -m 755 $from/* .",
        "tar -C $from -ch . | tar -x",
        "cat $from/bridge >bridge && chmod 755 bridge",
        "busybox cp -r $from/* .",
        "mv $from/bridge $from/cni .",
        "cp -a $from/bridge $from/cni .",
        "tar -C $from -c . | tar -x ./bridge ./cni",
        "for each in $from/*; do cp $each ./new && mv new ./$(basename $each); done",
    ],
)
def test_a_plugin_works_however_it_was_copied(unpacked: Path, tmp_path: Path, command: str) -> None:
    """One by one, all of them: as tools fill /opt/cni/bin. `cni` has to come along."""
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(
        ["sh", "-ec", command], cwd=target, env={**os.environ, "from": str(unpacked)}, check=True
    )
    if not (target / "cni").exists():
        with pytest.raises(AssertionError, match="it is missing beside this file: copy it there"):
            version_of(target / "bridge")
        shutil.copy(unpacked / "cni", target)
    shutil.rmtree(unpacked)
    assert "supportedVersions" in version_of(target / "bridge")


# --- the packages --------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root directory with a shell and the directories of every system, and nothing else."""
    if os.geteuid():
        pytest.skip("needs root, for chroot")
    root = tmp_path / "root"
    system = ("usr/bin", "usr/lib/systemd/system", "usr/share/doc", "var/lib", "var/tmp")
    manual = (f"usr/share/man/man{section}" for section in (1, 5, 8))
    for name in ("bin", "tmp", "opt", *system, *manual):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    for name in ("sh", "rm", "ls", "cat"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "var/lib/dpkg/info").mkdir(parents=True)
    (root / "var/lib/dpkg/updates").mkdir()
    (root / "var/lib/dpkg/status").touch()
    return root


def state(root: Path) -> set[str]:
    """Every path below `root` but the package managers' notes."""
    paths = {str(each.relative_to(root)) for each in root.rglob("*")}
    return {
        p for p in paths if not p.startswith(("var/lib/dpkg", "var/lib/rpm", "usr/lib/sysimage"))
    }


Manager = Callable[..., subprocess.CompletedProcess[str]]


def dpkg(root: Path, released: Path) -> Manager:
    (package,) = released.glob("*_amd64.deb")
    verbs = {"install": ["--install", str(package)], "remove": ["--remove", layout.NAME]}
    verbs["purge"] = ["--purge", layout.NAME]
    verbs["verify"] = ["--verify", layout.NAME]

    def call(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["dpkg", f"--root={root}", f"--admindir={root}/var/lib/dpkg"]
        command += ["--force-not-root", *words, *verbs.get(verb, [])]
        return subprocess.run(command, capture_output=True, text=True)

    return call


def rpm(root: Path, released: Path) -> Manager:
    (package,) = released.glob("*.x86_64.rpm")
    # Nothing in the root provides /bin/sh, as packages see it.
    verbs = {"install": ["--nodeps", "--upgrade", str(package)], "remove": ["--erase", layout.NAME]}
    verbs["verify"] = ["--nodeps", "--verify", layout.NAME]
    verbs["purge"] = ["--query", "--all"]

    def call(verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["rpm", "--force-debian", "--root", str(root), "--dbpath", "/var/lib/rpm"]
        command += [*words, *verbs[verb]]
        return subprocess.run(command, capture_output=True, text=True)

    return call


@pytest.fixture(params=[dpkg, rpm], ids=["deb", "rpm"])
def manager(request: pytest.FixtureRequest, root: Path, released: Path) -> Manager:
    made: Manager = request.param(root, released)
    return made


def test_installed_and_removed(manager: Manager, root: Path) -> None:
    before = state(root)
    done = manager("install")
    assert done.returncode == 0, done.stderr
    assert (root / BIN / "cni").stat().st_mode & 0o7777 == 0o755
    assert is_stub(root / BIN / "bridge")
    assert (root / "usr/bin/cni").resolve() == root / BIN / "cni"
    assert "supportedVersions" in version_of(root / BIN / "bridge")
    assert {each.name for each in root.glob("usr/lib/systemd/system/*")} >= UNITS
    manual = {str(each.relative_to(root)) for each in root.glob("usr/share/man/*/*")}
    assert {"usr/share/man/man1/cni.1.gz", "usr/share/man/man8/cni-bridge.8.gz"} <= manual
    assert manager("verify").stdout == ""
    assert state(root) - before != set()

    done = manager("remove")
    assert done.returncode == 0, done.stderr
    assert manager("purge").returncode == 0
    assert state(root) - before == set()
    assert "attachments" not in done.stdout + done.stderr


def test_no_unit_is_enabled(manager: Manager, root: Path) -> None:
    assert manager("install").returncode == 0
    links = [each for each in root.rglob("*") if each.is_symlink() and "systemd" in str(each)]
    assert links == []


def test_units_name_the_installed_file(manager: Manager, root: Path) -> None:
    assert manager("install").returncode == 0
    for unit in root.glob("usr/lib/systemd/system/*"):
        text = unit.read_text()
        assert "@" not in text.replace("@.service", ""), unit
        assert "Written by" not in text
        for line in text.splitlines():
            if line.startswith("Exec"):
                program = line.partition("=")[2].split()[0]
                assert (root / program.lstrip("/")).exists(), line


def test_removal_warns_of_attachments(manager: Manager, root: Path) -> None:
    """It goes on, and takes away nothing that a later DEL needs."""
    assert manager("install").returncode == 0
    results = root / "var/lib/cni/results"
    leases = root / "var/lib/cni/networks/net/10.1.2.3"
    for file in (results / "net-a-eth0", results / "net-b-eth0", leases):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    done = manager("remove")
    assert done.returncode == 0, done.stderr
    assert "2 attachments of containers" in done.stdout + done.stderr
    assert leases.exists()
    assert len(list(results.iterdir())) == 2
    assert not (root / BIN).exists()


def test_over_cni_install_it_is_refused(manager: Manager, root: Path) -> None:
    """Its notes and the plugins that it has put aside would be orphaned."""
    (root / BIN).mkdir(parents=True)
    (root / BIN / ".cni-manifest.json").write_text("{}")
    (root / BIN / "cni").write_text("installed by hand")
    done = manager("install")
    assert done.returncode != 0
    assert '"/opt/cni/bin/cni uninstall"' in done.stdout + done.stderr
    assert (root / BIN / "cni").read_text() == "installed by hand"
    assert not (root / BIN / "bridge").exists()


def test_installed_twice(manager: Manager, root: Path) -> None:
    """A repeated installation is an upgrade: nothing is removed, stopped or warned of."""
    assert manager("install").returncode == 0
    (root / "var/lib/cni/results").mkdir(parents=True)
    (root / "var/lib/cni/results/net-a-eth0").write_text("{}")
    before = state(root)
    force = ["--force", "--replacepkgs"] if manager.__qualname__.startswith("rpm") else []
    done = manager("install", *force)
    assert done.returncode == 0, done.stderr
    assert state(root) == before
    assert "attachments" not in done.stdout + done.stderr


OLD = b'#!/bin/sh\necho \'{"cniVersion":"1.1.0","supportedVersions":["0.3.1"]}\'\n'


def older(manager: Manager, target: Path) -> Path:
    """A package of version 0.0.1 whose file answers otherwise, with a plugin that is gone now."""
    source = Source("0.0.1", "0" * 40, 1_600_000_000)
    package = layout.package(OLD, ("bridge", "former"), ROOT, {}, {})
    if manager.__qualname__.startswith("rpm"):
        target.write_bytes(write_rpm(package, "x86_64", source, "Apache-2.0"))
    else:
        target.write_bytes(write_deb(package, "amd64", source))
    return target


def install_from(manager: Manager, root: Path, package: Path) -> subprocess.CompletedProcess[str]:
    """Install another package than the release's."""
    if manager.__qualname__.startswith("rpm"):
        command = ["rpm", "--force-debian", "--root", str(root), "--dbpath", "/var/lib/rpm"]
        command += ["--nodeps", "--upgrade", "--oldpackage", str(package)]
    else:
        command = ["dpkg", f"--root={root}", f"--admindir={root}/var/lib/dpkg"]
        command += ["--force-not-root", "--install", str(package)]
    return subprocess.run(command, capture_output=True, text=True)


class Watch:
    """Looks all the time whether a runtime would find a plugin."""

    def __init__(self, plugin: Path) -> None:
        self.looks, self.missing = 0, 0
        self._plugin, self._over = plugin, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.is_set():
            self.looks += 1
            self.missing += not self._plugin.exists()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_upgraded_and_back(manager: Manager, root: Path, tmp_path: Path) -> None:
    """From an older version and to it: a runtime finds a plugin at any time, and none is left over.

    Notes of attachments stay, and nobody is told that they are in danger.
    """
    old = older(manager, tmp_path / "old.package")
    done = install_from(manager, root, old)
    assert done.returncode == 0, done.stderr
    bridge, former = root / BIN / "bridge", root / BIN / "former"
    assert version_of(bridge)["supportedVersions"] == ["0.3.1"]
    note = root / "var/lib/cni/results/net-a-eth0"
    note.parent.mkdir(parents=True)
    note.write_text("{}")

    with Watch(bridge) as watch:
        done = manager("install")
    assert done.returncode == 0, done.stderr
    assert "attachments" not in done.stdout + done.stderr
    assert "1.1.0" in str(version_of(bridge)["supportedVersions"])
    assert not os.path.lexists(former)
    assert manager("verify").stdout == ""

    with Watch(bridge) as back:
        done = install_from(manager, root, old)
    assert done.returncode == 0, done.stderr
    assert version_of(bridge)["supportedVersions"] == ["0.3.1"]
    assert former.exists()
    assert not os.path.lexists(root / BIN / "host-local")
    assert note.read_text() == "{}"
    assert watch.looks
    assert back.looks
    assert watch.missing + back.missing == 0


def test_the_deb_takes_kubernetes_cni_s_place(root: Path, released: Path, tmp_path: Path) -> None:
    """kubelet, which depends on kubernetes-cni, stays configured."""
    call = dpkg(root, released)
    for name, fields in (
        ("kubernetes-cni", "Version: 1.4.0\n"),
        ("kubelet", "Version: 1.30\nDepends: kubernetes-cni (>= 1.2.0)\n"),
    ):
        tree = tmp_path / name
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\n{fields}Architecture: amd64\nMaintainer: n <n@example.org>\n"
        (tree / "DEBIAN/control").write_text(f"{control}Description: x\n")
        if name == "kubernetes-cni":
            (tree / BIN).mkdir(parents=True)
            (tree / BIN / "bridge").write_text("the Go plugin")
            (tree / BIN / "other").write_text("what we do not have")
        subprocess.run(
            ["dpkg-deb", "--build", tree, f"{tree}.deb"], check=True, capture_output=True
        )
        assert call("", "--install", f"{tree}.deb").returncode == 0
    (package,) = released.glob("*_amd64.deb")
    done = call("", "--auto-deconfigure", "--install", str(package))
    assert done.returncode == 0, done.stdout + done.stderr
    assert is_stub(root / BIN / "bridge")
    listed = subprocess.run(
        ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Status}\n"],
        capture_output=True,
        text=True,
    ).stdout
    assert "kubelet install ok installed" in listed
    assert f"{layout.NAME} install ok installed" in listed
    assert "kubernetes-cni install" not in listed


def test_a_prerelease_comes_before_its_release() -> None:
    from tools.release.source import Source

    order = [
        Source(v, "", 0).package_version for v in ("0.2.0-rc.1", "0.2.0-rc.2", "0.2.0", "0.2.1")
    ]
    for older, newer in itertools.pairwise(order):
        assert subprocess.run(["dpkg", "--compare-versions", older, "lt", newer]).returncode == 0
        script = f'%{{lua:print(rpm.vercmp("{older}","{newer}"))}}'
        done = subprocess.run(["rpm", "--eval", script], capture_output=True, text=True)
        assert done.stdout.strip() == "-1"


def test_the_packages_fields(released: Path) -> None:
    (deb,) = released.glob("*_arm64.deb")
    done = subprocess.run(["dpkg-deb", "--field", deb], capture_output=True, text=True, check=True)
    fields = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert fields["Architecture"] == "arm64"
    assert fields["Provides"] == f"kubernetes-cni (= {layout.REFERENCE})"
    assert fields["Conflicts"] == fields["Replaces"] == "kubernetes-cni"
    (rpm_file,) = released.glob("*.aarch64.rpm")
    query = "%{ARCH} %{OS} %{BUILDHOST} [%{PROVIDES} ] [%{CONFLICTS} ] %{LICENSE}"
    done = subprocess.run(
        ["rpm", "--query", "--package", "--queryformat", query, rpm_file],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("aarch64 linux localhost ")
    assert done.stdout.count("kubernetes-cni") == 2
    assert "Apache-2.0 AND BSD-3-Clause AND MIT" in done.stdout


def test_the_deb_s_control_archive_is_root_s(released: Path) -> None:
    (deb,) = released.glob("*_amd64.deb")
    for option in ("--ctrl-tarfile", "--fsys-tarfile"):
        data = subprocess.run(["dpkg-deb", option, deb], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert {(m.uid, m.gid) for m in archive} == {(0, 0)}
            assert not [m.name for m in archive if m.mode & 0o022 and not m.issym()]
