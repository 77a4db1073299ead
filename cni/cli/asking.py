"""STATUS of plugins that may be older than STATUS, or of another build or project.

The obstacles of an ADD do not depend on the installed program: a range that is full is full for the
Go plugins, too. If the installed plugin cannot be asked, or tells little, this file's own plugin of
that name runs its STATUS, if that looks only at things that are the same for both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from cni import delegate, dispatch
from cni.call import Call, Verbs
from cni.describe import catalogue
from cni.kernel.errors import KernelError
from cni.protocol import config
from cni.protocol import version as versions
from cni.protocol.errors import CNIError, from_exception
from cni.protocol.request import Request
from cni.protocol.result import Result

from . import gojson
from .conflist import NetworkList, PluginConf
from .runtime import Runtime

_VERSION = "1.1.0"  # the first with STATUS
# Plugins whose STATUS reads only the kernel, the node's files and the configuration. Others look
# for a daemon or backend, which may differ in another build.
_LOOK_AT_THE_NODE = frozenset(
    {
        *("bandwidth", "bridge", "dummy", "flannel", "host-device", "host-local", "ipvlan"),
        *("loopback", "macvlan", "ptp", "sbr", "slaac", "static", "tap", "tuning", "vlan", "vrf"),
        *("macvtap", "sriov", "tc-redirect-tap", "vxlan", "wireguard"),
    }
)


def ask(network: NetworkList, runtime: Runtime) -> list[str]:
    """Ask each plugin of a network whether it is ready; return those that were not asked, and why.

    Raises the first error. Networks older than STATUS are passed to the plugins as if they had
    version 1.1.0.
    """
    try:
        if not versions.at_least(versions.CURRENT, network.version):
            return []  # of a version that no plugin speaks: cni validate says so
        is_new = versions.at_least(network.version, _VERSION)
    except CNIError:
        return []  # likewise
    unasked = []
    for plugin in network.plugins:
        # One at a time, as each may have to be asked in another way.
        alone = network._replace(version=_VERSION, plugins=(plugin,))
        is_own = _is_own(plugin, runtime.path)
        # libcni asks from 1.1.0 on; this project's plugins answer for older configurations, too.
        if is_new or is_own:
            runtime.status(alone)
        kind = catalogue.known_as(plugin.type)
        # The Go plugins' STATUS succeeds without looking at much, so this is done in addition.
        if kind in _LOOK_AT_THE_NODE and not is_own:
            _look(kind, alone, plugin, runtime.path)
        elif not is_new and not is_own:
            unasked.append(_unasked(network, plugin, kind))
    return unasked


def _unasked(network: NetworkList, plugin: PluginConf, kind: str | None) -> str:
    version = network.version or versions.DEFAULT
    other = ", and the installed one is of another build" if kind else ""
    return f"{plugin.type}, since cniVersion {version} has no STATUS{other}"


def _is_own(plugin: PluginConf, path: list[str]) -> bool:
    """Would an ADD run only plugins of this file, including those that the plugin calls?"""
    return all(_is_ourselves(name, path) for name in (plugin.type, *_called(plugin.raw)))


def _called(conf: dict[str, Any]) -> Iterator[str]:
    """The plugins that a plugin's object names."""
    for key in ("ipam", "delegate"):
        inner = config.lookup(conf, key)
        conf_of = inner if isinstance(inner, dict) else {}
        name = config.lookup(conf_of, "type")
        if isinstance(name, str) and name:
            yield name
        # flannel fills in these two if its configuration names no others.
        elif key == "delegate" and catalogue.known_as(_type(conf)) == "flannel":
            yield from ("bridge", "host-local")
        if key == "delegate" and conf_of:
            yield from _called(conf_of)


def _type(conf: dict[str, Any]) -> str:
    name = config.lookup(conf, "type")
    return name if isinstance(name, str) else ""


def _is_ourselves(name: str, path: list[str]) -> bool:
    try:
        return dispatch.find(name) is not None and delegate.is_ourselves(delegate.find(name, path))
    except CNIError:
        return False


def _look(kind: str, network: NetworkList, plugin: PluginConf, path: list[str]) -> None:
    """Run STATUS of this file's plugin `kind`, in this process. Raises CNIError."""
    try:
        for name in (plugin.type, *_called(plugin.raw)):
            delegate.find(name, path)
    except CNIError:
        return  # a plugin is missing, which is worse; cni validate reports it
    conf = {**plugin.raw, "name": network.name, "cniVersion": network.version}
    # Not this process's environment: its CNI variables do not belong to this request.
    env = {"PATH": os.environ.get("PATH", os.defpath), "CNI_COMMAND": "STATUS"}
    request = Request(
        command="STATUS",
        container_id="",
        netns="",
        ifname="",
        args="",
        path=path,
        stdin=gojson.encode_sorted(conf),
        env=env,
    )
    _status(kind, request)


def _status(kind: str, request: Request) -> None:
    entry = dispatch.TABLE[kind]
    verbs = Verbs.of(import_module(entry.module))
    if verbs.status is None:
        return
    raw = config.decode_object(request.stdin)
    # In this process, since the program of that name in CNI_PATH may be another project's.
    call: Call[Any] = Call(
        kind, request, raw, _VERSION, verbs.conf, entry.conf_error, _delegate_looks
    )
    try:
        verbs.status(call)
    except KernelError as error:
        raise from_exception(error) from None
    finally:
        call.close()


def _delegate_looks(name: str, _program: str, request: Request) -> tuple[bool, Result | None]:
    """As delegate.InProcess, with this file's plugin, even if another program is installed."""
    kind = catalogue.known_as(name)
    if kind in _LOOK_AT_THE_NODE:
        _status(kind, request)
    return True, None
