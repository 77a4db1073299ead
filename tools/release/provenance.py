"""From what the files were made: an in-toto statement with SLSA's provenance predicate.

https://github.com/in-toto/attestation (spec/v1), https://slsa.dev/spec/v1.0/provenance. It is not
signed, and has no times, so that it is the same whoever builds the commit with the same tools; a
service that builds may sign it, or wrap it in a statement of its own.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from .components import Component
from .source import Source

BUILD_TYPE = "tag:cni-plugins.invalid,2026:make-release/v1"
# What a service sets to its own name.
BUILDER = "CNI_BUILDER_ID"
_TOOLS = {
    "dpkg-deb": ["dpkg-deb", "--version"],
    "rpmbuild": ["rpmbuild", "--version"],
    "gcc": ["gcc", "--version"],
    "musl-tools": ["dpkg-query", "-W", "-f", "${Version}", "musl-tools"],
}


def statement(
    source: Source, digests: Mapping[str, str], used: Iterable[Component], machines: Iterable[str]
) -> str:
    """The statement, as JSON, about files with these SHA-256 `digests`."""
    value = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digests[name]}} for name in sorted(digests)
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"version": source.version, "machines": sorted(machines)},
                "internalParameters": {"tools": tools()},
                "resolvedDependencies": [_repository(source), *_dependencies(used)],
            },
            "runDetails": {"builder": {"id": os.environ.get(BUILDER, f"{BUILD_TYPE}/by-hand")}},
        },
    }
    return json.dumps(value, indent=2) + "\n"


def tools() -> dict[str, str]:
    """The first line that each tool prints about its version."""
    found = {"python": platform.python_version()}
    for name, command in _TOOLS.items():
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError:
            continue
        if done.returncode == 0:
            found[name] = done.stdout.partition("\n")[0]
    return found


def _repository(source: Source) -> dict[str, Any]:
    return {"name": "cni-plugins", "digest": {"gitCommit": source.commit}}


def _dependencies(used: Iterable[Component]) -> list[dict[str, Any]]:
    sources = {(each.purl, *file) for each in used for file in each.sources}
    return [
        {"name": name, "uri": purl, "digest": {"sha256": digest}}
        for purl, name, digest in sorted(sources)
    ]
