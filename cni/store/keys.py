"""Keys of a store's items, and their values as bytes: what every engine checks in the same way."""

from __future__ import annotations

import msgspec

from .interface import Refused, Value

_IN_WORDS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
LONGEST_KEY = 1024  # characters
LARGEST_VALUE = 1 << 20  # bytes of JSON; etcd takes 1.5 MiB a request, Kubernetes as much an object


def check_key(key: str) -> None:
    """Raises Refused unless `key` consists of words with `/` between them (interface.py)."""
    if not key or len(key) > LONGEST_KEY:
        raise Refused(f"key {key[:80]!r} has {len(key)} characters, not 1 to {LONGEST_KEY}")
    for word in key.split("/"):
        if not word or not _IN_WORDS.issuperset(word):
            raise Refused(
                f"key {key!r}: {word!r} is no word of letters, digits, '.', '_' and '-'",
                "choose other names in the configuration",
            )


def check_prefix(prefix: str) -> None:
    """Raises Refused unless `prefix` is empty or a key with a `/` behind it."""
    if prefix:
        if not prefix.endswith("/"):
            raise Refused(f"prefix {prefix!r} does not end with '/'")
        check_key(prefix[:-1])


def encode(key: str, value: Value) -> bytes:
    """`value` as JSON without line feeds. Raises Refused, if it is too large."""
    data = msgspec.json.encode(value)
    if len(data) > LARGEST_VALUE:
        raise Refused(f"the value of {key} has {len(data)} bytes, more than {LARGEST_VALUE}")
    return data
