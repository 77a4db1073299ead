"""Network configuration lists: finding, reading and checking them as libcni does
(docs/spec/protocol.md §8).

    NetworkList  name, version, switches, plugins ─┬─ PluginConf  type, name, capabilities, raw
                                                   └─ …

As in Go, keys of the list itself are matched exactly, and those of a plugin in any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from cni import files
from cni.protocol import config
from cni.protocol import version as versions
from cni.protocol.errors import CNIError
from cni.protocol.request import check_network_name

from . import errors, gojson

# Texts are libcni's, so that what is written about its errors applies here, too.
_LIST = "error parsing configuration list: "
_PLUGIN = "error parsing configuration: "
_MAX_SIZE = 16 << 20  # bytes of a file
DEFAULT_DIRECTORY = "/etc/cni/net.d"

T = TypeVar("T")


class PluginConf(NamedTuple):
    """A plugin of a list: `raw` is its object as written; the other fields are libcni's."""

    type: str
    name: str
    version: str
    capabilities: frozenset[str]
    raw: dict[str, Any]


class NetworkList(NamedTuple):
    """A network: the keys for all of its plugins, and the plugins in the order of ADD.

    `data` are the bytes for the result cache.
    """

    name: str
    version: str
    disable_check: bool
    disable_gc: bool
    only_inlined: bool
    plugins: tuple[PluginConf, ...]
    data: bytes


class NetworkNotFound(errors.NotFound):
    """No configuration in the directory has that name."""


class _Head(config.NetConf):
    """The keys of a plugin's object that libcni decodes."""

    capabilities: dict[str, bool | None] = {}


def load(directory: str, name: str) -> NetworkList:
    """The network `name`: from the first ``*.conflist`` with it, else ``*.conf`` or ``*.json``.

    An earlier malformed file is also an error. Raises CNIError, NetworkNotFound.
    """
    lists = _files(directory, (".conflist",))
    for path in lists:
        network_list = from_file(path)
        # Not only the files with the name: libcni, too, fails for a malformed one before it.
        if network_list.name == name:
            return network_list
    singles = _files(directory, (".conf", ".json"))
    for path in singles:
        conf = _in_file(path, plugin_from_bytes)
        if conf.name == name:
            return _upconvert(conf)
    if not lists and not singles:
        raise NetworkNotFound(
            f"no net configurations found in {directory}",
            "put a .conflist file there, or set NETCONFPATH to the directory that has one",
        )
    raise NetworkNotFound(
        f'no net configuration with name "{name}" in {directory}',
        f"networks there: {', '.join(known(directory)) or 'none'}",
    )


def known(directory: str) -> list[str]:
    """The names of all networks in `directory`, sorted; skips unreadable files."""
    network_names = set()
    try:
        paths = _files(directory, (".conflist", ".conf", ".json"))
    except CNIError:
        return []
    for path in paths:
        try:
            name = gojson.decode_object(_read(path)).get("name")
        except CNIError:
            continue
        if isinstance(name, str) and name:
            network_names.add(name)
    return sorted(network_names)


class Configured(NamedTuple):
    """A file of a directory, and the network in it or why there is none."""

    path: str
    network: NetworkList | None
    problem: CNIError | None = None


def survey(directory: str) -> list[Configured]:
    """Every file of `directory` in the order in which `load` looks at them.

    Raises CNIError if the directory cannot be read; there may be none.
    """
    found = [_surveyed(path, from_file) for path in _files(directory, (".conflist",))]
    for path in _files(directory, (".conf", ".json")):
        found.append(_surveyed(path, lambda path: _upconvert(_in_file(path, plugin_from_bytes))))
    return found


def _surveyed(path: str, read: Callable[[str], NetworkList]) -> Configured:
    try:
        return Configured(path, read(path))
    except CNIError as error:
        return Configured(path, None, error)


