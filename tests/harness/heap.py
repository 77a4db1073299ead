"""Everything that imports have made in an interpreter, written down: runs alone, in a fresh one.

    python -I -S heap.py OUTPUT STANDINS USE LIBRARIES...

imports every module of the request path (with STANDINS `on` behind cni.standins, as a request by
exec does), with USE `rehearsal` rehearses, with `requests` serves requests. Then OUTPUT gets a line
for each object: where it was first found, from the modules' globals on, and what it is.
Children have lines of their own; an object that was found already is `= PLACE`.

Addresses do not appear, and neither does the order of sets. What an object keeps in C is seen only
as far as the garbage collector follows it. Nothing is imported here until all is written down, but
what the interpreter needs itself.
"""

from __future__ import annotations

import gc
import os
import sys
from binascii import crc32

SEPARATOR = "\t"  # repr() leaves none
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, range, type(None), type(...))
_CODE = type((lambda: None).__code__)
_MODULE = type(sys)
_NAMED = {type(len), type(str.join), type(object.__init__), type("".join)}
# Modules of ours that no request imports: they start, install, serve, or are the DHCP daemon.
_OTHERS = (
    *("__main__", "_build", "cli", "install", "server", "windows"),
    *("plugins.win_bridge", "plugins.win_overlay", "plugins.shared.windows"),
    "netns.visit",  # needs the interpreter of the self-contained file
)
_DHCP, _DHCP_REQUESTS = "cni.ipam.dhcp.", ("__init__", "conf", "plugin", "rpc")
# Modules of the library that our functions import when something rare happens.
_LATE = ("pickle", "select", "traceback")
_SKIPPED = frozenset({"__builtins__"})


def import_all(standins: bool, root: str) -> None:
    """Import what requests may import: every module of ours that is not for other programs."""
    if standins:
        from cni import standins as quick

        quick.enable()
        assert quick.enabled
    for name in sorted(own_modules(root)):
        __import__(name)
    for name in _LATE:
        __import__(name)


def own_modules(root: str) -> set[str]:
    """The names of the modules of ours that requests may import."""
    names = set()
    for folder, _, files in os.walk(f"{root}/cni"):
        package = folder.removeprefix(f"{root}/").replace("/", ".")
        names |= {f"{package}.{name[:-3]}" for name in files if name.endswith(".py")}
    return {name.removesuffix(".__init__") for name in names if _is_of_requests(name)}


def _is_of_requests(name: str) -> bool:
    if name.startswith(_DHCP):
        return name.removeprefix(_DHCP) in _DHCP_REQUESTS
    return not any(f"{name}.".startswith(f"cni.{other}.") for other in _OTHERS)


def use() -> None:
    """Serve requests, good and bad ones, as far as that changes nothing on the machine."""
    from cni import dispatch
    from cni.kernel import link, sysctl
    from cni.kernel.netlink import Netlink
    from cni.netns import Namespace, identify

    with Namespace.current() as here:
        here.run(os.getpid)
        here.sysctls([(sysctl.READ, sysctl.FORWARDING_V4, "")])
        link.find(here.netlink(), "lo")
    with Netlink() as host:
        link.find(host, "lo")
    identify("/proc/self/ns/net")
    env = {"CNI_PATH": "/", "CNI_CONTAINERID": "c", "CNI_NETNS": "", "CNI_IFNAME": "eth0"}
    for name in dispatch.TABLE:
        conf = b'{"cniVersion":"1.1.0","name":"heap","type":"%s"}' % name.encode()
        for verb in ("VERSION", "STATUS", "CHECK", "nonsense"):
            dispatch.answer(name, {**env, "CNI_COMMAND": verb}, lambda data=conf: data)
        dispatch.answer(name, {**env, "CNI_COMMAND": "STATUS"}, lambda: b"{")


