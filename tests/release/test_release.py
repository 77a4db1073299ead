"""The files of a release as a whole: names, bytes, checksums, what is inside and what must not."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools.release import components, contents, programs
from tools.release.source import ReleaseError, check_changelog

from .conftest import ROOT, Repository, copy_of_tree

BINDING = Path("/usr/lib/python3/dist-packages/nftables/nftables.py")


def test_names(released: Path, repository: Repository) -> None:
    v = repository.version
    archives = {f"cni-plugins-linux-{arch}-v{v}.tgz" for arch in ("amd64", "arm64")}
    assert {each.name for each in released.iterdir()} == {
        "cni-linux-x86_64",
        "cni-linux-aarch64",
        *archives,
        *(f"{name}.{kind}" for name in archives for kind in ("sha256", "sha512")),
        f"cni-plugins-python_{v}_amd64.deb",
        f"cni-plugins-python_{v}_arm64.deb",
        f"cni-plugins-python-{v}-1.x86_64.rpm",
        f"cni-plugins-python-{v}-1.aarch64.rpm",
        f"cni-plugins-image-v{v}.tar",
        "daemonset.yaml",
        f"cni-{v}.pyz",
        f"cni-plugins-{v}.cdx.json",
        f"cni-plugins-{v}.provenance.json",
        "LICENSES",
        "SHA256SUMS",
    }


def test_twice_the_same_bytes(
    released: Path, repository: Repository, executables: list[str], tmp_path: Path
) -> None:
    """In another directory, time zone and language, with another umask."""
    other = copy_of_tree(tmp_path / "another-place")
    output = tmp_path / "output"
    script = 'umask 077; exec "$0" "$@"'
    words = ["sh", "-c", script, *other.release(output, "--help").args[:-1]]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "Asia/Tokyo", "LANG": "C.UTF-8"}
    done = subprocess.run(
        [*words, *executables], cwd=other.path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sums(output) == sums(released)


def sums(directory: Path) -> dict[str, str]:
    files = sorted(directory.iterdir())
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


def test_checksums(released: Path) -> None:
    for name in ("SHA256SUMS", *(each.name for each in released.glob("*.sha256"))):
        subprocess.run(
            ["sha256sum", "--quiet", "--check", "--strict", name], cwd=released, check=True
        )
    for each in released.glob("*.sha512"):
        subprocess.run(["sha512sum", "--quiet", "--check", each.name], cwd=released, check=True)
    listed = {line.split()[1] for line in (released / "SHA256SUMS").read_text().splitlines()}
    rest = {each.name for each in released.iterdir()} - listed
    assert rest == {"SHA256SUMS", *(each.name for each in released.glob("*.sha???"))}


# --- what is inside ------------------------------------------------------------------------------


def binding_texts() -> list[bytes]:
    """The longer texts of Debian's nftables binding, by which its code is found in any form."""
    tree = ast.parse(BINDING.read_text())
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    return [each.encode() for each in texts if isinstance(each, str) and len(each) > 60]


def test_the_gpl_binding_is_in_no_file(released: Path) -> None:
    """Neither as a module nor, in frozen or compiled code, by its texts."""
    if not BINDING.exists():
        pytest.skip("python3-nftables is not installed")
    texts = binding_texts()
    assert len(texts) > 5
    for file in sorted(released.iterdir()):
        data = file.read_bytes()
        assert contents.forbidden(file.name, data) == []
        for path, content in contents.walk(file.name, data):
            assert not [text for text in texts if text in content], path


def test_the_look_inside_reaches_every_form(released: Path) -> None:
    """What is in the built file is seen in each file that carries it."""
    for file in sorted(released.iterdir()):
        inner = {path.rpartition("!")[2] for path, _ in contents.walk(file.name, file.read_bytes())}
        carries = file.suffix in (".tgz", ".deb", ".rpm", ".tar", ".pyz") or "linux" in file.stem
        if carries and file.suffix not in (".sha256", ".sha512"):
            assert "cni/units/cni.socket" in inner, file.name


