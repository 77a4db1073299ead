"""A quick start of the command line: what click takes of modules that are slow to import.

click needs two functions of `inspect`, which imports ast, dis and tokenize; uuid, which click and
msgspec import, asks `platform` for the system's name. Whoever wants another name of these modules
gets the real module's.
"""

from __future__ import annotations

import os
import sys
from types import FunctionType, ModuleType


class Front(ModuleType):
    """A module that has a few names of a real one, and imports it when another is wanted."""

    def __init__(self, name: str, **names: object) -> None:
        super().__init__(name)
        self.__dict__.update(names)
        sys.modules[name] = self

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system asks for those that a module may have
            raise AttributeError(name)
        real = self._load()
        self.__dict__.update(vars(real))
        return getattr(real, name)

    def _load(self) -> ModuleType:
        own = self.__name__
        if sys.modules.get(own) is self:
            del sys.modules[own]
        __import__(own)
        return sys.modules[own]


def enable() -> None:
    """Put the stand-ins where these modules are not loaded yet, unless CNI_STANDINS is off."""
    if sys.platform != "linux" or os.environ.get("CNI_STANDINS") == "off":
        return
    if "inspect" not in sys.modules:
        Front("inspect", cleandoc=cleandoc, isfunction=is_function)
    if "platform" not in sys.modules:
        Front("platform", system=system)


def cleandoc(doc: str) -> str:
    """As inspect.cleandoc: without the indentation that all lines but the first share."""
    first, *rest = doc.expandtabs().split("\n")
    margins = [len(line) - len(line.lstrip()) for line in rest if line.strip()]
    margin = min(margins, default=0)
    lines = [first.lstrip(), *(line[margin:] for line in rest)]
    while lines and not lines[-1]:
        del lines[-1]
    while lines and not lines[0]:
        del lines[0]
    return "\n".join(lines)


def is_function(value: object) -> bool:
    """As inspect.isfunction."""
    return isinstance(value, FunctionType)


def system() -> str:
    """As platform.system."""
    return os.uname().sysname
