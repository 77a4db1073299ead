"""The first steps of requests, done before the snapshot is written: no request repeats them.

msgspec makes the decoder of a class at its first use, and CPython specializes code that runs often
for the types it meets. With both in the snapshot a request executes half as many instructions.

This module only computes: it uses neither system calls nor files, so that it leaves the same memory
on every machine (docs/self-contained.md).
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import msgspec

from . import dispatch, standins
from .call import Verbs
from .protocol.config import VERSIONS
from .protocol.errors import CNIError
from .protocol.result import Result, encode_error

_OFTEN = 20  # more runs than CPython needs before it specializes code
_ENV = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/"}
_RESULT: dict[str, Any] = {
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/pod"}],
    "ips": [{"address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "192.0.2.1"}, {"dst": "2001:db8::/32"}],
    "dns": {"nameservers": ["192.0.2.53"]},
}


def rehearse() -> None:
    """Make all decoders; decode a configuration for each plugin, and results, often enough."""
    for name, module in list(sys.modules.items()):
        # nothing is decoded into descriptions of keys, which only commands import
        if name.startswith("cni.") and not name.startswith("cni.describe."):
            for value in list(vars(module).values()):
                if isinstance(value, type) and issubclass(value, msgspec.Struct):
                    _make_decoder(value)
    # modules that few plugins need are not in the snapshot: they would make the file larger
    loaded = [name for name, plugin in dispatch.TABLE.items() if plugin.module in sys.modules]
    gc.collect()
    gc.freeze()  # then collecting is quick
    for _ in range(_OFTEN):
        for name in loaded:
            _decode(name)
            gc.collect()  # freed memory is not zero, and would be written to the file
        for version in VERSIONS:
            _convert_result(version)
    assert standins.doubt is None


def _make_decoder(kind: type[msgspec.Struct]) -> None:
    try:
        msgspec.convert({}, kind)
    except (msgspec.ValidationError, CNIError, TypeError):
        pass  # the decoder is there all the same; TypeError: of a class that is only a base


def _decode(name: str) -> None:
    conf = {"cniVersion": "1.1.0", "name": "net", "type": name, "ipam": {"type": "host-local"}}
    stdin = msgspec.json.encode({**conf, "prevResult": {"cniVersion": "1.1.0", **_RESULT}})
    Verbs.of(dispatch._module(name))
    dispatch.begin(name, _ENV, lambda: stdin, convert=True)
    dispatch.begin(name, {**_ENV, "CNI_COMMAND": "VERSION"}, lambda: stdin)


def _convert_result(version: str) -> None:
    ips = [{**ip, "version": "4"} for ip in _RESULT["ips"]]
    try:
        Result.parse({**_RESULT, "ips": ips, "cniVersion": version}, version).encode(version)
    except CNIError as error:  # the oldest versions have another format
        encode_error(error)