def all_of(directory: str) -> list[NetworkList]:
    """The networks of `directory`, each name once: those of `load` if no file were broken.

    Raises CNIError if the directory cannot be read.
    """
    by_name: dict[str, NetworkList] = {}
    for each in survey(directory):
        if each.network is not None:
            by_name.setdefault(each.network.name, each.network)
    return list(by_name.values())


def paths(directory: str) -> list[str]:
    """The configurations in a directory, in the order in which `load` looks at them.

    Raises CNIError if it cannot be read; one that is missing has none.
    """
    return _files(directory, (".conflist",)) + _files(directory, (".conf", ".json"))


def paths_beside(path: str, name: str) -> list[str]:
    """The files of the plugins that belong to the list `name` in the file `path`."""
    return _files(os.path.join(os.path.dirname(path), name), (".conf",))


def from_file(path: str) -> NetworkList:
    """A ``.conflist`` file, with the plugins from ``<network name>/*.conf`` beside it."""
    return _in_file(path, lambda data: _complete(from_bytes(data), os.path.dirname(path)))


def from_bytes(data: bytes) -> NetworkList:
    """A configuration list without what is in other files. Raises CNIError."""
    try:
        raw = gojson.decode_object(data)
    except CNIError as error:
        raise error.wrapped(_LIST) from None
    if "name" not in raw:
        raise CNIError(f"{_LIST}no name")
    name = raw["name"]
    if not isinstance(name, str):
        raise CNIError(f"{_LIST}invalid name type {gojson.go_type(name)}")
    only_inlined = _switch(raw, "loadOnlyInlinedPlugins")
    return NetworkList(
        name=name,
        version=_version(raw),
        disable_check=_switch(raw, "disableCheck"),
        disable_gc=_switch(raw, "disableGC"),
        only_inlined=only_inlined,
        plugins=_inlined(raw, only_inlined),
        data=data,
    )


def plugin_from_bytes(data: bytes) -> PluginConf:
    """One plugin's configuration object. Raises CNIError."""
    try:
        raw = gojson.decode(data)
    except CNIError as error:
        raise error.wrapped(_PLUGIN) from None
    return _plugin(raw)


def _plugin(raw: Any) -> PluginConf:
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise CNIError(
            f"{_PLUGIN}json: cannot unmarshal {gojson.json_type(raw)} into Go value of type "
            "types.NetConf"
        )
    head = config.convert(raw, _Head, _PLUGIN)
    if not head.type:
        raise CNIError(f"{_PLUGIN}missing 'type'")
    # A capability that is false or null is not declared.
    wanted = frozenset(key for key, value in head.capabilities.items() if value)
    return PluginConf(head.type, head.name, head.cni_version, wanted, raw)


def _version(raw: dict[str, Any]) -> str:
    """The version for the plugins: the highest known one of `cniVersions` and `cniVersion`."""
    version = raw.get("cniVersion", "")
    if not isinstance(version, str):
        raise CNIError(f"{_LIST}invalid cniVersion type {gojson.go_type(version)}")
    if "cniVersions" not in raw:
        return version
    entries = raw["cniVersions"]
    if not isinstance(entries, list):
        raise CNIError(f"{_LIST}invalid type for cniVersions: {gojson.go_type(entries)}")
    usable = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, str):
            raise CNIError(
                f"{_LIST}invalid type for cniVersions index {index}: {gojson.go_type(entry)}"
            )
        if not _too_new(entry, f"invalid cniVersions entry {entry} at index {index}"):
            usable.append(entry)
    if version and not _too_new(version, f"invalid cniVersion {version}"):
        usable.append(version)
    # Only versions that are too new: the plugins then get `cniVersion`, and refuse it themselves.
    return max(usable, key=versions.parse, default=version)


def _too_new(version: str, what: str) -> bool:
    try:
        return versions.parse(version) > versions.parse(versions.CURRENT)
    except CNIError as error:
        raise CNIError(f"{_LIST}{what}: {error.msg}", error.details) from None


