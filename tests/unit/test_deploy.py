"""deploy/: the manifest and the image agree with each other and with the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.cli.group import cli
from cni.cli.serve import SOCKET
from cni.intent import STATE_DIR
from cni.ipam.host_local.plugin import DATA_DIR
from cni.plugins.tuning.backup import DIRECTORY as TUNING
from cni.server import relief
from cni.server.supervisor import _DRAIN_SECONDS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "daemonset.yaml").read_text())
    assert document["kind"] == "DaemonSet"
    template = document["spec"]["template"]
    assert document["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
    spec: dict[str, Any] = template["spec"]
    return spec


def mounts(container: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def test_the_node_s_directories_are_at_their_own_paths(pod: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    used = set()
    for container in [*pod["initContainers"], *pod["containers"]]:
        for path, mount in mounts(container).items():
            assert volumes[mount["name"]] == path
            used.add(mount["name"])
    assert used == set(volumes)


def test_what_plugins_keep_is_the_node_s(pod: dict[str, Any]) -> None:
    (server,) = pod["containers"]
    kept = {path for path, mount in mounts(server).items() if not mount.get("readOnly")}
    for path in (SOCKET, DATA_DIR, STATE_DIR, TUNING, "/run/xtables.lock"):
        above = {path, *map(str, Path(path).parents)}
        assert kept & above, f"{path} is not the node's"
    assert mounts(server)["/run/netns"]["mountPropagation"] == "HostToContainer"


def test_the_server_may_do_what_it_has_to(pod: dict[str, Any]) -> None:
    (server,) = pod["containers"]
    assert pod["hostNetwork"] is True
    assert server["securityContext"]["privileged"] is True
    assert pod["hostPID"] is True, "or it could not compare its clients' capabilities"
    assert pod["terminationGracePeriodSeconds"] > _DRAIN_SECONDS


def test_the_commands_are_ours(pod: dict[str, Any]) -> None:
    (install,), (server,) = pod["initContainers"], pod["containers"]
    for words in (install["args"], server["args"], server["readinessProbe"]["exec"]["command"][1:]):
        name, *arguments = words
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        command.make_context(name, list(arguments))
    bin_dir = install["args"][install["args"].index("--bin-dir") + 1]
    assert bin_dir in mounts(install)
    assert bin_dir in mounts(server)


def test_the_image_has_what_the_manifest_runs(pod: dict[str, Any]) -> None:
    text = (DEPLOY / "Containerfile").read_text()
    found = re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert found is not None
    (program,) = json.loads(found[1])
    assert f"COPY ${{FILE}} {program}\n" in text
    (server,) = pod["containers"]
    assert server["readinessProbe"]["exec"]["command"][0] == program


def test_nothing_in_a_container_can_be_changed_but_what_is_the_node_s(pod: dict[str, Any]) -> None:
    (install,), (server,) = pod["initContainers"], pod["containers"]
    for container in (install, server):
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert "memory" in container["resources"]["limits"]
    assert list(mounts(install)) == ["/opt/cni/bin"]
    writable = {path for path, mount in mounts(server).items() if not mount.get("readOnly")}
    assert writable == {"/run/cni", "/var/lib/cni", "/var/log/cni", "/run/xtables.lock"}
    assert install["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert install["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_workers_stay_below_the_memory_limit(pod: dict[str, Any]) -> None:
    (server,) = pod["containers"]
    args = server["args"]
    workers = int(args[args.index("--workers") + 1])
    each = int(args[args.index("--max-memory") + 1])
    limit = server["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    shared = 20  # MiB of a worker, as measured (docs/scale.md)
    others = 288  # the supervisor, and 60 executors of 4 MiB each
    assert relief.most(workers) * (each - shared) + others <= int(limit[:-2])


ENGINE = """#!/bin/sh
printf '%s\n' "$*" >> "$LOG"
case $1 in
    image) echo "$BASE_DIGEST" ;;
    push)
        while [ $# -gt 1 ]; do
            [ "$1" = --digestfile ] && printf %s "$DIGEST" > "$2"
            shift
        done ;;
esac
"""
DIGEST = "sha256:" + "ab" * 32
BASE = "registry.example/debian@sha256:" + "cd" * 32


@pytest.fixture
def make_image(tmp_path: Path) -> Callable[..., tuple[subprocess.CompletedProcess[str], str, str]]:
    """tools/image.sh with an engine that only writes down what it is told: (run, log, manifest)."""
    source = tmp_path / "source"
    shutil.copytree(DEPLOY, source / "deploy")
    (source / "tools").mkdir()
    shutil.copy(DEPLOY.parent / "tools/image.sh", source / "tools")
    file = source / f"dist/cni-linux-{os.uname().machine}"
    file.parent.mkdir()
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    engine, log = tmp_path / "engine", tmp_path / "log"
    engine.write_text(ENGINE)
    engine.chmod(0o755)

    def work(*arguments: str, digest: str = DIGEST) -> Any:
        env = {"PATH": os.environ["PATH"], "ENGINE": str(engine), "LOG": str(log)}
        env |= {"DIGEST": digest, "BASE_DIGEST": BASE}
        command = [str(source / "tools/image.sh"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        manifest = source / "dist/daemonset.yaml"
        text = manifest.read_text() if manifest.exists() else ""
        assert sorted(source.glob("dist/*")) == sorted([file, *[manifest] * bool(text)])
        return done, log.read_text() if log.exists() else "", text

    return work


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("registry.example:5000/a/cni", "registry.example:5000/a/cni"),
        ("registry.example:5000/a/cni:1.2", "registry.example:5000/a/cni"),
        ("localhost/cni:dev", "localhost/cni"),
    ],
)
def test_image_and_base_are_named_by_digest(
    make_image: Callable[..., Any], name: str, repository: str
) -> None:
    done, log, manifest = make_image(name)
    assert done.returncode == 0, done.stderr
    assert f"--build-arg BASE={BASE} --build-arg FILE=dist/cni-linux-{os.uname().machine} " in log
    spec = yaml.safe_load(manifest)["spec"]["template"]["spec"]
    images = {each["image"] for each in [*spec["initContainers"], *spec["containers"]]}
    assert images == {f"{repository}@{DIGEST}"}


def test_a_base_that_is_named_by_digest_is_used(make_image: Callable[..., Any]) -> None:
    base = "registry.example/other@sha256:" + "12" * 32
    done, log, _ = make_image("registry.example/cni", base)
    assert done.returncode == 0, done.stderr
    assert f"--build-arg BASE={base} " in log
    assert "pull" not in log


@pytest.mark.parametrize("digest", ["", "latest", "sha256:12"])
def test_without_a_digest_there_is_no_manifest(make_image: Callable[..., Any], digest: str) -> None:
    done, _, manifest = make_image("registry.example/cni", digest=digest)
    assert done.returncode == 1
    assert "gave no digest" in done.stderr
    assert manifest == ""


def test_an_image_needs_a_name(make_image: Callable[..., Any]) -> None:
    done, log, manifest = make_image("")
    assert done.returncode != 0
    assert (log, manifest) == ("", "")


def test_the_manifest_and_the_image_have_no_tag() -> None:
    assert set(re.findall(r"image: (?:&image )?(.*)", (DEPLOY / "daemonset.yaml").read_text())) == {
        '"@IMAGE@"',
        "*image",
    }
    assert re.findall(r"^FROM (.*)$", (DEPLOY / "Containerfile").read_text(), re.MULTILINE) == [
        "${BASE}"
    ]
