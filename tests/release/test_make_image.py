"""tools/image.sh with podman and a registry: what it pushes is what its manifest names.

The base stands in for Debian's image, so that nothing is fetched: a shell, and an apt-get that does
nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from . import registry
from .conftest import ROOT

FILE = f"dist/cni-linux-{os.uname().machine}"


class Engine:
    """podman with images of its own, and a registry that it trusts without TLS."""

    def __init__(self, home: Path, server: registry.Registry) -> None:
        self.home = home
        configuration = home / "registries.conf"
        configuration.write_text(f'[[registry]]\nlocation = "{server.host}"\ninsecure = true\n')
        self.program = home / "engine"
        self.program.write_text(
            "#!/bin/sh\n"
            f"exec podman --root {home}/root --runroot {home}/run --storage-driver vfs"
            ' "$@"\n'
        )
        self.program.chmod(0o755)
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "ENGINE": str(self.program),
            "CONTAINERS_REGISTRIES_CONF": str(configuration),
            "BUILDAH_ISOLATION": "chroot",  # there may be no cgroups to manage
        }

    def __call__(self, *words: str | Path) -> str:
        command = [self.program, *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def server() -> Iterator[registry.Registry]:
    if os.geteuid():
        pytest.skip("needs root, for podman's storage")
    with registry.running() as server:
        yield server


@pytest.fixture
def engine(server: registry.Registry) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="pod") as directory:
        engine = Engine(Path(directory), server)
        yield engine
        engine("rmi", "--all", "--force")


@pytest.fixture
def base(engine: Engine, server: registry.Registry, tmp_path: Path) -> str:
    """The name of a base image in the registry."""
    tree = tmp_path / "base"
    for name in ("bin", "tmp", "var/lib/apt/lists", "usr/bin"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin")
    for name in ("sh", "rm"):
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "usr/bin/apt-get").write_text('#!/bin/sh\necho "$*" >>/apt.log\n')
    (tree / "usr/bin/apt-get").chmod(0o755)
    subprocess.run(["tar", "-C", tree, "-cf", f"{tree}.tar", "."], check=True)
    name = f"{server.host}/base:12"
    engine("import", f"{tree}.tar", name)
    engine("push", "--quiet", name)
    engine("rmi", name)
    return name


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script reads; the file is one that says who it is."""
    tree = tmp_path / "checkout"
    shutil.copytree(ROOT / "deploy", tree / "deploy")
    (tree / "tools").mkdir()
    shutil.copy(ROOT / "tools/image.sh", tree / "tools")
    (tree / "dist").mkdir()
    (tree / FILE).write_text("#!/bin/sh\necho the file\n")
    (tree / FILE).chmod(0o755)
    return tree


def make_image(checkout: Path, engine: Engine, *words: str) -> subprocess.CompletedProcess[str]:
    command = [checkout / "tools/image.sh", *words]
    return subprocess.run(command, env=engine.env, capture_output=True, text=True, timeout=300)


def images(manifest: Path) -> set[str]:
    spec = yaml.safe_load(manifest.read_text())["spec"]["template"]["spec"]
    return {each["image"] for each in [*spec["initContainers"], *spec["containers"]]}


@pytest.mark.parametrize("tag", ["", ":1.2"])
def test_nodes_pull_what_was_pushed(
    engine: Engine, server: registry.Registry, base: str, checkout: Path, tag: str
) -> None:
    repository = f"{server.host}/site/cni"
    done = make_image(checkout, engine, f"{repository}{tag}", base)
    assert done.returncode == 0, done.stderr
    (image,) = images(checkout / "dist/daemonset.yaml")
    name, _, digest = image.partition("@")
    assert name == repository
    kind, data = server.manifests["site/cni", digest]
    assert "manifest" in kind
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert server.manifests["site/cni", tag.lstrip(":") or "latest"] == (kind, data)
    # As a node does it, which has nothing of this yet.
    engine("rmi", "--all", "--force")
    engine("pull", "--quiet", image)
    (found,) = json.loads(engine("image", "inspect", image))
    assert found["Config"]["Entrypoint"] == ["/usr/local/lib/cni/cni"]
    mounted = Path(engine("image", "mount", image))
    program = mounted / "usr/local/lib/cni/cni"
    assert program.read_bytes() == (checkout / FILE).read_bytes()
    assert os.access(program, os.X_OK)
    assert (
        "install --yes --no-install-recommends iptables nftables"
        in (mounted / "apt.log").read_text()
    )
    engine("image", "unmount", "--force", image)


def test_the_base_is_named_by_its_digest(
    engine: Engine, server: registry.Registry, base: str, checkout: Path
) -> None:
    """A tag is looked up once; what it means later changes nothing."""
    _, data = server.manifests["base", "12"]
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    done = make_image(checkout, engine, f"{server.host}/site/cni", base)
    assert f"built on {server.host}/base@{digest}" in done.stdout
    del server.manifests["base", "12"]
    again = make_image(checkout, engine, f"{server.host}/site/cni", f"{server.host}/base@{digest}")
    assert again.returncode == 0, again.stderr


def test_the_image_is_pushed_again_under_its_tag(
    engine: Engine, server: registry.Registry, base: str, checkout: Path
) -> None:
    """The manifest that was written before still names the image of then."""
    name = f"{server.host}/site/cni:edge"
    make_image(checkout, engine, name, base)
    (before,) = images(checkout / "dist/daemonset.yaml")
    (checkout / FILE).write_text("#!/bin/sh\necho a newer file\n")
    make_image(checkout, engine, name, base)
    (after,) = images(checkout / "dist/daemonset.yaml")
    assert before != after
    for image in (before, after):
        assert ("site/cni", image.partition("@")[2]) in server.manifests


def test_a_push_that_fails_writes_no_manifest(
    engine: Engine, server: registry.Registry, base: str, checkout: Path
) -> None:
    done = make_image(checkout, engine, "localhost:1/site/cni", base)
    assert done.returncode != 0
    assert re.search(r"connection refused", done.stderr)
    assert not (checkout / "dist/daemonset.yaml").exists()


def test_without_the_file_nothing_is_built(engine: Engine, checkout: Path) -> None:
    (checkout / FILE).unlink()
    done = make_image(checkout, engine, "registry.example/cni", "registry.example/base")
    assert (done.returncode, done.stdout) == (1, "")
    assert "run make build-selfcontained" in done.stderr
