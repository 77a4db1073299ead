"""The configuration files that a command line names, and their contents."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cni import files
from cni.describe import network
from cni.describe.network import Network
from cni.protocol.errors import CNIError

from . import conflist, errors

SUFFIXES = (".conflist", ".conf", ".json")
STDIN = "-"
# bytes; a configuration has a few kB, and a name like /dev/zero must not fill the memory
MAX_SIZE = 16 << 20
_HOW_NAMED = (
    f"the files of networks end in {', '.join(SUFFIXES)}; `cni network create` writes one, and "
    "NETCONFPATH names another directory"
)


@dataclass
class Files:
    """`asked`: the paths to judge. `context`: other files of the same directories.

    Networks of one directory must not have the same name, subnet or bridge, so both are read.
    """

    asked: list[str]
    context: list[str]


def files_of(targets: Sequence[str]) -> Files:
    """The files that the arguments name. Raises NotFound, CommandError."""
    directory = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
    asked: list[str] = []
    directories: list[str] = []
    for target in targets or (directory,):
        if target == STDIN:
            asked.append(STDIN)
        elif os.path.isdir(target) or not targets:
            directories.append(target)
            asked += _of_directory(target)
        elif os.path.exists(target) or "/" in target or target.endswith(SUFFIXES):
            if not os.path.exists(target):
                raise errors.NotFound(f"no such file: {target}")
            directories.append(os.path.dirname(target) or ".")
            asked.append(target)
        else:
            directories.append(directory)
            asked.append(_of_network(directory, target))
    return _with_context(list(dict.fromkeys(asked)), directories)


def _of_directory(directory: str) -> list[str]:
    """The files of a directory. Raises NotFound if there are none, which could hide a mistake."""
    paths = conflist.paths(directory)
    if not paths:
        raise errors.NotFound(f"no network configurations in {directory}", _HOW_NAMED)
    return paths


def files_of_network(name: str) -> Files:
    """The file of a network in NETCONFPATH. Raises NotFound, CommandError."""
    directory = os.environ.get("NETCONFPATH") or conflist.DEFAULT_DIRECTORY
    return _with_context([_of_network(directory, name)], [directory])


def _with_context(asked: list[str], directories: list[str]) -> Files:
    """The files, and the others in the same directories."""
    # A link to a file that is judged is not a second network.
    known = {os.path.realpath(each) for each in asked}
    context = [
        path
        for each in dict.fromkeys(directories)
        for path in conflist.paths(each)
        if os.path.realpath(path) not in known
    ]
    return Files(asked, list(dict.fromkeys(context)))


def _of_network(directory: str, name: str) -> str:
    """The file of a network: the first that has the name. Raises NotFound, NotPermitted."""
    forbidden: CNIError | None = None
    for path in conflist.paths(directory):
        try:
            found = network.read(path, read(path))
        except CNIError as error:
            forbidden = error if isinstance(error, errors.NotPermitted) else forbidden
            continue
        # The first in the order of libcni, which is the one that a runtime would use.
        if isinstance(found, Network) and found.name == name:
            return path
    if forbidden is not None:
        raise forbidden  # the network may be in that file
    known = ", ".join(conflist.known(directory)) or "none"
    raise errors.NotFound(f"no network {name} in {directory}", f"networks there: {known}")


def read(path: str) -> bytes:
    """The content of a file, or of stdin. Raises CommandError."""
    try:
        if path == STDIN:
            return sys.stdin.buffer.read(MAX_SIZE)
        return files.read(path, MAX_SIZE, follow=True)
    except OSError as error:
        raise errors.unreadable(path, error) from None