class Walk:
    """Places of objects, breadth first."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._place: dict[int, str] = {}
        self._waiting: list[tuple[str, object]] = []
        self._ours = {id(self), id(vars(self)), id(self.found), id(self._place), id(self._waiting)}

    def everything(self) -> dict[str, str]:
        modules = sorted(item for item in sys.modules.items() if item[0] != "__main__")
        for name, module in modules:
            self._place[id(vars(module))] = f"{name}:"
        for name, module in modules:
            for key, value in list(vars(module).items()):
                if key not in _SKIPPED:
                    self._note(f"{name}:{key}", value)
        for place, value in self._waiting:  # grows meanwhile
            for step, child in _children(value):
                self._note(place + step, child)
        return self.found

    def _note(self, place: str, value: object) -> None:
        if id(value) in self._ours:
            return
        if isinstance(value, _PLAIN):
            self.found[place] = f"{type(value).__name__} {_plain(value)}"
        elif isinstance(value, _MODULE):
            self.found[place] = f"module {value.__name__}"
        elif type(value) in _NAMED:
            self.found[place] = f"{type(value).__name__} {value.__qualname__}"  # type: ignore[attr-defined]
        elif id(value) in self._place:
            self.found[place] = f"= {self._place[id(value)]}"
        else:
            self._place[id(value)] = place
            self.found[place] = _described(value)
            self._waiting.append((place, value))


def _plain(value: object) -> str:
    return repr(value)


def _described(value: object) -> str:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        return f"type {value.__module__}.{value.__qualname__}"
    if isinstance(value, _CODE):
        return f"code {value.co_name} {value.co_firstlineno} {crc32(value.co_code)}"
    if isinstance(value, (set, frozenset)):
        return f"{name} {sorted(_key(each) for each in value)}"
    if isinstance(value, (dict, list, tuple)):
        return f"{name} of {len(value)}"
    inside = {"_struct.Struct": "format", "re.Pattern": "pattern"}.get(name)
    return f"{name} {getattr(value, inside)!r}" if inside else name


def _key(value: object) -> str:
    if isinstance(value, _PLAIN):
        return _plain(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_key, value))})"
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    return f"<{type(value).__qualname__} {name}>"


def _children(value: object) -> list[tuple[str, object]]:
    if isinstance(value, dict):
        # only a subclass has more than its items
        return [(f"[{_key(key)}]", each) for key, each in list(value.items())] + _attributes(value)
    if isinstance(value, (list, tuple)):
        return [(f"[{n}]", each) for n, each in enumerate(list(value))] + _attributes(value)
    if isinstance(value, (set, frozenset, _CODE)):
        return []
    if isinstance(value, type):
        return [(f".{key}", each) for key, each in list(vars(value).items())] + _hidden(value)
    return [(f".{n}", each) for n, each in enumerate(gc.get_referents(value))]


def _hidden(value: type) -> list[tuple[str, object]]:
    """What a class refers to besides its attributes, numbered by kind."""
    found: list[tuple[str, object]] = []
    for each in gc.get_referents(value):
        kind = type(each).__name__
        if kind != "dict":
            count = sum(step.startswith(f"+{kind}") for step, _ in found)
            found.append((f"+{kind}{count}", each))
    return found


def _attributes(value: object) -> list[tuple[str, object]]:
    if type(value) in (dict, list, tuple):
        return []
    return [(f".{key}", each) for key, each in getattr(value, "__dict__", {}).items()]


def main(output: str, standins: str, used: str, *libraries: str) -> None:
    sys.path[:0] = libraries
    import_all(standins == "on", libraries[0])
    if used == "rehearsal":
        from cni.rehearsal import rehearse

        rehearse()
    elif used == "requests":
        use()
    # What was in a directory when a module was looked for there: anybody may make a file meanwhile,
    # and what a snapshot is made of is looked for in none.
    sys.path_importer_cache.clear()
    gc.collect()
    found = Walk().everything()
    with open(output, "w", errors="backslashreplace") as file:
        file.writelines(f"{place}{SEPARATOR}{text}\n" for place, text in found.items())


if __name__ == "__main__":
    main(*sys.argv[1:])
