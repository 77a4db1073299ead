"""The OCI archive: sound by the image specification, and podman loads it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.fixture
def store() -> Iterator[Path]:
    """A short path, as podman wants it for its sockets."""
    if os.geteuid():
        pytest.skip("needs root, for podman's storage")
    with tempfile.TemporaryDirectory(prefix="pod") as directory:
        yield Path(directory)
        podman(Path(directory), "rmi", "--all", "--force")


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_podman_loads_it(archive: Archive, repository: Repository, store: Path, arch: str) -> None:
    name = f"localhost/cni-plugins:v{repository.version}"
    if arch == "amd64":
        loaded = podman(store, "load", "--quiet", "--input", str(archive.path))
        assert name in loaded
    else:
        podman(store, "pull", "--quiet", "--arch", arch, f"oci-archive:{archive.path}")
        name = podman(store, "images", "--quiet").strip()
    (image,) = json.loads(podman(store, "image", "inspect", name))
    assert image["Architecture"] == arch
    assert image["Config"]["Cmd"] == ["serve"]
    mounted = Path(podman(store, "image", "mount", name).strip())
    assert os.access(mounted / "usr/local/lib/cni/cni", os.X_OK)
    podman(store, "image", "unmount", "--force", name)