def test_the_binding_is_found_deep_inside() -> None:
    zipped, tarred = io.BytesIO(b"\x7fELF..."), io.BytesIO()
    zipped.seek(0, io.SEEK_END)
    with zipfile.ZipFile(zipped, "a") as archive:
        archive.writestr("nftables/nftables.py", "")
        archive.writestr("pyroute2/nftables/__init__.py", "")
    with tarfile.open(fileobj=tarred, mode="w:xz") as outer:
        info = tarfile.TarInfo("./cni")
        info.size = len(zipped.getvalue())
        outer.addfile(info, io.BytesIO(zipped.getvalue()))
    found = contents.forbidden("x.tar.xz", tarred.getvalue())
    assert found == ["x.tar.xz!lzma!./cni!nftables/nftables.py"]


def test_a_file_with_the_binding_is_not_released(
    repository: Repository, executables: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("nftables/nftables.pyc", "")
    done = repository.release(tmp_path / "out", *executables, f"--self-contained=x86_64={bad}")
    assert done.returncode == 1
    assert "GPL-2.0-only binding of nftables is in the file for x86_64" in done.stderr
    assert not (tmp_path / "out").exists()


def test_licences(released: Path) -> None:
    """Each component has its text in LICENSES, which every form carries, and a line in NOTICE."""
    text = (released / "LICENSES").read_text()
    notice = (ROOT / "NOTICE").read_text()
    for part in components.selfcontained(ROOT):
        assert re.search(rf"^{part.name} .*: {re.escape(part.licence)}$", text, re.MULTILINE)
    for name, licence in components.LICENCES.items():
        assert re.search(rf"^  {name}\s+{re.escape(licence)}", notice, re.MULTILINE), name
    for file in released.iterdir():
        if file.suffix in (".tgz", ".deb", ".rpm", ".tar"):
            inner = dict(contents.walk(file.name, file.read_bytes()))
            found = [data for path, data in inner.items() if path.endswith("/LICENSES")]
            assert found, file.name
            assert set(found) == {text.encode()}


# --- SBOM and provenance -------------------------------------------------------------------------


def document(released: Path, kind: str) -> dict[str, object]:
    (path,) = released.glob(f"*.{kind}.json")
    value = json.loads(path.read_text())
    assert isinstance(value, dict)
    return value


def test_the_sbom_is_valid_and_has_every_file(released: Path) -> None:
    (path,) = released.glob("*.cdx.json")
    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text())
    assert error is None, error
    parts = {each["name"]: each for each in document(released, "cdx")["components"]}  # type: ignore[attr-defined]
    for file in released.iterdir():
        if file.suffix not in (".json", ".sha256", ".sha512") and file.name != "SHA256SUMS":
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert parts[file.name]["hashes"] == [{"alg": "SHA-256", "content": digest}]


def test_the_sbom_says_what_is_in_each_file(released: Path) -> None:
    bill = document(released, "cdx")
    parts = {each["bom-ref"]: each for each in bill["components"]}  # type: ignore[attr-defined]
    inside = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}  # type: ignore[attr-defined]
    embedded = {"click", "jeepney", "msgspec"}
    pins = {each.name for each in components.interpreter(ROOT)}
    programs_of_the_image = {each.name for each in programs.components("amd64")}
    assert {"iptables", "nftables", "libc6"} <= programs_of_the_image
    for ref, part in parts.items():
        names = {parts[each]["name"] for each in inside[ref]}
        if part["name"].endswith(".pyz"):
            assert names == embedded | {"pyroute2"}
        elif part["name"].endswith(".tar"):
            assert names == embedded | pins | programs_of_the_image
        elif part["type"] == "file" and re.search(r"linux|deb$|rpm$", part["name"]):
            assert names == embedded | pins
        elif part["type"] == "library":
            assert part["licenses"]
            assert part["externalReferences"]
    locked = (ROOT / "tools/bundle.lock").read_text()
    digests = {
        h["content"]
        for p in parts.values()
        for r in p.get("externalReferences", ())
        for h in r["hashes"]
    }
    assert set(re.findall(r"sha256:([0-9a-f]{64})", locked)) <= digests


