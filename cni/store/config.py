"""The configuration of a store, `"store": {"type": …}`: its keys, and the engine that it names.

Every engine's module has `connect(options) -> Store`. It gets the object as it was written, says by
name which key is wrong, and does not connect before the first request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from .interface import Refused, Store

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T", bound="Options")

ENGINES = ("directory", "etcd", "kubernetes")


class Options(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Keys of every engine. `timeout`: seconds for one request, with all its attempts."""

    type: str
    timeout: float = 10.0


class DirectoryOptions(Options):
    """Keys of the engine `directory`."""

    path: str = "/var/lib/cni/cluster/store"


class EtcdOptions(Options):
    """Keys of the engine `etcd`; files are PEM, `passwordFile` holds a line of text.

    `stateDir`: where is noted how far the store was, on this node; empty: nowhere.
    """

    endpoints: list[str] = []
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    username: str = ""
    password_file: str = ""
    prefix: str = "/cni/v1"
    state_dir: str = "/var/lib/cni/cluster"


def open_store(options: Mapping[str, Any]) -> Store:
    """The engine that `options` names, not connected yet. Raises Refused, which names the key."""
    name = options.get("type")
    if name not in ENGINES:
        raise Refused(f"store.type: {name!r} is unknown", f"use one of {', '.join(ENGINES)}")
    # Only the wanted engine is loaded: the directory needs no sockets.
    from importlib import import_module

    store: Store = import_module(f"{__package__}.{name}").connect(options)
    return store


def decode(options: Mapping[str, Any], kind: type[T]) -> T:
    """The keys as a Struct. Raises Refused, which names the wrong one, and those that there are."""
    known = kind.__struct_encode_fields__
    for key in options:
        if key not in known:
            raise Refused(f"store.{key}: unknown key", f"the keys are {', '.join(known)}")
    try:
        decoded = msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        text, _, where = str(error).partition(" - at `$")
        field = where.rstrip("`") or ""
        raise Refused(f"store{field}: {text}", "correct the key's value") from None
    if not 0 < decoded.timeout <= 600:
        raise Refused(f"store.timeout: {decoded.timeout:g}", "set it to seconds, more than 0")
    return decoded


def check_path(key: str, path: str) -> None:
    """Raises Refused unless `path` is absolute, or empty."""
    if path and not path.startswith("/"):
        raise Refused(f"store.{key}: {path!r} is no absolute path", "let it begin with '/'")
