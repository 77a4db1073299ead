"""Which modules are frozen: everything that our own modules import, and what that imports in turn.

Imports are read from the source, those inside of functions as well, and so are the names of
codecs, each of which is a module. What nobody needs on a node is left out by name; importing it
fails there, as if that part of Python were not installed.
"""

from __future__ import annotations

import ast
import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.interpreter.sources import HERE, BuildError

# Modules of the interpreter itself, which imports them before any of ours.
_START = """
    _frozen_importlib _frozen_importlib_external zipimport abc codecs io encodings encodings.aliases
    encodings.utf_8 encodings.ascii encodings.latin_1 encodings.cp437 encodings.idna os stat
    posixpath genericpath _collections_abc
"""
# What modules written in C import.
_FROM_C = "_strptime numbers traceback warnings weakref"
# The source of these has another name, which tracebacks show.
BOOTSTRAP = {
    "_frozen_importlib": "importlib._bootstrap",
    "_frozen_importlib_external": "importlib._bootstrap_external",
}

# Modules that take the place of the standard library's.
_INSTEAD = HERE / "lib"
# Our own modules that no Linux node runs.
_NOT_OURS = (
    "cni.windows",
    "cni.zip_extensions",
    "cni.plugins.shared.windows",
    "cni.plugins.win_bridge",
    "cni.plugins.win_overlay",
)
# Branches of the standard library that are reached on other systems, by developers, or by nobody.
_LEFT_OUT = """
    _aix_support _android_support _bootsubprocess _osx_support _pydecimal _pyio _pydatetime
    click._winconsole bdb bz2 cgi cmd code codeop ctypes curses dbm distutils doctest
    ensurepip fractions ftplib getpass gzip idlelib lib2to3 lzma mailbox mimetypes multiprocessing
    netrc nntplib nturl2path optparse pdb pickletools plistlib poplib pty py_compile pydoc
    pydoc_data readline rlcompleter runpy site smtplib sqlite3 statistics sysconfig tarfile
    telnetlib test tkinter tracemalloc turtle unittest venv webbrowser xml xmlrpc
    asyncio.windows_events asyncio.windows_utils asyncio.proactor_events asyncio.__main__
    concurrent.futures.process
    argparse csv email getopt importlib.metadata pyroute2 importlib.readers importlib.resources
    quopri
    logging.config logging.handlers compileall encodings.mbcs
"""

# The request path: in the snapshot, and for a machine that has none laid into the file as finished
# objects ("deep-frozen"), which takes three times the room of marshalled code, and nothing has to
# be read. Of our own modules all but these:
_NO_REQUEST = (
    "cni.artifact",
    "cni.cli",
    "cni.describe",
    "cni.install",
    "cni.plugins.sample",
    "cni.record.exposition",
    "cni.record.tracing",
    "cni.server",
    "cni.systemd",
)
_DHCP, _DHCP_REQUESTS = "cni.ipam.dhcp.", ("plugin", "conf", "rpc")
_LIBRARY = """
    __future__ _frozen_importlib _frozen_importlib_external abc codecs io encodings
    encodings.aliases encodings.utf_8 os stat posixpath genericpath _collections_abc struct
"""


@dataclass(frozen=True)
class Module:
    """A module to freeze."""

    name: str
    source: bytes
    is_package: bool

    @property
    def is_for_requests(self) -> bool:
        """Whether it is on the request path."""
        if self.name.startswith(_DHCP):
            return self.name.removeprefix(_DHCP) in _DHCP_REQUESTS
        ours = self.name.partition(".")[0] == "cni" and not is_below(self.name, _NO_REQUEST)
        return ours or self.name in _LIBRARY.split()


class Sources:
    """Finds modules: in what the archive holds, then in the standard library."""

    def __init__(self, archive: dict[str, bytes], library: Path) -> None:
        self._archive, self._library = archive, library

    def find(self, name: str) -> Module | None:
        """The module, or None if there is none of this name that is written in Python."""
        path = BOOTSTRAP.get(name, name).replace(".", "/")
        for file, is_package in ((f"{path}/__init__.py", True), (f"{path}.py", False)):
            if file in self._archive:
                return Module(name, self._archive[file], is_package)
            for library in (_INSTEAD, self._library):
                if (library / file).is_file():
                    return Module(name, (library / file).read_bytes(), is_package)
        return None

    def below(self, package: str) -> Iterator[str]:
        """The names of the archive's modules in `package`."""
        for file in self._archive:
            if file.startswith(f"{package}/") and file.endswith(".py"):
                yield file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def closure(sources: Sources) -> dict[str, Module]:
    """Every module to freeze, by name."""
    own = [name for name in sources.below("cni") if not is_below(name, _NOT_OURS)]
    left_out = frozenset(_LEFT_OUT.split())
    waiting = [*_START.split(), *_FROM_C.split(), *own, "click.shell_completion"]
    found: dict[str, Module] = {}
    while waiting:
        name = waiting.pop()
        if name in found or name in BOOTSTRAP.values():
            continue
        if is_below(name, left_out) or is_below(name, _NOT_OURS):
            continue
        module = sources.find(name)
        if module is None:
            continue
        found[name] = module
        waiting += _imports(module)
        _check(module, left_out)
    return dict(sorted(found.items()))


def _check(module: Module, left_out: frozenset[str]) -> None:
    """Raises BuildError if `module` could not be imported without what is left out."""
    for node in ast.parse(module.source).body:
        for name in _named(module, node):
            if is_below(name, left_out):
                raise BuildError(f"{module.name} imports {name}, which modules.py leaves out")


def is_below(name: str, packages: frozenset[str] | tuple[str, ...]) -> bool:
    """Whether it is one of `packages`, or in one of them."""
    parts = name.split(".")
    return any(".".join(parts[: n + 1]) in packages for n in range(len(parts)))


def _imports(module: Module) -> Iterator[str]:
    """The names of all modules that `module` may import; some are no modules."""
    for node in ast.walk(ast.parse(module.source)):
        yield from _named(module, node)
        yield from _codecs(node)


def _named(module: Module, node: ast.AST) -> Iterator[str]:
    """What a statement of `module` imports, if it is an import."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _with_parents(alias.name)
    elif isinstance(node, ast.ImportFrom):
        base = _base(module, node)
        yield from _with_parents(base)
        yield from (f"{base}.{alias.name}" for alias in node.names)


def _codecs(node: ast.AST) -> Iterator[str]:
    """The module of each codec that a call names: str.encode, bytes.decode, or ``encoding=``."""
    if not isinstance(node, ast.Call):
        return
    named = [each.value for each in node.keywords if each.arg == "encoding"]
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("encode", "decode"):
        named += node.args[:1]
    for value in named:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            try:
                codec = codecs.lookup(value.value)
            except LookupError:
                continue
            yield f"encodings.{codec.name.replace('-', '_')}"


def _base(module: Module, node: ast.ImportFrom) -> str:
    """What an import names, made absolute."""
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    kept = len(parts) - node.level + module.is_package
    return ".".join([*parts[:kept], *([node.module] if node.module else [])])


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: n + 1]) for n in range(len(parts)))
