"""`cni install` and `cni uninstall`: nothing is ever missing, and nothing stays behind."""

from __future__ import annotations

import json
import marshal
import os
import re
import stat
import subprocess
import zipfile
from importlib.util import MAGIC_NUMBER, cache_from_source, source_hash
from pathlib import Path
from signal import SIGKILL
from types import CodeType
from typing import TYPE_CHECKING

import pytest

from cni.artifact import is_stub
from cni.startup_error import remedy
from tests.harness.build import copy_installation

from .running import (
    PYTHON,
    VERSION,
    build_id,
    everything_below,
    in_mounts,
    install,
    need,
    pythons,
    run,
    supported,
    uninstall,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

PLUGINS = {"bridge", "host-local", "loopback", "ptp", "static"}


def state(directory: Path) -> dict[str, tuple[int, str]]:
    """Name -> mode and content (of a link: where it points) of everything in a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.readlink(path)
        else:
            content = path.read_bytes().hex() if stat.S_ISREG(mode) else ""
        found[str(path.relative_to(directory))] = (mode, content)
    return found


def temporary(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".cni-tmp-")]


def test_makes_the_file_a_tree_and_plugins(dist: Path, tmp_path: Path) -> None:
    report = install(dist, tmp_path / "bin")
    build = build_id(dist)
    assert (report["build"], report["python"]) == (build, PYTHON)
    assert set(report["links"]) >= PLUGINS
    assert report["warnings"] == []
    assert report["command"] == ""
    small = {(tmp_path / "bin" / name).read_bytes() for name in report["links"]}
    (stub,) = small
    assert len(stub) < 100_000
    inodes = {(tmp_path / "bin" / name).lstat().st_ino for name in report["links"]}
    assert len(inodes) == len(report["links"]), "a write to one plugin would change another"
    others = {path.name for path in (tmp_path / "bin").iterdir()} - set(report["links"])
    assert others == {"cni", f".cni-{build}", ".cni-manifest.json"}
    before, after = dist.read_bytes(), (tmp_path / "bin/cni").read_bytes()
    line = re.compile(rb"^cni_python='([^'\n]*)'.*$", re.MULTILINE)
    assert line.findall(after)[0] == PYTHON.encode()
    # Nothing else has changed, and everything stayed where it was.
    assert line.sub(b"", after, count=1) == line.sub(b"", before, count=1)
    assert len(after) == len(before)


def test_modules_have_their_bytecode(dist: Path, installed: Path) -> None:
    tree = installed / f".cni-{build_id(dist)}"
    sources = [path for path in tree.rglob("*.py") if "pyroute2" not in path.parts]
    assert len(sources) > 300
    for source in sources:
        data = Path(cache_from_source(str(source))).read_bytes()
        assert data[:4] == MAGIC_NUMBER
        assert data[4:8] == b"\x01\x00\x00\x00", f"{source}: not an unchecked hash"
        assert data[8:16] == source_hash(source.read_bytes())
        code = marshal.loads(data[16:])
        assert set(files_named(code)) == {str(source)}, "what tracebacks name"
        assert same_code(code, compile(source.read_bytes(), source, "exec", dont_inherit=True))
    assert not list(tree.glob("pyroute2/**/*.pyc")), "only scripts of people import it"


def files_named(code: CodeType) -> Iterator[str]:
    yield code.co_filename
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from files_named(each)


def same_code(one: CodeType, other: CodeType) -> bool:
    """Whether they do the same, and say the same lines in tracebacks."""
    inner = zip(one.co_consts, other.co_consts, strict=True)
    return (one.co_code, one.co_linetable) == (other.co_code, other.co_linetable) and all(
        same_code(a, b) for a, b in inner if isinstance(a, CodeType)
    )


def test_an_archive_that_another_python_compiled(dist: Path, tmp_path: Path) -> None:
    """Its bytecode is of no use: the sources are compiled."""
    other = tmp_path / "cni"
    with zipfile.ZipFile(dist) as archive:
        infos = archive.infolist()
        other.write_bytes(dist.read_bytes()[: min(info.header_offset for info in infos)])
        with zipfile.ZipFile(other, "a") as copy:
            for info in infos:
                data = archive.read(info)
                is_compiled = info.filename.endswith(".pyc")
                copy.writestr(info, b"\0\0\r\n" + data[4:] if is_compiled else data)
    other.chmod(0o755)
    install(other, tmp_path / "bin")
    tree = tmp_path / f"bin/.cni-{build_id(dist)}"
    for source in tree.rglob("*.py"):
        data = Path(cache_from_source(str(source))).read_bytes()
        assert data[:8] == MAGIC_NUMBER + b"\x01\x00\x00\x00", source
    supported(run(tmp_path / "bin/bridge", env=VERSION))


def test_a_python_that_lacks_what_taking_the_bytecode_needs(dist: Path, tmp_path: Path) -> None:
    """As a distribution's smallest may: it compiles the sources."""
    python = tmp_path / "python3"
    lacking = 'case "$*" in *bytecode.py*) echo "No module named zipfile" >&2; exit 1 ;; esac'
    python.write_text(f'#!/bin/sh\n{lacking}\nexec {PYTHON} "$@"\n')
    python.chmod(0o755)
    install(dist, tmp_path / "bin", "--python", str(python))
    tree = tmp_path / f"bin/.cni-{build_id(dist)}"
    assert Path(cache_from_source(str(tree / "cni/dispatch.py"))).exists()


def test_a_second_time_changes_nothing(dist: Path, tmp_path: Path) -> None:
    install(dist, tmp_path)
    before = state(tmp_path)
    report = install(dist, tmp_path)
    assert (report["links"], report["kept"], report["removed"]) == ([], {}, [])
    assert set(report["unchanged"]) >= PLUGINS
    assert state(tmp_path) == before


def test_modes_do_not_depend_on_the_umask(dist: Path, tmp_path: Path) -> None:
    done = run(
        dist,
        "install",
        "--bin-dir",
        tmp_path / "a/bin",
        prefix=["/bin/sh", "-c", 'umask 077; exec "$@"', "sh"],
    )
    assert done.returncode == 0, done.stderr
    modes = {(stat.S_IFMT(mode), mode & 0o777) for mode, _ in state(tmp_path).values()}
    assert modes == {
        (stat.S_IFDIR, 0o755),
        (stat.S_IFREG, 0o644),
        (stat.S_IFREG, 0o755),
    }


def test_uninstall_leaves_nothing(dist: Path, tmp_path: Path) -> None:
    install(dist, tmp_path / "a/b/bin")
    report = uninstall(tmp_path / "a/b/bin/cni", tmp_path / "a/b/bin")
    assert set(report["removed"]) >= PLUGINS
    assert state(tmp_path) == {}


def test_uninstall_without_an_installation(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("another")
    report = uninstall(dist, tmp_path)
    assert report["removed"] == report["restored"] == []
    assert uninstall(dist, tmp_path / "missing")["removed"] == []
    assert (tmp_path / "bridge").read_text() == "another"


def test_foreign_files_are_kept_and_come_back(dist: Path, other_dist: Path, tmp_path: Path) -> None:
    for name in ("bridge", "host-local", "cni", "macvlan-like"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} of another\n")
        (tmp_path / name).chmod(0o750)
    (tmp_path / "ptp").symlink_to("/usr/lib/cni/ptp")
    before = state(tmp_path)
    report = install(dist, tmp_path)
    expected = {name: f".{name}.before-cni" for name in ("bridge", "host-local", "cni", "ptp")}
    assert report["kept"] == expected
    assert "supportedVersions" in run(tmp_path / "bridge", env=VERSION).stdout
    assert install(other_dist, tmp_path)["kept"] == {}
    report = uninstall(tmp_path / "cni", tmp_path)
    assert set(report["restored"]) == set(expected)
    assert state(tmp_path) == before


def test_another_projects_whereabouts_is_replaced_on_request(dist: Path, tmp_path: Path) -> None:
    """What it has given to containers has to be taken over first."""
    theirs = tmp_path / "whereabouts"
    theirs.write_text("#!/bin/sh\necho another\n")
    report = install(dist, tmp_path)
    assert theirs.read_text() == "#!/bin/sh\necho another\n"
    assert ["whereabouts is another project's" in each for each in report["warnings"]] == [True]
    assert "whereabouts" not in report["links"] + list(report["kept"])
    report = install(dist, tmp_path, "--replace-whereabouts")
    assert report["kept"] == {"whereabouts": ".whereabouts.before-cni"}
    assert "supportedVersions" in run(theirs, env=VERSION).stdout
    assert "whereabouts" in install(dist, tmp_path)["unchanged"]  # it is no longer another's
    uninstall(dist, tmp_path)
    assert theirs.read_text() == "#!/bin/sh\necho another\n"


def test_uninstall_leaves_what_others_put_there_since(dist: Path, tmp_path: Path) -> None:
    install(dist, tmp_path / "bin")
    (tmp_path / "bin/bridge").unlink()
    (tmp_path / "bin/bridge").write_text("another")
    (tmp_path / "bin/mine").symlink_to("cni")
    uninstall(dist, tmp_path / "bin")
    assert set(state(tmp_path / "bin")) == {"bridge", "mine"}


@pytest.mark.slow
def test_keeps_the_previous_build_and_no_older(
    dist: Path, other_dist: Path, third_dist: Path, tmp_path: Path
) -> None:
    def trees() -> set[str]:
        return {path.name.removeprefix(".cni-") for path in tmp_path.glob(".cni-[0-9a-f]*")}

    first, second, third = (build_id(path) for path in (dist, other_dist, third_dist))
    install(dist, tmp_path)
    install(other_dist, tmp_path)
    assert trees() == {first, second}
    assert install(third_dist, tmp_path)["removed"] == [f".cni-{first}"]
    assert trees() == {second, third}
    uninstall(third_dist, tmp_path)
    assert state(tmp_path) == {}


@pytest.mark.slow
def test_no_request_fails_while_builds_alternate(
    dist: Path, other_dist: Path, tmp_path: Path
) -> None:
    install(dist, tmp_path / "bin")
    # Four requests at a time, as fast as they go, until told to stop; prints every failure.
    caller = r"""
        while [ ! -e stop ]; do
            for name in bridge ptp loopback static; do
                (out=$(CNI_COMMAND=VERSION ./bin/$name 2>&1) || echo "$name: $? $out" >>failed
                 echo >>done) &
            done
            wait
        done
    """
    calling = subprocess.Popen(["/bin/sh", "-c", caller], cwd=tmp_path)
    try:
        for number in range(4):
            install((other_dist, dist)[number % 2], tmp_path / "bin")
    finally:
        (tmp_path / "stop").touch()
        calling.wait(60)
    assert not (tmp_path / "failed").exists(), (tmp_path / "failed").read_text()
    assert len((tmp_path / "done").read_text()) > 20


CHANGES = (
    "rename,renameat,renameat2,symlink,symlinkat,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)


def strace(tmp_path: Path, *options: str) -> list[str]:
    return [need("strace"), "-o", str(tmp_path / "trace"), *options, "-e", f"trace={CHANGES}"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_at_any_step_is_harmless(dist: Path, other_dist: Path, tmp_path: Path) -> None:
    """An upgrade over a foreign file, killed at each of its last steps and at some early ones."""
    template = prepared(dist, tmp_path / "template")
    steps = copied(template, tmp_path / "count")
    run(other_dist, "install", "--bin-dir", steps, prefix=strace(tmp_path))
    calls = re.findall(r"^(\w+)\(", (tmp_path / "trace").read_text(), re.MULTILINE)
    assert len(calls) > 100
    for step in [0, len(calls) // 2, *range(len(calls) - 10, len(calls))]:
        bin_dir = copied(template, tmp_path / f"step{step}")
        nth = calls[: step + 1].count(calls[step])  # strace counts each kind of call by itself
        kill = ["-e", f"inject={calls[step]}:signal=KILL:when={nth}"]
        done = run(other_dist, "install", "--bin-dir", bin_dir, prefix=strace(tmp_path, *kill))
        assert done.returncode == -SIGKILL
        for name in ("bridge", "static"):
            assert supported(run(bin_dir / name, env=VERSION)), f"{name} after a kill at {step}"
        install(other_dist, bin_dir)
        assert temporary(bin_dir) == []
        assert "1.1.0" in supported(run(bin_dir / "static", env=VERSION))
        uninstall(other_dist, bin_dir)
        assert set(state(bin_dir)) == {"static"}
        assert (bin_dir / "static").read_text() == FOREIGN


FOREIGN = '#!/bin/sh\necho \'{"supportedVersions": ["1.0.0"]}\'\n'


def prepared(dist: Path, bin_dir: Path) -> Path:
    """An installation in which one plugin has since been replaced by somebody else's."""
    bin_dir.mkdir()
    install(dist, bin_dir)
    (bin_dir / "static").unlink()
    (bin_dir / "static").write_text(FOREIGN)
    (bin_dir / "static").chmod(0o755)
    return bin_dir


def copied(template: Path, target: Path) -> Path:
    return copy_installation(template, target)


def test_two_installs_at_once(dist: Path, other_dist: Path, tmp_path: Path) -> None:
    command = ["install", "--bin-dir", str(tmp_path / "bin")]
    both = [subprocess.Popen([str(path), *command]) for path in (dist, other_dist)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert temporary(tmp_path / "bin") == []
    assert supported(run(tmp_path / "bin/bridge", env=VERSION))


def test_reports_for_people(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("another")
    done = run(dist, "install", "--bin-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"runs with {PYTHON}" in done.stdout
    assert "kept: bridge (as .bridge.before-cni)" in done.stdout
    done = run(dist, "uninstall", "--bin-dir", tmp_path)
    assert "put back: bridge" in done.stdout


# --- what may be wrong ---------------------------------------------------------------------------


def refused(*command: str | Path, prefix: list[str] | None = None) -> str:
    """What a failing command says on stderr; fails if there is a traceback."""
    done = run(*command, prefix=prefix or [])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_directory_in_the_way(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "bridge").mkdir()
    said = refused(dist, "install", "--bin-dir", tmp_path)
    assert f"{tmp_path}/bridge is a directory: move it away" in said
    assert set(state(tmp_path)) == {"bridge"}


@pytest.mark.parametrize("python", ["/nowhere/python3", "/bin/false"])
def test_an_interpreter_that_does_not_work(dist: Path, tmp_path: Path, python: str) -> None:
    said = refused(dist, "install", "--bin-dir", tmp_path, "--python", python)
    assert f"{python} cannot be run" in said
    assert remedy() in said
    assert state(tmp_path) == {}


@pytest.mark.parametrize("python", pythons(new=False)[-1:])
def test_an_interpreter_that_is_too_old(dist: Path, tmp_path: Path, python: str) -> None:
    said = refused(dist, "install", "--bin-dir", tmp_path, "--python", python)
    assert f"{python} is Python 3." in said
    assert state(tmp_path) == {}


def test_a_read_only_file_system(dist: Path, tmp_path: Path) -> None:
    script = (
        f'mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path} && exec "$@"'
    )
    said = refused(dist, "install", "--bin-dir", tmp_path / "bin", prefix=in_mounts(script))
    assert "Read-only file system" in said
    assert "--bin-dir" in said


# KiB that are free: the tree does not fit, nor its bytecode, nor the file `cni` after them.
@pytest.mark.parametrize("free", [64, 3 << 10, 13 << 10, 0])
def test_a_full_file_system(dist: Path, tmp_path: Path, free: int) -> None:
    """A first install that finds no room says so, and leaves nothing."""
    kept = tmp_path / "before"
    kept.mkdir()
    (kept / "bridge").write_text("another's")
    free = free or _needed(dist, tmp_path) - (dist.stat().st_size >> 11)
    script = (
        f"mount -t tmpfs -o size={free}k tmpfs {kept} && echo another >{kept}/bridge && "
        f'cd {kept} && "$@"; code=$?; find {kept} -mindepth 1 >{tmp_path}/left; exit $code'
    )
    for bin_dir in (kept, kept / "a/b"):
        said = refused(dist, "install", "--bin-dir", bin_dir, prefix=in_mounts(script))
        assert said.count("\n") == 1
        assert "No space left on device; make room" in said
        assert (tmp_path / "left").read_text().split() == [f"{kept}/bridge"]


def _needed(dist: Path, tmp_path: Path) -> int:
    """How many KiB an installation has."""
    install(dist, tmp_path / "whole")
    paths = [path for path in (tmp_path / "whole").rglob("*") if not path.is_symlink()]
    return sum((path.lstat().st_size + 4095) // 4096 * 4 if path.is_file() else 4 for path in paths)


def test_an_install_that_fails_leaves_the_one_before(
    dist: Path, other_dist: Path, tmp_path: Path
) -> None:
    """No room for the second build: the first is there, and nothing of the second."""
    size = _needed(dist, tmp_path) + 4096
    script = (
        f"mount -t tmpfs -o size={size}k tmpfs {tmp_path} && "
        f"{dist} install --bin-dir {tmp_path} >/dev/null && cd {tmp_path} && ls -A >/tmp/$$.1; "
        f'sum=$(cat .cni-manifest.json | cksum); "$@"; code=$?; ls -A >/tmp/$$.2; '
        'test "$sum" = "$(cat .cni-manifest.json | cksum)" && cmp /tmp/$$.1 /tmp/$$.2 || code=99; '
        "rm -f /tmp/$$.[12]; exit $code"
    )
    said = refused(other_dist, "install", "--bin-dir", tmp_path, prefix=in_mounts(script))
    assert "No space left on device" in said


@pytest.mark.parametrize(
    ("kind", "below"),
    [("loop", ""), ("loop", "bin"), ("dangling", ""), ("dangling", "bin"), ("file", "bin")],
)
def test_something_else_where_the_directory_should_be(
    dist: Path, tmp_path: Path, kind: str, below: str
) -> None:
    path = tmp_path / "there"
    if kind == "file":
        path.write_text("x")
    else:
        path.symlink_to("there" if kind == "loop" else "nowhere")
    before = state(tmp_path)
    said = refused(dist, "install", "--bin-dir", path / below)
    assert f"{path} is" in said
    assert "no directory" in said
    assert "--bin-dir" in said
    assert "still works" not in said
    assert state(tmp_path) == before


def test_links_that_lead_to_themselves_come_back(dist: Path, tmp_path: Path) -> None:
    for name in ("cni", "bridge"):
        (tmp_path / name).symlink_to(name)
    before = state(tmp_path)
    report = install(dist, tmp_path)
    assert set(report["kept"]) == {"cni", "bridge"}
    uninstall(dist, tmp_path)
    assert state(tmp_path) == before


def test_units(dist: Path, tmp_path: Path) -> None:
    units = str(tmp_path / "units")
    report = install(dist, tmp_path / "bin", "--units", units)
    names = ["cni-reload.service", "cni-reload-watch.service"]
    names += ["cni-dhcp.socket", "cni-dhcp.service"]
    assert report["units"] == [f"{units}/{name}" for name in names]
    for path in report["units"]:
        text = Path(path).read_text()
        program = "dhcp daemon" if path.endswith("dhcp.service") else "cni reload"
        assert path.endswith(".socket") or f"ExecStart={tmp_path}/bin/{program}" in text
    removed = uninstall(dist, tmp_path / "bin", "--units", units)["removed"]
    assert set(report["units"]) <= set(removed)
    assert os.listdir(units) == []


def test_the_server_s_units_go_with_the_plugins(dist: Path, tmp_path: Path) -> None:
    """`uninstall` knows where they are, also after an install without them."""
    units = tmp_path / "units"
    report = install(dist, tmp_path / "bin", "--service", "--units", str(units))
    written = {"cni.socket", "cni.service", "cni-reload.service", "cni-reload-watch.service"}
    written |= {"cni-dhcp.socket", "cni-dhcp.service"}
    assert set(os.listdir(units)) == written
    assert f"={tmp_path}/bin/cni serve" in (units / "cni.service").read_text()
    assert install(dist, tmp_path / "bin")["units"] == []
    assert set(report["units"]) <= set(uninstall(dist, tmp_path / "bin")["removed"])
    assert os.listdir(units) == []


def test_a_unit_that_is_not_ours_stops_the_install(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "cni.service").write_text("[Unit]\n")
    done = run(dist, "install", "--bin-dir", tmp_path / "bin", "--service", "--units", tmp_path)
    assert done.returncode == 1
    assert "cni.service is not ours" in done.stderr
    assert not (tmp_path / "bin").exists()


def test_a_unit_for_dhcp_that_was_there_stays(dist: Path, tmp_path: Path) -> None:
    """It may be a copy that the administrator made, or another package's."""
    units = tmp_path / "units"
    units.mkdir()
    (units / "cni-dhcp.service").write_text("[Unit]\n")
    report = install(dist, tmp_path / "bin", "--units", str(units))
    assert report["warnings"] == [f"{units}/cni-dhcp.service stays as it is"]
    uninstall(dist, tmp_path / "bin")
    assert {path.name: path.read_text() for path in units.iterdir()} == {
        "cni-dhcp.service": "[Unit]\n"
    }


# --- the link for a shell -------------------------------------------------------------------------


def test_a_link_for_a_shell(dist: Path, tmp_path: Path) -> None:
    bin_dir, link = tmp_path / "bin", tmp_path / "a/b"
    for _ in range(2):
        report = install(dist, bin_dir, "--link", str(link))
        assert (report["command"], report["warnings"]) == (f"{link}/cni", [])
    assert os.readlink(link / "cni") == f"{bin_dir}/cni"
    done = run(link / "cni", "--version")
    assert build_id(dist) in done.stdout, done.stderr
    assert f"{link}/cni" in uninstall(link / "cni", bin_dir)["removed"]
    assert not os.path.lexists(link / "cni")


@pytest.mark.parametrize("options", [[], ["--link", "none"]])
def test_no_link_for_a_directory_that_is_not_the_system_s(
    dist: Path, tmp_path: Path, options: list[str]
) -> None:
    assert install(dist, tmp_path / "bin", *options)["command"] == ""
    assert os.listdir(tmp_path) == ["bin"]


@pytest.mark.parametrize("kind", ["file", "directory", "dangling", "another's"])
def test_a_link_is_never_made_over_something_else(dist: Path, tmp_path: Path, kind: str) -> None:
    at = tmp_path / "local/cni"
    at.parent.mkdir()
    match kind:
        case "file":
            at.write_text("another")
        case "directory":
            at.mkdir()
        case "dangling":
            at.symlink_to("nowhere")
        case _:
            at.symlink_to("/bin/true")
    before = state(at.parent)
    done = run(dist, "install", "--bin-dir", tmp_path / "bin", "--link", at.parent)
    assert done.returncode == 0
    assert f"{at} is another file, and stays" in done.stderr
    assert "supportedVersions" in run(tmp_path / "bin/bridge", env=VERSION).stdout
    uninstall(dist, tmp_path / "bin")
    assert state(at.parent) == before


def test_a_link_that_was_replaced_since_stays(dist: Path, tmp_path: Path) -> None:
    install(dist, tmp_path / "bin", "--link", str(tmp_path))
    (tmp_path / "cni").unlink()
    (tmp_path / "cni").symlink_to("/bin/true")
    uninstall(dist, tmp_path / "bin")
    assert os.readlink(tmp_path / "cni") == "/bin/true"


def test_a_link_that_cannot_be_made_is_only_a_warning(dist: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = install(dist, tmp_path / "bin", "--link", str(tmp_path / "file"))
    assert report["command"] == ""
    assert f"cannot make the link {tmp_path}/file/cni: " in report["warnings"][0]


def test_says_what_else_it_can_do(dist: Path, tmp_path: Path) -> None:
    said = run(dist, "install", "--bin-dir", tmp_path / "bin").stdout
    assert "--service writes" in said
    assert "--units DIR writes" in said
    units = ("--units", tmp_path / "units", "--service")
    said = run(dist, "install", "--bin-dir", tmp_path / "bin", *units).stdout
    assert "writes" not in said
    assert "systemctl enable --now cni-reload.service cni-reload-watch.service cni.socket" in said
    assert "where a network leases addresses with dhcp: systemctl" in said


# --- into another root ----------------------------------------------------------------------------

OPTIONS = ("--units", "/etc/systemd/system", "--service")


def in_root(dist: Path, root: Path, *options: str) -> dict[str, object]:
    done = run(dist, "install", "--root", root, "--json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def uninstall_of(dist: Path, root: Path) -> None:
    removed = []
    for more in (["--dry-run"], []):
        before = everything_below(root)
        done = run(dist, "uninstall", "--root", root, "--json", *more)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not more or everything_below(root) == before
        removed.append(sorted(json.loads(done.stdout)["removed"]))
    assert removed[0] == removed[1]


def test_into_another_root(dist: Path, tmp_path: Path) -> None:
    root = tmp_path / "a/root"
    report = in_root(dist, root, *OPTIONS)
    assert report["bin_dir"] == "/opt/cni/bin"
    assert report["command"] == "/usr/local/bin/cni"
    assert "has no /usr/bin/python3" in str(report["warnings"])
    assert os.readlink(root / "usr/local/bin/cni") == "/opt/cni/bin/cni"
    text = (root / "etc/systemd/system/cni-reload.service").read_text()
    assert "ExecStart=/opt/cni/bin/cni reload" in text
    everything = state(root)
    assert len(everything) > 100
    where = str(tmp_path).encode()
    holding = [name for name, (_, content) in everything.items() if where.hex() in content]
    assert not [name for name in holding if where in (root / name).read_bytes()]
    # Afterwards it is that system's, without --root.
    script = f'mount --bind {root}/opt /opt && exec "$@"'
    done = run("/opt/cni/bin/bridge", env=VERSION, prefix=in_mounts(f"mkdir -p /opt; {script}"))
    assert "1.1.0" in supported(done)


def test_out_of_another_root(dist: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "opt/cni").mkdir(parents=True)
    before = state(root)
    report = in_root(dist, root, *OPTIONS)
    done = run(dist, "uninstall", "--root", root, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    units, removed = report["units"], json.loads(done.stdout)["removed"]
    assert isinstance(units, list)
    assert {*units, "/usr/local/bin/cni", "/opt/cni/bin"} <= set(removed)
    left = {name: each for name, each in state(root).items() if not stat.S_ISDIR(each[0])}
    assert left == {}
    assert before.keys() <= state(root).keys()


def test_a_root_with_a_python_of_its_own(dist: Path, tmp_path: Path) -> None:
    """That is the one that is asked, and that compiles."""
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    script = f"mount --rbind / {root}/mnt && mount --bind {root}/mnt/usr {root}/usr"
    (root / "mnt").mkdir()
    for name in ("lib", "lib64", "bin"):
        if Path(f"/{name}").is_symlink():
            (root / name).symlink_to(os.readlink(f"/{name}"))
    done = run(
        dist,
        "install",
        "--root",
        root,
        "--link",
        "none",
        "--json",
        prefix=in_mounts(f'{script} && exec "$@"'),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["python"], report["warnings"]) == (PYTHON, [])
    tree = root / f"opt/cni/bin/.cni-{build_id(dist)}"
    compiled = next((tree / "cni/__pycache__").glob("dispatch.*.pyc")).read_bytes()
    assert f"/opt/cni/bin/{tree.name}/cni/dispatch.py".encode() in compiled


def test_a_root_whose_python_does_not_work(dist: Path, tmp_path: Path) -> None:
    python = tmp_path / "root/usr/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text("no program")
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/os-release").write_text("ID=flatcar\nVERSION_ID=1\n")
    said = refused(dist, "install", "--root", tmp_path / "root")
    assert f"in {tmp_path}/root: /usr/bin/python3 cannot be run" in said
    assert "this system has no package that would do: take the file" in said
    assert not (tmp_path / "root/opt").exists()


@pytest.mark.parametrize("link", ["opt", "opt/cni", "opt/cni/bin"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_that_leads_out_of_the_root(
    dist: Path, tmp_path: Path, link: str, absolute: bool
) -> None:
    """`/opt` of an image may be a link to a path of that image; here it would be this system's."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    at = root / link
    at.parent.mkdir(parents=True)
    at.symlink_to(outside if absolute else os.path.relpath(outside, at.parent))
    said = refused(dist, "install", "--root", root)
    assert f"leads out of {root}" in said
    assert f"leads out of {root}" in refused(dist, "uninstall", "--root", root)
    assert not list(outside.iterdir())


def test_a_directory_that_is_a_link_within_the_root(dist: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "opt/cni").mkdir(parents=True)
    (root / "usr/lib/cni").mkdir(parents=True)
    (root / "opt/cni/bin").symlink_to("../../usr/lib/cni")
    in_root(dist, root)
    assert is_stub(root / "usr/lib/cni/bridge")
    uninstall_of(dist, root)
    assert not list((root / "usr/lib/cni").iterdir())


def test_a_directory_of_programs_that_leads_out_of_the_root(dist: Path, tmp_path: Path) -> None:
    """There is no link for a shell then, and `uninstall` looks for none."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    outside.mkdir()
    (root / "usr/local").mkdir(parents=True)
    (root / "usr/local/bin").symlink_to(outside)
    assert f"leads out of {root}" in str(in_root(dist, root)["warnings"])
    (outside / "cni").symlink_to("/opt/cni/bin/cni")  # of this system
    uninstall_of(dist, root)
    assert not (root / "opt").exists()
    assert os.path.lexists(outside / "cni")


@pytest.mark.parametrize("option", ["--bin-dir", "--root"])
@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_an_empty_path_is_refused(dist: Path, tmp_path: Path, command: str, option: str) -> None:
    """Of a variable that is not set, in a script."""
    done = run(dist, command, option, "", cwd=tmp_path)
    assert done.returncode == 2
    assert "the path is empty" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("manifest", ["[]", '{"names": 5}', '{"made": [1]}', '{"units": {"a": 1}}'])
def test_a_manifest_of_another_form(dist: Path, tmp_path: Path, manifest: str) -> None:
    install(dist, tmp_path / "bin")
    (tmp_path / "bin/.cni-manifest.json").write_text(manifest)
    uninstall(dist, tmp_path / "bin")
    assert not state(tmp_path / "bin")
