"""`args.cni.labels` of a request, as a field of its line; loaded only where there are `args`.

The convention: a list of objects with `key` and `value`, of the CNI specification.
"""

from __future__ import annotations

from typing import Any

from ..protocol import config

_MOST = 64  # labels that are looked at


def of(args: object) -> str:
    """The labels as ``key=value,key=value``, in their order; "" without labels.

    Entries that do not follow the convention are left out.
    """
    listed = _get(_get(args, "cni"), "labels")
    if not isinstance(listed, list):
        return ""
    pairs = ((_get(each, "key"), _get(each, "value")) for each in listed[:_MOST])
    return ",".join(
        f"{key}={value}" for key, value in pairs if isinstance(key, str) and isinstance(value, str)
    )


def _get(value: object, key: str) -> Any:
    """The value of a key, as `config.lookup`; None also if `value` is no object."""
    return config.lookup(value, key) if isinstance(value, dict) else None
