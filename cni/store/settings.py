"""Which store, which node, which directory: of the configuration, or once for the node.

    /etc/cni/cluster.json    {"store": {"type": "etcd", …}, "nodeName": "n1", "dataDir": "…",
                              "nodeTimeout": 0, "reconcile": false}

What a network's configuration says comes before that file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .. import files
from ..protocol import config
from ..protocol.errors import CNIError

NODE_FILE = "/etc/cni/cluster.json"
NODE_FILE_VARIABLE = "CNI_CLUSTER_CONF"
DATA_DIR = "/var/lib/cni/cluster"
_MOST = 1 << 20
_EXAMPLE = (
    '{"store": {"type": "etcd", "endpoints": ["https://…"]}, "nodeName": "n1", "dataDir": "/…", '
    '"nodeTimeout": 0}'
)
# Keys that do not tell one store from another: credentials, and how long to wait.
_SECRET = frozenset(
    ("username", "passwordFile", "password", "certFile", "keyFile", "caFile", "token", "timeout")
)


class Settings(NamedTuple):
    """`store` is the object that an engine reads; None: there is none.

    An idle node whose server did not renew it for twice `timeout` seconds counts as gone; 0: none
    does.
    """

    data_dir: str
    node: str
    store: dict[str, Any] | None
    timeout: int

    @property
    def digest(self) -> str:
        """Stands for the store's settings in files of the node; credentials do not count."""
        # not hashlib, which loads OpenSSL
        from _blake2 import blake2b

        named = {key: value for key, value in (self.store or {}).items() if key not in _SECRET}
        return blake2b(msgspec.json.encode(named, order="sorted"), digest_size=8).hexdigest()


def read(ipam: dict[str, Any], env: Mapping[str, str]) -> Settings:
    """Those of the `ipam` object of a configuration, of the node's file, or the defaults.

    Raises CNIError for a wrong type, and for a file that is there and cannot be read.
    """
    path = env.get(NODE_FILE_VARIABLE) or NODE_FILE
    node = of_node(env)
    sources = [(ipam, "ipam."), (node, f"{path}: ")]
    store = _first(sources, "store", dict)
    data_dir = _first(sources, "dataDir", str) or DATA_DIR
    if "\0" in data_dir:
        raise CNIError("invalid dataDir", f"{data_dir!r} is not a path")
    name = _first(sources, "nodeName", str) or named(env) or os.uname().nodename.lower()
    timeout = _first(sources, "nodeTimeout", int) or 0
    if timeout < 0:
        raise CNIError(f"invalid nodeTimeout {timeout} (must not be negative)")
    return Settings(data_dir, check_word(name, "nodeName"), store, timeout)


def named(env: Mapping[str, str]) -> str:
    """NODENAME: of the environment, else of the server's that takes the request; empty if none."""
    if name := env.get("NODENAME"):
        return name
    from ..environment import with_own  # of few requests

    return with_own(env).get("NODENAME", "")


def of_node(env: Mapping[str, str]) -> dict[str, Any]:
    """What the node's file says; empty without one. Raises CNIError if it cannot be read."""
    return _node_file(env.get(NODE_FILE_VARIABLE) or NODE_FILE)


def data_dir(ipam: dict[str, Any], env: Mapping[str, str]) -> str:
    """Only the directory, which is all that DEL and GC need. Raises CNIError."""
    path = env.get(NODE_FILE_VARIABLE) or NODE_FILE
    own = _first([(ipam, "ipam.")], "dataDir", str)
    return own or _first([(_node_file(path), f"{path}: ")], "dataDir", str) or DATA_DIR


def reconciles(env: Mapping[str, str]) -> bool:
    """Does this node's server free the blocks of nodes that are gone (reconciling.py)?

    As the node's file says with `reconcile`; else where silent nodes may count as gone
    (`nodeTimeout`), but not on a Kubernetes API, where a node's account must not change what is
    others'. Raises CNIError.
    """
    path = env.get(NODE_FILE_VARIABLE) or NODE_FILE
    node = _node_file(path)
    wanted = config.lookup(node, "reconcile")
    if wanted is not None and not isinstance(wanted, bool):
        raise CNIError(f"`{path}: reconcile` is neither true nor false", _EXAMPLE)
    its = read({}, env)
    if its.store is None:
        return False
    return (
        wanted if wanted is not None else its.timeout > 0 and its.store.get("type") != "kubernetes"
    )


def _first(sources: list[tuple[dict[str, Any], str]], key: str, kind: type) -> Any:
    for values, where in sources:
        value = config.lookup(values, key)
        if value is None:
            continue
        # in Python, `true` would pass for a number
        if not isinstance(value, kind) or isinstance(value, bool):
            names = {dict: "a JSON object", str: "a string", int: "a whole number"}
            raise CNIError(f"`{where}{key}` is not {names[kind]}", _EXAMPLE)
        return value
    return None


def _node_file(path: str) -> dict[str, Any]:
    try:
        data = files.read(path, _MOST, follow=True)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CNIError(
            f"cannot read {path}: {(error.strerror or '').lower()}",
            "it says which store this node uses: make it a readable file, or remove it",
        ) from None
    try:
        return config.decode_object(data)
    except CNIError as error:
        raise error.wrapped(f"{path}: ") from None


def check_word(text: str, key: str) -> str:
    """A name that becomes a part of a key of the store and of a file's name. Raises CNIError."""
    plain = text.replace(".", "").replace("-", "").replace("_", "")
    if not (plain.isascii() and plain.isalnum()) or not text[0].isalnum() or len(text) > 200:
        raise CNIError(
            f"invalid {key} {text!r}",
            "a name is of letters, digits, '.', '_' and '-', and begins with a letter or digit",
        )
    return text