def test_provenance(released: Path, repository: Repository) -> None:
    statement = document(released, "provenance")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}  # type: ignore[attr-defined]
    for name, digest in subjects.items():
        assert hashlib.sha256((released / name).read_bytes()).hexdigest() == digest
    assert {each.name for each in released.glob("cni-*") if "provenance" not in each.name} >= set(
        subjects
    ) - {"LICENSES", "daemonset.yaml"}
    definition = statement["predicate"]["buildDefinition"]  # type: ignore[index]
    first, *others = definition["resolvedDependencies"]
    assert first["digest"] == {"gitCommit": repository.git("rev-parse", "HEAD").strip()}
    digests = {each["digest"]["sha256"] for each in others}
    used = [*components.selfcontained(ROOT), *programs.components("amd64")]
    used += programs.components("arm64")
    wanted = {digest for each in used for _, digest in each.sources}
    assert digests == wanted
    assert {"dpkg-deb", "rpmbuild", "python"} <= set(definition["internalParameters"]["tools"])


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def changing(tmp_path: Path) -> Repository:
    return copy_of_tree(tmp_path / "changing")


def test_a_dirty_tree(changing: Repository, executables: list[str], tmp_path: Path) -> None:
    for name in ("README.md", "forgotten.txt"):
        changing.git("reset", "--quiet", "--hard")
        with (changing.path / name).open("a") as file:
            file.write("\n")
        done = changing.release(tmp_path / "out", *executables)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"the tree is not clean ({name}): commit the changes" in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_version_that_is_none(
    changing: Repository, executables: list[str], tmp_path: Path
) -> None:
    init = changing.path / "cni/__init__.py"
    for bad in ("1.0", "1.0.0+local", "01.0.0"):
        init.write_text(init.read_text().replace(changing.version, bad))
        changing.commit()
        done = changing.release(tmp_path / "out", *executables)
        assert done.returncode == 1
        assert "has no version MAJOR.MINOR.PATCH" in done.stderr


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("## [1.0.0] - 2026-01-02\n", ""),
        ("## [Unreleased]\n\n## [1.0.0] - 2026-01-02\n- x\n## [0.9.0] - 2025-01-02", ""),
        ("", "begins with nothing"),
        ("## [0.9.0] - 2026-01-02\n## [1.0.0] - 2026-01-02\n", "begins with 0.9.0"),
        ("## [1.0.0]\n", "has no date"),
        ("## [Unreleased]\n- x\n## [1.0.0] - 2026-01-02\n", "changes below [Unreleased]"),
        ("## [Unreleased]\n- x\n", "changes below [Unreleased]"),
    ],
)
def test_the_changelog_s_section(text: str, error: str) -> None:
    if not error:
        check_changelog(f"# Changelog\n{text}", "1.0.0")
        return
    with pytest.raises(ReleaseError, match=re.escape(error)):
        check_changelog(f"# Changelog\n{text}", "1.0.0")


def test_an_executable_for_another_machine(
    repository: Repository, executables: list[str], tmp_path: Path
) -> None:
    wrong = [f"--self-contained=aarch64={Path('/bin/true').resolve()}"]
    done = repository.release(tmp_path / "out", *executables, *wrong)
    assert done.returncode == 1
    assert "is not for aarch64" in done.stderr


def test_what_is_bundled_has_a_known_licence(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    entry = "new-thing==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    (tmp_path / "tools/bundle.lock").write_text(entry)
    with pytest.raises(ReleaseError, match="licence of new-thing is not known"):
        components.bundled(tmp_path)


@pytest.mark.parametrize("name", components.TEXTS)
def test_the_licence_texts_are_the_sources_(name: str) -> None:
    """Word for word, where the sources have been fetched."""
    (path, *_) = (ROOT / ".cache/interpreter/sources" / f for f, _ in pinned(name))
    if not path.exists():
        pytest.skip(f"{path.name} has not been fetched")
    text = (Path(components.__file__).parent / f"licences/{name}.txt").read_text()
    with tarfile.open(path) as archive:
        members = [m for m in archive if re.fullmatch(r"[^/]+/(LICENSE|COPYRIGHT)(\.txt)?", m.name)]
        (file,) = (archive.extractfile(each) for each in members)
        assert file is not None
        assert text.startswith(file.read().decode())


def pinned(name: str) -> tuple[tuple[str, str], ...]:
    (part,) = (each for each in components.interpreter(ROOT) if each.name == name)
    return part.sources
