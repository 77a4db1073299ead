"""deploy/: the manifest and the image agree with each other and with the code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.cli.commands import cli
from cni.cli.serve import SOCKET
from cni.intent import STATE_DIR
from cni.ipam.host_local.plugin import DATA_DIR
from cni.plugins.tuning.backup import DIRECTORY as TUNING
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
    assert server["securityContext"] == {"privileged": True}
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
    assert f"install --bin-dir {os.path.dirname(program)} " in text
    (server,) = pod["containers"]
    assert server["readinessProbe"]["exec"]["command"][0] == program
