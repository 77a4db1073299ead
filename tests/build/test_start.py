"""Starting: from wherever a runtime calls it, with as little around it as a runtime gives."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from cni.artifact import is_stub
from cni.startup_error import remedy
from tests.harness.build import ROOT

from .running import (
    PYTHON,
    READ_ONLY,
    VERSION,
    build_id,
    error,
    in_mounts,
    install,
    need,
    pythons,
    run,
    supported,
    uninstall,
)

if TYPE_CHECKING:
    from pathlib import Path

# What os-release(5) says on some systems: all but names, colours and addresses.
SYSTEMS = {
    "debian-12": 'ID=debian\nVERSION_ID="12"\n',
    "debian-11": 'ID=debian\nVERSION_ID="11"\n',
    "debian-testing": 'PRETTY_NAME="Debian GNU/Linux trixie/sid"\nID=debian\n',
    "ubuntu-22.04": 'VERSION_ID="22.04"\nID=ubuntu\nID_LIKE=debian\n',
    "ubuntu-24.04": 'VERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n',
    "rhel-9": 'ID="rhel"\nID_LIKE="fedora"\nVERSION_ID="9.4"\n',
    "almalinux-10": 'ID="almalinux"\nID_LIKE="rhel centos fedora"\nVERSION_ID="10.0"\n',
    "amazon-2023": 'ID="amzn"\nID_LIKE="fedora"\nVERSION_ID="2023"\n',
    "amazon-2": 'ID="amzn"\nID_LIKE="centos rhel fedora"\nVERSION_ID="2"\n',
    "sles-15": 'ID="sles"\nID_LIKE="suse"\nVERSION_ID="15.6"\n',
    "fedora": "ID=fedora\nVERSION_ID=42\nVARIANT_ID=cloud\n",
    "fedora-coreos": "ID=fedora\nVERSION_ID=42\nVARIANT_ID=coreos\n",
    "alpine": "ID=alpine\nVERSION_ID=3.22.0\n",
    "flatcar": "ID=flatcar\nID_LIKE=coreos\nVERSION_ID=4230.2.1",
    "bottlerocket": 'ID=bottlerocket\nVERSION_ID="1.40.0"\nVARIANT_ID=aws-k8s-1.33\n',
    "cos": "ID=cos\nVERSION_ID=117\n",
    "another": 'ID=another\nVERSION_ID=1\nHOME_URL="https://example.com/?a=b"\n',
    "hostile": "ID=$(touch /hostile)\nVERSION_ID=`touch /hostile`\nID_LIKE=\"a'b\n",
    "empty": "",
}
GETCWD = "sh: 0: getcwd() failed: No such file or directory"
SPEC_VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.fixture(
    params=["installed", "link elsewhere", "archive", "two links", "script", "script's archive"]
)
def plugin(
    request: pytest.FixtureRequest,
    dist: Path,
    script_dist: Path,
    installed: Path,
    installed_script: Path,
    tmp_path: Path,
) -> Path:
    """A plugin's path, in each of the ways in which it may lead to the file."""
    link = tmp_path / "bridge"
    match request.param:
        case "script":
            return installed_script / "bridge"
        case "script's archive":
            link.symlink_to(script_dist)
        case "installed":
            return installed / "bridge"
        case "link elsewhere":
            link.symlink_to(installed / "cni")
        case "two links":
            (tmp_path / "other").symlink_to(installed)
            link.symlink_to(tmp_path / "other" / "bridge")
        case _:
            link.symlink_to(dist)
    return link


def test_with_an_empty_environment(plugin: Path) -> None:
    assert supported(run(plugin, env=VERSION)) == SPEC_VERSIONS


@pytest.mark.parametrize("path", ["", "/nowhere", "/usr/sbin:/usr/bin:/sbin:/bin", "/opt/cni/bin"])
def test_with_any_path(plugin: Path, path: str) -> None:
    assert supported(run(plugin, env=VERSION | {"PATH": path})) == SPEC_VERSIONS


def test_with_a_read_only_root(plugin: Path) -> None:
    done = run(plugin, env=VERSION, prefix=in_mounts(READ_ONLY))
    assert supported(done) == SPEC_VERSIONS


