"""Which requests are written down, and where.

The first that is set counts: the environment of the request, the plugin's configuration, the node's
own file, and at last the errors, in the journal. Level and file are looked up each by itself.

    CNI_LOG_LEVEL, CNI_LOG_FILE          of the runtime's environment
    logLevel, logFile                    keys of the plugin's configuration
    /etc/cni/record.json                 the same two keys, for all plugins of the node

A configuration may come from somebody who must not choose where root writes, as in Kubernetes from
the author of a NetworkAttachmentDefinition. So its file has to be one in DIRECTORY.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .. import files

OFF, ERRORS, ALL = LEVELS = ("off", "errors", "all")
JOURNAL = "journal"  # instead of a file
DIRECTORY = "/var/log/cni"  # what a configuration may name a file in
NODE_FILE = "/etc/cni/record.json"
NODE_VARIABLE = "CNI_RECORD_CONF"  # another file instead of that
_LEVEL_VARIABLE, _FILE_VARIABLE = "CNI_LOG_LEVEL", "CNI_LOG_FILE"
_LEVEL_KEY, _FILE_KEY = "loglevel", "logfile"
_MAX_NODE_FILE = 1 << 16


class Settings(NamedTuple):
    """Which requests are written down, and where: an absolute path, or JOURNAL.

    `is_confined` tells that a configuration has chosen the file.
    """

    level: str
    file: str
    is_confined: bool = False

    def want(self, code: int) -> bool:
        """Is a request with this exit code to be written down?"""
        return self.level == ALL or (self.level == ERRORS and code != 0)


def of_request(
    env: Mapping[str, str], conf: Mapping[str, Any], node: Mapping[str, str]
) -> Settings:
    """What holds for a request; `node` is what `of_node` gave. Values of another kind are ignored.

    Where only a file is named, errors are written.
    """
    own = _chosen(conf)
    level = _level(env.get(_LEVEL_VARIABLE)) or own.get(_LEVEL_KEY) or node.get(_LEVEL_KEY)
    file = _file(env.get(_FILE_VARIABLE))
    confined = not file and _FILE_KEY in own
    return Settings(
        level or ERRORS, file or own.get(_FILE_KEY) or node.get(_FILE_KEY) or JOURNAL, confined
    )


def of_node(env: Mapping[str, str]) -> dict[str, str]:
    """What the node's own file says; nothing, if it cannot be read."""
    try:
        raw = msgspec.json.decode(files.read(node_file(env), _MAX_NODE_FILE, follow=True))
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return {}
    return _chosen(raw) if isinstance(raw, dict) else {}


def node_file(env: Mapping[str, str]) -> str:
    """The path of the node's own file."""
    return env.get(NODE_VARIABLE) or NODE_FILE


def _chosen(raw: Mapping[str, Any]) -> dict[str, str]:
    """The usable values of the two keys, whose case does not matter."""
    found = {}
    for key, value in raw.items():
        folded = key.lower()
        usable = ""
        if folded == _LEVEL_KEY:
            usable = _level(value)
        elif folded == _FILE_KEY:
            usable = _file(value)
        if usable:
            found[folded] = usable
    return found


def _level(value: Any) -> str:
    return value if isinstance(value, str) and value in LEVELS else ""


def _file(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        return ""
    return value if value == JOURNAL or value.startswith("/") else ""
