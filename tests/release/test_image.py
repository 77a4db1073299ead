"""The OCI archive: sound by the image specification, and podman loads it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.artifact import is_stub

from . import registry
from .conftest import ROOT, Repository

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class Archive:
    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as opened:
            files = {m.name: opened.extractfile(m) for m in opened if m.isfile()}
            self.files = {name: file.read() for name, file in files.items() if file}

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        """What a descriptor names; its digest and size are checked."""
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert descriptor["size"] == len(data)
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        return data

    def json(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        value = json.loads(self.blob(descriptor))
        assert value.get("mediaType", descriptor["mediaType"]) == descriptor["mediaType"]
        return dict(value)

    def images(self) -> dict[str, dict[str, Any]]:
        """The manifest of each architecture."""
        (index,) = json.loads(self.files["index.json"])["manifests"]
        assert index["mediaType"] == INDEX
        manifests = self.json(index)["manifests"]
        assert {each["mediaType"] for each in manifests} == {MANIFEST}
        return {each["platform"]["architecture"]: self.json(each) for each in manifests}


@pytest.fixture(scope="module")
def archive(released: Path) -> Archive:
    (path,) = released.glob("*-image-*.tar")
    return Archive(path)


def test_every_blob_is_named_and_there(archive: Archive, repository: Repository) -> None:
    assert json.loads(archive.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    images = archive.images()
    assert set(images) == {"amd64", "arm64"}
    seen = {"oci-layout", "index.json"}
    for arch, manifest in images.items():
        config = archive.json(manifest["config"])
        assert (config["architecture"], config["os"]) == (arch, "linux")
        layers = [gzip.decompress(archive.blob(each)) for each in manifest["layers"]]
        digests = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
        assert config["rootfs"] == {"type": "layers", "diff_ids": digests}
        assert len(config["history"]) == len(layers)
        labels = config["config"]["Labels"]
        assert labels["org.opencontainers.image.version"] == repository.version
        seen |= {f"blobs/{each['digest'].replace(':', '/')}" for each in manifest["layers"]}
        seen.add("blobs/" + manifest["config"]["digest"].replace(":", "/"))
    (index,) = json.loads(archive.files["index.json"])["manifests"]
    for each in [index, *archive.json(index)["manifests"]]:
        seen.add("blobs/" + each["digest"].replace(":", "/"))
    assert set(archive.files) == seen


def test_it_has_what_the_manifest_runs_and_mounts(archive: Archive) -> None:
    spec = yaml.safe_load((ROOT / "deploy/daemonset.yaml").read_text())["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    for manifest in archive.images().values():
        config = archive.json(manifest["config"])["config"]
        assert config["Entrypoint"] == server["readinessProbe"]["exec"]["command"][:1]
        names: dict[str, tarfile.TarInfo] = {}
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(archive.blob(layer))) as opened:
                names |= {f"/{each.name}": each for each in opened}
        assert names[config["Entrypoint"][0]].mode == 0o755
        for mount in server["volumeMounts"]:
            # The root is read-only: an engine cannot make a place below it that is missing.
            above = {mount["mountPath"], *map(str, Path(mount["mountPath"]).parents)}
            assert above & set(names), mount


def test_the_daemonset_names_the_image_by_its_digest(archive: Archive, released: Path) -> None:
    (index,) = json.loads(archive.files["index.json"])["manifests"]
    spec = yaml.safe_load((released / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    images = {each["image"] for each in [*spec["initContainers"], *spec["containers"]]}
    assert images == {f"@REPOSITORY@@{index['digest']}"}


def podman(store: Path, *words: str) -> str:
    """podman with images of its own."""
    options = ["--root", str(store / "root"), "--runroot", str(store / "run")]
    options += ["--storage-driver", "vfs"]
    done = subprocess.run(["podman", *options, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def store() -> Iterator[Path]:
    """A short path, as podman wants it for its sockets."""
    if os.geteuid():
        pytest.skip("needs root, for podman's storage")
    with tempfile.TemporaryDirectory(prefix="pod") as directory:
        yield Path(directory)
        podman(Path(directory), "rmi", "--all", "--force")


@pytest.fixture(scope="module")
def name(archive: Archive, repository: Repository, store: Path) -> str:
    """What the loaded image is called."""
    name = f"localhost/cni-plugins:v{repository.version}"
    assert name in podman(store, "load", "--quiet", "--input", str(archive.path))
    return name


@pytest.fixture(scope="module")
def mounted(name: str, store: Path) -> Iterator[Path]:
    """The loaded image's files."""
    yield Path(podman(store, "image", "mount", name).strip())
    podman(store, "image", "unmount", "--force", name)