def _switch(raw: dict[str, Any], key: str) -> bool:
    """A JSON bool, or "true" or "false" in any case; absent means false."""
    value = raw.get(key, False)
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise CNIError(f"{_LIST}invalid type {gojson.go_type(value)} for {key}")
    if value.lower() not in ("true", "false"):
        raise CNIError(
            f"{_LIST}invalid value {gojson.quote(value.lower())} for {key}", "write true or false"
        )
    return value.lower() == "true"


def _inlined(raw: dict[str, Any], only_inlined: bool) -> tuple[PluginConf, ...]:
    if "plugins" not in raw:
        if only_inlined:
            raise CNIError(f"{_LIST}`loadOnlyInlinedPlugins` is true, and no 'plugins' key")
        return ()
    plugins = raw["plugins"]
    if not isinstance(plugins, list):
        raise CNIError(f"{_LIST}invalid 'plugins' type {gojson.go_type(plugins)}")
    if not plugins:
        raise CNIError(f"{_LIST}no plugins in list")
    confs = []
    for index, plugin in enumerate(plugins):
        try:
            confs.append(_plugin(plugin))
        except CNIError as error:
            raise error.wrapped(f"failed to parse plugin config {index}: ") from None
    return tuple(confs)


def _complete(network: NetworkList, directory: str) -> NetworkList:
    """`network` with the plugins of ``<directory>/<network name>/*.conf`` after its own."""
    plugins = list(network.plugins)
    # A name like `..` would read files elsewhere.
    if not network.only_inlined and _is_network_name(network.name):
        for path in _files(os.path.join(directory, network.name), (".conf",)):
            plugins.append(_in_file(path, plugin_from_bytes))
    if not plugins:
        raise CNIError("no plugin configs found")
    return network._replace(plugins=tuple(plugins))


def _is_network_name(name: str) -> bool:
    """May `name` become a part of a path? (ADD refuses the other names anyway.)"""
    try:
        check_network_name(name)
    except CNIError:
        return False
    return True


def _upconvert(conf: PluginConf) -> NetworkList:
    """A list of one plugin, made of a single configuration (earlier versions of the spec)."""
    one = {"name": conf.name, "cniVersion": conf.version, "plugins": [conf.raw]}
    return from_bytes(gojson.encode_sorted(one))


def _in_file(path: str, parse: Callable[[bytes], T]) -> T:
    """`parse` the content of a file; an error gets the file's name in its details."""
    data = _read(path)
    try:
        return parse(data)
    except CNIError as error:
        if path not in error.details:
            error.details = f"{error.details}; in {path}" if error.details else f"in {path}"
        raise


def _read(path: str) -> bytes:
    try:
        return files.read(path, _MAX_SIZE, follow=True)
    except OSError as error:
        raise _unusable(f"error reading {path}: open {path}", error) from None


def _unusable(what: str, error: OSError, advice: str = "") -> CNIError:
    text = f"{what}: {(error.strerror or str(error)).lower()}"
    if isinstance(error, PermissionError):
        return errors.NotPermitted(text, "run it as root" if os.geteuid() != 0 else "")
    return errors.CommandError(text, advice)


def _files(directory: str, extensions: tuple[str, ...]) -> list[str]:
    """The files of `directory` with one of the extensions, sorted; none without a directory."""
    try:
        with os.scandir(directory) as entries:
            # As Go's DirEntry.IsDir: a link to a directory is listed, and fails when it is read.
            file_names = [e.name for e in entries if not e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        advice = "NETCONFPATH names the directory with network configurations"
        raise _unusable(f"open {directory}", error, advice) from None
    # Not os.path.splitext: Go takes ".conf" for an extension without a name.
    wanted = [name for name in file_names if name[name.rfind(".") :] in extensions and "." in name]
    # By bytes, as Go sorts strings: the order decides which network is the default one.
    return [os.path.join(directory, name) for name in sorted(wanted, key=os.fsencode)]
