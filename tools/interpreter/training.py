"""What the interpreter is used for while it counts what it executes (`--pgo`).

Requests that need no namespace and no privilege: starting, importing, classes, JSON, files. Each
run is the same, so that the counts, and with them the file, are the same each time: the addresses
and the seed of the hashes are fixed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from tools.interpreter import image, modules
from tools.interpreter.cpython import COUNT, Build
from tools.interpreter.sources import BuildError

_PLUGINS = ("bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "static", "tuning")
_RANGES = [[{"subnet": "10.1.0.0/16"}], [{"subnet": "fd01::/64"}]]
_ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd01::1"}]
_ADDRESSES = [{"address": "10.2.0.9/24", "gateway": "10.2.0.1"}, {"address": "fd02::9/64"}]
_ROUNDS = 10


def train(built: Build, files: dict[str, bytes]) -> None:
    """Run requests by an interpreter that is linked with the counting `built`."""
    folder = built.source.parent / "training"
    frozen = modules.closure(modules.Sources(files, built.source / "Lib"))
    image.link(built, frozen, folder, *COUNT, "-DCNI_TRAINING")
    for counts in _counts(built):
        counts.unlink()  # of the interpreter that has written the frozen modules
    for name in ("cni", *_PLUGINS):
        (folder / name).symlink_to("image")
    for plugin in _PLUGINS:
        _request(folder, plugin, "VERSION", {})
        _request(folder, plugin, "STATUS", {"nonsense": 1})
    state = {"type": "host-local", "dataDir": str(folder / "networks")}
    for number in range(_ROUNDS):
        _verbs(folder, number, "host-local", {**state, "ranges": _RANGES, "routes": _ROUTES})
        _verbs(folder, number, "static", {"type": "static", "addresses": _ADDRESSES})
    for words in (["--help"], ["plugins"]):
        _run(folder, "cni", words)
    shutil.rmtree(folder / "networks", ignore_errors=True)
    if not _counts(built):
        raise BuildError(f"nothing was counted: see {folder}")


def _counts(built: Build) -> list[Path]:
    return list(built.source.parent.rglob("*.gcda"))


def _verbs(folder: Path, number: int, plugin: str, ipam: dict[str, object]) -> None:
    conf = {"ipam": ipam}
    previous = {"cniVersion": "1.1.0", "ips": [{"address": f"10.1.0.{number + 2}/16"}]}
    for command in ("ADD", "CHECK", "DEL"):
        more = {"prevResult": previous} if command == "CHECK" else {}
        _request(folder, plugin, command, {**conf, **more})


def _request(folder: Path, plugin: str, command: str, conf: dict[str, object]) -> None:
    document = {"cniVersion": "1.1.0", "name": "net", "type": plugin, **conf}
    stdin = folder / "stdin"
    stdin.write_text(json.dumps(document))
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/nonexistent",
        "CNI_PATH": str(folder),
    }
    _run(folder, plugin, [], **env)


def _run(folder: Path, program: str, words: list[str], **env: str) -> None:
    """Run it; whether it succeeds does not matter.

    Without random addresses, where that is permitted: in some containers it is not.
    """
    script = 'setarch -R true && exec setarch -R "$@"; exec "$@"'
    with (folder / "stdin").open("a+") as stdin:
        stdin.seek(0)
        subprocess.run(
            ["sh", "-c", script, "sh", folder / program, *words],
            check=False,
            cwd=folder,
            env={"PATH": os.environ["PATH"], **env},
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
