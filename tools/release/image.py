"""The DaemonSet's image as an OCI archive: one tar file with an image for each machine.

Written to the image specification (https://github.com/opencontainers/image-spec) without a
container engine, so that the digest depends on the content alone. `podman load --input FILE` and
`skopeo copy oci-archive:FILE docker://…` read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .archive import Entry, compress, directories, tar
from .source import Source

_TYPE = "application/vnd.oci.image."
# Where deploy/daemonset.yaml expects the program.
PROGRAM = "usr/local/lib/cni/cni"
TITLE = "cni-plugins"


@dataclass
class Archive:
    """The archive's bytes, and the digest of its index, by which a manifest names the image."""

    data: bytes
    digest: str


@dataclass
class _Store:
    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, kind: str, data: bytes) -> dict[str, Any]:
        """Keep a blob; its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": f"{_TYPE}{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def add_json(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        return self.add(kind, _json(value))


def archive(
    source: Source,
    executables: Mapping[str, bytes],
    documents: Mapping[str, bytes],
    layers: Mapping[str, Sequence[bytes]],
) -> Archive:
    """The archive with an image for each architecture (as Go calls it) of `executables`.

    `layers` are further layers of each, below the program's: uncompressed tar files.
    """
    store = _Store()
    manifests = []
    for arch, executable in sorted(executables.items()):
        own = _layer(executable, documents, source.epoch)
        manifest = _manifest(store, source, arch, [*layers.get(arch, ()), own])
        manifests.append({**manifest, "platform": {"architecture": arch, "os": "linux"}})
    index = store.add_json("index.v1+json", _index(manifests))
    # One name for the whole: engines choose the machine's image behind it.
    name = f"localhost/{TITLE}:v{source.version}"
    named = {"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
    top = _json(_index([{**index, "annotations": named}]))
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": top}
    files |= {f"blobs/sha256/{digest}": data for digest, data in store.blobs.items()}
    entries = [Entry(name, files[name]) for name in sorted(files)]
    return Archive(tar([*directories(entries), *entries], source.epoch), index["digest"])


def _layer(executable: bytes, documents: Mapping[str, bytes], epoch: int) -> bytes:
    entries = [Entry(PROGRAM, executable, 0o755), Entry("usr/local/bin/cni", link=f"/{PROGRAM}")]
    entries += [Entry(f"usr/share/doc/{TITLE}/{name}", data) for name, data in documents.items()]
    # Mount points: the root of a container is read-only. None may take the place of a link to /usr.
    points = (
        "tmp",
        "proc",
        "sys",
        "dev",
        "etc",
        "run",
        "var/lib/cni",
        "opt/cni/bin",
        "usr/lib/modules",
    )
    made = {each.name: each for each in directories([*entries, *(Entry(f"{p}/_") for p in points)])}
    made["tmp"] = Entry("tmp", mode=0o1777)
    return tar([*(made[name] for name in sorted(made)), *sorted(entries, key=_name)], epoch)


def _name(entry: Entry) -> str:
    return entry.name


def _manifest(store: _Store, source: Source, arch: str, layers: list[bytes]) -> dict[str, Any]:
    created = datetime.fromtimestamp(source.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = store.add_json(
        "config.v1+json",
        {
            "created": created,
            "architecture": arch,
            "os": "linux",
            "config": {
                "Entrypoint": [f"/{PROGRAM}"],
                "Cmd": ["serve"],
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": _labels(source),
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers],
            },
            "history": [{"created": created, "created_by": "make release"} for _ in layers],
        },
    )
    blobs = [store.add("layer.v1.tar+gzip", compress(each)) for each in layers]
    manifest = {"schemaVersion": 2, "mediaType": f"{_TYPE}manifest.v1+json", "config": config}
    return store.add_json("manifest.v1+json", {**manifest, "layers": blobs})


def _labels(source: Source) -> dict[str, str]:
    prefix = "org.opencontainers.image."
    return {
        f"{prefix}title": TITLE,
        f"{prefix}version": source.version,
        f"{prefix}revision": source.commit,
    }


def _index(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{_TYPE}index.v1+json", "manifests": manifests}


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
