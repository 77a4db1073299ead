"""Finds a description by the name of a plugin, and a key by its path."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from cni.protocol.errors import CNIError

from .common import COMMON
from .model import (
    DelegateRecord,
    IpamRecord,
    Key,
    Kind,
    Many,
    Plugin,
    Record,
    Text,
    replace,
)

NAMES = (
    "bandwidth",
    "bond",
    "bridge",
    "cluster",
    "dhcp",
    "dummy",
    "firewall",
    "flannel",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "macvtap",
    "portmap",
    "ptp",
    "route-override",
    "sample",
    "sbr",
    "slaac",
    "sriov",
    "static",
    "tap",
    "tc-redirect-tap",
    "tuning",
    "vlan",
    "vrf",
    "vxlan",
    "whereabouts",
    "win-bridge",
    "win-overlay",
    "wireguard",
)
IPAM_NAMES = ("cluster", "dhcp", "host-local", "slaac", "static", "whereabouts")

_OPEN = Record((), is_open=True)


class Unknown(CNIError):
    """No plugin, or no key, has that name."""


def plugin(name: str) -> Plugin | None:
    """The description of the plugin that a `type` means; None for another project's."""
    own = known_as(name)
    if own is None:
        return None
    # One module for one plugin: explaining or judging it need not load all the others.
    description: Plugin = import_module(f"cni.describe.{own.replace('-', '_')}").PLUGIN
    return description


def known_as(name: str) -> str | None:
    """The plugin that a `type` means, also as BuildKit names it: `buildkit-cni-bridge`.

    A file of this project is a plugin with any prefix (dispatch.find). But a `type` does not tell
    whose file it is, and other projects have plugins called `ecs-bridge` or `my-tap`.
    """
    # The dash before the name makes `cni-bridge` match, too.
    own = f"-{name}".rpartition("-cni-")[2].removeprefix("-")
    return own if own in NAMES else None


def plugins() -> list[Plugin]:
    """All descriptions, by name."""
    return [each for each in map(plugin, NAMES) if each is not None]


def near(name: str, known: list[str]) -> str:
    """The name of `known` that is most similar to `name`; "" if none is similar."""
    from difflib import get_close_matches  # a misspelled name is rare

    # Reversed: of names that differ in case only the first counts.
    folded = {each.lower(): each for each in reversed(known)}
    close = get_close_matches(name.lower(), folded, n=1, cutoff=0.75)
    return folded[close[0]] if close else ""


def own_key(described: Plugin, name: str) -> Key | None:
    """The plugin's own description of a key at the top."""
    return next((key for key in described.keys if key.name == name), None)


def ipam_keys(name: str) -> Record:
    """The object `ipam` of an IPAM plugin; open if the plugin is not of this project."""
    described = plugin(name)
    key = own_key(described, "ipam") if described is not None else None
    if described is None or described.place != "ipam" or key is None:
        return Record((_ipam_type(),), is_open=True)
    assert isinstance(key.kind, Record)
    return Record((_ipam_type(), *key.kind.keys))


def _ipam_type() -> Key:
    return Key(
        "type",
        Text(),
        "name of the IPAM plugin",
        absent="no IPAM plugin is called",
        example="host-local",
    )


def whole(described: Plugin, ipam: str = "") -> Record:
    """All keys of a plugin's object: its own, the common ones, and those that `ipam` reads there.

    `ipam` is the name of the IPAM plugin that the object calls.
    """
    keys = {key.name: key for key in COMMON}
    # A plugin's own description of a common key wins.
    keys.update((key.name, key) for key in described.keys)
    helper = plugin(ipam) if ipam else None
    for key in helper.keys if helper is not None and helper.place == "ipam" else ():
        if key.name in ("args", "runtimeConfig"):
            keys[key.name] = replace(keys[key.name], kind=_joined(keys[key.name].kind, key.kind))
    return Record(tuple(keys.values()))