def test_podman_loads_this_machine_s_image(name: str, store: Path, mounted: Path) -> None:
    (image,) = json.loads(podman(store, "image", "inspect", name))
    assert image["Architecture"] == "amd64"
    assert image["Config"]["Cmd"] == ["serve"]
    assert os.access(mounted / "usr/local/lib/cni/cni", os.X_OK)


def test_podman_loads_another_machine_s_image(archive: Archive, store: Path) -> None:
    pulled = podman(store, "pull", "--quiet", "--arch", "arm64", f"oci-archive:{archive.path}")
    (image,) = json.loads(podman(store, "image", "inspect", pulled.strip()))
    assert image["Architecture"] == "arm64"


@pytest.mark.parametrize("program", ["iptables", "ip6tables-save", "nft", "iptables-restore"])
def test_the_programs_that_networks_use_run(mounted: Path, program: str) -> None:
    done = subprocess.run(["chroot", mounted, program, "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"v\d", done.stdout)
    assert "nf_tables" in done.stdout or program == "nft"


def test_nothing_but_programs_is_in_it(mounted: Path) -> None:
    """No shell, and nothing by which packages are installed."""
    found = {str(each.relative_to(mounted)) for each in mounted.rglob("*")}
    assert not {each for each in found if re.search(r"(^|/)((ba|da)?sh|dpkg|apt|python3)$", each)}
    assert "usr/share/doc/nftables/copyright" in found


def test_the_file_runs_in_it(mounted: Path, selfcontained: Path | None) -> None:
    if selfcontained is None:
        pytest.skip("needs the self-contained file: make build-selfcontained")
    command = ["chroot", mounted, "/usr/local/lib/cni/cni", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "embedded" in done.stdout


def test_a_registry_keeps_the_digest(archive: Archive, released: Path) -> None:
    """The image that daemonset.yaml names is what a registry has after the copy of all machines."""
    with registry.running() as server:
        target = f"docker://{server.host}/site/cni-plugins:v1"
        copy = ["skopeo", "copy", "--quiet", "--all", "--dest-tls-verify=false"]
        done = subprocess.run(
            [*copy, f"oci-archive:{archive.path}", target],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        named = re.findall(
            r"@REPOSITORY@@(sha256:[0-9a-f]{64})", (released / "daemonset.yaml").read_text()
        )
        assert ("site/cni-plugins", named[0]) in server.manifests
        blobs = {name for name in archive.files if name.startswith("blobs/")}
        kept = {f"blobs/{digest.replace(':', '/')}" for digest in server.blobs}
        kept |= {f"blobs/{ref.replace(':', '/')}" for _, ref in server.manifests if ":" in ref}
        assert kept == blobs


def test_the_init_container_installs_the_file(
    mounted: Path, selfcontained: Path | None, released: Path, tmp_path: Path
) -> None:
    """In a read-only root, where only the node's /opt/cni/bin can be written."""
    if selfcontained is None:
        pytest.skip("needs the self-contained file: make build-selfcontained")
    spec = yaml.safe_load((released / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    (init,) = spec["initContainers"]
    script = """
        mount --bind "$1" "$1"; mount --bind "$2" "$1/opt/cni/bin"
        mount -o remount,bind,ro "$1"
        root=$1; shift 2; exec chroot "$root" /usr/local/lib/cni/cni "$@"
    """
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh"]
    done = subprocess.run(
        [*unshare, mounted, tmp_path, *init["args"]], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert is_stub(tmp_path / "bridge")
    env = {"CNI_COMMAND": "VERSION", "CNI_SERVER": "off"}
    answer = subprocess.run(
        [tmp_path / "bridge"], input="{}", env=env, capture_output=True, text=True
    )
    assert "supportedVersions" in answer.stdout