def test_in_a_deleted_directory(plugin: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd {gone} && rmdir {gone} && exec "$@"'
    done = run(plugin, env=VERSION, prefix=["/bin/sh", "-c", script, "sh"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["supportedVersions"] == SPEC_VERSIONS
    # dash mentions it at its start; that goes to the log of the runtime.
    assert set(done.stderr.splitlines()) <= {GETCWD}


def test_by_a_relative_path(plugin: Path) -> None:
    assert supported(run("./bridge", env=VERSION, cwd=plugin.parent)) == SPEC_VERSIONS


def test_found_on_path(plugin: Path) -> None:
    path = f"{plugin.parent}:/usr/bin:/bin"
    done = run("/usr/bin/env", "bridge", env=VERSION | {"PATH": path})
    assert supported(done) == SPEC_VERSIONS


def test_as_a_zipapp(plugin: Path) -> None:
    """The whole file is one; the small one of a plugin is a program only."""
    if is_stub(plugin.resolve()):
        whole = plugin.resolve().with_name("cni")
        assert run(PYTHON, whole, "--version").returncode == 0
        return
    assert supported(run(PYTHON, plugin, env=VERSION)) == SPEC_VERSIONS


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@pytest.mark.parametrize("way", ["installed", "archive"])
def test_in_every_shell(
    script_dist: Path, installed_script: Path, tmp_path: Path, way: str, shell: str
) -> None:
    command = [need(shell), *(["sh"] if shell == "busybox" else [])]
    (tmp_path / "bridge").symlink_to(script_dist)
    plugin = (installed_script if way == "installed" else tmp_path) / "bridge"
    assert supported(run(*command, plugin, env=VERSION)) == SPEC_VERSIONS


def test_the_native_client_is_small(dist: Path, script_dist: Path) -> None:
    assert dist.read_bytes()[:4] == b"\x7fELF"
    assert script_dist.read_bytes()[:2] == b"#!"
    assert dist.stat().st_size - script_dist.stat().st_size < 1 << 20


@pytest.mark.parametrize("python", pythons(new=True))
def test_with_every_python(dist: Path, tmp_path: Path, python: str) -> None:
    (tmp_path / "ptp").symlink_to(dist)
    assert supported(run(python, "-I", "-S", tmp_path / "ptp", env=VERSION)) == SPEC_VERSIONS
    install(dist, tmp_path / "bin", "--python", python)
    assert supported(run(tmp_path / "bin/ptp", env=VERSION)) == SPEC_VERSIONS


def test_as_the_command_line(dist: Path, installed: Path) -> None:
    for command in ([dist], [installed / "cni"], [PYTHON, dist]):
        done = run(*command, "--version")
        assert done.returncode == 0, done.stderr
        assert build_id(dist) in done.stdout


def test_under_an_unknown_name(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "foo").symlink_to(dist)
    found = error(run(tmp_path / "foo", env={"CNI_COMMAND": "ADD"}))
    assert '"foo"' in found["msg"]
    assert "bridge, " in found["details"]


# --- cost ----------------------------------------------------------------------------------------


def test_forks_nothing(installed: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = [need("strace"), "-f", "-o", str(trace), "-e", "trace=process"]
    supported(run(installed / "bridge", env=VERSION, prefix=strace))
    calls = trace.read_text()
    assert calls.count("execve(") == 2  # the script's shell, Python
    assert "fork(" not in calls
    assert "clone" not in calls


def test_writes_nothing(installed: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    strace = [need("strace"), "-f", "-o", str(trace), "-e", "trace=%file"]
    supported(run(installed / "bridge", env=VERSION, prefix=strace))
    assert not [line for line in trace.read_text().splitlines() if "O_CREAT" in line]


def test_imports_nothing_that_is_slow(installed: Path, dist: Path) -> None:
    tree = installed / f".cni-{build_id(dist)}"
    command = [PYTHON, "-I", "-S", "-X", "importtime", tree / "run.py", installed / "bridge"]
    done = run(*command, env=VERSION)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "cni.dispatch" in imported
    slow = {"click", "asyncio", "logging", "subprocess", "multiprocessing", "pathlib", "argparse"}
    assert not imported & slow


# --- without what is needed ----------------------------------------------------------------------


@pytest.fixture
def bare_root(dist: Path, tmp_path: Path) -> Path:
    """A root directory with a shell and nothing else."""
    busybox = need("busybox")
    for name in ("bin", "opt"):
        (tmp_path / name).mkdir()
    shutil.copy(busybox, tmp_path / "bin/busybox")
    for applet in ("sh", "readlink"):
        (tmp_path / "bin" / applet).symlink_to("busybox")
    shutil.copy(dist, tmp_path / "opt/cni")
    (tmp_path / "opt/bridge").symlink_to("cni")
    return tmp_path


def chroot(root: Path, *command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for chroot")
    return run(need("chroot"), root, *command, env=env)


def test_without_python_tells_the_runtime(bare_root: Path) -> None:
    found = error(chroot(bare_root, "/opt/bridge", env={"CNI_COMMAND": "ADD", "PATH": "/bin"}))
    assert found["code"] == 999
    assert found["msg"] == "python3 (3.11 or newer) not found"
    assert remedy(str(bare_root)) in found["details"]


def test_without_python_tells_a_person(bare_root: Path) -> None:
    done = chroot(bare_root, "/opt/cni", "--version", env={"PATH": "/bin"})
    assert (done.returncode, done.stdout) == (1, "")
    assert remedy(str(bare_root)) in done.stderr


@pytest.mark.parametrize("name", SYSTEMS)
def test_without_python_says_what_to_do_on_this_system(bare_root: Path, name: str) -> None:
    """The shell's script has the same advice as Python has."""
    (bare_root / "etc").mkdir()
    (bare_root / "etc/os-release").write_text(SYSTEMS[name])
    found = error(chroot(bare_root, "/opt/bridge", env={"CNI_COMMAND": "ADD", "PATH": "/bin"}))
    assert f"; {remedy(str(bare_root))}; or run the server" in found["details"]
    done = chroot(bare_root, "/opt/cni", "--version", env={"PATH": "/bin"})
    assert remedy(str(bare_root)) in done.stderr


def test_passes_over_a_python_that_does_not_work(bare_root: Path) -> None:
    broken = bare_root / "bin/python3"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    found = error(chroot(bare_root, "/opt/bridge", env={"CNI_COMMAND": "ADD", "PATH": "/bin"}))
    assert found["msg"] == "python3 (3.11 or newer) not found"


@pytest.mark.parametrize("python", pythons(new=False))
def test_with_an_old_python(dist: Path, installed: Path, tmp_path: Path, python: str) -> None:
    (tmp_path / "bridge").symlink_to(dist)
    tree = installed / f".cni-{build_id(dist)}"
    for command in ([tmp_path / "bridge"], [tree / "run.py", installed / "bridge"]):
        found = error(run(python, "-I", "-S", *command, env=VERSION))
        assert found["msg"] == "python3 (3.11 or newer) not found"
        assert f"{python} is Python 3." in found["details"]
        assert found["details"].endswith(remedy())
    done = run(python, dist, "--version")
    assert (done.returncode, done.stdout) == (1, "")
    assert remedy() in done.stderr


@pytest.mark.parametrize("name", ["launcher/run.py", "cni/__init__.py", "cni/startup_error.py"])
def test_an_old_python_can_read_the_way_to_the_message(name: str) -> None:
    ast.parse((ROOT / name).read_text(), feature_version=(3, 6))


def test_finds_another_python_when_its_own_is_gone(dist: Path, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.symlink_to(PYTHON)
    install(dist, tmp_path / "bin", "--python", str(python))
    assert supported(run(tmp_path / "bin/bridge", env=VERSION)) == SPEC_VERSIONS
    python.unlink()
    assert supported(run(tmp_path / "bin/bridge", env=VERSION)) == SPEC_VERSIONS


def test_a_damaged_tree_gives_an_error_object(dist: Path, tmp_path: Path) -> None:
    install(dist, tmp_path / "bin")
    shutil.rmtree(tmp_path / f"bin/.cni-{build_id(dist)}/msgspec")
    found = error(run(tmp_path / "bin/bridge", env={"CNI_COMMAND": "ADD"}))
    assert "msgspec" in found["msg"]
    # Installing again repairs it.
    install(dist, tmp_path / "bin")
    assert supported(run(tmp_path / "bin/bridge", env=VERSION)) == SPEC_VERSIONS


def test_client_only(dist: Path, bare_root: Path) -> None:
    """A node without Python gets the client; without a server it says what is missing."""
    report = install(dist, bare_root / "bin2", "--client-only")
    assert report["python"] == ""
    assert sorted(os.listdir(bare_root / "bin2")) == sorted(
        ["cni", ".cni-manifest.json", *report["links"]]
    )
    found = error(chroot(bare_root, "/bin2/bridge", env={"CNI_COMMAND": "ADD", "PATH": "/bin"}))
    assert "run the server (cni serve)" in found["details"]
    (bare_root / "bin/sh").unlink()
    done = chroot(bare_root, "/bin2/bridge", env={"CNI_COMMAND": "ADD", "PATH": "/bin"})
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["msg"].startswith("cannot start: no server answers")
    assert f"take the file cni-linux-{os.uname().machine}," in found["details"]
    # Where there is Python, the same file needs no server; a full install follows on it.
    assert supported(run(bare_root / "bin2/bridge", env=VERSION)) == SPEC_VERSIONS
    install(dist, bare_root / "bin2")
    uninstall(dist, bare_root / "bin2")
    assert not (bare_root / "bin2").exists()


def test_client_only_needs_a_native_client(script_dist: Path, tmp_path: Path) -> None:
    done = run(script_dist, "install", "--client-only", "--bin-dir", tmp_path / "bin")
    assert done.returncode == 1
    assert "has no native client" in done.stderr
    assert not (tmp_path / "bin").exists()


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
@pytest.mark.parametrize("call", ["execve:when=1", "mmap:when=12", "read:when=2", "read:when=9"])
def test_a_signal_while_python_starts(
    installed: Path, tmp_path: Path, name: str, call: str
) -> None:
    """It is answered as one that comes later, and not in Python's own way."""
    need("strace")
    conf = {
        "cniVersion": "1.1.0",
        "name": "start",
        "ipam": {"type": "host-local", "subnet": "10.9.0.0/24", "dataDir": str(tmp_path)},
    }
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_PATH": str(installed),
        "CNI_SERVER": "off",
    }
    where, _, when = call.partition(":")
    strace = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={where}"]
    strace += ["-e", f"inject={where}:signal={name}:{when}"]
    done = run(installed / "host-local", env=env, prefix=strace, stdin=json.dumps(conf))
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["msg"] == f"interrupted by SIG{name}"
    assert not [path for path in tmp_path.rglob("10.*") if path.is_file()]
