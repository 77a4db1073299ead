"""A quick start: small stand-ins for modules whose import takes longer than a plugin's own work.

Importing `typing` takes 16 ms, msgspec's package 20, contextlib 6; the bare interpreter starts in
11. A plugin needs a few names from each. The stand-ins give those to our own modules; other modules
get the real module. Only the process that answers one request by exec does this: the command line
and the server import the real modules once.

Nothing depends on it. If a stand-in lacks something, `restart` starts the same process again with
CNI_STANDINS=off in its environment, which keeps the real modules. An administrator may set that
variable as well.
"""

from __future__ import annotations

import _collections_abc
import _signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # for type checkers; importing the real one is what this module avoids
if TYPE_CHECKING:
    from types import ModuleType
else:
    ModuleType = type(sys)

PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))  # versions whose modules were examined
_SWITCH = "CNI_STANDINS"
_MFD_NOEXEC_SEAL = 8  # demanded where vm.memfd_noexec=2, unknown before Linux 6.3

enabled = False
doubt: BaseException | None = None  # the failure that may be a stand-in's fault


class Insufficient(BaseException):
    """A stand-in lacks a wanted name. Not an Exception, so that no `except Exception` hides it."""


class StandIn(ModuleType):
    """A module that gives its names to our modules, and the real module's to others.

    `names` may be the module of this package that has them in NAMES; it is loaded when needed.
    `closed`: the real module's other names would not work beside these, so they raise Insufficient.
    """

    def __init__(self, name: str, names: dict[str, object] | str, *, closed: bool = False) -> None:
        super().__init__(name)
        self._given, self._closed = names, closed
        self._real: ModuleType | None = None
        sys.modules[name] = self

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") and name != "__all__":  # the import system asks for some
            raise AttributeError(name)
        # The caller's module: the real modules, which import one another, must get real names.
        if str(sys._getframe(1).f_globals.get("__name__")).startswith("cni."):
            names = self._names()
            if name in names:
                return names[name]
            if self._closed:
                raise Insufficient(f"{self.__name__}.{name} is not in cni.standins")
        return getattr(self._real or self._load(), name)

    def _names(self) -> dict[str, object]:
        if isinstance(self._given, str):
            module = f"{__name__}.{self._given}"
            __import__(module)
            self._given = dict(sys.modules[module].NAMES)
        return self._given

    def _load(self) -> ModuleType:
        # Otherwise the import system would take this object for the real module.
        del sys.modules[self.__name__]
        try:
            __import__(self.__name__)
            self._real = real = sys.modules[self.__name__]
        finally:
            sys.modules[self.__name__] = self
        return real


class Closed(ModuleType):
    """A module with some of the real one's names; for any other, Insufficient."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system asks for those that a module may have
            raise AttributeError(name)
        raise Insufficient(f"{self.__name__}.{name} is not in cni.standins")


def enable() -> None:
    """Install the stand-ins, except for modules that are loaded already.

    If that fails, the process restarts without them; if that fails, too, it continues without them.
    """
    global enabled  # noqa: PLW0603
    known = sys.platform == "linux" and sys.version_info[:2] in PYTHONS
    if os.environ.get(_SWITCH) == "off" or not known:
        return
    before = set(sys.modules)
    try:
        _enable()
        enabled = True
    except (Exception, Insufficient):  # noqa: BLE001 another msgspec or Python than the ones we know
        restart()
        # Modules that have seen half of the stand-ins must not be used with the real ones.
        for name in set(sys.modules) - before:
            del sys.modules[name]


def _enable() -> None:
    # Importing anything from `collections.abc` would import `collections`.
    if "collections" not in sys.modules:
        collections = StandIn("collections", {})
        collections.__dict__.update(abc=_collections_abc, __path__=[])
        sys.modules["collections.abc"] = _collections_abc
    from . import msgspec_, typing_

    if "msgspec" not in sys.modules:
        msgspec_.enable()
        if "typing" not in sys.modules:
            StandIn("typing", typing_.NAMES, closed=True)
    # The binding of nftables imports json, for a function that we do not call.
    names: dict[str, dict[str, object] | str] = {
        "contextlib": "contextlib_",
        "signal": public(_signal),
        "json": {},
    }
    for name, ours in names.items():
        if name not in sys.modules:
            StandIn(name, ours)


def public(module: ModuleType) -> dict[str, object]:
    """The names of a module that do not begin with an underscore."""
    return {name: value for name, value in vars(module).items() if name[:1] != "_"}


def suspect(error: BaseException) -> None:
    """Note in `doubt` a failure that a stand-in may have caused; then call `restart`."""
    global doubt  # noqa: PLW0603
    kinds = (Insufficient, TypeError, AttributeError, ImportError, NameError)
    if enabled and isinstance(error, kinds):
        doubt = error


def restart(stdin: bytes | None = None) -> None:
    """Start this process again with the real modules; returns only if that is not possible.

    `stdin` is the input that was read, None if none was. The caller must have undone its changes.
    """
    try:
        if stdin is not None:
            _put_back(stdin)
        env = {**os.environ, _SWITCH: "off"}
        program = sys.executable
        if __spec__.origin == "frozen":  # sys.executable is the native client: not to the server
            env["CNI_SERVER"] = "off"
            if os.path.exists("/proc/self/exe"):
                program = (
                    "/proc/self/exe"  # also if it was executed by descriptor, or replaced since
                )
        os.execve(program, [sys.executable, *sys.orig_argv[1:]], env)
    except (OSError, ValueError):
        return


def _put_back(stdin: bytes) -> None:
    try:
        fd = os.memfd_create("stdin", _MFD_NOEXEC_SEAL | os.MFD_CLOEXEC)
    except OSError:
        fd = os.memfd_create("stdin")
    rest = memoryview(stdin)
    while rest:
        rest = rest[os.write(fd, rest) :]
    # The new program reads from the offset that the descriptor has.
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    if fd:
        os.close(fd)