def _joined(one: Kind, other: Kind) -> Kind:
    """Two objects as one that has the keys of both."""
    if not isinstance(one, Record) or not isinstance(other, Record):
        return one
    keys = {key.name: key for key in one.keys}
    for key in other.keys:
        if key.name in keys:
            key = replace(keys[key.name], kind=_joined(keys[key.name].kind, key.kind))  # noqa: PLW2901
        keys[key.name] = key
    return Record(tuple(keys.values()), one.is_open or other.is_open)


def capabilities(described: Plugin) -> set[str]:
    """The capabilities that the plugin takes from the runtime."""
    runtime = own_key(described, "runtimeConfig")
    if runtime is None or not isinstance(runtime.kind, Record):
        return set()
    return {key.capability for key in runtime.kind.keys if key.capability}


def entries(described: Plugin) -> Iterator[tuple[str, Key]]:
    """Each key with its path (``ipam.ranges.subnet``), one that has keys before those.

    The keys that all plugins have are left out. A path does not show lists.
    """
    for key in described.keys:
        yield from _entries("", key)


def _entries(prefix: str, key: Key) -> Iterator[tuple[str, Key]]:
    path = f"{prefix}{key.name}"
    below = inner(key.kind)
    if key.text:
        yield path, key
    if isinstance(below, Record):
        for each in below.keys:
            yield from _entries(f"{path}.", each)


def inner(kind: Kind) -> Kind:
    """The kind of the elements of a list, or list of lists; other kinds unchanged."""
    while isinstance(kind, Many):
        kind = kind.of
    return kind


def find(path: str) -> tuple[Plugin, str, Key | None]:
    """``bridge`` or ``bridge.vlanTrunk.minID``: the plugin, the key's path, and the key.

    The case of keys does not matter. Of an IPAM plugin ``ipam.`` may be left out. The key is None,
    and its path empty, where only a plugin is named. Raises Unknown.
    """
    name, _, rest = path.partition(".")
    described = plugin(name)
    if described is None:
        like = near(name, list(NAMES))
        raise Unknown(
            f"no plugin {name}",
            f"did you mean {like}?" if like else f"there are {', '.join(NAMES)}",
        )
    if not rest:
        return described, "", None
    known = dict(entries(described))
    # They are left out of lists, but may be asked for.
    known.update((key.name, key) for key in COMMON if key.name not in known)
    by_fold = {each.lower(): each for each in known}
    for wanted in (rest, f"ipam.{rest}"):
        known_path = by_fold.get(wanted.lower())
        if known_path is not None:
            return described, known_path, known[known_path]
    for key in described.args:
        if rest.lower() in (key.name.lower(), f"cni_args.{key.name.lower()}"):
            return described, f"CNI_ARGS.{key.name}", key
    others = _ipam_plugins_with(rest)
    if described.place != "ipam" and others:
        raise Unknown(
            f"{name} has no key {rest}, but IPAM plugins have: {', '.join(others)}",
            f"write {others[0]}.{rest}",
        )
    raise Unknown(f"{name} has no key {rest}", _like(rest, list(known)))


def _ipam_plugins_with(path: str) -> list[str]:
    """The IPAM plugins that have the key."""
    wanted = path.lower()
    names = sorted(IPAM_NAMES, key=lambda name: name != "host-local")  # most configurations use it
    found = [each for each in map(plugin, names) if each is not None]
    return [each.name for each in found if wanted in (known.lower() for known, _ in entries(each))]


def _like(path: str, known: list[str]) -> str:
    """The path of a key that `path` may mean, or the list of keys."""
    like = near(path, known)
    if not like:
        last = path.rpartition(".")[2]
        like = near(last, [each.rpartition(".")[2] for each in known])
        like = next((each for each in known if each.rpartition(".")[2] == like), "") if like else ""
    if like:
        return f"did you mean {like}?"
    return f"its keys are {', '.join(each for each in known if '.' not in each)}"


def below(kind: Kind) -> str:
    """The text for an object whose keys another plugin has; "" for other kinds."""
    kind = inner(kind)
    if isinstance(kind, IpamRecord):
        return f"the keys are those of {', '.join(IPAM_NAMES[:-1])} or {IPAM_NAMES[-1]}"
    if isinstance(kind, DelegateRecord):
        return f"the keys are those of {kind.default}, or of the plugin that its `type` names"
    return ""
