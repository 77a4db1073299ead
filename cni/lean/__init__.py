"""A quick start: small stand-ins for modules whose import takes longer than a plugin's own work.

`typing` costs 16 ms, msgspec's package 20, contextlib 6, where the bare interpreter takes 11. A
plugin run needs a handful of names from each. The stand-ins have those; asked for any other name,
one puts the real module in its place and passes it on, so that nothing can be missing. Only the
process that answers one request by exec does this: the command line and the server import the real
modules once.
"""

from __future__ import annotations

import _collections_abc
import _signal  # type: ignore[import-not-found]
import sys

TYPE_CHECKING = False  # as type checkers know it; the real one is what we are here to avoid
if TYPE_CHECKING:
    from types import ModuleType
else:
    ModuleType = type(sys)


class StandIn(ModuleType):
    """A module that knows some names, and becomes the real one when asked for others."""

    def __init__(self, name: str, names: dict[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(names)
        sys.modules[name] = self

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system asks for those that a module may have
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _real(self) -> ModuleType:
        module = self.__name__
        if sys.modules.get(module) is self:
            del sys.modules[module]
            __import__(module)
            if module == "typing":  # one Any for all: msgspec recognizes it by identity
                sys.modules[module].Any = self.Any  # type: ignore[attr-defined]
        return sys.modules[module]


class _Collections(StandIn):
    def _real(self) -> ModuleType:
        if sys.modules.get("collections") is self:
            del sys.modules["collections.abc"]
        return super()._real()


def enable() -> None:
    """Put the stand-ins in place, but for modules that are there already."""
    # Importing anything from `collections.abc` would import `collections`.
    if "collections" not in sys.modules:
        _Collections("collections", {"abc": _collections_abc, "__path__": []})
        sys.modules["collections.abc"] = _collections_abc
    from . import contexts, core, types

    if "msgspec" not in sys.modules:
        core.enable()
    ours = {"typing": types.NAMES, "contextlib": contexts.NAMES, "signal": public(_signal)}
    for name, names in ours.items():
        if name not in sys.modules:
            StandIn(name, names)


def public(module: ModuleType) -> dict[str, object]:
    """The names of a module that do not begin with an underscore."""
    return {name: value for name, value in vars(module).items() if name[:1] != "_"}
